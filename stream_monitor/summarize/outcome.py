"""What joined labels say about predictions, as sums that add, subtract and do not care about order.

A correction removes a joined row and adds another, cohorts merge over months and a killed process resumes: so no sum
here is rounded. `ExactSum` adds floats as the integers they are; `remove` undoes `add` to the last bit.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from stream_monitor.errors import StateError
from stream_monitor.records import Flags, Floats, Ints

FORMAT = 2
_UNIT_BITS = 1126  # a float's 53-bit mantissa times 2^(exponent - 53): the smallest exponent is -1073
_HALF_BITS = 26
_LARGEST = 1e75  # fourth powers of errors must stay finite; a larger target is counted as unusable
_PROBABILITY_FLOOR = 1e-15  # log loss of a certain and wrong prediction: 34.5 instead of infinity
_FALSE = pa.scalar(False)
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
        self.units += _units(values, np.zeros(len(values), np.int64), 1)[0]

    def subtract(self, values: Floats) -> None:
        """Take values away that were added before."""
        self.units -= _units(values, np.zeros(len(values), np.int64), 1)[0]

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
    predicted) -> rows; binary uses "1" for the positive label and "0" for every other. `scores`: bin * 2 + truth ->
    rows for binary scores. `targets`: bin -> rows of regression truths. `probable`: rows that have a probability.
    """

    task: Task
    positive_label: str | None = None
    rows: int = 0
    unusable: int = 0
    probable: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)
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
            "scores": len(self.scores),
            "sums": {name: f"{total.units:x}" for name, total in sorted(self.sums.items())},
        }
        head = json.dumps(content, separators=(",", ":")).encode()
        scores = _packed(self.scores)
        body = struct.pack("<I", len(head)) + head + scores + _packed(self.targets)
        compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        return struct.pack("<B", FORMAT) + compressor.compress(body)

    @classmethod
    def from_bytes(cls, state: bytes) -> OutcomeProfile:
        """The profile that was stored; raises StateError if it is damaged or of another format."""
        if state[:1] != struct.pack("<B", FORMAT):
            raise StateError(f"an outcome profile of a format other than {FORMAT}")
        try:
            body = zstandard.ZstdDecompressor().decompress(state[1:])
            head = 4 + struct.unpack("<I", body[:4])[0]
            content = json.loads(body[4:head])
            rows, unusable, probable = content["counts"]
            table = np.frombuffer(body, "<i8", offset=head).reshape(-1, 2)
            scores, targets = table[: content["scores"]].tolist(), table[content["scores"] :].tolist()
            return cls(
                Task(content["task"]),
                content["positive_label"],
                rows,
                unusable,
                probable,
                Counter({(truth, predicted): count for truth, predicted, count in content["pairs"]}),
                Counter(dict(scores)),
                Counter(dict(targets)),
                {name: ExactSum(int(units, 16)) for name, units in content["sums"].items()},
            )
        except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"an outcome profile cannot be read: {error}") from error

    def _fold(self, joined: Joined, sign: int) -> None:
        shares(joined, self.task, positive_label=self.positive_label).fold([self], None, sign)


@dataclass(frozen=True, slots=True)
class Shares:
    """What each of n joined rows adds to a profile, worked out once however many profiles it enters.

    `pair`, `score` and `target`: (row, code) of the rows that have one. `pairs`: what a pair's code stands for.
    `sums`: (row, value) of each sum; a row may stand there twice.
    """

    usable: Flags
    pairs: Sequence[tuple[str, str]]
    pair: tuple[Ints, Ints]
    score: tuple[Ints, Ints]  # code: bin * 2 + truth
    target: tuple[Ints, Ints]  # code: bin
    probable: Ints  # rows
    sums: Mapping[str, tuple[Ints, Floats]]

    def fold(self, profiles: Sequence[OutcomeProfile], place: Ints | None, sign: int) -> None:
        """Add (sign 1) or remove (-1) every row in the profile its `place` (n,) says; None: all in the one there is."""
        where = np.zeros(len(self.usable), np.int64) if place is None else place
        many = len(profiles)
        all_rows = np.bincount(where, minlength=many).tolist()
        usable = np.bincount(where[self.usable], minlength=many).tolist()
        probable = np.bincount(where[self.probable], minlength=many).tolist()
        for profile, n, fine, likely in zip(profiles, all_rows, usable, probable, strict=True):
            profile.rows += sign * fine
            profile.unusable += sign * (n - fine)
            profile.probable += sign * likely
        for at, code, count in _tally(where[self.pair[0]], self.pair[1]):
            _bump(profiles[at].pairs, self.pairs[code], sign * count)
        for at, code, count in _tally(where[self.score[0]], self.score[1]):
            _bump(profiles[at].scores, code, sign * count)
        for at, code, count in _tally(where[self.target[0]], self.target[1]):
            _bump(profiles[at].targets, code, sign * count)
        for name, (row, values) in self.sums.items():
            for at, units in enumerate(_units(values, where[row], many)):
                profiles[at].sums[name].units += sign * units


def shares(joined: Joined, task: Task, *, positive_label: str | None) -> Shares:
    """What each row adds to the profiles of its task."""
    if task is Task.REGRESSION:
        return _numeric_shares(joined)
    return _binary_shares(joined, positive_label) if task is Task.BINARY else _class_shares(joined)


_NONE = np.zeros(0, np.int64)


def _numeric_shares(joined: Joined) -> Shares:
    usable = _is_moderate(joined.truth_number) & _is_moderate(joined.value)
    row = np.flatnonzero(usable)
    target = joined.truth_number[row]
    error = joined.value[row] - target
    squared = error * error
    absolute = np.abs(error)
    parts = (target, _square(target), error, absolute, squared, squared * absolute, squared * squared)
    sums = {
        name: (np.tile(row, 2) if name == "target_squared" else row, part)
        for name, part in zip(REGRESSION_SUMS, parts, strict=True)
    }
    return Shares(usable, (), (_NONE, _NONE), (_NONE, _NONE), (row, value_bin(target)), _NONE, sums)


def _binary_shares(joined: Joined, positive_label: str | None) -> Shares:
    truth = _equals(joined.truth_label, positive_label)
    has_label = np.asarray(pc.is_valid(joined.label))
    has_score = (joined.score >= 0) & (joined.score <= 1)
    positive = np.where(has_label, _equals(joined.label, positive_label), joined.score >= DECISION)
    usable = np.asarray(pc.is_valid(joined.truth_label)) & (has_label | has_score)
    row, scored = np.flatnonzero(usable), np.flatnonzero(usable & has_score)
    true, score = truth[scored], joined.score[scored]
    loss = -np.log(np.maximum(np.where(true, score, 1 - score), _PROBABILITY_FLOOR))
    brier = (score - true) ** 2
    return Shares(
        usable,
        (("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")),
        (row, truth[row] * np.int64(2) + positive[row]),
        (scored, score_bin(score) * 2 + true),
        (_NONE, _NONE),
        scored,
        {
            "log_loss": (scored, loss),
            "log_loss_squared": (scored, loss**2),
            "brier": (scored, brier),
            "brier_squared": (scored, brier**2),
        },
    )


def _class_shares(joined: Joined) -> Shares:
    usable = np.asarray(pc.is_valid(joined.truth_label)) & np.asarray(pc.is_valid(joined.label))
    truth, predicted = _encoded(joined.truth_label), _encoded(joined.label)
    truths, predictions = truth.dictionary.to_pylist(), predicted.dictionary.to_pylist()
    row = np.flatnonzero(usable)
    seen, pair = np.unique(
        _indices(truth)[row] * (len(predictions) + 1) + _indices(predicted)[row], return_inverse=True
    )
    names = [
        (truths[key // (len(predictions) + 1)], predictions[key % (len(predictions) + 1)]) for key in seen.tolist()
    ]
    probability = joined.truth_probability
    probable = np.flatnonzero(usable & (probability >= 0) & (probability <= 1))
    loss = -np.log(np.maximum(probability[probable], _PROBABILITY_FLOOR))
    sums = {"log_loss": (probable, loss), "log_loss_squared": (probable, loss**2)}
    return Shares(usable, names, (row, pair), (_NONE, _NONE), (_NONE, _NONE), probable, sums)


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


def _units(values: Floats, place: Ints, many: int) -> list[int]:
    """The exact sum of the values of each of `many` places."""
    totals = [0] * many
    if len(values) == 0:
        return totals
    mantissa, exponent = np.frexp(values)
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    high, low = whole >> _HALF_BITS, whole & ((1 << _HALF_BITS) - 1)
    smallest = int(exponent.min())
    width = int(exponent.max()) - smallest + 1
    cells, step = place * width + (exponent - smallest), None
    if many * width > 4 * len(values) + 4096:
        step, cells = np.unique(cells, return_inverse=True)
    # Each half has at most 27 bits, so a batch of 2^26 rows still sums exactly in a float's 53.
    for start in range(0, len(values), 1 << 25):
        rows = slice(start, start + (1 << 25))
        highs = np.bincount(cells[rows], weights=high[rows])
        lows = np.bincount(cells[rows], weights=low[rows])
        held = np.flatnonzero((highs != 0) | (lows != 0))
        which = held if step is None else step[held]
        for cell, one, other in zip(which.tolist(), highs[held].tolist(), lows[held].tolist(), strict=True):
            shift = cell % width + smallest - 53 + _UNIT_BITS
            totals[cell // width] += ((int(one) << _HALF_BITS) + int(other)) << shift
    return totals


def _is_moderate(values: Floats) -> Flags:
    return np.asarray(np.abs(values) <= _LARGEST, dtype=np.bool_)


def _equals(labels: pa.Array, label: str | None) -> Flags:
    if label is None:
        return np.zeros(len(labels), dtype=np.bool_)
    # Arrow looks for a package that may be missing each time it is given a bare Python value.
    equal = pc.equal(labels, pa.array([label], pa.string())[0])
    return np.asarray(pc.fill_null(equal, _FALSE), dtype=np.bool_)


def _encoded(labels: pa.Array) -> pa.DictionaryArray:
    array = labels.combine_chunks() if isinstance(labels, pa.ChunkedArray) else labels
    return array.dictionary_encode()


def _indices(encoded: pa.DictionaryArray) -> Ints:
    return np.asarray(pc.fill_null(encoded.indices, 0), dtype=np.int64)


def _tally(place: Ints, code: Ints) -> list[tuple[int, int, int]]:
    """(place, code, rows) of each pair that occurs."""
    if not len(code):
        return []
    low = int(code.min())
    width = int(code.max()) - low + 1
    distinct, count = np.unique(place * width + (code - low), return_counts=True)
    return list(zip((distinct // width).tolist(), (distinct % width + low).tolist(), count.tolist(), strict=True))


def _packed(counter: Counter[int]) -> bytes:
    """Keys with their counts in the order of the keys."""
    n = len(counter)
    keys, counts = np.fromiter(counter, np.int64, n), np.fromiter(counter.values(), np.int64, n)
    order = np.argsort(keys)
    table = np.empty((n, 2), "<i8")
    table[:, 0], table[:, 1] = keys[order], counts[order]
    return bytes(table.tobytes())


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
