"""The charts of one line kept to its part of the false-alarm budget, whatever the traffic."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import zstandard

from stream_monitor.errors import StateError
from stream_monitor.judge import calibrate, hazard
from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.charts import Charts, Found, OtherFormatError, Ranks
from stream_monitor.judge.dependence import Dependence
from stream_monitor.judge.season import PERIODS, Season
from stream_monitor.records import MICROSECONDS, Floats, Hashes, Ints
from stream_monitor.summarize.profile import BinCodes

FIRST_MARK = 256
LAST_MARK = 65_536
"""The rate of events is read after 256 events, 512, ... 65,536 and then every 65,536: it enters by its logarithm only."""
MOST_ROWS = 4_096
MOST_VALUES = 1 << 17
"""Rows, and values, the charts take at once: what lies between sums and looks is then some 15 MB."""
ASSUMED_RATE = 10.0
"""Events a second until the first reading. A limit is off by a fortieth where the truth is 1 or 100."""


@dataclass(slots=True)
class Traffic:
    """Events a second of event time, over the last one to two marks."""

    events: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)  # (events, time_us) at the last two marks
    rate: float = ASSUMED_RATE

    def until_mark(self) -> int:
        """Events left before the next reading."""
        return self._next() - self.events

    def _next(self) -> int:
        if self.events >= LAST_MARK:
            return (self.events // LAST_MARK + 1) * LAST_MARK
        return max(FIRST_MARK, 1 << self.events.bit_length())

    def add(self, times: Ints) -> bool:
        """Count events in order, at most up to the next mark; whether the rate was read anew."""
        if not len(times):
            return False
        if not self.marks:
            self.marks.append((0, int(times[0])))
        mark = self._next()
        self.events += len(times)
        if self.events < mark:
            return False
        events, since = self.marks[0]
        passed = (int(times[-1]) - since) / MICROSECONDS
        self.marks = [*self.marks[-1:], (self.events, int(times[-1]))]
        if passed <= 0:
            return False
        self.rate = (self.events - events) / passed
        return True


@dataclass(slots=True)
class Watch:
    """Charts, and the rate at which they may alarm: `share` of the `budget` of a model, over all usable subjects."""

    ranks: Ranks
    budget: Budget
    share: float
    dependence: Dependence = field(default_factory=Dependence)
    season: Season | None = None  # take this rhythm out; `dependence` is then of what is left
    charts: Charts = field(init=False)
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        inflation, freedom = self._factors()
        self.charts = Charts(self._judged, inflation, freedom, self.hazard())

    @classmethod
    def of(
        cls, baseline: Baseline, budget: Budget, share: float, *, seasonality: str, traffic: Traffic | None = None
    ) -> Watch:
        """Of a baseline; its rhythm is taken out where one is wanted and the baseline covers it (`season` says so)."""
        season, dependence = baseline.season, baseline.season_dependence
        if seasonality == "none" or season is None or not season.is_usable or len(season.rows) != PERIODS[seasonality]:
            season, dependence = None, baseline.dependence
        return cls(Ranks.of(baseline.profile), budget, share, dependence, season, traffic=traffic or Traffic())

    @property
    def _judged(self) -> Ranks:
        return self.ranks if self.season is None else self.ranks.within(self.season)

    def _factors(self) -> tuple[Floats, Floats]:
        return self.dependence.factors(len(self.ranks)), self.dependence.freedoms(len(self.ranks))

    @property
    def subjects(self) -> int:
        """Subjects with enough baseline rows to be judged at all."""
        return int((self.ranks.readable >= calibrate.MINIMUM_BASELINE_ROWS).sum())

    def run_length(self) -> float:
        """Events of this line between false alarms, at the rate of events as last read."""
        return self.budget.events_between(self.traffic.rate) / self.share

    def hazard(self) -> float:
        """The nominal rate of each subject's charts."""
        return hazard.nominal_rate(self.run_length(), max(self.subjects, 1))

    def update(
        self,
        code: BinCodes,
        id_hi: Hashes,
        id_lo: Hashes,
        times: Ints,
        *,
        matters: Callable[[Found], bool] | None = None,
    ) -> list[Found]:
        """Take rows in order; what was found, by time. See `Charts.update`."""
        ranked = self.ranks.encode(code, id_hi, id_lo)
        if self.season is not None:
            ranked = self.season.apply(ranked, times, id_lo, self.ranks.bins)
        found: list[Found] = []
        start = 0
        while start < len(code):
            most = min(MOST_ROWS, max(FIRST_MARK, MOST_VALUES // max(len(self.ranks), 1)))
            stop = min(len(code), start + min(self.traffic.until_mark(), most))
            part, asked = slice(start, stop), _shifted(matters, start)
            found += [
                replace(f, at=f.at + start)
                for f in self.charts.update(code[part], ranked[part], times[part], matters=asked)
            ]
            if self.traffic.add(times[part]) and self.budget.events is None:
                self.charts.set_hazard(self.hazard())
            start = stop
        return found

    def to_bytes(self) -> bytes:
        """The whole state but what the baseline and the configuration say."""
        head = json.dumps([self.traffic.events, self.traffic.marks, self.traffic.rate]).encode()
        return struct.pack("<I", len(head)) + head + self.charts.to_bytes()

    def restore(self, state: bytes) -> bool:
        """Become what was stored, at the budget of today's configuration; raises StateError if it does not fit.

        False: the charts are those of an earlier version of this program, and begin anew at the rate that was stored.
        """
        try:
            (size,) = struct.unpack_from("<I", state)
            events, marks, rate = json.loads(state[4 : 4 + size])
            self.traffic = Traffic(events, [(n, t) for n, t in marks], rate)
        except (struct.error, ValueError, TypeError) as error:
            raise StateError(f"the state of a watch cannot be read: {error}") from error
        inflation, freedom = self._factors()
        try:
            self.charts = Charts.from_bytes(state[4 + size :], self._judged, inflation=inflation, freedom=freedom)
        except OtherFormatError:
            self.charts = Charts(self._judged, inflation, freedom, self.hazard())
            return False
        self.charts.set_hazard(self.hazard())
        return True


def _shifted(matters: Callable[[Found], bool] | None, rows: int) -> Callable[[Found], bool] | None:
    """The same question about rows that are counted from `rows` on."""
    return None if matters is None else lambda found: matters(replace(found, at=found.at + rows))


def delta_of(code: BinCodes, id_hi: Hashes, id_lo: Hashes, times: Ints) -> bytes:
    """Rows that a watch was given, to be given again after a restart."""
    parts = (code.astype("<u2"), id_hi.astype("<u8"), id_lo.astype("<u8"), times.astype("<i8"))
    return struct.pack("<II", *code.shape) + b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


def compressed(body: bytes) -> bytes:
    """Charts or rows as they are stored: a third to a half of their size."""
    return zstandard.ZstdCompressor(level=1).compress(body)


def decompressed(body: bytes) -> bytes:
    """What `compressed` was given; raises StateError if it is damaged."""
    try:
        return zstandard.decompress(body)
    except zstandard.ZstdError as error:
        raise StateError(f"the stored charts are damaged: {error}") from error


def rows_of(delta: bytes) -> tuple[BinCodes, Hashes, Hashes, Ints]:
    """What `delta_of` wrote."""
    rows, subjects = struct.unpack_from("<II", delta)
    at = 8 + 2 * rows * subjects
    code = np.frombuffer(delta[8:at], "<u2").reshape(rows, subjects)
    id_hi, id_lo, times = (
        np.frombuffer(delta[at + 8 * rows * k : at + 8 * rows * (k + 1)], kind)
        for k, kind in enumerate(("<u8", "<u8", "<i8"))
    )
    return code, id_hi, id_lo, times
