"""CloudEvents and SageMaker records, recognised one by one among canonical events."""

from __future__ import annotations

import base64
import json
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from decode_batches import RECORD_US, cells_of, ids_of, raw_batch, reasons

from stream_monitor.decode import Decoder, DecoderOptions, ModelOptions
from stream_monitor.decode.json import JsonReader
from stream_monitor.records import NO_TIME, Kind, Reason, Stream

GOOD: dict[str, Any] = {"inference_id": "good", "features": {"a": 1}}
NINE_US = RECORD_US - 3_600_000_000


def cloud_event(data: Any) -> dict[str, Any]:
    """A structured CloudEvent of nine o'clock."""
    about = {"specversion": "1.0", "id": "ce", "source": "/s", "type": "t", "time": "2026-11-21T09:00:00Z"}
    return {**about, "data": data}


def capture(data: Any, *, encoding: str = "CSV", output: str = "0.25", **metadata: str) -> dict[str, Any]:
    """A SageMaker capture record of nine o'clock."""
    return {
        "captureData": {
            "endpointInput": {"observedContentType": "text/csv", "mode": "INPUT", "data": data, "encoding": encoding},
            "endpointOutput": {"observedContentType": "text/csv", "mode": "OUTPUT", "data": output, "encoding": "CSV"},
        },
        "eventMetadata": {"eventId": "event", "inferenceTime": "2026-11-21T09:00:00Z", **metadata},
        "eventVersion": "0",
    }


def hashes(*names: str) -> list[tuple[int, int]]:
    """The ids of canonical events of these names."""
    events, _ = Decoder().inference(raw_batch([{"inference_id": name, "features": {}} for name in names]))
    return ids_of(events)


def test_structured_cloud_events() -> None:
    """`data` is the event; `id` and `time` stand in for what it lacks; neighbours and order are untouched."""
    own = {"inference_id": "own", "timestamp": "2026-11-21T08:00:00Z", "features": {"b": 2}}
    records = [
        GOOD,
        cloud_event(own),
        cloud_event({"features": {"c": "x"}}),
        GOOD,
        cloud_event("text"),
        cloud_event({}),
    ]
    events, rejects = Decoder().inference(raw_batch(records))
    assert reasons(rejects) == {4: Reason.NO_ID, 5: Reason.NO_FEATURES}
    assert events.offset.tolist() == [100, 101, 102, 103]
    assert events.time_us.tolist() == [RECORD_US, NINE_US - 3_600_000_000, NINE_US, RECORD_US]
    assert [cells_of(events, row)[0][0] for row in range(4)] == ["a", "b", "c", "a"]
    assert ids_of(events) == hashes("good", "own", "ce", "good")


def test_binary_cloud_events() -> None:
    """In binary mode the headers give id and time, and only where the event has none."""
    about = [("ce_specversion", b"1.0"), ("ce_id", b"from header"), ("ce_time", b"2026-11-21T09:00:00Z")]
    records = [{"features": {}}, GOOD, {"features": {}}, {"features": {}}]
    headers: list[list[tuple[str, bytes]]] = [about, about, [("ce_id", b"no spec")], [*about[:1], ("ce_id", b"\xff")]]
    events, rejects = Decoder().inference(raw_batch(records, headers=headers))
    assert reasons(rejects) == {2: Reason.NO_ID, 3: Reason.NO_ID}
    assert ids_of(events) == hashes("from header", "good")
    assert events.time_us.tolist() == [NINE_US, NINE_US]


def test_mapped_cloud_events() -> None:
    """Under a mapping the paths hold inside the envelope as outside."""
    fields = {"inference_id": "ref", "features": "x"}
    inner = {"ref": "r", "x": {"a": 1}}
    events, rejects = Decoder().inference(raw_batch([inner, cloud_event(inner)], fields=fields))
    assert len(rejects.row) == 0
    assert ids_of(events) == hashes("r", "r")


def test_sagemaker_captures() -> None:
    """CSV input is features by position, JSON input its object; `inferenceId` wins over `eventId`."""
    encoded = base64.b64encode(b"1,2").decode()
    records = [
        capture("69,0.5,abc,,1e400"),
        GOOD,
        capture('{"age":41,"x":"y"}', encoding="JSON", inferenceId="own"),
        capture('{"instances":[{"features":[1,"b"]}]}', encoding="JSON"),
        capture(encoded, encoding="BASE64"),
    ]
    options = DecoderOptions(models={"default": ModelOptions("binary", "1")})
    events, rejects = Decoder(options).inference(raw_batch(records))
    assert len(rejects.row) == 0
    assert [(name, kind) for name, kind, _ in cells_of(events, 0)] == [
        ("f0", Kind.NUMBER),
        ("f1", Kind.NUMBER),
        ("f2", Kind.STRING),
        ("f3", Kind.MISSING),
        ("f4", Kind.INFINITE),
    ]
    assert cells_of(events, 2) == [("age", Kind.NUMBER, 41.0), ("x", Kind.STRING, "y")]
    assert cells_of(events, 3) == [("f0", Kind.NUMBER, 1.0), ("f1", Kind.STRING, "b")]
    assert cells_of(events, 4) == [("f0", Kind.NUMBER, 1.0), ("f1", Kind.NUMBER, 2.0)]
    assert ids_of(events) == hashes("event", "good", "own", "event", "event")
    assert events.time_us.tolist() == [NINE_US, RECORD_US, *[NINE_US] * 3]
    assert events.score.tolist()[0] == 0.25


@pytest.mark.parametrize(
    ("data", "encoding"),
    [("1,2\n3,4", "CSV"), ("", "CSV"), ("{", "JSON"), ("%%", "BASE64"), ("[[1],[2]]", "JSON"), (None, "CSV")],
)
def test_captures_that_are_no_single_row(data: str | None, encoding: str) -> None:
    """A capture of several rows, or of none that can be read, is refused for its features."""
    _, rejects = Decoder().inference(raw_batch([GOOD, capture(data, encoding=encoding), GOOD]))
    assert reasons(rejects) == {1: Reason.NO_FEATURES}


@pytest.mark.parametrize("garbage", ["[" * 1_500 + "]" * 1_500, '"\\ud800"', "1" * 5_000, '{"a":nan}'])
def test_garbage_inside_captures(garbage: str) -> None:
    """Whatever stands inside a capture, its neighbours come through."""
    text = json.dumps(capture("x")).replace('"x"', garbage)
    nested = json.dumps(capture(garbage, encoding="JSON"))
    events, _ = Decoder().inference(raw_batch([GOOD, text, nested, GOOD]))
    assert {100, 103} <= set(events.offset.tolist())


def test_sagemaker_labels() -> None:
    """SageMaker's ground truth has a label, no time, and the id of the capture; a mixed batch works."""
    about = {"eventMetadata": {"eventId": "event"}, "eventVersion": "0"}
    records: list[dict[str, Any]] = [
        {"groundTruthData": {"data": "1", "encoding": "CSV"}, **about},
        {"inference_id": "good", "label": "x"},
        {"groundTruthData": {"data": "deny", "encoding": "CSV"}, **about},
        {"groundTruthData": {"data": "", "encoding": "CSV"}, **about},
        cloud_event({"inference_id": "own", "label": 2.5}),
    ]
    batch = raw_batch(records, stream=Stream.GROUND_TRUTH, record_us=NO_TIME)
    labels, rejects = Decoder().ground_truth(batch)
    assert reasons(rejects) == {3: Reason.NO_LABEL}
    assert labels.label.to_pylist() == ["1", "x", "deny", "2.5"]
    assert labels.number.tolist()[0] == 1.0
    assert labels.time_us.tolist() == [NO_TIME, NO_TIME, NO_TIME, NINE_US]
    assert ids_of(labels) == hashes("event", "good", "event", "own")


class _Fragile(JsonReader):
    """An engine that fails on any batch that holds a certain record."""

    def _execute(self, sql: str, table: pa.Table) -> pa.Table:
        if any("poison" in (text or "") for text in table.column("v").to_pylist()):
            raise duckdb.InvalidInputException("poison")
        return super()._execute(sql, table)


def test_a_record_the_engine_chokes_on() -> None:
    """Should the engine fail on a record, that record is refused and the rest of the batch is not."""
    decoder = Decoder()
    decoder._reader = _Fragile()
    poison = {"inference_id": "poison", "features": {"a": 1}}
    events, rejects = decoder.inference(raw_batch([GOOD, poison, GOOD, GOOD, poison]))
    assert reasons(rejects) == {1: Reason.NOT_JSON, 4: Reason.NOT_JSON}
    assert events.offset.tolist() == [100, 102, 103]
    events, rejects = decoder.inference(raw_batch([poison]))
    assert (len(events), reasons(rejects)) == (0, {0: Reason.NOT_JSON})
