"""Metrics against loops, and whether errors grew."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from scipy import special, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from stream_monitor.judge.metric import Metric
from stream_monitor.judge.performance import (
    error_moments,
    error_shift,
    metrics,
    score_errors,
    standardised_errors,
)
from stream_monitor.judge.verdicts import Span
from stream_monitor.records import Flags, Floats, LineKey, Verdict
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task, binned_scores

SPAN = Span(LineKey("credit", "7"), "1h", 0, 3_600_000_000)


def binary(truth: Flags, score: Floats, predicted: Flags | None = None) -> OutcomeProfile:
    """A profile of scored binary predictions; without labels the score decides."""
    rows = len(truth)
    label = pa.nulls(rows, pa.string()) if predicted is None else pa.array(np.where(predicted, "deny", "approve"))
    profile = OutcomeProfile(Task.BINARY, "deny")
    nothing = np.full(rows, np.nan)
    profile.add(Joined(pa.array(np.where(truth, "deny", "approve")), nothing, label, score, nothing, nothing))
    return profile


def classes(truth: Sequence[str], predicted: Sequence[str]) -> OutcomeProfile:
    """A profile of predictions of several classes."""
    nothing = np.full(len(truth), np.nan)
    profile = OutcomeProfile(Task.MULTICLASS)
    profile.add(
        Joined(pa.array(list(truth)), nothing, pa.array(list(predicted)), nothing, nothing, np.full(len(truth), 0.5))
    )
    return profile


def numbers(truth: Floats, value: Floats) -> OutcomeProfile:
    """A profile of regression predictions."""
    labels = pa.nulls(len(truth), pa.string())
    nothing = np.full(len(truth), np.nan)
    profile = OutcomeProfile(Task.REGRESSION)
    profile.add(Joined(labels, truth, labels, nothing, value, nothing))
    return profile


def credit(rows: int, seed: int, *, power: float = 1.0) -> tuple[Flags, Floats]:
    """Calibrated scores of a rare event, and what happened."""
    draw = np.random.default_rng(seed)
    score = draw.beta(0.8, 6.0, rows) ** power
    return draw.random(rows) < score, score


def auc_by_pairs(truth: Flags, score: Floats) -> float:
    """Area under the ROC curve by ranks, ties half."""
    rank = stats.rankdata(score)
    positives = int(truth.sum())
    return float((rank[truth].sum() - positives * (positives + 1) / 2) / (positives * (len(truth) - positives)))


def test_binary_metrics_are_those_of_a_loop() -> None:
    """Accuracy, precision, recall, F1, log loss and Brier from the rows themselves, and the best constant's."""
    truth, score = credit(4_000, 1)
    predicted = score > 0.3
    found = metrics(binary(truth, score, predicted))
    tp, fp, fn = (int(x.sum()) for x in (truth & predicted, ~truth & predicted, truth & ~predicted))
    share = truth.mean()
    expected = {
        "accuracy": ((truth == predicted).mean(), max(share, 1 - share)),
        "precision": (tp / (tp + fp), share),
        "recall": (tp / (tp + fn), 1.0),
        "f1": (2 * tp / (2 * tp + fp + fn), 2 * share / (1 + share)),
        "log_loss": (-np.log(np.where(truth, score, 1 - score)).mean(), stats.entropy([share, 1 - share])),
        "brier": (((score - truth) ** 2).mean(), share * (1 - share)),
    }
    for name, (value, constant) in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
        assert found[name].best_constant == pytest.approx(constant, rel=1e-9), name
        assert found[name].lower < found[name].value < found[name].upper, name


@pytest.mark.parametrize(
    "scores",
    [
        lambda draw, truth: special.expit(draw.normal(3 * truth - 4, 1)),
        lambda draw, truth: special.expit(draw.normal(16 * truth - 8, 6)).astype(np.float32).astype(np.float64),
        lambda draw, truth: np.where(draw.random(len(truth)) < 0.5, truth, draw.beta(2, 2, len(truth))),
        lambda draw, truth: draw.normal(0.5 + 0.02 * truth, 0.02),
        lambda draw, truth: draw.beta(2 + truth, 5).round(4),
    ],
    ids=["rare", "saturated", "certain", "narrow", "rounded"],
)
def test_both_areas_are_within_a_thousandth_of_sklearns(
    scores: Callable[[np.random.Generator, Floats], Floats],
) -> None:
    """Scores of rare events, saturated in single precision, half certain, close together, and of four decimals."""
    draw = np.random.default_rng(12)
    truth = draw.random(20_000) < 0.05
    score = scores(draw, truth.astype(np.float64))
    found = metrics(binary(truth, score))
    assert found["auc"].value == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
    assert found["pr_auc"].value == pytest.approx(average_precision_score(truth, score), abs=1e-3)


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
def test_auc_from_bins_is_within_a_thousandth(power: float) -> None:
    """Common, rare and very rare events; and never off by more than the ties the bins make."""
    truth, score = credit(40_000, 2, power=power)
    profile = binary(truth, score)
    exact, found = auc_by_pairs(truth, score), metrics(profile)["auc"]
    assert abs(found.value - exact) < 1e-3
    held = binned_scores(profile.scores)
    ties = sum(held[key * 2] * held[key * 2 + 1] for key in {key >> 1 for key, _ in held.items()})
    assert abs(found.value - exact) <= ties / (truth.sum() * (~truth).sum())


@pytest.mark.parametrize("rows", [5, 20, 60, 250, 700])
@pytest.mark.parametrize(("middle", "spread"), [(0.5, 0.2), (0.6, 1e-4), (0.01, 0.005), (0.999, 5e-4)])
def test_areas_of_few_scores_are_sklearns(middle: float, spread: float, rows: int) -> None:
    """However close together: each score is kept by itself, of every cohort and of cohorts put together."""
    draw = np.random.default_rng(rows)
    for _ in range(20):
        truth = draw.random(rows) < 0.3
        truth[:2] = True, False
        score = np.clip(draw.normal(middle + spread * truth / 2, spread), 0, 1)
        half = rows // 2
        profile = binary(truth[half:], score[half:]).merge(binary(truth[:half], score[:half]))
        found = metrics(profile)
        assert found["auc"].value == pytest.approx(roc_auc_score(truth, score), abs=1e-9)
        assert found["pr_auc"].value == pytest.approx(average_precision_score(truth, score), abs=1e-9)


def test_auc_at_its_ends() -> None:
    """Perfect, worthless and undefined."""
    truth = np.array([True] * 20 + [False] * 30)
    perfect = metrics(binary(truth, truth * 0.8 + 0.1))["auc"]
    assert (perfect.value, perfect.upper) == (1.0, 1.0)
    assert perfect.lower == pytest.approx(20 / (20 + 1.959964**2))
    assert metrics(binary(truth, np.full(50, 0.3)))["auc"].value == 0.5
    assert math.isnan(metrics(binary(np.ones(5, dtype=np.bool_), np.full(5, 0.3)))["auc"].value)


def held_by_intervals(target: Mapping[str, Metric], samples: Sequence[Mapping[str, Metric]]) -> dict[str, float]:
    """The share of the samples whose interval holds the value of the target, by metric."""
    return {
        name: sum(sample[name].lower <= true.value <= sample[name].upper for sample in samples) / len(samples)
        for name, true in target.items()
    }


def test_binary_intervals_hold_the_truth_in_90_of_100() -> None:
    """300 samples of 600 rows against the value of 400,000; the calibration error's is wider, since it hides its noise."""
    truth, score = credit(400_000, 3)
    target = metrics(binary(truth, score, score > 0.3))
    samples = []
    for seed in range(300):
        truth, score = credit(600, 1_000 + seed)
        samples.append(metrics(binary(truth, score, score > 0.3)))
    held = held_by_intervals(target, samples)
    assert {name for name, share in held.items() if share < 0.9} == set()
    assert {name for name, share in held.items() if share > 0.99} <= {"calibration_error"}


def test_regression_metrics_are_those_of_a_loop() -> None:
    """MAE, MSE, RMSE, R2 and bias; the best constants are the median and the mean."""
    draw = np.random.default_rng(4)
    truth = draw.lognormal(3.0, 0.5, 5_000)
    value = truth * draw.lognormal(0.05, 0.2, 5_000)
    error = value - truth
    found = metrics(numbers(truth, value))
    expected = {
        "mae": (np.abs(error).mean(), np.abs(truth - np.median(truth)).mean()),
        "mse": ((error**2).mean(), truth.var()),
        "rmse": (math.sqrt((error**2).mean()), truth.std()),
        "r2": (1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum(), 0.0),
        "bias": (error.mean(), 0.0),
    }
    for name, (value_of, constant) in expected.items():
        assert found[name].value == pytest.approx(value_of, rel=1e-9), name
        assert found[name].best_constant == pytest.approx(constant, rel=0.002), name
        assert found[name].lower < found[name].value < found[name].upper, name


@pytest.mark.parametrize("rows", [40, 1_000, 20_000])
@pytest.mark.parametrize(
    ("middle", "spread"), [(10.0, 3.0), (10.0, 0.01), (101_325.0, 50.0), (-273.0, 0.1), (1.7e9, 60.0), (0.0, 1e-9)]
)
def test_the_best_constant_is_numpys_wherever_truths_lie(middle: float, spread: float, rows: int) -> None:
    """The median's errors, in parts of the truths' deviation; to the ninth digit while few truths are kept one by one."""
    draw = np.random.default_rng(rows)
    truth = draw.normal(middle, spread, rows)
    found = metrics(numbers(truth, truth + draw.normal(0, spread, rows)))
    # Around zero no bits can be cut off that are not needed close to it: bins of .8 % are kept then.
    near = 1e-6 if rows <= 1_024 and spread / max(abs(middle), 1e-9) > 1e-7 else 0.015
    median = np.quantile(truth, 0.5, method="inverted_cdf")
    of_errors = {
        name: np.quantile(median - truth, share, method="inverted_cdf")
        for name, share in (("error_p05", 0.05), ("error_p95", 0.95))
    }
    for name, constant in {"mae": np.abs(truth - median).mean(), **of_errors}.items():
        assert abs(found[name].best_constant - constant) <= near * spread, name
    assert abs(found["mae"].best_constant - np.abs(truth - median).mean()) <= near / 10 * spread
    weights = 1 / np.abs(truth)
    order = np.argsort(truth)
    reached = np.cumsum(weights[order])
    best = truth[order][np.searchsorted(reached, reached[-1] / 2)]
    assert found["mape"].best_constant == pytest.approx(np.mean(np.abs(truth - best) * weights), rel=near / 10)


def test_regression_intervals_hold_the_truth_in_90_of_100() -> None:
    """Normal errors of mean .5 and deviation 2, 300 samples of 500 rows; quantiles, MAPE and R² against a large sample."""

    def sample(seed: int, rows: int) -> Mapping[str, Metric]:
        draw = np.random.default_rng(seed)
        truth = draw.normal(10.0, 2.0, rows)
        return metrics(numbers(truth, truth + draw.normal(0.5, 2.0, rows)))

    target = sample(0, 1_000_000)
    exact = {"mae": stats.foldnorm(0.25, scale=2).mean(), "mse": 4.25, "bias": 0.5, "r2": 1 - 4.25 / 4.0}
    for name, value in exact.items():
        assert target[name].value == pytest.approx(value, rel=0.01, abs=0.01), name
    held = held_by_intervals(target, [sample(1 + seed, 500) for seed in range(300)])
    assert {name for name, share in held.items() if share < 0.9} == set()
    # Between order statistics there are steps: the quantiles' intervals hold a little more than they need.
    assert {name for name, share in held.items() if share > 0.99} <= {"absolute_error_p99"}


def of_classes(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F of several classes by a loop over them: plain means, and weighted by their truths."""
    n, found, labels = len(truth), defaultdict[str, float](float), {*truth, *predicted}
    for label in labels:
        hits = sum(t == p == label for t, p in zip(truth, predicted, strict=True))
        support, chosen = list(truth).count(label), list(predicted).count(label)
        precision = hits / chosen if chosen else 0.0
        recall = hits / support if support else 0.0
        ratios = {"precision": precision, "recall": recall}
        for name, beta in {"f0_5": 0.5, "f1": 1.0, "f2": 2.0}.items():
            below = beta**2 * precision + recall
            ratios[name] = (1 + beta**2) * precision * recall / below if below else 0.0
        for name, ratio in ratios.items():
            found[f"weighted_{name}"] += support / n * ratio
        for name in ("precision", "recall", "f1"):
            found[name] += ratios[name] / len(labels)
    return found


def several(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Truths of four classes, three quarters predicted right."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(list("abcd"), size=rows, p=[0.5, 0.3, 0.15, 0.05])
    predicted = np.where(draw.random(rows) < 0.75, truth, draw.choice(list("abce"), size=rows))
    return truth.tolist(), predicted.tolist()


def test_multiclass_metrics_are_those_of_a_loop() -> None:
    """With a class that is never true and one that is rare; log loss from the truth's probability."""
    truth, predicted = several(2_000, 1)
    found = metrics(classes(truth, predicted))
    for name, value in of_classes(truth, predicted).items():
        assert found[name].value == pytest.approx(value, rel=1e-12), name
    assert found["accuracy"].value == np.mean(np.array(truth) == np.array(predicted))
    assert found["accuracy"].best_constant == truth.count("a") / 2_000
    constant = of_classes(truth, ["a"] * 2_000)
    for name, value in constant.items():
        assert found[name].best_constant == pytest.approx(value), name
    assert found["log_loss"].value == pytest.approx(math.log(2))


def test_multiclass_intervals_hold_the_truth_in_90_of_100() -> None:
    """The delta method over multinomial cells, 300 samples of 500 rows."""
    target = of_classes(*several(200_000, 5))
    samples = [metrics(classes(*several(500, 100 + seed))) for seed in range(300)]
    for name, value in target.items():
        held = sum(sample[name].lower <= value <= sample[name].upper for sample in samples) / len(samples)
        # One class is never true: its recall might be anything, and the interval of the plain mean allows for that.
        assert 0.90 <= held <= (1.0 if name == "recall" else 0.99), name


def test_nothing_labelled_is_undefined() -> None:
    """Every metric of an empty profile is NaN and none raises."""
    for task in Task:
        found = metrics(OutcomeProfile(task, "deny" if task is Task.BINARY else None))
        assert found
        assert all(math.isnan(metric.value) for metric in found.values())


def test_more_errors_are_drift_and_fewer_are_not() -> None:
    """10 % to 18 % of 2,000; the same rate; half of it; too few labels."""
    draw = np.random.default_rng(6)

    def wrong(rows: int, rate: float) -> OutcomeProfile:
        return classes(["a"] * rows, np.where(draw.random(rows) < rate, "b", "a").tolist())

    baseline = wrong(10_000, 0.1)
    for rows, rate, expected in (
        (2_000, 0.18, Verdict.DRIFT),
        (2_000, 0.1, Verdict.OK),
        (2_000, 0.05, Verdict.OK),
        (20, 0.9, Verdict.INSUFFICIENT),
    ):
        shift = error_shift(baseline, wrong(rows, rate), alpha=1e-5, minimum_effect=0.1)
        assert (shift.verdict, shift.samples, shift.statistic) == (expected, rows, "error_rate")


def test_larger_errors_are_drift_beyond_the_floor() -> None:
    """A mean absolute error half a deviation up, one that is sure but small, and none."""
    draw = np.random.default_rng(7)

    def measured(rows: int, scale: float) -> OutcomeProfile:
        return numbers(np.zeros(rows), draw.exponential(scale, rows))

    baseline = measured(20_000, 1.0)
    assert error_shift(baseline, measured(2_000, 1.5), alpha=1e-5, minimum_effect=0.1).verdict is Verdict.DRIFT
    assert error_shift(baseline, measured(2_000, 1.0), alpha=1e-5, minimum_effect=0.1).verdict is Verdict.OK
    small = error_shift(baseline, measured(200_000, 1.06), alpha=1e-5, minimum_effect=0.1)
    assert small.value > small.threshold
    assert small.verdict is Verdict.OK


def test_clean_errors_alarm_as_often_as_they_should() -> None:
    """4,000 clean windows of skewed errors and of rates: about one in a hundred at alpha .01, and not far fewer."""
    draw = np.random.default_rng(8)
    fired = np.zeros(2)
    for _ in range(4_000):
        error, baseline = draw.exponential(1.0, 200), draw.exponential(1.0, 2_000)
        pair = (numbers(np.zeros(2_000), baseline), numbers(np.zeros(200), error))
        fired[0] += error_shift(*pair, alpha=0.01, minimum_effect=0.0).verdict is Verdict.DRIFT
        counts = [OutcomeProfile(Task.MULTICLASS) for _ in range(2)]
        for profile, rows in zip(counts, (2_000, 200), strict=True):
            wrong = int(draw.binomial(rows, 0.15))
            profile.pairs.update({("a", "a"): rows - wrong, ("a", "b"): wrong})
        fired[1] += error_shift(*counts, alpha=0.01, minimum_effect=0.0).verdict is Verdict.DRIFT
    assert ((fired >= 8) & (fired <= 64)).all()


def test_errors_are_standardised_by_the_baseline() -> None:
    """Mean 0 and deviation 1 on the baseline's own rows; a faultless baseline still has a deviation."""
    draw = np.random.default_rng(9)
    truth, value = draw.normal(size=5_000), draw.normal(size=5_000)
    labels, nothing = pa.nulls(5_000, pa.string()), np.full(5_000, np.nan)
    standard = standardised_errors(Joined(labels, truth, labels, nothing, value, nothing), numbers(truth, value))
    assert (standard.mean(), standard.std()) == (pytest.approx(0, abs=1e-9), pytest.approx(1))
    rate, deviation = error_moments(classes(["a"] * 100, ["a"] * 100))
    assert 0 < rate < 0.01
    assert deviation > 0


def test_a_shift_is_a_score_of_a_metric() -> None:
    """With the span's window, and the outcome's name unless it is the label."""
    profile = classes(["a"] * 50, ["a"] * 50)
    shift = error_shift(profile, profile, alpha=0.01, minimum_effect=0.1)
    score = score_errors(SPAN, shift)
    assert (score.subject, score.subject_kind, score.window, score.verdict) == (
        "error_rate",
        "metric",
        "1h",
        Verdict.OK,
    )
    assert score_errors(SPAN, shift, outcome="click").subject == "click.error_rate"


def values(truth: Floats) -> OutcomeProfile:
    """A profile of numbers of their own."""
    labels = pa.nulls(len(truth), pa.string())
    nothing = np.full(len(truth), np.nan)
    profile = OutcomeProfile(Task.VALUE)
    profile.add(Joined(labels, truth, labels, nothing, nothing, nothing))
    return profile


def test_numbers_of_their_own_need_no_prediction() -> None:
    """Mean and quantiles are NumPy's, what is no number is counted, and no constant scores anything."""
    truth = np.random.default_rng(3).exponential(10.0, 2_000)
    profile = values(np.append(truth, [np.nan, np.inf]))
    found = metrics(profile)
    assert (profile.rows, profile.unusable) == (2_000, 2)
    assert found["mean"].value == pytest.approx(float(truth.mean()), rel=1e-12)
    for name, share in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
        assert found[name].value == pytest.approx(float(np.quantile(truth, share)), rel=0.02)
        assert found[name].lower <= found[name].value <= found[name].upper
    assert all(math.isnan(metric.best_constant) and metric.samples == 2_000 for metric in found.values())
    assert all(math.isnan(metric.value) for metric in metrics(OutcomeProfile(Task.VALUE)).values())


@pytest.mark.parametrize("world", ["normal", "exponential", "log-normal"])
def test_the_interval_of_a_mean_holds_it(world: str) -> None:
    """In at least 88 of 100 samples of 300, skewed ones too; those that are never negative are read on the logarithm."""
    draw = np.random.default_rng(5)
    made: dict[str, Callable[[int], Floats]] = {
        "normal": lambda n: draw.normal(-1.0, 3.0, n),
        "exponential": lambda n: draw.exponential(10.0, n),
        "log-normal": lambda n: draw.lognormal(0.0, 1.0, n),
    }
    mean = {"normal": -1.0, "exponential": 10.0, "log-normal": math.exp(0.5)}[world]
    found = [metrics(values(made[world](300)))["mean"] for _ in range(200)]
    assert sum(metric.lower <= mean <= metric.upper for metric in found) >= 176


@pytest.mark.parametrize(("factor", "verdict"), [(0.5, Verdict.DRIFT), (1.0, Verdict.OK), (2.0, Verdict.DRIFT)])
def test_a_mean_moves_either_way(factor: float, verdict: Verdict) -> None:
    """Nobody told whether more is better."""
    draw = np.random.default_rng(7)
    shift = error_shift(values(draw.exponential(10.0, 5_000)), values(factor * draw.exponential(10.0, 500)),
                        alpha=1e-5, minimum_effect=0.1)  # fmt: skip
    assert (shift.statistic, shift.verdict) == ("mean", verdict)
    assert (shift.value > shift.threshold) == (factor > 1) or verdict is Verdict.OK
