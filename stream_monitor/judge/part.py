"""One class over a window, as cells of rows: which of them are taken for it, and with what probability they are of it.

A row whose truth has come is of the class with probability 0 or 1, and its cell has no chance left in it; so the same sums
tell what to expect of a window none of whose labels are there, of one with some, and of one with all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stream_monitor.judge.calibration import Calibration
from stream_monitor.judge.expectation import Estimate, Range
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.histogram import Histogram
from stream_monitor.summarize.outcome import SCORE_BINS_PER_OCTAVE
from stream_monitor.summarize.scores import middle_of_bin, probability_bin


@dataclass(frozen=True, slots=True)
class Part:
    """By cell (k,): bin of the model's probability, whether predicted, rows, that probability, and the calibrated one.

    `stake`: how far the probability follows the calibrated one; 0: the truth is known. `gone` (2,): of those that are not
    predicted and of those that are, the share that has its truth, where it is not known which of them.
    """

    bin: Ints
    chosen: Floats  # 0 or 1
    count: Floats
    own: Floats
    probability: Floats
    stake: Floats
    calibration: Calibration
    gone: tuple[float, float] = (0.0, 0.0)
    conservative: bool = False  # several classes: their truths are not independent, and a bound stands for the variance

    @classmethod
    def of(cls, histogram: Histogram, calibration: Calibration, *, odds: float = 1.0) -> Part:
        """Of a window's counts. `odds`: how many times more rows of the class than of the others lack their truth."""
        keys, counts = histogram.arrays()
        bins = keys >> 1
        calibrated = calibration.read(bins)
        under = calibrated * odds + 1 - calibrated
        return cls(
            bins,
            (keys & 1).astype(np.float64),
            counts.astype(np.float64),
            middle_of_bin(bins),
            calibrated * odds / under,
            odds / under**2,
            calibration,
        )

    def less_scores(self, known: Histogram) -> Part | None:
        """With the truths of some rows by score (`outcome.binned_scores`); None where they are no part of these.

        Rows of a bin that is partly predicted count as predicted in the same proportion: one bin, at the threshold.
        """
        keys, counts = known.arrays()
        fine = probability_bin(middle_of_bin(keys >> 1, per_octave=SCORE_BINS_PER_OCTAVE))
        bins, place = np.unique(self.bin, return_inverse=True)
        rows = _summed(place, self.count, len(bins))
        where = np.minimum(np.searchsorted(bins, fine), len(bins) - 1)
        gone = _summed(where, counts, len(bins))
        if not (bins[where] == fine).all() or (gone > rows).any():
            return None
        share = (_summed(place, self.count * self.chosen, len(bins)) / rows)[where]
        left = self._scaled((1 - gone / rows)[place])
        truth = (keys & 1).astype(np.float64)
        both = np.concatenate([counts * share, counts * (1 - share)])
        chosen = np.repeat([1.0, 0.0], len(keys))
        return left._with_known(np.tile(fine, 2), chosen, both, np.tile(truth, 2))

    def less_pairs(self, label: str, known: Mapping[tuple[str, str], int]) -> Part | None:
        """With the truths of some rows by (truth, predicted), of which this class is `label`; None as above.

        Those left are as many fewer of those predicted as it, and of the others, as have their truth.
        """
        both = np.zeros((2, 2))  # predicted as the class or not, of it or not
        for (truth, predicted), count in known.items():
            both[int(predicted == label), int(truth == label)] += count
        gone, rows = both.sum(axis=1), np.array([self.rows - self.taken, self.taken])
        if (gone > rows).any():
            return None
        kept = 1 - np.divide(gone, rows, out=np.zeros(2), where=rows > 0)
        left = self._scaled(kept[self.chosen.astype(np.int64)])
        chosen, true = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
        found = left._with_known(np.full(4, self.bin[0]), chosen, both.ravel(), true)
        return replace(found, gone=(1 - float(kept[0]), 1 - float(kept[1])))

    def _scaled(self, share: Floats) -> Part:
        return replace(self, count=self.count * share)

    def _with_known(self, bins: Ints, chosen: Floats, count: Floats, truth: Floats) -> Part:
        return Part(
            np.concatenate([self.bin, bins]),
            np.concatenate([self.chosen, chosen]),
            np.concatenate([self.count, count]),
            np.concatenate([self.own, np.full(len(bins), 0.5)]),  # their losses are known, and told apart
            np.concatenate([self.probability, truth]),
            np.concatenate([self.stake, np.zeros(len(bins))]),
            self.calibration,
        )

    @property
    def rows(self) -> float:
        return float(self.count.sum())

    @property
    def unknown(self) -> Floats:
        """Rows without their truth (k,)."""
        return np.where(self.stake > 0, self.count, 0.0)

    @property
    def true(self) -> float:
        """Expected rows of the class."""
        return float((self.count * self.probability).sum())

    @property
    def hits(self) -> float:
        """Expected rows of the class that are predicted as it."""
        return float((self.count * self.probability * self.chosen).sum())

    @property
    def taken(self) -> float:
        """Rows predicted as the class."""
        return float((self.count * self.chosen).sum())

    def variances(self, slope: Floats) -> tuple[float, float]:
        """Of a metric that moves by `slope` with the truth of a row in each cell: by sampling, and by calibration."""
        spread = self.probability if self.conservative else self.probability * (1 - self.probability)
        sampling = float((self.unknown * slope**2 * spread).sum()) + self._drawn(slope * self.probability)
        return sampling, self.calibration.variance(self.bin, self.count * slope * self.stake)

    def _drawn(self, values: Floats) -> float:
        """Variance of the sum of values over the rows without truth, if these are any of the rows predicted alike."""
        found = 0.0
        for chosen, gone in enumerate(self.gone):
            rows = np.where(self.chosen == chosen, self.unknown, 0.0)
            if gone > 0 and rows.any():
                mean = float((rows * values).sum() / rows.sum())
                found += gone * float((rows * (values - mean) ** 2).sum())
        return found

    def ratio(self, by_chosen: float, by_truth: float) -> tuple[float, Floats]:
        """(c + t) hits / (c chosen + t true), 0 where the class is not chosen, and its slope."""
        under = by_chosen * self.taken + by_truth * self.true
        if under <= 0:
            return 0.0, np.zeros(len(self.bin))
        value = (by_chosen + by_truth) * self.hits / under
        return value, ((by_chosen + by_truth) * self.chosen - value * by_truth) / under

    def estimate(self, value: float, slope: Floats, *, constant: float, of: Range = Range.SHARE) -> Estimate:
        sampling, calibration = self.variances(slope)
        return Estimate(value, sampling, calibration, of, constant, round(self.rows))


def _summed(place: Ints, weight: Ints | Floats, places: int) -> Floats:
    return np.asarray(np.bincount(place, weight, places), dtype=np.float64)
