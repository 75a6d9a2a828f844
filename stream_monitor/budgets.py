"""The budget of false alarms as people see it: how it is split, the limits it means, and how soon changes are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from stream_monitor.config import Config
from stream_monitor.judge import calibrate, hazard, power
from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.calibrate import LABELS_SHARE, Budget
from stream_monitor.judge.charts import SCALES, Limits
from stream_monitor.judge.power import CHANGES, Change, Charted
from stream_monitor.judge.watch import FIRST_MARK, Traffic, Watch
from stream_monitor.records import Floats, Json

if TYPE_CHECKING:
    from stream_monitor.versions import Line, Version

PUBLISHED_SHIFTS = (0.5, 1.0)
"""Of the metrics: a change people would see in a plot, and one they would call large."""


@dataclass(frozen=True, slots=True)
class Spending:
    """How a model's budget is spent on one version. `data`, `labels`, `segments`: shares of it, one altogether."""

    model: str
    version: str
    baseline_id: str
    false_alarms: str
    minimum_effect: float
    events_per_second: float
    is_rate_assumed: bool
    events_between: float  # false incidents of the model
    data: float
    labels: float
    segments: float
    hazard: float  # the nominal rate of each subject's charts
    judged: int  # subjects
    charted: Charted


def of_version(version: Version) -> Spending | None:
    """As it is now; None while the version has no baseline."""
    line, engine = version.whole(), version.engine
    if line.watch is None or line.baseline is None:
        return None
    return _spending(line.watch, line.baseline, engine.config, has_labels=engine.expects_labels)


def of_baseline(baseline: Baseline, config: Config, *, events_per_second: float) -> Spending:
    """What a service with this configuration would spend on a version at such a rate."""
    has_labels = bool(config.source.ground_truth)
    data = 1 - LABELS_SHARE if has_labels else 1.0
    if config.model(baseline.model).segments:
        data /= 2
    budget, traffic = Budget.parse(config.drift.false_alarms), Traffic(rate=events_per_second)
    watch = Watch.of(baseline, budget, data, seasonality=config.drift.seasonality, traffic=traffic)
    return _spending(watch, baseline, config, has_labels=has_labels)


def _spending(watch: Watch, baseline: Baseline, config: Config, *, has_labels: bool) -> Spending:
    labels = LABELS_SHARE if has_labels else 0.0
    return Spending(
        model=baseline.model,
        version=baseline.version,
        baseline_id=baseline.id,
        false_alarms=config.drift.false_alarms,
        minimum_effect=config.drift.minimum_effect,
        events_per_second=watch.traffic.rate,
        is_rate_assumed=watch.traffic.events < FIRST_MARK,
        events_between=watch.budget.events_between(watch.traffic.rate),
        data=watch.share,
        labels=labels,
        segments=max(0.0, round(1 - labels - watch.share, 12)),
        hazard=watch.charts.hazard,
        judged=watch.subjects,
        charted=_charted(watch, baseline),
    )


def _charted(watch: Watch, baseline: Baseline) -> Charted:
    charts = watch.charts
    assert charts.inflation is not None
    assert charts.freedom is not None
    return Charted(
        charts.ranks, charts.tables, charts.limits, charts.inflation, charts.freedom, baseline.schema.subjects
    )


def shown(spending: Spending) -> Json:
    """As the API and `baseline show` tell it; events that are never enough are None, a change that cannot be is left out."""
    twice = replace(spending.charted, limits=_limits_at(spending, budgets=2))
    return {
        "model": spending.model,
        "version": spending.version,
        "baseline_id": spending.baseline_id,
        "false_alarms": spending.false_alarms,
        "events_per_second": spending.events_per_second,
        "rate_assumed": spending.is_rate_assumed,
        "events_between_false_incidents": round(spending.events_between),
        "shares": {"data": spending.data, "labels": spending.labels, "segments": spending.segments},
        "subjects_judged": spending.judged,
        "minimum_effect": spending.minimum_effect,
        "subjects": _subjects(spending, power.events_to_find(spending.charted), power.events_to_find(twice)),
    }


def _limits_at(spending: Spending, *, budgets: float) -> Limits:
    """The limits that so many times the budget would mean."""
    of = spending.charted
    run_length = spending.events_between / spending.data / budgets
    nominal = hazard.nominal_rate(run_length, max(spending.judged, 1))
    return Limits.of(of.ranks, of.tables, hazard=nominal, inflation=of.inflation, freedom=of.freedom)


def _subjects(spending: Spending, now: Floats, twice: Floats) -> list[Json]:
    of = spending.charted
    shortest, longest = power.normal_limits(of.limits)
    effects = power.effects(of.ranks, of.subjects)
    alone = round(hazard.mean_run_length(spending.hazard, 1))
    found: list[Json] = []
    for f, subject in enumerate(of.subjects):
        judged = bool(of.ranks.readable[f] >= calibrate.MINIMUM_BASELINE_ROWS)
        found.append(
            {
                "name": subject.key.name,
                "kind": subject.key.kind,
                "value_kind": subject.value_kind,
                "readable_baseline_rows": int(of.ranks.readable[f]),
                "insufficient": not judged,
                "events_between_false_alarms": alone if judged else None,
                "limit": {str(SCALES[0]): _rounded(shortest[f]), str(SCALES[-1]): _rounded(longest[f])}
                if judged
                else None,
                "events_to_find": _named(now[:, f]),
                "events_to_find_at_twice_the_budget": _named(twice[:, f]),
                "below_minimum_effect": [
                    change.name
                    for change, effect in zip(CHANGES, effects[:, f].tolist(), strict=True)
                    if judged and effect < spending.minimum_effect
                ],
            }
        )
    return found


def _named(events: Floats) -> dict[str, int | None]:
    pairs = zip(CHANGES, events.tolist(), strict=True)
    return {c.name: int(np.ceil(n)) if np.isfinite(n) else None for c, n in pairs if not np.isnan(n)}


def _rounded(limit: float) -> float:
    return round(float(limit), 2)


_WORST: WeakKeyDictionary[Line, tuple[Limits, Mapping[float, float]]] = WeakKeyDictionary()
"""Worked out anew when the limits of a line are: at most every 65,536 events."""


def worst_shifts(line: Line, shifts: Sequence[float] = PUBLISHED_SHIFTS) -> Mapping[float, float]:
    """Events until a shift is found in the numeric feature or prediction where it takes longest; none without any."""
    if line.watch is None or line.baseline is None:
        return {}
    limits = line.watch.charts.limits
    known = _WORST.get(line)
    if known is None or known[0] is not limits:
        events = power.events_to_find(_charted(line.watch, line.baseline), [Change("shift", s) for s in shifts])
        worst = {s: float(np.nanmax(row)) for s, row in zip(shifts, events, strict=True) if not np.isnan(row).all()}
        known = _WORST[line] = (limits, worst)
    return known[1]
