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

    def is_excluded(self, found: Metric, *, alpha: float) -> bool:
        """Whether the interval, widened from 97.5 % to 1 - `alpha` on its side, lies beyond the objective.

        The widening takes the metric for normal on that side; the interval it starts from does not.
        """
        if found.samples < FEWEST_LABELS:
            return False
        wider = -float(special.ndtri(alpha)) / CONFIDENCE_Z
        if self.is_at_least:
            return found.value + (found.upper - found.value) * wider < self.limit
        return found.value - (found.value - found.lower) * wider > self.limit

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
