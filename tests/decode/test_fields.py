"""Mappings: paths as people write them, and what any payload reads as under one."""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pytest
from decode_batches import cells_of, ids_of, raw_batch, reasons

from stream_monitor.decode import Decoder
from stream_monitor.decode.fields import json_path, mapping_problems
from stream_monitor.errors import UsageError
from stream_monitor.records import Kind, Reason, Stream

DOCUMENT: dict[str, Any] = {
    "a": {"b": [{"c": 1}, 2]},
    "odd.name": {"it's": 3},
    'quo"te': 4,
    "back\\slash": 5,
    "x*": 6,
    "é 😀": 7,
    "0": 8,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$.a.b[0].c", 1),
        ("a.b[1]", 2),
        ('$["odd.name"]["it\'s"]', 3),
        ('"odd.name"."it\'s"', 3),
        ("['quo\"te']", 4),
        ("['back\\slash']", 5),
        ("x*", 6),
        ("$.é 😀", 7),
        ("0", 8),
        ("$", DOCUMENT),
    ],
)
def test_paths_reach(text: str, expected: Any) -> None:
    """A path reaches what Python's own indexing of the document reaches."""
    found = duckdb.connect().execute("SELECT json_extract(?, ?)", [json.dumps(DOCUMENT), json_path(text)]).fetchall()
    assert json.loads(found[0][0]) == expected


@pytest.mark.parametrize("text", ["", "$.", "a..b", "a[", "a[x]", "a[-1]", "a.", "[]"])
def test_no_paths(text: str) -> None:
    """What is no dotted path is said to be none."""
    with pytest.raises(ValueError, match="path"):
        json_path(text)


def test_every_problem_of_a_mapping() -> None:
    """All entries that cannot be used are named at once; a good mapping has none."""
    problems = mapping_problems({"inferenceid": "$.a", "label": "a..b", "outcome": "o"}, Stream.GROUND_TRUTH)
    assert len(problems) == 2
    assert all("fields." in problem for problem in problems)
    assert mapping_problems({"features.age": "x", "segment.m": "y", "label": "z"}, Stream.INFERENCE) == ()
    with pytest.raises(UsageError):
        Decoder().inference(raw_batch([], fields={"feature.age": "x"}))


def test_features_one_by_one() -> None:
    """Features mapped one by one are the only ones; one that is absent has no cell, null is a missing value."""
    fields = {
        "inference_id": "$.request.id",
        "timestamp": "$.at",
        "features.age": "$.request.inputs[0].age",
        "features.it's": "request.inputs[0].income",
        "prediction.score": "response.score",
        "segment.market": "geo.region",
        "segment.tier": "geo.tier",
        "latency_ms": "$.took",
    }
    records: list[dict[str, Any]] = [
        {
            "request": {"id": 7, "inputs": [{"age": 41, "income": "x"}]},
            "response": {"score": 0.5},
            "geo": {"region": "eu", "tier": 2},
            "took": 3.5,
            "at": "2026-11-21T09:00:00Z",
            "features": {"ignored": 1},
        },
        {"request": {"id": "8", "inputs": [{"age": None}]}, "geo": {"tier": "a"}},
        {"request": {"id": "9"}, "features": {"age": 1}},
    ]
    events, rejects = Decoder().inference(raw_batch(records, fields=fields))
    assert reasons(rejects) == {2: Reason.NO_FEATURES}
    assert cells_of(events, 0) == [("age", Kind.NUMBER, 41.0), ("it's", Kind.STRING, "x")]
    assert cells_of(events, 1) == [("age", Kind.MISSING, None)]
    assert [json.loads(text) for text in events.segment.to_pylist()] == [{"market": "eu", "tier": "2"}, {"tier": "a"}]
    assert events.score[0] == 0.5
    assert events.latency_ms[0] == 3.5
    plain, _ = Decoder().inference(raw_batch([{"inference_id": name, "features": {}} for name in ("7", 8)]))
    assert ids_of(events) == ids_of(plain)


def test_features_object_elsewhere() -> None:
    """An object mapped as `features` gives its keys, beside those mapped one by one."""
    fields = {"features": "input.row", "features.extra": "extra", "prediction": "out"}
    record = {"inference_id": 1, "input": {"row": {"a": 1}}, "extra": 2, "out": {"label": "x", "score": 0.5}}
    events, _ = Decoder().inference(raw_batch([record, {"inference_id": 2, "input": {"row": {}}}], fields=fields))
    assert cells_of(events, 0) == [("a", Kind.NUMBER, 1.0), ("extra", Kind.NUMBER, 2.0)]
    assert cells_of(events, 1) == []
    assert (events.label[0].as_py(), events.score[0]) == ("x", 0.5)


def test_labels_mapped() -> None:
    """Ground truth is mapped the same way."""
    fields = {"inference_id": "ref", "label": "truth.class", "outcome": "kind", "timestamp": "t", "model": "who"}
    record = {"ref": 5, "truth": {"class": "a"}, "kind": "click", "t": 1795255200, "who": "m"}
    labels, rejects = Decoder().ground_truth(raw_batch([record], stream=Stream.GROUND_TRUTH, fields=fields))
    assert len(rejects.row) == 0
    assert (labels.label.to_pylist(), labels.outcomes, labels.models) == (["a"], ("click",), ("m",))
    assert labels.time_us.tolist() == [1_795_255_200_000_000]
