"""Performance of past windows, read from what is committed: for other threads than the one that owns the engine."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stream_monitor.config import duration_text
from stream_monitor.engine import time_text
from stream_monitor.estimates import KIND as PREDICTED
from stream_monitor.estimates import Beside, LineReader, comparable, rows_of
from stream_monitor.history import Reader, performance_json
from stream_monitor.judge.detail import detail
from stream_monitor.judge.estimate import OUTCOME
from stream_monitor.judge.performance import metrics, performance_rows
from stream_monitor.judge.verdicts import Span
from stream_monitor.names import Names
from stream_monitor.publish.http import Filters
from stream_monitor.records import MICROSECONDS, Json, LineKey, Performance
from stream_monitor.summarize.outcome import OutcomeProfile
from stream_monitor.summarize.scores import ScoreProfile

References = Mapping[tuple[int, int], OutcomeProfile]
"""What a (line, outcome) is compared with: the baseline's truth, or the first labels."""

Estimators = Mapping[int, LineReader]
"""By line: what estimates are read with."""

_NO_ESTIMATORS: Estimators = MappingProxyType({})

AT_ONCE = 50
"""Windows read together: each costs a scan of the states, and may be 100 kB."""


@dataclass(frozen=True, slots=True)
class Window:
    """One stored window."""

    line: LineKey
    outcome: str
    basis: str
    seconds: int
    start_us: int
    profile: OutcomeProfile
    reference: OutcomeProfile | None
    made: int

    @property
    def coverage(self) -> float:
        """Labelled predictions over all, also those that cannot be read; NaN where none are known."""
        labelled = self.profile.rows + self.profile.unusable
        return min(labelled / self.made, 1.0) if self.made else float("nan")


def performance(
    reader: Reader,
    names: Names,
    filters: Filters,
    references: References,
    *,
    estimators: Estimators = _NO_ESTIMATORS,
) -> list[Json]:
    """Rows of `performance.parquet`, the newest windows first."""
    rows: list[Json] = []
    realised = (_metrics(window) for window in windows(reader, names, filters, references))
    estimated = estimates(reader, names, filters, estimators)
    for found in heapq.merge(estimated, (part for part in realised if part), key=_newest_first):
        rows += [{**performance_json(row), **more} for row, more in found if filters.metric in (None, row.metric)]
        if len(rows) >= filters.offset + filters.limit:
            break
    return rows[filters.offset : filters.offset + filters.limit]


def details(reader: Reader, names: Names, filters: Filters, references: References) -> list[Json]:
    """What stands behind the figures of each window, the newest first."""
    found: list[Json] = []
    for window in windows(reader, names, filters, references):
        if len(found) == filters.offset + filters.limit:
            break
        found.append(_detail(window) if len(found) >= filters.offset else {})
    return found[filters.offset :]


_Rows = list[tuple[Performance, Json]]
"""The rows of one window, and what is said beside each."""


def _newest_first(rows: _Rows) -> tuple[int, int]:
    return -rows[0][0].window_start_us, rows[0][0].window_end_us


def estimates(reader: Reader, names: Names, filters: Filters, estimators: Estimators) -> Iterator[_Rows]:
    """What is expected of the stored windows that are asked for, the newest first, and beside it what came of them."""
    lines = [n for n in _lines(names, filters) if n in estimators]
    if filters.basis not in (None, "estimated") or filters.outcome not in (None, OUTCOME) or not lines:
        return
    for at in itertools.count(0, AT_ONCE):
        found: list[tuple[int, int, int, bytes]] = reader.execute(
            "with parts as (select value, try_cast(string_split(key, '/') as bigint[]) as part from states "
            "where kind = ?) select part[1] as line, part[2] as seconds, part[3] as start_us, value from parts "
            "where list_contains(?, part[1]) and (? is null or part[2] = ?) and (? is null or part[3] >= ?) "
            f"and (? is null or part[3] < ?) order by start_us desc, seconds, line limit {AT_ONCE} offset {at}",
            [PREDICTED, lines, *_twice(filters)],
        ).fetchall()
        outcome = names.outcomes.index(OUTCOME) if OUTCOME in names.outcomes else -1
        keys = [f"{line}/{outcome}/{seconds}/{start}" for line, seconds, start, _ in found]
        cohorts = _states(reader, ["cohort"], keys)
        for (line, seconds, start, body), key in zip(found, keys, strict=True):
            held, scores, cohort = estimators[line], ScoreProfile.from_bytes(bytes(body)), cohorts.get(("cohort", key))
            expected = held.estimator.estimates(scores)
            if expected:
                rows = rows_of(names.lines[line], seconds, start, expected, held.reference)
                known = None if cohort is None else OutcomeProfile.from_bytes(cohort)
                yield list(zip(rows, _beside(held, scores, known, rows), strict=True))
        if len(found) < AT_ONCE:
            return


def _beside(
    held: LineReader, scores: ScoreProfile, known: OutcomeProfile | None, rows: list[Performance]
) -> Iterator[Json]:
    """What labels show of each estimate, and the estimate adjusted for them."""
    span = rows[0].window_start_us, rows[0].window_end_us
    adjusted = {} if known is None else held.adjusted(scores, known, *span)
    came = None if known is None else metrics(known)
    for row in rows:
        found = adjusted.get(row.metric)
        yield Beside(comparable(came, row.metric), None if found is None else found.metric()).told(row.metric)


def _lines(names: Names, filters: Filters) -> list[int]:
    return [
        n for n, line in enumerate(names.lines)
        if filters.model in (None, line.model)
        and filters.version in (None, line.version)
        and filters.segment in (None, line.segment_name)
    ]  # fmt: skip


def _outcomes(names: Names, filters: Filters) -> list[int]:
    return [n for n, name in enumerate(names.outcomes) if filters.outcome in (None, name)]


def _twice(filters: Filters) -> list[int | None]:
    """The parameters of `? is null or x = ?`."""
    return [v for v in (filters.window_seconds, filters.since_us, filters.until_us) for _ in range(2)]


def windows(reader: Reader, names: Names, filters: Filters, references: References) -> Iterator[Window]:
    """The stored windows that are asked for, the newest first."""
    bases = ["cohort", "arrival"] if filters.basis is None else [filters.basis]
    keys: list[tuple[str, str, int, int, int, int]] = reader.execute(
        "with parts as (select kind, key, try_cast(string_split(key, '/') as bigint[]) as part from states "
        "where list_contains(?, kind)) "
        "select kind, key, part[1] as line, part[2] as outcome, part[3] as seconds, part[4] as start_us from parts "
        "where list_contains(?, part[1]) and list_contains(?, part[2]) and (? is null or part[3] = ?) "
        "and (? is null or part[4] >= ?) and (? is null or part[4] < ?) "
        "order by start_us desc, seconds, line, outcome, kind desc",
        [bases, _lines(names, filters), _outcomes(names, filters), *_twice(filters)],
    ).fetchall()
    for at in range(0, len(keys), AT_ONCE):
        part = keys[at : at + AT_ONCE]
        bodies = _states(reader, bases, [key for _, key, *_ in part])
        made = _states(reader, ["made"], [f"{line}/{seconds}/{start}" for _, _, line, _, seconds, start in part])
        for kind, key, line, outcome, seconds, start in part:
            body = bodies.get((kind, key))
            if body is None:
                continue  # expired since the keys were read
            count = int.from_bytes(made.get(("made", f"{line}/{seconds}/{start}"), b""), "big")
            yield Window(names.lines[line], names.outcomes[outcome], kind, seconds, start,
                         OutcomeProfile.from_bytes(body), references.get((line, outcome)), count)  # fmt: skip


def _states(reader: Reader, kinds: list[str], keys: list[str]) -> dict[tuple[str, str], bytes]:
    rows = reader.execute(
        "select kind, key, value from states where list_contains(?, kind) and list_contains(?, key)", [kinds, keys]
    ).fetchall()
    return {(kind, key): bytes(value) for kind, key, value in rows}


def _metrics(window: Window) -> _Rows:
    end_us = window.start_us + window.seconds * MICROSECONDS
    rows = performance_rows(
        metrics(window.profile),
        Span(window.line, duration_text(window.seconds), window.start_us, end_us),
        outcome=window.outcome,
        basis=window.basis,
        coverage=window.coverage,
        reference=window.reference,
    )
    return [(row, {}) for row in rows]


def _detail(window: Window) -> Json:
    return {
        "model": window.line.model,
        "version": window.line.version,
        "segment": dict(window.line.segment),
        "outcome": window.outcome,
        "basis": window.basis,
        "window": duration_text(window.seconds),
        "window_start": time_text(window.start_us),
        "window_end": time_text(window.start_us + window.seconds * MICROSECONDS),
        "coverage": window.coverage,
        **detail(window.profile, window.reference),
    }
