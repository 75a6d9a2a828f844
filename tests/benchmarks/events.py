"""Seeded inference and ground truth events, made column by column: what all benchmarks measure with.

python tests/benchmarks/events.py --events 1000000 --out /tmp/events.jsonl --labels /tmp/labels.jsonl
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).parents[2]))

from stream_monitor import records
from stream_monitor.records import MICROSECONDS, NO_TIME, Binding, Ints, PartitionId, RawBatch

PARTITION = PartitionId(records.Stream.INFERENCE, "inference", 0)
BINDING = Binding(records.Stream.INFERENCE, PARTITION.topic)

START_US = 1_795_255_200_000_000
"""2026-11-21T10:00:00Z, on the bounds of a pane, of a quarter of an hour and of an hour."""

CHUNK = 20_000
"""Events made at once: a few tens of MB of columns."""

CATEGORIES = ("web", "app", "branch", "phone", "partner")
BROKEN_VALUES = ('"41"', "NaN", "1e400", "true", "null", '{"a":[1]}')


@dataclass(frozen=True, slots=True)
class Stream:
    """What a stream of events is like. Every fifth feature is categorical; shares are of the events."""

    events: int
    features: int = 25
    models: int = 1
    seed: int = 1
    per_second: float = 1_000.0  # events in a second of event time
    broken_records: float = 0.0
    broken_values: float = 0.0
    start_us: int = START_US

    def seconds(self) -> float:
        """How long it lasts in event time."""
        return self.events / self.per_second

    def times(self, row: Ints) -> Ints:
        """Event times in microseconds."""
        return self.start_us + (row * (MICROSECONDS / self.per_second)).astype(np.int64)


def inference(stream: Stream) -> Iterator[pa.Array]:
    """The events as JSON texts (Arrow strings), chunk by chunk, in the order of time."""
    for first in range(0, stream.events, CHUNK):
        row = np.arange(first, min(first + CHUNK, stream.events))
        yield _events(stream, row, np.random.default_rng([stream.seed, first]))


def ground_truth(stream: Stream, *, share: float = 1.0, delay_seconds: float = 60.0) -> Iterator[pa.Array]:
    """One label for a share of the events, each `delay_seconds` after its prediction; a tenth contradicts it."""
    for first in range(0, stream.events, CHUNK):
        row = np.arange(first, min(first + CHUNK, stream.events))
        generator = np.random.default_rng([stream.seed, first, 1])
        row = row[generator.random(len(row)) < share]
        truth = pa.array(np.where(generator.random(len(row)) < 0.5, "approve", "deny"))
        times = stream.times(row) + int(delay_seconds * MICROSECONDS)
        yield _joined('{"inference_id":"', ids(row), '","label":"', truth, '","timestamp":"', texts(times), '"}')


def polls(stream: Stream) -> Iterator[RawBatch]:
    """The events as one partition's records, chunk by chunk."""
    offset = 0
    for chunk in inference(stream):
        yield poll(chunk.cast(pa.binary()), offset)
        offset += len(chunk)


def poll(value: pa.Array, offset: int) -> RawBatch:
    """Records of one partition from an offset on, without times of their own."""
    n = len(value)
    times = np.full(n, NO_TIME, np.int64)
    return RawBatch(BINDING, (PARTITION,), np.zeros(n, np.int32), np.arange(offset, offset + n), value, times)


def ids(row: Ints) -> pa.Array:
    """The id of each event: 12 characters."""
    return _joined("9f1c", pc.utf8_lpad(pa.array(row).cast(pa.string()), 8, "0"))


def texts(time_us: Ints) -> pa.Array:
    """RFC 3339 in milliseconds."""
    return _joined(pa.array(np.datetime_as_string(time_us.astype("datetime64[us]"), unit="ms")), "Z")


def _events(stream: Stream, row: Ints, generator: np.random.Generator) -> pa.Array:
    model = _joined("model_", pa.array(row % stream.models).cast(pa.string()))
    parts: list[pa.Array | str] = ['{"inference_id":"', ids(row), '","model":"', model, '","version":"7","timestamp":"']
    parts += [texts(stream.times(row)), '","features":{']
    broken = _broken_values(stream, row, generator)
    for place in range(stream.features):
        parts += [f'{"," if place else ""}"{name(place)}":', _feature(place, len(row), generator)]
        if place == 0 and broken is not None:
            parts[-1] = pc.coalesce(broken, parts[-1])
    score = np.round(generator.random(len(row)), 4)
    label = pa.array(np.where(score > 0.5, "approve", "deny"))
    latency = pa.array(np.round(generator.gamma(2.0, 5.0, len(row)), 1)).cast(pa.string())
    parts += ['},"prediction":{"label":"', label, '","score":', pa.array(score).cast(pa.string())]
    parts += ['},"latency_ms":', latency, "}"]
    events = _joined(*parts)
    if stream.broken_records:
        cut = pa.array(generator.random(len(row)) < stream.broken_records)
        events = pc.if_else(cut, pc.utf8_slice_codeunits(events, 0, 200), events)
    return events


def name(place: int) -> str:
    """Every fifth feature is a category."""
    return f"{'cat' if place % 5 == 4 else 'num'}{place}"


def _feature(place: int, count: int, generator: np.random.Generator) -> pa.Array:
    if place % 5 == 4:
        quoted = pa.array([f'"{category}"' for category in CATEGORIES])
        return quoted.take(pa.array(generator.choice(len(CATEGORIES), count, p=[0.4, 0.3, 0.15, 0.1, 0.05])))
    return pa.array(np.round(generator.normal(50.0 + place, 20.0, count), 2)).cast(pa.string())


def _broken_values(stream: Stream, row: Ints, generator: np.random.Generator) -> pa.Array | None:
    """Something that is no number in a share of the rows, null in the others."""
    if not stream.broken_values:
        return None
    kind = generator.integers(0, len(BROKEN_VALUES), len(row))
    chosen = generator.random(len(row)) < stream.broken_values
    return pa.array(BROKEN_VALUES).take(pa.array(kind, mask=~chosen))


def _joined(*parts: pa.Array | str) -> pa.Array:
    joined: pa.Array = pc.binary_join_element_wise(*parts, "")
    return joined


def write(chunks: Iterator[pa.Array], path: Path) -> int:
    """The texts as lines; how many bytes they take."""
    with path.open("wb") as file:
        return sum(file.write(_lines(chunk)) for chunk in chunks)


def _lines(chunk: pa.Array) -> bytes:
    joined = _joined(chunk, "\n")
    size = int(pc.sum(pc.binary_length(joined)).as_py() or 0)
    data: bytes = joined.buffers()[2].to_pybytes()
    return data[:size]


def main() -> None:
    """Write a stream into files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=25)
    parser.add_argument("--models", type=int, default=1)
    parser.add_argument("--per-second", type=float, default=1_000.0)
    parser.add_argument("--broken-records", type=float, default=0.0)
    parser.add_argument("--broken-values", type=float, default=0.0)
    parser.add_argument("--out", type=Path, default=Path(os.devnull))
    parser.add_argument("--labels", type=Path)
    options = parser.parse_args()
    stream = Stream(
        options.events,
        options.features,
        options.models,
        per_second=options.per_second,
        broken_records=options.broken_records,
        broken_values=options.broken_values,
    )
    size = write(inference(stream), options.out)
    print(f"{stream.events} events of {size / stream.events:.0f} bytes over {stream.seconds():.0f} s of event time")
    if options.labels:
        write(ground_truth(stream), options.labels)


if __name__ == "__main__":
    main()
