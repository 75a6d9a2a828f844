"""Every metric against scikit-learn's on the joined rows, however they were cut, ordered, corrected, merged and stored."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from stream_monitor.judge.metric import Metric
from stream_monitor.judge.performance import metrics
from stream_monitor.records import Flags, Floats, Ints
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task

CLASSES = np.array(list("abcde"))
ROWS = 80
seeds = st.integers(0, 10_000)

Labels = NDArray[np.str_]


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """scikit-learn warns where it calls 0 what is undefined; that is what is looked at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def folded(rows: Joined, task: Task, draw: st.DataObject) -> OutcomeProfile:
    """The rows in any order and pieces, some with another truth first, in two profiles that a restart may interrupt."""
    order: Ints = np.array(draw.draw(st.permutations(range(len(rows)))))
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    parts = [OutcomeProfile(task, "a" if task is Task.BINARY else None) for _ in range(2)]
    for piece in np.split(order, cuts):
        at, is_corrected, is_killed = draw.draw(st.tuples(st.integers(0, 1), st.booleans(), st.booleans()))
        other = rows.take(piece[::-1])
        if is_corrected:
            parts[at].add(other)
        parts[at].add(rows.take(piece))
        if is_killed:
            parts[at] = OutcomeProfile.from_bytes(parts[at].to_bytes())
        if is_corrected:
            parts[at].remove(other)
    return parts[0].merge(parts[1])


def agree(found: Mapping[str, Metric], expected: Mapping[str, float], *, within: float = 1e-9) -> None:
    """Each value is the oracle's; NaN where that is."""
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=within, abs=within, nan_ok=True), name


def binary_rows(truth: Flags, predicted: Flags, score: Floats) -> Joined:
    """Rows of the positive label `a`."""
    nothing = np.full(len(truth), np.nan)
    labels = [pa.array(np.where(part, "a", "b")) for part in (truth, predicted)]
    return Joined(labels[0], nothing, labels[1], score, nothing, nothing)


def calibration_error(truth: Flags, score: Floats) -> float:
    """From scikit-learn's curve: its bins, weighted by their rows."""
    observed, mean = calibration_curve(truth, score, n_bins=10)
    rows = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], score), minlength=10)
    return float((np.abs(observed - mean) * rows[rows > 0]).sum() / len(score))


@settings(deadline=None, max_examples=25)
@given(seed=seeds, decimals=st.sampled_from([1, 2, 15]), prevalence=st.sampled_from([0.02, 0.3, 0.97]), data=st.data())
def test_binary(seed: int, decimals: int, prevalence: float, data: st.DataObject) -> None:
    """Ties, certainties and edges of bins included; AUC and PR-AUC exactly where scores are rounded, else AUC to its bound."""
    draw = np.random.default_rng(seed)
    truth = draw.random(ROWS) < prevalence
    truth[:2] = True, False
    score = np.clip(draw.beta(0.5, 0.7, ROWS) * 0.8 + 0.2 * truth, 0, 1).round(decimals)
    predicted = score > draw.choice([0.3, 0.5])
    found = metrics(folded(binary_rows(truth, predicted, score), Task.BINARY, data))
    has_choice = bool(predicted.any())
    agree(
        found,
        {
            "accuracy": oracle.accuracy_score(truth, predicted),
            "precision": oracle.precision_score(truth, predicted) if has_choice else math.nan,
            "recall": oracle.recall_score(truth, predicted),
            "true_positive_rate": oracle.recall_score(truth, predicted),
            "specificity": oracle.recall_score(~truth, ~predicted),
            "false_positive_rate": 1 - oracle.recall_score(~truth, ~predicted),
            **{
                name: oracle.fbeta_score(truth, predicted, beta=beta)
                for name, beta in (("f0_5", 0.5), ("f1", 1.0), ("f2", 2.0))
            },
            "log_loss": oracle.log_loss(truth, np.stack([1 - score, score], axis=1)),
            "brier": oracle.brier_score_loss(truth, score),
            "calibration_error": calibration_error(truth, score),
        },
    )
    area = oracle.roc_auc_score(truth, score)
    assert abs(found["auc"].value - area) <= (near_pairs(truth, score) if decimals == 15 else 0.0) + 1e-9
    if decimals < 15:
        agree(found, {"pr_auc": oracle.average_precision_score(truth, score)})


def near_pairs(truth: Flags, score: Floats) -> float:
    """The share of (positive, negative) pairs that are as near as one bin may be wide: the bound of the AUC's error."""
    end = np.minimum(score, 1 - score)
    wide = np.maximum(end[truth][:, None], end[~truth][None, :]) / 512 + 2.0**-40
    return float((np.abs(score[truth][:, None] - score[~truth][None, :]) <= wide).mean())


@settings(deadline=None, max_examples=25)
@given(seed=seeds, classes=st.integers(1, 5), data=st.data())
def test_multiclass(seed: int, classes: int, data: st.DataObject) -> None:
    """Plain and weighted means over classes that are never true or never predicted; each class; probabilities."""
    draw = np.random.default_rng(seed)
    truth: Labels = CLASSES[draw.integers(0, classes, ROWS)]
    probabilities = draw.dirichlet(np.full(5, 0.3), ROWS)
    predicted: Labels = CLASSES[
        np.where(draw.random(ROWS) < 0.5, probabilities.argmax(axis=1), draw.integers(0, 4, ROWS))
    ]
    at = np.arange(ROWS)
    column = {label: k for k, label in enumerate(CLASSES.tolist())}
    of_truth, of_label = (probabilities[at, [column[label] for label in part.tolist()]] for part in (truth, predicted))
    nothing = np.full(ROWS, np.nan)
    rows = Joined(
        pa.array(truth),
        nothing,
        pa.array(predicted),
        nothing,
        nothing,
        of_truth,
        of_label,
        (probabilities**2).sum(axis=1),
    )
    found = metrics(folded(rows, Task.MULTICLASS, data))
    expected = {
        "accuracy": oracle.accuracy_score(truth, predicted),
        "log_loss": oracle.log_loss(truth, probabilities, labels=CLASSES),
        "brier": oracle.brier_score_loss(truth, probabilities, labels=CLASSES, scale_by_half=False),
        "calibration_error": calibration_error(truth == predicted, of_label),
    }
    for prefix, average in (("", "macro"), ("weighted_", "weighted")):
        for name, beta in (("f0_5", 0.5), ("f1", 1.0), ("f2", 2.0)):
            expected[prefix + name] = oracle.fbeta_score(truth, predicted, beta=beta, average=average)
        expected[prefix + "precision"] = oracle.precision_score(truth, predicted, average=average)
        expected[prefix + "recall"] = oracle.recall_score(truth, predicted, average=average)
    for label in sorted({*truth.tolist(), *predicted.tolist()}):
        is_true, is_chosen = truth == label, predicted == label
        expected[f"precision[{label}]"] = is_true[is_chosen].mean() if is_chosen.any() else math.nan
        expected[f"recall[{label}]"] = is_chosen[is_true].mean() if is_true.any() else math.nan
        expected[f"specificity[{label}]"] = (~is_chosen)[~is_true].mean() if (~is_true).any() else math.nan
        expected[f"f1[{label}]"] = oracle.f1_score(is_true, is_chosen)
    agree(found, expected)


@settings(deadline=None, max_examples=25)
@given(seed=seeds, offset=st.sampled_from([0.0, 5.0, 1e6]), scale=st.sampled_from([1e-3, 1.0, 1e4]), data=st.data())
def test_regression(seed: int, offset: float, scale: float, data: st.DataObject) -> None:
    """Large offsets, which cancel, and small errors; quantiles to half the width of a bin."""
    draw = np.random.default_rng(seed)
    truth = offset + scale * draw.normal(size=ROWS)
    value = truth + scale * draw.standard_t(3, ROWS) * 0.5
    nothing, labels = np.full(ROWS, np.nan), pa.nulls(ROWS, pa.string())
    found = metrics(folded(Joined(labels, truth, labels, nothing, value, nothing), Task.REGRESSION, data))
    agree(
        found,
        {
            "mae": oracle.mean_absolute_error(truth, value),
            "mse": oracle.mean_squared_error(truth, value),
            "rmse": oracle.root_mean_squared_error(truth, value),
            "r2": oracle.r2_score(truth, value),
            "mape": oracle.mean_absolute_percentage_error(truth, value),
            "bias": (value - truth).mean(),
        },
    )
    error = value - truth
    for name, share in (("p05", 0.05), ("p50", 0.5), ("p95", 0.95)):
        exact = np.quantile(error, share, method="inverted_cdf")
        assert found[f"error_{name}"].value == pytest.approx(exact, rel=0.004), name
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        exact = np.quantile(np.abs(error), share, method="inverted_cdf")
        assert found[f"absolute_error_{name}"].value == pytest.approx(exact, rel=0.008), name


def test_the_best_constant_is_what_it_says() -> None:
    """The metrics of always saying the most frequent class, the prevalence, the mean or the median."""
    draw = np.random.default_rng(3)
    truth, score = draw.random(500) < 0.3, draw.random(500)
    found = metrics(profile_of(binary_rows(truth, score > 0.5, score), Task.BINARY))
    share, yes, no = np.full(500, truth.mean()), np.ones(500, np.bool_), np.zeros(500, np.bool_)
    expected = {
        "accuracy": oracle.accuracy_score(truth, no),
        "precision": oracle.precision_score(truth, yes),
        "f0_5": oracle.fbeta_score(truth, yes, beta=0.5),
        "f1": oracle.f1_score(truth, yes),
        "f2": oracle.fbeta_score(truth, yes, beta=2),
        "auc": oracle.roc_auc_score(truth, share),
        "pr_auc": oracle.average_precision_score(truth, share),
        "log_loss": oracle.log_loss(truth, share),
        "brier": oracle.brier_score_loss(truth, share),
    }
    for name, value in expected.items():
        assert found[name].best_constant == pytest.approx(value, rel=1e-9), name
    target = draw.lognormal(3, 0.5, 2_000)
    nothing, labels = np.full(2_000, np.nan), pa.nulls(2_000, pa.string())
    rows = Joined(labels, target, labels, nothing, target + draw.normal(size=2_000), nothing)
    found = metrics(profile_of(rows, Task.REGRESSION))
    best = min(oracle.mean_absolute_percentage_error(target, np.full(2_000, c)) for c in np.linspace(5, 30, 500))
    assert found["mape"].best_constant == pytest.approx(best, rel=0.004)
    median = np.full(2_000, np.median(target))
    assert found["mae"].best_constant == pytest.approx(oracle.mean_absolute_error(target, median), rel=0.001)
    assert found["absolute_error_p50"].best_constant == pytest.approx(
        oracle.median_absolute_error(target, median), rel=0.02
    )


def profile_of(rows: Joined, task: Task) -> OutcomeProfile:
    """One batch."""
    profile = OutcomeProfile(task, "a" if task is Task.BINARY else None)
    profile.add(rows)
    return profile


def test_undefined_is_nan_and_never_zero() -> None:
    """One class only, constant truths, truths of zero, one row: what scikit-learn calls 0 or 1 with a warning."""
    few = np.array([True] * 4)
    found = metrics(profile_of(binary_rows(few, ~few, np.full(4, 0.2)), Task.BINARY))
    for name in ("precision", "specificity", "auc", "false_positive_rate"):
        assert math.isnan(found[name].value), name
    assert (found["recall"].value, found["recall"].samples) == (0.0, 4)
    nothing, labels = np.full(3, np.nan), pa.nulls(3, pa.string())
    zeros = Joined(labels, np.zeros(3), labels, nothing, np.ones(3), nothing)
    found = metrics(profile_of(zeros, Task.REGRESSION))
    assert math.isnan(found["r2"].value)
    assert (found["mape"].samples, math.isnan(found["mape"].value)) == (0, True)
    assert (found["mae"].value, found["mae"].samples) == (1.0, 3)
    assert math.isnan(found["absolute_error_p99"].upper)
    alone = metrics(profile_of(zeros.take(np.array([0])), Task.REGRESSION))
    assert alone["mae"].value == 1.0
    assert math.isnan(alone["mae"].lower)


def test_what_was_taken_out_but_never_in_says_nothing() -> None:
    """A correction of a row that is forgotten leaves no figure, and none that raises."""
    rows = binary_rows(np.array([True]), np.array([False]), np.array([0.1]))
    profile = OutcomeProfile(Task.BINARY, "a")
    profile.remove(rows)
    assert all(math.isnan(metric.value) for metric in metrics(profile).values())
    profile.add(rows)
    profile.add(rows)
    assert metrics(profile)["recall"].value == 0.0
