"""What joined labels say about predictions, as sums that add, subtract and do not care about order.

A correction removes a joined row and adds another, cohorts merge over months and a killed process resumes: so no sum
here is rounded. `ExactSum` adds floats as the integers they are; `remove` undoes `add` to the last bit.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from stream_monitor.errors import StateError
from stream_monitor.records import Flags, Floats, Ints
from stream_monitor.summarize.histogram import COARSEST_BITS, FINEST_BITS, SCORE_BITS, Histogram, Numbers, Scores

FORMAT = 4
_BINNED = 3  # the format before: `targets` in bins of `value_bin`, `scores` in those of `score_bin`, * 2 + truth
_UNIT_BITS = 1126  # a float's 53-bit mantissa times 2^(exponent - 53): the smallest exponent is -1073
_HALF_BITS = 26
_CHUNK_BITS = 4
_LARGEST = 1e75  # fourth powers of errors must stay finite; a larger target is counted as unusable
PROBABILITY_FLOOR = float(
    np.finfo(np.float64).eps
)  # a certain and wrong prediction loses 36.04, as scikit-learn has it
TARGET_FLOOR = PROBABILITY_FLOOR  # what a relative error is divided by at least, there too
_FALSE = pa.scalar(False)
DECISION = 0.5  # the threshold of a score where an event carries no predicted label
SCORE_BINS_PER_OCTAVE = 1 << SCORE_BITS
_SCORE_FLOOR = 2.0**-40
VALUE_BINS_PER_OCTAVE = 128
RELIABILITY_BINS = 10
_RELIABILITY_EDGES = np.linspace(0.0, 1.0, RELIABILITY_BINS + 1)[1:-1]


K = TypeVar("K")

_JSON = json.JSONEncoder(separators=(",", ":"))


class _Compression(threading.local):
    """A compressor of each thread: to make one costs as much as to compress a cohort, and a batch of labels writes a thousand."""

    def __init__(self) -> None:
        self.level_1 = zstandard.ZstdCompressor(level=1, write_checksum=True)


_COMPRESSION = _Compression()


class Task(StrEnum):
    """What truths are held to, and so which metrics an outcome has.

    The first three compare them with predictions. A `value` is a number of its own, such as the seconds that somebody
    stayed: no prediction says what it should be, and how high it lies is all there is to know.
    """

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"
    VALUE = "value"


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
    label_probability: Floats | None = None  # several classes: that it gave its own label; None: all NaN
    squared_probability: Floats | None = None  # several classes: the sum of the squares of all; None: all NaN
    probabilities: pa.Array | None = None  # several classes: of each, as JSON text; None: all null
    expected_size: Floats | None = None  # a number: the |error| that its inputs led to expect; None: all NaN
    expected_error: Floats | None = None  # and the error

    def __len__(self) -> int:
        return len(self.truth_number)

    def take(self, row: Ints) -> Joined:
        """Some of the rows, in this order."""
        index = pa.array(row)
        return Joined(
            truth_label=self.truth_label.take(index),
            truth_number=self.truth_number[row],
            label=self.label.take(index),
            score=self.score[row],
            value=self.value[row],
            truth_probability=self.truth_probability[row],
            label_probability=None if self.label_probability is None else self.label_probability[row],
            squared_probability=None if self.squared_probability is None else self.squared_probability[row],
            probabilities=None if self.probabilities is None else self.probabilities.take(index),
            expected_size=None if self.expected_size is None else self.expected_size[row],
            expected_error=None if self.expected_error is None else self.expected_error[row],
        )


def class_probabilities(texts: pa.Array, truth: pa.Array, label: pa.Array) -> tuple[Floats, Floats, Floats]:
    """What each prediction gave its truth and its own label, and the sum of the squares of all; NaN where it did not say.

    `texts`: the probabilities as JSON objects. Row by row: every event has an object of its own.
    """
    found = np.full((3, len(texts)), np.nan)
    rows = zip(texts.to_pylist(), truth.to_pylist(), label.to_pylist(), strict=True)
    for i, (text, true, predicted) in enumerate(rows):
        if text is not None:
            told = json.loads(text)
            found[0, i] = _number(told.get(true))
            found[1, i] = _number(told.get(predicted))
            found[2, i] = sum(_number(part) ** 2 for part in told.values())
    return found[0], found[1], found[2]


def _number(part: object) -> float:
    return float(part) if isinstance(part, int | float) else math.nan


REGRESSION_SUMS = (
    "target",
    "target_squared",
    "error",
    "absolute",
    "squared",
    "cubed",
    "fourth",
    "relative",
    "relative_squared",
)
CONFIDENCE_SUMS = tuple(f"confidence_{k}" for k in range(RELIABILITY_BINS))
BINARY_SUMS = ("log_loss", "log_loss_squared", "brier", "brier_squared", *CONFIDENCE_SUMS)
MULTICLASS_SUMS = BINARY_SUMS
VALUE_SUMS = ("target", "target_squared")
_SUMS: Mapping[Task, tuple[str, ...]] = {
    Task.REGRESSION: REGRESSION_SUMS,
    Task.VALUE: VALUE_SUMS,
    Task.BINARY: BINARY_SUMS,
    Task.MULTICLASS: MULTICLASS_SUMS,
}


@dataclass(slots=True)
class OutcomeProfile:
    """Mergeable sufficient statistics of joined rows.

    Laws: `add` in any order and batching gives equal profiles; `remove` undoes `add`; `merge(a, b)` equals the
    profile of both's rows, changes neither and refuses unequal tasks or positive labels; an empty profile is its
    identity.

    `rows`: usable rows. `unusable`: rows without a readable prediction or truth for the task; a `value` needs no
    prediction. `pairs`: (truth, predicted) -> rows; binary uses "1" for the positive label and "0" for every other.
    `scores`: binary scores with their truths. `targets`: truths that are numbers. `errors`: bin -> rows of
    predicted - true.
    `probable`: rows with the probability of their truth; `scored`: those with a Brier score. `reliability`: bin * 2 +
    what came true -> rows by the confidence of the prediction, the score or the probability of the predicted class;
    the sums `confidence_k` are of the confidences in bin k. `derived`: what readers worked out; a change forgets it.
    """

    task: Task
    positive_label: str | None = None
    rows: int = 0
    unusable: int = 0
    probable: int = 0
    scored: int = 0
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    scores: Scores = field(default_factory=Scores)
    targets: Numbers = field(default_factory=Numbers)
    errors: Histogram = field(default_factory=Histogram)
    reliability: Histogram = field(default_factory=Histogram)
    sums: dict[str, ExactSum] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in _SUMS[self.task]:
            self.sums.setdefault(name, ExactSum())

    def add(self, joined: Joined) -> None:
        """Fold rows in."""
        self._fold(joined, 1)

    def remove(self, joined: Joined) -> None:
        """Take rows out that were folded in before, with the truth they had then."""
        self._fold(joined, -1)

    @property
    def is_whole(self) -> bool:
        """Whether nothing was taken out that is not in: past windows are forgotten, a late correction may still come."""
        counts = [self.rows, *self.pairs.values(), *(int(h.arrays()[1].min(initial=0)) for h in self._histograms())]
        return min(counts) >= 0

    def merge(self, other: OutcomeProfile) -> OutcomeProfile:
        """The profile of both's rows; raises ValueError where they do not measure the same."""
        if not self.measures_as(other.task, other.positive_label):
            raise ValueError(f"outcomes of {self.task} and {other.task} do not add")
        return OutcomeProfile(
            self.task,
            self.positive_label,
            self.rows + other.rows,
            self.unusable + other.unusable,
            self.probable + other.probable,
            self.scored + other.scored,
            _added(self.pairs, other.pairs),
            self.scores.merge(other.scores),
            self.targets.merge(other.targets),
            self.errors.merge(other.errors),
            self.reliability.merge(other.reliability),
            {name: ExactSum(total.units + other.sums[name].units) for name, total in self.sums.items()},
        )

    def absorb(self, other: OutcomeProfile) -> None:
        """Take the rows of another profile in; as `merge`, in place."""
        both = self.merge(other)
        self.derived.clear()
        for part in fields(OutcomeProfile):
            if part.compare:
                setattr(self, part.name, getattr(both, part.name))

    def measures_as(self, task: Task, positive_label: str | None) -> bool:
        """Whether it holds truths to this, so that profiles of it can be added."""
        return (self.task, self.positive_label) == (task, positive_label)

    def told_anew(self, task: Task, positive_label: str | None) -> OutcomeProfile:
        """What is left once truths are held to something else: how many there were, and that they cannot be read."""
        return OutcomeProfile(task, positive_label, unusable=self.rows + self.unusable)

    def to_bytes(self) -> bytes:
        """Compact and versioned; no pickle. Equal profiles give equal bytes."""
        histograms = [histogram.to_bytes() for histogram in self._histograms()]
        content = {
            "task": self.task,
            "positive_label": self.positive_label,
            "counts": [self.rows, self.unusable, self.probable, self.scored],
            "pairs": sorted([*key, count] for key, count in self.pairs.items()),
            "histograms": [len(body) for body in histograms],
            "sums": {name: f"{total.units:x}" for name, total in sorted(self.sums.items()) if total.units},
        }
        head = _JSON.encode(content).encode()
        body = struct.pack("<I", len(head)) + head + b"".join(histograms)
        return struct.pack("<B", FORMAT) + _COMPRESSION.level_1.compress(body)

    @classmethod
    def from_bytes(cls, state: bytes) -> OutcomeProfile:
        """The profile that was stored; raises StateError if it is damaged or of another format."""
        if not is_current(state):
            raise StateError(f"an outcome profile of a format other than {FORMAT}")
        is_binned = state[0] == _BINNED
        try:
            body = zstandard.ZstdDecompressor().decompress(state[1:])
            at = 4 + struct.unpack("<I", body[:4])[0]
            content = json.loads(body[4:at])
            ends = np.cumsum([at, *content["histograms"]]).tolist()
            scores, targets, errors, reliability = (body[a:b] for a, b in pairwise(ends))
            rows, unusable, probable, scored = content["counts"]
            return cls(
                Task(content["task"]),
                content["positive_label"],
                rows,
                unusable,
                probable,
                scored,
                Counter({(truth, predicted): count for truth, predicted, count in content["pairs"]}),
                _of_score_bins(Histogram.from_bytes(scores)) if is_binned else Scores.from_bytes(scores),
                _of_bins(Histogram.from_bytes(targets)) if is_binned else Numbers.from_bytes(targets),
                Histogram.from_bytes(errors),
                Histogram.from_bytes(reliability),
                {name: ExactSum(int(units, 16)) for name, units in content["sums"].items()},
            )
        except (zstandard.ZstdError, struct.error, ValueError, KeyError, TypeError) as error:
            raise StateError(f"an outcome profile cannot be read: {error}") from error

    def _histograms(self) -> tuple[Histogram, Histogram, Histogram, Histogram]:
        return self.scores, self.targets, self.errors, self.reliability

    def _fold(self, joined: Joined, sign: int) -> None:
        shares(joined, self.task, positive_label=self.positive_label).fold([self], None, sign)


def is_current(state: bytes) -> bool:
    """Whether stored bytes are of a format that is read; older ones lack what cannot be made up."""
    return state[:1] in (struct.pack("<B", FORMAT), struct.pack("<B", _BINNED))


@dataclass(frozen=True, slots=True)
class Shares:
    """What each of n joined rows adds to a profile, worked out once however many profiles it enters.

    `pair`, `histograms` and `confidence`: (row, code) of the rows that have one. `pairs`: what a pair's code stands
    for. `sums`: (row, value) of each sum; a row may stand there twice. `confidence`: (row, bin, value).
    """

    usable: Flags
    probable: Ints  # rows
    scored: Ints  # rows
    pairs: Sequence[tuple[str, str]]
    pair: tuple[Ints, Ints]
    histograms: Mapping[str, tuple[Ints, Ints]]
    sums: Mapping[str, tuple[Ints, Floats]]
    confidence: tuple[Ints, Ints, Floats]

    def fold(self, profiles: Sequence[OutcomeProfile], place: Ints | None, sign: int) -> None:
        """Add (sign 1) or remove (-1) every row in the profile its `place` (n,) says; None: all in the one there is."""
        where = np.zeros(len(self.usable), np.int64) if place is None else place
        many = len(profiles)
        parts = (where, where[self.usable], where[self.probable], where[self.scored])
        counts = np.stack([np.bincount(part, minlength=many) for part in parts], axis=1).tolist()
        for profile, (rows, usable, probable, scored) in zip(profiles, counts, strict=True):
            profile.derived.clear()
            profile.rows += sign * usable
            profile.unusable += sign * (rows - usable)
            profile.probable += sign * probable
            profile.scored += sign * scored
        for at, codes, tallies in _tallied(where[self.pair[0]], self.pair[1]):
            for code, tally in zip(codes.tolist(), tallies.tolist(), strict=True):
                _bump(profiles[at].pairs, self.pairs[code], sign * tally)
        for name, (row, code) in self.histograms.items():
            for at, codes, tallies in _tallied(where[row], code):
                getattr(profiles[at], name).add(codes, sign * tallies)
        for name, (row, values) in self.sums.items():
            for at, units in enumerate(_units(values, where[row], many)):
                profiles[at].sums[name].units += sign * units
        row, code, values = self.confidence
        for cell, units in enumerate(_units(values, where[row] * RELIABILITY_BINS + code, many * RELIABILITY_BINS)):
            if units:
                profiles[cell // RELIABILITY_BINS].sums[CONFIDENCE_SUMS[cell % RELIABILITY_BINS]].units += sign * units


def shares(joined: Joined, task: Task, *, positive_label: str | None) -> Shares:
    """What each row adds to the profiles of its task."""
    if task is Task.REGRESSION:
        return _numeric_shares(joined)
    if task is Task.VALUE:
        return _value_shares(joined)
    return _binary_shares(joined, positive_label) if task is Task.BINARY else _class_shares(joined)


_NONE = np.zeros(0, np.int64)


def _numeric_shares(joined: Joined) -> Shares:
    usable = is_moderate(joined.truth_number) & is_moderate(joined.value)
    row = np.flatnonzero(usable)
    target = joined.truth_number[row]
    error = joined.value[row] - target
    squared = error * error
    absolute = np.abs(error)
    divisible = target != 0
    relative = absolute[divisible] / np.maximum(np.abs(target[divisible]), TARGET_FLOOR)
    parts = (target, _square(target), error, absolute, squared, squared * absolute, squared * squared)
    sums = {
        name: (np.tile(row, 2) if name == "target_squared" else row, part)
        for name, part in zip(REGRESSION_SUMS, parts, strict=False)
    }
    sums["relative"] = row[divisible], relative
    sums["relative_squared"] = row[divisible], relative * relative
    histograms = {"targets": (row, Numbers.keys_of(target)), "errors": (row, value_bin(error))}
    return Shares(usable, _NONE, _NONE, (), (_NONE, _NONE), histograms, sums, (_NONE, _NONE, np.zeros(0)))


def _value_shares(joined: Joined) -> Shares:
    usable = is_moderate(joined.truth_number)
    row = np.flatnonzero(usable)
    value = joined.truth_number[row]
    sums = {"target": (row, value), "target_squared": (np.tile(row, 2), _square(value))}
    histograms = {"targets": (row, Numbers.keys_of(value))}
    return Shares(usable, _NONE, _NONE, (), (_NONE, _NONE), histograms, sums, (_NONE, _NONE, np.zeros(0)))


def _binary_shares(joined: Joined, positive_label: str | None) -> Shares:
    truth = _equals(joined.truth_label, positive_label)
    has_label = np.asarray(pc.is_valid(joined.label))
    has_score = (joined.score >= 0) & (joined.score <= 1)
    positive = np.where(has_label, _equals(joined.label, positive_label), joined.score >= DECISION)
    usable = np.asarray(pc.is_valid(joined.truth_label)) & (has_label | has_score)
    row, scored = np.flatnonzero(usable), np.flatnonzero(usable & has_score)
    true, score = truth[scored], joined.score[scored]
    bins = reliability_bin(score)
    return Shares(
        usable,
        scored,
        scored,
        (("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")),
        (row, truth[row] * np.int64(2) + positive[row]),
        {"scores": (scored, Scores.keys_of_scores(score, true)), "reliability": (scored, bins * 2 + true)},
        {
            **_with_squares("log_loss", scored, _log_loss(np.where(true, score, 1 - score))),
            **_with_squares("brier", scored, (score - true) ** 2),
        },
        (scored, bins, score),
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
    nothing = np.full(len(joined), np.nan)
    of_truth = joined.truth_probability
    squares = nothing if joined.squared_probability is None else joined.squared_probability
    confidence = nothing if joined.label_probability is None else joined.label_probability
    is_probable = usable & (of_truth >= 0) & (of_truth <= 1)
    probable, scored = np.flatnonzero(is_probable), np.flatnonzero(is_probable & (squares <= len(joined)))
    sure = np.flatnonzero(usable & (confidence >= 0) & (confidence <= 1))
    hit = np.asarray(pc.fill_null(pc.equal(joined.truth_label, joined.label), _FALSE), dtype=np.bool_)[sure]
    bins = reliability_bin(confidence[sure])
    return Shares(
        usable,
        probable,
        scored,
        names,
        (row, pair),
        {"reliability": (sure, bins * 2 + hit)},
        {
            **_with_squares("log_loss", probable, _log_loss(of_truth[probable])),
            **_with_squares("brier", scored, np.maximum(squares[scored] - 2 * of_truth[scored] + 1, 0.0)),
        },
        (sure, bins, confidence[sure]),
    )


def _with_squares(name: str, row: Ints, values: Floats) -> dict[str, tuple[Ints, Floats]]:
    return {name: (row, values), f"{name}_squared": (row, values * values)}


def _log_loss(probability: Floats) -> Floats:
    return np.asarray(-np.log(np.maximum(probability, PROBABILITY_FLOOR)), dtype=np.float64)


def errors(joined: Joined, task: Task, *, positive_label: str | None = None) -> Floats:
    """Each row's error, (n,): 0 or 1 for classes, |predicted - true| for numbers; NaN where it cannot be told.

    A number of its own is not wrong: it stands there itself.
    """
    if task is Task.VALUE:
        return np.where(is_moderate(joined.truth_number), joined.truth_number, np.nan)
    if task is Task.REGRESSION:
        usable = is_moderate(joined.truth_number) & is_moderate(joined.value)
        value, truth = np.where(usable, joined.value, 0.0), np.where(usable, joined.truth_number, 0.0)
        return np.where(usable, np.abs(value - truth), np.nan)
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

    512 bins for every halving of the distance to the nearer end, down to 2^-40: a bin is at most 0.2 % wide relative
    to that distance, so rare-event scores of 0.0001 are told apart as well as 0.3 and 0.4.
    """
    lower = score < 0.5
    distance = np.maximum(np.where(lower, score, 1 - score), _SCORE_FLOOR)
    step = _log_bin(distance, SCORE_BINS_PER_OCTAVE) - _log_bin(np.array([0.5]), SCORE_BINS_PER_OCTAVE)[0] - 1
    return np.asarray(np.where(lower, step, -step), dtype=np.int64)


def binned_scores(scores: Scores) -> Histogram:
    """By `score_bin` * 2 + truth: what is compared with bins that were fixed before."""
    step, true, counts = scores.steps(SCORE_BITS)
    return _counted(step * 2 + true, counts)


def _of_score_bins(held: Histogram) -> Scores:
    """As coarse as they were."""
    keys, counts = held.arrays()
    return Scores.of_steps(keys >> 1, keys & 1, counts)


def _counted(keys: Ints, counts: Ints) -> Histogram:
    bins, place = np.unique(keys, return_inverse=True)
    total = np.zeros(len(bins), np.int64)
    np.add.at(total, place, counts)
    return Histogram(zip(bins.tolist(), total.tolist(), strict=True))


def reliability_bin(probability: Floats) -> Ints:
    """Ten bins of equal width; a probability on an edge belongs to the lower one, as scikit-learn has it."""
    return np.asarray(np.searchsorted(_RELIABILITY_EDGES, probability), dtype=np.int64)


def value_bin(value: Floats) -> Ints:
    """The bin of any finite number, ascending with it: 128 for every doubling of its size, 0 for zero."""
    size = _log_bin(np.maximum(np.abs(value), 1e-300), VALUE_BINS_PER_OCTAVE)
    return np.asarray(np.where(value == 0, 0, np.sign(value) * (size - _FIRST_BIN)), dtype=np.int64)


def binned(numbers: Numbers) -> Histogram:
    """Numbers by `value_bin`: what is compared with bins that were fixed before."""
    keys, counts = numbers.arrays()
    size = (np.abs(keys) >> _FINER_BITS) - _FIRST_BIN
    return _counted(np.where(keys == 0, 0, np.sign(keys) * size), counts)


def _of_bins(held: Histogram) -> Numbers:
    """As coarse as they were."""
    keys, counts = held.arrays()
    size = (np.abs(keys) + _FIRST_BIN) << _FINER_BITS
    numbers = np.where(keys == 0, 0, np.sign(keys) * size)
    return Numbers(zip(numbers.tolist(), counts.tolist(), strict=True), cut=_FINER_BITS)


def value_ends(key: Ints) -> tuple[Floats, Floats]:
    """The lower and the upper end of each `value_bin`, .8 % apart at most; both 0 for zero's."""
    shift = 52 - (VALUE_BINS_PER_OCTAVE.bit_length() - 1)
    bins, sign = np.abs(key) + _FIRST_BIN, np.sign(key)
    inner, outer = (bins << shift).view(np.float64) * sign, ((bins + 1) << shift).view(np.float64) * sign
    return np.where(key < 0, outer, inner), np.where(key < 0, inner, outer)


def values_of_bins(key: Ints) -> Floats:
    """The middles of `value_bin`s, (n,): within 0.4 % of every value in them."""
    lower, upper = value_ends(key)
    return np.asarray(lower / 2 + upper / 2, dtype=np.float64)


def _log_bin(positive: Floats, per_octave: int) -> Ints:
    """The leading bits of a positive float are its logarithm, piecewise linear: exact, and faster than a logarithm."""
    shift = 52 - (per_octave.bit_length() - 1)
    return np.asarray(np.ascontiguousarray(positive, dtype=np.float64).view(np.int64) >> shift, dtype=np.int64)


_FINER_BITS = FINEST_BITS - COARSEST_BITS
_FIRST_BIN = int(_log_bin(np.array([1e-300]), VALUE_BINS_PER_OCTAVE)[0]) - 1


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
    # A shift below 16 bits is done in the halves, so that a place whose values are of one size has one cell.
    chunk, shift = exponent >> _CHUNK_BITS, exponent & ((1 << _CHUNK_BITS) - 1)
    high, low = (whole >> _HALF_BITS) << shift, (whole & ((1 << _HALF_BITS) - 1)) << shift
    smallest = int(chunk.min())
    width = int(chunk.max()) - smallest + 1
    cells = place * width + (chunk - smallest)
    step = None
    if many * width > 4 * len(values) + 4096:
        step, cells = np.unique(cells, return_inverse=True)
    size = many * width if step is None else len(step)
    # A half has at most 42 bits after the shift: 2^20 rows add up in 63.
    for start in range(0, len(values), 1 << 20):
        rows = slice(start, start + (1 << 20))
        highs, lows = np.zeros(size, np.int64), np.zeros(size, np.int64)
        np.add.at(highs, cells[rows], high[rows])
        np.add.at(lows, cells[rows], low[rows])
        held = np.flatnonzero((highs != 0) | (lows != 0))
        which = held if step is None else step[held]
        for cell, one, other in zip(which.tolist(), highs[held].tolist(), lows[held].tolist(), strict=True):
            power = ((cell % width + smallest) << _CHUNK_BITS) - 53 + _UNIT_BITS
            totals[cell // width] += _shifted((one << _HALF_BITS) + other, power)
    return totals


def _shifted(units: int, power: int) -> int:
    """units * 2^power; the lowest chunk of exponents reaches below the unit, by bits that are zero there."""
    return units << power if power >= 0 else units >> -power


def is_moderate(values: Floats) -> Flags:
    """Whether a number may be a truth or a prediction: not NaN, and not so large that powers of it overflow."""
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


def _tallied(place: Ints, code: Ints) -> Iterator[tuple[int, Ints, Ints]]:
    """(place, codes, rows of each) for the places that occur; the codes ascend."""
    if not len(code):
        return
    low = int(code.min())
    width = int(code.max()) - low + 1
    distinct, count = np.unique(place * width + (code - low), return_counts=True)
    codes = distinct % width + low
    places, first = np.unique(distinct // width, return_index=True)
    for at, start, stop in zip(places.tolist(), first.tolist(), [*first[1:].tolist(), len(codes)], strict=True):
        yield at, codes[start:stop], count[start:stop]


def _bump(counter: Counter[K], key: K, count: int) -> None:
    """Count, and forget keys that are back at nothing, so that equal profiles look equal."""
    total = counter.get(key, 0) + count
    if total:
        counter[key] = total
    else:
        counter.pop(key, None)


def _added(one: Counter[K], other: Counter[K]) -> Counter[K]:
    total = Counter(one)
    for key, count in other.items():
        _bump(total, key, count)
    return total
