"""A source in memory, for the demo and for tests: Kafka's promises without Kafka."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from stream_monitor.errors import DataLossError
from stream_monitor.records import NO_TIME, Binding, PartitionId, Poll, RawBatch
from stream_monitor.source.protocol import Loss


class _Record(NamedTuple):
    offset: int
    value: bytes | None
    record_time_us: int
    headers: tuple[tuple[str, bytes], ...]


@dataclass(slots=True)
class _Log:
    """One partition: its records from `first` on; `position` is None until the reader starts on it."""

    binding: Binding
    records: list[_Record] = field(default_factory=list)
    first: int = 0
    end: int = 0
    position: int | None = None
    cursor: int = 0  # index of the record at or after `position`

    def seek(self, offset: int) -> None:
        self.position = offset
        self.cursor = next((i for i, r in enumerate(self.records) if r.offset >= offset), len(self.records))

    def take(self, count: int) -> list[_Record]:
        taken = self.records[self.cursor : self.cursor + count]
        if taken:
            self.cursor += len(taken)
            self.position = taken[-1].offset + 1
        return taken


class MemorySource:
    """Partitions that another thread (or the same) appends to, until `finish`."""

    def __init__(
        self,
        bindings: Sequence[Binding],
        *,
        partitions: int = 1,
        begin: Literal["earliest", "latest"] = "earliest",
        on_data_loss: Literal["fail", "earliest", "latest"] = "fail",
    ) -> None:
        self._bindings = tuple(bindings)
        self._begin = begin
        self._on_data_loss = on_data_loss
        self._changed = threading.Condition()
        self._paused: frozenset[PartitionId] = frozenset()
        self._losses: list[Loss] = []
        self._started = False
        self._finished = False
        self._closed = False
        self._turn = 0
        self.committed: dict[PartitionId, int] = {}
        self._logs = {PartitionId(b.stream, b.topic, n): _Log(b) for b in self._bindings for n in range(partitions)}

    # What writers call.

    def append(
        self,
        partition: PartitionId,
        value: bytes | None,
        *,
        record_time_us: int = NO_TIME,
        headers: Sequence[tuple[str, bytes]] = (),
        offset: int | None = None,
    ) -> int:
        """Write one record and return its offset. A given `offset` may leave a gap; ValueError if it goes back."""
        with self._changed:
            log = self._log(partition)
            at = log.end if offset is None else offset
            if at < log.end:
                raise ValueError(f"offset {at} of {partition.topic} is below its end {log.end}")
            log.records.append(_Record(at, value, record_time_us, tuple(headers)))
            log.end = at + 1
            self._changed.notify_all()
            return at

    def extend(self, partition: PartitionId, values: Sequence[bytes | None], *, record_time_us: int = NO_TIME) -> None:
        """Write many records with one transport time."""
        with self._changed:
            log = self._log(partition)
            log.records += [_Record(log.end + i, v, record_time_us, ()) for i, v in enumerate(values)]
            log.end += len(values)
            self._changed.notify_all()

    def truncate(self, partition: PartitionId, first: int) -> None:
        """Forget the records below offset `first`, as retention does."""
        with self._changed:
            log = self._log(partition)
            log.records = [r for r in log.records if r.offset >= first]
            log.first, log.end = first, max(log.end, first)
            if log.position is not None:
                log.seek(log.position)
            self._changed.notify_all()

    def finish(self) -> None:
        """Promise that nothing more will be written."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    # What readers call.

    def start(self, positions: Mapping[PartitionId, int]) -> None:
        with self._changed:
            self._started = True
            for partition, log in self._logs.items():
                given = positions.get(partition)
                log.seek(given if given is not None else log.first if self._begin == "earliest" else log.end)

    def poll(self, max_records: int, timeout_seconds: float) -> Poll:
        with self._changed:
            self._changed.wait_for(self._has_something, timeout_seconds)
            for partition, log in self._logs.items():
                if not log.first <= self._position(log) <= log.end:
                    self._lose(partition, log)
            batches = self._take(max_records)
            ends = {p: log.end for p, log in self._logs.items()}
            return Poll(batches, ends, {p: self._position(log) for p, log in self._logs.items()})

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        with self._changed:
            self._paused = partitions
            self._changed.notify_all()

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        self.committed.update(positions)

    def partitions(self) -> tuple[PartitionId, ...]:
        with self._changed:
            return tuple(sorted(self._logs))

    def losses(self) -> tuple[Loss, ...]:
        with self._changed:
            lost, self._losses = tuple(self._losses), []
            return lost

    @property
    def finished(self) -> bool:
        with self._changed:
            read = all(log.cursor == len(log.records) for log in self._logs.values())
            return self._closed or (self._finished and self._started and read)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _log(self, partition: PartitionId) -> _Log:
        """The partition's log; a partition written to for the first time comes to be, read from its beginning."""
        if partition not in self._logs:
            wanted = [b for b in self._bindings if (b.stream, b.topic) == partition[:2]]
            if not wanted:
                raise ValueError(f"no binding names the {partition.stream} topic {partition.topic}")
            self._logs[partition] = _Log(wanted[0])
        return self._logs[partition]

    @staticmethod
    def _position(log: _Log) -> int:
        return log.first if log.position is None else log.position

    def _has_something(self) -> bool:
        """A record may be taken, or none will ever come; records held back are neither."""
        unread = [p for p, log in self._logs.items() if log.cursor < len(log.records)]
        return self._closed or any(p not in self._paused for p in unread) or (self._finished and not unread)

    def _lose(self, partition: PartitionId, log: _Log) -> None:
        expected = self._position(log)
        if self._on_data_loss == "fail":
            raise DataLossError(
                f"offset {expected} of {partition.topic}/{partition.number} is gone:"
                f" the partition now holds {log.first} to {log.end}"
            )
        resumed = log.first if self._on_data_loss == "earliest" else log.end
        log.seek(resumed)
        self._losses.append(Loss(partition, expected, resumed))

    def _take(self, max_records: int) -> tuple[RawBatch, ...]:
        """Records of the partitions in turn, so that a busy one cannot starve the others."""
        order = sorted(self._logs)
        self._turn += 1
        taken: dict[PartitionId, list[_Record]] = {}
        for i in range(len(order)):
            partition = order[(i + self._turn) % len(order)]
            records = [] if partition in self._paused else self._logs[partition].take(max_records)
            if records:
                taken[partition] = records
                max_records -= len(records)
        found = []
        for binding in self._bindings:
            mine = {p: taken[p] for p in order if p in taken and self._logs[p].binding is binding}
            if mine:
                found.append(_batch(binding, mine))
        return tuple(found)


def _batch(binding: Binding, taken: Mapping[PartitionId, Sequence[_Record]]) -> RawBatch:
    records = [r for of_partition in taken.values() for r in of_partition]
    sizes = [len(of_partition) for of_partition in taken.values()]
    return RawBatch(
        binding=binding,
        partitions=tuple(taken),
        partition=np.repeat(np.arange(len(sizes), dtype=np.int32), sizes),
        offset=np.array([r.offset for r in records], np.int64),
        value=pa.array([r.value for r in records], pa.binary()),
        record_time_us=np.array([r.record_time_us for r in records], np.int64),
        headers=[r.headers for r in records] if any(r.headers for r in records) else None,
    )
