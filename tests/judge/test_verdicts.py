"""Score rows: both gates, every statistic, and what says nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from stream_monitor.judge import quality
from stream_monitor.judge.verdicts import Span, Subjects, distances, score_window
from stream_monitor.records import Floats, Ints, LineKey, Score, Verdict
from stream_monitor.summarize.protocol import BINS, INFINITE, MAIN, MISSING, UNSEEN, WRONG_TYPE

SPAN = Span(LineKey("credit", "7"), "15m", 0, 900_000_000)
SUBJECTS = Subjects(("age", "zip"), ("feature", "feature"), np.array([True, False]))
ALPHA = 1e-6
NUMERIC = {"psi", "jensen_shannon", "ks", "wasserstein", "chi_square"}
NUMERIC |= {"missing_ratio", "wrong_type_ratio", "infinite_ratio", "out_of_range_ratio"}
CATEGORICAL = {"psi", "jensen_shannon", "linf", "chi_square", "missing_ratio", "wrong_type_ratio", "unseen_ratio"}


def counts(rows: int, *, shift: float = 0.0, web: float = 0.5, seed: int = 1) -> Ints:
    """Counts of a standard normal shifted by so many standard deviations, and of two categories."""
    draw = np.random.default_rng(seed)
    found = np.zeros((2, BINS), dtype=np.int64)
    code = np.searchsorted(edges(), draw.normal(shift, 1.0, rows))
    found[0, :MAIN] = np.bincount(code, minlength=MAIN)
    found[1, :2] = draw.multinomial(rows, [web, 1 - web])
    return found


def edges() -> Floats:
    """The inner edges of 256 equal-mass bins of a standard normal, from a large sample."""
    sample = np.random.default_rng(0).normal(size=200_000)
    return np.quantile(sample, np.arange(1, MAIN) / MAIN)


def judge(
    window: Ints, *, baseline: Ints | None = None, minimum_effect: float = 0.1, stale: bool = False
) -> dict[tuple[str, str], Score]:
    """The scores of a window by (subject, statistic)."""
    inner = edges()
    middle = np.concatenate(([inner[0] - 0.3], (inner[1:] + inner[:-1]) / 2, [inner[-1] + 0.3]))
    scores = score_window(
        SPAN,
        SUBJECTS,
        baseline_counts=counts(20_000) if baseline is None else baseline,
        window_counts=window,
        representatives=np.stack((middle, np.full(MAIN, np.nan))),
        baseline_sd=np.array([1.0, np.nan]),
        alpha=ALPHA,
        minimum_effect=minimum_effect,
        stale=stale,
    )
    return {(score.subject, score.statistic): score for score in scores}


def verdicts(scores: dict[tuple[str, str], Score], subject: str, names: set[str]) -> set[Verdict]:
    """What the named statistics of a subject say."""
    return {scores[(subject, name)].verdict for name in names}


def test_every_statistic_has_one_row() -> None:
    """Nine for a number, seven for a category; the budget divides by exactly as many."""
    scores = judge(counts(2_000, seed=2))
    assert {name for subject, name in scores if subject == "age"} == NUMERIC
    assert {name for subject, name in scores if subject == "zip"} == CATEGORICAL
    assert SUBJECTS.tests == len(scores) == 16
    assert Counter(score.verdict for score in scores.values()) == {Verdict.OK: 16}


def test_a_shift_of_a_fifth_of_a_deviation_is_drift_in_two_thousand_rows() -> None:
    """The calibrated statistics find what a fixed limit on PSI misses; the effect is the shift."""
    scores = judge(counts(2_000, shift=0.2, seed=3))
    assert verdicts(scores, "age", {"psi", "ks", "wasserstein", "chi_square", "jensen_shannon"}) == {Verdict.DRIFT}
    assert scores[("age", "psi")].value < 0.1
    assert scores[("age", "wasserstein")].effect == pytest.approx(0.2, abs=0.05)
    assert verdicts(scores, "zip", CATEGORICAL) == {Verdict.OK}


def test_an_effect_below_the_floor_is_no_drift() -> None:
    """A tiny shift in a huge window is beyond doubt and of no consequence; the floor turned off, it is drift."""
    huge = counts(1_000_000, shift=0.05, seed=4)
    baseline = counts(1_000_000, seed=5)
    gated = judge(huge, baseline=baseline)
    assert gated[("age", "ks")].value > gated[("age", "ks")].threshold
    assert verdicts(gated, "age", NUMERIC) == {Verdict.OK}
    assert judge(huge, baseline=baseline, minimum_effect=0.0)[("age", "ks")].verdict is Verdict.DRIFT


def test_a_category_that_grows_is_drift_by_its_effect() -> None:
    """From 50 % to 65 %: Cohen's h .305 in the largest category, by every categorical statistic."""
    scores = judge(counts(3_000, web=0.65, seed=6))
    assert verdicts(scores, "zip", {"psi", "jensen_shannon", "linf", "chi_square"}) == {Verdict.DRIFT}
    assert scores[("zip", "linf")].effect == pytest.approx(0.305, abs=0.04)


def test_small_samples_are_insufficient_on_either_side() -> None:
    """Below 200 readable rows the distances say nothing; data quality speaks from 30."""
    small = judge(counts(150, shift=3.0, seed=7))
    distance = {"psi", "jensen_shannon", "ks", "wasserstein", "chi_square"}
    assert verdicts(small, "age", distance) == {Verdict.INSUFFICIENT}
    assert small[("age", "missing_ratio")].verdict is Verdict.OK
    assert verdicts(judge(counts(20, seed=7)), "age", NUMERIC) == {Verdict.INSUFFICIENT}
    assert verdicts(judge(counts(2_000), baseline=counts(150)), "age", distance) == {Verdict.INSUFFICIENT}
    assert verdicts(judge(np.zeros((2, BINS), dtype=np.int64)), "age", NUMERIC) == {Verdict.INSUFFICIENT}


def test_a_stale_reference_is_never_ok() -> None:
    """What would be ok or drift is stale; insufficient stays what it is."""
    assert {s.verdict for s in judge(counts(2_000, shift=1.0), stale=True).values()} == {Verdict.STALE}
    assert verdicts(judge(counts(20), stale=True), "age", NUMERIC) == {Verdict.INSUFFICIENT}


@pytest.mark.parametrize(
    ("column", "statistic", "broken"),
    [
        (MISSING, "missing_ratio", True),
        (WRONG_TYPE, "wrong_type_ratio", True),
        (INFINITE, "infinite_ratio", False),
    ],
)
def test_bad_values_are_drift_and_many_of_them_are_broken(column: int, statistic: str, broken: bool) -> None:
    """5 % is drift, 60 % is broken if the values are gone or of another type; the distance of the rest stays ok."""
    for share, is_broken in ((100, False), (3_000, broken)):
        window = counts(2_000, seed=8)
        window[0, column] = share
        scores = judge(window)
        found = scores[("age", statistic)]
        assert found.verdict is Verdict.DRIFT
        assert found.value == share / (2_000 + share)
        assert found.samples == 2_000 + share
        assert quality.is_broken(found) is is_broken
        assert scores[("age", "ks")].samples == 2_000
        assert scores[("age", "ks")].verdict is Verdict.OK


def test_an_unseen_category_is_drift() -> None:
    """3 % of rows in a category the baseline never met."""
    window = counts(2_000, seed=9)
    window[1, UNSEEN] = 60
    found = judge(window)[("zip", "unseen_ratio")]
    assert (found.verdict, found.value, found.expected) == (Verdict.DRIFT, 60 / 2_060, 0.0)


def test_fewer_missing_values_are_no_fault() -> None:
    """A third missing in the baseline, none in the window: ok."""
    baseline = counts(20_000)
    baseline[0, MISSING] = 10_000
    found = judge(counts(2_000), baseline=baseline)[("age", "missing_ratio")]
    assert (found.verdict, found.value) == (Verdict.OK, 0.0)
    assert found.effect > 1


def test_a_constant_that_stays_is_ok_and_one_that_leaves_is_drift() -> None:
    """A constant baseline has no spread: the distance counts the rows that left it."""
    baseline = counts(20_000)
    same = counts(2_000, seed=3)
    representatives = np.stack((np.full(MAIN, 7.0), np.full(MAIN, np.nan)))
    gone = np.zeros((2, BINS), dtype=np.int64)
    gone[:, BINS - 2] = 1_600  # above
    gone[:, :1] = 400
    found = []
    for window in (same, gone):
        scores = score_window(
            SPAN,
            SUBJECTS,
            baseline_counts=baseline,
            window_counts=window,
            representatives=representatives,
            baseline_sd=np.array([0.0, np.nan]),
            alpha=ALPHA,
            minimum_effect=0.1,
        )
        found.append({s.statistic: s for s in scores if s.subject == "age"})
    assert {s.verdict for s in found[0].values()} == {Verdict.OK}
    assert found[1]["wasserstein"].value == pytest.approx(0.8)
    assert found[1]["wasserstein"].verdict is Verdict.DRIFT


def test_values_alone_are_those_of_the_rows() -> None:
    """The cheap reading for gauges gives the values of the score rows, NaN where a statistic does not apply."""
    window, inner = counts(2_000, shift=0.3, seed=2), edges()
    middle = np.concatenate(([inner[0] - 0.3], (inner[1:] + inner[:-1]) / 2, [inner[-1] + 0.3]))
    values = distances(
        SUBJECTS.numeric,
        counts(20_000),
        window,
        representatives=np.stack((middle, np.full(MAIN, np.nan))),
        baseline_sd=np.array([1.0, np.nan]),
    )
    scores = judge(window)
    for name, value in values.items():
        for index, subject in enumerate(SUBJECTS.names):
            row = scores.get((subject, name))
            assert np.isnan(value[index]) if row is None else row.value == value[index]


def test_a_clean_month_stays_within_its_budget() -> None:
    """A month of 15 m windows of 300 rows, five features: at alpha from one a month no row drifts."""
    draw = np.random.default_rng(12)
    subjects = Subjects([f"f{k}" for k in range(5)], ["feature"] * 5, np.ones(5, dtype=np.bool_))
    baseline = np.zeros((5, BINS), dtype=np.int64)
    baseline[:, :MAIN] = draw.multinomial(10_000, np.full(MAIN, 1 / MAIN), size=5)
    middle = np.broadcast_to(np.linspace(-1.7, 1.7, MAIN), (5, MAIN))
    drifts = 0
    for _ in range(960):
        window = np.zeros((5, BINS), dtype=np.int64)
        window[:, :MAIN] = draw.multinomial(300, np.full(MAIN, 1 / MAIN), size=5)
        scores = score_window(
            SPAN,
            subjects,
            baseline_counts=baseline,
            window_counts=window,
            representatives=middle,
            baseline_sd=np.ones(5),
            alpha=0.8 / 2880 / subjects.tests,
            minimum_effect=0.0,
        )
        drifts += any(score.verdict is Verdict.DRIFT for score in scores)
    assert drifts <= 2
