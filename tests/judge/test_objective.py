"""Objectives: how they are read and when an interval says that one is missed."""

from __future__ import annotations

import math

import pytest

from stream_monitor.judge.metric import Metric, proportion
from stream_monitor.judge.objective import Objective, usual_of
from stream_monitor.summarize.outcome import Task


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


def test_a_baseline_asks_not_to_be_worse_beyond_either_interval_and_what_matters() -> None:
    """The farther of the two bounds counts: of a baseline of few rows its own doubt, of one of many the least effect."""
    few, many = (usual_of(Task.BINARY, {"recall": proportion(n * 8 // 10, n, constant=1.0)}, minimum_effect=0.1)[0]
                 for n in (50, 1_000_000))  # fmt: skip
    assert few.at(0.025).limit == pytest.approx(proportion(40, 50, constant=1.0).lower)
    assert few.at(1e-6).limit < few.at(0.025).limit
    effect = 2 * (math.asin(math.sqrt(0.8)) - math.asin(math.sqrt(many.at(1e-6).limit)))
    assert effect == pytest.approx(0.1)
    assert few.at(0.025).usual == 0.8
    (loss,) = usual_of(Task.REGRESSION, {"rmse": Metric(4.0, 3.8, 4.2, 9.0, 500)}, minimum_effect=0.1)
    assert not loss.at(0.025).is_at_least
    assert loss.at(0.025).limit == pytest.approx(4.4)
    assert loss.at(1e-12).limit > 4.4


def test_only_what_the_baseline_knows_is_asked() -> None:
    """Metrics that are not defined or stand on too few rows are not, nor what is watched otherwise."""
    undefined = Metric(math.nan, math.nan, math.nan, 1.0, 0)
    found = {
        "recall": undefined,
        "auc": proportion(20, 25, constant=0.5),
        "accuracy": proportion(90, 100, constant=0.5),
    }
    assert not usual_of(Task.BINARY, found, minimum_effect=0.1)
    assert not usual_of(Task.MULTICLASS, found | {"recall": proportion(90, 100, constant=0.5)}, minimum_effect=0.1)
