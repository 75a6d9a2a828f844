"""Cumulative sums of log-likelihood ratios over few cells, with the run length worked out instead of simulated.

A label's outcome falls into one of C cells with known baseline probabilities; an alternative gives each cell another
one. S_t = max(0, S_t-1 + log(q_c / p_c)) (Page 1954) passes a limit soonest where the alternative is the truth
(Moustakides 1986). With finitely many cells S is a Markov chain, so its mean run length is the solution of a linear
system (Brook and Evans 1972): errors of 0 and 1 need no randomised ranks, which would cost them half of the evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize

from stream_monitor.records import Floats, Ints

STEP = 2.0**-20
"""Sums are whole multiples of a millionth of a nat: exact, however the labels are cut into chunks."""
_ANCHOR = 8.0
"""Nats at which the chain is solved; beyond, each further nat multiplies the run length by e (Lorden 1971)."""
_COARSEST = 0.05
_FINER_THAN_A_STEP = 4.0
"""States of the chain lie a twentieth of a nat apart, or a quarter of a step's standard deviation where that is less."""
_MOST_STATES = 600
UNLUCKY = 1.645
UNLUCKY_RATE = 1.7
"""For 95 of 100 baselines the rate is at most 1.7 times the nominal one, as that of the charts of features."""
NEVER = 1e9
"""A limit no sum reaches: a baseline of so few rows cannot tell an alternative so near from its own error."""


@dataclass(frozen=True, slots=True)
class Growth:
    """How the run length grows with the limit: log length = `at` + `slope` (limit - 8 nats); slope 0: it does not."""

    at: float
    slope: float

    @classmethod
    def of(cls, steps: Floats, shares: Floats) -> Growth:
        """Of steps (C,) in nats that come with these probabilities (C,)."""
        if not (shares * steps).sum() < 0:
            return cls(0.0, 0.0)
        return cls(float(np.log(run_length(steps, shares, _ANCHOR))), _exponent(steps, shares))

    def limit(self, run_length: float) -> float:
        """The limit in nats for a mean run length."""
        return _ANCHOR + (float(np.log(run_length)) - self.at) / self.slope if self.slope else NEVER


@dataclass(frozen=True, slots=True)
class Bank:
    """K alternatives over C cells: whole steps (K, C), and for each how its run length grows, also if unlucky."""

    steps: Ints
    growth: tuple[tuple[Growth, Growth], ...]

    @classmethod
    def of(cls, ratios: Floats, shares: Floats, unlucky: Floats) -> Bank:
        """`ratios` (K, C): log-likelihood ratios; `shares` (C,): the baseline's probabilities; `unlucky` (K, C): those
        of a stream without change whose baseline happens to lie toward each alternative, by 1.645 standard errors."""
        whole = np.rint(ratios / STEP).astype(np.int64)
        pairs = zip(whole * STEP, unlucky, strict=True)
        return cls(whole, tuple((Growth.of(step, shares), Growth.of(step, bad)) for step, bad in pairs))

    def limits(self, run_length: float) -> Ints:
        """(K,) so that all together pass theirs once in `run_length` labels: equal parts, added up as if independent."""
        each = run_length * len(self.growth)
        nats = [max(fair.limit(each), bad.limit(each / UNLUCKY_RATE)) for fair, bad in self.growth]
        return np.ceil(np.minimum(np.maximum(nats, 0.5), NEVER) / STEP).astype(np.int64)


def run_length(steps: Floats, shares: Floats, limit: float) -> float:
    """Mean labels until a sum that begins at nothing reaches `limit` nats, on a grid that keeps the mean of each step.

    >>> bool(run_length(np.array([1.0, -1.0]), np.array([0.5, 0.5]), 3.0) == 12)  # the reflected walk: h (h + 1)
    True
    """
    deviation = float(np.sqrt((shares * steps**2).sum() - (shares * steps).sum() ** 2))
    unit = max(min(_COARSEST, deviation / _FINER_THAN_A_STEP), limit / _MOST_STATES)
    states = max(int(np.ceil(limit / unit)), 1)
    unit = limit / states
    move = steps / unit
    low = np.floor(move + 1e-9).astype(np.int64)
    part = np.clip(move - low, 0.0, 1.0)
    chain = np.zeros((states, states + 1))
    row = np.arange(states)
    for to, share, more in zip(low.tolist(), shares.tolist(), part.tolist(), strict=True):
        np.add.at(chain, (row, np.clip(row + to, 0, states)), share * (1 - more))
        np.add.at(chain, (row, np.clip(row + to + 1, 0, states)), share * more)
    return float(np.linalg.solve(np.eye(states) - chain[:, :states], np.ones(states))[0])


def _exponent(steps: Floats, shares: Floats) -> float:
    """The r > 0 at which the mean of exp(r step) is 1: exactly 1 where the shares are those the ratios were taken from."""
    held = shares > 0
    step, share = steps[held], shares[held]
    if not (step > 0).any():
        return 0.0

    def excess(r: float) -> float:
        return float(np.log((share * np.exp(r * step - r * step.max())).sum()) + r * step.max())

    high = 1.0
    while excess(high) <= 0:
        high *= 2
    return float(optimize.brentq(excess, 1e-6, high)) if excess(1e-6) < 0 else 0.0


def tilted(shares: Floats, toward: Floats, rows: float) -> Floats:
    """The shares (C,) moved toward a log ratio (C,) by 1.645 standard errors of a sample of so many rows."""
    deviation = float(np.sqrt(max((shares * toward**2).sum() - (shares * toward).sum() ** 2, 1e-12)))
    moved = shares * np.exp(np.clip(UNLUCKY / (deviation * np.sqrt(rows)) * toward, -50, 50))
    return np.asarray(moved / moved.sum(), np.float64)


def rise(level: Ints, steps: Ints, since: Ints) -> tuple[Ints, Ints]:
    """Sums (n, K) after each of n labels with these steps (n, K), and the labels (n, K) since each was last at nothing.

    `level` and `since` (K,): as they stood before.
    """
    total = level + np.cumsum(steps, axis=0)
    floor = np.minimum(np.minimum.accumulate(total, axis=0), 0)
    sums = total - floor
    row = np.arange(1, len(steps) + 1)[:, None]
    emptied = np.maximum.accumulate(np.where(sums == 0, row, -since), axis=0)
    return sums, row - emptied
