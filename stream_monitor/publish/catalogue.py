"""Every metric, declared once: the README table, rules and dashboards are held to this list.

A name is written without the prefix, as it is exposed: a counter ends in `_total`, an info metric in `_info`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

PREFIX = "stream_monitor_"

MetricKind = Literal["counter", "gauge", "histogram", "info"]


class Priority(IntEnum):
    """What stays when there are more series than `limits.series`: the lower number."""

    SERVICE = 0  # is the monitor itself well: never many
    INCIDENT = 1  # what people are paged on
    MODEL = 2  # a few series for each model version
    FEATURE = 3  # for each feature and window
    SEGMENT = 4  # for each segment as well
    BIN = 5  # for each feature and bin: the most, and the least missed


@dataclass(frozen=True, slots=True)
class Metric:
    """One family. `labels` in the order in which samples give their values; `buckets` are upper bounds."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    priority: Priority = Priority.SERVICE
    unit: str = ""  # also the end of the name, before `_total`
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as a rule writes it (a histogram's without `_bucket`, `_sum`, `_count`)."""
        return PREFIX + self.name


_LINE = ("model", "version")
_PARTITION = ("stream", "topic", "partition")
_DRIFT = ("model", "version", "feature", "statistic", "window", "reference")
_PERFORMANCE = ("model", "version", "metric", "basis", "window")
_INCIDENT = ("model", "version", "kind", "subject", "severity", "incident")

DELAY_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0, 7_776_000.0, 15_552_000.0)
"""Labels come after seconds (a click), a month (a chargeback) or half a year (a default): one bound for each habit people
name."""

CHECKPOINT_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Around one second, the pace of checkpoints: beyond it every figure is published late."""


def _gauge(
    name: str, text: str, labels: tuple[str, ...] = (), *, at: Priority = Priority.SERVICE, unit: str = ""
) -> Metric:
    return Metric(name, "gauge", text, labels, at, unit)


def _counter(name: str, text: str, labels: tuple[str, ...] = (), *, at: Priority = Priority.SERVICE) -> Metric:
    return Metric(name, "counter", text, labels, at)


def _info(name: str, text: str, labels: tuple[str, ...], *, at: Priority = Priority.SERVICE) -> Metric:
    return Metric(name, "info", text, labels, at)


_SERVICE = (
    _info("build_info", "The running program.", ("version", "python")),
    _gauge("ready", "1 while the service keeps up, 0 while /readyz says why not."),
    _gauge("checkpoint_timestamp_seconds", "Wall time of the last commit.", unit="seconds"),
    Metric("checkpoint_duration_seconds", "histogram", "Time a checkpoint took.", (), Priority.SERVICE, "seconds",
           CHECKPOINT_BUCKETS),
    _gauge("state_bytes", "Size of the state file.", unit="bytes"),
    _gauge("memory_bytes", "Memory the process holds (resident set).", unit="bytes"),
    _gauge("state_disk_bytes", "Size of the disk that holds the state file.", unit="bytes"),
    _gauge("state_disk_free_bytes", "What is free on it.", unit="bytes"),
    _gauge("memory_limit_bytes", "Memory its container may hold, where there is a limit.", unit="bytes"),
    _gauge("consumer_lag_events", "Records between our position and the end of the partition.", _PARTITION),
    _gauge("watermark_timestamp_seconds", "Event time up to which panes are sealed.", ("stream",), unit="seconds"),
    _gauge("partition_watermark_timestamp_seconds", "Highest accepted event time of a partition less the lateness.",
           _PARTITION, unit="seconds"),
    _gauge("pane_seal_delay_seconds", "How far sealed panes are behind the newest event.", unit="seconds"),
    _gauge("rows_open", "Rows held in memory until their pane seals."),
    _gauge("rows_parked", "Decoded rows that wait because their partition is ahead of the others."),
    _gauge("join_backlog_labels", "Labels in hand that have not been joined yet."),
    _counter("rejected_total", "Refused records by the reason.", ("stream", "reason")),
    _counter("dropped_values_total", "Feature values left out of events by the reason.", ("reason",)),
    _gauge("reject_storm", "1 while more than half of a stream's records are refused.", ("stream",)),
    _counter("dead_letters_total", "Refused records written to the dead-letter topic."),
    _counter("deliveries_total", "Events of incidents, and failed attempts, by the kind of target.",
             ("target", "outcome")),
    _gauge("deliveries_waiting", "Events of incidents that wait to be delivered.", ("target",)),
    _gauge("deliveries_oldest_age_seconds", "How long the oldest of them waits.", ("target",), unit="seconds"),
    _gauge("series", "Series in this exposition, this one included."),
    _counter("series_dropped_total", "Series left out for limits.series, counted in every snapshot."),
)  # fmt: skip

_INCIDENTS = (
    _gauge("incident_active", "1 for each subject of each open incident.", _INCIDENT, at=Priority.INCIDENT),
    _gauge("incident_effect", "Size of a subject's change: standard deviations of the baseline, Cohen's h for shares.",
           _INCIDENT, at=Priority.INCIDENT),
    _gauge("incident_onset_timestamp_seconds", "Estimated start of what an open incident tells of, in event time.",
           (*_LINE, "incident"), at=Priority.INCIDENT, unit="seconds"),
    _counter("incidents_opened_total", "Incidents opened.", (*_LINE, "kind", "severity"), at=Priority.INCIDENT),
    _gauge("segment_incident_active", "1 for each subject of each open incident of one segment.",
           (*_LINE, "segment", *_INCIDENT[2:]), at=Priority.INCIDENT),
    _gauge("segment_incident_effect", "As incident_effect, of one segment.", (*_LINE, "segment", *_INCIDENT[2:]),
           at=Priority.INCIDENT),
)  # fmt: skip

_MODELS = (
    _info("model_info", "Who answers for a model.", ("model", "team"), at=Priority.MODEL),
    _info("baseline_info", "The baseline a version is judged by.", (*_LINE, "baseline", "provisional"),
          at=Priority.MODEL),
    _counter("events_total", "Events by their fate.", (*_LINE, "stream", "outcome"), at=Priority.MODEL),
    _gauge("last_event_timestamp_seconds", "Newest accepted event time of a version.", _LINE, at=Priority.MODEL,
           unit="seconds"),
    _gauge("false_alarm_budget_events", "Events between two false incidents that the budget means at the present rate.",
           _LINE, at=Priority.MODEL),
    _gauge("detectable_shift_events",
           "Events until a shift of so many standard deviations is found, where that takes longest.",
           (*_LINE, "shift"), at=Priority.MODEL),
    _counter("detector_changes_total", "Changes that a detector saw in a feature or in the errors.",
             (*_LINE, "feature", "detector"), at=Priority.FEATURE),
    _gauge("pending_predictions", "Predictions that wait for their label.", _LINE, at=Priority.MODEL),
    _counter("expired_predictions_total", "Predictions whose label never came.", _LINE, at=Priority.MODEL),
    _gauge("label_coverage_ratio",
           "Labelled predictions over all of the newest window whose labels should be through; of the published, if unknown.",
           (*_LINE, "window"), at=Priority.MODEL, unit="ratio"),
    _gauge("label_coverage_expected_ratio", "What label_coverage_ratio usually is by now.", (*_LINE, "window"),
           at=Priority.MODEL, unit="ratio"),
    _gauge("label_delay_percentile_seconds",
           "Percentile of the delay of labels of a class; a week weighs half as much as the next.",
           (*_LINE, "truth", "percentile"), at=Priority.MODEL, unit="seconds"),
    Metric("label_delay_seconds", "histogram", "Time from a prediction to its label, in event time.",
           ("model", "outcome"), Priority.MODEL, "seconds", DELAY_BUCKETS),
    _gauge("label_through_seconds", "Age by which 95 % of the labels that ever come are usually there, if it is known.",
           _LINE, at=Priority.MODEL, unit="seconds"),
    _counter("truths_total", "Labels that became a truth, by class; `known` is false for one that the baseline lacks.",
             (*_LINE, "truth", "known"), at=Priority.MODEL),
    _gauge("performance", "A metric of model quality; with basis cohort, of the newest cohort that is ripe.",
           _PERFORMANCE, at=Priority.MODEL),
    _gauge("performance_lower", "Lower end of its 95 % interval.", _PERFORMANCE, at=Priority.MODEL),
    _gauge("performance_upper", "Upper end of its 95 % interval.", _PERFORMANCE, at=Priority.MODEL),
    _gauge("performance_samples", "Predictions it is computed from: the labelled ones, or with basis estimated all.",
           _PERFORMANCE, at=Priority.MODEL),
    _gauge("performance_window_end_timestamp_seconds", "End of the window that performance is of, in event time.",
           (*_LINE, "basis", "window"), at=Priority.MODEL, unit="seconds"),
    _gauge("performance_ripe", "1 if the labels of the published cohort are through, 0 where that is not known.",
           (*_LINE, "window"), at=Priority.MODEL),
    _gauge("performance_unusable", "Labelled predictions of the published cohort that its task cannot read.",
           (*_LINE, "window"), at=Priority.MODEL),
    _gauge("performance_objective", "What the configuration asks of a metric; `bound` is at_least or at_most.",
           ("model", "metric", "bound"), at=Priority.MODEL),
    _gauge("performance_gap_windows",
           "Labelled windows in a row with the realised figure outside its estimate's interval, + above or - below.",
           (*_LINE, "metric", "window"), at=Priority.MODEL),
    _gauge("performance_baseline", "The same metric on the baseline.", (*_LINE, "metric"), at=Priority.MODEL),
    _gauge("confusion_predictions", "Labelled predictions of the published cohort by true and predicted class.",
           (*_LINE, "truth", "predicted", "window"), at=Priority.MODEL),
    _gauge("confidence_predictions", "Labelled predictions of the published cohort by confidence and what came true.",
           (*_LINE, "confidence", "came_true", "window"), at=Priority.MODEL),
    _gauge("error_ratio", "Share of the published cohort's errors, in standard deviations of the baseline's.",
           (*_LINE, "error", "window"), at=Priority.MODEL, unit="ratio"),
    _gauge("error_reference_ratio", "Share of the baseline's errors in the same bins.", (*_LINE, "error"),
           at=Priority.MODEL, unit="ratio"),
    _gauge("latency_seconds", "Percentile of the latency in the trailing window, at most the baseline's largest.",
           (*_LINE, "percentile", "window"), at=Priority.MODEL, unit="seconds"),
)  # fmt: skip

_FEATURES = (
    _gauge("feature_drift_score", "Distance of a trailing window from its reference.", _DRIFT, at=Priority.FEATURE),
    _gauge("feature_drift_threshold", "The score beyond which chance is no explanation.", _DRIFT, at=Priority.FEATURE),
    _gauge("feature_drift_expected", "The score's mean when nothing has changed, of the first 20 subjects.",
           _DRIFT, at=Priority.FEATURE),
    _gauge("feature_window_samples", "Values in the trailing window.", (*_LINE, "feature", "window"),
           at=Priority.FEATURE),
    _gauge("feature_missing_ratio", "Missing values over all events of the trailing window.",
           (*_LINE, "feature", "window"), at=Priority.FEATURE, unit="ratio"),
)  # fmt: skip

_SEGMENTS = (
    _counter("segment_events_total", "Summarised events of a segment.", (*_LINE, "segment"), at=Priority.SEGMENT),
    _gauge("segment_feature_drift_score", "As feature_drift_score, of one segment.",
           (*_LINE, "segment", *_DRIFT[2:]), at=Priority.SEGMENT),
    _gauge("segment_feature_drift_threshold", "As feature_drift_threshold, of one segment.",
           (*_LINE, "segment", *_DRIFT[2:]), at=Priority.SEGMENT),
    _gauge("outcome_performance", "As performance, of a named outcome.", (*_LINE, "outcome", *_PERFORMANCE[2:])),
    _gauge("outcome_label_coverage_ratio", "As label_coverage_ratio, of a named outcome.", (*_LINE, "outcome", "window")),
    _gauge("segment_performance", "As performance, of one segment.", (*_LINE, "segment", *_PERFORMANCE[2:]),
           at=Priority.SEGMENT),
)  # fmt: skip

_BINS = (
    _counter("feature_observations_total", "Values by the bin of the baseline they fall in.",
             (*_LINE, "baseline", "feature", "bin"), at=Priority.BIN),
    _gauge("feature_reference_ratio", "Share of the baseline's values in a bin.",
           (*_LINE, "baseline", "feature", "bin"), at=Priority.BIN, unit="ratio"),
    _gauge("feature_bin_upper", "The largest value of a numeric bin.",
           (*_LINE, "baseline", "feature", "bin"), at=Priority.BIN),
)  # fmt: skip

CATALOGUE: tuple[Metric, ...] = (*_SERVICE, *_INCIDENTS, *_MODELS, *_FEATURES, *_SEGMENTS, *_BINS)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in CATALOGUE}

SELF_REPORTED = ("series", "series_dropped_total")
"""What the renderer counts itself; a snapshot does not hold them."""
