"""What a finding of the charts means to people: which kind of incident, how large, since when, and in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_monitor.judge import distance, quality
from stream_monitor.judge.charts import BAD, RING, Found
from stream_monitor.judge.verdicts import effects
from stream_monitor.judge.wording import describe
from stream_monitor.records import Evidence, Floats, IncidentKind, Ints, LineKey, Score, Verdict
from stream_monitor.summarize.profile import Subject
from stream_monitor.summarize.protocol import BINS, INFINITE, MAIN, MISSING, WRONG_TYPE

FEWEST_BROKEN = 16
"""A field is called broken on 16 events or more: three bad values of four may be a rise to a tenth."""
_OTHERS = MAIN // 8 + np.arange(BINS - MAIN)
_NUMBERS = np.concatenate([np.arange(MAIN) // 8, _OTHERS])
"""Eight main bins in one: a few hundred events say nothing about 256 bins."""
_FEW_NUMBERS = np.concatenate([np.arange(MAIN) // 32, _OTHERS])
FEW_EVENTS = 128
"""Up to so many events tell eight cells apart: with 32 the onset of a shift of one deviation was off by 10 events, not 7."""
_CATEGORIES = np.concatenate([np.minimum(np.arange(MAIN), MAIN // 8 - 1), _OTHERS])
"""Of categories, which stand by frequency, the rare ones together."""
_BAD_VALUES = np.where(np.isin(np.arange(BINS), [MISSING, WRONG_TYPE, INFINITE]), np.arange(BINS) - MAIN + 1, 0)
"""Where values cannot be read, those that can say nothing."""
_PSEUDO_EVENTS = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """An alarm as an incident takes it."""

    kind: IncidentKind
    evidence: Evidence
    onset_us: int
    onset_between_us: tuple[int, int]


def kind_of(subject_kind: str, *, is_bad: bool) -> IncidentKind:
    """Which kind of incident a subject's alarm belongs to; a broken field is told from bad values by its share."""
    if is_bad:
        return IncidentKind.DATA_QUALITY
    return IncidentKind.PREDICTION_DRIFT if subject_kind == "prediction" else IncidentKind.DATA_DRIFT


def case_of(
    found: Found, subject: Subject, *, baseline: Ints, representatives: Floats, deviation: float, line: LineKey
) -> Case:
    """The case of an alarm: `baseline` (BINS,) counts, `representatives` (MAIN,) and `deviation` of its subject."""
    score = _bad_score(found, subject, baseline, line) if found.chart == BAD else None
    kind = kind_of(subject.key.kind, is_bad=score is not None)
    if score is None:
        score = _value_score(found, subject, baseline, representatives, deviation, line)
    elif quality.is_broken(score) and score.samples >= FEWEST_BROKEN:
        kind = IncidentKind.BROKEN_INPUT
    detail = describe(
        score,
        baseline=baseline,
        window=found.counts,
        representatives=representatives if subject.is_numeric else None,
        categories=getattr(subject.bins, "values", ()),
    )
    evidence = Evidence(score.subject, score.subject_kind, score.statistic, score.value, score.threshold, score.effect,
                        score.samples, score.baseline_samples, detail)  # fmt: skip
    first, likeliest, last = onset_of(found, baseline, is_numeric=subject.is_numeric)
    return Case(kind, evidence, likeliest, (first, last))


UNLIKELY = 2.0
"""Onsets whose log-likelihood lies within 2 of the best are possible: those of a likelihood interval of 95 % and some."""


def onset_of(found: Found, baseline: Ints, *, is_numeric: bool) -> tuple[int, int, int]:
    """The earliest, the likeliest and the latest time from which on the events are the window's rather than the baseline's.

    The maximum-likelihood change point over twice the window (Hinkley 1970), to the event; of a window longer than what is
    remembered its start, which lies at most the window's length early.
    """
    if found.scale > RING or not len(found.codes):
        return found.start_us, found.start_us, found.time_us
    numbers = _FEW_NUMBERS if found.scale <= FEW_EVENTS else _NUMBERS
    bins = _BAD_VALUES if found.chart == BAD else numbers if is_numeric else _CATEGORIES
    old = np.bincount(bins, baseline) + _PSEUDO_EVENTS
    new = np.bincount(bins, found.counts) + _PSEUDO_EVENTS
    gain = (np.log(new / new.sum()) - np.log(old / old.sum()))[bins[found.codes]]
    tail = np.cumsum(gain[::-1])[::-1]
    possible = found.times[tail >= tail.max() - UNLIKELY]
    return int(possible.min()), int(found.times[int(np.argmax(tail))]), int(possible.max())


def _value_score(
    found: Found, subject: Subject, baseline: Ints, representatives: Floats, deviation: float, line: LineKey
) -> Score:
    numeric = np.array([subject.is_numeric])
    effect = effects(
        numeric,
        baseline[None],
        found.counts[None],
        representatives=representatives[None],
        baseline_sd=np.array([deviation]),
    )
    samples, rows = (int(distance.readable(counts[None], numeric)[0]) for counts in (found.counts, baseline))
    value, threshold = float(found.value), found.threshold
    return _score(found, subject, line, found.chart, value, 0.0, threshold, float(effect[0]), samples, rows)


def _bad_score(found: Found, subject: Subject, baseline: Ints, line: LineKey) -> Score:
    window, names = found.counts, ("missing_ratio", "wrong_type_ratio", "infinite_ratio")
    codes = (MISSING, WRONG_TYPE, INFINITE)
    samples, rows = int(window.sum()), int(baseline.sum())
    rises = [window[code] / max(samples, 1) - baseline[code] / max(rows, 1) for code in codes]
    most = int(np.argmax(rises))
    share, expected = window[codes[most]] / max(samples, 1), baseline[codes[most]] / max(rows, 1)
    effect = float(distance.cohens_h(np.array([expected]), np.array([share]))[0])
    limit = float(share * found.threshold / max(found.value, 1e-9))
    return _score(found, subject, line, names[most], float(share), float(expected), limit, effect, samples, rows)


def _score(
    found: Found,
    subject: Subject,
    line: LineKey,
    statistic: str,
    value: float,
    expected: float,
    threshold: float,
    effect: float,
    samples: int,
    rows: int,
) -> Score:
    return Score(line, "", found.start_us, found.time_us, "baseline", subject.key.name, subject.key.kind, statistic,
                 value, expected, threshold, effect, samples, rows, Verdict.DRIFT)  # fmt: skip
