"""Delays by class: of the last weeks, and read from state files of earlier programs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_labels import Story, traffic

from stream_monitor.exposition import render
from stream_monitor.judge.arrival import quantile
from stream_monitor.publish.catalogue import DELAY_BUCKETS
from stream_monitor.records import MICROSECONDS
from stream_monitor.store import Store
from stream_monitor.truth import (
    CLASS_DELAY_BOUNDS_SECONDS,
    DELAY_BOUNDS_SECONDS,
    FADING_DELAYS,
    WEEK_US,
    Ledger,
    Truth,
)

KEY = (0, 0, "yes")


def counted(delays: list[float]) -> list[int]:
    """As the ledger holds them."""
    place = np.searchsorted(CLASS_DELAY_BOUNDS_SECONDS, delays, "left")
    return [int(count) for count in np.bincount(place, minlength=len(CLASS_DELAY_BOUNDS_SECONDS) + 1)]


def median(ledger: Ledger) -> float:
    """Of the delays of the class."""
    return quantile(ledger.class_delays[KEY], CLASS_DELAY_BOUNDS_SECONDS, 0.5)


@pytest.fixture
def begin() -> Callable[[], Truth]:
    """A join on a file of its own."""
    return lambda: Truth(Store(None), horizon_us=10**15, model_of_version=lambda _: 0)


@pytest.mark.parametrize("a_week", [70, 700_000])
def test_a_doubled_delay_shows_within_three_weeks_whatever_the_traffic(begin: Callable[[], Truth], a_week: int) -> None:
    """A year of an hour's delay, then two hours: the median has moved, where it would have taken another year."""
    truth = begin()
    for week in range(1, 56):
        truth.expire(week * WEEK_US + MICROSECONDS)
        delay = 3_600.0 if week <= 52 else 7_200.0
        held = truth.ledger.class_delays.get(KEY, [0] * (len(CLASS_DELAY_BOUNDS_SECONDS) + 1))
        mine = (a_week * np.array(counted([delay]))).tolist()
        truth.ledger.class_delays[KEY] = [a + b for a, b in zip(held, mine, strict=True)]
        if week == 52:
            before = median(truth.ledger)
        assert sum(truth.ledger.class_delays[KEY]) <= max(2 * a_week, FADING_DELAYS + a_week)
    assert median(truth.ledger) == pytest.approx(2 * before, rel=0.3)


def test_halving_keeps_the_shares_of_the_bins() -> None:
    """To one label in each, also where every bin holds a few; what is too little to tell is left alone."""
    ledger = Ledger(class_delays={KEY: counted(list(np.geomspace(2, 10**6, 401))), (0, 0, "no"): counted([5.0] * 9)})
    before = ledger.class_delays[KEY]
    ledger.fade()
    assert sum(ledger.class_delays[KEY]) == 200
    assert all(
        abs(2 * now - then) <= 1 + (then % 2 == 0) for now, then in zip(ledger.class_delays[KEY], before, strict=True)
    )
    assert sum(ledger.class_delays[(0, 0, "no")]) == 9


def test_time_that_goes_on_within_a_week_fades_nothing_and_a_restart_does_not_fade_again() -> None:
    """Once for each week."""
    store = Store(None)
    truth = Truth(store, horizon_us=10**15, model_of_version=lambda _: 0)
    truth.ledger.class_delays[KEY] = counted([60.0] * 1_000)
    for part in (1, 2, 3):
        truth.expire(100 * WEEK_US + part)
    assert sum(truth.ledger.class_delays[KEY]) == 1_000
    truth.expire(101 * WEEK_US)
    truth.save()
    assert sum(truth.ledger.class_delays[KEY]) == 500
    again = Truth(store, horizon_us=10**15, model_of_version=lambda _: 0)
    again.ledger = Ledger.from_json(truth.ledger.to_json())
    again.expire(101 * WEEK_US + 1)
    assert sum(again.ledger.class_delays[KEY]) == 500


def test_bounds_are_those_of_the_catalogue_and_reach_beyond_a_quarter() -> None:
    """Labels may be waited for longer than a month."""
    assert DELAY_BOUNDS_SECONDS == DELAY_BUCKETS
    assert DELAY_BOUNDS_SECONDS[-2:] == (90 * 86_400, 180 * 86_400)
    assert all(low < high for low, high in pairwise(DELAY_BOUNDS_SECONDS))


def test_delays_of_mixed_outcomes_are_counted_anew() -> None:
    """A state file of before holds them by version alone; what is taken back of them later makes nothing negative."""
    old = {"delays": [[3, [7] * 12]], "told_delays": [[3, [7] * 12]], "delay_us": [[3, 70]], "told_delay_us": [[3, 70]]}
    ledger = Ledger.from_json(old)
    assert not ledger.delays
    assert not ledger.told_delay_us
    ledger.delays[(3, 1)], ledger.delay_us[(3, 1)] = [2, -1, *[0] * 10], -5
    ledger.tell()
    assert ledger.told_delays == {(3, 1): [2, *[0] * 11]}
    assert ledger.told_delay_us == {(3, 1): 0}
    again = Ledger.from_json(ledger.to_json())
    assert (again.delays, again.told_delays, again.delay_us) == (ledger.delays, ledger.told_delays, ledger.delay_us)


def test_each_outcome_has_a_histogram_of_its_own(tmp_path: Path) -> None:
    """How long a visitor stays is known in seconds, what he bought after an hour: together they are no delay at all."""
    story = Story(tmp_path, label_horizon="1d")
    events, labels = traffic(3, delay=lambda *_: 30.0, wrong=lambda *_: False)
    bought = [{**body, "outcome": "purchase", "timestamp": body["timestamp"] + 3_600} for body in labels[:60]]
    story.live(events, [*labels, *bought])
    samples = parsed(render(story.engine))
    story.close()
    counts = {
        outcome: [samples[f'label_delay_seconds_bucket{{le="{le}",model="m",outcome="{outcome}"}}']
                  for le in ("10.0", "60.0", "3600.0", "21600.0", "+Inf")]
        for outcome in ("label", "purchase")
    }  # fmt: skip
    assert counts == {"label": [0, 180, 180, 180, 180], "purchase": [0, 0, 0, 60, 60]}
    assert samples['label_delay_seconds_sum{model="m",outcome="purchase"}'] == 60 * 3_630


def parsed(text: bytes) -> dict[str, float]:
    """The value of each series by its text."""
    lines = [line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#")]
    return {name.removeprefix("stream_monitor_"): float(value) for name, value in lines}
