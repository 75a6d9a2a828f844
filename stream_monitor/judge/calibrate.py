"""What each statistic does when nothing has changed: its mean and the value it passes with a given probability.

People say how often they may be woken for nothing (`Budget`); from that and the sample sizes come the thresholds.
`n` is the number of readable window rows, `m` of readable baseline rows, `F` the number of subjects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy import special

from stream_monitor.errors import UsageError
from stream_monitor.judge.distance import shares
from stream_monitor.records import Flags, Floats, Ints

MINIMUM_ROWS = 200
# Below 200 rows only a shift beyond half a standard deviation could pass a threshold of one in a million, and four
# cells of 30 rows, the fewest a chi-square can use, would not fill at a readable baseline of the same size.
MINIMUM_BASELINE_ROWS = 200
LABELS_SHARE = 0.2  # the design's split: a fifth of the budget for what labels show
LARGEST_ALPHA = 0.05  # a budget generous beyond this asks for noise; one window in twenty is as much as we send
NUMERIC_STATISTICS = ("psi", "jensen_shannon", "ks", "wasserstein", "chi_square")
CATEGORICAL_STATISTICS = ("psi", "jensen_shannon", "linf", "chi_square")
NUMERIC_QUALITY = ("missing_ratio", "wrong_type_ratio", "infinite_ratio", "out_of_range_ratio")
CATEGORICAL_QUALITY = ("missing_ratio", "wrong_type_ratio", "unseen_ratio")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BUDGET = re.compile(r"\s*(\d+(?:\.\d+)?)\s+per\s+(\d+(?:\.\d+)?)\s*(s|m|h|d|events?)\s*")


@dataclass(frozen=True, slots=True)
class Null:
    """A statistic under no change, for F subjects: its mean, and what it passes with the chosen probability."""

    expected: Floats  # (F,)
    threshold: Floats  # (F,)


@dataclass(frozen=True, slots=True)
class Budget:
    """How many false incidents a person accepts: `incidents` per `seconds` of event time, or per `events`.

    >>> Budget.parse("1 per 30d")
    Budget(incidents=1.0, seconds=2592000.0, events=None)
    >>> Budget.parse("2 per 100000 events").events
    100000.0
    """

    incidents: float
    seconds: float | None = None
    events: float | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `1 per 30d` or `1 per 100000 events`; raises UsageError on anything else and on zero."""
        found = _BUDGET.fullmatch(text)
        if found is None or float(found[1]) <= 0 or float(found[2]) <= 0:
            raise UsageError(f"false_alarms is {text!r}: write it like '1 per 30d' or '1 per 100000 events'")
        incidents, amount, unit = float(found[1]), float(found[2]), found[3]
        if unit.startswith("event"):
            return cls(incidents, events=amount)
        return cls(incidents, seconds=amount * _UNIT_SECONDS[unit])

    def events_between(self, rate: float) -> float:
        """Events between two false incidents, at `rate` events a second."""
        return (self.events if self.events is not None else (self.seconds or np.inf) * rate) / self.incidents

    def alpha(self, *, window_seconds: float, windows: int, tests: int, rows: float = 0.0) -> float:
        """The false-alarm probability of one of a window's `tests` on inference data (Bonferroni).

        Four fifths of the budget go to data, in equal parts to the `windows` window lengths; a length spends its part
        over the windows that end while the budget's period passes, and each window over its `tests`: statistics over
        all subjects, segments and references. `rows` in the window matter to a budget counted in events. What opens
        incidents of features and predictions are the charts, to which the same part is given; windows size what they find.
        """
        return self._share(1 - LABELS_SHARE, window_seconds / windows, rows / windows, tests)

    def label_alpha(self, *, window_seconds: float, windows: int, tests: int, rows: float = 0.0) -> float:
        """As `alpha`, for what joined labels show: the remaining fifth; `rows` are the labelled predictions."""
        return self._share(LABELS_SHARE, window_seconds / windows, rows / windows, tests)

    def _share(self, part: float, seconds: float, rows: float, tests: int) -> float:
        passed = rows / self.events if self.events is not None else seconds / (self.seconds or np.inf)
        return float(min(part * self.incidents * passed / max(tests, 1), LARGEST_ALPHA))


def comparisons(numeric: Flags) -> int:
    """How many statistics one window of these subjects is judged by, data quality included."""
    of_numeric = len(NUMERIC_STATISTICS) + len(NUMERIC_QUALITY)
    of_categorical = len(CATEGORICAL_STATISTICS) + len(CATEGORICAL_QUALITY)
    return int(numeric.sum()) * of_numeric + int((~numeric).sum()) * of_categorical


def chi_square_null(*, cells: Ints, alpha: float) -> Null:
    """Chi-square with `cells` - 1 degrees of freedom; a lone cell compares equal, so both are 0."""
    freedom = np.maximum(cells - 1, 0).astype(np.float64)
    return Null(freedom, _chi_square_quantile(freedom, alpha))


def psi_null(n: Ints, m: Ints, *, cells: Ints, alpha: float) -> Null:
    """(1/n + 1/m) chi-square with `cells` - 1 degrees of freedom (Yurdakul 2018).

    With one fixed baseline the rate is conditional on it. Deep in the tail the factor (1 + n/m) nearly covers that:
    at alpha 1e-6 the threshold that holds for 95 of 100 baselines lies 3 % higher at n = m / 10, 1 % at n = m.
    """
    null = chi_square_null(cells=cells, alpha=alpha)
    spread = _spread(n, m)
    return Null(spread * null.expected, spread * null.threshold)


def jensen_shannon_null(n: Ints, m: Ints, *, cells: Ints, alpha: float) -> Null:
    """Root of (1/n + 1/m) / (8 ln 2) chi-square: the second-order expansion of the divergence in bits.

    The mean of the root is that of a chi variable, sqrt(2) gamma((k + 1) / 2) / gamma(k / 2).
    """
    freedom = np.maximum(cells - 1, 0).astype(np.float64)
    unit = _spread(n, m) / (8 * np.log(2))
    with np.errstate(invalid="ignore"):
        chi = np.sqrt(2) * np.exp(special.gammaln((freedom + 1) / 2) - special.gammaln(freedom / 2))
    chi = np.where(freedom > 0, chi, 0.0)
    return Null(np.sqrt(unit) * chi, np.sqrt(unit * _chi_square_quantile(freedom, alpha)))


def ks_null(n: Ints, m: Ints, *, alpha: float) -> Null:
    """Kolmogorov's distribution at r = sqrt(n m / (n + m)), with Stephens' r + 0.12 + 0.11 / r for small samples.

    Its mean is sqrt(pi / 2) ln 2. Bins make the test conservative, never liberal.
    """
    root = np.sqrt(1 / _spread(n, m))
    sharpened = root + 0.12 + 0.11 / root
    return Null(np.sqrt(np.pi / 2) * np.log(2) / sharpened, special.kolmogi(alpha) / sharpened)


def wasserstein_null(n: Ints, m: Ints, *, baseline: Ints, positions: Floats, scale: Floats, alpha: float) -> Null:
    """The integral of the absolute value of a Brownian bridge run along the baseline's own distribution.

    `baseline` (F, K) counts at `positions` (F, K), in units of `scale` (F,). With gap B(x) = sqrt(n m / (n + m)) (F_w -
    F_b) the distance is int |B|. Its mean is int sqrt(2/pi F (1 - F)) dx. Of all directions a mere shift of the mean
    varies most, so far in the tail the bridge is z b(x) + R(x): z the standardised difference of means, b >= 0 the
    bridge's covariance with it, R the rest with int R = 0. Given z the distance is z int b plus what R adds where
    z b is small, a folded normal's excess. z is taken at alpha / 2 for a second direction, a change of spread, which
    under heavy tails varies as much; and corrected for the skewness of a mean of few rows (Cornish and Fisher).
    Checked by simulation on normal, uniform, skewed, two-valued and heavy-tailed baselines: rates of 0.3 to 1.1 alpha.
    """
    p = shares(baseline)
    gaps = np.diff(positions, axis=1) / scale[:, None]
    below = np.clip(np.cumsum(p, axis=1)[:, :-1], 0.0, 1.0)
    variance = below * (1 - below)
    centred = (positions - (p * positions).sum(axis=1, keepdims=True)) / scale[:, None]
    reach = np.maximum(np.cumsum((p * centred)[:, ::-1], axis=1)[:, ::-1][:, 1:], 0.0)  # E[(X - mean) 1(X > x)]
    sd = np.sqrt(np.maximum((gaps * reach).sum(axis=1), 1e-300))
    along = reach / sd[:, None]
    across = np.sqrt(np.maximum(variance - along**2, 1e-30))
    with np.errstate(invalid="ignore", divide="ignore"):  # a constant has no skewness, and no distance either
        skewness = np.nan_to_num((p * centred**3).sum(axis=1) / sd**3, posinf=0.0, neginf=0.0)
    z = _skewed(_two_sided(alpha / 2), skewness * _asymmetry(n, m))
    ratio = z[:, None] * along / across
    density = np.exp(-np.minimum(ratio**2 / 2, 700.0)) / np.sqrt(2 * np.pi)
    excess = 2 * across * (density - ratio * special.ndtr(-ratio))
    root = np.sqrt(_spread(n, m))
    mean = np.sqrt(2 / np.pi) * (gaps * np.sqrt(variance)).sum(axis=1)
    return Null(root * mean, root * (z * sd + (gaps * excess).sum(axis=1)))


def linf_null(n: Ints, m: Ints, *, pooled: Ints, alpha: float) -> Null:
    """The largest of K differences of binomial shares; `pooled` (F, K) are both samples' counts together.

    Each category gets alpha over the number of categories that can compete at this depth (one whose standard
    deviation is r times the largest competes with weight r exp(-z^2 (1 / r^2 - 1) / 2)), at a normal quantile
    corrected for the binomial's skewness; the threshold is the largest of theirs. The mean is that of the largest
    of as many independent half-normals, less one for the shares' fixed sum.
    """
    total = np.maximum(pooled.sum(axis=1, keepdims=True), 1) + 1.0
    p = np.clip((pooled + 0.5) / total, 0.0, 1 - 0.5 / total)
    sd = np.sqrt(p * (1 - p))
    relative = sd / sd.max(axis=1, keepdims=True)
    equals = (relative**2).sum(axis=1)
    free = (equals - 1) / equals  # K differences that sum to zero are K - 1
    rivals = (relative * np.exp(-(_two_sided(alpha) ** 2) / 2 * (1 / relative**2 - 1))).sum(axis=1)
    skewness = (1 - 2 * p) / sd * _asymmetry(n, m)[:, None]
    quantile = _skewed(_two_sided(alpha / np.maximum(rivals * free, 1.0))[:, None], skewness)
    root = np.sqrt(_spread(n, m))
    return Null(root * _largest_half_normal(sd, free), root * (quantile * sd).max(axis=1))


def upper_quantile(n: Ints, m: Ints, *, skewness: float, alpha: float) -> Floats:
    """What a standardised difference of means of n and m such rows passes with probability alpha, one-sided."""
    return _skewed(_two_sided(2 * alpha), skewness * _asymmetry(n, m))


def unseen_allowance(baseline: Ints) -> Ints:
    """Baseline rows that stand for categories it does not know, (F,): its unseen rows and its singletons.

    The share of rows in categories a sample has missed is about the share of categories it met once (Good and
    Turing). `baseline` (F, K) is named categories with the unseen last. Honest for baselines ten times the window;
    at equal sizes a missed category comes several rows at a time and alarms up to seven times too often.
    """
    return np.asarray(baseline[:, -1] + (baseline[:, :-1] == 1).sum(axis=1), dtype=np.int64)


def ratio_null(n: Ints, m: Ints, *, hits: Ints, alpha: float) -> Null:
    """A share that may rise: Fisher's test, one-sided, of a baseline with `hits` of m rows against n window rows.

    The threshold is the largest share that is not yet evidence. One-sided, since fewer missing values are no fault of
    the data; what fills them in shows as drift. Right at every size; discreteness makes it conservative.
    """
    limit = largest_quiet_count(hits, n, m, alpha)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Null(hits / m, limit / n)


def largest_quiet_count(hits: Ints, n: Ints, m: Ints, alpha: float) -> Ints:
    """The largest k of n (F,) for which seeing k or more is likelier than alpha, after `hits` of m: a bisection."""
    pooled = (hits + 1) / (m + 1)
    wide = n * pooled + (_two_sided(alpha) + 3) ** 2 * (1 + np.sqrt(n * pooled * (1 + n / np.maximum(m, 1))))
    low = np.zeros_like(n)
    high = np.minimum(n + 1, np.ceil(wide).astype(np.int64))
    while (short := (high <= n) & (_rise_probability(high, hits, n, m) > alpha)).any():
        high = np.where(short, np.minimum(n + 1, 2 * high), high)
    while (high - low > 1).any():
        middle = (low + high) // 2
        quiet = _rise_probability(middle, hits, n, m) > alpha
        low, high = np.where(quiet, middle, low), np.where(quiet, high, middle)
    return low


def _rise_probability(k: Ints, hits: Ints, n: Ints, m: Ints) -> Floats:
    """P(K >= k) when k + hits marked rows are split between n and m: binomial, as a regularised incomplete beta.

    Counts are divided by 1 - r, r the pooled share, which gives the binomial the hypergeometric's variance: exact for
    rare hits, within a row or two of Fisher's test up to r = 0.9 (measured), and a thousand times faster.
    """
    share = np.minimum((k + hits) / np.maximum(n + m, 1), 1 - 1e-6)
    scaled, others = k / (1 - share), hits / (1 - share)
    split = n / np.maximum(n + m, 1)
    return np.where(k > 0, special.betainc(np.maximum(scaled, 1e-9), others + 1, split), 1.0)


def _largest_half_normal(sd: Floats, free: Floats) -> Floats:
    """Mean of the largest of |N(0, sd_k^2)|: the integral of its survival; `free` discounts their dependence."""
    top = -np.sort(-sd, axis=1)[:, :32]
    grid = np.linspace(0.0, 5.0, 40)
    scaled = grid[:, None, None] * top[:, :1] / np.maximum(top, 1e-300)
    below = np.log1p(-np.minimum(2 * special.ndtr(-scaled), 1 - 1e-15)).sum(axis=2)
    return np.asarray(np.trapezoid(1 - np.exp(below * free), grid, axis=0) * top[:, 0], dtype=np.float64)


def _chi_square_quantile(freedom: Floats, alpha: float) -> Floats:
    return np.where(freedom > 0, special.chdtri(np.maximum(freedom, 1), alpha), 0.0)


def _two_sided(alpha: float | Floats) -> Floats:
    return np.asarray(-special.ndtri(np.asarray(alpha) / 2), dtype=np.float64)


def _skewed(z: Floats, skewness: Floats) -> Floats:
    """The first Cornish-Fisher term, on the side where the skewness lengthens the tail."""
    return np.asarray(z + np.abs(skewness) * np.maximum(z * z - 1, 0) / 6, dtype=np.float64)


def _spread(n: Ints, m: Ints) -> Floats:
    with np.errstate(divide="ignore"):
        return np.asarray(1 / n + 1 / m, dtype=np.float64)


def _asymmetry(n: Ints, m: Ints) -> Floats:
    """What is left of a skewness in the difference of two means: |1/n^2 - 1/m^2| / (1/n + 1/m)^1.5."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.abs(1 / n**2.0 - 1 / m**2.0) / _spread(n, m) ** 1.5, dtype=np.float64)
