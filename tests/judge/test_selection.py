"""Labels that come first, compared with the baseline's by what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from stream_monitor.judge.selection import FEWEST, Kinds, can_be_made_good, margins, stands_apart
from stream_monitor.records import Floats
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task


def classes(truth: Sequence[str | None], said: Sequence[str]) -> Joined:
    """Answers and their truths."""
    nothing = np.full(len(truth), np.nan)
    return Joined(pa.array(truth, pa.string()), nothing, pa.array(said, pa.string()), nothing, nothing, nothing)


def numbers(error: Floats) -> Joined:
    """Predictions of 100 that are off by so much."""
    none, nothing = pa.nulls(len(error), pa.string()), np.full(len(error), np.nan)
    return Joined(none, 100.0 - error, none, nothing, np.full(len(error), 100.0), nothing)


def of(task: Task, joined: Joined) -> Kinds:
    """As a baseline of these rows has it."""
    profile = OutcomeProfile(task, "yes")
    profile.add(joined)
    return Kinds.of(task, "yes", profile)


@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTICLASS, Task.REGRESSION])
def test_the_baseline_has_the_shares_of_its_own_rows(task: Task) -> None:
    """What is read off its sums is what counting its rows gives."""
    rng = np.random.default_rng(4)
    if task is Task.REGRESSION:
        joined = numbers(rng.standard_t(3, 2_000))
    else:
        names = ["yes", "no"] if task is Task.BINARY else [f"class {k}" for k in range(9)]
        truth, said = (rng.choice(names, 2_000).tolist() for _ in range(2))
        joined = classes(truth, said)
    kinds = of(task, joined)
    assert kinds.usual is not None
    counted = np.bincount(kinds.encode(joined), minlength=8) / 2_000
    assert kinds.usual == pytest.approx(counted, abs=0.01 if task is Task.REGRESSION else 1e-12)


def test_without_a_baseline_kinds_are_told_apart_all_the_same() -> None:
    """By class and by whether the answer was wrong; a truth that cannot be read is of some kind too."""
    kinds = Kinds.of(Task.BINARY, "yes", None)
    assert kinds.usual is None
    assert kinds.encode(classes(["yes", "yes", "no", "no", None], ["yes", "no", "no", "yes", "no"])).tolist() == [
        2, 3, 0, 1, 0]  # fmt: skip
    assert kinds.fewest() == FEWEST


def test_rare_kinds_want_more_labels() -> None:
    """Eight of one in a hundred are due among 800; one in a thousand is not waited for."""
    rows = ["no"] * 99 + ["yes"]
    assert of(Task.BINARY, classes(rows * 20, ["no"] * 2_000)).fewest() == 800
    assert of(Task.BINARY, classes((["no"] * 999 + ["yes"]) * 2, ["no"] * 2_000)).fewest() == FEWEST


def test_chance_rarely_stands_apart_and_a_missing_class_does() -> None:
    """Of 400 clean samples of 200 at most one in fifty; of samples without a class of one in ten all."""
    rng, usual = np.random.default_rng(6), np.array([0.8, 0.1, 0.06, 0.04, 0, 0, 0, 0])
    apart = [stands_apart(rng.multinomial(200, usual), usual, rows=5_000) for _ in range(400)]
    assert sum(apart) <= 8
    without = usual * [1, 1, 0, 0, 0, 0, 0, 0]
    assert all(stands_apart(rng.multinomial(200, without / 0.9), usual, rows=5_000) for _ in range(100))


def test_a_class_that_is_all_there_can_still_be_chance() -> None:
    """All positives and nothing else, of 1,000 predictions: what is missing makes it good; twice as many, it cannot."""
    rng, usual = np.random.default_rng(8), np.array([0.75, 0.05, 0.1, 0.1, 0, 0, 0, 0])
    for share, expected in ((1.0, True), (2.0, False)):
        of_positives = usual * [0, 0, share, share, 0, 0, 0, 0]
        draws = rng.multinomial(1_000, np.append(of_positives, 1 - of_positives.sum()), 200)[:, :-1]
        verdicts = [can_be_made_good(draw, usual, made=1_000, rows=5_000) for draw in draws]
        assert sum(verdict is expected for verdict in verdicts) >= 198


def test_what_is_compared_adds_up() -> None:
    """The shares of classes, and those of right and wrong."""
    kinds = np.arange(8)
    assert margins(kinds).tolist() == [1, 5, 9, 13, 12, 16]
