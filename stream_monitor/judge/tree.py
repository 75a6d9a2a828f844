"""A regression tree grown on binned subjects: which rows make errors of another size, or to another side, than others.

Best first, by the fall of the squares of all targets, each over its standard deviation. Every split must be more than
chance, so that where errors do not depend on inputs there is one leaf. Where several subjects matter at once 64 boxes are
coarse: so the tree may also split by a rating, the product of what each subject says of the size of the error alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from stream_monitor.records import Bytes, Flags, Floats, Hashes, Ints
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.leaves import MOST_LEAVES, Cut, Leaves, number_bins
from stream_monitor.summarize.profile import Schema
from stream_monitor.summarize.rows import PREDICTION, Rows, SubjectKey

BINS = 128
"""Columns of a subject: up to 127 of its values, then OTHER. A split lies within 1 % of the rows of where it should."""
OTHER = BINS - 1
"""Missing, of another type, infinite, or a category that is unseen or among the rare ones."""

LEAST_ROWS = 25
"""Of a leaf, among the rows it was grown on and among as many others: its mean is known within a fifth of a deviation."""

CHANCE = 0.1
"""That a split is made where there is nothing, over all the cuts it is chosen from (Bonferroni)."""

CLIPPED = 0.01
"""Of the rows at each end: a few huge errors must not decide where the leaves are. What leaves hold is not clipped."""


@dataclass(frozen=True, slots=True)
class Binned:
    """Subjects and how each is binned: (F,) of them, ordered ones are numbers."""

    keys: tuple[SubjectKey, ...]
    edges: tuple[Floats, ...]
    categories: tuple[Categories | None, ...]

    @classmethod
    def learn(cls, schema: Schema, rows: Rows) -> Binned:
        """Of the features and the prediction; vectors are left out: to read them costs more than all others."""
        used = [s for s in schema.subjects if (s.key.kind == "feature" or s.key == PREDICTION) and s.length is None]
        edges, categories = [], []
        for subject in used:
            bins = subject.bins
            categories.append(Categories(bins.values[:OTHER], bins.numbers) if isinstance(bins, Categories) else None)
            number = rows.number[:, rows.subjects.index(subject.key)]
            edges.append(np.zeros(0) if subject.value_kind == "categorical" else _edges(number[np.isfinite(number)]))
        return cls(tuple(s.key for s in used), tuple(edges), tuple(categories))

    def code(self, rows: Rows) -> Bytes:
        """The bins of rows (n, F)."""
        found = np.empty((len(rows), len(self.keys)), np.uint8)
        for f, (key, edges, categories) in enumerate(zip(self.keys, self.edges, self.categories, strict=True)):
            column = rows.subjects.index(key)
            number = np.ascontiguousarray(rows.number[:, column])
            if categories is None:
                code, values = number_bins(number, edges), len(edges) + 1
            else:
                kind = np.ascontiguousarray(rows.kind[:, column])
                code, values = categories.encode(kind, number, rows.texts.get(column)), len(categories.values)
            found[:, f] = np.where(code >= values, OTHER, code)
        return found

    def leaves(self, boxes: Sequence[Flags], rating: Rating) -> Leaves:
        """Boxes (F + 1, BINS) as what each subject, and at last the rating, says of them.

        Subjects that tell no leaves apart are left out; so is the rating, if no leaf asks for it.
        """
        bit = np.uint64(1) << np.arange(len(boxes), dtype=np.uint64)
        admitted: Hashes = (np.stack(boxes) * bit[:, None, None]).sum(axis=0, dtype=np.uint64)
        of_rating = admitted[-1, : len(rating.edges) + 1]
        changes = np.flatnonzero(of_rating[1:] != of_rating[:-1])
        rates = rating.rates if len(changes) else np.zeros_like(rating.rates)
        cuts = [
            self._cut(f, bits, rates[f])
            for f, bits in enumerate(admitted[:-1])
            if (bits[self._used(f)] != bits[0]).any() or rates[f].any()
        ]
        of_rating = np.concatenate([of_rating[changes], of_rating[-1:]])
        return Leaves(len(boxes), tuple(cuts), rating.edges[changes], of_rating)

    def _used(self, f: int) -> Ints:
        """The columns of a subject that have a meaning."""
        categories = self.categories[f]
        values = len(self.edges[f]) + 1 if categories is None else len(categories.values)
        return np.append(np.arange(values), OTHER)

    def _cut(self, f: int, bits: Hashes, rates: Floats) -> Cut:
        used, edges = self._used(f), self.edges[f]
        bits, rates = bits[used], rates[used]
        if self.categories[f] is None:
            differs = (bits[1:-1] != bits[:-2]) | (rates[1:-1] != rates[:-2])
            kept = np.append(differs, [True, True])  # the last bin of values and OTHER
            bits, rates, edges = bits[kept], rates[kept], edges[differs]
        return Cut(self.keys[f], bits, rates, edges, self.categories[f])


def _edges(values: Floats) -> Floats:
    """Of bins of about equal mass, values of the baseline; the largest value is no edge."""
    if not len(values):
        return np.zeros(0)
    ordered = np.sort(values)
    return np.unique(ordered[np.arange(1, OTHER) * len(ordered) // OTHER - 1])


SMOOTHED = 4
"""Bins to either side that a bin of numbers is rated with: 7 % of the rows together."""

PRIOR_ROWS = 20.0
"""Rows of the mean that each bin is given: one without rows is rated 1."""

ROUNDS = 5
GROUPED = 8
"""Bins of numbers that are tested together: sixteen groups show a trend or a bend better than 127 bins."""


@dataclass(frozen=True, slots=True)
class Rating:
    """The logarithm of the size of the error that each bin (F, BINS) multiplies, and the edges of the sum's own bins.

    The method of minimum bias, as insurers rate (Bailey 1963): each subject's factors in turn make the rated sizes of its
    bins add up to the real ones.
    """

    rates: Floats
    edges: Floats

    @classmethod
    def learn(cls, code: Bytes, ordered: Flags, error: Floats) -> Rating:
        """Of subjects that show the size of the error by more than chance."""
        size = np.minimum(np.abs(error), np.quantile(np.abs(error), 1 - CLIPPED))
        rates, mean = np.zeros((code.shape[1], BINS)), float(size.mean())
        matter = [f for f in range(code.shape[1]) if _shows(code[:, f], bool(ordered[f]), size, code.shape[1])]
        rated = np.full(len(size), mean)
        for _ in range(ROUNDS if mean > 0 else 0):
            for f in matter:
                real, own = (np.asarray(np.bincount(code[:, f], w, BINS), np.float64) for w in (size, rated))
                if ordered[f]:
                    real, own = _smoothed(real), _smoothed(own)
                factor = (real + PRIOR_ROWS * mean) / (own + PRIOR_ROWS * mean)
                rates[f] += np.log(factor)
                rated *= factor[code[:, f]]
        held = cls(rates, np.zeros(0))
        return cls(rates, _edges(held.of(code)) if matter else np.zeros(0))

    def of(self, code: Bytes) -> Floats:
        """The rate of rows (n,)."""
        return np.asarray(self.rates[np.arange(code.shape[1]), code].sum(axis=1), dtype=np.float64)

    def code(self, code: Bytes) -> Bytes:
        """The rows' bins (n, F) with that of their rating beside them."""
        return np.column_stack([code, number_bins(self.of(code), self.edges).astype(np.uint8)])


def _smoothed(sums: Floats) -> Floats:
    """Sums over neighbours; OTHER has none."""
    found = np.convolve(sums[:OTHER], np.ones(2 * SMOOTHED + 1), "same")
    return np.append(found, sums[OTHER])


def _shows(code: Bytes, is_ordered: bool, size: Floats, subjects: int) -> bool:
    """Whether means of the size differ between groups of bins by more than chance, over all subjects."""
    group = np.where(code == OTHER, OTHER, code // GROUPED) if is_ordered else code
    rows, total = np.bincount(group, minlength=BINS), np.bincount(group, size, BINS)
    held = rows >= PRIOR_ROWS
    if held.sum() < 2 or size.var() == 0:
        return False
    away = total[held] / rows[held] - size.mean()
    return bool(special.chdtrc(held.sum() - 1, float((rows[held] * away**2).sum() / size.var())) < CHANCE / subjects)


@dataclass(frozen=True, slots=True)
class _Split:
    gain: float
    subject: int
    left: Flags  # (BINS,)


@dataclass(frozen=True, slots=True, eq=False)
class _Leaf:
    rows: Ints
    others: Ints
    box: Flags  # (F, BINS)
    split: _Split | None


def grow(code: Bytes, ordered: Flags, targets: Sequence[Floats], others: Bytes) -> list[Flags]:
    """The boxes (F, BINS) of at most MOST_LEAVES leaves.

    `code` (n, F): bins; `ordered` (F,): whether bins ascend; `targets`: (n,) each; `others` (m, F): rows that each leaf
    must hold LEAST_ROWS of, too, since what is known of it is told from them.
    """
    field = _Field(code, ordered, np.stack([_standard(target) for target in targets]), others)
    box = np.ones((code.shape[1], BINS), np.bool_)
    leaves = [field.leaf(np.arange(len(code)), np.arange(len(others)), box)]
    while len(leaves) < MOST_LEAVES:
        best = max(leaves, key=lambda leaf: leaf.split.gain if leaf.split is not None else 0.0)
        if best.split is None:
            break
        leaves.remove(best)
        leaves += field.parts(best, best.split)
    return [leaf.box for leaf in leaves]


def _standard(values: Floats) -> Floats:
    """Clipped at both ends, less the mean, over the standard deviation; zeros where nothing varies."""
    clipped = np.clip(values, *np.quantile(values, [CLIPPED, 1 - CLIPPED]))
    spread = float(clipped.std())
    return np.asarray((clipped - clipped.mean()) / spread if spread > 0 else np.zeros(len(values)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Field:
    """What leaves are parts of; `target` (T, n)."""

    code: Bytes
    ordered: Flags
    target: Floats
    others: Bytes

    def leaf(self, rows: Ints, others: Ints, box: Flags) -> _Leaf:
        """With its best split, if it has one."""
        enough = min(len(rows), len(others)) >= 2 * LEAST_ROWS
        return _Leaf(rows, others, box, self._split(rows, others) if enough else None)

    def parts(self, leaf: _Leaf, split: _Split) -> list[_Leaf]:
        """Both sides of a split."""
        found = []
        for side in (split.left, ~split.left):
            box = leaf.box.copy()
            box[split.subject] &= side
            rows = leaf.rows[side[self.code[leaf.rows, split.subject]]]
            found.append(self.leaf(rows, leaf.others[side[self.others[leaf.others, split.subject]]], box))
        return found

    def _split(self, rows: Ints, others: Ints) -> _Split | None:
        """Over all subjects and orders of their bins: by value with OTHER last or first; categories by the means of a target."""
        target = self.target[:, rows]
        tallied = _tallied(self.code[rows], [np.ones(len(rows)), *target])  # rows, then the sums of targets
        count = tallied[0]
        order = self._orders(count, tallied[1:])
        known = np.concatenate([tallied, _tallied(self.others[others], [np.ones(len(others))])])
        below = np.take_along_axis(known[:, None], order[None], axis=3).cumsum(axis=3)  # (T + 2, T, F, BINS)
        total = known.sum(axis=2)[:, None, :, None]
        above = total - below
        allowed = (np.minimum(below[[0, -1]], above[[0, -1]]) >= LEAST_ROWS).all(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            fall = below[1:-1] ** 2 / below[0] + above[1:-1] ** 2 / above[0] - total[1:-1] ** 2 / total[0]
        within = target.var(axis=1)
        evidence = sum(fall[t] / spread for t, spread in enumerate(within.tolist()) if spread > 0)
        limit = 2 * math.log(2 * BINS * len(self.ordered) / CHANCE)
        gain = np.where(allowed & (evidence > limit), fall.sum(axis=0), -np.inf)
        which, subject, last = np.unravel_index(int(np.argmax(gain)), gain.shape)
        if gain[which, subject, last] == -np.inf:
            return None
        left = np.zeros(BINS, np.bool_)
        left[order[which, subject, : last + 1]] = True
        # Where nothing is known of a category, or of what is missing, it goes with the more.
        unknown = count[subject] == 0
        if self.ordered[subject]:
            unknown = unknown & (np.arange(BINS) == OTHER)
        left[unknown] = below[0, which, subject, last] >= above[0, which, subject, last]
        return _Split(float(gain[which, subject, last]), int(subject), left)

    def _orders(self, count: Floats, sums: Floats) -> Ints:
        """(T, F, BINS)."""
        other_last = np.arange(BINS)
        natural = np.tile(np.roll(other_last, 1), (len(sums), 1, 1))
        natural[0] = other_last
        means = np.divide(sums, count, out=np.zeros_like(sums), where=count > 0)
        return np.where(self.ordered[:, None], natural, np.argsort(means, axis=2, kind="stable"))


def _tallied(code: Bytes, weights: Sequence[Floats]) -> Floats:
    """Sums of weights (W, n) by subject and bin, (W, F, BINS)."""
    subjects = code.shape[1]
    place = (code + np.arange(subjects) * BINS).ravel()
    size = subjects * BINS
    return np.stack(
        [np.bincount(place, np.repeat(weight, subjects), size).reshape(subjects, BINS) for weight in weights]
    )
