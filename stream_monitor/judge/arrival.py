"""How labels usually come: the share of predictions that have one by an age, and whether fewer have one now.

A cell is the predictions of a short stretch of time. It counts at an age once its youngest prediction has reached it,
so cells too young to know count neither for nor against (the censoring that bends a plain histogram of delays).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import special

from stream_monitor.judge.selection import KINDS, stands_apart
from stream_monitor.records import Floats, Ints

AGES = tuple(2**k for k in range(28))
"""Seconds, to four years. A factor of two: what a person would call "an hour or two" is one step."""

LEAST_CELLS = 8
"""Cells before an age's usual coverage is judged by: the spread between fewer is a guess, even held at its upper end."""

FEW_CELLS = 2
"""Cells before the usual coverage is shown and waited for: one may be a moment's luck."""

LEAST_LABELS = 20
"""Labels before the same: a share of fewer may be half or double."""

MOST_CELLS = 4_096
"""At so many cells all counts are halved: the last six weeks of quarter hours weigh most, and a year ago fades."""

FRACTION = 2**16
"""Squares over counts are kept in these parts, as integers: sums of them are the same in any order."""

THROUGH = 0.95
"""Of all labels that ever come: then a cohort is ripe. What comes after may move a rate by a twentieth of a class."""

FURTHER = ((0.1, 2), (0.5, 8), (1.0, 64))
"""(share without a label, times the age): how long nothing more must have come before labels count as through.

Where all but a tenth are labelled a second wave could not change much; where most are not, it could change everything,
and truths of one class often come much sooner than those of the other.
"""

FALL = 0.5
"""The fall of the coverage that is looked for fastest; a lasting loss of a quarter of the labels is found too."""

CALM_CELLS = 2
CALM_LABELS = 5
"""An outage is over after two cells in a row with at least halfway back to the usual share, of five labels or more."""

PEAK_FACTOR = 1.5
"""What has happened twice is usual: half as much again as the second largest excursion that healed by itself."""


@dataclass(slots=True)
class Curve:
    """Cells, their predictions, those labelled and the sum of labelled² / predictions, at each age: (AGES, 4) integers;
    and of which kinds the labels were, (AGES, AGES, KINDS): in the cells at AGES[k], those that had come by each age up to
    it. While the world changes, labels of two ages can be compared in the same cells alone.

    Laws: the same cells in any order give the same curve; `merge(a, empty) == a`, `merge` changes neither.

    >>> curve = Curve()
    >>> for labelled in (8, 9, 10, 9): curve.add(3, made=10, labelled=labelled)
    >>> curve.usual(3)
    0.9
    """

    counts: Ints = field(default_factory=lambda: np.zeros((len(AGES), 4), np.int64))
    kinds: Ints = field(default_factory=lambda: np.zeros((len(AGES), len(AGES), KINDS), np.int64))

    def add(self, k: int, *, made: int, labelled: int, kinds: Ints | None = None) -> None:
        """Take a cell at AGES[k]; `kinds` (k + 1, KINDS): its labels by the step they came at."""
        self.counts[k] += (1, made, labelled, labelled * labelled * FRACTION // made)
        if kinds is not None:
            self.kinds[k, : k + 1] += np.cumsum(kinds, axis=0)
        if self.counts[k, 0] >= MOST_CELLS:
            self.counts[k] //= 2
            self.kinds[k] //= 2

    def is_early(self, k: int, *, fewest: int, near: float) -> bool:
        """Whether labels that have come by AGES[k] are of other kinds than those that come later, in the same cells.

        From the age to the furthest its cells have been seen at, from there to the furthest of the cells of the next width.
        """
        while True:
            later = [j for j in range(k + 1, len(AGES)) if self.kinds[j, k].sum() >= fewest]
            if not later:
                return False
            j = later[-1]
            if stands_apart(self.kinds[j, k], self.kinds[j, j], rows=float(self.kinds[j, j].sum()), near=near):
                return True
            k = j

    def nonzero_kinds(self) -> Iterator[tuple[int, int]]:
        """(place, count) of what is not 0 among the kinds."""
        places = np.flatnonzero(self.kinds)
        return zip(places.tolist(), self.kinds.flat[places].tolist(), strict=True)

    def merge(self, other: Curve) -> Curve:
        """The curve of both's cells."""
        return Curve(self.counts + other.counts, self.kinds + other.kinds)

    def knows(self, k: int, *, cells: int = LEAST_CELLS) -> bool:
        """Whether the usual coverage at AGES[k] stands on enough."""
        return bool(self.counts[k, 0] >= cells and self.counts[k, 2] >= LEAST_LABELS)

    def usual(self, k: int) -> float:
        """Share of predictions with a label by AGES[k]; NaN where nothing is known."""
        _, made, labelled, _ = self.counts[k].tolist()
        return float(labelled / made) if made else math.nan

    def coverage_at(self, seconds: float) -> float:
        """The same at any age, straight between the known ages; 0 at none, NaN beyond and where nothing is known."""
        known = [k for k in range(len(AGES)) if self.knows(k, cells=FEW_CELLS)]
        if not known:
            return math.nan
        ages, shares = [0.0, *(AGES[k] for k in known)], [0.0, *(self.usual(k) for k in known)]
        if seconds >= ages[-1]:
            return shares[-1] if self.through() is not None else math.nan
        return float(np.interp(seconds, ages, np.maximum.accumulate(shares)))

    def dispersion(self, k: int) -> float:
        """How many times the binomial variance cells vary by, at least 1: the upper end of what so few can tell.

        Pearson's chi-square over its degrees of freedom, taken as if it had come out at its lower tenth.
        """
        cells, made, labelled, squares = self.counts[k].tolist()
        share = labelled / made if made else 0.0
        if cells < 2 or not 0 < share < 1:
            return 1.0
        chi_square = (squares / FRACTION - labelled * labelled / made) / (share * (1 - share))
        return float(max(1.0, chi_square / special.chdtri(cells - 1, 0.9)))

    def through(self, *, horizon_seconds: float = math.inf) -> int | None:
        """The step of the age by which THROUGH of all labels have come; None while that cannot be told (FURTHER).

        An age near the horizon is far enough: predictions that old are forgotten.
        """
        known = [k for k in range(len(AGES)) if self.knows(k, cells=FEW_CELLS)]
        if not known:
            return None
        last, most = known[-1], max(self.usual(k) for k in known)
        first = next(k for k in known if self.usual(k) >= THROUGH * most)
        factor = next(f for share, f in FURTHER if 1 - most <= share)
        is_far = AGES[last] >= factor * AGES[first] or 2 * AGES[last] > horizon_seconds
        return first if is_far else None


@dataclass(slots=True)
class Excursion:
    """How far the coverage at one age has fallen: the likelihood of FALL against the usual, since it was last likelier.

    Page's CUSUM: with no change it passes h after e^h cells or more on average (Lorden 1971), whatever their sizes.
    """

    total: float = 0.0
    since_us: int = 0  # start of the first cell of it
    made: int = 0
    labelled: int = 0
    is_alarmed: bool = False
    calm: int = 0
    calm_from_us: int = 0  # start of the first of its calm cells
    waiting: tuple[int, int] = (0, 0)  # predictions and labels of cells too small to be called calm
    peak: float = 0.0
    peaks: tuple[float, float] = (0.0, 0.0)  # the two largest that healed, the larger first

    def add(self, start_us: int, *, made: int, labelled: int, usual: float, dispersion: float) -> None:
        """Take a cell."""
        if self.total == 0:
            self.since_us, self.made, self.labelled = start_us, 0, 0
        self.made += made
        self.labelled += labelled
        self.total = max(0.0, self.total + fall_likelihood(made, labelled, usual) / dispersion)
        self.peak = max(self.peak, self.total)
        if self.is_alarmed:
            self._note_calm(start_us, made, labelled, usual)

    def passes(self, limit: float) -> bool:
        """Whether it has gone beyond chance and beyond what has healed twice."""
        return self.total > max(limit, PEAK_FACTOR * self.peaks[1])

    def over(self) -> Excursion:
        """What follows it: one that was an outage is remembered by how far it went."""
        largest = sorted((*self.peaks, self.peak), reverse=True)
        return Excursion(peaks=(largest[0], largest[1]) if self.is_alarmed else self.peaks)

    def _note_calm(self, start_us: int, made: int, labelled: int, usual: float) -> None:
        made, labelled = made + self.waiting[0], labelled + self.waiting[1]
        if usual * made < CALM_LABELS:
            self.waiting = (made, labelled)
            return
        self.waiting = (0, 0)
        if labelled < usual * made * (1 + FALL) / 2:
            self.calm = 0
            return
        self.calm_from_us = self.calm_from_us if self.calm else start_us
        self.calm += 1

    def to_json(self) -> list[Any]:
        return list(asdict(self).values())

    @classmethod
    def from_json(cls, body: Sequence[Any]) -> Excursion:
        values: list[Any] = [tuple(value) if isinstance(value, list) else value for value in body]
        return cls(*values)


def fall_likelihood(made: int, labelled: int, usual: float) -> float:
    """Logarithm of how much likelier so few labels are at FALL times the usual share than at the usual one."""
    return labelled * math.log(FALL) + (made - labelled) * math.log((1 - FALL * usual) / (1 - usual))


def usual_for_test(curve: Curve, k: int) -> float:
    """The usual share, half a label off 0 and 1: one that always came may still fail to."""
    _, made, labelled, _ = curve.counts[k].tolist()
    return float((labelled + 0.5) / (made + 1))


def quantile(counts: Sequence[int], bounds: Sequence[float], share: float) -> float:
    """A quantile from a histogram (bounds, then beyond): within the bin straight on the logarithm, NaN if empty.

    Bins begin at the bound before them, the first at a tenth of its own; what lies beyond all is the last bound.
    """
    total = sum(counts)
    if not total:
        return math.nan
    below: Floats = np.cumsum(np.asarray(counts, np.float64))
    at = int(np.searchsorted(below, share * total))
    if at >= len(bounds):
        return float(bounds[-1])
    before = float(below[at - 1]) if at else 0.0
    low, high = (bounds[at - 1] if at else bounds[0] / 10), bounds[at]
    return float(low * (high / low) ** ((share * total - before) / counts[at]))
