"""Feature cells: JSON texts into kinds, numbers and category texts, whole batches at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.decode.json import RawCells
from stream_monitor.decode.scalars import (
    OPEN_LIST,
    OPEN_OBJECT,
    QUOTE,
    Unescape,
    bytes_at,
    is_boolean,
    is_number,
    plain,
    read_numbers,
    spans,
)
from stream_monitor.records import Bytes, Cells, Codes, Floats, Kind

NAME_LIMIT = 200
"""Characters of a name: beyond it a name no longer fits a metric label or a person's screen."""

_LONGEST_PERIOD = 10_000
"""Features of one event, as far as a repetition of names is looked for."""

_KIND_OF_BYTE = ((QUOTE, Kind.STRING), (OPEN_LIST, Kind.LIST), (OPEN_OBJECT, Kind.OBJECT))
_HAS_TEXT = np.zeros(len(Kind), np.bool_)
_HAS_TEXT[[Kind.STRING, Kind.BOOLEAN, Kind.LIST, Kind.OBJECT]] = True


def decode_cells(raw: RawCells, unescape: Unescape) -> Cells:
    """The cells, `row` being a record's position; those whose feature has too long a name only by their row."""
    names, name = _encode_names(raw.name)
    short = np.array([len(text) <= NAME_LIMIT for text in names], np.bool_)
    long_name_row = np.zeros(0, np.int32)
    if not short.all():
        kept = short[name]
        long_name_row = raw.position[~kept].astype(np.int32)
        raw = RawCells(raw.position[kept], raw.name.filter(pa.array(kept)), raw.value.filter(pa.array(kept)))
        names, name = _encode_names(raw.name)
    kind, number = _classify(raw.value)
    text_cell = np.flatnonzero(_HAS_TEXT[kind]).astype(np.int32)
    return Cells(
        names=names,
        row=raw.position.astype(np.int32),
        name=name,
        kind=kind,
        number=number,
        text_cell=text_cell,
        text=plain(raw.value.take(pa.array(text_cell)), unescape),
        long_name_row=long_name_row,
    )


def _encode_names(names: pa.Array) -> tuple[tuple[str, ...], Codes]:
    """Distinct names and the code of each cell's."""
    period = _period(names)
    encoded = (names.slice(0, period) if period else names).dictionary_encode()
    codes: Codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return tuple(encoded.dictionary.to_pylist()), np.tile(codes, len(names) // period) if period else codes


def _period(names: pa.Array) -> int:
    """After how many cells the names begin anew, all in the same order, as in a batch of one model; 0 if they do not.

    Comparing bytes with the first event's is a fifth of the cost of hashing every name.
    """
    if not len(names):
        return 0
    again = np.flatnonzero(pc.equal(names.slice(0, _LONGEST_PERIOD), names[0]).to_numpy(zero_copy_only=False))
    if len(again) < 2:
        return 0
    edges, data = spans(names)
    count, size = len(names), int(edges[-1] - edges[0])
    period = int(again[1])
    width = int(edges[period] - edges[0])
    if not width or count % period or size != width * (count // period):
        return 0
    starts, data = edges[:-1].reshape(-1, period) - edges[0], data[edges[0] : edges[-1]].reshape(-1, width)
    same = (starts - starts[:, :1] == starts[0]).all() and (data == data[0]).all()
    return period if same else 0


def _classify(values: pa.Array) -> tuple[Bytes, Floats]:
    """Kind and number of every cell by the first byte of its text; null and NaN are missing."""
    first = bytes_at(values, 0)
    numeric = is_number(values, first)
    number = read_numbers(values, numeric)
    kind = np.full(len(first), Kind.MISSING, np.uint8)
    kind[numeric] = Kind.NUMBER
    kind[np.isinf(number)] = Kind.INFINITE
    kind[numeric & np.isnan(number)] = Kind.MISSING
    kind[is_boolean(first)] = Kind.BOOLEAN
    for byte, held in _KIND_OF_BYTE:
        kind[first == byte] = held
    return kind, number
