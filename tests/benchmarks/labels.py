"""Late labels against millions of waiting predictions: seconds to join, judge, publish and commit a batch of them.

Also what a million waiting predictions take in the state file, and how long a restart on that state takes until its
first event is processed. Everything goes through the engine; only decoding is left out.

python tests/benchmarks/labels.py --predictions 10000000 --labelled 1000000 --days 10

To fill a state takes a minute for ten million: with `--state` it is filled once, and every run labels a copy of it.
A hundred million take six minutes and three gigabytes of disk, twice: `--predictions 100000000 --days 40`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from stream_monitor.config import Config, ModelConfig
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.memory import hold_memory
from stream_monitor.records import (
    MICROSECONDS,
    Binding,
    Cells,
    Flags,
    Floats,
    Hashes,
    Inferences,
    Ints,
    Labels,
    ModelKey,
    PartitionId,
    RawBatch,
    Rejects,
    Stream,
)
from stream_monitor.store import Store
from stream_monitor.window.flow import Decoded

START_US = 1_795_219_200_000_000  # 2026-11-21T00:00:00Z
DAY_US = 86_400 * MICROSECONDS
MINUTE_US = 60 * MICROSECONDS
BATCH = 50_000
PREDICTIONS = PartitionId(Stream.INFERENCE, "inference", 0)
LABELS = PartitionId(Stream.GROUND_TRUTH, "ground-truth", 0)
CONFIG = Config(models={"credit": ModelConfig(task="binary", positive_label="deny")})
NOTHING = Rejects(np.zeros(0, np.int32), ())


def hashes(row: Ints) -> tuple[Hashes, Hashes]:
    """Ids as hashes: what decode makes of a text."""
    low = (row.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return low ^ (low >> np.uint64(31)), low * np.uint64(0xBF58476D1CE4E5B9)


def predictions(row: Ints, time_us: Ints, score: Floats | None = None) -> Decoded[Inferences]:
    """Events of one model with a class and a score, and no features."""
    n = len(row)
    id_hi, id_lo = hashes(row)
    score = np.random.default_rng(int(row[0])).random(n) if score is None else score
    columns = Inferences(
        keys=(ModelKey("credit", "7"),),
        partitions=(PREDICTIONS,),
        partition=np.zeros(n, np.int32),
        offset=row,
        time_us=time_us,
        record_time_us=time_us,
        id_hi=id_hi,
        id_lo=id_lo,
        key=np.zeros(n, np.int32),
        cells=_no_cells(),
        label=pa.array(np.where(score > 0.5, "deny", "approve")),
        score=score,
        value=np.full(n, np.nan),
        probabilities=pa.nulls(n, pa.string()),
        latency_ms=np.full(n, np.nan),
        segment=pa.nulls(n, pa.string()),
        truth_label=pa.nulls(n, pa.string()),
        truth_value=np.full(n, np.nan),
    )
    return Decoded(_raw(PREDICTIONS, row, time_us), columns, NOTHING)


def truths(row: Ints, offset: int, times: Ints, deny: Flags) -> Decoded[Labels]:
    """A label for each of these predictions."""
    n = len(row)
    id_hi, id_lo = hashes(row)
    offsets = np.arange(offset, offset + n)
    columns = Labels(
        models=(),
        outcomes=("label",),
        partitions=(LABELS,),
        partition=np.zeros(n, np.int32),
        offset=offsets,
        time_us=times,
        record_time_us=times,
        id_hi=id_hi,
        id_lo=id_lo,
        model=np.full(n, -1, np.int32),
        outcome=np.zeros(n, np.int32),
        label=pa.array(np.where(deny, "deny", "approve")),
        number=np.full(n, np.nan),
    )
    return Decoded(_raw(LABELS, offsets, times), columns, NOTHING)


def _no_cells() -> Cells:
    nothing = np.zeros(0, np.int32)
    return Cells((), nothing, nothing, np.zeros(0, np.uint8), np.zeros(0), nothing, pa.array([], pa.string()))


def _raw(partition: PartitionId, offset: Ints, time_us: Ints) -> RawBatch:
    binding = Binding(partition.stream, partition.topic)
    return RawBatch(
        binding, (partition,), np.zeros(len(offset), np.int32), offset, pa.nulls(len(offset), pa.binary()), time_us
    )


def predict(engine: Engine, count: int, days: float) -> None:
    """So many predictions, evenly over some days, with a checkpoint every half million."""
    step_us = days * DAY_US / count
    for start in range(0, count, BATCH):
        row = np.arange(start, min(start + BATCH, count))
        engine.offer(predictions(row, START_US + (row * step_us).astype(np.int64)))
        engine.step(0.0, seal_now=True)
        if (start // BATCH) % 10 == 9:
            engine.checkpoint()
    engine.checkpoint()


def label(engine: Engine, row: Ints, offset: int, time_us: int) -> None:
    """Hand in labels, join them and commit; a prediction of that moment moves the watermark with them."""
    engine.offer(predictions(np.array([offset + 2**40]), np.array([time_us])))
    deny = np.random.default_rng(offset).random(len(row)) > 0.5
    engine.offer(truths(row, offset, np.full(len(row), time_us), deny))
    engine.step(0.0, seal_now=True)
    engine.join(0.0)
    engine.checkpoint()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, CPU seconds with those of child processes."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def restart(path: Path) -> None:
    """A process that takes up the state and processes one event."""
    engine = Engine(CONFIG, Store(path))
    newest = engine.versions[0].newest_us
    assert newest is not None
    engine.offer(predictions(np.array([2**41]), np.array([newest + MICROSECONDS])))
    done = engine.step(0.0, seal_now=True)
    engine.checkpoint()
    assert done.records == 1
    engine.store.close()


def main() -> None:
    """Fill a state, label it, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=500_000)
    parser.add_argument("--labelled", type=int, default=50_000)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--days", type=float, default=10.0, help="event time the predictions are spread over")
    parser.add_argument("--state", type=Path, help="fill this file if it is not there, and label a copy of it")
    parser.add_argument("--restart", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    hold_memory()
    if options.restart:
        restart(options.restart)
        return
    if options.fill:
        fill(options.fill, options)
        return
    print(f"{'':48} {'wall s':>8} {'CPU s':>8}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        filled, copy = options.state or Path(folder) / "filled.duckdb", Path(folder) / "monitor.duckdb"
        if not filled.exists():
            # In a process of its own: what it holds is not what is asked for.
            subprocess.run([sys.executable, __file__, "--fill", str(filled), *sys.argv[1:]], check=True)
        shutil.copyfile(filled, copy)
        measure(copy, options)
        command = [sys.executable, __file__, "--restart", str(copy)]
        _row("restart, process start to first event committed", *timed(lambda: subprocess.run(command, check=True)))
    print(
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB of memory at most while labels were joined"
    )


def scattered(start: int, count: int, size: int) -> Ints:
    """The rows from `start` on of an order of all `size` rows in which neighbours lie far apart."""
    step = next(k for k in itertools.count(int(size * 0.618)) if math.gcd(k, size) == 1)
    return (start + np.arange(count)) * step % size


def fill(path: Path, options: argparse.Namespace) -> None:
    """Make a state: predictions, some of them labelled in batches of 100,000."""
    engine = Engine(CONFIG, Store(path))
    _row(f"{options.predictions:,} predictions", *timed(lambda: predict(engine, options.predictions, options.days)))
    print(f"    {engine.store.size_bytes() / options.predictions:.0f} MB of file a million waiting predictions")
    for start in range(0, options.labelled, 100_000):
        count = min(100_000, options.labelled - start)
        label(engine, scattered(start, count, options.predictions), start, _labelled_us(start, options.days))
    engine.close()
    engine.store.close()


def measure(path: Path, options: argparse.Namespace) -> None:
    """Label a state, batch after batch. The first has to read the cohorts that the next ones find in memory."""
    engine = Engine(CONFIG, Store(path))
    offset = engine.truth.ledger.fate("matched")
    if offset != options.labelled or sum(engine.truth.ledger.predictions.values()) < options.predictions:
        raise SystemExit("the state was filled with other numbers: remove it, or give them")
    for batch in range(options.repeats + 1):
        row = scattered(offset, options.labels, options.predictions)
        now = _labelled_us(offset, options.days) + batch * MINUTE_US
        joined = timed(lambda row=row, at=offset, now=now: label(engine, row, at, now))  # type: ignore[misc]
        published = timed(lambda: render(engine))
        offset += len(row)
        _row(f"{options.labels:,} labels joined and committed{'' if batch else ', the first'}", *joined)
        _row("    and the metrics", joined[0] + published[0], joined[1] + published[1])
    assert engine.truth.ledger.fate("matched") == offset, engine.truth.ledger.labels
    engine.close()
    engine.store.close()


def _labelled_us(offset: int, days: float) -> int:
    """When the labels from here on come: a minute later for each 100,000."""
    return START_US + int(days * DAY_US) + (offset // 100_000 + 1) * MINUTE_US


def _row(name: str, wall: float, cpu: float) -> None:
    print(f"{name:48} {wall:8.2f} {cpu:8.2f}", flush=True)


if __name__ == "__main__":
    main()
