"""Labels as a stream of their own: how they usually come, whether they are late now, and which cohorts are ripe.

Cells of predictions are compared with the usual coverage at each age (`judge/arrival.py`) as event time passes them:
what comes out depends on the times of predictions and labels alone, not on how polls cut them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby, product
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_monitor.judge import distance
from stream_monitor.judge.arrival import (
    AGES,
    CALM_CELLS,
    FALL,
    LEAST_CELLS,
    Curve,
    Excursion,
    usual_for_test,
)
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.wording import percent
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Evidence,
    Incident,
    IncidentKind,
    Ints,
    Json,
    Stream,
    window_starts,
)

if TYPE_CHECKING:
    from stream_monitor.engine import Engine

LATE_SHARE = 0.1
"""Of the labels' part of the false-alarm budget: labels that stop are found within a cell or two however little it is."""

CELLS_PER_AGE = 4
"""A cell is at most a quarter of the age it is looked at, so that an age is told within a quarter, and not finer than the
shortest window: some ten cells are under way for each octave of ages, whatever the traffic."""

OPEN_END = 2**62
MOST_SPELLS = 16
"""Spells of late labels that are remembered: more than could end while one poll's labels are taken in."""

AT = tuple((np.arange(8) + 0.5) / 8)
"""Where in a window predictions are thought to lie for its usual coverage."""

AGES_US = np.array(AGES, np.int64) * MICROSECONDS


class Ripeness(StrEnum):
    """Whether a cohort's labels are what its labels will be; the first that holds, in this order."""

    UNKNOWN = "unknown"  # it cannot be told yet when labels are through
    YOUNG = "young"  # usual cohorts of its age do not have 95 % of their labels yet
    LABELS_MISSING = "labels_missing"  # it has significantly fewer labels than usual
    RIPE = "ripe"


@dataclass(frozen=True, slots=True)
class Level:
    """Cells of one width, and the steps of AGES they are looked at."""

    width_us: int
    first: int
    last: int

    def due_us(self, start_us: int, k: int) -> int:
        """When the youngest prediction of a cell reaches AGES[k]."""
        return int(start_us + self.width_us + AGES_US[k])


def levels_of(*, shortest_seconds: int, horizon_seconds: int) -> tuple[Level, ...]:
    """The widths of cells for every age up to the label horizon.

    >>> [(v.width_us // 10**6, AGES[v.first], AGES[v.last]) for v in levels_of(shortest_seconds=900, horizon_seconds=86400)]
    [(900, 1, 8192), (3600, 16384, 32768), (14400, 65536, 65536)]
    """
    found: dict[int, Level] = {}
    for k, age in enumerate(AGES):
        if age > horizon_seconds and k:
            break
        width = shortest_seconds
        while 4 * width <= age // CELLS_PER_AGE:
            width *= 4
        held = found.get(width)
        found[width] = Level(width * MICROSECONDS, k if held is None else held.first, k)
    return tuple(found.values())


Cells = dict[int, Ints]
"""Start of a cell -> counts (AGES,) by the step at which they enter: predictions when known, labels when they came."""


@dataclass(slots=True)
class _Truths:
    """One outcome of one version."""

    since_us: int  # the first prediction it was heard of; cells before it know nothing of this outcome
    cells: list[Cells]
    curve: Curve = field(default_factory=Curve)
    excursions: dict[int, Excursion] = field(default_factory=dict)
    newest_us: int = NO_TIME
    settled_us: int = NO_TIME  # cells that began before belong to an outage that is over
    is_late: bool = False
    spells: list[tuple[int, int]] = field(default_factory=list)  # when incidents were open, an open one to OPEN_END

    def alarmed(self) -> list[int]:
        """The steps that find too few labels, the shortest age first."""
        return sorted(k for k, excursion in self.excursions.items() if excursion.is_alarmed)

    def begin_spell(self, at_us: int) -> None:
        """Labels are late from now on, if they were not already."""
        if not self.is_late:
            self.is_late = True
            self.spells = [*self.spells[-MOST_SPELLS + 1 :], (at_us, OPEN_END)]

    def end_spell(self, at_us: int) -> None:
        """They are not any more."""
        if self.is_late:
            self.is_late = False
            self.spells[-1] = (self.spells[-1][0], at_us)


@dataclass(slots=True)
class _Version:
    made: list[Cells]
    truths: dict[int, _Truths] = field(default_factory=dict)
    judged_us: int = NO_TIME
    due_us: int = 2**62


class LabelArrival:
    """The arrival of labels of every version, on the engine's event time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        config = engine.config
        self.levels = levels_of(shortest_seconds=min(config.windows), horizon_seconds=config.label_horizon)
        self._versions: dict[int, _Version] = {}
        self._dirty: set[int] = set()
        for key, body in engine.store.states("label_arrival").items():
            self._load(int(key), json.loads(body))

    # -- what comes ------------------------------------------------------------------------------

    def note_predictions(self, version: int, time_us: Ints, arrival_us: Ints) -> None:
        """Count predictions; one that came late is known from the first age on that it was there at."""
        held = self._of(version)
        plausible = time_us <= arrival_us  # what claims to be of next year must not open a cell there
        time_us, arrival_us = time_us[plausible], arrival_us[plausible]
        for level, cells in zip(self.levels, held.made, strict=True):
            start = window_starts(time_us, level.width_us // MICROSECONDS)
            age = np.maximum(arrival_us - start - level.width_us, 0)
            _count(cells, level, start, age)
            fresh = start[start + level.width_us + AGES_US[level.last] > held.judged_us]
            if len(fresh):
                held.due_us = min(held.due_us, level.due_us(int(fresh.min()), level.first))
        self._dirty.add(version)

    def note_labels(self, version: int, outcome: int, made_us: Ints, joined_us: Ints) -> None:
        """Count first truths, in the order of their joining, by their age."""
        held = self._of(version)
        truths = held.truths.get(outcome)
        if truths is None:
            truths = held.truths[outcome] = _Truths(int(made_us[0]), [{} for _ in self.levels])
        for level, cells in zip(self.levels, truths.cells, strict=True):
            start = window_starts(made_us, level.width_us // MICROSECONDS)
            _count(cells, level, start, np.maximum(joined_us - made_us, 0))
        truths.newest_us = max(truths.newest_us, int(joined_us.max()))
        self._dirty.add(version)

    # -- what it means ---------------------------------------------------------------------------

    def advance(self, until_us: int) -> list[Incident]:
        """Look at every cell whose time has come: learn from it, or find that labels are late or back."""
        changed: dict[str, Incident] = {}
        for number, held in sorted(self._versions.items()):
            until = min(until_us, self._heard_until(held))
            if until < held.due_us or until <= held.judged_us:
                continue
            for due_us, looks in groupby(self._due(held, until), key=itemgetter(0)):
                for (_, k, level, start), outcome in product(list(looks), sorted(held.truths)):
                    self._look(number, outcome, level, k, start, due_us, changed)
                for outcome in sorted(held.truths):
                    self._restate(number, outcome, due_us, changed)
            held.judged_us = until
            self._forget(held)
            self._dirty.add(number)
        return list(changed.values())

    def _heard_until(self, held: _Version) -> int:
        """The end of the files of labels is not silence: what is later than their last label was never told."""
        states = [s for p, s in self.engine.flow.states.items() if p.stream == Stream.GROUND_TRUTH]
        if not states or not all(s.finished for s in states):
            return 2**62
        highest = [s.clock.highest_us for s in states if s.clock.highest_us is not None]
        return max([*highest, *(truths.newest_us for truths in held.truths.values())], default=NO_TIME)

    def _due(self, held: _Version, until_us: int) -> list[tuple[int, int, int, int]]:
        """(time, step, level, start of the cell) of what is to be looked at, in the order of time."""
        found: list[tuple[int, int, int, int]] = []
        for number, (level, cells) in enumerate(zip(self.levels, held.made, strict=True)):
            steps = range(level.first, level.last + 1)
            found += [
                (due, k, number, start)
                for start in cells
                for k in steps
                if held.judged_us < (due := level.due_us(start, k)) <= until_us
            ]
        return sorted(found)

    def _forget(self, held: _Version) -> None:
        """Drop the cells that were looked at for the last time, and find when the next look is due."""
        held.due_us = 2**62
        for number, level in enumerate(self.levels):
            for cells in (held.made[number], *(truths.cells[number] for truths in held.truths.values())):
                for start in [s for s in cells if level.due_us(s, level.last) <= held.judged_us]:
                    del cells[start]
            coming = [
                due
                for start in held.made[number]
                for k in range(level.first, level.last + 1)
                if (due := level.due_us(start, k)) > held.judged_us
            ]
            held.due_us = min([held.due_us, *coming])

    def _look(
        self, number: int, outcome: int, level: int, k: int, start: int, due_us: int, changed: dict[str, Incident]
    ) -> None:
        held = self._versions[number]
        truths = held.truths[outcome]
        made = int(held.made[level][start][: k + 1].sum())
        if start < truths.since_us or not made:
            return
        counts = truths.cells[level].get(start)
        labelled = min(int(counts[: k + 1].sum()), made) if counts is not None else 0
        if start < truths.settled_us:
            return
        if truths.curve.knows(k):
            usual, dispersion = usual_for_test(truths.curve, k), truths.curve.dispersion(k)
            excursion = truths.excursions.setdefault(k, Excursion())
            excursion.add(start, made=made, labelled=labelled, usual=usual, dispersion=dispersion)
            self._judge(number, outcome, level, k, due_us, changed)
        if not truths.is_late:
            truths.curve.add(k, made=made, labelled=labelled)

    def _judge(self, number: int, outcome: int, level: int, k: int, due_us: int, changed: dict[str, Incident]) -> None:
        """One step's excursion has moved."""
        truths = self._versions[number].truths[outcome]
        excursion, book = truths.excursions[k], self.engine.versions[number].whole().book
        if not excursion.is_alarmed and excursion.passes(self._limit(level, excursion)):
            evidence = self._evidence(truths, outcome, k)
            if evidence.effect >= self.engine.config.drift.minimum_effect:
                excursion.is_alarmed = True
                truths.begin_spell(due_us)
                opened = book.hold(IncidentKind.LABELS_LATE, evidence, now_us=due_us, onset_us=excursion.since_us)
                self._tell(opened, due_us, changed)
        alarmed = truths.alarmed()
        if alarmed and truths.excursions[alarmed[0]].calm >= CALM_CELLS:
            # The shortest age knows first: longer ones still look at the predictions of the outage, which are told of.
            truths.settled_us = truths.excursions[alarmed[0]].calm_from_us
            truths.excursions = {step: past.over() for step, past in truths.excursions.items()}
            truths.end_spell(due_us)
            name = self.engine.names.outcomes[outcome]
            self._tell(book.release(IncidentKind.LABELS_LATE, now_us=due_us, subject=name), due_us, changed)

    def _limit(self, level: int, excursion: Excursion) -> float:
        """What chance passes as rarely as this part of the budget allows: the steps and outcomes share it alike."""
        budget = Budget.parse(self.engine.config.drift.false_alarms)
        steps = sum(v.last - v.first + 1 for v in self.levels)
        alpha = LATE_SHARE * budget.label_alpha(
            window_seconds=self.levels[level].width_us / MICROSECONDS,
            windows=1,
            tests=steps * max(len(self.engine.names.outcomes), 1),
            rows=float(excursion.made),
        )
        return float(-np.log(alpha))

    def _evidence(self, truths: _Truths, outcome: int, k: int) -> Evidence:
        excursion, usual = truths.excursions[k], truths.curve.usual(k)
        share = excursion.labelled / max(excursion.made, 1)
        effect = float(distance.cohens_h(np.array([usual]), np.array([share]))[0])
        missing = round(usual * excursion.made) - excursion.labelled
        seen = "none has" if not excursion.labelled else f"{percent(share)} have"
        detail = (f"{missing} labels are missing: of {excursion.made} predictions {age_text(AGES[k])} old "
                  f"{percent(usual)} usually have theirs, {seen}")  # fmt: skip
        return Evidence(self.engine.names.outcomes[outcome], "outcome", "label_coverage", share, usual, effect,
                        excursion.made, int(truths.curve.counts[k, 1]), detail)  # fmt: skip

    def _restate(self, number: int, outcome: int, now_us: int, changed: dict[str, Incident]) -> None:
        """Keep an open incident's figures those of the step that misses most."""
        truths = self._versions[number].truths[outcome]
        if not truths.alarmed():
            return
        told = [self._evidence(truths, outcome, k) for k in truths.alarmed()]
        most = max(told, key=lambda e: (e.threshold - e.value) * e.samples)
        book = self.engine.versions[number].whole().book
        self._tell(book.restate(IncidentKind.LABELS_LATE, most), now_us, changed)

    def _tell(self, incidents: Sequence[Incident], now_us: int, changed: dict[str, Incident]) -> None:
        self.engine.count_opened(incidents, now_us=now_us)
        changed.update({incident.id: incident for incident in incidents})

    def relearn(self, version: int) -> None:
        """A baseline was promoted and its incidents are closed: how labels come is learnt anew from now on."""
        held = self._versions.get(version)
        if held is not None:
            for truths in held.truths.values():
                truths.settled_us = max(truths.settled_us, held.judged_us)
                truths.curve, truths.excursions = Curve(), {}
                truths.end_spell(held.judged_us)
            self._dirty.add(version)

    # -- reading ---------------------------------------------------------------------------------

    def representative(self, version: int, outcome: int, joined_us: Ints) -> Ints:
        """Which truths came while labels were not late, by their places: what comes during a spell is a biased sample."""
        truths = self._truths(version, outcome)
        kept = np.ones(len(joined_us), np.bool_)
        for begin_us, end_us in () if truths is None else truths.spells:
            kept &= (joined_us < begin_us) | (joined_us >= end_us)
        return np.flatnonzero(kept)

    def through_us(self, version: int, outcome: int) -> int | None:
        """The age by which labels are usually through, None while that cannot be told."""
        truths = self._truths(version, outcome)
        horizon = self.engine.config.label_horizon
        step = None if truths is None else truths.curve.through(horizon_seconds=horizon)
        return None if step is None else int(AGES_US[step])

    def since_us(self, version: int, outcome: int) -> int | None:
        """The first prediction a label of the outcome came for."""
        truths = self._truths(version, outcome)
        return None if truths is None else truths.since_us

    def usual_coverage(self, version: int, outcome: int, start_us: int, end_us: int, now_us: int) -> float:
        """The coverage that predictions of a window usually have by now; NaN where it is not known."""
        truths = self._truths(version, outcome)
        if truths is None:
            return float("nan")
        ages = [(now_us - start_us - share * (end_us - start_us)) / MICROSECONDS for share in AT]
        return float(np.mean([truths.curve.coverage_at(max(age, 0.0)) for age in ages]))

    def ripeness(self, version: int, outcome: int, *, end_us: int, made: int, labelled: int, now_us: int) -> Ripeness:
        """Whether a cohort's labels are through, as those of usual cohorts are; so it is waited for, not corrected."""
        truths = self._truths(version, outcome)
        step = None if truths is None else truths.curve.through(horizon_seconds=self.engine.config.label_horizon)
        if truths is None or step is None:
            return Ripeness.UNKNOWN
        if now_us < end_us + AGES_US[step]:
            return Ripeness.YOUNG
        usual = truths.curve.usual(step)
        # Twice the spread between usual cohorts of this size: a sound one in forty is kept waiting for more.
        spread = np.sqrt(truths.curve.dispersion(step) * usual * (1 - usual) / max(made, 1))
        least = max(usual - max(0.05 * usual, 2 * spread), (1 + FALL) / 2 * usual)
        return Ripeness.RIPE if labelled >= least * made else Ripeness.LABELS_MISSING

    def rows(self) -> Iterator[tuple[int, int, Json]]:
        """(version, outcome, what the API tells of it)."""
        for number, held in sorted(self._versions.items()):
            for outcome, truths in sorted(held.truths.items()):
                step = truths.curve.through(horizon_seconds=self.engine.config.label_horizon)
                yield number, outcome, {
                    "is_late": truths.is_late,
                    "through_after_seconds": None if step is None else AGES[step],
                    "curve": [
                        {
                            "age_seconds": AGES[k],
                            "coverage": truths.curve.usual(k),
                            "cells": int(truths.curve.counts[k, 0]),
                            "predictions": int(truths.curve.counts[k, 1]),
                            "dispersion": truths.curve.dispersion(k),
                            "judged": truths.curve.knows(k, cells=LEAST_CELLS),
                        }
                        for k in range(len(AGES))
                        if truths.curve.counts[k, 1]
                    ],
                }  # fmt: skip

    def _truths(self, version: int, outcome: int) -> _Truths | None:
        held = self._versions.get(version)
        return None if held is None else held.truths.get(outcome)

    # -- the store -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        bodies = {str(v): json.dumps(self._to_json(self._versions[v])).encode() for v in sorted(self._dirty)}
        self.engine.store.put_states("label_arrival", bodies)
        self._dirty = set()

    def _of(self, version: int) -> _Version:
        if version not in self._versions:
            self._versions[version] = _Version([{} for _ in self.levels])
        return self._versions[version]

    def _to_json(self, held: _Version) -> Json:
        return {
            "widths": [level.width_us for level in self.levels],
            "made": [_cells_to_json(cells) for cells in held.made],
            "judged_us": held.judged_us,
            "due_us": held.due_us,
            "truths": {
                str(outcome): {
                    "since_us": truths.since_us,
                    "cells": [_cells_to_json(cells) for cells in truths.cells],
                    "curve": truths.curve.counts.tolist(),
                    "excursions": {str(k): excursion.to_json() for k, excursion in truths.excursions.items()},
                    "newest_us": truths.newest_us,
                    "settled_us": truths.settled_us,
                    "is_late": truths.is_late,
                    "spells": truths.spells,
                }
                for outcome, truths in held.truths.items()
            },
        }

    def _load(self, version: int, body: dict[str, Any]) -> None:
        """Take up what was saved; other windows make other cells, so all but the curves begins anew."""
        is_same = body["widths"] == [level.width_us for level in self.levels]
        held = self._versions[version] = _Version([{} for _ in self.levels])
        if is_same:
            held.made = [_cells_from_json(cells) for cells in body["made"]]
            held.judged_us, held.due_us = body["judged_us"], body["due_us"]
        for outcome, saved in body["truths"].items():
            truths = _Truths(saved["since_us"], [{} for _ in self.levels])
            truths.curve = Curve(np.array(saved["curve"], np.int64))
            truths.newest_us, truths.is_late = saved["newest_us"], saved["is_late"]
            truths.spells = [(begin, end) for begin, end in saved["spells"]]
            truths.settled_us = saved["settled_us"] if is_same else max(body["judged_us"], saved["settled_us"])
            truths.excursions = {int(k): Excursion.from_json(v) for k, v in saved["excursions"].items()}
            if is_same:
                truths.cells = [_cells_from_json(cells) for cells in saved["cells"]]
            held.truths[int(outcome)] = truths


def _count(cells: Cells, level: Level, start_us: Ints, age_us: Ints) -> None:
    """Count rows into their cells by the step of AGES they have by then; those later than the level's last are left out."""
    step = np.maximum(np.searchsorted(AGES_US, age_us, "left"), level.first)
    kept = step <= level.last
    pairs, counts = np.unique(start_us[kept] * len(AGES) + step[kept], return_counts=True)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        start, k = divmod(pair, len(AGES))
        if start not in cells:
            cells[start] = np.zeros(len(AGES), np.int64)
        cells[start][k] += count


def _cells_to_json(cells: Cells) -> list[Any]:
    return [[start, [[k, n] for k, n in enumerate(counts.tolist()) if n]] for start, counts in sorted(cells.items())]


def _cells_from_json(body: Sequence[Any]) -> Cells:
    cells: Cells = {}
    for start, counts in body:
        cells[start] = np.zeros(len(AGES), np.int64)
        for k, n in counts:
            cells[start][k] = n
    return cells


def age_text(seconds: float) -> str:
    """An age to two digits: `4.6 h`.

    >>> age_text(64), age_text(16384), age_text(524288)
    ('64 s', '4.6 h', '6.1 d')
    """
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:g} s"
