"""Predictions by line and window: how many were made, and what the labels that came for them say.

A cohort is restated whenever a label for it comes, whenever that is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from stream_monitor.records import Codes, Ints, window_starts
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task, shares

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.versions import Line

CACHED_COHORTS = 8_000
"""Cohorts kept in memory, 16 kB each of some 250 scored labels, 32 kB at most. With labels that come for 45 days a batch of
them may restate 5,445 of one line; to read these again takes half as long as to join the batch."""

CohortKey = tuple[int, int, int, int]  # line, outcome, window seconds, start_us


class Cohorts:
    """The cohorts of all outcomes of all lines."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._profiles: dict[CohortKey, OutcomeProfile | None] = {}  # None: looked for, and not there
        self._made: dict[tuple[int, int, int], int] = {}  # (line, window seconds, start) -> predictions
        self._dirty: set[CohortKey] = set()
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
        time_us: Ints,
        task: Task,
        positive_label: str | None,
        sign: int,
    ) -> None:
        """Add (sign 1) or take out (-1) joined truths (n,) of predictions made at `time_us`."""
        for line, row in self.lines(version, segment):
            mine = shares(joined.take(row), task, positive_label=positive_label)
            for seconds in self.engine.config.windows:
                starts, place = np.unique(window_starts(time_us[row], seconds), return_inverse=True)
                keys = [(line.number, outcome, seconds, start) for start in starts.tolist()]
                self._fetch(keys)
                profiles = [self._profiles[key] or OutcomeProfile(task, positive_label) for key in keys]
                mine.fold(profiles, place, sign)
                self._profiles.update(zip(keys, profiles, strict=True))
                self._dirty.update(keys)

    def profile(self, key: CohortKey) -> OutcomeProfile | None:
        """What the labels of a cohort say, None where none has come for it."""
        self._fetch([key])
        return self._profiles[key]

    def _fetch(self, keys: Iterable[CohortKey]) -> None:
        """Have these cohorts at hand, behind those that were needed before."""
        missing: dict[str, CohortKey] = {}
        for key in keys:
            if key in self._profiles:
                self._profiles[key] = self._profiles.pop(key)
            else:
                missing["/".join(map(str, key))] = key
        found = self.engine.store.some_states("cohort", list(missing))
        self._profiles |= {
            key: OutcomeProfile.from_bytes(found[text]) if text in found else None for text, key in missing.items()
        }

    def coverage(self, key: CohortKey, profile: OutcomeProfile) -> float:
        """Labelled predictions over all predictions of a window, NaN where none are known."""
        made = self.made(key[0], key[2], key[3])
        return min(profile.rows / made, 1.0) if made else float("nan")

    # -- the store -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write what changed since the last checkpoint."""
        store = self.engine.store
        dirty = {key: self._profiles[key] for key in sorted(self._dirty)}
        store.put_states("cohort", {"/".join(map(str, k)): p.to_bytes() for k, p in dirty.items() if p is not None})
        store.put_states(
            "made", {"/".join(map(str, k)): self._made[k].to_bytes(8, "big") for k in sorted(self._dirty_made)}
        )
        self._dirty, self._dirty_made = set(), set()
        for key in list(self._profiles)[: max(0, len(self._profiles) - CACHED_COHORTS)]:
            del self._profiles[key]
        if len(self._made) > CACHED_COHORTS:
            self._made = {}
