"""How much more a window's sums vary than those of independent rows, read off the baseline's rows in their order.

Traffic is autocorrelated and has rhythms: under AR(1) with 0.9 the mean of a long window varies 19 times as much. The
variance of block sums says so at every length; where it cannot be told from that of independent rows, independence is
taken at its word, since a noisy guess would cost the calibration of all the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_monitor.judge.charts import (
    BAD,
    CELLS,
    CHARTS,
    DOUBLED,
    LOCATION,
    SCALES,
    SHAPE,
    SPREAD,
    WINDOWS,
    Ranks,
    Tables,
)
from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.profile import BinCodes

MOST_ROWS = 1 << 19
"""Half a million rows tell an inflation to 10 % at the longest window; more would cost seconds."""
FEWEST_BLOCKS = 24
EVIDENCE = 4.0
"""Standard errors beyond which rows are not independent: of some 100 scales of 20 features one in 300 by chance."""
MARGIN = 1.0
"""Standard errors added to an inflation that was measured: one that is too small breaks the promise."""
STILL_GROWING = 1.1
"""Beyond the longest length with enough blocks an inflation that grew by more in its last doubling is taken to go on."""


@dataclass(frozen=True, slots=True)
class Dependence:
    """`inflation`: (chart, subject) -> factor (lengths,) of a sum's variance; absent ones are 1.

    For `shape` it is the factor of the chi-square's mean, and `freedom` (subject -> (lengths,)) its degrees of freedom,
    matched to the mean and variance of blocks (Satterthwaite 1946); absent ones are CELLS - 1. Measured at the lengths
    that double; between them they are read off, straight in the logarithm of the length.
    """

    inflation: Mapping[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    freedom: Mapping[int, tuple[float, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.inflation)

    def factors(self, subjects: int) -> Floats:
        """(charts, scales, F)."""
        out = np.ones((len(CHARTS), len(SCALES), subjects))
        for (chart, f), values in self.inflation.items():
            out[CHARTS.index(chart), :, f] = _read_off(values)
        return out

    def freedoms(self, subjects: int) -> Floats:
        """(scales, F)."""
        out = np.full((len(SCALES), subjects), CELLS - 1.0)
        for f, values in self.freedom.items():
            out[:, f] = _read_off(values)
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "inflation": [[chart, f, list(values)] for (chart, f), values in self.inflation.items()],
            "freedom": [[f, list(values)] for f, values in self.freedom.items()],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Dependence:
        return cls(
            {(chart, f): tuple(values) for chart, f, values in body["inflation"]},
            {f: tuple(values) for f, values in body["freedom"]},
        )

    @classmethod
    def of(cls, ranks: Ranks, ranked: BinCodes) -> Dependence:
        """From the ranks (m, F) of the baseline's rows in the order of time."""
        part = ranked[-MOST_ROWS:]
        tables = Tables.of(ranks)
        inflation: dict[tuple[str, int], tuple[float, ...]] = {}
        freedom: dict[int, tuple[float, ...]] = {}
        for f in range(len(ranks)):
            code = part[:, f]
            for chart, table in zip((LOCATION, SPREAD, BAD), tables.scores, strict=True):
                factors = _of_sums(table[f].astype(np.int64)[code])
                if factors is not None:
                    inflation[(chart, f)] = factors
            shape = _of_shape(tables.cell[f][code], tables.cell_weight[f])
            if shape is not None:
                inflation[(SHAPE, f)], freedom[f] = shape
        return cls(inflation, freedom)


def _read_off(values: Sequence[float]) -> Floats:
    """At every length of a window, from those that double."""
    return np.interp(np.log(SCALES), np.log(DOUBLED), values)


def _of_sums(score: Ints) -> tuple[float, ...] | None:
    """The variance of sums of each length over that of independent rows; None where they are independent."""
    n, variance = len(score), float(score.var())
    lengths = [w for w in DOUBLED if n // w >= FEWEST_BLOCKS]
    if not lengths or variance == 0:
        return None
    kurtosis = float(((score - score.mean()) ** 4).mean()) / variance**2
    total = np.concatenate([[0], np.cumsum(score - round(float(score.mean())))])
    measured, errors = [], []
    for w in lengths:
        sums = total[w :: max(1, w // 4)]
        sums = sums - total[: -w : max(1, w // 4)][: len(sums)]
        measured.append(float(np.var(sums)) / (w * variance))
        errors.append(_error(w, n, kurtosis))
    return _judged(measured, errors, len(DOUBLED))


def _of_shape(cell: Ints, weight: Floats) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(factors of the mean, degrees of freedom) of the chi-square of blocks; None where rows are independent."""
    n = len(cell)
    lengths = [w for w in WINDOWS[SHAPE] if n // w >= FEWEST_BLOCKS]
    if not lengths:
        return None
    measured, errors, widths = [], [], []
    for w in lengths:
        blocks = n // w
        counts = np.bincount(np.repeat(np.arange(blocks) * (CELLS + 1), w) + cell[: blocks * w],
                             minlength=blocks * (CELLS + 1)).reshape(blocks, -1)[:, :CELLS]  # fmt: skip
        present = np.maximum(counts.sum(axis=1), 1)
        value = ((counts * weight) ** 2).sum(axis=1) / present - present
        measured.append(float(value.mean()) / (CELLS - 1))
        widths.append(float(value.var()) / (2 * max(float(value.mean()), 1e-9)))
        errors.append(float(np.sqrt(2 / (CELLS - 1) / blocks)))
    factors = _judged(measured, errors, len(WINDOWS[SHAPE]))
    if factors is None:
        return None
    # Variance over twice the mean is the scale of one degree: the mean over it is how many there are.
    width = np.maximum.accumulate(np.maximum(widths, 1.0))
    width = np.append(width, np.full(len(WINDOWS[SHAPE]) - len(width), width[-1]))
    first = len(DOUBLED) - len(WINDOWS[SHAPE])
    freedom = np.clip(np.array(factors) * (CELLS - 1) / width, 1.0, CELLS - 1)
    return ((1.0,) * first + factors, (CELLS - 1.0,) * first + tuple(freedom.tolist()))


def _error(length: int, rows: int, kurtosis: float) -> float:
    """The standard error of an inflation of 1 from overlapping blocks: two thirds of the variance of disjoint ones."""
    return float(np.sqrt(2 / 3 * (2 + (kurtosis - 3) / length) * length / rows))


def _judged(measured: Sequence[float], errors: Sequence[float], scales: int) -> tuple[float, ...] | None:
    """The measured inflations with their margin, never falling, carried on to the longest scale."""
    value, error = np.array(measured), np.array(errors)
    if not (value > 1 + EVIDENCE * error).any():
        return None
    guarded = np.maximum.accumulate(np.maximum(value * (1 + MARGIN * error), 1.0))
    growth = guarded[-1] / guarded[-2] if len(guarded) > 1 else 1.0
    growth = growth if growth > STILL_GROWING else 1.0
    rest = guarded[-1] * growth ** np.arange(1, scales - len(guarded) + 1)
    return tuple(np.concatenate([guarded, rest]).tolist())
