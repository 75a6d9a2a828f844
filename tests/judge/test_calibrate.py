"""Thresholds against simulation: a clean window passes one about as often as it should."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import stats

from stream_monitor.errors import UsageError
from stream_monitor.judge import calibrate, distance
from stream_monitor.judge.calibrate import Budget
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.protocol import BINS, MAIN, UNSEEN

REPEATS = 8_000
ALPHAS = (0.01, 0.001)
SIZES = [(250, 2_500), (1_000, 10_000), (3_000, 3_000)]
Z = 4.0  # standard errors that a simulated rate may lie beyond its bounds


def draw(shares: Floats, rows: int, seed: int) -> Ints:
    """Counts (REPEATS, len(shares)) of so many multinomial samples."""
    return _drawn(tuple(shares.tolist()), rows, seed)


@cache
def _drawn(shares: tuple[float, ...], rows: int, seed: int) -> Ints:
    return np.random.default_rng(seed).multinomial(rows, shares, size=REPEATS)


def assert_rate(fired: np.ndarray[tuple[int], np.dtype[np.bool_]], alpha: float, *, low: float, high: float) -> None:
    """The share of alarms lies between `low` and `high` times alpha, with room for the simulation's own noise."""
    rate, noise = fired.mean(), Z * np.sqrt(alpha / REPEATS)
    assert low * alpha - noise <= rate <= high * alpha + noise, f"{rate / alpha:.2f} of alpha"


def full(size: int) -> Ints:
    """A sample size for every repeat."""
    return np.full(REPEATS, size, dtype=np.int64)


def quantile_positions(of: Callable[[Floats], Floats]) -> Floats:
    """Where 256 equal-mass bins of a distribution lie, for every repeat, with ends for below and above."""
    inner = of((np.arange(MAIN) + 0.5) / MAIN)
    sd = np.sqrt(inner.var())
    at = np.concatenate(([inner[0] - sd], inner, [inner[-1] + sd]))
    return np.broadcast_to(at, (REPEATS, MAIN + 2))


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_numeric_cells_alarm_as_often_as_they_should(n: int, m: int) -> None:
    """PSI, Jensen-Shannon, chi-square and KS on the equal-mass bins that every distribution, tied or not, has."""
    uniform = np.full(MAIN, 1 / MAIN)
    b, w = np.zeros((REPEATS, BINS), dtype=np.int64), np.zeros((REPEATS, BINS), dtype=np.int64)
    b[:, :MAIN], w[:, :MAIN] = draw(uniform, m, 1), draw(uniform, n, 2)
    cells_b, cells_w = distance.cells(b, w, np.ones(REPEATS, dtype=np.bool_))
    cells = distance.used_cells(cells_b, cells_w)
    psi, js = distance.psi(cells_b, cells_w), distance.jensen_shannon(cells_b, cells_w)
    chi, ks = distance.chi_square(cells_b, cells_w), distance.ks(b[:, :MAIN], w[:, :MAIN])
    sizes = (full(n), full(m))
    for alpha in ALPHAS:
        for value, null in (
            (psi, calibrate.psi_null(*sizes, cells=cells, alpha=alpha)),
            (js, calibrate.jensen_shannon_null(*sizes, cells=cells, alpha=alpha)),
            (chi, calibrate.chi_square_null(cells=cells, alpha=alpha)),
        ):
            assert_rate(value > null.threshold, alpha, low=0.5, high=1.4)
            assert value.mean() == pytest.approx(null.expected.mean(), rel=0.03)
        null = calibrate.ks_null(*sizes, alpha=alpha)
        assert_rate(ks > null.threshold, alpha, low=0.2, high=1.1)
        assert ks.mean() == pytest.approx(null.expected.mean(), rel=0.05)


@pytest.mark.parametrize(
    "of",
    [
        stats.norm.ppf,
        stats.uniform.ppf,
        stats.expon.ppf,
        lambda u: np.exp(1.5 * stats.norm.ppf(u)),
        lambda u: np.where(u > 0.9, 1.0, 0.0),
        lambda u: stats.t.ppf(u, 2),
        lambda u: np.floor(4 * u),
    ],
    ids=["normal", "uniform", "exponential", "lognormal", "two-valued", "heavy-tailed", "tied"],
)
def test_wasserstein_alarms_as_often_as_it_should(of: Callable[[Floats], Floats]) -> None:
    """The bridge's quantile holds for smooth, skewed, tied and heavy-tailed baselines, at several sizes."""
    positions = quantile_positions(of)
    scale = np.full(REPEATS, positions[0, 1:-1].std())
    uniform = np.concatenate(([0.0], np.full(MAIN, 1 / MAIN), [0.0]))
    for n, m in SIZES[:2]:
        b, w = draw(uniform, m, 3), draw(uniform, n, 4)
        value = distance.wasserstein(b, w, positions=positions, scale=scale)
        for alpha in ALPHAS:
            null = calibrate.wasserstein_null(
                full(n), full(m), baseline=b, positions=positions, scale=scale, alpha=alpha
            )
            assert_rate(value > null.threshold, alpha, low=0.2, high=1.3)
            assert value.mean() == pytest.approx(null.expected.mean(), rel=0.05)


@pytest.mark.parametrize(
    "shares",
    [[0.5, 0.5], [0.6, 0.3, 0.1], 0.7 ** np.arange(20), 1.0 / np.arange(1, 201)],
    ids=["coin", "three", "geometric", "zipf of 200"],
)
def test_categories_alarm_as_often_as_they_should(shares: Floats) -> None:
    """Few, many and rare categories, some of which the baseline never met."""
    p = np.asarray(shares) / np.sum(shares)
    for n, m in SIZES[:2]:
        b, w = named_counts(draw(p, m, 5), draw(p, n, 6))
        cells_b, cells_w = distance.cells(b, w, np.zeros(REPEATS, dtype=np.bool_))
        cells = distance.used_cells(cells_b, cells_w)
        psi = distance.psi(cells_b, cells_w)
        expecting = distance.named(b)
        expecting[:, -1] = calibrate.unseen_allowance(expecting)
        linf = distance.linf(expecting, distance.named(w))
        for alpha in ALPHAS:
            null = calibrate.psi_null(full(n), full(m), cells=cells, alpha=alpha)
            assert_rate(psi > null.threshold, alpha, low=0.4, high=1.8)
            null = calibrate.linf_null(full(n), full(m), pooled=expecting + distance.named(w), alpha=alpha)
            assert_rate(linf > null.threshold, alpha, low=0.2, high=1.6)
            assert linf.mean() == pytest.approx(null.expected.mean(), rel=0.15)


def named_counts(baseline: Ints, window: Ints) -> tuple[Ints, Ints]:
    """Counts as a categorical subject has them: what the baseline never met is unseen in the window."""
    b, w = (np.zeros((REPEATS, BINS), dtype=np.int64) for _ in range(2))
    known, size = baseline > 0, baseline.shape[1]
    b[:, :size], w[:, :size] = baseline, np.where(known, window, 0)
    w[:, UNSEEN] = np.where(known, 0, window).sum(axis=1)
    return b, w


@pytest.mark.parametrize("hits", [0, 3, 30, 1_000, 3_000, 6_000])
@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-6])
def test_a_ratio_alarms_where_fishers_test_does(hits: int, alpha: float) -> None:
    """The quiet limit lies within two rows of the exact hypergeometric one, and not below by more than one."""
    n, m = 1_000, 10_000
    k = np.arange(n + 1)
    exact = int(k[stats.hypergeom.sf(k - 1, n + m, k + hits, n) > alpha].max())
    null = calibrate.ratio_null(np.array([n]), np.array([m]), hits=np.array([hits]), alpha=alpha)
    assert -1 <= round(null.threshold[0] * n) - exact <= 2
    assert null.expected[0] == hits / m


def test_a_budget_is_spent_by_the_window() -> None:
    """A month of 15 m windows spends a quarter of four fifths of one alarm, a week's window its own quarter."""
    month = Budget.parse("1 per 30d")
    quarter = month.alpha(window_seconds=900, windows=4, tests=100) * 100 * 30 * 96
    assert quarter == pytest.approx(0.2)
    assert month.alpha(window_seconds=7 * 86400, windows=4, tests=100) * 100 * 30 / 7 == pytest.approx(0.2)
    assert month.label_alpha(window_seconds=900, windows=4, tests=1) * 30 * 96 == pytest.approx(0.05)
    events = Budget.parse("1 per 100000 events")
    assert events.alpha(window_seconds=900, windows=1, tests=1, rows=1_000) == pytest.approx(0.008)
    assert Budget.parse("1000 per 1h").alpha(window_seconds=3600, windows=1, tests=1) == 0.05


@pytest.mark.parametrize("text", ["", "1", "per 30d", "0 per 30d", "1 per 0d", "1 per month", "-1 per 30d"])
def test_a_budget_that_cannot_be_read_is_refused(text: str) -> None:
    """Every misspelling is one sentence with an example."""
    with pytest.raises(UsageError, match="1 per 30d"):
        Budget.parse(text)
