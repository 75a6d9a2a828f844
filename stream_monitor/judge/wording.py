"""What incidents and their subjects are called in words: one sentence for a tired human."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from stream_monitor.judge import distance
from stream_monitor.records import MICROSECONDS, Evidence, Floats, Incident, IncidentKind, Ints, Score
from stream_monitor.summarize.protocol import ABOVE, BELOW, MAIN

_LONGEST_NAME = 60  # a feature name may be 10 kB of anything; a sentence holds the start of it
_LEVEL = "mean"  # of numbers of their own: the one metric that is no better when it is higher, nor when it is lower
_RATIO_WORDS = {
    "missing_ratio": "missing",
    "wrong_type_ratio": "of a wrong type",
    "infinite_ratio": "infinite",
    "unseen_ratio": "in unseen categories",
    "out_of_range_ratio": "out of range",
}
_STATES = {
    IncidentKind.BASELINE_MISSING: "has no baseline, so nothing can be judged",
    IncidentKind.LABELS_LATE: "gets its labels late",
    IncidentKind.VOLUME: "gets an unusual volume of events",
    IncidentKind.DATA_LOSS: "lost records before they were read",
    IncidentKind.CAPACITY: "reached a limit",
}
USUAL = "where the baseline has"
"""Of the details of a metric whose objective is the baseline's value."""

_ERRORS = ("error_rate", "mean_absolute_error")
"""What the watch over errors finds, of all truths or of one class; objectives have other names."""

_VERBS = {
    IncidentKind.DATA_DRIFT: "drifted",
    IncidentKind.PREDICTION_DRIFT: "drifted",
    IncidentKind.DATA_QUALITY: "has bad values",
    IncidentKind.BROKEN_INPUT: "is broken",
    IncidentKind.CONCEPT_DRIFT: "rose",
    IncidentKind.PERFORMANCE: "misses its objective",
}


def describe(
    score: Score,
    *,
    baseline: Ints,
    window: Ints,
    representatives: Floats | None,
    categories: Sequence[str] = (),
) -> str:
    """What a drifting score shows: `median 41 -> 47`, `share of web 38 % -> 61 %`, `missing 0.1 % -> 12 %`.

    `baseline` and `window` (BINS,) are the subject's counts, `representatives` (MAIN,) its bins' baseline means (None
    for a categorical subject) and `categories` the names of its main bins.
    """
    if score.statistic in _RATIO_WORDS:
        return f"{_RATIO_WORDS[score.statistic]} {percent(score.expected)} -> {percent(score.value)}"
    if representatives is None:
        return _describe_shares(baseline, window, categories)
    return _describe_values(baseline, window, representatives)


def describe_errors(score: Score) -> str:
    """What a drifting error shows: `error rate 12 % -> 21 %`, `mean absolute error 3.1 -> 4.8`."""
    if score.statistic == "error_rate":
        return f"error rate {percent(score.expected)} -> {percent(score.value)}"
    return f"mean absolute error {number(score.expected)} -> {number(score.value)}"


def summary_of(incident: Incident) -> str:
    """One sentence: which model, what, how much, since when, and whether it is over."""
    who = f"{name(incident.line.model)} {name(incident.line.version)}"
    if incident.line.segment:
        who += f" ({', '.join(f'{name(key)}={name(value)}' for key, value in incident.line.segment)})"
    until = "" if incident.closed_us is None else f", over at {moment(incident.closed_us)}"
    return f"{who}{_what(incident)} since {moment(incident.onset_us)}{until}."


def name(text: str) -> str:
    """A name as it may stand in a sentence: one line, not too long, never empty."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _LONGEST_NAME]).split())
    return (flat or "''") if len(flat) <= _LONGEST_NAME else f"{flat[: _LONGEST_NAME - 1]}…"


def percent(share: float) -> str:
    """A share in words, two significant digits: `12 %`, `0.13 %`."""
    if math.isnan(share):
        return "unknown"
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.2g} %"


def number(value: float) -> str:
    """A number to four significant digits."""
    return "unknown" if math.isnan(value) else f"{value:.4g}"


def moment(time_us: int) -> str:
    """A time to the minute: `2026-11-21 10:03 UTC`."""
    return datetime.fromtimestamp(time_us // MICROSECONDS, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def _what(incident: Incident) -> str:
    if incident.kind in _STATES:
        detail = incident.subjects[0].detail if incident.subjects else ""
        return f" {_STATES[incident.kind]}" + (f" ({detail})" if detail else "")
    if not incident.subjects:
        return f" shows {str(incident.kind).replace('_', ' ')}"
    first, *others = incident.subjects
    detail = f" ({first.detail})" if first.detail else ""
    return f": {_called(first)} {_verb(incident.kind, first)}{detail}{_company(others)}"


def _verb(kind: IncidentKind, first: Evidence) -> str:
    if first.statistic in ("calibration", "bias"):
        return "moved"
    if first.statistic == _LEVEL:
        return "fell" if first.value < first.threshold else "rose"
    if kind is IncidentKind.PERFORMANCE and first.statistic.partition("[")[0] in _ERRORS:
        return "rose"
    if kind is IncidentKind.PERFORMANCE and USUAL in first.detail:
        return "is worse than the baseline's"
    return _VERBS.get(kind, "changed")


def _called(evidence: Evidence) -> str:
    if evidence.statistic == _LEVEL:
        return f"the mean of {name(evidence.name.removesuffix(f'.{_LEVEL}').replace('_', ' '))}"
    if evidence.kind == "prediction":
        return "the prediction" if evidence.name == "prediction" else f"the {name(evidence.name)}"
    return (
        f"the {name(evidence.name.replace('_', ' '))}"
        if evidence.kind in ("metric", "latency")
        else name(evidence.name)
    )


def _company(others: Sequence[Evidence]) -> str:
    if not others:
        return ""
    named = [name(evidence.name) for evidence in others[:2]]
    more = len(others) - len(named)
    listed = ", ".join(named) + (f" and {more} more" if more else "")
    return f", with {listed},"


def _describe_shares(baseline: Ints, window: Ints, categories: Sequence[str]) -> str:
    b, w = distance.named(baseline[None]), distance.named(window[None])
    p, q = distance.shares(b)[0], distance.shares(w)[0]
    most = int(np.argmax(np.nan_to_num(distance.cohens_h(p, q))))
    label = f"share of {name(categories[most])}" if most < min(len(categories), MAIN) else "share of unseen categories"
    return f"{label} {percent(float(p[most]))} -> {percent(float(q[most]))}"


def _describe_values(baseline: Ints, window: Ints, representatives: Floats) -> str:
    """The median or the middle 80 %, whichever moved more; where both stood still, what left the baseline's range.

    A wider middle moves each of its ends by half of what it gained: that is set against the shift of the median, which
    of a spread that doubled may be a bin by chance.
    """
    before, after = _quantiles(baseline, representatives), _quantiles(window, representatives)
    told = {}
    if number(before[1]) != number(after[1]):
        told[f"median {number(before[1])} -> {number(after[1])}"] = abs(after[1] - before[1])
    middles = [f"{number(low)} to {number(high)}" for low, _, high in (before, after)]
    if middles[0] != middles[1]:
        told[f"middle 80 % {middles[0]} -> {middles[1]}"] = abs((after[2] - after[0]) - (before[2] - before[0])) / 2
    if told:
        return max(told, key=told.__getitem__)
    beyond = int(window[BELOW] + window[ABOVE])
    rows = int(distance.ordered(window[None]).sum())
    return f"out of range 0 % -> {percent(beyond / rows)}" if beyond and rows else "shape changed"


def _quantiles(counts: Ints, representatives: Floats) -> tuple[float, float, float]:
    """The 10 %, 50 % and 90 % quantiles in the baseline's bins; rows beyond its range count as its extremes."""
    at = distance.positions_of(representatives[None], np.zeros(1))[0]
    below = np.cumsum(distance.ordered(counts[None])[0])
    if below[-1] == 0:
        return (math.nan, math.nan, math.nan)
    low, middle, high = (float(at[np.searchsorted(below, q * below[-1])]) for q in (0.1, 0.5, 0.9))
    return low, middle, high
