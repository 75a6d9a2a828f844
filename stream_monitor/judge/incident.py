"""Verdicts become incidents: one for each drift, not one for each window that shows it.

A book belongs to one line and is pure: scores and event time go in, changed incidents come out, and its whole state is
JSON. It opens an incident when a subject drifts, lets further subjects of the same kind join it, and closes it when
all are calm again in two consecutive windows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stream_monitor.judge.quality import is_broken
from stream_monitor.judge.wording import summary_of
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Evidence,
    Incident,
    IncidentKind,
    LineKey,
    Score,
    Severity,
    Verdict,
)

FORMAT = 2
CALM_WINDOWS = 2  # one quiet window may be luck; a third would keep a mended 1 d window open for three days
QUIET_SECONDS = 3600  # a detector speaks once a change and never says that it is over: an hour of silence does
EPISODES_KEPT_SECONDS = 8 * 86400  # the longest window, 7 d, may still overlap what was closed a week ago
LARGE_EFFECT = 0.5  # Cohen's "medium": half a standard deviation, or a share of 50 % become 74 %
IMPORTANT = 2.0  # importance is relative to the usual feature's 1
MANY_SHARE = 0.3
MANY_COUNT = 3
_METRIC, _LATENCY, _FEATURE = "metric", "latency", "feature"
# Values out of range and unseen categories are how a drift shows at the edges: they are told with it, not beside it.
_RATIOS = frozenset({"missing_ratio", "wrong_type_ratio", "infinite_ratio"})
_QUALITY = frozenset({IncidentKind.DATA_QUALITY, IncidentKind.BROKEN_INPUT})
_LABELLED = frozenset({str(IncidentKind.CONCEPT_DRIFT), str(IncidentKind.PERFORMANCE)})
_DETECTORS = frozenset({"adwin", "page_hinkley", "kswin"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides how severe an incident is."""

    kind: IncidentKind
    subject_kinds: tuple[str, ...]
    largest_effect: float
    features: int  # feature subjects in the incident
    features_total: int  # features the line is judged by
    is_noted_only: bool  # online detectors alone speak, no window has confirmed
    important_effect: float = 0.0  # the largest of features of at least IMPORTANT importance
    is_unimportant: bool = False  # features of importance 0 and nothing else
    is_beyond_fixed: bool = False  # a fixed threshold that is called critical was passed


def severity_of(facts: Facts) -> Severity:
    """The first rule that holds, in order.

    1. Only online detectors speak, their rate is not calibrated: info.
    2. Input is broken: critical.
    3. The prediction drifted by a large effect (0.5): critical.
    4. Many features (30 % and at least three) drifted, one of them by a large effect: critical.
    5. Errors grew, or an objective was missed, by a large effect: critical.
    6. Records were lost: critical.
    7. Nothing but the latency moved: info.
    8. Nothing but features of no importance (0) moved: info.
    9. An important feature (2 or more) drifted by a large effect: critical.
    10. A fixed threshold that the configuration calls critical was passed: critical.
    11. Labels are late, but fewer are missing than a large effect: info.
    12. Everything else: warning.
    """
    for rule, severity in _RULES:
        if rule(facts):
            return severity
    return Severity.WARNING


def _is_large(facts: Facts) -> bool:
    return facts.largest_effect >= LARGE_EFFECT


def _is_widespread(facts: Facts) -> bool:
    return facts.features >= MANY_COUNT and facts.features >= MANY_SHARE * facts.features_total


_RULES: tuple[tuple[Callable[[Facts], bool], Severity], ...] = (
    (lambda f: f.is_noted_only, Severity.INFO),
    (lambda f: f.kind is IncidentKind.BROKEN_INPUT, Severity.CRITICAL),
    (lambda f: f.kind is IncidentKind.PREDICTION_DRIFT and _is_large(f), Severity.CRITICAL),
    (lambda f: f.kind is IncidentKind.DATA_DRIFT and _is_large(f) and _is_widespread(f), Severity.CRITICAL),
    (lambda f: str(f.kind) in _LABELLED and _is_large(f), Severity.CRITICAL),
    (lambda f: f.kind is IncidentKind.DATA_LOSS, Severity.CRITICAL),
    (lambda f: bool(f.subject_kinds) and set(f.subject_kinds) == {_LATENCY}, Severity.INFO),
    (lambda f: f.is_unimportant, Severity.INFO),
    (lambda f: f.kind is IncidentKind.DATA_DRIFT and f.important_effect >= LARGE_EFFECT, Severity.CRITICAL),
    (lambda f: f.is_beyond_fixed, Severity.CRITICAL),
    (lambda f: f.kind is IncidentKind.LABELS_LATE and not _is_large(f), Severity.INFO),
)


def kind_of(score: Score) -> IncidentKind:
    """Which kind of incident a drifting score belongs to."""
    if score.statistic in _RATIOS:
        return IncidentKind.BROKEN_INPUT if is_broken(score) else IncidentKind.DATA_QUALITY
    if score.subject_kind == _METRIC:
        return IncidentKind.CONCEPT_DRIFT
    return IncidentKind.PREDICTION_DRIFT if score.subject_kind == "prediction" else IncidentKind.DATA_DRIFT


def group_of(kind: IncidentKind) -> str:
    """Kinds of one group share an incident: a field that breaks further turns `data_quality` into `broken_input`."""
    return str(IncidentKind.DATA_QUALITY if kind in _QUALITY else kind)


def strength(evidence: Evidence) -> tuple[float, float]:
    """What subjects are ranked by: value over threshold, then effect."""
    ratio = evidence.value / evidence.threshold if evidence.threshold > 0 else math.inf if evidence.value > 0 else 0.0
    return (_number(ratio), _number(evidence.effect))


@dataclass(slots=True)
class _Subject:
    """A subject's case in an open incident, and how calm it has been."""

    evidence: Evidence
    window_us: int = 0  # the shortest window that raised it; 0: only a detector or a state did
    seen_until_us: int = 0  # the end of the last window that was counted
    calm: int = 0
    noted_us: int = NO_TIME  # when a detector last spoke
    is_held: bool = False  # open until released, whatever the windows say
    is_alarmed: bool = False  # the charts raised it and have not found it calm again
    by_charts: bool = False  # begun by the charts, so they end it; windows only size it
    joined_us: int = NO_TIME


@dataclass(slots=True)
class _Open:
    incident: Incident
    subjects: dict[str, _Subject] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Witness:
    """Who is asked about a score: when did it begin, and what does it show?"""

    onset_of: Callable[[Score], int]
    describe: Callable[[Score], str]


@dataclass(slots=True)
class IncidentBook:
    """The incidents of one line. Not one method reads a clock; every one returns the incidents that changed.

    An incident is returned when it opens, when a subject joins, when its kind or severity rises and when it closes;
    evidence that merely grows stronger shows in `open_incidents` and in the next one returned.
    `minimum_effect`: the practical floor of the verdicts; half of it is calm. `has_charts`: windows of features and
    predictions explain and size what the charts raise, and open nothing themselves: the budget is the charts'.
    """

    line: LineKey
    minimum_effect: float = 0.1
    baseline_id: str | None = None
    quiet_seconds: int = QUIET_SECONDS
    has_charts: bool = False
    importance: Mapping[str, float] = field(default_factory=dict)  # as configured today; absent ones are 1
    fixed: Mapping[str, float] = field(default_factory=dict)  # statistics with fixed thresholds -> what is critical
    _open: dict[str, _Open] = field(default_factory=dict)
    # Group, subject, its end in window time, when it joined and when it was closed.
    _episodes: list[tuple[str, str, int, int, int]] = field(default_factory=list)
    _features_total: int = 0

    @property
    def open_incidents(self) -> list[Incident]:
        """Every open incident as it stands, in the order of opening."""
        return sorted((entry.incident for entry in self._open.values()), key=lambda i: (i.opened_us, i.kind, i.id))

    def observe(
        self,
        scores: Sequence[Score],
        *,
        onset_of: Callable[[Score], int],
        describe: Callable[[Score], str],
        now_us: int | None = None,
    ) -> list[Incident]:
        """Take the scores of windows that became final, of any windows and references.

        `onset_of` estimates when the change a score shows began, `describe` says in words what it shows; both are
        asked only about scores that open, join or strengthen. `now_us` dates what opens and closes: None means the
        end of each window, which does not depend on how the stream was cut into polls; where the evidence is labels
        it is their arrival.
        """
        changed: dict[str, Incident] = {}
        witness = _Witness(onset_of, describe)
        for window in _by_window(scores):
            features = {score.subject for score in window if score.subject_kind == _FEATURE}
            self._features_total = max(self._features_total, len(features))
            at_us = window[0].window_end_us if now_us is None else now_us
            for group, by_subject in _by_subject(window).items():
                self._take(group, by_subject, witness, at_us, changed)
            self._close_calm(changed, at_us, of_labels=window[0].subject_kind == _METRIC)
            self._forget(window[0].window_end_us)
        return list(changed.values())

    def note(self, kind: IncidentKind, evidence: Evidence, *, now_us: int, onset_us: int) -> list[Incident]:
        """An online detector found a change: opens or joins an `info`, unless the subject stands in an incident."""
        entry = self._open.get(group_of(kind))
        if entry is not None and evidence.name in entry.subjects:
            entry.subjects[evidence.name].noted_us = now_us
            return []
        return [self._state(kind, _Subject(evidence, noted_us=now_us), now_us, onset_us)]

    def begin_charts(self, *, features: int) -> None:
        """Charts watch this line from now on, over so many features."""
        self.has_charts, self._features_total = True, features

    def alarm(
        self,
        kind: IncidentKind,
        evidence: Evidence,
        *,
        now_us: int,
        onset_us: int,
        onset_between_us: tuple[int, int] | None = None,
    ) -> list[Incident]:
        """The charts raised a subject: opens or joins an incident; over once they have found it `calm`."""
        entry = self._open.get(group_of(kind))
        held = None if entry is None else entry.subjects.get(evidence.name)
        if entry is None or held is None:
            subject = _Subject(evidence, is_alarmed=True, by_charts=True)
            return [self._state(kind, subject, now_us, onset_us, onset_between_us)]
        held.is_alarmed = held.by_charts = True
        # More events tell the size better than the few that first gave it away.
        if evidence.samples > held.evidence.samples or strength(evidence) > strength(held.evidence):
            held.evidence = evidence
        before = entry.incident
        entry.incident = _begun(replace(before, kind=_graver(before.kind, kind)), onset_us, onset_between_us)
        entry.incident = _written(entry, self._features_total, self.importance, self.fixed)
        return [entry.incident] if entry.incident.severity != before.severity else []

    def calm(self, kind: IncidentKind, name: str, *, now_us: int) -> list[Incident]:
        """The charts found a subject calm again: the incident closes with the last of its subjects."""
        entry = self._open.get(group_of(kind))
        if entry is None or name not in entry.subjects:
            return []
        entry.subjects[name].is_alarmed = False
        if not all(self._is_at_rest(subject, now_us) for subject in entry.subjects.values()):
            return []
        return [self._shut(group_of(kind), now_us)]

    def reconcile(self, raised: Collection[tuple[str, str]], *, of_labels: bool = False) -> None:
        """After a restart: subjects the charts no longer hold in alarm, by (group, name), rest from now on.

        Of features, or of what labels show: each has charts of its own. With another budget or minimum effect than
        before, rows that are read again may not raise what they raised then.
        """
        for group, entry in self._open.items():
            for name, subject in entry.subjects.items() if (group in _LABELLED) == of_labels else ():
                subject.is_alarmed &= (group, name) in raised

    def stood(self, kind: IncidentKind, name: str, *, at_us: int) -> bool:
        """Whether a subject stood in an open incident of a kind at a time."""
        entry = self._open.get(group_of(kind))
        if entry is not None and name in entry.subjects and entry.subjects[name].joined_us <= at_us:
            return True
        return any(
            group == group_of(kind) and subject == name and joined_us <= at_us < closed_us
            for group, subject, _, joined_us, closed_us in self._episodes
        )

    def stood_between(self, kinds: Collection[IncidentKind], since_us: int, until_us: int) -> list[tuple[str, str]]:
        """(group, subject) of those that stood in an incident of these kinds at some time of [since, until], by name."""
        groups = {group_of(kind) for kind in kinds}
        standing = {
            (group, name)
            for group in groups & set(self._open)
            for name, subject in self._open[group].subjects.items()
            if subject.joined_us <= until_us
        }
        past = {
            (group, name)
            for group, name, _, joined_us, closed_us in self._episodes
            if group in groups and joined_us <= until_us and closed_us > since_us
        }
        return sorted(standing | past)

    def hold(self, kind: IncidentKind, evidence: Evidence, *, now_us: int, onset_us: int) -> list[Incident]:
        """A state began (no baseline, labels late, records lost): open until `release`; again is no news."""
        entry = self._open.get(group_of(kind))
        if entry is not None and evidence.name in entry.subjects:
            entry.subjects[evidence.name].is_held = True
            return []
        return [self._state(kind, _Subject(evidence, is_held=True), now_us, onset_us)]

    def restate(self, kind: IncidentKind, evidence: Evidence) -> list[Incident]:
        """A held state has other figures by now: no news, unless its severity rises."""
        entry = self._open.get(group_of(kind))
        if entry is None or evidence.name not in entry.subjects:
            return []
        before = entry.incident
        entry.subjects[evidence.name].evidence = evidence
        entry.incident = _written(entry, self._features_total, self.importance, self.fixed)
        return [entry.incident] if entry.incident.severity != before.severity else []

    def release(self, kind: IncidentKind, *, now_us: int, subject: str | None = None) -> list[Incident]:
        """A held state ended, for one subject or for all of the kind."""
        entry = self._open.get(group_of(kind))
        if entry is None:
            return []
        for name, held in entry.subjects.items():
            if subject is None or name == subject:
                held.is_held = False
        changed: dict[str, Incident] = {}
        self._close_calm(changed, now_us, of_labels=group_of(kind) in _LABELLED)
        return list(changed.values())

    def close(self, *, now_us: int, kinds: Iterable[IncidentKind] | None = None) -> list[Incident]:
        """Close incidents of these kinds, or all: what a promoted baseline explains, or a version that was retired."""
        groups = list(self._open) if kinds is None else sorted({group_of(kind) for kind in kinds} & set(self._open))
        return [self._shut(group, now_us) for group in groups]

    def advance(self, *, now_us: int) -> list[Incident]:
        """Let event time pass: closes what only detectors of features spoke of and they have been quiet about."""
        changed: dict[str, Incident] = {}
        self._close_calm(changed, now_us, of_labels=False)
        return list(changed.values())

    def to_json(self) -> dict[str, Any]:
        """The whole state as JSON values."""
        return {
            "format": FORMAT,
            "line": [self.line.model, self.line.version, [list(pair) for pair in self.line.segment]],
            "minimum_effect": self.minimum_effect,
            "baseline_id": self.baseline_id,
            "quiet_seconds": self.quiet_seconds,
            "has_charts": self.has_charts,
            "features_total": self._features_total,
            "episodes": [list(episode) for episode in self._episodes],
            "open": {group: _entry_to_json(entry) for group, entry in self._open.items()},
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> IncidentBook:
        """The book that was stored; raises ValueError if it is of another format."""
        if state.get("format") != FORMAT:
            raise ValueError(f"incidents of format {state.get('format')}: this program reads format {FORMAT}")
        model, version, segment = state["line"]
        line = LineKey(model, version, tuple((key, value) for key, value in segment))
        return cls(
            line,
            state["minimum_effect"],
            state["baseline_id"],
            state["quiet_seconds"],
            state["has_charts"],
            {},
            {},
            {group: _entry_from_json(line, entry) for group, entry in state["open"].items()},
            [(group, subject, end, joined, closed) for group, subject, end, joined, closed in state["episodes"]],
            state["features_total"],
        )

    def _take(
        self,
        group: str,
        by_subject: Mapping[str, list[Score]],
        witness: _Witness,
        now_us: int,
        changed: dict[str, Incident],
    ) -> None:
        """One window's scores of one group of kinds."""
        drifts = {
            subject: max(drifting, key=_score_strength)
            for subject, scores in by_subject.items()
            if (drifting := self._drifting(group, subject, scores))
        }
        entry = self._open.get(group)
        if entry is not None:
            for subject in by_subject.keys() & entry.subjects.keys() - drifts.keys():
                self._take_calm(entry.subjects[subject], by_subject[subject])
        told = [score for subject, score in drifts.items() if self._is_news(entry, score)]
        if not told:
            return
        before = None if entry is None else entry.incident
        joined = False
        for score in told:
            if entry is None:
                entry = self._begin(kind_of(score), now_us, witness.onset_of(score))
            joined |= self._take_drift(entry, score, witness)
        assert entry is not None
        entry.incident = _written(entry, self._features_total, self.importance, self.fixed)
        after = entry.incident
        has_risen = before is None or (after.kind, after.severity) != (before.kind, before.severity)
        if joined or has_risen or after.id in changed:
            changed[after.id] = after

    def _drifting(self, group: str, subject: str, scores: Sequence[Score]) -> list[Score]:
        """The scores that speak of drift; where charts watch, of a subject in no incident those with fixed thresholds."""
        entry = self._open.get(group)
        may_open = not self.has_charts or scores[0].subject_kind == _METRIC
        is_in = entry is not None and subject in entry.subjects
        return [s for s in scores if s.verdict is Verdict.DRIFT and (may_open or is_in or s.statistic in self.fixed)]

    def _is_news(self, entry: _Open | None, score: Score) -> bool:
        return (entry is not None and score.subject in entry.subjects) or not self._is_over(score)

    def _take_drift(self, entry: _Open, score: Score, witness: _Witness) -> bool:
        """Let a subject join, or strengthen its case; whether it joined."""
        window_us = score.window_end_us - score.window_start_us
        entry.incident = replace(entry.incident, kind=_graver(entry.incident.kind, kind_of(score)))
        held = entry.subjects.get(score.subject)
        if held is None:
            evidence = _evidence(score, witness.describe(score))
            joined_us = max(score.window_end_us, entry.incident.opened_us)
            entry.subjects[score.subject] = _Subject(evidence, window_us, score.window_end_us, joined_us=joined_us)
            onset_us = min(entry.incident.onset_us, witness.onset_of(score))
            entry.incident = _begun(entry.incident, onset_us, None)
            return True
        if held.window_us == 0 and not held.is_held and not held.by_charts:
            # A detector speaks some time after the change: the first window that confirms it knows when it began.
            entry.incident = replace(entry.incident, onset_us=min(entry.incident.onset_us, witness.onset_of(score)))
        if window_us <= held.window_us or held.window_us == 0:
            held.window_us, held.calm, held.seen_until_us = window_us, 0, score.window_end_us
        bare = _evidence(score, "")
        if strength(bare) > strength(held.evidence) or held.evidence.statistic in _DETECTORS:
            held.evidence = replace(bare, detail=witness.describe(score))
        return False

    def _take_calm(self, held: _Subject, scores: Sequence[Score]) -> None:
        window_us = scores[0].window_end_us - scores[0].window_start_us
        if window_us != held.window_us or scores[0].window_end_us <= held.seen_until_us:
            return
        said = [score for score in scores if score.verdict is Verdict.OK]
        if not said:
            return  # insufficient and stale windows say nothing, so they end nothing
        held.calm = held.calm + 1 if all(self._is_calm(score) for score in said) else 0
        held.seen_until_us = scores[0].window_end_us

    def _is_calm(self, score: Score) -> bool:
        """Halfway back to what no change gives, or below half the practical floor: a drift that hovers stays one."""
        middle = score.expected + (score.threshold - score.expected) / 2
        return score.value <= middle or score.effect < self.minimum_effect / 2

    def _is_over(self, score: Score) -> bool:
        """Whether the window overlaps an episode of the subject that has been closed: it tells of that one again."""
        group = group_of(kind_of(score))
        return any(
            past_group == group and subject == score.subject and score.window_start_us < end_us
            for past_group, subject, end_us, _, _ in self._episodes
        )

    def _state(
        self,
        kind: IncidentKind,
        subject: _Subject,
        now_us: int,
        onset_us: int,
        onset_between_us: tuple[int, int] | None = None,
    ) -> Incident:
        """Open or join with a subject that no window has raised."""
        entry = self._open.get(group_of(kind)) or self._begin(kind, now_us, onset_us)
        graver = replace(entry.incident, kind=_graver(entry.incident.kind, kind))
        entry.incident = _begun(graver, onset_us, onset_between_us)
        subject.joined_us = now_us
        entry.subjects[subject.evidence.name] = subject
        entry.incident = _written(entry, self._features_total, self.importance, self.fixed)
        return entry.incident

    def _begin(self, kind: IncidentKind, now_us: int, onset_us: int) -> _Open:
        group = group_of(kind)
        text = json.dumps([*self.line[:2], [list(pair) for pair in self.line.segment], group, now_us])
        identity = hashlib.sha256(text.encode()).hexdigest()[:16]
        incident = Incident(
            id=identity,
            line=self.line,
            kind=kind,
            severity=Severity.INFO,
            onset_us=min(onset_us, now_us),
            opened_us=now_us,
            closed_us=None,
            subjects=(),
            baseline_id=self.baseline_id,
            summary="",
        )
        self._open[group] = _Open(incident)
        return self._open[group]

    def _close_calm(self, changed: dict[str, Incident], now_us: int, *, of_labels: bool) -> None:
        """Labels and features come at their own pace: the time of one says nothing about the other's quiet."""
        over = [
            group
            for group, entry in self._open.items()
            if (group in _LABELLED) == of_labels
            and all(self._is_at_rest(subject, now_us) for subject in entry.subjects.values())
        ]
        for group in over:
            incident = self._shut(group, now_us)
            changed[incident.id] = incident

    def _is_at_rest(self, subject: _Subject, now_us: int) -> bool:
        if subject.is_held or subject.by_charts:
            return not (subject.is_held or subject.is_alarmed)
        if subject.window_us:
            return subject.calm >= CALM_WINDOWS
        return now_us - subject.noted_us >= self.quiet_seconds * MICROSECONDS

    def _shut(self, group: str, now_us: int) -> Incident:
        entry = self._open.pop(group)
        # An episode ends where its windows did, in their time: labels may arrive weeks after what they judge.
        self._episodes += [
            (group, name, subject.seen_until_us if subject.window_us else now_us, subject.joined_us, now_us)
            for name, subject in entry.subjects.items()
        ]
        closed = replace(entry.incident, closed_us=max(now_us, entry.incident.opened_us))
        return replace(closed, summary=summary_of(closed))

    def _forget(self, now_us: int) -> None:
        oldest = now_us - EPISODES_KEPT_SECONDS * MICROSECONDS
        self._episodes = [episode for episode in self._episodes if episode[2] >= oldest]


def _begun(incident: Incident, onset_us: int, between_us: tuple[int, int] | None) -> Incident:
    """The incident with the earlier of two onsets, and how sure that one is."""
    if onset_us > incident.onset_us or (onset_us == incident.onset_us and between_us is None):
        return incident
    return replace(incident, onset_us=onset_us, onset_between_us=between_us)


def _written(
    entry: _Open, features_total: int, importance: Mapping[str, float], fixed: Mapping[str, float]
) -> Incident:
    """The incident with its subjects ranked, its severity judged and its sentence written."""
    cases = list(entry.subjects.values())
    ranked = tuple(sorted((case.evidence for case in cases), key=lambda e: (strength(e), e.name), reverse=True))
    facts = Facts(
        kind=entry.incident.kind,
        subject_kinds=tuple(evidence.kind for evidence in ranked),
        largest_effect=max((_number(evidence.effect) for evidence in ranked), default=0.0),
        features=sum(evidence.kind == _FEATURE for evidence in ranked),
        features_total=features_total,
        is_noted_only=all(case.window_us == 0 and not case.is_held and not case.by_charts for case in cases),
        important_effect=max(
            (_number(e.effect) for e in ranked if e.kind == _FEATURE and importance.get(e.name, 1.0) >= IMPORTANT),
            default=0.0,
        ),
        is_beyond_fixed=any(e.value > fixed.get(e.statistic, math.inf) for e in ranked),
        is_unimportant=bool(ranked) and all(e.kind == _FEATURE and importance.get(e.name, 1.0) == 0 for e in ranked),
    )
    severity = _higher(entry.incident.severity, severity_of(facts))
    incident = replace(entry.incident, subjects=ranked, severity=severity)
    return replace(incident, summary=summary_of(incident))


def _by_window(scores: Sequence[Score]) -> list[list[Score]]:
    """Scores window by window, in the order in which the windows ended, the shorter first."""
    groups: dict[tuple[int, int], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.window_end_us, score.window_end_us - score.window_start_us), []).append(score)
    return [groups[key] for key in sorted(groups)]


def _by_subject(scores: Iterable[Score]) -> dict[str, dict[str, list[Score]]]:
    """Group of kinds -> subject -> its scores, in the order they came."""
    found: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        found.setdefault(group_of(kind_of(score)), {}).setdefault(score.subject, []).append(score)
    return found


def _evidence(score: Score, detail: str) -> Evidence:
    return Evidence(
        score.subject,
        score.subject_kind,
        score.statistic,
        score.value,
        score.threshold,
        score.effect,
        score.samples,
        score.baseline_samples,
        detail,
    )


def _score_strength(score: Score) -> tuple[float, float, str]:
    return (*strength(_evidence(score, "")), score.statistic)


def _graver(one: IncidentKind, other: IncidentKind) -> IncidentKind:
    return IncidentKind.BROKEN_INPUT if IncidentKind.BROKEN_INPUT in (one, other) else one


_ORDER = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)


def _higher(one: Severity, other: Severity) -> Severity:
    """Severity never falls while an incident is open: a page that was sent is not taken back by a quieter window."""
    return max(one, other, key=_ORDER.index)


def _number(value: float) -> float:
    return value if not math.isnan(value) else 0.0


def _entry_to_json(entry: _Open) -> dict[str, Any]:
    incident = entry.incident
    return {
        "id": incident.id,
        "kind": str(incident.kind),
        "severity": str(incident.severity),
        "onset_us": incident.onset_us,
        "onset_between_us": incident.onset_between_us,
        "opened_us": incident.opened_us,
        "baseline_id": incident.baseline_id,
        "summary": incident.summary,
        "ranked": [evidence.name for evidence in incident.subjects],
        "subjects": [_subject_to_json(subject) for subject in entry.subjects.values()],
    }


def _subject_to_json(subject: _Subject) -> dict[str, Any]:
    content = asdict(subject)
    content["evidence"] = [_spelt(value) for value in content["evidence"].values()]
    return content


def _entry_from_json(line: LineKey, state: Mapping[str, Any]) -> _Open:
    subjects = {}
    for content in state["subjects"]:
        evidence = Evidence(*(_unspelt(value) for value in content["evidence"]))
        subjects[evidence.name] = _Subject(**{**content, "evidence": evidence})
    incident = Incident(
        id=state["id"],
        line=line,
        kind=IncidentKind(state["kind"]),
        severity=Severity(state["severity"]),
        onset_us=state["onset_us"],
        onset_between_us=None if state["onset_between_us"] is None else (*state["onset_between_us"],),
        opened_us=state["opened_us"],
        closed_us=None,
        subjects=tuple(subjects[name].evidence for name in state["ranked"]),
        baseline_id=state["baseline_id"],
        summary=state["summary"],
    )
    return _Open(incident, subjects)


def _spelt(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as one-element lists."""
    return [str(value)] if isinstance(value, float) and not math.isfinite(value) else value


def _unspelt(value: Any) -> Any:
    return float(value[0]) if isinstance(value, list) else value
