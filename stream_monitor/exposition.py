"""From the engine to a metrics snapshot: every family of the catalogue, right after a commit."""

from __future__ import annotations

import json
import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as installed_version
from itertools import pairwise

import numpy as np

from stream_monitor.budgets import worst_shifts
from stream_monitor.cohorts import CohortKey
from stream_monitor.config import duration_text
from stream_monitor.delays import quantiles
from stream_monitor.engine import Engine
from stream_monitor.judge.estimate import OUTCOME
from stream_monitor.judge.expectation import Expected
from stream_monitor.judge.performance import headlines, metrics
from stream_monitor.machine import Machine
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.snapshot import Distribution, LabelValues, Snapshot
from stream_monitor.records import MICROSECONDS, Score, Stream
from stream_monitor.shown import Cohort
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.outcome import OutcomeProfile, Task, values_of_bins
from stream_monitor.summarize.profile import Profile
from stream_monitor.summarize.protocol import MISSING
from stream_monitor.summarize.rows import LATENCY
from stream_monitor.versions import BIN_SUBJECTS, Line, Version

PUBLISHED_STATISTIC = "psi"
"""One statistic by default, for numbers and categories alike; the others are in the scores."""

PUBLISHED_WINDOWS = 2
"""The shortest two window lengths: what moves first. Of cohorts every length is published: labels that come days late are
few in the shortest, and the line of weeks is what people ask for."""

PERCENTILES = (50, 95, 99)
"""Of the latency: the usual one, and what the slowest in twenty and in a hundred have to bear."""

ERROR_EDGES = (-3, -2, -1, 0, 1, 2, 3)
"""Of a bell, 0.1, 2, 14 and 34 % on each side: a shift and a wider spread are both seen in eight bars."""

CONFUSED_CLASSES = 10
"""A matrix of a hundred cells is as much as a person reads, and as many series."""

Samples = dict[str, list[tuple[LabelValues, float]]]


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What waits to be delivered to the targets of one kind."""

    waiting: int
    oldest_age_seconds: float


@dataclass(frozen=True, slots=True)
class Service:
    """What the loop around the engine knows. `checkpoints`: durations in seconds by bucket, with their sum."""

    ready: bool
    checkpoint_unix_seconds: float | None = None
    memory_bytes: float | None = None
    checkpoints: Distribution | None = None
    dead_letters: int = 0
    deliveries: Mapping[str, Deliveries] = field(default_factory=dict)
    machine: Machine | None = None


def snapshot(engine: Engine, service: Service) -> Snapshot:
    """Every sample of every family."""
    samples: Samples = defaultdict(list)
    _service(engine, service, samples)
    _flow(engine, samples)
    _counters(engine, samples)
    for index, version in engine.versions.items():
        _version(engine, index, version, samples)
        _label_habits(engine, index, samples)
        for line in version.lines.values():
            _incidents(line, samples)
            if line.baseline is not None and line.is_whole:
                _budget(line, samples)
                _features(line, samples)
                _bins(line, samples)
            if line.baseline is not None and not line.is_whole:
                _segment_scores(line, samples)
            _performance(engine, line, samples)
            _estimates(engine, line, samples)
    histograms = {"label_delay_seconds": _delays(engine)}
    for index, label, share, seconds in quantiles(engine):
        head = (engine.versions[index].key.model, engine.versions[index].key.version)
        samples["label_delay_percentile_seconds"].append(((*head, label, f"{100 * share:g}"), seconds))
    if service.checkpoints is not None:
        histograms["checkpoint_duration_seconds"] = [((), service.checkpoints)]
    return Snapshot(samples, histograms)


def render(engine: Engine) -> bytes:
    """The metrics text of an engine that stands still: what `replay` leaves."""
    publisher = Publisher(series=engine.config.limits.series)
    publisher.publish(snapshot(engine, Service(ready=True)))
    return publisher.text


def _service(engine: Engine, service: Service, samples: Samples) -> None:
    samples["build_info"] = [((installed_version("stream-monitor"), platform.python_version()), 1)]
    samples["ready"] = [((), float(service.ready))]
    if service.checkpoint_unix_seconds is not None:
        samples["checkpoint_timestamp_seconds"] = [((), service.checkpoint_unix_seconds)]
    samples["state_bytes"] = [((), engine.store.size_bytes())]
    if service.memory_bytes is not None:
        samples["memory_bytes"] = [((), service.memory_bytes)]
    if service.machine is not None:
        _machine(service.machine, samples)
    samples["rows_open"] = [((), sum(version.open_rows() for version in engine.versions.values()))]
    samples["rows_parked"] = [((), engine.flow.parked_rows())]
    samples["join_backlog_labels"] = [((), engine.truth.pending_labels())]
    samples["dead_letters_total"] = [((), service.dead_letters)]
    for target, standing in service.deliveries.items():
        samples["deliveries_waiting"].append(((target,), standing.waiting))
        samples["deliveries_oldest_age_seconds"].append(((target,), standing.oldest_age_seconds))
    samples["reject_storm"] = [((str(s),), float(storm.raging)) for s, storm in engine.storms.items()]


def _machine(machine: Machine, samples: Samples) -> None:
    samples["state_disk_bytes"] = [((), machine.disk)]
    samples["state_disk_free_bytes"] = [((), machine.disk_free)]
    if machine.memory_limit is not None:
        samples["memory_limit_bytes"] = [((), machine.memory_limit)]


def _flow(engine: Engine, samples: Samples) -> None:
    for stream, sealed in ((Stream.INFERENCE, engine.sealed_us), (Stream.GROUND_TRUTH, engine.joined_sealed_us)):
        if sealed is not None:
            samples["watermark_timestamp_seconds"].append(((str(stream),), sealed / MICROSECONDS))
    newest = [v.newest_us for v in engine.versions.values() if v.newest_us is not None]
    if newest and engine.sealed_us is not None:
        samples["pane_seal_delay_seconds"] = [((), max(0.0, (max(newest) - engine.sealed_us) / MICROSECONDS))]
    for partition, state in engine.flow.states.items():
        labels = (str(partition.stream), partition.topic, str(partition.number))
        if state.end is not None:
            samples["consumer_lag_events"].append((labels, max(0, state.end - (state.position or 0))))
        if state.clock.highest_us is not None:
            mark = (state.clock.highest_us - engine.lateness_us) / MICROSECONDS
            samples["partition_watermark_timestamp_seconds"].append((labels, mark))


def _counters(engine: Engine, samples: Samples) -> None:
    """Counters live in the state file, so that they go on over restarts."""
    for (name, text), count in engine.counters.items():
        labels: dict[str, str] = json.loads(text)
        if name == "events":
            key = (labels["model"], labels["version"], labels["stream"], labels["outcome"])
            samples["events_total"].append((key, count))
        elif name == "rejected":
            samples["rejected_total"].append(((labels["stream"], labels["reason"]), count))
        elif name == "deliveries":
            samples["deliveries_total"].append(((labels["target"], labels["outcome"]), count))
        elif name == "dropped_values":
            samples["dropped_values_total"].append(((labels["reason"],), count))
        elif name == "detector_changes":
            key = (labels["model"], labels["version"], labels["feature"], labels["detector"])
            samples["detector_changes_total"].append((key, count))
        elif name == "segment_events":
            of_segment = (labels["model"], labels["version"], labels["segment"])
            samples["segment_events_total"].append((of_segment, count))
        elif name == "incidents_opened":
            key = (labels["model"], labels["version"], labels["kind"], labels["severity"])
            samples["incidents_opened_total"].append((key, count))
    for (model, fate), count in engine.truth.ledger.told_labels.items():
        if fate != "orphan_waiting":  # it can fall; what waits is a gauge
            samples["events_total"].append(((model, "", str(Stream.GROUND_TRUTH), fate), count))


def _version(engine: Engine, index: int, version: Version, samples: Samples) -> None:
    key = (version.key.model, version.key.version)
    ledger = engine.truth.ledger
    samples["model_info"].append(((version.key.model, version.model.team or ""), 1))
    for metric, objective in version.model.objectives.items():
        bound = "at_least" if objective.strip().startswith(">") else "at_most"
        samples["performance_objective"].append(((version.key.model, metric, bound), float(objective.strip(" <>="))))
    if version.baseline is not None:
        provisional = "true" if version.baseline.provisional else "false"
        samples["baseline_info"].append(((*key, version.baseline.id, provisional), 1))
    if version.newest_us is not None:
        samples["last_event_timestamp_seconds"].append((key, version.newest_us / MICROSECONDS))
    samples["pending_predictions"].append((key, ledger.waiting(index)))
    samples["expired_predictions_total"].append((key, ledger.expired[index]))


def _incidents(line: Line, samples: Samples) -> None:
    active, effect = samples["incident_active"], samples["incident_effect"]
    head: LabelValues = (line.key.model, line.key.version)
    if not line.is_whole:
        active, effect = samples["segment_incident_active"], samples["segment_incident_effect"]
        head = (*head, line.key.segment_name)
    for incident in line.book.open_incidents:
        onset = ((line.key.model, line.key.version, incident.id), incident.onset_us / MICROSECONDS)
        samples["incident_onset_timestamp_seconds"].append(onset)
        for evidence in incident.subjects:
            labels = (*head, str(incident.kind), evidence.name, str(incident.severity), incident.id)
            active.append((labels, 1))
            if np.isfinite(evidence.effect):  # a size that cannot be told is left out, the subject is not
                effect.append((labels, evidence.effect))


def _budget(line: Line, samples: Samples) -> None:
    assert line.watch is not None
    key = (line.key.model, line.key.version)
    between = line.watch.budget.events_between(line.watch.traffic.rate)
    samples["false_alarm_budget_events"].append((key, between))
    for shift, events in worst_shifts(line).items():
        samples["detectable_shift_events"].append(((*key, f"{shift:g}"), events))


def _features(line: Line, samples: Samples) -> None:
    key = (line.key.model, line.key.version)
    for seconds in sorted(line.engine.config.windows)[:PUBLISHED_WINDOWS]:
        found = line.trailing(seconds)
        if found is None:
            continue
        window = duration_text(seconds)
        profile, scores = found
        detailed = {name for name, _ in line.subject_names()[:BIN_SUBJECTS]}
        for score in _published(scores):
            labels = (*key, score.subject, score.statistic, window, score.reference)
            samples["feature_drift_score"].append((labels, score.value))
            samples["feature_drift_threshold"].append((labels, score.threshold))
            if score.subject in detailed:
                samples["feature_drift_expected"].append((labels, score.expected))
            samples["feature_window_samples"].append(((*key, score.subject, window), score.samples))
        _missing(line, profile, window, samples)
        _latency(line, profile, window, samples)


def _published(scores: list[Score]) -> Iterator[Score]:
    return (score for score in scores if score.statistic == PUBLISHED_STATISTIC)


def _segment_scores(line: Line, samples: Samples) -> None:
    """The last window of the shortest length: segments have no trailing windows, there are too many of them."""
    seconds = min(line.engine.config.windows)
    for score in _published(line.latest.get(seconds, [])):
        labels = (line.key.model, line.key.version, line.key.segment_name, score.subject, score.statistic,
                  duration_text(seconds), score.reference)  # fmt: skip
        samples["segment_feature_drift_score"].append((labels, score.value))
        samples["segment_feature_drift_threshold"].append((labels, score.threshold))


def _missing(line: Line, profile: Profile, window: str, samples: Samples) -> None:
    if profile.rows:
        for (name, _), count in zip(line.subject_names(), profile.counts[:, MISSING].tolist(), strict=True):
            labels = (line.key.model, line.key.version, name, window)
            samples["feature_missing_ratio"].append((labels, count / profile.rows))


def _latency(line: Line, profile: Profile, window: str, samples: Samples) -> None:
    assert line.baseline is not None
    for subject, counts in zip(line.baseline.schema.subjects, profile.counts, strict=True):
        if subject.key == LATENCY and isinstance(subject.bins, NumericBins):
            for percentile in PERCENTILES:
                labels = (line.key.model, line.key.version, str(percentile), window)
                seconds = subject.bins.quantile(counts, percentile / 100) / 1000
                samples["latency_seconds"].append((labels, seconds))


def _bins(line: Line, samples: Samples) -> None:
    assert line.baseline is not None
    head = (line.key.model, line.key.version, line.baseline.id)
    names = line.subject_names()
    reference = line.coarse(line.baseline.profile.counts)
    for f in range(len(reference)):
        total = max(int(reference[f].sum()), 1)
        for b, label in enumerate(line.bin_names(f)):
            if label is None:
                continue
            labels = (*head, names[f][0], label)
            samples["feature_reference_ratio"].append((labels, float(reference[f, b]) / total))
            samples["feature_observations_total"].append((labels, float(line.observed[f, b])))
        for b, upper in enumerate(line.coarse_bounds(f)):
            samples["feature_bin_upper"].append(((*head, names[f][0], line.bin_names(f)[b] or ""), upper))


def _performance(engine: Engine, line: Line, samples: Samples) -> None:
    """Cohorts of every window length, and what arrived of the shortest: of the default outcome by name, of others by theirs."""
    for other, name in enumerate(engine.names.outcomes):
        if name != OUTCOME and line.is_whole:
            _outcome(engine, line, other, name, samples)
    if OUTCOME not in engine.names.outcomes:
        return
    outcome = engine.names.outcomes.index(OUTCOME)
    for seconds in engine.config.windows:
        cohort = engine.shown.cohort(line, outcome, seconds)
        if cohort is not None:
            _metrics(line, "cohort", cohort.key, cohort.profile, samples)
            if line.is_whole:
                _labelled(engine, line, cohort, samples)
    for seconds in sorted(engine.config.windows)[:PUBLISHED_WINDOWS]:
        arrived = engine.outcomes.arrived(line, outcome, seconds)
        if arrived is not None:
            _metrics(line, "arrival", *arrived, samples)
    reference = engine.outcomes.reference(line, outcome) if line.is_whole else None
    if reference is not None:
        for metric, found in headlines(reference):
            samples["performance_baseline"].append(((line.key.model, line.key.version, metric), found.value))


def _outcome(engine: Engine, line: Line, outcome: int, name: str, samples: Samples) -> None:
    """A named outcome, with less beside it: there may be twenty of them."""
    head = (line.key.model, line.key.version, name)
    for seconds in engine.config.windows:
        cohort, window = engine.shown.cohort(line, outcome, seconds), duration_text(seconds)
        if cohort is None:
            continue
        for metric, found in headlines(cohort.profile):
            samples["outcome_performance"].append(((*head, metric, "cohort", window), found.value))
        if not np.isnan(cohort.coverage):
            samples["outcome_label_coverage_ratio"].append(((*head, window), cohort.coverage))
    for seconds in sorted(engine.config.windows)[:PUBLISHED_WINDOWS]:
        arrived = engine.outcomes.arrived(line, outcome, seconds)
        for metric, found in headlines(arrived[1]) if arrived is not None else ():
            samples["outcome_performance"].append(((*head, metric, "arrival", duration_text(seconds)), found.value))


def _metrics(line: Line, basis: str, key: CohortKey, profile: OutcomeProfile, samples: Samples) -> None:
    """The figures of one window."""
    head, (_, _, seconds, start_us) = (line.key.model, line.key.version), key
    window = duration_text(seconds)
    for metric, found in headlines(profile):
        if not line.is_whole:
            samples["segment_performance"].append(((*head, line.key.segment_name, metric, basis, window), found.value))
            continue
        labels = (*head, metric, basis, window)
        samples["performance"].append((labels, found.value))
        samples["performance_lower"].append((labels, found.lower))
        samples["performance_upper"].append((labels, found.upper))
        samples["performance_samples"].append((labels, found.samples))
    if line.is_whole:
        _window_end(head, basis, seconds, start_us, samples)


def _window_end(head: tuple[str, str], basis: str, seconds: int, start_us: int, samples: Samples) -> None:
    labels = (*head, basis, duration_text(seconds))
    samples["performance_window_end_timestamp_seconds"].append((labels, start_us / MICROSECONDS + seconds))


def _labelled(engine: Engine, line: Line, cohort: Cohort, samples: Samples) -> None:
    """How far to trust a cohort, and what its labels say beyond the metrics."""
    head, (_, outcome, seconds, _) = (line.key.model, line.key.version), cohort.key
    window = duration_text(seconds)
    samples["performance_ripe"].append(((*head, window), float(cohort.is_ripe)))
    samples["performance_unusable"].append(((*head, window), cohort.profile.unusable))
    for name, share in (("label_coverage_ratio", cohort.coverage), ("label_coverage_expected_ratio", cohort.usual)):
        if not np.isnan(share):
            samples[name].append(((*head, window), share))
    if seconds == _matrix_window(engine):
        _classes(head, cohort.profile, window, samples)
        _errors(head, cohort.profile, engine.outcomes.reference(line, outcome), window, samples)


def _label_habits(engine: Engine, index: int, samples: Samples) -> None:
    """When the labels of a version usually come, and of which classes they are."""
    if OUTCOME not in engine.names.outcomes:
        return
    outcome, key = engine.names.outcomes.index(OUTCOME), engine.versions[index].key
    head = (key.model, key.version)
    through_us = engine.outcomes.labels.through_us(index, outcome)
    if through_us is not None:
        samples["label_through_seconds"].append((head, through_us / MICROSECONDS))
    for label, is_known, count in engine.classes.counts(index, outcome):
        samples["truths_total"].append(((*head, label, "true" if is_known else "false"), count))


def _estimates(engine: Engine, line: Line, samples: Samples) -> None:
    """What is expected of the newest closed windows, whether or not their labels are there."""
    head = (line.key.model, line.key.version)
    for seconds in sorted(engine.config.windows)[:PUBLISHED_WINDOWS]:
        newest = engine.estimates.recent(line, seconds)
        gaps = engine.estimates.gaps(line, seconds) if line.is_whole else {}
        if line.is_whole and newest is not None:
            _window_end(head, "estimated", seconds, newest[0][2], samples)
        for name, estimate in headlined({} if newest is None else newest[1]):
            found, labels = estimate.metric(), (name, "estimated", duration_text(seconds))
            if not line.is_whole:
                samples["segment_performance"].append(((*head, line.key.segment_name, *labels), found.value))
                continue
            samples["performance"].append(((*head, *labels), found.value))
            samples["performance_lower"].append(((*head, *labels), found.lower))
            samples["performance_upper"].append(((*head, *labels), found.upper))
            samples["performance_samples"].append(((*head, *labels), found.samples))
            samples["performance_gap_windows"].append(((*head, name, labels[-1]), gaps.get(name, 0)))


def headlined(found: Mapping[str, Expected]) -> Iterator[tuple[str, Expected]]:
    """Estimates with series of their own: those of single classes are in the tables."""
    return ((name, estimate) for name, estimate in found.items() if "[" not in name)


def _matrix_window(engine: Engine) -> int:
    """The longer published window: a matrix wants labels more than it wants to be new."""
    return sorted(engine.config.windows)[:PUBLISHED_WINDOWS][-1]


def _classes(head: tuple[str, str], profile: OutcomeProfile, window: str, samples: Samples) -> None:
    """Who was taken for what."""
    for (truth, predicted), count in sorted(_confusion(profile).items()):
        samples["confusion_predictions"].append(((*head, truth, predicted, window), count))
    for key, count in zip(*map(np.ndarray.tolist, profile.reliability.arrays()), strict=True):
        tenth = f"{key // 2 / 10:.1f}-{(key // 2 + 1) / 10:.1f}"
        came_true = "true" if key % 2 else "false"
        samples["confidence_predictions"].append(((*head, tenth, came_true, window), count))


def _errors(
    head: tuple[str, str], profile: OutcomeProfile, reference: OutcomeProfile | None, window: str, samples: Samples
) -> None:
    """How far off predictions are, beside the baseline's, in the root of its mean squared error."""
    if reference is None or not len(reference.errors):
        return
    scale = metrics(reference)["rmse"].value or 1.0
    for name, share in _error_shares(profile, scale):
        samples["error_ratio"].append(((*head, name, window), share))
    for name, share in _error_shares(reference, scale):
        samples["error_reference_ratio"].append(((*head, name), share))


def _error_shares(profile: OutcomeProfile, scale: float) -> Iterator[tuple[str, float]]:
    """(bin, share) of each; the numbers put the names in order."""
    keys, counts = profile.errors.arrays()
    place = np.searchsorted(ERROR_EDGES, values_of_bins(keys) / scale)
    shares = np.bincount(place, weights=counts, minlength=len(ERROR_EDGES) + 1) / max(int(counts.sum()), 1)
    names = [f"below {ERROR_EDGES[0]}", *(f"{a} to {b}" for a, b in pairwise(ERROR_EDGES)), f"above {ERROR_EDGES[-1]}"]
    for number, (name, share) in enumerate(zip(names, shares.tolist(), strict=True)):
        yield f"{number}: {name}", share


def _confusion(profile: OutcomeProfile) -> Counter[tuple[str, str]]:
    """Rows by (truth, predicted): the most frequent classes by name, the rest together."""
    weight: Counter[str] = Counter()
    for pair, count in profile.pairs.items():
        for label in pair:
            weight[label] += count
    ranked = sorted(weight, key=lambda label: (-weight[label], label))
    kept = set(ranked if len(ranked) <= CONFUSED_CLASSES else ranked[: CONFUSED_CLASSES - 1])

    def name(label: str) -> str:
        return _class_name(profile, label) if label in kept else "other"

    found: Counter[tuple[str, str]] = Counter()
    for (truth, predicted), count in profile.pairs.items():
        found[(name(truth), name(predicted))] += count
    return found


def _class_name(profile: OutcomeProfile, label: str) -> str:
    """A class as people call it: binary outcomes know the positive label only."""
    if profile.task is not Task.BINARY:
        return label
    positive = profile.positive_label or "1"
    return positive if label == "1" else f"not {positive}"


def _delays(engine: Engine) -> list[tuple[LabelValues, Distribution]]:
    """Label delays by model and outcome: versions of one model share a habit, its clicks and purchases do not."""
    ledger = engine.truth.ledger
    counts: dict[tuple[str, str], list[int]] = {}
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for (version, outcome), buckets in ledger.told_delays.items():
        key = engine.names.versions[version].model, engine.names.outcomes[outcome]
        held = counts.setdefault(key, [0] * len(buckets))
        counts[key] = [a + b for a, b in zip(held, buckets, strict=True)]
        sums[key] += ledger.told_delay_us[(version, outcome)] / MICROSECONDS
    return [(key, Distribution(tuple(c), sums[key])) for key, c in counts.items()]
