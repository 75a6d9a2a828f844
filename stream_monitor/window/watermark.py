"""How far event time has come on each partition, and which events are late.

Everything here depends on the records of one partition in their order, never on how polls cut or
interleave partitions; only *idleness* looks at a wall clock, which is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from stream_monitor.records import MICROSECONDS, NO_TIME, Flags, Ints, PartitionId

AHEAD_OF_RECORD_US = 3600 * MICROSECONDS
"""An event this far ahead of its Kafka record's own timestamp has a clock nobody should follow at once."""

AHEAD_OF_PARTITION_US = 7 * 86400 * MICROSECONDS
"""Files have no record time: there an event is suspect when it leaps this far ahead of its partition."""

AGREEING = 20
"""So many further events must agree (within an hour) before a suspect timestamp moves the watermark."""


@dataclass(slots=True)
class PartitionClock:
    """Event time on one partition. `highest_us` is the highest timestamp followed so far, None before the first."""

    highest_us: int | None = None
    suspects_us: list[int] = field(default_factory=list)  # the last AGREEING suspect timestamps, oldest first

    def observe(self, time_us: Ints, record_time_us: Ints) -> Ints:
        """Follow events in offset order; return the highest timestamp *before* each, NO_TIME where there was none."""
        before = np.empty(len(time_us) + 1, np.int64)
        before[0] = NO_TIME if self.highest_us is None else self.highest_us
        known = record_time_us != NO_TIME
        suspect = known & (time_us > record_time_us + AHEAD_OF_RECORD_US)
        before[1:] = np.where(suspect, NO_TIME, time_us)
        np.maximum.accumulate(before, out=before)
        first = int(np.argmax(before != NO_TIME)) if before[-1] != NO_TIME else len(before)
        leaps = ~known[first:] & (time_us[first:] > before[:-1][first:] + AHEAD_OF_PARTITION_US)
        if suspect.any() or leaps.any():
            before = self._observe_slowly(time_us, record_time_us)
        if before[-1] != NO_TIME:
            self.highest_us = int(before[-1])
        return before[:-1]

    def _observe_slowly(self, time_us: Ints, record_time_us: Ints) -> Ints:
        """The same, event by event: only for a batch that holds a suspect timestamp."""
        highest = NO_TIME if self.highest_us is None else self.highest_us
        before = np.empty(len(time_us) + 1, np.int64)
        for i, (time, record_time) in enumerate(zip(time_us.tolist(), record_time_us.tolist(), strict=True)):
            before[i] = highest
            if record_time != NO_TIME:
                suspect = time > record_time + AHEAD_OF_RECORD_US
            else:
                suspect = highest != NO_TIME and time > highest + AHEAD_OF_PARTITION_US
            highest = max(highest, self._agreed(time)) if suspect else max(highest, time)
        before[-1] = highest
        return before

    def _agreed(self, time_us: int) -> int:
        """Note a suspect timestamp; the earliest of the last AGREEING + 1 once they agree, else NO_TIME."""
        together = [*self.suspects_us, time_us]
        self.suspects_us = together[-AGREEING:]
        agree = len(together) > AGREEING and max(together) - min(together) <= AHEAD_OF_RECORD_US
        return min(together) if agree else NO_TIME


def late(time_us: Ints, before_us: Ints, *, lateness_us: int) -> Flags:
    """Which events are older than their partition's highest timestamp at that point, less the allowed lateness."""
    bound = np.where(before_us == NO_TIME, 0, before_us) - lateness_us
    return np.asarray((before_us != NO_TIME) & (time_us < bound), np.bool_)


@dataclass(slots=True)
class PartitionState:
    """What the flow knows of one partition."""

    clock: PartitionClock = field(default_factory=PartitionClock)
    position: int | None = None  # next offset to take
    end: int | None = None  # the broker's end offset as last heard
    at_end_since: float | None = None  # seconds, monotonic
    finished: bool = False  # a file read to its end

    def note_end(self, now_seconds: float) -> None:
        """Start or stop the clock of idleness."""
        at_end = self.end is not None and (self.position or 0) >= self.end
        if not at_end:
            self.at_end_since = None
        elif self.at_end_since is None:
            self.at_end_since = now_seconds

    def idle(self, now_seconds: float, *, timeout_seconds: float) -> bool:
        """Whether it holds nobody back: finished, or at the broker's end for long enough."""
        return self.finished or (self.at_end_since is not None and now_seconds - self.at_end_since >= timeout_seconds)


def watermark(
    states: Iterable[PartitionState], *, lateness_us: int, now_seconds: float, idle_seconds: float
) -> int | None:
    """The time no accepted event can lie before any more, None while a live partition has shown nothing yet.

    The lowest of the partitions that are not idle; of all partitions where every one is idle, the highest.
    """
    everything = list(states)
    live = [s for s in everything if not s.idle(now_seconds, timeout_seconds=idle_seconds)]
    highs = [s.clock.highest_us for s in live or everything]
    if live:
        return None if any(h is None for h in highs) else min(h for h in highs if h is not None) - lateness_us
    known = [h for h in highs if h is not None]
    return max(known) - lateness_us if known else None


def slowest(states: dict[PartitionId, PartitionState], frontier: dict[PartitionId, int | None]) -> int | None:
    """The event time up to which the slowest partition has data in hand; None while one that must speak is silent.

    A partition at its end has nothing to wait for and holds nobody back here.
    """
    lowest: int | None = None
    for partition, state in states.items():
        if partition not in frontier and (state.finished or state.at_end_since is not None):
            continue
        reached = frontier.get(partition, state.clock.highest_us)
        if reached is None:
            if partition in frontier:
                continue  # it has only labels without a time: they wait for their predictions, not for the clock
            return None
        lowest = reached if lowest is None else min(lowest, reached)
    return lowest
