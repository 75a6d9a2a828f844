"""Estimated performance, before labels come: what the predictions of each window say of themselves, and what to expect.

Every prediction is counted, late ones too, in the windows of its own time: the rows a cohort's labels are a part of. The
estimate of a window is read by the calibration of the baseline that is in use: after a promotion it is another.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.config import duration_text
from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.calibration import Calibration
from stream_monitor.judge.estimate import OUTCOME, Estimator, estimator_of
from stream_monitor.judge.expectation import Expected, gap_text, is_outside
from stream_monitor.judge.lacking import Arrival
from stream_monitor.judge.loss import LossEstimator
from stream_monitor.judge.metric import Metric
from stream_monitor.judge.performance import metrics, performance_rows
from stream_monitor.judge.verdicts import Span
from stream_monitor.publish.log import fields
from stream_monitor.records import (
    MICROSECONDS,
    Codes,
    Flags,
    Floats,
    Inferences,
    Ints,
    Json,
    LineKey,
    ModelKey,
    Performance,
    window_start,
    window_starts,
)
from stream_monitor.summarize.leaves import Leaves
from stream_monitor.summarize.outcome import DECISION, OutcomeProfile, Task, is_moderate
from stream_monitor.summarize.rows import Rows
from stream_monitor.summarize.scores import (
    ClassProbabilities,
    ScoreProfile,
    add_by_place,
    of_leaves,
    of_scores,
    of_texts,
)
from stream_monitor.truth import CLASS_DELAY_BOUNDS_SECONDS

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.versions import Line, Version

log = logging.getLogger(__name__)

KIND = "predicted"
"""Of the states that hold the profiles, by line, window length and start."""

PENDING_ROWS = 16_384
"""Rows that wait to be counted together: a round costs some 50 µs for each line, window length and class."""

CACHED_WINDOWS = 1_000
"""Profiles kept in memory; 2 to 10 kB each."""

COMPARED_WINDOWS = 8
"""Windows over which a departure of the realised figures is followed."""

NEVER_US = 2**61
"""Later than any label."""

FEWEST_COMPARED = 30
"""Labelled rows of a window below which its realised figures are not compared."""

AnyEstimator = Estimator | LossEstimator

WindowKey = tuple[int, int, int]  # line, window seconds, start_us


_Labelled = tuple[WindowKey, Mapping[str, Expected], Mapping[str, Metric]]
"""A window with labels: what was expected, and what they show."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What came of an estimate. `realised`: the cohort's figure, None before labels; `adjusted`: the estimate of all rows,
    as their labels show where they came and as expected of the others.

    `outside_windows`: of how many windows in a row, up to the newest with labels, the realised figure lies above (+) or
    below (-) the estimate's interval: by chance of one in 40, of three hardly ever. None where it is not followed.
    """

    realised: Metric | None
    adjusted: Metric | None
    outside_windows: int | None = None

    def told(self, metric: str) -> Json:
        """For the API, beside the estimate of a metric."""
        labelled = 0 if self.realised is None else self.realised.samples
        found: dict[str, object] = {"realised": _finite(self.realised, "value"), "realised_samples": labelled}
        found |= {"adjusted" + part: _finite(self.adjusted, name) for part, name in _PARTS.items()}
        if self.outside_windows is not None:
            found |= {"outside_windows": self.outside_windows, "gap": gap_text(metric, self.outside_windows)}
        return found


_PARTS = {"": "value", "_lower": "lower", "_upper": "upper"}


def _finite(metric: Metric | None, name: str) -> float | None:
    value = math.nan if metric is None else getattr(metric, name)
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class LineReader:
    """What another thread reads the stored windows of a line with; nothing of it changes."""

    estimator: AnyEstimator
    reference: OutcomeProfile
    arrival: Arrival | None

    def adjusted(self, scores: ScoreProfile, known: OutcomeProfile, start_us: int, end_us: int) -> dict[str, Expected]:
        """The estimates of a window with what its labels show already; none without labels."""
        if not known.rows or not known.is_whole:
            return {}
        if isinstance(self.estimator, LossEstimator):
            return self.estimator.estimates(scores, known)
        lacking = None if self.arrival is None else self.arrival.lacking(start_us, end_us)
        return self.estimator.estimates(scores, known, lacking)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a baseline allows: its estimator and its own truth, or neither."""

    baseline: Baseline
    estimator: AnyEstimator | None
    reference: OutcomeProfile | None


@dataclass(slots=True)
class _Pending:
    """Rows of one version that are not counted yet."""

    estimator: AnyEstimator
    rows: int = 0
    segment: list[Ints | Codes] = field(default_factory=list)
    time_us: list[Ints] = field(default_factory=list)
    label: list[pa.Array] = field(default_factory=list)
    score: list[Floats] = field(default_factory=list)
    probabilities: list[pa.Array] = field(default_factory=list)
    leaf: list[Ints] = field(default_factory=list)

    def said(self) -> ClassProbabilities:
        """What the rows gave each class of the estimator, marked where they predict it; of numbers, their leaves."""
        estimator = self.estimator
        if isinstance(estimator, LossEstimator):
            return of_leaves(estimator.leaves, np.concatenate(self.leaf))
        label = pa.concat_arrays(self.label)
        if estimator.task is Task.MULTICLASS:
            return of_texts(pa.concat_arrays(self.probabilities), label, tuple(estimator.classes))
        score = np.concatenate(self.score)
        chosen = score >= DECISION
        if label.null_count < len(label):
            wanted = pa.array([estimator.positive_label], pa.string())[0]
            positive = np.asarray(pc.fill_null(pc.equal(label, wanted), pa.scalar(False)))
            chosen = np.where(np.asarray(pc.is_valid(label)), positive, chosen)
        return of_scores(score, chosen)


class Estimates:
    """The predictions of all lines by window, and their estimates."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._windows: dict[WindowKey, ScoreProfile] = {}
        self._dirty: set[WindowKey] = set()
        self._pending: dict[int, _Pending] = {}
        self._readings: dict[int, _Reading] = {}
        self._found: dict[WindowKey, dict[str, Expected]] = {}
        self._beside: dict[tuple[int, int], tuple[list[object], dict[str, Beside]]] = {}
        self._delayed_classes: tuple[int, Mapping[int, list[str]]] = (0, {})

    # -- predictions made ------------------------------------------------------------------------

    def note_predictions(
        self,
        version: int,
        segment: Ints | Codes,
        time_us: Ints,
        mine: Flags,
        *,
        label: pa.Array,
        score: Floats,
        probabilities: pa.Array,
        columns: Inferences,
        rows: Ints,
    ) -> Floats:
        """Count those of the predictions (n,) that are `mine`, of a version, if its baseline allows an estimate.

        `rows` (n,): where they stand in the batch they came in, `columns`. What size of error and which error to expect of
        each of mine, (2, mine); NaN where that cannot be told.
        """
        estimator = self.estimator(self.engine.versions[version])
        expected = np.full((2, int(mine.sum())), np.nan)
        if estimator is None:
            return expected
        if not mine.all():
            chosen = pa.array(mine)
            label, probabilities = label.filter(chosen), probabilities.filter(chosen)
            segment, time_us, score, rows = segment[mine], time_us[mine], score[mine], rows[mine]
        held = self._pending.setdefault(version, _Pending(estimator))
        held.segment.append(segment)
        held.time_us.append(time_us)
        if isinstance(estimator, LossEstimator):
            leaf = self._leaves(estimator.leaves, columns, rows)
            held.leaf.append(leaf)
            expected = estimator.expected(leaf)
        elif estimator.task is Task.MULTICLASS:
            held.label.append(label)
            held.probabilities.append(probabilities)
        else:
            held.label.append(label)
            held.score.append(score)
        held.rows += len(time_us)
        if held.rows >= PENDING_ROWS:
            self._count(version)
        return expected

    def _leaves(self, leaves: Leaves, columns: Inferences, row: Ints) -> Ints:
        """The leaf of each row, -1 where it predicts no number that an error could be told of."""
        rows = Rows.of(
            columns,
            row,
            segment=np.zeros(len(row), np.int32),
            most_features=self.engine.config.limits.features,
            known=leaves.features,
        )
        return np.where(is_moderate(columns.value[row]), leaves.of(rows), -1)

    def estimator(self, version: Version) -> AnyEstimator | None:
        """The estimator of the baseline in use, if it allows one."""
        held = self._reading(version)
        return None if held is None else held.estimator

    def missed(self, line: Line, outcome: int) -> float | None:
        """The part of a change of the errors of numbers that what is expected misses; None where nothing is."""
        estimator = self._estimator_of(line, outcome)
        return estimator.losses.missed if isinstance(estimator, LossEstimator) else None

    def calibration(self, line: Line, outcome: int, label: str) -> Calibration | None:
        """Of what a model of several classes gives one of them."""
        estimator = self._estimator_of(line, outcome)
        return estimator.classes.get(label) if isinstance(estimator, Estimator) else None

    def _estimator_of(self, line: Line, outcome: int) -> AnyEstimator | None:
        """None of an outcome that is not estimated."""
        is_estimated = self.engine.names.outcomes[outcome] == OUTCOME
        return self.estimator(self._version(line.key)) if is_estimated else None

    def _reading(self, version: Version) -> _Reading | None:
        """Of the baseline in use; why it allows no estimate is said once for each baseline."""
        if version.baseline is None:
            return None
        held = self._readings.get(version.index)
        if held is None or held.baseline is not version.baseline:
            self._count(version.index)
            self._found.clear()
            found = estimator_of(version.baseline, version.model.positive_label)
            if isinstance(found, str):
                log.info(
                    "no_performance_estimate",
                    extra=fields(model=version.key.model, version=version.key.version,
                                 baseline=version.baseline.id, reason=found),
                )  # fmt: skip
                held = _Reading(version.baseline, None, None)
            else:
                reference = OutcomeProfile.from_bytes(version.baseline.outcomes[OUTCOME])
                held = _Reading(version.baseline, found, reference)
            self._readings[version.index] = held
        return held

    def _count(self, version: int) -> None:
        """Take what is pending into the windows."""
        held = self._pending.pop(version, None)
        if held is None:
            return
        segment, time_us = np.concatenate(held.segment).astype(np.int64), np.concatenate(held.time_us)
        said = held.said()
        for line, row in self.engine.outcomes.cohorts.lines(version, segment):
            part, times = (said, time_us) if len(row) == len(time_us) else (said.take(row), time_us[row])
            for seconds in self.engine.config.windows:
                self._add(line.number, seconds, times, part)

    def _add(self, line: int, seconds: int, time_us: Ints, part: ClassProbabilities) -> None:
        first, last = (window_start(int(t), seconds) for t in (time_us.min(), time_us.max()))
        starts, place = np.array([first]), None
        if first != last:
            starts, place = np.unique(window_starts(time_us, seconds), return_inverse=True)
        keys = [(line, seconds, start) for start in starts.tolist()]
        self._fetch(keys)
        add_by_place([self._windows[key] for key in keys], part, place)
        self._dirty.update(keys)
        for key in keys:
            self._found.pop(key, None)

    def _fetch(self, keys: Iterable[WindowKey]) -> None:
        """Have these profiles at hand."""
        missing = {"/".join(map(str, key)): key for key in keys if key not in self._windows}
        found = self.engine.store.some_states(KIND, list(missing))
        self._windows |= {
            key: ScoreProfile.from_bytes(found[text]) if text in found else ScoreProfile()
            for text, key in missing.items()
        }

    # -- reading ---------------------------------------------------------------------------------

    def estimates(self, line: Line, key: WindowKey) -> dict[str, Expected]:
        """The estimates of one window of a line; none where nothing can be told."""
        version = self._version(line.key)
        estimator = self.estimator(version)
        self._count(version.index)
        if estimator is None:
            return {}
        if key not in self._found:
            self._fetch([key])
            self._found[key] = estimator.estimates(self._windows[key])
        return self._found[key]

    def recent(self, line: Line, seconds: int) -> tuple[WindowKey, dict[str, Expected]] | None:
        """The newest closed window of a line with an estimate, among the last few."""
        for key in self._closed(line, seconds):
            found = self.estimates(line, key)
            if found:
                return key, found
        return None

    def beside(self, line: Line, key: WindowKey) -> dict[str, Beside]:
        """What came of each estimate of a window, and how the newest labelled windows around it fared."""
        labelled: list[_Labelled] = [
            (k, self.estimates(line, k), metrics(cohort))
            for k in self._compared(line, key[1])
            if (cohort := self._cohort(k)) is not None and cohort.rows >= FEWEST_COMPARED and self.estimates(line, k)
        ]
        own, expected = self._cohort(key), self.estimates(line, key)
        came = None if own is None or not own.rows else metrics(own)
        # All are made anew whenever the rows behind them change: the same objects say the same.
        seen: list[object] = [expected, came, *(part for _, *parts in labelled for part in parts)]
        held = self._beside.get((line.number, key[1]))
        if held is None or len(held[0]) != len(seen) or any(a is not b for a, b in zip(held[0], seen, strict=True)):
            adjusted = self._adjusted(line, key, own)
            found = {
                name: Beside(
                    comparable(came, name),
                    adjusted[name].metric() if name in adjusted else None,
                    _run(_side(there.get(name), later.get(name)) for _, there, later in labelled),
                )
                for name in expected
            }
            held = self._beside[(line.number, key[1])] = (seen, found)
        return held[1]

    def _adjusted(self, line: Line, key: WindowKey, cohort: OutcomeProfile | None) -> dict[str, Expected]:
        reader = self._reader(self._version(line.key))
        if cohort is None or reader is None:
            return {}
        self._fetch([key])
        return reader.adjusted(self._windows[key], cohort, key[2], key[2] + key[1] * MICROSECONDS)

    def gaps(self, line: Line, seconds: int) -> dict[str, int]:
        """In how many labelled windows in a row each realised metric was outside, + above or - below."""
        newest = self.recent(line, seconds)
        beside = {} if newest is None else self.beside(line, newest[0])
        return {name: told.outside_windows or 0 for name, told in beside.items()}

    def _cohort(self, key: WindowKey) -> OutcomeProfile | None:
        """The labelled predictions of a window."""
        if OUTCOME not in self.engine.names.outcomes:
            return None
        line, seconds, start = key
        return self.engine.outcomes.cohorts.profile((line, self.engine.names.outcomes.index(OUTCOME), seconds, start))

    def _compared(self, line: Line, seconds: int) -> list[WindowKey]:
        """The last windows whose labels are through as usual; the last closed ones, where that is not known."""
        version, sealed_us = self._version(line.key).index, self.engine.sealed_us
        through_us = None
        if OUTCOME in self.engine.names.outcomes:
            through_us = self.engine.outcomes.labels.through_us(version, self.engine.names.outcomes.index(OUTCOME))
        return [] if sealed_us is None else _windows_before(line, seconds, sealed_us - (through_us or 0))

    def _closed(self, line: Line, seconds: int) -> list[WindowKey]:
        """The last closed windows, the newest first."""
        return [] if self.engine.sealed_us is None else _windows_before(line, seconds, self.engine.sealed_us)

    def _version(self, key: LineKey) -> Version:
        index = self.engine.names.version_index(ModelKey(key.model, key.version))
        assert index is not None
        return self.engine.versions[index]

    def performance(self, line: Line, key: WindowKey) -> list[Performance]:
        """The estimates of one window as rows."""
        reference = self._reference(line)
        return rows_of(line.key, key[1], key[2], self.estimates(line, key), reference)

    def _reference(self, line: Line) -> OutcomeProfile | None:
        """The baseline's own truth, which stands beside estimates whether or not a label has come yet."""
        held = self._reading(self._version(line.key))
        return None if held is None else held.reference

    def all_performance(self) -> Iterator[Performance]:
        """The estimates of every window that is kept."""
        self.save()
        lines = {line.number: line for version in self.engine.versions.values() for line in version.lines.values()}
        references = {number: self._reference(line) for number, line in lines.items()}
        for text, body in self.engine.store.states(KIND).items():
            number, seconds, start = (int(part) for part in text.split("/"))
            line = lines[number]
            estimator = self.estimator(self._version(line.key))
            if estimator is not None:
                found = estimator.estimates(ScoreProfile.from_bytes(body))
                yield from rows_of(line.key, seconds, start, found, references[number])

    def readers(self) -> dict[int, LineReader]:
        """By line: what another thread reads stored windows with."""
        found: dict[int, LineReader] = {}
        for version in self.engine.versions.values():
            reader = self._reader(version)
            if reader is not None:
                found |= {line.number: reader for line in version.lines.values()}
        return found

    def _reader(self, version: Version) -> LineReader | None:
        held = self._reading(version)
        if held is None or held.estimator is None or held.reference is None:
            return None
        return LineReader(held.estimator, held.reference, self._arrival(version.index, held.estimator))

    def _arrival(self, version: int, estimator: AnyEstimator) -> Arrival | None:
        """How labels of each class come, of a classifier; None before the first."""
        now_us, names = self.engine.joined_sealed_us, self.engine.names.outcomes
        if isinstance(estimator, LossEstimator) or now_us is None or OUTCOME not in names:
            return None
        outcome, held = names.index(OUTCOME), self.engine.truth.ledger.class_delays
        is_binary = estimator.task is Task.BINARY
        delays = {
            name: np.zeros(len(CLASS_DELAY_BOUNDS_SECONDS) + 1, np.int64)
            for name in (("1", "0") if is_binary else estimator.classes)
        }
        for label in self._delayed(outcome).get(version, ()):
            name = label if not is_binary else "1" if label == estimator.positive_label else "0"
            if name in delays:
                delays[name] += np.array(held.get((version, outcome, label), 0), np.int64)
        final = self.engine.outcomes.labels.usual_coverage(version, outcome, 0, 0, NEVER_US)
        return Arrival(delays, CLASS_DELAY_BOUNDS_SECONDS, final, now_us)

    def _delayed(self, outcome: int) -> Mapping[int, list[str]]:
        """The classes whose delays are known, by version; found anew when there are more or fewer of them."""
        held = self.engine.truth.ledger.class_delays
        if self._delayed_classes[0] != len(held):
            found: dict[int, list[str]] = defaultdict(list)
            for version, which, label in held:
                if which == outcome:
                    found[version].append(label)
            self._delayed_classes = (len(held), found)
        return self._delayed_classes[1]

    # -- the store -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        for version in list(self._pending):
            self._count(version)
        self.engine.store.put_states(
            KIND, {"/".join(map(str, key)): self._windows[key].to_bytes() for key in sorted(self._dirty)}
        )
        self._dirty = set()
        if len(self._windows) > CACHED_WINDOWS:
            self._windows = {}
        if len(self._found) > CACHED_WINDOWS:
            self._found = {}


def rows_of(
    line: LineKey, seconds: int, start_us: int, found: Mapping[str, Expected], reference: OutcomeProfile | None
) -> list[Performance]:
    """Estimates as rows of `performance.parquet`. No label is in them: their coverage is 0."""
    return performance_rows(
        {name: estimate.metric() for name, estimate in found.items()},
        Span(line, duration_text(seconds), start_us, start_us + seconds * MICROSECONDS),
        outcome=OUTCOME,
        basis="estimated",
        coverage=0.0,
        reference=reference,
    )


def comparable(realised: Mapping[str, Metric] | None, name: str) -> Metric | None:
    """What labels show of a metric, None where they are too few to be compared."""
    found = None if realised is None else realised.get(name)
    return found if found is not None and found.samples >= FEWEST_COMPARED else None


def _windows_before(line: Line, seconds: int, until_us: int) -> list[WindowKey]:
    """The last windows that ended by a time, the newest first."""
    newest, span = window_start(until_us, seconds), seconds * MICROSECONDS
    return [(line.number, seconds, newest - k * span) for k in range(1, COMPARED_WINDOWS + 1)]


def _side(estimate: Expected | None, realised: Metric | None) -> int:
    if estimate is None or realised is None:
        return 0
    return is_outside(estimate.metric(realised.samples), realised.value)


def _run(sides: Iterable[int]) -> int:
    """How many in a row, from the first on, lie on one side; its sign is the side."""
    found = 0
    for side in sides:
        if side == 0 or side * found < 0:
            break
        found += side
    return found
