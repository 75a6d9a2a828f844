"""The mergeable profile: counts on the baseline's bins and moments, for all subjects of a model version at once.

A window, a pane and a baseline are the same thing. `Profile.fold` folds rows, `merge` adds, the functions below
read. Laws: merge is associative and commutative, an empty profile is its identity, neither argument changes, and
profiles of different schemas refuse to merge. They hold to the last bit, since a profile holds integers and extremes
only: so a window is the same however polls, checkpoints or a restart cut its rows.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray

from stream_monitor.errors import StateError
from stream_monitor.records import Bytes, Flags, Floats, Ints, Kind
from stream_monitor.summarize.categorical import Categories, category_texts
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.protocol import BINS, MAIN, UNSEEN
from stream_monitor.summarize.rows import Rows, SubjectKey
from stream_monitor.summarize.vector import norms

FORMAT = 1

BinCodes = NDArray[np.uint16]
UNIT = 2.0**-16
"""Deviations are summed as whole multiples of this many baseline standard deviations: a mean is off by at most half."""
LARGEST_DEVIATION = 2.0**15
"""In standard deviations: what lies beyond is summed as if it lay there (its square must fit 63 bits)."""
_LOW_BITS = 31

SPARSE_ROWS = 64
"""Up to this many rows the sorted codes of each subject are smaller than its counts."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What one subject is summarised by. `value_kind`: numeric, categorical or vector."""

    key: SubjectKey
    value_kind: str
    bins: NumericBins | Categories
    length: int | None = None  # of a vector

    @property
    def is_numeric(self) -> bool:
        return self.value_kind != "categorical"

    def values(self, kind: Bytes, number: Floats, rows: Rows, column: int) -> tuple[Bytes, Floats]:
        """Kinds and numbers of the cells as this subject reads them: a vector's norm is its number."""
        if self.value_kind == "vector":
            found, norm, _ = norms(kind, rows.texts.get(column), length=self.length)
            return found, norm
        return kind, number

    def to_json(self) -> dict[str, Any]:
        return {
            "key": list(self.key),
            "value_kind": self.value_kind,
            "bins": self.bins.to_json(),
            "length": self.length,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Subject:
        of = Categories if body["value_kind"] == "categorical" else NumericBins
        return cls(SubjectKey(*body["key"]), body["value_kind"], of.from_json(body["bins"]), body["length"])


@dataclass(frozen=True, slots=True)
class Coded:
    """Rows as the schema reads them: bin codes (n, F) uint16 and numbers (n, F), NaN where a cell is no number."""

    code: BinCodes
    number: Floats


@dataclass(frozen=True)
class Schema:
    """The subjects a version is judged by, in order."""

    subjects: tuple[Subject, ...]
    id: str = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps(self.to_json(), sort_keys=True)
        object.__setattr__(self, "id", hashlib.blake2b(text.encode(), digest_size=8).hexdigest())

    def __len__(self) -> int:
        return len(self.subjects)

    @cached_property
    def numeric(self) -> Flags:
        """(F,) whether a subject lies on a number line: numbers, and vectors by their norm."""
        return np.array([subject.is_numeric for subject in self.subjects], np.bool_)

    @cached_property
    def centre(self) -> Floats:
        """(F,) the baseline's mean, from which moments are measured; 0 for categories."""
        return np.array([s.bins.centre if isinstance(s.bins, NumericBins) else 0.0 for s in self.subjects])

    @cached_property
    def scale(self) -> Floats:
        """(F,) the baseline's standard deviation, or what stands for it in a constant: the unit of moments."""
        return np.array([s.bins.scale if isinstance(s.bins, NumericBins) else 1.0 for s in self.subjects])

    @classmethod
    def learn(
        cls,
        rows: Rows,
        *,
        most_categories: int,
        kinds: Mapping[str, str] | None = None,
        ignore: frozenset[str] = frozenset(),
    ) -> Schema:
        """From baseline rows. `kinds`: what the configuration says of features; `ignore`: features left out."""
        configured = kinds or {}
        subjects = []
        for column, key in enumerate(rows.subjects):
            of_feature = key.kind == "feature"
            if of_feature and key.name in ignore:
                continue
            kind = np.ascontiguousarray(rows.kind[:, column])
            value_kind = (configured.get(key.name) if of_feature else None) or _most_frequent_kind(kind)
            subjects.append(_learn_subject(key, value_kind, rows, column, most_categories, configured))
        return cls(tuple(subjects))

    def encode(self, rows: Rows) -> Coded:
        """Code every cell; a subject the rows do not have is missing in all of them."""
        n = len(rows)
        code = np.empty((n, len(self)), np.uint16, order="F")
        numbers = np.full((n, len(self)), np.nan, order="F")
        place = {key: column for column, key in enumerate(rows.subjects)}
        for f, subject in enumerate(self.subjects):
            column = place.get(subject.key, -1)
            if column < 0:
                code[:, f] = MAIN  # MISSING
                continue
            kind = np.ascontiguousarray(rows.kind[:, column])
            number = np.ascontiguousarray(rows.number[:, column])
            if isinstance(subject.bins, Categories):
                code[:, f] = subject.bins.encode(kind, number, rows.texts.get(column))
                continue
            kind, number = subject.values(kind, number, rows, column)
            code[:, f] = subject.bins.encode(kind, number, id_hi=rows.id_hi, id_lo=rows.id_lo, seed=subject.key.name)
            present = kind == Kind.NUMBER
            numbers[:, f] = number if present.all() else np.where(present, number, np.nan)
        return Coded(code, numbers)

    def unseen(self, rows: Rows, code: np.ndarray[Any, Any]) -> dict[int, pa.Array]:
        """Distinct texts of the cells that hold an unseen category, by subject."""
        place = {key: column for column, key in enumerate(rows.subjects)}
        found = {}
        for f, subject in enumerate(self.subjects):
            column = place.get(subject.key, -1)
            if column < 0 or not isinstance(subject.bins, Categories) or not (code[:, f] == UNSEEN).any():
                continue
            row, text = category_texts(
                rows.kind[:, column], rows.number[:, column], rows.texts.get(column), numbers=subject.bins.numbers
            )
            found[f] = text.filter(pa.array(code[row, f] == UNSEEN)).value_counts()
        return found

    def to_json(self) -> list[dict[str, Any]]:
        return [subject.to_json() for subject in self.subjects]

    @classmethod
    def from_json(cls, body: Sequence[Mapping[str, Any]]) -> Schema:
        return cls(tuple(Subject.from_json(s) for s in body))


def _most_frequent_kind(kind: Bytes) -> str:
    """Numeric, categorical or vector, as most rows have it."""
    counts = np.bincount(kind, minlength=8)
    numeric = counts[Kind.NUMBER] + counts[Kind.INFINITE]
    text = counts[Kind.STRING] + counts[Kind.BOOLEAN]
    if counts[Kind.LIST] > max(numeric, text):
        return "vector"
    return "categorical" if text > numeric else "numeric"


def _learn_subject(
    key: SubjectKey, value_kind: str, rows: Rows, column: int, most_categories: int, configured: Mapping[str, str]
) -> Subject:
    kind, number = np.ascontiguousarray(rows.kind[:, column]), np.ascontiguousarray(rows.number[:, column])
    texts = rows.texts.get(column)
    if value_kind == "categorical":
        numbers = key.kind == "feature" and configured.get(key.name) == "categorical"
        _, text = category_texts(kind, number, texts, numbers=numbers)
        return Subject(key, value_kind, Categories.learn(text, most=most_categories, numbers=numbers))
    length = None
    if value_kind == "vector":
        kind, number, length = norms(kind, texts, length=None)
    return Subject(key, value_kind, NumericBins.learn(number[kind == Kind.NUMBER]), length)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Exact sums of F subjects' values, as deviations from the baseline's mean in its standard deviations.

    A deviation counts as the nearest whole multiple of UNIT, at most LARGEST_DEVIATION; its square as the square of
    that. The sum of squares is `square_high` 2^31 + `square_low`, with 0 <= `square_low` < 2^31: both add without
    rounding up to 2^31 rows at the largest deviation.
    """

    n: Ints  # (F,)
    total: Ints  # in UNIT
    square_high: Ints  # in UNIT^2
    square_low: Ints
    minimum: Floats  # the values themselves; inf and -inf where n is 0
    maximum: Floats

    @classmethod
    def empty(cls, *shape: int) -> Moments:
        """No values: what `merge` leaves as it is."""
        n, total, high, low = (np.zeros(shape, np.int64) for _ in range(4))
        return cls(n, total, high, low, np.full(shape, np.inf), np.full(shape, -np.inf))

    def merge(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n,
            self.total + other.total,
            *_carried(self.square_high + other.square_high, self.square_low + other.square_low),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    def group(self, index: int) -> Moments:
        """One group of `moments_by_group`."""
        return Moments(
            self.n[index],
            self.total[index],
            self.square_high[index],
            self.square_low[index],
            self.minimum[index],
            self.maximum[index],
        )

    def parts(self) -> tuple[Ints, Ints, Ints, Ints, Floats, Floats]:
        return self.n, self.total, self.square_high, self.square_low, self.minimum, self.maximum


def moments_by_group(schema: Schema, values: Floats, starts: Ints) -> Moments:
    """Moments (G, F) of G groups of consecutive rows: group g is rows starts[g] up to starts[g + 1], none empty."""
    grouped = Moments.empty(len(starts), len(schema))
    if not len(starts):
        return grouped
    for column in np.flatnonzero(schema.numeric).tolist():
        value = values[:, column] + 0.0  # minus zero becomes zero: which of the two is the extreme would be chance
        here = ~np.isnan(value)
        whole = _whole_deviations(value, here, centre=schema.centre[column], scale=schema.scale[column])
        square = whole * whole
        grouped.n[:, column] = np.add.reduceat(here, starts, dtype=np.int64)
        grouped.total[:, column] = np.add.reduceat(whole, starts)
        high = np.add.reduceat(square >> _LOW_BITS, starts)
        low = np.add.reduceat(square & _LOW_MASK, starts)
        grouped.square_high[:, column], grouped.square_low[:, column] = _carried(high, low)
        grouped.minimum[:, column] = np.fmin.reduceat(value, starts)
        grouped.maximum[:, column] = np.fmax.reduceat(value, starts)
    none = grouped.n == 0
    grouped.minimum[none], grouped.maximum[none] = np.inf, -np.inf
    return grouped


_LOW_MASK = (1 << _LOW_BITS) - 1


def _whole_deviations(value: Floats, here: Flags, *, centre: float, scale: float) -> Ints:
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = (value - centre) * (1.0 / scale) if scale > 1e-300 else (value - centre) / scale
        np.clip(deviation, -LARGEST_DEVIATION, LARGEST_DEVIATION, out=deviation)
        deviation *= 1.0 / UNIT
        np.rint(deviation, out=deviation)
        deviation[~here] = 0.0
    return deviation.astype(np.int64)


def _carried(high: Ints, low: Ints) -> tuple[Ints, Ints]:
    return np.asarray(high + (low >> _LOW_BITS)), np.asarray(low & _LOW_MASK)


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Some rows of one model version, counted on a schema's bins."""

    schema: Schema
    rows: int
    counts: Ints  # (F, BINS)
    moments: Moments

    @property
    def schema_id(self) -> str:
        return self.schema.id

    @classmethod
    def empty(cls, schema: Schema) -> Profile:
        """No rows: what `merge` leaves as it is."""
        return cls(schema, 0, np.zeros((len(schema), BINS), np.int64), Moments.empty(len(schema)))

    @classmethod
    def fold(cls, schema: Schema, coded: Coded) -> Profile:
        """The profile of rows, in any order."""
        rows = len(coded.code)
        if rows == 0:
            return cls.empty(schema)
        moments = moments_by_group(schema, coded.number, np.zeros(1, np.int64)).group(0)
        return cls(schema, rows, counts_of(coded.code), moments)

    def merge(self, other: Profile) -> Profile:
        """The profile of both, as if folded together. Raises StateError for another schema."""
        self._check(other)
        counts, moments = self.counts + other.counts, self.moments.merge(other.moments)
        return Profile(self.schema, self.rows + other.rows, counts, moments)

    def counts_without(self, part: Profile) -> Ints:
        """Counts (F, BINS) of the rows that are not in `part`, a part of this one: how a trailing window moves on."""
        self._check(part)
        return np.asarray(self.counts - part.counts, np.int64)

    def _check(self, other: Profile) -> None:
        if self.schema_id != other.schema_id:
            raise StateError(f"profiles of schema {self.schema_id} and {other.schema_id} do not add")

    def to_bytes(self) -> bytes:
        """Compressed, and the same bytes for the same rows; the schema is not in it, only its id."""
        sparse = self.rows <= SPARSE_ROWS
        block = _codes_of(self.counts, self.rows) if sparse else self.counts
        return _pack(self.schema_id, self.rows, block, self.moments.parts(), zstandard.ZstdCompressor(level=1))

    @classmethod
    def from_bytes(cls, schema: Schema, body: bytes) -> Profile:
        """What `to_bytes` or `pane_bodies` wrote; raises StateError for another format or schema, or damage."""
        try:
            schema_id, rows, counts, moments = _unpack(body)
        except (struct.error, zstandard.ZstdError, ValueError, IndexError) as error:
            raise StateError(f"a stored profile is damaged: {error}") from error
        if schema_id != schema.id:
            raise StateError(f"a profile of schema {schema_id} does not fit schema {schema.id}")
        return cls(schema, rows, counts, moments)


def counts_of(code: BinCodes) -> Ints:
    """Counts (F, BINS) of codes (n, F)."""
    out = np.empty((code.shape[1], BINS), np.int64)
    for i in range(len(out)):
        out[i] = np.bincount(code[:, i], minlength=BINS)
    return out


def pane_bodies(schema: Schema, coded: Coded, starts: Ints) -> list[tuple[int, bytes]]:
    """(rows, `to_bytes` form) of the profile of each run of rows from `starts`, many small runs at once.

    No dense matrix for the small ones: 1,000 panes of 10 rows and 200 subjects take some 0.1 s.
    """
    sizes = np.diff(np.append(starts, len(coded.code)))
    parts = moments_by_group(schema, coded.number, starts).parts()
    small = sizes <= SPARSE_ROWS
    ordered = _sorted_within(coded.code[np.repeat(small, sizes)], sizes[small])
    compressor = zstandard.ZstdCompressor(level=1)
    bodies, taken = [], 0
    for group, (start, rows) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
        if small[group]:
            block: NDArray[Any] = ordered[:, taken : taken + rows]
            taken += rows
        else:
            block = counts_of(coded.code[start : start + rows])
        bodies.append((rows, _pack(schema.id, rows, block, tuple(part[group] for part in parts), compressor)))
    return bodies


# -- bytes -----------------------------------------------------------------------------------------

_HEADER = struct.Struct("<2sBBQII8s")
_MAGIC = b"SP"
_SPARSE = 0  # else the width in bytes of a count


def _sorted_within(codes: BinCodes, sizes: Ints) -> BinCodes:
    """Codes (F, n), ascending within each group of rows."""
    base = np.repeat(np.arange(len(sizes), dtype=np.int32) * BINS, sizes)
    keyed = np.ascontiguousarray(codes.T) + base
    keyed.sort(axis=1)
    return (keyed - base).astype(np.uint16)


def _codes_of(counts: Ints, rows: int) -> BinCodes:
    """The codes (F, n) that give these counts, ascending for each subject."""
    codes = np.tile(np.arange(BINS, dtype=np.uint16), len(counts))
    return np.repeat(codes, counts.ravel()).reshape(len(counts), rows)


def _pack(
    schema_id: str,
    rows: int,
    block: NDArray[Any],
    parts: tuple[NDArray[Any], ...],
    compressor: zstandard.ZstdCompressor,
) -> bytes:
    """Header, then one zstd frame: codes or counts in their smallest width, moments of the subjects that have any."""
    width = _width(rows)
    sparse = rows <= SPARSE_ROWS
    small = block if sparse else block.astype(f"<u{width}")
    n, (total, high, low, minimum, maximum) = parts[0], parts[1:]
    some = np.flatnonzero(n)
    numbers = np.stack([total, high, low, minimum.view(np.int64), maximum.view(np.int64)])[:, some]
    content = (_planes(small) if sparse else small.tobytes()) + n.astype(f"<u{width}").tobytes() + _planes(numbers)
    header = _HEADER.pack(
        _MAGIC, FORMAT, _SPARSE if sparse else width, rows, len(n), len(content), bytes.fromhex(schema_id)
    )
    return header + compressor.compress(content)


def _unpack(body: bytes) -> tuple[str, int, Ints, Moments]:
    magic, version, width, rows, subjects, size, schema_id = _HEADER.unpack_from(body)
    if magic != _MAGIC or version != FORMAT:
        raise StateError(f"a profile is of format {version}, this program reads {FORMAT}")
    content = zstandard.ZstdDecompressor().decompress(body[_HEADER.size :], max_output_size=size)
    sparse, width = width == _SPARSE, width or _width(rows)
    split = 2 * rows * subjects if sparse else width * subjects * BINS
    if sparse:
        codes = _from_planes(content[:split], np.dtype("<u2")).reshape(subjects, rows)
        counts = counts_of(codes.T)
    else:
        counts = np.frombuffer(content[:split], f"<u{width}").astype(np.int64).reshape(subjects, BINS)
    n = np.frombuffer(content[split : split + width * subjects], f"<u{width}").astype(np.int64)
    some = np.flatnonzero(n)
    numbers = _from_planes(content[split + width * subjects :], np.dtype("<i8")).reshape(5, len(some))
    moments = Moments.empty(subjects)
    for part, stored in zip(moments.parts()[1:], numbers, strict=True):
        part[some] = stored.view(part.dtype)
    moments.n[some] = n[some]
    return schema_id.hex(), rows, counts, moments


def _width(rows: int) -> int:
    return next(width for width in (1, 2, 4, 8) if rows < 1 << 8 * width)


def _planes(numbers: NDArray[Any]) -> bytes:
    """The first byte of every number, then the second, ...: equal bytes lie together and compress."""
    flat = np.ascontiguousarray(numbers).reshape(-1, 1)
    return flat.view(np.uint8).T.tobytes()


def _from_planes(content: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    planes = np.frombuffer(content, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(planes.T).reshape(-1).view(dtype)


# -- reading -------------------------------------------------------------------------------------


def means(profile: Profile) -> Floats:
    """Mean of the numbers of each subject, NaN without any; off by at most UNIT / 2 baseline standard deviations."""
    moments, schema = profile.moments, profile.schema
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        value = schema.centre + schema.scale * (moments.total / moments.n * UNIT)
        return np.where(moments.n > 0, np.clip(value, moments.minimum, moments.maximum), np.nan)


def deviations(profile: Profile) -> Floats:
    """Standard deviation of the numbers of each subject (the population's formula), NaN without any."""
    moments = profile.moments
    spread = np.full(len(moments.n), np.nan)
    for subject in np.flatnonzero(moments.n).tolist():
        n, total = int(moments.n[subject]), int(moments.total[subject])
        squares = (int(moments.square_high[subject]) << _LOW_BITS) + int(moments.square_low[subject])
        spread[subject] = ((n * squares - total * total) / (n * n)) ** 0.5
    with np.errstate(over="ignore"):
        return spread * UNIT * profile.schema.scale


def representatives(schema: Schema, coded: Coded) -> Floats:
    """Mean of the numbers in each main bin (F, MAIN), NaN in empty bins and for categories; rows in any order."""
    out = np.full((len(schema), MAIN), np.nan)
    for f in np.flatnonzero(schema.numeric).tolist():
        code = coded.code[:, f]
        held = np.flatnonzero(code < MAIN)
        if not len(held):
            continue
        # Codes rise with the numbers, and equal numbers may swap: so each sorted by itself, they still belong together.
        code, number = np.sort(code[held]), np.sort(coded.number[held, f] + 0.0)
        used, start = np.unique(code, return_index=True)
        stop = np.append(start[1:], len(code))
        with np.errstate(over="ignore"):
            mean = np.add.reduceat(number, start) / (stop - start)
        out[f, used] = np.clip(mean, number[start], number[stop - 1])
    return out
