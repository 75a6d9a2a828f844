"""The engine by itself: batches in, windows closed in time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_monitor import history
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

CONFIG: dict[str, Any] = {
    "pane": "1s",
    "allowed_lateness": "1s",
    "windows": ["30s"],
    "drift": {"learn_from": 200},
    "models": {"m": {"segments": ["market"]}},
}
START = 1_790_000_010  # a multiple of 30 s


def event(number: int, seconds: float, market: str) -> bytes:
    """One inference event of a segment, so many seconds into the story."""
    body: dict[str, Any] = {"inference_id": f"i{number}", "model": "m", "timestamp": START + seconds}
    return json.dumps({**body, "features": {"a": number % 17}, "segment": {"market": market}}).encode()


def incidents_over(partitions: int, tmp_path: Path) -> list[dict[str, Any]]:
    """What is told of one stream, cut over so many partitions, without the times of its closing."""
    rng = np.random.default_rng(2)
    bodies = []
    for number, value in enumerate(rng.normal(0, 1, 8000).tolist()):
        body = {"inference_id": f"i{number}", "model": "m", "timestamp": START + number * 0.05}
        value += 0.8 if number > 6000 else 0.0
        bodies.append(json.dumps({**body, "features": {"a": value, "b": value > 1, "c": number % 5}}).encode())
    source = MemorySource([Binding(Stream.INFERENCE, "t")], partitions=partitions)
    for number in range(partitions):
        source.extend(PartitionId(Stream.INFERENCE, "t", number), bodies[number::partitions])
    source.finish()
    source.start({})
    config = parse({**CONFIG, "drift": {"learn_from": 2000, "false_alarms": "1 per 100000 events"}}, {})
    store = Store(tmp_path / f"{partitions}.duckdb")
    engine, decoder = Engine(config, store), make_decoder(config)
    while not source.finished or engine.flow.parked_rows():
        poll = source.poll(700, 0.0)
        for batch in decode_poll(decoder, poll):
            engine.offer(batch)
        engine.note_poll(poll, 0.0)
        engine.step(0.0, seal_now=True)
    engine.finish(0.0)
    engine.checkpoint()
    told = [json.loads(body) for body in store.incident_bodies()]
    store.close()
    return sorted(told, key=lambda incident: str(incident["id"]))


def test_partitions_merge_to_the_same_incidents(tmp_path: Path) -> None:
    """One partition, two or seven: the same incidents, opened at the same event times, word for word."""
    alone = incidents_over(1, tmp_path)
    assert {incident["kind"] for incident in alone} == {"baseline_missing", "data_drift"}
    assert incidents_over(2, tmp_path) == alone
    assert incidents_over(7, tmp_path) == alone


def test_charts_begin_anew_with_a_promoted_baseline_also_after_a_restart(tmp_path: Path) -> None:
    """What was stored of the charts of the baseline before is not taken up beside those of the new one."""
    rng = np.random.default_rng(5)
    bodies = [
        json.dumps(
            {"inference_id": f"i{n}", "model": "m", "timestamp": START + n * 0.1, "features": {"a": value}}
        ).encode()
        for n, value in enumerate(rng.normal(0, 1, 1500).tolist())
    ]
    partition = PartitionId(Stream.INFERENCE, "t", 0)
    source = MemorySource([Binding(Stream.INFERENCE, "t")], partitions=1)
    source.start({})
    config, path = parse(CONFIG, {}), tmp_path / "state.duckdb"
    store = Store(path)
    engine, decoder = Engine(config, store), make_decoder(config)
    for k in range(0, 1500, 100):
        if k == 1000:
            version = engine.versions[0]
            assert version.baseline is not None
            version.promote(replace(version.baseline, source="again"), now_us=engine.sealed_us)
        source.extend(partition, bodies[k : k + 100])
        for batch in decode_poll(decoder, source.poll(5000, 0.0)):
            engine.offer(batch)
        engine.step(0.0, seal_now=True)
        engine.checkpoint()
    watch = engine.versions[0].whole().watch
    assert watch is not None
    told = watch.to_bytes()
    store.close()
    again = Engine(config, store := Store(path))
    resumed = again.versions[0].whole().watch
    assert resumed is not None
    assert resumed.charts.events == watch.charts.events < 520
    assert resumed.to_bytes() == told
    store.close()


def test_charts_of_an_earlier_version_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    """After an update of the program the state file still serves: the charts and their rows are left, and it is said."""
    config = parse({**CONFIG, "models": {"m": {}}}, {})
    path = tmp_path / "s.duckdb"

    def play(engine: Engine, numbers: range) -> None:
        decoder = make_decoder(config)
        source = MemorySource([Binding(Stream.INFERENCE, "t")], partitions=1)
        source.extend(PartitionId(Stream.INFERENCE, "t", 0), [event(k, k * 0.05, "eu") for k in numbers])
        source.finish()
        source.start({})
        while not source.finished or engine.flow.parked_rows():
            poll = source.poll(100, 0.0)
            for batch in decode_poll(decoder, poll):
                engine.offer(batch)
            engine.note_poll(poll, 0.0)
            engine.step(0.0, seal_now=True)
            engine.checkpoint()

    store = Store(path)
    with monkeypatch.context() as earlier:
        earlier.setattr("stream_monitor.judge.charts.FORMAT", 1)
        play(Engine(config, store), range(1_000))
    store.close()
    store = Store(path)
    with caplog.at_level("WARNING"):
        again = Engine(config, store)
    assert [record.message for record in caplog.records].count("charts_begin_anew") == 1
    watch = again.versions[0].whole().watch
    assert watch is not None
    assert watch.charts.events == 0
    play(again, range(1_000, 2_000))
    state = watch.to_bytes()
    store.close()
    last = Engine(config, Store(path)).versions[0].whole().watch
    assert last is not None
    assert last.charts.events > 500
    assert last.to_bytes() == state


def test_fixed_thresholds_open_what_the_budget_would_not(tmp_path: Path) -> None:
    """A PSI of a quarter on a hundred events is chance; whoever asks for it is told, marked, and as gravely as asked."""
    rng = np.random.default_rng(4)
    bodies = []
    for number, value in enumerate(rng.normal(0, 1, 1200).tolist()):
        seconds = number * 0.5 if number < 1000 else 600 + (number - 1000) * 0.1
        body = {"inference_id": f"i{number}", "model": "m", "timestamp": START + seconds, "features": {"a": value}}
        bodies.append(json.dumps(body).encode())
    told = {}
    for name, thresholds in (("none", {}), ("psi", {"psi": {"warning": 0.01, "critical": 0.02}})):
        source = MemorySource([Binding(Stream.INFERENCE, "t")], partitions=1)
        source.extend(PartitionId(Stream.INFERENCE, "t", 0), bodies)
        source.finish()
        source.start({})
        config = parse({"windows": ["10m"], "drift": {"learn_from": 900, "thresholds": thresholds}}, {})
        store = Store(tmp_path / f"{name}.duckdb")
        engine, decoder = Engine(config, store), make_decoder(config)
        for batch in decode_poll(decoder, source.poll(5000, 0.0)):
            engine.offer(batch)
        engine.step(0.0, seal_now=True)
        engine.finish(0.0)
        engine.checkpoint()
        told[name] = [json.loads(body) for body in store.incident_bodies()]
        store.close()
    assert [incident["kind"] for incident in told["none"]] == ["baseline_missing"]
    [_, drift] = told["psi"]
    assert (drift["kind"], drift["severity"]) == ("data_drift", "critical")
    assert drift["subjects"][0]["threshold"] == 0.01
    assert "psi beyond the fixed 0.01" in drift["subjects"][0]["detail"]


def test_windows_are_compared_with_the_one_before_and_the_same_hour_a_week_earlier(tmp_path: Path) -> None:
    """Each reference has its own rows and sample sizes; they open no incident."""
    rng = np.random.default_rng(3)
    bodies = []
    for number, value in enumerate(rng.normal(0, 1, 1800).tolist()):
        hour, place = divmod(number, 600)
        seconds = (0, 3600, 7 * 86_400)[hour] + place * 6  # two hours in a row, and the first one again a week later
        body = {"inference_id": f"i{number}", "model": "m", "timestamp": START - START % 3600 + seconds}
        bodies.append(json.dumps({**body, "features": {"a": value}}).encode())
    source = MemorySource([Binding(Stream.INFERENCE, "t")], partitions=1)
    source.extend(PartitionId(Stream.INFERENCE, "t", 0), bodies)
    source.finish()
    source.start({})
    config = parse({"windows": ["1h"], "drift": {"learn_from": 200}}, {})
    store = Store(tmp_path / "state.duckdb")
    engine, decoder = Engine(config, store), make_decoder(config)
    for batch in decode_poll(decoder, source.poll(5000, 0.0)):
        engine.offer(batch)
    engine.step(0.0, seal_now=True)
    engine.finish(0.0)
    engine.checkpoint()
    rows = [r for r in history.scores_table(engine).to_pylist() if r["statistic"] == "psi"]
    told = [json.loads(body)["kind"] for body in store.incident_bodies()]
    store.close()
    sizes = [(row["reference"], row["samples"], row["baseline_samples"]) for row in rows]
    assert sizes == [("baseline", 400, 200), ("baseline", 600, 200), ("previous", 600, 400),
                     ("baseline", 600, 200), ("season", 600, 400)]  # fmt: skip
    assert told == ["baseline_missing"]


def test_the_windows_of_a_segment_that_fell_silent_end_with_the_others(tmp_path: Path) -> None:
    """A block without rows of a segment still moves its time: no later row has to come before its window is judged."""
    config = parse(CONFIG, {})
    partition = PartitionId(Stream.INFERENCE, "t", 0)
    source = MemorySource([Binding(Stream.INFERENCE, "t")], partitions=1)
    both = [event(i, i * 0.02, "eu" if i % 2 else "us") for i in range(1000)]
    alone = [event(1000 + i, 25 + i, "eu") for i in range(20)]
    source.extend(partition, both)
    source.start({})
    store = Store(tmp_path / "state.duckdb")
    engine, decoder = Engine(config, store), make_decoder(config)
    for records in ([], alone[:2], alone[2:]):
        source.extend(partition, records)
        for batch in decode_poll(decoder, source.poll(5000, 0.0)):
            engine.offer(batch)
        engine.step(0.0, seal_now=True)
    engine.checkpoint()
    closed = {row["segment"] for row in history.scores_table(engine).to_pylist()}
    store.close()
    assert closed == {"{}", '{"market": "eu"}', '{"market": "us"}'}
