"""Objectives: what is asked of a metric, and whether its interval says that it is missed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from stream_monitor.judge import distance
from stream_monitor.judge.metric import CONFIDENCE_Z, Metric
from stream_monitor.judge.wording import USUAL, number
from stream_monitor.summarize.outcome import Task

FEWEST_LABELS = 30  # below, the intervals of means lean on too little

_USUAL: Mapping[Task, Sequence[str]] = {Task.BINARY: ("recall", "precision", "auc"), Task.REGRESSION: ("rmse",)}


@dataclass(frozen=True, slots=True)
class Objective:
    """`metric` at least or at most `limit`; a strict one is missed by equality too, which an interval cannot tell.

    >>> Objective.parse("accuracy", ">= 0.85").is_met(0.9)
    True
    """

    metric: str
    is_at_least: bool
    limit: float
    text: str
    usual: float | None = None  # the baseline's value, where that is the objective

    def at(self, alpha: float) -> Objective:
        """What is asked does not depend on how sure one must be."""
        del alpha
        return self

    @classmethod
    def parse(cls, metric: str, text: str) -> Objective:
        """Of the configuration's `metric: ">= 0.85"`, which has been checked."""
        flat = text.strip()
        return cls(metric, flat.startswith(">"), float(flat.lstrip("<>= ")), flat)

    def is_met(self, value: float) -> bool:
        """Whether a value satisfies it; NaN does not."""
        return value >= self.limit if self.is_at_least else value <= self.limit

    def is_missed(self, value: float) -> bool:
        """Whether a value misses it; NaN neither meets nor misses."""
        return not math.isnan(value) and not self.is_met(value)

    def is_excluded(self, found: Metric, *, alpha: float) -> bool:
        """Whether the interval, widened from 97.5 % to 1 - `alpha` on its side, lies beyond the objective."""
        if found.samples < FEWEST_LABELS:
            return False
        if self.is_at_least:
            return _widened(found.value, found.upper, alpha) < self.limit
        return _widened(found.value, found.lower, alpha) > self.limit

    def is_met_again(self, found: Metric, missed: float, *, alpha: float) -> bool:
        """Whether it is met by a value whose interval, widened as much, leaves out the value that missed it."""
        if found.samples < FEWEST_LABELS or not self.is_met(found.value):
            return False
        if self.is_at_least:
            return _widened(found.value, found.lower, alpha) > missed
        return _widened(found.value, found.upper, alpha) < missed

    def effect(self, value: float) -> float:
        """By how much it is missed: |Cohen's h| where both are shares, else as a part of what is asked."""
        asked = self.limit if self.usual is None else self.usual
        if 0 <= value <= 1 and 0 <= asked <= 1:
            return float(distance.cohens_h(np.array([asked]), np.array([value]))[0])
        return abs(value - asked) / abs(asked) if asked else math.nan

    def detail(self, found: Metric) -> str:
        """In words: `0.71, 0.68 to 0.74, where >= 0.85 is asked`."""
        asked = f"where {self.text} is asked" if self.usual is None else f"{USUAL} {number(self.usual)}"
        return f"{number(found.value)}, {number(found.lower)} to {number(found.upper)}, {asked}"


@dataclass(frozen=True, slots=True)
class Usual:
    """The baseline's value of a metric as the objective, where nothing else is asked: not to be worse, beyond what the
    interval of either allows, by more than the least effect that matters (|Cohen's h| of a share, a part of a loss)."""

    metric: str
    found: Metric
    is_share: bool
    minimum_effect: float

    def at(self, alpha: float) -> Objective:
        """With the baseline's interval, too, widened from 97.5 % to 1 - `alpha` on its side."""
        value, wider = self.found.value, -float(special.ndtri(alpha)) / CONFIDENCE_Z
        if not self.is_share:
            unsure = value + (self.found.upper - value) * wider
            return Objective(self.metric, False, max(unsure, value * (1 + self.minimum_effect)), "", value)
        unsure = value - (value - self.found.lower) * wider
        matters = math.sin(max(math.asin(math.sqrt(value)) - self.minimum_effect / 2, 0.0)) ** 2
        return Objective(self.metric, True, min(unsure, matters), "", value)


def _widened(value: float, end: float, alpha: float) -> float:
    """The end of a 95 % interval moved to where it lies at 1 - `alpha` on its side.

    By the ratio of the normal quantiles, as it is and, of shares, on the scale of arcsines; the farther of the two counts.
    On the first alone a share of .1 is found missed four times too often at 1 in 14,000, on the second alone one of .99
    is. Both together stay below 1.3 times `alpha` from 30 labels on, shares of .02 to .99 and losses alike (exact, and
    simulated).
    """
    wider = -float(special.ndtri(alpha)) / CONFIDENCE_Z
    moved = value + (end - value) * wider
    if not (0 <= value <= 1 and 0 <= end <= 1):
        return moved
    first, last = math.asin(math.sqrt(value)), math.asin(math.sqrt(end))
    turned = math.sin(min(max(first + (last - first) * wider, 0.0), math.pi / 2)) ** 2
    return max(moved, turned) if end > value else min(moved, turned)


def usual_of(task: Task, found: Mapping[str, Metric], *, minimum_effect: float) -> list[Usual]:
    """What a baseline with these metrics asks: what the watch over errors, which counts them all alike, may miss.

    Of two classes whether positives are found, whether yes can be believed and whether scores rank them; of numbers the
    errors that are rare and large. Several classes have their errors watched one by one.
    """
    known = [name for name in _USUAL.get(task, ()) if name in found and found[name].samples >= FEWEST_LABELS]
    sure = [
        name for name in known if all(map(math.isfinite, (found[name].value, found[name].lower, found[name].upper)))
    ]
    return [Usual(name, found[name], task is not Task.REGRESSION, minimum_effect) for name in sure]
