"""The service's own engine over files: what `stream-monitor replay` does and what it leaves."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_monitor import history
from stream_monitor.app import Monitor, configured_baselines, fetch, make_decoder, reject_line
from stream_monitor.baselines import merged, read_baselines
from stream_monitor.config import Config
from stream_monitor.engine import Engine, Refused
from stream_monitor.errors import InputError, UsageError
from stream_monitor.exposition import render
from stream_monitor.memory import hold_memory
from stream_monitor.records import MICROSECONDS, NO_TIME, Binding, Incident, Ints, Stream
from stream_monitor.source.files import FileSource
from stream_monitor.store import Store


@dataclass(frozen=True, slots=True)
class Job:
    """What to replay."""

    config: Config
    inference: Sequence[Path]
    ground_truth: Sequence[Path]
    baseline: Sequence[Path]
    out: Path
    rate_per_second: float | None = None


def replay(
    job: Job,
    *,
    on_incidents: Callable[[list[Incident]], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Run the engine over the files and leave the results in `job.out`; returns the summary.

    Raises UsageError for files that are not there, InputError where nothing of the inference files was usable.
    """
    began = time.perf_counter()
    hold_memory()
    missing = [p for p in (*job.inference, *job.ground_truth, *job.baseline) if not p.exists()]
    if missing:
        raise UsageError(f"there is no file {missing[0]}", tuple(f"there is no file {p}" for p in missing))
    if job.out.exists() and not job.out.is_dir():
        raise UsageError(f"--out {job.out} is a file: name a folder")
    job.out.mkdir(parents=True, exist_ok=True)
    twice = sorted(
        {str(p) for p in (*job.inference, *job.ground_truth) if [*job.inference, *job.ground_truth].count(p) > 1}
    )
    if twice:
        raise UsageError(f"{twice[0]} is named twice: a file is one partition, and read once")
    baselines = merged([*configured_baselines(job.config), *read_baselines(job.baseline, job.config)])
    with tempfile.TemporaryDirectory(prefix="stream-monitor-") as folder:
        store = Store(Path(folder) / "replay.duckdb")
        try:
            engine = Engine(
                job.config, store, baselines=list(baselines.values()), expects_labels=bool(job.ground_truth)
            )
            _run(job, engine, Path(folder), on_incidents, on_progress)
            return _leave(job, engine, began)
        finally:
            store.close()


def _run(
    job: Job,
    engine: Engine,
    folder: Path,
    on_incidents: Callable[[list[Incident]], None] | None,
    on_progress: Callable[[int], None] | None,
) -> None:
    bindings = _bindings(job)
    copies = _in_order(bindings, job.config, folder)
    source = FileSource(
        bindings,
        rate_per_second=job.rate_per_second,
        start_us=RATE_START_US,
        copies={name: copy.path for name, copy in copies.items()},
    )
    fetcher = fetch(source, job.config, positions={})
    with (job.out / "rejects.jsonl").open("w", encoding="utf-8") as rejects:

        def refuse(refused: Refused) -> None:
            copy = copies.get(refused.raw.binding.topic)
            given = refused if copy is None else copy.as_given(refused)
            rejects.writelines(line + "\n" for line in reject_line(given))

        def tell(changed: list[Incident]) -> None:
            if changed and on_incidents is not None:
                on_incidents(changed)
            if on_progress is not None:
                on_progress(sum(engine.positions().values()))

        monitor = Monitor(engine, fetcher, on_refused=refuse, on_checkpoint=tell)
        try:
            monitor.run(threading.Event())
            monitor.finish()
        finally:
            fetcher.close()


def _bindings(job: Job) -> list[Binding]:
    """The files, read as the first topic of each kind is configured to be read."""
    source = job.config.source
    made = []
    for stream, paths, known in (
        (Stream.INFERENCE, job.inference, source.inference),
        (Stream.GROUND_TRUTH, job.ground_truth, source.ground_truth),
    ):
        like = known[0].binding(stream) if known else Binding(stream, "")
        made += [Binding(stream, str(p), like.model, like.version, like.fields, like.timestamp_unit) for p in paths]
    return made


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A copy of a file in the order of time, and the rows of the file in that order, (n,)."""

    path: Path
    order: Ints

    def as_given(self, refused: Refused) -> Refused:
        """Refused records of the copy, at their places in the file that people know."""
        return replace(refused, raw=replace(refused.raw, offset=self.order[refused.raw.offset]))


def _in_order(bindings: Sequence[Binding], config: Config, folder: Path) -> dict[str, _Sorted]:
    """Labels are met in the order of their timestamps: a label file that is not in that order is sorted first."""
    copies: dict[str, _Sorted] = {}
    for binding in bindings:
        if binding.stream == Stream.GROUND_TRUTH:
            times = np.concatenate([t for t, _ in _label_times(binding, config)] or [np.zeros(0, np.int64)])
            highest = np.maximum.accumulate(times) if len(times) else times
            if (highest - times > config.allowed_lateness * MICROSECONDS).any():
                copy = _Sorted(folder / f"{len(copies)}.jsonl", np.argsort(times, kind="stable"))
                _write_sorted(binding, config, copy)
                copies[binding.topic] = copy
    return copies


def _label_times(binding: Binding, config: Config) -> Iterator[tuple[Ints, pa.Array]]:
    """The time of every record of a label file; one without a time is met with the record before it."""
    decoder = make_decoder(config)
    source = FileSource([binding])
    source.start({})
    last = 0
    while not source.finished:
        for raw in source.poll(POLL_RECORDS, 0.0).batches:
            labels, _ = decoder.ground_truth(raw)
            times = np.full(len(raw), NO_TIME, np.int64)
            times[labels.offset - raw.offset[0]] = labels.time_us
            known = np.where(times == NO_TIME, 0, np.arange(1, len(raw) + 1))
            times = np.concatenate([[last], times])[np.maximum.accumulate(known)]
            last = int(times[-1])
            yield times, raw.value
    source.close()


def _write_sorted(binding: Binding, config: Config, copy: _Sorted) -> None:
    values = pa.chunked_array([value for _, value in _label_times(binding, config)], pa.binary())
    with copy.path.open("wb") as file:
        for start in range(0, len(copy.order), POLL_RECORDS):
            part = values.take(pa.array(copy.order[start : start + POLL_RECORDS])).to_pylist()
            file.writelines((value or b"").rstrip(b"\r\n") + b"\n" for value in part)


POLL_RECORDS = 20_000

RATE_START_US = 1_577_836_800 * MICROSECONDS
"""Events without a time begin at 2020-01-01 UTC with --rate: a replay must give the same every day."""


def _leave(job: Job, engine: Engine, began: float) -> dict[str, Any]:
    """Write the results, last the summary: it says how long all took since `began`."""
    bodies = engine.store.incident_bodies()
    (job.out / "incidents.jsonl").write_text("".join(body + "\n" for body in bodies), encoding="utf-8")
    pq.write_table(history.scores_table(engine), job.out / "scores.parquet")
    pq.write_table(history.performance_table(engine), job.out / "performance.parquet")
    pq.write_table(history.revisions_table(engine), job.out / "revisions.parquet")
    (job.out / "metrics.prom").write_bytes(render(engine))
    summary = history.summary(engine)
    offered = summary["inference"]["offered"]
    seconds = time.perf_counter() - began
    summary["elapsed_seconds"] = round(seconds, 3)
    summary["events_per_second"] = round(offered / seconds, 1) if seconds else None
    (job.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    if offered and summary["inference"]["rejected"] == offered:
        raise InputError(f"none of the {offered} inference events could be used; see {job.out / 'rejects.jsonl'}")
    return summary
