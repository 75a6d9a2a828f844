"""From a model's own probabilities to those its labels bear out: monotone maps fitted on binned labelled rows.

Rules, by the labelled rows of a class:

1. 1,000 rows, 100 of them true and 100 false: isotonic, the least assuming monotone map (pool adjacent violators).
2. Fewer: beta calibration, a logistic map of ln p and ln(1 - p), held to the identity by a prior: the fewer rows, the more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special

from stream_monitor.records import Floats, Ints
from stream_monitor.summarize.scores import middle_of_bin, place_of_bin

ISOTONIC_ROWS = 1_000
"""From about a thousand rows isotonic maps are the better ones (Niculescu-Mizil and Caruana 2005)."""
ISOTONIC_RARER = 100
"""Rows of the rarer outcome: with fewer, the blocks at the rare end are noise."""

PRIOR_DEVIATION = 1.0
"""Of the three weights of a beta map around the identity: models are seldom off by more than a factor e in odds."""


class Calibration(Protocol):
    """A monotone map of probability bins with its uncertainty.

    Laws: `read` is within (0, 1) and does not fall as the bin ascends; `variance` is not negative, and of all-zero
    slopes 0.
    """

    @property
    def name(self) -> str:
        """The kind of the map."""
        ...

    @property
    def rows(self) -> int:
        """The labelled rows it was fitted on."""
        ...

    def read(self, key: Ints) -> Floats:
        """The calibrated probability of bins (n,)."""
        ...

    def variance(self, key: Ints, slope: Floats) -> float:
        """Variance, by the chance of the labels it was fitted on, of the sum of slope * probability over bins."""
        ...


def calibrate(key: Ints, true: Floats, rows: Floats) -> Calibration:
    """The map for labelled rows by ascending bin (n,): so many rows in each, so many of them true."""
    hits, total = float(true.sum()), float(rows.sum())
    if total >= ISOTONIC_ROWS and min(hits, total - hits) >= ISOTONIC_RARER:
        return Isotonic.fit(key, true, rows)
    return Beta.fit(key, true, rows)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Blocks of bins with one rate each, straight lines from centre to centre, level beyond the first and the last.

    Each block is given one more row, true by the model's own mean probability: no block is certain. `place`: centres
    (k,), ascending; `rate`: (k,), not falling; `error`: variance of each rate (k,), as of a share of its rows.
    """

    place: Floats
    rate: Floats
    error: Floats
    rows: int
    name: str = "isotonic"

    @classmethod
    def fit(cls, key: Ints, true: Floats, rows: Floats) -> Isotonic:
        """Of labelled rows by ascending bin."""
        first = pooled(true, rows)
        total, hits, own, where = (
            np.add.reduceat(part, first) for part in (rows, true, rows * middle_of_bin(key), rows * place_of_bin(key))
        )
        hits, total_and_one = hits + own / total, total + 1
        again = pooled(hits, total_and_one)
        total, total_and_one, hits, where = (
            np.add.reduceat(part, again) for part in (total, total_and_one, hits, where)
        )
        rate = hits / total_and_one
        return cls(where / total, rate, rate * (1 - rate) / total_and_one, int(rows.sum()))

    def read(self, key: Ints) -> Floats:
        return np.asarray(np.interp(place_of_bin(key), self.place, self.rate), dtype=np.float64)

    def variance(self, key: Ints, slope: Floats) -> float:
        at = np.clip(np.searchsorted(self.place, place_of_bin(key)), 1, max(len(self.place) - 1, 1))
        if len(self.place) == 1:
            return float(slope.sum() ** 2 * self.error[0])
        left, right = self.place[at - 1], self.place[at]
        share = np.clip((place_of_bin(key) - left) / (right - left), 0.0, 1.0)
        weight = np.bincount(at - 1, slope * (1 - share), len(self.place)) + np.bincount(
            at, slope * share, len(self.place)
        )
        return float((weight**2 * self.error).sum())


def pooled(true: Floats, rows: Floats) -> Ints:
    """Where the blocks of the isotonic regression begin, (k,): pool adjacent violators, whole runs at a time.

    A run of rates that do not rise ends in one block whichever of its pairs is pooled first.

    >>> pooled(np.array([1.0, 0.0, 2.0, 1.0]), np.array([2.0, 2.0, 2.0, 2.0])).tolist()
    [0, 2]
    """
    start = np.arange(len(rows))
    while True:
        rate = true / rows
        rises = np.concatenate([[True], rate[1:] > rate[:-1]])
        if rises.all():
            return start
        first = np.flatnonzero(rises)
        start, true, rows = start[first], np.add.reduceat(true, first), np.add.reduceat(rows, first)


@dataclass(frozen=True, slots=True)
class Beta:
    """expit(c + a ln p - b ln(1 - p)), the mode under normal priors around c = 0 and a = b = 1.

    The right map where the scores of each kind of row are beta distributed (Kull, Silva Filho and Flach 2017); with a = b
    it is Platt's of the logit. `weight` (3,) is c, a, b; `covariance` (3, 3): Laplace's approximation.
    """

    weight: Floats
    covariance: Floats
    rows: int
    name: str = "beta"

    @classmethod
    def fit(cls, key: Ints, true: Floats, rows: Floats) -> Beta:
        """Newton's method on a concave function; no weight may turn the order around."""
        x, found = _parts(key), IDENTITY.copy()
        precision = np.eye(3) / PRIOR_DEVIATION**2
        information = precision
        for _ in range(100):
            p = special.expit(found @ x)
            information = (x * (rows * p * (1 - p))) @ x.T + precision
            step = np.linalg.solve(information, x @ (true - rows * p) - precision @ (found - IDENTITY))
            # Far from the mode a full step may overshoot.
            found = found + step / max(1.0, float(np.abs(step).max()))
            if np.abs(step).max() < 1e-10:
                break
        weight = np.concatenate([found[:1], np.maximum(found[1:], 0.0)])
        return cls(weight, np.linalg.inv(information).astype(np.float64), int(rows.sum()))

    def read(self, key: Ints) -> Floats:
        return np.asarray(np.clip(special.expit(self.weight @ _parts(key)), 1e-12, 1 - 1e-12), dtype=np.float64)

    def variance(self, key: Ints, slope: Floats) -> float:
        p = self.read(key)
        gradient = _parts(key) @ (slope * p * (1 - p))
        return float(gradient @ self.covariance @ gradient)


IDENTITY = np.array([0.0, 1.0, 1.0])


def _parts(key: Ints) -> Floats:
    """1, ln p and -ln(1 - p) of bins, (3, n)."""
    p = middle_of_bin(key)
    return np.asarray(np.stack([np.ones(len(p)), np.log(p), -np.log1p(-p)]), dtype=np.float64)
