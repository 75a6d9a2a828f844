"""Objectives: how they are read and when an interval says that one is missed."""

from __future__ import annotations

import math

import pytest

from stream_monitor.judge.metric import Metric, proportion
from stream_monitor.judge.objective import Objective


@pytest.mark.parametrize(
    ("text", "limit", "is_at_least"),
    [(">= 0.85", 0.85, True), ("<=4.2", 4.2, False), (" > -1 ", -1.0, True), ("< 2", 2.0, False)],
)
def test_what_is_written_is_read(text: str, limit: float, is_at_least: bool) -> None:
    """The bound and its side."""
    found = Objective.parse("mae", text)
    assert (found.limit, found.is_at_least) == (limit, is_at_least)


@pytest.mark.parametrize(
    ("hits", "n", "alpha", "expected"),
    [
        pytest.param(800, 1000, 0.025, True, id="the interval lies below"),
        pytest.param(835, 1000, 0.025, False, id="it reaches the objective"),
        pytest.param(825, 1000, 0.025, True, id="chance explains one in forty"),
        pytest.param(825, 1000, 1e-5, False, id="and a smaller budget asks for more"),
        pytest.param(900, 1000, 0.025, False, id="met"),
        pytest.param(0, 29, 0.025, False, id="too few labels to say anything"),
    ],
)
def test_missed_only_beyond_the_interval(hits: int, n: int, alpha: float, expected: bool) -> None:
    """Accuracy of at least 0.85."""
    objective = Objective.parse("accuracy", ">= 0.85")
    assert objective.is_excluded(proportion(hits, n, constant=0.5), alpha=alpha) is expected


def test_at_most_is_the_other_side() -> None:
    """An error of at most 4.2."""
    objective = Objective.parse("mae", "<= 4.2")
    assert objective.is_excluded(Metric(5.0, 4.5, 5.5, 9.0, 100), alpha=0.025)
    assert not objective.is_excluded(Metric(5.0, 4.1, 6.0, 9.0, 100), alpha=0.025)
    assert not objective.is_excluded(Metric(3.0, 2.5, 3.5, 9.0, 100), alpha=0.025)
    assert not objective.is_excluded(Metric(5.0, math.nan, math.nan, 9.0, 100), alpha=0.025)
    assert math.isclose(objective.effect(6.3), 0.5)
