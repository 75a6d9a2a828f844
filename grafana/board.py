"""What every dashboard has: variables, annotations, links to the others, and panels laid out from left to right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from grafana.panels import DATASOURCE, Row
from grafana.queries import series

GRID = 24
MODELS, MODEL, FEATURE, LABELS, MONITOR = (
    f"stream-monitor-{name}" for name in ("models", "model", "feature", "labels", "monitor")
)
TITLES = {
    MODELS: "Models",
    MODEL: "Model",
    FEATURE: "Feature",
    LABELS: "Labels and performance",
    MONITOR: "The monitor itself",
}
"""Address -> title, in the order in which a person goes from one to the next."""

INCIDENT_URL = "${service}/api/v1/incidents/${__data.fields.incident}"
"""The incident as the service itself tells it: onset, subjects, bins that moved."""

NOISE = {"auto", "auto_min", "auto_count", "placement"}
"""What the SDK writes into variables and annotations and Grafana's classic types do not know."""


def address(uid: str, **variables: str) -> str:
    """Where a cell leads: another dashboard with the same data source and time."""
    chosen = "".join(f"&var-{name}={value}" for name, value in variables.items())
    return (
        f"/d/{uid}?${{datasource:queryparam}}&${{job:queryparam}}&${{service:queryparam}}&${{__url_time_range}}{chosen}"
    )


MODEL_LINK = address(MODEL, model="${__data.fields.model}", version="${__data.fields.version}")
FEATURE_LINK = address(
    FEATURE, model="${model}", version="${__data.fields.version}", feature="${__data.fields.feature}"
)


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. `hours`: the range it opens with."""

    uid: str
    text: str
    rows: Sequence[Row]
    variables: Sequence[dashboard.QueryVariable] = field(default_factory=tuple)
    annotations: Sequence[dashboard.AnnotationQuery] = field(default_factory=tuple)
    hours: int = 6

    def to_json(self) -> str:
        """Classic JSON, the same each time."""
        built = dashboard.Dashboard(f"Stream Monitor: {TITLES[self.uid]}").uid(self.uid).description(self.text)
        built = built.tags(["stream-monitor"]).readonly().tooltip(model.DashboardCursorSync.CROSSHAIR)
        built = built.time(f"now-{self.hours}h", "now").timezone("browser").refresh("1m")
        built = built.variables([_datasource(), _job(), *self.variables, _service()])
        built = built.annotations(self.annotations).links(_links(self.uid))  # type: ignore[arg-type]
        body: dict[str, Any] = json.loads(json.dumps(built.build(), cls=JSONEncoder))
        body["panels"] = list(_placed(self.rows))
        for part in (*body["templating"]["list"], *body["annotations"]["list"], *body["links"]):
            for name in NOISE & part.keys():
                del part[name]
        return json.dumps(body, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def _placed(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Panels as JSON with numbers and places; those of a closed row lie in it."""
    number, y = 1, 0
    for row in rows:
        head = {"id": number, "type": "row", "title": row.title, "collapsed": row.closed,
                "gridPos": {"x": 0, "y": y, "w": GRID, "h": 1}, "panels": []}  # fmt: skip
        number, y = number + 1, y + 1
        placed, x, tallest = [], 0, 0
        for panel in row.panels:
            body: dict[str, Any] = json.loads(json.dumps(panel.build(), cls=JSONEncoder))
            if x + body["gridPos"]["w"] > GRID:
                x, y, tallest = 0, y + tallest, 0
            body |= {"id": number, "gridPos": {**body["gridPos"], "x": x, "y": y}}
            number, x, tallest = number + 1, x + body["gridPos"]["w"], max(tallest, body["gridPos"]["h"])
            placed.append(body)
        y += tallest
        if row.closed:
            yield {**head, "panels": placed}
        else:
            yield head
            yield from placed


# -- variables -------------------------------------------------------------------------------------


def _datasource() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def _job() -> dashboard.QueryVariable:
    query = f"label_values({series('build_info').partition('{')[0]}, job)"
    return _query("job", "Job", query).multi(True).include_all(True).all_value(".+").current(_all())


def _all() -> model.VariableOption:
    return model.VariableOption(selected=True, text="All", value="$__all")


def _query(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """Asked anew whenever the range changes: a version that is gone is not offered for the day it was not there."""
    found = dashboard.QueryVariable(name).label(label).query({"query": query, "refId": "StandardVariableQuery"})
    found = found.definition(query).datasource(DATASOURCE).refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
    return found.sort(model.VariableSort.ALPHABETICAL_ASC)


def choice(name: str, label: str, metric: str, *, every: bool = False, newest: bool = False, pattern: str = "",
           of: Mapping[str, str] | None = None) -> dashboard.QueryVariable:  # fmt: skip
    """One of the values of a label; `every` adds All as the default, `newest` puts the highest number first."""
    found = _query(name, label, f"label_values({series(metric, **(of or {}))}, {name})")
    if newest:
        found = found.sort(model.VariableSort.NUMERICAL_DESC)
    if pattern:
        found = found.regex(pattern)
    if every:
        found = found.multi(True).include_all(True).all_value(".+").current(_all())
    return found


def _service() -> dashboard.TextBoxVariable:
    default = "http://localhost:9464"
    found = dashboard.TextBoxVariable("service").label("Service address").default_value(default)
    return found.current(model.VariableOption(selected=True, text=default, value=default))


# -- annotations and links -------------------------------------------------------------------------


def annotation(name: str, expr: str, title: str, text: str, *, colour: str) -> dashboard.AnnotationQuery:
    """A mark on every panel that has a time axis, as long as the expression has a value."""
    found = dashboard.AnnotationQuery().name(name).datasource(DATASOURCE).enable(True).icon_color(colour)
    return found.expr(expr).title_format(title).text_format(text).step("60s")


def incidents(**matchers: str) -> dashboard.AnnotationQuery:
    """When incidents were open."""
    expr = f"max by (model, version, kind, severity, incident) ({series('incident_active', **matchers)})"
    return annotation("Incidents", expr, "{{kind}}: {{model}} {{version}}", "{{severity}}, {{incident}}", colour="red")


def baselines(**matchers: str) -> dashboard.AnnotationQuery:
    """When another baseline came into use."""
    held = series("baseline_info", **matchers)
    by = "max by (model, version, baseline)"
    fresh = f"{by} ({held}) unless {by} ({held} offset 5m)"
    return annotation("New baselines", fresh, "baseline of {{model}} {{version}}", "{{baseline}}",
                      colour="blue")  # fmt: skip


def _links(uid: str) -> Sequence[dashboard.DashboardLink]:
    others = [
        dashboard.DashboardLink(title).type(model.DashboardLinkType.LINK).url(f"/d/{other}").icon("dashboard")
        .include_vars(True).keep_time(True)
        for other, title in TITLES.items() if other != uid
    ]  # fmt: skip
    console = dashboard.DashboardLink("Console").type(model.DashboardLinkType.LINK).url("${service}/")
    return [*others, console.icon("external link").target_blank(True)]
