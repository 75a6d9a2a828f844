"""Microseconds an event costs to decode, in one thread: clean, with broken records, with broken values.

python tests/benchmarks/decode.py --events 50000 --batch 10000 --features 25
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[2]))

from stream_monitor.decode import Decoder
from stream_monitor.records import Binding, PartitionId, RawBatch, Stream

PARTITION = PartitionId(Stream.INFERENCE, "benchmark", 0)
BROKEN_VALUES = ('"41"', "NaN", "1e400", "true", "null", '{"a":[1]}')


def event(row: int, features: int, generator: np.random.Generator) -> bytes:
    """A canonical event: four features of five are numbers."""
    values = {
        f"feature_{place}": ["web", "app", "branch"][row % 3] if place % 5 == 4 else round(float(number), 3)
        for place, number in enumerate(generator.normal(50, 20, features))
    }
    record = {
        "inference_id": f"9f1c{row:08x}",
        "model": "credit",
        "version": "7",
        "timestamp": f"2026-11-21T10:{row // 60000 % 60:02}:{row // 1000 % 60:02}.{row % 1000:03}Z",
        "features": values,
        "prediction": {"label": "approve", "score": 0.83},
    }
    return json.dumps(record, separators=(",", ":")).encode()


def break_record(record: bytes) -> bytes:
    """Cut off, as a producer that was killed leaves it."""
    return record[: len(record) // 2]


def break_value(record: bytes, row: int) -> bytes:
    """One feature holds something that is no number."""
    head, _, rest = record.partition(b'"feature_0":')
    return head + b'"feature_0":' + BROKEN_VALUES[row % len(BROKEN_VALUES)].encode() + rest[rest.index(b",") :]


def spoil(records: list[bytes], share: float, broken: Callable[[bytes, int], bytes]) -> list[bytes]:
    """The records, a share of them broken, spread evenly."""
    step = round(1 / share)
    return [broken(record, row // step) if row % step == 0 else record for row, record in enumerate(records)]


def batches(records: list[bytes], size: int) -> list[RawBatch]:
    """The records cut into polls."""
    parts = [records[at : at + size] for at in range(0, len(records), size)]
    return [
        RawBatch(
            binding=Binding(Stream.INFERENCE, PARTITION.topic),
            partitions=(PARTITION,),
            partition=np.zeros(len(part), np.int32),
            offset=np.arange(len(part)),
            value=pa.array(part, pa.binary()),
            record_time_us=np.full(len(part), 1_795_255_200_000_000),
        )
        for part in parts
    ]


def measure(decoder: Decoder, polls: list[RawBatch], repeats: int) -> float:
    """The best of some runs, in microseconds an event."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for poll in polls:
            decoder.inference(poll)
        best = min(best, time.perf_counter() - start)
    return best / sum(map(len, polls)) * 1e6


def main() -> None:
    """Print a line for each kind of input."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=50_000)
    arguments.add_argument("--batch", type=int, default=10_000)
    arguments.add_argument("--features", type=int, default=25)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    generator = np.random.default_rng(1)
    clean = [event(row, options.features, generator) for row in range(options.events)]
    kinds = {
        "clean": clean,
        "10 % broken records": spoil(clean, 0.1, lambda record, _: break_record(record)),
        "10 % broken values": spoil(clean, 0.1, break_value),
    }
    decoder = Decoder()
    print(f"{options.events} events of {len(clean[0])} bytes, {options.features} features, {options.batch} a batch")
    reference = None
    for name, records in kinds.items():
        cost = measure(decoder, batches(records, options.batch), options.repeats)
        reference = reference or cost
        print(f"{name:22} {cost:6.2f} us/event  {cost / reference - 1:+.0%}")


if __name__ == "__main__":
    main()
