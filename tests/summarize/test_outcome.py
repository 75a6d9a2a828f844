"""Outcome profiles: exact sums and the laws of adding, removing and merging."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.errors import StateError
from stream_monitor.records import Floats
from stream_monitor.summarize.histogram import MOST_NUMBERS, Histogram, Numbers
from stream_monitor.summarize.outcome import (
    ExactSum,
    Joined,
    OutcomeProfile,
    Task,
    binned,
    binned_scores,
    errors,
    score_bin,
    task_of,
    value_bin,
    value_ends,
    values_of_bins,
    variance,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
TASKS = [(Task.REGRESSION, None), (Task.BINARY, "deny"), (Task.MULTICLASS, None)]
tasks = pytest.mark.parametrize(("task", "positive"), TASKS)


def joined(rows: int, seed: int) -> Joined:
    """Rows with every kind of gap, usable for every task."""
    draw = np.random.default_rng(seed)
    labels = np.array(["deny", "approve", "refer", None], dtype=object)
    score = draw.random(rows)
    score[draw.random(rows) < 0.1] = np.nan
    number = draw.normal(size=rows) * 10.0 ** draw.integers(-8, 8, size=rows)
    number[draw.random(rows) < 0.1] = draw.choice([np.nan, np.inf, 1e300])
    return Joined(
        truth_label=pa.array(labels[draw.integers(0, 4, rows)], pa.string()),
        truth_number=number,
        label=pa.array(labels[draw.integers(0, 4, rows)], pa.string()),
        score=score,
        value=draw.normal(size=rows),
        truth_probability=np.where(draw.random(rows) < 0.2, np.nan, draw.random(rows)),
    )


def taken(rows: Joined, index: list[int] | slice) -> Joined:
    """Some rows of a batch."""
    at = np.arange(len(rows))[index]
    return Joined(
        rows.truth_label.take(pa.array(at)),
        rows.truth_number[at],
        rows.label.take(pa.array(at)),
        rows.score[at],
        rows.value[at],
        rows.truth_probability[at],
    )


def profile_of(rows: Joined, task: Task, positive: str | None) -> OutcomeProfile:
    """A profile of one batch."""
    profile = OutcomeProfile(task, positive)
    profile.add(rows)
    return profile


@given(st.lists(finite, max_size=30))
def test_an_exact_sum_is_the_rational_sum(values: list[float]) -> None:
    """Against Python's fractions, subnormals and huge values included; correctly rounded as fsum."""
    total = ExactSum()
    total.add(np.array(values))
    exact = sum((Fraction(value) for value in values), Fraction(0))
    assert Fraction(total.units, 1 << 1126) == exact
    if abs(exact) < Fraction(2) ** 1023:
        assert total.value == math.fsum(values)


@given(st.lists(finite, max_size=20), st.lists(finite, max_size=20))
def test_an_exact_sum_does_not_care_about_order_or_batches(one: list[float], two: list[float]) -> None:
    """Backwards, in pieces, and with others added and taken away again."""
    whole, pieces = ExactSum(), ExactSum()
    whole.add(np.array(one))
    pieces.add(np.array(two))
    for value in reversed(one):
        pieces.add(np.array([value]))
    pieces.subtract(np.array(two))
    assert pieces == whole


def test_an_exact_sum_beyond_a_float_is_infinite() -> None:
    """The integer holds what a float cannot; the value says so."""
    total = ExactSum()
    total.add(np.full(4, 1.7e308))
    assert total.value == math.inf
    total.subtract(np.full(3, 1.7e308))
    assert total.value == 1.7e308


@tasks
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 60), max_size=3))
def test_order_and_batches_do_not_matter(task: Task, positive: str | None, seed: int, cuts: list[int]) -> None:
    """Any order in any pieces gives an equal profile with equal bytes."""
    rows = joined(60, seed)
    whole = profile_of(rows, task, positive)
    shuffled = taken(rows, np.random.default_rng(seed).permutation(60).tolist())
    pieces = OutcomeProfile(task, positive)
    for a, b in pairwise([0, *sorted(cuts), 60]):
        pieces.add(taken(shuffled, slice(a, b)))
    assert pieces == whole
    assert pieces.to_bytes() == whole.to_bytes()
    assert OutcomeProfile.from_bytes(whole.to_bytes()) == whole


@tasks
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), cut=st.integers(0, 60))
def test_merge_is_the_profile_of_both(task: Task, positive: str | None, seed: int, cut: int) -> None:
    """merge(A, B) equals the profile of A and B, neither is changed, and remove takes B out again to the last bit."""
    rows = joined(60, seed)
    a, b = taken(rows, slice(0, cut)), taken(rows, slice(cut, 60))
    one, other = profile_of(a, task, positive), profile_of(b, task, positive)
    frozen = one.to_bytes(), other.to_bytes()
    merged = one.merge(other)
    assert merged == profile_of(rows, task, positive) == other.merge(one)
    assert (one.to_bytes(), other.to_bytes()) == frozen
    assert one.merge(OutcomeProfile(task, positive)) == one
    merged.remove(b)
    assert merged == one
    assert merged.rows + merged.unusable == cut


def test_binary_counts_are_a_loop_over_rows() -> None:
    """Confusion, log loss and Brier against a loop; a missing label is decided by the score."""
    rows = joined(500, 5)
    pairs: Counter[tuple[str, str]] = Counter()
    brier, loss = [], []
    columns = (rows.truth_label.to_pylist(), rows.label.to_pylist(), rows.score.tolist())
    for truth, label, score in zip(*columns, strict=True):
        if truth is None or (label is None and math.isnan(score)):
            continue
        y = truth == "deny"
        pairs[(str(int(y)), str(int(label == "deny" if label is not None else score >= 0.5)))] += 1
        if not math.isnan(score):
            brier.append((score - y) ** 2)
            loss.append(-math.log(score if y else 1 - score))
    profile = profile_of(rows, Task.BINARY, "deny")
    assert profile.pairs == pairs
    assert (profile.rows, profile.probable) == (sum(pairs.values()), len(brier))
    assert profile.sums["brier"].value == pytest.approx(math.fsum(brier), rel=1e-12)
    assert profile.sums["log_loss"].value == pytest.approx(math.fsum(loss), rel=1e-12)


def test_regression_sums_are_a_loop_over_rows() -> None:
    """Sums of errors and their powers; what is not a moderate number is counted as unusable."""
    rows = joined(500, 6)
    pairs = [(y, p) for y, p in zip(rows.truth_number.tolist(), rows.value.tolist(), strict=True) if abs(y) < 1e75]
    profile = profile_of(rows, Task.REGRESSION, None)
    assert (profile.rows, profile.unusable) == (len(pairs), 500 - len(pairs))
    for name, power in (("absolute", 1), ("squared", 2), ("cubed", 3), ("fourth", 4)):
        expected = math.fsum(abs(p - y) ** power for y, p in pairs)
        assert profile.sums[name].value == pytest.approx(expected, rel=1e-12)
    relative = math.fsum(abs(p - y) / abs(y) for y, p in pairs)
    assert profile.sums["relative"].value == pytest.approx(relative, rel=1e-12)
    assert profile.targets.total == profile.errors.total == len(pairs)


@given(st.lists(st.floats(1e9, 1e9 + 3), min_size=1, max_size=30))
def test_the_variance_of_large_targets_does_not_cancel(values: list[float]) -> None:
    """A spread of one around a billion, against fractions."""
    rows = joined(len(values), 0)
    target = np.array(values)
    rows = Joined(rows.truth_label, target, rows.label, rows.score, target, rows.truth_probability)
    profile = profile_of(rows, Task.REGRESSION, None)
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    expected = float(sum((value - mean) ** 2 for value in exact) / len(exact))
    got = variance(profile.sums["target"], profile.sums["target_squared"], len(values))
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-300)


@tasks
def test_errors_are_told_row_by_row(task: Task, positive: str | None) -> None:
    """The mean of the errors of usable rows is the profile's."""
    rows = joined(400, 9)
    error = errors(rows, task, positive_label=positive)
    profile = profile_of(rows, task, positive)
    assert np.isfinite(error).sum() == profile.rows
    if task is Task.REGRESSION:
        assert np.nansum(error) == pytest.approx(profile.sums["absolute"].value, rel=1e-12)
    else:
        wrong = sum(count for (truth, predicted), count in profile.pairs.items() if truth != predicted)
        assert np.nansum(error) == wrong


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_score_bins_ascend(values: list[float]) -> None:
    """A larger score is never in a smaller bin, and bins are narrow relative to the nearer end."""
    score = np.sort(np.array(values))
    bins = score_bin(score)
    assert (np.diff(bins) >= 0).all()
    near = np.minimum(score, 1 - score)
    same = (np.diff(bins) == 0) & (near[:-1] > 2.0**-39) & (near[1:] > 2.0**-39)
    assert (np.diff(score)[same] <= np.maximum(near[:-1], near[1:])[same] / 512).all()


@given(finite.filter(lambda value: value == 0 or 1e-290 < abs(value) < 1e300))
def test_value_bins_are_less_than_a_percent_wide(value: float) -> None:
    """A value is between the ends of its bin, and its middle within .4 % of it, whatever its size and sign."""
    key = value_bin(np.array([value]))
    lower, upper = value_ends(key)
    assert lower[0] <= value <= upper[0]
    assert values_of_bins(key)[0] == pytest.approx(value, rel=0.004)


def ordered_bins(values: Floats) -> bool:
    """Whether the bins of ascending values ascend."""
    return bool((np.diff(value_bin(np.sort(values))) >= 0).all())


def test_value_bins_ascend_through_zero() -> None:
    """From large negative to large positive numbers."""
    assert ordered_bins(np.random.default_rng(1).normal(size=2000) * 10.0 ** np.arange(-10, 10).repeat(100))


def test_the_task_is_configured_or_seen() -> None:
    """Numbers mean regression and strings several classes, unless the configuration says otherwise."""
    assert task_of("binary", is_numeric=True) is Task.BINARY
    assert task_of(None, is_numeric=True) is Task.REGRESSION
    assert task_of(None, is_numeric=False) is Task.MULTICLASS


def test_unequal_profiles_refuse_to_merge_and_damage_is_a_sentence() -> None:
    """Another task, another positive label, a cut state and a foreign format."""
    binary = OutcomeProfile(Task.BINARY, "deny")
    for other in (OutcomeProfile(Task.REGRESSION), OutcomeProfile(Task.BINARY, "approve")):
        with pytest.raises(ValueError, match="do not add"):
            binary.merge(other)
    for broken in (b"", b"\x09whatever", binary.to_bytes()[:-4]):
        with pytest.raises(StateError):
            OutcomeProfile.from_bytes(broken)


def of_numbers(truth: Floats, value: Floats) -> Joined:
    """Predicted numbers and their truths."""
    nothing, labels = np.full(len(truth), np.nan), pa.nulls(len(truth), pa.string())
    return Joined(labels, truth, labels, nothing, value, nothing)


WORLDS: Mapping[str, Callable[[np.random.Generator], Floats]] = {
    "far from zero": lambda draw: draw.normal(101_325, 50, 6000),
    "skewed": lambda draw: draw.lognormal(3, 2, 6000),
    "around zero": lambda draw: draw.normal(0, 1, 6000),
    "below zero, and a few zeros": lambda draw: np.where(draw.random(6000) < 0.01, 0.0, draw.normal(-273, 0.1, 6000)),
    "far apart": lambda draw: np.concatenate([draw.normal(1e6, 10, 3000), draw.normal(0, 1, 3000)]),
}


@pytest.mark.parametrize("world", WORLDS)
def test_truths_are_as_fine_whatever_their_order_and_batches(world: str) -> None:
    """More numbers than are kept: backwards, in pieces, and merged from parts of other sizes."""
    truth = WORLDS[world](np.random.default_rng(1))
    rows = of_numbers(truth, truth + 1)
    whole, pieces, merged = (OutcomeProfile(Task.REGRESSION) for _ in range(3))
    whole.add(rows)
    assert whole.targets.cut > 0
    for a, b in pairwise([0, 1, 20, 900, 2500, 5999, 6000]):
        part = np.arange(a, b)
        pieces.add(rows.take(5999 - part))
        other = OutcomeProfile(Task.REGRESSION)
        other.add(rows.take(part))
        merged = other.merge(merged)
    assert pieces == merged == whole
    assert pieces.to_bytes() == merged.to_bytes() == whole.to_bytes()
    assert OutcomeProfile.from_bytes(whole.to_bytes()) == whole
    lower, upper = whole.targets.ends()
    assert np.isin(np.searchsorted(lower, truth, "right") - 1, np.arange(len(lower))).all()
    held = np.searchsorted(lower, np.sort(truth), "right") - 1
    assert (np.sort(truth) <= upper[held]).all()
    assert np.bincount(held).tolist() == whole.targets.arrays()[1].tolist()
    assert binned(whole.targets) == Histogram(Counter(value_bin(truth).tolist()).items())


def test_numbers_taken_out_again_leave_what_there_was() -> None:
    """To the last bit while there are few; cut as short as they had to be where there were many."""
    draw = np.random.default_rng(2)
    few, many = draw.normal(5, 1, 200), draw.normal(5, 1, 2 * MOST_NUMBERS)
    numbers, alone = Numbers(), Numbers()
    numbers.add_numbers(few)
    alone.add_numbers(few)
    numbers.add_numbers(many[:100])
    numbers.add(Numbers.keys_of(many[:100]), np.full(100, -1))
    assert numbers == alone
    numbers.add_numbers(many)
    assert len(numbers) <= MOST_NUMBERS
    keys, counts = np.unique(Numbers.keys_of(many), return_counts=True)
    numbers.add(keys, -counts)
    assert numbers == alone.cut_to(numbers.cut)


def as_before(profile: OutcomeProfile, scores: Histogram, targets: Histogram) -> bytes:
    """In the format before, whose scores and truths were histograms of bins."""
    now = zstandard.ZstdDecompressor().decompress(profile.to_bytes()[1:])
    size = struct.unpack("<I", now[:4])[0]
    head, start, parts = json.loads(now[4 : 4 + size]), 4 + size, []
    for length in head["histograms"]:
        parts.append(now[start : start + length])
        start += length
    parts[:2] = scores.to_bytes(), targets.to_bytes()
    head["histograms"] = [len(part) for part in parts]
    text = json.dumps(head).encode()
    return b"\x03" + zstandard.ZstdCompressor().compress(struct.pack("<I", len(text)) + text + b"".join(parts))


def test_a_profile_whose_truths_were_binned_is_read() -> None:
    """Of the format before: as fine as it was, and truths can be added to it."""
    truth = np.array([10.0, 10.01, -3.5, 0.0, 101_325.0])
    profile = OutcomeProfile(Task.REGRESSION)
    profile.add(of_numbers(truth, truth + 1))
    bins = Histogram(Counter(value_bin(truth).tolist()).items())
    read = OutcomeProfile.from_bytes(as_before(profile, Histogram(), bins))
    assert binned(read.targets) == binned(profile.targets) == bins
    lower, upper = read.targets.ends()
    assert lower.tolist() == value_ends(np.unique(value_bin(truth)))[0].tolist()
    assert (upper - lower <= 0.008 * np.abs(lower)).all()
    more = of_numbers(np.array([10.02]), np.array([10.0]))
    read.add(more)
    profile.add(more)
    assert read.targets == profile.targets.cut_to(read.targets.cut)


def test_a_profile_whose_scores_were_binned_is_read() -> None:
    """Of the format before: the same bins, the ends and the middle among them."""
    score = np.array([0.0, 1e-9, 0.3, 0.30001, 0.4999999, 0.5, 0.7, 0.999999, 1.0, 1.0])
    truth = np.arange(10) % 3 == 0
    nothing = np.full(10, np.nan)
    labels = pa.array(np.where(truth, "yes", "no"))
    profile = OutcomeProfile(Task.BINARY, "yes")
    profile.add(Joined(labels, nothing, labels, score, nothing, nothing))
    bins = Histogram(Counter((score_bin(score) * 2 + truth).tolist()).items())
    read = OutcomeProfile.from_bytes(as_before(profile, bins, Histogram()))
    assert binned_scores(read.scores) == binned_scores(profile.scores) == bins
    assert read.scores == profile.scores.cut_to(read.scores.cut)
    steps, true, _ = read.scores.steps()
    assert sorted((steps * 2 + true).tolist()) == [key for key, _ in bins.items()]
