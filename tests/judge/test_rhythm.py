"""What comes back every day: told from chance and from one bad night, and taken off what labels say."""

from __future__ import annotations

import numpy as np
import pytest
from test_concept import binary

from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.concept import Concept, Turn
from stream_monitor.judge.relation import Relation
from stream_monitor.judge.rhythm import HOUR_US, Rhythm
from stream_monitor.records import Flags, Floats, Ints
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task

A_DAY = 2_000
DAY_US = 24 * HOUR_US
RATIOS = np.array([[0.89, 2.0], [0.78, 3.0]])
"""Two alternatives to a tenth of errors: twice, three times as many."""


def days(count: int) -> Ints:
    """The times of so many days' labels."""
    return np.arange(count * A_DAY) * (DAY_US // A_DAY)


def at_noon(made_us: Ints, factor: float) -> Floats:
    """By how much an hour's errors are more, or fewer, than those of a day."""
    return np.asarray(factor ** np.sin(made_us / DAY_US * 2 * np.pi), np.float64)


def wrong(made_us: Ints, seed: int, factor: float = 1.0) -> Flags:
    """A tenth of the answers, with a swing."""
    return np.random.default_rng(seed).random(len(made_us)) < 0.1 * at_noon(made_us, factor)


def learnt(is_wrong: Flags, made_us: Ints) -> Rhythm:
    """Of these labels."""
    rhythm = Rhythm.of(2)
    rhythm.add(is_wrong.astype(np.int64), made_us)
    return rhythm


def test_without_a_rhythm_nothing_is_taken_off() -> None:
    """In 100 streams of ten days."""
    made = days(10)
    assert not any(learnt(wrong(made, seed), made).shift(RATIOS, 1.0).any() for seed in range(100))


def test_a_rhythm_is_taken_off_hour_by_hour() -> None:
    """As much as the mean of the likelihood ratio is more at that hour, known from twenty days to a hundredth."""
    made = days(20)
    shift = learnt(wrong(made, 1, 1.6), made).shift(RATIOS, 1.0)
    middle = np.arange(24) * HOUR_US + HOUR_US // 2
    rate = 0.1 * at_noon(middle, 1.6)
    true = np.log((1 - rate)[:, None] * RATIOS[:, 0] + rate[:, None] * RATIOS[:, 1])
    assert shift == pytest.approx(true - true.mean(axis=0), abs=0.03)


def test_more_errors_at_every_hour_are_no_rhythm() -> None:
    """A change for good is in odd and in even days, and in all hours: nothing of it may be taken off."""
    made = days(12)
    is_wrong = np.where(
        made < 6 * DAY_US + 7 * HOUR_US, wrong(made, 2), np.random.default_rng(3).random(len(made)) < 0.3
    )
    assert not learnt(is_wrong, made).shift(RATIOS, 1.0).any()


def test_one_bad_night_is_no_rhythm() -> None:
    """Nor two, in nights that do not follow each other by an odd number of days."""
    made = days(8)
    night = (made % DAY_US < 6 * HOUR_US) & np.isin(made // DAY_US, (3, 5))
    is_wrong = np.where(night, np.random.default_rng(5).random(len(made)) < 0.3, wrong(made, 4))
    assert not learnt(is_wrong, made).shift(RATIOS, 1.0).any()


def test_habits_change() -> None:
    """A rhythm that turned round two months ago is taken off as it is now."""
    made = days(120)
    is_wrong = np.where(made < 40 * DAY_US, wrong(made, 6, 1.6), wrong(made, 7, 1 / 1.6))
    rhythm = Rhythm.of(2)
    for start in range(0, len(made), 1_024):
        rhythm.add(is_wrong[start : start + 1_024].astype(np.int64), made[start : start + 1_024])
        rhythm = Rhythm.from_json(rhythm.to_json())
    shift = rhythm.shift(RATIOS, 1.0)[:, 0]
    assert shift[5] < -0.015
    assert shift[18] > 0.015


def test_an_hour_alone_and_no_hour_have_no_rhythm() -> None:
    """A job that runs once a day; and what nobody labelled."""
    made = np.repeat(np.arange(20) * DAY_US, 100)
    assert not learnt(wrong(made, 8), made).shift(RATIOS, 1.0).any()
    assert not learnt(np.zeros(0, np.bool_), np.zeros(0, np.int64)).shift(RATIOS, 1.0).any()


def concept(factor: float) -> Concept:
    """A watch whose baseline swings as the stream does; its rows have lost their order."""
    reference = OutcomeProfile(Task.BINARY, "yes")
    made = days(10)
    reference.add(answers(wrong(made, 9, factor)))
    relation = Relation.of(reference)
    assert relation is not None
    return Concept(relation, Budget.parse("5 per 100000 events"), 0.2, 0.1)


def answers(is_wrong: Flags) -> Joined:
    """Whether the answer yes was right."""
    return binary(np.full(len(is_wrong), 0.9), 1 - is_wrong.astype(np.int64))


def watched(watch: Concept, is_wrong: Flags, made_us: Ints, *, cuts: int = 1_000) -> list[Turn]:
    """What it says of labels two days late."""
    found: list[Turn] = []
    for start in range(0, len(made_us), cuts):
        made = made_us[start : start + cuts]
        found += watch.update(
            answers(is_wrong[start : start + cuts]), made, made + 2 * DAY_US, np.zeros(len(made), np.int64), names={},
            share_at=lambda _: 0.2,
        )  # fmt: skip
    return found


def alarms(turns: list[Turn]) -> list[Turn]:
    """Those that are new."""
    return [turn for turn in turns if not turn.is_calm and not turn.is_again]


def test_nights_do_not_ring_once_they_are_known() -> None:
    """Twice as many errors at noon as in a whole day, half as many at night: seventeen alarms without regard to that."""
    watch, made = concept(2.0), days(60)
    found = alarms(watched(watch, wrong(made, 14, 2.0), made))
    assert all(turn.onset_us < 2 * DAY_US for turn in found)


def test_a_change_is_found_and_dated_through_the_rhythm() -> None:
    """And by a watch that was stored on the way."""
    watch, made = concept(1.6), days(21)
    is_wrong = np.where(made < 20 * DAY_US, wrong(made, 11, 1.6), wrong(made, 11, 1.6) | (wrong(made, 12, 1.6)))
    before = made < 20 * DAY_US
    watched(watch, is_wrong[before], made[before])
    assert not watch.raised()
    other = concept(1.6)
    assert other.restore(watch.to_bytes())
    for again, cuts in ((watch, 1_000), (other, 333)):
        [first, *_] = alarms(watched(again, is_wrong[~before], made[~before], cuts=cuts))
        assert abs(first.onset_us - 20 * DAY_US) < 3 * HOUR_US
        assert first.samples < 500
    assert other.to_bytes() == watch.to_bytes()
