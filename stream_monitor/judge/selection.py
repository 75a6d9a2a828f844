"""Whether labels that have come are like those that will: what they say, compared by the age they come at.

Truths of one class often come long before those of the other, and complaints before silence. Such labels are a biased
sample for as long as the rest is missing; a watch over errors would take them for a change.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.outcome import (
    VALUE_BINS_PER_OCTAVE,
    Joined,
    OutcomeProfile,
    Task,
    binned,
    errors,
    value_bin,
)

CLASSES = 4
KINDS = 2 * CLASSES
"""Class of the truth (of many classes: one of four bins of them), and whether the answer was wrong; of numbers: to which
side the error lies, and whether it is large; of numbers of their own: the quarter they lie in."""

NEAR = 0.05
NEAR_EACH_OTHER = 0.2
"""Cohen's h up to which shares are alike; and where they were so far, between ages: errors that grow show at young ages
first and must not pass for labels that depend on their age."""

SURE = 3.2
"""Standard errors beyond that: six shares are compared again and again, and one in a hundred at 200 labels is unlike by
chance; it is asked again with the next labels."""

FEWEST = 100
FEWEST_OF_A_SHARE = 8
RAREST = 0.002
"""Labels before they are compared: with 100 a twentieth that is missing shows, of rarer kinds eight must be due, and those
rarer than two in a thousand are not waited for."""

BEYOND = 0.15
BEYOND_CHANCE = 4.0
"""Cohen's h and standard errors: so much more of a kind than there should be of all predictions is no matter of order; a
class that is all there by now may be more frequent than in the baseline by a little."""

COMPLETE = 0.99
"""Coverage from which on what is missing explains nothing."""


@dataclass(frozen=True, slots=True)
class Kinds:
    """How truths of one outcome fall into kinds, and the baseline's shares of these, (KINDS,), where it has truths."""

    task: Task
    positive_label: str | None
    middles: tuple[int, int] = (0, 0)  # numbers: bins of the median |error| and error
    quarters: tuple[int, ...] = ()  # numbers of their own: the bins between them; none: by how often they have doubled
    usual: Floats | None = None
    rows: int = 0

    @classmethod
    def of(cls, task: Task, positive_label: str | None, reference: OutcomeProfile | None) -> Kinds:
        """By the reference, if there is one."""
        if reference is None or not reference.rows or not reference.is_whole:
            return cls(task, positive_label)
        if task is Task.REGRESSION:
            return _of_numbers(positive_label, reference)
        if task is Task.VALUE:
            return _of_values(reference)
        counts = np.zeros((CLASSES, 2))
        for (truth, predicted), n in reference.pairs.items():
            place = int(truth == "1") if task is Task.BINARY else _bin_of(truth)
            counts[place, int(truth != predicted)] += n
        return cls(task, positive_label, usual=counts.reshape(-1) / counts.sum(), rows=reference.rows)

    def encode(self, joined: Joined) -> Ints:
        """The kind of each row, (n,)."""
        error = errors(joined, self.task, positive_label=self.positive_label)
        if self.task is Task.VALUE:
            key = value_bin(np.nan_to_num(error))
            quarter = np.searchsorted(self.quarters, key) if self.quarters else key // VALUE_BINS_PER_OCTAVE % CLASSES
            return np.asarray(2 * quarter, np.int64)
        if self.task is Task.REGRESSION:
            readable = np.isfinite(error)
            value = np.where(readable, joined.value, 0.0) - np.where(readable, joined.truth_number, 0.0)
            key = value_bin(value)
            return np.asarray(2 * (key > self.middles[1]) + (np.abs(key) > self.middles[0]), np.int64)
        if self.task is Task.BINARY:
            positive = pa.scalar(self.positive_label, pa.string())
            place = np.asarray(pc.fill_null(pc.equal(joined.truth_label, positive), pa.scalar(False)), np.int64)
        else:
            coded = joined.truth_label.dictionary_encode()
            bins = np.array([_bin_of(str(label)) for label in coded.dictionary.to_pylist()] + [0], np.int64)
            place = bins[np.asarray(pc.fill_null(coded.indices, len(bins) - 1), np.int64)]
        return np.asarray(2 * place + (error == 1), np.int64)

    def fewest(self) -> int:
        """Labels before they are compared with the baseline."""
        share = np.ones(1) if self.usual is None else margins(self.usual)
        return max(FEWEST, int(FEWEST_OF_A_SHARE / share[share >= RAREST].min()))


def _of_numbers(positive_label: str | None, reference: OutcomeProfile) -> Kinds:
    keys, counts = reference.errors.arrays()
    sizes, place = np.unique(np.abs(keys), return_inverse=True)
    size = _middle(sizes, np.bincount(place, counts))
    side = _middle(keys, counts)
    kind = 2 * (keys > side) + (np.abs(keys) > size)
    shares = np.bincount(kind, counts.astype(np.float64), KINDS) / counts.sum()
    return Kinds(Task.REGRESSION, positive_label, (size, side), usual=shares, rows=reference.rows)


def _of_values(reference: OutcomeProfile) -> Kinds:
    keys, counts = binned(reference.targets).arrays()
    shares = np.arange(1, CLASSES) / CLASSES
    quarters = keys[np.searchsorted(np.cumsum(counts), shares * counts.sum())]
    usual = np.bincount(2 * np.searchsorted(quarters, keys), counts.astype(np.float64), KINDS) / counts.sum()
    return Kinds(Task.VALUE, None, quarters=tuple(quarters.tolist()), usual=usual, rows=reference.rows)


def _middle(keys: Ints, counts: Ints | Floats) -> int:
    return int(keys[np.searchsorted(np.cumsum(counts), counts.sum() / 2)])


def _bin_of(label: str) -> int:
    """Of many classes: the same bin in every process."""
    return zlib.crc32(label.encode()) % CLASSES


def margins(kinds: Ints | Floats) -> Floats:
    """What is compared, (CLASSES + 2,): how many of each class, how many right (or small) and how many wrong."""
    table = np.asarray(kinds, np.float64).reshape(CLASSES, 2)
    return np.concatenate([table.sum(axis=1), table.sum(axis=0)])


def stands_apart(kinds: Ints, usual: Ints | Floats, *, rows: float, near: float = NEAR) -> bool:
    """Whether labels of these kinds (KINDS,) are no sample like `usual`, which is known from so many rows.

    >>> stands_apart(np.array([900, 100, 0, 0, 0, 0, 0, 0]), np.array([.9, .1, 0, 0, 0, 0, 0, 0]), rows=1e4)
    False
    >>> stands_apart(np.array([300, 700, 0, 0, 0, 0, 0, 0]), np.array([.9, .1, 0, 0, 0, 0, 0, 0]), rows=1e4)
    True
    """
    n = float(kinds.sum())
    now, before = (np.arcsin(np.sqrt(margins(part) / part.sum())) for part in (kinds, usual))
    return bool((2 * np.abs(now - before)).max() > near + SURE * np.sqrt(1 / n + 1 / rows))


def can_be_made_good(kinds: Ints, usual: Ints | Floats, *, made: int, rows: float) -> bool:
    """Whether labels that so many predictions still miss could make all of them like `usual`.

    Where more are wrong already than should be of all predictions, no label that is missing explains it.

    >>> usual, wrong = np.array([.9, .1, 0, 0, 0, 0, 0, 0]), np.array([100, 400, 0, 0, 0, 0, 0, 0])
    >>> [can_be_made_good(wrong, usual, made=made, rows=1e4) for made in (500, 1000, 5000)]
    [False, False, True]
    """
    if kinds.sum() >= COMPLETE * made:
        return False
    share = np.sin(np.minimum(np.arcsin(np.sqrt(margins(usual))) + BEYOND / 2, np.pi / 2)) ** 2
    spread = np.sqrt(made * share * (1 - share) * (1 + made / rows))
    return bool((margins(kinds) <= made * share + BEYOND_CHANCE * spread).all())
