"""What the API and the console see: figures frozen after each commit, history read from what is committed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from stream_monitor import budgets, delays, history, past
from stream_monitor.app import Monitor
from stream_monitor.config import duration_text
from stream_monitor.engine import Engine, time_text
from stream_monitor.errors import StateError, UsageError
from stream_monitor.judge.baseline import Baseline
from stream_monitor.objectives import OUTCOME as OBJECTIVES_OUTCOME
from stream_monitor.publish.http import Filters, Promotion
from stream_monitor.records import Json, ModelKey

LAG_SECONDS = 60.0
"""Not ready while event time is this far behind its newest event, or a checkpoint this old: about six panes."""

PROMOTE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Frozen:
    """What was true at one commit."""

    summary: Json = field(default_factory=dict)
    models: Sequence[Json] = ()
    features: Sequence[Json] = ()
    labels: Sequence[Json] = ()
    performance: Sequence[Json] = ()
    references: past.References = field(default_factory=dict)
    estimators: past.Estimators = field(default_factory=dict)
    baselines: Sequence[Json] = ()
    budgets: Sequence[budgets.Spending] = ()
    status: Json = field(default_factory=dict)
    committed_at: float = 0.0  # monotonic seconds
    lag: int = 0


def freeze(engine: Engine, now_seconds: float) -> Frozen:
    """Everything the API answers from memory; to be called by the loop, after a commit."""
    features = [
        {"model": version.key.model, "version": version.key.version, **feature}
        for index, version in engine.versions.items()
        for feature in history.features(engine, index)
    ]
    return Frozen(
        summary=history.summary(engine),
        models=history.models(engine),
        features=features,
        labels=delays.rows(engine),
        performance=history.recent_performance(engine),
        references=history.references(engine),
        estimators=engine.estimates.readers(),
        baselines=history.baselines(engine),
        budgets=[s for s in map(budgets.of_version, engine.versions.values()) if s is not None],
        status=status(engine),
        committed_at=now_seconds,
        lag=lag(engine),
    )


def lag(engine: Engine) -> int:
    """Records between our positions and the ends the broker told."""
    return sum(max(0, s.end - (s.position or 0)) for s in engine.flow.states.values() if s.end is not None)


def status(engine: Engine) -> dict[str, Any]:
    """How the service itself is."""
    return {
        "watermark": None if engine.sealed_us is None else time_text(engine.sealed_us),
        "label_watermark": None if engine.joined_sealed_us is None else time_text(engine.joined_sealed_us),
        "lag_events": lag(engine),
        "rows_open": sum(version.open_rows() for version in engine.versions.values()),
        "rows_parked": engine.flow.parked_rows(),
        "labels_in_hand": engine.truth.pending_labels(),
        "state_bytes": engine.store.size_bytes(),
        "refusing_most_records": {str(s): storm.raging for s, storm in engine.storms.items()},
        "partitions": [
            {
                "stream": str(p.stream),
                "topic": p.topic,
                "partition": p.number,
                "position": s.position,
                "end": s.end,
                "event_time": None if s.clock.highest_us is None else time_text(s.clock.highest_us),
            }
            for p, s in sorted(engine.flow.states.items())
        ],
    }


class LiveView:
    """The View of a running service."""

    def __init__(self, monitor: Monitor, clock: Callable[[], float] = time.monotonic) -> None:
        self._monitor = monitor
        self._names = monitor.engine.names
        self._reader = monitor.engine.store.reader()
        self._lock = threading.Lock()
        self._clock = clock
        self._frozen = Frozen()

    def refresh(self) -> None:
        """Freeze the engine as it is now; called by the loop after a commit."""
        self._frozen = freeze(self._monitor.engine, self._clock())

    def summary(self) -> Json:
        return self._frozen.summary

    def models(self) -> Sequence[Json]:
        return self._frozen.models

    def features(self, filters: Filters) -> Sequence[Json]:
        rows = [
            r for r in self._frozen.features
            if _is_of(r, filters) and filters.feature in (None, r["name"])
        ]  # fmt: skip
        if filters.window_seconds is not None:
            window = duration_text(filters.window_seconds)
            rows = [{**r, "latest": [x for x in r["latest"] if x["window"] == window]} for r in rows]
        return rows[filters.offset : filters.offset + filters.limit]

    def budgets(self, filters: Filters) -> Sequence[Json]:
        # Worked out when somebody asks, in the thread of who asks: a Spending is frozen.
        wanted = [s for s in self._frozen.budgets
                  if filters.model in (None, s.model) and filters.version in (None, s.version)]  # fmt: skip
        return [budgets.shown(s) for s in wanted[filters.offset : filters.offset + filters.limit]]

    def labels(self, filters: Filters) -> Sequence[Json]:
        rows = [r for r in self._frozen.labels if _is_of(r, filters) and filters.outcome in (None, r["outcome"])]
        return rows[filters.offset : filters.offset + filters.limit]

    def scores(self, filters: Filters) -> Sequence[Json]:
        with self._reading() as reader:
            return history.query_scores(reader, self._names, filters)

    def incidents(self, filters: Filters) -> Sequence[Json]:
        with self._reading() as reader:
            return history.query_incidents(reader, filters)

    def incident(self, incident_id: str) -> Json | None:
        with self._reading() as reader:
            row = reader.execute("select body from incidents where id = ?", [incident_id]).fetchone()
        return None if row is None else json.loads(row[0])

    def performance(self, filters: Filters) -> Sequence[Json]:
        return [{**row, "objective": self._objective(row)} for row in self._performance(filters)]

    def _performance(self, filters: Filters) -> Sequence[Json]:
        if filters.since_us is not None or filters.until_us is not None:
            with self._reading() as reader:
                return past.performance(
                    reader, self._names, filters, self._frozen.references, estimators=self._frozen.estimators
                )
        rows = [
            r for r in self._frozen.performance
            if _is_of(r, filters)
            and filters.metric in (None, r["metric"])
            and filters.basis in (None, r["basis"])
            and filters.outcome in (None, r["outcome"])
            and filters.segment in (None, ",".join(f"{key}={value}" for key, value in r["segment"].items()))
            and (filters.window_seconds is None or r["window"] == duration_text(filters.window_seconds))
        ]  # fmt: skip
        return rows[filters.offset : filters.offset + filters.limit]

    def _objective(self, row: Json) -> str | None:
        """What the configuration asks of the metric of a row; of the default outcome of whole models."""
        if row["segment"] or row["outcome"] != OBJECTIVES_OUTCOME:
            return None
        return self._monitor.engine.config.model(row["model"]).objectives.get(row["metric"])

    def performance_details(self, filters: Filters) -> Sequence[Json]:
        with self._reading() as reader:
            return past.details(reader, self._names, filters, self._frozen.references)

    def baselines(self) -> Sequence[Json]:
        return self._frozen.baselines

    def status(self) -> Json:
        ready, reasons = self.ready()
        return {**self._frozen.status, "ready": ready, "reasons": reasons}

    def ready(self) -> tuple[bool, list[str]]:
        frozen = self._frozen
        reasons = []
        if not frozen.committed_at:
            reasons.append("The first checkpoint is not written yet.")
        elif self._clock() - frozen.committed_at > LAG_SECONDS:
            age = self._clock() - frozen.committed_at
            reasons.append(f"The last checkpoint is {age:.0f} s old.")
        if frozen.lag > CATCHING_UP_RECORDS:
            reasons.append(f"It is catching up: {frozen.lag} records are not read yet.")
        return not reasons, reasons

    def promote(self, promotion: Promotion) -> Json:
        answer = self._monitor.ask(lambda engine: promote(engine, promotion))
        try:
            done: Json = answer.result(PROMOTE_SECONDS)
        except FutureTimeoutError:
            raise StateError("the service is busy; the promotion is queued") from None
        return done

    def _reading(self) -> closing[history.Reader]:
        with self._lock:
            return closing(self._reader.cursor())

    def close(self) -> None:
        """Let go of the reading connection."""
        self._reader.close()


CATCHING_UP_RECORDS = 100_000
"""A backlog of more than this is no lag but a replay: some seconds at full speed."""


def _is_of(row: Json, filters: Filters) -> bool:
    return filters.model in (None, row["model"]) and filters.version in (None, row["version"])


def promote(engine: Engine, promotion: Promotion) -> Json:
    """Give a version a built baseline, another version's, or its own traffic; called in the loop's thread."""
    index = engine.names.version_index(ModelKey(promotion.model, promotion.version))
    if index is None:
        raise UsageError(f"no events of {promotion.model} {promotion.version} were seen yet")
    version = engine.versions[index]
    if promotion.baseline is not None:
        made = Baseline.from_bytes(promotion.baseline)
    elif promotion.from_version is not None:
        made = _borrowed(engine, promotion)
    else:
        made = _from_traffic(engine, version.baseline, promotion, index)
    now = engine.sealed_us if engine.sealed_us is not None else made.created_us
    engine.note(version.promote(replace(made, model=promotion.model, version=promotion.version), now_us=now))
    assert version.baseline is not None
    return {
        "baseline_id": version.baseline.id,
        "model": promotion.model,
        "version": promotion.version,
        "rows": version.baseline.profile.rows,
        "source": version.baseline.source,
    }


def _borrowed(engine: Engine, promotion: Promotion) -> Baseline:
    other = engine.names.version_index(ModelKey(promotion.model, promotion.from_version or ""))
    held = None if other is None else engine.versions[other].baseline
    if held is None:
        raise UsageError(f"{promotion.model} {promotion.from_version} has no baseline to take")
    return replace(held, provisional=False, source=f"baseline of version {promotion.from_version}")


def _from_traffic(engine: Engine, held: Baseline | None, promotion: Promotion, index: int) -> Baseline:
    """What the version saw in a stretch of time, on the bins it has: one merge."""
    if held is None:
        raise UsageError(f"{promotion.model} {promotion.version} has no bins yet: it is still learning")
    if promotion.since_us is None or engine.sealed_us is None:
        raise UsageError("say from_version, or since (and until) of the traffic to take")
    pane = engine.pane_us
    since = promotion.since_us // pane * pane
    until = min(promotion.until_us or engine.sealed_us, engine.sealed_us) // pane * pane
    profile = engine.versions[index].whole().total(since, until)
    if profile.rows < LEAST_ROWS:
        raise UsageError(f"only {profile.rows} rows are kept of that time; a baseline needs {LEAST_ROWS}")
    return replace(
        held,
        profile=profile,
        provisional=False,
        created_us=until,
        source=f"traffic from {time_text(since)} to {time_text(until)}",
    )


LEAST_ROWS = 200
"""Fewer baseline rows than this are `insufficient` for every statistic."""
