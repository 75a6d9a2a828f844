"""Which class's truths are still to come: positives often come first, and then the rest are less often positive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stream_monitor.records import MICROSECONDS, Ints

FEWEST_LABELS = 100
"""Labels of each class with a known delay below which classes are taken to come alike."""

NEVER = 0.01
"""Predictions of every class that are taken to get no label at all, besides those that usually do not: of the last few that
lack one nothing is concluded from the delay."""

AT = (np.arange(8) + 0.5) / 8
"""Where in a window its predictions are thought to lie."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """Delays of labels by class, counted by `bounds` in seconds and beyond; `final`: the share of predictions that usually
    get a label in the end; `now_us`: until when labels were heard."""

    delays: Mapping[str, Ints]
    bounds: Sequence[float]
    final: float
    now_us: int

    def lacking(self, start_us: int, end_us: int) -> dict[str, float] | None:
        """The share of each class's predictions between two times that have no label yet; None where it is not known.

        Those who never get one are taken to be the same share of every class.
        """
        if len(self.delays) < 2 or min(int(counts.sum()) for counts in self.delays.values()) < FEWEST_LABELS:
            return None
        if not math.isfinite(self.final):
            return None
        ages = np.maximum(self.now_us - start_us - AT * (end_us - start_us), 0) / MICROSECONDS
        return {name: 1 - self.final * self._came(counts, ages) + NEVER for name, counts in self.delays.items()}

    def _came(self, counts: Ints, ages: np.ndarray) -> float:
        reached = np.concatenate([[0.0], np.cumsum(counts[:-1]) / counts.sum()])
        return float(np.interp(ages, [0.0, *self.bounds], reached).mean())
