"""What joined labels say about predictions, as sums that add, subtract and do not care about order.

A correction removes a joined row and adds another, cohorts merge over months and a killed process resumes: so no sum
here is rounded. `ExactSum` adds floats as the integers they are; `remove` undoes `add` to the last bit.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.errors import StateError
from stream_monitor.records import Flags, Floats, Ints

FORMAT = 1
_UNIT_BITS = 1126  # a float's 53-bit mantissa times 2^(exponent - 53): the smallest exponent is -1073
_HALF_BITS = 26
_LARGEST = 1e75  # fourth powers of errors must stay finite; a larger target is counted as unusable
_PROBABILITY_FLOOR = 1e-15  # log loss of a certain and wrong prediction: 34.5 instead of infinity
DECISION = 0.5  # the threshold of a score where an event carries no predicted label
SCORE_BINS_PER_OCTAVE = 128
_SCORE_FLOOR = 2.0**-40
_VALUE_BINS_PER_OCTAVE = 32


K = TypeVar("K")


class Task(StrEnum):
    """What a model predicts, and so which metrics its outcomes have."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


def task_of(configured: str | None, *, is_numeric: bool) -> Task:
    """The configured task; without one, numbers mean regression and strings several classes.

    `is_numeric`: the predictions carry a number and their truths are numbers.
    """
    if configured is not None:
        return Task(configured)
    return Task.REGRESSION if is_numeric else Task.MULTICLASS


@dataclass(slots=True)
class ExactSum:
    """A sum of finite floats without rounding: an integer multiple of 2^-1126.

    Laws: the result does not depend on order or batching; `subtract` undoes `add` exactly; `value` is the correctly
    rounded sum (infinite if that is beyond a float).

    >>> total = ExactSum()
    >>> total.add(np.array([1e100, 1.0, -1e100]))
    >>> total.value
    1.0
    """

    units: int = 0

    def add(self, values: Floats) -> None:
        """Add finite values."""
        self.units += _units(values)

    def subtract(self, values: Floats) -> None:
        """Take values away that were added before."""
        self.units -= _units(values)

    @property
    def value(self) -> float:
        """The sum as the nearest float."""
        try:
            return self.units / (1 << _UNIT_BITS)
        except OverflowError:
            return float("inf") if self.units > 0 else float("-inf")


@dataclass(frozen=True, slots=True)
class Joined:
    """Rows of predictions with their truth: n of one model, version, segment and outcome."""

    truth_label: pa.Array  # string: JSON text without quotes
    truth_number: Floats  # the truth as a number, NaN where it is none
    label: pa.Array  # string: predicted class, null where none
    score: Floats  # predicted probability of the positive label, NaN where none
    value: Floats  # predicted number, NaN where none
    truth_probability: Floats  # several classes: the probability the prediction gave the truth, NaN where none

    def __len__(self) -> int:
        return len(self.truth_number)


REGRESSION_SUMS = ("target", "target_squared", "error", "absolute", "squared", "cubed", "fourth")
BINARY_SUMS = ("log_loss", "log_loss_squared", "brier", "brier_squared")
MULTICLASS_SUMS = ("log_loss", "log_loss_squared")
_SUMS: Mapping[Task, tuple[str, ...]] = {
    Task.REGRESSION: REGRESSION_SUMS,
    Task.BINARY: BINARY_SUMS,
    Task.MULTICLASS: MULTICLASS_SUMS,
}


@dataclass(slots=True)
class OutcomeProfile:
    """Mergeable sufficient statistics of joined rows.

    Laws: `add` in any order and batching gives equal profiles; `remove` undoes `add`; `merge(a, b)` equals the
    profile of both's rows, changes neither and refuses unequal tasks or positive labels; an empty profile is its
    identity.

    `rows`: usable rows. `unusable`: rows without a readable prediction or truth for the task. `pairs`: (truth,
    predicted) -> rows; binary uses "1" for the positive label and "0" for every other. `scores`: (truth, bin) -> rows
    for binary scores. `targets`: bin -> rows of regression truths. `probable`: rows that have a probability.
    """

    task: Task
    positive_label: str | None = None
    rows: int = 0
    unusable: int = 0
    probable: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: Counter[tuple[int, int]] = field(default_factory=Counter)
    targets: Counter[int] = field(default_factory=Counter)
    sums: dict[str, ExactSum] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _SUMS[self.task]:
            self.sums.setdefault(name, ExactSum())

    def add(self, joined: Joined) -> None:
        """Fold rows in."""
        self._fold(joined, 1)

    def remove(self, joined: Joined) -> None:
        """Take rows out that were folded in before, with the truth they had then."""
        self._fold(joined, -1)

    def merge(self, other: OutcomeProfile) -> OutcomeProfile:
        """The profile of both's rows; raises ValueError where they do not measure the same."""
        if (self.task, self.positive_label) != (other.task, other.positive_label):
            raise ValueError(f"outcomes of {self.task} and {other.task} do not add")
        return OutcomeProfile(
            self.task,
            self.positive_label,
            self.rows + other.rows,
            self.unusable + other.unusable,
            self.probable + other.probable,
            _added(self.pairs, other.pairs),
            _added(self.scores, other.scores),
            _added(self.targets, other.targets),
            {name: ExactSum(total.units + other.sums[name].units) for name, total in self.sums.items()},
        )

    def to_bytes(self) -> bytes:
        """Compact and versioned; no pickle. Equal profiles give equal bytes."""
        content = {
            "task": self.task,
            "positive_label": self.positive_label,
            "counts": [self.rows, self.unusable, self.probable],
            "pairs": sorted([*key, count] for key, count in self.pairs.items()),
            "scores": sorted([*key, count] for key, count in self.scores.items()),
            "targets": sorted(self.targets.items()),
            "sums": {name: f"{total.units:x}" for name, total in sorted(self.sums.items())},
        }
        return struct.pack("<B", FORMAT) + zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1)

    @classmethod
    def from_bytes(cls, state: bytes) -> OutcomeProfile:
        """The profile that was stored; raises StateError if it is damaged or of another format."""
        if state[:1] != struct.pack("<B", FORMAT):
            raise StateError(f"an outcome profile of a format other than {FORMAT}")
        try:
            content = json.loads(zlib.decompress(state[1:]))
            rows, unusable, probable = content["counts"]
            return cls(
                Task(content["task"]),
                content["positive_label"],
                rows,
                unusable,
                probable,
                Counter({(truth, predicted): count for truth, predicted, count in content["pairs"]}),
                Counter({(truth, score): count for truth, score, count in content["scores"]}),
                Counter(dict(content["targets"])),
                {name: ExactSum(int(units, 16)) for name, units in content["sums"].items()},
            )
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"an outcome profile cannot be read: {error}") from error

    def _fold(self, joined: Joined, sign: int) -> None:
        if self.task is Task.REGRESSION:
            usable = self._fold_numbers(joined, sign)
        elif self.task is Task.BINARY:
            usable = self._fold_binary(joined, sign)
        else:
            usable = self._fold_classes(joined, sign)
        self.rows += sign * usable
        self.unusable += sign * (len(joined) - usable)

    def _fold_numbers(self, joined: Joined, sign: int) -> int:
        usable = _is_moderate(joined.truth_number) & _is_moderate(joined.value)
        target = joined.truth_number[usable]
        error = joined.value[usable] - target
        squared = error * error
        absolute = np.abs(error)
        parts = (target, _square(target), error, absolute, squared, squared * absolute, squared * squared)
        self._fold_sums(dict(zip(REGRESSION_SUMS, parts, strict=True)), sign)
        _count(self.targets, value_bin(target), sign)
        return len(target)

    def _fold_binary(self, joined: Joined, sign: int) -> int:
        truth = _equals(joined.truth_label, self.positive_label)
        has_label = np.asarray(pc.is_valid(joined.label))
        has_score = (joined.score >= 0) & (joined.score <= 1)
        positive = np.where(has_label, _equals(joined.label, self.positive_label), joined.score >= DECISION)
        usable = np.asarray(pc.is_valid(joined.truth_label)) & (has_label | has_score)
        for key, count in _tally(truth[usable] * 2 + positive[usable]):
            _bump(self.pairs, (str(key // 2), str(key % 2)), sign * count)
        scored = usable & has_score
        self._fold_scores(truth[scored], joined.score[scored], sign)
        return int(usable.sum())

    def _fold_scores(self, truth: Flags, score: Floats, sign: int) -> None:
        loss = -np.log(np.maximum(np.where(truth, score, 1 - score), _PROBABILITY_FLOOR))
        brier = (score - truth) ** 2
        self._fold_sums(
            {"log_loss": loss, "log_loss_squared": loss**2, "brier": brier, "brier_squared": brier**2}, sign
        )
        for side in (0, 1):
            keys: Counter[int] = Counter()
            _count(keys, score_bin(score[truth == side]), 1)
            for key, count in keys.items():
                _bump(self.scores, (side, key), sign * count)
        self.probable += sign * len(score)

    def _fold_classes(self, joined: Joined, sign: int) -> int:
        usable = np.asarray(pc.is_valid(joined.truth_label)) & np.asarray(pc.is_valid(joined.label))
        truth, predicted = _encoded(joined.truth_label), _encoded(joined.label)
        width = len(predicted.dictionary) + 1
        pair = _indices(truth)[usable] * width + _indices(predicted)[usable]
        truths, predictions = truth.dictionary.to_pylist(), predicted.dictionary.to_pylist()
        for key, count in _tally(pair):
            _bump(self.pairs, (truths[key // width], predictions[key % width]), sign * count)
        probability = joined.truth_probability
        probable = usable & (probability >= 0) & (probability <= 1)
        loss = -np.log(np.maximum(probability[probable], _PROBABILITY_FLOOR))
        self._fold_sums({"log_loss": loss, "log_loss_squared": loss**2}, sign)
        self.probable += sign * len(loss)
        return int(usable.sum())

    def _fold_sums(self, parts: Mapping[str, Floats], sign: int) -> None:
        for name, values in parts.items():
            (self.sums[name].add if sign > 0 else self.sums[name].subtract)(values)


def errors(joined: Joined, task: Task, *, positive_label: str | None = None) -> Floats:
    """Each row's error, (n,): 0 or 1 for classes, |predicted - true| for numbers; NaN where it cannot be told."""
    if task is Task.REGRESSION:
        usable = _is_moderate(joined.truth_number) & _is_moderate(joined.value)
        return np.where(usable, np.abs(np.where(usable, joined.value - joined.truth_number, 0.0)), np.nan)
    has_truth, has_label = np.asarray(pc.is_valid(joined.truth_label)), np.asarray(pc.is_valid(joined.label))
    if task is Task.MULTICLASS:
        wrong = np.asarray(pc.fill_null(pc.not_equal(joined.truth_label, joined.label), False))
        return np.where(has_truth & has_label, wrong.astype(np.float64), np.nan)
    has_score = (joined.score >= 0) & (joined.score <= 1)
    positive = np.where(has_label, _equals(joined.label, positive_label), joined.score >= DECISION)
    wrong = positive != _equals(joined.truth_label, positive_label)
    return np.where(has_truth & (has_label | has_score), wrong.astype(np.float64), np.nan)


def score_bin(score: Floats) -> Ints:
    """The bin of scores in [0, 1], (n,): negative below a half, ascending with the score.

    128 bins for every halving of the distance to the nearer end, down to 2^-40: a bin is at most 0.8 % wide relative
    to that distance, so rare-event scores of 0.0001 are told apart as well as 0.3 and 0.4.
    """
    lower = score < 0.5
    distance = np.maximum(np.where(lower, score, 1 - score), _SCORE_FLOOR)
    step = _log_bin(distance, SCORE_BINS_PER_OCTAVE) - _log_bin(np.array([0.5]), SCORE_BINS_PER_OCTAVE)[0] - 1
    return np.asarray(np.where(lower, step, -step), dtype=np.int64)


def value_bin(value: Floats) -> Ints:
    """The bin of any finite number, ascending with it: 32 for every doubling of its size, 0 for zero."""
    size = _log_bin(np.maximum(np.abs(value), 1e-300), _VALUE_BINS_PER_OCTAVE)
    offset = _log_bin(np.array([1e-300]), _VALUE_BINS_PER_OCTAVE)[0] - 1
    return np.asarray(np.where(value == 0, 0, np.sign(value) * (size - offset)), dtype=np.int64)


def value_of_bin(key: int) -> float:
    """The middle of a `value_bin`."""
    if key == 0:
        return 0.0
    offset = int(_log_bin(np.array([1e-300]), _VALUE_BINS_PER_OCTAVE)[0]) - 1
    shift = 52 - (_VALUE_BINS_PER_OCTAVE.bit_length() - 1)
    lower, upper = (abs(key) + offset) << shift, (abs(key) + offset + 1) << shift
    ends = np.array([lower, upper], dtype=np.int64).view(np.float64)
    return float(np.sign(key) * (ends[0] / 2 + ends[1] / 2))


def _log_bin(positive: Floats, per_octave: int) -> Ints:
    """The leading bits of a positive float are its logarithm, piecewise linear: exact, and faster than a logarithm."""
    shift = 52 - (per_octave.bit_length() - 1)
    return np.asarray(np.ascontiguousarray(positive, dtype=np.float64).view(np.int64) >> shift, dtype=np.int64)


def variance(total: ExactSum, squares: ExactSum, n: int) -> float:
    """Population variance of n values from their exact sum and sum of squares: no cancellation, whatever their mean."""
    return ((n * squares.units << _UNIT_BITS) - total.units**2) / (n * n << 2 * _UNIT_BITS)


def _square(values: Floats) -> Floats:
    """Squares as two floats each that add up to them (Dekker 1971): the roundings would drown a small variance."""
    high, low = _split(values)
    product = values * values
    return np.concatenate((product, ((high * high - product) + 2 * high * low) + low * low))


def _split(values: Floats) -> tuple[Floats, Floats]:
    big = values * 134217729.0  # 2^27 + 1 (Veltkamp)
    high = big - (big - values)
    return high, values - high


def _units(values: Floats) -> int:
    if len(values) == 0:
        return 0
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    high, low = whole >> _HALF_BITS, whole & ((1 << _HALF_BITS) - 1)
    smallest = int(exponent.min())
    step = exponent - smallest
    total = 0
    # Each half has at most 27 bits, so a batch of 2^26 rows still sums exactly in a float's 53.
    for start in range(0, len(values), 1 << 25):
        rows = slice(start, start + (1 << 25))
        highs = np.bincount(step[rows], weights=high[rows])
        lows = np.bincount(step[rows], weights=low[rows])
        for k in np.flatnonzero((highs != 0) | (lows != 0)).tolist():
            total += ((int(highs[k]) << _HALF_BITS) + int(lows[k])) << (k + smallest - 53 + _UNIT_BITS)
    return total


def _is_moderate(values: Floats) -> Flags:
    return np.asarray(np.abs(values) <= _LARGEST, dtype=np.bool_)


def _equals(labels: pa.Array, label: str | None) -> Flags:
    if label is None:
        return np.zeros(len(labels), dtype=np.bool_)
    return np.asarray(pc.fill_null(pc.equal(labels, label), False), dtype=np.bool_)


def _encoded(labels: pa.Array) -> pa.DictionaryArray:
    array = labels.combine_chunks() if isinstance(labels, pa.ChunkedArray) else labels
    return array.dictionary_encode()


def _indices(encoded: pa.DictionaryArray) -> Ints:
    return np.asarray(pc.fill_null(encoded.indices, 0), dtype=np.int64)


def _tally(keys: Ints) -> list[tuple[int, int]]:
    distinct, count = np.unique(keys, return_counts=True)
    return list(zip(distinct.tolist(), count.tolist(), strict=True))


def _count(counter: Counter[int], keys: Ints, sign: int) -> None:
    for key, count in _tally(keys):
        _bump(counter, key, sign * count)


def _bump(counter: Counter[K], key: K, count: int) -> None:
    """Count, and forget keys that are back at nothing, so that equal profiles look equal."""
    counter[key] += count
    if counter[key] == 0:
        del counter[key]


def _added(one: Counter[K], other: Counter[K]) -> Counter[K]:
    total = Counter(one)
    for key, count in other.items():
        _bump(total, key, count)
    return total
