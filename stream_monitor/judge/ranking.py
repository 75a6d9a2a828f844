"""How well scores rank: areas under the ROC and the precision-recall curve, from histograms of scores that merge.

Up to `histogram.MOST_SCORES` distinct scores, with their truths, are kept one by one, and the areas are scikit-learn's.
Of more, those that share a bin (of `summarize.outcome.score_bin` at worst) with none in the bins beside it count as
ties, and ties as scikit-learn counts them: that is exact where scores are rounded to steps wider than a bin. Where the
bins beside hold rows too, rows in a bin are taken to lie as the densities slope. The areas are then within 1e-3 of
scikit-learn's on thousands of scores as people have them, however skewed, saturated or rounded, and down to a deviation
of .02 around a half (`tests/benchmarks/performance.py`); at worst the ROC area is off by the share of (positive,
negative) pairs in one bin.
Narrow scores are cut less, those of deviation .0001 around .6 are told as well. Where half of all are so narrow and the
others lie anywhere, 20,000 of them miss .014 of the ROC area.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stream_monitor.judge.metric import Metric, on_logit, proportion, undefined
from stream_monitor.records import Flags, Floats, Ints
from stream_monitor.summarize.histogram import Scores


@dataclass(frozen=True, slots=True)
class Ranks:
    """Positives and negatives by bins of the score, (k,), ascending; `inner`: whether the bins beside hold rows too."""

    positive: Floats
    negative: Floats
    inner: Flags

    @classmethod
    def of(cls, scores: Scores) -> Ranks:
        """Of scores with their truths."""
        steps, true, counts = scores.steps()
        bins, place = np.unique(steps, return_inverse=True)
        weights = [np.where(true == truth, counts, 0).astype(np.float64) for truth in (1, 0)]
        positive, negative = (np.bincount(place, weights=weight, minlength=len(bins)) for weight in weights)
        # Below a half bins end at -2, from there on they begin at 1.
        return cls.of_cells(bins - 2 * (bins > 0), positive.astype(np.float64), negative.astype(np.float64))

    @classmethod
    def of_cells(cls, place: Ints, positive: Floats, negative: Floats) -> Ranks:
        """Of rows, or of expected ones, by bins in ascending places; those side by side are one apart."""
        inner = np.zeros(len(place), dtype=np.bool_)
        inner[1:-1] = place[2:] - place[:-2] == 2
        return cls(positive, negative, inner)

    def area(self) -> float:
        """The area under the ROC curve; NaN without rows of both kinds."""
        p, q = float(self.positive.sum()), float(self.negative.sum())
        if p == 0 or q == 0:
            return math.nan
        below = (np.cumsum(self.negative) - self.negative / 2) / q
        area = float((self.positive * below).sum() / p) + self._within_bins() / (p * q)
        return min(max(area, 0.0), 1.0)

    def auc(self) -> Metric:
        """Area under the ROC curve: P(score of a positive > score of a negative), ties half.

        Interval: DeLong, DeLong and Clarke-Pearson (1988), on the logit; Wilson's over the rarer class where there is
        no spread to estimate, as when the classes are apart.
        """
        p, q = float(self.positive.sum()), float(self.negative.sum())
        if p == 0 or q == 0:
            return undefined(0.5)
        below = (np.cumsum(self.negative) - self.negative / 2) / q  # for a positive in this bin
        above = (np.cumsum(self.positive[::-1])[::-1] - self.positive / 2) / p  # for a negative in this bin
        area = self.area()
        variance = _variance_of_mean(below, self.positive) + _variance_of_mean(above, self.negative)
        if variance == 0:
            fewer = int(min(p, q))
            return proportion(area * fewer, fewer, constant=0.5, samples=int(p + q))
        return on_logit(area, variance, constant=0.5, samples=int(p + q))

    def pr_auc(self) -> Metric:
        """Average precision: the mean over the positives of the precision at their score, as a step function.

        Interval: the delta method over multinomial cells, on the logit. With one more row in a cell the precisions at
        all lower scores move; the slopes add up to none over the rows, the area being free of their number.
        """
        p, q = float(self.positive.sum()), float(self.negative.sum())
        if p == 0:
            return undefined()
        found, false = (np.cumsum(part[::-1])[::-1] for part in (self.positive, self.negative))
        chosen = found + false
        precision = found / chosen
        area = float((self.positive * np.where(self.inner, self._interleaved(found, false), precision)).sum() / p)
        constant = p / (p + q)
        per_row = self.positive / (chosen * chosen)
        of_positive = (precision + np.cumsum(per_row * false) - area) / p
        of_negative = -np.cumsum(per_row * found) / p
        variance = float((self.positive * of_positive**2 + self.negative * of_negative**2).sum())
        if variance < 1e-24:
            return proportion(area * p, int(p), constant=constant, samples=int(p + q))
        return on_logit(area, variance, constant=constant, samples=int(p + q))

    def _within_bins(self) -> float:
        """Pairs in one bin that are in order, beyond half of them: from how both densities slope over the bins beside.

        Where densities 1 + a x and 1 + b x fall in a bin of width 1, P(first > second) is 1/2 + (a - b) / 12.
        """
        rise, fall = (np.zeros(len(self.inner)) for _ in range(2))
        if len(self.inner) > 2:
            rise[1:-1] = (self.positive[2:] - self.positive[:-2]) * self.negative[1:-1]
            fall[1:-1] = (self.negative[2:] - self.negative[:-2]) * self.positive[1:-1]
        return float((rise - fall)[self.inner].sum() / 24)

    def _interleaved(self, found: Floats, false: Floats) -> Floats:
        """The mean precision at the positives of each bin, were its rows in any order: Gauss's rule over the bin."""
        before, wrong = found - self.positive, false - self.negative
        precision = np.zeros(len(found))
        for node, weight in ((0.5 - 0.15**0.5, 5 / 18), (0.5, 8 / 18), (0.5 + 0.15**0.5, 5 / 18)):
            right = before + node * np.maximum(self.positive - 1, 0.0) + 1
            precision += weight * right / (right + wrong + node * self.negative)
        return precision

    def curves(self, points: int) -> dict[str, dict[str, list[float]]]:
        """Both curves at thresholds that fall, thinned to so many points; the names are SageMaker's."""
        p, q = float(self.positive.sum()), float(self.negative.sum())
        if p == 0 or q == 0:
            return {}
        found, false = (np.cumsum(part[::-1]) for part in (self.positive, self.negative))
        kept = np.unique(np.linspace(0, len(found) - 1, min(points, len(found))).astype(np.int64))
        found, false = found[kept], false[kept]
        return {
            "receiver_operating_characteristic_curve": {
                "false_positive_rates": [0.0, *(false / q).tolist()],
                "true_positive_rates": [0.0, *(found / p).tolist()],
            },
            "precision_recall_curve": {
                "precisions": [1.0, *(found / (found + false)).tolist()],
                "recalls": [0.0, *(found / p).tolist()],
            },
        }


def _variance_of_mean(values: Floats, weights: Floats) -> float:
    n = weights.sum()
    average = (values * weights).sum() / n
    return float(((values - average) ** 2 * weights).sum() / n / max(n - 1, 1))
