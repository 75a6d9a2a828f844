"""Vectors: fixed-length lists of numbers, summarised by their Euclidean norm on numeric bins.

A change that leaves every norm alone is not seen here; sums of random Fourier features will see it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.records import Bytes, Floats, Kind
from stream_monitor.summarize.rows import Texts


def norms(kind: Bytes, texts: Texts | None, *, length: int | None) -> tuple[Bytes, Floats, int | None]:
    """(kind, norm, length) of each cell: NUMBER where it is a list of `length` finite numbers, else its kind.

    A list of another length, or of anything but numbers, stays LIST. `length` None takes the most frequent one.
    """
    out, value = kind.copy(), np.full(len(kind), np.nan)
    if texts is None:
        return out, value, length
    lists = np.flatnonzero(kind[texts.row] == Kind.LIST)
    if not len(lists):
        return out, value, length
    row = texts.row[lists]
    lengths, norm = _read(texts.text.take(pa.array(lists)))
    if length is None:
        length = int(np.bincount(lengths[lengths >= 0]).argmax()) if (lengths >= 0).any() else 0
    good = (lengths == length) & np.isfinite(norm)
    out[row[good]], value[row[good]] = Kind.NUMBER, norm[good]
    return out, value, length


def _read(texts: pa.Array) -> tuple[np.ndarray[Any, Any], Floats]:
    """Length and norm of each JSON list; -1 and NaN where it is not a plain list of numbers."""
    plain = pc.utf8_slice_codeunits(texts, 1, -1)
    split = pc.split_pattern(plain, ",")
    try:
        numbers = pc.cast(split.values, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return _read_slowly(texts)
    lengths = np.diff(split.offsets.to_numpy())
    starts = split.offsets.to_numpy()[:-1]
    squares = (
        np.add.reduceat(numbers**2, np.minimum(starts, max(len(numbers) - 1, 0))) if len(numbers) else starts * 0.0
    )
    return lengths.astype(np.int64), np.sqrt(np.where(lengths > 0, squares, np.nan))


def _read_slowly(texts: pa.Array) -> tuple[np.ndarray[Any, Any], Floats]:
    """List by list: only for a batch in which some list holds something else than numbers."""
    lengths, norm = np.full(len(texts), -1, np.int64), np.full(len(texts), np.nan)
    for i, text in enumerate(texts.to_pylist()):
        items = json.loads(text)
        if items and all(isinstance(x, int | float) and not isinstance(x, bool) for x in items):
            lengths[i], norm[i] = len(items), float(np.linalg.norm(np.array(items, np.float64)))
    return lengths, norm
