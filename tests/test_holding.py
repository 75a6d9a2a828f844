"""Truths that wait: let go of in an order that is the same however they come, and never more of them than there is room."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from stream_monitor.holding import MOST_ROWS, Arrived, Holding, free_at
from stream_monitor.labels import OPEN_END
from stream_monitor.records import Ints
from stream_monitor.summarize.outcome import Joined

WAITS = [(3_000, OPEN_END), (9_000, 2_000), (14_000, 4_000), (30_000, 0)]


def arrived(made_us: Ints, joined_us: Ints, *, seed: int = 1) -> Arrived:
    """Truths in the order of their arrival; each says its place."""
    n = len(made_us)
    number, nothing = np.arange(n, dtype=np.float64), np.full(n, np.nan)
    texts = pa.array([f"{k % 3}" if k % 7 else None for k in range(n)], pa.string())
    ids = np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)
    return Arrived(
        Joined(texts, number, texts, nothing, number, nothing), made_us, joined_us, np.zeros(n, np.int64), ids
    )


def spread(n: int, *, seed: int = 2, every: int = 10, late: float = 2_000) -> Arrived:
    """Predictions at an even pace whose truths come sooner or later."""
    made = np.arange(n) * every
    joined = made + np.random.default_rng(seed).exponential(late, n).astype(np.int64)
    order = np.argsort(joined, kind="stable")
    return arrived(made[order], joined[order], seed=seed)


def let_go(part: Arrived, cuts: list[int], *, restarts: bool) -> tuple[list[float], list[int], int]:
    """What is let go of, in order: places, times; and how many wait at the end."""
    holding, found = Holding(), []
    for start, stop in zip([0, *cuts], [*cuts, len(part)], strict=True):
        found += holding.take(part.take(np.arange(start, stop)), WAITS)
        if stop < len(part):  # as when a pane is sealed
            found += holding.let_go(int(part.time_us[stop]) - 1, WAITS)
        if restarts:
            holding = Holding.from_bytes(holding.to_bytes())
    return ([k for some in found for k in some.joined.truth_number.tolist()],
            [t for some in found for t in some.time_us.tolist()], len(holding))  # fmt: skip


@pytest.mark.parametrize("cuts", [[1_700], [1, 2, 3, 4], list(range(130, 4_000, 130))])
def test_cuts_and_restarts_change_nothing(cuts: list[int]) -> None:
    """The same rows at the same times in the same order, though they wait, are let go of, wait longer and are free."""
    part = spread(4_000)
    whole = let_go(part, [], restarts=False)
    assert let_go(part, cuts, restarts=True) == whole
    assert len(set(whole[0])) == len(whole[0])
    assert whole[1] == sorted(whole[1])


def test_too_many_are_thinned_by_their_predictions() -> None:
    """At most so many wait, each prediction as likely as any other; cuts change nothing of it; all are taken when few wait."""
    part = spread(40_000, late=200_000)
    one = Holding()
    for start in range(0, len(part), 5_000):
        one.take(part.take(np.arange(start, min(start + 5_000, len(part)))), [])
        assert len(one) <= MOST_ROWS
    other = Holding()
    other.take(part, [])
    assert one.rows is not None
    assert other.rows is not None
    assert one.rows["id_lo"].to_pylist() == other.rows["id_lo"].to_pylist()
    assert one.thinned == other.thinned
    assert MOST_ROWS / 4 < len(one) <= MOST_ROWS
    kept = one.rows["made_us"].to_numpy()
    assert np.histogram(kept, 4, (0, 400_000))[0] == pytest.approx(np.full(4, len(kept) / 4), rel=0.1)
    bits = one.thinned[-1][1]
    assert bits >= 2
    later = arrived(np.arange(20_000) + 10**7, np.arange(20_000) + 10**7)
    found = one.take(later, [(10**6, 0)])
    assert one.thinned[-1][1] < bits
    assert sum(map(len, found)) > len(kept) + 10_000


@pytest.mark.parametrize(
    ("made", "joined", "free", "lost"),
    [
        (100, 200, 9_000, False),  # waits till it is known how long
        (8_500, 8_600, 10_500, False),  # until it is old enough
        (8_500, 13_000, 13_000, False),  # old enough when it comes
        (11_900, 14_100, 15_900, True),  # those of its time that came early were let go of at 13,900
        (10_050, 12_100, 12_100, False),
        (12_500, 12_600, 16_500, False),  # none of its time was
        (29_000, 29_100, 30_000, False),  # and at last nothing waits
        (31_000, 31_001, 31_001, False),
    ],
)  # fmt: skip
def test_each_row_of_the_table(made: int, joined: int, free: int, lost: bool) -> None:
    """When a truth made and joined at these times is let go of."""
    at, is_lost, _ = free_at(np.array([made]), np.array([joined]), WAITS)
    assert (at.tolist(), is_lost.tolist()) == ([free], [lost])


def test_nothing_is_let_go_of_before_it_is_known_how_long() -> None:
    """No verdict, or none that ends."""
    for waits in ([], [(10, OPEN_END)]):
        assert free_at(np.array([0]), np.array([5]), waits)[0].tolist() == [OPEN_END]


def test_what_comes_when_its_time_is_over_goes_with_younger_truths() -> None:
    """By themselves late ones are of one kind: when a version predicts no longer, none of them is let go of any more."""
    made = np.concatenate([np.arange(0, 10_000, 100), np.arange(0, 10_000, 100)])
    joined = made + np.repeat([500, 3_500], 100)
    order = np.argsort(joined, kind="stable")
    places, times, waiting = [], [], 0
    holding = Holding()
    for some in holding.take(arrived(made[order], joined[order]), [(0, 2_000)]):
        places += some.made_us.tolist()
        times += some.time_us.tolist()
    for some in holding.let_go(10**6, [(0, 2_000)]):
        places += some.made_us.tolist()
        times += some.time_us.tolist()
    waiting = len(holding)
    assert max(times) == 9_900 + 2_000
    assert [at for at, t in zip(places, times, strict=True) if t == 11_900] == [8_400, 9_900]
    assert waiting == len([made for made in range(0, 10_000, 100) if made + 3_500 > 11_900])
