"""The engine: records in, verdicts out, on event time alone.

`offer` and `step` take decoded batches through the flow, the duplicate and lateness rules and into the
open rows of their version; what the watermark has passed is sealed and judged; `checkpoint` joins labels and
commits everything at once. The same engine serves `run`, `replay` and `demo`; it reads no clock.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.classes import Classes
from stream_monitor.config import Config, duration_text
from stream_monitor.estimates import Estimates
from stream_monitor.judge.baseline import Baseline
from stream_monitor.names import Names
from stream_monitor.outcomes import Outcomes
from stream_monitor.publish.log import fields
from stream_monitor.records import (
    DEFAULT_OUTCOME,
    MICROSECONDS,
    NO_TIME,
    Codes,
    Evidence,
    Flags,
    Incident,
    IncidentKind,
    Inferences,
    Ints,
    Labels,
    LineKey,
    ModelKey,
    PartitionId,
    Poll,
    RawBatch,
    Reason,
    Score,
    Stream,
    Verdict,
)
from stream_monitor.revisions import Revisions
from stream_monitor.shown import Shown
from stream_monitor.store import DAYS, FIVE_MINUTES, HOURS, PANES, SCORES, SKETCHES, Store
from stream_monitor.truth import DAY_US, Ledger, Truth
from stream_monitor.versions import LEVELS, Line, Version
from stream_monitor.window.duplicates import RecentPredictions, prediction_key
from stream_monitor.window.flow import PANES_AHEAD, Admitted, Decoded, Flow
from stream_monitor.window.watermark import PartitionClock, PartitionState, late, watermark

log = logging.getLogger(__name__)

SEAL_ROWS = 8_192
"""While a backlog is drained, panes are sealed once this many rows are ready: each round costs some ms a version."""

VERSIONS_PER_MODEL = 5
"""Versions kept for each model the limits allow: a version string made of timestamps must not fill the memory."""

UNNAMED_MODEL = "default"
"""What decode calls the model of rows that name none."""

NAMES_PER_MODEL = 10
"""Labels may name models that were never seen and come later; beyond ten times the models, they share one name."""

WINDOWS_LOADED = 8
"""How many windows back the latest scores of a line are looked for at start: what is older is history."""

STORM_RECORDS = 1_000
"""The stretch over which more than half refused is a storm: a bad deploy or a bad mapping, not noise."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused records of one batch, for the dead letters."""

    raw: RawBatch
    row: Ints
    reason: tuple[Reason, ...]


@dataclass(slots=True)
class Storm:
    """Whether more than half of a long stretch of one stream is refused."""

    offered: int = 0
    refused: int = 0
    raging: bool = False

    def note(self, offered: int, refused: int) -> bool:
        """Count; True when the state changed."""
        self.offered += offered
        self.refused += refused
        if self.offered < STORM_RECORDS:
            return False
        raging = 2 * self.refused > self.offered
        self.offered = self.refused = 0
        changed, self.raging = raging != self.raging, raging
        return changed


@dataclass(slots=True)
class Step:
    """What one step did, for the loop around the engine."""

    records: int = 0
    refused: list[Refused] = field(default_factory=list)


class Engine:
    """All state of one service, in memory and on the store's open transaction."""

    def __init__(
        self, config: Config, store: Store, *, baselines: Sequence[Baseline] = (), expects_labels: bool | None = None
    ) -> None:
        self.config = config
        # Whether a part of the budget is kept for what labels show: as the caller says, else as the source has topics.
        self.expects_labels = bool(config.source.ground_truth) if expects_labels is None else expects_labels
        self.store = store
        self.pane_us = config.pane * MICROSECONDS
        self.lateness_us = config.allowed_lateness * MICROSECONDS
        self.levels = [(seconds, shelf) for seconds, shelf in LEVELS if seconds % config.pane == 0]
        self.spans = sorted({*(seconds for seconds, _ in self.levels), *config.windows})
        self.names = Names.load(store)
        self.counters: dict[tuple[str, str], int] = defaultdict(int, store.counters())
        self.flow = Flow(slack_us=self.lateness_us + PANES_AHEAD * self.pane_us)
        self.storms = {stream: Storm() for stream in Stream}
        self.sealed_us = _number(store.meta("sealed_us"))
        self.joined_sealed_us = _number(store.meta("joined_sealed_us"))
        self.truth = Truth(
            store,
            horizon_us=config.label_horizon * MICROSECONDS,
            model_of_version=self.names.model_of_version,
            corrections_us=None if config.corrections is None else config.corrections * MICROSECONDS,
            models=self.names.models,
            horizon_of=self.outcome_horizon_us,
        )
        saved = store.state("truth", "ledger")
        if saved is not None:
            self.truth.ledger = Ledger.from_json(json.loads(saved))
        self.versions: dict[int, Version] = {}
        self.given: dict[ModelKey, Baseline] = {ModelKey(b.model, b.version): b for b in baselines}
        for index in range(len(self.names.versions)):
            self.versions[index] = Version.load(index, self)
        self._load_latest()
        self.outcomes = Outcomes.load(self)
        self.estimates = Estimates(self)
        self.revisions = Revisions(self)
        self.classes = Classes(self)
        self.shown = Shown(self)
        self.recent = RecentPredictions(config.duplicate_horizon * MICROSECONDS)
        self._forget_before = NO_TIME
        self._resume()
        self.changed: dict[str, Incident] = {}
        self._written: dict[str, Incident] = {}
        self._worsened_us: dict[str, int] = {}
        self._known_incidents = {
            incident.id: incident.severity
            for v in self.versions.values()
            for line in v.lines.values()
            for incident in line.book.open_incidents
        }
        self._ready = 0
        self._expired_day = NO_TIME
        for version in self.versions.values():
            self.note(version.take_given(now_us=self.sealed_us))

    def outcome_horizon_us(self, model: int, outcome: int) -> int:
        """How long after a prediction a truth of an outcome counts: as long as labels are waited for, if not shorter.

        Also where the prediction is still there: how long it is depends on what else the stream holds.
        """
        own = self.own_horizon_us(model, outcome)
        return self.config.label_horizon * MICROSECONDS if own is None else own

    def own_horizon_us(self, model: int, outcome: int) -> int | None:
        """What is configured of one outcome: when its truths are through at the latest, whatever their habit."""
        known = self.config.model(self.names.models[model]).outcomes.get(self.names.outcomes[outcome])
        return None if known is None or known.horizon is None else known.horizon * MICROSECONDS

    def given_for(self, key: ModelKey) -> Baseline | None:
        """The configured baseline of a version: its own, else its model's, else one of rows that name no model."""
        for wanted in (key, ModelKey(key.model, ""), ModelKey(UNNAMED_MODEL, "")):
            if wanted in self.given:
                return replace(self.given[wanted], model=key.model, version=key.version)
        return None

    def _load_latest(self) -> None:
        """The scores of each line's newest closed window, as far as that ended lately."""
        if self.sealed_us is None:
            return
        lines = {line.number: line for version in self.versions.values() for line in version.lines.values()}
        for seconds in self.config.windows:
            since = self.sealed_us - WINDOWS_LOADED * seconds * MICROSECONDS
            scores = (
                f"(select * from {self.store.relation(SCORES, since)} where window_seconds = {seconds} "
                f"and start_us >= {since} and subject_kind <> 'metric' and reference = 'baseline')"
            )
            newest = f"(select line, max(start_us) as start_us from {scores} group by line)"
            for row in self.store.query(
                f"select * from {scores} semi join {newest} using (line, start_us)"
            ).to_pylist():
                line = lines[row.pop("line")]
                line.latest.setdefault(seconds, []).append(_score(line.key, row))

    def _resume(self) -> None:
        """Take up positions, clocks and the recent predictions where the state file left them."""
        for partition, (position, highest, suspects) in self.store.positions().items():
            self.flow.states[partition] = PartitionState(PartitionClock(highest, suspects), position=position)
        highs = [s.clock.highest_us for p, s in self.flow.states.items() if p.stream == Stream.INFERENCE]
        known = [h for h in highs if h is not None]
        if known:
            self._forget_before = _number(self.store.meta("forget_before")) or NO_TIME
            since = max(self._forget_before, -(2**62)) - self.recent.horizon_us
            rows = self.truth.recent(since)
            if len(rows):
                keys = self._prediction_keys(
                    rows["id_hi"].to_numpy(), rows["id_lo"].to_numpy(), self._models(rows["version"].to_numpy())
                )
                self.recent.remember(keys, rows["time_us"].to_numpy())

    # -- input -----------------------------------------------------------------------------------

    def positions(self) -> dict[PartitionId, int]:
        """Where the source has to go on."""
        return {p: s.position for p, s in self.flow.states.items() if s.position is not None}

    def offer(self, decoded: Decoded[Inferences] | Decoded[Labels]) -> None:
        """Hand in one decoded batch."""
        self.flow.offer(decoded)

    def note_poll(self, poll: Poll, now_seconds: float) -> None:
        """What the source knows of its partitions, after the batches of the poll; `now_seconds` is monotonic."""
        for partition, end in poll.ends.items():
            self.flow.state(partition).end = end
        for partition, position in poll.positions.items():
            self.flow.reach(partition, position)
        for state in self.flow.states.values():
            if not poll.ends:  # nobody answers: where a log ended before says nothing of what is written to it now
                state.end = None
            state.note_end(now_seconds)

    def step(self, now_seconds: float, *, seal_now: bool = False) -> Step:
        """Take what the flow admits and seal what is ready."""
        done = Step()
        together: dict[int, list[Admitted]] = defaultdict(list)
        for part in self.flow.admit():
            together[part.batch].append(part)
        for batch in sorted(together):
            self._take(together[batch], done)
        for state in self.flow.states.values():
            state.note_end(now_seconds)
        self._seal(now_seconds, seal_now=seal_now)
        return done

    def _take(self, parts: list[Admitted], done: Step) -> None:
        decoded = parts[0].decoded
        stream = decoded.raw.binding.stream
        refused = self._count_rejects(parts, done)
        records = sum(part.records for part in parts)
        done.records += records
        columns = decoded.columns
        if isinstance(columns, Inferences):
            refused += self._take_inferences(columns, parts, done)
        else:
            refused += self._take_labels(columns, parts, done)
        if self.storms[stream].note(records, refused):
            raging = self.storms[stream].raging
            log.log(
                logging.ERROR if raging else logging.INFO,
                "reject_storm" if raging else "reject_storm_over",
                extra=fields(stream=str(stream), topic=decoded.raw.binding.topic),
            )

    def _count_rejects(self, parts: list[Admitted], done: Step) -> int:
        rejects, raw = parts[0].decoded.rejects, parts[0].decoded.raw
        chosen = np.concatenate([part.reject for part in parts])
        if not len(chosen):
            return 0
        reasons = tuple(rejects.reason[i] for i in chosen.tolist())
        done.refused.append(Refused(raw, rejects.row[chosen].astype(np.int64), reasons))
        for reason in sorted(set(reasons)):
            self.count("rejected", reasons.count(reason), stream=raw.binding.stream, reason=reason)
        return len(chosen)

    def count(self, counter: str, increment: int, **labels: str) -> None:
        """Add to a counter that lives in the state file."""
        if increment:
            self.counters[(counter, json.dumps({k: str(v) for k, v in labels.items()}))] += increment

    # -- inference events ------------------------------------------------------------------------

    def _take_inferences(self, columns: Inferences, parts: list[Admitted], done: Step) -> int:
        rows = np.concatenate([np.arange(p.start, p.stop) for p in parts])
        if not len(rows):
            return 0
        version = np.array([self._version_index(key) for key in columns.keys], np.int64)[columns.key[rows]]
        allowed = version >= 0
        refused = rows[~allowed]
        if len(refused):
            self._refuse(columns, refused, parts[0].decoded.raw, Reason.TOO_MANY_MODELS, done)
            rows, version = rows[allowed], version[allowed]
        left_out = np.isin(columns.cells.long_name_row, rows)
        self.count("dropped_values", int(left_out.sum()), reason=Reason.NAME_TOO_LONG)
        time = columns.time_us[rows]
        duplicate = self._duplicates(columns.id_hi[rows], columns.id_lo[rows], version, time)
        before = self._observe(columns, rows, duplicate, parts)
        floor = NO_TIME if self.sealed_us is None else self.sealed_us
        is_late = ~duplicate & (late(time, before, lateness_us=self.lateness_us) | (time < floor))
        self._wait_for_labels(columns, rows[~duplicate], version[~duplicate], before[~duplicate])
        on_time = ~duplicate & ~is_late
        for index in np.unique(version).tolist():
            mine = version == index
            key = self.names.versions[index]
            fates = {"summarised": on_time, "late": is_late, "duplicate": duplicate}
            for outcome, flags in fates.items():
                self.count("events", int((mine & flags).sum()), model=key.model, version=key.version,
                           stream=Stream.INFERENCE, outcome=outcome)  # fmt: skip
            accepted = mine & ~duplicate
            if accepted.any():
                self.versions[index].note_events(time[accepted])
            if (mine & on_time).any():
                self.versions[index].add(columns, rows[mine & on_time])
        self._ready += int(on_time.sum())
        return len(refused)

    def _refuse(self, columns: Inferences | Labels, rows: Ints, raw: RawBatch, reason: Reason, done: Step) -> None:
        """Records that could be read, beyond a limit."""
        at = {pair: k for k, pair in enumerate(zip(raw.partition.tolist(), raw.offset.tolist(), strict=True))}
        partition = [raw.partitions.index(p) if p in raw.partitions else -1 for p in columns.partitions]
        pairs = zip(columns.partition[rows].tolist(), columns.offset[rows].tolist(), strict=True)
        raw_rows = np.array([at[partition[p], offset] for p, offset in pairs])
        done.refused.append(Refused(raw, raw_rows, (reason,) * len(rows)))
        self.count("rejected", len(rows), stream=raw.binding.stream, reason=reason)

    def _version_index(self, key: ModelKey) -> int:
        """The number of a version; a new one is set up, -1 beyond the limits."""
        known = self.names.version_index(key)
        if known is not None:
            return known
        limit = self.config.limits.models
        models = {version.model for version in self.names.versions}
        new_model = key.model not in models
        if (new_model and len(models) >= limit) or len(self.names.versions) >= limit * VERSIONS_PER_MODEL:
            return -1
        index = self.names.add_version(key)
        self.versions[index] = Version.create(index, self)
        log.info("version_seen", extra=fields(model=key.model, version=key.version))
        return index

    def _models(self, version: Ints) -> Ints:
        table = np.array([self.names.model_of_version(v) for v in range(len(self.names.versions))], np.int64)
        return table[version]

    def _prediction_keys(self, id_hi: np.ndarray, id_lo: np.ndarray, model: Ints) -> np.ndarray:
        return prediction_key(id_hi, id_lo, (model + 1).astype(np.uint64))

    def _duplicates(self, id_hi: np.ndarray, id_lo: np.ndarray, version: Ints, time: Ints) -> Flags:
        """Which rows repeat a prediction; asked of memory, and for old rows of the store."""
        model = self._models(version)
        keys = self._prediction_keys(id_hi, id_lo, model)
        duplicate = self.recent.accept(keys, time, floor_us=self._forget_before)
        old = np.flatnonzero(~duplicate & (time < self._forget_before))
        if len(old):
            seen = self.truth.seen_before(
                id_hi[old], id_lo[old], model[old], time[old], horizon_us=self.recent.horizon_us
            )
            duplicate[old[seen]] = True
        return duplicate

    def _observe(self, columns: Inferences | Labels, rows: Ints, skip: Flags, parts: list[Admitted]) -> Ints:
        """Move the clocks of the partitions; the highest time of its partition before each row."""
        before = np.full(len(rows), NO_TIME, np.int64)
        for part in parts:
            index = columns.partitions.index(part.partition) if part.partition in columns.partitions else -1
            mine = (columns.partition[rows] == index) & (rows >= part.start) & (rows < part.stop) & ~skip
            clock = self.flow.states[part.partition].clock
            before[mine] = clock.observe(columns.time_us[rows[mine]], columns.record_time_us[rows[mine]])
        live = [s.clock.highest_us for p, s in self.flow.states.items()
                if p.stream == Stream.INFERENCE and not s.finished and s.at_end_since is None]  # fmt: skip
        if live and all(h is not None for h in live):
            floor = min(h for h in live if h is not None) - self.lateness_us
            self._forget_before = max(self._forget_before, floor)
        return before

    def _arrival(self, time: Ints, before: Ints) -> Ints:
        """When a row reaches detectors: its own time, or as early as its partition still allows; a day ahead at most."""
        known = (before != NO_TIME) & (time != NO_TIME)
        bounded = np.clip(time, before - self.lateness_us, before + DAY_US)
        return np.where(known, bounded, time)

    def _wait_for_labels(self, columns: Inferences, rows: Ints, version: Ints, before: Ints) -> None:
        if not len(rows):
            return
        index = pa.array(rows)
        time = columns.time_us[rows]
        segment = self._segments(columns.segment.take(index), version)
        arrival = self._arrival(time, before)
        label, score = columns.label.take(index), columns.score[rows]
        probabilities = columns.probabilities.take(index)
        expected = np.full((2, len(rows)), np.nan)
        for one in np.unique(version).tolist():
            mine = version == one
            self.versions[one].open_segments(segment[mine])
            self.outcomes.cohorts.note_predictions(one, segment[mine], time[mine])
            self.outcomes.labels.note_predictions(one, time[mine], arrival[mine])
            expected[:, mine] = self.estimates.note_predictions(
                one, segment, time, mine, label=label, score=score, probabilities=probabilities,
                columns=columns, rows=rows,
            )  # fmt: skip
        self.truth.add_predictions(
            pa.table(
                {
                    "id_hi": columns.id_hi[rows],
                    "id_lo": columns.id_lo[rows],
                    "version": version,
                    "segment": segment,
                    "time_us": time,
                    "arrival_us": arrival,
                    "label": label,
                    "score": score,
                    "value": columns.value[rows],
                    "probabilities": probabilities,
                    "expected_size": expected[0],
                    "expected_error": expected[1],
                }
            )
        )

    def _segments(self, texts: pa.Array, version: Ints) -> Codes:
        codes = np.zeros(len(version), np.int32)
        for one in np.unique(version).tolist():
            keys = self.config.model(self.names.versions[one].model).segments
            if keys:
                mine = np.flatnonzero(version == one)
                codes[mine] = self.names.segment_codes(texts.take(pa.array(mine)), keys)
        return codes

    # -- ground truth ----------------------------------------------------------------------------

    def _take_labels(self, columns: Labels, parts: list[Admitted], done: Step) -> int:
        rows = np.concatenate([np.arange(p.start, p.stop) for p in parts])
        if not len(rows):
            return 0
        most = NAMES_PER_MODEL * self.config.limits.models
        models = np.array([*(self.names.model_index(m, most=most) for m in columns.models), -1], np.int32)
        model = models[columns.model[rows]]
        outcome = self._outcome_numbers(columns.outcomes, columns.outcome[rows], model)
        allowed = outcome >= 0
        refused = rows[~allowed]
        if len(refused):
            self._refuse(columns, refused, parts[0].decoded.raw, Reason.TOO_MANY_OUTCOMES, done)
            rows, model, outcome = rows[allowed], model[allowed], outcome[allowed]
        if not len(rows):
            return len(refused)
        time = columns.time_us[rows]
        before = self._observe(columns, rows, np.zeros(len(rows), np.bool_), parts)
        self.truth.add_labels(
            pa.table(
                {
                    "id_hi": columns.id_hi[rows],
                    "id_lo": columns.id_lo[rows],
                    "model": model,
                    "outcome": outcome,
                    "time_us": time,
                    "arrival_us": self._arrival(time, before),
                    "label": columns.label.take(pa.array(rows)),
                    "number": columns.number[rows],
                }
            )
        )
        return len(refused)

    def _outcome_numbers(self, names: Sequence[str], outcome: Codes, model: Codes) -> Codes:
        """The number of each label's outcome (n,), -1 where its model has no place for it; places go by first come."""
        pairs, first, place = np.unique(
            model.astype(np.int64) * len(names) + outcome, return_index=True, return_inverse=True
        )
        numbers = np.zeros(len(pairs), np.int32)
        for at in np.argsort(first).tolist():
            of, name = int(model[first[at]]), names[outcome[first[at]]]
            numbers[at] = self.names.outcome_index(of, name, kept=self._configured_outcomes(of))
        return numbers[place]

    def _configured_outcomes(self, model: int) -> set[str]:
        """The outcomes that labels of a model may always name; of labels that name none, those of every model."""
        known = self.config.models.values() if model < 0 else [self.config.model(self.names.models[model])]
        return {DEFAULT_OUTCOME, *(name for told in known for name in told.outcomes)}

    # -- sealing ---------------------------------------------------------------------------------

    def watermark_us(self, stream: Stream, now_seconds: float) -> int | None:
        """How far event time has come on one kind of topic."""
        states = [
            s for p, s in self.flow.states.items()
            if p.stream == stream and not (stream == Stream.GROUND_TRUTH and s.clock.highest_us is None and s.finished)
        ]  # fmt: skip
        if not states:
            return None
        return watermark(
            states, lateness_us=self.lateness_us, now_seconds=now_seconds, idle_seconds=self.config.idle_timeout
        )

    def _seal(self, now_seconds: float, *, seal_now: bool) -> None:
        mark = self.watermark_us(Stream.INFERENCE, now_seconds)
        if mark is None or not (seal_now or self._ready >= SEAL_ROWS):
            return
        self._seal_up_to(mark // self.pane_us * self.pane_us)

    def _seal_up_to(self, until_us: int) -> None:
        if self.sealed_us is not None and until_us <= self.sealed_us:
            return
        self.sealed_us = until_us
        self._ready = 0
        for version in self.versions.values():
            self.note(version.seal(until_us))

    def note(self, incidents: Sequence[Incident]) -> None:
        """Take incidents that opened, changed or closed into the next checkpoint."""
        self.count_opened(incidents)
        self.changed.update(
            {i.id: replace(i, worsened_us=self._worsened_us.get(i.id, i.worsened_us)) for i in incidents}
        )

    def count_opened(self, incidents: Sequence[Incident], *, now_us: int | None = None) -> None:
        """Count incidents under the severity they open with, before what follows in the same step raises it.

        `now_us`: the time of the evidence; None where only the opening has one.
        """
        for incident in incidents:
            known = self._known_incidents.get(incident.id)
            if known is None:
                self.count("incidents_opened", 1, model=incident.line.model, version=incident.line.version,
                           kind=incident.kind, severity=incident.severity)  # fmt: skip
            elif known != incident.severity:  # it never falls
                self._worsened_us[incident.id] = incident.opened_us if now_us is None else now_us
            self._known_incidents[incident.id] = incident.severity

    def _seal_joined(self, now_seconds: float) -> None:
        """Outcomes are ordered by the slower of the two streams: no earlier one can come any more."""
        marks = [self.sealed_us]
        labels = [s for p, s in self.flow.states.items() if p.stream == Stream.GROUND_TRUTH]
        timed = [s for s in labels if s.clock.highest_us is not None or not s.finished]
        if any(not s.idle(now_seconds, timeout_seconds=self.config.idle_timeout) for s in timed):
            marks.append(self.watermark_us(Stream.GROUND_TRUTH, now_seconds))
        if any(m is None for m in marks):
            return
        until = min(m for m in marks if m is not None) // self.pane_us * self.pane_us
        if self.joined_sealed_us is None or until > self.joined_sealed_us:
            self.joined_sealed_us = until
            self.note(self.outcomes.seal(until))

    # -- checkpoints -----------------------------------------------------------------------------

    def join(self, now_seconds: float) -> None:
        """Meet labels and predictions, then judge the outcomes whose time has passed."""
        if self.truth.has_work():
            met = self.truth.join(self.names.models, label_outcome=self.names.known_outcome(DEFAULT_OUTCOME))
            self.outcomes.take(met)
            self.revisions.take(met)
            self.classes.take(met)
        self._seal_joined(now_seconds)
        if self.joined_sealed_us is not None:
            self.truth.settle(self.joined_sealed_us)
        self.revisions.note()

    def finish(self, now_seconds: float) -> None:
        """The files are read: seal every pane and close every window with what it has."""
        for state in self.flow.states.values():
            state.finished = True
        highs = [s.clock.highest_us for p, s in self.flow.states.items() if p.stream == Stream.INFERENCE]
        # Not the newest timestamp: one that the clock did not follow must not expire all the others.
        tops = [h for h in highs if h is not None]
        if tops:
            self._seal_up_to((max(tops) // self.pane_us + 1) * self.pane_us)
        self.join(now_seconds)
        self.note(self.outcomes.finish())
        self.revisions.finish()
        for version in self.versions.values():
            self.note(version.finish())

    def checkpoint(self) -> list[Incident]:
        """Write all that changed and commit; the incidents that were opened, updated or closed since the last one."""
        changed = list(self.changed.values())
        self.changed = {}
        self._expire()
        states = self.truth.save()
        states["ledger"] = json.dumps(self.truth.ledger.to_json()).encode()
        self.store.put_states("truth", states)
        for version in self.versions.values():
            version.save()
        self.outcomes.save()
        self.estimates.save()
        self.revisions.save()
        self.classes.save()
        self.names.save(self.store)
        self._put_incidents(changed)
        self.store.put_counters(self.counters)
        self.store.put_positions(
            {
                p: (s.position, s.clock.highest_us, s.clock.suspects_us)
                for p, s in self.flow.states.items()
                if s.position is not None
            }
        )
        for name, number in (("sealed_us", self.sealed_us), ("joined_sealed_us", self.joined_sealed_us)):
            if number is not None:
                self.store.set_meta(name, str(number))
        if self._forget_before != NO_TIME:
            self.store.set_meta("forget_before", str(self._forget_before))
        self.store.commit()
        return changed

    def note_loss(self, partition: PartitionId, expected: int, resumed: int) -> None:
        """Records we stood before are gone from the topic: an incident for every version that may have had them."""
        lost = max(0, resumed - expected)
        self.count("lost", lost, stream=partition.stream, topic=partition.topic)
        log.error("data_loss", extra=fields(topic=partition.topic, partition=partition.number, records=lost))
        evidence = Evidence(partition.topic, "stream", "offset", float(expected), float(resumed), 0.0, lost, 0,
                            f"{lost} records of {partition.topic}/{partition.number} were deleted unread")  # fmt: skip
        for version in self.versions.values():
            if version.newest_us is not None:
                book, now = version.whole().book, version.newest_us
                self.note(book.hold(IncidentKind.DATA_LOSS, evidence, now_us=now, onset_us=now))
                self.note(book.close(now_us=now, kinds=[IncidentKind.DATA_LOSS]))

    def _put_incidents(self, changed: Sequence[Incident]) -> None:
        """Write what changed, and open incidents whose evidence grew stronger without being news."""
        standing = {
            i.id: i for v in self.versions.values() for line in v.lines.values() for i in line.book.open_incidents
        }
        # What stands is never older than what was told of: its evidence may have grown since.
        fresh = {i.id: i for i in changed} | {i.id: i for i in standing.values() if self._written.get(i.id) != i}
        self.store.put_incidents([incident_row(incident) for incident in fresh.values()])
        self._written = standing
        # One that closed is not told of again.
        self._known_incidents = {i: incident.severity for i, incident in standing.items()}
        self._worsened_us = {i: at for i, at in self._worsened_us.items() if i in standing}

    def _expire(self) -> None:
        """Drop what is kept no longer: retention for profiles, the label horizon for predictions and labels."""
        if self.sealed_us is None:
            return
        keep = self.config.retention
        for shelf, seconds in (
            (PANES, keep.panes),
            (FIVE_MINUTES, FIVE_MINUTES_KEPT_SECONDS),
            (HOURS, keep.hours),
            (SKETCHES, keep.hours),
            (DAYS, keep.days),
            (SCORES, keep.days),
        ):
            for block in self.store.expired_blocks(shelf, self.sealed_us - seconds * MICROSECONDS):
                self.store.drop_block(shelf, block)
        if self.joined_sealed_us is None:
            return
        # Predictions may be far ahead of the labels that are joined, in a backlog by weeks: what these wait for stays.
        joined_us = min(self.sealed_us, self.joined_sealed_us)
        self.truth.expire(joined_us)
        day = joined_us // DAY_US
        if day != self._expired_day:
            self._expired_day = day
            hours = max(keep.hours, self.config.label_horizon + 86_400) * MICROSECONDS
            self.store.expire_windows(joined_us - hours, joined_us - keep.days * MICROSECONDS)

    def forget_profiles(self, line: int) -> None:
        """Profiles on the bins of an earlier baseline do not add to those that follow."""
        for shelf in (PANES, FIVE_MINUTES, HOURS, DAYS, SKETCHES):
            self.store.forget_line(shelf, line)

    def forget_errors(self, line: Line) -> None:
        """Errors are judged by the truth of the new baseline from now on."""
        self.outcomes.rebase(line)

    def close(self) -> None:
        """A last checkpoint, with the sketches under way."""
        for version in self.versions.values():
            version.save(final=True)
        self.checkpoint()


FIVE_MINUTES_KEPT_SECONDS = 2 * 86_400
"""Trailing windows of up to two days are sums of five-minute profiles; longer ones of hours."""


def _score(line: LineKey, row: dict[str, Any]) -> Score:
    """A row of the scores' shelf, its line given."""
    seconds, start_us, verdict = row.pop("window_seconds"), row.pop("start_us"), Verdict(row.pop("verdict"))
    end_us = start_us + seconds * MICROSECONDS
    return Score(line, duration_text(seconds), start_us, end_us, **row, verdict=verdict)


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def incident_row(incident: Incident) -> list[object]:
    """One incident as the store keeps it."""
    body = json.dumps(incident_json(incident))
    line = incident.line
    return [incident.id, incident.opened_us, incident.closed_us, line.model, line.version, str(incident.kind),
            str(incident.severity), body]  # fmt: skip


def incident_json(incident: Incident) -> dict[str, object]:
    """The object of `incidents.jsonl` and of the API."""
    return {
        "id": incident.id,
        "model": incident.line.model,
        "version": incident.line.version,
        "segment": dict(incident.line.segment),
        "kind": str(incident.kind),
        "severity": str(incident.severity),
        "onset": time_text(incident.onset_us),
        "onset_interval": None if incident.onset_between_us is None else [*map(time_text, incident.onset_between_us)],
        "opened_at": time_text(incident.opened_us),
        "closed_at": None if incident.closed_us is None else time_text(incident.closed_us),
        "subjects": [
            {f.name: _finite(getattr(evidence, f.name)) for f in dataclasses.fields(evidence)}
            for evidence in incident.subjects
        ],
        "baseline_id": incident.baseline_id,
        "summary": incident.summary,
    }


def time_text(time_us: int) -> str:
    """RFC 3339 in UTC, to the millisecond or finer where it matters."""
    moment = datetime.fromtimestamp(time_us // MICROSECONDS, tz=UTC).replace(microsecond=time_us % MICROSECONDS)
    return moment.isoformat(timespec="milliseconds" if time_us % 1000 == 0 else "microseconds").replace("+00:00", "Z")


def _finite(value: object) -> object:
    """JSON has no NaN: what is undefined is null."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
