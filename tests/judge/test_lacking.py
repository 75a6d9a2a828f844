"""Which class still lacks its truths, from how they have come."""

from __future__ import annotations

import numpy as np
import pytest

from stream_monitor.judge.lacking import FEWEST_LABELS, NEVER, Arrival
from stream_monitor.records import MICROSECONDS

BOUNDS = (10.0, 100.0, 1000.0)
SOON, LATE = np.array([800, 200, 0, 0]), np.array([0, 0, 400, 600])


def lacking(age_seconds: float, *, final: float = 1.0, length_seconds: float = 0.0) -> dict[str, float]:
    """Of a window that ended so long ago."""
    now = 10**15
    end = now - round(age_seconds * MICROSECONDS)
    found = Arrival({"1": SOON, "0": LATE}, BOUNDS, final, now).lacking(end - round(length_seconds * MICROSECONDS), end)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("age", "want"),
    [(0, (1.0, 1.0)), (10, (0.2, 1.0)), (55, (0.1, 1.0)), (100, (0.0, 1.0)), (1000, (0.0, 0.6)), (1e9, (0.0, 0.6))],
)
def test_the_share_that_has_not_come_by_an_age(age: float, want: tuple[float, float]) -> None:
    """Straight within a bin of the histogram; what came beyond its last bound is still to come."""
    assert lacking(age) == pytest.approx({"1": want[0] + NEVER, "0": want[1] + NEVER})


def test_those_that_never_come_are_of_all_classes() -> None:
    """Where a tenth gets a label in the end, to have none says little of the class."""
    assert lacking(100, final=0.1) == pytest.approx({"1": 0.9 + NEVER, "0": 1.0 + NEVER})


def test_a_window_is_of_many_ages() -> None:
    """The mean over it."""
    found = lacking(0, length_seconds=10)
    assert found["1"] == pytest.approx(1 - 0.8 / 2 + NEVER)


def test_without_enough_labels_of_each_class_nothing_is_told() -> None:
    """Nor while it is not known how many come in the end."""
    few = np.array([FEWEST_LABELS - 1, 0, 0, 0])
    assert Arrival({"1": SOON, "0": few}, BOUNDS, 1.0, 0).lacking(0, 0) is None
    assert Arrival({"1": SOON}, BOUNDS, 1.0, 0).lacking(0, 0) is None
    assert Arrival({"1": SOON, "0": LATE}, BOUNDS, float("nan"), 0).lacking(0, 0) is None
