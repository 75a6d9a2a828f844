"""Objectives: what is asked of a metric, and whether its interval says that it is missed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from stream_monitor.judge import distance
from stream_monitor.judge.metric import CONFIDENCE_Z, Metric
from stream_monitor.judge.wording import number

FEWEST_LABELS = 30  # below, the intervals of means lean on too little


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
        """By how much it is missed: |Cohen's h| where both are shares, else as a part of the limit."""
        if 0 <= value <= 1 and 0 <= self.limit <= 1:
            return float(distance.cohens_h(np.array([self.limit]), np.array([value]))[0])
        return abs(value - self.limit) / abs(self.limit) if self.limit else math.nan

    def detail(self, found: Metric) -> str:
        """In words: `0.71, 0.68 to 0.74, where >= 0.85 is asked`."""
        return f"{number(found.value)}, {number(found.lower)} to {number(found.upper)}, where {self.text} is asked"
