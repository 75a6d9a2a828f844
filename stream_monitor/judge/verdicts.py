"""A window against a baseline: every statistic of every subject as one `Score` row, with its verdict.

Two gates: `drift` needs a value beyond the threshold that the false-alarm budget allows at these sample sizes, and an
effect of practical size. Reads integer counts alone, so the rows do not depend on the order of the events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stream_monitor.judge import calibrate, distance, quality
from stream_monitor.records import Flags, Floats, Ints, LineKey, Score, Verdict

_VERDICTS = (Verdict.OK, Verdict.DRIFT, Verdict.INSUFFICIENT, Verdict.STALE)
_OK, _DRIFT, _INSUFFICIENT, _STALE = range(4)


@dataclass(frozen=True, slots=True)
class Subjects:
    """What a model version is judged by, F of them, in the order of the schema."""

    names: Sequence[str]
    kinds: Sequence[str]  # feature | prediction | latency
    numeric: Flags  # (F,)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def tests(self) -> int:
        """How many statistics one window of them is judged by: what the false-alarm budget is divided by."""
        return calibrate.comparisons(self.numeric)


@dataclass(frozen=True, slots=True)
class Span:
    """Which window of which line, compared with what."""

    line: LineKey
    window: str
    start_us: int
    end_us: int
    reference: str = "baseline"


@dataclass(frozen=True, slots=True)
class _Column:
    """One statistic of some subjects: parallel arrays."""

    statistic: str
    subject: Ints
    value: Floats
    expected: Floats
    threshold: Floats
    effect: Floats
    samples: Ints
    baseline_samples: Ints
    verdict: Ints


def score_window(
    span: Span,
    subjects: Subjects,
    *,
    baseline_counts: Ints,
    window_counts: Ints,
    representatives: Floats,
    baseline_sd: Floats,
    alpha: float,
    minimum_effect: float,
    stale: bool = False,
) -> list[Score]:
    """Compare counts (F, BINS) of a window with a baseline's; one row for each subject and statistic.

    `representatives` (F, MAIN): the mean of each main bin in the baseline, NaN where it has none (categorical: any).
    `baseline_sd` (F,): its standard deviation. `alpha`: the false-alarm probability of one row (`Budget.alpha` with
    `subjects.tests`). `minimum_effect`: the practical floor, 0 turns it off. `stale`: the reference or the window is
    too old to say anything about now; every verdict that would be `ok` or `drift` becomes `stale`.
    """
    columns = [
        *_drift(subjects.numeric, baseline_counts, window_counts, representatives, baseline_sd, alpha, minimum_effect),
        *_quality(subjects.numeric, baseline_counts, window_counts, alpha, minimum_effect),
    ]
    return [score for column in columns for score in _rows(span, subjects, column, stale)]


def distances(
    numeric: Flags, baseline: Ints, window: Ints, *, representatives: Floats, baseline_sd: Floats
) -> dict[str, Floats]:
    """The values alone, without thresholds, (F,) for each statistic; NaN where it is not defined for the kind."""
    views = _views(numeric, baseline, window, representatives, baseline_sd)
    values = {name: np.full(len(numeric), np.nan) for name in (*calibrate.NUMERIC_STATISTICS, "linf")}
    for view in views:
        for name, read in view.statistics().items():
            values[name][view.subject] = read()[0]
    return values


def effects(numeric: Flags, baseline: Ints, window: Ints, *, representatives: Floats, baseline_sd: Floats) -> Floats:
    """How large a change of the values is, (F,): normed Wasserstein distance, or the largest |Cohen's h|."""
    out = np.full(len(numeric), np.nan)
    for view in _views(numeric, baseline, window, representatives, baseline_sd):
        out[view.subject] = view.effect()
    return out


@dataclass(frozen=True, slots=True)
class _View:
    """The subjects of one kind, with what its statistics share."""

    subject: Ints
    baseline: Ints  # (F, K) ordered or named
    window: Ints
    cells: tuple[Ints, Ints]
    positions: Floats
    scale: Floats
    is_numeric: bool

    def statistics(self, alpha: float = 0.01) -> dict[str, Callable[[], tuple[Floats, calibrate.Null]]]:
        """Each statistic as a function that gives its value and its null."""
        b, w = self.cells
        # An empty side is insufficient whatever its threshold; one row keeps the arithmetic quiet.
        n, m = np.maximum(self.window.sum(axis=1), 1), np.maximum(self.baseline.sum(axis=1), 1)
        cells = distance.used_cells(b, w)
        common: dict[str, Callable[[], tuple[Floats, calibrate.Null]]] = {
            "psi": lambda: (distance.psi(b, w), calibrate.psi_null(n, m, cells=cells, alpha=alpha)),
            "jensen_shannon": lambda: (
                distance.jensen_shannon(b, w),
                calibrate.jensen_shannon_null(n, m, cells=cells, alpha=alpha),
            ),
            "chi_square": lambda: (distance.chi_square(b, w), calibrate.chi_square_null(cells=cells, alpha=alpha)),
        }
        if not self.is_numeric:
            return common | {"linf": lambda: self._linf(n, m, alpha)}
        return common | {
            "ks": lambda: (distance.ks(self.baseline, self.window), calibrate.ks_null(n, m, alpha=alpha)),
            "wasserstein": lambda: (self.wasserstein(), self._wasserstein_null(n, m, alpha)),
        }

    def wasserstein(self) -> Floats:
        return distance.wasserstein(self.baseline, self.window, positions=self.positions, scale=self.scale)

    def effect(self) -> Floats:
        """Normed Wasserstein distance, or the largest |Cohen's h| over the categories."""
        if self.is_numeric:
            return self.wasserstein()
        p, q = distance.shares(self._expecting_unseen()), distance.shares(self.window)
        return np.asarray(distance.cohens_h(p, q).max(axis=1), dtype=np.float64)

    def _expecting_unseen(self) -> Ints:
        """The baseline with as many unseen rows as its singletons promise."""
        expecting = self.baseline.copy()
        expecting[:, -1] = calibrate.unseen_allowance(self.baseline)
        return expecting

    def _linf(self, n: Ints, m: Ints, alpha: float) -> tuple[Floats, calibrate.Null]:
        baseline = self._expecting_unseen()
        null = calibrate.linf_null(n, m, pooled=baseline + self.window, alpha=alpha)
        return distance.linf(baseline, self.window), null

    def _wasserstein_null(self, n: Ints, m: Ints, alpha: float) -> calibrate.Null:
        return calibrate.wasserstein_null(
            n, m, baseline=self.baseline, positions=self.positions, scale=self.scale, alpha=alpha
        )


def _views(numeric: Flags, baseline: Ints, window: Ints, representatives: Floats, baseline_sd: Floats) -> list[_View]:
    cells = distance.cells(baseline, window, numeric)
    views = []
    for is_numeric in (True, False):
        subject = np.flatnonzero(numeric == is_numeric)
        if not len(subject):
            continue
        arrange = distance.ordered if is_numeric else distance.named
        scale = distance.scale_of(baseline_sd[subject])
        views.append(
            _View(
                subject=subject,
                baseline=arrange(baseline[subject]),
                window=arrange(window[subject]),
                cells=(cells[0][subject], cells[1][subject]),
                positions=distance.positions_of(representatives[subject], scale),
                scale=scale,
                is_numeric=is_numeric,
            )
        )
    return views


def _drift(
    numeric: Flags,
    baseline: Ints,
    window: Ints,
    representatives: Floats,
    baseline_sd: Floats,
    alpha: float,
    minimum_effect: float,
) -> list[_Column]:
    columns = []
    for view in _views(numeric, baseline, window, representatives, baseline_sd):
        effect = view.effect()
        n, m = view.window.sum(axis=1), view.baseline.sum(axis=1)
        enough = (n >= calibrate.MINIMUM_ROWS) & (m >= calibrate.MINIMUM_BASELINE_ROWS)
        for name, read in view.statistics(alpha).items():
            value, null = read()
            verdict = _judge(value, null.threshold, effect, enough, minimum_effect)
            columns.append(_Column(name, view.subject, value, null.expected, null.threshold, effect, n, m, verdict))
    return columns


def _quality(numeric: Flags, baseline: Ints, window: Ints, alpha: float, minimum_effect: float) -> list[_Column]:
    columns = []
    for ratio in quality.ratios(baseline, window, numeric=numeric):
        null, value, effect = ratio.null(alpha), ratio.value, ratio.effect
        enough = np.minimum(ratio.window_rows, ratio.baseline_rows) >= quality.MINIMUM_ROWS
        verdict = _judge(value, null.threshold, effect, enough, minimum_effect)
        of = np.flatnonzero(ratio.applies)
        columns.append(
            _Column(
                ratio.statistic,
                of,
                value[of],
                null.expected[of],
                null.threshold[of],
                effect[of],
                ratio.window_rows[of],
                ratio.baseline_rows[of],
                verdict[of],
            )
        )
    return columns


def _judge(value: Floats, threshold: Floats, effect: Floats, enough: Flags, minimum_effect: float) -> Ints:
    with np.errstate(invalid="ignore"):
        beyond = (value > threshold) & (effect >= minimum_effect)
    return np.where(enough, np.where(beyond, _DRIFT, _OK), _INSUFFICIENT)


def _rows(span: Span, subjects: Subjects, column: _Column, stale: bool) -> list[Score]:
    code = np.where(column.verdict == _INSUFFICIENT, _INSUFFICIENT, _STALE) if stale else column.verdict
    where = (span.line, span.window, span.start_us, span.end_us, span.reference)
    names, kinds, statistic = subjects.names, subjects.kinds, column.statistic
    parallel = (
        column.subject,
        column.value,
        column.expected,
        column.threshold,
        column.effect,
        column.samples,
        column.baseline_samples,
        code,
    )
    return [
        Score(*where, names[f], kinds[f], statistic, value, expected, threshold, effect, n, m, _VERDICTS[v])
        for f, value, expected, threshold, effect, n, m, v in zip(*(a.tolist() for a in parallel), strict=True)
    ]
