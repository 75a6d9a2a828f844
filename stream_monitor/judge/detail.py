"""What stands behind a window's metrics: who was taken for what, curves, reliability, and how the errors lie."""

from __future__ import annotations

from collections import Counter

import numpy as np

from stream_monitor.judge.performance import Reliability
from stream_monitor.judge.ranking import Ranks
from stream_monitor.judge.spectrum import Spectrum
from stream_monitor.records import Json
from stream_monitor.summarize.histogram import Histogram
from stream_monitor.summarize.outcome import RELIABILITY_BINS, OutcomeProfile, Task

CURVE_POINTS = 100
"""A curve on a screen shows no more."""

CONFUSED_CLASSES = 50
"""A matrix of more classes than this is of the most frequent truths."""

ERROR_BINS = 40
OUTER_SHARE = 0.005
"""Of the baseline's errors lie beyond each end of the bins, so that one outlier does not flatten the picture."""


def detail(profile: OutcomeProfile, reference: OutcomeProfile | None) -> Json:
    """The parts that the task has, as plain values; `reference` is what the window is compared with."""
    parts: dict[str, object] = {"task": str(profile.task), "rows": profile.rows, "unusable": profile.unusable}
    if profile.task is Task.REGRESSION:
        before = None if reference is None else reference.errors
        return parts | {"error_histogram": histogram(profile.errors, before)}
    if profile.task is Task.VALUE:
        before = None if reference is None else reference.targets
        return parts | {"value_histogram": histogram(profile.targets, before)}
    parts |= {"confusion_matrix": confusion_matrix(profile), "reliability": reliability(profile, reference)}
    return parts | Ranks.of(profile.scores).curves(CURVE_POINTS)


def confusion_matrix(profile: OutcomeProfile) -> dict[str, dict[str, int]]:
    """Rows by truth and prediction; binary: "1" is the positive label. Cells without rows are left out."""
    support: Counter[str] = Counter()
    for (truth, _), count in profile.pairs.items():
        support[truth] += count
    kept = sorted(sorted(support), key=lambda label: -support[label])[:CONFUSED_CLASSES]
    rows: dict[str, dict[str, int]] = {label: {} for label in sorted(kept)}
    for (truth, predicted), count in sorted(profile.pairs.items()):
        if truth in rows:
            rows[truth][predicted] = count
    return rows


def reliability(profile: OutcomeProfile, reference: OutcomeProfile | None) -> list[Json]:
    """What came true of each tenth of the confidences, now and in the baseline; bins without rows are left out."""
    now = Reliability.of(profile)
    before = Reliability.of(profile if reference is None else reference)
    return [
        {
            "above": k / RELIABILITY_BINS,
            "up_to": (k + 1) / RELIABILITY_BINS,
            "rows": int(now.rows[k]),
            "mean_confidence": float(now.confidence[k] / now.rows[k]),
            "share_true": float(now.true[k] / now.rows[k]),
            "baseline_share_true": _ratio(before.true[k], before.rows[k]) if reference is not None else None,
        }
        for k in range(RELIABILITY_BINS)
        if now.rows[k]
    ]


def histogram(held: Histogram, reference: Histogram | None) -> Json | None:
    """Shares of numbers now and in the baseline, on 40 bins of equal width over the middle 99 % of the baseline's.

    The first and the last share are of what lies beyond. Without a baseline the bins are the window's own.
    """
    if not held.total:
        return None
    now = Spectrum.of(held)
    before = Spectrum.of(reference) if reference is not None and reference.total else None
    basis = before or now
    low, high = basis.quantile(OUTER_SHARE), basis.quantile(1 - OUTER_SHARE)
    edges = np.linspace(low, max(high, np.nextafter(low, np.inf)), ERROR_BINS + 1)
    return {
        "edges": edges.tolist(),
        "share": now.shares(edges).tolist(),
        "baseline_share": None if before is None else before.shares(edges).tolist(),
    }


def _ratio(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
