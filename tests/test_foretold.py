"""Errors that inputs or answers foretold, through an engine with a baseline: they are no concept drift; what turned is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feeding import read

from stream_monitor.app import make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.records import Binding, Incident, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

Row = dict[str, Any]
Draw = Callable[..., Row]

EVENTS, LABELS = PartitionId(Stream.INFERENCE, "t", 0), PartitionId(Stream.GROUND_TRUTH, "l", 0)
START = 1_790_000_040  # a multiple of 60 s
MOVES_AT, ROWS = 1_500, 3_500
CLASSES, NUMBERS = {"task": "multiclass"}, {"task": "regression"}


def of_classes(rng: np.random.Generator, *, shift: float = 0.0, turned: float = 0.0) -> Row:
    """The truth is drawn from the probabilities the model gives; of those that are b so many are c instead."""
    x = rng.normal((shift, 0.0, 0.0))
    chance = np.exp(2 * x) / np.exp(2 * x).sum()
    truth = "abc"[rng.choice(3, p=chance)]
    said = {"label": "abc"[int(chance.argmax())], "probabilities": dict(zip("abc", chance.tolist(), strict=True))}
    return {
        "features": {f"x{k}": v for k, v in enumerate(x.tolist())},
        "prediction": said,
        "label": "c" if truth == "b" and rng.random() < turned else truth,
    }


def of_numbers(rng: np.random.Generator, *, shift: float = 0.0, factor: float = 1.0) -> Row:
    """Errors are larger where the input is."""
    x = float(rng.normal(shift))
    return {"features": {"x": x}, "prediction": 5 + x, "value": 5 + x + factor * float(rng.normal()) * np.exp(0.3 * x)}


def told(path: Path, model: Row, draw: Draw, change: Row, *, chunks: int) -> list[Incident]:
    """What an engine with a baseline of 3,000 rows says of the errors of a stream that changes, restarted between chunks."""
    config = parse({"pane": "1s", "allowed_lateness": "1s", "windows": ["1m"], "models": {"m": model},
                    "drift": {"false_alarms": "5 per 100000 events"}}, {})  # fmt: skip
    rng = np.random.default_rng(5)
    source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, LABELS)])
    source.start({})
    source.extend(EVENTS, [json.dumps({"model": "m", **draw(rng)}).encode() for _ in range(3_000)])
    baseline = baselines_of_rows(source.poll(3_000, 0.0).batches, config, source="here")[0]
    known: dict[str, Incident] = {}
    for numbers in np.array_split(np.arange(ROWS), chunks):
        for k in numbers.tolist():
            row, at = draw(rng, **(change if k >= MOVES_AT else {})), START + k / 10
            truth = {name: row.pop(name) for name in ("label", "value") if name in row}
            event = {"inference_id": f"i{k}", "model": "m", "version": "1", "timestamp": at, **row}
            source.extend(EVENTS, [json.dumps(event).encode()])
            source.extend(LABELS, [json.dumps({"inference_id": f"i{k}", "timestamp": at + 0.5, **truth}).encode()])
        store = Store(path)
        engine = Engine(config, store, baselines=[baseline])
        known |= {incident.id: incident for incident in read(engine, source, make_decoder(config))}
        store.close()
    return sorted((i for i in known.values() if i.kind in ("concept_drift", "performance")), key=lambda i: i.opened_us)


@pytest.mark.parametrize(
    ("model", "draw", "change", "kind", "why"),
    [
        (CLASSES, of_classes, {"shift": 1.6}, "performance", "the scores foretold it: inputs moved (x0), the relation holds"),
        (CLASSES, of_classes, {"turned": 0.5}, "concept_drift", "the relation changed"),
        (NUMBERS, of_numbers, {"shift": 1.2}, "performance", "the inputs foretold it: inputs moved (x), the relation holds"),
        (NUMBERS, of_numbers, {"factor": 1.5}, "concept_drift", "the relation changed, inputs did not"),
        (NUMBERS, of_numbers, {"shift": 1.2, "factor": 1.6}, "concept_drift", "inputs moved (x) and the relation changed"),
    ],
)  # fmt: skip
def test_errors_that_were_foretold_are_no_concept_drift(
    tmp_path: Path, model: Row, draw: Draw, change: Row, kind: str, why: str
) -> None:
    """What kind of incident opens, and why; the same where chunks and restarts cut the stream."""
    at_once = told(tmp_path / "a.duckdb", model, draw, change, chunks=1)
    assert {str(incident.kind) for incident in at_once} == {kind}
    assert why in at_once[0].summary
    assert "misses its objective" not in at_once[0].summary
    cut = told(tmp_path / "b.duckdb", model, draw, change, chunks=4)
    assert [(i.kind, i.opened_us, i.onset_us) for i in cut] == [(i.kind, i.opened_us, i.onset_us) for i in at_once]
