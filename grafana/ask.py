"""What Grafana does before and after a query: variables into expressions, results into tables."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Values = Mapping[str, str]

POINTS = 240
"""Steps of a range: about what a panel of half a screen has pixels for."""


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of time in Unix seconds, and how far apart scrapes are."""

    start: float
    end: float
    scrape_seconds: int

    @property
    def step(self) -> int:
        """Seconds between two points, whole multiples of a scrape."""
        least = (self.end - self.start) / POINTS
        return max(1, round(least / self.scrape_seconds)) * self.scrape_seconds

    def builtin(self) -> dict[str, str]:
        """The variables Grafana itself has."""
        return {
            "__rate_interval": f"{max(self.step + self.scrape_seconds, 4 * self.scrape_seconds)}s",
            "__interval": f"{self.step}s",
            "__range": f"{round(self.end - self.start)}s",
        }


def panels(board: Json) -> Iterator[Json]:
    """Every panel that is no row, those of closed rows included."""
    for panel in board["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def filled(text: str, values: Values) -> str:
    """A text with its variables replaced; KeyError for one that nobody gave."""
    return re.sub(r"\$(?:\{([A-Za-z_]\w*)(?::\w+)?\}|([A-Za-z_]\w*))", lambda found: values[found[1] or found[2]], text)


class Prometheus:
    """A Prometheus by its address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str | list[str]) -> Any:
        """The data of an answer; ValueError with Prometheus' own words for what it refuses or warns of."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=60) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from error
        if body.get("warnings"):
            raise ValueError(f"{parameters}: {body['warnings']}")
        return body["data"]

    def series(self, expr: str, over: Range) -> list[Json]:
        """A matrix: each series with `metric` and `values`."""
        step = str(over.step)
        found: list[Json] = self.get("query_range", query=expr, start=str(over.start), end=str(over.end), step=step)[
            "result"
        ]
        return found

    def samples(self, expr: str, at: float) -> list[Json]:
        """A vector: each sample with `metric` and `value`."""
        data = self.get("query", query=expr, time=str(at))
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: list[Json] = data["result"]
        return found

    def label_values(self, query: str, over: Range) -> list[str]:
        """What `label_values(selector, label)` gives."""
        selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        asked: dict[str, str | list[str]] = {"match[]": [selector], "start": str(over.start), "end": str(over.end)}
        found: list[str] = self.get(f"label/{label}/values", **asked)
        return found


def chosen(board: Json, prometheus: Prometheus, over: Range, *, given: Values) -> dict[str, str]:
    """A value for each variable: what is given, else All, else the first there is, as Grafana chooses."""
    values = over.builtin()
    for variable in board["templating"]["list"]:
        name = variable["name"]
        if name in given:
            values[name] = given[name]
        elif variable["type"] == "query":
            values[name] = _first(variable, prometheus.label_values(filled(variable["definition"], values), over))
        elif variable["type"] == "textbox":
            values[name] = variable["query"]
    return values


def _first(variable: Json, offered: list[str]) -> str:
    if not offered:
        raise ValueError(f"the variable {variable['name']} has no values")
    if variable.get("includeAll"):
        return str(variable["allValue"])
    pattern = variable.get("regex", "").strip("/")
    kept = [value for value in offered if re.search(pattern, value)]
    return max(kept, key=_number) if variable["sort"] == NUMERICAL_DESC else min(kept)


NUMERICAL_DESC = 4
"""Grafana's number for this order of a variable's values."""


def _number(value: str) -> float:
    found = re.search(r"\d+(?:\.\d+)?", value)
    return float(found[0]) if found else -1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One target of a panel with what it gave: samples of a vector, or series of a matrix."""

    ref: str
    legend: str
    expr: str
    is_table: bool
    result: Sequence[Json]

    def named(self) -> Iterator[tuple[str, Json]]:
        """Each series with its name in the legend."""
        for one in self.result:
            yield legend_text(self.legend, one["metric"]), one


def legend_text(legend: str, labels: Mapping[str, str]) -> str:
    """What a series is called."""
    if legend == "__auto":
        return ", ".join(labels.values()) or "value"
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), legend)


def ask(panel: Json, prometheus: Prometheus, over: Range, values: Values) -> list[Answer]:
    """Every target of a panel, executed."""
    answers = []
    for target in panel["targets"]:
        expr = filled(target["expr"], values)
        is_table = bool(target.get("instant"))
        result = prometheus.samples(expr, over.end) if is_table else prometheus.series(expr, over)
        answers.append(Answer(target["refId"], filled(target["legendFormat"], values), expr, is_table, result))
    return answers


# -- transformations -------------------------------------------------------------------------------

Cell = str | float | list[float]


def table_of(panel: Json, answers: Sequence[Answer]) -> list[dict[str, Cell]]:
    """The rows of a table after the panel's transformations, columns in their order."""
    merged: dict[tuple[tuple[str, str], ...], dict[str, Cell]] = {}
    frames = sorted(answers, key=lambda answer: -max((len(one["metric"]) for one in answer.result), default=0))
    for answer in frames:
        for one in answer.result:
            name = "Value" if len(answers) == 1 else f"Value #{answer.ref}"
            cell: Cell = float(one["value"][1]) if answer.is_table else [float(v) for _, v in one["values"]]
            field = name if answer.is_table else f"Trend #{answer.ref}"
            _join(merged, one["metric"], field, cell)
    rows: list[dict[str, Cell]] = [{**dict(key), **cells} for key, cells in merged.items()]
    for step in panel.get("transformations", []):
        rows = TRANSFORMATIONS.get(step["id"], _as_it_is)(rows, step["options"])
    return rows


def _join(merged: dict[tuple[tuple[str, str], ...], dict[str, Cell]], labels: Json, field: str, cell: Cell) -> None:
    """Into every row that has these labels, or a row of its own."""
    own = set(labels.items())
    hits = [cells for key, cells in merged.items() if own <= set(key)]
    for cells in hits:
        cells[field] = cell
    if not hits:
        merged.setdefault(tuple(sorted(labels.items())), {})[field] = cell


def _as_it_is(rows: list[dict[str, Cell]], options: Json) -> list[dict[str, Cell]]:
    del options  # merging and trends were done while joining
    return rows


def _organise(rows: list[dict[str, Cell]], options: Json) -> list[dict[str, Cell]]:
    order, names, hidden = options["indexByName"], options["renameByName"], options["excludeByName"]
    return [
        {
            names.get(name, name): row[name]
            for name in sorted(row, key=lambda n: order.get(n, len(order)))
            if name not in hidden
        }
        for row in rows
    ]


def _sort(rows: list[dict[str, Cell]], options: Json) -> list[dict[str, Cell]]:
    for key in options["sort"]:
        rows = sorted(rows, key=lambda row: str(row[key["field"]]), reverse=key["desc"])
    return rows


def _matrix(rows: list[dict[str, Cell]], options: Json) -> list[dict[str, Cell]]:
    """A row for each value of one label, a column for each of another."""
    row_field, column_field = options["rowField"], options["columnField"]
    columns = sorted({str(row[column_field]) for row in rows})
    found: dict[str, dict[str, Cell]] = {}
    for row in rows:
        name = str(row[row_field])
        empty: dict[str, Cell] = {f"{row_field}\\{column_field}": name, **dict.fromkeys(columns, 0.0)}
        found.setdefault(name, empty)[str(row[column_field])] = row[options["valueField"]]
    return [found[name] for name in sorted(found)]


TRANSFORMATIONS = {"organize": _organise, "sortBy": _sort, "groupingToMatrix": _matrix}
