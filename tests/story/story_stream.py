"""A seeded stream with everything that happens to real ones, and a driver that turns the engine by hand.

Two models over five hours: `credit` (binary, a baseline, segments by market) and `forecast` (regression, none, learns
one). Inference events lie on three partitions, labels on two. No clock is read: time is what the events carry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor import history
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.baselines import read_baselines
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.judge.baseline import Baseline
from stream_monitor.records import MICROSECONDS, Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

START_US = 1_793_577_600 * MICROSECONDS  # 2026-11-02T00:00:00Z, a Monday
HOURS = 5
DRIFT = (2 * 3600, 3 * 3600)
"""Seconds after the start between which incomes are half as high again."""
CHANNEL_GONE = 4 * 3600
NEW_FEATURE = 3600
CONCEPT = 3 * 3600
"""From then on credit's truths no longer follow its predictions."""

CONFIG: dict[str, Any] = {
    "pane": "10s",
    "allowed_lateness": "10s",
    "duplicate_horizon": "10m",
    "windows": ["15m", "1h"],
    "drift": {"learn_from": 1000, "minimum_effect": 0.1},
    "models": {
        "credit": {"task": "binary", "positive_label": "deny", "segments": ["market"]},
        "forecast": {"task": "regression"},
    },
}

INFERENCE = Binding(Stream.INFERENCE, "inference")
TRUTH = Binding(Stream.GROUND_TRUTH, "ground-truth")


@dataclass(frozen=True, slots=True)
class Sent:
    """A record and when it reached its partition, in seconds after the start."""

    at: float
    body: bytes


Logs = dict[PartitionId, list[Sent]]


@dataclass
class Tally:
    """What was sent, counted by the generator itself: the oracle of the conservation laws."""

    inference: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("offered", "summarised", "rejected", "late", "duplicate"), 0)
    )
    ground_truth: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("offered", "matched", "duplicate", "corrected", "orphan_waiting", "orphan_expired", "rejected"), 0
        )
    )
    labelled: int = 0


def config() -> Config:
    """The configuration of the story."""
    return parse(CONFIG, {})


def _stamp(seconds: float) -> int:
    return START_US // 1000 + round(seconds * 1000)  # Unix milliseconds


def _credit(rng: np.random.Generator, number: int, at: float) -> dict[str, Any]:
    features: dict[str, Any] = {
        "age": round(float(rng.normal(41, 9)), 2),
        "income": round(float(rng.lognormal(10, 0.4)) * (1.5 if DRIFT[0] <= at < DRIFT[1] else 1.0), 2),
        "channel": str(rng.choice(["web", "branch", "phone"], p=[0.6, 0.3, 0.1])),
    }
    if at >= CHANNEL_GONE:
        del features["channel"]
    if at >= NEW_FEATURE:
        features["device"] = "mobile"
    if number % 1000 == 0:
        features["age"] = "forty"
    score = float(np.clip(rng.beta(2, 4), 0.001, 0.999))
    return {
        "inference_id": f"c{number}", "model": "credit", "version": "1", "timestamp": _stamp(at), "features": features,
        "prediction": {"label": "deny" if score > 0.4 else "approve", "score": round(score, 4)},
        "latency_ms": round(float(rng.gamma(4, 3)), 2),
        "segment": {"market": str(rng.choice(["eu", "us"], p=[0.7, 0.3]))},
    }  # fmt: skip


def _forecast(rng: np.random.Generator, number: int, at: float) -> dict[str, Any]:
    features = {
        "stock": int(rng.poisson(30)),
        "shop": str(rng.choice(["north", "south"])),
        "price": round(rng.normal(9, 2), 3),
    }
    return {"inference_id": number, "model": "forecast", "version": "2", "timestamp": _stamp(at), "features": features,
            "prediction": round(float(rng.normal(100, 15)), 3)}  # fmt: skip


def _truth_of(event: Mapping[str, Any], rng: np.random.Generator, at: float) -> dict[str, Any]:
    if event["model"] == "forecast":
        return {"value": round(event["prediction"] + float(rng.normal(0, 5)), 3)}
    said = event["prediction"]["label"]
    wrong = rng.random() < (0.5 if at >= CONCEPT else 0.15)
    return {"label": {"deny": "approve", "approve": "deny"}[said] if wrong else said}


def story(seed: int = 7) -> tuple[Logs, Tally]:
    """All records by partition, in the order they reached it, and what must become of them."""
    rng = np.random.default_rng(seed)
    logs: Logs = {PartitionId(Stream.INFERENCE, "inference", n): [] for n in range(3)}
    logs |= {PartitionId(Stream.GROUND_TRUTH, "ground-truth", n): [] for n in range(2)}
    tally = Tally()
    times = [(at, "credit") for at in np.arange(0.5, HOURS * 3600, 2.5)]
    times += [(at, "forecast") for at in np.arange(1.25, HOURS * 3600, 6.0)]
    for number, (base, model) in enumerate(sorted(times)):
        at = float(base) + float(rng.uniform(0, 0.4))
        event = _credit(rng, number, at) if model == "credit" else _forecast(rng, number, at)
        _send_event(logs, tally, number, at, event)
        _send_truth(logs, tally, rng, number, at, event)
    _send_broken(logs, tally, rng)
    for sent in logs.values():
        sent.sort(key=lambda record: record.at)
    return logs, tally


def _send_event(logs: Logs, tally: Tally, number: int, at: float, event: Mapping[str, Any]) -> None:
    body = json.dumps(event).encode()
    home = logs[PartitionId(Stream.INFERENCE, "inference", number % 3)]
    is_late = number % 211 == 100
    home.append(Sent(at + 90 if is_late else at, body))
    tally.inference["offered"] += 1
    tally.inference["late" if is_late else "summarised"] += 1
    if number % 97 == 50 and not is_late:  # the same record again: at once, minutes later, or on another partition
        where, after = ((home, 0.01), (home, 300.0), (logs[PartitionId(Stream.INFERENCE, "inference", (number + 1) % 3)], 0.01))[
            number // 97 % 3
        ]  # fmt: skip
        where.append(Sent(at + after, body))
        tally.inference["offered"] += 1
        tally.inference["duplicate"] += 1


def _send_truth(
    logs: Logs, tally: Tally, rng: np.random.Generator, number: int, at: float, event: Mapping[str, Any]
) -> None:
    labels = tally.ground_truth
    home = logs[PartitionId(Stream.GROUND_TRUTH, "ground-truth", number % 2)]

    def tell(seconds: float, truth: Mapping[str, Any], fate: str, **more: Any) -> None:
        body = {"inference_id": event["inference_id"], "timestamp": _stamp(seconds), **truth, **more}
        home.append(Sent(seconds, json.dumps(body).encode()))
        labels["offered"] += 1
        labels[fate] += 1

    if rng.random() < 0.2 or at > HOURS * 3600 - 1300:
        return
    tally.labelled += 1
    truth = _truth_of(event, rng, at)
    delay = float(rng.uniform(60, 1200))
    if number % 89 == 13:
        delay = -40.0  # the label before its prediction
    told = max(at + delay, 0.0)
    tell(told, truth, "matched")
    if number % 61 == 7:
        tell(told + 30, truth, "duplicate")
    elif number % 67 == 9:
        other = {"value": -1.5} if "value" in truth else {"label": "deny" if truth["label"] == "approve" else "approve"}
        tell(told + float(rng.choice([12.0, 400.0])), other, "corrected")
    if number % 71 == 11:
        tell(told + 20, {"label": "clicked"}, "matched", outcome="click", model=event["model"])
    if number % 151 == 20:
        tell_unknown = {"inference_id": f"nobody-{number}", "label": "deny", "timestamp": _stamp(told)}
        home.append(Sent(told, json.dumps(tell_unknown).encode()))
        labels["offered"] += 1
        labels["orphan_waiting"] += 1


def _send_broken(logs: Logs, tally: Tally, rng: np.random.Generator) -> None:
    for partition, fates in ((PartitionId(Stream.INFERENCE, "inference", 1), tally.inference),
                             (PartitionId(Stream.GROUND_TRUTH, "ground-truth", 1), tally.ground_truth)):  # fmt: skip
        for at in rng.uniform(0, HOURS * 3600, 40).tolist():
            logs[partition].append(Sent(at, b'{"inference_id": "x", '))
            fates["offered"] += 1
            fates["rejected"] += 1


def baselines(folder: Path) -> list[Baseline]:
    """The baseline of `credit` 1, built from rows with their truth."""
    rng = np.random.default_rng(1)
    path = folder / "baseline.jsonl"
    with path.open("w") as file:
        for number in range(1, 4001):
            event = _credit(rng, 1000 * number + 1, 0.0)
            file.write(json.dumps(event | _truth_of(event, rng, 0.0)) + "\n")
    return read_baselines([path], config())


def shuffled(logs: Logs, seed: int, *, within: float = 9.0) -> Logs:
    """Every partition in another order: two inference events swap only where both remain within the lateness."""
    rng = np.random.default_rng(seed)
    return {
        partition: sorted((Sent(s.at + float(rng.uniform(0, within)), s.body) for s in sent), key=lambda s: s.at)
        for partition, sent in logs.items()
    }


@dataclass
class Driver:
    """The loop without its clock: polls of given sizes, partitions held back at random, checkpoints at random."""

    path: Path
    logs: Logs
    baselines: Sequence[Baseline]
    poll: int = 500
    seed: int = 0
    holds: float = 0.0  # how often a partition is held back for a poll
    checkpoints: float = 0.3
    now: float = 0.0
    polls: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.decoder = make_decoder(config())
        self.open()

    def open(self) -> None:
        """Open the state file and read on from where it says."""
        self.store = Store(self.path)
        self.engine = Engine(config(), self.store, baselines=self.baselines)
        self.source = MemorySource([INFERENCE, TRUTH], partitions=3)
        for partition, sent in self.logs.items():
            self.source.extend(partition, [record.body for record in sent])
        self.source.finish()
        self.source.start(self.engine.positions())

    def abandon(self) -> None:
        """Die without a word: what was not committed is lost."""
        self.store.close()
        self.open()

    def turn(self) -> bool:
        """One poll through the engine; False when all is read."""
        self.polls += 1
        held = [p for p in sorted(self.logs) if self.rng.random() < self.holds]
        self.source.pause(self.engine.flow.crowded() | frozenset(held if len(held) < len(self.logs) else []))
        for batch in decode_poll(self.decoder, poll := self.source.poll(self.poll, 0.0)):
            self.engine.offer(batch)
        self.engine.note_poll(poll, self.now)
        self.engine.step(self.now, seal_now=bool(self.rng.random() < 0.7))
        if self.rng.random() < self.checkpoints:
            self.checkpoint()
        return not (self.source.finished and not self.engine.flow.parked_rows())

    def checkpoint(self) -> None:
        """Commit, most times after a join."""
        if self.rng.random() < 0.7:
            self.engine.join(self.now)
        self.engine.checkpoint()

    def run(self, *, deaths: Sequence[int] = ()) -> Result:
        """To the end, dying after the polls whose numbers are given."""
        awaited = set(deaths)
        while True:
            going = self.turn()
            if self.polls in awaited:
                awaited.discard(self.polls)
                self.abandon()
                continue
            if not going:
                break
        self.engine.join(self.now)
        self.engine.finish(self.now)
        self.engine.checkpoint()
        result = Result.of(self.engine)
        self.store.close()
        return result


@dataclass(frozen=True)
class Result:
    """All a run leaves, in an order that does not depend on it."""

    summary: dict[str, Any]
    scores: list[tuple[Any, ...]]
    performance: dict[tuple[Any, ...], tuple[float, ...]]
    incidents: list[dict[str, Any]]
    ledger: dict[str, Any]
    counters: dict[str, int]

    @classmethod
    def of(cls, engine: Engine) -> Result:
        """Read everything from an engine that has finished."""
        scores = history.scores_table(engine)
        rows = sorted(zip(*(_comparable(scores[name]) for name in scores.column_names), strict=True), key=str)
        table = history.performance_table(engine).to_pylist()
        floats = ("value", "lower", "upper", "coverage", "baseline_value", "best_constant")
        performance = {
            tuple(v for k, v in row.items() if k not in floats): tuple(row[name] for name in floats) for row in table
        }
        summary = history.summary(engine)
        summary["models"] = sorted(summary["models"], key=lambda m: (m["model"], m["version"]))
        bodies = [json.loads(body) for body in engine.store.incident_bodies()]
        counters = {f"{name}{text}": n for (name, text), n in sorted(engine.counters.items())}
        return cls(summary, rows, performance, sorted(bodies, key=lambda b: (b["opened_at"], b["id"])),
                   _ledger(engine), counters)  # fmt: skip


def _comparable(column: pa.ChunkedArray) -> list[Any]:
    """Values, NaN as a text: it equals itself here."""
    return ["NaN" if isinstance(v, float) and v != v else v for v in column.to_pylist()]


def _ledger(engine: Engine) -> dict[str, Any]:
    """The ledger with names for numbers, empty entries left out."""
    ledger, names = engine.truth.ledger, engine.names.versions
    found: dict[str, Any] = {f"label {m} {f}": n for (m, f), n in ledger.labels.items() if n}
    for name in ("labelled", "expired", "predictions"):
        found |= {f"{name} {names[v]}": n for v, n in getattr(ledger, name).items() if n}
    for name in ("delays", "delay_us"):
        found |= {
            f"{name} {names[v]} {engine.names.outcomes[o]}": n for (v, o), n in getattr(ledger, name).items() if n
        }
    found |= {f"orphans {day}": n for day, n in ledger.label_days.items() if n}
    return found | {f"day {day} {names[v]}": n for (day, v), n in ledger.prediction_days.items()}
