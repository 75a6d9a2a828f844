"""From a false-alarm budget to the charts' nominal rate: tabled once by simulation.

`tests/benchmarks/calibrate.py` prints the tables: how many alarms a row the charts of one subject give on uniform ranks
at a nominal rate, and how that rate grows after a fresh start, since a window of 8,192 rows says nothing sooner. Alarms
of different subjects add (independent subjects: exactly; dependent ones: the rate is lower, never higher).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stream_monitor.records import Floats

STAGES = 12
"""Doubled lengths of the charts' windows, 4 to 8,192 rows: stage k lasts from row 2^(k+2) to row 2^(k+3), the last for ever."""

RATES: Mapping[float, Sequence[float]] = {
    1e-2: (0.016, 0.039, 0.046, 0.056, 0.075, 0.102, 0.118, 0.130, 0.138, 0.146, 0.146, 0.146),  # 4800 alarms
    3e-3: (0.035, 0.043, 0.061, 0.072, 0.078, 0.127, 0.141, 0.149, 0.161, 0.183, 0.201, 0.213),  # 4800 alarms
    1e-3: (0.000, 0.035, 0.052, 0.104, 0.109, 0.128, 0.162, 0.174, 0.202, 0.211, 0.224, 0.251),  # 3600 alarms
    1e-4: (0.000, 0.069, 0.069, 0.069, 0.069, 0.130, 0.229, 0.240, 0.274, 0.304, 0.304, 0.334),  # 2114 alarms
    1e-5: (0.000, 0.000, 0.000, 0.000, 0.167, 0.167, 0.167, 0.376, 0.376, 0.376, 0.428, 0.428),  # 1936 alarms
    1e-6: (0.000, 0.000, 0.000, 0.000, 0.000, 0.109, 0.109, 0.407, 0.421, 0.421, 0.428, 0.528),  # 792 alarms
}
"""Alarms a row over the nominal rate, by the nominal rate and by stage: looks at overlapping windows alarm together."""

GROWTH = 0.09
"""Below the lowest nominal rate the rates grow by so much a decade: at 1e-7 the last one is 0.620 (96 alarms)."""

HIGHEST = 0.05
LOWEST = 1e-18


def rates(nominal: float) -> Floats:
    """Alarms a row of one subject in each stage (STAGES,), at a nominal rate."""
    levels = np.array(sorted(RATES))
    table = np.array([RATES[level] for level in levels.tolist()])
    at = np.log10(nominal)
    below = max(0.0, float(np.log10(levels[0]) - at))
    ratio = np.array([np.interp(at, np.log10(levels), column) for column in table.T])
    return np.asarray(nominal * ratio * (1 + GROWTH * below / table[0, -1]), np.float64)


def mean_run_length(nominal: float, subjects: float) -> float:
    """Mean rows from a fresh start to the first alarm of any of so many subjects."""
    each = rates(nominal) * subjects
    edges = 2.0 ** np.arange(2, 2 + STAGES)
    spent = np.concatenate([[0.0], np.cumsum(each[:-1] * np.diff(edges))])
    # A stage without alarms lasts as long as it lasts; the last one has no end.
    lasts = np.where(
        each[:-1] > 0, -np.expm1(-each[:-1] * np.diff(edges)) / np.maximum(each[:-1], 1e-300), np.diff(edges)
    )
    return float(edges[0] + (np.exp(-spent[:-1]) * lasts).sum() + np.exp(-spent[-1]) / each[-1])


def nominal_rate(run_length: float, subjects: float) -> float:
    """The nominal rate at which so many subjects together alarm once in `run_length` rows, within [LOWEST, HIGHEST]."""
    low, high = np.log(LOWEST), np.log(HIGHEST)
    for _ in range(60):
        middle = (low + high) / 2
        if mean_run_length(float(np.exp(middle)), subjects) > run_length:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))
