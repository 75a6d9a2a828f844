"""Whole batches through the decoder: what is refused and why, what comes out, and that neighbours never suffer."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from decode_batches import RECORD_US, cells_of, ids_of, raw_batch, reasons
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.decode import Decoder, DecoderOptions, ModelOptions
from stream_monitor.records import NO_TIME, Kind, ModelKey, Reason, Stream

FEATURES = '"features":{"a":1}'
GOOD = '{"inference_id":"good","features":{"a":1}}'
DECODER = Decoder(DecoderOptions(record_bytes=1_000_000))

REFUSED_EVENTS: list[tuple[str, bytes | str | None, Reason]] = [
    ("a tombstone", None, Reason.EMPTY),
    ("no bytes", b"", Reason.EMPTY),
    ("white space", b" \n ", Reason.NOT_JSON),
    ("beyond the size limit", '{"inference_id":"x","features":{"a":"' + "x" * 10_000_000 + '"}}', Reason.TOO_LARGE),
    ("invalid UTF-8", b'{"inference_id":"\xff",' + FEATURES.encode() + b"}", Reason.INVALID_UTF8),
    ("a raw surrogate", '{"inference_id":"\ud800",' + FEATURES + "}", Reason.INVALID_UTF8),
    ("an escaped lone surrogate", '{"inference_id":"\\ud800",' + FEATURES + "}", Reason.NOT_JSON),
    ("truncated", '{"inference_id":"x","features":{"a":1', Reason.NOT_JSON),
    ("two on a line", GOOD + GOOD, Reason.NOT_JSON),
    ("text after the object", GOOD + " x", Reason.NOT_JSON),
    ("a closing comma", '{"inference_id":"x","features":{"a":1,}}', Reason.NOT_JSON),
    ("a closing comma and white space", '{"inference_id":"x","features":{"a":[1, \n\t]}}', Reason.NOT_JSON),
    ("single quotes", "{'inference_id':'x'}", Reason.NOT_JSON),
    ("a raw control character", '{"inference_id":"\x01",' + FEATURES + "}", Reason.NOT_JSON),
    ("1,000 levels never closed", '{"inference_id":"x","features":{"a":' + "[" * 1_000, Reason.NOT_JSON),
    ("a list", "[" + GOOD + "]", Reason.NOT_AN_OBJECT),
    ("a string", '"' + "x" * 40 + '"', Reason.NOT_AN_OBJECT),
    ("a number", "7", Reason.NOT_AN_OBJECT),
    ("null", "null", Reason.NOT_AN_OBJECT),
    ("no id", "{" + FEATURES + "}", Reason.NO_ID),
    ("a null id", '{"inference_id":null,' + FEATURES + "}", Reason.NO_ID),
    ("an empty id", '{"inference_id":"",' + FEATURES + "}", Reason.NO_ID),
    ("a real number as id", '{"inference_id":1.5,' + FEATURES + "}", Reason.NO_ID),
    ("an id with an exponent", '{"inference_id":1e400,' + FEATURES + "}", Reason.NO_ID),
    ("a boolean as id", '{"inference_id":true,' + FEATURES + "}", Reason.NO_ID),
    ("NaN as id", '{"inference_id":NaN,' + FEATURES + "}", Reason.NO_ID),
    ("an object as id", '{"inference_id":{"a":1},' + FEATURES + "}", Reason.NO_ID),
    ("a list as id", '{"inference_id":["a"],' + FEATURES + "}", Reason.NO_ID),
    ("another case of the name", '{"Inference_ID":"x",' + FEATURES + "}", Reason.NO_ID),
    ("no features", '{"inference_id":"x"}', Reason.NO_FEATURES),
    ("null features", '{"inference_id":"x","features":null}', Reason.NO_FEATURES),
    ("features in a list", '{"inference_id":"x","features":[1,2]}', Reason.NO_FEATURES),
    ("features in a string", '{"inference_id":"x","features":"{}"}', Reason.NO_FEATURES),
    ("no timestamp anywhere", '{"inference_id":"x",' + FEATURES + "}", Reason.NO_TIMESTAMP),
    ("a timestamp nobody can read", '{"inference_id":"x","timestamp":"soon",' + FEATURES + "}", Reason.BAD_TIMESTAMP),
    ("a boolean as timestamp", '{"inference_id":"x","timestamp":true,' + FEATURES + "}", Reason.BAD_TIMESTAMP),
    ("NaN as timestamp", '{"inference_id":"x","timestamp":NaN,' + FEATURES + "}", Reason.BAD_TIMESTAMP),
    ("before 2000", '{"inference_id":"x","timestamp":"1999-12-31T23:59:59Z",' + FEATURES + "}", Reason.BAD_TIMESTAMP),
    ("after 2100", '{"inference_id":"x","timestamp":"2101-01-01T00:00:00Z",' + FEATURES + "}", Reason.BAD_TIMESTAMP),
    ("a day ahead", '{"inference_id":"x","timestamp":"2026-11-22T10:00:01Z",' + FEATURES + "}", Reason.BAD_TIMESTAMP),
    ("a long model", '{"inference_id":"x","model":"' + "m" * 201 + '",' + FEATURES + "}", Reason.NAME_TOO_LONG),
    ("a long version", '{"inference_id":"x","version":"' + "v" * 201 + '",' + FEATURES + "}", Reason.NAME_TOO_LONG),
    (
        "a long segment",
        '{"inference_id":"x","segment":{"m":"' + "v" * 201 + '"},' + FEATURES + "}",
        Reason.NAME_TOO_LONG,
    ),
]

REFUSED_LABELS: list[tuple[str, str, Reason]] = [
    ("no id", '{"label":"x"}', Reason.NO_ID),
    ("neither label nor value", '{"inference_id":"x"}', Reason.NO_LABEL),
    ("a null label", '{"inference_id":"x","label":null}', Reason.NO_LABEL),
    ("a list", '{"inference_id":"x","label":[1]}', Reason.BAD_LABEL),
    ("an object", '{"inference_id":"x","label":{"a":1}}', Reason.BAD_LABEL),
    ("NaN as label", '{"inference_id":"x","label":NaN}', Reason.BAD_LABEL),
    ("a string as value", '{"inference_id":"x","value":"3"}', Reason.BAD_LABEL),
    ("an infinite value", '{"inference_id":"x","value":1e400}', Reason.BAD_LABEL),
    ("a value that is NaN", '{"inference_id":"x","value":NaN}', Reason.BAD_LABEL),
    ("a long outcome", '{"inference_id":"x","label":1,"outcome":"' + "o" * 201 + '"}', Reason.NAME_TOO_LONG),
    ("a bad timestamp", '{"inference_id":"x","label":1,"timestamp":"2026-11-21"}', Reason.BAD_TIMESTAMP),
    ("a list of labels", '[{"inference_id":"x","label":1}]', Reason.NOT_AN_OBJECT),
]


@pytest.mark.parametrize(("record", "reason"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED_EVENTS])
def test_bad_event_is_refused_alone(record: bytes | str | None, reason: Reason) -> None:
    """A bad event has its one reason, and the events on both sides of it come through at their own offsets."""
    record_us = NO_TIME if reason is Reason.NO_TIMESTAMP else RECORD_US
    timed = GOOD.replace("{", '{"timestamp":"2026-11-21T10:00:00Z",', 1)
    events, rejects = DECODER.inference(raw_batch([timed, record, timed], record_us=record_us))
    assert reasons(rejects) == {1: reason}
    assert events.offset.tolist() == [100, 102]
    assert [cells_of(events, row) for row in (0, 1)] == [[("a", Kind.NUMBER, 1.0)]] * 2


@pytest.mark.parametrize(("record", "reason"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED_LABELS])
def test_bad_label_is_refused_alone(record: str, reason: Reason) -> None:
    """A bad ground truth event has its one reason and its neighbours keep their offsets."""
    good = '{"inference_id":"good","label":"x"}'
    labels, rejects = DECODER.ground_truth(raw_batch([good, record, good], stream=Stream.GROUND_TRUTH))
    assert reasons(rejects) == {1: reason}
    assert labels.offset.tolist() == [100, 102]
    assert labels.label.to_pylist() == ["x", "x"]


def test_all_bad_kinds_in_one_batch() -> None:
    """Every kind of bad record at once: each has its reason and every good one between them survives."""
    timed = [case for case in REFUSED_EVENTS if case[2] is not Reason.NO_TIMESTAMP]
    records = [record for _, bad, _ in timed for record in (bad, GOOD)]
    events, rejects = DECODER.inference(raw_batch(records))
    assert reasons(rejects) == {2 * place: reason for place, (_, _, reason) in enumerate(timed)}
    assert events.offset.tolist() == [101 + 2 * place for place in range(len(timed))]


def test_nothing_but_bad_records() -> None:
    """Batches without a single good record, and without any record, decode to empty columns."""
    for records in ([], [None, b"", b"\xff", "{", "[]"]):
        events, rejects = DECODER.inference(raw_batch(records))
        labels, label_rejects = DECODER.ground_truth(raw_batch(records, stream=Stream.GROUND_TRUTH))
        assert (len(events), len(labels)) == (0, 0)
        assert len(rejects.row) == len(label_rejects.row) == len(records)
        assert events.cells.names == ()


def test_cells_by_kind() -> None:
    """Every kind of value is told by what it is, never by what it could be turned into."""
    features = (
        '{"n":41,"f":-1.5e3,"s":"41","e":"a\\"b\\\\\\n\\u00e9\\ud83d\\ude00\\u0000","t":true,"u":false,"z":null,'
        '"nan":NaN,"low":nan,"inf":Infinity,"neg":-Infinity,"big":1e400,"bigneg":-1e400,"tiny":1e-400,'
        '"huge":123456789012345678901234567890,"l":[1, 2.50],"o":{"a": 1},"":0,"empty":""}'
    )
    events, _ = DECODER.inference(raw_batch(['{"inference_id":1,"features":' + features + "}"]))
    assert cells_of(events, 0) == [
        ("n", Kind.NUMBER, 41.0),
        ("f", Kind.NUMBER, -1500.0),
        ("s", Kind.STRING, "41"),
        ("e", Kind.STRING, 'a"b\\\né😀\0'),
        ("t", Kind.BOOLEAN, "true"),
        ("u", Kind.BOOLEAN, "false"),
        ("z", Kind.MISSING, None),
        ("nan", Kind.MISSING, None),
        ("low", Kind.MISSING, None),
        ("inf", Kind.INFINITE, math.inf),
        ("neg", Kind.INFINITE, -math.inf),
        ("big", Kind.INFINITE, math.inf),
        ("bigneg", Kind.INFINITE, -math.inf),
        ("tiny", Kind.NUMBER, 0.0),
        ("huge", Kind.NUMBER, 1.2345678901234568e29),
        ("l", Kind.LIST, "[1,2.5]"),
        ("o", Kind.OBJECT, '{"a":1}'),
        ("", Kind.NUMBER, 0.0),
        ("empty", Kind.STRING, ""),
    ]


def test_deep_and_wide_events() -> None:
    """100,000 levels, 5,000 features and repeated keys are an event like any other."""
    deep = '{"inference_id":"d","features":{"a":' + "[" * 100_000 + "]" * 100_000 + "}}"
    wide = {"inference_id": "w", "features": {f"unknown {place}": place for place in range(5_000)}}
    twice = '{"inference_id":"t","features":{"a":1,"b":2,"a":3}}'
    events, rejects = DECODER.inference(raw_batch([deep, wide, twice, GOOD]))
    assert len(rejects.row) == 0
    assert np.bincount(events.cells.row).tolist() == [1, 5_000, 3, 1]
    assert cells_of(events, 2) == [("a", Kind.NUMBER, 1.0), ("b", Kind.NUMBER, 2.0), ("a", Kind.NUMBER, 3.0)]


def test_feature_names_are_data() -> None:
    """Quotes, newlines, emoji and SQL in a name survive; a name of 10 kB costs its cell, counted, not the event."""
    names = ['it\'s "x"', "a\nb", "😀", "'; DROP TABLE input; --", "a.b", "$", "*", "x" * 200]
    features = {name: place for place, name in enumerate(names)} | {"y" * 201: 1, "z" * 10_000: 2}
    events, rejects = DECODER.inference(raw_batch([{"inference_id": "n", "features": features}, GOOD]))
    assert len(rejects.row) == 0
    assert cells_of(events, 0) == [(name, Kind.NUMBER, float(place)) for place, name in enumerate(names)]
    assert cells_of(events, 1) == [("a", Kind.NUMBER, 1.0)]
    assert events.cells.long_name_row.tolist() == [0, 0]
    assert max(map(len, events.cells.names)) == 200


def test_ids_hash_their_text() -> None:
    """`7` and `"7"` are one id; the hash is MD5 of the text, as two little-endian halves of its number."""
    records: list[dict[str, Any]] = [
        {"inference_id": name, "features": {}} for name in (7, "7", "8", 'a"\n', 10**30, str(10**30))
    ]
    events, _ = DECODER.inference(raw_batch(records))
    digests = [hashlib.md5(text.encode()).digest() for text in ("7", "7", "8", 'a"\n', str(10**30), str(10**30))]
    words = [tuple(np.frombuffer(digest, "<u8").tolist()) for digest in digests]
    found = ids_of(events)
    assert found[0] == found[1] != found[2]
    assert found[4] == found[5]
    assert [set(pair) for pair in found] == [set(pair) for pair in words]
    assert [low for _, low in found] == [first for first, _ in words]


def test_models_and_versions() -> None:
    """Strings and numbers name a model; whatever else, and nothing, means the binding's, else the defaults."""
    given_names: list[dict[str, Any]] = [
        {"model": "m", "version": "1"},
        {"model": 7, "version": 1},
        {},
        {"model": None},
    ]
    given_names += [{"model": True, "version": []}, {"model": "", "version": ""}]
    records = [{"inference_id": "x", "features": {}, **names} for names in given_names]
    bound, _ = DECODER.inference(raw_batch(records, model="bound", version="9"))
    free, _ = DECODER.inference(raw_batch(records))
    default = ModelKey("default", "unversioned")
    assert [free.keys[key] for key in free.key] == [ModelKey("m", "1"), ModelKey("7", "1"), *[default] * 4]
    assert [bound.keys[key] for key in bound.key][2:] == [ModelKey("bound", "9")] * 4


PREDICTIONS: list[tuple[str, str, str | None, float, float]] = [
    # model, prediction, label, score, value
    ("free", "3.5", None, math.nan, 3.5),
    ("free", '"deny"', "deny", math.nan, math.nan),
    ("free", "true", "true", math.nan, math.nan),
    ("free", "null", None, math.nan, math.nan),
    ("free", "[1]", None, math.nan, math.nan),
    ("free", '{"value":2}', None, math.nan, 2.0),
    ("free", '{"label":2}', None, math.nan, 2.0),
    ("free", '{"label":1,"score":0.9}', "1", 0.9, math.nan),
    ("free", '{"label":[1],"score":"0.9"}', None, math.nan, math.nan),
    ("free", '{"label":"a","score":1e400}', "a", math.nan, math.nan),
    ("free", '{"probabilities":{"a":0.2,"b":0.7,"c":0.1}}', "b", math.nan, math.nan),
    ("credit", "1", "1", math.nan, math.nan),
    ("credit", "0.25", None, 0.25, math.nan),
    ("credit", '{"value":1}', "1", math.nan, math.nan),
    ("credit", '{"label":"ok","probabilities":{"deny":0.3,"ok":0.7}}', "ok", 0.3, math.nan),
    ("credit", '{"score":0.6,"probabilities":{"deny":0.3,"ok":0.7}}', "ok", 0.6, math.nan),
    ("credit", '{"probabilities":{"deny":"x","ok":null}}', None, math.nan, math.nan),
    ("demand", "12", None, math.nan, 12.0),
    ("demand", '{"label":12,"score":1}', None, 1.0, 12.0),
    ("demand", '{"label":"many"}', "many", math.nan, math.nan),
    ("kinds", "2", "2", math.nan, math.nan),
]


def test_predictions_by_task() -> None:
    """A number is a value, a label or a score as the model's task says; what is absent comes from probabilities."""
    models = {
        "credit": ModelOptions("binary", "deny"),
        "demand": ModelOptions("regression"),
        "kinds": ModelOptions("multiclass"),
    }
    records = [
        f'{{"inference_id":"x","model":"{model}","features":{{}},"prediction":{text}}}'
        for model, text, *_ in PREDICTIONS
    ]
    events, _ = Decoder(DecoderOptions(models=models)).inference(raw_batch(records))
    assert events.label.to_pylist() == [label for _, _, label, _, _ in PREDICTIONS]
    np.testing.assert_array_equal(events.score, [score for *_, score, _ in PREDICTIONS])
    np.testing.assert_array_equal(events.value, [value for *_, value in PREDICTIONS])


def test_segments_are_texts() -> None:
    """Strings, numbers and booleans of a segment are kept as texts, the rest left out, the names sorted."""
    segment = '{"n":1,"m":"a\\"b","o":null,"t":true,"l":[1],"i":NaN}'
    deep = '{"a":' + "[" * 5_000 + "]" * 5_000 + "}"
    texts = [segment, '{"o":null}', "7", deep]
    events, _ = DECODER.inference(
        raw_batch([f'{{"inference_id":"x","features":{{}},"segment":{text}}}' for text in texts])
    )
    first, *others = events.segment.to_pylist()
    assert json.loads(first) == {"i": "NaN", "m": 'a"b', "n": "1", "t": "true"}
    assert others == [None, None, None]


def test_labels_as_columns() -> None:
    """Label texts, numbers, outcomes, models and times of good ground truth events."""
    records = [
        '{"inference_id":"a","label":"deny","timestamp":"2026-11-20T10:00:00Z","model":"credit"}',
        '{"inference_id":7,"label":1,"outcome":"click"}',
        '{"inference_id":"7","value":2.5,"label":null}',
        '{"inference_id":"c","label":true,"value":3}',
        '{"inference_id":"d","label":""}',
    ]
    labels, rejects = DECODER.ground_truth(raw_batch(records, stream=Stream.GROUND_TRUTH, record_us=NO_TIME))
    assert len(rejects.row) == 0
    assert labels.label.to_pylist() == ["deny", "1", "2.5", "true", ""]
    np.testing.assert_array_equal(labels.number, [math.nan, 1.0, 2.5, 3.0, math.nan])
    assert [labels.outcomes[code] for code in labels.outcome] == ["label", "click", "label", "label", "label"]
    assert [labels.models[code] if code >= 0 else None for code in labels.model] == ["credit", None, None, None, None]
    assert labels.time_us.tolist() == [RECORD_US - 86_400_000_000, *[NO_TIME] * 4]
    assert ids_of(labels)[1] == ids_of(labels)[2]


def test_baseline_rows() -> None:
    """Rows of a baseline need no id, time or version, and carry their truth."""
    records = [
        '{"features":{"a":1},"prediction":2,"label":3}',
        '{"features":{"a":1},"prediction":"x","label":"y","version":"4"}',
        '{"inference_id":1.5,"features":{},"value":5}',
        '{"inference_id":"x","features":{},"label":[1]}',
    ]
    rows, rejects = DECODER.baseline(raw_batch(records, record_us=NO_TIME, model="m"))
    assert reasons(rejects) == {3: Reason.BAD_LABEL}
    assert [rows.keys[key] for key in rows.key] == [ModelKey("m", ""), ModelKey("m", "4"), ModelKey("m", "")]
    assert rows.truth_label.to_pylist() == ["3", "y", None]
    np.testing.assert_array_equal(rows.truth_value, [3.0, math.nan, 5.0])
    assert rows.time_us.tolist() == [NO_TIME] * 3
    again, _ = DECODER.baseline(raw_batch(records, record_us=NO_TIME, model="m"))
    moved, _ = DECODER.baseline(raw_batch(records, record_us=NO_TIME, model="m", first_offset=7))
    assert len(set(ids_of(rows))) == 3
    assert ids_of(rows) == ids_of(again)
    assert not set(ids_of(rows)) & set(ids_of(moved))


def test_sliced_values() -> None:
    """A batch whose values are a slice of a longer array decodes as the slice alone."""
    batch = raw_batch([b"\xff", "{", GOOD, None, b"\xfe", GOOD])
    longer = pa.concat_arrays([pa.array([b"junk"], pa.binary()), batch.value])
    sliced = raw_batch([GOOD] * 6)
    object.__setattr__(sliced, "value", longer.slice(1))
    whole, rejects = DECODER.inference(batch)
    part, part_rejects = DECODER.inference(sliced)
    assert reasons(rejects) == reasons(part_rejects)
    assert whole.offset.tolist() == part.offset.tolist() == [102, 105]


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)


def _expected(value: Any) -> tuple[Kind, Any]:
    """Kind and content of a value as Python's own JSON reads it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Kind.MISSING, None
    if isinstance(value, bool):
        return Kind.BOOLEAN, json.dumps(value)
    if isinstance(value, int | float):
        return (Kind.INFINITE if math.isinf(value) else Kind.NUMBER), float(value)
    if isinstance(value, str):
        return Kind.STRING, value
    return (Kind.LIST if isinstance(value, list) else Kind.OBJECT), value


@settings(max_examples=150, deadline=None)
@given(st.lists(st.dictionaries(_TEXT, _VALUE, max_size=5), min_size=1, max_size=4), st.booleans())
def test_cells_equal_pythons_json(objects: list[dict[str, Any]], ascii_only: bool) -> None:
    """Cells are what Python's json reads from the same texts, for any object, and rows stay with their offsets."""
    texts = [json.dumps({"inference_id": "x", "features": one}, ensure_ascii=ascii_only) for one in objects]
    events, rejects = DECODER.inference(raw_batch(texts))
    assert len(rejects.row) == 0
    for row, text in enumerate(texts):
        expected = [(name, *_expected(value)) for name, value in json.loads(text)["features"].items()]
        found = cells_of(events, row)
        assert [(name, kind) for name, kind, _ in found] == [(name, kind) for name, kind, _ in expected]
        for (_, kind, content), (_, _, wanted) in zip(found, expected, strict=True):
            nested = kind in (Kind.LIST, Kind.OBJECT)
            assert (repr(json.loads(str(content))) == repr(wanted)) if nested else content == wanted


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=30), st.just(None), st.just(GOOD.encode()), _TEXT.map(str.encode))))
def test_any_bytes_have_one_fate(records: list[bytes | None]) -> None:
    """Whatever the bytes, every record is an event or has one reason, and good ones are always events."""
    events, rejects = DECODER.inference(raw_batch(list(records)))
    accepted = [offset - 100 for offset in events.offset.tolist()]
    assert sorted([*accepted, *rejects.row.tolist()]) == list(range(len(records)))
    assert {row for row, record in enumerate(records) if record == GOOD.encode()} <= set(accepted)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_cut_records_never_disturb_neighbours(data: st.DataObject) -> None:
    """Cutting any records of a batch at any byte changes nothing for the others."""
    record = json.dumps(
        {"inference_id": "é1", "timestamp": "2026-11-21T10:00:00Z", "features": {"a": 1, "b": "x"}, "prediction": 2.5},
        ensure_ascii=False,
    ).encode()
    cuts = data.draw(st.lists(st.none() | st.integers(0, len(record) - 1), min_size=1, max_size=12))
    events, rejects = DECODER.inference(raw_batch([record if cut is None else record[:cut] for cut in cuts]))
    assert events.offset.tolist() == [100 + row for row, cut in enumerate(cuts) if cut is None]
    assert rejects.row.tolist() == [row for row, cut in enumerate(cuts) if cut is not None]
    for row in range(len(events)):
        assert cells_of(events, row) == [("a", Kind.NUMBER, 1.0), ("b", Kind.STRING, "x")]
        assert events.value[row] == 2.5
