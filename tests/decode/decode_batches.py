"""Batches for the tests of decoding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.records import Binding, Inferences, Kind, Labels, PartitionId, RawBatch, Reason, Rejects, Stream

RECORD_US = 1_795_255_200_000_000  # 2026-11-21T10:00:00Z


def raw_batch(
    records: Sequence[bytes | str | Mapping[str, Any] | None],
    *,
    stream: Stream = Stream.INFERENCE,
    record_us: int = RECORD_US,
    headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
    first_offset: int = 100,
    **binding: Any,
) -> RawBatch:
    """One partition's records; a mapping is written as JSON."""
    partition = PartitionId(stream, "events", 3)
    return RawBatch(
        binding=Binding(stream, "events", **binding),
        partitions=(partition,),
        partition=np.zeros(len(records), np.int32),
        offset=np.arange(first_offset, first_offset + len(records)),
        value=pa.array([_bytes(record) for record in records], pa.binary()),
        record_time_us=np.full(len(records), record_us),
        headers=headers,
    )


def _bytes(record: bytes | str | Mapping[str, Any] | None) -> bytes | None:
    if isinstance(record, str):
        return record.encode("utf-8", "surrogatepass")
    return json.dumps(record).encode() if isinstance(record, Mapping) else record


def reasons(rejects: Rejects) -> dict[int, Reason]:
    """Reason by row."""
    return dict(zip(rejects.row.tolist(), rejects.reason, strict=True))


def cells_of(events: Inferences, row: int) -> list[tuple[str, Kind, float | str | None]]:
    """Name, kind and content of the cells of one event."""
    cells = events.cells
    texts = dict(zip(cells.text_cell.tolist(), cells.text.to_pylist(), strict=True))
    found: list[tuple[str, Kind, float | str | None]] = []
    for cell in np.flatnonzero(cells.row == row).tolist():
        kind = Kind(int(cells.kind[cell]))
        numeric = kind in (Kind.NUMBER, Kind.INFINITE)
        found.append((cells.names[cells.name[cell]], kind, float(cells.number[cell]) if numeric else texts.get(cell)))
    return found


def ids_of(columns: Inferences | Labels) -> list[tuple[int, int]]:
    """The ids as pairs of integers."""
    return list(zip(columns.id_hi.tolist(), columns.id_lo.tolist(), strict=True))
