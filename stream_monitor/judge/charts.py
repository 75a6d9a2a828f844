"""The calibrated detector: control charts on baseline ranks, event by event, whose false-alarm rate is known beforehand.

A value's rank among the baseline's rows is uniform when nothing has changed, whatever the data (ties and categories
are split by the id's hash). Four charts read it: the sum of normal scores (location), the sum of their squares
(spread), Pearson's chi-square on 16 cells (shape), and the count of values that cannot be read (bad). Each looks at the
last 4, 8, 12, 16, 24, ... 8192 events, so a large change is seen in a few events and a small one in as many as it
needs: a window-limited generalised likelihood ratio (Lai 1995), whose delay is near the least possible at every size.

Sums are integers and a window is a difference of two sums, so chunks, restarts and merged partitions change nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stream_monitor.errors import StateError
from stream_monitor.judge import calibrate
from stream_monitor.judge.hazard import STAGES
from stream_monitor.judge.season import Season
from stream_monitor.records import Floats, Hashes, Ints
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.numeric import tie_breaker
from stream_monitor.summarize.profile import BinCodes, Profile
from stream_monitor.summarize.protocol import ABOVE, BELOW, BINS, INFINITE, MAIN, MISSING, UNSEEN, WRONG_TYPE

FORMAT = 2
"""1: windows of doubled lengths only. Looks kept for other lengths are of no use, so such charts begin anew."""
DOUBLED = tuple(2**k for k in range(2, 2 + STAGES))
BETWEEN = tuple(3 * 2**k for k in range(2, STAGES))
SCALES = tuple(sorted(DOUBLED + BETWEEN))
"""Window lengths in events, 4 to 8192: from five standard deviations to a tenth of one.

Between two doubled lengths stands one and a half times the shorter, 12 to 6144: a limit a little beyond the reach of one
window would else wait for one of twice its length, which made 200 features half as slow again as three. Twice the
windows share the budget, at 4 % of delay where a doubled length fits. A window of 6 would cost as much as all others
between, to save half an event.
"""
OVERLAP = 16
"""A window is looked at 16 times in its length (each event below 32): waiting for the next look costs 3 % of it."""
TICK = 32
"""Events whose cells are counted together: the shape is judged on 128 events or more, eight to a cell."""
SHAPE_OVERLAP = 4
CELLS = 16
FEWEST_IN_A_CELL = 7
"""Readable values to a cell on average: of fewer, as where many are missing, Pearson's statistic has a heavier tail."""
UNIT = 4096
"""Scores are summed as whole multiples of 1/4096: exact, and 8192 of the largest squares fit 31 bits."""
LOCATION, SPREAD, SHAPE, BAD = "location", "spread", "shape", "bad"
CHARTS = (LOCATION, SPREAD, BAD, SHAPE)
WINDOWS = {LOCATION: SCALES, SPREAD: SCALES, SHAPE: DOUBLED[5:], BAD: DOUBLED}
"""The lengths at which each chart looks: shifts and spreads come in every size, bad values mostly all at once."""
SHARES = {LOCATION: 0.55, SPREAD: 0.22, SHAPE: 0.18, BAD: 0.05}
"""Of a subject's part of the budget: shifts are the commonest change, values that cannot be read the plainest."""
FEWEST_LOWER_SPREAD = 32
"""A spread that shrinks shows in no fewer events: the smallest squares of a few are too coarse to be rare."""
REFERENCE_RATE = 1.7
REFERENCE_QUANTILE = 1.645
"""For 95 of 100 baselines (1.645 standard deviations) the rate is at most 1.7 times the nominal one."""
RING = 1024
"""Codes of the last 1,024 events are kept: what an alarm is described by."""
CALM_STRETCHES = 2
SHORTEST_CALM = 64
PAUSE = 256
"""After a finding that is of no consequence a unit is looked at again from so many events later."""
_NUMBER = np.int32
_PLACE = {scale: k for k, scale in enumerate(SCALES)}
IntArray = NDArray[np.int32]


class Unit(NamedTuple):
    """What is raised and calms by itself: the values of a subject, or that they cannot be read."""

    subject: int
    is_bad: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A chart passed its limit, or a unit has been calm for long enough (`is_calm`)."""

    unit: Unit
    time_us: int
    at: int  # row of the update's rows
    is_calm: bool = False
    chart: str = ""
    scale: int = 0  # events of the window that showed it
    start_us: int = 0  # the time of its first event, as far back as is remembered
    value: float = 0.0  # standard normal equivalents of the window, and of its limit
    threshold: float = 0.0
    codes: BinCodes = field(default_factory=lambda: np.zeros(0, np.uint16))  # (k,) the last codes, twice the window's
    times: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # (k,) their times
    is_again: bool = False  # still so on the first stretch after the alarm: told once more, on more events

    @property
    def counts(self) -> Ints:
        """(BINS,) of the window's events, as many of them as are remembered."""
        return np.bincount(self.codes[-self.scale :], minlength=BINS).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Ranks:
    """How a baseline's codes become ranks: F subjects, numeric or categories in the order of their frequency."""

    seeds: tuple[str, ...]
    bins: Ints  # (F,) main bins in use
    left: Mapping[int, Floats]  # categorical subject -> baseline share before each category, (MAIN + 1,)
    mass: Mapping[int, Floats]  # its own share
    readable: Ints  # (F,) baseline rows with a value
    rows: int
    bad: Ints  # (F,) baseline rows whose value cannot be read
    judged_by: int | None = None  # rows a rank is measured on, where they are fewer: those of an hour

    @classmethod
    def of(cls, profile: Profile) -> Ranks:
        """From a baseline's profile."""
        counts = profile.counts
        bad = counts[:, [MISSING, WRONG_TYPE, INFINITE]].sum(axis=1)
        left, mass, bins = {}, {}, []
        for f, subject in enumerate(profile.schema.subjects):
            if isinstance(subject.bins, Categories):
                named = np.append(counts[f, :MAIN], counts[f, UNSEEN]).astype(np.float64)
                share = named / max(named.sum(), 1.0)
                mass[f], left[f] = share, np.cumsum(share) - share
                bins.append(MAIN)
            else:
                bins.append(subject.bins.bins)
        seeds = tuple(f"rank of {subject.key.name}" for subject in profile.schema.subjects)
        return cls(seeds, np.array(bins, np.int64), left, mass, profile.rows - bad, profile.rows, bad)

    def __len__(self) -> int:
        return len(self.bins)

    def within(self, season: Season) -> Ranks:
        """The same for ranks within their hour: of 256 bins, by the rows of the poorest two hours together."""
        return replace(self, bins=np.full(len(self), MAIN, np.int64), judged_by=2 * int(season.rows.min()))

    def encode(self, code: BinCodes, id_hi: Hashes, id_lo: Hashes) -> BinCodes:
        """Codes (n, F) with categories spread over 256 equal bins by the id's hash; what has no mass lies above all."""
        if not self.left:
            return code
        out = code.copy()
        for f, left in self.left.items():
            column = code[:, f]
            place = np.where(column < MAIN, column, MAIN)
            row = np.flatnonzero((column < MAIN) | (column == UNSEEN))
            at = place[row]
            share = left[at] + tie_breaker(id_hi[row], id_lo[row], self.seeds[f]) * self.mass[f][at]
            main = np.minimum(share * MAIN, MAIN - 1).astype(np.uint16)
            out[row, f] = np.where(self.mass[f][at] > 0, main, ABOVE)
        return out


def normal_scores(bins: int, rows: int) -> Floats:
    """Mean normal score of each code (BINS,), of `bins` equal bins; beyond the extremes of `rows` rows, of the next one."""
    cut = special.ndtri(np.clip(np.arange(bins + 1) / bins, 1e-12, 1 - 1e-12))
    density = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi)
    out = np.zeros(BINS)
    out[:bins] = (density[:-1] - density[1:]) * bins
    out[bins:MAIN] = out[bins - 1]
    out[BELOW], out[ABOVE] = special.ndtri(0.5 / (rows + 1)), -special.ndtri(0.5 / (rows + 1))
    return out


def square_scores(bins: int, rows: int) -> Floats:
    """Mean squared normal score of each code, less one."""
    cut = special.ndtri(np.clip(np.arange(bins + 1) / bins, 1e-12, 1 - 1e-12))
    density = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi)
    out = np.zeros(BINS)
    out[:bins] = ((cut * density)[:-1] - (cut * density)[1:]) * bins
    out[bins:MAIN] = out[bins - 1]
    out[BELOW] = out[ABOVE] = special.ndtri(0.5 / (rows + 1)) ** 2 - 1
    return out


_READABLE = np.array([code < MAIN or code in (BELOW, ABOVE, UNSEEN) for code in range(BINS)])


@dataclass(frozen=True, slots=True)
class Tables:
    """Scores of every code: (F, BINS) each, and the cell of every code, CELLS for what has none."""

    scores: tuple[IntArray, ...]  # location, spread, bad
    variance: Floats  # (3, F) of one event's score under the baseline; of bad, unused
    cell: NDArray[np.intp]
    cell_weight: Floats  # (F, CELLS) the root of one over each cell's share of the readable events

    @classmethod
    def of(cls, ranks: Ranks) -> Tables:
        """For these ranks."""
        subjects = len(ranks)
        location, spread = np.zeros((subjects, BINS)), np.zeros((subjects, BINS))
        cell = np.full((subjects, BINS), CELLS, np.intp)
        share = np.zeros((subjects, CELLS))
        variance = np.zeros((3, subjects))
        for f in range(subjects):
            bins = int(ranks.bins[f])
            location[f], spread[f] = normal_scores(bins, ranks.rows), square_scores(bins, ranks.rows)
            main = np.arange(MAIN) * CELLS // bins
            cell[f, :MAIN] = np.minimum(main, CELLS - 1)
            cell[f, BELOW], cell[f, [ABOVE, UNSEEN]] = 0, CELLS - 1
            share[f] = np.bincount(cell[f, :bins], minlength=CELLS) / bins
            variance[:2, f] = (location[f, :bins] ** 2).mean(), (spread[f, :bins] ** 2).mean()
        location[:, UNSEEN], spread[:, UNSEEN] = location[:, ABOVE], spread[:, ABOVE]
        whole = [np.rint(score * UNIT).astype(_NUMBER) for score in (location, spread)]
        bad = np.tile(~_READABLE, (subjects, 1)).astype(_NUMBER)
        weight = np.where(share > 0, 1 / np.sqrt(np.maximum(share, 1e-12)), 0.0)
        return cls((*whole, bad), variance, cell, weight)


@dataclass(frozen=True, slots=True)
class Limits:
    """Where the charts alarm: bounds (scales, F) of the sums, and the normal equivalents h that stand for them."""

    lower: tuple[IntArray, ...]  # location, spread, bad
    upper: tuple[IntArray, ...]
    shape: Floats  # (scales, F)
    level: Floats  # (charts, scales): the probability of passing at one look
    unit: tuple[Floats, ...]  # (scales, F): the standard deviation of each sum

    @classmethod
    def of(cls, ranks: Ranks, tables: Tables, *, hazard: float, inflation: Floats, freedom: Floats) -> Limits:
        """For a nominal rate of `hazard` alarms an event of each subject.

        `inflation` (charts, scales, F): how many times the variance of a window's sum exceeds that of independent
        rows; `freedom` (scales, F): the degrees of freedom of the shape's chi-square. A baseline of m rows is a
        draw too: a window of w rows has a z of variance 1 + w/m over all baselines, and one of 20 baselines is off by
        more than 1.645 (w/m)^0.5; the limit covers both.
        """
        level = _levels(hazard)
        readable = ranks.readable / max(ranks.rows, 1)
        usable = ranks.readable >= calibrate.MINIMUM_BASELINE_ROWS
        ratio = np.array(SCALES)[:, None] / np.maximum(ranks.judged_by or ranks.rows, 1) * np.ones(len(ranks))
        w = np.array(SCALES, np.float64)[:, None] * np.maximum(readable, 1e-9)
        z = [_guarded(level[c][:, None], ratio) for c in range(2)]
        unit = [np.sqrt(w * tables.variance[c] * inflation[c]) * UNIT for c in range(2)]
        # Where values are missing, windows that happen to hold more of them make the tail: of so many its saddle point is.
        lengths = np.array(SCALES, np.float64)[:, None]
        held = [np.minimum(lengths, w + (1 - readable) * z[c] ** 2 / 4) for c in range(2)]
        reach = z[0] * np.sqrt(held[0] / w) * unit[0]
        tail = special.ndtr(-z[1])
        squares = held[1] / inflation[1]
        scale = np.sqrt(tables.variance[1] / 2) * inflation[1] * UNIT
        high = (special.chdtri(squares, tail) - squares) * scale
        low = (special.chdtri(squares, 1 - tail) - squares) * scale
        low = np.where(np.array(SCALES)[:, None] >= FEWEST_LOWER_SPREAD, low, -_FAR)
        is_filled = (w >= FEWEST_IN_A_CELL * CELLS) & (level[3] > 0)[:, None]
        # What the shape's windows with too few readable values do not spend is the others'.
        shape_level = level[3][:, None] * len(WINDOWS[SHAPE]) / np.maximum(is_filled.sum(axis=0), 1)
        bad = _quiet_counts(ranks, level[2], inflation[2])
        upper = (reach, high, np.where(np.array(SCALES)[:, None] > bad, bad, _FAR))
        lower = (-reach, low, np.full_like(high, -_FAR))
        return cls(
            tuple(np.clip(np.floor(np.where(usable, x, -_FAR)), -_FAR, _FAR).astype(_NUMBER) for x in lower),
            tuple(np.clip(np.floor(np.where(usable, x, _FAR)), -_FAR, _FAR).astype(_NUMBER) for x in upper),
            np.where(usable & is_filled, _shape_limits(shape_level, ratio, inflation[3], freedom), np.inf),
            level,
            (*unit, np.sqrt(w * inflation[2])),
        )


_FAR = float(2**30)


def _levels(hazard: float) -> Floats:
    """The probability (charts, scales) of passing a limit at one look, two-sided: equal rates for every scale."""
    level = np.zeros((len(CHARTS), len(SCALES)))
    for c, chart in enumerate(CHARTS):
        for k, scale in enumerate(SCALES):
            # Of the other lengths too, where a calm stretch may be so long; a shape is told from eight events to a cell.
            if chart != SHAPE or scale in WINDOWS[SHAPE]:
                level[c, k] = hazard * SHARES[chart] / len(WINDOWS[chart]) * stride_of(chart, scale)
    return np.minimum(level, 0.4)


def stride_of(chart: str, scale: int) -> int:
    return max(TICK, scale // SHAPE_OVERLAP) if chart == SHAPE else max(1, scale // OVERLAP)


def _guarded(level: Floats, ratio: Floats) -> Floats:
    """The two-sided normal quantile, raised for the baseline's own error; `ratio` is window over baseline rows."""
    mean = -special.ndtri(level / 2) * np.sqrt(1 + ratio)
    unlucky = -special.ndtri(np.minimum(REFERENCE_RATE * level, 0.9) / 2) + REFERENCE_QUANTILE * np.sqrt(ratio)
    return np.asarray(np.maximum(mean, unlucky), np.float64)


def _shape_limits(level: Floats, ratio: Floats, inflation: Floats, freedom: Floats) -> Floats:
    """Chi-square of these degrees of freedom, CELLS - 1 for independent rows; for an unlucky baseline noncentral.

    The noncentral quantile is Patnaik's (1949). `inflation` is the factor of the mean, so that of one degree is
    `inflation` (CELLS - 1) / `freedom`.
    """
    mean = (1 + ratio) * special.chdtri(freedom, level)
    off = ratio * special.chdtri(freedom, 0.05)
    width = (freedom + 2 * off) / (freedom + off)
    unlucky = width * special.chdtri((freedom + off) / width, np.minimum(REFERENCE_RATE * level, 0.9))
    return np.asarray(np.maximum(mean, unlucky) * inflation * (CELLS - 1) / freedom, np.float64)


def _quiet_counts(ranks: Ranks, level: Floats, inflation: Floats) -> Floats:
    """The most bad values in a window that are not yet evidence, (scales, F); Fisher's test against the baseline."""
    out = np.zeros((len(SCALES), len(ranks)))
    m = np.full(len(ranks), ranks.rows, np.int64)
    for k, scale in enumerate(SCALES):
        wide = inflation[k]
        n = np.maximum(np.rint(scale / wide), 1).astype(np.int64)
        hits = np.rint(ranks.bad / wide).astype(np.int64)
        rows = np.maximum(np.rint(m / wide), 1).astype(np.int64)
        out[k] = calibrate.largest_quiet_count(hits, n, rows, float(level[k])) * wide
    return out


class OtherFormatError(StateError):
    """Charts of an earlier version of this program: nothing is damaged, but there is nothing to go on from."""


@dataclass(slots=True)
class _Raised:
    """A unit in alarm: what raised it, and the stretch that is being watched for calm."""

    chart: int
    scale: int
    began: int  # event count where the stretch under way began
    length: int
    calm: int = 0
    was_told_again: bool = False
    sums: list[int] = field(default_factory=list)  # the charts' sums at `began`
    cells: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Charts:
    """The charts of F subjects. `update` in any chunks, stored and restored in between, finds the same.

    Never raised twice for one change: a unit in alarm is watched for calm instead, two stretches of four times the
    window that raised it, on which what is left passes no limit; then its charts begin anew.
    """

    ranks: Ranks
    inflation: Floats | None = None  # (charts, scales, F); None: independent rows
    freedom: Floats | None = None  # (scales, F); None: CELLS - 1
    hazard: float = 1e-6
    events: int = 0
    _tables: Tables = field(init=False)
    _limits: Limits = field(init=False)
    _carry: list[IntArray] = field(init=False)
    _past: list[list[IntArray]] = field(init=False)  # chart, window -> sums at the last looks (looks, F)
    _cells: IntArray = field(init=False)  # (F, CELLS) since the last tick
    _cell_sum: IntArray = field(init=False)
    _shape_past: list[IntArray] = field(init=False)  # window -> (looks, F, CELLS)
    _since: dict[Unit, int] = field(default_factory=dict)  # event count after which a unit's windows may begin
    _raised: dict[Unit, _Raised] = field(default_factory=dict)
    _ring: BinCodes = field(init=False)
    _times: Ints = field(init=False)

    def __post_init__(self) -> None:
        subjects = len(self.ranks)
        self._tables = Tables.of(self.ranks)
        if self.inflation is None:
            self.inflation = np.ones((len(CHARTS), len(SCALES), subjects))
        if self.freedom is None:
            self.freedom = np.full((len(SCALES), subjects), CELLS - 1.0)
        self.set_hazard(self.hazard)
        zero = np.zeros((1, subjects), _NUMBER)
        self._carry = [zero[0].copy() for _ in range(3)]
        self._past = [[zero.copy() for _ in WINDOWS[chart]] for chart in CHARTS[:3]]
        self._cells = np.zeros((subjects, CELLS), _NUMBER)
        self._cell_sum = np.zeros((subjects, CELLS), _NUMBER)
        self._shape_past = [np.zeros((1, subjects, CELLS), _NUMBER) for _ in WINDOWS[SHAPE]]
        self._ring = np.zeros((0, subjects), np.uint16)
        self._times = np.zeros(0, np.int64)

    def set_hazard(self, hazard: float) -> None:
        """Alarm at this nominal rate, in alarms an event of each subject, from the next event on."""
        assert self.inflation is not None
        assert self.freedom is not None
        self.hazard = hazard
        self._limits = Limits.of(
            self.ranks, self._tables, hazard=hazard, inflation=self.inflation, freedom=self.freedom
        )

    @property
    def limits(self) -> Limits:
        """The limits in use."""
        return self._limits

    @property
    def tables(self) -> Tables:
        """The scores in use."""
        return self._tables

    def raised(self) -> list[Unit]:
        """The units in alarm."""
        return sorted(self._raised)

    def update(
        self, code: BinCodes, ranked: BinCodes, times: Ints, *, matters: Callable[[Found], bool] | None = None
    ) -> list[Found]:
        """Take rows in order: codes (n, F), the same as ranks, and times (n,); what was found, by time.

        `matters`: whether a finding is of consequence (the second gate); one that is not raises nothing. It may depend on
        the finding alone, or on what is known of its time.
        """
        if not len(code):
            return []
        index = ranked.astype(np.intp) + np.arange(len(self.ranks)) * BINS
        sums = self._sums(index)
        looks = list(self._looks(sums))
        ticks = self._tick(index)
        shapes = list(self._shape_looks(ticks))
        codes = np.concatenate([self._ring, code])
        known = np.concatenate([self._times, times])
        view = _View(self, sums, ticks, looks, shapes, codes, known, len(code), matters or (lambda _: True))
        found = view.walk()
        self.events += len(code)
        self._ring, self._times = codes[-RING:].copy(), known[-SCALES[-1] :].copy()
        return sorted(found, key=lambda f: (f.at, f.unit))

    def _sums(self, index: NDArray[np.intp]) -> list[IntArray]:
        """The running sums (n + 1, F) of each linear chart, the first row as they stood before."""
        sums = []
        for c, table in enumerate(self._tables.scores):
            out = np.empty((len(index) + 1, len(self.ranks)), _NUMBER)
            out[0] = self._carry[c]
            np.take(table.reshape(-1), index, out=out[1:], mode="clip")
            np.cumsum(out, axis=0, out=out, dtype=_NUMBER)
            self._carry[c] = out[-1].copy()
            sums.append(out)
        return sums

    def _looks(self, sums: list[IntArray]) -> Iterator[_Look]:
        """Every (chart, scale) with the differences at its looks in these rows."""
        for c, total in enumerate(sums):
            is_still = CHARTS[c] == BAD and bool((total[0] == total[-1]).all())
            for k, scale in enumerate(WINDOWS[CHARTS[c]]):
                stride = stride_of(CHARTS[c], scale)
                first = stride - self.events % stride
                at, past = total[first::stride], self._past[c][k]
                back = scale // stride
                self._past[c][k] = at[-back:].copy() if len(at) >= back else np.concatenate([past, at])[-back:]
                # Where nothing bad came for as long as the window there is nothing to see: the rule, not the exception.
                if is_still and (past[0] == total[0]).all():
                    continue
                looks = len(past) + len(at) - back
                if looks > 0:
                    yield _Look(
                        c, _PLACE[scale], first + stride * (len(at) - looks), stride, _differences(past, at, looks)
                    )

    def _tick(self, index: NDArray[np.intp]) -> IntArray:
        """Cell sums (ticks + 1, F, CELLS) at the ends of ticks in these rows, the first row the last tick before."""
        subjects = len(self.ranks)
        tick = (self.events % TICK + np.arange(len(index))) // TICK
        place = (tick[:, None] * subjects + np.arange(subjects)) * (CELLS + 1)
        place += self._tables.cell.reshape(-1)[index]
        groups = int(tick[-1]) + 1
        counts = np.bincount(place.reshape(-1), minlength=groups * subjects * (CELLS + 1))
        counts = counts.reshape(groups, subjects, CELLS + 1)[:, :, :CELLS].astype(_NUMBER)
        counts[0] += self._cells
        whole = (self.events % TICK + len(index)) // TICK
        self._cells = counts[whole].copy() if whole < groups else np.zeros_like(self._cells)
        out = np.concatenate([self._cell_sum[None], counts[:whole]])
        np.cumsum(out, axis=0, out=out, dtype=_NUMBER)
        self._cell_sum = out[-1].copy()
        return out

    def _shape_looks(self, ticks: IntArray) -> Iterator[_Look]:
        before = self.events // TICK
        for k, scale in enumerate(WINDOWS[SHAPE]):
            stride = stride_of(SHAPE, scale) // TICK
            first = stride - before % stride
            at = ticks[first::stride]
            joined = np.concatenate([self._shape_past[k], at])
            back = scale // TICK // stride
            self._shape_past[k] = joined[-back:]
            if len(joined) > back:
                seen = joined[back:] - joined[:-back]
                row = (first + stride * (len(at) - len(seen))) * TICK - self.events % TICK
                yield _Look(3, _PLACE[scale], row, stride * TICK, self._chi_square(seen))

    def _chi_square(self, seen: IntArray) -> Floats:
        """Pearson's statistic of counts (looks, F, CELLS): sum of O^2 / E less the events."""
        counts = seen.astype(np.float64)
        present = counts.sum(axis=-1)
        counts *= self._tables.cell_weight
        squares = np.einsum("lfc,lfc->lf", counts, counts)
        return np.asarray(squares / np.maximum(present, 1.0) - present, np.float64)

    # -- the store -------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The whole state but the ranks; no pickle."""
        head = {
            "format": FORMAT,
            "subjects": len(self.ranks),
            "hazard": self.hazard,
            "events": self.events,
            "since": [[*unit, count] for unit, count in sorted(self._since.items())],
            "raised": [
                [*unit, r.chart, r.scale, r.began, r.length, r.calm, r.was_told_again, r.sums, r.cells]
                for unit, r in sorted(self._raised.items())
            ],
        }
        arrays: dict[str, Any] = {"head": np.frombuffer(json.dumps(head).encode(), np.uint8)}
        arrays |= {"ring": self._ring, "times": self._times, "cells": self._cells, "cell_sum": self._cell_sum}
        for c in range(3):
            arrays[f"carry{c}"] = self._carry[c]
            arrays |= {f"past{c}_{k}": past for k, past in enumerate(self._past[c])}
        arrays |= {f"shape{k}": past for k, past in enumerate(self._shape_past)}
        out = io.BytesIO()
        np.savez(out, allow_pickle=False, **arrays)
        return out.getvalue()

    @classmethod
    def from_bytes(
        cls, state: bytes, ranks: Ranks, *, inflation: Floats | None = None, freedom: Floats | None = None
    ) -> Charts:
        """The charts that were stored, of a baseline with these ranks; raises StateError if they do not fit.

        OtherFormatError where they were written by a version whose windows were others.
        """
        try:
            with np.load(io.BytesIO(state), allow_pickle=False) as stored:
                head = json.loads(stored["head"].tobytes())
                if head["format"] != FORMAT:
                    raise OtherFormatError(f"charts of format {head['format']}: this program reads {FORMAT}")
                if head["subjects"] != len(ranks):
                    raise StateError(f"charts of {head['subjects']} subjects do not fit {len(ranks)}")
                charts = cls(ranks, inflation, freedom, head["hazard"], head["events"])
                charts._ring, charts._times = stored["ring"], stored["times"]
                charts._cells, charts._cell_sum = stored["cells"], stored["cell_sum"]
                charts._carry = [stored[f"carry{c}"] for c in range(3)]
                charts._past = [[stored[f"past{c}_{k}"] for k in range(len(WINDOWS[CHARTS[c]]))] for c in range(3)]
                charts._shape_past = [stored[f"shape{k}"] for k in range(len(WINDOWS[SHAPE]))]
        except (ValueError, KeyError, OSError, TypeError, EOFError, RuntimeError, BadZipFile) as error:
            raise StateError(f"the state of the charts cannot be read: {error}") from error
        charts._since = {Unit(f, bool(bad)): count for f, bad, count in head["since"]}
        charts._raised = {Unit(f, bool(bad)): _Raised(*rest) for f, bad, *rest in head["raised"]}
        return charts


class _Look(NamedTuple):
    """One chart at one scale over the looks that fall into an update."""

    chart: int
    scale: int  # index into SCALES
    first: int  # rows seen at the first look: 1 is after the first row
    stride: int
    difference: NDArray[Any]  # (looks, F)


@dataclass(slots=True)
class _View:
    """One update seen unit by unit."""

    charts: Charts
    sums: list[IntArray]
    ticks: IntArray
    looks: Sequence[_Look]
    shapes: Sequence[_Look]
    codes: BinCodes  # the ring and the new rows
    times: Ints
    rows: int
    matters: Callable[[Found], bool]

    def walk(self) -> list[Found]:
        """Every unit that passes a limit or is in alarm."""
        units = self._suspects() | set(self.charts._raised)
        return [found for unit in sorted(units) for found in self._walk(unit)]

    def _suspects(self) -> set[Unit]:
        limits, found = self.charts.limits, set()
        for look in self.looks:
            high, low = limits.upper[look.chart][look.scale], limits.lower[look.chart][look.scale]
            over = (_extreme(np.maximum, look.difference) > high) | (_extreme(np.minimum, look.difference) < low)
            found |= {Unit(f, CHARTS[look.chart] == BAD) for f in np.flatnonzero(over).tolist()}
        for look in self.shapes:
            over = _extreme(np.maximum, look.difference) > limits.shape[look.scale]
            found |= {Unit(f, False) for f in np.flatnonzero(over).tolist()}
        return found

    def _walk(self, unit: Unit) -> Iterator[Found]:
        """Alarm, calm, alarm: in the order of rows."""
        charts, row = self.charts, 0
        passes = None
        while True:
            held = charts._raised.get(unit)
            if held is not None:
                yield from self._stretches(unit, held)
                if held.calm < CALM_STRETCHES:
                    return
                row = held.began - charts.events
                del charts._raised[unit]
                charts._since[unit] = charts.events + row
                yield Found(unit, self._time(row), row - 1, is_calm=True)
            if passes is None:
                passes = self._passes(unit)
            since = charts._since.get(unit, 0) - charts.events
            hit = next((p for p in passes if p[0] > row and p[0] - SCALES[p[2]] >= since), None)
            if hit is None:
                return
            row = hit[0]
            found = self._found(unit, hit)
            if self.matters(found):
                charts._raised[unit] = self._begin(unit, hit)
                yield found
            else:
                charts._since[unit] = charts.events + row + PAUSE

    def _passes(self, unit: Unit) -> list[tuple[int, int, int, float]]:
        """(rows seen, chart, scale, value over limit) of every look of a unit beyond its limit, the earliest first."""
        limits, f = self.charts.limits, unit.subject
        found: list[tuple[int, int, int, float]] = []
        for look in self.looks:
            if (CHARTS[look.chart] == BAD) != unit.is_bad:
                continue
            high, low = int(limits.upper[look.chart][look.scale, f]), int(limits.lower[look.chart][look.scale, f])
            column = look.difference[:, f]
            for j in np.flatnonzero((column > high) | (column < low)).tolist():
                value = int(column[j])
                ratio = (value + 1) / (high + 1) if value > high else value / low
                found.append((look.first + look.stride * j, look.chart, look.scale, float(ratio)))
        for look in () if unit.is_bad else self.shapes:
            limit = float(limits.shape[look.scale, f])
            column = look.difference[:, f]
            found += [
                (look.first + look.stride * j, look.chart, look.scale, float(column[j]) / limit)
                for j in np.flatnonzero(column > limit).tolist()
            ]
        return sorted(found, key=lambda p: (p[0], -p[3], p[1], p[2]))

    def _found(self, unit: Unit, hit: tuple[int, int, int, float]) -> Found:
        row, chart, scale, ratio = hit
        length = SCALES[scale]
        threshold = float(-special.ndtri(self.charts.limits.level[chart, scale] / 2))
        end, last = len(self.codes) - self.rows + row, len(self.times) - self.rows + row
        known = min(2 * length, RING, end)
        return Found(
            unit,
            self._time(row),
            row - 1,
            chart=CHARTS[chart],
            scale=length,
            start_us=int(self.times[max(0, last - length)]),
            value=threshold * (np.sqrt(ratio) if chart == 3 else ratio),
            threshold=threshold,
            codes=self.codes[end - known : end, unit.subject],
            times=self.times[last - known : last],
        )

    def _time(self, row: int) -> int:
        return int(self.times[len(self.times) - self.rows + row - 1])

    # -- calm ------------------------------------------------------------------------------------

    def _begin(self, unit: Unit, hit: tuple[int, int, int, float]) -> _Raised:
        row, chart, scale, _ = hit
        length = int(np.clip(4 * SCALES[scale], SHORTEST_CALM, SCALES[-1]))
        return self._stretch(_Raised(chart, scale, 0, length), unit, row)

    def _stretch(self, held: _Raised, unit: Unit, row: int) -> _Raised:
        """Begin a stretch after `row` rows."""
        held.began = self.charts.events + row
        held.sums = [int(total[row, unit.subject]) for total in self.sums]
        if held.chart == 3:  # shapes are raised at the end of a tick, and stretches are whole ticks
            held.cells = self.ticks[self._tick_of(row), unit.subject].tolist()
        return held

    def _tick_of(self, row: int) -> int:
        return (self.charts.events % TICK + row) // TICK

    def _stretches(self, unit: Unit, held: _Raised) -> Iterator[Found]:
        """Count the calm stretches that end in these rows; the first one that is not calm is told again."""
        while held.calm < CALM_STRETCHES and (row := held.began + held.length - self.charts.events) <= self.rows:
            left = self._left(unit, held, row)
            held.calm = held.calm + 1 if left <= 1 else 0
            self._stretch(held, unit, row)
            if left > 1 and not held.was_told_again:
                held.was_told_again = True
                again = self._found(unit, (row, held.chart, _PLACE[held.length], left))
                yield replace(again, is_again=True)

    def _left(self, unit: Unit, held: _Raised, row: int) -> float:
        """What is seen on the stretch that ends here, over the limit of a window of that length; of the charts the most."""
        limits, f = self.charts.limits, unit.subject
        k = _PLACE[held.length]
        most = 0.0
        for c in (2,) if unit.is_bad else (0, 1):
            moved = _wrapped(int(self.sums[c][row, f]) - held.sums[c])
            low, high = int(limits.lower[c][k, f]), int(limits.upper[c][k, f])
            most = max(most, (moved + 1) / (high + 1) if moved > high else moved / low if moved < low else 0.0)
        if held.chart == 3:
            seen = self.ticks[self._tick_of(row), f] - np.array(held.cells, _NUMBER)
            whole = np.zeros((1, len(self.charts.ranks), CELLS), _NUMBER)
            whole[0, f] = seen
            limit = float(limits.shape[k, f])
            most = max(most, float(self.charts._chi_square(whole)[0, f]) / limit)
        return most


def _differences(past: IntArray, at: IntArray, looks: int) -> IntArray:
    """Each of the last `looks` sums of `past` and then `at` less the first, second, ... of them; without joining the two."""
    out = np.empty((looks, at.shape[1]), at.dtype)
    new = at[len(at) - looks :]
    head = min(len(past), looks)
    np.subtract(new[:head], past[:head], out=out[:head])
    np.subtract(new[head:], at[: looks - head], out=out[head:])
    return out


def _extreme(which: np.ufunc, looks: NDArray[Any]) -> NDArray[Any]:
    """The largest or smallest of each column; of long arrays in rows of sixteen, or each short row is a call of its own."""
    whole = len(looks) // 16 * 16
    if whole < 64:
        return np.asarray(which.reduce(looks, axis=0))
    wide = which.reduce(looks[:whole].reshape(whole // 16, -1), axis=0).reshape(16, -1)
    return np.asarray(which.reduce(np.concatenate([wide, looks[whole:]]), axis=0))


def _wrapped(difference: int) -> int:
    """A difference of two 32-bit sums that may have passed their end."""
    return (difference + 2**31) % 2**32 - 2**31
