"""Equal-mass bins of a number, learnt from a baseline, with a randomised probability integral transform.

With F the baseline's distribution function, a value x gets u = F(x-) + V (F(x) - F(x-)) and bin floor(K u), where V in
[0, 1) is a hash of the row's id and the subject's name. So u is uniform on the baseline whatever its ties: the
null of every statistic on these bins is free of the data's distribution (Smirnov transform; Rosenblatt 1952).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_monitor.records import Bytes, Floats, Hashes, Ints, Kind
from stream_monitor.summarize.protocol import ABOVE, BELOW, INFINITE, MAIN, MISSING, WRONG_TYPE

ROWS_A_BIN = 8
"""A baseline of fewer than 8 rows a bin gets fewer bins: its masses would be noise."""

_CODE_OF_KIND = np.full(256, WRONG_TYPE, np.uint16)
_CODE_OF_KIND[Kind.MISSING] = MISSING
_CODE_OF_KIND[Kind.INFINITE] = INFINITE


@dataclass(frozen=True, slots=True)
class NumericBins:
    """`edge` (M,): distinct values where F passes k/K; `left`, `right` (M,): baseline rows below, and up to, each."""

    edge: Floats
    left: Ints
    right: Ints
    rows: int
    bins: int
    low: float
    high: float
    centre: float  # the mean
    sd: float  # the population's formula

    @property
    def scale(self) -> float:
        """What deviations from `centre` are measured in: the standard deviation; of a constant its size, or 1."""
        return self.sd or abs(self.centre) or 1.0

    @classmethod
    def learn(cls, values: Floats) -> NumericBins:
        """From the finite values of the baseline, in any order; none at all gives bins nothing falls into."""
        ordered = np.sort(values + 0.0)  # minus zero becomes zero: a sort may leave either first
        rows = len(ordered)
        bins = int(np.clip(rows // ROWS_A_BIN, 1, MAIN))
        cut = -(-np.arange(1, bins) * rows // bins) - 1
        edge = np.unique(ordered[cut]) if rows else np.zeros(0)
        centre, sd = _mean_and_sd(ordered)
        return cls(
            edge=edge,
            left=np.searchsorted(ordered, edge, "left"),
            right=np.searchsorted(ordered, edge, "right"),
            rows=rows,
            bins=bins,
            low=float(ordered[0]) if rows else np.nan,
            high=float(ordered[-1]) if rows else np.nan,
            centre=centre,
            sd=sd,
        )

    def bounds(self) -> Floats:
        """(bins + 1,) the values between which the bins lie: the baseline's quantiles k/bins, from least to largest."""
        cut = -(-np.arange(1, self.bins) * self.rows // self.bins) - 1
        inner = self.edge[np.searchsorted(self.right, cut, "right")] if self.rows else cut + np.nan
        return np.concatenate([[self.low], inner, [self.high]])

    def quantile(self, counts: Ints, share: float) -> float:
        """The value that `share` of the finite values in counts (BINS,) do not exceed, straight lines inside a bin.

        Of values outside the baseline's range only the side is known: they count as its least or largest value. NaN
        without values.
        """
        bounds = self.bounds()
        held = np.concatenate([[counts[BELOW]], counts[: self.bins], [counts[ABOVE]]]).cumsum()
        if not held[-1]:
            return float("nan")
        ends = np.concatenate([[self.low], bounds])
        at = int(np.searchsorted(held, share * held[-1], "left"))
        if at == 0 or at > self.bins:
            return float(bounds[0] if at == 0 else bounds[-1])
        part = (share * held[-1] - held[at - 1]) / (held[at] - held[at - 1])
        return float(ends[at] + part * (ends[at + 1] - ends[at]))

    def encode(self, kind: Bytes, number: Floats, *, id_hi: Hashes, id_lo: Hashes, seed: str) -> np.ndarray[Any, Any]:
        """The code of each cell (n,), uint16."""
        code = _CODE_OF_KIND[kind]
        present = kind == Kind.NUMBER
        if present.all():
            code = self._encode_numbers(number, id_hi, id_lo, seed)
        elif present.any():
            rows = np.flatnonzero(present)
            code[rows] = self._encode_numbers(number[rows], id_hi[rows], id_lo[rows], seed)
        return code

    def _encode_numbers(self, number: Floats, id_hi: Hashes, id_lo: Hashes, seed: str) -> np.ndarray[Any, Any]:
        if not self.rows:
            return np.full(len(number), ABOVE, np.uint16)
        if len(self.edge):
            after = np.concatenate([[0], np.minimum(self.right * self.bins // self.rows, self.bins - 1)])
            place = np.searchsorted(self.edge, number, "left")
            code = after.astype(np.uint16)[place]
            tied = np.flatnonzero(self.edge[np.minimum(place, len(self.edge) - 1)] == number)
            if len(tied):
                code[tied] = self._split(place[tied], tie_breaker(id_hi[tied], id_lo[tied], seed))
        else:
            code = np.zeros(len(number), np.uint16)
        code[number < self.low] = BELOW
        code[number > self.high] = ABOVE
        return code

    def _split(self, edge: Ints, share: Floats) -> np.ndarray[Any, Any]:
        """Spread values equal to an edge over the bins its mass covers."""
        u = (self.left[edge] + share * (self.right[edge] - self.left[edge])) / self.rows
        return np.minimum(u * self.bins, self.bins - 1).astype(np.uint16)

    def to_json(self) -> dict[str, Any]:
        return {
            "edge": self.edge.tolist(),
            "left": self.left.tolist(),
            "right": self.right.tolist(),
            "rows": self.rows,
            "bins": self.bins,
            "low": None if np.isnan(self.low) else self.low,
            "high": None if np.isnan(self.high) else self.high,
            "centre": self.centre,
            "sd": self.sd,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> NumericBins:
        return cls(
            edge=np.array(body["edge"], np.float64),
            left=np.array(body["left"], np.int64),
            right=np.array(body["right"], np.int64),
            rows=int(body["rows"]),
            bins=int(body["bins"]),
            low=np.nan if body["low"] is None else float(body["low"]),
            high=np.nan if body["high"] is None else float(body["high"]),
            centre=float(body["centre"]),
            sd=float(body["sd"]),
        )


def tie_breaker(id_hi: Hashes, id_lo: Hashes, seed: str) -> Floats:
    """A number in [0, 1) for each id, independent between seeds: the finaliser of splitmix64."""
    start = np.uint64((zlib.crc32(seed.encode()) + 1) * 0xD1B54A32D192ED03 % 2**64)
    z = id_lo + id_hi * np.uint64(0x9E3779B97F4A7C15) + start
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mean_and_sd(ordered: Floats) -> tuple[float, float]:
    """Of sorted values; scaled by a power of two on the way, so that no square overflows or vanishes."""
    if not len(ordered) or ordered[0] == ordered[-1]:
        return (float(ordered[0]) if len(ordered) else 0.0), 0.0
    _, exponent = np.frexp(np.abs(ordered[[0, -1]]).max())
    scaled = np.ldexp(ordered, -exponent)
    return float(np.ldexp(scaled.mean(), exponent)), float(np.ldexp(scaled.std(), exponent))
