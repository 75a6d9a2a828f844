"""The error to expect of a regression before its truths come: what the baseline's errors were among rows like these.

A tree (`judge/tree.py`), grown on one part of the baseline's labelled rows, parts inputs by the errors they had. What a
leaf's errors are is told from the other part alone, so that no leaf seems better or worse than it is. A window is then its
rows by leaf, and its expected loss their mean. It follows inputs as far as the baseline saw such; when the relation of
inputs and truth changes it cannot know.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa

from stream_monitor.errors import StateError
from stream_monitor.judge.expectation import Estimate, Expected, QuantileEstimate, Range
from stream_monitor.judge.performance import ABSOLUTE_QUANTILES, QUANTILES
from stream_monitor.judge.spectrum import Spectrum
from stream_monitor.judge.tree import CLIPPED, Binned, Rating, grow
from stream_monitor.records import Bytes, Flags, Floats, Ints
from stream_monitor.summarize.histogram import Histogram, Numbers, ends_of
from stream_monitor.summarize.leaves import Leaves
from stream_monitor.summarize.numeric import tie_breaker
from stream_monitor.summarize.outcome import (
    TARGET_FLOOR,
    Joined,
    OutcomeProfile,
    Task,
    is_current,
    shares,
    value_ends,
    variance,
)
from stream_monitor.summarize.profile import Schema
from stream_monitor.summarize.rows import PREDICTION, Rows
from stream_monitor.summarize.scores import ScoreProfile

FEWEST_ROWS = 200
"""Labelled baseline rows below which there is no estimate: half of them tell how large errors are."""

MOST_GROWN = 50_000
MOST_CELLS = 5_000_000
"""Rows, and rows times subjects, that a tree is grown on: beyond, more rows move no split, and it takes seconds."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Leaves, and the outcomes of baseline rows in each that the tree has not seen.

    `missed`: the part of a change of errors, between rows of one kind and all rows, that the leaves miss;
    `missed_relative`: of relative errors.
    """

    leaves: Leaves
    profiles: tuple[OutcomeProfile, ...]
    missed: float
    missed_relative: float

    def to_bytes(self) -> bytes:
        """For the baseline's file, which compresses it."""
        bodies = [profile.to_bytes() for profile in self.profiles]
        sizes = [len(body) for body in bodies]
        about = {"leaves": self.leaves.to_json(), "sizes": sizes}
        head = json.dumps(about | {"missed": [self.missed, self.missed_relative]}).encode()
        return struct.pack("<I", len(head)) + head + b"".join(bodies)

    @classmethod
    def from_bytes(cls, body: bytes) -> Losses | None:
        """What `to_bytes` wrote, None where an earlier version did; raises StateError for anything else."""
        try:
            at = 4 + struct.unpack("<I", body[:4])[0]
            head = json.loads(body[4:at])
            ends = np.cumsum([at, *head["sizes"]]).tolist()
            parts = [body[a:b] for a, b in pairwise(ends)]
            if not all(map(is_current, parts)):
                return None
            profiles = tuple(map(OutcomeProfile.from_bytes, parts))
            return cls(Leaves.from_json(head["leaves"]), profiles, *map(float, head["missed"]))
        except (struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"the losses of a baseline cannot be read: {error}") from error


def learn(schema: Schema, rows: Rows, truth: Floats) -> Losses | None:
    """From baseline rows and their true numbers (n,), NaN where none came; None where too few can be used."""
    if PREDICTION not in rows.subjects:
        return None
    value = rows.number[:, rows.subjects.index(PREDICTION)]
    empty = OutcomeProfile(Task.REGRESSION)
    usable = np.flatnonzero(shares(_joined(value, truth), empty.task, positive_label=None).usable)
    if len(usable) < FEWEST_ROWS:
        return None
    place = np.arange(len(usable), dtype=np.uint64)
    usable = usable[np.argsort(tie_breaker(place, place, "losses"), kind="stable")]
    cut = min(len(usable) * 2 // 5, MOST_GROWN, MOST_CELLS // len(rows.subjects))
    seen, kept = usable[:cut], usable[cut:]
    first, others = rows.take(seen), rows.take(kept[:cut])
    binned = Binned.learn(schema, first)
    ordered = np.array([categories is None for categories in binned.categories], np.bool_)
    code, error = binned.code(first), value[seen] - truth[seen]
    rating = Rating.learn(code, ordered, error)
    relative = np.abs(error) / np.maximum(np.abs(truth[seen]), TARGET_FLOOR)
    code_of_others = binned.code(others)
    boxes = grow(
        rating.code(code), np.append(ordered, True), (np.abs(error), error, relative), rating.code(code_of_others)
    )
    leaves = binned.leaves(boxes, rating)
    profiles = tuple(OutcomeProfile(Task.REGRESSION) for _ in range(leaves.count))
    told = shares(_joined(value[kept], truth[kept]), Task.REGRESSION, positive_label=None)
    told.fold(profiles, leaves.of(rows.take(kept)), 1)
    size = np.abs(value - truth)[kept[:cut]]
    share = size / np.maximum(np.abs(truth[kept[:cut]]), TARGET_FLOOR)
    kinds = list(_kinds(rating.code(code_of_others), np.append(ordered, True)))
    missed, missed_relative = (_missed(kinds, leaves.of(others), each) for each in (size, share))
    return Losses(leaves, profiles, missed, missed_relative)


ALWAYS_MISSED = 0.1
"""Added to what leaves miss: where several inputs lean to one side at once more is missed than rows of one kind show."""

FEWEST_OF_A_KIND = 50
"""Rows of a kind: of fewer the mean error is all noise."""


def _missed(kinds: Sequence[Flags], leaf: Ints, size: Floats) -> float:
    """Over kinds of rows, how far the mean size of their errors is from what their leaves say, over how far that is from
    the mean of all; at most 1. What chance adds stays in: the fewer rows there are, the less the leaves are trusted.
    """
    size = np.minimum(size, np.quantile(size, 1 - CLIPPED))
    mean = np.bincount(leaf, size) / np.maximum(np.bincount(leaf), 1)
    expected = mean[leaf]
    told = [kind for kind in kinds if FEWEST_OF_A_KIND <= kind.sum() < len(size)]
    away = sum(float((size[kind] - expected[kind]).mean()) ** 2 for kind in told)
    foretold = sum(float(expected[kind].mean() - size.mean()) ** 2 for kind in told)
    return min(math.sqrt(away / foretold) + ALWAYS_MISSED, 1.0) if foretold > 0 else 1.0


def _kinds(code: Bytes, ordered: Flags) -> Iterator[Flags]:
    """The lowest and the highest fifth of the rows by each number, the three most frequent of the categories."""
    for f, is_ordered in enumerate(ordered.tolist()):
        bins = code[:, f]
        if is_ordered:
            low, high = np.quantile(bins, [0.2, 0.8])
            yield bins <= low
            yield bins >= high
        else:
            for category in np.argsort(-np.bincount(bins), kind="stable")[:3].tolist():
                yield bins == category


def _joined(value: Floats, truth: Floats) -> Joined:
    nothing, none = np.full(len(value), np.nan), pa.nulls(len(value), pa.string())
    return Joined(none, truth, none, nothing, value, nothing)


@dataclass(frozen=True)
class LossEstimator:
    """What a baseline's losses lead to expect."""

    losses: Losses

    task = Task.REGRESSION

    @property
    def leaves(self) -> Leaves:
        """What parts the rows."""
        return self.losses.leaves

    @property
    def method(self) -> str:
        """What `baseline show` says of it."""
        rows, count = int(self._moments.rows.sum()), self.leaves.count
        if count == 1:
            return f"errors of {rows} labelled rows, which did not depend on inputs: the baseline's are expected"
        named = sorted({cut.key.name for cut in self.leaves.cuts})
        shown = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
        return f"errors of {rows} labelled rows in {count} groups by {shown}"

    def estimates(self, scores: ScoreProfile, known: OutcomeProfile | None = None) -> dict[str, Expected]:
        """mae, mse, rmse, mape, bias and the error quantiles of a window's rows by leaf; none without rows.

        `known`: the outcomes of those rows that have their truth already; the others are as the whole window by leaf.
        """
        counted = scores.classes.get(self.leaves.id)
        if counted is None or not counted.total:
            return {}
        keys, counts = counted.arrays()
        rows = np.zeros(self.leaves.count)
        rows[keys >> 1] = counts
        known = OutcomeProfile(Task.REGRESSION) if known is None else known
        if known.rows > rows.sum():
            return {}
        return _Mixture(self._moments, rows, known, self.losses).estimates()

    def expected(self, leaf: Ints) -> Floats:
        """Size of the error and error to expect of rows by their leaf (n,), (2, n); NaN where that is negative."""
        means = np.stack([self._moments.absolute, self._moments.error])
        return np.where(leaf >= 0, means[:, leaf], np.nan)

    @cached_property
    def _moments(self) -> _Moments:
        return _Moments.of(self.losses.profiles)


@dataclass(frozen=True, slots=True)
class _Moments:
    """By leaf (L,): rows, means of powers of errors, relative errors (0 of a truth that is 0), truths and their variance."""

    rows: Floats
    error: Floats
    absolute: Floats
    squared: Floats
    fourth: Floats
    relative: Floats
    relative_squared: Floats
    divisible: Floats
    truth: Floats
    truth_variance: Floats
    errors: _Cells
    sizes: _Cells  # of the errors
    truths: _Cells

    @classmethod
    def of(cls, profiles: tuple[OutcomeProfile, ...]) -> _Moments:
        """Of the outcomes of each leaf; none is empty."""
        rows = np.array([float(profile.rows) for profile in profiles])

        def mean(name: str) -> Floats:
            return np.array([profile.sums[name].value / profile.rows for profile in profiles], np.float64)

        return cls(
            rows=rows,
            error=mean("error"),
            absolute=mean("absolute"),
            squared=mean("squared"),
            fourth=mean("fourth"),
            relative=mean("relative"),
            relative_squared=mean("relative_squared"),
            divisible=np.array([1 - profile.targets[0] / profile.rows for profile in profiles]),
            truth=mean("target"),
            truth_variance=np.array([variance(p.sums["target"], p.sums["target_squared"], p.rows) for p in profiles]),
            errors=_Cells.of([profile.errors for profile in profiles]),
            sizes=_Cells.of([folded(profile.errors) for profile in profiles]),
            truths=_Cells.of([profile.targets for profile in profiles]),
        )


@dataclass(frozen=True, slots=True)
class _Cells:
    """Histograms by leaf, each cell (k,): its leaf, its place among the `bins`, and its share of the leaf's rows.

    `ends`: the lower and the upper ends of the bins.
    """

    bins: Ints
    ends: tuple[Floats, Floats]
    leaf: Ints
    place: Ints
    share: Floats

    @classmethod
    def of(cls, histograms: Sequence[Histogram]) -> _Cells:
        """Of one histogram for each leaf, none empty; of numbers, each as fine as the coarsest."""
        parts = [histogram.arrays() for histogram in histograms]
        cut = max((held.cut for held in histograms if isinstance(held, Numbers)), default=None)
        if cut is not None:
            parts = [held.cut_to(cut).arrays() for held in histograms if isinstance(held, Numbers)]
        bins, place = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
        leaf = np.repeat(np.arange(len(parts)), [len(keys) for keys, _ in parts])
        ends = value_ends(bins) if cut is None else ends_of(bins, cut)
        return cls(bins, ends, leaf, place, np.concatenate([counts / counts.sum() for _, counts in parts]))

    def mixed(self, share: Floats) -> Floats:
        """The share of each bin where leaves have these shares (L,)."""
        return np.asarray(np.bincount(self.place, share[self.leaf] * self.share, len(self.bins)), dtype=np.float64)

    def below(self, last: int, leaves: int) -> Floats:
        """The share of each leaf's rows up to a bin, (L,)."""
        held = self.bins[self.place] <= last
        return np.asarray(np.bincount(self.leaf[held], self.share[held], leaves), dtype=np.float64)

    def spectrum(self, share: Floats) -> Spectrum:
        """The mixture, to be read from."""
        lower, upper = self.ends
        return Spectrum(lower, lower / 2 + upper / 2, upper, self.mixed(share))


def folded(histogram: Histogram) -> Histogram:
    """Of the sizes: bins of numbers lie the same way on both sides of zero."""
    keys, counts = histogram.arrays()
    bins, place = np.unique(np.abs(keys), return_inverse=True)
    return Histogram(zip(bins.tolist(), np.bincount(place, counts, len(bins)).astype(np.int64).tolist(), strict=True))


@dataclass(frozen=True)
class _Mixture:
    """A window: `rows` (L,) by leaf, of which `known` have their truth."""

    leaf: _Moments
    rows: Floats
    known: OutcomeProfile
    losses: Losses

    @cached_property
    def n(self) -> float:
        """Rows of the window."""
        return float(self.rows.sum())

    @cached_property
    def unknown(self) -> float:
        """Those of them without a truth."""
        return self.n - self.known.rows

    @cached_property
    def share(self) -> Floats:
        """Of the window's rows by leaf (L,); those without a truth are taken to lie the same way."""
        return self.rows / self.n

    def estimates(self) -> dict[str, Expected]:
        """Every metric."""
        leaf = self.leaf
        truths = leaf.truths.spectrum(self.share)
        median = truths.quantile(0.5)
        mse = self._mean("squared", "squared", "fourth", constant=self._spread())
        slope = 0.25 / mse.value if mse.value > 0 else 0.0
        constant = truths.from_constant(median)
        root = Estimate(math.sqrt(mse.value), mse.sampling * slope, mse.calibration * slope, Range.LOSS,
                        math.sqrt(mse.constant), mse.rows)  # fmt: skip
        return {
            "mae": self._mean("absolute", "absolute", "squared", constant=truths.distance_to(median)),
            "mse": mse,
            "rmse": root,
            "mape": self._mape(truths),
            "bias": self._mean("error", "error", "squared", constant=0.0, of=Range.ANY),
            **self._quantiles(leaf.errors, self.known.errors, constant, QUANTILES),
            **self._quantiles(leaf.sizes, folded(self.known.errors), constant.folded(), ABSOLUTE_QUANTILES),
        }

    def _mean(self, name: str, first: str, second: str, *, constant: float, of: Range = Range.LOSS) -> Estimate:
        """Of the known rows' sum `name` and the leaves' means; `first` and `second`: its first two moments in a leaf."""
        mean = getattr(self.leaf, first)
        spread = np.maximum(getattr(self.leaf, second) - mean**2, 0.0)
        value = (self.known.sums[name].value + self.unknown * float(self.share @ mean)) / self.n
        sampling, calibration = self._variances(mean, spread)
        return Estimate(value, sampling, calibration, of, constant, round(self.n))

    def _variances(self, mean: Floats, spread: Floats, *, missed: float | None = None) -> tuple[float, float]:
        """Of a mean over all rows of what has this mean and variance by leaf: by sampling, and by what the baseline
        leaves open, the chance of its rows and the part of a change that its leaves miss.
        """
        part, usual = self.unknown / self.n, self.leaf.rows / self.leaf.rows.sum()
        by_chance = float((self.share**2 * spread / self.leaf.rows).sum())
        change = (self.losses.missed if missed is None else missed) * float((self.share - usual) @ mean)
        # Which leaves the unknown rows are in is not known: any of them, as likely as all.
        drawn = (1 - part) * float(self.share @ (mean - self.share @ mean) ** 2)
        return part / self.n * (float(self.share @ spread) + drawn), part**2 * (by_chance + change**2)

    def _mape(self, truths: Spectrum) -> Estimate:
        """A ratio: relative errors over the rows whose truth is not 0."""
        leaf, known = self.leaf, self.known
        divisible = known.rows - known.targets[0] + self.unknown * float(self.share @ leaf.divisible)
        if divisible <= 0:
            return Estimate(math.nan, math.nan, math.nan, Range.LOSS, math.nan, round(self.n))
        value = (known.sums["relative"].value + self.unknown * float(self.share @ leaf.relative)) / divisible
        mean = leaf.relative - value * leaf.divisible
        square = leaf.relative_squared - 2 * value * leaf.relative + value**2 * leaf.divisible
        scale = (self.n / divisible) ** 2
        sampling, calibration = (
            scale * v
            for v in self._variances(mean, np.maximum(square - mean**2, 0.0), missed=self.losses.missed_relative)
        )
        away = truths.without_zero()
        best = away.weighted(1 / np.abs(away.middle))
        constant = best.distance_to(best.quantile(0.5)) * float(best.count.sum() / away.count.sum())
        return Estimate(value, sampling, calibration, Range.LOSS, constant, round(self.n))

    def _spread(self) -> float:
        """Expected variance of the truths."""
        away = self.leaf.truth - self.share @ self.leaf.truth
        return float(self.share @ (self.leaf.truth_variance + away**2))

    def _quantiles(
        self, cells: _Cells, known: Histogram, constant: Spectrum, shares: Mapping[str, float]
    ) -> dict[str, Expected]:
        """Of errors, or of their sizes."""
        expected = self.unknown * cells.mixed(self.share)
        keys, counts = known.arrays()
        bins, place = np.unique(np.concatenate([cells.bins, keys]), return_inverse=True)
        rows = np.bincount(place, np.concatenate([expected, counts]), len(bins))
        reached = np.cumsum(rows) / self.n
        found: dict[str, Expected] = {}
        for name, share in shares.items():
            at = bins[min(int(np.searchsorted(reached, share - 1e-12)), len(bins) - 1)]
            below = cells.below(int(at), len(self.rows))
            variances = self._variances(below, np.maximum(below * (1 - below), 0.0))
            found[name] = QuantileEstimate(bins, reached, share, *variances, constant.quantile(share), round(self.n))
        return found
