"""What predictions say of themselves: for each class, how many rows gave it which probability, by whether it was marked.

Of a window's predictions the mark is "was predicted", of a baseline's labelled rows "came true". Counts of integers:
windows merge, and no order, batch or restart changes them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from operator import itemgetter

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import zstandard
from numpy.typing import NDArray

from stream_monitor.errors import StateError
from stream_monitor.records import Flags, Floats, Ints
from stream_monitor.summarize.histogram import Histogram
from stream_monitor.summarize.leaves import Leaves

FORMAT = 1
POSITIVE = "1"
"""The one class of a binary model: its positive label, as in the pairs of an outcome."""

MOST_CLASSES = 20
"""Each class is counted for every prediction; the figures of single classes end at as many."""

PER_OCTAVE_BITS = 5
_PER_OCTAVE = 1 << PER_OCTAVE_BITS
_SHIFT = 52 - PER_OCTAVE_BITS
_OCTAVES = 40
_FLOOR = 2.0**-_OCTAVES
_HALF = int(np.array([0.5]).view(np.int64)[0] >> _SHIFT)
OUTERMOST = _OCTAVES * _PER_OCTAVE + 1
_WIDTH = 4 * OUTERMOST + 4
PARSED_ROWS = 512
"""Objects parsed at once: of ten classes and more the objects of 16,384 rows leave the processor's cache and cost twice as
much."""

ABSENT = -(2**15)
"""The code of a row without a probability."""

Marks = NDArray[np.int16]


def probability_bin(probability: Floats) -> Ints:
    """The bin of probabilities in [0, 1], (n,): -1281 to -2 below a half, from there on 1 to 1280, ascending.

    32 bins for every halving of the distance to the nearer end, down to 2^-40: numbered as `outcome.score_bin` has its
    finer ones. The middle of a bin is within 1.6 % of every distance in it.
    """
    lower = probability < 0.5
    distance = np.maximum(np.where(lower, probability, 1 - probability), _FLOOR)
    step = (np.ascontiguousarray(distance).view(np.int64) >> _SHIFT) - (_HALF + 1)
    return np.asarray(np.where(lower, step, -step), dtype=np.int64)


def middle_of_bin(key: Ints, *, per_octave: int = _PER_OCTAVE) -> Floats:
    """The probability in the middle of each bin, (n,); `per_octave` 512: of `outcome.score_bin`."""
    shift = 52 - (per_octave.bit_length() - 1)
    half = np.array([0.5]).view(np.int64)[0] >> shift
    inner = half + 1 - np.abs(key)
    low, high = (inner << shift).view(np.float64), ((inner + 1) << shift).view(np.float64)
    distance = np.minimum((low + high) / 2, 0.5)
    return np.asarray(np.where(key < 0, distance, 1 - distance), dtype=np.float64)


def place_of_bin(key: Ints) -> Ints:
    """Bins without the gap at a half: those side by side differ by one."""
    return np.asarray(key - 2 * (key > 0), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ClassProbabilities:
    """What n rows gave each of K classes: codes (K, n), bin * 2 + mark, ABSENT where a row says nothing."""

    classes: tuple[str, ...]
    code: Marks

    def take(self, row: Ints) -> ClassProbabilities:
        """Some of the rows."""
        return ClassProbabilities(self.classes, self.code[:, row])


def of_scores(score: Floats, marked: Flags) -> ClassProbabilities:
    """Of a binary model; a score outside [0, 1] says nothing."""
    usable = (score >= 0) & (score <= 1)
    code = np.where(usable, probability_bin(np.where(usable, score, 0.5)) * 2 + marked, ABSENT)
    return ClassProbabilities((POSITIVE,), code.astype(np.int16)[None, :])


def of_leaves(leaves: Leaves, leaf: Ints) -> ClassProbabilities:
    """Of a regression: the leaf of each row, by the leaves' id; one that is negative says nothing. None is marked."""
    return ClassProbabilities((leaves.id,), np.where(leaf >= 0, leaf * 2, ABSENT).astype(np.int16)[None, :])


def of_texts(texts: pa.Array, marked: pa.Array, classes: Sequence[str]) -> ClassProbabilities:
    """Of a model of several classes; `texts`: probabilities as JSON objects, `marked`: the label each row marks.

    A class that is not in a row's object has probability 0 there. A row without an object or a label, or with a
    probability that is none, says nothing.
    """
    given = np.asarray(pc.and_(pc.is_valid(texts), pc.is_valid(marked)))
    code = np.full((len(classes), len(texts)), ABSENT, np.int16)
    rows = np.flatnonzero(given)
    if not len(rows) or not classes:
        return ClassProbabilities(tuple(classes), code)
    told = texts.filter(pa.array(given)).to_pylist()
    parts = [_table(_objects(told[at : at + PARSED_ROWS]), tuple(classes)) for at in range(0, len(told), PARSED_ROWS)]
    table = np.concatenate(parts)
    usable = ((table >= 0) & (table <= 1)).all(axis=1)
    at = rows[usable]
    label = marked.take(pa.array(at))
    for k, name in enumerate(classes):
        is_marked = np.asarray(pc.equal(label, pa.array([name], pa.string())[0]))
        code[k, at] = probability_bin(table[usable, k]) * 2 + is_marked
    return ClassProbabilities(tuple(classes), code)


def _objects(texts: list[str]) -> list[dict[str, object]]:
    try:
        found: list[dict[str, object]] = orjson.loads("[" + ",".join(texts) + "]")
    except orjson.JSONDecodeError:  # NaN and Infinity are read, as everywhere
        found = [json.loads(text) for text in texts]
    return found


def _table(told: list[dict[str, object]], classes: tuple[str, ...]) -> Floats:
    """Probabilities (n, K), NaN where one is no number. Mostly all rows name all classes, with numbers."""
    if len(classes) > 1:
        try:
            flat = np.array(list(chain.from_iterable(map(itemgetter(*classes), told))))
        except KeyError:
            flat = np.array("a class is not named")
        if flat.dtype.kind in "fiub":
            return flat.reshape(len(told), len(classes)).astype(np.float64)
    return np.array([[_number(row.get(name, 0.0)) for name in classes] for row in told], np.float64)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(slots=True)
class ScoreProfile:
    """Counts by class and bin * 2 + mark.

    Laws: `add` in any order and batching gives equal profiles; `merge` changes neither; an empty one is its identity.
    """

    classes: dict[str, Histogram] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows that said something."""
        return next(iter(self.classes.values())).total if self.classes else 0

    def add(self, part: ClassProbabilities) -> None:
        """Fold rows in."""
        add_by_place([self], part, None)

    def merge(self, other: ScoreProfile) -> ScoreProfile:
        """The counts of both."""
        none = Histogram()
        names = dict.fromkeys((*self.classes, *other.classes))
        return ScoreProfile({n: self.classes.get(n, none).merge(other.classes.get(n, none)) for n in names})

    def to_bytes(self) -> bytes:
        """Compact; equal profiles give equal bytes."""
        bodies = {name: self.classes[name].to_bytes() for name in sorted(self.classes)}
        head = json.dumps({name: len(body) for name, body in bodies.items()}).encode()
        raw = struct.pack("<I", len(head)) + head + b"".join(bodies.values())
        return struct.pack("<B", FORMAT) + zstandard.ZstdCompressor(level=1, write_checksum=True).compress(raw)

    @classmethod
    def from_bytes(cls, state: bytes) -> ScoreProfile:
        """What `to_bytes` wrote; raises StateError for anything else."""
        if state[:1] != struct.pack("<B", FORMAT):
            raise StateError(f"a profile of scores of a format other than {FORMAT}")
        try:
            raw = zstandard.ZstdDecompressor().decompress(state[1:])
            at = 4 + struct.unpack("<I", raw[:4])[0]
            sizes: Mapping[str, int] = json.loads(raw[4:at])
            ends = np.cumsum([at, *sizes.values()]).tolist()
            return cls({n: Histogram.from_bytes(raw[a:b]) for n, (a, b) in zip(sizes, pairwise(ends), strict=True)})
        except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"a profile of scores cannot be read: {error}") from error


def add_by_place(profiles: Sequence[ScoreProfile], part: ClassProbabilities, place: Ints | None) -> None:
    """Fold each row into the profile its `place` (n,) says; None: all into the one there is."""
    for name, code in zip(part.classes, part.code, strict=True):
        held = code != ABSENT
        shifted = code[held].astype(np.int64) + _WIDTH // 2
        where = shifted if place is None else place[held] * _WIDTH + shifted
        # Counted in full: a sort of the codes would cost ten times as much.
        counts = np.bincount(where, minlength=len(profiles) * _WIDTH).reshape(len(profiles), _WIDTH)
        for profile, count in zip(profiles, counts, strict=True):
            keys = np.flatnonzero(count)
            profile.classes.setdefault(name, Histogram()).add(keys - _WIDTH // 2, count[keys])
