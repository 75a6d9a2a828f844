"""Data quality: the share of values a window could not use, against the baseline's share.

| statistic | numerator | denominator |
|---|---|---|
| missing_ratio | null, absent or NaN | all rows |
| wrong_type_ratio | a value of another kind | all rows |
| infinite_ratio | plus or minus infinity (numeric) | all rows |
| out_of_range_ratio | below the baseline's smallest or above its largest value (numeric) | readable rows |
| unseen_ratio | a category the baseline does not have (categorical) | readable rows |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_monitor.judge import calibrate, distance
from stream_monitor.records import Flags, Floats, Ints, Score
from stream_monitor.summarize.protocol import ABOVE, BELOW, INFINITE, MISSING, UNSEEN, WRONG_TYPE

MINIMUM_ROWS = 30  # the test is exact at any size; below 30 rows a single bad value is all it could speak of
BREAKING_JUMP = 0.5  # when every second value is gone or of another type, the field broke; it did not drift
BREAKING_STATISTICS = frozenset({"missing_ratio", "wrong_type_ratio"})


@dataclass(frozen=True, slots=True)
class Ratio:
    """One statistic over F subjects: hits among rows, in the baseline and in the window."""

    statistic: str
    baseline_hits: Ints  # (F,)
    baseline_rows: Ints
    window_hits: Ints
    window_rows: Ints
    applies: Flags  # subjects of the kind it is defined for

    @property
    def value(self) -> Floats:
        """The window's share, NaN without rows."""
        return _share(self.window_hits, self.window_rows)

    @property
    def effect(self) -> Floats:
        """Cohen's h of the change of share."""
        return distance.cohens_h(_share(self.baseline_hits, self.baseline_rows), self.value)

    def null(self, alpha: float) -> calibrate.Null:
        """See `calibrate.ratio_null`."""
        return calibrate.ratio_null(self.window_rows, self.baseline_rows, hits=self.baseline_hits, alpha=alpha)


def ratios(baseline: Ints, window: Ints, *, numeric: Flags) -> list[Ratio]:
    """Every data-quality statistic of F subjects from their counts (F, BINS).

    Beyond the range, one row each way stands for the baseline's own extremes: the next draw passes them with
    probability 1 / (m + 1). Unseen categories are expected as `calibrate.unseen_allowance` says.
    """
    all_baseline, all_window = baseline.sum(axis=1), window.sum(axis=1)
    read_baseline, read_window = distance.readable(baseline, numeric), distance.readable(window, numeric)
    every = np.ones(len(numeric), dtype=np.bool_)
    outside_baseline = np.minimum(baseline[:, BELOW] + baseline[:, ABOVE] + 2, read_baseline)
    outside_window = window[:, BELOW] + window[:, ABOVE]
    allowance = np.minimum(calibrate.unseen_allowance(distance.named(baseline)), read_baseline)
    return [
        Ratio("missing_ratio", baseline[:, MISSING], all_baseline, window[:, MISSING], all_window, every),
        Ratio("wrong_type_ratio", baseline[:, WRONG_TYPE], all_baseline, window[:, WRONG_TYPE], all_window, every),
        Ratio("infinite_ratio", baseline[:, INFINITE], all_baseline, window[:, INFINITE], all_window, numeric),
        Ratio("out_of_range_ratio", outside_baseline, read_baseline, outside_window, read_window, numeric),
        Ratio("unseen_ratio", allowance, read_baseline, window[:, UNSEEN], read_window, ~numeric),
    ]


def is_broken(score: Score) -> bool:
    """Whether a field broke rather than drifted: missing or wrongly typed values rose by half of all rows."""
    return score.statistic in BREAKING_STATISTICS and score.value - score.expected >= BREAKING_JUMP


def _share(hits: Ints, rows: Ints) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(hits / rows, dtype=np.float64)
