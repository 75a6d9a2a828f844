"""Objectives judged on ripe cohorts, on a fast and on a slow window at once; without any, the baseline's values are.

Every window length but the shortest is a slow window, made of cohorts of a shorter one. Whenever a cohort is ripe:
1. An objective is missed when the interval of the slow window excludes it and the newest cohort misses it, too, however
   few labels that has. So few labels a day add up, and a dip that is over opens nothing.
2. It is met again when cohorts in a row meet it, two at least, whose interval leaves out the slow window's value when
   it was missed last; or when the slow window meets it with them.
3. Cohorts from before it was met again are told of no more: a slow window still has the bad ones.
So a collapse is found by the shortest pair within a few cohorts, and slow erosion by the longer ones, which have more
labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stream_monitor.cohorts import CohortKey
from stream_monitor.config import duration_text
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.metric import Metric
from stream_monitor.judge.objective import Objective, Usual, usual_of
from stream_monitor.judge.performance import metrics
from stream_monitor.judge.wording import number as number_text
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

MOST_STEPS = 96
"""How often a slow window is looked at while it passes, and cohorts held back at most: a day of quarter hours."""

MOST_BEHIND = 35_040
"""Cohorts that are caught up with at once, as when a backlog is read or a file replayed: a year of quarter hours."""

CALM_COHORTS = 2
"""As with every other incident: one good cohort may be luck."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A slow window and a fast one, in seconds; `cohort`: the window length whose cohorts both are made of."""

    cohort: int
    fast: int
    slow: int

    @classmethod
    def of(cls, cohort: int, slow: int) -> Windows:
        """The fast one is a cohort; or several, where a slow window of the days has cohorts of seconds."""
        return cls(cohort, cohort * math.ceil(slow / cohort / MOST_STEPS), slow)

    @property
    def steps(self) -> int:
        """Fast windows in the slow one, the last of them whole."""
        return math.ceil(self.slow / self.fast)


def pairs_of(lengths: Iterable[int]) -> list[Windows]:
    """Each length is a slow window, of the longest shorter cohorts that fill it; the shortest is where none are of it.

    >>> [(pair.fast, pair.slow) for pair in pairs_of([900, 3600, 86400])]
    [(900, 3600), (3600, 86400)]
    """
    shortest, *longer = sorted(lengths)
    known = [shortest, *longer]
    pairs = [Windows.of(max((c for c in known if c < slow and slow % c == 0), default=slow), slow) for slow in longer]
    if shortest not in [pair.cohort for pair in pairs]:
        pairs.insert(0, Windows.of(shortest, shortest))
    return pairs


@dataclass(slots=True)
class _Pair:
    """Where one pair of windows stands: the end of the newest step that was looked at, and those held back."""

    reached_us: int = NO_TIME
    held: dict[int, str] = field(default_factory=dict)  # end -> Ripeness


@dataclass(slots=True)
class _Missed:
    """A missed objective: the longest pair that says so, and the last value of a slow window that does: the newest cohort's
    may be low by chance, and soon excluded."""

    pair: int
    value: float


@dataclass(slots=True)
class _Standing:
    """Of one version; `met_us`: where the cohorts begin by which an objective was met again."""

    pairs: list[_Pair]
    missed: dict[str, _Missed] = field(default_factory=dict)
    met_us: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Past:
    """Ripe steps with labels up to the newest, by their ends, which ascend."""

    steps: Mapping[int, OutcomeProfile]
    span_us: int

    def since(self, start_us: int) -> _Past:
        """The steps that began then or later."""
        return _Past({end: step for end, step in self.steps.items() if end - self.span_us >= start_us}, self.span_us)

    def together(self) -> Mapping[str, Metric]:
        """The metrics of all of them."""
        return metrics(_sum_of(list(self.steps.values())))

    def met(self, objective: Objective) -> _Past:
        """The last in a row that meet it; those that say nothing of it are passed over."""
        found: dict[int, OutcomeProfile] = {}
        for end, step in reversed(list(self.steps.items())):
            value = metrics(step)[objective.metric].value
            if objective.is_missed(value):
                break
            if objective.is_met(value):
                found[end] = step
        return _Past(dict(sorted(found.items())), self.span_us)

    def onset_us(self, objective: Objective) -> int:
        """Where the steps begin that miss it by most, each counted by its labels: the start of what is bad as a whole."""
        behind, most, first = 0.0, 0.0, max(self.steps)
        sign = 1 if objective.is_at_least else -1
        for end, step in reversed(list(self.steps.items())):
            value = metrics(step)[objective.metric].value
            if not math.isnan(value):
                behind += sign * (objective.limit - value) * step.rows
            if behind > most:
                most, first = behind, end
        return first - self.span_us

    @property
    def start_us(self) -> int:
        return min(self.steps) - self.span_us


def _sum_of(profiles: Sequence[OutcomeProfile]) -> OutcomeProfile:
    """Of one itself, with what was worked out for it."""
    if len(profiles) == 1:
        return profiles[0]
    total = OutcomeProfile(profiles[-1].task, profiles[-1].positive_label)
    for profile in profiles:
        total.absorb(profile)
    return total


class Objectives:
    """The objectives of every version."""

    def __init__(self, engine: Engine, outcomes: Outcomes, labels: LabelArrival) -> None:
        self.engine = engine
        self._outcomes = outcomes
        self._labels = labels
        self.pairs = pairs_of(engine.config.windows)
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
                self._judge_version(number, outcome, asked, until_us, changed)
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

    def _judge_version(
        self,
        number: int,
        outcome: int,
        asked: Sequence[Objective | Usual],
        until_us: int,
        changed: dict[str, Incident],
    ) -> None:
        """Every step that is due, of all pairs together: what is told does not depend on how much there is to catch up with."""
        standing = self._versions.setdefault(number, _Standing([_Pair() for _ in self.pairs]))
        due = sorted(
            (end, pair) for pair in range(len(self.pairs)) for end in self._due(number, outcome, pair, until_us)
        )
        for place, (end_us, pair) in enumerate(due):
            if place % MOST_STEPS == 0:
                ahead = due[place : place + MOST_STEPS]
                self._outcomes.cohorts.have([k for end, of in ahead for k in self._keys(number, outcome, of, end)])
            ripeness = self._ripeness(number, outcome, pair, end_us, until_us)
            if ripeness is Ripeness.RIPE:
                self._judge_step(number, outcome, pair, asked, end_us, changed)
            elif ripeness is not None:
                standing.pairs[pair].held[end_us] = str(ripeness)
        for state in standing.pairs:
            state.held = dict(list(state.held.items())[-MOST_STEPS:])
        if due:
            self._dirty.add(number)

    def _due(self, number: int, outcome: int, pair: int, until_us: int) -> list[int]:
        """The ends of the steps to be looked at: those held back, once there is a new one, and those that are new."""
        through_us = self._labels.through_us(number, outcome)
        first_us = self._labels.since_us(number, outcome)
        if through_us is None or first_us is None:
            return []
        state, seconds = self._versions[number].pairs[pair], self.pairs[pair].fast
        span = seconds * MICROSECONDS
        newest = window_start(until_us - through_us, seconds)
        begin = max(state.reached_us, window_start(first_us, seconds), newest - MOST_BEHIND * span)
        if newest <= begin and state.reached_us != NO_TIME:
            return []
        ends = sorted({*state.held, *range(begin + span, newest + span, span)})
        state.reached_us, state.held = max(newest, state.reached_us), {}
        return ends

    def _ripeness(self, number: int, outcome: int, pair: int, end_us: int, now_us: int) -> Ripeness | None:
        """None for a stretch without predictions."""
        cohorts, made, labelled = self._outcomes.cohorts, 0, 0
        for key in self._keys(number, outcome, pair, end_us):
            made += cohorts.made(key[0], key[2], key[3])
            cohort = cohorts.profile(key)
            labelled += 0 if cohort is None else cohort.rows + cohort.unusable
        if not made:
            return None
        return self._labels.ripeness(number, outcome, end_us=end_us, made=made, labelled=labelled, now_us=now_us)

    def _keys(self, number: int, outcome: int, pair: int, end_us: int) -> list[CohortKey]:
        """The cohorts that a step is made of."""
        line, of = self.engine.versions[number].whole().number, self.pairs[pair]
        starts = range(end_us - of.fast * MICROSECONDS, end_us, of.cohort * MICROSECONDS)
        return [(line, outcome, of.cohort, start) for start in starts]

    def _judge_step(
        self,
        number: int,
        outcome: int,
        pair: int,
        asked: Sequence[Objective | Usual],
        end_us: int,
        changed: dict[str, Incident],
    ) -> None:
        """A ripe step and the slow window that ends with it."""
        past = self._past(number, outcome, pair, end_us)
        newest = past.steps.get(end_us)
        if newest is None:
            return
        standing, book = self._versions[number], self.engine.versions[number].whole().book
        through_us, slow_us = self._labels.through_us(number, outcome) or 0, self.pairs[pair].slow * MICROSECONDS
        now_us = end_us + through_us
        alpha = self._alpha(self.pairs[pair].fast, len(asked), newest.rows)
        each_row = alpha / self.pairs[pair].steps  # any number of cohorts in a row may look good by chance
        is_known = bool(book.stood_between(SAID, end_us - slow_us, now_us))
        whole = past.since(end_us - self.pairs[pair].steps * past.span_us)
        slow: dict[int, Mapping[str, Metric]] = {}  # of most objectives the same
        for each in asked:
            metric, objective = each.metric, each.at(alpha)
            met_us = standing.met_us.get(metric, NO_TIME)
            since, missed = past.since(met_us), standing.missed.get(metric)
            if end_us not in since.steps or metric not in metrics(newest):
                continue  # from before it was met again; or of another task than the labels turned out to be
            if met_us not in slow:
                slow[met_us] = whole.since(met_us).together()
            of_fast, of_slow = metrics(newest)[metric], slow[met_us][metric]
            if objective.is_missed(of_fast.value) and objective.is_excluded(of_slow, alpha=alpha):
                if missed is None and is_known and isinstance(each, Usual):
                    continue
                found = of_fast if objective.is_excluded(of_fast, alpha=alpha) else of_slow
                evidence = self._evidence(objective, found, (of_fast, of_slow), pair)
                if missed is None:
                    told = book.hold(
                        IncidentKind.PERFORMANCE, evidence, now_us=now_us, onset_us=since.onset_us(objective)
                    )
                else:
                    told = book.restate(IncidentKind.PERFORMANCE, evidence)
                standing.missed[metric] = _Missed(pair if missed is None else max(pair, missed.pair), of_slow.value)
            elif missed is not None:
                met = since.met(objective)
                is_slow_met = pair == missed.pair and objective.is_met(of_slow.value)
                if len(met.steps) < CALM_COHORTS or not (
                    is_slow_met or objective.is_met_again(met.together()[metric], missed.value, alpha=each_row)
                ):
                    continue
                del standing.missed[metric]
                standing.met_us[metric] = met.start_us
                told = book.release(IncidentKind.PERFORMANCE, now_us=now_us, subject=metric)
            else:
                continue
            self.engine.count_opened(told, now_us=now_us)
            changed.update({incident.id: incident for incident in told})

    def _past(self, number: int, outcome: int, pair: int, end_us: int) -> _Past:
        """The ripe steps with labels that a slow window is made of, those before it that may be met in a row, too."""
        of, held = self.pairs[pair], self._versions[number].pairs[pair].held
        span = of.fast * MICROSECONDS
        ends = range(end_us - (max(of.steps, CALM_COHORTS) - 1) * span, end_us + span, span)
        keys = {end: self._keys(number, outcome, pair, end) for end in ends if end not in held}
        self._outcomes.cohorts.have([key for parts in keys.values() for key in parts])
        found: dict[int, list[OutcomeProfile]] = {}
        for end, parts in keys.items():
            cohorts = [self._outcomes.cohorts.profile(key) for key in parts]
            found[end] = [cohort for cohort in cohorts if cohort is not None and cohort.rows]
        newest = next(iter(found.get(end_us, [])), None)
        alike = {} if newest is None else {
            end: [part for part in parts if part.measures_as(newest.task, newest.positive_label)]
            for end, parts in found.items()
        }  # fmt: skip
        return _Past({end: _sum_of(parts) for end, parts in alike.items() if parts}, span)

    def _alpha(self, seconds: int, objectives: int, rows: int) -> float:
        """Of each look: every one of them may exclude by chance, so they share what the windows may ring."""
        budget = Budget.parse(self.engine.config.drift.false_alarms)
        return OBJECTIVES_SHARE * budget.label_alpha(
            window_seconds=seconds, windows=len(self.pairs), tests=objectives, rows=rows
        )

    def _evidence(self, objective: Objective, found: Metric, samples: tuple[Metric, Metric], pair: int) -> Evidence:
        fast, slow = (duration_text(seconds) for seconds in (self.pairs[pair].fast, self.pairs[pair].slow))
        of_fast, of_slow = samples
        rows = f"of {of_fast.samples} labels in {fast} and {of_slow.samples} in {slow}"
        if found is of_slow:
            rows = f"of {of_slow.samples} labels in {slow}, and {number_text(of_fast.value)} of {of_fast.samples} in {fast}"
        return Evidence(objective.metric, "metric", objective.metric, found.value, objective.limit,
                        objective.effect(found.value), found.samples, of_slow.samples,
                        f"{objective.detail(found)}, {rows}")  # fmt: skip

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
        now = [(pair.cohort, pair.slow) for pair in self.pairs]
        pairs = [tuple(pair) for pair in body["pairs"]]
        standing = _Standing([_Pair() for _ in self.pairs])
        for n, pair in enumerate(now):
            if pair in pairs:
                reached, held = body["states"][pairs.index(pair)]
                standing.pairs[n] = _Pair(reached, {int(end): ripeness for end, ripeness in held.items()})
        standing.missed = {
            name: _Missed(now.index(pairs[pair]) if pairs[pair] in now else 0, value)
            for name, (pair, value) in body["missed"].items()
        }
        standing.met_us = body.get("met", {})
        self._versions[version] = standing


def _to_json(pairs: Sequence[Windows], standing: _Standing) -> Json:
    return {
        "pairs": [[pair.cohort, pair.slow] for pair in pairs],
        "states": [[state.reached_us, {str(e): r for e, r in state.held.items()}] for state in standing.pairs],
        "missed": {name: [missed.pair, missed.value] for name, missed in standing.missed.items()},
        "met": standing.met_us,
    }
