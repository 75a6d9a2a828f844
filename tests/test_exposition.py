"""What the exposition works out itself: percentiles, matrices and the bounds of bins, against counting by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_monitor import exposition
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.baselines import read_baselines
from stream_monitor.config import Config, duration_text, parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import CONFUSED_CLASSES, PERCENTILES, Service, snapshot
from stream_monitor.publish.snapshot import Snapshot
from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

START = 1_793_577_600  # 2026-11-02T00:00:00Z
ROWS = 3_000  # one a second: 50 minutes
CONFIG = {
    "windows": ["15m"],
    "models": {
        "credit": {"task": "binary", "positive_label": "deny"},
        "topic": {"task": "multiclass"},
        "demand": {"task": "regression"},
    },
}
SCORES = np.random.default_rng(1).beta(2, 3, ROWS).round(4)


def event(rng: np.random.Generator, number: int, model: str) -> dict[str, Any]:
    """A prediction with its truth: one score for `credit`, twelve classes for `topic`."""
    body: dict[str, Any] = {
        "inference_id": f"{model}{number}",
        "model": model,
        "version": "1",
        "timestamp": START + number,
        "features": {"age": float(rng.normal(40, 10)), "channel": str(rng.choice(["web", "app"]))},
        "latency_ms": float(rng.gamma(4, 3)),
    }
    if model == "demand":
        return body | {"prediction": 100.0, "value": float(100 + rng.normal(3, 4))}
    if model == "topic":
        body["prediction"] = f"c{int(rng.integers(12)):02d}"
        return body | {"label": f"c{int(rng.integers(12)):02d}"}
    score = float(SCORES[number])
    body["prediction"] = {"label": "deny" if score > 0.5 else "approve", "score": score}
    return body | {"label": "deny" if rng.random() < score else "approve"}


EVENTS = [
    event(np.random.default_rng(number), number, model)
    for number in range(ROWS)
    for model in ("credit", "topic", "demand")
]
WINDOW = range(START + 900, START + 1800)
"""The newest closed quarter of an hour that has labels: they are sent for predictions of the first half hour."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine that has seen the events; the first half hour's truths came."""
    folder = tmp_path_factory.mktemp("exposition")
    config = parse(CONFIG, {})
    engine = Engine(config, Store(folder / "state.duckdb"), baselines=read_baselines([rows(folder)], config))
    inference, truth = PartitionId(Stream.INFERENCE, "i", 0), PartitionId(Stream.GROUND_TRUTH, "g", 0)
    source = MemorySource([Binding(p.stream, p.topic) for p in (inference, truth)])
    source.extend(
        inference, [json.dumps({k: v for k, v in e.items() if k not in ("label", "value")}).encode() for e in EVENTS]
    )
    source.extend(truth, [label(e) for e in EVENTS if e["timestamp"] < WINDOW.stop])
    source.finish()
    source.start(engine.positions())
    read(engine, source, config)
    return engine


def label(event: dict[str, Any]) -> bytes:
    """Its truth, ten seconds after it."""
    names = ("inference_id", "model", "label", "value")
    return json.dumps({k: event[k] for k in names if k in event} | {"timestamp": event["timestamp"] + 10}).encode()


def rows(folder: Path) -> Path:
    """The baseline: the events themselves."""
    path = folder / "baseline.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in EVENTS))
    return path


def read(engine: Engine, source: MemorySource, config: Config) -> None:
    """Take all there is."""
    decoder = make_decoder(config)
    while not source.finished:
        poll = source.poll(500, 0.0)
        for batch in decode_poll(decoder, poll):
            engine.offer(batch)
        engine.note_poll(poll, 0.0)
        engine.step(0.0, seal_now=True)
    while engine.flow.parked_rows():
        engine.step(0.0, seal_now=True)
    engine.join(0.0)
    engine.checkpoint()


@pytest.fixture(scope="module")
def taken(engine: Engine) -> Snapshot:
    """The figures of the engine."""
    return snapshot(engine, Service(ready=True, memory_bytes=1.0))


def of(taken: Snapshot, name: str, model: str) -> dict[tuple[str, ...], float]:
    """A family's samples of one model, by the labels after model and version."""
    return {labels[2:]: value for labels, value in taken.samples[name] if labels[0] == model}


def test_latency_percentiles_are_those_of_the_values(engine: Engine, taken: Snapshot) -> None:
    """Within a bin's width of NumPy's, over the events of the trailing window."""
    assert engine.sealed_us is not None
    end = engine.sealed_us // 1_000_000 // 20 * 20  # the window is looked at anew every 20 s
    window = [e["latency_ms"] for e in EVENTS if e["model"] == "credit" and end - 900 <= e["timestamp"] < end]
    assert len(window) == 900
    found = of(taken, "latency_seconds", "credit")
    assert found.keys() == {(str(p), "15m") for p in PERCENTILES}
    for percentile in PERCENTILES:
        lower, upper = np.percentile(window, [percentile - 0.5, min(percentile + 0.5, 100)]) / 1000
        assert lower <= found[(str(percentile), "15m")] <= upper


def test_the_confusion_of_two_classes_is_counted(taken: Snapshot) -> None:
    """Every cell, with the positive label by its name."""
    wanted = Counter(
        (named(e["label"]), named(e["prediction"]["label"]), "15m")
        for e in EVENTS
        if e["model"] == "credit" and e["timestamp"] in WINDOW
    )
    assert of(taken, "confusion_predictions", "credit") == wanted


def named(label: str) -> str:
    """As a binary outcome is published."""
    return label if label == "deny" else "not deny"


def test_many_classes_share_a_bounded_matrix(taken: Snapshot) -> None:
    """Nine classes by name, the others together, and no row lost."""
    found = of(taken, "confusion_predictions", "topic")
    classes = {name for truth, predicted, _ in found for name in (truth, predicted)}
    assert len(classes) == CONFUSED_CLASSES
    assert "other" in classes
    assert sum(found.values()) == len(WINDOW)


def test_confidences_are_counted_by_tenth_and_by_what_came_true(taken: Snapshot) -> None:
    """As NumPy's histogram has it: scores lie on no edge but for a few, which belong to the lower tenth."""
    found = of(taken, "confidence_predictions", "credit")
    for came_true in ("true", "false"):
        is_true = came_true == "true"
        scores = [e["prediction"]["score"] for e in EVENTS
                  if e["model"] == "credit" and e["timestamp"] in WINDOW and (e["label"] == "deny") == is_true]  # fmt: skip
        wanted, _ = np.histogram(np.array(scores) - 1e-9, bins=10, range=(0, 1))
        counts = [found.get((f"{t / 10:.1f}-{(t + 1) / 10:.1f}", came_true, "15m"), 0) for t in range(10)]
        np.testing.assert_array_equal(counts, wanted)
    assert not of(taken, "confidence_predictions", "topic")


def test_errors_are_shared_out_over_the_baselines_spread(taken: Snapshot) -> None:
    """Predicted less true, over the root of the baseline's mean squared error; the shares make one."""
    all_rows = np.array([100 - e["value"] for e in EVENTS if e["model"] == "demand"])
    rows = np.array([100 - e["value"] for e in EVENTS if e["model"] == "demand" and e["timestamp"] in WINDOW])
    scale = np.sqrt((all_rows**2).mean())
    for name, errors in (("error_ratio", rows), ("error_reference_ratio", all_rows)):
        edges = np.array([-np.inf, *exposition.ERROR_EDGES, np.inf])
        wanted = np.histogram(errors / scale, edges)[0] / len(errors)
        found = of(taken, name, "demand")
        np.testing.assert_allclose([found[key] for key in sorted(found)], wanted, atol=0.01)
        assert sum(found.values()) == pytest.approx(1)
    assert not of(taken, "error_ratio", "credit")


def test_bins_end_at_the_baselines_deciles(taken: Snapshot) -> None:
    """Ten bounds for a number, each where the last of the 256 fine bins in it ends; none for categories."""
    found = {key: value for key, value in of(taken, "feature_bin_upper", "credit").items() if key[1] == "age"}
    ages = [e["features"]["age"] for e in EVENTS if e["model"] == "credit"]
    bounds = [found[key] for key in sorted(found)]
    shares = np.ceil(np.arange(1, 11) * 25.6) / 256
    np.testing.assert_allclose(bounds, np.quantile(ages, shares, method="inverted_cdf"))
    assert not any(key[1] == "channel" for key in of(taken, "feature_bin_upper", "credit"))


def test_expected_scores_lie_below_their_thresholds(taken: Snapshot) -> None:
    """Each threshold has its expected value: positive, and less."""
    thresholds, expected = (of(taken, f"feature_drift_{name}", "credit") for name in ("threshold", "expected"))
    assert expected.keys() == thresholds.keys()
    assert all(0 < expected[key] < thresholds[key] for key in expected)


def test_memory_is_published_where_it_is_known(engine: Engine, taken: Snapshot) -> None:
    """As it was given, and left out where nobody knows."""
    assert taken.samples["memory_bytes"] == [((), 1.0)]
    assert "memory_bytes" not in exposition.snapshot(engine, Service(ready=True)).samples


WIDE_ROWS = 1_500
EARLIER = 40  # events of the eight days before, so that a day and a week are over as well


def wide_event(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """An event of 200 features with its truth: a few in eight days, then one every four seconds."""
    score, at = float(rng.random()), START + 4 * (number - EARLIER)
    if number < EARLIER:
        at = START - (EARLIER - number) * 8 * 86_400 // EARLIER
    return {
        "inference_id": number, "model": "wide", "version": "1", "timestamp": at,
        "features": {f"f{k}": value for k, value in enumerate(rng.normal(size=200).tolist())},
        "prediction": {"label": "yes" if score > 0.5 else "no", "score": score}, "latency_ms": 9 * score,
        "label": "yes" if rng.random() < score else "no",
    }  # fmt: skip


def test_a_wide_model_costs_a_bounded_number_of_series(tmp_path: Path) -> None:
    """200 features, scores, latency, labels and estimates with the default windows: at most 3,000 series."""
    config = parse({"models": {"wide": {"task": "binary", "positive_label": "yes"}}}, {})
    rng = np.random.default_rng(3)
    events = [wide_event(rng, number) for number in range(EARLIER + WIDE_ROWS)]
    path = tmp_path / "baseline.jsonl"
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    engine = Engine(config, Store(None), baselines=read_baselines([path], config))
    inference, truth = PartitionId(Stream.INFERENCE, "i", 0), PartitionId(Stream.GROUND_TRUTH, "g", 0)
    source = MemorySource([Binding(p.stream, p.topic) for p in (inference, truth)])
    for body in events:
        source.extend(inference, [json.dumps({k: v for k, v in body.items() if k != "label"}).encode()])
        source.extend(truth, [label(body)])
    source.finish()
    source.start({})
    read(engine, source, config)
    lines = [line for line in exposition.render(engine).decode().splitlines() if not line.startswith("#")]
    families = {line.split("{")[0] for line in lines}
    assert {"stream_monitor_confidence_predictions", "stream_monitor_feature_bin_upper"} <= families
    cohorts = [line for line in lines if line.startswith("stream_monitor_performance_upper{") and '"cohort"' in line]
    for window in map(duration_text, config.windows):
        assert any(f'window="{window}"' in line for line in cohorts)
    ends = [line for line in lines if line.startswith("stream_monitor_performance_window_end_timestamp_seconds{")]
    assert [sum(f'"{basis}"' in line for line in ends) for basis in ("cohort", "arrival", "estimated")] == [4, 2, 2]
    assert 2_800 < len(lines) <= 3_000
