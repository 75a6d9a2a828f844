"""What to expect of a configuration before anything drifts: the live engine on the baseline's own rows, changed and not.

Half of the rows, in alternating blocks, become the baseline; the other half is the stream. It goes through the service's
own `Engine` under the configuration as it stands: once as it is, which shows false incidents, and then with one subject
changed in a known way after a lead-in, which shows how soon and under which name that is found.

A drift is put on decoded columns, between decode and the engine: what the engine takes is what it would be given, and
decoding is not tried. Subjects change one at a time, so nothing moves with them as it would in life.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from stream_monitor.baselines import baselines_of_rows, read_rows, row_decoder
from stream_monitor.config import Config
from stream_monitor.decode.decoder import DEFAULT_VERSION
from stream_monitor.engine import Engine
from stream_monitor.errors import InputError, UsageError
from stream_monitor.judge.baseline import MAGIC, Baseline, is_baseline_file
from stream_monitor.judge.calibrate import LABELS_SHARE, MINIMUM_BASELINE_ROWS, Budget
from stream_monitor.judge.verdicts import effects
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Binding,
    Bytes,
    Cells,
    Codes,
    Floats,
    Incident,
    IncidentKind,
    Inferences,
    Ints,
    Kind,
    ModelKey,
    PartitionId,
    RawBatch,
    Rejects,
    Stream,
)
from stream_monitor.store import Store
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.numeric import NumericBins
from stream_monitor.summarize.profile import Profile, Subject
from stream_monitor.summarize.protocol import INFINITE, MAIN, MISSING, UNSEEN, WRONG_TYPE
from stream_monitor.summarize.rows import LATENCY, PREDICTION, SCORE, Rows, SubjectKey, concat
from stream_monitor.window.flow import Decoded

EVENTS = 200_000
"""So many events without drift and five runs of each drift take a minute, of a model with a few features at 10 events/s."""
WIDE = 50
"""With 50 features an event costs twice as much as with few."""
WINDOW_EVENTS = 500
"""Judging a window costs as much as so many events: at an event a minute that is most of the work."""
RAISED_INCIDENTS, SHORTEST_RAISED = 10, 500
"""At the raised budget ten false incidents are due, but no more than one in 500 events: they would run into each other."""
EVENTS_A_RUN = 32_000
"""One run of each drift for so many events asked for: five by default."""
MOST_RUNS = 50
NUMERIC_FEATURES, OTHER_FEATURES = 5, 3
"""Features tried of each model: each costs up to six kinds of drift times the runs."""
LEAD, SHORTEST_LEAD = 8_192, 512
"""Events before a drift: the longest window of the charts, so that every chart is at work as in a service that runs."""
AFTER = (256, 256, 512, 1_024, 2_048, 4_096, 8_192)
SHORTEST_AFTER = 2_048
"""Events after it, step by step, until it is found: 16,384, twice the longest window of the charts."""
STEP = 8_192
CHECKPOINT_STEPS = 8
BLOCKS = 40
MOST_BLOCK_ROWS = 1_000
"""A block holds a fortieth of the rows, so that each half has twenty, and a thousand at most."""
MONTH_SECONDS = 30 * 86_400
ASSUMED_RATE = 10.0
START_US = 1_767_225_600 * MICROSECONDS
"""Streams begin on 2026-01-01 UTC, whenever they are played."""
DAY_US = 86_400 * MICROSECONDS
STRANGER = "stream-monitor selftest"
"""A text that is no category of anybody."""
DRIFTED = frozenset({IncidentKind.DATA_DRIFT, IncidentKind.PREDICTION_DRIFT})

PARTITION = PartitionId(Stream.INFERENCE, "selftest", 0)
BINDING = Binding(Stream.INFERENCE, "selftest")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What to try. Without `baseline` it is that of each configured model; `rate` is events a second.

    `events` without drift are shared by the models. None: what is played in a minute or two, and no row twice without
    drift, since a row that comes again brings its coincidences again.
    """

    config: Config
    baseline: Sequence[Path] = ()
    model: str | None = None
    events: int | None = None
    seed: int = 0
    rate: float | None = None


def selftest(job: Job, *, on_progress: Say | None = None) -> dict[str, Any]:
    """Try the configuration on every model that has a baseline; returns what `--json` prints.

    Raises UsageError where there is no baseline or no such file, InputError where its rows cannot be used.
    """
    say = on_progress or (lambda _: None)
    began = time.perf_counter()
    config, notes = _without_seasons(job.config)
    job = replace(job, config=config)
    say("reading the baseline")
    targets = _targets(job)
    models = [_try_model(job, target, _asked(job, target) // len(targets), say) for target in targets]
    return {
        "seed": job.seed,
        "models": models,
        "notes": notes,
        "elapsed_seconds": round(time.perf_counter() - began, 1),
    }


def _asked(job: Job, target: Target) -> int:
    """Events without drift, were this the only model: as asked for, else what ends in a minute or two."""
    windows = (
        WINDOW_EVENTS
        / (target.rate * min(job.config.windows))
        * (3 if job.config.model(target.key.model).segments else 1)
    )
    return job.events or max(1, round(EVENTS / (1 + len(target.baseline.schema) / WIDE + windows)))


@dataclass(frozen=True, slots=True)
class Size:
    """How much is played with drifts: all of it grows with the events asked for."""

    runs: int
    lead: int  # events before the drift
    after: Sequence[int]  # and after it, step by step

    @classmethod
    def of(cls, events: int) -> Size:
        """For so many events without drift."""
        lead, most = (round(full * min(1.0, events / EVENTS)) for full in (LEAD, sum(AFTER)))
        steps = int((np.cumsum(AFTER) <= max(most, SHORTEST_AFTER)).sum())
        return cls(min(MOST_RUNS, max(1, events // EVENTS_A_RUN)), max(lead, SHORTEST_LEAD), AFTER[:steps])


def _without_seasons(config: Config) -> tuple[Config, list[str]]:
    if config.drift.seasonality == "none":
        return config, []
    drift = config.drift.model_copy(update={"seasonality": "none"})
    note = f"drift.seasonality: {config.drift.seasonality} is left out: the stream's rows do not keep their time of day"
    return config.model_copy(update={"drift": drift}), [note]


def _try_model(job: Job, target: Target, events: int, say: Say) -> dict[str, Any]:
    """Everything about one model version."""
    name = f"{target.key.model} {target.key.version}"
    say(f"{name}: without drift")
    once = events if job.events or target.stream.rows is None else min(events, target.stream.rows)
    quiet = _false_incidents(job.config, target, once, job.seed)
    chosen = _chosen(target.baseline, np.random.default_rng(job.seed))
    size = Size.of(events)
    drifts, played = [], 0
    cases = list(_cases(target.baseline, chosen))
    for number, (drift, subject) in enumerate(cases):
        say(f"{name}: {drift.name}, {subject.key.name} ({number + 1} of {len(cases)})")
        tried = [
            _try_drift(job.config, target, drift, subject, size, [job.seed, number, run]) for run in range(size.runs)
        ]
        played += sum(t.played for t in tried)
        drifts.append(_drift_row(drift, subject, tried))
    features = [s for s in target.baseline.schema.subjects if s.key.kind == "feature"]
    return {
        "model": target.key.model,
        "version": target.key.version,
        "stream": {**target.stream.describe(played), "halves_differ": target.difference},
        "events_per_second": target.rate,
        "rate_is": target.rate_is,
        "false_incidents": quiet,
        "features": {"of": len(features), "tried": [s.key.name for s in chosen if s.key.kind == "feature"]},
        "events_before_drift": size.lead,
        "events_with_drift": sum(size.after),
        "drifts": drifts,
    }


# -- rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """n cells of one subject: `word` is the place of its text in `words`, -1 where it has none."""

    key: SubjectKey
    kind: Bytes
    number: Floats
    word: Codes
    words: pa.Array

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, index: Ints) -> Column:
        return Column(self.key, self.kind[index], self.number[index], self.word[index], self.words)

    def where(self, rows: Ints, kind: Kind, *, number: float = math.nan, text: str | None = None) -> Column:
        """The same with other cells in these rows."""
        kinds, numbers, word = self.kind.copy(), self.number.copy(), self.word.copy()
        kinds[rows], numbers[rows], word[rows] = kind, number, -1
        if text is None:
            return Column(self.key, kinds, numbers, word, self.words)
        word[rows] = len(self.words)
        return Column(self.key, kinds, numbers, word, pa.concat_arrays([self.words, pa.array([text], pa.string())]))

    def with_numbers(self, number: Floats) -> Column:
        """The same with other numbers where there are numbers."""
        return replace(self, number=np.where(self.kind == Kind.NUMBER, number, self.number))


@dataclass(frozen=True, slots=True)
class Pool:
    """n events without id and time."""

    columns: tuple[Column, ...]
    segment: pa.Array  # string: JSON object, null where none

    def __len__(self) -> int:
        return len(self.segment)

    def take(self, index: Ints) -> Pool:
        return Pool(tuple(column.take(index) for column in self.columns), self.segment.take(pa.array(index)))

    def changed(self, key: SubjectKey, change: Callable[[Column], Column]) -> Pool:
        """The same with one subject changed."""
        return replace(self, columns=tuple(change(c) if c.key == key else c for c in self.columns))

    @classmethod
    def of(cls, rows: Rows, segment: pa.Array) -> Pool:
        """Rows with the text of their segments."""
        columns = []
        for f, key in enumerate(rows.subjects):
            word, words = np.full(len(rows), -1, np.int32), pa.array([], pa.string())
            if f in rows.texts:
                encoded = rows.texts[f].text.dictionary_encode()
                word[rows.texts[f].row] = encoded.indices.to_numpy()
                words = encoded.dictionary
            kind, number = np.ascontiguousarray(rows.kind[:, f]), np.ascontiguousarray(rows.number[:, f])
            columns.append(Column(key, kind, number, word, words))
        return cls(tuple(columns), segment)


class Source(Protocol):
    """Where a stream's events come from."""

    @property
    def rows(self) -> int | None:
        """Events after which some come again; None: never."""

    def feed(self, rng: np.random.Generator, sizes: Sequence[int]) -> Iterator[Pool]:
        """Events in pools of these sizes, one stream after the other; another generator gives another stream."""

    def describe(self, played: int) -> dict[str, Any]:
        """What people have to know of it, once so many events were played."""


@dataclass(frozen=True, slots=True)
class Half:
    """The half of the rows that is not the baseline, in order; `others` are in the baseline.

    A stream is a stretch of it from a random place on, the first row following the last; once every row was used, blocks
    of `block` rows from random places (circular block bootstrap, Politis and Romano 1992).
    """

    pool: Pool
    block: int
    others: int

    @property
    def rows(self) -> int:
        return len(self.pool)

    def feed(self, rng: np.random.Generator, sizes: Sequence[int]) -> Iterator[Pool]:
        order = self._order(rng, sum(sizes))
        ends = np.cumsum(sizes)
        for size, end in zip(sizes, ends.tolist(), strict=True):
            yield self.pool.take(order[end - size : end])

    def _order(self, rng: np.random.Generator, events: int) -> Ints:
        rows = len(self.pool)
        first = int(rng.integers(rows)) + np.arange(min(events, rows))
        starts = rng.integers(rows, size=-(-(events - len(first)) // self.block))
        again = (starts[:, None] + np.arange(self.block)).reshape(-1)
        return np.concatenate([first, again])[:events].astype(np.int64) % rows

    def describe(self, played: int) -> dict[str, Any]:
        rows = len(self.pool)
        return {"kind": "rows", "baseline_rows": self.others, "rows": rows, "block_rows": self.block,
                "events_played": played, "times_each_row": round(played / rows, 1)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bins:
    """A built baseline holds no rows: events are drawn from its bins, every subject and event by itself."""

    baseline: Baseline

    @property
    def rows(self) -> None:
        return None

    def feed(self, rng: np.random.Generator, sizes: Sequence[int]) -> Iterator[Pool]:
        schema, counts = self.baseline.schema, self.baseline.profile.counts
        for size in sizes:
            columns = (_drawn(subject, counts[f], size, rng) for f, subject in enumerate(schema.subjects))
            yield Pool(tuple(columns), pa.nulls(size, pa.string()))

    def describe(self, played: int) -> dict[str, Any]:
        return {"kind": "bins", "baseline_rows": self.baseline.profile.rows, "events_played": played}


def _drawn(subject: Subject, counts: Ints, n: int, rng: np.random.Generator) -> Column:
    """Cells with the baseline's shares: categories by share, numbers by the inverse of its distribution function."""
    place = rng.choice(len(counts), size=n, p=counts / counts.sum())
    words = pa.array([*getattr(subject.bins, "values", ()), STRANGER], pa.string())
    kind, number, word = np.full(n, Kind.STRING, np.uint8), np.full(n, np.nan), np.full(n, -1, np.int32)
    if isinstance(subject.bins, Categories):
        word = np.where(place < MAIN, place, len(words) - 1).astype(np.int32)
        wrong = Kind.LIST if subject.bins.numbers else Kind.NUMBER
    else:
        kind[:], number, wrong = Kind.NUMBER, _quantile(subject.bins, rng.random(n)), Kind.STRING
        if subject.value_kind == "vector":
            kind[:], word, words = Kind.LIST, np.arange(n, dtype=np.int32), _vectors(number, subject.length or 1)
    for code, instead in ((MISSING, Kind.MISSING), (WRONG_TYPE, wrong), (INFINITE, Kind.INFINITE)):
        kind[place == code] = instead
    bad = np.isin(place, (MISSING, WRONG_TYPE, INFINITE))
    number[bad | (kind != Kind.NUMBER)] = np.nan
    word[bad] = -1
    column = Column(subject.key, kind, number, word, words)
    return _with_wrong_types(column, np.flatnonzero(place == WRONG_TYPE), wrong)


def _with_wrong_types(column: Column, rows: Ints, wrong: Kind) -> Column:
    return column.where(rows, wrong, number=0.0) if wrong == Kind.NUMBER else column.where(rows, wrong, text=STRANGER)


def _quantile(bins: NumericBins, u: Floats) -> Floats:
    """The baseline's value at each u in [0, 1): linear between the edges of its bins, with the mass of its ties."""
    if not bins.rows:
        return np.zeros(len(u))
    edge = np.repeat(bins.edge, 2)
    share = np.stack([bins.left, bins.right], axis=1).reshape(-1) / bins.rows
    return np.interp(u, [0.0, *share.tolist(), 1.0], [bins.low, *edge.tolist(), bins.high])


def _vectors(norm: Floats, length: int) -> pa.Array:
    """Vectors of these lengths along the first axis, as JSON."""
    rest = ",0" * (length - 1)
    return pa.array([f"[{x!r}{rest}]" for x in norm.tolist()], pa.string())


# -- targets -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """One model version: what it is judged by and what its stream comes from."""

    key: ModelKey
    baseline: Baseline
    stream: Source
    rate: float
    rate_is: str
    difference: float | None = None  # the largest effect between baseline and stream rows; None: no rows


def _targets(job: Job) -> list[Target]:
    config = job.config
    if job.baseline:
        sole = next(iter(config.models)) if len(config.models) == 1 else None
        found = _targets_of(job, job.baseline, job.model or sole)
    else:
        named = {n: m.baseline for n, m in config.models.items() if m.baseline and job.model in (None, n)}
        if not named:
            whose = "no model of the configuration" if job.model is None else f"the configuration's model {job.model}"
            raise UsageError(f"{whose} has a baseline: name a file of rows with --baseline")
        found = [t for name, path in named.items() for t in _targets_of(job, [path], name) if t.key.model == name]
    chosen = [t for t in found if job.model in (None, t.key.model)]
    if not chosen:
        raise InputError(f"the baseline holds no rows of the model {job.model}")
    return chosen


def _targets_of(job: Job, paths: Sequence[Path], model: str | None) -> list[Target]:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UsageError(f"there is no file {missing[0]}", tuple(f"there is no file {path}" for path in missing))
    built: list[Path] = []
    raw: list[Path] = []
    for path in paths:
        with path.open("rb") as file:
            (built if is_baseline_file(file.read(len(MAGIC))) else raw).append(path)
    targets = [_of_bins(job, Baseline.from_bytes(path.read_bytes())) for path in built]
    return targets + (_of_rows(job, raw, model) if raw else [])


def _of_bins(job: Job, baseline: Baseline) -> Target:
    key = ModelKey(baseline.model, baseline.version or DEFAULT_VERSION)
    return Target(key, baseline, Bins(baseline), *_rate(job.rate, None))


class _Place(NamedTuple):
    """Where the usable rows of one model version stand: parallel arrays."""

    batch: Ints
    row: Ints  # decoded
    raw: Ints  # of the raw batch
    time_us: Ints

    def take(self, index: Ints) -> _Place:
        return _Place(*(part[index] for part in self))


def _of_rows(job: Job, paths: Sequence[Path], model: str | None) -> list[Target]:
    """Split the rows of each model version; raises InputError where a half is too small to judge by."""
    batches = list(read_rows(paths, job.config, model=model))
    decoder = row_decoder(job.config)
    decoded = [decoder.baseline(raw)[0] for raw in batches]
    source = ", ".join(str(path) for path in paths)
    places = _places(batches, decoded)
    halves = {}
    for key, place in places.items():
        block = int(np.clip(len(place.row) // BLOCKS, 1, MOST_BLOCK_ROWS))
        in_baseline = np.arange(len(place.row)) // block % 2 == 0
        halves[key] = (place.take(np.flatnonzero(in_baseline)), place.take(np.flatnonzero(~in_baseline)), block)
    _check_size(halves, source)
    baselines = baselines_of_rows(_parts(batches, [of for of, _, _ in halves.values()]), job.config, source=source)
    made = []
    for baseline in baselines:
        key = ModelKey(baseline.model, baseline.version)
        of, others, block = halves[key]
        rows, segment = _rows(decoded, others, most_features=job.config.limits.features)
        stream = Half(Pool.of(rows, segment), block, len(of.row))
        rate = _rate(job.rate, np.concatenate([of.time_us, others.time_us]))
        played_as = ModelKey(key.model, key.version or DEFAULT_VERSION)
        made.append(Target(played_as, baseline, stream, *rate, difference=_difference(baseline, rows)))
    return made


def _places(batches: Sequence[RawBatch], decoded: Sequence[Inferences]) -> dict[ModelKey, _Place]:
    """The usable rows of each model version in the order of time, those without one in the order of their file."""
    parts: dict[ModelKey, list[_Place]] = {}
    for number, (raw, columns) in enumerate(zip(batches, decoded, strict=True)):
        for index, key in enumerate(columns.keys):
            row = np.flatnonzero(columns.key == index)
            at = np.searchsorted(raw.offset, columns.offset[row])
            parts.setdefault(key, []).append(_Place(np.full(len(row), number), row, at, columns.time_us[row]))
    joined = {key: _Place(*map(np.concatenate, zip(*places, strict=True))) for key, places in parts.items()}
    return {key: place.take(np.argsort(place.time_us, kind="stable")) for key, place in joined.items()}


def _check_size(halves: Mapping[ModelKey, tuple[_Place, _Place, int]], source: str) -> None:
    if not halves:
        raise InputError(f"no row of {source} can be used as a baseline row")
    for key, (of, others, _) in halves.items():
        least = min(len(of.row), len(others.row))
        if least < MINIMUM_BASELINE_ROWS:
            raise InputError(
                f"{key.model} {key.version or '(any version)'} has {len(of.row) + len(others.row)} usable rows in {source}: "
                f"each half needs {MINIMUM_BASELINE_ROWS} to be judged by"
            )


def _parts(batches: Sequence[RawBatch], places: Sequence[_Place]) -> Iterator[RawBatch]:
    """The batches with the chosen rows alone."""
    for number, raw in enumerate(batches):
        rows = np.sort(np.concatenate([place.raw[place.batch == number] for place in places]))
        if len(rows):
            headers = None if raw.headers is None else [raw.headers[i] for i in rows.tolist()]
            yield replace(raw, partition=raw.partition[rows], offset=raw.offset[rows], value=raw.value.take(pa.array(rows)),
                          record_time_us=raw.record_time_us[rows], headers=headers)  # fmt: skip


def _rows(decoded: Sequence[Inferences], place: _Place, *, most_features: int) -> tuple[Rows, pa.Array]:
    """The chosen rows in their order, and their segments."""
    chunks, segments, order = [], [], []
    for number, columns in enumerate(decoded):
        mine = np.flatnonzero(place.batch == number)
        if len(mine):
            mine = mine[np.argsort(place.row[mine])]
            row = place.row[mine]
            none = np.zeros(len(row), np.int32)
            chunks.append(Rows.of(columns, row, segment=none, most_features=most_features))
            segments.append(columns.segment.take(pa.array(row)))
            order.append(mine)
    back = np.argsort(np.concatenate(order))
    rows = concat(chunks, most_features=most_features).take(back)
    return rows, pa.concat_arrays([s.cast(pa.string()) for s in segments]).take(pa.array(back))


def _difference(baseline: Baseline, rows: Rows) -> float:
    """The largest effect by which the halves differ by chance: what the stream carries without any drift."""
    found = effects(
        baseline.schema.numeric,
        baseline.profile.counts,
        Profile.fold(baseline.schema, baseline.schema.encode(rows)).counts,
        representatives=baseline.representatives,
        baseline_sd=baseline.deviations,
    )
    return round(float(np.nan_to_num(found).max(initial=0.0)), 4)


def _rate(given: float | None, times: Ints | None) -> tuple[float, str]:
    """Events a second, and whence we know."""
    if given is not None:
        return given, "given"
    if times is not None and len(times) > 1 and int(times.min()) != NO_TIME:
        seconds = (int(times.max()) - int(times.min())) / MICROSECONDS
        if seconds > 0:
            return float(f"{(len(times) - 1) / seconds:.3g}"), "of the rows' times"
    return ASSUMED_RATE, "assumed: the rows have no times; --rate says it"


# -- the engine ----------------------------------------------------------------------------------


@dataclass
class Trial:
    """The service's engine on a store in memory, given events at a steady rate."""

    config: Config
    target: Target
    rng: np.random.Generator
    events: int = 0
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        # At any time of the day: panes and windows end where they end.
        self.start_us = START_US + int(self.rng.integers(DAY_US))
        self.store = Store(None)
        served = self.target.baseline.serving(self.target.key.version)
        self.engine = Engine(self.config, self.store, baselines=[served])

    def time_of(self, event: int) -> int:
        """When an event happens."""
        return self.start_us + round(event * MICROSECONDS / self.target.rate)

    def play(self, pool: Pool) -> None:
        """Hand in events and let the engine seal and judge what their time allows."""
        n = len(pool)
        times = self.start_us + np.rint((self.events + np.arange(n)) * (MICROSECONDS / self.target.rate)).astype(
            np.int64
        )
        columns = _inferences(pool, self.target.key, self.events, times, self.rng)
        self.events += n
        raw = RawBatch(BINDING, (PARTITION,), columns.partition, columns.offset, pa.nulls(n, pa.binary()),
                       columns.record_time_us)  # fmt: skip
        self.engine.offer(Decoded(raw, columns, Rejects(np.zeros(0, np.int32), ())))
        self.engine.step(0.0, seal_now=True)

    def standing(self) -> list[Incident]:
        """Every incident since the last checkpoint as it stands, the earliest first."""
        lines = [line for version in self.engine.versions.values() for line in version.lines.values()]
        now = dict(self.engine.changed) | {i.id: i for line in lines for i in line.book.open_incidents}
        return sorted(now.values(), key=lambda i: (i.opened_us, i.id))

    def told_us(self, evidence_us: int) -> int:
        """When people can be told of evidence: its pane ends, and is sealed once the lateness has passed."""
        pane_us = self.engine.pane_us
        return (evidence_us // pane_us + 1) * pane_us + self.engine.lateness_us

    def close(self) -> None:
        self.store.close()


def _inferences(pool: Pool, key: ModelKey, first: int, times: Ints, rng: np.random.Generator) -> Inferences:
    """Events as decode would hand them over, each with an id of its own."""
    n = len(pool)
    of = {column.key: column for column in pool.columns}
    none, nothing = np.full(n, np.nan), pa.nulls(n, pa.string())
    said = of.get(PREDICTION)
    id_hi, id_lo = rng.integers(2**64, size=(2, n), dtype=np.uint64)
    return Inferences(
        keys=(key,),
        partitions=(PARTITION,),
        partition=np.zeros(n, np.int32),
        offset=np.arange(first, first + n),
        time_us=times,
        record_time_us=np.full(n, NO_TIME, np.int64),
        id_hi=id_hi,
        id_lo=id_lo,
        key=np.zeros(n, np.int32),
        cells=_cells([column for column in pool.columns if column.key.kind == "feature"], n),
        label=nothing if said is None else said.words.take(pa.array(said.word, mask=said.word < 0)),
        score=of[SCORE].number if SCORE in of else none,
        value=none if said is None else said.number,
        probabilities=nothing,
        latency_ms=of[LATENCY].number if LATENCY in of else none,
        segment=pool.segment,
        truth_label=nothing,
        truth_value=none,
    )


def _cells(columns: Sequence[Column], n: int) -> Cells:
    """Every feature of every event, row by row."""
    starts = np.cumsum([0, *(len(column.words) for column in columns)])
    words = pa.concat_arrays([pa.array([], pa.string()), *(column.words for column in columns)])
    shape = (n, len(columns))
    kind, number, word = np.zeros(shape, np.uint8), np.zeros(shape), np.zeros(shape, np.int64)
    for f, column in enumerate(columns):
        kind[:, f], number[:, f] = column.kind, column.number
        word[:, f] = np.where(column.word < 0, -1, column.word + starts[f])
    text_cell = np.flatnonzero(word.reshape(-1) >= 0)
    return Cells(
        names=tuple(column.key.name for column in columns),
        row=np.repeat(np.arange(n, dtype=np.int32), len(columns)),
        name=np.tile(np.arange(len(columns), dtype=np.int32), n),
        kind=kind.reshape(-1),
        number=number.reshape(-1),
        text_cell=text_cell.astype(np.int32),
        text=words.take(pa.array(word.reshape(-1)[text_cell])),
    )


# -- without drift -------------------------------------------------------------------------------


def _false_incidents(config: Config, target: Target, events: int, seed: int) -> dict[str, Any]:
    """Incidents expected and seen without drift: at the budget as it stands, and at one raised to show some at all."""
    budget = Budget.parse(config.drift.false_alarms)
    part = 1 - LABELS_SHARE if config.source.ground_truth else 1.0
    per = max(SHORTEST_RAISED, events // RAISED_INCIDENTS)
    drift = config.drift.model_copy(update={"false_alarms": f"1 per {per} events"})
    raised = config.model_copy(update={"drift": drift})
    month = MONTH_SECONDS * target.rate
    kinds = _opened(config, target, events, seed)
    seen = sum(kinds.values())
    low, high = poisson_interval(seen)
    kinds_raised = _opened(raised, target, events, seed + 1)
    seen_raised = sum(kinds_raised.values())
    return {
        "month_days": MONTH_SECONDS // 86_400,
        "accepted": _short(month / budget.events_between(target.rate)),
        "expected": _short(month * part / budget.events_between(target.rate)),
        "events": events,
        "times_each_row": None if target.stream.rows is None else round(events / target.stream.rows, 1),
        "days": _short(events / target.rate / 86_400),
        "seen": seen,
        "kinds": kinds,
        "per_month": _short(seen * month / events),
        "per_month_interval": [_short(low * month / events), _short(high * month / events)],
        "raised": {
            "false_alarms": raised.drift.false_alarms,
            "expected": _short(part * events / per),
            "seen": seen_raised,
            "kinds": kinds_raised,
            "interval": [_short(x) for x in poisson_interval(seen_raised)],
        },
    }


def _opened(config: Config, target: Target, events: int, seed: int) -> dict[str, int]:
    """Incidents by kind that a stream without drift opens."""
    rng = np.random.default_rng([seed, 0])
    trial = Trial(config, target, rng)
    sizes = [min(STEP, events - start) for start in range(0, events, STEP)]
    found: dict[str, str] = {}
    try:
        for number, pool in enumerate(target.stream.feed(rng, sizes), start=1):
            trial.play(pool)
            if number % CHECKPOINT_STEPS == 0 or number == len(sizes):
                if number == len(sizes):
                    trial.engine.finish(0.0)
                found |= {i.id: str(i.kind) for i in trial.engine.checkpoint()}
    finally:
        trial.close()
    return dict(Counter(found.values()))


def poisson_interval(seen: int, *, outside: float = 0.05) -> tuple[float, float]:
    """The means that explain a Poisson count: below and above lie those with a tail of `outside` / 2 (Garwood 1936).

    >>> [round(x, 2) for x in poisson_interval(0)], [round(x, 2) for x in poisson_interval(10)]
    ([0.0, 3.69], [4.8, 18.39])
    """
    low = _mean_with(seen - 1, 1 - outside / 2) if seen else 0.0
    return low, _mean_with(seen, outside / 2)


def _mean_with(seen: int, probability: float) -> float:
    """The mean at which a Poisson count is at most `seen` with this probability."""
    low, high = 0.0, 2.0 * seen + 40.0
    for _ in range(100):
        middle = (low + high) / 2
        at_most = sum(math.exp(k * math.log(middle) - middle - math.lgamma(k + 1)) for k in range(seen + 1))
        low, high = (middle, high) if at_most > probability else (low, middle)
    return low


# -- with drift ----------------------------------------------------------------------------------


class Known(NamedTuple):
    """What the baseline says of a subject that is to change."""

    mean: float
    deviation: float
    categories: Mapping[str, float]  # category -> share, the most frequent first
    numbers_are_categories: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """A way to change a subject: `value_kinds` are those it fits, `expected` the incidents that name it rightly."""

    name: str
    value_kinds: frozenset[str]
    expected: frozenset[IncidentKind]
    change: Callable[[Column, Known, np.random.Generator], Column]


def _shift(deviations: float) -> Callable[[Column, Known, np.random.Generator], Column]:
    def change(column: Column, known: Known, rng: np.random.Generator) -> Column:
        del rng
        number = column.number + deviations * known.deviation
        return column.with_numbers(np.clip(number, 0.0, 1.0) if column.key == SCORE else number)

    return change


def _double_spread(column: Column, known: Known, rng: np.random.Generator) -> Column:
    del rng
    return column.with_numbers(known.mean + 2 * (column.number - known.mean))


def _contaminate(column: Column, known: Known, rng: np.random.Generator) -> Column:
    moved = rng.random(len(column)) < 0.05
    return column.with_numbers(np.where(moved, column.number + 4 * known.deviation, column.number))


def _lose(column: Column, known: Known, rng: np.random.Generator) -> Column:
    del known
    return column.where(np.flatnonzero(rng.random(len(column)) < 0.2), Kind.MISSING)


def _break(column: Column, known: Known, rng: np.random.Generator) -> Column:
    """Text in place of a number or a vector, a number in place of a category; a list where numbers are categories."""
    del rng
    rows = np.arange(len(column))
    if not known.categories:
        return _with_wrong_types(column, rows, Kind.STRING)
    return _with_wrong_types(column, rows, Kind.LIST if known.numbers_are_categories else Kind.NUMBER)


def _gain(column: Column, known: Known, rng: np.random.Generator) -> Column:
    """The second most frequent category gains a tenth of all rows, from the others alike."""
    name, share = list(known.categories.items())[1]
    others = np.flatnonzero((column.word >= 0) & (rng.random(len(column)) < 0.1 / (1 - share)))
    return column.where(others, Kind.STRING, text=name)


def _invent(column: Column, known: Known, rng: np.random.Generator) -> Column:
    del known
    return column.where(np.flatnonzero(rng.random(len(column)) < 0.05), Kind.STRING, text=STRANGER)


_NUMERIC, _CATEGORICAL = frozenset({"numeric"}), frozenset({"categorical"})
_ANY = frozenset({"numeric", "categorical", "vector"})
_BAD = frozenset({IncidentKind.DATA_QUALITY, IncidentKind.BROKEN_INPUT})

FEATURE_DRIFTS = (
    Drift("shift of 0.5 sd", _NUMERIC, DRIFTED, _shift(0.5)),
    Drift("shift of 1 sd", _NUMERIC, DRIFTED, _shift(1.0)),
    Drift("doubled spread", _NUMERIC, DRIFTED, _double_spread),
    Drift("5 % at +4 sd", _NUMERIC, DRIFTED, _contaminate),
    Drift("share +10 points", _CATEGORICAL, DRIFTED, _gain),
    Drift("5 % unseen", _CATEGORICAL, DRIFTED, _invent),
    Drift("20 % missing", _ANY, _BAD, _lose),
    Drift("wrong type", _ANY, frozenset({IncidentKind.BROKEN_INPUT}), _break),
)
PREDICTION_DRIFTS = (
    Drift("prediction +0.5 sd", _NUMERIC, DRIFTED, _shift(0.5)),
    Drift("label +10 points", _CATEGORICAL, DRIFTED, _gain),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one run with a drift. `told_as` is empty where nothing named the subject."""

    played: int
    was_open: bool = False  # the subject stood in an incident before it changed: the run says nothing
    told_as: str = ""
    is_first: bool = False  # the subject ranked first when people were told
    delay_events: int = 0
    delay_seconds: float = 0.0


def _chosen(baseline: Baseline, rng: np.random.Generator) -> list[Subject]:
    """The subjects that are tried: the prediction and its score, and a sample of the features where there are many."""
    subjects = baseline.schema.subjects
    usable = [f for f in range(len(subjects)) if _fits_somewhere(baseline, f)]
    kept = {f for f in usable if subjects[f].key.kind == "prediction"}
    for is_numeric, most in ((True, NUMERIC_FEATURES), (False, OTHER_FEATURES)):
        of = [f for f in usable if subjects[f].key.kind == "feature"
              and (subjects[f].value_kind == "numeric") == is_numeric]  # fmt: skip
        kept |= {of[i] for i in rng.permutation(len(of))[:most].tolist()}
    return [subjects[f] for f in sorted(kept)]


def _fits_somewhere(baseline: Baseline, f: int) -> bool:
    """Whether there are rows enough to judge the subject by."""
    counts = baseline.profile.counts[f]
    return bool(counts.sum() - counts[[MISSING, WRONG_TYPE, INFINITE]].sum() >= MINIMUM_BASELINE_ROWS)


def _cases(baseline: Baseline, chosen: Sequence[Subject]) -> Iterator[tuple[Drift, Subject]]:
    """Every kind of drift with every subject it fits."""
    for of, drifts in (("feature", FEATURE_DRIFTS), ("prediction", PREDICTION_DRIFTS)):
        for drift in drifts:
            for subject in chosen:
                known = _known(baseline, subject)
                if subject.key.kind == of and subject.value_kind in drift.value_kinds and _can(drift, known):
                    yield drift, subject


def _can(drift: Drift, known: Known) -> bool:
    """A constant has no deviation to shift by, and one category alone cannot gain."""
    if drift.change is _gain:
        return len(known.categories) > 1
    return drift.value_kinds != _NUMERIC or known.deviation > 0


def _known(baseline: Baseline, subject: Subject) -> Known:
    f = baseline.schema.subjects.index(subject)
    categories: dict[str, float] = {}
    if isinstance(subject.bins, Categories):
        counts = baseline.profile.counts[f]
        readable = max(int(counts[:MAIN].sum() + counts[UNSEEN]), 1)
        categories = {name: int(counts[i]) / readable for i, name in enumerate(subject.bins.values)}
    numbers = isinstance(subject.bins, Categories) and subject.bins.numbers
    return Known(float(baseline.means[f]), float(baseline.deviations[f]), categories, numbers)


def _try_drift(
    config: Config, target: Target, drift: Drift, subject: Subject, size: Size, seed: Sequence[int]
) -> Outcome:
    """One run: a lead-in as it is, then the drift until the right kind of incident names the subject, or the end."""
    rng = np.random.default_rng([2, *seed])
    known = _known(target.baseline, subject)
    trial = Trial(config, target, rng)
    heard: Outcome | None = None
    try:
        pools = target.stream.feed(rng, (size.lead, *size.after))
        trial.play(next(pools))
        before, onset_us = {i.id for i in trial.standing()}, trial.time_of(trial.events)
        if any(_names(i, subject) for i in trial.standing()):
            return Outcome(trial.events, was_open=True)
        for number, pool in enumerate(pools, start=1):
            trial.play(pool.changed(subject.key, lambda column: drift.change(column, known, rng)))
            if number == len(size.after):
                trial.engine.finish(0.0)
            heard = _hear(trial, subject, drift, before, onset_us, heard)
            if heard is not None and heard.told_as in drift.expected:
                break
        return replace(heard or Outcome(0), played=trial.events)
    finally:
        trial.close()


def _hear(
    trial: Trial, subject: Subject, drift: Drift, before: set[str], onset_us: int, heard: Outcome | None
) -> Outcome | None:
    """The first incident that names the subject; what was heard before stands, under the name it has grown into."""
    named = [i for i in trial.standing() if _names(i, subject)]
    if not named:
        return heard
    right = [i for i in named if i.kind in drift.expected]
    incident = (right or named)[0]
    if heard is not None:
        return replace(heard, told_as=str(incident.kind))
    # An incident that stood already dates from before: of those that join it the time is known to a step only.
    at_us = trial.time_of(trial.events - 1) if incident.id in before else incident.opened_us
    events = math.ceil((at_us - onset_us) * trial.target.rate / MICROSECONDS - 1e-3) + 1
    is_first = incident.subjects[0].name == subject.key.name
    told_seconds = (trial.told_us(at_us) - onset_us) / MICROSECONDS
    return Outcome(trial.events, False, str(incident.kind), is_first, events, told_seconds)


def _names(incident: Incident, subject: Subject) -> bool:
    return any((e.kind, e.name) == subject.key for e in incident.subjects)


def _drift_row(drift: Drift, subject: Subject, tried: Sequence[Outcome]) -> dict[str, Any]:
    said = [t for t in tried if not t.was_open]
    found = [t for t in said if t.told_as]
    named = [t for t in found if t.is_first and t.told_as in drift.expected]
    return {
        "drift": drift.name,
        "subject": subject.key.name,
        "runs": len(said),
        "found": len(found),
        "named": len(named),
        "kinds": dict(Counter(t.told_as for t in found)),
        "delay_events": median(t.delay_events for t in found) if found else None,
        "slowest_events": max((t.delay_events for t in found), default=None),
        "delay_seconds": _short(median(t.delay_seconds for t in found)) if found else None,
    }


def _short(value: float) -> float:
    """Three digits: more would promise what is not known."""
    return float(f"{value:.3g}")
