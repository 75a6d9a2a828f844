"""A metric that is expected, and the interval in which the labels will show it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import numpy as np

from stream_monitor.judge.metric import CONFIDENCE_Z, NAN, Metric, on_logit
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.outcome import value_ends


class Range(StrEnum):
    """What values a metric may have, and so on which scale its interval is symmetric."""

    SHARE = "share"  # 0 to 1: the logit
    LOSS = "loss"  # not negative: the logarithm
    ANY = "any"  # of either sign: as it is


class Expected(Protocol):
    """An expected metric of `rows` predictions.

    Laws: the interval of all rows lies within that of fewer; where all truths are known it is the value.
    """

    @property
    def value(self) -> float: ...
    @property
    def rows(self) -> int: ...
    def metric(self, labelled: int | None = None) -> Metric:
        """With the 95 % interval of the realised metric when all rows, or so many of them, have their truth."""
        ...


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, or what moves like one. `sampling`: the variance of the realised metric once all rows have their truth;
    `calibration`: the variance by the chance of the baseline's labels; `constant`: what the best constant would score."""

    value: float
    sampling: float
    calibration: float
    range: Range
    constant: float
    rows: int

    def metric(self, labelled: int | None = None) -> Metric:
        variance = self.sampling * _scale(self.rows, labelled) + self.calibration
        if not math.isfinite(self.value) or not math.isfinite(variance):
            return Metric(self.value, NAN, NAN, self.constant, self.rows)
        error = CONFIDENCE_Z * math.sqrt(variance)
        if self.range is Range.SHARE:
            return self._share(variance, error)
        if self.range is Range.ANY:
            return Metric(self.value, self.value - error, self.value + error, self.constant, self.rows)
        factor = math.exp(min(error / self.value, 300.0)) if self.value > 0 else 1.0
        return Metric(self.value, self.value / factor, self.value * factor, self.constant, self.rows)

    def _share(self, variance: float, error: float) -> Metric:
        """Each end the wider of the logit's and the plain one: of a few expected errors there may be none."""
        found = on_logit(self.value, variance, constant=self.constant, samples=self.rows)
        lower, upper = max(self.value - error, 0.0), min(self.value + error, 1.0)
        return replace(found, lower=min(found.lower, lower), upper=max(found.upper, upper))


@dataclass(frozen=True, slots=True)
class QuantileEstimate:
    """A quantile of what lies in `bins` (k,) of `outcome.value_bin`, of which `reached` (k,) is the share up to each.

    `sampling` and `calibration` are variances of the share below the value: its interval is read off the same curve.
    """

    bins: Ints
    reached: Floats
    share: float
    sampling: float
    calibration: float
    constant: float
    rows: int

    @property
    def value(self) -> float:
        lower, upper = value_ends(self.bins[[self._at(self.share)]])
        return float(lower[0] / 2 + upper[0] / 2)

    def metric(self, labelled: int | None = None) -> Metric:
        error = CONFIDENCE_Z * math.sqrt(self.sampling * _scale(self.rows, labelled) + self.calibration)
        if not error:
            return Metric(self.value, self.value, self.value, self.constant, self.rows)
        low, high = self.share - error, self.share + error
        lower, upper = value_ends(self.bins[[self._at(low), self._at(high)]])
        return Metric(
            self.value,
            float(lower[0]) if low > 0 else NAN,
            float(upper[1]) if high < 1 else NAN,
            self.constant,
            self.rows,
        )

    def _at(self, share: float) -> int:
        """The bin in which the cumulated share reaches it, but for the rounding of sums."""
        return min(int(np.searchsorted(self.reached, share - 1e-12)), len(self.bins) - 1)


def settled(metric: Metric) -> Estimate:
    """What has nothing left to expect: every row has its truth."""
    return Estimate(metric.value, 0.0, 0.0, Range.ANY, metric.best_constant, metric.samples)


def is_outside(metric: Metric, realised: float) -> int:
    """-1: the realised figure is below the estimate's interval, 1: above it, 0: within, or that cannot be told."""
    return int(realised > metric.upper) - int(realised < metric.lower)


PERSISTENT_WINDOWS = 3
"""Windows in a row outside on one side, by chance one time in 64,000: from then on it is said."""


def gap_text(metric: str, windows: int) -> str | None:
    """What a gap that lasts means, in a sentence; `windows` with its sign, + above. None where it does not last."""
    if abs(windows) < PERSISTENT_WINDOWS:
        return None
    side = "above" if windows > 0 else "below"
    return (
        f"In {abs(windows)} labelled windows in a row {metric} was {side} what the predictions and their inputs led to expect:"
        " the relation of inputs and truth has changed (concept drift), or the labels that came are a biased sample."
    )


def _scale(rows: int, labelled: int | None) -> float:
    return 1.0 if labelled is None else max(rows / max(labelled, 1), 1.0)
