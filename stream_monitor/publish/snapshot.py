"""What the application hands over after a commit: every sample of every family, checked against the catalogue."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stream_monitor.publish.catalogue import BY_NAME, CATALOGUE, SELF_REPORTED, Metric

LabelValues = tuple[str, ...]

LABEL_CHARACTERS = 200
"""As long as a model's name may be; a feature's name has no bound of its own."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """A histogram's state: `counts` of each bucket of the catalogue and of what is beyond the last, not cumulated."""

    counts: tuple[int, ...]
    total: float  # the sum of the values, in the metric's unit


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All figures of one commit, by the catalogue's name; label values in the catalogue's order.

    NaN is left out: it is no way to say that something is unknown. Raises ValueError for a name that is not in the
    catalogue, the wrong number of labels and the wrong number of buckets.
    """

    samples: Mapping[str, Sequence[tuple[LabelValues, float]]] = field(default_factory=dict)
    histograms: Mapping[str, Sequence[tuple[LabelValues, Distribution]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, rows in self.samples.items():
            metric = _declared(name, is_histogram=False)
            for labels, _ in rows:
                _check_labels(metric, labels)
        for name, histograms in self.histograms.items():
            metric = _declared(name, is_histogram=True)
            for labels, distribution in histograms:
                _check_labels(metric, labels)
                if len(distribution.counts) != len(metric.buckets) + 1:
                    raise ValueError(f"{name} has {len(metric.buckets) + 1} buckets, not {len(distribution.counts)}")


def _declared(name: str, *, is_histogram: bool) -> Metric:
    metric = BY_NAME.get(name)
    if metric is None or name in SELF_REPORTED or (metric.kind == "histogram") != is_histogram:
        raise ValueError(f"{name} is no {'histogram' if is_histogram else 'metric'} of the catalogue")
    return metric


def _check_labels(metric: Metric, labels: LabelValues) -> None:
    if len(labels) != len(metric.labels):
        raise ValueError(f"{metric.name} has the labels {metric.labels}, not {labels!r}")


def label_text(value: str) -> str:
    """A label value that every parser reads: no NUL, no lone surrogate, at most 200 characters.

    A longer one ends in a hash of the whole, so that two long names with one beginning stay two.
    """
    if value.isascii() and len(value) <= LABEL_CHARACTERS and "\0" not in value:
        return value
    clean = value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\ufffd")
    if len(clean) <= LABEL_CHARACTERS:
        return clean
    digest = hashlib.sha256(clean.encode()).hexdigest()[:12]
    return f"{clean[: LABEL_CHARACTERS - len(digest) - 1]}~{digest}"


Row = tuple[LabelValues, float | Distribution]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is exposed: the rows of each metric, sorted by their labels, and how many series were left out."""

    rows: Mapping[str, Sequence[Row]]
    series: int
    dropped: int


def keep(snapshot: Snapshot, *, series: int) -> Kept:
    """At most `series` of them: families in the order of priority, and in a family by label values.

    What is left out depends on the snapshot's content alone, not on the order in which it was put together.
    """
    rows: dict[str, Sequence[Row]] = {}
    left, dropped, held = series - len(SELF_REPORTED), 0, len(SELF_REPORTED)
    for metric in sorted(CATALOGUE, key=lambda m: m.priority):
        found = _rows(metric, snapshot)
        weight = len(metric.buckets) + 3 if metric.kind == "histogram" else 1
        fitting = found[: max(left, 0) // weight]
        rows[metric.name] = fitting
        left -= weight * len(fitting)
        held += weight * len(fitting)
        dropped += weight * (len(found) - len(fitting))
    return Kept(rows, held, dropped)


def _rows(metric: Metric, snapshot: Snapshot) -> list[Row]:
    """The rows of one family, each set of labels once (the last one counts), sorted."""
    found: dict[LabelValues, float | Distribution] = {}
    for labels, value in snapshot.samples.get(metric.name, ()):
        if not math.isnan(value):
            found[tuple(map(label_text, labels))] = value
    for labels, distribution in snapshot.histograms.get(metric.name, ()):
        found[tuple(map(label_text, labels))] = distribution
    return sorted(found.items(), key=lambda row: row[0])
