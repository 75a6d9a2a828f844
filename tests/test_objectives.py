"""Objectives on a fast and a slow window: what is found with few labels, what rings again, and how often chance does."""

from __future__ import annotations

import numpy as np
import pytest
from ripe_cohorts import HOUR_US, START_US, RipeCohorts, hours, settings

from stream_monitor.judge.calibrate import LABELS_SHARE
from stream_monitor.objectives import MOST_STEPS, OBJECTIVES_SHARE, pairs_of
from stream_monitor.records import Floats

DAY = 24
WEEK = 7 * DAY


def drawn(seed: int, accuracy: Floats, labels: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong answers by hour: so many labels on average, right with these probabilities."""
    draw = np.random.default_rng(seed)
    made = draw.poisson(labels)
    right = draw.binomial(made, accuracy)
    return right, made - right


def steady(seed: int, days: int, *, accuracy: float, a_day: float) -> tuple[np.ndarray, np.ndarray]:
    """The same all the time."""
    return drawn(seed, np.full(days * DAY, accuracy), np.full(days * DAY, a_day / DAY))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        pytest.param([900, 3600, 86_400, 604_800], [(900, 900, 3600), (3600, 3600, 86_400), (86_400, 86_400, 604_800)],
                     id="as configured by default"),
        pytest.param([900, 604_800], [(900, 6300, 604_800)], id="672 quarters of an hour, looked at by sevens"),
        pytest.param([86_400], [(86_400, 86_400, 86_400)], id="one length is both"),
        pytest.param([900, 3600, 5400], [(900, 900, 3600), (900, 900, 5400)], id="one fast window for two slow ones"),
        pytest.param([3600, 5400], [(3600, 3600, 3600), (5400, 5400, 5400)], id="no cohorts fill the longer one"),
    ],
)  # fmt: skip
def test_every_window_is_judged(lengths: list[int], expected: list[tuple[int, int, int]]) -> None:
    """The longest too, and none in more steps than are held."""
    pairs = pairs_of(lengths)
    assert [(pair.cohort, pair.fast, pair.slow) for pair in pairs] == expected
    assert {length for pair in pairs for length in (pair.cohort, pair.slow)} == set(lengths)
    assert all(pair.steps <= MOST_STEPS for pair in pairs)


@pytest.mark.parametrize(
    ("windows", "accuracy", "a_day", "within_days"),
    [
        pytest.param(["1d", "7d"], 0.28, 25, 3, id="a few labels a day, far off"),
        pytest.param(["1d", "7d"], 0.6, 10, 14, id="ten labels a day"),
        pytest.param(["1h", "1d"], 0.78, 40 * 24, 3, id="too few labels an hour to tell"),
        pytest.param(["15m", "7d"], 0.78, 40 * 24, 4, id="a slow window of 672 fast ones"),
        pytest.param(["7d"], 0.7, 25, 15, id="one window"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_few_labels_add_up(windows: list[str], accuracy: float, a_day: float, within_days: int, seed: int) -> None:
    """Where 0.85 is asked: one incident within days, that stays while it is missed."""
    days = 21 if a_day < 100 else 8
    world = RipeCohorts(settings(*windows), *steady(seed, days, accuracy=accuracy, a_day=a_day))
    (incident,) = world.live(0, days * DAY)
    assert (hours(incident.opened_us) or 0) <= within_days * DAY
    assert (hours(incident.onset_us) or 0) <= within_days * DAY
    assert incident.closed_us is None


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("a_day", "over_within"), [(240.0, 36), (9600.0, 4)])
def test_a_model_that_recovered_does_not_ring_again(a_day: float, over_within: float, seed: int) -> None:
    """Bad for two days and fifteen hours: one incident on default windows, over within hours, though the slow ones have
    the bad days for a week."""
    accuracy = np.full(3 * WEEK, 0.9)
    accuracy[WEEK + DAY : WEEK + 3 * DAY + 15] = 0.5
    world = RipeCohorts(settings("15m", "1h", "1d", "7d"), *drawn(seed, accuracy, np.full(3 * WEEK, a_day / DAY)))
    (incident,) = world.live(0, 3 * WEEK)
    assert WEEK + DAY - 2 <= (hours(incident.onset_us) or 0) <= WEEK + DAY + 2
    assert WEEK + DAY < (hours(incident.opened_us) or 0) <= WEEK + DAY + 12
    assert WEEK + 3 * DAY + 15 < (hours(incident.closed_us) or 0) <= WEEK + 3 * DAY + 15 + over_within


def test_a_dip_that_is_over_opens_nothing() -> None:
    """Two bad hours among good ones, told when the day that has them is ripe: the day as a whole is not missed."""
    accuracy = np.full(WEEK, 0.9)
    accuracy[30:32] = 0.6
    world = RipeCohorts(settings("1h", "1d"), *drawn(1, accuracy, np.full(WEEK, 400.0)))
    assert world.live(0, WEEK) == []


def test_labels_that_are_missing_are_no_part_of_a_slow_window() -> None:
    """Cohorts whose labels are not through are left out until they are, however bad they look."""
    accuracy = np.full(WEEK, 0.9)
    accuracy[50:60] = 0.1
    world = RipeCohorts(settings("1h", "1d"), *drawn(1, accuracy, np.full(WEEK, 400.0)))
    world.missing = {START_US + hour * HOUR_US for hour in range(51, 61)}
    assert world.live(0, 4 * DAY) == []
    world.missing = set()
    assert len(world.live(4 * DAY, 5 * DAY)) == 1


@pytest.mark.parametrize("way", ["restarts", "at once"])
def test_what_is_told_does_not_depend_on_when_it_is_looked_at(way: str) -> None:
    """Restarted every hour, or with the whole story to catch up with: the same incidents."""
    accuracy = np.full(3 * WEEK, 0.9)
    accuracy[WEEK + DAY : WEEK + 3 * DAY] = 0.5
    counts = drawn(5, accuracy, np.full(3 * WEEK, 40.0))
    config = settings("1h", "1d", "7d")
    expected = RipeCohorts(config, *counts).live(0, 3 * WEEK)
    world = RipeCohorts(config, *counts)
    if way == "at once":
        world.live(0, 3 * WEEK, step=3 * WEEK)
    else:
        for hour in range(3 * WEEK):
            world.live(hour, hour + 1)
            world.restart()
    assert [(i.onset_us, i.opened_us, i.closed_us) for i in world.told.values()] == [
        (i.onset_us, i.opened_us, i.closed_us) for i in expected
    ]


@pytest.mark.parametrize(("windows", "a_day"), [(("1d", "7d"), 25.0), (("1d", "7d"), 200.0), (("1h", "1d"), 960.0)])
def test_a_model_exactly_at_its_objective_rings_no_more_than_allowed(windows: tuple[str, ...], a_day: float) -> None:
    """A quarter of the labels' fifth of `10 per 30d`: half an incident a month, of many months."""
    months = 60 if windows[0] == "1d" else 6
    config = settings(*windows, drift={"false_alarms": "10 per 30d"})
    told = sum(
        len(RipeCohorts(config, *steady(seed, 30, accuracy=0.85, a_day=a_day)).live(0, 30 * DAY, step=DAY))
        for seed in range(months)
    )
    assert told <= 10 * LABELS_SHARE * OBJECTIVES_SHARE * months
