"""A batch of records into columns and refusals: the whole stage, in the order in which a record can fail.

Bytes -> text -> JSON -> envelopes opened -> id -> features -> time -> names -> columns. Every record is either a row of
the result or has one reason in the rejects. Nothing a record holds can fail the batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.decode.cells import NAME_LIMIT, decode_cells
from stream_monitor.decode.cloudevents import fill_from_headers, open_envelopes
from stream_monitor.decode.fields import BASELINE_FIELDS, INFERENCE_FIELDS, LABEL_FIELDS, Layout, layout
from stream_monitor.decode.json import JsonReader, Parsed, merge, readable_texts
from stream_monitor.decode.predictions import ModelOptions, read_predictions
from stream_monitor.decode.rejects import Refusals
from stream_monitor.decode.sagemaker import find_records, rewrite
from stream_monitor.decode.scalars import (
    OPEN_LIST,
    OPEN_OBJECT,
    QUOTE,
    bytes_at,
    finite_numbers,
    is_boolean,
    is_null,
    is_number,
    keep_if,
    nulls,
    plain,
    read_numbers,
)
from stream_monitor.decode.timestamps import read_times, settle_times
from stream_monitor.records import (
    DEFAULT_OUTCOME,
    NO_TIME,
    Codes,
    Flags,
    Floats,
    Inferences,
    Ints,
    Labels,
    ModelKey,
    RawBatch,
    Reason,
    Rejects,
)

DEFAULT_MODEL = "default"
DEFAULT_VERSION = "unversioned"
ANY_VERSION = ""
"""The version of a baseline row that names none: it serves every version of the model that lacks its own."""


@dataclass(frozen=True, slots=True)
class DecoderOptions:
    """What decoding has to know of the configuration."""

    record_bytes: int = 10_000_000
    models: Mapping[str, ModelOptions] = field(default_factory=lambda: MappingProxyType({}))


class Decoder:
    """Decodes batches. Holds a JSON engine and layouts it has worked out, nothing of the data; serves one thread."""

    def __init__(self, options: DecoderOptions | None = None) -> None:
        self._options = options or DecoderOptions()
        self._reader = JsonReader()
        self._layouts: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], Layout] = {}

    def inference(self, batch: RawBatch) -> tuple[Inferences, Rejects]:
        """Inference events. A topic whose mapping cannot be used raises UsageError."""
        return self._events(batch, INFERENCE_FIELDS)

    def baseline(self, batch: RawBatch) -> tuple[Inferences, Rejects]:
        """Baseline rows: as inference events, but id, timestamp and version may be absent and truth may stand beside.

        A row without a usable id gets one from its place (topic, partition, offset); one without a version has
        `ANY_VERSION` unless the binding names one; one without any time has NO_TIME.
        """
        return self._events(batch, BASELINE_FIELDS)

    def ground_truth(self, batch: RawBatch) -> tuple[Labels, Rejects]:
        """Ground truth events. A label without a time, its record's included, has NO_TIME."""
        refusals = Refusals(len(batch))
        parsed = self._parse(batch, LABEL_FIELDS, refusals)
        refusals.refuse(parsed.row[~_has_id(parsed)], Reason.NO_ID)
        truth = self._truth(parsed, refusals)
        times = self._times(parsed, batch, refusals)
        model = self._names(parsed, "model", refusals)
        outcome = self._names(parsed, "outcome", refusals)
        kept = refusals.accepted[parsed.row]
        models, model_code = _encode(model.filter(pa.array(kept)), batch.binding.model)
        outcomes, outcome_code = _encode(outcome.filter(pa.array(kept)), DEFAULT_OUTCOME)
        row = parsed.row[kept]
        labels = Labels(
            models=models,
            outcomes=outcomes,
            partitions=batch.partitions,
            partition=batch.partition[row],
            offset=batch.offset[row],
            time_us=times[kept],
            record_time_us=_record_times(batch)[row],
            id_hi=parsed.id_hi[kept],
            id_lo=parsed.id_lo[kept],
            model=model_code,
            outcome=outcome_code,
            label=truth.label.filter(pa.array(kept)),
            number=truth.number[kept],
        )
        return labels, refusals.rejects()

    def _events(self, batch: RawBatch, names: tuple[str, ...]) -> tuple[Inferences, Rejects]:
        baseline = names is BASELINE_FIELDS
        refusals = Refusals(len(batch))
        parsed = self._parse(batch, names, refusals)
        if baseline:
            parsed = self._place_ids(parsed, batch)
        else:
            refusals.refuse(parsed.row[~_has_id(parsed)], Reason.NO_ID)
        refusals.refuse(parsed.row[~parsed.has_features], Reason.NO_FEATURES)
        times = self._times(parsed, batch, refusals)
        if not baseline:
            refusals.refuse(parsed.row[times == NO_TIME], Reason.NO_TIMESTAMP)
        parsed = parsed.with_field("model", self._names(parsed, "model", refusals))
        parsed = parsed.with_field("version", self._names(parsed, "version", refusals))
        parsed = parsed.with_field("segment", self._segments(parsed, refusals))
        truth = self._truth(parsed, refusals) if baseline else _no_truth(len(parsed))
        kept = refusals.accepted[parsed.row]
        events = self._columns(batch, parsed.select(kept), times[kept], truth.select(kept), baseline=baseline)
        return events, refusals.rejects()

    def _columns(self, batch: RawBatch, parsed: Parsed, times: Ints, truth: _Truth, *, baseline: bool) -> Inferences:
        keys, key = _model_keys(parsed, batch, ANY_VERSION if baseline else DEFAULT_VERSION)
        predictions = read_predictions(
            parsed.fields,
            key,
            options=[self._options.models.get(known.model, ModelOptions()) for known in keys],
            unescape=self._reader.unescape,
            explode=self._reader.explode,
        )
        return Inferences(
            keys=keys,
            partitions=batch.partitions,
            partition=batch.partition[parsed.row],
            offset=batch.offset[parsed.row],
            time_us=times,
            record_time_us=_record_times(batch)[parsed.row],
            id_hi=parsed.id_hi,
            id_lo=parsed.id_lo,
            key=key,
            cells=decode_cells(parsed.cells, self._reader.unescape),
            label=predictions.label,
            score=predictions.score,
            value=predictions.value,
            probabilities=predictions.probabilities,
            latency_ms=finite_numbers(parsed.fields["latency_ms"]),
            segment=parsed.fields["segment"],
            truth_label=truth.label,
            truth_value=truth.number,
        )

    def _parse(self, batch: RawBatch, names: tuple[str, ...], refusals: Refusals) -> Parsed:
        """The records that are JSON objects, envelopes opened, ids and times of transport headers filled in."""
        texts = readable_texts(batch.value, self._options.record_bytes, refusals)
        place = self._layout(names, batch.binding.fields)
        parsed = self._reader.parse(texts, np.arange(len(batch), dtype=np.int32), place)
        broken = refusals.accepted
        broken[parsed.row] = False
        refusals.refuse(broken, Reason.NOT_JSON)
        odd = ~_is_whole(parsed, place)
        if odd.any():
            parsed = self._open(parsed, texts, odd, names, place, refusals)
        return parsed if batch.headers is None else self._fill(parsed, batch)

    def _layout(self, names: tuple[str, ...], mapping: Mapping[str, str]) -> Layout:
        known = (names, tuple(mapping.items()))
        if known not in self._layouts:
            self._layouts[known] = layout(names, mapping, features=names is not LABEL_FIELDS)
        return self._layouts[known]

    def _open(
        self, parsed: Parsed, texts: pa.Array, odd: Flags, names: tuple[str, ...], place: Layout, refusals: Refusals
    ) -> Parsed:
        """The same records, those that were an envelope around an event replaced by that event."""
        rows = parsed.row[odd]
        suspects = texts.take(pa.array(rows))
        refusals.refuse(parsed.row[odd & ~parsed.is_object], Reason.NOT_AN_OBJECT)
        envelopes = open_envelopes(suspects, self._reader)
        captures = find_records(suspects, self._reader) & ~envelopes.found
        opened = []
        if envelopes.found.any():
            inner = self._reader.parse(envelopes.data, rows[envelopes.found], place)
            inner = self._or_else(inner, "inference_id", envelopes.id)
            opened.append(self._or_else(inner, "timestamp", envelopes.time))
        if captures.any():
            rewritten = rewrite(suspects.filter(pa.array(captures)))
            opened.append(self._reader.parse(rewritten, rows[captures], self._layout(names, {})))
        for inner in opened:
            parsed = merge(parsed.select(~np.isin(parsed.row, inner.row)), inner)
        return parsed

    def _fill(self, parsed: Parsed, batch: RawBatch) -> Parsed:
        headers = batch.headers or ()
        filled = fill_from_headers(parsed.fields, [headers[row] for row in parsed.row.tolist()])
        for name, texts in filled.items():
            parsed = self._or_else(parsed, name, texts)
        return parsed

    def _or_else(self, parsed: Parsed, name: str, texts: pa.Array) -> Parsed:
        """The records with a field taken from elsewhere where they lack it; ids are hashed anew."""
        parsed = parsed.with_field(name, pc.coalesce(parsed.fields[name], texts))
        if name != "inference_id":
            return parsed
        id_hi, id_lo = self._reader.hash_ids(parsed.fields[name])
        return parsed.with_ids(id_hi, id_lo)

    def _place_ids(self, parsed: Parsed, batch: RawBatch) -> Parsed:
        """Baseline rows, those without an id under the hash of their place in the input."""
        absent = np.flatnonzero(~_has_id(parsed))
        if not len(absent):
            return parsed
        row = parsed.row[absent]
        places = [json.dumps([part.topic, part.number]) for part in batch.partitions]
        place = pa.array(places, pa.string()).take(pa.array(batch.partition[row]))
        offset = pa.array(batch.offset[row]).cast(pa.string())
        texts = pc.binary_join_element_wise(place, offset, "@")
        hi, lo = self._reader.hash_texts(texts)
        id_hi, id_lo = parsed.id_hi.copy(), parsed.id_lo.copy()
        id_hi[absent], id_lo[absent] = hi, lo
        return parsed.with_ids(id_hi, id_lo)

    def _times(self, parsed: Parsed, batch: RawBatch, refusals: Refusals) -> Ints:
        """Event times, the record's where an event has none, NO_TIME where neither is known."""
        event_us, unreadable = read_times(parsed.fields["timestamp"], batch.binding.timestamp_unit)
        times, absurd = settle_times(event_us, batch.record_time_us[parsed.row], trusted=not batch.made_time)
        refusals.refuse(parsed.row[unreadable | absurd], Reason.BAD_TIMESTAMP)
        return times

    def _names(self, parsed: Parsed, name: str, refusals: Refusals) -> pa.Array:
        """Texts of model, version or outcome: of a string or a number, null for whatever else stands there."""
        texts = parsed.fields[name]
        if texts.null_count == len(texts):
            return texts
        first = bytes_at(texts, 0)
        texts = plain(keep_if(texts, (first == QUOTE) | is_number(texts, first)), self._reader.unescape)
        encoded = texts.dictionary_encode()
        length = [len(text) for text in encoded.dictionary.to_pylist()]
        code = _codes(encoded)
        refusals.refuse(parsed.row[_lookup([size > NAME_LIMIT for size in length], code)], Reason.NAME_TOO_LONG)
        return keep_if(texts, ~_lookup([size == 0 for size in length], code))

    def _segments(self, parsed: Parsed, refusals: Refusals) -> pa.Array:
        """Segments as JSON objects of texts; Python sees each distinct one once."""
        texts = parsed.fields["segment"]
        if texts.null_count == len(texts):
            return texts
        encoded = keep_if(texts, bytes_at(texts, 0) == OPEN_OBJECT).dictionary_encode()
        segments = self._segment_texts(encoded.dictionary)
        code = _codes(encoded)
        refusals.refuse(parsed.row[_lookup([_too_long(known) for known in segments], code)], Reason.NAME_TOO_LONG)
        known = [json.dumps(known, ensure_ascii=False) if known else None for known in segments]
        return pa.array(known, pa.string()).take(encoded.indices)

    def _segment_texts(self, objects: pa.Array) -> list[dict[str, str]]:
        """Of each JSON object the strings, numbers and booleans as texts, by name in sorted order."""
        parts = self._reader.explode(objects)
        first = bytes_at(parts.value, 0)
        scalar = np.flatnonzero((first == QUOTE) | is_number(parts.value, first) | is_boolean(first))
        values = plain(parts.value.take(pa.array(scalar)), self._reader.unescape).to_pylist()
        segments: list[dict[str, str]] = [{} for _ in range(len(objects))]
        places, names = parts.position[scalar].tolist(), parts.name.take(pa.array(scalar)).to_pylist()
        for place, name, value in zip(places, names, values, strict=True):
            segments[place][name] = value
        return [dict(sorted(segment.items())) for segment in segments]

    def _truth(self, parsed: Parsed, refusals: Refusals) -> _Truth:
        """Label text and number. In ground truth one of `label` and `value` must be there, in a baseline row none."""
        label, value = parsed.fields["label"], parsed.fields["value"]
        label_first, value_first = bytes_at(label, 0), bytes_at(value, 0)
        label_numeric, value_numeric = is_number(label, label_first), is_number(value, value_first)
        label_number, value_number = read_numbers(label, label_numeric), read_numbers(value, value_numeric)
        bad = (label_first == OPEN_LIST) | (label_first == OPEN_OBJECT)
        bad |= label_numeric & ~np.isfinite(label_number)
        bad |= (value_first != 0) & ~np.isfinite(value_number)
        refusals.refuse(parsed.row[bad], Reason.BAD_LABEL)
        if "outcome" in parsed.fields:
            refusals.refuse(parsed.row[(label_first == 0) & (value_first == 0)], Reason.NO_LABEL)
            label = pc.coalesce(label, value)
        number = np.where(np.isnan(value_number), label_number, value_number)
        return _Truth(plain(label, self._reader.unescape), number)


@dataclass(frozen=True, slots=True)
class _Truth:
    label: pa.Array
    number: Floats

    def select(self, kept: Flags) -> _Truth:
        return self if kept.all() else _Truth(self.label.filter(pa.array(kept)), self.number[kept])


def _no_truth(count: int) -> _Truth:
    return _Truth(nulls(count), np.full(count, np.nan))


def _is_whole(parsed: Parsed, place: Layout) -> Flags:
    """Records that need no second look: they carry an id and what their stream is about."""
    identified = ~is_null(parsed.fields["inference_id"])
    if place.has_features:
        return identified & parsed.has_features
    return identified & ~(is_null(parsed.fields["label"]) & is_null(parsed.fields["value"]))


def _has_id(parsed: Parsed) -> Flags:
    """Records whose id is a string with something in it or an integer."""
    texts = parsed.fields["inference_id"]
    first = bytes_at(texts, 0)
    quoted = first == QUOTE
    fine: Flags = quoted & (bytes_at(texts, 1) != QUOTE)
    other = ~quoted & is_number(texts, first)
    if other.any():
        whole = pc.match_substring_regex(texts.filter(pa.array(other)), r"^-?\d+$")
        fine[other] = whole.to_numpy(zero_copy_only=False)
    return fine


def _model_keys(parsed: Parsed, batch: RawBatch, default_version: str) -> tuple[tuple[ModelKey, ...], Codes]:
    """The distinct models and versions, and which of them each record is of."""
    models, model = _encode(parsed.fields["model"], batch.binding.model or DEFAULT_MODEL)
    versions, version = _encode(parsed.fields["version"], batch.binding.version or default_version)
    pairs, key = np.unique(model.astype(np.int64) * max(len(versions), 1) + version, return_inverse=True)
    split = [divmod(pair, max(len(versions), 1)) for pair in pairs.tolist()]
    keys = tuple(ModelKey(models[of_model], versions[of_version]) for of_model, of_version in split)
    return keys, key.astype(np.int32)


def _encode(texts: pa.Array, default: str | None) -> tuple[tuple[str, ...], Codes]:
    """Distinct texts and codes; null is the default, or -1 where there is none."""
    encoded = texts.dictionary_encode() if default is None else pc.fill_null(texts, default).dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), _codes(encoded)


def _codes(encoded: pa.DictionaryArray) -> Codes:
    """(n,) dictionary codes, -1 for null."""
    codes: Codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return codes


def _lookup(flags: list[bool], code: Codes) -> Flags:
    """(n,) the flag of each code; false for -1."""
    looked_up: Flags = np.array([*flags, False], np.bool_)[code]
    return looked_up


def _too_long(segment: dict[str, str]) -> bool:
    return any(len(name) > NAME_LIMIT or len(value) > NAME_LIMIT for name, value in segment.items())


def _record_times(batch: RawBatch) -> Ints:
    """The transport's times, none where they were made up."""
    return np.full(len(batch), NO_TIME, np.int64) if batch.made_time else batch.record_time_us
