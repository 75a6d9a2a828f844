"""Partitions side by side: whatever is parked and taken, a partition's rows keep their order."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa

from stream_monitor.decode import Decoder
from stream_monitor.records import MICROSECONDS, NO_TIME, Binding, Labels, PartitionId, RawBatch, Stream
from stream_monitor.window.flow import Decoded, Flow

START = 1_793_577_600
BINDING = Binding(Stream.GROUND_TRUTH, "truth")


def batch(*records: tuple[int, int, float]) -> Decoded[Labels]:
    """Labels as (partition, offset, seconds), partition by partition."""
    numbers = list(dict.fromkeys(number for number, _, _ in records))
    values = [json.dumps({"inference_id": o, "label": "x", "timestamp": START + t}).encode() for _, o, t in records]
    raw = RawBatch(
        binding=BINDING,
        partitions=tuple(PartitionId(Stream.GROUND_TRUTH, "truth", number) for number in numbers),
        partition=np.array([numbers.index(number) for number, _, _ in records], np.int32),
        offset=np.array([offset for _, offset, _ in records], np.int64),
        value=pa.array(values, pa.binary()),
        record_time_us=np.full(len(records), NO_TIME, np.int64),
    )
    return Decoded(raw, *Decoder().ground_truth(raw))


def test_batches_are_numbered_in_the_order_they_were_offered() -> None:
    """A partition that only the second batch holds does not bring that batch before the first."""
    flow = Flow(slack_us=10 * MICROSECONDS)
    flow.offer(batch((1, 0, 0.0)))
    flow.admit()  # partition 1 stands first among those known
    flow.offer(batch((0, 0, 1.0)))
    flow.offer(batch((0, 1, 2.0), (1, 1, 2.0)))
    parts = flow.admit()
    assert [(p.partition.number, p.batch) for p in parts] == [(1, 3), (0, 2), (0, 3)]
    taken = [(p.partition.number, p.start) for p in sorted(parts, key=lambda p: p.batch)]
    assert taken[0] == (0, 0)
    assert flow.states[parts[0].partition].position == 2
    assert flow.parked_rows() == 0


def test_a_partition_ahead_is_parked_until_the_slowest_comes() -> None:
    """Rows beyond the slack wait, and positions move only with what is taken."""
    flow = Flow(slack_us=10 * MICROSECONDS)
    flow.offer(batch((0, 0, 0.0), (0, 1, 5.0), (0, 2, 50.0), (1, 0, 1.0)))
    parts = flow.admit()
    assert sum(p.records for p in parts) == 3
    ahead, slow = (PartitionId(Stream.GROUND_TRUTH, "truth", n) for n in (0, 1))
    assert (flow.states[ahead].position, flow.states[slow].position) == (2, 1)
    assert flow.parked_rows() == 1
    flow.offer(batch((1, 1, 45.0)))
    assert sum(p.records for p in flow.admit()) == 2
    assert flow.parked_rows() == 0
