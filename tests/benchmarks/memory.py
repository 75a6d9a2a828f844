"""Resident memory of a process that takes in events of ten models with a hundred features: it must stay flat.

The engine and its store as in `run`, on a state file; the events come ready as JSON and are decoded as usual.

python tests/benchmarks/memory.py --events 10000000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import events
import numpy as np
import pyarrow as pa

from stream_monitor.app import decode_batch, hold_memory, make_decoder, release_memory
from stream_monitor.config import Config
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.records import NO_TIME, Binding, PartitionId, RawBatch, Stream
from stream_monitor.store import Store

PARTITION = PartitionId(Stream.INFERENCE, "inference", 0)
POLL = 10_000


def batches(stream: events.Stream) -> Iterator[RawBatch]:
    """The events as polls of 10,000."""
    offset = 0
    for chunk in events.inference(stream):
        values = chunk.cast(pa.binary())
        for start in range(0, len(values), POLL):
            part = values[start : start + POLL]
            at = np.arange(offset, offset + len(part))
            offset += len(part)
            binding = Binding(Stream.INFERENCE, PARTITION.topic)
            yield RawBatch(
                binding, (PARTITION,), np.zeros(len(part), np.int32), at, part, np.full(len(part), NO_TIME, np.int64)
            )


def resident_mb() -> float:
    """What this process holds now."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


def main() -> None:
    """Print memory and speed as events go by."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--models", type=int, default=10)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--per-second", type=float, default=1_000.0, help="events in a second of event time")
    parser.add_argument("--rows", type=int, default=10, help="lines of the table")
    options = parser.parse_args()
    stream = events.Stream(options.events, options.features, options.models, per_second=options.per_second)
    hold_memory()
    config = Config()
    decoder = make_decoder(config)
    print(f"{'events':>12} {'MB':>8} {'file MB':>8} {'events/s':>10} {'us CPU/event':>13}")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(config, Store(Path(folder) / "monitor.duckdb"))
        done, shown, began, cpu, checkpoint = 0, 0, time.monotonic(), time.process_time(), time.monotonic()
        for raw in batches(stream):
            engine.offer(decode_batch(decoder, raw))
            engine.step(time.monotonic())
            done += len(raw)
            if time.monotonic() - checkpoint > 2:
                engine.checkpoint()
                release_memory()
                render(engine)
                checkpoint = time.monotonic()
            if done - shown >= options.events // options.rows:
                seconds, used = time.monotonic() - began, time.process_time() - cpu
                print(
                    f"{done:12,} {resident_mb():8.0f} {engine.store.size_bytes() / 1e6:8.0f} "
                    f"{(done - shown) / seconds:10,.0f} {used / (done - shown) * 1e6:13.1f}",
                    flush=True,
                )
                shown, began, cpu = done, time.monotonic(), time.process_time()
        engine.close()
        engine.store.close()


if __name__ == "__main__":
    main()
