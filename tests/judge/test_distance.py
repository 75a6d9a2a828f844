"""The six statistics against SciPy and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from stream_monitor.judge import distance
from stream_monitor.records import Ints
from stream_monitor.summarize.protocol import ABOVE, BELOW, BINS, INFINITE, MISSING, UNSEEN, WRONG_TYPE


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Two rows of counts over the same cells, neither empty."""
    size = draw(st.integers(2, 12))
    one, other = (draw(st.lists(st.integers(0, 40), min_size=size, max_size=size)) for _ in range(2))
    one[draw(st.integers(0, size - 1))] += 1
    other[draw(st.integers(0, size - 1))] += 1
    return np.array([one], dtype=np.int64), np.array([other], dtype=np.int64)


def counts(*, numeric: bool, rows: int, seed: int) -> Ints:
    """One subject's counts over every column that its kind can have."""
    draw = np.random.default_rng(seed)
    found = np.zeros((1, BINS), dtype=np.int64)
    found[0, :256] = draw.multinomial(rows, np.full(256, 1 / 256))
    found[0, [MISSING, WRONG_TYPE, INFINITE]] = (7, 5, 3)
    found[0, [BELOW, ABOVE] if numeric else [UNSEEN]] = 11
    return found


@given(pairs())
def test_psi_is_the_sum_over_smoothed_shares(pair: tuple[Ints, Ints]) -> None:
    """PSI equals a plain loop over the cells that hold a row."""
    b, w = (side[0].tolist() for side in pair)
    used = [k for k in range(len(b)) if b[k] + w[k] > 0]
    m, n = (sum(side[k] + 0.5 for k in used) for side in (b, w))
    expected = sum(((w[k] + 0.5) / n - (b[k] + 0.5) / m) * math.log((w[k] + 0.5) * m / n / (b[k] + 0.5)) for k in used)
    assert distance.psi(*pair)[0] == pytest.approx(expected, abs=1e-12)


@given(pairs())
def test_jensen_shannon_is_scipys_distance_in_base_two(pair: tuple[Ints, Ints]) -> None:
    """Smoothed as PSI, and then SciPy's Jensen-Shannon distance."""
    b, w = pair[0][0], pair[1][0]
    used = (b + w) > 0
    expected = jensenshannon(b[used] + 0.5, w[used] + 0.5, base=2)
    assert distance.jensen_shannon(*pair)[0] == pytest.approx(np.nan_to_num(expected), abs=1e-7)


@given(pairs())
def test_chi_square_is_scipys_without_correction(pair: tuple[Ints, Ints]) -> None:
    """Chi-square of the two-row contingency table of the cells in use."""
    table = np.concatenate(pair)[:, (pair[0] + pair[1])[0] > 0]
    expected = stats.chi2_contingency(table, correction=False).statistic if table.shape[1] > 1 else 0.0
    assert distance.chi_square(*pair)[0] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(pairs())
def test_ks_and_wasserstein_are_those_of_the_expanded_samples(pair: tuple[Ints, Ints]) -> None:
    """KS by its definition and SciPy's Wasserstein distance, of the samples that the counts stand for."""
    at = np.cumsum(np.arange(1.0, pair[0].shape[1] + 1))
    b, w = (np.repeat(at, side[0]) for side in pair)
    largest = max(abs((b <= x).mean() - (w <= x).mean()) for x in at)
    assert distance.ks(*pair)[0] == pytest.approx(largest, abs=1e-12)
    got = distance.wasserstein(*pair, positions=at[None], scale=np.array([2.0]))[0]
    assert got == pytest.approx(stats.wasserstein_distance(b, w) / 2, rel=1e-9, abs=1e-12)


@given(pairs())
def test_linf_is_the_largest_change_of_share(pair: tuple[Ints, Ints]) -> None:
    """L-infinity equals a plain loop."""
    b, w = (side[0].tolist() for side in pair)
    expected = max(abs(y / sum(w) - x / sum(b)) for x, y in zip(b, w, strict=True))
    assert distance.linf(*pair)[0] == pytest.approx(expected, abs=1e-12)


def test_an_empty_side_is_undefined() -> None:
    """Every statistic is NaN, and only then, when one side has no rows."""
    some, none = np.array([[1, 2]]), np.array([[0, 0]])
    for statistic in (distance.psi, distance.jensen_shannon, distance.chi_square, distance.ks, distance.linf):
        assert np.isnan(statistic(some, none)).all()
        assert np.isnan(statistic(none, some)).all()
        assert np.isfinite(statistic(some, some)).all()


@pytest.mark.parametrize("numeric", [True, False])
@pytest.mark.parametrize("size", [150, 1_000, 30_000])
def test_cells_lose_no_readable_row(numeric: bool, size: int) -> None:
    """Cells hold every readable row of both sides and none that could not be read."""
    b, w = counts(numeric=numeric, rows=20_000, seed=1), counts(numeric=numeric, rows=size, seed=2)
    mask = np.array([numeric])
    for cells, whole in zip(distance.cells(b, w, mask), (b, w), strict=True):
        assert cells.sum() == distance.readable(whole, mask)[0] == whole.sum() - 15


def test_numeric_cells_are_as_many_as_thirty_rows_each_allow() -> None:
    """A power of two between 4 and 32, of nearly equal baseline mass."""
    mask = np.array([True])
    for size, expected in ((60, 4), (250, 8), (500, 16), (960, 32), (50_000, 32)):
        b = np.zeros((1, BINS), dtype=np.int64)
        b[0, :256] = 400
        w = np.zeros_like(b)
        w[0, 0] = size
        cells, _ = distance.cells(b, w, mask)
        assert (cells[0] > 0).sum() == expected
        assert set(cells[0][cells[0] > 0]) == {400 * 256 // expected}


def test_rows_beyond_the_range_fall_into_the_outermost_cells() -> None:
    """Below and above are part of the first and the last numeric cell."""
    b, w = counts(numeric=True, rows=20_000, seed=1), np.zeros((1, BINS), dtype=np.int64)
    w[0, BELOW], w[0, ABOVE] = 700, 900
    _, cells = distance.cells(b, w, np.array([True]))
    assert (cells[0, 0], cells[0, 31], cells.sum()) == (700, 900, 1600)


def test_a_new_category_cannot_hide() -> None:
    """A third of the window in an unseen category lands in a cell of its own, whatever the baseline knew."""
    b, w = np.zeros((1, BINS), dtype=np.int64), np.zeros((1, BINS), dtype=np.int64)
    b[0, :3] = (6000, 3000, 1000)
    w[0, :3], w[0, UNSEEN] = (400, 200, 70), 330
    cells_b, cells_w = distance.cells(b, w, np.array([False]))
    assert (cells_b[0, -1], cells_w[0, -1]) == (0, 330)


def test_positions_ascend_whatever_the_bins_hold() -> None:
    """Unused bins lie with their neighbours; a subject without any bin lies at zero."""
    representatives = np.full((2, 256), np.nan)
    representatives[0, [3, 7, 9]] = (1.0, 5.0, 6.0)
    at = distance.positions_of(representatives, np.array([2.0, 1.0]))
    assert (np.diff(at, axis=1) >= 0).all()
    assert (at[0, 0], at[0, 4], at[0, 8], at[0, -1]) == (-1.0, 1.0, 5.0, 8.0)
    assert (at[1, 0], at[1, 1], at[1, -1]) == (-1.0, 0.0, 1.0)


@given(st.floats(0, 1), st.floats(0, 1))
def test_cohens_h_is_the_difference_of_arcsines(p: float, q: float) -> None:
    """Cohen's h against the textbook formula."""
    expected = abs(2 * math.asin(math.sqrt(q)) - 2 * math.asin(math.sqrt(p)))
    assert distance.cohens_h(np.array([p]), np.array([q]))[0] == pytest.approx(expected, abs=1e-12)
