"""Bad labels through the engine, as a bus brings them: each has one counted fate, and a flood costs what it must."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feeding import read

from stream_monitor import history
from stream_monitor.app import make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.judge.selection import Kinds
from stream_monitor.records import Binding, Incident, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import LABELS, Store
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task, errors

EVENTS, TRUTHS = PartitionId(Stream.INFERENCE, "t", 0), PartitionId(Stream.GROUND_TRUTH, "l", 0)
START_MS = 1_793_577_600_000  # 2026-11-02T00:00:00Z
YEAR_MS = 365 * 86_400_000
GOOD = 400
"""Good events a second apart, each with its label ten seconds later."""

MODELS = {
    "binary": {"task": "binary", "positive_label": "yes"},
    "multiclass": {"task": "multiclass"},
    "regression": {"task": "regression"},
}


def prediction(task: str, number: int) -> Any:
    """Of the event of a number."""
    if task == "regression":
        return number % 50
    label = "yes" if number % 3 else "no"
    return {"label": label, "score": 0.8 if number % 3 else 0.2} if task == "binary" else {"label": label}


def right(task: str, number: int) -> dict[str, Any]:
    """Its truth, wrong one time in ten."""
    if task == "regression":
        return {"value": number % 50 + number % 7 / 7}
    label = prediction(task, number)["label"]
    return {"label": label if number % 10 else ("no" if label == "yes" else "yes")}


def line(body: dict[str, Any]) -> bytes:
    """One record; NaN and infinity as Python writes them."""
    return json.dumps(body).encode()


def event(task: str, number: int, **changes: Any) -> bytes:
    """A good event."""
    return line({"inference_id": f"e{number}", "model": "m", "timestamp": START_MS + number * 1000,
                 "features": {"age": 30 + number % 20}, "prediction": prediction(task, number)} | changes)  # fmt: skip


def truth(number: int, after_ms: int = 10_000, **body: Any) -> bytes:
    """Something said of an event, so long after it."""
    return line({"inference_id": f"e{number}", "timestamp": START_MS + number * 1000 + after_ms} | body)


class Bus:
    """An engine on a bus that brings records at the time of the day that they should be there."""

    def __init__(self, folder: Path, task: str) -> None:
        self.config = parse(
            {"models": {"m": MODELS[task]}, "windows": ["1m", "5m"], "drift": {"learn_from": 10**6}}, {}
        )
        self._decoder = make_decoder(self.config)
        self._source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, TRUTHS)])
        self._source.start({})
        rows = MemorySource([Binding(Stream.INFERENCE, "b")])
        rows.start({})
        rows.extend(
            PartitionId(Stream.INFERENCE, "b", 0),
            [line({"model": "m", "features": {"age": 30 + n % 20}, "prediction": prediction(task, n), **right(task, n)})
             for n in range(1_000)],
        )  # fmt: skip
        baselines = baselines_of_rows(rows.poll(1_000, 0.0).batches, self.config, source="here")
        self.store = Store(folder / "state.duckdb")
        self.engine = Engine(self.config, self.store, baselines=baselines, expects_labels=True)
        self.told: dict[str, Incident] = {}

    def bring(self, events: list[bytes], labels: list[bytes], *, at_ms: int) -> None:
        """Records that the broker wrote at a time, and a commit."""
        for partition, values in ((EVENTS, events), (TRUTHS, labels)):
            self._source.extend(partition, values, record_time_us=at_ms * 1000)
        self.told |= {i.id: i for i in read(self.engine, self._source, self._decoder)}

    def live(self, task: str, bad: list[bytes]) -> dict[str, Any]:
        """Good events and labels, bad labels in the middle, more good ones; the summary."""
        half = GOOD // 2
        for numbers, more in ((range(half), []), (range(half, GOOD), bad), (range(GOOD, GOOD + 60), [])):
            labels = [truth(n, **right(task, n)) for n in numbers]
            self.bring(
                [event(task, n) for n in numbers], [*labels, *more], at_ms=START_MS + numbers[-1] * 1000 + 10_000
            )
        return history.summary(self.engine)


def conserved(summary: dict[str, Any]) -> bool:
    """Every label and every prediction has exactly one fate."""
    events, labels = summary["inference"], summary["ground_truth"]
    return bool(
        labels["offered"] == sum(n for fate, n in labels.items() if fate != "offered")
        and sum(summary["predictions"].values()) == events["summarised"] + events["late"]
    )


@dataclass(frozen=True, slots=True)
class Case:
    """Bad labels, what becomes of them beside the good ones, and how many of the joined cannot be read for the task."""

    task: str
    labels: Callable[[], Iterable[bytes]]
    fates: dict[str, int] = field(default_factory=dict)
    labelled: int = 0  # predictions with a truth, more or fewer than good labels alone give
    unusable: int = 0
    predicted: bool = False  # the labels are of predictions that have no other


LONE = range(GOOD + 100, GOOD + 110)
"""Predictions that nothing good is said of."""


def lone(after_ms: int = 10_000, **body: Any) -> list[bytes]:
    """A label for each of them."""
    return [truth(n, after_ms, **body) for n in LONE]


CASES: dict[str, Case] = {
    "a text for a number": Case("regression", lambda: lone(label="much"), {"matched": 10}, 10, 10, True),
    "a number for a class": Case("binary", lambda: lone(value=1), {"matched": 10}, 10, 0, True),
    "true for a class": Case("multiclass", lambda: lone(label=True), {"matched": 10}, 10, 0, True),
    "a class nobody knows": Case("multiclass", lambda: lone(label="perhaps"), {"matched": 10}, 10, 0, True),
    "NaN": Case("regression", lambda: lone(value=float("nan")), {"rejected": 10}, 0, 0, True),
    "infinity": Case("regression", lambda: lone(value=float("inf")), {"rejected": 10}, 0, 0, True),
    "beyond any sum": Case("regression", lambda: lone(value=1e300), {"matched": 10}, 10, 10, True),
    "null": Case("binary", lambda: lone(label=None), {"rejected": 10}, 0, 0, True),
    "an object": Case("binary", lambda: lone(label={"is": "yes"}), {"rejected": 10}, 0, 0, True),
    "a year ahead": Case("binary", lambda: lone(YEAR_MS, label="yes"), {"rejected": 10}, 0, 0, True),
    "before its prediction": Case("binary", lambda: lone(-3_600_000, label="yes"), {"matched": 10}, 10, 0, True),
    "for another model": Case("binary", lambda: lone(label="yes", model="other"), {"orphan_waiting": 10}, 0, 0, True),
    "for nobody": Case("binary", lambda: [truth(10**6 + n, -10**9, label="yes") for n in range(10)], {"orphan_waiting": 10}),
    "duplicates": Case("binary", lambda: [truth(7, **right("binary", 7))] * 5_000, {"duplicate": 5_000}),
    "corrections": Case(
        "binary", lambda: [truth(7, 11_000 + n, label="yes" if n % 2 else "no") for n in range(5_000)], {"corrected": 5_000}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bad_label_has_one_counted_fate(tmp_path: Path, name: str) -> None:
    """Among good ones, which keep theirs; nothing rings, what cannot be read enters no metric, and the engine goes on."""
    case, bus = CASES[name], Bus(tmp_path, CASES[name].task)
    summary = bus.live(case.task, list(case.labels()))
    if case.predicted:
        bus.bring([event(case.task, n) for n in LONE], [], at_ms=START_MS + LONE[-1] * 1000)
        summary = history.summary(bus.engine)
    assert conserved(summary)
    good = GOOD + 60
    fates = {fate: n for fate, n in summary["ground_truth"].items() if n and fate != "offered"}
    expected = {**case.fates, "matched": case.fates.get("matched", 0) + good}
    assert fates == expected
    assert summary["predictions"]["labelled"] == good + case.labelled
    whole = bus.engine.versions[0].whole().number
    cohorts = [
        bus.engine.outcomes.cohorts.profile((whole, 0, 60, start * 10**6))
        for start in range(START_MS // 1000 - 60, START_MS // 1000 + 900, 60)
    ]
    counted = [(cohort.rows, cohort.unusable) for cohort in cohorts if cohort is not None]
    assert np.sum(counted, axis=0).tolist() == [good + case.labelled - case.unusable, case.unusable]
    assert {i.kind for i in bus.told.values()} <= {"baseline_missing"}
    bus.store.close()


@pytest.mark.parametrize("kind", ["duplicates", "corrections", "rejects", "nobody's"])
def test_a_flood_leaves_no_more_behind_than_a_trickle(tmp_path: Path, kind: str) -> None:
    """Of 100,000 as of 1,000: what waits in memory, and rows of the file, are bounded; every label has its fate."""
    made: dict[str, Callable[[int], bytes]] = {
        "duplicates": lambda n: truth(7, **right("binary", 7)),  # noqa: ARG005
        "corrections": lambda n: truth(7, 11_000 + n, label="yes" if n % 2 else "no"),
        "rejects": lambda n: truth(n, label=[n]),
        "nobody's": lambda n: truth(10**6 + n % 50, -(10**9), label="yes"),
    }
    left = []
    for size in (1_000, 100_000):
        folder = tmp_path / str(size)
        folder.mkdir()
        bus = Bus(folder, "binary")
        bus.live("binary", [])
        for start in range(0, size, 20_000):
            flood = [made[kind](n) for n in range(start, min(start + 20_000, size))]
            bus.bring([], flood, at_ms=START_MS + (GOOD + 200) * 1000)
        summary = history.summary(bus.engine)
        assert conserved(summary)
        assert summary["ground_truth"]["offered"] == GOOD + 60 + size
        rows = bus.store.query(f"select count(*) as n from {bus.store.relation(LABELS)}")["n"][0].as_py()
        states = bus.store.query("select sum(octet_length(value)) as n from states")["n"][0].as_py()
        left.append((int(rows), int(states)))
        bus.store.close()
    (few, small), (many, large) = left
    assert many <= few + 50
    assert large <= 1.5 * small + 20_000


@pytest.mark.filterwarnings("error")
def test_numbers_at_both_ends_of_a_float_are_no_error_of_any_size() -> None:
    """Their difference overflows: it is not asked for, and nothing is printed (a warning would fail this)."""
    nothing = pa.nulls(2, pa.string())
    rows = Joined(
        nothing, np.array([1e308, 2.0]), nothing, np.full(2, np.nan), np.array([-1e308, 5.0]), np.full(2, np.nan)
    )
    assert errors(rows, Task.REGRESSION).tolist() == [pytest.approx(np.nan, nan_ok=True), 3.0]
    profile = OutcomeProfile(Task.REGRESSION)
    profile.add(rows)
    assert (profile.rows, profile.unusable) == (1, 1)
    assert Kinds.of(Task.REGRESSION, None, profile).encode(rows).tolist()[1] in range(4)
