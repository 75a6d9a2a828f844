"""Labels as a stream of their own: how they usually come, whether they are late now, and which cohorts are ripe.

Cells of predictions are compared with the usual coverage at each age (`judge/arrival.py`) as event time passes them:
what comes out depends on the times of predictions and labels alone, not on how polls cut them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import groupby, pairwise, product
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from stream_monitor.judge import distance
from stream_monitor.judge.arrival import (
    AGES,
    CALM_CELLS,
    FALL,
    FEW_CELLS,
    LEAST_CELLS,
    Curve,
    Excursion,
    usual_for_test,
)
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.selection import KINDS, NEAR, NEAR_EACH_OTHER, Kinds, can_be_made_good, stands_apart
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

ASK_EVERY = 100
"""First labels are compared with the baseline's after each so many: the same ones, however polls cut them."""

MOST_EARLY_CELLS = 1_024
"""Cells of predictions counted while it is not known what labels are like. When there are more they become twice as wide:
the predictions that the first labels are of are known to a five-hundredth of the time."""

FEWER, MISSING = 0.05, 2.0
"""The share, and the standard deviations between usual cells, by which labels are fewer than are due: an alarm over errors
is put off in one case of forty where that is chance."""

FULL = 0.9
"""Coverage from which on first labels will do to learn from, where no baseline says what truths are like."""

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
"""Start of a cell -> counts (AGES, kinds) by the step at which they enter: predictions when known (of one kind), labels
when they came."""


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
    kinds: Kinds | None = None  # how its truths are told apart; not stored, the reference says it
    horizon_us: int | None = None  # beyond it truths do not count; not stored, the configuration says it
    first_kinds: Ints = field(default_factory=lambda: np.zeros(KINDS, np.int64))  # of the first labels, until trusted
    newest_made_us: int = NO_TIME  # of the same
    fair_us: int = OPEN_END  # when these turned out to be a fair sample
    trusted_us: int = OPEN_END  # since when truths of any age are one
    waits: list[tuple[int, int]] = field(default_factory=list)  # (from, age truths are waited for until); none before

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

    def wait(self, at_us: int, age_us: int) -> None:
        """Truths are waited for until this age from now on."""
        if not self.waits or self.waits[-1][1] != age_us:
            self.waits = [*self.waits[-MOST_SPELLS + 1 :], (at_us, age_us)]
        if age_us == 0:
            self.trusted_us = min(self.trusted_us, at_us)

    def note_first(self, until_us: int) -> None:
        """Where the first labels turned out to be fair before anything was learnt by age, none is waited for."""
        if self.fair_us <= until_us and not self.waits:
            self.wait(self.fair_us, 0)


@dataclass(slots=True)
class Early:
    """How many of the first predictions were made by a time."""

    width_us: int
    cells: dict[int, int] = field(default_factory=dict)  # start -> predictions

    def add(self, time_us: Ints) -> None:
        """Count predictions."""
        starts, counts = np.unique(time_us // self.width_us * self.width_us, return_counts=True)
        for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
            self.cells[start] = self.cells.get(start, 0) + count
        while len(self.cells) > MOST_EARLY_CELLS:
            self.width_us *= 2
            finer, self.cells = self.cells, {}
            for start, count in finer.items():
                wider = start // self.width_us * self.width_us
                self.cells[wider] = self.cells.get(wider, 0) + count

    def made(self, until_us: int, now_us: int) -> int:
        """Predictions up to a time, of cells that are over now; what is not over yet counts like the fullest of them."""
        over = [n for start, n in self.cells.items() if start <= until_us and start + self.width_us <= now_us]
        return sum(over) + max(over, default=0)

    def clear(self) -> None:
        """They are not asked for any more."""
        self.cells = {}


@dataclass(slots=True)
class _Version:
    made: list[Cells]
    truths: dict[int, _Truths] = field(default_factory=dict)
    judged_us: int = NO_TIME
    due_us: int = 2**62
    early: Early = field(default_factory=lambda: Early(MICROSECONDS))


class LabelArrival:
    """The arrival of labels of every version, on the engine's event time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        config = engine.config
        self.levels = levels_of(shortest_seconds=min(config.windows), horizon_seconds=config.label_horizon)
        self._versions: dict[int, _Version] = {}
        self._dirty: set[int] = set()
        self._judged: set[int] = set()
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
        if not held.truths or any(not truths.waits for truths in held.truths.values()):
            held.early.add(time_us)
        self._dirty.add(version)

    def note_labels(
        self,
        version: int,
        outcome: int,
        made_us: Ints,
        joined_us: Ints,
        kind: Ints | None = None,
        by: Kinds | None = None,
    ) -> None:
        """Count first truths, in the order of their joining, by their age and kind; `by`: how kinds are told apart."""
        held = self._of(version)
        truths = held.truths.get(outcome)
        if truths is None:
            truths = held.truths[outcome] = _Truths(int(made_us[0]), [{} for _ in self.levels])
            truths.horizon_us = self._horizon_us(version, outcome)
        truths.kinds = by
        kind = np.zeros(len(made_us), np.int64) if kind is None else kind
        for level, cells in zip(self.levels, truths.cells, strict=True):
            start = window_starts(made_us, level.width_us // MICROSECONDS)
            _count(cells, level, start, np.maximum(joined_us - made_us, 0), kind)
        truths.newest_us = max(truths.newest_us, int(joined_us.max()))
        self._compare_first(held, truths, made_us, joined_us, kind)
        self._dirty.add(version)

    def _compare_first(self, held: _Version, truths: _Truths, made_us: Ints, joined_us: Ints, kind: Ints) -> None:
        """Ask after each ASK_EVERY of the first labels whether they are like the baseline's, or beyond any excuse."""
        start = 0
        while start < len(kind) and truths.fair_us == OPEN_END and not truths.waits:
            seen = int(truths.first_kinds.sum())
            stop = min(len(kind), start + ASK_EVERY - seen % ASK_EVERY)
            truths.first_kinds += np.bincount(kind[start:stop], minlength=KINDS)
            truths.newest_made_us = max(truths.newest_made_us, int(made_us[start:stop].max()))
            seen, start = seen + stop - start, stop
            by = truths.kinds
            if seen % ASK_EVERY or by is None or seen < by.fewest():
                continue
            at_us = int(joined_us[stop - 1])
            made = max(held.early.made(truths.newest_made_us, at_us), seen)
            if by.usual is None:
                is_biased = seen < FULL * made
            else:
                is_biased = stands_apart(truths.first_kinds, by.usual, rows=by.rows) and can_be_made_good(
                    truths.first_kinds, by.usual, made=made, rows=by.rows
                )
            if not is_biased:
                truths.fair_us = at_us
        if all(other.fair_us < OPEN_END or other.waits for other in held.truths.values()):
            held.early.clear()

    # -- what it means ---------------------------------------------------------------------------

    def advance(self, until_us: int) -> list[Incident]:
        """Look at every cell whose time has come: learn from it, or find that labels are late or back."""
        changed: dict[str, Incident] = {}
        for number, held in sorted(self._versions.items()):
            self._advance(number, held, min(until_us, self._heard_until(held)), changed)
            for truths in held.truths.values():
                truths.note_first(until_us)
        return list(changed.values())

    def _advance(self, number: int, held: _Version, until: int, changed: dict[str, Incident]) -> None:
        if until < held.due_us or until <= held.judged_us:
            return
        for due_us, looks in groupby(self._due(held, until), key=itemgetter(0)):
            for (_, k, level, start), outcome in product(list(looks), sorted(held.truths)):
                self._look(number, outcome, level, k, start, due_us, changed)
            for outcome in sorted(held.truths):
                self._decide(held.truths[outcome], due_us)
                self._restate(number, outcome, due_us, changed)
        held.judged_us = until
        self._judged.add(number)
        self._dirty.add(number)

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

    def forget(self) -> None:
        """Drop what was looked at for the last time, once the truths of the time that was looked at are heeded."""
        for number in self._judged:
            self._forget(self._versions[number])
        self._judged = set()

    def _forget(self, held: _Version) -> None:
        """And find when the next look is due."""
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
            kinds = counts[: k + 1] if counts is not None else None
            truths.curve.add(k, made=made, labelled=labelled, kinds=kinds)

    def _decide(self, truths: _Truths, at_us: int) -> None:
        """Until which age truths are waited for: beyond the last at which labels are of other kinds than they will be."""
        truths.note_first(at_us)
        by, curve = truths.kinds, truths.curve
        fewest = 0 if by is None else by.fewest()
        known = [k for k in range(len(AGES)) if curve.knows(k, cells=FEW_CELLS) and curve.kinds[k, k].sum() >= fewest]
        if by is None or not known:
            return
        last, horizon, usual = known[-1], self._horizon_seconds(truths), None
        if truths.trusted_us > at_us and 2 * AGES[last] <= horizon:
            usual = by.usual
            if usual is None and curve.usual(last) < FULL and curve.through(horizon_seconds=horizon) is None:
                return
        near = NEAR_EACH_OTHER if truths.waits and truths.waits[-1][1] == 0 else NEAR
        if usual is None:
            biased = [k for k in known if curve.is_early(k, fewest=max(fewest, 1), near=near)]
        else:
            biased = [
                k
                for k in known
                if stands_apart(curve.kinds[k, k], usual, rows=by.rows, near=near)
                and can_be_made_good(curve.kinds[k, k], usual, made=int(curve.counts[k, 1]), rows=by.rows)
            ]
        beyond = [k for k in known if not biased or k > biased[-1]]
        truths.wait(at_us, 0 if not biased else int(AGES_US[beyond[0]]) if beyond else OPEN_END)

    def _judge(self, number: int, outcome: int, level: int, k: int, due_us: int, changed: dict[str, Incident]) -> None:
        """One step's excursion has moved."""
        truths = self._versions[number].truths[outcome]
        excursion, book = truths.excursions[k], self.engine.versions[number].whole().book
        heard = self.engine.outcomes.heard(self.engine.versions[number].whole(), due_us)
        if not excursion.is_alarmed and excursion.passes(self._limit(level, excursion, outcomes=heard)):
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

    def _limit(self, level: int, excursion: Excursion, *, outcomes: int) -> float:
        """What chance passes as rarely as this part of the budget allows: the steps and outcomes share it alike."""
        budget = Budget.parse(self.engine.config.drift.false_alarms)
        steps = sum(v.last - v.first + 1 for v in self.levels)
        alpha = LATE_SHARE * budget.label_alpha(
            window_seconds=self.levels[level].width_us / MICROSECONDS,
            windows=1,
            tests=steps * outcomes,
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

    def representative(self, version: int, outcome: int, made_us: Ints, heeded_us: Ints) -> Ints:
        """Which truths came while labels were not late, by their places: what comes during a spell is a biased sample,
        and so is the rest of those predictions later, where truths are heeded at an age they reached during it."""
        truths = self._truths(version, outcome)
        kept = np.ones(len(made_us), np.bool_)
        if truths is None or not truths.spells:
            return np.flatnonzero(kept)
        due_us = heeded_us.copy()
        for (begin_us, age_us), (end_us, _) in pairwise([*truths.waits, (OPEN_END, 0)]):
            mine = (heeded_us >= begin_us) & (heeded_us < end_us)
            if 0 < age_us < OPEN_END:
                due_us[mine] = made_us[mine] + age_us
        for begin_us, end_us in truths.spells:
            for time_us in (heeded_us, due_us):
                kept &= (time_us < begin_us) | (time_us >= end_us)
        return np.flatnonzero(kept)

    def is_sample_since(
        self, version: int, outcome: int, since_us: int, now_us: int, labelled: int | None = None
    ) -> bool:
        """Whether predictions made since then have as many labels as usual at their age, or what is missing of these could
        not be the difference. Where labels of one kind stop coming, the others look like a change, for as long as it takes
        to be sure that labels are late.

        `labelled`: how many have one, where truths are heeded as they come and this is known.
        """
        held, truths = self._versions[version], self._truths(version, outcome)
        if truths is None:
            return True
        if labelled is not None and truths.waits and truths.waits[-1][1] == 0:
            due = self._made(held, since_us, now_us) * self._least_coverage(truths, since_us, now_us)
            if labelled < due - max(2 * FEWER * due, MISSING * math.sqrt(2 * due)):
                return False
        return not any(self._misses(held, truths, level, since_us, now_us) for level in range(len(self.levels)))

    def _least_coverage(self, truths: _Truths, since_us: int, now_us: int) -> float:
        """What predictions made between two times usually have by the second at least: by the known age before theirs, since
        all labels may come at once between two known ages."""
        known = [k for k in range(len(AGES)) if truths.curve.knows(k, cells=FEW_CELLS)]
        ages = np.array([AGES_US[k] for k in known], np.int64)
        shares = np.maximum.accumulate(np.array([0.0, *(truths.curve.usual(k) for k in known)]))
        at = (now_us - since_us) * (np.arange(64) + 0.5) / 64
        return float(shares[np.searchsorted(ages, at, "right")].mean())

    def _made(self, held: _Version, since_us: int, now_us: int) -> float:
        """Predictions between two times, about: what the narrowest cells that are over say, at whose pace they are thought
        to have come before the oldest of these; and since the newest, at its own."""
        width_us, cells = self.levels[0].width_us, held.made[0]
        over = sorted(start for start in cells if start + width_us <= now_us)
        if not over:
            return 0.0
        counts = np.array([cells[start].sum() for start in over])
        share = np.clip((np.array(over) + width_us - since_us) / width_us, 0.0, 1.0)
        earlier = max(over[0] - since_us, 0) / width_us * counts.mean()
        rest = max(now_us - max(over[-1] + width_us, since_us), 0) / width_us * counts[-1]
        return float((share * counts).sum() + earlier + rest)

    def _misses(self, held: _Version, truths: _Truths, number: int, since_us: int, now_us: int) -> bool:
        """By the cells of one width."""
        level, made = self.levels[number], held.made[number]
        due, variance, kinds = 0.0, 0.0, np.zeros(KINDS, np.int64)
        for start in [s for s in made if s + level.width_us // 2 >= since_us]:
            steps = [
                k
                for k in range(level.first, level.last + 1)
                if level.due_us(start, k) <= now_us and truths.curve.knows(k, cells=FEW_CELLS)
            ]
            if not steps:
                continue
            k = steps[-1]
            usual, there = truths.curve.usual(k), int(made[start][: k + 1].sum())
            due += there * usual
            variance += there * usual * (1 - usual) * truths.curve.dispersion(k)
            if start in truths.cells[number]:
                kinds += truths.cells[number][start][: k + 1].sum(axis=0)
        by = truths.kinds
        if kinds.sum() >= due - max(FEWER * due, MISSING * np.sqrt(variance)):
            return False
        return by is None or by.usual is None or can_be_made_good(kinds, by.usual, made=math.ceil(due), rows=by.rows)

    def waits(self, version: int, outcome: int) -> Sequence[tuple[int, int]]:
        """(from, age): as of when truths are waited for until which age, before errors are watched by them."""
        truths = self._truths(version, outcome)
        return () if truths is None else truths.waits

    def through_us(self, version: int, outcome: int) -> int | None:
        """The age by which labels are usually through, and a fair sample; None while that cannot be told."""
        truths = self._truths(version, outcome)
        step = None if truths is None else self._through(truths)
        if truths is None or step is None:
            return None if truths is None else truths.horizon_us
        return min(int(AGES_US[step]), truths.horizon_us or OPEN_END)

    def _horizon_us(self, version: int, outcome: int) -> int | None:
        return self.engine.own_horizon_us(self.engine.names.model_of_version(version), outcome)

    def _horizon_seconds(self, truths: _Truths) -> float:
        """Beyond it predictions are forgotten, or their truths do not count."""
        own = truths.horizon_us
        return self.engine.config.label_horizon if own is None else own / MICROSECONDS

    def _through(self, truths: _Truths) -> int | None:
        step = truths.curve.through(horizon_seconds=self._horizon_seconds(truths))
        waits = truths.waits[-1][1] if truths.waits else OPEN_END
        return None if step is None or waits == OPEN_END else max(step, int(np.searchsorted(AGES_US, waits)))

    def watched(self, version: int, outcome: int) -> tuple[str, str, int | None]:
        """(state, reason, age in seconds) of the watch over errors: which truths it heeds now, and why."""
        truths = self._truths(version, outcome)
        if truths is None or not truths.waits:
            return "waiting", "too few labels yet to tell whether those that come first are like the others", None
        age_us = truths.waits[-1][1]
        if age_us == 0:
            return "as_they_come", "labels are alike whenever they come", 0
        if age_us == OPEN_END:
            return (
                "waiting",
                "labels so far are not like the baseline's, and those still missing may be the difference",
                None,
            )
        text = (
            f"labels that come first are not like the others: truths are heeded {age_text(age_us / MICROSECONDS)} old"
        )
        return "when_ripe", text, age_us // MICROSECONDS

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
        step = None if truths is None else self._through(truths)
        is_final = truths is not None and truths.horizon_us is not None and now_us >= end_us + truths.horizon_us
        if truths is None or step is None:
            return Ripeness.RIPE if is_final else Ripeness.UNKNOWN
        if now_us < end_us + AGES_US[step] and not is_final:
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
                step = self._through(truths)
                state, reason, age = self.watched(number, outcome)
                waiting = self.engine.outcomes.held_back(self.engine.versions[number].whole(), outcome)
                yield number, outcome, {
                    "is_late": truths.is_late,
                    "watch": {"state": state, "reason": reason, "age_seconds": age, "held": waiting},
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
            "early": [held.early.width_us, list(held.early.cells.items())],
            "truths": {
                str(outcome): {
                    "since_us": truths.since_us,
                    "cells": [_cells_to_json(cells) for cells in truths.cells],
                    "curve": truths.curve.counts.tolist(),
                    "kinds": [[int(place), int(n)] for place, n in truths.curve.nonzero_kinds()],
                    "first_kinds": truths.first_kinds.tolist(),
                    "newest_made_us": truths.newest_made_us,
                    "trusted_us": truths.trusted_us,
                    "fair_us": truths.fair_us,
                    "waits": truths.waits,
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
        is_same = body["widths"] == [level.width_us for level in self.levels] and "early" in body
        held = self._versions[version] = _Version([{} for _ in self.levels])
        if is_same:
            held.made = [_cells_from_json(cells) for cells in body["made"]]
            held.judged_us, held.due_us = body["judged_us"], body["due_us"]
            held.early = Early(body["early"][0], dict(body["early"][1]))
        for outcome, saved in body["truths"].items():
            truths = _Truths(saved["since_us"], [{} for _ in self.levels])
            truths.curve = Curve(np.array(saved["curve"], np.int64))
            if "kinds" in saved:
                for place, n in saved["kinds"]:
                    truths.curve.kinds.flat[place] = n
                truths.first_kinds = np.array(saved["first_kinds"], np.int64)
                truths.newest_made_us, truths.trusted_us = saved["newest_made_us"], saved["trusted_us"]
                truths.fair_us = saved["fair_us"]
                truths.waits = [(begin, age) for begin, age in saved["waits"]]
            else:  # of a program that held nothing back
                truths.wait(body["judged_us"], 0)
            truths.newest_us, truths.is_late = saved["newest_us"], saved["is_late"]
            truths.spells = [(begin, end) for begin, end in saved["spells"]]
            truths.settled_us = saved["settled_us"] if is_same else max(body["judged_us"], saved["settled_us"])
            truths.excursions = {int(k): Excursion.from_json(v) for k, v in saved["excursions"].items()}
            if is_same:
                truths.cells = [_cells_from_json(cells) for cells in saved["cells"]]
            truths.horizon_us = self._horizon_us(version, int(outcome))
            held.truths[int(outcome)] = truths


def _count(cells: Cells, level: Level, start_us: Ints, age_us: Ints, kind: Ints | None = None) -> None:
    """Count rows into their cells by the step of AGES they have by then; those later than the level's last are left out.

    What has come by the last age of the level before is kept apart, so that each level can be compared with the one before.
    """
    step = np.maximum(np.searchsorted(AGES_US, age_us, "left"), max(level.first - 1, 0))
    kept = step <= level.last
    kinds = 1 if kind is None else KINDS
    place = step if kind is None else step * KINDS + kind
    starts, which = np.unique(start_us[kept], return_inverse=True)
    pairs, counts = np.unique(which * len(AGES) * kinds + place[kept], return_counts=True)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        at, rest = divmod(pair, len(AGES) * kinds)
        start = int(starts[at])
        if start not in cells:
            cells[start] = np.zeros((len(AGES), kinds), np.int64)
        cells[start].flat[rest] += count


def _cells_to_json(cells: Cells) -> list[Any]:
    """Of each cell its start, how many kinds it has, and the places and counts that are not 0."""
    return [
        [start, counts.shape[1], [[int(place), int(counts.flat[place])] for place in np.flatnonzero(counts)]]
        for start, counts in sorted(cells.items())
    ]


def _cells_from_json(body: Sequence[Any]) -> Cells:
    cells: Cells = {}
    for start, kinds, counts in body:
        cells[start] = np.zeros((len(AGES), kinds), np.int64)
        for place, n in counts:
            cells[start].flat[place] = n
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
