"""What was said of a cohort as its labels came: how far it was labelled, and its first metrics, each time that moved.

A revision is taken at a join, so it tells what people could see then; which joins there were depends on the machine. The
figures themselves do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stream_monitor.cohorts import CohortKey
from stream_monitor.judge.performance import metrics
from stream_monitor.records import MICROSECONDS, window_start, window_starts
from stream_monitor.summarize.outcome import OutcomeProfile, Task

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.truth import Met

KIND = "revised"
"""Of the states, by cohort."""

FIRST_METRICS = {
    Task.BINARY: ("accuracy", "auc"),
    Task.MULTICLASS: ("accuracy", "f1"),
    Task.REGRESSION: ("mae", "bias"),
    Task.VALUE: ("mean", "p50"),
}
"""What people ask first of each task; the others are restated too, and stand in the performance as they are now."""

FEWEST_LABELS = 30
"""Below so many a figure says nothing, and the next join would restate it."""

STEP = 0.1
"""A revision for each tenth of a cohort's predictions that was labelled since the last, and whenever a figure has left the
interval it was given then: corrections move figures though no label is new."""

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
        self._touched: set[CohortKey] = set()
        self._dirty: set[CohortKey] = set()

    def take(self, met: Met) -> None:
        """Note which cohorts a join restated."""
        for table in (met.new, met.replaced):
            version, outcome = (table[name].to_numpy().astype(np.int64) for name in ("version", "outcome"))
            time_us, pair = table["time_us"].to_numpy(), version * 65_536 + outcome
            for one in np.unique(pair).tolist():
                line, mine = self.engine.versions[one // 65_536].whole().number, time_us[pair == one]
                for seconds in self.engine.config.windows:
                    starts = np.unique(window_starts(mine, seconds)).tolist()
                    self._touched.update((line, one % 65_536, seconds, start) for start in starts)

    def note(self) -> None:
        """Take a revision of each closed cohort of which enough more is labelled."""
        sealed_us, at_us = self.engine.sealed_us, self.engine.joined_sealed_us
        if sealed_us is None or at_us is None or not self._touched:
            return
        self._touched = {key for key in self._touched if not self._is_old(key, sealed_us)}
        closed = {key for key in self._touched if key[3] + key[2] * MICROSECONDS <= sealed_us}
        self._touched -= closed
        self._fetch(closed)
        for key in sorted(closed):
            profile = self.engine.outcomes.cohorts.profile(key)
            if profile is None or profile.rows < FEWEST_LABELS:
                continue
            held, now = self._held[key], Revision(at_us, profile.rows, first_figures(profile))
            if not held or self._is_news(key, held[-1], now):
                self._held[key] = [*held[:1], *[*held[1:], now][1 - MOST_REVISIONS :]]
                self._dirty.add(key)

    def _is_news(self, key: CohortKey, last: Revision, now: Revision) -> bool:
        made = self.engine.outcomes.cohorts.made(key[0], key[2], key[3])
        return now.labelled - last.labelled >= STEP * made or any(
            name in last.figures and (value < last.figures[name][1] or value > last.figures[name][2])
            for name, (value, _, _) in now.figures.items()
        )

    @staticmethod
    def _is_old(key: CohortKey, sealed_us: int) -> bool:
        return key[3] < window_start(sealed_us, key[2]) - FOLLOWED_WINDOWS * key[2] * MICROSECONDS

    def _fetch(self, keys: Iterable[CohortKey]) -> None:
        """Have those of these cohorts at hand."""
        missing = {"/".join(map(str, key)): key for key in keys if key not in self._held}
        found = self.engine.store.some_states(KIND, list(missing))
        self._held |= {key: _from_bytes(found[text]) if text in found else [] for text, key in missing.items()}

    def of(self, key: CohortKey) -> Sequence[Revision]:
        """The revisions of a cohort, the oldest first."""
        self._fetch([key])
        return self._held[key]

    def save(self) -> None:
        """Write what changed since the last checkpoint, and let go of cohorts that are not followed any more."""
        bodies = {"/".join(map(str, key)): _to_bytes(self._held[key]) for key in sorted(self._dirty)}
        self.engine.store.put_states(KIND, bodies)
        self._dirty = set()
        if self.engine.sealed_us is not None:
            sealed_us = self.engine.sealed_us
            self._held = {key: held for key, held in self._held.items() if not self._is_old(key, sealed_us)}


def _to_bytes(revisions: Sequence[Revision]) -> bytes:
    return json.dumps([[r.at_us, r.labelled, r.figures] for r in revisions]).encode()


def _from_bytes(body: bytes) -> list[Revision]:
    return [
        Revision(at_us, labelled, {name: (value, lower, upper) for name, (value, lower, upper) in figures.items()})
        for at_us, labelled, figures in json.loads(body)
    ]
