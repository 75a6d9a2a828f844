"""The whole engine against scikit-learn: whatever the order, the batches, the partitions and the restarts, one truth."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from feeding import read
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics as theirs

from stream_monitor import history
from stream_monitor.app import make_decoder
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

START = 1_790_000_100  # a multiple of 300 s
EVENTS = [PartitionId(Stream.INFERENCE, "t", number) for number in range(2)]
LABELS = [PartitionId(Stream.GROUND_TRUTH, "l", number) for number in range(2)]
CONFIG = parse(
    {
        "pane": "10s",
        "allowed_lateness": "1h",
        "idle_timeout": "1s",
        "windows": ["1m", "5m"],
        "drift": {"learn_from": 100_000},
        "models": {"m": {"task": "binary", "positive_label": "yes"}},
    },
    {},
)


@dataclass(frozen=True)
class Row:
    """A prediction, and what is said of it: (seconds after it, label) in any order, the latest is the truth."""

    seconds: int
    score: float
    said: tuple[tuple[int, str], ...]

    @property
    def truth(self) -> str | None:
        return max(self.said)[1] if self.said else None


row = st.builds(
    Row,
    st.integers(0, 290),
    st.sampled_from([0.05, 0.2, 0.45, 0.55, 0.8, 0.95]),
    st.lists(
        st.tuples(st.integers(-20, 200), st.sampled_from(["yes", "no"])), max_size=3, unique_by=lambda s: s[0]
    ).map(tuple),
)


def bodies(rows: Sequence[Row]) -> list[tuple[PartitionId, bytes]]:
    """Everything there is to read, each record with its partition."""
    found: list[tuple[PartitionId, dict[str, Any]]] = []
    for number, one in enumerate(rows):
        found.append((EVENTS[number % 2], {"inference_id": number, "model": "m", "timestamp": START + one.seconds,
                      "features": {}, "prediction": {"score": one.score}}))  # fmt: skip
        for after, label in one.said:
            found.append((LABELS[after % 2], {"inference_id": number, "label": label,
                          "timestamp": START + one.seconds + after}))  # fmt: skip
    return [(partition, json.dumps(body).encode()) for partition, body in found]


def told(folder: Path, records: Sequence[tuple[PartitionId, bytes]], cuts: Sequence[int], *, restarts: bool) -> Engine:
    """An engine that has read the records in this order, in parts, and is begun anew between them."""
    source = MemorySource([Binding(Stream.INFERENCE, "t"), Binding(Stream.GROUND_TRUTH, "l")], partitions=2)
    source.start({})
    decoder = make_decoder(CONFIG)
    engine = Engine(CONFIG, Store(folder / "state.duckdb"))
    for start, stop in zip([0, *cuts], [*cuts, len(records)], strict=True):
        for partition, body in records[start:stop]:
            source.extend(partition, [body])
        read(engine, source, decoder)
        if restarts:
            engine.store.close()
            engine = Engine(CONFIG, Store(folder / "state.duckdb"))
            source.start(engine.positions())
    engine.finish(0.0)
    engine.checkpoint()
    return engine


def by_hand(rows: Sequence[Row]) -> dict[str, tuple[float, int]]:
    """What scikit-learn makes of these rows: metric -> (value, labelled rows); without those that are not defined."""
    joined = [one for one in rows if one.truth is not None]
    if not joined:
        return {}
    true, score = [one.truth == "yes" for one in joined], [one.score for one in joined]
    said = [one >= 0.5 for one in score]
    found = {"accuracy": theirs.accuracy_score(true, said), "brier": theirs.brier_score_loss(true, score),
             "log_loss": theirs.log_loss(true, score, labels=[False, True])}  # fmt: skip
    if any(true):
        found["recall"] = theirs.recall_score(true, said)
    if any(said):
        found["precision"] = theirs.precision_score(true, said)
    if any(true) and not all(true):
        found["auc"] = theirs.roc_auc_score(true, score)
    return {name: (float(value), len(joined)) for name, value in found.items()}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(row, min_size=1, max_size=60),
    order=st.randoms(use_true_random=False),
    parts=st.lists(st.floats(0, 1), max_size=4),
    restarts=st.booleans(),
)
def test_every_metric_is_that_of_the_joined_rows(
    rows: list[Row], order: Any, parts: list[float], restarts: bool
) -> None:
    """Cohorts of a minute and of five, after corrections, out of order, from two partitions each, and begun anew."""
    records = bodies(rows)
    order.shuffle(records)
    cuts = sorted(int(part * len(records)) for part in parts)
    with tempfile.TemporaryDirectory() as folder:
        engine = told(Path(folder), records, cuts, restarts=restarts)
        found = {
            (one.window, one.window_start_us // 1_000_000 - START, one.metric): one
            for one in history.performance_rows(engine)
            if one.basis == "cohort"
        }
        fates = history.summary(engine)
        engine.store.close()
    for window, seconds in (("1m", 60), ("5m", 300)):
        for start in range(0, 300, seconds):
            mine = [one for one in rows if start <= one.seconds < start + seconds]
            wanted = by_hand(mine)
            for metric, (value, labelled) in wanted.items():
                one = found[(window, start, metric)]
                assert one.value == pytest.approx(value, abs=1e-9), (window, start, metric)
                assert one.coverage == pytest.approx(labelled / len(mine))
            assert wanted or (window, start, "accuracy") not in found
    labels, predictions = fates["ground_truth"], fates["predictions"]
    assert labels["matched"] == predictions["labelled"] == sum(one.truth is not None for one in rows)
    assert labels["offered"] == sum(len(one.said) for one in rows)
    assert labels["matched"] + labels["duplicate"] + labels["corrected"] == labels["offered"]
    assert predictions["waiting"] + predictions["labelled"] == len(rows)
