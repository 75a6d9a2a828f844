"""Draw the figures of "Late labels": twelve made-up weeks through the service's engine, and what its API then answers.

.venv/bin/python docs/draw_late_labels.py

A credit model whose defaults are known sooner than its repaid loans: its applicants change in week 4, what becomes of them
in week 9. A forecast of demand, whose sales are known after days and whose answer to the price wears off from week 7 on.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from stream_monitor.app import Monitor, decode_poll, make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.judge.baseline import Baseline
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Server, create_app
from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store
from stream_monitor.views import LiveView

Json = dict[str, Any]

FIGURES = Path(__file__).parent / "late-labels"
SEED = 11
START = 1_785_715_200
"""2026-08-03T00:00:00Z, a Monday."""

DAY, WEEKS = 86_400, 12
EVENTS_A_DAY = 300
BASELINE_ROWS = 8_000
STEP = 6 * 3600
"""Every so often labels are joined and figures restated: a service does it every second."""

INFERENCE = PartitionId(Stream.INFERENCE, "inference", 0)
LABELS = PartitionId(Stream.GROUND_TRUTH, "ground-truth", 0)


# -- what happens ----------------------------------------------------------------------------------


def credit(rng: np.random.Generator, week: float) -> tuple[Json, Json, float]:
    """An application with its decision, its truth, and the days until that is known."""
    income = float(rng.normal(0.7 if 4 <= week < 7 else 0.0, 1))
    debt = float(rng.normal(0, 1))
    risk = 1 / (1 + np.exp(0.9 + 1.2 * income - 1.1 * debt))
    turned = risk if week < 9 else 1 / (1 + np.exp(0.9 + 0.2 * income - 0.4 * debt))
    truth = "deny" if rng.random() < turned else "approve"
    score = float(np.round(risk, 4))
    body = {"features": {"income": round(income, 3), "debt": round(debt, 3)},
            "prediction": {"label": "deny" if score > 0.5 else "approve", "score": score}}  # fmt: skip
    return body, {"label": truth}, float(rng.exponential(2.0 if truth == "deny" else 9.0))


def demand(rng: np.random.Generator, week: float) -> tuple[Json, Json, float]:
    """A forecast, what was sold, and the days until that is known."""
    price = float(rng.uniform(5, 15))
    sold = 120 - 6 * price + 0.6 * max(0.0, week - 7) * (price - 8) + rng.normal(0, 6)
    body = {"features": {"price": round(price, 2)}, "prediction": round(120 - 6 * price, 2)}
    return body, {"value": round(float(sold), 2)}, float(1 + rng.exponential(1.5))


MODELS = {"credit": credit, "demand": demand}


def slices() -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Events and labels of each step, labels when they are known."""
    rng = np.random.default_rng(SEED)
    due: list[tuple[float, int, bytes]] = []
    made: list[bytes] = []
    until, gap = float(START + STEP), DAY / EVENTS_A_DAY
    for number in itertools.count():
        at = START + number * gap
        if at >= until:
            labels = []
            while due and due[0][0] < until:
                labels.append(heapq.heappop(due)[2])
            yield made, labels
            made, until = [], until + STEP
            if until > START + WEEKS * 7 * DAY + STEP:
                return
        for model, happens in MODELS.items():
            body, truth, days = happens(rng, (at - START) / (7 * DAY))
            head = {"inference_id": f"{model}-{number}", "model": model, "timestamp": at}
            made.append(line({**head, "version": "1", **body}))
            known = at + days * DAY
            heapq.heappush(due, (known, number, line({**head, **truth, "timestamp": known})))


def line(body: Json) -> bytes:
    """An event's bytes."""
    return json.dumps(body, separators=(",", ":")).encode()


def configuration(folder: Path) -> Config:
    """What a team would write."""
    return parse(
        {
            "state": str(folder / "state.duckdb"),
            "pane": "15m",
            "windows": ["1d", "7d"],
            "models": {"credit": {"task": "binary", "positive_label": "deny"}, "demand": {"task": "regression"}},
        },
        {},
    )


def baselines(config: Config) -> list[Baseline]:
    """Rows from before the first week, with their truths."""
    rng = np.random.default_rng(SEED + 1)
    source = MemorySource([Binding(Stream.INFERENCE, "training data")])
    rows = []
    for model, happens in MODELS.items():
        for _ in range(BASELINE_ROWS):
            body, truth, _ = happens(rng, 0.0)
            rows.append(line({"model": model, "version": "1", **body, **truth}))
    source.extend(PartitionId(Stream.INFERENCE, "training data", 0), rows)
    source.start({})
    return baselines_of_rows(list(source.poll(len(rows), 0.0).batches), config, source="training data")


@contextlib.contextmanager
def told(folder: Path) -> Iterator[str]:
    """The address of a service that has read all of it."""
    config = configuration(folder)
    store = Store(config.state)
    engine = Engine(config, store, baselines=baselines(config), expects_labels=True)
    source = MemorySource([Binding(p.stream, p.topic) for p in (INFERENCE, LABELS)])
    source.start(engine.positions())
    decoder = make_decoder(config)
    for number, (events, labels) in enumerate(slices()):
        source.extend(INFERENCE, list(events))
        source.extend(LABELS, list(labels))
        poll = source.poll(1_000_000, 0.0)
        for batch in decode_poll(decoder, poll):
            engine.offer(batch)
        engine.note_poll(poll, float(number))
        engine.step(float(number), seal_now=True)
        engine.join(float(number))
        engine.checkpoint()
    view = LiveView(cast(Monitor, SimpleNamespace(engine=engine)))
    view.refresh()
    server = Server(create_app(view, Publisher(series=1000)), host="127.0.0.1", port=0)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.port}/api/v1"
    finally:
        server.stop()
        view.close()
        store.close()


def ask(url: str, path: str, **parameters: str) -> list[Json]:
    """The rows of a list of the API."""
    query = urllib.parse.urlencode({"limit": "10000", **parameters})
    found: list[Json] = answer(f"{url}/{path}?{query}")
    return found


def answer(url: str) -> Any:
    """What the API says."""
    with urllib.request.urlopen(url, timeout=60) as body:
        return json.load(body)


# -- drawing ---------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 760, 56, 16, 26, 34
INK, SOFT, GRID, NOW, BEFORE, BASE, BAND = "#1a1d23", "#626a78", "#e1e5eb", "#2b62b8", "#9aa3b2", "#b06a00", "#cfdcf3"

Point = tuple[float, float]


@dataclass
class Chart:
    """One pair of axes. `x` and `y`: (least, most) of each."""

    title: str
    x: Point
    y: Point
    height: int = 220
    parts: list[str] = field(default_factory=list)

    def at(self, point: Point) -> Point:
        """Where a point lies in pixels."""
        across = (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), self.height - BOTTOM - up * (self.height - TOP - BOTTOM)

    def axes(self, *, x: Sequence[tuple[float, str]], y: Sequence[tuple[float, str]], under: str = "") -> None:
        """Ticks with their texts, and what the horizontal axis is."""
        for value, text in y:
            a, b = self.at((self.x[0], value))
            self.parts.append(f'<line x1="{a:.1f}" x2="{WIDTH - RIGHT}" y1="{b:.1f}" y2="{b:.1f}" stroke="{GRID}"/>')
            self.parts.append(_words(a - 6, b + 4, text, SOFT, "end"))
        for value, text in x:
            a, b = self.at((value, self.y[0]))
            self.parts.append(_words(a, b + 15, text, SOFT, "middle"))
        self.parts.append(_words(WIDTH - RIGHT, self.height - 5, under, SOFT, "end"))

    def line(self, points: Sequence[Point], colour: str, *, dash: str = "", width: float = 1.8) -> None:
        """A line through points."""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(self.at, points))
        self.parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" '
                          f'stroke-dasharray="{dash}" points="{path}"/>')  # fmt: skip

    def band(self, low: Sequence[Point], high: Sequence[Point], colour: str) -> None:
        """What lies between two lines."""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in map(self.at, [*low, *reversed(high)]))
        self.parts.append(f'<polygon fill="{colour}" fill-opacity="0.7" points="{path}"/>')

    def dot(self, point: Point, colour: str, *, ends: Point | None = None, hollow: bool = False) -> None:
        """A value with its interval."""
        a, b = self.at(point)
        if ends is not None:
            low, high = (self.at((point[0], end))[1] for end in ends)
            self.parts.append(f'<line x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
        self.parts.append(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.2" fill="{"white" if hollow else colour}" stroke="{colour}"/>'
        )

    def bar(self, left: float, right: float, top: float, colour: str) -> None:
        """From 0 to a value."""
        (a, up), (b, down) = self.at((left, top)), self.at((right, 0.0))
        self.parts.append(
            f'<rect x="{a:.1f}" y="{up:.1f}" width="{b - a:.1f}" height="{down - up:.1f}" fill="{colour}"/>'
        )

    def say(self, point: Point, text: str, colour: str, *, anchor: str = "start", up: float = 0) -> None:
        """Words at a point."""
        a, b = self.at(point)
        self.parts.append(_words(a, b - up, text, colour, anchor))

    def svg(self, top: int) -> str:
        """Placed so far below the top of the figure."""
        return (
            f'<g transform="translate(0 {top})">{_words(LEFT, 15, self.title, INK, "start")}{"".join(self.parts)}</g>'
        )


def _words(x: float, y: float, text: str, colour: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{text}</text>' if text else ""


def write(name: str, *charts: Chart) -> None:
    """Charts under each other as one file."""
    tops = [0, *itertools.accumulate(chart.height for chart in charts)]
    inside = "\n".join(chart.svg(top) for chart, top in zip(charts, tops, strict=False))
    size = f'viewBox="0 0 {WIDTH} {tops[-1]}" width="{WIDTH}" height="{tops[-1]}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / name).write_text(f'{head}\n<rect width="{WIDTH}" height="{tops[-1]}" fill="white"/>\n{inside}\n</svg>\n')


# -- figures ---------------------------------------------------------------------------------------


def unix(text: str) -> float:
    """A time of the API in seconds."""
    return datetime.fromisoformat(text).timestamp()


def week_of(text: str) -> float:
    """Weeks since the story began."""
    return (unix(text) - START) / (7 * DAY)


def weeks() -> list[tuple[float, str]]:
    """A tick under the middle of each week."""
    return [(n + 0.5, f"{datetime.fromtimestamp(START + n * 7 * DAY, UTC):%d.%m.}") for n in range(WEEKS)]


def draw_cohort(url: str) -> None:
    """How labels usually come, and one week's predictions as they were labelled and told again."""
    [row] = ask(url, "labels", model="credit")
    cohort = [c for c in row["cohorts"] if c["window"] == "7d"][-2]
    read = answer(f"{url}/status")["label_watermark"]
    end, said = unix(cohort["window_end"]), [*cohort["revisions"], {**cohort, "at": read}]
    ages = [(unix(r["at"]) - end) / DAY for r in said]
    most = 30.0
    coverage = Chart("Labelled share: usual at each age (line), and of one week of credit's predictions as labels came",
                     (0, most), (0, 1), 200)  # fmt: skip
    coverage.axes(x=[(d, f"{d}") for d in range(0, 31, 5)], y=[(v, f"{v:.0%}") for v in (0, 0.25, 0.5, 0.75, 1)])
    usual = [(p["age_seconds"] / DAY, p["coverage"]) for p in row["curve"] if p["age_seconds"] <= most * DAY]
    coverage.line(usual, BEFORE)
    for age, revision in zip(ages, said, strict=True):
        coverage.dot((age, revision["coverage"]), NOW)
    ripe = row["through_after_seconds"]
    if ripe is not None:
        coverage.line([(ripe / DAY, 0), (ripe / DAY, 1)], BASE, dash="4 3", width=1.2)
        coverage.say((ripe / DAY - 0.3, 0.08), "ripe from here on", BASE, anchor="end")
    figures = [next(f for f in r["figures"] if f["metric"] == "accuracy") for r in said]
    now = next(f for f in cohort["figures"] if f["metric"] == "accuracy")
    ends = [v for f in figures for v in (f["lower"], f["upper"])] + [now["expected_lower"], now["expected_upper"]]
    low, high = np.floor(min(ends) * 20) / 20, np.ceil(max(ends) * 20) / 20
    restated = Chart("Its accuracy, told again each time: first come the defaults, which it is wrong about more often",
                     (0, most), (low, high), 220)  # fmt: skip
    ticks = [(v, f"{v:.2f}") for v in np.arange(low, high + 0.01, 0.05).tolist()]
    restated.axes(x=[(d, f"{d}") for d in range(0, 31, 5)], y=ticks, under="days since the week ended")
    edges = [[(a, now[f"expected_{e}"]) for a in (0, most)] for e in ("lower", "upper")]
    restated.band(edges[0], edges[1], BAND)
    restated.say((most / 2, now["expected_upper"]), "expected without labels", NOW, up=-14)
    for age, figure in zip(ages, figures, strict=True):
        restated.dot((age, figure["value"]), NOW, ends=(figure["lower"], figure["upper"]))
    write("cohort.svg", coverage, restated)


def draw_estimated(url: str) -> None:
    """Credit's accuracy of each week: expected without labels, and as labels show it."""
    since = datetime.fromtimestamp(START, UTC).isoformat()
    rows = ask(url, "performance", model="credit", metric="accuracy", window="7d", since=since)
    of = {b: sorted((r for r in rows if r["basis"] == b), key=lambda r: str(r["window_start"]))[:WEEKS]
          for b in ("estimated", "cohort")}  # fmt: skip
    chart = Chart(
        "Accuracy of each week: expected without labels (band) and realised (dots; hollow: not ripe yet)",
        (0, WEEKS),
        (0.5, 0.85),
        260,
    )
    chart.axes(x=weeks(), y=[(v / 100, f"{v / 100:.2f}") for v in range(50, 86, 5)], under="week of the predictions")
    middle = [(week_of(r["window_start"]) + 0.5, r) for r in of["estimated"]]
    chart.band([(x, r["lower"]) for x, r in middle], [(x, r["upper"]) for x, r in middle], BAND)
    chart.line([(x, r["value"]) for x, r in middle], NOW)
    base = rows[0]["baseline_value"]
    chart.line([(0, base), (WEEKS, base)], BASE, dash="4 3", width=1.2)
    chart.say((WEEKS, base), "baseline", BASE, anchor="end", up=5)
    [labels] = ask(url, "labels", model="credit")
    young = {c["window_start"] for c in labels["cohorts"] if c["window"] == "7d" and c["ripeness"] != "ripe"}
    for row in of["cohort"]:
        at = (week_of(row["window_start"]) + 0.5, row["value"])
        chart.dot(at, INK, ends=(row["lower"], row["upper"]), hollow=row["window_start"] in young)
    chart.say((4, 0.515), "other applicants come", SOFT)
    chart.say((9, 0.83), "the relation changes", SOFT)
    write("estimated.svg", chart)


def draw_weekly(url: str) -> None:
    """Demand's mean absolute error of each week beside the baseline's."""
    since = datetime.fromtimestamp(START, UTC).isoformat()
    rows = ask(url, "performance", model="demand", metric="mae", window="7d", basis="cohort", since=since)
    rows = sorted(rows, key=lambda r: str(r["window_start"]))[:WEEKS]
    top = np.ceil(max(r["upper"] for r in rows) + 0.2)
    chart = Chart("Mean absolute error of each week's forecasts", (0, WEEKS), (0, top), 240)
    chart.axes(x=weeks(), y=[(v, f"{v}") for v in range(0, int(top) + 1, 2)], under="week of the predictions")
    base, constant = rows[0]["baseline_value"], [(week_of(r["window_start"]) + 0.5, r["best_constant"]) for r in rows]
    chart.line([(0, base), (WEEKS, base)], BASE, dash="4 3", width=1.2)
    chart.say((0.1, base), "baseline", BASE, up=5)
    if max(v for _, v in constant) <= top:
        chart.line(constant, BEFORE, dash="1 3")
    chart.line([(week_of(r["window_start"]) + 0.5, r["value"]) for r in rows], NOW)
    for row in rows:
        chart.dot((week_of(row["window_start"]) + 0.5, row["value"]), NOW, ends=(row["lower"], row["upper"]))
    write("weekly.svg", chart)


def draw_errors(url: str) -> None:
    """Where demand's errors lie in the last whole week, and in the baseline."""
    since = datetime.fromtimestamp(START + (WEEKS - 1) * 7 * DAY, UTC).isoformat()
    found = ask(url, "performance/details", model="demand", window="7d", basis="cohort", since=since)
    part = found[-1]["error_histogram"]
    edges, now, base = part["edges"], part["share"][1:-1], part["baseline_share"][1:-1]
    top = max(*now, *base) * 1.1
    chart = Chart("Predicted less true, share of the forecasts: the last week (blue) and the baseline (line)",
                  (edges[0], edges[-1]), (0, top), 240)  # fmt: skip
    chart.axes(x=[(float(v), f"{v:g}") for v in range(-20, 21, 5) if edges[0] <= v <= edges[-1]],
               y=[(v / 50, f"{v * 2} %") for v in range(int(top * 50) + 1)], under="error")  # fmt: skip
    for left, right, share in zip(edges, edges[1:], now, strict=False):
        chart.bar(left, right, share, BAND)
    steps = [(x, share) for left, right, share in zip(edges, edges[1:], base, strict=False) for x in (left, right)]
    chart.line(steps, BASE)
    beyond = [part["share"][0], part["share"][-1]]
    chart.say((edges[0], top * 0.9), f"{beyond[0]:.1%} lie below", SOFT)
    chart.say((edges[-1], top * 0.9), f"{beyond[1]:.1%} lie above", SOFT, anchor="end")
    write("errors.svg", chart)


def main() -> None:
    """Tell the story once and write the figures."""
    with tempfile.TemporaryDirectory() as folder, told(Path(folder)) as url:
        for draw in (draw_cohort, draw_estimated, draw_weekly, draw_errors):
            draw(url)


if __name__ == "__main__":
    main()
