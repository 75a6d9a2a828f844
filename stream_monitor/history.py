"""What the state says, as tables and JSON: for `replay`, the API and the console.

The functions that take an `Engine` belong to the thread that owns it, right after a checkpoint; `scores` and
`incidents` read committed rows through a reader and may be called from any thread with one of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from stream_monitor.cohorts import CohortKey
from stream_monitor.config import duration_text
from stream_monitor.engine import Engine, time_text
from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.estimate import estimator_of
from stream_monitor.names import Names
from stream_monitor.publish.http import Filters
from stream_monitor.records import MICROSECONDS, LineKey, Performance, Stream
from stream_monitor.store import SCORES
from stream_monitor.summarize.outcome import OutcomeProfile
from stream_monitor.summarize.profile import means
from stream_monitor.summarize.protocol import MISSING, UNSEEN, WRONG_TYPE
from stream_monitor.versions import Line

Reader = duckdb.DuckDBPyConnection
"""A connection for another thread, to read what is committed."""

LABEL_FATES = ("matched", "duplicate", "corrected", "orphan_waiting", "orphan_expired")


def total(engine: Engine, counter: str, **labels: str) -> int:
    """The sum of a counter over every series that carries these labels."""
    wanted = labels.items()
    return sum(
        n for (name, text), n in engine.counters.items() if name == counter and wanted <= json.loads(text).items()
    )


def summary(engine: Engine) -> dict[str, Any]:
    """What `summary.json` and `/api/v1/summary` hold: totals over the whole state."""
    fates = {
        f: total(engine, "events", stream=Stream.INFERENCE, outcome=f) for f in ("summarised", "late", "duplicate")
    }
    rejected = {s: total(engine, "rejected", stream=s) for s in Stream}
    ledger = engine.truth.ledger
    labels = {fate: ledger.fate(fate) for fate in LABEL_FATES}
    # What is in hand but not joined yet waits like an orphan does.
    labels["orphan_waiting"] += engine.truth.pending_labels()
    labels["rejected"] = rejected[Stream.GROUND_TRUTH]
    versions = range(len(engine.names.versions))
    return {
        "inference": {
            "offered": sum(fates.values()) + rejected[Stream.INFERENCE],
            "summarised": fates["summarised"],
            "rejected": rejected[Stream.INFERENCE],
            "late": fates["late"],
            "duplicate": fates["duplicate"],
        },
        "ground_truth": {"offered": sum(labels.values()), **labels},
        "predictions": {
            "labelled": sum(ledger.labelled[v] for v in versions),
            "waiting": sum(ledger.waiting(v) for v in versions),
            "expired_unlabelled": sum(ledger.expired[v] for v in versions),
        },
        "models": [model_totals(engine, v) for v in versions],
        "incidents": incident_count(engine),
    }


def incident_count(engine: Engine) -> int:
    """How many incidents were ever opened."""
    return int(engine.store.query("select count(*) as n from incidents")["n"][0].as_py())


def model_totals(engine: Engine, index: int) -> dict[str, Any]:
    """One version: its events and when they were."""
    version = engine.versions[index]
    made = engine.truth.ledger.predictions[index]
    return {
        "model": version.key.model,
        "version": version.key.version,
        "events": made,
        "first_event": None if version.first_us is None else time_text(version.first_us),
        "last_event": None if version.newest_us is None else time_text(version.newest_us),
    }


def models(engine: Engine) -> list[dict[str, Any]]:
    """Every version with its traffic, baseline and open incidents."""
    ledger = engine.truth.ledger
    found = []
    for index, version in engine.versions.items():
        labels = {"model": version.key.model, "version": version.key.version}
        fates = {f: total(engine, "events", outcome=f, **labels) for f in ("summarised", "late", "duplicate")}
        found.append(
            {
                **model_totals(engine, index),
                **fates,
                "team": version.model.team,
                "labelled": ledger.labelled[index],
                "waiting": ledger.waiting(index),
                "expired_unlabelled": ledger.expired[index],
                "baseline_id": None if version.baseline is None else version.baseline.id,
                "provisional": None if version.baseline is None else version.baseline.provisional,
                "extra_features": dict(sorted(version.extra.items())),
                "open_incidents": sum(len(line.book.open_incidents) for line in version.lines.values()),
            }
        )
    return found


def features(engine: Engine, index: int) -> list[dict[str, Any]]:
    """The subjects of a version: baseline figures and the verdicts of the last window of each length."""
    version = engine.versions[index]
    if version.baseline is None:
        return []
    base, line = version.baseline, version.whole()
    mean, spread = means(base.profile), base.deviations
    found = []
    for f, subject in enumerate(base.schema.subjects):
        counts = base.profile.counts[f]
        found.append(
            {
                "name": subject.key.name,
                "kind": subject.key.kind,
                "value_kind": subject.value_kind,
                "importance": importance(engine, version.key.model, subject.key.name),
                "baseline": {
                    "rows": base.profile.rows,
                    "mean": _number(mean[f]) if subject.is_numeric else None,
                    "standard_deviation": _number(spread[f]) if subject.is_numeric else None,
                    "missing": int(counts[MISSING]),
                    "wrong_type": int(counts[WRONG_TYPE]),
                    "unseen": int(counts[UNSEEN]),
                    "categories": list(getattr(subject.bins, "values", ()))[:20],
                },
                "latest": [
                    {
                        "window": score.window,
                        "statistic": score.statistic,
                        "value": _number(score.value),
                        "threshold": _number(score.threshold),
                        "verdict": str(score.verdict),
                    }
                    for scores in line.latest.values()
                    for score in scores
                    if score.subject == subject.key.name
                ],
            }
        )
    return found


def importance(engine: Engine, model: str, feature: str) -> float:
    """What the configuration says a feature weighs."""
    known = engine.config.model(model).features.get(feature)
    return 1.0 if known is None else known.importance


def baselines(engine: Engine) -> list[dict[str, Any]]:
    """The baselines in use."""
    return [
        {
            "baseline_id": version.baseline.id,
            "model": version.key.model,
            "version": version.key.version,
            "rows": version.baseline.profile.rows,
            "features": sum(s.key.kind == "feature" for s in version.baseline.schema.subjects),
            "provisional": version.baseline.provisional,
            "created_at": time_text(version.baseline.created_us),
            "source": version.baseline.source,
            "outcomes": sorted(version.baseline.outcomes),
            "estimate": estimate_text(version.baseline, version.model.positive_label),
        }
        for version in engine.versions.values()
        if version.baseline is not None
    ]


def estimate_text(baseline: Baseline, positive_label: str | None) -> str:
    """How performance is estimated by a baseline before labels come, or why it is not."""
    found = estimator_of(baseline, positive_label)
    return f"none: {found}" if isinstance(found, str) else found.method


# -- tables --------------------------------------------------------------------------------------

_TIME = pa.timestamp("us", tz="UTC")


def segment_text(line: LineKey) -> str:
    """A segment as JSON, `{}` for the whole model."""
    return json.dumps(dict(line.segment), ensure_ascii=False)


def scores_table(engine: Engine) -> pa.Table:
    """The columns of `scores.parquet`, in the order of time."""
    lines = engine.names.lines
    rows = engine.store.query(
        f"select * from {engine.store.relation(SCORES)} "
        "order by start_us + window_seconds::bigint * 1000000, window_seconds, line, reference, subject, statistic"
    )
    line = rows["line"].to_pylist()
    start = rows["start_us"].to_numpy()
    length = rows["window_seconds"].to_numpy().astype(np.int64)
    return pa.table(
        {
            "model": pa.array([lines[n].model for n in line], pa.string()),
            "version": pa.array([lines[n].version for n in line], pa.string()),
            "segment": pa.array([segment_text(lines[n]) for n in line], pa.string()),
            "window": pa.array([duration_text(s) for s in length.tolist()], pa.string()),
            "window_start": pa.array(start, _TIME),
            "window_end": pa.array(start + length * MICROSECONDS, _TIME),
            **{name: rows[name] for name in ("reference", "subject", "statistic", "value", "expected", "threshold",
                                             "effect", "samples", "baseline_samples", "verdict")},
        }
    )  # fmt: skip


def performance_rows(engine: Engine) -> Iterator[Performance]:
    """Every metric of every window that has labels or an estimate, as it stands now."""
    engine.outcomes.save()
    for basis, kind in (("cohort", "cohort"), ("arrival", "arrival")):
        for text, body in engine.store.states(kind).items():
            line, outcome, seconds, start = (int(part) for part in text.split("/"))
            yield from engine.outcomes.performance(
                (line, outcome, seconds, start), basis, OutcomeProfile.from_bytes(body)
            )
    yield from engine.estimates.all_performance()


def performance_table(engine: Engine) -> pa.Table:
    """The columns of `performance.parquet`, in the order of time."""
    rows = sorted(
        performance_rows(engine),
        key=lambda r: (r.window_end_us, r.window_end_us - r.window_start_us, r.line, r.outcome, r.basis, r.metric),
    )
    columns: dict[str, pa.Array] = {
        "model": pa.array([r.line.model for r in rows], pa.string()),
        "version": pa.array([r.line.version for r in rows], pa.string()),
        "segment": pa.array([segment_text(r.line) for r in rows], pa.string()),
        "outcome": pa.array([r.outcome for r in rows], pa.string()),
        "basis": pa.array([r.basis for r in rows], pa.string()),
        "window": pa.array([r.window for r in rows], pa.string()),
        "window_start": pa.array([r.window_start_us for r in rows], _TIME),
        "window_end": pa.array([r.window_end_us for r in rows], _TIME),
        "metric": pa.array([r.metric for r in rows], pa.string()),
        "samples": pa.array([r.samples for r in rows], pa.int64()),
    }
    for name in ("value", "lower", "upper", "coverage", "baseline_value", "best_constant"):
        columns[name] = pa.array([getattr(r, name) for r in rows], pa.float64())
    return pa.table(columns)


def revisions_table(engine: Engine) -> pa.Table:
    """The columns of `revisions.parquet`, in the order in which it was said; a row for each figure that was."""
    rows = []
    for key, revisions in engine.revisions.all():
        line, made = engine.names.lines[key[0]], engine.outcomes.cohorts.made(key[0], key[2], key[3])
        for revision in revisions:
            rows += [(revision, key, line, made, name, figure) for name, figure in revision.figures.items()]
    rows.sort(key=lambda row: (row[0].at_us, row[1][2], row[1], row[4]))
    columns: dict[str, pa.Array] = {
        "model": pa.array([line.model for _, _, line, *_ in rows], pa.string()),
        "version": pa.array([line.version for _, _, line, *_ in rows], pa.string()),
        "segment": pa.array([segment_text(line) for _, _, line, *_ in rows], pa.string()),
        "outcome": pa.array([engine.names.outcomes[key[1]] for _, key, *_ in rows], pa.string()),
        "window": pa.array([duration_text(key[2]) for _, key, *_ in rows], pa.string()),
        "window_start": pa.array([key[3] for _, key, *_ in rows], _TIME),
        "window_end": pa.array([key[3] + key[2] * MICROSECONDS for _, key, *_ in rows], _TIME),
        "at": pa.array([revision.at_us for revision, *_ in rows], _TIME),
        "metric": pa.array([name for *_, name, _ in rows], pa.string()),
        "samples": pa.array([revision.labelled for revision, *_ in rows], pa.int64()),
        "coverage": pa.array([min(r.labelled / made, 1.0) for r, _, _, made, *_ in rows], pa.float64()),
    }
    for place, name in enumerate(("value", "lower", "upper")):
        columns[name] = pa.array([figure[place] for *_, figure in rows], pa.float64())
    return pa.table(columns)


def recent_performance(engine: Engine) -> list[dict[str, Any]]:
    """The newest closed windows of every line and outcome, as JSON, for the API."""
    found: list[dict[str, Any]] = []
    for version in engine.versions.values():
        for line in version.lines.values():
            found += _recent_estimates(engine, line)
            for outcome, name in enumerate(engine.names.outcomes):
                for seconds in engine.config.windows:
                    for key, basis, profile, more in _recent_windows(engine, line, outcome, seconds):
                        rows = engine.outcomes.performance(key, basis, profile)
                        found += [{**performance_json(row), "outcome": name, **more} for row in rows]
    return found


def _recent_windows(
    engine: Engine, line: Line, outcome: int, seconds: int
) -> Iterator[tuple[CohortKey, str, OutcomeProfile, dict[str, Any]]]:
    """(window, basis, profile, what else is known) of the cohort that is shown and of what arrived last."""
    cohort = engine.shown.cohort(line, outcome, seconds)
    if cohort is not None:
        yield cohort.key, "cohort", cohort.profile, {"ripe": cohort.is_ripe, "unusable": cohort.profile.unusable}
    arrived = engine.outcomes.arrived(line, outcome, seconds)
    if arrived is not None:
        yield arrived[0], "arrival", arrived[1], {}


def _recent_estimates(engine: Engine, line: Line) -> Iterator[dict[str, Any]]:
    """The newest estimates of a line, each with what came of it."""
    for seconds in engine.config.windows:
        newest = engine.estimates.recent(line, seconds)
        if newest is None:
            continue
        beside = engine.estimates.beside(line, newest[0])
        for row in engine.estimates.performance(line, newest[0]):
            yield {**performance_json(row), **beside[row.metric].told(row.metric)}


def references(engine: Engine) -> dict[tuple[int, int], OutcomeProfile]:
    """What each (line, outcome) is compared with, once it is settled: it changes no more."""
    found = {
        (line.number, outcome): engine.outcomes.reference(line, outcome)
        for version in engine.versions.values()
        for line in version.lines.values()
        for outcome in range(len(engine.names.outcomes))
    }
    return {key: profile for key, profile in found.items() if profile is not None}


def performance_json(row: Performance) -> dict[str, Any]:
    """One row of `performance.parquet` as JSON."""
    return {
        "model": row.line.model,
        "version": row.line.version,
        "segment": dict(row.line.segment),
        "outcome": row.outcome,
        "basis": row.basis,
        "window": row.window,
        "window_start": time_text(row.window_start_us),
        "window_end": time_text(row.window_end_us),
        "metric": row.metric,
        "value": _number(row.value),
        "lower": _number(row.lower),
        "upper": _number(row.upper),
        "samples": row.samples,
        "coverage": _number(row.coverage),
        "baseline_value": _number(row.baseline_value),
        "best_constant": _number(row.best_constant),
    }


# -- queries from other threads ------------------------------------------------------------------


class _Where:
    """Conditions of a query with their parameters."""

    def __init__(self) -> None:
        self.clauses: list[str] = ["true"]
        self.parameters: list[Any] = []

    def add(self, clause: str, value: Any) -> None:
        """Narrow the query, if a value is given."""
        if value is not None:
            self.clauses.append(clause)
            self.parameters.append(value)

    @property
    def sql(self) -> str:
        return " and ".join(self.clauses)


def query_scores(reader: Reader, names: Names, filters: Filters) -> list[dict[str, Any]]:
    """Score rows, the newest first."""
    wanted = [
        n
        for n, line in enumerate(names.lines)
        if filters.model in (None, line.model) and filters.version in (None, line.version)
    ]
    tables = [r[0] for r in reader.execute("select table_name from duckdb_tables()").fetchall()]
    shelves = sorted(t for t in tables if t.startswith("scores_"))
    if not shelves or not wanted:
        return []
    where = _Where()
    where.add("list_contains(?, line)", wanted)
    where.add("subject = ?", filters.feature)
    where.add("statistic = ?", filters.statistic)
    where.add("window_seconds = ?", filters.window_seconds)
    where.add("start_us >= ?", filters.since_us)
    where.add("start_us < ?", filters.until_us)
    union = " union all ".join(f"select * from {t}" for t in shelves)
    rows = reader.execute(
        f"select line, window_seconds, start_us, reference, subject, statistic, value, expected, threshold, effect, "
        f"samples, baseline_samples, verdict from ({union}) where {where.sql} "
        f"order by start_us desc, line, reference, subject, statistic limit {filters.limit} offset {filters.offset}",
        where.parameters,
    ).fetchall()
    return [_score_json(names, row) for row in rows]


def query_incidents(reader: Reader, filters: Filters) -> list[dict[str, Any]]:
    """Incidents, the newest first."""
    where = _Where()
    where.add("model = ?", filters.model)
    where.add("version = ?", filters.version)
    where.add("kind = ?", None if filters.kind is None else str(filters.kind))
    where.add("severity = ?", None if filters.severity is None else str(filters.severity))
    where.add("opened_us >= ?", filters.since_us)
    where.add("opened_us < ?", filters.until_us)
    if filters.state is not None:
        where.clauses.append(f"closed_us is {'' if filters.state == 'open' else 'not '}null")
    where.add("list_contains(json_extract_string(body, '$.subjects[*].name'), ?)", filters.feature)
    rows = reader.execute(
        f"select body from incidents where {where.sql} order by opened_us desc, id "
        f"limit {filters.limit} offset {filters.offset}",
        where.parameters,
    ).fetchall()
    return [json.loads(row[0]) for row in rows]


def _score_json(names: Names, row: Sequence[Any]) -> dict[str, Any]:
    line, seconds, start, reference, subject, statistic, value, expected, threshold, effect, n, m, verdict = row
    key = names.lines[line]
    return {
        "model": key.model,
        "version": key.version,
        "segment": dict(key.segment),
        "window": duration_text(seconds),
        "window_start": time_text(start),
        "window_end": time_text(start + seconds * MICROSECONDS),
        "reference": reference,
        "subject": subject,
        "statistic": statistic,
        "value": _number(value),
        "expected": _number(expected),
        "threshold": _number(threshold),
        "effect": _number(effect),
        "samples": n,
        "baseline_samples": m,
        "verdict": verdict,
    }


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return None if value is None or not np.isfinite(value) else float(value)
