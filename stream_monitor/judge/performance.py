"""Model quality from joined labels: each metric with its 95 % interval and what the best constant would score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stream_monitor.judge import calibrate, distance
from stream_monitor.judge.metric import (
    CONFIDENCE_Z,
    NAN,
    Metric,
    mean,
    on_logit,
    positive_mean,
    proportion,
    ratio_below_one,
    undefined,
)
from stream_monitor.judge.ranking import Ranks
from stream_monitor.judge.spectrum import Spectrum
from stream_monitor.judge.verdicts import Span
from stream_monitor.records import Floats, Ints, Performance, Score, Verdict
from stream_monitor.summarize.outcome import (
    CONFIDENCE_SUMS,
    RELIABILITY_BINS,
    VALUE_SUMS,
    Joined,
    OutcomeProfile,
    Task,
    errors,
    variance,
)

FEWEST_CLASSIFIED = 30  # the test of an error rate is exact; below 30 labels one error is all it could speak of
FEWEST_MEASURED = 100  # a mean of 100 skewed errors is near enough to normal once corrected for its skewness
MOST_CLASSES = 20
"""Classes with figures of their own, the most frequent truths first: a row for each figure, window and class."""


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


def performance_rows(
    found: Mapping[str, Metric],
    span: Span,
    *,
    outcome: str,
    basis: str,
    coverage: float,
    reference: OutcomeProfile | None,
) -> list[Performance]:
    """The metrics of one window as rows of `performance.parquet`, beside those of the baseline where it has truth."""
    base = {} if reference is None else metrics(reference)
    return [
        Performance(
            line=span.line,
            outcome=outcome,
            basis=basis,
            window=span.window,
            window_start_us=span.start_us,
            window_end_us=span.end_us,
            metric=name,
            value=metric.value,
            lower=metric.lower,
            upper=metric.upper,
            samples=metric.samples,
            coverage=coverage,
            baseline_value=base[name].value if name in base else math.nan,
            best_constant=metric.best_constant,
        )
        for name, metric in found.items()
    ]


def metrics(profile: OutcomeProfile) -> Mapping[str, Metric]:
    """Every metric of the profile's task; what the rows do not define is NaN. Worked out once for each state of it.

    Regression: mae, mse, rmse, r2, mape, bias; error_p05, error_p50, error_p95 of predicted - true and
    absolute_error_p50, _p90, _p99, from bins .8 % wide. mape is the mean of |error| / |truth| over the rows whose truth
    is not zero. Binary: accuracy, precision, recall, specificity, f0_5, f1, f2, auc, pr_auc, log_loss, brier,
    calibration_error, and SageMaker's true_positive_rate, true_negative_rate, false_positive_rate and
    false_negative_rate. Several classes: accuracy, log_loss, brier, calibration_error; precision, recall, f0_5, f1 and f2
    as plain means over the classes, weighted_* as means weighted by the rows of each true class; and precision[c],
    recall[c], specificity[c] and f1[c] of the most frequent classes. Numbers of their own: mean, p05, p50, p95, of which
    no constant would score anything.

    In the means a class that is never predicted has precision 0, as in scikit-learn; its own precision is NaN.
    """
    found: Mapping[str, Metric] | None = profile.derived.get("metrics")
    if found is None:
        # What is not whole says nothing.
        told = profile if profile.is_whole else OutcomeProfile(profile.task, profile.positive_label)
        found = profile.derived["metrics"] = _metrics(told)
    return found


def headlines(profile: OutcomeProfile) -> list[tuple[str, Metric]]:
    """The metrics that have series of their own: no class's, and none that is another by a second name or its rest to 1."""
    return [(name, metric) for name, metric in metrics(profile).items() if "[" not in name and name not in _MIRRORED]


_MIRRORED = {"true_positive_rate", "true_negative_rate", "false_positive_rate", "false_negative_rate"}


def _metrics(profile: OutcomeProfile) -> Mapping[str, Metric]:
    if profile.task is Task.REGRESSION:
        return _regression(profile)
    if profile.task is Task.VALUE:
        return _value(profile)
    counted = _binary(profile) if profile.task is Task.BINARY else _multiclass(profile)
    return counted | _probabilistic(profile, _prevalences(profile))


def error_shift(baseline: OutcomeProfile, window: OutcomeProfile, *, alpha: float, minimum_effect: float) -> Shift:
    """Test whether predictions became worse: `drift` needs evidence at `alpha`, one-sided, and a practical effect.

    Classes: the error rate, by Fisher's test, effect |Cohen's h|. Numbers: the mean absolute error, by a normal test
    with the pooled spread and Cornish and Fisher's correction for skewness, effect its shift in the baseline's
    standard deviations of |error|. An improvement is no drift. Numbers of their own: their mean, by the same test in
    both directions. Too few labels on a side: `insufficient`.
    """
    if window.task in (Task.REGRESSION, Task.VALUE):
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
    if profile.task in (Task.BINARY, Task.MULTICLASS):
        rows, wrong = _classified(profile)
        rate = (wrong + 0.5) / (rows + 1)
        return rate, math.sqrt(rate * (1 - rate))
    mean, square, _ = _absolute_moments(profile)
    return mean, math.sqrt(square) or 1.0


QUANTILES = {"error_p05": 0.05, "error_p50": 0.5, "error_p95": 0.95}
ABSOLUTE_QUANTILES = {"absolute_error_p50": 0.5, "absolute_error_p90": 0.9, "absolute_error_p99": 0.99}

_VALUE_QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


def _regression(profile: OutcomeProfile) -> dict[str, Metric]:
    n = profile.rows
    if n == 0:
        names = ("mae", "mse", "rmse", "r2", "mape", "bias", *QUANTILES, *ABSOLUTE_QUANTILES)
        return dict.fromkeys(names, undefined())
    total = {name: part.value / n for name, part in profile.sums.items()}
    spread = variance(profile.sums["target"], profile.sums["target_squared"], n)
    mse = positive_mean(total["squared"], total["fourth"], n, constant=spread)
    truth = Spectrum.of(profile.targets)
    median = truth.quantile(0.5)
    error, constant = Spectrum.of(profile.errors), truth.from_constant(median)
    return {
        "mae": positive_mean(total["absolute"], total["squared"], n, constant=truth.distance_to(median)),
        "mse": mse,
        "rmse": Metric(math.sqrt(mse.value), math.sqrt(mse.lower), math.sqrt(mse.upper), math.sqrt(spread), n),
        "r2": _r2(profile, mse.value, total["fourth"], spread, truth),
        "mape": _mape(profile, truth),
        "bias": mean(total["error"], total["squared"], n, constant=0.0),
        **_quantiles(error, constant, QUANTILES),
        **_quantiles(error.folded(), constant.folded(), ABSOLUTE_QUANTILES),
    }


def _value(profile: OutcomeProfile) -> dict[str, Metric]:
    """How high numbers lie. Those that are never negative are mostly skewed, as losses are."""
    n = profile.rows
    if n == 0:
        return dict.fromkeys(("mean", *_VALUE_QUANTILES), undefined())
    spectrum = Spectrum.of(profile.targets)
    interval = mean if spectrum.lower[0] < 0 else positive_mean
    average, square = (profile.sums[name].value / n for name in VALUE_SUMS)
    return {
        "mean": interval(average, square, n, constant=NAN),
        **{name: spectrum.metric(share, NAN) for name, share in _VALUE_QUANTILES.items()},
    }


def _r2(profile: OutcomeProfile, mse: float, fourth: float, spread: float, truth: Spectrum) -> Metric:
    """The logarithms of both mean squares vary; where errors grow with the truth they do so together, and the interval
    is wider than it need be. The truths' kurtosis is their histogram's, or the normal's where the bins do not show it.
    """
    n = profile.rows
    if n < 2 or not spread > 0:
        return Metric(NAN, NAN, NAN, 0.0, n)
    of_loss = max(fourth / (mse * mse) - 1, 0.0) if mse > 0 else 0.0
    return ratio_below_one(mse, spread, (of_loss + truth.kurtosis(spread) - 1) / (n - 1), n)


def _mape(profile: OutcomeProfile, truth: Spectrum) -> Metric:
    n = profile.rows - profile.targets[0]
    if n == 0:
        return undefined()
    away = truth.without_zero()
    best = away.weighted(1 / np.abs(away.middle))
    constant = best.distance_to(best.quantile(0.5)) * float(best.count.sum()) / n
    return positive_mean(
        profile.sums["relative"].value / n, profile.sums["relative_squared"].value / n, n, constant=constant
    )


def _quantiles(spectrum: Spectrum, constant: Spectrum, shares: Mapping[str, float]) -> dict[str, Metric]:
    return {name: spectrum.metric(share, constant.quantile(share)) for name, share in shares.items()}


def _binary(profile: OutcomeProfile) -> dict[str, Metric]:
    tp, fn = profile.pairs[("1", "1")], profile.pairs[("1", "0")]
    fp, tn = profile.pairs[("0", "1")], profile.pairs[("0", "0")]
    positives, negatives = tp + fn, fp + tn
    n = positives + negatives
    share = positives / n if n else NAN
    recall = proportion(tp, positives, constant=1.0 if positives else NAN, samples=n)
    specificity = proportion(tn, negatives, constant=1.0 if negatives else NAN, samples=n)
    scores = Ranks.of(profile.scores)
    return {
        "accuracy": proportion(tp + tn, n, constant=max(share, 1 - share)),
        "precision": proportion(tp, tp + fp, constant=share, samples=n),
        "recall": recall,
        "specificity": specificity,
        **{name: _f_beta(tp, fp, fn, weight, n) for name, weight in (("f0_5", 0.25), ("f1", 1.0), ("f2", 4.0))},
        "auc": scores.auc(),
        "pr_auc": scores.pr_auc(),
        "true_positive_rate": recall,
        "true_negative_rate": specificity,
        "false_positive_rate": proportion(fp, negatives, constant=0.0 if negatives else NAN, samples=n),
        "false_negative_rate": proportion(fn, positives, constant=0.0 if positives else NAN, samples=n),
    }


def _f_beta(tp: int, fp: int, fn: int, weight: float, n: int) -> Metric:
    """F with beta² = `weight`: its odds are (1 + weight) tp / (weight fn + fp); the best constant says always yes.

    Interval: F1 is 2 J / (1 + J) of Jaccard's J = tp / (tp + fp + fn), a proportion, and Wilson's interval carries over.
    The others add the variance of the mix of both errors to that of J's odds.
    """
    share = (tp + fn) / n if n else NAN
    constant = (1 + weight) * share / (weight * share + 1) if share > 0 else NAN
    wrong, missed = fp + fn, weight * fn + fp
    if tp + wrong == 0:
        return Metric(NAN, NAN, NAN, constant, n)
    value = (1 + weight) * tp / ((1 + weight) * tp + missed)
    if weight == 1 or tp == 0 or wrong == 0:
        jaccard = proportion(tp, tp + wrong, constant=NAN)
        each = missed / wrong if wrong else max(weight, 1.0)
        lower, upper = ((1 + weight) * j / ((1 + weight) * j + each * (1 - j)) for j in (jaccard.lower, jaccard.upper))
        return Metric(value, lower, upper, constant, n)
    of_odds = 1 / tp + (weight * weight * fn + fp) / (missed * missed)
    return on_logit(value, of_odds * (value * (1 - value)) ** 2, constant=constant, samples=n)


def _probabilistic(profile: OutcomeProfile, prevalence: Floats) -> dict[str, Metric]:
    """Log loss in nats, Brier's score and the calibration error; the best constant is the prevalence of each class.

    Brier's score is the squared error of the positive's probability, with several classes the sum over all of them.
    """
    present = prevalence[prevalence > 0]
    entropy = float(-(present * np.log(present)).sum()) if len(present) else NAN
    impurity = float(1 - (present**2).sum()) if len(present) else NAN
    if profile.task is Task.BINARY:
        impurity /= 2
    return {
        "log_loss": _loss(profile, "log_loss", profile.probable, entropy),
        "brier": _loss(profile, "brier", profile.scored, impurity),
        "calibration_error": _calibration_error(profile),
    }


def _loss(profile: OutcomeProfile, name: str, n: int, constant: float) -> Metric:
    if n == 0:
        return undefined(constant)
    return positive_mean(profile.sums[name].value / n, profile.sums[f"{name}_squared"].value / n, n, constant=constant)


@dataclass(frozen=True, slots=True)
class Reliability:
    """What came of ten bins of confidence: rows, the sum of their confidences, and how many came true."""

    rows: Floats
    confidence: Floats
    true: Floats

    @classmethod
    def of(cls, profile: OutcomeProfile) -> Reliability:
        """Of a profile; bins without rows are 0."""
        keys, counts = profile.reliability.arrays()
        rows = np.bincount(keys >> 1, weights=counts, minlength=RELIABILITY_BINS)
        true = np.bincount(keys >> 1, weights=counts * (keys & 1), minlength=RELIABILITY_BINS)
        confidence = np.array([profile.sums[name].value for name in CONFIDENCE_SUMS])
        return cls(rows.astype(np.float64), confidence, true.astype(np.float64))


def _calibration_error(profile: OutcomeProfile) -> Metric:
    """Expected calibration error: the mean over the rows of |mean confidence - share that came true| of their bin.

    Ten bins of equal width, an edge in the lower one. A calibrated model's is not 0 but the noise of its bins; so the
    interval's lower end leaves that noise out, all of it, and the upper end none. The best constant is calibrated.
    """
    part = Reliability.of(profile)
    n = float(part.rows.sum())
    if n == 0:
        return undefined(0.0)
    gap = np.abs(part.confidence - part.true) / n
    share = (part.true + 0.5) / (part.rows + 1)
    noise = np.sqrt(part.rows * share * (1 - share)) / n
    value, error = float(gap.sum()), CONFIDENCE_Z * math.sqrt(float((noise**2).sum()))
    hidden = math.sqrt(2 / math.pi) * float(noise.sum())
    return Metric(value, max(value - hidden - error, 0.0), min(value + error, 1.0), 0.0, int(n))


_SHAPES = {"precision": (1.0, 0.0), "recall": (0.0, 1.0), "f1": (1.0, 1.0), "f0_5": (1.0, 0.25), "f2": (1.0, 4.0)}
"""Each ratio of a class is (c + t) hits / (c chosen + t support): its c and t."""


def _multiclass(profile: OutcomeProfile) -> dict[str, Metric]:
    n = sum(profile.pairs.values())
    if n == 0:
        return dict.fromkeys(("accuracy", *_SHAPES, *(f"weighted_{name}" for name in _SHAPES)), undefined())
    confusion = _Confusion.of(profile)
    accuracy = proportion(int(confusion.hits.sum()), n, constant=float(confusion.support.max()) / n)
    return {
        "accuracy": accuracy,
        **{name: confusion.macro(*shape) for name, shape in _SHAPES.items()},
        **{f"weighted_{name}": confusion.weighted(*shape) for name, shape in _SHAPES.items()},
        "weighted_recall": accuracy,
        **confusion.by_class(),
    }


@dataclass(frozen=True, slots=True)
class _Confusion:
    """Sparse confusion: `count` rows of class `truth` predicted as `predicted`, and by class: truths, choices, hits."""

    labels: list[str]
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
            labels,
            truth,
            predicted,
            count,
            support=_by_class(truth, weights=count, classes=len(labels)),
            chosen=_by_class(predicted, weights=count, classes=len(labels)),
            hits=_by_class(truth[hit], weights=count[hit], classes=len(labels)),
        )

    def macro(self, by_chosen: float, by_truth: float) -> Metric:
        """The plain mean of a ratio over the classes that are a truth or a prediction.

        Interval: the delta method after two more rows of each kind, hit, miss and false choice, in every class (Agresti
        and Coull 1998): else a class of a few rows, all right or all wrong, would seem to be known.
        """
        classes = len(self.support)
        value = float(self._ratio(by_chosen, by_truth).mean())
        more = replace(self, chosen=self.chosen + 4, support=self.support + 4, hits=self.hits + 2)
        ratio = more._ratio(by_chosen, by_truth)
        slope = more._slope(ratio, by_chosen, by_truth, weight=np.full(classes, 1 / classes))
        per_row = 1 / (classes * (by_chosen * more.chosen + by_truth * more.support))
        hit, miss, false = (by_chosen + by_truth) * (1 - ratio), by_truth * ratio, by_chosen * ratio
        added = 2 * float((per_row**2 * (hit**2 + miss**2 + false**2)).sum())
        error = CONFIDENCE_Z * math.sqrt(float((self.count * slope**2).sum()) + added)
        # A class without rows below the line counts as 0: rightly, if it never has any; if it has some, nothing is known.
        known = np.where(by_chosen * self.chosen + by_truth * self.support > 0, ratio, 0.0)
        lower, upper = max(float(known.mean()) - error, 0.0), min(float(ratio.mean()) + error, 1.0)
        constant = self._of_constant(by_chosen, by_truth) / int(np.count_nonzero(self.support))
        return Metric(value, min(lower, value), max(upper, value), constant, int(self.count.sum()))

    def weighted(self, by_chosen: float, by_truth: float) -> Metric:
        """The mean of a ratio weighted by the truths of each class."""
        n = self.count.sum()
        ratio = self._ratio(by_chosen, by_truth)
        value = float((self.support * ratio).sum() / n)
        slope = self._slope(ratio, by_chosen, by_truth, weight=self.support / n) + (ratio[self.truth] - value) / n
        return self._metric(value, slope, self._of_constant(by_chosen, by_truth) * float(self.support.max() / n))

    def by_class(self) -> dict[str, Metric]:
        """Each class against all others; the rows of a figure are those of its denominator."""
        n, found = int(self.count.sum()), {}
        for k in np.argsort(-self.support, kind="stable")[:MOST_CLASSES].tolist():
            label, tp = self.labels[k], int(self.hits[k])
            fn, fp = int(self.support[k]) - tp, int(self.chosen[k]) - tp
            found[f"precision[{label}]"] = proportion(tp, tp + fp, constant=(tp + fn) / n)
            found[f"recall[{label}]"] = proportion(tp, tp + fn, constant=1.0 if tp + fn else NAN)
            found[f"specificity[{label}]"] = proportion(n - tp - fp - fn, n - tp - fn, constant=1.0)
            found[f"f1[{label}]"] = _f_beta(tp, fp, fn, 1.0, n)
        return found

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
        return Metric(value, max(value - error, 0.0), min(value + error, 1.0), constant, int(self.count.sum()))


def _by_class(index: Ints, *, weights: Floats, classes: int) -> Floats:
    return np.asarray(np.bincount(index, weights=weights, minlength=classes), dtype=np.float64)


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    """A ratio, 0 where the denominator is: a class never predicted has precision 0, as everybody reports it."""
    return np.asarray(
        np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0), dtype=np.float64
    )


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
    """Mean, variance and third central moment of |error|, or of numbers of their own."""
    if profile.rows == 0:
        return NAN, NAN, NAN
    if profile.task is Task.VALUE:
        return _value_moments(profile)
    mean, square, cube = (profile.sums[name].value / profile.rows for name in ("absolute", "squared", "cubed"))
    return mean, max(square - mean * mean, 0.0), cube - 3 * mean * square + 2 * mean**3


def _value_moments(profile: OutcomeProfile) -> tuple[float, float, float]:
    spectrum, n = Spectrum.of(profile.targets), profile.rows
    average = profile.sums["target"].value / n
    third = float((spectrum.count * (spectrum.middle - average) ** 3).sum() / n)
    return average, variance(profile.sums["target"], profile.sums["target_squared"], n), third


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
    either_way = window.task is Task.VALUE
    name = "mean" if either_way else "mean_absolute_error"
    if min(m, n) < FEWEST_MEASURED:
        return Shift(name, value, before, NAN, NAN, n, m, Verdict.INSUFFICIENT)
    _, second, third = _absolute_moments(baseline.merge(window))
    skewness = third / second**1.5 if second > 0 else 0.0
    each = alpha / 2 if either_way else alpha
    quantile = float(calibrate.upper_quantile(np.array([n]), np.array([m]), skewness=skewness, alpha=each)[0])
    sign = -1.0 if either_way and value < before else 1.0
    threshold = before + sign * quantile * math.sqrt(second * (1 / n + 1 / m))
    effect = abs(value - before) / error_moments(baseline)[1]
    verdict = Verdict.DRIFT if sign * (value - threshold) > 0 and effect >= minimum_effect else Verdict.OK
    return Shift(name, value, before, threshold, effect, n, m, verdict)
