"""Expected metrics held to brute force: sums over rows, all pairs, and truths that are drawn again and again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import special

from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import parse
from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.estimate import Estimator, estimator_of
from stream_monitor.judge.expectation import Estimate, Expected, is_outside
from stream_monitor.judge.metric import Metric
from stream_monitor.judge.performance import metrics
from stream_monitor.records import Binding, Flags, Floats, Ints, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task
from stream_monitor.summarize.scores import (
    POSITIVE,
    ScoreProfile,
    middle_of_bin,
    of_scores,
    of_texts,
    probability_bin,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """A map that needs no labels: probability = p^power."""

    power: float = 1.0
    name: str = "known"
    rows: int = 0

    def read(self, key: Ints) -> Floats:
        return np.asarray(middle_of_bin(key) ** self.power, dtype=np.float64)

    def variance(self, key: Ints, slope: Floats) -> float:
        del key, slope
        return 0.0


def scores(n: int, seed: int) -> Floats:
    """Scores at the middles of their bins, so that bins lose nothing."""
    return middle_of_bin(probability_bin(special.expit(np.random.default_rng(seed).normal(-0.5, 1.5, n))))


def expected(score: Floats, chosen: Flags, power: float = 1.0) -> dict[str, Expected]:
    """The estimates of binary predictions whose map is known."""
    profile = ScoreProfile()
    profile.add(of_scores(score, chosen))
    return Estimator(Task.BINARY, "yes", {POSITIVE: Known(power)}).estimates(profile)


def realised(score: Floats, chosen: Flags, truth: Flags) -> Mapping[str, Metric]:
    """What labels show."""
    nothing = np.full(len(score), np.nan)
    profile = OutcomeProfile(Task.BINARY, "yes")
    true, label = (pa.array(np.where(flags, "yes", "no")) for flags in (truth, chosen))
    profile.add(Joined(true, nothing, label, score, nothing, nothing))
    return metrics(profile)


@pytest.mark.parametrize("power", [1.0, 1.7])
def test_binary_sums_are_those_over_rows(power: float) -> None:
    """Each expected sum of the confusion matrix and the losses, row by row; labels need not follow the score at a half."""
    score = scores(700, 1)
    chosen = score > 0.35
    q, found = score**power, expected(score, chosen, power)
    tp, fn = (q * chosen).sum(), (q * ~chosen).sum()
    fp, tn = ((1 - q) * chosen).sum(), ((1 - q) * ~chosen).sum()
    want = {
        "accuracy": (tp + tn) / 700,
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "f2": 5 * tp / (5 * tp + fp + 4 * fn),
        "f0_5": 1.25 * tp / (1.25 * tp + fp + 0.25 * fn),
        "log_loss": -(q * np.log(score) + (1 - q) * np.log(1 - score)).mean(),
        "brier": (q * (1 - score) ** 2 + (1 - q) * score**2).mean(),
    }
    assert {name: found[name].value for name in want} == pytest.approx(want, abs=1e-12)
    assert {estimate.rows for estimate in found.values()} == {700}


def test_accuracy_of_a_calibrated_model_is_its_mean_confidence() -> None:
    """max(p, 1 - p), where labels follow the score at a half."""
    score = scores(400, 2)
    assert expected(score, score >= 0.5)["accuracy"].value == pytest.approx(np.maximum(score, 1 - score).mean())


def test_the_area_is_that_over_all_pairs() -> None:
    """sum q_i (1 - q_j) [s_i > s_j] over all pairs, ties half; bins that lie apart have no slope to follow."""
    score = np.repeat(np.array([0.05, 0.2, 0.4, 0.7, 0.9]), [40, 30, 10, 15, 5])
    q = middle_of_bin(probability_bin(score)) ** 1.3
    order = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    want = float((q[:, None] * (1 - q) * order).sum() / (q.sum() * (1 - q).sum()))
    assert expected(score, score > 0.5, 1.3)["auc"].value == pytest.approx(want, abs=1e-12)


def test_truths_drawn_again_and_again_scatter_as_the_sampling_variance_says() -> None:
    """Every binary metric: its mean within a tenth of its deviation, its variance within a quarter, over 500 draws."""
    rng = np.random.default_rng(3)
    score = scores(1_000, 4)
    chosen = score > 0.4
    found = expected(score, chosen)
    drawn = [realised(score, chosen, rng.random(1_000) < score) for _ in range(500)]
    for name, estimate in found.items():
        assert isinstance(estimate, Estimate)
        values = np.array([each[name].value for each in drawn])
        assert values.mean() == pytest.approx(estimate.value, abs=0.15 * float(values.std())), name
        assert estimate.sampling == pytest.approx(values.var(), rel=0.25), name
        inside = [estimate.metric().lower <= value <= estimate.metric().upper for value in values]
        assert 0.92 < np.mean(inside) < 0.98, name


def test_the_best_constants_are_those_of_the_expected_prevalence() -> None:
    """As they will stand beside the realised figures: truths whose share is the expected one."""
    score = np.full(1_000, 0.3)
    truth = np.arange(1_000) < round(1_000 * float(middle_of_bin(probability_bin(score))[0]))
    found, later = expected(score, score >= 0.2), realised(score, score >= 0.2, truth)
    for name, estimate in found.items():
        assert estimate.metric().best_constant == pytest.approx(later[name].best_constant, abs=2e-3), name


def test_fewer_labels_make_the_interval_wider() -> None:
    """The realised figure of a hundredth of the rows scatters ten times as far."""
    score = scores(10_000, 5)
    estimate = expected(score, score > 0.5)["accuracy"]
    all_rows, some = estimate.metric(), estimate.metric(100)
    assert (some.upper - some.lower) / (all_rows.upper - all_rows.lower) == pytest.approx(10, rel=0.1)
    assert estimate.metric(20_000) == all_rows


def test_of_a_few_expected_errors_there_may_be_none() -> None:
    """Two rows of a thousand are expected to be true and both below the threshold: a specificity of 1 is no surprise."""
    score = np.full(1_000, 0.002)
    score[:3] = 0.9
    estimate = expected(score, score > 0.5)["specificity"].metric()
    assert estimate.value < 1
    assert estimate.upper == 1


def three(n: int, seed: int) -> tuple[Floats, ScoreProfile, list[str]]:
    """Probabilities of three classes at the middles of their bins, their counts, and the predicted classes."""
    p = np.random.default_rng(seed).dirichlet([0.8, 0.5, 0.3], n)
    p = middle_of_bin(probability_bin(p.ravel())).reshape(p.shape)
    predicted = ["abc"[k] for k in p.argmax(axis=1)]
    profile = ScoreProfile()
    texts = [json.dumps(dict(zip("abc", map(float, row), strict=True))) for row in p]
    profile.add(of_texts(pa.array(texts), pa.array(predicted), "abc"))
    return p, profile, predicted


def test_several_classes_are_summed_over_rows() -> None:
    """Accuracy, the ratios of each class and their means, and both losses."""
    p, profile, predicted = three(600, 6)
    found = Estimator(Task.MULTICLASS, None, {c: Known() for c in "abc"}).estimates(profile)
    chosen = np.array([[c == name for c in "abc"] for name in predicted])
    hits, support, taken = (p * chosen).sum(axis=0), p.sum(axis=0), chosen.sum(axis=0)
    precision, recall, f1 = hits / taken, hits / support, 2 * hits / (taken + support)
    want = {
        "accuracy": hits.sum() / 600,
        "precision": precision.mean(),
        "recall": recall.mean(),
        "f1": f1.mean(),
        "weighted_f1": (f1 * support).sum() / support.sum(),
        "weighted_precision": (precision * support).sum() / support.sum(),
        "log_loss": -(p * np.log(p)).sum(axis=1).mean(),
        "brier": (p * (1 - p)).sum(axis=1).mean(),
        "precision[a]": precision[0],
        "recall[b]": recall[1],
        "f1[c]": f1[2],
        "specificity[a]": ((1 - p[:, 0]) * ~chosen[:, 0]).sum() / (1 - p[:, 0]).sum(),
    }
    assert {name: found[name].value for name in want} == pytest.approx(want, rel=1e-9)


def test_intervals_of_several_classes_hold_what_is_drawn() -> None:
    """At least nine of ten; more where the bound on the variance is wide."""
    rng = np.random.default_rng(7)
    p, profile, predicted = three(800, 8)
    p /= p.sum(axis=1, keepdims=True)
    found = Estimator(Task.MULTICLASS, None, {c: Known() for c in "abc"}).estimates(profile)
    nothing, held = np.full(800, np.nan), dict.fromkeys(found, 0)
    for _ in range(300):
        truth = (rng.random((800, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
        row = np.arange(800)
        outcome = OutcomeProfile(Task.MULTICLASS)
        own = np.array(["abc".index(c) for c in predicted])
        outcome.add(Joined(pa.array(["abc"[k] for k in truth]), nothing, pa.array(predicted), nothing, nothing,
                           p[row, truth], p[row, own], (p**2).sum(axis=1)))  # fmt: skip
        after = metrics(outcome)
        for name, estimate in found.items():
            metric = estimate.metric()
            held[name] += metric.lower <= after[name].value <= metric.upper
    assert {name: count for name, count in held.items() if count < 270} == {}


def joined(score: Floats, chosen: Flags, truth: Flags) -> OutcomeProfile:
    """Some binary rows with their truth."""
    nothing = np.full(len(score), np.nan)
    profile = OutcomeProfile(Task.BINARY, "yes")
    true, label = (pa.array(np.where(flags, "yes", "no")) for flags in (truth, chosen))
    profile.add(Joined(true, nothing, label, score, nothing, nothing))
    return profile


def test_known_truths_stand_for_themselves() -> None:
    """Each sum over rows: the truth where it has come, the calibrated probability elsewhere."""
    rng = np.random.default_rng(11)
    score = scores(900, 12)
    chosen, truth, known = score > 0.5, rng.random(900) < score**1.4, rng.random(900) < np.where(score > 0.6, 0.8, 0.2)
    profile = ScoreProfile()
    profile.add(of_scores(score, chosen))
    found = Estimator(Task.BINARY, "yes", {POSITIVE: Known(1.4)}).estimates(
        profile, joined(score[known], chosen[known], truth[known])
    )
    q = np.where(known, truth, score**1.4)
    tp, fp, fn = (q * chosen).sum(), ((1 - q) * chosen).sum(), (q * ~chosen).sum()
    want = {
        "accuracy": (tp + ((1 - q) * ~chosen).sum()) / 900,
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "log_loss": -(q * np.log(score) + (1 - q) * np.log(1 - score)).mean(),
        "brier": (q * (1 - score) ** 2 + (1 - q) * score**2).mean(),
    }
    assert {name: found[name].value for name in want} == pytest.approx(want, abs=1e-9)
    accuracy = found["accuracy"]
    assert isinstance(accuracy, Estimate)
    p = score[~known] ** 1.4
    assert accuracy.sampling == pytest.approx((p * (1 - p)).sum() / 900**2)
    assert accuracy.rows == 900


def test_what_is_known_of_all_rows_is_what_labels_show() -> None:
    """To the last digit, and with no interval left; rows that are no part of the window are refused."""
    rng = np.random.default_rng(13)
    score = scores(500, 14)
    chosen, truth = score > 0.5, rng.random(500) < score
    profile = ScoreProfile()
    profile.add(of_scores(score, chosen))
    estimator = Estimator(Task.BINARY, "yes", {POSITIVE: Known()})
    found, want = estimator.estimates(profile, joined(score, chosen, truth)), realised(score, chosen, truth)
    for name, estimate in found.items():
        metric = estimate.metric()
        assert (metric.value, metric.lower, metric.upper) == (want[name].value,) * 3
    assert set(found) == set(estimator.estimates(profile))
    other = np.clip(score + 0.3, 0, 0.999)[:100]
    assert estimator.estimates(profile, joined(other, other > 0.5, truth[:100])) == {}


def test_of_positives_that_come_first_the_rest_has_fewer() -> None:
    """A tenth of the negatives and nine tenths of the positives are labelled: with the odds the expectation is right."""
    rng = np.random.default_rng(15)
    score = scores(200_000, 16)
    chosen, truth = score > 0.5, rng.random(200_000) < score
    known = rng.random(200_000) < np.where(truth, 0.9, 0.1)
    profile = ScoreProfile()
    profile.add(of_scores(score, chosen))
    estimator = Estimator(Task.BINARY, "yes", {POSITIVE: Known()})
    part, want = joined(score[known], chosen[known], truth[known]), realised(score, chosen, truth)
    blind = estimator.estimates(profile, part)
    seeing = estimator.estimates(profile, part, {"1": 0.1, "0": 0.9})
    for name in ("accuracy", "precision", "recall", "auc", "log_loss"):
        off, before = (abs(found[name].value - want[name].value) for found in (seeing, blind))
        assert off < min(0.004, before / 4), name


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_several_classes_with_some_truths(share: float) -> None:
    """What is known is exact, what is not is as expected of rows predicted alike; the interval holds what all show."""
    rng = np.random.default_rng(17)
    p, profile, predicted = three(4_000, 18)
    p /= p.sum(axis=1, keepdims=True)
    truth = (rng.random((4_000, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    own = np.array(["abc".index(c) for c in predicted])

    def of(row: Ints) -> OutcomeProfile:
        nothing = np.full(len(row), np.nan)
        outcome = OutcomeProfile(Task.MULTICLASS)
        outcome.add(Joined(pa.array(["abc"[k] for k in truth[row]], pa.string()), nothing,
                           pa.array([predicted[k] for k in row], pa.string()), nothing, nothing,
                           p[row, truth[row]], p[row, own[row]], (p[row] ** 2).sum(axis=1)))  # fmt: skip
        return outcome

    estimator = Estimator(Task.MULTICLASS, None, {c: Known() for c in "abc"})
    found = estimator.estimates(profile, of(np.flatnonzero(rng.random(4_000) < share)))
    pure, after = estimator.estimates(profile), metrics(of(np.arange(4_000)))
    assert set(found) == set(pure)
    outside = [name for name, estimate in found.items() if is_outside(estimate.metric(), after[name].value)]
    assert len(outside) <= 2
    for name, estimate in found.items():
        metric, before = estimate.metric(), pure[name].metric()
        assert metric.upper - metric.lower <= (before.upper - before.lower) * (1 - share / 4) + 1e-12, name
    if share == 0:
        assert {n: e.value for n, e in found.items()} == pytest.approx({n: e.value for n, e in pure.items()})


@pytest.mark.parametrize(
    ("value", "lower", "upper", "want"),
    [(0.5, 0.4, 0.6, 0), (0.3, 0.4, 0.6, -1), (0.7, 0.4, 0.6, 1), (float("nan"), 0.4, 0.6, 0),
     (0.5, float("nan"), 0.6, 0)],
)  # fmt: skip
def test_which_side_of_the_interval(value: float, lower: float, upper: float, want: int) -> None:
    """What is not known lies nowhere."""
    assert is_outside(Metric(0.5, lower, upper, 0.5, 10), value) == want


def baseline(rows: list[Row], **model: Any) -> Baseline:
    """Built from raw rows."""
    config = parse({"models": {"m": model}}, {})
    source = MemorySource([Binding(Stream.INFERENCE, "b")])
    source.start({})
    source.extend(
        PartitionId(Stream.INFERENCE, "b", 0),
        [json.dumps({"model": "m", "features": {"x": k}, **row}).encode() for k, row in enumerate(rows)],
    )
    return baselines_of_rows(source.poll(len(rows), 0.0).batches, config, source="here")[0]


BINARY: Row = {"task": "binary", "positive_label": "yes"}
SURE: Row = {"prediction": {"label": "yes", "score": 0.8}, "label": "yes"}
CLASSES: Row = {"prediction": {"label": "a", "probabilities": {"a": 0.8, "b": 0.2}}, "label": "a"}


@pytest.mark.parametrize(
    ("row", "rows", "model", "reason"),
    [
        ({"prediction": {"label": "yes", "score": 0.8}}, 50, BINARY, "carry no truth"),
        ({"prediction": {"label": "yes"}, "label": "yes"}, 50, BINARY, "carry no scores"),
        (SURE, 29, BINARY, "only 29 labelled rows"),
        (
            {"prediction": 3.5, "value": 4.0},
            50,
            {"task": "regression"},
            "only 50 rows of the baseline carry their true",
        ),
        ({"prediction": {"label": "a"}, "label": "a"}, 50, {"task": "multiclass"}, "carry no probabilities"),
    ],
)
def test_why_there_is_no_estimate(row: Row, rows: int, model: Row, reason: str) -> None:
    """Each way a baseline may lack what a calibration needs, in words."""
    found = estimator_of(baseline([row] * rows, **model), "yes" if model is BINARY else None)
    assert isinstance(found, str)
    assert reason in found


def test_another_positive_label_is_no_calibration() -> None:
    """The baseline's rates are of its own positive label."""
    assert "positive label is yes" in str(estimator_of(baseline([SURE] * 50, **BINARY), "no"))


def test_too_many_classes_are_not_estimated() -> None:
    """Every class is counted for every prediction."""
    rows = [{**CLASSES, "label": f"c{k % 25}"} for k in range(100)]
    assert "more than 20 classes" in str(estimator_of(baseline(rows, task="multiclass"), None))


@pytest.mark.parametrize(("row", "model"), [(SURE, BINARY), (CLASSES, {"task": "multiclass"})])
def test_an_estimator_outlives_the_baseline_file(row: Row, model: Row) -> None:
    """A stored baseline calibrates as the one that was built."""
    built = baseline([row] * 60, **model)
    positive = "yes" if model is BINARY else None
    first, again = estimator_of(built, positive), estimator_of(Baseline.from_bytes(built.to_bytes()), positive)
    assert isinstance(first, Estimator)
    assert isinstance(again, Estimator)
    assert first.method == again.method == "beta, fitted on 60 labelled rows"
    key = probability_bin(np.array([0.1, 0.8]))
    for name, held in first.classes.items():
        assert (held.read(key) == again.classes[name].read(key)).all()


def test_a_profile_of_other_classes_is_not_read() -> None:
    """What was counted under another baseline."""
    found = estimator_of(baseline([SURE] * 60, **BINARY), "yes")
    assert isinstance(found, Estimator)
    profile = ScoreProfile()
    profile.add(of_texts(pa.array(['{"a": 1}']), pa.array(["a"]), ["a"]))
    assert found.estimates(profile) == {}
    assert found.estimates(ScoreProfile()) == {}
