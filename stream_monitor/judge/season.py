"""The rhythm of days or weeks taken out of ranks: a value is judged by the same hour of the baseline.

For every hour of the day (or of the week) the baseline has a distribution function over its own ranks; between the
middles of two hours the functions are mixed in proportion. What is left is uniform again while only the rhythm goes on.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_monitor.errors import StateError
from stream_monitor.judge import calibrate
from stream_monitor.records import MICROSECONDS, NO_TIME, Floats, Hashes, Ints
from stream_monitor.summarize.profile import BinCodes
from stream_monitor.summarize.protocol import MAIN

HOUR_US = 3_600 * MICROSECONDS
PERIODS = {"daily": 24, "weekly": 168}
"""Hours in a period. By UTC, since neither noon nor Monday has to be known: only that the rhythm comes back."""
KNOTS = 128
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Season:
    """`cdf` (hours, F, KNOTS + 1): share of the hour's ranks below k / KNOTS; `rows` (hours,) of the baseline."""

    cdf: NDArray[np.float32]
    rows: Ints

    @property
    def covered(self) -> int:
        """Hours of the period with enough rows to judge by."""
        return int((self.rows >= calibrate.MINIMUM_BASELINE_ROWS).sum())

    @property
    def is_usable(self) -> bool:
        """Whether every hour has enough rows: one that has not would be judged by chance."""
        return self.covered == len(self.rows)

    @classmethod
    def of(cls, period: str, ranked: BinCodes, time_us: Ints, bins: Ints) -> Season:
        """From the ranks (m, F) of the baseline's rows, of `bins` (F,) bins each, and their times; NO_TIME is left out."""
        hours = PERIODS[period]
        timed = np.flatnonzero(time_us != NO_TIME)
        hour = (time_us[timed] // HOUR_US) % hours
        rows = np.bincount(hour, minlength=hours).astype(np.int64)
        subjects = ranked.shape[1]
        cdf = np.empty((hours, subjects, KNOTS + 1), np.float32)
        for f in range(subjects):
            code = ranked[timed, f]
            held = np.flatnonzero(code < MAIN)
            # Each bin's rows lie evenly over it: a bin of a small baseline covers several knots.
            table = np.bincount(hour[held] * MAIN + code[held], minlength=hours * MAIN).reshape(hours, MAIN)
            below = np.concatenate([np.zeros((hours, 1)), np.cumsum(table, axis=1)], axis=1)
            at = np.linspace(0, 1, KNOTS + 1) * bins[f]
            low = np.minimum(at.astype(np.int64), MAIN - 1)
            value = below[:, low] + (at - low) * (below[:, low + 1] - below[:, low])
            cdf[:, f] = value / np.maximum(below[:, -1:], 1)
        return cls(cdf, rows)

    def apply(self, ranked: BinCodes, time_us: Ints, id_lo: Hashes, bins: Ints) -> BinCodes:
        """Ranks (n, F) within their hour, on 256 bins; what is no rank stays as it is."""
        out = ranked.copy()
        hours = len(self.rows)
        place = time_us / HOUR_US - 0.5
        first = np.floor(place).astype(np.int64)
        # One hash a row and a step a subject: within a bin where a value lies is anybody's guess.
        share = (id_lo >> np.uint64(11)).astype(np.float64) * 2.0**-53
        step = np.arange(ranked.shape[1]) * _GOLDEN
        for hour in np.unique(first).tolist():
            row = np.flatnonzero(first == hour)
            code = ranked[row]
            u = np.minimum((code + (share[row, None] + step) % 1.0) / bins, 1 - 1e-9)
            weight = (place[row] - hour)[:, None]
            mixed = (1 - weight) * self._below(hour % hours, u) + weight * self._below((hour + 1) % hours, u)
            out[row] = np.where(code < MAIN, np.minimum(mixed * MAIN, MAIN - 1).astype(np.uint16), code)
        return out

    def _below(self, hour: int, u: Floats) -> Floats:
        at = u * KNOTS
        knot = at.astype(np.int64)
        subject = np.arange(u.shape[1])
        table = self.cdf[hour]
        low = table[subject, knot]
        return np.asarray(low + (at - knot) * (table[subject, knot + 1] - low), np.float64)

    def to_bytes(self) -> bytes:
        """Compact; the file it stands in compresses it."""
        hours, subjects, _ = self.cdf.shape
        return (
            struct.pack("<II", hours, subjects) + self.rows.astype("<i8").tobytes() + self.cdf.astype("<f4").tobytes()
        )

    @classmethod
    def from_bytes(cls, body: bytes) -> Season:
        """What `to_bytes` wrote; raises StateError for anything else."""
        try:
            hours, subjects = struct.unpack_from("<II", body)
            rows = np.frombuffer(body, "<i8", hours, 8).astype(np.int64)
            cdf = np.frombuffer(body, "<f4", -1, 8 + 8 * hours).reshape(hours, subjects, KNOTS + 1)
        except (struct.error, ValueError) as error:
            raise StateError(f"a stored rhythm is damaged: {error}") from error
        return cls(cdf.astype(np.float32), rows)
