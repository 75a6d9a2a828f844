"""What makes kafka-python fast: whole record batches as columns, and large reads from the socket.

The library hands out one object a record, after some forty calls of Python for each, and reads 4 kB from the socket at a
time, giving up and awaiting the interpreter's lock each time. Here a batch of records of format 2 becomes one object;
its checksum, transactions, markers and compression stay the library's. That leans on parts of it that are not
documented: where they are not what they were in 3.0, `read_columns` says so and records come one by one, as ever.
"""

from __future__ import annotations

import inspect
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.net import KafkaNetSocket
from kafka.record.default_records import DefaultRecordBatch
from kafka.record.util import decode_varint

from stream_monitor.records import Bytes, Ints

Headers = Sequence[tuple[str, bytes]]

FEW_RECORDS = 16
"""Columns cost some 0.2 ms a batch, the library 10 us a record: smaller batches are left to it."""

RECEIVE_BYTES = 1 << 18
"""As much as a socket's buffer holds of a busy connection, as a rule; only what comes takes memory."""

DIRECT = "direct://"
"""As `proxy_url`: no proxy, but sockets that are read in large pieces."""


class Columns(NamedTuple):
    """Some records of one partition, in order."""

    offset: Ints
    value: pa.Array
    time_ms: Ints
    headers: list[Headers] | None  # None: no record has any

    def since(self, offset: int) -> Columns:
        """The records from an offset on."""
        return self.cut(int(np.searchsorted(self.offset, offset)), len(self.offset))

    def cut(self, start: int, stop: int) -> Columns:
        """Records [start, stop)."""
        headers = None if self.headers is None else self.headers[start:stop]
        return Columns(self.offset[start:stop], self.value[start:stop], self.time_ms[start:stop], headers)


def columns_of(records: Sequence[Any]) -> Columns:
    """The columns of what a consumer's `poll` gave for one partition: records, and batches as `read_columns` makes them."""
    parts = []
    for whole, found in itertools.groupby(records, key=lambda record: isinstance(record.value, Columns)):
        group = list(found)
        parts += [record.value for record in group] if whole else [_columns_of_records(group)]
    if len(parts) == 1:
        return parts[0]
    headers = None
    if any(part.headers is not None for part in parts):
        headers = [h for part in parts for h in (part.headers or [()] * len(part.offset))]
    return Columns(
        np.concatenate([part.offset for part in parts]),
        pa.concat_arrays([part.value for part in parts]),
        np.concatenate([part.time_ms for part in parts]),
        headers,
    )


def _columns_of_records(records: Sequence[Any]) -> Columns:
    n = len(records)
    return Columns(
        np.fromiter((r.offset for r in records), np.int64, n),
        pa.array([r.value for r in records], pa.binary()),
        np.fromiter((r.timestamp for r in records), np.int64, n),
        [r.headers for r in records] if any(r.headers for r in records) else None,
    )


def read_columns(consumer: Any) -> bool:
    """Have a KafkaConsumer hand out batches as columns; False where this release of the library is built otherwise."""
    fetcher: Any = getattr(consumer, "_fetcher", None)
    if not isinstance(fetcher, Fetcher) or not _is_known():
        return False
    fetcher.PartitionRecords = _PartitionRecords
    return True


def _is_known() -> bool:
    """Whether what is built on here is as it was: the parameters and attributes of 3.0."""
    made = inspect.signature(Fetcher.PartitionRecords.__init__).parameters
    batch = {"_buffer", "_pos", "_maybe_uncompress", "records_count", "timestamp_type", "is_control_batch"}
    return (
        list(made)[:4] == ["self", "fetch_offset", "tp", "records"]
        and list(inspect.signature(Fetcher.PartitionRecords.take).parameters) == ["self", "n"]
        and batch <= set(dir(DefaultRecordBatch))
    )


class _Pieces(list[Any]):
    """Records and batches of records; its length is the number of records, as the library counts it."""

    def __init__(self) -> None:
        super().__init__()
        self.records = 0

    def __len__(self) -> int:
        return self.records

    def add(self, piece: Any) -> None:
        """Take a record or a batch of them."""
        self.append(piece)
        self.records += len(piece.value.offset) if isinstance(piece.value, Columns) else 1


class _PartitionRecords(Fetcher.PartitionRecords):  # type: ignore[misc]  # the library has no types
    """What was fetched of a partition, taken in pieces."""

    def __init__(self, fetch_offset: int, tp: Any, records: Any, **options: Any) -> None:
        self._wanted = 0
        super().__init__(fetch_offset, tp, _Batches(records, self._bounds), **options)

    def take(self, n: int | None = None) -> _Pieces:
        """At most `n` records; an error behind some of them is raised by the next call."""
        pieces = _Pieces()
        most = n or 1 << 62
        while len(pieces) < most:
            self._wanted = most - len(pieces)
            try:
                found = super().take(1)
            except Exception as error:
                if not pieces:
                    raise
                self._next_inline_exception = error
                break
            if not found:
                break
            pieces.add(found[0])
        return pieces

    def _bounds(self) -> tuple[int, int]:
        """From which offset on records are wanted, and how many of them now."""
        return self.fetch_offset, self._wanted


class _Batches:
    """The batches of a fetch, those of many records as columns."""

    def __init__(self, records: Any, bounds: Callable[[], tuple[int, int]]) -> None:
        self._records, self._bounds = records, bounds

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch is None or batch.magic != 2 or batch.is_control_batch or batch.records_count < FEW_RECORDS:
            return batch
        return _ColumnBatch(batch, self._bounds)


class _ColumnBatch:
    """A batch that the library takes for one of few large records; what else it asks is answered by the batch itself."""

    def __init__(self, batch: Any, bounds: Callable[[], tuple[int, int]]) -> None:
        self._batch, self._bounds = batch, bounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[_Piece]:
        columns = parse(self._batch).since(self._bounds()[0])
        start = 0
        while start < len(columns.offset):
            stop = min(len(columns.offset), start + self._bounds()[1])
            yield _Piece(columns.cut(start, stop), self._batch.timestamp_type)
            start = stop


class _Piece:
    """Records [start, stop) of a batch in the guise of one record: its offset is the last one's, its value the columns."""

    __slots__ = ("headers", "offset", "size_in_bytes", "timestamp", "timestamp_type", "value")

    key = None
    checksum = None

    def __init__(self, columns: Columns, timestamp_type: int) -> None:
        self.value = columns
        self.offset = int(columns.offset[-1])
        self.timestamp = int(columns.time_ms[-1])
        self.timestamp_type = timestamp_type
        self.size_in_bytes = columns.value.nbytes
        self.headers: Headers = ()

    def validate_crc(self) -> bool:
        """The batch has one checksum, which was looked at before."""
        return True


# -- the records of a batch ------------------------------------------------------------------------


def parse(batch: Any) -> Columns:
    """The records of a batch of format 2, which it need not be asked for again; raises CorruptRecordError.

    Record => length attributes timestamp_delta offset_delta key_length key value_length value header_count headers,
    all numbers but the attributes' byte varints in zigzag.
    """
    batch._maybe_uncompress()
    data = np.frombuffer(batch._buffer, np.uint8)
    try:
        start, stop = _extents(batch._buffer, batch._pos, batch.records_count)
        return _read(batch, data, start, stop)
    except (IndexError, ValueError) as error:
        raise CorruptRecordError(f"a record batch at offset {batch.base_offset} is damaged: {error}") from error


def _extents(buffer: bytearray, position: int, count: int) -> tuple[Ints, Ints]:
    """Where each record starts, after its length, and ends: the one loop over records, since each tells where the next is."""
    start, stop = [], []
    for _ in range(count):
        size, position = decode_varint(buffer, position)
        start.append(position)
        position += size
        stop.append(position)
    if position != len(buffer):
        raise ValueError(f"{len(buffer) - position} bytes are left over")
    return np.array(start, np.int64), np.array(stop, np.int64)


def _read(batch: Any, data: Bytes, start: Ints, stop: Ints) -> Columns:
    time_delta, at = _varints(data, start + 1)
    offset_delta, at = _varints(data, at)
    key_size, at = _varints(data, at)
    value_size, at = _varints(data, at + np.maximum(key_size, 0))
    value_end = at + np.maximum(value_size, 0)
    headers, end = _varints(data, value_end)
    if (headers < 0).any() or (end > stop).any() or ((headers == 0) & (end != stop)).any():
        raise ValueError("the parts of a record are not as long as it is")
    logged = batch.timestamp_type == batch.LOG_APPEND_TIME
    return Columns(
        batch.base_offset + offset_delta,
        _spans(data, at, value_end, value_size < 0),
        np.full(len(start), batch.max_timestamp) if logged else batch.first_timestamp + time_delta,
        [_headers(batch._buffer, *place) for place in zip(headers.tolist(), end.tolist(), stop.tolist(), strict=True)]
        if headers.any()
        else None,
    )


def _varints(data: Bytes, at: Ints) -> tuple[Ints, Ints]:
    """(n,) the numbers in zigzag at some places, and the places behind them."""
    byte = data[at]
    value, at = (byte & np.uint8(0x7F)).astype(np.uint64), at + 1
    more = np.flatnonzero(byte >= 0x80)
    shift = 7
    while len(more):
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        byte = data[at[more]]
        value[more] |= (byte & np.uint8(0x7F)).astype(np.uint64) << np.uint64(shift)
        at[more] += 1
        more = more[byte >= 0x80]
        shift += 7
    return (value >> np.uint64(1)).astype(np.int64) ^ -(value & np.uint64(1)).astype(np.int64), at


def _spans(data: Bytes, start: Ints, stop: Ints, absent: np.ndarray[Any, np.dtype[np.bool_]]) -> pa.Array:
    """(n,) the bytes from `start` to `stop`, null where absent: every second one of [gap, value, gap, value, ...]."""
    edges = np.zeros(2 * len(start) + 1, np.int32)
    edges[0:-1:2], edges[1::2] = np.append(start[:1], stop[:-1]), start
    edges[-1] = stop[-1]
    pieces = pa.Array.from_buffers(pa.binary(), len(edges) - 1, [None, pa.py_buffer(edges), pa.py_buffer(data)])
    return pieces.take(pa.array(np.arange(1, len(edges) - 1, 2), mask=absent if absent.any() else None))


def _headers(buffer: bytearray, count: int, at: int, stop: int) -> Headers:
    """The headers of one record, by the library's own reader of numbers: most records have none."""
    found: list[tuple[str, Any]] = []  # a header may be null
    for _ in range(count):
        size, at = decode_varint(buffer, at)
        name, at = buffer[at : at + size].decode(), at + size
        size, at = decode_varint(buffer, at)
        found.append((name, bytes(buffer[at : at + size]) if size >= 0 else None))
        at += max(size, 0)
    if at != stop:
        raise ValueError("the headers of a record are not as long as they say")
    return found


# -- the socket ------------------------------------------------------------------------------------


class _Direct(KafkaNetSocket):  # type: ignore[misc]  # the library has no types
    """Connects without a proxy, with a socket of our own."""

    SCHEMES = ("direct",)

    def socket(self, family: int = 0, sock_type: int = socket.SOCK_STREAM, proto: int = 0) -> socket.socket:
        return _Socket(family, sock_type, proto)


class _Socket(socket.socket):
    """Gives as much as there is, however little is asked for: its one reader takes all it is given."""

    __slots__ = ()

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(max(size, RECEIVE_BYTES), flags)
