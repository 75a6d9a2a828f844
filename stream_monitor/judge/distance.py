"""How far a window's counts lie from the baseline's: six statistics, over all subjects at once.

`F` is the number of subjects. Everything here reads integer counts (and, for Wasserstein, where on the number line
the baseline's bins lie), so the value does not depend on the order in which the events came.
"""

from __future__ import annotations

import numpy as np

from stream_monitor.records import Flags, Floats, Ints
from stream_monitor.summarize.protocol import ABOVE, BELOW, MAIN, UNSEEN

CELLS = 32
# A chi-square wants cells, not bins: its null needs some 30 rows a cell before its tail can be trusted at one in a
# million (measured: at 6 rows a cell Jensen-Shannon fires ten times too often at 1e-5, at 30 within a factor of 1.3),
# and power against smooth shifts falls with every further cell. 32 cells cost little power and are full at 960 rows.
ROWS_PER_CELL = 30
ROWS_PER_CATEGORY = 20  # categories are few and named, so a rarer one may keep its own cell
FEWEST_CELLS = 4
SMOOTHING = 0.5  # Jeffreys' half a row a cell: a logarithm of an empty cell stays finite, the mean under the null holds


def ordered(counts: Ints) -> Ints:
    """Counts (F, BINS) of numeric subjects in the order of their values: below, the main bins, above: (F, MAIN + 2)."""
    return np.concatenate((counts[:, BELOW : BELOW + 1], counts[:, :MAIN], counts[:, ABOVE : ABOVE + 1]), axis=1)


def named(counts: Ints) -> Ints:
    """Counts (F, BINS) of categorical subjects, category by category and the unseen last: (F, MAIN + 1)."""
    return np.concatenate((counts[:, :MAIN], counts[:, UNSEEN : UNSEEN + 1]), axis=1)


def readable(counts: Ints, numeric: Flags) -> Ints:
    """Rows whose value could be read, (F,): neither missing, nor of a wrong type, nor infinite."""
    outside = np.where(numeric, counts[:, BELOW] + counts[:, ABOVE], counts[:, UNSEEN])
    return np.asarray(counts[:, :MAIN].sum(axis=1) + outside, dtype=np.int64)


def cells(baseline: Ints, window: Ints, numeric: Flags) -> tuple[Ints, Ints]:
    """Both count matrices (F, BINS) on the same coarser cells, (F, CELLS + 1): what PSI, JS and chi-square compare.

    Numeric: neighbouring bins of about equal baseline mass, the outermost open to below and above (a baseline has no
    row beyond its own extremes, so a cell of their own would have no null). Categorical: the most frequent categories
    that may expect `ROWS_PER_CATEGORY` rows keep a cell each; the rest and the unseen share the last one, joined by
    the rarest kept category when they are too few for a cell: one unseen row against an empty cell of a long baseline
    would look like a miracle. Frequent means in both samples together: chosen by the baseline alone, the chosen would
    be those it overstates. Unused cells are zero on both sides; a lone cell compares equal.
    """
    out_baseline = np.zeros((len(baseline), CELLS + 1), dtype=np.int64)
    out_window = np.zeros_like(out_baseline)
    for mask, cell_of in ((numeric, _numeric_cells), (~numeric, _categorical_cells)):
        if not mask.any():
            continue
        view = ordered if cell_of is _numeric_cells else named
        b, w = view(baseline[mask]), view(window[mask])
        cell = cell_of(b, w)
        out_baseline[mask] = _gather(b, cell)
        out_window[mask] = _gather(w, cell)
    return out_baseline, out_window


def used_cells(baseline: Ints, window: Ints) -> Ints:
    """How many cells hold a row on either side, (F,): the degrees of freedom of a chi-square, plus one."""
    return np.asarray(((baseline + window) > 0).sum(axis=1), dtype=np.int64)


def psi(baseline: Ints, window: Ints) -> Floats:
    """Population stability index, (F,): sum over cells of (q - p) ln(q / p), shares smoothed by half a row a cell.

    Null: (1/n + 1/m) chi-square with K - 1 degrees of freedom for n window and m baseline rows, so its mean without
    any drift is (K - 1)(1/n + 1/m): the folklore limits 0.1 and 0.25 mean something else at every sample size.
    Undefined (NaN) when a side is empty. Limit: blind to where the cells lie; two swapped neighbours weigh as much as
    two swapped ends. Source: Yurdakul, Statistical properties of the population stability index, 2018.

    >>> psi(np.array([[50, 50]]), np.array([[50, 50]])).tolist()
    [0.0]
    >>> psi(np.array([[500, 500]]), np.array([[900, 100]])).round(2).tolist()
    [0.88]
    """
    p, q = _smoothed(baseline, window)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where((p > 0) & (q > 0), (q - p) * np.log(q / p), 0.0)
    return _defined(terms.sum(axis=1), baseline, window)


def jensen_shannon(baseline: Ints, window: Ints) -> Floats:
    """Jensen-Shannon distance, base 2, (F,), between 0 and 1.

    The root of the mean of KL(p || r) and KL(q || r) with r = (p + q) / 2: the distance, not the divergence (its
    square). Shares are smoothed by half a row a cell. Null: the divergence in nats is (1/n + 1/m) / 8 chi-square with
    K - 1 degrees of freedom to first order. Undefined (NaN) when a side is empty. Limit: as PSI; saturates at 1.
    Source: Lin, Divergence measures based on the Shannon entropy, 1991.

    >>> jensen_shannon(np.array([[50, 50]]), np.array([[50, 50]])).tolist()
    [0.0]
    >>> jensen_shannon(np.array([[10**9, 0]]), np.array([[0, 10**9]])).round(3).tolist()
    [1.0]
    """
    p, q = _smoothed(baseline, window)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0.0) + np.where(q > 0, q * np.log2(q / middle), 0.0)
    divergence = np.clip(terms.sum(axis=1) / 2, 0.0, 1.0)
    return _defined(np.sqrt(divergence), baseline, window)


def chi_square(baseline: Ints, window: Ints) -> Floats:
    """Pearson's chi-square of homogeneity of two samples, (F,).

    n m / (n + m) times the sum over cells of (q - p)^2 / r, r the pooled share. Null: chi-square with K - 1 degrees
    of freedom, mean K - 1. Undefined (NaN) when a side is empty. Limit: grows with the rows, so it says how sure,
    never how much. Source: Pearson, 1900.

    >>> chi_square(np.array([[30, 20]]), np.array([[20, 30]])).round(9).tolist()
    [4.0]
    """
    m, n = baseline.sum(axis=1, keepdims=True), window.sum(axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = window / n - baseline / m
        pooled = (baseline + window) / (n + m)
        terms = np.where(pooled > 0, difference * difference / pooled, 0.0)
        value = terms.sum(axis=1) * (n / (n + m) * m)[:, 0]
    return _defined(value, baseline, window)


def ks(baseline: Ints, window: Ints) -> Floats:
    """Kolmogorov-Smirnov: the largest gap between two cumulative shares, (F,), over counts (F, K) ordered by value.

    Read at the edges of some 256 equal-mass bins it falls short of the gap between raw samples by at most one bin's
    mass (measured: .0169 against .0171). Null: Kolmogorov's, with n m / (n + m) rows; the bins make it
    conservative. Undefined (NaN) when a side is empty. Limit: weak in the tails. Source: Smirnov, 1939.

    >>> ks(np.array([[1, 1, 1, 1]]), np.array([[0, 0, 2, 2]])).tolist()
    [0.5]
    """
    return _defined(np.abs(_gaps(baseline, window)).max(axis=1), baseline, window)


def wasserstein(baseline: Ints, window: Ints, *, positions: Floats, scale: Floats) -> Floats:
    """First Wasserstein distance over `scale`, (F,), over counts (F, K) that lie at `positions` (F, K).

    The integral of |F_w(x) - F_b(x)| dx. `positions` ascend (see `positions_of`), `scale` (F,) is the baseline's
    standard deviation (see `scale_of`), so a pure shift by one standard deviation is 1. Null: see
    `calibrate.wasserstein_null`; its mean is about 1.1 sqrt(1/n + 1/m). Undefined (NaN) when a side is empty. Limit:
    rows beyond the baseline's range count as one standard deviation beyond it, so a change of unit is understated
    (and still enormous). Source: Vallender, 1974.

    >>> at = np.array([[0.0, 1.0, 2.0]])
    >>> wasserstein(np.array([[1, 1, 0]]), np.array([[0, 1, 1]]), positions=at, scale=np.array([0.5])).tolist()
    [2.0]
    """
    gaps = np.abs(_gaps(baseline, window)[:, :-1])
    return _defined((gaps * np.diff(positions, axis=1)).sum(axis=1) / scale, baseline, window)


def linf(baseline: Ints, window: Ints) -> Floats:
    """L-infinity: the largest change of one category's share, (F,), over counts (F, K).

    Null: the largest of K binomial differences, see `calibrate.linf_null`. Undefined (NaN) when a side is empty.
    Limit: deaf to a rare category that grows tenfold but stays rare. Source: elementary.

    >>> linf(np.array([[60, 40, 0]]), np.array([[30, 40, 30]])).round(9).tolist()
    [0.3]
    """
    p, q = shares(baseline), shares(window)
    return _defined(np.abs(q - p).max(axis=1), baseline, window)


def cohens_h(p: Floats, q: Floats) -> Floats:
    """Cohen's h, |2 asin sqrt q - 2 asin sqrt p|: the size of a change of share, comparable from rare to common.

    0.2 is called small, 0.5 medium, 0.8 large. Undefined (NaN) where a share is. Limit: noise is about
    sqrt(1/n + 1/m). Source: Cohen, Statistical power analysis for the behavioral sciences, 1988.

    >>> cohens_h(np.array([0.5, 0.0]), np.array([0.5, 1.0])).round(4).tolist()
    [0.0, 3.1416]
    """
    before, after = np.arcsin(np.sqrt(np.clip(p, 0, 1))), np.arcsin(np.sqrt(np.clip(q, 0, 1)))
    return np.asarray(2 * np.abs(after - before), dtype=np.float64)


def shares(counts: Ints) -> Floats:
    """Counts (F, K) as shares of their row sums; NaN where a row is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)


def positions_of(representatives: Floats, scale: Floats) -> Floats:
    """Where `ordered` counts lie on the number line, (F, MAIN + 2), ascending and finite.

    `representatives` (F, MAIN) holds each main bin's mean in the baseline, NaN for an unused bin, which then lies
    with its left neighbour. Rows below and above lie one `scale` beyond the outermost bins: how far they really are
    is not in the counts, and verdicts read counts alone.
    """
    at = np.where(np.isfinite(representatives), representatives, -np.inf)
    at = np.maximum.accumulate(at, axis=1)
    first = np.where(np.isfinite(representatives), representatives, np.inf).min(axis=1, keepdims=True)
    at = np.where(np.isfinite(at), at, np.where(np.isfinite(first), first, 0.0))
    step = scale[:, None]
    return np.concatenate((at[:, :1] - step, at, at[:, -1:] + step), axis=1)


def scale_of(baseline_sd: Floats) -> Floats:
    """The unit of the normed Wasserstein distance: the baseline's standard deviation, 1 where it is zero or undefined.

    A constant baseline has no unit; with 1 the distance is the share of rows that left the constant.
    """
    return np.where(np.isfinite(baseline_sd) & (baseline_sd > 0), baseline_sd, 1.0)


def _gather(counts: Ints, cell: Ints) -> Ints:
    subjects = len(counts)
    flat = (np.arange(subjects)[:, None] * (CELLS + 1) + cell).ravel()
    # The weights are counts below 2^53 and so exact as floats.
    total = np.bincount(flat, weights=counts.ravel(), minlength=subjects * (CELLS + 1))
    return total.reshape(subjects, CELLS + 1).astype(np.int64)


def _numeric_cells(baseline: Ints, window: Ints) -> Ints:
    m, n = baseline.sum(axis=1, keepdims=True), window.sum(axis=1, keepdims=True)
    fit = np.maximum(np.minimum(m, n) // ROWS_PER_CELL, FEWEST_CELLS)
    count = np.minimum(2 ** np.floor(np.log2(fit)).astype(np.int64), CELLS)
    below = np.cumsum(baseline, axis=1) - baseline
    # The middle of a bin's mass says which cell it belongs to, in integers: floor(count * middle / m).
    cell = np.minimum(count * (2 * below + baseline) // np.maximum(2 * m, 1), count - 1)
    return np.asarray(cell, dtype=np.int64)


def _categorical_cells(baseline: Ints, window: Ints) -> Ints:
    pooled = baseline + window
    total = pooled.sum(axis=1, keepdims=True)
    smaller = np.minimum(baseline.sum(axis=1, keepdims=True), window.sum(axis=1, keepdims=True))
    order = np.argsort(-pooled[:, :-1], axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    kept = (pooled[:, :-1] * smaller >= ROWS_PER_CATEGORY * np.maximum(total, 1)) & (rank < CELLS)
    rest = total - np.where(kept, pooled[:, :-1], 0).sum(axis=1, keepdims=True)
    thin = rest * smaller < ROWS_PER_CATEGORY * total
    joins = thin & (rank == kept.sum(axis=1, keepdims=True) - 1)
    cell = np.where(kept & ~joins, rank, CELLS)
    return np.concatenate((cell, np.full((len(baseline), 1), CELLS)), axis=1)


def _smoothed(baseline: Ints, window: Ints) -> tuple[Floats, Floats]:
    used = (baseline + window) > 0
    p = np.where(used, baseline + SMOOTHING, 0.0)
    q = np.where(used, window + SMOOTHING, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)


def _gaps(baseline: Ints, window: Ints) -> Floats:
    return np.asarray(np.cumsum(shares(window), axis=1) - np.cumsum(shares(baseline), axis=1), dtype=np.float64)


def _defined(value: Floats, baseline: Ints, window: Ints) -> Floats:
    return np.where((baseline.sum(axis=1) > 0) & (window.sum(axis=1) > 0), value, np.nan)
