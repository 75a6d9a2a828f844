"""What was said of a cohort as its labels came: how far it was labelled, and its first metrics, each time that moved.

Truths are gone through in the order of their own times, once no earlier one can come: so what was said when depends on
the records alone, not on which of them were joined together. What came after a moment is taken out of the cohort as it is
now: that leaves the counts and sums of then to the last bit, and bins that are no finer than those of now.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from stream_monitor import measures
from stream_monitor.cohorts import CohortKey
from stream_monitor.judge.performance import metrics
from stream_monitor.outcomes import joined_of
from stream_monitor.records import MICROSECONDS, Flags, Ints, window_start, window_starts
from stream_monitor.summarize.outcome import OutcomeProfile, Task, errors, shares
from stream_monitor.truth import AMENDED_SCHEMA, Met, from_ipc, to_ipc

if TYPE_CHECKING:
    from stream_monitor.engine import Engine

KIND = "revised"
"""Of the states, by cohort."""

WAITING = "revising"
"""Of the states: what cannot be told of yet."""

WAITING_SCHEMA = AMENDED_SCHEMA.append(pa.field("is_amended", pa.bool_()))

FIRST_METRICS = {
    Task.BINARY: ("accuracy", "auc"),
    Task.MULTICLASS: ("accuracy", "f1"),
    Task.REGRESSION: ("mae", "bias"),
    Task.VALUE: ("mean", "p50"),
}
"""What people ask first of each task; the others are restated too, and stand in the performance as they are now."""

FEWEST_LABELS = 30
"""Below so many a figure says nothing, and the next labels would restate it."""

STEPS = 10
"""A revision when each further tenth of a cohort's predictions was labelled."""

LOOK_SECONDS = 3600
"""Corrections move figures though no label is new: after so long with some, or a window's length where that is shorter, there is
a revision if a figure has left the interval it was given. A look takes a millisecond, and there may be some every second."""

MOST_REVISIONS = 20
"""Of some 150 bytes each; of more, the first and the newest are kept."""

FOLLOWED_WINDOWS = 8
"""The newest closed cohorts of each length are followed: of weeks, longer than labels are usually waited for (45 days)."""

Figure = tuple[float, float, float]  # value, lower, upper


@dataclass(frozen=True, slots=True)
class Revision:
    """A cohort as it stood when labels had come up to a time. `figures` by metric."""

    at_us: int
    labelled: int
    figures: Mapping[str, Figure]


def first_figures(profile: OutcomeProfile) -> dict[str, Figure]:
    """The first metrics of a cohort as it stands now."""
    found = metrics(profile)
    return {name: (found[name].value, found[name].lower, found[name].upper)
            for name in FIRST_METRICS[profile.task] if name in found}  # fmt: skip


class Revisions:
    """Those of the newest closed cohorts of every version, all traffic together."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._held: dict[CohortKey, list[Revision]] = {}
        self._dirty: set[CohortKey] = set()
        self._told_us = engine.joined_sealed_us
        changes, looks = engine.store.state(WAITING, "changes"), engine.store.state(WAITING, "looks")
        self._waiting = [] if changes is None else [from_ipc(changes)]
        self._looks: dict[CohortKey, set[int]] = {}  # when to look at corrected cohorts
        for line, outcome, seconds, start, at_us in [] if looks is None else json.loads(looks):
            self._looks.setdefault((line, outcome, seconds, start), set()).add(at_us)
        self._is_saved = True

    def take(self, met: Met) -> None:
        """Let what a join brought wait until no earlier truth can come."""
        opened = met.opened.append_column("at_us", met.opened["joined_us"])
        opened = opened.append_column("sign", pa.array(np.ones(len(opened), np.int8))).cast(AMENDED_SCHEMA)
        changes = pa.concat_tables([opened, met.amended])
        is_amended = np.arange(len(changes)) >= len(opened)
        at_us = changes["at_us"].to_numpy()
        if self._told_us is not None:  # only a partition that fell idle and came back brings an earlier one
            at_us = np.maximum(at_us, self._told_us)
        changes = changes.set_column(changes.schema.get_field_index("at_us"), "at_us", pa.array(at_us))
        if len(changes):
            self._waiting.append(changes.append_column("is_amended", pa.array(is_amended)).cast(WAITING_SCHEMA))
            self._is_saved = False

    def note(self) -> None:
        """Take the revisions up to where truths are in order."""
        if self.engine.joined_sealed_us is not None:
            self._tell(self.engine.joined_sealed_us)

    def finish(self) -> None:
        """The files are read: nothing waits any longer."""
        newest = [int(changes["at_us"].to_numpy().max()) + 1 for changes in self._waiting if len(changes)]
        if self.engine.sealed_us is not None:
            self._tell(max([self.engine.sealed_us, *newest]))

    def _tell(self, until_us: int) -> None:
        if self._told_us is not None and until_us <= self._told_us:
            return
        span = _Span(self._told_us, until_us)
        waiting = pa.concat_tables([WAITING_SCHEMA.empty_table(), *self._waiting])
        order = np.lexsort((waiting["id_lo"].to_numpy(), waiting["at_us"].to_numpy()))
        waiting = waiting.take(pa.array(order)).combine_chunks()
        pair = waiting["version"].to_numpy().astype(np.int64) * 65_536 + waiting["outcome"].to_numpy()
        ended = list(self._ended(span))
        touched = dict.fromkeys(ended, (_Changes(WAITING_SCHEMA.empty_table()), np.zeros(0, np.int64)))
        for one in np.unique(pair).tolist():
            rows = _chosen(waiting, pair == one)
            touched |= self._touched(one // 65_536, one % 65_536, rows, span, ended)
        closed = {key: where for key, where in touched.items() if _end_us(key) <= until_us}
        self.engine.outcomes.cohorts.have(list(closed))
        self._fetch(closed)
        for key, (changes, row) in closed.items():
            self._tell_cohort(key, changes, row, span)
        self._told_us, self._is_saved = until_us, False
        self._waiting = [_chosen(waiting, waiting["at_us"].to_numpy() >= until_us)]

    def _ended(self, span: _Span) -> Iterator[CohortKey]:
        """Cohorts that closed though no truth may have come since they had theirs, and those to look at."""
        yield from (key for key, looks in self._looks.items() if min(looks) <= span.until_us)
        for seconds in self.engine.config.windows if span.since_us is not None else ():
            assert span.since_us is not None
            start = window_start(span.since_us, seconds)
            if start + seconds * MICROSECONDS <= span.until_us:
                for version, outcome in self.engine.truth.ledger.truths:
                    yield self.engine.versions[version].whole().number, outcome, seconds, start

    def _touched(
        self, version: int, outcome: int, rows: pa.Table, span: _Span, ended: Sequence[CohortKey]
    ) -> Iterator[tuple[CohortKey, tuple[_Changes, Ints]]]:
        """The cohorts of an outcome that ended or had changes in the span, with all the changes that wait for them."""
        line, name = self.engine.versions[version].whole(), self.engine.names.outcomes[outcome]
        model = self.engine.config.model(line.key.model)
        changes = _Changes(measures.in_words_of_the_outcome(model, name, rows))
        for seconds in self.engine.config.windows:
            also = [start for *of, start in ended if of == [line.number, outcome, seconds]]
            for start, row in changes.by_window(seconds, span, also):
                yield (line.number, outcome, seconds, start), (changes, row)

    def _tell_cohort(self, key: CohortKey, changes: _Changes, row: Ints, span: _Span) -> None:
        """Go through what came for a closed cohort: enough more labels, and what corrections have done to its figures."""
        cohorts = self.engine.outcomes.cohorts
        profile, made = cohorts.profile(key), cohorts.made(key[0], key[2], key[3])
        if profile is None or not made:
            return
        until_us = min(span.until_us, _followed_until_us(key))
        told_us = changes.at_us[row][: np.searchsorted(changes.at_us[row], until_us)]
        past = _Past(profile, changes, row)
        at_us, labelled = np.maximum(np.append(0, told_us), _end_us(key)), past.labelled[: len(told_us) + 1]
        place = 1  # what stood at the beginning was gone through before, if it was closed then
        if span.since_us is None or span.since_us < _end_us(key):
            place = int(np.searchsorted(told_us, _end_us(key)))
        looks = self._looks_at(key, told_us[changes.is_amended[row[: len(told_us)]]], until_us)
        for look_us, stop in [*zip(looks, np.searchsorted(told_us, looks).tolist(), strict=True), (None, len(told_us))]:
            while (more := self._due(key, labelled[place : stop + 1], made)) is not None:
                place += more
                self._keep(key, Revision(int(at_us[place]), int(labelled[place]), past.figures(place)))
                place += 1
            if look_us is not None and self._held[key]:
                now = Revision(look_us, int(labelled[stop]), past.figures(stop))
                if _has_moved(self._held[key][-1], now):
                    self._keep(key, now)

    def _due(self, key: CohortKey, labelled: Ints, made: int) -> int | None:
        """The first place at which enough more is labelled."""
        held = self._held[key]
        # The first count that makes the next tenth full.
        wanted = -(-(STEPS * held[-1].labelled // made + 1) * made // STEPS) if held else FEWEST_LABELS
        found = np.flatnonzero(labelled >= wanted)
        return int(found[0]) if len(found) else None

    def _looks_at(self, key: CohortKey, amended_us: Ints, until_us: int) -> list[int]:
        """When to look at what corrections have done to a closed cohort; the looks to come are remembered."""
        every_us = min(key[2], LOOK_SECONDS) * MICROSECONDS
        after = amended_us[amended_us >= _end_us(key)]
        looks = self._looks.pop(key, set()) | set(((after // every_us + 1) * every_us).tolist())
        later = {at_us for at_us in looks if until_us < at_us <= _followed_until_us(key)}
        if later:
            self._looks[key] = later
        return sorted(at_us for at_us in looks if at_us <= until_us)

    def _keep(self, key: CohortKey, now: Revision) -> None:
        held = self._held[key]
        self._held[key] = [*held[:1], *[*held[1:], now][1 - MOST_REVISIONS :]]
        self._dirty.add(key)

    def _fetch(self, keys: Iterable[CohortKey]) -> None:
        """Have those of these cohorts at hand."""
        missing = {"/".join(map(str, key)): key for key in keys if key not in self._held}
        found = self.engine.store.some_states(KIND, list(missing))
        self._held |= {key: _from_bytes(found[text]) if text in found else [] for text, key in missing.items()}

    def of(self, key: CohortKey) -> Sequence[Revision]:
        """The revisions of a cohort, the oldest first."""
        self._fetch([key])
        return self._held[key]

    def all(self) -> Iterator[tuple[CohortKey, Sequence[Revision]]]:
        """Every cohort that has some, as of the last checkpoint."""
        for text, body in self.engine.store.states(KIND).items():
            line, outcome, seconds, start = map(int, text.split("/"))
            yield (line, outcome, seconds, start), _from_bytes(body)

    def save(self) -> None:
        """Write what changed since the last checkpoint, and let go of cohorts that are not followed any more."""
        bodies = {"/".join(map(str, key)): _to_bytes(self._held[key]) for key in sorted(self._dirty)}
        self.engine.store.put_states(KIND, bodies)
        self._dirty = set()
        if not self._is_saved:
            waiting = pa.concat_tables(self._waiting).combine_chunks()
            looks = sorted((*key, at_us) for key, times in self._looks.items() for at_us in times)
            self.engine.store.put_states(WAITING, {"changes": to_ipc(waiting), "looks": json.dumps(looks).encode()})
            self._is_saved = True
        if self._told_us is not None:
            told_us = self._told_us
            self._held = {key: held for key, held in self._held.items() if _followed_until_us(key) > told_us}


@dataclass(frozen=True, slots=True)
class _Span:
    """The event time that is gone through at once; `since_us` None: from the beginning."""

    since_us: int | None
    until_us: int


class _Changes:
    """Truths (n,) of one outcome of one version that came, were taken back (`sign` -1) or replaced one, in order."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self.made_us, self.at_us = rows["time_us"].to_numpy(), rows["at_us"].to_numpy()
        self.sign, self.is_amended = rows["sign"].to_numpy().astype(np.int64), rows["is_amended"].to_numpy()
        self._usable: dict[tuple[Task, str | None], Flags] = {}

    def usable(self, profile: OutcomeProfile) -> Flags:
        """Which of them a profile can read, (n,)."""
        key = (profile.task, profile.positive_label)
        if key not in self._usable:
            joined = joined_of(self.rows, Task.BINARY)  # an error takes no probabilities of several classes
            self._usable[key] = ~np.isnan(errors(joined, profile.task, positive_label=profile.positive_label))
        return self._usable[key]

    def by_window(self, seconds: int, span: _Span, also: Sequence[int]) -> Iterator[tuple[int, Ints]]:
        """(start, rows in order) of the windows of a length that had a change in the span while they were followed."""
        starts = window_starts(self.made_us, seconds)
        followed_until_us = starts + (1 + FOLLOWED_WINDOWS) * seconds * MICROSECONDS
        in_span = (self.at_us < span.until_us) & (self.at_us < followed_until_us)
        touched = np.union1d(starts[in_span], np.array(also, np.int64))
        order = np.argsort(starts, kind="stable")
        low, high = (np.searchsorted(starts[order], touched, side).tolist() for side in ("left", "right"))
        for start, first, stop in zip(touched.tolist(), low, high, strict=True):
            yield start, order[first:stop]


class _Past:
    """A cohort as it was before some of its changes, which are the newest that are in it."""

    def __init__(self, now: OutcomeProfile, changes: _Changes, row: Ints) -> None:
        self._now, self._changes, self._row = now, changes, row
        steps = np.where(changes.usable(now)[row], changes.sign[row], 0)
        self.labelled = now.rows - int(steps.sum()) + np.append(0, np.cumsum(steps))
        """Usable truths before the first change and after each, (n + 1,)."""
        self._then: OutcomeProfile | None = None
        self._place = 0

    def figures(self, place: int) -> dict[str, Figure]:
        """The first metrics after so many changes; the places asked for ascend."""
        if self._then is None:
            self._then = self._now.merge(OutcomeProfile(self._now.task, self._now.positive_label))
            self._fold(self._then, self._row[place:], -1)
        else:
            self._fold(self._then, self._row[self._place : place], 1)
        self._place = place
        return first_figures(self._then)

    def _fold(self, profile: OutcomeProfile, row: Ints, direction: int) -> None:
        for sign in (1, -1):
            some = row[self._changes.sign[row] == sign]
            if len(some):
                joined = joined_of(self._changes.rows.take(pa.array(some)), profile.task)
                added = shares(joined, profile.task, positive_label=profile.positive_label)
                added.fold([profile], None, direction * sign)


def _chosen(rows: pa.Table, flags: Flags) -> pa.Table:
    """Some of the rows (n,); all or none of them, as is usual, cost nothing."""
    if flags.all():
        return rows
    return rows.filter(pa.array(flags)) if flags.any() else rows.schema.empty_table()


def _has_moved(last: Revision, now: Revision) -> bool:
    """Whether a figure has left the interval it was given."""
    return any(
        name in last.figures and (value < last.figures[name][1] or value > last.figures[name][2])
        for name, (value, _, _) in now.figures.items()
    )


def _end_us(key: CohortKey) -> int:
    return key[3] + key[2] * MICROSECONDS


def _followed_until_us(key: CohortKey) -> int:
    return key[3] + (1 + FOLLOWED_WINDOWS) * key[2] * MICROSECONDS


def _to_bytes(revisions: Sequence[Revision]) -> bytes:
    return json.dumps([[r.at_us, r.labelled, r.figures] for r in revisions]).encode()


def _from_bytes(body: bytes) -> list[Revision]:
    return [
        Revision(at_us, labelled, {name: (value, lower, upper) for name, (value, lower, upper) in figures.items()})
        for at_us, labelled, figures in json.loads(body)
    ]
