"""When a change began: the moment that best splits a stretch of slices into the old distribution and the new."""

from __future__ import annotations

import numpy as np

from stream_monitor.records import Floats, Ints

_PSEUDO_ROWS = 0.5  # a bin unseen on one side must not decide alone


def estimate_onset(slices: Ints, starts: Ints, *, baseline: Ints, window: Ints) -> int:
    """The start, from `starts` (T,), of the first slice of the new distribution.

    `slices` (T, B) are the counts of one subject in consecutive stretches of time; `baseline` and `window` (B,) the
    counts of the old and the new distribution. The maximum-likelihood change point: the start s for which the sum of
    the slices' log-likelihood ratios from s on is largest. At ties the earliest; without slices ValueError. Limit: no
    finer than a slice; when the window itself holds much of the old distribution, the new is diluted, the place of
    the maximum hardly moves. Source: Page 1954, Hinkley 1970.

    >>> at = np.array([0, 10, 20, 30])
    >>> rows = np.array([[9, 1], [8, 2], [2, 8], [1, 9]])
    >>> estimate_onset(rows, at, baseline=np.array([900, 100]), window=np.array([3, 17]))
    20
    """
    if len(slices) == 0:
        raise ValueError("an onset needs slices to lie in")
    ratio = np.log(_smoothed(window)) - np.log(_smoothed(baseline))
    gain = slices.astype(np.float64) @ ratio
    tail = np.cumsum(gain[::-1])[::-1]
    return int(starts[int(np.argmax(tail))])


def _smoothed(counts: Ints) -> Floats:
    weight = counts + _PSEUDO_ROWS
    return np.asarray(weight / weight.sum(), dtype=np.float64)
