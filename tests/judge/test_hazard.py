"""From a budget to the nominal rate and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from stream_monitor.judge.charts import DOUBLED, SCALES
from stream_monitor.judge.hazard import HIGHEST, LOWEST, RATES, STAGES, mean_run_length, nominal_rate, rates

nominal = st.floats(-17, -2).map(lambda power: 10.0**power)


def survival_integral(rate: float, subjects: int) -> float:
    """Mean of the waiting time with the stages' rates, by quadrature of its survival."""
    each, edges = rates(rate) * subjects, [4.0 * 2**k for k in range(STAGES)]
    mean, alive = edges[0], 1.0
    for k, start in enumerate(edges):
        stop = edges[k + 1] if k + 1 < STAGES else np.inf
        if np.isinf(stop):
            return float(mean + alive / each[k])
        mean += alive * integrate.quad(lambda t, k=k, s=start: np.exp(-each[k] * (t - s)), start, stop)[0]
        alive *= float(np.exp(-each[k] * (stop - start)))
    raise AssertionError


@settings(deadline=None)
@given(st.floats(1e3, 1e12), st.integers(1, 2_000))
def test_the_two_are_inverse(run_length: float, subjects: int) -> None:
    """The rate that is chosen gives the run length that was asked for."""
    rate = nominal_rate(run_length, subjects)
    if LOWEST * 1.01 < rate < HIGHEST * 0.99:
        assert mean_run_length(rate, subjects) == pytest.approx(run_length, rel=1e-6)


@pytest.mark.parametrize(("rate", "subjects"), [(1e-2, 1), (1e-3, 7), (1e-4, 200), (1e-5, 1), (1e-8, 50)])
def test_the_mean_is_that_of_the_waiting_time(rate: float, subjects: int) -> None:
    """Piecewise constant rates, integrated numerically."""
    assert mean_run_length(rate, subjects) == pytest.approx(survival_integral(rate, subjects), rel=1e-6)


@settings(deadline=None)
@given(nominal, st.floats(1.01, 10), st.integers(1, 1_000))
def test_more_is_sooner(rate: float, factor: float, subjects: int) -> None:
    """A higher rate or more subjects alarm sooner; a longer run length is a lower rate."""
    length = mean_run_length(rate, subjects)
    assert mean_run_length(rate * factor, subjects) < length
    assert mean_run_length(rate, subjects + 1) < length


@settings(deadline=None)
@given(st.floats(10, 1e12), st.floats(1.01, 100), st.integers(1, 1_000))
def test_rates_fall_as_run_lengths_grow(run_length: float, factor: float, subjects: int) -> None:
    """And as subjects share the budget; within the limits."""
    rate = nominal_rate(run_length, subjects)
    assert LOWEST <= rate <= HIGHEST * (1 + 1e-9)
    assert nominal_rate(run_length * factor, subjects) <= rate
    assert nominal_rate(run_length, subjects + 1) <= rate


@settings(deadline=None)
@given(st.floats(1e6, 1e10), st.integers(2, 500))
def test_subjects_add(run_length: float, subjects: int) -> None:
    """The union: what many give in a run length, one gives in as many times of it, but for the quiet start."""
    rate = nominal_rate(run_length * subjects, 1)
    assert mean_run_length(rate, subjects) == pytest.approx(run_length, abs=SCALES[-1])
    assert (rates(rate) >= 0).all()


@settings(deadline=None)
@given(nominal)
def test_rates_never_fall_while_the_charts_run_on(rate: float) -> None:
    """Windows come in, none goes: stage by stage, at least as many alarms; never more than the looks allow."""
    each = rates(rate)
    assert each.shape == (STAGES,)
    assert (np.diff(each) >= 0).all()
    assert each[-1] > 0


def test_the_table_is_met_where_it_stands() -> None:
    """At the simulated rates the simulated ratios; every row has a ratio for each stage."""
    for level, ratios in RATES.items():
        assert rates(level) == pytest.approx(np.array(ratios) * level)
    assert len(DOUBLED) == STAGES


def test_extremes_are_held() -> None:
    """A budget of every event gives the highest rate, one of ages the lowest; both are finite."""
    assert nominal_rate(1.0, 1) == pytest.approx(HIGHEST)
    assert nominal_rate(1e40, 1) == pytest.approx(LOWEST)
    assert np.isfinite(mean_run_length(LOWEST, 1))
    assert mean_run_length(HIGHEST, 10**6) >= SCALES[0]
