"""The rhythm of days and weeks, and what is alike between neighbours: read off a baseline, held to the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stream_monitor.errors import StateError
from stream_monitor.judge.baseline import Baseline, Reading, build
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.charts import CELLS, CHARTS, DOUBLED, LOCATION, SCALES, SPREAD
from stream_monitor.judge.dependence import Dependence
from stream_monitor.judge.season import PERIODS, Season
from stream_monitor.judge.watch import Watch
from stream_monitor.records import Floats, Ints, Kind
from stream_monitor.summarize.protocol import MISSING
from stream_monitor.summarize.rows import Rows, SubjectKey

STEP = 30_000_000  # an event every 30 s
BUDGET = Budget(1, events=1e5)


def rows_of(values: Floats, *, first: int = 0) -> Rows:
    """One number an event, at its place in time."""
    n = len(values)
    ids = np.random.default_rng(first + n).integers(0, 2**63, (2, n), dtype=np.uint64)
    return Rows(
        time_us=(first + np.arange(n, dtype=np.int64)) * STEP,
        id_hi=ids[0],
        id_lo=ids[1],
        segment=np.zeros(n, np.int32),
        subjects=(SubjectKey("feature", "x"),),
        kind=np.full((n, 1), Kind.NUMBER, np.uint8),
        number=values[:, None],
        texts={},
    )


def sine(first: int, n: int, draw: np.random.Generator) -> Floats:
    """A day's rhythm of one deviation plus noise of one."""
    seconds = (first + np.arange(n)) * 30.0
    return np.asarray(np.sin(2 * np.pi * seconds / 86_400) + draw.standard_normal(n), np.float64)


def built(rows: Rows, seasonality: str = "none") -> Baseline:
    """A baseline of these rows."""
    reading = Reading(seasonality=seasonality)
    return build(rows, model="m", version="1", reading=reading, provisional=False, created_us=0, source="")


def alarms(watch: Watch, baseline: Baseline, rows: Rows) -> list[int]:
    """Rows at which the watch alarms."""
    code = baseline.schema.encode(rows).code
    found = watch.update(code, rows.id_hi, rows.id_lo, rows.time_us)
    return [f.at for f in found if not (f.is_calm or f.is_again)]


def ar(n: int, draw: np.random.Generator, phi: float = 0.9) -> Floats:
    """An autoregression of variance 1."""
    z = draw.standard_normal(n) * np.sqrt(1 - phi**2)
    z[0] = draw.standard_normal()
    for i in range(1, n):
        z[i] += phi * z[i - 1]
    return np.asarray(z, np.float64)


def test_the_rhythm_is_taken_out_and_a_shift_under_it_found() -> None:
    """Twenty days of sine: ranks within the hour are uniform, at most 1 alarm in 10,000 events, a shift found in 60."""
    draw = np.random.default_rng(1)
    baseline = built(rows_of(sine(0, 57_600, draw)), "daily")
    watch = Watch.of(baseline, BUDGET, 1.0, seasonality="daily")
    assert watch.season is not None
    later = rows_of(sine(57_600, 28_800, draw), first=57_600)
    ranked = watch.ranks.encode(baseline.schema.encode(later).code, later.id_hi, later.id_lo)
    within = watch.season.apply(ranked, later.time_us, later.id_lo, watch.ranks.bins)
    noon = (later.time_us // 3_600_000_000) % 24 == 6
    before, after = (np.bincount(r[noon & (r[:, 0] < 256), 0] // 16, minlength=16) for r in (ranked, within))
    assert stats.chisquare(before).pvalue < 1e-12
    assert stats.chisquare(after).pvalue > 1e-4
    assert len(alarms(watch, baseline, later)) <= 2
    blind = replace(baseline, dependence=Dependence())
    assert alarms(Watch.of(blind, BUDGET, 1.0, seasonality="none"), baseline, later)[0] < 1_000  # and for good
    shifted = rows_of(sine(86_400, 600, draw) + 1.22, first=86_400)
    assert alarms(Watch.of(baseline, BUDGET, 1.0, seasonality="daily"), baseline, shifted)[0] < 60


def test_a_baseline_that_covers_too_little_is_used_without_its_rhythm() -> None:
    """Half a day says nothing about the other half; nor does a day serve a week. It is known how much is covered."""
    baseline = built(rows_of(sine(0, 12 * 300, np.random.default_rng(2))), "daily")
    assert baseline.season is not None
    assert not baseline.season.is_usable
    assert baseline.season.covered < 24
    assert Watch.of(baseline, BUDGET, 1.0, seasonality="daily").season is None
    whole = built(rows_of(sine(0, 57_600, np.random.default_rng(3))), "daily")
    assert Watch.of(whole, BUDGET, 1.0, seasonality="weekly").season is None
    assert Watch.of(whole, BUDGET, 1.0, seasonality="none").season is None


def test_what_is_no_rank_stays_and_the_file_keeps_the_rhythm() -> None:
    """Missing is missing at every hour; a baseline comes back from its bytes with season and dependence."""
    baseline = built(rows_of(sine(0, 57_600, np.random.default_rng(4))), "daily")
    back = Baseline.from_bytes(baseline.to_bytes())
    assert back.season is not None
    assert baseline.season is not None
    assert np.array_equal(back.season.cdf, baseline.season.cdf)
    assert back.dependence == baseline.dependence
    assert back.season_dependence == baseline.season_dependence
    code = np.array([[MISSING], [12]], np.uint16)
    times: Ints = np.array([0, 0], np.int64)
    assert back.season.apply(code, times, np.array([1, 2], np.uint64), np.array([256]))[0, 0] == MISSING
    with pytest.raises(StateError):
        Season.from_bytes(back.season.to_bytes()[:50])
    assert len(back.season.rows) == PERIODS["daily"]


def test_independent_rows_are_taken_at_their_word() -> None:
    """No factor at all: a noisy guess of one would cost the calibration."""
    draw = np.random.default_rng(5)
    assert not any(bool(built(rows_of(draw.standard_normal(20_000))).dependence) for _ in range(5))


def test_the_inflation_of_an_autoregression_is_its_own() -> None:
    """AR(1): the variance of a sum of w over w is 1 + 2 sum (1 - k / w) phi^k; with a margin above, never far."""
    dependence = built(rows_of(ar(200_000, np.random.default_rng(6)))).dependence
    factors = dependence.factors(1)
    lags = np.arange(1, 2_000)
    for k, scale in enumerate(SCALES):
        if scale > 512:
            break
        within = lags[lags < scale]
        exact = 1 + 2 * ((1 - within / scale) * 0.9**within).sum()
        assert 0.9 * exact < factors[CHARTS.index(LOCATION), k, 0] < 1.4 * exact
    assert (np.diff(factors[CHARTS.index(SPREAD), :, 0]) >= 0).all()
    assert (dependence.freedoms(1) <= CELLS - 1).all()
    assert Dependence.from_json(dependence.to_json()) == dependence


def test_factors_are_kept_at_doubled_lengths_and_read_off_between() -> None:
    """As many as ever stand in a file; at a length between two others the factor lies between theirs."""
    measured = tuple(1.0 + k for k in range(len(DOUBLED)))
    dependence = Dependence({(LOCATION, 0): measured}, {0: tuple(float(CELLS - 1 - k) for k in range(len(DOUBLED)))})
    factors, freedoms = dependence.factors(1)[CHARTS.index(LOCATION), :, 0], dependence.freedoms(1)[:, 0]
    assert factors[[SCALES.index(scale) for scale in DOUBLED]] == pytest.approx(measured)
    assert (np.diff(factors) > 0).all()
    assert (np.diff(freedoms) < 0).all()
    assert factors[SCALES.index(24)] == pytest.approx(np.interp(np.log2(24), [4, 5], measured[2:4]))


def test_the_budget_holds_where_neighbours_are_alike() -> None:
    """AR(1) with 0.9, one in 100,000 allowed: at most 1 in 10,000; blind to it, dozens. A shift is found in 700."""
    draw = np.random.default_rng(7)
    baseline = built(rows_of(ar(100_000, draw)))
    stream = rows_of(ar(60_000, draw))
    assert len(alarms(Watch.of(baseline, BUDGET, 1.0, seasonality="none"), baseline, stream)) <= 6
    blind = replace(baseline, dependence=Dependence())
    assert len(alarms(Watch.of(blind, BUDGET, 1.0, seasonality="none"), baseline, stream)) > 12
    shifted = rows_of(ar(2_000, draw) + 1)
    assert alarms(Watch.of(baseline, BUDGET, 1.0, seasonality="none"), baseline, shifted)[0] < 700
