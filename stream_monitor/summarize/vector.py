"""Vectors: fixed-length lists of numbers, summarised by their Euclidean norm on numeric bins.

A change that leaves every norm alone is not seen here; sums of random Fourier features will see it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.records import Bytes, Floats, Ints, Kind
from stream_monitor.summarize.rows import Texts

_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_LIST_OF_NUMBERS = rf"^\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\]$"
_AROUND_NUMBERS = r"[\[\]\s]"


class Measured(NamedTuple):
    """Of each list: how many numbers it has, -1 if it is anything but a list of numbers, and their Euclidean norm."""

    length: Ints
    norm: Floats


def norms(kind: Bytes, texts: Texts | None, *, length: int | None) -> tuple[Bytes, Floats, int | None]:
    """(kind, norm, length) of each cell: NUMBER where it is a list of `length` finite numbers, else its kind.

    A list of another length, or of anything but numbers, stays LIST. A number that is not in a list is an OBJECT, so
    that it counts as a value of a wrong type. `length` None takes the most frequent one.
    """
    out, value = kind.copy(), np.full(len(kind), np.nan)
    out[(kind == Kind.NUMBER) | (kind == Kind.INFINITE)] = Kind.OBJECT
    if texts is None:
        return out, value, length
    lists = np.flatnonzero(kind[texts.row] == Kind.LIST)
    if not len(lists):
        return out, value, length
    row = texts.row[lists]
    found = measure(texts.text.take(pa.array(lists)))
    if length is None:
        length = _most_frequent(found.length[found.length > 0])
    good = (found.length == length) & np.isfinite(found.norm)
    out[row[good]], value[row[good]] = Kind.NUMBER, found.norm[good]
    return out, value, length


def measure(texts: pa.Array) -> Measured:
    """Measure JSON lists (n,); the norm is NaN where the length is -1, infinite where a square is beyond a float."""
    length, norm = np.full(len(texts), -1, np.int64), np.full(len(texts), np.nan)
    good = pc.match_substring_regex(texts, _LIST_OF_NUMBERS).to_numpy(zero_copy_only=False)
    if good.any():
        bare = pc.replace_substring_regex(texts.filter(pa.array(good)), _AROUND_NUMBERS, "")
        elements = pc.split_pattern(bare, ",")
        length[good] = pc.list_value_length(elements).to_numpy()
        numbers = pc.cast(elements.flatten(), pa.float64()).to_numpy()
        with np.errstate(over="ignore"):
            squares = np.add.reduceat(numbers**2, np.cumsum(length[good]) - length[good])
        norm[good] = np.sqrt(squares)
    return Measured(length, norm)


def _most_frequent(lengths: Ints) -> int:
    """The smaller of two equally frequent ones, 0 without any."""
    found, counts = np.unique(lengths, return_counts=True)
    return int(found[np.argmax(counts)]) if len(found) else 0
