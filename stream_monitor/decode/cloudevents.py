"""CloudEvents 1.0: the event inside a structured envelope, and ids and times that binary mode puts in Kafka headers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.decode.json import JsonReader
from stream_monitor.decode.scalars import is_null
from stream_monitor.records import Flags

_SQL = """
    SELECT i, json_extract(v, '$.data') AS data, json_extract(v, '$.id') AS id, json_extract(v, '$.time') AS time,
           coalesce(json_type(v, '$.specversion') = 'VARCHAR' AND json_type(v, '$.data') = 'OBJECT', false) AS found
    FROM input
"""
_HEADER_FIELDS = (("ce_id", "inference_id"), ("ce_time", "timestamp"))


@dataclass(frozen=True, slots=True)
class Envelopes:
    """Which of n records are envelopes, and of those the event inside, its id and its time, as JSON texts."""

    found: Flags
    data: pa.Array
    id: pa.Array
    time: pa.Array


def open_envelopes(texts: pa.Array, reader: JsonReader) -> Envelopes:
    """The structured CloudEvents among JSON texts: an object with `specversion` whose `data` is an object."""
    table = reader.query(_SQL, texts)
    found = table.column("found").combine_chunks().to_numpy(zero_copy_only=False)
    inside = table.filter(pa.array(found))
    data, event_id, time = (_texts(inside.column(name)) for name in ("data", "id", "time"))
    return Envelopes(found, data, event_id, time)


def fill_from_headers(
    fields: Mapping[str, pa.Array], headers: Sequence[Sequence[tuple[str, bytes]]]
) -> dict[str, pa.Array]:
    """Id and timestamp columns with what binary-mode headers say where a record has none; unchanged ones are left out.

    `headers` are those of the records, aligned. Python looks only at records that lack one of the two.
    """
    filled = {}
    for header, field in _HEADER_FIELDS:
        absent = np.flatnonzero(is_null(fields[field]))
        found = {row: text for row in absent.tolist() if (text := _header(headers[row], header)) is not None}
        if found:
            mask = np.zeros(len(headers), np.bool_)
            mask[list(found)] = True
            filled[field] = pc.replace_with_mask(fields[field], pa.array(mask), pa.array(found.values(), pa.string()))
    return filled


def _header(headers: Sequence[tuple[str, bytes]], name: str) -> str | None:
    """A CloudEvents header as JSON text; None where the record is no CloudEvent or lacks it."""
    known = dict(headers)
    value = known.get(name)
    if "ce_specversion" not in known or not value:
        return None
    try:
        return json.dumps(value.decode(), ensure_ascii=False)
    except UnicodeDecodeError:
        return None


def _texts(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = array.storage if isinstance(array.type, pa.BaseExtensionType) else array
    literal = pc.fill_null(pc.equal(array, "null"), False)
    return pc.if_else(literal, pa.scalar(None, pa.string()), array)
