"""How labels come, for people: delays by class, the arrival curve, and the coverage of the newest cohorts now."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from stream_monitor.cohorts import CohortKey
from stream_monitor.config import duration_text
from stream_monitor.engine import Engine, time_text
from stream_monitor.judge.arrival import quantile
from stream_monitor.judge.estimate import OUTCOME as ESTIMATED
from stream_monitor.judge.performance import metrics
from stream_monitor.records import DEFAULT_OUTCOME, MICROSECONDS, Json, window_start
from stream_monitor.revisions import FIRST_METRICS, Figure, Revision, first_figures
from stream_monitor.summarize.outcome import OutcomeProfile, Task
from stream_monitor.truth import CLASS_DELAY_BOUNDS_SECONDS
from stream_monitor.versions import Line

QUANTILES = (0.5, 0.9, 0.99)
"""The usual delay, what one in ten waits longer than, and how long to wait before giving up."""

ALL_LABELS = "(all)"

SHOWN_COHORTS = 6
"""Of each window length: enough to see coverage rise from one to the next."""


def rows(engine: Engine) -> list[Json]:
    """One for each version and outcome that has had a label, for the API."""
    found: list[Json] = []
    for number, outcome, arrival in engine.outcomes.labels.rows():
        version = engine.versions[number]
        found.append(
            {
                "model": version.key.model,
                "version": version.key.version,
                "outcome": engine.names.outcomes[outcome],
                **arrival,
                "delays": [_delays(name, counts) for name, counts in _classes(engine, number, outcome)],
                "classes": [
                    {"class": name, "known": is_known, "truths": count}
                    for name, is_known, count in engine.classes.counts(number, outcome)
                ],
                "cohorts": list(_cohorts(engine, version.whole(), number, outcome)),
            }
        )
    return found


def quantiles(engine: Engine) -> Iterator[tuple[int, str, float, float]]:
    """(version, class, quantile, seconds) of the default outcome, for metrics."""
    for number in engine.versions:
        for outcome, name in enumerate(engine.names.outcomes):
            for label, counts in _classes(engine, number, outcome) if name == "label" else ():
                for share in QUANTILES:
                    yield number, label, share, quantile(counts, CLASS_DELAY_BOUNDS_SECONDS, share)


def usual_coverage(engine: Engine, number: int, outcome: int, seconds: int, start_us: int) -> float:
    """The coverage a window usually has by now, NaN where that is not known."""
    if engine.joined_sealed_us is None:
        return float("nan")
    return engine.outcomes.labels.usual_coverage(
        number, outcome, start_us, start_us + seconds * MICROSECONDS, engine.joined_sealed_us
    )


def _classes(engine: Engine, number: int, outcome: int) -> list[tuple[str, list[int]]]:
    """(class, counts) of each; numbers have no classes, and all their labels are told together."""
    held = engine.truth.ledger.class_delays.items()
    found = sorted((name, counts) for (v, o, name), counts in held if (v, o) == (number, outcome) and max(counts) > 0)
    if not found or not _is_of_numbers(engine, number, outcome):
        return found
    return [(ALL_LABELS, [sum(counts) for counts in zip(*(counts for _, counts in found), strict=True)])]


def _is_of_numbers(engine: Engine, number: int, outcome: int) -> bool:
    """As the labels turned out to be, or before that can be told as the configuration says."""
    version = engine.versions[number]
    task = engine.outcomes.task(version.whole(), outcome)
    if task is None and engine.names.outcomes[outcome] == DEFAULT_OUTCOME:
        return engine.config.model(version.key.model).task == "regression"
    return task in (Task.REGRESSION, Task.VALUE)


def _delays(name: str, counts: list[int]) -> Json:
    bounds = [*CLASS_DELAY_BOUNDS_SECONDS, None]  # None: beyond all
    return {
        "class": name,
        "labels": sum(counts),
        **{f"p{round(100 * q)}_seconds": quantile(counts, CLASS_DELAY_BOUNDS_SECONDS, q) for q in QUANTILES},
        "buckets": [
            {"up_to_seconds": bound, "labels": count} for bound, count in zip(bounds, counts, strict=True) if count
        ],
    }


def _cohorts(engine: Engine, line: Line, number: int, outcome: int) -> Iterator[Json]:
    """The newest closed cohorts of each length."""
    now_us = engine.joined_sealed_us
    for seconds in engine.config.windows if now_us is not None else ():
        assert now_us is not None
        span = seconds * MICROSECONDS
        newest = window_start(now_us, seconds) - span
        for start in range(newest, newest - SHOWN_COHORTS * span, -span):
            made = engine.outcomes.cohorts.made(line.number, seconds, start)
            if not made:
                continue
            key = (line.number, outcome, seconds, start)
            profile = engine.outcomes.cohorts.profile(key)
            labelled = 0 if profile is None else min(profile.rows + profile.unusable, made)
            usual = usual_coverage(engine, number, outcome, seconds, start)
            yield {
                "window": duration_text(seconds),
                "window_start": time_text(start),
                "window_end": time_text(start + span),
                "predictions": made,
                "labelled": labelled,
                "unusable": 0 if profile is None else profile.unusable,
                "coverage": labelled / made,
                "usual_coverage": None if np.isnan(usual) else usual,
                "ripeness": str(
                    engine.outcomes.labels.ripeness(
                        number, outcome, end_us=start + span, made=made, labelled=labelled, now_us=now_us
                    )
                ),
                "figures": list(_figures(engine, line, key, profile)),
                "revisions": [_revision(revision, made) for revision in engine.revisions.of(key)],
            }


def _figures(engine: Engine, line: Line, key: CohortKey, profile: OutcomeProfile | None) -> Iterator[Json]:
    """The first metrics of a cohort: what its labels say, what was expected of it without them, and the baseline's."""
    reference = engine.outcomes.reference(line, key[1])
    shown = profile if profile is not None else reference
    if shown is None:
        return
    now = {} if profile is None else first_figures(profile)
    is_estimated = engine.names.outcomes[key[1]] == ESTIMATED
    rows = engine.estimates.performance(line, (line.number, key[2], key[3])) if is_estimated else []
    expected = {row.metric: (row.value, row.lower, row.upper) for row in rows}
    base = {} if reference is None else metrics(reference)
    for name in FIRST_METRICS[shown.task]:
        yield {
            "metric": name,
            **_told("", now.get(name)),
            **_told("expected_", expected.get(name)),
            "baseline_value": _finite(base[name].value) if name in base else None,
        }


def _told(prefix: str, figure: Figure | None) -> Json:
    value, lower, upper = (None, None, None) if figure is None else map(_finite, figure)
    return {f"{prefix}value": value, f"{prefix}lower": lower, f"{prefix}upper": upper}


def _revision(revision: Revision, made: int) -> Json:
    figures = [{"metric": name, **_told("", figure)} for name, figure in revision.figures.items()]
    labelled = min(revision.labelled, made)
    return {"at": time_text(revision.at_us), "labelled": labelled, "coverage": labelled / made, "figures": figures}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
