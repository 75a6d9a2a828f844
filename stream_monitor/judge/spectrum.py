"""A histogram of numbers to read from: quantiles with their intervals, distances, shares between edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_monitor.judge.metric import NAN, Metric, ranks
from stream_monitor.records import Floats
from stream_monitor.summarize.histogram import Histogram, Numbers
from stream_monitor.summarize.outcome import value_ends


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A histogram of numbers as bins that ascend: their ends, middles and rows."""

    lower: Floats
    middle: Floats
    upper: Floats
    count: Floats

    @classmethod
    def of(cls, histogram: Histogram) -> Spectrum:
        """Of numbers, or of a histogram of `value_bin`s."""
        keys, counts = histogram.arrays()
        lower, upper = histogram.ends() if isinstance(histogram, Numbers) else value_ends(keys)
        return cls(lower, lower / 2 + upper / 2, upper, counts.astype(np.float64))

    def quantile(self, share: float) -> float:
        """The middle of the bin in which the cumulated share reaches it."""
        return float(self.middle[self._bin(share * self.count.sum())])

    def metric(self, share: float, constant: float) -> Metric:
        """A quantile between order statistics."""
        n = int(self.count.sum())
        low, high = ranks(share, n)
        lower = float(self.lower[self._bin(low)]) if low >= 1 else NAN
        upper = float(self.upper[self._bin(high)]) if high <= n else NAN
        return Metric(self.quantile(share), lower, upper, constant, n)

    def folded(self) -> Spectrum:
        """Of the absolute values."""
        size = np.abs(self.middle)
        inner, outer = np.minimum(np.abs(self.lower), np.abs(self.upper)), np.maximum(-self.lower, self.upper)
        order = np.argsort(size, kind="stable")
        return Spectrum(inner[order], size[order], outer[order], self.count[order])

    def from_constant(self, constant: float) -> Spectrum:
        """Of the errors of predicting it."""
        parts = (constant - self.upper, constant - self.middle, constant - self.lower, self.count)
        return Spectrum(*(part[::-1] for part in parts))

    def without_zero(self) -> Spectrum:
        """Of the numbers that are not 0."""
        held = self.middle != 0
        return Spectrum(self.lower[held], self.middle[held], self.upper[held], self.count[held])

    def weighted(self, weight: Floats) -> Spectrum:
        """With each row of a bin counted so often."""
        return Spectrum(self.lower, self.middle, self.upper, self.count * weight)

    def distance_to(self, constant: float) -> float:
        """Mean absolute distance."""
        return float((np.abs(self.middle - constant) * self.count).sum() / self.count.sum())

    def kurtosis(self, spread: float) -> float:
        """The fourth central moment over the square of the second; 3 where the bins do not show the spread."""
        n = self.count.sum()
        away = self.middle - (self.middle * self.count).sum() / n
        second = float((away**2 * self.count).sum() / n)
        if not 0.9 < second / spread < 1.1:
            return 3.0
        return float((away**4 * self.count).sum() / n) / second**2

    def shares(self, edges: Floats) -> Floats:
        """The shares of the rows below the first edge, between each two, and above the last; a bin's rows lie evenly."""
        ends = np.stack([self.lower, self.upper], axis=1).ravel()
        done = np.cumsum(self.count)
        reached = np.stack([done - self.count, done], axis=1).ravel()
        below = np.interp(edges, ends, reached)
        return np.asarray(np.diff(below, prepend=0.0, append=done[-1]) / done[-1], dtype=np.float64)

    def _bin(self, rank: float) -> int:
        return min(int(np.searchsorted(np.cumsum(self.count), rank)), len(self.count) - 1)
