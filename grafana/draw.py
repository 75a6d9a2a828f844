"""Draw every dashboard from its JSON and the answers of a Prometheus: what nobody can see without a Grafana.

.venv/bin/python -m grafana.draw                       tells the demo's story first, which takes some minutes
.venv/bin/python -m grafana.draw --url http://…:9090   asks a Prometheus that runs

It is no Grafana: fonts, legends and colours are only alike. Queries, values, units, thresholds, columns, their order and
what is written where there is no data are those of the JSON.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from grafana import story
from grafana.ask import Answer, Json, Prometheus, Range, Values, ask, chosen, filled, table_of
from grafana.write import boards

PICTURES = Path(__file__).parents[1] / "docs" / "dashboards"
COLUMN, UNIT, GAP = 58, 34, 6
"""Pixels of a column and of a row of the grid, and between panels."""

COLOURS = {
    "green": "#56a64b",
    "yellow": "#e0b400",
    "orange": "#ff780a",
    "red": "#e02f44",
    "blue": "#3274d9",
    "text": "#24292e",
}
PALETTE = ["#56a64b", "#3274d9", "#ff780a", "#a352cc", "#e02f44", "#37872d", "#e0b400", "#1f60c4", "#8f3bb8", "#c4162a"]
PICKED: dict[str, dict[str, str]] = {
    "model.json": {"model": "credit", "version": "7", "metric": "accuracy"},
    "feature.json": {"model": "credit", "version": "7", "feature": "income"},
    "labels.json": {"model": "credit", "version": "7", "metric": "accuracy"},
}
HOURS: dict[str, float] = {"feature.json": 3.5}
"""Until which hour of the story, where not until that of most incidents: incomes are higher from hour 2 to 4."""

Steps = Sequence[Json]


# -- figures as people read them -------------------------------------------------------------------


def shown(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit."""
    if not math.isfinite(value):
        return "NaN"
    if unit == "percentunit":
        return f"{value * 100:.{1 if decimals is None else decimals}f}%"
    if unit in ("s", "dtdurations"):
        return _duration(value, decimals)
    if unit == "bytes":
        power = min(int(math.log(max(value, 1), 1024)), 4)
        return f"{value / 1024**power:.{0 if power == 0 else 1}f} {['B', 'KiB', 'MiB', 'GiB', 'TiB'][power]}"
    tail = {"eps": " evt/s", "cpm": " per min"}.get(unit, "")
    return _short(value, decimals) + tail


def _duration(seconds: float, decimals: int | None) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "mins")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    if abs(seconds) < 1 and seconds:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.{1 if decimals is None else decimals}f} s"


def _short(value: float, decimals: int | None) -> str:
    for size, name in ((1e9, " B"), (1e6, " M"), (1e3, " K")):
        if abs(value) >= size and decimals is None:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"


def colour(value: float, steps: Steps) -> str:
    """The colour of the last threshold that a value reaches."""
    name = str(steps[0]["color"])
    for step in steps[1:]:
        if value >= step["value"]:
            name = str(step["color"])
    return COLOURS.get(name, name)


# -- panels ----------------------------------------------------------------------------------------


def body(panel: Json, answers: Sequence[Answer], over: Range, marks: Sequence[tuple[float, str]]) -> str:
    """What is inside of a panel, as HTML."""
    defaults = panel["fieldConfig"]["defaults"]
    if not any(answer.result for answer in answers):
        return f'<div class="none">{html.escape(defaults["noValue"])}</div>'
    if panel["type"] == "stat":
        return _stat(defaults, answers[0])
    if panel["type"] == "table":
        return _table(panel, answers)
    drawn = {"timeseries": _lines, "heatmap": _heat, "state-timeline": _states, "barchart": _bars}[panel["type"]]
    figure = drawn(panel, answers)
    if panel["type"] != "barchart":
        figure.update_xaxes(range=[_moment(over.start), _moment(over.end)], tickformat="%H:%M")
        for at, mark in marks:
            figure.add_vline(x=_moment(at), line={"color": COLOURS[mark], "width": 1, "dash": "dot"})
    _dress(figure, panel)
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"staticPlot": True}))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _dress(figure: Any, panel: Json) -> None:
    at = panel["gridPos"]
    figure.update_layout(
        width=at["w"] * COLUMN - 26, height=at["h"] * UNIT - 44, margin={"l": 8, "r": 8, "t": 6, "b": 4},
        paper_bgcolor="white", plot_bgcolor="white", colorway=PALETTE, font={"size": 11, "color": "#52545c"},
        legend={"orientation": "h", "y": -0.14, "x": 0, "yanchor": "top"}, showlegend=True,
    )  # fmt: skip
    figure.update_xaxes(gridcolor="#eceef0", automargin=True)
    figure.update_yaxes(gridcolor="#eceef0", automargin=True, zeroline=False)


def _stat(defaults: Json, answer: Answer) -> str:
    value = float(answer.result[0]["value"][1])
    steps = defaults["thresholds"]["steps"]
    text, ink = shown(value, defaults["unit"], defaults.get("decimals")), colour(value, steps)
    for mapping in defaults.get("mappings") or ():
        word = mapping["options"].get(f"{value:g}")
        if word is not None:
            text, ink = word["text"], COLOURS[word["color"]]
    return f'<div class="stat" style="color:{ink}">{html.escape(text)}</div>'


def _points(one: Json) -> tuple[list[datetime], list[float | None]]:
    values = [float(value) for _, value in one["values"]]
    return [_moment(at) for at, _ in one["values"]], [v if math.isfinite(v) else None for v in values]


def _lines(panel: Json, answers: Sequence[Answer]) -> Any:
    figure = go.Figure()
    config = panel["fieldConfig"]["defaults"]
    custom = config.get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    for answer in answers:
        for name, one in answer.named():
            x, y = _points(one)
            style = _style(panel, name)
            figure.add_scatter(x=x, y=y, name=name, mode="lines", line=style, stackgroup="one" if stacked else None)
    if custom.get("thresholdsStyle", {}).get("mode") == "dashed":
        for step in config["thresholds"]["steps"][1:]:
            figure.add_hline(y=step["value"], line={"color": COLOURS[step["color"]], "dash": "dash", "width": 1})
    _scale(figure, config)
    return figure


def _style(panel: Json, name: str) -> Json:
    """Line width and dash as the overrides say."""
    found: Json = {"width": 2}
    for override in panel["fieldConfig"]["overrides"]:
        pattern = override["matcher"]["options"].strip("/")
        if override["matcher"]["id"] == "byRegexp" and re.search(pattern, name):
            given = {p["id"]: p["value"] for p in override["properties"]}
            found = {"width": given["custom.lineWidth"], "dash": given["custom.lineStyle"]["fill"]}
    return found


def _scale(figure: Any, config: Json) -> None:
    """Ticks in the panel's unit, and its bounds."""
    values = [v for trace in figure.data for v in (trace.y or ()) if v is not None]
    least = config.get("min", min(values, default=0))
    most = config.get("max", max(values, default=1))
    if any(trace.stackgroup for trace in figure.data):
        most = max(map(sum, zip(*([v or 0 for v in t.y] for t in figure.data), strict=False)), default=most)
    most = (
        max(most, *(float(shape.y0) for shape in figure.layout.shapes if shape.y0 == shape.y1))
        if figure.layout.shapes
        else most
    )
    room = (most - least or abs(most) or 1) * 0.05
    ticks = [least + (most - least or 1) * part / 4 for part in range(5)]
    figure.update_yaxes(range=[least - room, most + room], tickvals=ticks,
                        ticktext=[shown(t, config["unit"], config.get("decimals")) for t in ticks])  # fmt: skip


def _grid(answers: Sequence[Answer]) -> tuple[list[str], list[datetime], list[list[float | None]]]:
    """Names, times and a row of values for each series."""
    named = sorted((_natural(name), name, dict(zip(*_points(one), strict=True))) for name, one in answers[0].named())
    times = sorted({at for _, _, points in named for at in points})
    return [name for _, name, _ in named], times, [[points.get(at) for at in times] for _, _, points in named]


def _natural(name: str) -> tuple[float, str]:
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _heat(panel: Json, answers: Sequence[Answer]) -> Any:
    names, times, cells = _grid(answers)
    if panel["targets"][0]["format"] == "heatmap":
        cells = [
            [_above(row[at], cells[n - 1][at] if n else 0) for at in range(len(times))] for n, row in enumerate(cells)
        ]
        names = ["beyond" if name == "+Inf" else f"to {shown(float(name), 's')}" for name in names]
    form = ".0%" if panel["fieldConfig"]["defaults"]["unit"] == "percentunit" else ""
    bar = {"thickness": 8, "tickformat": form}
    return go.Figure(go.Heatmap(x=times, y=[f" {name}" for name in names], z=cells, colorscale="Blues", colorbar=bar))


def _above(count: float | None, below: float | None) -> float:
    """What a cumulated bucket holds more than the one below it."""
    return max((count or 0) - (below or 0), 0)


def _states(panel: Json, answers: Sequence[Answer]) -> Any:
    names, times, cells = _grid(answers)
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    level = [[None if v is None else sum(v >= s["value"] for s in steps[1:]) for v in row] for row in cells]
    inks = [COLOURS[step["color"]] for step in steps]
    scale = [[place, ink] for k, ink in enumerate(inks) for place in (k / len(inks), (k + 1) / len(inks))]
    figure = go.Figure(go.Heatmap(x=times, y=names, z=level, zmin=-0.5, zmax=len(inks) - 0.5, colorscale=scale,
                                  showscale=False, ygap=3))  # fmt: skip
    for k, (step, ink) in enumerate(zip(steps, inks, strict=True)):
        text = f"from {step['value']}" if k else f"below {steps[1]['value']}"
        figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": ink, "symbol": "square"}, name=text)
    return figure


def _bars(panel: Json, answers: Sequence[Answer]) -> Any:
    by = panel["options"]["xField"]
    rows = table_of(panel, answers)
    figure = go.Figure()
    for name in [column for column in rows[0] if column != by]:
        figure.add_bar(x=[f" {row[by]}" for row in rows], y=[row.get(name) for row in rows], name=name)
    figure.update_yaxes(tickformat=".0%" if panel["fieldConfig"]["defaults"]["unit"] == "percentunit" else "")
    figure.update_layout(bargroupgap=0.1)
    return figure


def _table(panel: Json, answers: Sequence[Answer]) -> str:
    rows = table_of(panel, answers)
    defaults = panel["fieldConfig"]["defaults"]
    looks = {o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]}
             for o in panel["fieldConfig"]["overrides"]}  # fmt: skip
    for by in panel["options"].get("sortBy", ()):
        rows.sort(key=lambda row: _sortable(row.get(by["displayName"])), reverse=by["desc"])
    columns = list(dict.fromkeys([*looks, *(column for row in rows for column in row)]))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = ["".join(_cell(row.get(c), looks.get(c, {}), defaults) for c in columns) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _sortable(value: object) -> float:
    return value if isinstance(value, float) and math.isfinite(value) else -math.inf


def _cell(value: Any, look: Json, defaults: Json) -> str:
    if value is None:
        return "<td></td>"
    unit = str(look.get("unit", defaults["unit"]))
    if isinstance(value, list):
        return f"<td>{_spark(value)} {shown(value[-1], unit, look.get('decimals'))}</td>"
    if isinstance(value, str):
        linked = ' class="link"' if "links" in look else ""
        return f"<td{linked}>{html.escape(value)}</td>"
    ink = colour(value, look["thresholds"]["steps"]) if "thresholds" in look else COLOURS["text"]
    text = shown(value, unit, look.get("decimals", defaults.get("decimals")))
    return f'<td class="number" style="color:{ink}">{html.escape(text)}</td>'


def _spark(values: Sequence[float]) -> str:
    most = max(values) or 1
    points = " ".join(f"{90 * n / max(len(values) - 1, 1):.1f},{18 - 16 * v / most:.1f}" for n, v in enumerate(values))
    return f'<svg width="92" height="20"><polyline points="{points}" fill="none" stroke="#3274d9"/></svg>'


# -- pages -----------------------------------------------------------------------------------------

STYLE = """body{margin:0;background:#f4f5f5;font:12px 'DejaVu Sans',sans-serif;color:#24292e}
h1{font-size:17px;margin:10px 12px 2px} .bar{margin:0 12px 6px;color:#52545c} .bar b{color:#24292e}
.grid{position:relative;margin:0 6px} .panel,.row{position:absolute;box-sizing:border-box;overflow:hidden}
.panel{background:white;border:1px solid #dcdee1;border-radius:2px;padding:6px 10px} .row{font-weight:bold;padding:8px 6px}
.title{font-weight:600;margin-bottom:4px;white-space:nowrap}
.stat{font-size:25px;font-weight:600;text-align:center;padding-top:18px}
.none{color:#8e9096;text-align:center;padding-top:20px;font-size:13px} table{border-collapse:collapse;width:100%;font-size:11px}
td,th{text-align:left;padding:4px 6px;border-bottom:1px solid #eceef0;white-space:nowrap} th{color:#3274d9}
td.number{text-align:left;font-weight:600} td.link{color:#1f60c4;text-decoration:underline}"""


def page(board: Json, prometheus: Prometheus, over: Range, values: Values) -> tuple[str, int]:
    """A dashboard as HTML, closed rows open, and how high it is."""
    marks = list(_marks(board, prometheus, over, values))
    parts, bottom = [], 0
    for panel in _everything(board):
        at = panel["gridPos"]
        place = (f"left:{at['x'] * COLUMN}px;top:{at['y'] * UNIT}px;width:{at['w'] * COLUMN - GAP}px;"
                 f"height:{at['h'] * UNIT - GAP}px")  # fmt: skip
        bottom = max(bottom, (at["y"] + at["h"]) * UNIT)
        if panel["type"] == "row":
            closed = " (closed until it is opened)" if panel["collapsed"] else ""
            parts.append(f'<div class="row" style="{place}">▾ {html.escape(panel["title"])}{closed}</div>')
            continue
        inside = body(panel, ask(panel, prometheus, over, values), over, marks)
        title = html.escape(filled(panel["title"], values))
        parts.append(f'<div class="panel" style="{place}"><div class="title">{title}</div>{inside}</div>')
    chosen_values = " · ".join(f"{v['label']} <b>{html.escape(_written(values[v['name']]))}</b>"
                               for v in board["templating"]["list"] if v["name"] not in ("datasource", "service"))  # fmt: skip
    when = " to ".join(f"{_moment(at):%H:%M}" for at in (over.start, over.end))
    return (
        f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
        f'<h1>{html.escape(board["title"])}</h1><div class="bar">{chosen_values} · {when} UTC</div>'
        f'<div class="grid" style="width:{24 * COLUMN}px;height:{bottom}px">{"".join(parts)}</div>',
        bottom + 64,
    )


def _written(value: str) -> str:
    return "All" if value == ".+" else value


def _everything(board: Json) -> Iterator[Json]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels") or ()


def _marks(board: Json, prometheus: Prometheus, over: Range, values: Values) -> Iterator[tuple[float, str]]:
    """(when it began, colour) of every annotation."""
    for note in board["annotations"]["list"]:
        for one in prometheus.series(filled(note["expr"], values), over):
            yield float(one["values"][0][0]), note["iconColor"]


def photograph(text: str, height: int, target: Path, folder: Path) -> None:
    """The page as a picture, by a headless Chromium."""
    source = folder / "page.html"
    source.write_text(text, encoding="utf-8")
    subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1",
         "--virtual-time-budget=20000", f"--window-size={24 * COLUMN + 14},{height}", f"--screenshot={target}",
         f"--user-data-dir={folder / 'browser'}", source.as_uri()],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a Prometheus that runs; the last six hours of it are drawn")
    parser.add_argument("--samples", type=Path, help="a file of samples that grafana.story wrote, told with --step")
    parser.add_argument("--step", type=int, default=60, help="seconds between two scrapes")
    parser.add_argument("--out", type=Path, default=PICTURES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = options.url
        if url is None:
            samples = options.samples or story.Telling(folder, step_seconds=options.step).run()
            url = stack.enter_context(story.prometheus(samples, folder))
        prometheus = Prometheus(url)
        for name, text in boards().items():
            board = json.loads(text)
            end = time.time() if options.url else story.START + HOURS.get(name, story.INCIDENT_HOUR) * 3600
            over = Range(max(end - 6 * 3600, story.START), end, options.step)
            given = {"datasource": "prometheus"} | ({} if options.url else PICKED.get(name, {}))
            drawn, height = page(board, prometheus, over, chosen(board, prometheus, over, given=given))
            photograph(drawn, height, options.out / name.replace(".json", ".png"), folder)


if __name__ == "__main__":
    main()
