"""Feature cells: JSON texts into kinds, numbers and category texts, whole batches at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

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
)
from stream_monitor.records import Bytes, Cells, Codes, Floats, Kind

NAME_LIMIT = 200
"""Characters of a name: beyond it a name no longer fits a metric label or a person's screen."""

_KIND_OF_BYTE = ((QUOTE, Kind.STRING), (OPEN_LIST, Kind.LIST), (OPEN_OBJECT, Kind.OBJECT))
_TEXT_KINDS = (Kind.STRING, Kind.BOOLEAN, Kind.LIST, Kind.OBJECT)


def decode_cells(raw: RawCells, unescape: Unescape) -> tuple[Cells, int]:
    """The cells, `row` being a record's position, and how many were dropped for the length of their feature's name."""
    names, name = _encode_names(raw.name)
    short = np.array([len(text) <= NAME_LIMIT for text in names], np.bool_)
    dropped = 0
    if not short.all():
        kept = short[name]
        dropped = int(len(kept) - kept.sum())
        raw = RawCells(raw.position[kept], raw.name.filter(pa.array(kept)), raw.value.filter(pa.array(kept)))
        names, name = _encode_names(raw.name)
    kind, number = _classify(raw.value)
    text_cell = np.flatnonzero(np.isin(kind, _TEXT_KINDS)).astype(np.int32)
    cells = Cells(
        names=names,
        row=raw.position.astype(np.int32),
        name=name,
        kind=kind,
        number=number,
        text_cell=text_cell,
        text=plain(raw.value.take(pa.array(text_cell)), unescape),
    )
    return cells, dropped


def _encode_names(names: pa.Array) -> tuple[tuple[str, ...], Codes]:
    encoded = names.dictionary_encode()
    codes: Codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return tuple(encoded.dictionary.to_pylist()), codes


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
