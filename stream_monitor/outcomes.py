"""Model quality from joined labels: by prediction cohort, by arrival, and what the errors say of the concept.

What arrives is folded when its pane seals, in the order of (time, id), and watched truth by truth (`judge.concept`):
that opens incidents. Its windows size what was found.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from stream_monitor import measures
from stream_monitor.cohorts import CohortKey, Cohorts
from stream_monitor.config import ModelConfig, duration_text
from stream_monitor.holding import Arrived, Holding
from stream_monitor.judge.answers import AT_ONCE, Answers, Rise
from stream_monitor.judge.calibrate import LABELS_SHARE, Budget
from stream_monitor.judge.concept import RING, Concept, Turn
from stream_monitor.judge.detectors import DetectorBank
from stream_monitor.judge.performance import (
    error_shift,
    metrics,
    performance_rows,
    score_errors,
    standardised_errors,
)
from stream_monitor.judge.relation import LEVEL, Relation
from stream_monitor.judge.selection import Kinds
from stream_monitor.judge.verdicts import Span
from stream_monitor.judge.wording import describe_errors
from stream_monitor.judge.wording import name as name_of
from stream_monitor.labels import LATE_SHARE, LabelArrival
from stream_monitor.measures import Measure
from stream_monitor.objectives import OBJECTIVES_SHARE, Objectives
from stream_monitor.publish.log import fields
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Evidence,
    Floats,
    Incident,
    IncidentKind,
    Ints,
    Performance,
    Score,
    Severity,
    Verdict,
    window_start,
    window_starts,
)
from stream_monitor.summarize.outcome import (
    Joined,
    OutcomeProfile,
    Task,
    class_probabilities,
    is_current,
)
from stream_monitor.truth import DAY_US, MET_SCHEMA, Met, from_ipc, to_ipc

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.versions import Line

log = logging.getLogger(__name__)

LEARN_LABELS = 1_000
"""Without truth in the baseline, errors are judged by the first 1,000 labelled predictions."""

SEGMENT_RING = 1_024
"""Truths remembered of a segment: its watch is for what is large in a small part, and there may be fifty of them."""

MOST_CLASSES = 10
CLASSES_SHARE = 0.5
"""The most frequent of many classes are watched by themselves, by half of the outcome's part: one that turns is diluted."""

HEARD_DAYS = 32
"""An outcome that was silent for so long spends no part of the budget until it is heard again."""

RECENT_ERRORS = 64
USUAL_ERRORS = 2_048
"""Over how many errors the fading means go that tell which way errors moved. A shift of a quarter of a standard deviation,
the least that detectors find soon, is 2.8 deviations of the first; the second still knows what was before it."""

INPUTS = (IncidentKind.DATA_DRIFT, IncidentKind.PREDICTION_DRIFT, IncidentKind.DATA_QUALITY)
BROKEN = str(IncidentKind.DATA_QUALITY)


@dataclass(slots=True)
class _Window:
    """What arrived in one window, as it was known when it came: its start and the profile."""

    start_us: int
    profile: OutcomeProfile


@dataclass(slots=True)
class _Arrivals:
    """What arrived of one outcome of one line in the windows under way, and what errors are judged by."""

    task: Task
    positive_label: str | None
    open: dict[int, _Window]  # by window seconds
    reference: OutcomeProfile | None
    learnt: OutcomeProfile
    detectors: DetectorBank
    recent: float = 0.0  # fading means of the standardised errors; the reference's is 0
    usual: float = 0.0
    newest_us: int = NO_TIME  # when the last truth came
    first_us: int = NO_TIME  # and the first
    days: list[int] = field(default_factory=list)  # the last on which truths came
    is_settled: bool = True  # whether it is known what the truths are held to
    concept: Concept | None = None  # made when a truth comes that can be judged
    stored_concept: bytes | None = None  # as the state file has it
    latest: dict[int, int] = field(default_factory=dict)  # by window seconds: when the newest closed one began
    classes: dict[str, Concept] = field(default_factory=dict)  # of several classes: the watch over each
    stored_classes: dict[str, bytes] = field(default_factory=dict)
    answers: Answers | None = None  # the newest of all classes, beside those watches
    stored_answers: bytes | None = None
    holding: Holding = field(default_factory=Holding)
    kinds: Kinds | None = None  # how its truths are told apart by what they say, once it was asked

    def hold_to(self, measure: Measure, reference: OutcomeProfile | None) -> None:
        """Truths are held to something else from now on."""
        self.task, self.positive_label, self.is_settled = measure.task, measure.positive_label, measure.is_settled
        for window in self.open.values():
            window.profile = window.profile.told_anew(measure.task, measure.positive_label)
        self.reference, self.learnt = reference, OutcomeProfile(measure.task, measure.positive_label)

    def note_days(self, joined_us: Ints) -> None:
        """Truths came at these times (n,), the earliest first."""
        if self.first_us == NO_TIME:
            self.first_us = int(joined_us[0])
        since = int(joined_us[0]) // DAY_US - HEARD_DAYS
        self.days = sorted({day for day in self.days if day >= since} | set(np.unique(joined_us // DAY_US).tolist()))

    def is_heard(self, at_us: int) -> bool:
        """Whether truths came within HEARD_DAYS before a time; of its own day only the first is known by then."""
        day = at_us // DAY_US
        if not NO_TIME < self.first_us <= at_us:
            return False
        return self.first_us // DAY_US > day - HEARD_DAYS or any(day - HEARD_DAYS <= d < day for d in self.days)

    def detect_anew(self, detectors: DetectorBank) -> None:
        """The reference is another, and so are the units of what was known of the errors."""
        self.detectors, self.recent, self.usual = detectors, 0.0, 0.0

    def follow(self, errors: Floats) -> None:
        """Take standardised errors into the fading means, in order."""
        finite = errors[np.isfinite(errors)]
        self.recent = _faded(self.recent, finite, over=RECENT_ERRORS)
        self.usual = _faded(self.usual, finite, over=USUAL_ERRORS)

    def have_risen(self, *, minimum_effect: float) -> bool:
        """Whether the newest errors are worse than those before them, and practically worse than the reference."""
        return self.recent > max(self.usual, minimum_effect)

    def to_bytes(self) -> bytes:
        body = {
            "task": str(self.task),
            "positive_label": self.positive_label,
            "open": {str(s): [w.start_us, w.profile.to_bytes().hex()] for s, w in self.open.items()},
            "reference": None if self.reference is None else self.reference.to_bytes().hex(),
            "learnt": self.learnt.to_bytes().hex(),
            "detectors": self.detectors.to_bytes().hex(),
            "means": [self.recent, self.usual],
            "newest_us": self.newest_us,
            "first_us": self.first_us,
            "days": self.days,
            "latest": self.latest,
            "is_settled": self.is_settled,
        }
        return json.dumps(body).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> _Arrivals:
        body: dict[str, Any] = json.loads(raw)
        reference = body["reference"]
        recent, usual = body.get("means", (0.0, 0.0))
        return cls(
            Task(body["task"]),
            body["positive_label"],
            {
                int(s): _Window(start, OutcomeProfile.from_bytes(bytes.fromhex(profile)))
                for s, (start, profile, *_) in body["open"].items()
            },
            None if reference is None else OutcomeProfile.from_bytes(bytes.fromhex(reference)),
            OutcomeProfile.from_bytes(bytes.fromhex(body["learnt"])),
            DetectorBank.from_bytes(bytes.fromhex(body["detectors"])),
            recent,
            usual,
            body.get("newest_us", NO_TIME),
            body.get("first_us", body.get("newest_us", NO_TIME)),
            body.get("days", [body.get("newest_us", 0) // DAY_US - 1]),
            is_settled=body.get("is_settled", True),
            latest={int(seconds): start for seconds, start in body.get("latest", {}).items()},
        )


class Outcomes:
    """All outcomes of all lines."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cohorts = Cohorts(engine)
        self.labels = LabelArrival(engine)
        self.objectives = Objectives(engine, self, self.labels)
        self._waiting: list[pa.Table] = []
        self._waiting_changed = False
        self._arrivals: dict[tuple[int, int], _Arrivals] = {}
        self._dirty_arrivals: set[tuple[int, int]] = set()

    @classmethod
    def load(cls, engine: Engine) -> Outcomes:
        """What the state file holds."""
        outcomes = cls(engine)
        store = engine.store
        waiting = store.state("truth", "joined")
        if waiting is not None:
            # What waited for an earlier version of this program lacks some columns.
            whole = pa.concat_tables([MET_SCHEMA.empty_table(), from_ipc(waiting)], promote_options="default")
            outcomes._waiting.append(whole)
        for key, body in store.states("arrivals").items():
            line, outcome = key.split("/")
            outcomes._arrivals[(int(line), int(outcome))] = _Arrivals.from_bytes(body)
        for key, body in store.states("concept").items():
            line, outcome = key.split("/")
            outcomes._arrivals[(int(line), int(outcome))].stored_concept = body
        for key, body in store.states("class_concept").items():
            line, outcome, label = key.split("/", 2)
            outcomes._arrivals[(int(line), int(outcome))].stored_classes[label] = body
        for key, body in store.states("class_answers").items():
            line, outcome = key.split("/")
            outcomes._arrivals[(int(line), int(outcome))].stored_answers = body
        for key, body in store.states("held_truths").items():
            line, outcome = key.split("/")
            if (int(line), int(outcome)) in outcomes._arrivals:
                outcomes._arrivals[(int(line), int(outcome))].holding = Holding.from_bytes(body)
        outcomes._hold_to_what_is_configured()
        return outcomes

    def _hold_to_what_is_configured(self) -> None:
        """The configuration may have come to say what an outcome is, or something else, since the last start."""
        for (number, outcome), held in sorted(self._arrivals.items()):
            line = self._line(number)
            told = measures.configured(self.engine.config.model(line.key.model), self.engine.names.outcomes[outcome])
            if told is not None and (told.task, told.positive_label) != (held.task, held.positive_label):
                self._hold_to(line, outcome, held, told)
            elif told is not None:
                held.is_settled = True

    def _hold_to(self, line: Line, outcome: int, held: _Arrivals, measure: Measure) -> None:
        log.info("outcome_is_held_to", extra=fields(model=line.key.model, version=line.key.version,
                 outcome=self.engine.names.outcomes[outcome], task=measure.task))  # fmt: skip
        held.hold_to(measure, self._reference(line, outcome, measure.task))
        self._watch_anew(line, outcome, held)

    # -- joined truths ---------------------------------------------------------------------------

    def take(self, met: Met) -> None:
        """Restate the cohorts, and let what is new wait for its pane."""
        met = self._in_words_of_outcomes(met)
        for table, sign in ((met.new, 1), (met.removed, -1), (met.replaced, 1)):
            for version, outcome, rows in _groups(table):
                self._restate(version, outcome, rows, sign)
        if len(met.revised) or len(met.withdrawn):
            self._revise(self._unsealed(met.revised), met.withdrawn)
        if len(met.opened):
            self._waiting.append(self._unsealed(met.opened))
            self._waiting_changed = True

    def _in_words_of_outcomes(self, met: Met) -> Met:
        """Predictions named as the outcomes that are configured name them."""
        if not any(known.outcomes for known in self.engine.config.models.values()):
            return met
        told: dict[str, pa.Table] = {}
        for name in ("new", "removed", "replaced", "opened", "revised", "withdrawn"):
            table = getattr(met, name)
            parts = [
                measures.in_words_of_the_outcome(self._model(version), self.engine.names.outcomes[outcome], rows)
                for version, outcome, rows in _groups(table)
            ]
            told[name] = pa.concat_tables(parts) if parts else table
        return Met(**told)

    def _model(self, version: int) -> ModelConfig:
        return self.engine.config.model(self.engine.names.versions[version].model)

    def _unsealed(self, rows: pa.Table) -> pa.Table:
        """Truths at a time that is still open: only a partition that fell idle and came back can bring an earlier one."""
        floor = self.engine.joined_sealed_us
        if floor is not None:
            joined = np.maximum(rows["joined_us"].to_numpy(), floor)
            rows = rows.set_column(rows.schema.get_field_index("joined_us"), "joined_us", pa.array(joined))
        return rows.cast(MET_SCHEMA)

    def _revise(self, revised: pa.Table, withdrawn: pa.Table) -> None:
        """Correct what still waits by labels that had come when it was joined; few, so row by row."""
        truths = dict(zip(_made(revised), revised.to_pylist(), strict=True))
        gone = set(_made(withdrawn))
        waiting = _together(self._waiting)
        made = _made(waiting)
        for name in ("label", "number", "joined_us"):
            values = [
                truths[k][name] if k in truths else v for k, v in zip(made, waiting[name].to_pylist(), strict=True)
            ]
            place = waiting.schema.get_field_index(name)
            waiting = waiting.set_column(place, name, pa.array(values, MET_SCHEMA.field(name).type))
        self._waiting = [waiting.filter(pa.array([k not in gone for k in made], pa.bool_()))]
        self._waiting_changed = True

    def _restate(self, version: int, outcome: int, rows: pa.Table, sign: int) -> None:
        task, positive = self._task(version, outcome, rows)
        self.cohorts.restate(
            version,
            outcome,
            joined_of(rows, task),
            segment=rows["segment"].to_numpy(),
            made_us=rows["time_us"].to_numpy(),
            joined_us=rows["joined_us"].to_numpy(),
            task=task,
            positive_label=positive,
            sign=sign,
        )

    def _task(self, version: int, outcome: int, rows: pa.Table) -> tuple[Task, str | None]:
        """What the truths of an outcome are held to: as configured, else as its first rows show; settled once."""
        held = self._arrivals.get((self.engine.versions[version].whole().number, outcome))
        if held is not None and held.is_settled:
            return held.task, held.positive_label
        found = measures.measure(self._model(version), self.engine.names.outcomes[outcome], rows)
        if held is None and not found.is_settled:
            log.warning("outcome_is_held_to_nothing", extra=fields(model=self.engine.names.versions[version].model,
                        outcome=self.engine.names.outcomes[outcome]))  # fmt: skip
        for line in self.engine.versions[version].lines.values():
            mine = self._arrivals.get((line.number, outcome))
            if mine is None:
                self._arrivals[(line.number, outcome)] = self._new_arrivals(line, outcome, found)
            elif found.is_settled:
                self._hold_to(line, outcome, mine, found)
        return found.task, found.positive_label

    def _new_arrivals(self, line: Line, outcome: int, found: Measure) -> _Arrivals:
        return _Arrivals(
            found.task,
            found.positive_label,
            {},
            self._reference(line, outcome, found.task),
            OutcomeProfile(found.task, found.positive_label),
            DetectorBank(1, makes=self.engine.config.drift.detectors),
            is_settled=found.is_settled,
        )

    def rebase(self, line: Line) -> None:
        """A baseline was promoted: begin the error detectors anew, on its truth or on what was learnt."""
        if line.baseline is not None and line.baseline.provisional:
            return  # learnt from rows without truth, at a time that has nothing to do with that of the labels
        if line.is_whole:
            self.labels.relearn(self._version_of(line))
            self.objectives.forget(self._version_of(line))
        for (number, outcome), held in self._arrivals.items():
            if number == line.number:
                held.reference = self._reference(line, outcome, held.task) or held.reference
                held.learnt = held.learnt if line.is_whole else OutcomeProfile(held.task, held.positive_label)
                self._watch_anew(line, outcome, held)

    def _watch_anew(self, line: Line, outcome: int, held: _Arrivals) -> None:
        """The reference is another: what the watches knew of the errors is of no use."""
        held.concept = held.stored_concept = held.kinds = None
        self.engine.store.drop_states("concept", [f"{line.number}/{outcome}"])
        labels = [*held.classes, *held.stored_classes]
        self.engine.store.drop_states("class_concept", [f"{line.number}/{outcome}/{label}" for label in labels])
        self.engine.store.drop_states("class_answers", [f"{line.number}/{outcome}"])
        held.classes, held.stored_classes, held.answers, held.stored_answers = {}, {}, None, None
        held.detect_anew(DetectorBank(1, makes=self.engine.config.drift.detectors))
        self._dirty_arrivals.add((line.number, outcome))

    def _reference(self, line: Line, outcome: int, task: Task) -> OutcomeProfile | None:
        """The baseline's own outcome, where its rows carried their truth."""
        body = None if line.baseline is None else line.baseline.outcomes.get(self.engine.names.outcomes[outcome])
        if body is not None and not is_current(body):
            log.warning(
                "baseline_truth_is_of_an_older_format", extra=fields(baseline=line.baseline and line.baseline.id)
            )
            return None
        profile = None if body is None else OutcomeProfile.from_bytes(body)
        return profile if profile is not None and profile.task == task and profile.rows else None

    # -- arrival ---------------------------------------------------------------------------------

    def seal(self, until_us: int) -> list[Incident]:
        """Fold what arrived before a time, in order, and judge the windows that end by it."""
        changed: dict[str, Incident] = {}
        rows = _together(self._waiting)
        ready = rows["joined_us"].to_numpy() < until_us
        self._waiting = [rows.filter(pa.array(~ready))]
        self._waiting_changed |= bool(ready.any())
        ordered = rows.filter(pa.array(ready)).sort_by(
            [("joined_us", "ascending"), ("id_hi", "ascending"), ("id_lo", "ascending"), ("version", "ascending")]
        )
        for version, outcome, part in _groups(ordered):
            task, _ = self._task(version, outcome, part)
            held = self._arrivals[(self.engine.versions[version].whole().number, outcome)]
            held.note_days(part["joined_us"].to_numpy())
            if held.kinds is None:
                whole = self.engine.versions[version].whole()
                held.kinds = Kinds.of(task, held.positive_label, self._reference(whole, outcome, task))
            kind = held.kinds.encode(joined_of(part, task))
            made, joined = part["time_us"].to_numpy(), part["joined_us"].to_numpy()
            self.labels.note_labels(version, outcome, made, joined, kind, held.kinds)
        changed |= {incident.id: incident for incident in self.labels.advance(until_us)}
        touched: set[tuple[int, int]] = set()
        for version, outcome, part in _groups(ordered):
            for line, row in self.cohorts.lines(version, part["segment"].to_numpy()):
                self._arrive(line, outcome, part.take(pa.array(row)), until_us, changed)
                touched.add((line.number, outcome))
        for key in sorted(set(self._arrivals) - touched):
            if self._arrivals[key].open:
                self._close(self._line(key[0]), key[1], until_us, changed)
        for number, outcome in sorted(key for key, held in self._arrivals.items() if len(held.holding)):
            self._let_go(self._line(number), outcome, until_us - 1, changed)
        for owner in self.engine.versions.values():
            self._close_silent(owner.whole(), until_us, changed)
        self.labels.forget()
        changed |= {incident.id: incident for incident in self.objectives.judge(until_us)}
        return list(changed.values())

    def _close_silent(self, line: Line, until_us: int, changed: dict[str, Incident]) -> None:
        """Close what a detector alone spoke of where no truth came since: no window of labels will ever find it calm."""
        drifts = [i for i in line.book.open_incidents if i.kind is IncidentKind.CONCEPT_DRIFT]
        if not drifts or drifts[0].severity is not Severity.INFO:
            return
        newest = [held.newest_us for (number, _), held in self._arrivals.items() if number == line.number]
        quiet_us = max([drifts[0].opened_us, *newest]) + line.book.quiet_seconds * MICROSECONDS
        if until_us >= quiet_us:
            closed = line.book.close(now_us=quiet_us, kinds=[IncidentKind.CONCEPT_DRIFT])
            changed.update({incident.id: incident for incident in closed})

    def _line(self, number: int) -> Line:
        key = self.engine.names.lines[number]
        version = self.engine.names.version_index(type(self.engine.names.versions[0])(key.model, key.version))
        assert version is not None
        return self.engine.versions[version].lines[key.segment]

    def _arrive(self, line: Line, outcome: int, rows: pa.Table, until_us: int, changed: dict[str, Incident]) -> None:
        held = self._arrivals.get((line.number, outcome))
        if held is None:
            whole = self._arrivals[(self.engine.versions[self._version_of(line)].whole().number, outcome)]
            held = self._new_arrivals(line, outcome, Measure(whole.task, whole.positive_label, whole.is_settled))
            self._arrivals[(line.number, outcome)] = held
        self._dirty_arrivals.add((line.number, outcome))
        joined, time_us = joined_of(rows, held.task), rows["joined_us"].to_numpy()
        arrived = Arrived(
            joined, rows["time_us"].to_numpy(), time_us, rows["segment"].to_numpy(), rows["id_lo"].to_numpy()
        )
        silent = np.diff(time_us, prepend=time_us[:1]) >= line.book.quiet_seconds * MICROSECONDS
        ends = np.unique(
            np.concatenate(
                [time_us[silent], *(window_starts(time_us, s) + s * MICROSECONDS for s in self.engine.config.windows)]
            )
        )
        cuts = np.searchsorted(time_us, ends, "left")
        start = 0
        for end_us, stop in zip(ends.tolist(), cuts.tolist(), strict=True):
            if stop > start:
                self._close(line, outcome, int(time_us[start]), changed)
                self._fold(line, outcome, held, arrived.take(np.arange(start, stop)), changed)
                start = stop
            if end_us <= until_us:
                self._close(line, outcome, end_us, changed)
        self._close(line, outcome, until_us, changed)

    def _version_of(self, line: Line) -> int:
        index = self.engine.names.version_index(type(self.engine.names.versions[0])(line.key.model, line.key.version))
        assert index is not None
        return index

    def _fold(self, line: Line, outcome: int, held: _Arrivals, part: Arrived, changed: dict[str, Incident]) -> None:
        """Rows that cross no window's end."""
        if line.is_whole:
            self._close_silent(line, int(part.time_us[0]), changed)
        held.newest_us = int(part.time_us[-1])
        profile = OutcomeProfile(held.task, held.positive_label)
        profile.add(part.joined)
        for seconds in self.engine.config.windows:
            window = held.open.get(seconds)
            if window is None:
                start = window_start(int(part.time_us[0]), seconds)
                window = held.open[seconds] = _Window(start, OutcomeProfile(held.task, held.positive_label))
            window.profile.absorb(profile)
        if line.is_whole:
            for fair in held.holding.take(part, self.labels.waits(self._version_of(line), outcome)):
                self._heed(line, outcome, held, fair, changed)

    def _let_go(self, line: Line, outcome: int, until_us: int, changed: dict[str, Incident]) -> None:
        """Heed the truths that have waited long enough."""
        held = self._arrivals[(line.number, outcome)]
        for fair in held.holding.let_go(until_us, self.labels.waits(self._version_of(line), outcome)):
            self._dirty_arrivals.add((line.number, outcome))
            self._heed(line, outcome, held, fair, changed)

    def _heed(self, line: Line, outcome: int, held: _Arrivals, part: Arrived, changed: dict[str, Incident]) -> None:
        """Learn from truths that are a fair sample, or watch them."""
        version = self._version_of(line)
        part = part.take(self.labels.representative(version, outcome, part.made_us, part.time_us))
        every = part
        if held.reference is None:
            wanted = LEARN_LABELS - held.learnt.rows - held.learnt.unusable
            held.learnt.add(part.joined.take(np.arange(min(wanted, len(part)))))
            if held.learnt.rows + held.learnt.unusable >= LEARN_LABELS:
                held.reference = held.learnt
            part = part.take(np.arange(min(wanted, len(part)), len(part)))
        if held.reference is not None and held.reference.rows and len(part):
            self._watch(line, outcome, held, part, changed)
            if held.task is Task.MULTICLASS:
                self._watch_classes(line, outcome, held, part, changed)
            if self.engine.config.drift.detectors:
                self._detect(line, held, part.joined, part.time_us, part.made_us, changed)
        for of, row in self.cohorts.lines(version, every.segment):
            if not of.is_whole:
                self._heed_segment(of, outcome, every.take(row), changed)

    def _heed_segment(self, line: Line, outcome: int, part: Arrived, changed: dict[str, Incident]) -> None:
        """The same for a segment, by its own first labels: some are harder than others, and always were."""
        held = self._arrivals.get((line.number, outcome))
        if held is None:
            return  # it had no line yet when they arrived
        self._dirty_arrivals.add((line.number, outcome))
        wanted = LEARN_LABELS - held.learnt.rows - held.learnt.unusable
        if wanted > 0:
            held.learnt.add(part.joined.take(np.arange(min(wanted, len(part)))))
            part = part.take(np.arange(min(wanted, len(part)), len(part)))
        if len(part):
            self._watch(line, outcome, held, part, changed)

    # -- concept ---------------------------------------------------------------------------------

    def _concept(self, line: Line, outcome: int, held: _Arrivals, at_us: int) -> Concept | None:
        """The watch over the truths of an outcome; None where the reference has too few."""
        reference = held.reference if line.is_whole else held.learnt
        if held.concept is not None or reference is None:
            return held.concept
        relation = Relation.of(reference)
        if relation is None:
            return None
        drift = self.engine.config.drift
        held.concept = Concept(
            relation,
            Budget.parse(drift.false_alarms),
            self._share_at(line, at_us) * _whole_share(line, held),
            drift.minimum_effect,
            remembered=RING if line.is_whole else SEGMENT_RING,
            missed=self.engine.estimates.missed(line, outcome),
            is_sample=partial(self._is_sample_since, line, outcome),
        )
        if held.stored_concept is not None and not held.concept.restore(held.stored_concept):
            log.warning("charts_of_errors_begin_anew", extra=fields(model=line.key.model, version=line.key.version))
            line.book.reconcile(set(), of_labels=True)
        held.stored_concept = None
        return held.concept

    def _is_sample_since(self, line: Line, outcome: int, since_us: int, now_us: int, labelled: int | None) -> bool:
        """Of a segment it is not known how many of its predictions should have labels; of all of them it is."""
        known = labelled if line.is_whole else None
        return self.labels.is_sample_since(self._version_of(line), outcome, since_us, now_us, known)

    def _share_at(self, line: Line, at_us: int) -> float:
        """Its part of the budget: a fifth is for what labels show, in equal parts for the outcomes that were heard of.

        Of that fifth, late labels and objectives have their parts. With segments configured the whole version gets half of
        the rest; a label belongs to one segment of each key, and time passes for every segment that may be.
        """
        config = self.engine.config
        whole = self.engine.versions[self._version_of(line)].whole()
        charts = LABELS_SHARE * (1 - LATE_SHARE - OBJECTIVES_SHARE)
        keys = config.model(line.key.model).segments
        if keys:
            charts /= 2
        if not line.is_whole:
            is_of_events = Budget.parse(config.drift.false_alarms).events is not None
            charts /= len(keys) if is_of_events else config.limits.segments
        return charts / self.heard(whole, at_us)

    def heard(self, whole: Line, at_us: int) -> int:
        """How many outcomes of a version the labels' part of the budget is divided by, at a time; at least 1."""
        mine = (self._arrivals.get((whole.number, outcome)) for outcome in range(len(self.engine.names.outcomes)))
        return max(sum(held is not None and held.is_heard(at_us) for held in mine), 1)

    def _watch(self, line: Line, outcome: int, held: _Arrivals, part: Arrived, changed: dict[str, Incident]) -> None:
        concept = self._concept(line, outcome, held, int(part.time_us[0]))
        if concept is None:
            return
        turns = concept.update(
            part.joined,
            part.made_us,
            part.time_us,
            part.segment,
            names=self._segment_names(part) if line.is_whole else {},
            share_at=lambda t: self._share_at(line, t) * _whole_share(line, held),
        )
        for turn in turns:
            if self._is_told_of_the_whole(line, outcome, turn):
                continue
            noted = self._tell(line, outcome, held, turn)
            self.engine.count_opened(noted, now_us=turn.time_us)
            changed.update({incident.id: incident for incident in noted})

    def _segment_names(self, part: Arrived) -> dict[int, list[str]]:
        segments = self.engine.names.segments
        return {
            code: [f"{key} is {value}" for key, value in segments[code]] for code in np.unique(part.segment).tolist()
        }

    def _watch_classes(
        self, line: Line, outcome: int, held: _Arrivals, part: Arrived, changed: dict[str, Incident]
    ) -> None:
        """The errors of each of the most frequent classes; what is found joins what is told of all."""
        if not held.classes:
            held.classes = self._of_classes(line, outcome, held, int(part.time_us[0]))
        for start in range(0, len(part), AT_ONCE):
            some = part.take(np.arange(start, min(start + AT_ONCE, len(part))))
            if held.answers is not None:
                held.answers.add(some.joined, some.made_us, some.time_us)
            self._watch_each_class(line, outcome, held, some, changed)

    def _watch_each_class(
        self, line: Line, outcome: int, held: _Arrivals, part: Arrived, changed: dict[str, Incident]
    ) -> None:
        truth, names = np.array(part.joined.truth_label.to_pylist(), object), self._segment_names(part)
        for label, concept in held.classes.items():
            mine = part.take(np.flatnonzero(truth == label))
            share = CLASSES_SHARE / len(held.classes)
            turns = concept.update(
                mine.joined,
                mine.made_us,
                mine.time_us,
                mine.segment,
                names=names,
                share_at=partial(self._share_of_class, line, share),
            )
            for turn in turns:
                of_class = f"{turn.detail} where the truth is {label}"
                noted = self._tell(
                    line, outcome, held, replace(turn, aspect=f"{turn.aspect}[{label}]", detail=of_class)
                )
                self.engine.count_opened(noted, now_us=turn.time_us)
                changed.update({incident.id: incident for incident in noted})

    def _share_of_class(self, line: Line, share: float, at_us: int) -> float:
        return self._share_at(line, at_us) * share

    def _of_classes(self, line: Line, outcome: int, held: _Arrivals, at_us: int) -> dict[str, Concept]:
        assert held.reference is not None
        rows: Counter[str] = Counter()
        for (label, _), count in held.reference.pairs.items():
            rows[label] += count
        relations = {
            label: relation
            for label, _ in sorted(rows.items(), key=lambda pair: (-pair[1], pair[0]))[:MOST_CLASSES]
            if (relation := Relation.of_class(held.reference, label)) is not None
        }
        if relations:
            known, stored = tuple(relations), held.stored_answers
            held.answers = Answers(known) if stored is None else Answers.from_bytes(stored, known)
            held.stored_answers = None
        drift = self.engine.config.drift
        found = {}
        for label, relation in relations.items():
            share = self._share_of_class(line, CLASSES_SHARE / len(relations), at_us)
            concept = Concept(
                relation, Budget.parse(drift.false_alarms), share, drift.minimum_effect, remembered=SEGMENT_RING,
                rise=partial(self._rise_of_class, line, outcome, held, label),
            )  # fmt: skip
            if label in held.stored_classes:
                concept.restore(held.stored_classes[label])
            found[label] = concept
        held.stored_classes = {}
        return found

    def _rise_of_class(
        self, line: Line, outcome: int, held: _Arrivals, label: str, since_us: int, until_us: int
    ) -> Rise | None:
        """What the answers foretell of the errors of a class, by the calibration of the baseline if there is one."""
        if held.answers is None:
            return None
        calibration = self.engine.estimates.calibration(line, outcome, label)
        return held.answers.rise(label, calibration, since_us=since_us, until_us=until_us)

    def _is_told_of_the_whole(self, line: Line, outcome: int, turn: Turn) -> bool:
        """A segment that changes with its model is no news beside it."""
        if line.is_whole or turn.is_calm:
            return False
        whole = self.engine.versions[self._version_of(line)].whole()
        return whole.book.stood(turn.kind, self._called(outcome, turn.aspect), at_us=turn.time_us)

    def _tell(self, line: Line, outcome: int, held: _Arrivals, turn: Turn) -> list[Incident]:
        """Bring what the watch found to the book."""
        assert held.concept is not None
        name = self._called(outcome, turn.aspect)
        if turn.is_calm:
            return line.book.calm(turn.kind, name, now_us=turn.time_us)
        if line.is_whole and not turn.is_again:
            self.engine.count("detector_changes", 1, model=line.key.model, version=line.key.version,
                              feature=name, detector="charts")  # fmt: skip
        detail = f"{turn.detail}; {self._why(line, held, turn)}" + (f", {turn.worst}" if turn.worst else "")
        evidence = Evidence(name, "metric", turn.aspect, turn.value, turn.threshold, turn.effect, turn.samples,
                            held.concept.relation.rows, detail)  # fmt: skip
        early, late = turn.onset_between_us
        return line.book.alarm(
            turn.kind,
            evidence,
            now_us=turn.time_us,
            onset_us=min(turn.onset_us, turn.time_us),
            onset_between_us=(min(early, turn.time_us), min(late, turn.time_us)),
        )

    def _called(self, outcome: int, aspect: str) -> str:
        """An aspect of an outcome other than `label` has its name before it."""
        of = self.engine.names.outcomes[outcome]
        return aspect if of == "label" else f"{of}.{aspect}"

    def _why(self, line: Line, held: _Arrivals, turn: Turn) -> str:
        """What moved, inputs or relation or both, or the answers alone: each is another thing to do.

        They moved if they stood in an incident while the predictions were made whose errors rose.
        """
        lines = (line, self.engine.versions[self._version_of(line)].whole())
        until_us = min(turn.newest_us, turn.time_us)
        stood = sorted({found for of in lines for found in of.book.stood_between(INPUTS, turn.onset_us, until_us)})
        broken = [subject for group, subject in stood if group == BROKEN]
        answers = [subject for group, subject in stood if group != BROKEN and _is_answer(subject)]
        moved = [subject for group, subject in stood if group != BROKEN and not _is_answer(subject)]
        if broken:
            return f"the input is broken ({_listed(broken)}), mend it first"
        if turn.aspect == LEVEL:
            return f"inputs moved too ({_listed(moved)})" if moved else "inputs did not move"
        if turn.kind is IncidentKind.PERFORMANCE:
            which = f" ({_listed(moved)})" if moved else ""
            told = "inputs" if held.task is Task.REGRESSION else "scores"
            return f"the {told} foretold it: inputs moved{which}, the relation holds"
        if answers and not moved:
            return f"the answers moved ({_listed(answers)}) and inputs did not: see whether another model answers"
        if not moved:
            return "the relation changed, inputs did not"
        if turn.is_foretold is not None:
            return f"inputs moved ({_listed(moved)}) and the relation changed"
        return f"inputs moved too ({_listed(moved)}): either they or the relation"

    def _detect(
        self, line: Line, held: _Arrivals, joined: Joined, time_us: Ints, made_us: Ints, changed: dict[str, Incident]
    ) -> None:
        assert held.reference is not None
        if held.task is Task.VALUE:
            return  # detectors of errors: a number of its own is none
        errors = standardised_errors(joined, held.reference)
        name = "mean_absolute_error" if held.task is Task.REGRESSION else "error_rate"
        followed = 0
        for change in sorted(held.detectors.update(errors[:, None], time_us), key=lambda found: found.time_us):
            until = max(followed, int(np.searchsorted(time_us, change.time_us, "right")))
            held.follow(errors[followed:until])
            followed = until
            self.engine.count("detector_changes", 1, model=line.key.model, version=line.key.version,
                              feature=name, detector=change.detector)  # fmt: skip
            if not held.have_risen(minimum_effect=self.engine.config.drift.minimum_effect):
                continue  # good news: an incident is of harm, and the one that told of it is closed by its windows
            evidence = Evidence(name, "metric", change.detector, float("nan"), float("nan"), 0.0, len(joined),
                                held.reference.rows, f"{change.detector} saw the errors move")  # fmt: skip
            made = int(made_us[min(int(np.searchsorted(time_us, change.time_us)), len(made_us) - 1)])
            noted = line.book.note(
                IncidentKind.CONCEPT_DRIFT, evidence, now_us=change.time_us, onset_us=min(made, change.time_us)
            )
            self.engine.count_opened(noted, now_us=change.time_us)
            changed.update({incident.id: incident for incident in noted})
        held.follow(errors[followed:])

    def _close(self, line: Line, outcome: int, until_us: int, changed: dict[str, Incident]) -> None:
        """Close the windows that end by a time and judge their errors."""
        held = self._arrivals[(line.number, outcome)]
        over = [s for s, w in held.open.items() if w.start_us + s * MICROSECONDS <= until_us]
        for seconds in sorted(over, key=lambda s: (held.open[s].start_us + s * MICROSECONDS, s)):
            window = held.open.pop(seconds)
            self._dirty_arrivals.add((line.number, outcome))
            held.latest[seconds] = window.start_us
            if line.is_whole and held.reference is not None:
                self._close_silent(line, window.start_us + seconds * MICROSECONDS, changed)
                self._judge(line, outcome, held, seconds, window, changed)

    def _judge(
        self,
        line: Line,
        outcome: int,
        held: _Arrivals,
        seconds: int,
        window: _Window,
        changed: dict[str, Incident],
    ) -> None:
        assert held.reference is not None
        profile, start_us = window.profile, window.start_us
        config = self.engine.config
        alpha = Budget.parse(config.drift.false_alarms).label_alpha(
            window_seconds=seconds,
            windows=len(config.windows),
            tests=self.heard(line, start_us + seconds * MICROSECONDS),
            rows=profile.rows,
        )
        shift = error_shift(held.reference, profile, alpha=alpha, minimum_effect=config.drift.minimum_effect)
        end_us = start_us + seconds * MICROSECONDS
        span = Span(line.key, duration_text(seconds), start_us, end_us)
        score = score_errors(span, shift, outcome=self.engine.names.outcomes[outcome])
        line.keep(score)
        name = self._called(outcome, score.statistic)
        raised = {} if held.concept is None else held.concept.raised()
        if raised.get(score.statistic) is not IncidentKind.CONCEPT_DRIFT and score.verdict is Verdict.DRIFT:
            score = replace(score, verdict=Verdict.OK)  # windows size what was found; the budget is not theirs
        incidents = line.book.observe(
            [score],
            now_us=end_us,
            onset_of=lambda _: end_us,  # the onset is known better
            describe=lambda score: _described(score, line.book.open_incidents, name),
        )
        self.engine.count_opened(incidents, now_us=end_us)
        changed.update({incident.id: incident for incident in incidents})

    def finish(self) -> list[Incident]:
        """The files are read: close every window with what it has."""
        changed: dict[str, Incident] = {}
        self.seal_rest(changed)
        for line, outcome in sorted(self._arrivals):
            self._close(self._line(line), outcome, 2**62, changed)
        return list(changed.values())

    def seal_rest(self, changed: dict[str, Incident]) -> None:
        """Fold what still waits, whatever its time."""
        newest = [int(t["joined_us"].to_numpy().max()) for t in self._waiting if len(t)]
        if newest:
            changed.update({i.id: i for i in self.seal(max(newest) + 1)})

    # -- reading ---------------------------------------------------------------------------------

    def task(self, line: Line, outcome: int) -> Task | None:
        """What the truths of an outcome are held to, None before that is known."""
        held = self._arrivals.get((line.number, outcome))
        return held.task if held is not None and held.is_settled else None

    def reference(self, line: Line, outcome: int) -> OutcomeProfile | None:
        """What the errors of a line are judged by: the baseline's truth, or the first labels."""
        held = self._arrivals.get((line.number, outcome))
        return None if held is None else held.reference

    def held_back(self, line: Line, outcome: int) -> int:
        """Truths that wait until those of their age are a fair sample; where there are too many, a part stands for all."""
        held = self._arrivals.get((line.number, outcome))
        return 0 if held is None else len(held.holding)

    def arrived(self, line: Line, outcome: int, seconds: int) -> tuple[CohortKey, OutcomeProfile] | None:
        """What arrived in the newest closed window with labels."""
        held = self._arrivals.get((line.number, outcome))
        if held is None or seconds not in held.latest:
            return None
        key = (line.number, outcome, seconds, held.latest[seconds])
        profile = self.cohorts.arrived(key)
        return (key, profile) if profile is not None and profile.rows else None

    def performance(self, key: CohortKey, basis: str, profile: OutcomeProfile) -> list[Performance]:
        """The metrics of one window."""
        line, outcome, seconds, start = key
        whole = self._arrivals.get((line, outcome))
        return performance_rows(
            metrics(profile),
            Span(self.engine.names.lines[line], duration_text(seconds), start, start + seconds * MICROSECONDS),
            outcome=self.engine.names.outcomes[outcome],
            basis=basis,
            coverage=self.cohorts.coverage(key, profile),
            reference=whole.reference if whole is not None else None,
        )

    # -- the store -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        self.cohorts.save()
        self.labels.save()
        self.objectives.save()
        store = self.engine.store
        if self._waiting_changed:
            store.put_states("truth", {"joined": to_ipc(_together(self._waiting))})
            self._waiting_changed = False
        store.put_states(
            "arrivals", {f"{a}/{b}": self._arrivals[(a, b)].to_bytes() for a, b in sorted(self._dirty_arrivals)}
        )
        watched = {key: self._arrivals[key].concept for key in sorted(self._dirty_arrivals)}
        store.put_states("concept", {f"{a}/{b}": c.to_bytes() for (a, b), c in watched.items() if c is not None})
        classes = {(a, b, label): c for a, b in watched for label, c in self._arrivals[(a, b)].classes.items()}
        store.put_states("class_concept", {f"{a}/{b}/{label}": c.to_bytes() for (a, b, label), c in classes.items()})
        answers = {f"{a}/{b}": self._arrivals[(a, b)].answers for a, b in watched}
        store.put_states("class_answers", {key: a.to_bytes() for key, a in answers.items() if a is not None})
        holdings = {f"{a}/{b}": self._arrivals[(a, b)].holding for a, b in sorted(self._dirty_arrivals)}
        store.put_states("held_truths", {key: held.to_bytes() for key, held in holdings.items() if held.seen})
        self._dirty_arrivals = set()


def _made(rows: pa.Table) -> list[tuple[Any, ...]]:
    """Prediction and outcome of each row, in Python."""
    columns = ("id_hi", "id_lo", "version", "outcome", "time_us")
    return list(zip(*(rows[name].to_pylist() for name in columns), strict=True))


def _whole_share(line: Line, held: _Arrivals) -> float:
    """Of an outcome's part: what is left where its classes are watched as well."""
    return 1 - CLASSES_SHARE if line.is_whole and held.task is Task.MULTICLASS else 1.0


def _faded(mean: float, values: Floats, *, over: int) -> float:
    """A mean carried on, in which a value weighs (1 - 1 / over) of the next; cut anywhere it is the same."""
    keep = 1 - 1 / over
    weights = keep ** np.arange(len(values), dtype=np.float64)[::-1]
    return float(mean * keep ** len(values) + (weights * values).sum() / over)


def _is_answer(subject: str) -> bool:
    """Whether it is of the prediction rather than of what it is made from."""
    return subject == "prediction" or subject.startswith("prediction.")


def _listed(names: Sequence[str]) -> str:
    """The first two names and how many more."""
    more = len(names) - 2
    return ", ".join(name_of(name) for name in names[:2]) + (f" and {more} more" if more > 0 else "")


def _described(score: Score, standing: Iterable[Incident], name: str) -> str:
    """A window's errors, and what was found out about them when the incident opened."""
    details = [e.detail for i in standing if i.kind is IncidentKind.CONCEPT_DRIFT for e in i.subjects if e.name == name]
    _, mark, why = next(iter(details), "").partition("; ")
    return describe_errors(score) + mark + why


def _together(tables: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks() if tables else MET_SCHEMA.empty_table()


def _groups(table: pa.Table) -> Iterable[tuple[int, int, pa.Table]]:
    """The rows of each (version, outcome), in order."""
    if not len(table):
        return
    version, outcome = table["version"].to_numpy().astype(np.int64), table["outcome"].to_numpy().astype(np.int64)
    for pair in np.unique(version * 65_536 + outcome).tolist():
        mine = version * 65_536 + outcome == pair
        yield pair // 65_536, pair % 65_536, table if mine.all() else table.filter(pa.array(mine))


def joined_of(rows: pa.Table, task: Task) -> Joined:
    flat = rows.combine_chunks()
    truth, label = _array(flat["label"]), _array(flat["predicted_label"])
    of_truth, of_label, squares = np.full((3, len(flat)), np.nan)
    if task is Task.MULTICLASS:
        of_truth, of_label, squares = class_probabilities(flat["probabilities"], truth, label)
    return Joined(
        truth_label=truth,
        truth_number=flat["number"].to_numpy(),
        label=label,
        score=flat["score"].to_numpy(),
        value=flat["value"].to_numpy(),
        truth_probability=of_truth,
        label_probability=of_label,
        squared_probability=squares,
        probabilities=_array(flat["probabilities"]) if task is Task.MULTICLASS else None,
        expected_size=flat["expected_size"].to_numpy() if task is Task.REGRESSION else None,
        expected_error=flat["expected_error"].to_numpy() if task is Task.REGRESSION else None,
    )


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
