"""The estimated start of a change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_monitor.judge.onset import estimate_onset


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=20))
def test_the_onset_is_the_brute_force_maximum(rows: list[tuple[int, int]]) -> None:
    """No other start has a larger sum of log-likelihood ratios."""
    slices, p, q = np.array(rows), np.array([70, 30]), np.array([20, 60])
    ratio = np.log((q + 0.5) / (q + 0.5).sum()) - np.log((p + 0.5) / (p + 0.5).sum())
    sums = [float((slices[s:] @ ratio).sum()) for s in range(len(rows))]
    found = estimate_onset(slices, np.arange(len(rows)), baseline=p, window=q)
    assert sums[found] == pytest.approx(max(sums))


def test_a_step_is_found_within_a_slice() -> None:
    """300 rows a slice, a shift of half a standard deviation after the 40th."""
    draw = np.random.default_rng(8)
    edges = np.linspace(-3, 3, 31)
    values = draw.normal(size=(60, 300)) + np.where(np.arange(60) < 40, 0.0, 0.5)[:, None]
    slices = np.stack([np.bincount(np.searchsorted(edges, row), minlength=32) for row in values])
    onset = estimate_onset(
        slices, np.arange(60) * 10, baseline=slices[:30].sum(axis=0), window=slices[-10:].sum(axis=0)
    )
    assert abs(onset - 400) <= 10


def test_no_slices_is_an_error() -> None:
    """An onset needs slices to lie in."""
    with pytest.raises(ValueError, match="slices"):
        estimate_onset(np.zeros((0, 2), dtype=np.int64), np.arange(0), baseline=np.arange(2), window=np.arange(2))
