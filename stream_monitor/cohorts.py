"""What labels say by line and window: of the predictions made in it, its cohort, and of the labels that came in it.

Both are restated whenever a label comes or is corrected, whenever that is. What detectors are told of a truth is another
matter: see `outcomes`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stream_monitor.records import Codes, Ints, window_starts
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Shares, Task, shares

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.store import Store
    from stream_monitor.versions import Line

CACHED_PROFILES = 8_000
"""Cohorts kept in memory, 16 kB each of some 250 scored labels, some 64 of many. With labels that come for 45 days a batch of
them may restate 5,445 of one line; to read these again takes half as long as to join the batch."""

CACHED_COUNTS = 4_000
"""Counts of predictions kept in memory."""

CohortKey = tuple[int, int, int, int]  # line, outcome, window seconds, start_us


@dataclass(slots=True)
class _Profiles:
    """The profiles of one kind of state, by window."""

    store: Store
    kind: str
    held: dict[CohortKey, OutcomeProfile | None] = field(default_factory=dict)  # None: looked for, and not there
    dirty: set[CohortKey] = field(default_factory=set)

    def fetch(self, keys: Iterable[CohortKey]) -> None:
        """Have these at hand, behind those that were needed before."""
        missing: dict[str, CohortKey] = {}
        for key in keys:
            if key in self.held:
                self.held[key] = self.held.pop(key)
            else:
                missing["/".join(map(str, key))] = key
        found = self.store.some_states(self.kind, list(missing))
        self.held |= {
            key: OutcomeProfile.from_bytes(found[text]) if text in found else None for text, key in missing.items()
        }

    def restate(self, line: int, outcome: int, seconds: int, time_us: Ints, change: Change) -> None:
        """Fold rows (n,) into their windows by these times."""
        starts, place = np.unique(window_starts(time_us, seconds), return_inverse=True)
        keys = [(line, outcome, seconds, start) for start in starts.tolist()]
        self.fetch(keys)
        profiles = [_measured(self.held[key], change.task, change.positive_label) for key in keys]
        change.shares.fold(profiles, place, change.sign)
        self.held.update(zip(keys, profiles, strict=True))
        self.dirty.update(keys)

    def save(self) -> None:
        """Write what changed since the last time, and let go of what was not needed for long."""
        dirty = {key: self.held[key] for key in sorted(self.dirty)}
        self.store.put_states(
            self.kind, {"/".join(map(str, k)): p.to_bytes() for k, p in dirty.items() if p is not None}
        )
        self.dirty = set()
        for key in list(self.held)[: max(0, len(self.held) - CACHED_PROFILES)]:
            del self.held[key]


@dataclass(frozen=True, slots=True)
class Change:
    """Joined truths (n,) of an outcome that are added (sign 1) or taken out (-1)."""

    shares: Shares
    task: Task
    positive_label: str | None
    sign: int


class Cohorts:
    """The windows of all outcomes of all lines, by prediction and by arrival."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._predicted = _Profiles(engine.store, "cohort")
        self._arrived = _Profiles(engine.store, "arrival")
        self._made: dict[tuple[int, int, int], int] = {}  # (line, window seconds, start) -> predictions
        self._dirty_made: set[tuple[int, int, int]] = set()

    # -- predictions made ------------------------------------------------------------------------

    def note_predictions(self, version: int, segment: Ints, time_us: Ints) -> None:
        """Count predictions by line and window: what coverage is a share of."""
        came: dict[tuple[int, int, int], int] = {}
        for line, row in self.lines(version, segment):
            for seconds in self.engine.config.windows:
                starts, counts = np.unique(window_starts(time_us[row], seconds), return_counts=True)
                came |= {(line.number, seconds, s): n for s, n in zip(starts.tolist(), counts.tolist(), strict=True)}
        self._fetch_made(came)
        for key, count in came.items():
            self._made[key] += count
        self._dirty_made.update(came)

    def _fetch_made(self, keys: Iterable[tuple[int, int, int]]) -> None:
        """Have the counts of these windows at hand."""
        missing = {"/".join(map(str, key)): key for key in keys if key not in self._made}
        found = self.engine.store.some_states("made", list(missing))
        self._made |= {key: int.from_bytes(found.get(text, b""), "big") for text, key in missing.items()}

    def made(self, line: int, seconds: int, start_us: int) -> int:
        """Predictions made in a window."""
        key = (line, seconds, start_us)
        self._fetch_made([key])
        return self._made[key]

    def lines(self, version: int, segment: Ints | Codes) -> Iterable[tuple[Line, Ints]]:
        """The lines of a version that rows belong to, by the number of their segment, with the rows."""
        owner = self.engine.versions[version]
        yield owner.whole(), np.arange(len(segment))
        pairs: dict[tuple[tuple[str, str], ...], list[Ints]] = defaultdict(list)
        for code in np.unique(segment).tolist():
            for pair in self.engine.names.segments[code]:
                if (pair,) in owner.lines:
                    pairs[(pair,)].append(np.flatnonzero(segment == code))
        for key, rows in sorted(pairs.items()):
            yield owner.lines[key], np.sort(np.concatenate(rows))

    # -- labels that came ------------------------------------------------------------------------

    def restate(
        self,
        version: int,
        outcome: int,
        joined: Joined,
        *,
        segment: Ints | Codes,
        made_us: Ints,
        joined_us: Ints,
        task: Task,
        positive_label: str | None,
        sign: int,
    ) -> None:
        """Add (sign 1) or take out (-1) truths (n,) of predictions made at `made_us`, joined at `joined_us`."""
        for line, row in self.lines(version, segment):
            change = Change(shares(joined.take(row), task, positive_label=positive_label), task, positive_label, sign)
            for seconds in self.engine.config.windows:
                self._predicted.restate(line.number, outcome, seconds, made_us[row], change)
                self._arrived.restate(line.number, outcome, seconds, joined_us[row], change)

    def profile(self, key: CohortKey) -> OutcomeProfile | None:
        """What the labels of a cohort say, None where none has come for it."""
        self._predicted.fetch([key])
        return self._predicted.held[key]

    def arrived(self, key: CohortKey) -> OutcomeProfile | None:
        """What the labels say that came in a window, None where none has come."""
        self._arrived.fetch([key])
        return self._arrived.held[key]

    def have(self, keys: Sequence[CohortKey]) -> None:
        """Fetch these together: one by one each costs a scan."""
        self._predicted.fetch(keys)
        self._fetch_made([(line, seconds, start) for line, _, seconds, start in keys])

    def coverage(self, key: CohortKey, profile: OutcomeProfile | None) -> float:
        """Labelled predictions over all predictions of a window, NaN where none are known.

        What cannot be read for the task is labelled too: it is counted as unusable beside, and is not missing.
        """
        made = self.made(key[0], key[2], key[3])
        labelled = 0 if profile is None else profile.rows + profile.unusable
        return min(labelled / made, 1.0) if made else float("nan")

    # -- the store -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        self._predicted.save()
        self._arrived.save()
        self.engine.store.put_states(
            "made", {"/".join(map(str, k)): self._made[k].to_bytes(8, "big") for k in sorted(self._dirty_made)}
        )
        self._dirty_made = set()
        if len(self._made) > CACHED_COUNTS:
            self._made = {}


def _measured(held: OutcomeProfile | None, task: Task, positive_label: str | None) -> OutcomeProfile:
    """A profile that truths of this task can be added to."""
    if held is None:
        return OutcomeProfile(task, positive_label)
    return held if held.measures_as(task, positive_label) else held.told_anew(task, positive_label)
