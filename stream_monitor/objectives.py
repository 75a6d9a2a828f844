"""Objectives judged on ripe cohorts, on a fast and on a slow window at once; without any, the baseline's values are.

Each two neighbouring window lengths are a pair: the cohorts of the shorter one, and what those of the last longer
length are together. An objective is missed when both exclude it, so a dip that is over opens nothing, a collapse is
found by the shortest pair within a few cohorts, and slow erosion by the longer ones, which have more labels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stream_monitor.config import duration_text
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.metric import Metric
from stream_monitor.judge.objective import Objective, Usual, usual_of
from stream_monitor.judge.performance import metrics
from stream_monitor.labels import LabelArrival, Ripeness
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Evidence,
    Incident,
    IncidentKind,
    Json,
    window_start,
)
from stream_monitor.summarize.outcome import OutcomeProfile

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.outcomes import Outcomes
    from stream_monitor.versions import Version

OBJECTIVES_SHARE = 0.25
"""Of the labels' part of the false-alarm budget: at most so often is one called missed that is just met."""

OUTCOME = "label"
"""Objectives are of the default outcome; others have figures, and no objectives."""

SAID = (IncidentKind.CONCEPT_DRIFT, IncidentKind.PERFORMANCE)
"""Where one of these stands, or stood while the predictions were made or labelled, it is said that they are worse than the
baseline's: that is told once. What was asked for is told of in any case."""

MOST_COHORTS = 96
"""Cohorts a slow window is made of, and cohorts held back at most: a day of quarter hours."""

CALM_COHORTS = 2
"""As with every other incident: one good cohort may be luck."""


@dataclass(slots=True)
class _Pair:
    """Where one pair of windows stands: the end of the newest cohort that was looked at, and those held back."""

    reached_us: int = NO_TIME
    held: dict[int, str] = field(default_factory=dict)  # end -> Ripeness


@dataclass(slots=True)
class _Missed:
    """A missed objective: the shortest pair that says so, and its good cohorts in a row since."""

    pair: int
    calm: int = 0


@dataclass(slots=True)
class _Standing:
    pairs: list[_Pair]
    missed: dict[str, _Missed] = field(default_factory=dict)


class Objectives:
    """The objectives of every version."""

    def __init__(self, engine: Engine, outcomes: Outcomes, labels: LabelArrival) -> None:
        self.engine = engine
        self._outcomes = outcomes
        self._labels = labels
        windows = sorted(engine.config.windows)
        ladder = [pair for pair in pairwise(windows) if pair[1] % pair[0] == 0 and pair[1] // pair[0] <= MOST_COHORTS]
        self.pairs = ladder or [(windows[0], windows[0])]
        self._versions: dict[int, _Standing] = {}
        self._dirty: set[int] = set()
        for key, body in engine.store.states("objectives").items():
            self._load(int(key), json.loads(body))

    def judge(self, until_us: int) -> list[Incident]:
        """Judge every cohort that has become ripe by a time, in the order of their ends."""
        changed: dict[str, Incident] = {}
        if OUTCOME not in self.engine.names.outcomes:
            return []
        outcome = self.engine.names.outcomes.index(OUTCOME)
        for number, version in sorted(self.engine.versions.items()):
            asked = self._asked(version, outcome)
            if asked:
                for pair in range(len(self.pairs)):
                    self._judge_pair(number, outcome, pair, asked, until_us, changed)
        return list(changed.values())

    def _asked(self, version: Version, outcome: int) -> Sequence[Objective | Usual]:
        """What the configuration says, else that nothing is worse than in the baseline."""
        if version.model.objectives:
            return [Objective.parse(name, text) for name, text in sorted(version.model.objectives.items())]
        reference = self._outcomes.reference(version.whole(), outcome)
        if reference is None or not reference.is_whole:
            return []
        effect = self.engine.config.drift.minimum_effect
        return usual_of(reference.task, metrics(reference), minimum_effect=effect)

    def _judge_pair(
        self,
        number: int,
        outcome: int,
        pair: int,
        asked: Sequence[Objective | Usual],
        until_us: int,
        changed: dict[str, Incident],
    ) -> None:
        through_us = self._labels.through_us(number, outcome)
        first_us = self._labels.since_us(number, outcome)
        if through_us is None or first_us is None:
            return
        standing = self._versions.setdefault(number, _Standing([_Pair() for _ in self.pairs]))
        state, seconds = standing.pairs[pair], self.pairs[pair][0]
        span = seconds * MICROSECONDS
        newest = window_start(until_us - through_us, seconds)
        begin = max(state.reached_us, window_start(first_us, seconds), newest - MOST_COHORTS * span)
        if newest <= begin and state.reached_us != NO_TIME:
            return
        ends = sorted({*state.held, *range(begin + span, newest + span, span)})
        state.reached_us, state.held = max(newest, state.reached_us), {}
        for end_us in ends[-MOST_COHORTS:]:
            ripeness = self._ripeness(number, outcome, seconds, end_us, until_us)
            if ripeness is Ripeness.RIPE:
                self._judge_cohort(number, outcome, pair, asked, end_us, changed)
            elif ripeness is not None:
                state.held[end_us] = str(ripeness)
        self._dirty.add(number)

    def _ripeness(self, number: int, outcome: int, seconds: int, end_us: int, now_us: int) -> Ripeness | None:
        """None for a stretch without predictions."""
        line, start = self.engine.versions[number].whole().number, end_us - seconds * MICROSECONDS
        made, cohort = (
            self._outcomes.cohorts.made(line, seconds, start),
            self._outcomes.cohorts.profile((line, outcome, seconds, start)),
        )
        if not made:
            return None
        labelled = 0 if cohort is None else cohort.rows + cohort.unusable
        return self._labels.ripeness(number, outcome, end_us=end_us, made=made, labelled=labelled, now_us=now_us)

    def _judge_cohort(
        self,
        number: int,
        outcome: int,
        pair: int,
        asked: Sequence[Objective | Usual],
        end_us: int,
        changed: dict[str, Incident],
    ) -> None:
        """A ripe cohort and the slow window that ends with it."""
        fast, slow = self.pairs[pair]
        cohorts = self._cohorts(number, outcome, fast, end_us, most=slow // fast)
        newest = cohorts.get(end_us)
        if newest is None or not newest.rows:
            return
        together = OutcomeProfile(newest.task, newest.positive_label)
        for cohort in cohorts.values():
            if cohort.measures_as(newest.task, newest.positive_label):
                together.absorb(cohort)
        now_us = end_us + (self._labels.through_us(number, outcome) or 0)
        found, of_slow = metrics(newest), metrics(together)
        standing, book = self._versions[number], self.engine.versions[number].whole().book
        alpha = self._alpha(fast, len(asked), newest.rows)
        is_known = bool(book.stood_between(SAID, end_us - slow * MICROSECONDS, now_us))
        for each in asked:
            metric, objective = each.metric, each.at(alpha)
            if metric not in found or metric not in of_slow:
                continue  # of another task than the labels turned out to be
            missed = standing.missed.get(metric)
            if missed is None and is_known and isinstance(each, Usual):
                continue
            if all(objective.is_excluded(part[metric], alpha=alpha) for part in (found, of_slow)):
                evidence = self._evidence(objective, found[metric], of_slow[metric], pair)
                if missed is None:
                    onset_us = self._onset(objective, cohorts, end_us, fast)
                    told = book.hold(IncidentKind.PERFORMANCE, evidence, now_us=now_us, onset_us=onset_us)
                else:
                    told = book.restate(IncidentKind.PERFORMANCE, evidence)
                standing.missed[metric] = _Missed(pair if missed is None else min(pair, missed.pair))
            elif missed is not None and missed.pair == pair:
                missed.calm = missed.calm + 1 if objective.is_met(found[metric].value) else 0
                if missed.calm < CALM_COHORTS:
                    continue
                del standing.missed[metric]
                told = book.release(IncidentKind.PERFORMANCE, now_us=now_us, subject=metric)
            else:
                continue
            self.engine.count_opened(told, now_us=now_us)
            changed.update({incident.id: incident for incident in told})

    def _cohorts(self, number: int, outcome: int, seconds: int, end_us: int, *, most: int) -> dict[int, OutcomeProfile]:
        """The cohorts with labels among the last `most` up to an end, by their ends, the oldest first; ripe ones alone."""
        line, span = self.engine.versions[number].whole().number, seconds * MICROSECONDS
        found: dict[int, OutcomeProfile] = {}
        held = self._versions[number].pairs[self._pair_of(seconds)].held
        for end in range(end_us - (most - 1) * span, end_us + span, span):
            cohort = self._outcomes.cohorts.profile((line, outcome, seconds, end - span))
            if cohort is not None and cohort.rows and end not in held:
                found[end] = cohort
        return found

    def _pair_of(self, seconds: int) -> int:
        return next(n for n, (fast, _) in enumerate(self.pairs) if fast == seconds)

    def _alpha(self, seconds: int, objectives: int, rows: int) -> float:
        budget = Budget.parse(self.engine.config.drift.false_alarms)
        return OBJECTIVES_SHARE * budget.label_alpha(
            window_seconds=seconds, windows=len(self.pairs), tests=objectives, rows=rows
        )

    def _evidence(self, objective: Objective, found: Metric, of_slow: Metric, pair: int) -> Evidence:
        fast, slow = (duration_text(seconds) for seconds in self.pairs[pair])
        detail = f"{objective.detail(found)}, of {found.samples} labels in {fast} and {of_slow.samples} in {slow}"
        return Evidence(objective.metric, "metric", objective.metric, found.value, objective.limit,
                        objective.effect(found.value), found.samples, of_slow.samples, detail)  # fmt: skip

    def _onset(self, objective: Objective, cohorts: dict[int, OutcomeProfile], end_us: int, seconds: int) -> int:
        """The start of the first of the cohorts in a row that miss it, in prediction time."""
        first = end_us
        for end, cohort in sorted(cohorts.items(), reverse=True):
            if objective.is_met(metrics(cohort)[objective.metric].value):
                break
            first = end
        return first - seconds * MICROSECONDS

    def forget(self, version: int) -> None:
        """A baseline was promoted and its incidents are closed."""
        if version in self._versions:
            self._versions[version].missed = {}
            self._dirty.add(version)

    # -- the store -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        bodies = {str(v): json.dumps(_to_json(self.pairs, self._versions[v])).encode() for v in sorted(self._dirty)}
        self.engine.store.put_states("objectives", bodies)
        self._dirty = set()

    def _load(self, version: int, body: dict[str, Any]) -> None:
        """Take up what was saved, for the pairs that are still there."""
        pairs = [tuple(pair) for pair in body["pairs"]]
        standing = _Standing([_Pair() for _ in self.pairs])
        for n, pair in enumerate(self.pairs):
            if pair in pairs:
                reached, held = body["states"][pairs.index(pair)]
                standing.pairs[n] = _Pair(reached, {int(end): ripeness for end, ripeness in held.items()})
        standing.missed = {
            name: _Missed(self.pairs.index(pairs[pair]) if pairs[pair] in self.pairs else 0, calm)
            for name, (pair, calm) in body["missed"].items()
        }
        self._versions[version] = standing


def _to_json(pairs: Sequence[tuple[int, int]], standing: _Standing) -> Json:
    return {
        "pairs": [list(pair) for pair in pairs],
        "states": [[state.reached_us, {str(e): r for e, r in state.held.items()}] for state in standing.pairs],
        "missed": {name: [missed.pair, missed.calm] for name, missed in standing.missed.items()},
    }
