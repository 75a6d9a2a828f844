"""The demo: what it says will happen, happens; and the late join can be seen in what it prints."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from stream_monitor import delays, demo
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.engine import Engine
from stream_monitor.publish.http import Filters
from stream_monitor.records import MICROSECONDS, Binding, Incident, IncidentKind, Json
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

START = 1_793_578_020
"""2026-11-02T00:07:00Z: the changes of the story fall into the midst of a quarter of an hour, as on most days."""

HOURS = 4.2
STEP_SECONDS = 240


def clock(hour: float) -> str:
    """The time of day at an hour of the story."""
    seconds = START + round(hour * 3600)
    return f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}"


@dataclass(frozen=True)
class Told:
    """What the demo printed of cohorts, in order, and the incidents there were."""

    lines: Sequence[str]
    incidents: Sequence[Incident]

    def about(self, model: str) -> list[str]:
        """The lines of one model."""
        return [line for line in self.lines if line.startswith(f"{model} ")]


def slices() -> Iterator[tuple[list[bytes], list[bytes]]]:
    """The demo's own story, a few minutes at a time, labels when they come."""
    due: list[tuple[int, int, bytes]] = []
    made: list[bytes] = []
    until = (START + STEP_SECONDS) * MICROSECONDS
    for number, event in enumerate(demo.events(np.random.default_rng(demo.SEED), START * MICROSECONDS)):
        if event.time_us >= until:
            labels = []
            while due and due[0][0] < until:
                labels.append(heapq.heappop(due)[2])
            yield made, labels
            made, until = [], until + STEP_SECONDS * MICROSECONDS
            if until > (START + HOURS * 3600) * MICROSECONDS:
                return
        made.append(json.dumps(event.body).encode())
        if event.label_us is not None:
            label = event.label | {"timestamp": event.label_us / MICROSECONDS}
            heapq.heappush(due, (event.label_us, number, json.dumps(label).encode()))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """The first hours of the story through the demo's engine, on a clock advanced by hand."""
    config = demo.demo_config(0, tmp_path_factory.mktemp("demo") / "demo.duckdb")
    store = Store(config.state)
    engine = Engine(config, store, baselines=demo.demo_baselines(config), expects_labels=True)
    source = MemorySource([Binding(p.stream, p.topic) for p in (demo.INFERENCE, demo.LABELS)])
    source.start(engine.positions())
    decoder = make_decoder(config)

    def ask(filters: Filters) -> Sequence[Json]:
        return [row for row in delays.rows(engine) if row["model"] == filters.model]

    followers = [demo.Follower(ask, model, version, START * MICROSECONDS + int(hour * 3600) * MICROSECONDS)
                 for model, version, hour in demo.FOLLOWED]  # fmt: skip
    lines: list[str] = []
    incidents: dict[str, Incident] = {}
    for number, (events, labels) in enumerate(slices()):
        source.extend(demo.INFERENCE, list(events))
        source.extend(demo.LABELS, list(labels))
        poll = source.poll(100_000, 0.0)
        for batch in decode_poll(decoder, poll):
            engine.offer(batch)
        engine.note_poll(poll, float(number))
        engine.step(float(number), seal_now=True)
        engine.join(float(number))
        incidents |= {incident.id: incident for incident in engine.checkpoint()}
        lines += [line for follower in followers for line in follower.lines()]
    store.close()
    return Told(lines, list(incidents.values()))


def number_after(word: str, line: str) -> float:
    """The figure behind a word."""
    found = re.search(rf"{word} (\d+(?:\.\d+)?)", line)
    assert found, line
    return float(found[1])


def coverage(line: str) -> float:
    """The labelled share that a line tells."""
    found = re.search(r"(\d+)% labelled, ", line)
    assert found, line
    return int(found[1]) / 100


@pytest.mark.slow
def test_a_cohort_is_told_three_times_as_its_labels_come(told: Told) -> None:
    """Its coverage rises to what it usually ends at, and no other line is printed."""
    for model, ends_at in (("credit", 0.7), ("demand", 1.0)):
        lines = told.about(model)
        shares = [coverage(line) for line in lines]
        assert len(lines) == 1 + demo.BEFORE_THE_LAST
        assert shares == sorted(shares)
        assert shares[0] < 0.75 * shares[-1]
        assert shares[-1] == pytest.approx(ends_at, abs=0.04)
        assert len({re.search(r"predictions of (\S+ to \S+):", line)[1] for line in lines}) == 1  # type: ignore[index]
    assert len(told.lines) == 2 * (1 + demo.BEFORE_THE_LAST)


@pytest.mark.slow
def test_the_estimate_meets_what_labels_show_where_the_relation_holds(told: Told) -> None:
    """Credit's inputs have moved: the estimate has left the baseline, and the labels come to lie within its interval."""
    last = told.about("credit")[-1]
    value, expected, baseline = (number_after(word, last) for word in ("accuracy", "expected", "baseline"))
    low, high = re.search(r"expected [\d.]+ \(([\d.]+) to ([\d.]+)\)", last).groups()  # type: ignore[union-attr]
    assert float(low) <= value <= float(high)
    assert abs(expected - value) < abs(baseline - value)


@pytest.mark.slow
def test_a_cohort_is_restated(told: Told) -> None:
    """Demand's relation changes in its midst: the first labels are of what was before, and the figure is told again."""
    first, *_, last = told.about("demand")
    before, now = number_after("mae", first), number_after("mae", last)
    assert now > 1.5 * before
    assert number_after("labelled it was", last) == pytest.approx(before)


@pytest.mark.slow
def test_the_change_is_dated_by_predictions_though_labels_came_later(told: Told) -> None:
    """The incident opens a quarter of an hour after the hour that the story names, and says that hour."""
    [found] = [i for i in told.incidents if i.kind is IncidentKind.CONCEPT_DRIFT and i.line.model == "demand"]
    changed_us = (START + 3 * 3600) * MICROSECONDS
    assert abs(found.onset_us - changed_us) <= 60 * MICROSECONDS
    assert found.opened_us - changed_us >= 900 * MICROSECONDS
    assert "the relation changed, inputs did not" in found.summary
    [line] = [line for line in demo.story_lines(START * MICROSECONDS) if "labels come 15 minutes later" in line.lower()]
    assert line.startswith(f"{clock(3)} to {clock(6)} ")


def test_the_story_is_told_in_times_of_day() -> None:
    """Each change with the time at which it begins and ends, so that an incident can be held to it."""
    lines = list(demo.story_lines(START * MICROSECONDS))
    assert [line[:14] for line in lines[:3]] == [f"{clock(a)} to {clock(b)}" for a, b in ((2, 4), (3, 6), (5, 6))]
    assert lines[3].startswith(f"{clock(7)} on ")


def cohort(start: str, coverage: float, said: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """One of the API's, a quarter of an hour long, without an estimate."""
    figure = {"metric": "mae", "value": 5.0, "lower": None, "upper": None}
    revisions = [{"coverage": c, "figures": [{**figure, "value": v}]} for c, v in said]
    hour, minute = int(start[:2]), int(start[3:])
    end = f"{hour + (minute + 15) // 60:02}:{(minute + 15) % 60:02}"
    now = {**figure, **dict.fromkeys(("expected_value", "expected_lower", "expected_upper")), "baseline_value": None}
    return {"window": "15m", "window_start": f"2026-11-02T{start}:00.000Z", "window_end": f"2026-11-02T{end}:00.000Z",
            "coverage": coverage, "figures": [now], "revisions": revisions}  # fmt: skip


def test_a_follower_keeps_to_its_cohort() -> None:
    """It says nothing before its cohort is there or when nothing is new, ends with what became of it, then is silent."""
    rows: list[Json] = []
    follower = demo.Follower(lambda _: rows, "m", "1", 1_793_577_600 * MICROSECONDS + 61)

    def says(*cohorts: dict[str, Any], outcome: str = "label") -> list[str]:
        rows[:] = [{"outcome": outcome, "cohorts": cohorts}]
        return list(follower.lines())

    early, mine = cohort("00:00", 1.0, [(0.5, 4.0)]), cohort("00:15", 0.2, [(0.2, 4.5)])
    assert says() == says(early) == says(mine, outcome="click") == []
    [first] = says(mine, early)
    assert first == "m 1, predictions of 00:15 to 00:30: 20% labelled, mae 4.5; no baseline"
    assert says(mine, early) == says(cohort("00:15", 0.3, [(0.2, 4.5), (0.3, 4.6)])) == []
    [second] = says(cohort("00:15", 0.4, [(0.2, 4.5), (0.3, 4.6), (0.4, 4.7)]))
    assert "40% labelled, mae 4.7" in second
    assert says(cohort("00:15", 0.9, [(0.2, 4.5), (0.4, 4.7), (0.9, 4.9)])) == []
    [last] = says(cohort("01:00", 0.1, []), cohort("00:15", 1.0, [(0.2, 4.5), (0.9, 4.9)]))
    assert last.endswith("100% labelled, mae 5; no baseline. At 20% labelled it was 4.5")
    assert says(cohort("01:00", 0.1, []), cohort("00:15", 1.0, [(0.2, 4.5)])) == []


def test_the_story_waits_for_a_slow_machine() -> None:
    """It goes at its pace while what it tells is shown, stands when it is too far ahead, and never goes back."""
    shown: list[int | None] = [None]
    teller = demo.Teller(MemorySource([Binding(demo.INFERENCE.stream, "inference")]), START * MICROSECONDS,
                         shown_us=lambda: shown[0])  # fmt: skip
    assert teller._next(0.0, 72.0) == 72.0
    assert teller._next(demo.AHEAD_SECONDS - 1.0, 72.0) == demo.AHEAD_SECONDS
    shown[0] = (START + 600) * MICROSECONDS
    assert teller._next(demo.AHEAD_SECONDS, 72.0) == demo.AHEAD_SECONDS + 72.0
    assert teller._next(5_000.0, 72.0) == 5_000.0
