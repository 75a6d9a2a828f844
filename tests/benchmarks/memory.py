"""Resident memory of a process that takes in events of ten models with a hundred features: it must stay flat.

The loop, the engine and the store as in `run`, on a state file, with the metrics rendered as often as there; another
process makes the events, and a pipe stands for the broker.

python tests/benchmarks/memory.py --events 10000000
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import events
import pyarrow as pa

from stream_monitor.app import Monitor, Pace, fetch
from stream_monitor.config import Config
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.memory import hold_memory
from stream_monitor.records import PartitionId, Poll
from stream_monitor.service import PUBLISH_SHARE
from stream_monitor.source.protocol import Loss
from stream_monitor.store import Store

PARTITION = events.PARTITION


def make(stream: events.Stream, pipe: Connection) -> None:
    """Send the events, some thousands at a time; what has no event is the end."""
    for chunk in itertools.chain(events.inference(stream), [pa.array([], pa.string())]):
        batch = pa.record_batch({"value": chunk.cast(pa.binary())})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        pipe.send_bytes(sink.getvalue())


class PipeSource:
    """One partition without an end, read from another process."""

    def __init__(self, stream: events.Stream) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._maker = context.Process(target=make, args=(stream, theirs), daemon=True)
        self._held = pa.array([], pa.binary())
        self._offset = 0
        self.finished = False

    def start(self, positions: Mapping[PartitionId, int]) -> None:  # noqa: ARG002  always from the beginning
        self._maker.start()

    def poll(self, max_records: int, timeout_seconds: float) -> Poll:
        if not len(self._held) and not self.finished and self._pipe.poll(timeout_seconds):
            with pa.ipc.open_stream(self._pipe.recv_bytes()) as reader:
                self._held = reader.read_next_batch().column(0)
            self.finished = not len(self._held)
        value, self._held = self._held[:max_records], self._held[max_records:]
        raw = events.poll(value, self._offset)
        self._offset += len(raw)
        return Poll((raw,) if len(raw) else (), {}, {PARTITION: self._offset})

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        """There is one, which waits for no other."""

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        """Nobody wants to know."""

    def partitions(self) -> tuple[PartitionId, ...]:
        return (PARTITION,)

    def losses(self) -> tuple[Loss, ...]:
        return ()

    def close(self) -> None:
        self._maker.terminate()


def resident_mb(name: str = "VmRSS") -> float:
    """What this process holds now, or held at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / 1000


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
    print(f"{'events':>12} {'MB':>8} {'most':>8} {'file MB':>8} {'events/s':>10} {'us CPU/event':>13}")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(config, Store(Path(folder) / "monitor.duckdb"))
        monitor = Monitor(engine, fetch(PipeSource(stream), config, positions={}))
        publishing = Pace(1.0, PUBLISH_SHARE)
        shown, began, cpu, finished = 0, time.monotonic(), time.process_time(), False
        while not finished:
            finished = monitor.turn()
            if (now := time.monotonic()) >= publishing.due:
                render(engine)
                publishing.done(now, time.monotonic())
            done = engine.positions().get(PARTITION, 0)
            if done - shown >= options.events // options.rows:
                seconds, used = time.monotonic() - began, time.process_time() - cpu
                print(
                    f"{done:12,} {resident_mb():8.0f} {resident_mb('VmHWM'):8.0f} "
                    f"{engine.store.size_bytes() / 1e6:8.0f} {(done - shown) / seconds:10,.0f} "
                    f"{used / (done - shown) * 1e6:13.1f}",
                    flush=True,
                )
                shown, began, cpu = done, time.monotonic(), time.process_time()
        monitor.fetcher.close()
        engine.close()
        engine.store.close()


if __name__ == "__main__":
    main()
