"""How many events the charts need to find a change: what a budget of false alarms buys, read off the limits.

A change that stays moves a chart's sum by so much an event, so the sum of the last w events passes its limit after
limit / movement events if these are no more than w. That alone is up to half too long, since chance helps a window over
its limit before its mean is there; so the chance itself is computed (`events_to_find`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from stream_monitor.judge import calibrate, distance
from stream_monitor.judge.charts import (
    BAD,
    CELLS,
    CHARTS,
    LOCATION,
    SCALES,
    SHAPE,
    SPREAD,
    UNIT,
    WINDOWS,
    Limits,
    Ranks,
    Tables,
    stride_of,
)
from stream_monitor.records import Floats
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.profile import Subject
from stream_monitor.summarize.protocol import ABOVE, BELOW, BINS, MAIN, MISSING

SHIFTS = (0.1, 0.25, 0.5, 1.0, 2.0)
POINTS = 0.1
MOST_EVENTS = 2 * SCALES[-1]
"""A change that is not found in twice the longest window is told as never found: the windows only repeat themselves."""
STEPS = 12
"""Halvings of the range from 1 to `MOST_EVENTS`: a quarter of a percent."""
SURE = 1 - 1e-12
PLACES = {chart: [SCALES.index(scale) for scale in scales] for chart, scales in WINDOWS.items()}
"""Where each chart's windows stand among all lengths."""


@dataclass(frozen=True, slots=True)
class Change:
    """One kind of change of one size, in the words of the API: `shift`, `spread`, `largest_share` or `missing`.

    `size` is in standard deviations, a factor, or a difference of shares.
    """

    kind: str
    size: float

    @property
    def name(self) -> str:
        sign = "" if self.kind in ("shift", "spread") else "plus_" if self.size > 0 else "minus_"
        return f"{self.kind}_{sign}{abs(self.size):g}"


CHANGES: tuple[Change, ...] = (
    *(Change("shift", size) for size in SHIFTS),
    Change("spread", 2.0),
    Change("largest_share", -POINTS),
    Change("largest_share", POINTS),
    Change("missing", POINTS),
)


@dataclass(frozen=True, slots=True)
class Charted:
    """What the charts of F subjects are made of: see `Charts`, whose `inflation` and `freedom` these are."""

    ranks: Ranks
    tables: Tables
    limits: Limits
    inflation: Floats  # (charts, scales, F)
    freedom: Floats  # (scales, F)
    subjects: Sequence[Subject]


def normal_limits(limits: Limits) -> tuple[Floats, Floats]:
    """The limits of the shortest and the longest window's location in its standard deviations, (F,) each."""
    ratio = limits.upper[0] / np.maximum(limits.unit[0], 1e-300)
    return ratio[0], ratio[-1]


def events_to_find(charted: Charted, changes: Sequence[Change] = CHANGES) -> Floats:
    """Median number of changed events until a chart alarms, (changes, F): the least n for which

        prod over charts and windows of (1 - p(n)) <= 1/2,   p(n) = P(S > upper or S < lower).

    S, the sum over a window of w events of which k = min(n - (stride - 1) / 2, w) are changed ones, is normal with mean
    k m1 + (w - k) m0 and variance i (k v1 + (w - k) v0): m0, v0 and m1, v1 are the mean and variance of one event's score
    before and after, i the inflation; half a stride passes until the next look. The windows counted are those up to
    the first that holds k events, since longer ones hold the same changed events. Of the bad values' windows only the
    likeliest counts, since few bad ones are shared by all; with the far values of a spread it is so in part, and the
    middle is taken between a product over windows and the likeliest alone. The count of bad values is binomial by its
    mean and variance and has n / w chances once w events have passed. The shape's chi-square is normal with mean i 15 + L
    and variance 2 (i 15)^2 / f + 4 L i 15 / f at L = (k^2 / w) sum((q - p)^2 / p) over cells, f its degrees of freedom.

    NaN where a change cannot be (a shift of a category) or a subject is not judged; inf where half of such changes are
    not found within `MOST_EVENTS`.

    Honest limits: for a sustained change to fresh charts in calm, in events of independent rows (with an inflation the
    variance is right, the order of events is not), and before the gate of `drift.minimum_effect`. Within 25 % of
    simulated medians in 19 of 20 cases, at budgets from 100,000 events for one subject to 26 million for twenty.

    A shift of z is one of normal scores (see `changed`).
    """
    old = changed(charted.ranks, charted.subjects, None)
    moments = [_moments(charted, old, changed(charted.ranks, charted.subjects, change)) for change in changes]
    move = _Move(*(np.stack(part) for part in zip(*moments, strict=True)))
    usable = charted.ranks.readable >= calibrate.MINIMUM_BASELINE_ROWS
    possible = np.isfinite(move.mean1[:, 0]) & usable
    low, high = np.zeros(possible.shape), np.full(possible.shape, np.log(MOST_EVENTS))
    found = _hazard(charted, move, np.exp(high)) >= np.log(2)
    for _ in range(STEPS):
        middle = (low + high) / 2
        is_found = _hazard(charted, move, np.exp(middle)) >= np.log(2)
        low, high = np.where(is_found, low, middle), np.where(is_found, middle, high)
    return np.where(possible, np.where(found, np.exp(high), np.inf), np.nan)


def effects(ranks: Ranks, subjects: Sequence[Subject], changes: Sequence[Change] = CHANGES) -> Floats:
    """The size of each change as `drift.minimum_effect` measures it, (changes, F).

    A shift of z is z; a spread that grows by s moves a normal value by (s - 1) E|z|, E|z| = sqrt(2 / pi); shares by
    Cohen's h. NaN where the change cannot be.
    """
    bad = ranks.bad / max(ranks.rows, 1)
    first = np.array([_largest(ranks, f) for f in range(len(ranks))])
    numeric = np.array([s.is_numeric for s in subjects], np.bool_)
    out = []
    for change in changes:
        if change.kind == "shift":
            effect = np.where(numeric, change.size, np.nan)
        elif change.kind == "spread":
            effect = np.where(numeric, abs(change.size - 1) * np.sqrt(2 / np.pi), np.nan)
        else:
            share = bad if change.kind == "missing" else first
            there = (share + change.size >= 0) & (share + change.size <= 1)
            effect = np.abs(distance.cohens_h(share, np.clip(share + change.size, 0, 1)))
            effect = np.where(there, effect, np.nan)
        out.append(effect)
    return np.stack(out)


def changed(ranks: Ranks, subjects: Sequence[Subject], change: Change | None) -> Floats:
    """Shares (F, BINS) of the ranks' codes after a change; None: before it. NaN rows where it cannot be.

    A shift of z takes the value at rank p to rank Phi(Phi^-1(p) + z), a spread of s to Phi(s Phi^-1(p)): of a normal
    feature that is z standard deviations and s times the spread, of any other the same movement of ranks, a yes or no
    included. The largest category loses to, or gains from, the others in proportion to their shares.
    """
    out = np.full((len(ranks), BINS), np.nan)
    bad = ranks.bad / max(ranks.rows, 1)
    if change is not None and change.kind == "missing":
        bad, change = bad + change.size, None
    known: dict[tuple[int, int, bytes], Floats] = {}
    for f, subject in enumerate(subjects):
        values: Floats | None = None
        if isinstance(subject.bins, Categories):
            if change is None or change.kind == "largest_share":
                values = _category_shares(_largest(ranks, f), 0.0 if change is None else change.size)
        elif change is None or change.kind in ("shift", "spread"):
            tied = _ties(subject.bins)
            key = (int(ranks.bins[f]), int(ranks.readable[f]), tied.tobytes())
            if key not in known:
                known[key] = _normal_shares(key[0], key[1], tied, change)
            values = known[key]
        if values is not None and bad[f] <= 1:
            out[f] = (1 - bad[f]) * values
            out[f, MISSING] = bad[f]
    return out


def _largest(ranks: Ranks, f: int) -> float:
    """Baseline share of the most frequent category; NaN for a number."""
    return float(ranks.mass[f][0]) if f in ranks.mass else np.nan


def _category_shares(largest: float, change: float) -> Floats | None:
    """Codes (BINS,) of a category's ranks once the largest has another share; None where it cannot have it."""
    if not 0 <= largest + change <= 1 or (largest >= 1 and change > 0):
        return None
    out = np.zeros(BINS)
    edges = np.linspace(0, 1, MAIN + 1)
    if largest >= 1:  # what it loses goes to categories that are not known
        out[:MAIN], out[ABOVE] = (1 + change) / MAIN, -change
    else:
        out[:MAIN] = np.diff(np.interp(edges, [0.0, largest, 1.0], [0.0, largest + change, 1.0]))
    return out


def _ties(bins: NumericBins) -> Floats:
    """(ties, 2): the ranks between which equal values lie, where they fill more than a bin."""
    left, right = bins.left / max(bins.rows, 1), bins.right / max(bins.rows, 1)
    wide = (right - left) * bins.bins > 1
    return np.stack([left[wide], right[wide]], axis=1)


def _normal_shares(bins: int, rows: int, ties: Floats, change: Change | None) -> Floats:
    """Codes (BINS,) of a number's ranks after a shift or a spread of normal scores; ties stay ties."""
    shift = change.size if change is not None and change.kind == "shift" else 0.0
    spread = change.size if change is not None and change.kind == "spread" else 1.0
    edges = np.linspace(0, 1, bins + 1)
    inside = ((edges[:, None] > ties[:, 0]) & (edges[:, None] < ties[:, 1])).any(axis=1)
    cuts = np.unique(np.concatenate([edges[~inside], ties.reshape(-1)]))
    beyond = 1 / (rows + 1)  # a baseline's extremes are not those of the traffic
    at = cuts.copy()
    at[0] = 0.0 if (ties[:, 0] <= 0).any() else beyond
    at[-1] = 1.0 if (ties[:, 1] >= 1).any() else 1 - beyond
    with np.errstate(divide="ignore"):
        below = special.ndtr((special.ndtri(at) - shift) / spread)
    out = np.zeros(BINS)
    out[BELOW], out[ABOVE] = below[0], 1 - below[-1]
    out[:bins] = np.diff(np.interp(edges, cuts, below))
    return out


@dataclass(frozen=True, slots=True)
class _Move:
    """One event's scores before and after: (changes, linear charts, F); `apart` (changes, F) of the cells."""

    mean0: Floats
    mean1: Floats
    variance0: Floats
    variance1: Floats
    apart: Floats


def _moments(charted: Charted, old: Floats, new: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    tables = charted.tables
    first, second = [], []
    for share in (old, new):
        first.append(np.stack([(share * s).sum(axis=1) for s in tables.scores]))
        second.append(np.stack([(share * s.astype(np.float64) ** 2).sum(axis=1) for s in tables.scores]))
    variances = [np.maximum(b - a**2, 0.0) for a, b in zip(first, second, strict=True)]
    readable = old.sum(axis=1) - old[:, MISSING]
    p, q = (_cells(tables, share) for share in (old, new))
    # Chi-square compares the readable: the same cells of fewer readable events are no change.
    q = q * (readable / np.maximum(new.sum(axis=1) - new[:, MISSING], 1e-12))[:, None]
    apart = ((q - p) ** 2 * tables.cell_weight**2).sum(axis=1) / np.maximum(readable, 1e-12)
    return (*first, *variances, apart * (new.sum(axis=1) - new[:, MISSING]) / np.maximum(readable, 1e-12))


def _cells(tables: Tables, share: Floats) -> Floats:
    """(F, CELLS) of codes (F, BINS)."""
    f = len(share)
    place = np.arange(f)[:, None] * (CELLS + 1) + tables.cell
    cells = np.bincount(place.reshape(-1), share.reshape(-1), f * (CELLS + 1)).reshape(f, CELLS + 1)
    return np.asarray(cells[:, :CELLS], np.float64)


def _hazard(charted: Charted, move: _Move, n: Floats) -> Floats:
    """-log of the chance that no chart has alarmed after `n` (changes, F) changed events."""
    location, spread = (_survived(_linear_chance(charted, move, chart, n)) for chart in (LOCATION, SPREAD))
    # A few far values pass every limit of the spread at once, and often one of the location's; many do not.
    apart, shared = location.sum(axis=0) + spread.sum(axis=0), np.maximum(location.sum(axis=0), spread.max(axis=0))
    total = (apart + shared) / 2
    if (move.mean1 != move.mean0)[:, 2].any():
        chances = np.maximum(_looked(n, BAD) / _lengths(BAD), 1.0)
        total = total + (_survived(_bad_chance(charted, move, n)) * chances).max(axis=0)
    return np.asarray(total + _survived(_shape_chance(charted, move, n)).sum(axis=0), np.float64)


def _lengths(chart: str) -> Floats:
    """Of the chart's windows (windows, 1, 1), to stand before (changes, F)."""
    return np.array(WINDOWS[chart], np.float64)[:, None, None]


def _looked(n: Floats, chart: str) -> Floats:
    """Changed events at the last look on average, (windows, changes, F)."""
    strides = np.array([stride_of(chart, scale) for scale in WINDOWS[chart]], np.float64)
    return np.asarray(n - (strides[:, None, None] - 1) / 2, np.float64)


def _inside(n: Floats, chart: str) -> Floats:
    """Changed events (windows, changes, F) in each window; NaN in one that tells nothing of its own."""
    w, looked = _lengths(chart), _looked(n, chart)
    shorter = np.concatenate([np.zeros((1, 1, 1)), w[:-1]])
    return np.where((looked > 0) & (n > shorter), np.minimum(looked, w), np.nan)


def _survived(chance: Floats) -> Floats:
    """-log(1 - p); nothing where there is no chance to speak of."""
    return np.asarray(-np.log1p(-np.minimum(np.nan_to_num(chance), SURE)), np.float64)


def _linear_chance(charted: Charted, move: _Move, chart: str, n: Floats) -> Floats:
    c, places, inside = CHARTS.index(chart), PLACES[chart], _inside(n, chart)
    old = _lengths(chart) - inside
    mean = inside * move.mean1[:, c] + old * move.mean0[:, c]
    variance = (inside * move.variance1[:, c] + old * move.variance0[:, c]) * charted.inflation[c, places][:, None]
    deviation = np.sqrt(np.maximum(variance, UNIT**2 * 1e-12))
    upper, lower = (bound[c][places][:, None] for bound in (charted.limits.upper, charted.limits.lower))
    return np.asarray(special.ndtr((mean - upper) / deviation) + special.ndtr((lower - mean) / deviation), np.float64)


def _bad_chance(charted: Charted, move: _Move, n: Floats) -> Floats:
    """P(K >= limit + 1), K binomial of the sum's mean and variance: a regularised incomplete beta."""
    places, inside = PLACES[BAD], _inside(n, BAD)
    old, inflation = _lengths(BAD) - inside, charted.inflation[2, places][:, None]
    wanted = (charted.limits.upper[2][places][:, None] + 1) / inflation
    mean = (inside * move.mean1[:, 2] + old * move.mean0[:, 2]) / inflation
    variance = (inside * move.variance1[:, 2] + old * move.variance0[:, 2]) / inflation
    with np.errstate(divide="ignore", invalid="ignore"):
        trials = mean**2 / np.maximum(mean - variance, 1e-9 * mean)
        others = trials - wanted + 1
        chance = special.betainc(wanted, np.maximum(others, 1e-9), np.clip(mean / trials, 0.0, 1.0))
    return np.where(others > 0, chance, 0.0)


def _shape_chance(charted: Charted, move: _Move, n: Floats) -> Floats:
    places, inside = PLACES[SHAPE], _inside(n, SHAPE)
    mean = charted.inflation[3, places][:, None] * (CELLS - 1)
    width = mean / charted.freedom[places][:, None]
    apart = inside**2 / _lengths(SHAPE) * move.apart
    deviation = np.sqrt(2 * mean * width + 4 * apart * width)
    limit = np.minimum(charted.limits.shape[places], 1e12)[:, None]
    return np.asarray(special.ndtr((mean + apart - limit) / deviation), np.float64)
