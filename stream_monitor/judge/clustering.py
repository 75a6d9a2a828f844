"""How much more sums over neighbouring labels vary than those of independent ones, read off the labels as they come.

Labels of one customer, of one batch or of one hour are alike, so that few of them err together: a sum of evidence then
goes as far by chance as one of independent labels does by a change. A baseline's truths have lost their order, so this is
learnt from the stream. Differences of neighbouring blocks tell it: of these a
lasting change moves one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_monitor.records import Floats

STRETCH = 1_024
"""Labels that are looked at together."""
LENGTHS = (16, 64, 256)
"""Of the blocks: alike labels in runs longer than some hundred look like a change, and are one."""
_KEPT = ((0.9073, 0.2205), (0.7694, 0.4656), (0.5185, 1.214))
"""For each length: of a stretch of independent normal sums the mean of all squared differences but the largest, and their
relative standard deviation. The largest is left out since a change that lasts, and moves one difference, is no likeness."""
EVIDENCE = 4.0
MARGIN = 1.0
"""Standard errors beyond which labels are not independent, and those added to what was measured; as for features."""
MOST_STRETCHES = 128
"""At so many all sums are halved: habits change."""


@dataclass(slots=True)
class Clustering:
    """The variance of block sums by LENGTHS, measured and as of independent labels, over so many stretches.

    >>> alike = Clustering()
    >>> alike.add(np.repeat(np.random.default_rng(1).normal(size=2_000), 8))
    >>> 6 < alike.factor() < 12
    True
    """

    measured: Floats = field(default_factory=lambda: np.zeros(len(LENGTHS)))
    independent: Floats = field(default_factory=lambda: np.zeros(len(LENGTHS)))
    stretches: int = 0

    def add(self, values: Floats) -> None:
        """Take the evidence (n,) of labels in order; what is left of a stretch at the end is not looked at."""
        for stretch in values[: len(values) // STRETCH * STRETCH].reshape(-1, STRETCH):
            variance = float(stretch.var())
            for k, (length, (mean, _)) in enumerate(zip(LENGTHS, _KEPT, strict=True)):
                squares = np.diff(stretch.reshape(-1, length).sum(axis=1)) ** 2 / 2
                self.measured[k] += float(squares.sum() - squares.max()) / (len(squares) - 1) / mean
                self.independent[k] += variance * length
            self.stretches += 1
            if self.stretches >= MOST_STRETCHES:
                self.measured, self.independent = self.measured / 2, self.independent / 2
                self.stretches //= 2

    def factor(self) -> float:
        """The most a sum's variance is inflated by at any length, 1 where that cannot be told from independence."""
        if not self.stretches or not self.independent.all():
            return 1.0
        inflation = self.measured / self.independent
        error = np.array([deviation for _, deviation in _KEPT]) / np.sqrt(self.stretches)
        return float(np.where(inflation - 1 > EVIDENCE * error, inflation * (1 + MARGIN * error), 1.0).max())

    def to_json(self) -> list[Any]:
        return [self.measured.tolist(), self.independent.tolist(), self.stretches]

    @classmethod
    def from_json(cls, body: list[Any]) -> Clustering:
        measured, independent, stretches = body
        return cls(np.array(measured), np.array(independent), stretches)
