"""Model quality before labels come: what calibrated probabilities lead to expect of a window's predictions.

Confidence-based estimation: a row whose calibrated probability is q is true with probability q, so that the sums of the
confusion matrix, of the losses and of the pairs in order have expectations and variances (Guo et al. 2017 on calibration;
Garg et al. 2022 on estimating from it). It holds as long as the relation of inputs and truth does: when the inputs
drift the estimate follows, when the concept drifts it does not, and the realised figures leave its interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.calibration import Calibration, calibrate
from stream_monitor.judge.expectation import Estimate, Expected, Range, settled
from stream_monitor.judge.loss import FEWEST_ROWS, Losses, LossEstimator
from stream_monitor.judge.metric import NAN
from stream_monitor.judge.part import Part
from stream_monitor.judge.performance import metrics
from stream_monitor.judge.ranking import Ranks
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.histogram import Histogram
from stream_monitor.summarize.outcome import (
    PROBABILITY_FLOOR,
    SCORE_BINS_PER_OCTAVE,
    OutcomeProfile,
    Task,
    binned_scores,
    is_current,
)
from stream_monitor.summarize.scores import (
    MOST_CLASSES,
    POSITIVE,
    ScoreProfile,
    middle_of_bin,
    place_of_bin,
    probability_bin,
)

OUTCOME = "label"
"""The outcome that is estimated: the one whose truth baseline rows carry."""

FEWEST_LABELS = 30
"""Labelled baseline rows below which there is no estimate: the map would be the prior, and the model believed unseen."""

_SHAPES = {"precision": (1.0, 0.0), "recall": (0.0, 1.0), "f0_5": (1.0, 0.25), "f1": (1.0, 1.0), "f2": (1.0, 4.0)}
"""Each ratio of a class is (c + t) hits / (c chosen + t true): its c and t."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """The calibration of each class, fitted on a baseline's labelled rows."""

    task: Task
    positive_label: str | None
    classes: Mapping[str, Calibration]

    @property
    def method(self) -> str:
        """What `baseline show` says of it."""
        maps = sorted({c.name for c in self.classes.values()})
        rows = next(iter(self.classes.values())).rows
        return f"{' and '.join(maps)}, fitted on {rows} labelled rows"

    def estimates(
        self,
        scores: ScoreProfile,
        known: OutcomeProfile | None = None,
        remaining: Mapping[str, float] | None = None,
    ) -> dict[str, Expected]:
        """Every metric that can be expected; none where the profile is of other classes or empty.

        Binary: accuracy, precision, recall, specificity, f0_5, f1, f2, auc, log_loss, brier. Several classes: accuracy,
        log_loss, brier, precision, recall, f0_5, f1 and f2 as plain and as weighted means over the classes, and
        precision[c], recall[c], specificity[c], f1[c].

        `known`: the outcomes of those rows that have their truth; none where they are not a part of these. `remaining`:
        the share of each class's rows without one ("1" and "0" of a binary model), where truths do not come alike.
        """
        if not scores.rows or set(scores.classes) != set(self.classes):
            return {}
        known = OutcomeProfile(self.task, self.positive_label) if known is None else known
        truths = known.scored if self.task is Task.BINARY else known.rows
        if truths == scores.rows:
            return {name: settled(metric) for name, metric in metrics(known).items() if name in self._names()}
        parts = self._parts(scores, known, remaining)
        if parts is None:
            return {}
        return _binary(parts[POSITIVE], known) if self.task is Task.BINARY else _multiclass(parts, known)

    def _parts(
        self, scores: ScoreProfile, known: OutcomeProfile, remaining: Mapping[str, float] | None
    ) -> dict[str, Part] | None:
        parts = {name: Part.of(scores.classes[name], held) for name, held in self.classes.items()}
        if remaining is not None:
            expected = {name: part.true for name, part in parts.items()}
            if self.task is Task.BINARY:
                expected["0"] = scores.rows - expected[POSITIVE]
            parts = {
                name: Part.of(scores.classes[name], held, odds=_odds(name, remaining, expected))
                for name, held in self.classes.items()
            }
        found = {}
        for name, part in parts.items():
            left = (
                part.less_scores(binned_scores(known.scores))
                if self.task is Task.BINARY
                else part.less_pairs(name, known.pairs)
            )
            if left is None:
                return None
            found[name] = left
        return found

    def _names(self) -> set[str]:
        """The metrics there are."""
        if self.task is Task.BINARY:
            return {"accuracy", "specificity", "auc", "log_loss", "brier", *_SHAPES}
        of_class = {f"{name}[{c}]" for c in self.classes for name in ("precision", "recall", "specificity", "f1")}
        return {"accuracy", "log_loss", "brier", *_SHAPES, *(f"weighted_{name}" for name in _SHAPES)} | of_class


def _odds(name: str, remaining: Mapping[str, float], expected: Mapping[str, float]) -> float:
    """How many times likelier a row of a class lacks its truth than one of the others, by their expected rows."""
    others = {c: rows for c, rows in expected.items() if c != name}
    lacking = sum(rows * remaining[c] for c, rows in others.items()) / sum(others.values())
    return remaining[name] / lacking


def estimator_of(baseline: Baseline, positive_label: str | None) -> Estimator | LossEstimator | str:
    """The estimator a baseline allows, or why there is none, in words for the log and for `baseline show`."""
    body = baseline.outcomes.get(OUTCOME)
    if body is None:
        return "the rows of the baseline carry no truth"
    if not is_current(body):
        return "the truth of the baseline was stored by an earlier version of the program"
    truth = OutcomeProfile.from_bytes(body)
    if truth.task is Task.REGRESSION:
        return _of_numbers(baseline, truth)
    if truth.task is Task.BINARY:
        return _of_binary(truth, positive_label)
    return _of_classes(baseline, truth)


def _of_numbers(baseline: Baseline, truth: OutcomeProfile) -> LossEstimator | str:
    if truth.rows < FEWEST_ROWS:
        return f"only {truth.rows} rows of the baseline carry their true number, {FEWEST_ROWS} are needed"
    losses = None if baseline.losses is None else Losses.from_bytes(baseline.losses)
    if losses is None:
        return "the baseline was built by an earlier version of the program: build it anew from its rows"
    return LossEstimator(losses)


def _of_binary(truth: OutcomeProfile, positive_label: str | None) -> Estimator | str:
    if truth.positive_label != positive_label:
        return f"the baseline's positive label is {truth.positive_label}, the configuration's {positive_label}"
    keys, counts = binned_scores(truth.scores).arrays()
    finer = middle_of_bin(keys >> 1, per_octave=SCORE_BINS_PER_OCTAVE)
    labelled = Histogram()
    coarse, at = np.unique(probability_bin(finer) * 2 + (keys & 1), return_inverse=True)
    labelled.add(coarse, np.bincount(at, counts, len(coarse)).astype(np.int64))
    found = _calibration(labelled)
    if isinstance(found, str):
        return found
    return Estimator(Task.BINARY, positive_label, {POSITIVE: found})


def _of_classes(baseline: Baseline, truth: OutcomeProfile) -> Estimator | str:
    labels = {label for pair in truth.pairs for label in pair}
    if len(labels) > MOST_CLASSES:
        return f"more than {MOST_CLASSES} classes"
    if baseline.class_scores is None:
        return "the labelled rows of the baseline carry no probabilities"
    found = {name: _calibration(held) for name, held in ScoreProfile.from_bytes(baseline.class_scores).classes.items()}
    maps = {name: held for name, held in found.items() if not isinstance(held, str)}
    refused = [held for held in found.values() if isinstance(held, str)]
    if refused or not maps:
        return refused[0] if refused else "the labelled rows of the baseline carry no probabilities"
    return Estimator(Task.MULTICLASS, None, maps)


def _calibration(labelled: Histogram) -> Calibration | str:
    part = _cells(labelled)
    if part[1].sum() == 0:
        return "the labelled rows of the baseline carry no scores"
    if part[1].sum() < FEWEST_LABELS:
        return f"only {int(part[1].sum())} labelled rows of the baseline carry scores, {FEWEST_LABELS} are needed"
    return calibrate(part[0], part[2], part[1])


def _cells(histogram: Histogram) -> tuple[Ints, Floats, Floats]:
    """Bins that ascend, their rows, and how many of them are marked."""
    keys, counts = histogram.arrays()
    bins, at = np.unique(keys >> 1, return_inverse=True)
    return bins, _summed_by(at, counts, len(bins)), _summed_by(at, counts * (keys & 1), len(bins))


def _summed_by(place: Ints, weight: Ints | Floats, places: int) -> Floats:
    return np.asarray(np.bincount(place, weight, places), dtype=np.float64)


def _binary(part: Part, known: OutcomeProfile) -> dict[str, Expected]:
    n, share = part.rows, part.true / part.rows
    rejected, false = 1 - part.chosen, part.rows - part.true
    specificity = float((part.count * rejected * (1 - part.probability)).sum()) / false
    right = np.where(part.chosen > 0, part.probability, 1 - part.probability)
    found: dict[str, Expected] = {
        "accuracy": part.estimate(
            float((part.count * right).sum()) / n, (2 * part.chosen - 1) / n, constant=max(share, 1 - share)
        )
    }
    for name, (by_chosen, by_truth) in _SHAPES.items():
        value, slope = part.ratio(by_chosen, by_truth)
        constant = (by_chosen + by_truth) * share / (by_chosen + by_truth * share)
        if name == "precision" and part.taken == 0:
            value = NAN
        found[name] = part.estimate(value, slope, constant=constant)
    found["specificity"] = part.estimate(specificity, (specificity - rejected) / false, constant=1.0)
    found["auc"] = _auc(part)
    loss, gain = -np.log(np.maximum(part.own, PROBABILITY_FLOOR)), -np.log(np.maximum(1 - part.own, PROBABILITY_FLOOR))
    q = part.probability
    log_loss, brier = q * loss + (1 - q) * gain, q * (1 - part.own) ** 2 + (1 - q) * part.own**2
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    for name, each, slope, constant in (
        ("log_loss", log_loss, (loss - gain) / n, entropy),
        ("brier", brier, (1 - 2 * part.own) / n, share * (1 - share)),
    ):
        value = (float((part.unknown * each).sum()) + known.sums[name].value) / n
        found[name] = part.estimate(value, slope, constant=constant, of=Range.LOSS)
    return found


def _auc(part: Part) -> Estimate:
    """Expected area under the ROC curve: pairs of rows in order, weighted by the probability that they are a pair.

    Its slope in the truth of a row is (share of negatives below - area) / positives - (share of positives above -
    area) / negatives.
    """
    bins, at = np.unique(part.bin, return_inverse=True)
    positive = _summed_by(at, part.count * part.probability, len(bins))
    negative = _summed_by(at, part.count * (1 - part.probability), len(bins))
    ranks = Ranks.of_cells(place_of_bin(bins), positive, negative)
    p, q = float(positive.sum()), float(negative.sum())
    area = ranks.area()
    below = (np.cumsum(negative) - negative / 2) / q
    above = (np.cumsum(positive[::-1])[::-1] - positive / 2) / p
    slope = (below - area) / p - (above - area) / q
    return part.estimate(area, slope[at], constant=0.5)


def _multiclass(parts: Mapping[str, Part], known: OutcomeProfile) -> dict[str, Expected]:
    """The classes' truths exclude each other: for sums over them the bound Var <= sum of slope^2 q is taken."""
    n = next(iter(parts.values())).rows
    several = {name: replace(part, conservative=True) for name, part in parts.items()}
    share = {name: part.true / n for name, part in parts.items()}
    top = max(share.values())
    one = {name: part.chosen / n for name, part in parts.items()}
    hits = sum(part.hits for part in parts.values())
    found: dict[str, Expected] = {"accuracy": _summed(parts, one, hits / n, constant=top)}
    for name, shape in _SHAPES.items():
        ratios = {c: part.ratio(*shape) for c, part in parts.items()}
        of_top = sum(shape) * top / (shape[0] + shape[1] * top)
        plain = sum(value for value, _ in ratios.values()) / len(parts)
        slopes = {c: slope / len(parts) for c, (_, slope) in ratios.items()}
        found[name] = _summed(several, slopes, plain, constant=of_top / len(parts))
        all_true = sum(part.true for part in parts.values())
        weighted = sum(parts[c].true * value for c, (value, _) in ratios.items()) / all_true
        slopes = {c: (parts[c].true * slope + value - weighted) / all_true for c, (value, slope) in ratios.items()}
        found[f"weighted_{name}"] = _summed(several, slopes, weighted, constant=of_top * top)
    return found | _losses(several, known, list(share.values())) | _by_class(parts)


def _losses(parts: Mapping[str, Part], known: OutcomeProfile, share: list[float]) -> dict[str, Expected]:
    """Log loss and Brier's score are sums over the classes; none where some truths came without probabilities."""
    if min(known.probable, known.scored) < known.rows:
        return {}
    n = next(iter(parts.values())).rows
    log_loss, brier = known.sums["log_loss"].value / n, known.sums["brier"].value / n
    of_log, of_brier = {}, {}
    for name, part in parts.items():
        loss = -np.log(np.maximum(part.own, PROBABILITY_FLOOR))
        log_loss += float((part.unknown * part.probability * loss).sum()) / n
        brier += float((part.unknown * (part.own**2 + part.probability * (1 - 2 * part.own))).sum()) / n
        of_log[name], of_brier[name] = loss / n, (1 - 2 * part.own) / n
    entropy = -sum(s * math.log(s) for s in share if s > 0)
    return {
        "log_loss": _summed(parts, of_log, log_loss, constant=entropy, of=Range.LOSS),
        "brier": _summed(parts, of_brier, brier, constant=1 - sum(s * s for s in share), of=Range.LOSS),
    }


def _by_class(parts: Mapping[str, Part]) -> dict[str, Expected]:
    found: dict[str, Expected] = {}
    for label, part in parts.items():
        share = part.true / part.rows
        for name in ("precision", "recall", "f1"):
            by_chosen, by_truth = _SHAPES[name]
            value, slope = part.ratio(by_chosen, by_truth)
            constant = (by_chosen + by_truth) * share / (by_chosen + by_truth * share)
            found[f"{name}[{label}]"] = part.estimate(
                NAN if name == "precision" and part.taken == 0 else value, slope, constant=constant
            )
        rejected, false = 1 - part.chosen, part.rows - part.true
        value = float((part.count * rejected * (1 - part.probability)).sum()) / false
        found[f"specificity[{label}]"] = part.estimate(value, (value - rejected) / false, constant=1.0)
    return found


def _summed(
    parts: Mapping[str, Part], slopes: Mapping[str, Floats], value: float, *, constant: float, of: Range = Range.SHARE
) -> Estimate:
    each = [part.variances(slopes[name]) for name, part in parts.items()]
    rows = round(next(iter(parts.values())).rows)
    # The maps of several classes are fitted on the same labels: their errors may all go one way.
    calibration = sum(math.sqrt(c) for _, c in each) ** 2
    return Estimate(value, sum(s for s, _ in each), calibration, of, constant, rows)
