"""The demo: a seeded story of two models, everything embedded, faster than real time.

A credit model approves or denies; a demand forecast predicts a number. Over eight hours, told in under a minute:
applicants change (data drift), the forecast goes wrong although its inputs look as before (concept drift, visible only
through late labels), an upstream team breaks a field, and a new credit version comes with a baseline of its own.
"""

from __future__ import annotations

import heapq
import json
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import Config, duration_seconds, parse
from stream_monitor.engine import Engine
from stream_monitor.errors import UsageError
from stream_monitor.judge.baseline import Baseline
from stream_monitor.publish.events import Terminal
from stream_monitor.publish.http import Filters
from stream_monitor.records import MICROSECONDS, NO_TIME, Binding, Json, PartitionId, RawBatch, Stream
from stream_monitor.service import Service
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

SEED = 7
HOURS = 8.0
STORY_SECONDS = 40.0
"""Real time the eight hours take: long enough to watch, short enough not to leave."""

EVENTS_A_SECOND = 2.0
"""Of each model, in event time: 1,800 in a window of 15 minutes, plenty for every statistic."""

BASELINE_ROWS = 20_000
TICK_SECONDS = 0.1

INFERENCE = PartitionId(Stream.INFERENCE, "inference", 0)
LABELS = PartitionId(Stream.GROUND_TRUTH, "ground-truth", 0)

STORY: tuple[tuple[int, int | None, str], ...] = (
    (2, 4, "credit: applicants with higher incomes come, and more of them over the app"),
    (3, 6, "demand: shoppers react differently to price; inputs look the same. Labels come 15 minutes later: "
           "the incident opens by them, and dates the change to when its predictions were made"),
    (5, 6, "credit: an upstream team sends age as text"),
    (7, None, "credit: version 8 goes live with a baseline of its own"),
)  # fmt: skip
"""(from hour, to hour or for good, what happens)."""

FOLLOWED = (("credit", "7", 2.5), ("demand", "3", 2.75))
"""(model, version, hour): the first quarter of an hour that begins then or later is followed as its labels come. Credit's
inputs have moved by then and its relation holds; in the midst of demand's the relation changes."""

HASTE = 5.0
"""Twelve minutes pass in a second: with the usual second between two commits a quarter of an hour is but one or two."""


@dataclass(frozen=True, slots=True)
class Event:
    """One inference event with the truth that will come for it, and when (None: never)."""

    time_us: int
    body: dict[str, Any]
    label: dict[str, Any]
    label_us: int | None


def credit(rng: np.random.Generator, hour: float, version: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A credit decision and its truth."""
    drifted = 2 <= hour < 4
    age = int(np.clip(rng.normal(41, 12), 18, 90))
    income = float(np.round(rng.lognormal(10.75 + 0.35 * drifted, 0.5), 2))
    channel = str(rng.choice(["web", "branch", "app"], p=[0.30, 0.25, 0.45] if drifted else [0.55, 0.30, 0.15]))
    debt = float(np.round(rng.gamma(2.0, 4_000.0), 2))
    risk = 1 / (1 + np.exp(-(-1.2 + debt / 12_000 - (np.log(income) - 10.75) * 1.5 - (age - 41) * 0.01)))
    if version == "8":
        risk = float(np.clip(risk * 0.9 + 0.02, 0, 1))
    features: dict[str, Any] = {
        "age": str(age) if 5 <= hour < 6 else age,
        "income": income,
        "channel": channel,
        "debt": debt,
    }
    if rng.random() < 0.02:
        features["debt"] = None
    score = float(np.round(risk, 4))
    body = {"features": features, "prediction": {"label": "deny" if score > 0.5 else "approve", "score": score},
            "latency_ms": float(np.round(rng.gamma(4, 3), 2))}  # fmt: skip
    return body, {"label": "deny" if rng.random() < risk else "approve"}


def demand(rng: np.random.Generator, hour: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A forecast and what was sold."""
    price = float(np.round(rng.uniform(5, 15), 2))
    stock = int(rng.poisson(60))
    weekday = str(rng.choice(["mon", "tue", "wed", "thu", "fri", "sat", "sun"]))
    forecast = 120 - 6 * price + 10 * (weekday in ("sat", "sun"))
    slope = -9 if 3 <= hour < 6 else -6
    sold = 120 + slope * price + 10 * (weekday in ("sat", "sun")) + rng.normal(0, 6)
    body = {"features": {"price": price, "stock": stock, "weekday": weekday}, "prediction": float(np.round(forecast, 2)),
            "latency_ms": float(np.round(rng.gamma(3, 2), 2))}  # fmt: skip
    return body, {"value": float(np.round(sold, 2))}


def events(rng: np.random.Generator, start_us: int) -> Iterator[Event]:
    """The story, event by event, for ever."""
    step = int(MICROSECONDS / EVENTS_A_SECOND)
    number = 0
    while True:
        time_us = start_us + number * step
        hour = number * step / MICROSECONDS / 3600
        version = "8" if hour >= 7 else "7"
        for model, made in (("credit", credit(rng, hour, version)), ("demand", demand(rng, hour))):
            body, truth = made
            head = {"inference_id": f"{model}-{number}", "model": model, "timestamp": time_us / MICROSECONDS,
                    "version": version if model == "credit" else "3"}  # fmt: skip
            delay = rng.exponential(600) if model == "credit" else 900 + rng.exponential(60)
            labelled = model == "demand" or rng.random() < 0.7
            label_us = time_us + int(delay * MICROSECONDS) if labelled else None
            yield Event(time_us, head | body, {"inference_id": head["inference_id"], "model": model, **truth}, label_us)
        number += 1


@dataclass(slots=True)
class Teller:
    """Feeds the story to a memory source, in a thread of its own.

    `shown_us`: up to which event time people can see it, None before anything is. On a slow machine the story waits.
    """

    source: MemorySource
    start_us: int
    shown_us: Callable[[], int | None] = lambda: None
    story_seconds: float = STORY_SECONDS
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Tell the story at its pace, then go on in real time."""
        stream = events(np.random.default_rng(SEED), self.start_us)
        due: list[tuple[int, int, bytes]] = []
        ahead: Event | None = None
        pace = HOURS * 3600 / self.story_seconds
        before, count, told = time.monotonic(), 0, 0.0
        while not self.stop.wait(TICK_SECONDS):
            now = time.monotonic()
            told = self._next(told, (now - before) * (pace if told < HOURS * 3600 else 1.0))
            before = now
            until = self.start_us + int(told * MICROSECONDS)
            made: list[bytes | None] = []
            while True:
                event = ahead if ahead is not None else next(stream)
                ahead = None
                if event.time_us >= until:
                    ahead = event
                    break
                made.append(_line(event.body))
                if event.label_us is not None:
                    count += 1
                    label = event.label | {"timestamp": event.label_us / MICROSECONDS}
                    heapq.heappush(due, (event.label_us, count, _line(label)))
            labels: list[bytes | None] = []
            while due and due[0][0] < until:
                labels.append(heapq.heappop(due)[2])
            self.source.extend(INFERENCE, made)
            self.source.extend(LABELS, labels)

    def _next(self, told: float, step: float) -> float:
        """Seconds of the story that are told after a step: not so far beyond what is shown that changes go unseen."""
        shown = self.shown_us() or self.start_us
        return max(told, min(told + step, (shown - self.start_us) / MICROSECONDS + AHEAD_SECONDS))


AHEAD_SECONDS = 1_500
"""Two seconds of the story at its pace: a machine that keeps up never waits."""


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


@dataclass(slots=True)
class Follower:
    """Tells how the labels of one cohort came, from what the API says of it: at first, in between, and in the end.

    `ask`: the rows of `/api/v1/labels`. `start_us`: the cohort is the first of its length that begins then or later.
    """

    ask: Callable[[Filters], Sequence[Json]]
    model: str
    version: str
    start_us: int
    window: str = "15m"
    told: list[float] = field(default_factory=list)  # the coverage of each line so far
    followed: str | None = None  # the start of its window, once it is there
    is_over: bool = False

    def lines(self) -> Iterator[str]:
        """What is new since the last time."""
        for row in () if self.is_over else self.ask(Filters(model=self.model, version=self.version)):
            if row["outcome"] != "label":
                continue
            cohorts = {c["window_start"]: c for c in row["cohorts"] if c["window"] == self.window}
            later = [start for start in cohorts if _us(start) >= self.start_us]
            if self.followed is None and later:
                self.followed = min(later)
            if self.followed in cohorts:
                yield from self._news(cohorts[self.followed], newest=cohorts[max(cohorts)])

    def _news(self, cohort: Json, *, newest: Json) -> Iterator[str]:
        for revision in cohort["revisions"]:
            is_further = revision["coverage"] >= FURTHER + (self.told[-1] if self.told else 0.0)
            if is_further and len(self.told) < BEFORE_THE_LAST:
                self.told.append(revision["coverage"])
                yield self._line(cohort, revision)
        if _us(newest["window_end"]) >= _us(cohort["window_end"]) + SETTLED_SECONDS * MICROSECONDS:
            self.is_over = True
            yield self._line(cohort, cohort) + self._change(cohort)

    def _line(self, cohort: Json, then: Json) -> str:
        """A cohort as it was at a revision, or as it is now."""
        spoken = cohort["figures"][0]
        figure = next(f for f in then["figures"] if f["metric"] == spoken["metric"])
        since, until = (f"{_moment(_us(cohort[name])):%H:%M}" for name in ("window_start", "window_end"))
        beside = [f"expected {_written(spoken, 'expected_')}"] if spoken["expected_value"] is not None else []
        beside += ["no baseline" if spoken["baseline_value"] is None else f"baseline {spoken['baseline_value']:.3g}"]
        return (
            f"{self.model} {self.version}, predictions of {since} to {until}: {then['coverage']:.0%} labelled, "
            f"{spoken['metric']} {_written(figure)}; {', '.join(beside)}"
        )

    def _change(self, cohort: Json) -> str:
        """What became of the first figure."""
        first = next((r for r in cohort["revisions"] if r["coverage"] >= FURTHER), None)
        if first is None:
            return ""
        name = cohort["figures"][0]["metric"]
        before = next(f for f in first["figures"] if f["metric"] == name)
        return f". At {first['coverage']:.0%} labelled it was {before['value']:.3g}"


FURTHER = 0.15
"""By how much more of a cohort is labelled at the next line."""

BEFORE_THE_LAST = 2
"""Lines about a cohort while its labels come; the last is told when they have."""

SETTLED_SECONDS = 2_700
"""Three windows after its end next to all labels have come, and `/api/v1/labels` still lists the cohort."""


def _written(figure: Json, prefix: str = "") -> str:
    """A value with its interval."""
    value, lower, upper = (figure[f"{prefix}{part}"] for part in ("value", "lower", "upper"))
    return f"{value:.3g}" + (f" ({lower:.3g} to {upper:.3g})" if lower is not None and upper is not None else "")


def _us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * MICROSECONDS)


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / MICROSECONDS, UTC)


def demo_config(port: int, state: Path) -> Config:
    """What a user would write for these two models."""
    return parse(
        {
            "state": str(state),
            "publish": {"http": f"127.0.0.1:{port}"},
            "models": {
                "credit": {"task": "binary", "positive_label": "deny", "team": "risk"},
                "demand": {"task": "regression", "team": "supply"},
            },
        },
        {},
    )


def demo_baselines(config: Config) -> list[Baseline]:
    """Rows from before the story, with their truths, as a team would have them from training."""
    rng = np.random.default_rng(SEED + 1)
    rows = []
    for version in ("7", "8"):
        for _ in range(BASELINE_ROWS):
            body, truth = credit(rng, 0.0, version)
            rows.append(_line({"model": "credit", "version": version, **body, **truth}))
    for _ in range(BASELINE_ROWS):
        body, truth = demand(rng, 0.0)
        rows.append(_line({"model": "demand", "version": "3", **body, **truth}))
    n = len(rows)
    batch = RawBatch(
        Binding(Stream.INFERENCE, "training data"),
        (PartitionId(Stream.INFERENCE, "training data", 0),),
        np.zeros(n, np.int32),
        np.arange(n),
        pa.array(rows, pa.binary()),
        np.full(n, NO_TIME, np.int64),
    )
    return baselines_of_rows([batch], config, source="training data")


def run_demo(*, port: int, duration: str | None, browser: bool) -> None:
    """Tell the story until interrupted, or for a time such as `60s`."""
    try:
        seconds = None if duration is None else duration_seconds(duration)
    except ValueError as error:
        raise UsageError(f"--for {duration}: {error}") from error
    out = Console(highlight=False, soft_wrap=True)
    start_us = int(time.time() - HOURS * 3600) * MICROSECONDS
    out.print("Two models, eight hours of traffic in 40 seconds, or as fast as this machine goes (times are UTC):")
    for line in story_lines(start_us):
        out.print(f"  {line}", markup=False)
    with tempfile.TemporaryDirectory(prefix="stream-monitor-demo-") as folder:
        config = demo_config(port, Path(folder) / "demo.duckdb")
        store = Store(config.state)
        try:
            _serve(config, store, out, start_us=start_us, seconds=seconds, browser=browser)
        finally:
            store.close()


def story_lines(start_us: int) -> Iterator[str]:
    """What will happen, and when."""
    for begin, end, text in STORY:
        since, until = (_moment(start_us + (h or 0) * 3600 * MICROSECONDS) for h in (begin, end))
        yield f"{since:%H:%M} {f'to {until:%H:%M}' if end is not None else 'on':9} {text}"


def _follow(followers: Sequence[Follower], out: Console, stop: threading.Event) -> None:
    """Print what the followers tell until they are through."""
    while not stop.wait(TICK_SECONDS) and not all(follower.is_over for follower in followers):
        for follower in followers:
            for line in follower.lines():
                out.print(line, markup=False)


def _shown_us(service: Service) -> int | None:
    """The event time up to which predictions are judged and labels joined in what the service shows."""
    status = service.view.status()
    marks = [_us(status[name]) for name in ("watermark", "label_watermark") if status.get(name)]
    return min(marks) if marks else None


def _serve(config: Config, store: Store, out: Console, *, start_us: int, seconds: int | None, browser: bool) -> None:
    source = MemorySource([Binding(p.stream, p.topic) for p in (INFERENCE, LABELS)])
    stop = threading.Event()
    engine = Engine(config, store, baselines=demo_baselines(config), expects_labels=True)
    service = Service(config, engine, source, on_incidents=Terminal(sys.stdout).tell, haste=HASTE)
    teller = Teller(source, start_us, shown_us=lambda: _shown_us(service))
    followers = [Follower(service.view.labels, model, version, start_us + int(hour * 3600) * MICROSECONDS)
                 for model, version, hour in FOLLOWED]  # fmt: skip
    timer = None if seconds is None else threading.Timer(seconds, stop.set)
    threading.Thread(target=teller.run, name="story", daemon=True).start()
    following = threading.Thread(target=_follow, args=(followers, out, teller.stop), name="cohorts", daemon=True)
    following.start()
    if timer is not None:
        timer.start()
    url = f"http://127.0.0.1:{config.publish.port}/"
    out.print(f"The page: {url}    metrics: {url}metrics    API: {url}api/docs    (Ctrl+C ends it)")
    if browser:
        threading.Timer(1.0, webbrowser.open, [url]).start()
    try:
        service.run(stop)
    except KeyboardInterrupt:
        stop.set()
    finally:
        teller.stop.set()
        following.join()  # it asks the engine, which is about to be let go of
        if timer is not None:
            timer.cancel()
