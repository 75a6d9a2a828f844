"""JSON texts of single values, many at a time: what kind each is, its number, its text without quotes.

Texts are canonical JSON as the parser writes it (escapes normalised, no white space), in a `pa.string()` array; null is
an absent value. Bytes are looked at in the arrays' own buffers, so nothing here costs Python per value.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.records import Bytes, Flags, Floats, Ints

Unescape = Callable[[pa.Array], pa.Array]
"""Turns JSON strings, quotes included, into the text they stand for."""

QUOTE, OPEN_LIST, OPEN_OBJECT = ord('"'), ord("["), ord("{")

_NUMERIC = np.zeros(256, np.bool_)
_NUMERIC[[*b"-0123456789IiN"]] = True  # the parser takes Infinity, inf and NaN in any case
_BOOLEAN = np.zeros(256, np.bool_)
_BOOLEAN[[*b"tf"]] = True


def spans(texts: pa.Array) -> tuple[Ints, Bytes]:
    """Offsets (n + 1,) of the texts and the bytes they point into."""
    _, offsets, data = texts.buffers()
    count = len(texts)
    if count == 0 or offsets is None:
        return np.zeros(count + 1, np.int64), np.zeros(0, np.uint8)
    edges = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + count + 1]
    return edges.astype(np.int64), np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def bytes_at(texts: pa.Array, place: int) -> Bytes:
    """(n,) the byte at a place of each text; 0 where the text is null or too short."""
    edges, data = spans(texts)
    if not len(data):
        return np.zeros(len(texts), np.uint8)
    at = edges[:-1] + place
    found = np.where(at < edges[1:], data[np.minimum(at, len(data) - 1)], np.uint8(0))
    if texts.null_count:
        found[is_null(texts)] = 0
    return found


def is_null(texts: pa.Array) -> Flags:
    """(n,) where a text is absent."""
    flags: Flags = pc.is_null(texts).to_numpy(zero_copy_only=False)
    return flags


def is_number(texts: pa.Array, first: Bytes) -> Flags:
    """(n,) JSON numbers, the literals NaN and Infinity among them. `first` is `bytes_at(texts, 0)`."""
    numeric = _NUMERIC[first]
    small_n = first == ord("n")
    if small_n.any():
        numeric |= small_n & (bytes_at(texts, 1) != ord("u"))  # nan, not null
    return numeric


def is_boolean(first: Bytes) -> Flags:
    """(n,) JSON booleans, by their first byte."""
    return _BOOLEAN[first]


def read_numbers(texts: pa.Array, chosen: Flags) -> Floats:
    """(n,) the numbers of the chosen texts, all of which must be JSON numbers; NaN elsewhere.

    What double precision cannot hold becomes infinite (1e400) or zero (1e-400).
    """
    if chosen.all():
        return as_floats(texts)
    numbers = np.full(len(texts), np.nan)
    numbers[chosen] = as_floats(texts.filter(pa.array(chosen)))
    return numbers


def as_floats(texts: pa.Array) -> Floats:
    """(n,) texts of numbers as doubles."""
    floats: Floats = texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return floats


def finite_numbers(texts: pa.Array) -> Floats:
    """(n,) the finite JSON numbers; NaN for whatever else a text is."""
    if texts.null_count == len(texts):
        return np.full(len(texts), np.nan)
    numbers = read_numbers(texts, is_number(texts, bytes_at(texts, 0)))
    return np.where(np.isfinite(numbers), numbers, np.nan)


def plain(texts: pa.Array, unescape: Unescape) -> pa.Array:
    """JSON text without quotes: strings as themselves, anything else (and null) as it stands."""
    quoted = bytes_at(texts, 0) == QUOTE
    if not quoted.any():
        return texts
    if quoted.all():
        return unquote(texts, unescape)
    bare = unquote(texts.filter(pa.array(quoted)), unescape)
    return pc.replace_with_mask(texts, pa.array(quoted), bare)


def unquote(texts: pa.Array, unescape: Unescape) -> pa.Array:
    """The text of JSON strings; every text must be one."""
    escaped: Flags = _has_backslash(texts)
    bare = _strip_ends(texts)
    if not escaped.any():
        return bare
    mask = pa.array(escaped)
    return pc.replace_with_mask(bare, mask, unescape(texts.filter(mask)))


def keep_if(texts: pa.Array, kept: Flags) -> pa.Array:
    """The texts with null where not kept."""
    return texts if kept.all() else pc.if_else(pa.array(kept), texts, pa.scalar(None, pa.string()))


def nulls(count: int) -> pa.Array:
    """(count,) absent texts."""
    return pa.nulls(count, pa.string())


def _has_backslash(texts: pa.Array) -> Flags:
    edges, data = spans(texts)
    if not (data[edges[0] : edges[-1]] == ord("\\")).any():
        return np.zeros(len(texts), np.bool_)
    flags: Flags = pc.match_substring(texts, "\\").to_numpy(zero_copy_only=False)
    return flags


def _strip_ends(texts: pa.Array) -> pa.Array:
    """Without the first and the last byte; no text may be null or shorter than two bytes."""
    edges, data = spans(texts)
    inner = np.ones(edges[-1] - edges[0], np.bool_)
    inner[edges[:-1] - edges[0]] = False
    inner[edges[1:] - edges[0] - 1] = False
    stripped = data[edges[0] : edges[-1]][inner]
    new_edges = (edges - edges[0] - 2 * np.arange(len(edges))).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(texts), [None, pa.py_buffer(new_edges), pa.py_buffer(stripped)])
