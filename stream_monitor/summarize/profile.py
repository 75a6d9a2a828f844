"""The mergeable profile: counts on the baseline's bins and moments, for all subjects of a model version at once.

A window, a pane and a baseline are the same thing. `Profile.fold` folds rows, `merge` adds, the functions below
read. Laws: merge is associative and commutative on counts exactly (on float sums up to rounding), an empty profile
is its identity, neither argument changes, and profiles of different schemas refuse to merge.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import zstandard

from stream_monitor.errors import StateError
from stream_monitor.records import Bytes, Floats, Ints, Kind
from stream_monitor.summarize.categorical import Categories, category_texts
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.protocol import BINS, MAIN, UNSEEN
from stream_monitor.summarize.rows import Rows, SubjectKey
from stream_monitor.summarize.vector import norms

FORMAT = 1
_HEADER = struct.Struct("<BqII")  # format, rows, subjects, occupied bins
_ROWS_A_TABLE = 8_000_000
"""Cells of a (groups, F, BINS) table that are counted densely; beyond, panes are counted sparsely."""


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

    code: np.ndarray[Any, np.dtype[np.uint16]]
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


@dataclass(frozen=True, slots=True)
class Profile:
    """Counts (F, BINS) and, of the numbers, count, sum, sum of squares, least and greatest (F,) each."""

    schema_id: str
    rows: int
    counts: Ints
    present: Ints
    total: Floats
    square: Floats
    low: Floats
    high: Floats

    @classmethod
    def empty(cls, schema: Schema) -> Profile:
        f = len(schema)
        zeros = np.zeros(f)
        return cls(schema.id, 0, np.zeros((f, BINS), np.int64), np.zeros(f, np.int64), zeros, zeros,
                   np.full(f, np.inf), np.full(f, -np.inf))  # fmt: skip

    @classmethod
    def fold(cls, schema: Schema, coded: Coded) -> Profile:
        """The profile of rows, whose order is the order in which sums are added."""
        n, f = coded.code.shape
        if n == 0:
            return cls.empty(schema)
        sums = moments(coded.number, np.zeros(1, np.int64))
        return cls(schema.id, n, counts_of(coded.code), *(s[0] for s in sums))

    def merge(self, other: Profile) -> Profile:
        """The profile of both, as if folded together. Raises StateError for another schema."""
        if self.schema_id != other.schema_id:
            raise StateError(f"profiles of schema {self.schema_id} and {other.schema_id} do not add")
        return Profile(
            self.schema_id,
            self.rows + other.rows,
            self.counts + other.counts,
            self.present + other.present,
            self.total + other.total,
            self.square + other.square,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def to_bytes(self) -> bytes:
        """Compressed; the schema is not in it."""
        occupied = np.flatnonzero(self.counts)
        return _pack(self.rows, len(self.counts), occupied, self.counts.reshape(-1)[occupied],
                     (self.present, self.total, self.square, self.low, self.high))  # fmt: skip

    @classmethod
    def from_bytes(cls, schema: Schema, body: bytes) -> Profile:
        """What `to_bytes` or `pane_bodies` wrote; raises StateError for another format or schema."""
        raw = zstandard.decompress(body)
        version, rows, f, occupied = _HEADER.unpack_from(raw)
        if version != FORMAT or f != len(schema):
            raise StateError(f"a profile of format {version} and {f} subjects does not fit schema {schema.id}")
        at = _HEADER.size
        where = np.cumsum(np.frombuffer(raw, "<u4", occupied, at).astype(np.int64))
        at += 4 * occupied
        counts = np.zeros(f * BINS, np.int64)
        counts[where] = np.frombuffer(raw, "<u4", occupied, at)
        at += 4 * occupied
        present = np.frombuffer(raw, "<i8", f, at).copy()
        floats = np.frombuffer(raw, "<f8", 4 * f, at + 8 * f).reshape(4, f).copy()
        return cls(schema.id, rows, counts.reshape(f, BINS), present, *floats)


def _pack(rows: int, subjects: int, occupied: Ints, counts: Ints, sums: Sequence[np.ndarray[Any, Any]]) -> bytes:
    parts = [
        _HEADER.pack(FORMAT, rows, subjects, len(occupied)),
        np.diff(occupied, prepend=0).astype("<u4").tobytes(),
        counts.astype("<u4").tobytes(),
        sums[0].astype("<i8").tobytes(),
        *(s.astype("<f8").tobytes() for s in sums[1:]),
    ]
    return zstandard.ZstdCompressor(level=1).compress(b"".join(parts))


def counts_of(code: np.ndarray[Any, Any]) -> Ints:
    """Counts (F, BINS) of codes (n, F)."""
    n, f = code.shape
    out = np.empty((f, BINS), np.int64)
    for i in range(f):
        out[i] = np.bincount(code[:, i], minlength=BINS)
    return out


def moments(number: Floats, starts: Ints) -> tuple[Ints, Floats, Floats, Floats, Floats]:
    """Count, sum, sum of squares, least and greatest (G, F) of the numbers in each run of rows from `starts`."""
    absent = np.isnan(number)
    filled = np.where(absent, 0.0, number)
    return (
        np.add.reduceat((~absent).astype(np.int64), starts, axis=0),
        np.add.reduceat(filled, starts, axis=0),
        np.add.reduceat(filled * filled, starts, axis=0),
        np.minimum.reduceat(np.where(absent, np.inf, number), starts, axis=0),
        np.maximum.reduceat(np.where(absent, -np.inf, number), starts, axis=0),
    )


def pane_bodies(schema: Schema, coded: Coded, starts: Ints) -> list[tuple[int, bytes]]:
    """(rows, `to_bytes` form) of the profile of each run of rows from `starts`, many small runs at once."""
    n, f = coded.code.shape
    if not len(starts):
        return []
    sizes = np.diff(np.append(starts, n))
    group = np.repeat(np.arange(len(starts)), sizes)
    flat = (group[:, None] * f + np.arange(f)) * BINS + coded.code
    if len(starts) * f * BINS <= _ROWS_A_TABLE:
        table = np.bincount(flat.reshape(-1), minlength=len(starts) * f * BINS)
        occupied = np.flatnonzero(table)
        counts = table[occupied]
    else:
        occupied, counts = np.unique(flat.reshape(-1), return_counts=True)
    bounds = np.searchsorted(occupied, np.arange(len(starts) + 1) * (f * BINS))
    sums = moments(coded.number, starts)
    bodies = []
    for g in range(len(starts)):
        own = slice(bounds[g], bounds[g + 1])
        body = _pack(int(sizes[g]), f, occupied[own] - g * f * BINS, counts[own], [s[g] for s in sums])
        bodies.append((int(sizes[g]), body))
    return bodies


# -- reading -------------------------------------------------------------------------------------


def means(profile: Profile) -> Floats:
    """Mean of the numbers of each subject, NaN without any."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(profile.total / profile.present, np.float64)


def deviations(profile: Profile) -> Floats:
    """Standard deviation of the numbers of each subject (population), NaN without any."""
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = profile.square / profile.present - (profile.total / profile.present) ** 2
    return np.sqrt(np.maximum(variance, 0.0))


def representatives(schema: Schema, coded: Coded) -> Floats:
    """Mean of the numbers in each main bin (F, MAIN), NaN in empty bins and for categories."""
    out = np.full((len(schema), MAIN), np.nan)
    for f, subject in enumerate(schema.subjects):
        if not subject.is_numeric:
            continue
        number, code = coded.number[:, f], coded.code[:, f]
        held = code < MAIN
        count = np.bincount(code[held], minlength=MAIN)
        total = np.bincount(code[held], weights=number[held], minlength=MAIN)
        out[f] = np.divide(total, count, out=np.full(MAIN, np.nan), where=count > 0)
    return out
