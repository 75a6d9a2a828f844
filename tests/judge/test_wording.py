"""What a person reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stream_monitor.judge.wording import describe, describe_errors, moment, name, number, percent, summary_of
from stream_monitor.records import Evidence, Incident, IncidentKind, Ints, LineKey, Score, Severity, Verdict
from stream_monitor.summarize.protocol import ABOVE, BINS, MAIN, UNSEEN

SCORE = Score(
    LineKey("credit", "7"), "15m", 0, 1, "baseline", "age", "feature", "ks", 0.3, 0.1, 0.2, 0.4, 9, 9, Verdict.DRIFT
)
POSITIONS = np.arange(MAIN, dtype=np.float64)


def row(**columns: int) -> Ints:
    """Counts by column number, spelt c41=10."""
    counts = np.zeros(BINS, dtype=np.int64)
    for column, count in columns.items():
        counts[int(column[1:])] = count
    return counts


def evidence(subject: str, kind: str = "feature", detail: str = "median 41 -> 47") -> Evidence:
    """A case that only its name, kind and detail matter of."""
    return Evidence(subject, kind, "ks", 0.3, 0.1, 0.4, 9, 9, detail)


@pytest.mark.parametrize(
    ("baseline", "window", "expected"),
    [
        (row(c41=10), row(c47=10), "median 41 -> 47"),
        (row(c1=2, c41=6, c99=2), row(c5=2, c41=6, c60=2), "middle 80 % 1 to 99 -> 5 to 60"),
        (row(c41=100), row(c41=98) + row(**{f"c{ABOVE}": 2}), "out of range 0 % -> 2 %"),
        (row(c41=100, c42=1), row(c41=100, c42=3), "shape changed"),
        (row(c41=10), row(), "median 41 -> unknown"),
    ],
)
def test_numbers_are_told_by_what_moved(baseline: Ints, window: Ints, expected: str) -> None:
    """The median or the middle, then the range."""
    assert describe(SCORE, baseline=baseline, window=window, representatives=POSITIONS) == expected


@pytest.mark.parametrize(
    ("shift", "scale", "expected"),
    [
        (0.5, 1.0, "median"),
        (-0.5, 1.0, "median"),
        (0.0, 2.0, "middle 80 %"),
        (0.0, 0.5, "middle 80 %"),
        (0.1, 2.0, "middle 80 %"),
        (2.0, 1.5, "median"),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_a_spread_that_changed_is_told_as_such(shift: float, scale: float, expected: str, seed: int) -> None:
    """Not as a median that moved by a bin; a shift is told as one, though the middle's ends move with it."""
    draw = np.random.default_rng(seed)
    positions = stats.norm.ppf((np.arange(MAIN) + 0.5) / MAIN)
    counts = np.zeros(BINS, dtype=np.int64)
    counts[:MAIN] = 40
    window = np.zeros(BINS, dtype=np.int64)
    values = stats.norm.cdf(draw.normal(shift, scale, 2_000)) * MAIN
    window[:MAIN] = np.bincount(np.minimum(values.astype(np.int64), MAIN - 1), minlength=MAIN)
    assert describe(SCORE, baseline=counts, window=window, representatives=positions).startswith(expected)


def test_categories_are_told_by_the_share_that_moved_most() -> None:
    """Named where it has a name."""
    known = describe(
        SCORE, baseline=row(c0=62, c1=38), window=row(c0=39, c1=61), representatives=None, categories=("app", "web")
    )
    assert known in ("share of app 62 % -> 39 %", "share of web 38 % -> 61 %")
    new = describe(
        SCORE,
        baseline=row(c0=100),
        window=row(c0=60) + row(**{f"c{UNSEEN}": 40}),
        representatives=None,
        categories=("a",),
    )
    assert new in ("share of unseen categories 0 % -> 40 %", "share of a 100 % -> 60 %")


def test_ratios_and_errors_are_told_in_percent() -> None:
    """From the baseline's share to the window's."""
    missing = replace(SCORE, statistic="missing_ratio", expected=0.001, value=0.12)
    assert describe(missing, baseline=row(), window=row(), representatives=None) == "missing 0.1 % -> 12 %"
    errors = replace(SCORE, statistic="error_rate", expected=0.125, value=0.21)
    assert describe_errors(errors) == "error rate 12 % -> 21 %"
    measured = replace(SCORE, statistic="mean_absolute_error", expected=3.14159, value=4.8)
    assert describe_errors(measured) == "mean absolute error 3.142 -> 4.8"


@pytest.mark.parametrize(
    ("kind", "subjects", "expected"),
    [
        (IncidentKind.DATA_DRIFT, (evidence("age"),), "credit 7: age drifted (median 41 -> 47) since"),
        (
            IncidentKind.DATA_DRIFT,
            (evidence("age"), evidence("b"), evidence("c"), evidence("d"), evidence("e")),
            "credit 7: age drifted (median 41 -> 47), with b, c and 2 more, since",
        ),
        (IncidentKind.BROKEN_INPUT, (evidence("age", detail=""),), "credit 7: age is broken since"),
        (
            IncidentKind.PREDICTION_DRIFT,
            (evidence("prediction", "prediction"),),
            "credit 7: the prediction drifted (median 41 -> 47) since",
        ),
        (IncidentKind.CONCEPT_DRIFT, (evidence("error_rate", "metric", ""),), "credit 7: the error rate rose since"),
        (IncidentKind.BASELINE_MISSING, (), "credit 7 has no baseline, so nothing can be judged since"),
        (IncidentKind.BIAS, (), "credit 7 shows bias since"),
    ],
)
def test_an_incident_is_one_sentence(kind: IncidentKind, subjects: tuple[Evidence, ...], expected: str) -> None:
    """Who, what, how much, since when; and when it was over."""
    line = LineKey("credit", "7")
    incident = Incident("x", line, kind, Severity.INFO, 0, 0, None, subjects, None, "")
    assert summary_of(incident) == f"{expected} 1970-01-01 00:00 UTC."
    closed = replace(incident, closed_us=60_000_000, line=LineKey("credit", "7", (("market", "eu"),)))
    assert summary_of(closed).startswith("credit 7 (market=eu)")
    assert summary_of(closed).endswith(" since 1970-01-01 00:00 UTC, over at 1970-01-01 00:01 UTC.")


def test_names_are_data() -> None:
    """Newlines, control characters and 10 kB of name stay out of the sentence; a blank name is seen."""
    assert name('a\n"b"\x1b[31m\t😀') == 'a "b" [31m 😀'
    assert len(name("x" * 10_000)) == 60
    assert name(" \n") == "''"


def test_numbers_and_times_are_short() -> None:
    """Two digits of a share, four of a number, minutes of a time; NaN is unknown."""
    assert [percent(x) for x in (0.0, 0.00123, 0.05, 0.123, 1.0)] == ["0 %", "0.12 %", "5 %", "12 %", "100 %"]
    assert [number(x) for x in (41.0, 0.123456, 1234567.0)] == ["41", "0.1235", "1.235e+06"]
    assert (percent(float("nan")), number(float("nan"))) == ("unknown", "unknown")
    assert moment(1_795_000_000_000_000) == "2026-11-18 11:06 UTC"
