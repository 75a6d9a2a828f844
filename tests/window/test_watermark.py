"""Event time on one partition, against a rule-by-rule oracle."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.records import MICROSECONDS, NO_TIME, PartitionId, Stream
from stream_monitor.window.watermark import (
    AGREEING,
    AHEAD_OF_PARTITION_US,
    AHEAD_OF_RECORD_US,
    PartitionClock,
    PartitionState,
    late,
    slowest,
    watermark,
)

HOUR = 3600 * MICROSECONDS
P0 = PartitionId(Stream.INFERENCE, "t", 0)
P1 = PartitionId(Stream.INFERENCE, "t", 1)


def times(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def unknown(n: int) -> np.ndarray:
    return np.full(n, NO_TIME, np.int64)


def test_the_clock_shows_the_highest_time_before_each_event() -> None:
    """The row itself does not count for its own lateness."""
    clock = PartitionClock()
    before = clock.observe(times(10, 30, 20, 40), unknown(4))
    assert before.tolist() == [NO_TIME, 10, 30, 30]
    assert clock.highest_us == 40


def test_late_is_older_than_the_highest_less_the_lateness() -> None:
    """Exactly at the bound is on time; one microsecond below is late; the first event never is."""
    before = times(NO_TIME, 100, 100)
    assert late(times(5, 90, 89), before, lateness_us=10).tolist() == [False, False, True]


def test_a_time_far_ahead_of_its_record_needs_twenty_that_agree() -> None:
    """The twenty-first suspect timestamp within an hour moves the clock, to the earliest of them."""
    clock = PartitionClock()
    now = 1_000 * HOUR
    clock.observe(times(now), times(now))
    ahead = now + 5 * HOUR + np.arange(AGREEING + 1)
    before = clock.observe(ahead, np.full(AGREEING + 1, now))
    assert set(before.tolist()) == {now}
    assert clock.highest_us == now + 5 * HOUR


def test_scattered_absurd_times_never_move_the_clock() -> None:
    """Forty times that disagree with each other are forty errors."""
    clock = PartitionClock()
    now = 1_000 * HOUR
    clock.observe(times(now), times(now))
    clock.observe(now + np.arange(2, 42) * 3 * HOUR, np.full(40, now))
    assert clock.highest_us == now


def test_in_files_a_leap_of_more_than_seven_days_is_suspect() -> None:
    """Without a record time the partition itself is the measure."""
    clock = PartitionClock()
    clock.observe(times(0, 5, AHEAD_OF_PARTITION_US + 6, 7), unknown(4))
    assert clock.highest_us == 7
    clock.observe(AHEAD_OF_PARTITION_US + 100 + np.arange(AGREEING), unknown(AGREEING))
    assert clock.highest_us == AHEAD_OF_PARTITION_US + 6


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=80),
    st.lists(st.integers(1, 79), max_size=4),
)
def test_cutting_the_stream_differently_changes_nothing(rows: list[tuple[int, bool]], cuts: list[int]) -> None:
    """However polls cut a partition, its clock says the same before every event."""
    now = 10_000 * HOUR
    time = np.array([now + t * HOUR // 4 for t, _ in rows], np.int64)
    record = np.array([now if known else NO_TIME for _, known in rows], np.int64)
    whole = PartitionClock()
    expected = whole.observe(time, record)
    pieces = PartitionClock()
    bounds = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    got = np.concatenate([pieces.observe(time[a:b], record[a:b]) for a, b in itertools.pairwise(bounds)])
    assert got.tolist() == expected.tolist()
    assert pieces == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), min_size=1, max_size=60))
def test_the_vectorised_clock_equals_the_rules_read_aloud(rows: list[tuple[int, bool]]) -> None:
    """An event-by-event reading of the rules gives the same clock."""
    now = 10_000 * HOUR
    time = [now + t * HOUR for t, _ in rows]
    record = [now if known else NO_TIME for _, known in rows]
    highest = NO_TIME
    suspects: list[int] = []
    expected: list[int] = []
    for t, r in zip(time, record, strict=True):
        expected.append(highest)
        leaps = highest != NO_TIME and t - highest > AHEAD_OF_PARTITION_US
        suspect = t - r > AHEAD_OF_RECORD_US if r != NO_TIME else leaps
        if not suspect:
            highest = max(highest, t)
            continue
        suspects = [*suspects, t][-AGREEING - 1 :]
        if len(suspects) == AGREEING + 1 and max(suspects) - min(suspects) <= AHEAD_OF_RECORD_US:
            highest = max(highest, min(suspects))
    clock = PartitionClock()
    assert clock.observe(np.array(time), np.array(record)).tolist() == expected
    assert (NO_TIME if clock.highest_us is None else clock.highest_us) == highest


def state(highest: int | None, *, at_end_since: float | None = None, finished: bool = False) -> PartitionState:
    return PartitionState(clock=PartitionClock(highest), at_end_since=at_end_since, finished=finished)


def test_the_watermark_is_the_slowest_live_partition() -> None:
    """Idle and finished partitions hold nobody back; a silent live one holds everybody."""
    live, idle, silent = state(100), state(10, at_end_since=0.0), state(None)

    def asked(*states: PartitionState) -> int | None:
        return watermark(states, lateness_us=5, now_seconds=60.0, idle_seconds=30.0)

    assert asked(live, idle) == 95
    assert asked(live, state(10, at_end_since=50.0)) == 5
    assert asked(live, silent) is None
    assert asked(idle, state(40, finished=True)) == 35


def test_a_slow_fetch_is_never_idleness() -> None:
    """Only standing at the broker's end starts the clock of idleness, and new records stop it."""
    partition = PartitionState(position=5, end=9)
    partition.note_end(0.0)
    assert not partition.idle(1e9, timeout_seconds=30)
    partition.position = 9
    partition.note_end(10.0)
    partition.note_end(20.0)
    assert not partition.idle(39.0, timeout_seconds=30)
    assert partition.idle(40.0, timeout_seconds=30)
    partition.end = 10
    partition.note_end(41.0)
    assert not partition.idle(1e9, timeout_seconds=30)


def test_the_slowest_frontier_waits_for_partitions_that_must_speak() -> None:
    """A partition that has neither data nor reached its end stops admission; one at its end does not."""
    states = {P0: state(None), P1: state(None)}
    assert slowest(states, {P0: 100}) is None
    states[P1].at_end_since = 1.0
    assert slowest(states, {P0: 100}) == 100
    assert slowest(states, {P0: 100, P1: 50}) == 50
