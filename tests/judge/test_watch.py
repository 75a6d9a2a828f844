"""A watch: the rate of events as it is read, budgets that follow it, and rows that are given again after a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.errors import StateError
from stream_monitor.judge import hazard
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.charts import Found, Ranks
from stream_monitor.judge.watch import ASSUMED_RATE, FIRST_MARK, LAST_MARK, Traffic, Watch, delta_of, rows_of
from stream_monitor.records import Hashes, Ints
from stream_monitor.summarize.profile import BinCodes
from stream_monitor.summarize.protocol import ABOVE, BINS, MAIN, MISSING

SECOND = 1_000_000
Batch = tuple[BinCodes, Hashes, Hashes, Ints]


def ranks_of(readable: list[int], rows: int = 10_000) -> Ranks:
    """Numeric subjects with so many readable baseline rows."""
    held = np.array(readable, np.int64)
    seeds = tuple(f"s{f}" for f in range(len(readable)))
    return Ranks(seeds, np.full(len(readable), MAIN, np.int64), {}, {}, held, rows, rows - held)


def watch(budget: str = "1 per 100000 events", share: float = 1.0) -> Watch:
    """A watch over two subjects that can be judged and one that cannot."""
    return Watch(ranks_of([10_000, 10_000, 100]), Budget.parse(budget), share)


def batch(rows: int, seed: int, *, every_us: int = SECOND // 5) -> Batch:
    """Rows at five a second; the first subject shifts for a fifth of them, the second is missing for another."""
    draw = np.random.default_rng(seed)
    code = draw.integers(0, MAIN, (rows, 3), dtype=np.uint16)
    fifth = rows // 5
    code[fifth : 2 * fifth, 0] = np.maximum(code[fifth : 2 * fifth, 0], 100)
    code[3 * fifth : 3 * fifth + 200, 1] = MISSING
    code[:, 2] = ABOVE
    hi, lo = draw.integers(0, 2**63, (2, rows), dtype=np.uint64)
    return code, hi, lo, np.arange(rows, dtype=np.int64) * every_us


def part_of(rows: Batch, start: int, stop: int) -> Batch:
    """Some of the rows."""
    code, hi, lo, times = rows
    return code[start:stop], hi[start:stop], lo[start:stop], times[start:stop]


def plain(found: list[Found], start: int = 0) -> list[tuple[object, ...]]:
    """Findings as values that compare, `at` counted from the first row of all."""
    return [(f.unit, f.at + start, f.time_us, f.is_calm, f.chart, f.scale, f.value, f.codes.tobytes()) for f in found]


# -- the rate ---------------------------------------------------------------------------------------


def marks_of(rows: int) -> list[int]:
    """256, 512, ... 65,536 and then every 65,536."""
    return [2**k for k in range(8, 16) if 2**k <= rows] + list(range(65_536, rows + 1, 65_536))


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=12))
def test_the_rate_is_read_at_the_marks(sizes: list[int]) -> None:
    """However the events are cut: at every mark, over the stretch since the mark before the last."""
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.integers(0, 2 * SECOND, sum(sizes)))
    traffic, read, start = Traffic(), [], 0
    for size in sizes:
        stop = start + size
        while start < stop:
            step = min(stop - start, traffic.until_mark())
            assert step > 0
            if traffic.add(times[start : start + step]):
                read.append((start + step, traffic.rate))
            start += step
    marks = [0, *marks_of(sum(sizes))]
    assert [mark for mark, _ in read] == marks[1:]
    for place, (mark, rate) in enumerate(read, start=1):
        since = marks[max(0, place - 2)]
        began = times[0] if since == 0 else times[since - 1]
        assert rate == pytest.approx((mark - since) * SECOND / (times[mark - 1] - began))
    assert (traffic.events, len(traffic.marks)) == (sum(sizes), min(2, len(marks)))


def test_until_the_first_mark_a_rate_is_assumed() -> None:
    """No events, too few or all in one moment say nothing about their rate."""
    traffic = Traffic()
    assert not traffic.add(np.zeros(0, np.int64))
    assert not traffic.add(np.full(FIRST_MARK - 1, 5))
    assert not traffic.add(np.full(1, 5))
    assert (traffic.rate, traffic.events) == (ASSUMED_RATE, FIRST_MARK)
    assert traffic.add(np.full(FIRST_MARK, 5 + 2 * SECOND))
    assert traffic.rate == 2 * FIRST_MARK / 2


def test_a_rate_that_changes_is_followed() -> None:
    """A week's silence, or a rush: after two marks the rate is the new one alone."""
    traffic, now = Traffic(), 0
    for every_us, events in ((SECOND, 2 * LAST_MARK), (SECOND // 100, 2 * LAST_MARK)):
        for _ in range(events // 256):
            traffic.add(now + np.arange(1, 257) * every_us)
            now += 256 * every_us
    assert traffic.rate == pytest.approx(100)


# -- the budget -------------------------------------------------------------------------------------


def test_a_budget_in_time_follows_the_rate() -> None:
    """One in 30 days at five events a second is one in 12.96 million events, of the two subjects that can be judged."""
    judged = watch("1 per 30d", share=0.8)
    assert judged.subjects == 2
    assert judged.run_length() == pytest.approx(30 * 86_400 * ASSUMED_RATE / 0.8)
    first = judged.charts.hazard
    judged.update(*batch(FIRST_MARK - 1, 1))
    assert judged.charts.hazard == first
    judged.update(*part_of(batch(FIRST_MARK, 1), FIRST_MARK - 1, FIRST_MARK))
    assert judged.traffic.rate == pytest.approx(5, rel=0.01)
    assert judged.run_length() == pytest.approx(30 * 86_400 * 5 / 0.8, rel=0.01)
    assert judged.charts.hazard == hazard.nominal_rate(judged.run_length(), 2) > first


def test_a_budget_in_events_stays() -> None:
    """Whatever the rate: two in 100,000 events, half of them for this line, is one in 100,000."""
    judged = watch("2 per 100000 events", share=0.5)
    judged.update(*batch(3_000, 1))
    assert judged.traffic.rate == pytest.approx(5, rel=0.01)
    assert judged.run_length() == pytest.approx(100_000)
    assert judged.charts.hazard == hazard.nominal_rate(100_000, 2)


def test_nothing_to_judge_is_no_error() -> None:
    """Subjects that all have too few rows: no finding, and a rate all the same."""
    judged = Watch(ranks_of([100, 0]), Budget.parse("1 per 30d"), 1.0)
    assert judged.subjects == 0
    code, hi, lo, times = batch(2_000, 2)
    assert judged.update(code[:, :2], hi, lo, times) == []


# -- the same whatever the cuts ---------------------------------------------------------------------


@settings(max_examples=4, deadline=None)
@given(st.lists(st.integers(100, 1_500), min_size=1, max_size=4), st.integers(0, 3))
def test_restored_charts_and_their_deltas_go_on_as_if_never_stopped(sizes: list[int], stored_at: int) -> None:
    """Stored after some batches, the later ones given again as deltas: then the same findings and the same bytes."""
    rows = batch(4_000, 3)
    whole = watch("1 per 1d")
    expected = plain(whole.update(*rows))
    assert {f[3] for f in expected} == {True, False}

    current, state, deltas, found = watch("1 per 1d"), b"", list[bytes](), []
    start, turn = 0, 0
    state = current.to_bytes()
    while start < 4_000:
        stop = min(4_000, start + sizes[turn % len(sizes)])
        part = part_of(rows, start, stop)
        found += plain(current.update(*part), start)
        deltas.append(delta_of(*part))
        if turn % 4 == stored_at:
            state, deltas = current.to_bytes(), []
        else:  # the process is killed: what was stored, and the rows since
            current = watch("1 per 1d")
            current.restore(state)
            for delta in deltas:
                current.update(*rows_of(delta))
        start, turn = stop, turn + 1
    assert found == expected
    assert current.to_bytes() == whole.to_bytes()


def test_findings_are_counted_from_the_rows_that_were_given() -> None:
    """The mark at 256 cuts an update in two; `at` and what `matters` is asked about count from its first row."""
    rows = batch(1_500, 4)
    asked: list[Found] = []

    def matters(found: Found) -> bool:
        asked.append(found)
        return True

    found = watch("1 per 1d").update(*rows, matters=matters)
    alarms = [f for f in found if not (f.is_calm or f.is_again)]
    assert plain(sorted(asked, key=lambda f: f.at)) == plain(alarms)
    assert alarms
    for f in found:
        assert f.time_us == rows[3][f.at]
    assert 300 <= alarms[0].at < 400


def test_another_budget_after_a_restart_is_todays() -> None:
    """The configuration decides, not what was stored."""
    before = watch("1 per 1d")
    before.update(*batch(2_000, 5))
    after = watch("1 per 30d")
    after.restore(before.to_bytes())
    assert after.traffic == before.traffic
    assert after.charts.hazard == replace_budget(before, "1 per 30d").hazard() < before.charts.hazard


def test_charts_of_other_windows_begin_anew_at_the_rate_that_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update of the program: no damage, no memory of an alarm, and traffic is still known."""
    before = watch("1 per 1d")
    before.update(*part_of(batch(4_000, 3), 0, 1_000))
    assert before.charts.raised()
    with monkeypatch.context() as earlier:
        earlier.setattr("stream_monitor.judge.charts.FORMAT", 1)
        state = before.to_bytes()
    after = watch("1 per 1d")
    assert after.restore(state) is False
    assert after.restore(before.to_bytes()) is True
    after.restore(state)
    assert after.traffic == before.traffic
    assert (after.charts.events, after.charts.raised()) == (0, [])
    assert after.charts.hazard == before.charts.hazard
    assert any(f.unit.subject == 1 for f in after.update(*part_of(batch(4_000, 3), 2_000, 4_000)))


def replace_budget(judged: Watch, budget: str) -> Watch:
    """A watch of another budget that has seen the same traffic."""
    other = watch(budget)
    other.traffic = replace(judged.traffic)
    return other


@pytest.mark.parametrize("state", [b"", b"\x02", b"\x02\x00\x00\x00{}", b"\xff\xff\xff\x7f[]", b"\x03\x00\x00\x00[1]"])
def test_a_damaged_state_is_refused(state: bytes) -> None:
    """Cut short, of another form, or without charts: a StateError."""
    with pytest.raises(StateError):
        watch().restore(state)


def test_cut_states_are_refused() -> None:
    """Every prefix of a state."""
    whole = watch().to_bytes()
    for size in range(0, len(whole), 997):
        with pytest.raises(StateError):
            watch().restore(whole[:size])


# -- deltas -----------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.integers(0, 6), st.integers(0, 2**32))
def test_rows_come_back_from_their_delta(rows: int, subjects: int, seed: int) -> None:
    """Every code, every bit of the ids, times before 1970 too, in any memory layout."""
    draw = np.random.default_rng(seed)
    code = np.asfortranarray(draw.integers(0, BINS, (rows, subjects), dtype=np.uint16))
    hi, lo = draw.integers(0, 2**64, (2, rows), dtype=np.uint64)
    times = draw.integers(-(2**62), 2**62, rows)
    back = rows_of(delta_of(code, hi, lo, times))
    assert [part.dtype for part in back] == [np.uint16, np.uint64, np.uint64, np.int64]
    assert back[0].shape == code.shape
    assert [part.tolist() for part in back] == [code.tolist(), hi.tolist(), lo.tolist(), times.tolist()]
