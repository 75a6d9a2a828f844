"""The table of recent predictions, against a dictionary."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.window.duplicates import RecentPredictions, prediction_key


def oracle(keys: list[int], times: list[int], horizon: int) -> list[bool]:
    """A dictionary of the newest accepted time of each key."""
    seen: dict[int, int] = {}
    flags = []
    for key, time in zip(keys, times, strict=True):
        duplicate = key in seen and abs(time - seen[key]) <= horizon
        flags.append(duplicate)
        if not duplicate:
            seen[key] = max(seen.get(key, time), time)
    return flags


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 60)), min_size=1, max_size=120),
    st.lists(st.integers(1, 119), max_size=5),
)
def test_duplicates_equal_a_dictionary_whatever_the_batches(rows: list[tuple[int, int]], cuts: list[int]) -> None:
    """In-batch repeats, repeats over batches and floods of one id all follow the rule."""
    keys = np.array([k for k, _ in rows], np.uint64)
    times = np.array([t for _, t in rows], np.int64)
    recent = RecentPredictions(10)
    bounds = sorted({0, len(rows), *(c for c in cuts if c < len(rows))})
    got: list[bool] = []
    for a, b in itertools.pairwise(bounds):
        got += recent.accept(keys[a:b], times[a:b], floor_us=-1000).tolist()
    assert got == oracle(keys.tolist(), times.tolist(), 10)


def test_the_table_grows_and_forgets() -> None:
    """Half a million keys in a sliding horizon stay exact and the table stays bounded."""
    rng = np.random.default_rng(7)
    recent = RecentPredictions(1_000)
    keys = rng.integers(1, 2**63, 500_000).astype(np.uint64)
    times = np.arange(500_000, dtype=np.int64)
    for a in range(0, 500_000, 5_000):
        assert not recent.accept(keys[a : a + 5_000], times[a : a + 5_000], floor_us=a).any()
    again = recent.accept(keys[-500:], times[-500:], floor_us=499_000)
    assert again.all()
    assert len(recent) < 50_000


def test_what_is_remembered_after_a_restart_counts() -> None:
    """Of a key that was accepted twice the newest time is what counts."""
    recent = RecentPredictions(10)
    recent.remember(np.array([5, 5, 6], np.uint64), np.array([100, 40, 7]))
    assert recent.accept(np.array([5, 6, 5], np.uint64), np.array([109, 30, 50]), floor_us=0).tolist() == [
        True,
        False,
        False,
    ]


def test_models_have_keys_of_their_own() -> None:
    """The same id under two models is two predictions."""
    hi, lo = np.array([1, 1], np.uint64), np.array([2, 2], np.uint64)
    keys = prediction_key(hi, lo, np.array([11, 12], np.uint64))
    assert keys[0] != keys[1]
    assert (keys != 0).all()
