"""Model quality from joined labels: each metric with its 95 % interval and what the best constant would score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from stream_monitor.judge import calibrate, distance
from stream_monitor.judge.verdicts import Span
from stream_monitor.records import Floats, Ints, Score, Verdict
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task, errors, value_of_bin, variance

CONFIDENCE_Z = 1.959963984540054  # two-sided 95 %
FEWEST_CLASSIFIED = 30  # the test of an error rate is exact; below 30 labels one error is all it could speak of
FEWEST_MEASURED = 100  # a mean of 100 skewed errors is near enough to normal once corrected for its skewness
NAN = math.nan


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric, the ends of its 95 % interval, and the same metric of the best constant prediction. NaN: undefined."""

    value: float
    lower: float
    upper: float
    best_constant: float


@dataclass(frozen=True, slots=True)
class Shift:
    """Whether errors grew: the window's mean error against the baseline's."""

    statistic: str  # error_rate | mean_absolute_error
    value: float
    expected: float
    threshold: float
    effect: float
    samples: int
    baseline_samples: int
    verdict: Verdict


def metrics(profile: OutcomeProfile) -> dict[str, Metric]:
    """Every metric of the profile's task; a metric without the rows it needs is NaN.

    Regression: mae, mse, rmse, r2, bias. Binary: accuracy, precision, recall, f1, auc, log_loss, brier.
    Several classes: accuracy, log_loss; precision, recall and f1 as plain means over the classes; weighted_precision,
    weighted_recall, weighted_f0_5, weighted_f1 and weighted_f2 as means weighted by the rows of each true class.
    """
    if profile.task is Task.REGRESSION:
        return _regression(profile)
    if profile.task is Task.BINARY:
        return _binary(profile) | _probabilistic(profile, _prevalences(profile))
    return _multiclass(profile) | _probabilistic(profile, _prevalences(profile), has_brier=False)


def error_shift(baseline: OutcomeProfile, window: OutcomeProfile, *, alpha: float, minimum_effect: float) -> Shift:
    """Test whether predictions became worse: `drift` needs evidence at `alpha`, one-sided, and a practical effect.

    Classes: the error rate, by Fisher's test, effect |Cohen's h|. Numbers: the mean absolute error, by a normal test
    with the pooled spread and Cornish and Fisher's correction for skewness, effect its shift in the baseline's
    standard deviations of |error|. An improvement is no drift. Too few labels on a side: `insufficient`.
    """
    if window.task is Task.REGRESSION:
        return _measured_shift(baseline, window, alpha, minimum_effect)
    return _classified_shift(baseline, window, alpha, minimum_effect)


def score_errors(span: Span, shift: Shift, *, outcome: str = "label") -> Score:
    """The shift as a score row of subject kind `metric`; an outcome other than `label` prefixes the subject."""
    subject = shift.statistic if outcome == "label" else f"{outcome}.{shift.statistic}"
    return Score(
        span.line,
        span.window,
        span.start_us,
        span.end_us,
        span.reference,
        subject,
        "metric",
        shift.statistic,
        shift.value,
        shift.expected,
        shift.threshold,
        shift.effect,
        shift.samples,
        shift.baseline_samples,
        shift.verdict,
    )


def standardised_errors(joined: Joined, baseline: OutcomeProfile) -> Floats:
    """Each row's error less the baseline's mean, over its standard deviation, (n,): what error detectors are fed."""
    error = errors(joined, baseline.task, positive_label=baseline.positive_label)
    mean, sd = error_moments(baseline)
    return np.asarray((error - mean) / sd, dtype=np.float64)


def error_moments(profile: OutcomeProfile) -> tuple[float, float]:
    """Mean and standard deviation of a row's error. Rates are taken half an error off 0 and 1, to deviate at all."""
    if profile.task is not Task.REGRESSION:
        rows, wrong = _classified(profile)
        rate = (wrong + 0.5) / (rows + 1)
        return rate, math.sqrt(rate * (1 - rate))
    mean, square, _ = _absolute_moments(profile)
    return mean, math.sqrt(square) or 1.0


def _regression(profile: OutcomeProfile) -> dict[str, Metric]:
    n = profile.rows
    if n == 0:
        return dict.fromkeys(("mae", "mse", "rmse", "r2", "bias"), Metric(NAN, NAN, NAN, NAN))
    total = {name: part.value / n for name, part in profile.sums.items()}
    spread = variance(profile.sums["target"], profile.sums["target_squared"], n)
    mse = _mean(total["squared"], total["fourth"], n, constant=spread)
    r2 = Metric(NAN, NAN, NAN, 0.0)
    if spread > 0:  # the spread of the truth is taken as known: what varies is the error
        r2 = Metric(1 - mse.value / spread, 1 - mse.upper / spread, 1 - mse.lower / spread, 0.0)
    return {
        "mae": _mean(total["absolute"], total["squared"], n, constant=_median_deviation(profile)),
        "mse": mse,
        "rmse": Metric(*(math.sqrt(part) for part in (mse.value, mse.lower, mse.upper, spread))),
        "r2": r2,
        "bias": _mean(total["error"], total["squared"], n, constant=0.0, floor=-math.inf),
    }


def _binary(profile: OutcomeProfile) -> dict[str, Metric]:
    tp, fn = profile.pairs[("1", "1")], profile.pairs[("1", "0")]
    fp, tn = profile.pairs[("0", "1")], profile.pairs[("0", "0")]
    n, positives = tp + fn + fp + tn, tp + fn
    share = positives / n if n else NAN
    return {
        "accuracy": _proportion(tp + tn, n, constant=max(share, 1 - share)),
        "precision": _proportion(tp, tp + fp, constant=share),
        "recall": _proportion(tp, positives, constant=1.0 if positives else NAN),
        "f1": _f1(tp, fp, fn, constant=2 * share / (1 + share)),
        "auc": _auc(profile),
    }


def _f1(tp: int, fp: int, fn: int, *, constant: float) -> Metric:
    """F1 is 2 J / (1 + J) of Jaccard's J = tp / (tp + fp + fn), a proportion: its Wilson interval carries over."""
    jaccard = _proportion(tp, tp + fp + fn, constant=NAN)
    value, lower, upper = (2 * j / (1 + j) for j in (jaccard.value, jaccard.lower, jaccard.upper))
    return Metric(value, lower, upper, constant)


def _auc(profile: OutcomeProfile) -> Metric:
    """Area under the ROC curve from score histograms: P(score of a positive > score of a negative), ties half.

    Scores in one bin count as ties; the error is at most half the probability that a positive and a negative share a
    bin, and where both are smooth far below it: under 1e-3 for any score spread over a few octaves of
    `outcome.score_bin`'s 128 bins. Interval: DeLong, DeLong and Clarke-Pearson 1988, on the logit; Wilson's over the
    rarer class where there is no spread to estimate.
    """
    bins = sorted({key >> 1 for key in profile.scores})
    positive = np.array([profile.scores[key * 2 + 1] for key in bins], dtype=np.float64)
    negative = np.array([profile.scores[key * 2] for key in bins], dtype=np.float64)
    p, q = positive.sum(), negative.sum()
    if p == 0 or q == 0:
        return Metric(NAN, NAN, NAN, 0.5)
    below = (np.cumsum(negative) - negative / 2) / q  # for a positive in this bin
    above = (np.cumsum(positive[::-1])[::-1] - positive / 2) / p  # for a negative in this bin
    auc = float((positive * below).sum() / p)
    spread = _spread_of_mean(below, positive) + _spread_of_mean(above, negative)
    if spread == 0:  # perfect separation, or one bin: the pairs say nothing of the spread, the rows still do
        fewer = int(min(p, q))
        return _proportion(auc * fewer, fewer, constant=0.5)
    inner = min(max(auc, 1e-12), 1 - 1e-12)
    error = math.sqrt(spread) / (inner * (1 - inner))
    middle = math.log(inner / (1 - inner))
    lower, upper = (float(special.expit(middle + side * CONFIDENCE_Z * error)) for side in (-1, 1))
    return Metric(auc, lower, upper, 0.5)


def _spread_of_mean(values: Floats, weights: Floats) -> float:
    n = weights.sum()
    mean = (values * weights).sum() / n
    return float(((values - mean) ** 2 * weights).sum() / n / max(n - 1, 1))


def _probabilistic(profile: OutcomeProfile, prevalence: Floats, *, has_brier: bool = True) -> dict[str, Metric]:
    """Log loss in nats and Brier's score; the best constant is the prevalence of each class."""
    n = profile.probable
    present = prevalence[prevalence > 0]
    constants = {"log_loss": float(-(present * np.log(present)).sum()) if len(present) else NAN}
    if has_brier:
        constants["brier"] = float(prevalence[0] * prevalence[1]) if len(prevalence) == 2 else NAN
    if n == 0:
        return {name: Metric(NAN, NAN, NAN, constant) for name, constant in constants.items()}
    return {
        name: _mean(profile.sums[name].value / n, profile.sums[f"{name}_squared"].value / n, n, constant=constant)
        for name, constant in constants.items()
    }


_SHAPES = {"precision": (1.0, 0.0), "recall": (0.0, 1.0), "f1": (1.0, 1.0), "f0_5": (1.0, 0.25), "f2": (1.0, 4.0)}
"""Each ratio of a class is (c + t) hits / (c chosen + t support): its c and t."""

_MACRO = ("precision", "recall", "f1")
_WEIGHTED = ("precision", "f0_5", "f1", "f2")


def _multiclass(profile: OutcomeProfile) -> dict[str, Metric]:
    n = sum(profile.pairs.values())
    if n == 0:
        names = ("accuracy", *_MACRO, "weighted_recall", *(f"weighted_{name}" for name in _WEIGHTED))
        return dict.fromkeys(names, Metric(NAN, NAN, NAN, NAN))
    confusion = _Confusion.of(profile)
    accuracy = _proportion(int(confusion.hits.sum()), n, constant=float(confusion.support.max()) / n)
    return {
        "accuracy": accuracy,
        **{name: confusion.macro(*_SHAPES[name]) for name in _MACRO},
        "weighted_recall": accuracy,
        **{f"weighted_{name}": confusion.weighted(*_SHAPES[name]) for name in _WEIGHTED},
    }


@dataclass(frozen=True, slots=True)
class _Confusion:
    """Sparse confusion: `count` rows of class `truth` predicted as `predicted`, and by class: truths, choices, hits."""

    truth: Ints
    predicted: Ints
    count: Floats
    support: Floats
    chosen: Floats
    hits: Floats

    @classmethod
    def of(cls, profile: OutcomeProfile) -> _Confusion:
        """The confusion of a profile of several classes."""
        labels = sorted({label for pair in profile.pairs for label in pair})
        index = {label: k for k, label in enumerate(labels)}
        truth = np.array([index[truth] for truth, _ in profile.pairs], dtype=np.int64)
        predicted = np.array([index[predicted] for _, predicted in profile.pairs], dtype=np.int64)
        count = np.array(list(profile.pairs.values()), dtype=np.float64)
        hit = truth == predicted
        return cls(
            truth,
            predicted,
            count,
            support=_by_class(truth, weights=count, classes=len(labels)),
            chosen=_by_class(predicted, weights=count, classes=len(labels)),
            hits=_by_class(truth[hit], weights=count[hit], classes=len(labels)),
        )

    def macro(self, by_chosen: float, by_truth: float) -> Metric:
        """The plain mean of a ratio over the classes that are a truth or a prediction."""
        classes = len(self.support)
        ratio = self._ratio(by_chosen, by_truth)
        slope = self._slope(ratio, by_chosen, by_truth, weight=np.full(classes, 1 / classes))
        constant = self._of_constant(by_chosen, by_truth) / np.count_nonzero(self.support)
        return self._metric(float(ratio.mean()), slope, constant)

    def weighted(self, by_chosen: float, by_truth: float) -> Metric:
        """The mean of a ratio weighted by the truths of each class."""
        n = self.count.sum()
        ratio = self._ratio(by_chosen, by_truth)
        value = float((self.support * ratio).sum() / n)
        slope = self._slope(ratio, by_chosen, by_truth, weight=self.support / n) + (ratio[self.truth] - value) / n
        return self._metric(value, slope, self._of_constant(by_chosen, by_truth) * float(self.support.max() / n))

    def _ratio(self, by_chosen: float, by_truth: float) -> Floats:
        return _divide((by_chosen + by_truth) * self.hits, by_chosen * self.chosen + by_truth * self.support)

    def _slope(self, ratio: Floats, by_chosen: float, by_truth: float, *, weight: Floats) -> Floats:
        """How the sum of `weight` x ratio moves with one more row in each cell, the weights kept."""
        per_row = _divide(weight, by_chosen * self.chosen + by_truth * self.support)
        hit = np.where(self.truth == self.predicted, (by_chosen + by_truth) * per_row[self.truth], 0.0)
        lost = ratio * per_row
        return np.asarray(hit - by_chosen * lost[self.predicted] - by_truth * lost[self.truth], dtype=np.float64)

    def _of_constant(self, by_chosen: float, by_truth: float) -> float:
        """The ratio of the most frequent class where it is always predicted; that of all others is 0."""
        top = float(self.support.max() / self.count.sum())
        return (by_chosen + by_truth) * top / (by_chosen + by_truth * top)

    def _metric(self, value: float, slope: Floats, constant: float) -> Metric:
        """With the delta method's interval over multinomial cells."""
        error = CONFIDENCE_Z * math.sqrt(float((self.count * slope**2).sum()))
        return Metric(value, max(value - error, 0.0), min(value + error, 1.0), constant)


def _by_class(index: Ints, *, weights: Floats, classes: int) -> Floats:
    return np.asarray(np.bincount(index, weights=weights, minlength=classes), dtype=np.float64)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """A ratio, 0 where the denominator is: a class never predicted has precision 0, as everybody reports it."""
    return np.asarray(
        np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0), dtype=np.float64
    )


def _proportion(hits: float, n: int, *, constant: float) -> Metric:
    """A share with Wilson's interval (1927)."""
    if n == 0:
        return Metric(NAN, NAN, NAN, constant)
    share, square = hits / n, CONFIDENCE_Z**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = CONFIDENCE_Z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return Metric(share, min(max(middle - half, 0.0), share), max(min(middle + half, 1.0), share), constant)


def _mean(mean: float, mean_square: float, n: int, *, constant: float, floor: float = 0.0) -> Metric:
    """A mean with its normal interval; `mean_square` is the mean of the squares."""
    error = CONFIDENCE_Z * math.sqrt(max(mean_square - mean * mean, 0.0) / max(n - 1, 1))
    return Metric(mean, max(mean - error, floor), mean + error, constant)


def _median_deviation(profile: OutcomeProfile) -> float:
    """Mean absolute error of predicting the median, from the histogram of truths (bins 3 % wide)."""
    keys = sorted(profile.targets)
    count = np.array([profile.targets[key] for key in keys], dtype=np.float64)
    middle = np.array([value_of_bin(key) for key in keys])
    median = middle[np.searchsorted(np.cumsum(count), count.sum() / 2)]
    return float((np.abs(middle - median) * count).sum() / count.sum())


def _prevalences(profile: OutcomeProfile) -> Floats:
    """Share of each true class; binary: the negative and the positive."""
    rows: dict[str, int] = {"0": 0, "1": 0} if profile.task is Task.BINARY else {}
    for (truth, _), count in profile.pairs.items():
        rows[truth] = rows.get(truth, 0) + count
    count_of = np.array(list(rows.values()), dtype=np.float64)
    return np.asarray(count_of / count_of.sum() if count_of.sum() else np.empty(0), dtype=np.float64)


def _classified(profile: OutcomeProfile) -> tuple[int, int]:
    rows = sum(profile.pairs.values())
    return rows, rows - sum(count for (truth, predicted), count in profile.pairs.items() if truth == predicted)


def _absolute_moments(profile: OutcomeProfile) -> tuple[float, float, float]:
    """Mean, variance and third central moment of |error|."""
    if profile.rows == 0:
        return NAN, NAN, NAN
    mean, square, cube = (profile.sums[name].value / profile.rows for name in ("absolute", "squared", "cubed"))
    return mean, max(square - mean * mean, 0.0), cube - 3 * mean * square + 2 * mean**3


def _classified_shift(baseline: OutcomeProfile, window: OutcomeProfile, alpha: float, minimum_effect: float) -> Shift:
    (m, wrong_before), (n, wrong) = _classified(baseline), _classified(window)
    if min(m, n) < FEWEST_CLASSIFIED:
        value, expected = (wrong / n if n else NAN), (wrong_before / m if m else NAN)
        return Shift("error_rate", value, expected, NAN, NAN, n, m, Verdict.INSUFFICIENT)
    null = calibrate.ratio_null(np.array([n]), np.array([m]), hits=np.array([wrong_before]), alpha=alpha)
    value, threshold = wrong / n, float(null.threshold[0])
    effect = float(distance.cohens_h(np.array([wrong_before / m]), np.array([value]))[0])
    verdict = Verdict.DRIFT if value > threshold and effect >= minimum_effect else Verdict.OK
    return Shift("error_rate", value, wrong_before / m, threshold, effect, n, m, verdict)


def _measured_shift(baseline: OutcomeProfile, window: OutcomeProfile, alpha: float, minimum_effect: float) -> Shift:
    n, m = window.rows, baseline.rows
    before, value = _absolute_moments(baseline)[0], _absolute_moments(window)[0]
    name = "mean_absolute_error"
    if min(m, n) < FEWEST_MEASURED:
        return Shift(name, value, before, NAN, NAN, n, m, Verdict.INSUFFICIENT)
    _, second, third = _absolute_moments(baseline.merge(window))
    skewness = third / second**1.5 if second > 0 else 0.0
    quantile = float(calibrate.upper_quantile(np.array([n]), np.array([m]), skewness=skewness, alpha=alpha)[0])
    threshold = before + quantile * math.sqrt(second * (1 / n + 1 / m))
    effect = abs(value - before) / error_moments(baseline)[1]
    verdict = Verdict.DRIFT if value > threshold and effect >= minimum_effect else Verdict.OK
    return Shift(name, value, before, threshold, effect, n, m, verdict)
