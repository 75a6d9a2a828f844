"""What joined truths say of a model, as few cells: its errors, and the relation of truths to scores.

`error_rate` and `mean_absolute_error` tell how large errors are; `bias` which way they lean. `calibration` compares truths
with what the baseline knows of such scores: its likelihood ratios are conditional on the score, so that inputs which move,
and scores with them, leave them alone, while a relation that turned shows though as many answers are right as before.
Numbers of their own have one aspect, `mean`: how high they lie, whatever was predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import special

from stream_monitor.judge.cusum import Bank, tilted
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.outcome import (
    Joined,
    OutcomeProfile,
    Task,
    binned,
    binned_scores,
    errors,
    reliability_bin,
    score_bin,
    value_bin,
    values_of_bins,
    variance,
)

ERROR_RATE, CALIBRATION, ABSOLUTE, BIAS = "error_rate", "calibration", "mean_absolute_error", "bias"
LEVEL = "mean"
NONE = -1
"""The cell of a truth that says nothing of an aspect."""
FEWEST_ROWS = 200
"""Fewer labelled rows are no reference: as for the values of a feature."""
_EFFECTS = np.array([0.1, 0.16, 0.26, 0.4, 0.65, 1.05])
"""Alternatives, in Cohen's h or standard deviations: between two of them a sum loses 5 % of its speed at most."""
_TURNS = np.array([0.25, 0.5, 1.0, 2.0])
"""Alternatives of the calibration: the log odds of every score higher, or lower, by so much."""
_FADES = np.array([0.5, 1.0, 2.0])
"""And the slope of the log odds halved, gone, turned round."""
_LOGITS = np.arange(-6.0, 6.01, 0.25)
_SCORE_EDGES = score_bin(special.expit(_LOGITS))
_MIDDLES = np.concatenate([[_LOGITS[0] - 0.125], (_LOGITS[1:] + _LOGITS[:-1]) / 2, [_LOGITS[-1] + 0.125]])
_FITTED_ROWS = 50.0
"""The fitted curve counts as 50 rows in each cell of scores: what a score seen rarely, or never, is held to."""
_RANKS = 32
_LEAST = 1e-4


@dataclass(frozen=True, slots=True)
class Aspect:
    """One thing that is watched: cells (C,) with their baseline shares, and the alternatives over them.

    `score` (C,): numbers alone, how high a cell lies in standard deviations of ranks.
    """

    name: str
    shares: Floats
    bank: Bank
    rows: int
    score: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True, slots=True)
class Relation:
    """The aspects of one outcome, how its rows fall into their cells, and what stands beside them in words."""

    task: Task
    positive_label: str | None
    aspects: tuple[Aspect, ...]
    edges: tuple[Ints, Ints]  # numbers: bins of |error| and of error between which the cells lie
    truth: Floats  # (cells,) with scores: the baseline's probability that it comes true
    mean: float  # of the error: a rate, or the mean of |error|; of numbers of their own
    deviation: float
    lean: float  # mean and deviation of predicted - true
    lean_deviation: float
    by_class: dict[str, tuple[int, int]]  # truth -> baseline rows and errors
    rows: int
    median: float = math.nan  # of numbers of their own

    @classmethod
    def of(cls, reference: OutcomeProfile) -> Relation | None:
        """None where the reference has too few readable rows."""
        if reference.rows < FEWEST_ROWS or not reference.is_whole:
            return None
        if reference.task is Task.VALUE:
            return _of_values(reference)
        return _of_numbers(reference) if reference.task is Task.REGRESSION else _of_classes(reference)

    @classmethod
    def of_class(cls, reference: OutcomeProfile, label: str) -> Relation | None:
        """Of the truths of one class alone: how many are answered wrongly; None where there are too few."""
        rows = sum(count for (truth, _), count in reference.pairs.items() if truth == label)
        if rows < FEWEST_ROWS or not reference.is_whole:
            return None
        rate = (rows - reference.pairs[label, label] + 0.5) / (rows + 1)
        nothing, deviation = np.zeros(0, np.int64), float(np.sqrt(rate * (1 - rate)))
        return cls(reference.task, None, (_rate(rate, rows),), (nothing, nothing), np.zeros(0), rate, deviation, 0.0, 1.0, {},
                   rows)  # fmt: skip

    def encode(self, joined: Joined) -> tuple[Ints, Floats]:
        """(n, aspects) cells, NONE where a row says nothing, and (n,) errors: 0 or 1, of numbers predicted - true.

        Numbers of their own stand where errors would.
        """
        error = errors(joined, self.task, positive_label=self.positive_label)
        if self.task is Task.VALUE:
            readable = np.isfinite(error)
            key = value_bin(np.where(readable, error, 0.0))
            return np.where(readable, np.searchsorted(self.edges[0], key), NONE)[:, None], error
        if self.task is Task.REGRESSION:
            readable = np.isfinite(error)
            value = np.where(readable, joined.value - joined.truth_number, np.nan)
            key = value_bin(np.where(readable, value, 0.0))
            cells = [np.searchsorted(e, k) for e, k in zip(self.edges, (np.abs(key), key), strict=True)]
            return np.where(readable[:, None], np.stack(cells, axis=1), NONE), value
        wrong = np.where(np.isfinite(error), np.nan_to_num(error), NONE).astype(np.int64)
        columns = [wrong]
        if len(self.aspects) > 1:
            columns.append(self._calibrated(joined, wrong))
        return np.stack(columns, axis=1), error

    def _calibrated(self, joined: Joined, wrong: Ints) -> Ints:
        if self.task is Task.MULTICLASS:
            told = joined.label_probability if joined.label_probability is not None else np.full(len(wrong), np.nan)
            usable = (told >= 0) & (told <= 1) & (wrong != NONE)
            return np.where(usable, reliability_bin(np.where(usable, told, 0.0)) * 2 + (wrong == 0), NONE)
        usable = (joined.score >= 0) & (joined.score <= 1) & (wrong != NONE)
        positive = pa.scalar(self.positive_label, pa.string())
        true = np.asarray(pc.fill_null(pc.equal(joined.truth_label, positive), pa.scalar(False)), np.bool_)
        cell = _score_cell(score_bin(np.where(usable, joined.score, 0.5)))
        return np.where(usable, cell * 2 + true, NONE)

    def expected_errors(self, wrong: Ints, calibration: Ints) -> Floats:
        """How likely each answer was wrong, (n,), by its score and what the baseline knows of such scores."""
        chance = self.truth[calibration // 2]
        if self.task is Task.MULTICLASS:
            return np.asarray(1 - chance)
        said_yes = (calibration % 2 == 1) ^ (wrong == 1)
        return np.where(said_yes, 1 - chance, chance)


def _of_classes(reference: OutcomeProfile) -> Relation | None:
    rows = sum(reference.pairs.values())
    by_class: dict[str, tuple[int, int]] = {}
    for (label, predicted), count in reference.pairs.items():
        of_class, wrong = by_class.get(label, (0, 0))
        by_class[label] = (of_class + count, wrong + count * (label != predicted))
    rate = (sum(wrong for _, wrong in by_class.values()) + 0.5) / (rows + 1)
    aspects, truth = [_rate(rate, rows)], np.zeros(0)
    keys, counts = (
        binned_scores(reference.scores) if reference.task is Task.BINARY else reference.reliability
    ).arrays()
    if counts.sum() >= FEWEST_ROWS:
        cell = _score_cell(keys >> 1) if reference.task is Task.BINARY else keys >> 1
        middles = _MIDDLES if reference.task is Task.BINARY else special.logit(np.arange(0.05, 1, 0.1))
        held = (
            np.bincount(cell * 2 + (keys & 1), counts.astype(np.float64), 2 * len(middles))
            .reshape(-1, 2)
            .astype(np.float64)
        )
        truth = _chances(held, middles)
        aspects.append(_calibration(held.sum(axis=1), truth))
    nothing = np.zeros(0, np.int64)
    deviation = float(np.sqrt(rate * (1 - rate)))
    return Relation(reference.task, reference.positive_label, tuple(aspects), (nothing, nothing), truth, rate, deviation,
                    0.0, 1.0, by_class, rows)  # fmt: skip


def _of_numbers(reference: OutcomeProfile) -> Relation | None:
    keys, counts = reference.errors.arrays()
    sizes, place = np.unique(np.abs(keys), return_inverse=True)
    absolute = _location(ABSOLUTE, sizes, np.bincount(place, counts), signs=(1,), ranks=_RANKS)
    lean = _location(BIAS, keys, counts, signs=(1, -1), ranks=2)
    n = reference.rows
    sums = {name: reference.sums[name].value / n for name in ("absolute", "squared", "error")}
    deviation = float(np.sqrt(max(sums["squared"] - sums["absolute"] ** 2, 0.0))) or 1.0
    lean_deviation = float(np.sqrt(max(sums["squared"] - sums["error"] ** 2, 0.0))) or 1.0
    return Relation(Task.REGRESSION, reference.positive_label, (absolute[0], lean[0]), (absolute[1], lean[1]),
                    np.zeros(0), sums["absolute"], deviation, sums["error"], lean_deviation, {}, n)  # fmt: skip


def _of_values(reference: OutcomeProfile) -> Relation:
    """Higher and lower alike: whether a longer stay is good news nobody told."""
    keys, counts = binned(reference.targets).arrays()
    level, edges = _location(LEVEL, keys, counts, signs=(1, -1), ranks=_RANKS, by_value=True)
    n, total, squares = reference.rows, reference.sums["target"], reference.sums["target_squared"]
    deviation = math.sqrt(max(variance(total, squares, n), 0.0)) or 1.0
    median = float(values_of_bins(keys)[np.searchsorted(np.cumsum(counts), n / 2)])
    nothing = np.zeros(0, np.int64)
    return Relation(Task.VALUE, None, (level,), (edges, nothing), np.zeros(0), total.value / n, deviation, 0.0, 1.0, {},
                    n, median)  # fmt: skip


def _rate(rate: float, rows: int) -> Aspect:
    """Errors that come more often, each alternative by Cohen's h; less often is good news."""
    angle = np.minimum(np.arcsin(np.sqrt(rate)) + _EFFECTS / 2, np.pi / 2 - 1e-3)
    worse = np.sin(angle) ** 2
    shares = np.array([1 - rate, rate])
    ratios = np.log(np.stack([1 - worse, worse], axis=1) / shares)
    return _aspect(ERROR_RATE, shares, ratios[worse > rate], rows)


def _calibration(held: Floats, truth: Floats) -> Aspect:
    """Truths that no longer follow their scores as they did: the log odds of `truth` (cells,) moved, or their slope."""
    odds = special.logit(truth)
    middle = float((held * odds).sum() / held.sum())
    others = [odds + turn for turn in (*_TURNS, *-_TURNS)] + [middle + (1 - fade) * (odds - middle) for fade in _FADES]
    usual = np.stack([1 - truth, truth], axis=1).reshape(-1)
    chances = [np.stack([1 - special.expit(o), special.expit(o)], axis=1).reshape(-1) for o in others]
    ratios = np.log(np.maximum(np.stack(chances), 1e-9) / usual)
    shares = np.repeat(held / held.sum(), 2) * usual
    # Scores that tell nothing have no slope to lose: what is no alternative would have no limit either.
    is_other = (shares * np.abs(ratios)).sum(axis=1) > 1e-3
    return _aspect(CALIBRATION, shares, ratios[is_other], int(held.sum()))


def _location(
    name: str, keys: Ints, counts: Ints | Floats, *, signs: tuple[int, ...], ranks: int, by_value: bool = False
) -> tuple[Aspect, Ints]:
    """Numbers that lie higher (or lower): the normal scores of so many ranks, ties together, tilted by each effect.

    Of several ranks the last is beyond all of the baseline's. Of two, the sides of the median, there is none: errors that
    only scatter more lie on either side of it as before. `by_value`: tilted by the mean of each cell as well, which finds
    a mean that moves soonest where many numbers are equal, or all but a few are small.
    """
    total, rows = np.cumsum(counts), float(counts.sum())
    last = np.searchsorted(total, np.arange(1, ranks) * rows / ranks)
    cuts = keys[np.minimum(last, len(keys) - 1)]
    edges = np.unique(cuts if ranks == 2 else np.append(cuts, keys[-1]))
    held = np.append(total[np.searchsorted(keys, edges)], rows)
    shares = np.maximum(np.diff(held, prepend=0.0), 1.0)
    shares = shares / shares.sum()
    cut = special.ndtri(np.clip(np.concatenate([[0.0], np.cumsum(shares)]), 1e-12, 1 - 1e-12))
    density = np.exp(-(cut**2) / 2) / np.sqrt(2 * np.pi)
    score = (density[:-1] - density[1:]) / shares
    tilts = np.concatenate([sign * _EFFECTS for sign in signs])[:, None] * score
    for value in _by_value(shares, edges, keys, counts) if by_value else ():
        further = np.concatenate([sign * _EFFECTS[1::2] for sign in signs])[:, None] * value
        tilts = np.concatenate([tilts, further])
    ratios = tilts - np.log((shares * np.exp(tilts)).sum(axis=1))[:, None]
    return replace(_aspect(name, shares, ratios, int(rows)), score=score), edges.astype(np.int64)


def _by_value(shares: Floats, edges: Ints, keys: Ints, counts: Ints | Floats) -> list[Floats]:
    """The mean of each cell (C,) in standard deviations; beyond the last the largest number. None if all are equal."""
    cell, value = np.searchsorted(edges, keys), values_of_bins(keys)
    rows = np.bincount(cell, counts, len(shares))
    mean = np.bincount(cell, counts * value, len(shares)) / np.maximum(rows, 1)
    mean[rows == 0] = value[-1]
    away = mean - (shares * mean).sum()
    deviation = float(np.sqrt((shares * away**2).sum()))
    return [away / deviation] if deviation > 0 else []


def _aspect(name: str, shares: Floats, ratios: Floats, rows: int) -> Aspect:
    unlucky = np.stack([tilted(shares, ratio, rows) for ratio in ratios])
    return Aspect(name, shares, Bank.of(ratios, shares, unlucky), rows)


def _score_cell(bins: Ints) -> Ints:
    return np.asarray(np.searchsorted(_SCORE_EDGES, bins, "right"), np.int64)


def _chances(held: Floats, middles: Floats) -> Floats:
    """The probability of the truth (cells,), from counts (cells, 2) of false and true and a logistic curve through them."""
    n = held.sum(axis=1)
    weight = np.array([0.0, 1.0])
    design = np.stack([np.ones_like(middles), middles], axis=1)
    prior = 1.0  # rows that say scores are probabilities: without it, scores that part the truths have no curve
    for _ in range(25):
        fitted = special.expit(design @ weight)
        slope = design.T @ (held[:, 1] - n * fitted) - prior * (weight - [0.0, 1.0])
        curve = (design * (n * fitted * (1 - fitted))[:, None]).T @ design + prior * np.eye(2)
        step = np.linalg.solve(curve, slope)
        weight += step / max(1.0, float(np.abs(step).max()))
    fitted = special.expit(design @ weight)
    chance = (held[:, 1] + _FITTED_ROWS * fitted) / (n + _FITTED_ROWS)
    return np.asarray(np.clip(chance, _LEAST, 1 - _LEAST), np.float64)
