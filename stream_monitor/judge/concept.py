"""Joined truths, label by label: when did errors grow, truths leave their scores or numbers their level, and for whom most.

Each aspect of a `Relation` has a bank of cumulative sums whose run length is known, so that a model's part of the
false-alarm budget, counted in labels, is kept. Truths come in the order of their arrival; when a change began is
looked for in the order of their predictions, among the last 4,096 of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.errors import StateError
from stream_monitor.judge.answers import FEWEST_TOLD, Rise
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.clustering import STRETCH, Clustering
from stream_monitor.judge.cusum import NEVER, STEP, Bank, rise
from stream_monitor.judge.finding import UNLIKELY
from stream_monitor.judge.relation import ABSOLUTE, BIAS, CALIBRATION, ERROR_RATE, LEVEL, NONE, Aspect, Relation
from stream_monitor.judge.rhythm import HOUR_US, HOURS, Rhythm
from stream_monitor.judge.watch import Traffic, compressed, decompressed
from stream_monitor.judge.wording import number, percent
from stream_monitor.records import NO_TIME, IncidentKind, Ints
from stream_monitor.summarize.outcome import Joined, Task

FORMAT = 4
RING = 4_096
"""Truths that are remembered: an error rate of 10 % that rises by a tenth of Cohen's h shows in half as many."""
FIRST_SHARE = 0.5
"""Of the part of an outcome: half to the size of errors, half to what else its truths show, or all where there is no more."""
CALM = 1.5
"""An alarm is over when what it stands on has lost half as much again as an alarm has to gain: with as much, one that owed
a burst to chance ended, and was raised anew, in 2 of 36 streams that had changed for good; with half more in none."""
NEWEST = 2**62
FEWEST_OF_A_GROUP = 20
OUTSTANDING = 3.0
"""A segment or class is named as the worst on 20 truths or more, if it stands 3 standard errors beyond all the others;
by as many a mean of errors must stand out to count as a lean."""
ROWS = pa.schema(
    [
        ("made_us", pa.int64()),
        ("time_us", pa.int64()),
        ("segment", pa.int32()),
        ("truth", pa.string()),
        ("error", pa.float64()),
        ("first", pa.int16()),
        ("second", pa.int16()),
        ("expected_size", pa.float64()),
        ("expected_error", pa.float64()),
    ]
)
"""What is kept of a truth: when it was predicted and joined, what it was, the error, its cells, and of a number the size of
its error and the error that its inputs led to expect."""
_CELLS = ("first", "second")


@dataclass(frozen=True, slots=True)
class Turn:
    """An aspect passed its limit, is still beyond it (`is_again`), or has been calm for long enough (`is_calm`)."""

    aspect: str
    kind: IncidentKind
    at: int  # row of the update's rows
    time_us: int
    is_calm: bool = False
    is_again: bool = False
    value: float = 0.0
    expected: float = 0.0
    threshold: float = 0.0
    effect: float = 0.0
    samples: int = 0
    detail: str = ""
    worst: str = ""  # the segment or class that stands out
    onset_us: int = 0  # in prediction time
    onset_between_us: tuple[int, int] = (0, 0)
    newest_us: int = 0  # the newest prediction it is known of
    is_foretold: bool | None = None  # whether scores or inputs led to expect it; None: nobody can tell


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The predictions among which a change is likeliest."""

    onset_us: tuple[int, int, int]  # the earliest, likeliest and latest beginning
    until_us: int  # the last of them
    evidence: int  # log-likelihood ratio


@dataclass(slots=True)
class _Raised:
    """An aspect in alarm: the alternative that raised it, its limit, and what the truths since the onset say of each."""

    alternative: int
    limit: int
    kind: str
    onset: list[int]  # the earliest, likeliest and latest
    level: list[int]  # the log-likelihood ratio of each alternative, from the onset on
    peak: int  # the most the likeliest has had
    was_told_again: bool = False
    passed: float = 1.0  # the limit over the sum that passed it


@dataclass(slots=True)
class _Sums:
    """The cumulative sums of one aspect, and the labels since each was last at nothing."""

    level: Ints
    since: Ints
    limit: Ints
    rhythm: Rhythm
    shift: Ints  # (hours, K): what is usual of an hour, taken off the steps
    clustering: Clustering = field(default_factory=Clustering)
    raised: _Raised | None = None
    calm: int = 0  # labels since the last alarm was over: where an onset may lie
    told_us: int = NO_TIME  # up to here predictions belong to a change that was told and is over

    @classmethod
    def of(cls, bank: Bank) -> _Sums:
        """Without a label."""
        k, cells = bank.steps.shape
        level, since, limit = np.zeros((3, k), np.int64)
        return cls(level, since, limit, Rhythm.of(cells), np.zeros((HOURS, k), np.int64))

    def to_json(self) -> list[Any]:
        raised = self.raised and asdict(self.raised)
        numbers = self.level.tolist(), self.since.tolist(), self.shift.tolist(), self.calm, self.told_us
        return [*numbers, self.rhythm.to_json(), self.clustering.to_json(), raised]

    @classmethod
    def from_json(cls, body: list[Any]) -> _Sums:
        level, since, shift, calm, told_us, rhythm, clustering, raised = body
        return cls(
            np.array(level, np.int64), np.array(since, np.int64), np.zeros(0, np.int64), Rhythm.from_json(rhythm),
            np.array(shift, np.int64), Clustering.from_json(clustering), raised and _Raised(**raised), calm, told_us,
        )  # fmt: skip


@dataclass(slots=True)
class Concept:
    """The watch over one outcome of one line. `update` in any chunks, stored and restored in between, finds the same.

    `share`: the part of the `budget` it may spend. `remembered`: the truths among which an onset is looked for. `missed`:
    the part of a change of errors that what its inputs lead to expect misses, None where nothing is expected. `rise`: of a
    class, what the answers of all classes foretell of its errors since an onset, as of a time.
    `is_sample`: whether the labels of predictions since an onset, as of a time, so many if that is known, are not of those
    alone that still come; else an alarm starts anew. It does not depend on how rows are cut, nor on a clock.
    """

    relation: Relation
    budget: Budget
    share: float
    minimum_effect: float
    traffic: Traffic = field(default_factory=Traffic)
    remembered: int = RING
    missed: float | None = None
    rise: Callable[[int, int], Rise | None] | None = None
    is_sample: Callable[[int, int, int | None], bool] | None = None
    _sums: list[_Sums] = field(init=False)
    _ring: pa.Table = field(init=False)

    def __post_init__(self) -> None:
        self._ring = ROWS.empty_table()
        self._sums = [_Sums.of(aspect.bank) for aspect in self.relation.aspects]
        self._set_limits()

    def run_length(self) -> float:
        """Labels between false alarms, at the rate of labels as last read."""
        return self.budget.events_between(self.traffic.rate) / self.share

    def raised(self) -> dict[str, IncidentKind]:
        """The aspects in alarm, and the kind of incident each belongs to."""
        pairs = zip(self.relation.aspects, self._sums, strict=True)
        return {aspect.name: IncidentKind(sums.raised.kind) for aspect, sums in pairs if sums.raised is not None}

    def until_mark(self) -> int:
        """Labels left before the rate is read, and the budget divided, anew."""
        return self.traffic.until_mark()

    def _set_limits(self) -> None:
        parts = [FIRST_SHARE, 1 - FIRST_SHARE] if len(self._sums) > 1 else [1.0]
        for aspect, sums, part in zip(self.relation.aspects, self._sums, parts, strict=True):
            limit = aspect.bank.limits(max(self.run_length() / part, 10.0))
            sums.limit = np.where(
                limit * STEP < NEVER, np.rint(limit * sums.clustering.factor()).astype(np.int64), limit
            )

    def update(
        self,
        joined: Joined,
        made_us: Ints,
        time_us: Ints,
        segment: Ints,
        *,
        names: Mapping[int, Sequence[str]],
        share_at: Callable[[int], float],
    ) -> list[Turn]:
        """Take truths in order; what they showed, by time.

        `names`: of each segment's number, what it is called. `share_at`: its part of the budget as of a time; asked when
        the rate of labels is read.
        """
        cells, error = self.relation.encode(joined)
        second = cells[:, 1] if cells.shape[1] > 1 else np.full(len(cells), NONE)
        nothing = np.full(len(joined), np.nan)
        expected = (nothing if told is None else told for told in (joined.expected_size, joined.expected_error))
        columns = (made_us, time_us, segment, joined.truth_label, error, cells[:, 0], second, *expected)
        arrays = [
            c.cast(f.type) if isinstance(c, pa.Array) else pa.array(c, f.type)
            for c, f in zip(columns, ROWS, strict=True)
        ]
        rows = pa.Table.from_arrays(arrays, schema=ROWS)
        found: list[Turn] = []
        start = 0
        while start < len(rows):
            part = rows.slice(start, min(self.until_mark(), STRETCH - self.traffic.events % STRETCH))
            known = pa.concat_tables([self._ring, part]).combine_chunks()
            for place in range(len(self._sums)):
                turns = self._walk(place, part, known, names)
                found += [replace(turn, at=turn.at + start) for turn in turns]
            self._ring = known.slice(max(0, len(known) - self.remembered)).combine_chunks()
            if self.traffic.add(part["time_us"].to_numpy()):
                self.share = share_at(int(part["time_us"][-1].as_py()))
                self._set_limits()
            if self.traffic.events % STRETCH == 0:
                self._learn()
            start += len(part)
        return sorted(found, key=lambda turn: turn.at)

    def _learn(self) -> None:
        """The rhythm of days and what makes labels alike, from the last stretch of them."""
        rows = self._ring.slice(max(0, len(self._ring) - STRETCH))
        for place, sums in enumerate(self._sums):
            cell = rows[_CELLS[place]].to_numpy().astype(np.int64)
            says = cell != NONE
            sums.rhythm.add(cell[says], rows["made_us"].to_numpy()[says])
            ratios = np.exp(self.relation.aspects[place].bank.steps * STEP)
            sums.shift = np.rint(sums.rhythm.shift(ratios, sums.clustering.factor()) / STEP).astype(np.int64)
            sums.clustering.add(np.asarray(self._steps(place, rows, is_news=False)[:, 0] * STEP, np.float64))
        self._set_limits()

    def _steps(self, place: int, rows: pa.Table, *, is_news: bool = True) -> Ints:
        """(n, K): what each truth says for each alternative beyond what its hour does; 0 where it says nothing.

        `is_news`: nor does it where it belongs to a change that was told.
        """
        sums = self._sums[place]
        cell, made = rows[_CELLS[place]].to_numpy().astype(np.int64), rows["made_us"].to_numpy()
        steps = self.relation.aspects[place].bank.steps.T[cell] - sums.shift[made // HOUR_US % HOURS]
        steps[(cell == NONE) | (is_news & (made <= sums.told_us))] = 0
        return np.asarray(steps, np.int64)

    def _walk(self, place: int, part: pa.Table, known: pa.Table, names: Mapping[int, Sequence[str]]) -> list[Turn]:
        """One aspect over rows: alarm, calm, alarm."""
        sums = self._sums[place]
        before = len(known) - len(part)
        steps = self._steps(place, part)
        found: list[Turn] = []
        row = 0
        while row < len(steps):
            if sums.raised is not None:
                row = self._follow(place, steps[row:], row, known, before, names, found)
                continue
            level, since = rise(sums.level, steps[row:], sums.since)
            hit = np.flatnonzero((level >= sums.limit).any(axis=1))
            at = int(hit[0]) if len(hit) else len(level) - 1
            sums.level, sums.since, sums.calm = level[at].copy(), since[at].copy(), sums.calm + at + 1
            if not len(hit):
                break
            row += at + 1
            over = np.flatnonzero(sums.level >= sums.limit)
            best = int(over[np.argmax(sums.level[over] / sums.limit[over])])
            told = known.slice(max(0, before + row - self.remembered), min(before + row, self.remembered))
            stretch = self._stretch(place, told.slice(max(0, len(told) - sums.calm)), best)
            turn = None
            if stretch is not None and stretch.evidence >= sums.limit[best] and self._is_sample(stretch, told):
                passed = float(sums.limit[best] / sums.level[best])
                turn = self._turn(place, passed, stretch, told, names, row - 1)
            if turn is None or stretch is None or turn.effect < self.minimum_effect:
                # Beyond chance, but too small to matter, borne out by no stretch of predictions, or perhaps of labels that
                # are missing: it starts anew.
                sums.level[over], sums.since[over] = 0, 0
                continue
            found.append(turn)
            onset = list(stretch.onset_us)
            since = told.filter(pa.array(told["made_us"].to_numpy() >= turn.onset_us))
            so_far = self._steps(place, since).sum(axis=0)
            sums.raised = _Raised(
                best, int(sums.limit[best]), str(turn.kind), onset, so_far.tolist(), int(so_far.max()), passed=passed
            )
            sums.level, sums.since = np.zeros_like(sums.level), np.zeros_like(sums.since)
        return found

    # -- calm ------------------------------------------------------------------------------------

    def _follow(
        self,
        place: int,
        steps: Ints,
        row: int,
        known: pa.Table,
        before: int,
        names: Mapping[int, Sequence[str]],
        found: list[Turn],
    ) -> int:
        """An aspect in alarm over the steps (n, K) of the rows from `row` on, up to where it is calm; the row that follows.

        It is calm when no alternative goes on: the likeliest of them since the onset is so much less likely than one was.
        While one of them is the truth that is as rare as a false alarm, also where chance made the change look larger.
        """
        aspect, sums = self.relation.aspects[place], self._sums[place]
        held = sums.raised
        assert held is not None
        # What was predicted before the onset, and is labelled late, speaks neither for nor against the change.
        of_change = known["made_us"].slice(before + row, len(steps)).to_numpy() >= held.onset[0]
        level = held.level + np.cumsum(steps * of_change[:, None], axis=0)
        likeliest = np.where(sums.limit * STEP < NEVER, level, np.iinfo(np.int64).min // 4).max(axis=1)
        peak = np.maximum(np.maximum.accumulate(likeliest), held.peak)
        calm = np.flatnonzero(peak - likeliest >= CALM * held.limit)
        stop = int(calm[0]) if len(calm) else len(steps) - 1
        twice = np.flatnonzero(likeliest[: stop + 1] >= 2 * held.limit)
        if len(twice) and not held.was_told_again:
            held.was_told_again = True
            end = before + row + int(twice[0]) + 1
            told = known.slice(max(0, end - self.remembered), min(end, self.remembered))
            still = _Stretch((held.onset[0], held.onset[1], held.onset[2]), NEWEST, held.peak)
            turn = self._turn(place, held.passed, still, told, names, row + int(twice[0]))
            found.append(replace(turn, kind=IncidentKind(held.kind), is_again=True))
        held.level, held.peak = level[stop].tolist(), int(peak[stop])
        if len(calm):
            time_us = int(known["time_us"][before + row + stop].as_py())
            found.append(Turn(aspect.name, IncidentKind(held.kind), row + stop, time_us, is_calm=True))
            now = before + row + stop + 1
            sums.told_us = self._end(place, known.slice(max(0, now - self.remembered), min(now, self.remembered)), held)
            sums.raised, sums.calm = None, 0
        return row + stop + 1

    # -- what it means ---------------------------------------------------------------------------

    def _turn(
        self, place: int, passed: float, stretch: _Stretch, told: pa.Table, names: Mapping[int, Sequence[str]], at: int
    ) -> Turn:
        """The case of an alarm on the truths `told`, the last of which raised it or shows that it goes on."""
        aspect, onset = self.relation.aspects[place], stretch.onset_us
        made = told["made_us"].to_numpy()
        after = told.filter(pa.array((made >= onset[1]) & (made <= stretch.until_us)))
        raw, value, expected, words = self._size(aspect, after)
        # The onset is where the rise is the most, so the rise looks larger than it is: by a standard error or so.
        effect = max(float(raw - 1 / np.sqrt(len(after))), 0.0)
        time_us = int(told["time_us"][-1].as_py())
        is_foretold = self._is_foretold(aspect.name, after, onset[1], time_us)
        kind = IncidentKind.PERFORMANCE if aspect.name == LEVEL or is_foretold else IncidentKind.CONCEPT_DRIFT
        worst = self._worst(told.filter(pa.array(made < onset[1])), after, names)
        return Turn(
            aspect.name, kind, at, time_us, value=value, expected=expected,
            threshold=expected + (value - expected) * passed, effect=effect, samples=len(after), detail=words, worst=worst,
            onset_us=onset[1], onset_between_us=(onset[0], onset[2]), newest_us=int(after["made_us"].to_numpy().max()),
            is_foretold=is_foretold,
        )  # fmt: skip

    def _stretch(self, place: int, rows: pa.Table, alternative: int) -> _Stretch | None:
        """Where in prediction time the likeliest alternative on the same side holds (Hinkley 1970); None: nowhere.

        It goes on where what came after its likeliest end does not speak against that. An alarm needs as much evidence
        for one stretch as its limit: what late labels of many times add up to, and no stretch bears out, is no change.
        """
        rows = rows.filter(pa.array(rows["made_us"].to_numpy() > self._sums[place].told_us))
        if not len(rows):
            return None
        made = rows["made_us"].to_numpy()
        order = np.argsort(made, kind="stable")
        made, aspect = made[order], self.relation.aspects[place]
        away = aspect.bank.steps - (aspect.bank.steps @ aspect.shares)[:, None]
        total = np.cumsum(self._steps(place, rows)[order][:, (away * aspect.shares) @ away[alternative] > 0], axis=0)
        before = np.concatenate([np.zeros_like(total[:1]), total[:-1]])
        evidence = total - np.minimum.accumulate(before, axis=0)
        last, best = (int(k) for k in np.unravel_index(int(np.argmax(evidence)), evidence.shape))
        total, before = total[:, best], before[:, best]
        since = total[last] - before[: last + 1]
        near, first = int(UNLIKELY / STEP), int(np.argmax(since))
        possible = made[: last + 1][since >= since[first] - near]
        until = np.flatnonzero(total[last:] >= total[last] - near)[-1] + last
        goes_on = until == len(made) - 1
        onset = (int(possible[0]), int(made[first]), int(possible[-1]))
        return _Stretch(onset, NEWEST if goes_on else int(made[last]), int(since[first]))

    def _is_sample(self, stretch: _Stretch, told: pa.Table) -> bool:
        if self.is_sample is None:
            return True
        since_us, time_us = stretch.onset_us[0], told["time_us"].to_numpy()
        is_all = len(told) < self.remembered or int(time_us[0]) < since_us
        labelled = int((told["made_us"].to_numpy() >= since_us).sum()) if is_all else None
        return self.is_sample(since_us, int(time_us[-1]), labelled)

    def _end(self, place: int, rows: pa.Table, held: _Raised) -> int:
        """Up to which prediction a change that is over may have lasted: labels of these that still come are no other."""
        made = rows["made_us"].to_numpy()
        since = rows.filter(pa.array(made >= held.onset[0]))
        if not len(since):
            return held.onset[2]
        made = since["made_us"].to_numpy()
        order = np.argsort(made, kind="stable")
        total = np.cumsum(self._steps(place, since)[order], axis=0)
        total = total[:, int(np.argmax(total.max(axis=0)))]
        return max(int(made[order][total >= total.max() - int(UNLIKELY / STEP)][-1]), held.onset[2])

    def _size(self, aspect: Aspect, after: pa.Table) -> tuple[float, float, float, str]:
        """(effect, value, expected, words) of the truths since the onset."""
        relation, error = self.relation, after["error"].to_numpy()
        error = error[np.isfinite(error)]
        if aspect.name == CALIBRATION:
            return self._size_calibration(after)
        if aspect.name == LEVEL:
            return self._size_level(aspect, after)
        if aspect.name == BIAS:
            value, expected = float(error.mean()), relation.lean
            words = f"mean of predicted - true {number(expected)} -> {number(value)}"
            # Errors that only scatter more lean now and then: their mean must stand out of how they scatter now.
            stands_out = abs(value - expected) > OUTSTANDING * float(error.std()) / np.sqrt(len(error))
            return abs(value - expected) / relation.lean_deviation * stands_out, value, expected, words
        value, expected = float(np.abs(error).mean()), relation.mean
        if aspect.name == ABSOLUTE:
            words = f"mean absolute error {number(expected)} -> {number(value)}"
            return max(value - expected, 0.0) / relation.deviation, value, expected, words
        return max(_cohen(expected, value), 0.0), value, expected, f"error rate {percent(expected)} -> {percent(value)}"

    def _size_level(self, aspect: Aspect, after: pa.Table) -> tuple[float, float, float, str]:
        """The larger of two effects: by ranks, since a deviation that a few large numbers make says nothing of the others;
        and of the mean, where it moved the same way, since ranks of many equal numbers tell little."""
        cell, value = after["first"].to_numpy().astype(np.int64), after["error"].to_numpy()
        known = cell != NONE
        by_rank = float(aspect.score[cell[known]].mean())
        before, now = self.relation.mean, float(value[known].mean())
        moved = max(abs(by_rank), (now - before) / self.relation.deviation * float(np.sign(by_rank)))
        middle = f"median {number(self.relation.median)} -> {number(float(np.median(value[known])))}"
        return moved, now, before, f"mean {number(before)} -> {number(now)}, {middle}"

    def _size_calibration(self, after: pa.Table) -> tuple[float, float, float, str]:
        """The larger of two effects: the share that came true against what scores foretold, and the surprise at it."""
        cell = after["second"].to_numpy().astype(np.int64)
        cell = cell[cell != NONE]
        chance, true = self.relation.truth[cell // 2], cell % 2
        came, foretold = float(true.mean()), float(chance.mean())
        loss = float(-np.log(np.where(true == 1, chance, 1 - chance)).mean())
        entropy = -(chance * np.log(chance) + (1 - chance) * np.log(1 - chance))
        spread = float(np.sqrt((chance * (1 - chance) * np.log(chance / (1 - chance)) ** 2).mean()))
        turned, surprised = abs(_cohen(foretold, came)), (loss - float(entropy.mean())) / max(spread, 1e-9)
        if turned >= surprised:
            what = "right" if self.relation.task is Task.MULTICLASS else "positive"
            words = f"{what} {percent(came)} where scores foretell {percent(foretold)}"
            return turned, came, foretold, words
        words = f"log loss {number(loss)} where scores foretell {number(float(entropy.mean()))}"
        return surprised, loss, float(entropy.mean()), words

    def _is_foretold(self, aspect: str, after: pa.Table, onset_us: int, until_us: int) -> bool | None:
        """Whether errors are those of harder cases, answered as well as ever; None where nobody can tell.

        1. Truths that leave their scores are foretold by nothing.
        2. Errors of numbers: by the inputs, as far as the baseline knows what errors such inputs have.
        3. Errors of one class: by what the answers gave that class.
        4. Errors of all classes: by their scores, as the baseline knows them.
        """
        if aspect == CALIBRATION:
            return False
        if aspect in (ABSOLUTE, BIAS):
            rise = self._rise_by_inputs(aspect, after)
            usual = self.relation.mean if aspect == ABSOLUTE else self.relation.lean
        elif aspect == ERROR_RATE:
            rise = self._rise_by_scores(after) if self.rise is None else self.rise(onset_us, until_us)
            usual = self.relation.mean
        else:
            return None
        return None if rise is None else rise.is_foretold(usual)

    def _rise_by_inputs(self, aspect: str, after: pa.Table) -> Rise | None:
        """The mean error, or its size, since the onset, and what the inputs of the same rows led to expect."""
        error = after["error"].to_numpy()
        came, expected = error, after["expected_error"].to_numpy()
        usual, spread = self.relation.lean, self.relation.lean_deviation
        if aspect == ABSOLUTE:
            came, expected = np.abs(error), after["expected_size"].to_numpy()
            usual, spread = self.relation.mean, self.relation.deviation
        told = np.isfinite(came) & np.isfinite(expected)
        if self.missed is None or not told.any() or told.sum() < FEWEST_TOLD * len(after):
            return None
        foretold = float(expected[told].mean())
        variance = float(came[told].var()) / told.sum() + spread**2 / self.relation.rows
        variance += (self.missed * (foretold - usual)) ** 2
        return Rise(float(came[told].mean()), foretold, float(np.sqrt(variance)))

    def _rise_by_scores(self, after: pa.Table) -> Rise | None:
        """The share of wrong answers, and how many their scores foretold."""
        first, second = (after[name].to_numpy().astype(np.int64) for name in _CELLS)
        told = (first != NONE) & (second != NONE)
        if not told.any() or told.sum() < FEWEST_TOLD * len(after):
            return None
        chance = self.relation.expected_errors(first[told], second[told])
        error = float(np.sqrt((chance * (1 - chance)).sum())) / told.sum()
        return Rise(float(first[told].mean()), float(chance.mean()), error)

    def _worst(self, before: pa.Table, after: pa.Table, names: Mapping[int, Sequence[str]]) -> str:
        """The segment or class whose errors rose most, where it stands out."""
        is_level = self.relation.task is Task.VALUE
        error = after["error"].to_numpy() if is_level else np.abs(after["error"].to_numpy())
        usable = np.isfinite(error)
        if not usable.any():
            return ""
        rose = error - self.relation.mean
        # Numbers that fall are worst where they fell most.
        sign = -1.0 if is_level and float(rose[usable].mean()) < 0 else 1.0
        found: list[tuple[float, str]] = []
        groups = {**self._segments(after, before, names), **self._classes(after)}
        for called, (mine, usual) in sorted(groups.items()):
            mine = mine & usable
            others = usable & ~mine
            if min(mine.sum(), others.sum()) < FEWEST_OF_A_GROUP:
                continue
            spread = float(error[usable].std()) or 1.0
            gap = sign * (float(error[mine].mean()) - usual - float(rose[others].mean()))
            found.append((gap / (spread * float(np.sqrt(1 / mine.sum() + 1 / others.sum()))), called))
        if not found or max(found)[0] < OUTSTANDING:
            return ""
        called = max(found)[1]
        value = float(error[groups[called][0] & usable].mean())
        size = number(value) if self.relation.task in (Task.REGRESSION, Task.VALUE) else percent(value)
        return f"{'most' if is_level else 'worst'} where {called} ({size})"

    def _segments(
        self, after: pa.Table, before: pa.Table, names: Mapping[int, Sequence[str]]
    ) -> dict[str, tuple[np.ndarray, float]]:
        """What each segment is called -> (its rows, its error before)."""
        late, early = after["segment"].to_numpy(), before["segment"].to_numpy()
        past = before["error"].to_numpy() if self.relation.task is Task.VALUE else np.abs(before["error"].to_numpy())
        found = {}
        for called in sorted({c for code in np.unique(late).tolist() for c in names.get(code, ())}):
            codes = [code for code, its in names.items() if called in its]
            known = past[np.isin(early, codes) & np.isfinite(past)]
            usual = (known.sum() + FEWEST_OF_A_GROUP * self.relation.mean) / (len(known) + FEWEST_OF_A_GROUP)
            found[called] = (np.isin(late, codes), float(usual))
        return found

    def _classes(self, after: pa.Table) -> dict[str, tuple[np.ndarray, float]]:
        """The same of each class of the truth, whose errors the baseline knows."""
        truth = np.array(after["truth"].to_pylist(), object)
        found = {}
        for label, (rows, wrong) in self.relation.by_class.items():
            mine = truth == label
            if self.relation.task is Task.BINARY:
                mine = (truth == self.relation.positive_label) == (label == "1")
                label = f"{self.relation.positive_label}" if label == "1" else f"not {self.relation.positive_label}"
            found[f"the truth is {label}"] = (mine, wrong / max(rows, 1))
        return found

    # -- the store -------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """The whole state but what the reference and the configuration say."""
        head = json.dumps(
            {
                "format": FORMAT,
                "aspects": [[a.name, *a.bank.steps.shape] for a in self.relation.aspects],
                "share": self.share,
                "traffic": [self.traffic.events, self.traffic.marks, self.traffic.rate],
                "sums": [sums.to_json() for sums in self._sums],
            }
        ).encode()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, ROWS) as writer:
            writer.write_table(self._ring)
        return compressed(struct.pack("<I", len(head)) + head + sink.getvalue().to_pybytes())

    def restore(self, state: bytes) -> bool:
        """Become what was stored; False where that is of another reference or an earlier version of this program."""
        try:
            body = decompressed(state)
            (size,) = struct.unpack_from("<I", body)
            head = json.loads(body[4 : 4 + size])
            fits = [[a.name, *a.bank.steps.shape] for a in self.relation.aspects] == head["aspects"]
            if head["format"] != FORMAT or not fits:
                return False
            events, marks, rate = head["traffic"]
            self.traffic = Traffic(events, [(n, t) for n, t in marks], rate)
            self.share = head["share"]
            self._sums = [_Sums.from_json(stored) for stored in head["sums"]]
            self._set_limits()
            self._ring = pa.ipc.open_stream(body[4 + size :]).read_all()
        except (struct.error, ValueError, KeyError, TypeError, pa.ArrowInvalid) as error:
            raise StateError(f"the watch over joined truths cannot be read: {error}") from error
        return True


def _cohen(before: float, after: float) -> float:
    """Cohen's h with its sign."""
    return float(2 * (np.arcsin(np.sqrt(min(max(after, 0.0), 1.0))) - np.arcsin(np.sqrt(min(max(before, 0.0), 1.0)))))
