"""Panels in our words: every one has a title, a text that says what good looks like, a unit and a word for no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from grafana_foundation_sdk.builders import (
    barchart,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models import prometheus as prometheus_model

DATASOURCE = common_model.DataSourceRef(type_val="prometheus", uid="${datasource}")
NO_DATA = "no data"

Steps = Sequence[tuple[float | None, str]]
"""(from which value on, colour); the first has no value."""

GOOD_IS_ZERO: Steps = ((None, "green"), (1, "red"))
RATIO: Steps = ((None, "green"), (0.8, "yellow"), (1, "red"))
"""Of a score to its threshold: beyond 1 chance is no explanation, from 0.8 on it is worth a look."""

PLAIN: Steps = ((None, "text"),)

Builder = barchart.Panel | heatmap.Panel | stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel
P = TypeVar("P", barchart.Panel, heatmap.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)


@dataclass(frozen=True, slots=True)
class Query:
    """An expression and what its series are called. A trend is a range in a cell of a table."""

    expr: str
    legend: str = ""
    trend: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: the field it shows, its title, and how. `link` is an address with `${__data.fields.x}`."""

    name: str
    title: str = ""
    unit: str = "short"
    decimals: int | None = None
    steps: Steps | None = None
    link: str | None = None
    link_title: str = ""
    hidden: bool = False
    width: int | None = None


def _ref(number: int) -> str:
    return chr(ord("A") + number)


def _target(query: Query, number: int, form: prometheus_model.PromQueryFormat) -> prometheus.Dataquery:
    """A table is asked for now, everything else over the range."""
    built = prometheus.Dataquery().expr(query.expr).ref_id(_ref(number)).legend_format(query.legend or "__auto")
    built = built.datasource(DATASOURCE)
    if form is prometheus_model.PromQueryFormat.TABLE and not query.trend:
        return built.instant().format(form)
    return built.range().format(SERIES if query.trend else form)


def _described(panel: P, title: str, text: str, queries: Sequence[Query], *, unit: str, empty: str,
               form: prometheus_model.PromQueryFormat, size: tuple[int, int]) -> P:  # fmt: skip
    found = panel.title(title).description(text).datasource(DATASOURCE).unit(unit).no_value(empty)
    found = found.grid_pos(model.GridPos(w=size[0], h=size[1]))
    for number, query in enumerate(queries):
        found = found.with_target(_target(query, number, form))
    return found


SERIES = prometheus_model.PromQueryFormat.TIME_SERIES
TABLE = prometheus_model.PromQueryFormat.TABLE
BUCKETS = prometheus_model.PromQueryFormat.HEATMAP
"""Grafana takes cumulated buckets apart."""


def thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    """Colours by value."""
    built = [model.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(built)


def by_thresholds() -> dashboard.FieldColor:
    """Coloured by those."""
    return dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS)


def number(title: str, text: str, expr: str, *, unit: str = "short", steps: Steps = PLAIN, width: int = 4,
           decimals: int | None = None, legend: str = "", empty: str = NO_DATA, words: dict[str, tuple[str, str]] | None = None,
           ) -> stat.Panel:  # fmt: skip
    """One figure, as of the end of the range. `words`: what is written instead of a value, and its colour."""
    panel = _described(
        stat.Panel(), title, text, [Query(expr, legend)], unit=unit, empty=empty, form=TABLE, size=(width, 4)
    )
    panel = (
        panel.thresholds(thresholds(steps))
        .color_scheme(by_thresholds())
        .color_mode(common_model.BigValueColorMode.VALUE)
    )
    panel = panel.graph_mode(common_model.BigValueGraphMode.NONE).text_mode(common_model.BigValueTextMode.VALUE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    if words is not None:
        panel = panel.mappings([_words(words)])
    return panel if decimals is None else panel.decimals(decimals)


def _words(words: dict[str, tuple[str, str]]) -> model.ValueMap:
    return model.ValueMap(
        options={value: model.ValueMappingResult(text=text, color=colour) for value, (text, colour) in words.items()}
    )


def lines(title: str, text: str, queries: Sequence[Query], *, unit: str = "short", width: int = 12, height: int = 8,
          stacked: bool = False, steps: Steps | None = None, least: float | None = 0, most: float | None = None,
          dashed: str | None = None, faint: str | None = None, decimals: int | None = None, empty: str = NO_DATA,
          ) -> timeseries.Panel:  # fmt: skip
    """Lines over time. Series whose name matches `dashed` are limits, those that match `faint` are intervals."""
    panel = _described(
        timeseries.Panel(), title, text, queries, unit=unit, empty=empty, form=SERIES, size=(width, height)
    )
    panel = panel.line_width(2).show_points(common_model.VisibilityMode.NEVER).fill_opacity(30 if stacked else 0)
    panel = panel.legend(_legend()).tooltip(
        common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI).sort(common_model.SortOrder.DESCENDING)
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL).group("A"))
    if steps is not None:
        panel = panel.thresholds(thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.DASHED)
        )
    if dashed is not None:
        panel = panel.override_by_regexp(f"/{dashed}/", _line("dash", [10, 10], 1))
    if faint is not None:
        panel = panel.override_by_regexp(f"/{faint}/", _line("dot", [2, 4], 1))
    if least is not None:
        panel = panel.min(least)
    if most is not None:
        panel = panel.max(most)
    return panel if decimals is None else panel.decimals(decimals)


def _line(fill: str, dash: list[int], width: int) -> list[model.DynamicConfigValue]:
    return [
        model.DynamicConfigValue(id_val="custom.lineStyle", value={"fill": fill, "dash": dash}),
        model.DynamicConfigValue(id_val="custom.lineWidth", value=width),
    ]


def _legend() -> common.VizLegendOptions:
    shown = common.VizLegendOptions().display_mode(common_model.LegendDisplayMode.LIST).show_legend(True)
    return shown.placement(common_model.LegendPlacement.BOTTOM)


def states(title: str, text: str, query: Query, *, steps: Steps, unit: str = "short", width: int = 24, height: int = 9,
           empty: str = NO_DATA) -> statetimeline.Panel:  # fmt: skip
    """A bar for each series, coloured by what its value means."""
    panel = _described(
        statetimeline.Panel(), title, text, [query], unit=unit, empty=empty, form=SERIES, size=(width, height)
    )
    panel = panel.thresholds(thresholds(steps)).color_scheme(by_thresholds()).merge_values(True).row_height(0.85)
    return panel.show_value(common_model.VisibilityMode.NEVER).fill_opacity(80).legend(_legend()).decimals(2)


def heat(title: str, text: str, query: Query, *, unit: str = "percentunit", width: int = 12, height: int = 9,
         empty: str = NO_DATA, buckets: bool = False) -> heatmap.Panel:  # fmt: skip
    """A row for each series, darker where its value is larger. `buckets`: those of a histogram of seconds."""
    form = BUCKETS if buckets else SERIES
    panel = _described(heatmap.Panel(), title, text, [query], unit=unit, empty=empty, form=form, size=(width, height))
    options = heatmap.HeatmapColorOptions().mode(heatmap_model.HeatmapColorMode.SCHEME).scheme("Blues").steps(64)
    if buckets:
        panel = panel.y_axis(heatmap.YAxisConfig().unit("s"))
    return panel.calculate(False).color(options.fill("blue").exponent(0.5).min(0)).max_data_points(120)


def pairs(title: str, text: str, queries: Sequence[Query], *, by: str, unit: str = "percentunit", width: int = 12,
          height: int = 9, empty: str = NO_DATA) -> barchart.Panel:  # fmt: skip
    """Bars side by side: the values of several queries for each value of the label `by`."""
    panel = _described(barchart.Panel(), title, text, queries, unit=unit, empty=empty, form=TABLE, size=(width, height))
    for transformation in (_merge(), _organised([Column(by), *_values(queries)]), _sorted(by)):
        panel = panel.with_transformation(transformation)
    panel = panel.x_field(by).orientation(common_model.VizOrientation.VERTICAL).legend(_legend()).fill_opacity(80)
    return panel.show_value(common_model.VisibilityMode.NEVER).group_width(0.8).bar_width(0.95).min(0)


def _values(queries: Sequence[Query]) -> list[Column]:
    """The value of each query under its legend."""
    return [Column(value_field(n, len(queries)), query.legend) for n, query in enumerate(queries)]


def value_field(number: int, many: int) -> str:
    """What Grafana calls the value of a query in a table."""
    return "Value" if many == 1 else f"Value #{_ref(number)}"


def _merge() -> model.DataTransformerConfig:
    return model.DataTransformerConfig(id_val="merge", options={})


def _sorted(by: str, *, falling: bool = False) -> model.DataTransformerConfig:
    return model.DataTransformerConfig(id_val="sortBy", options={"sort": [{"field": by, "desc": falling}]})


def _organised(columns: Sequence[Column]) -> model.DataTransformerConfig:
    return model.DataTransformerConfig(
        id_val="organize",
        options={
            "excludeByName": {"Time": True} | {column.name: True for column in columns if column.hidden},
            "indexByName": {column.name: place for place, column in enumerate(columns)},
            "renameByName": {column.name: column.title for column in columns if column.title},
        },
    )


def rows(title: str, text: str, queries: Sequence[Query], columns: Sequence[Column], *, sort: str | None = None,
         width: int = 24, height: int = 9, unit: str = "short", empty: str = NO_DATA) -> table.Panel:  # fmt: skip
    """A row for each set of labels, a column for each of these and each query; the largest `sort` on top."""
    panel = _described(table.Panel(), title, text, queries, unit=unit, empty=empty, form=TABLE, size=(width, height))
    if any(query.trend for query in queries):
        options = {_ref(n): {"stat": "lastNotNull"} for n, query in enumerate(queries) if query.trend}
        panel = panel.with_transformation(model.DataTransformerConfig(id_val="timeSeriesTable", options=options))
    if len(queries) > 1:
        panel = panel.with_transformation(_merge())
    panel = panel.with_transformation(_organised(columns)).cell_height(common_model.TableCellHeight.SM)
    for column in (column for column in columns if not column.hidden):
        panel = panel.override_by_name(column.title or column.name, _look(column))
    if sort is not None:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(sort).desc(True)])
    return panel


def _look(column: Column) -> list[model.DynamicConfigValue]:
    given = [model.DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.decimals is not None:
        given.append(model.DynamicConfigValue(id_val="decimals", value=column.decimals))
    if column.name.startswith("Trend"):
        given.append(
            model.DynamicConfigValue(id_val="custom.cellOptions", value=common_model.TableSparklineCellOptions())
        )
    if column.steps is not None:
        given += [
            model.DynamicConfigValue(id_val="thresholds", value=thresholds(column.steps).build()),
            model.DynamicConfigValue(id_val="color", value={"mode": "thresholds"}),
            model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}),
        ]
    if column.link is not None:
        link = {"title": column.link_title, "url": column.link, "targetBlank": column.link.startswith("${service}")}
        given.append(model.DynamicConfigValue(id_val="links", value=[link]))
    if column.width is not None:
        given.append(model.DynamicConfigValue(id_val="custom.width", value=column.width))
    return given


def matrix(title: str, text: str, query: Query, *, row: str, column: str, width: int = 12, height: int = 8, unit: str = "short",
           empty: str = NO_DATA) -> table.Panel:  # fmt: skip
    """A cell for each pair of two labels."""
    panel = _described(table.Panel(), title, text, [query], unit=unit, empty=empty, form=TABLE, size=(width, height))
    options = {"rowField": row, "columnField": column, "valueField": "Value", "emptyValue": "zero"}
    panel = panel.with_transformation(model.DataTransformerConfig(id_val="groupingToMatrix", options=options))
    return panel.cell_height(common_model.TableCellHeight.MD)


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a title; a closed one is asked for nothing until somebody opens it."""

    title: str
    panels: Sequence[Builder] = field(default_factory=tuple)
    closed: bool = False
