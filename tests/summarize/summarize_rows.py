"""Batches and rows for the tests of this folder, built value by value, slowly and obviously."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.records import NO_TIME, Cells, Inferences, Kind, ModelKey, PartitionId, Stream
from stream_monitor.summarize.rows import Rows

Cell = tuple[str, Any]


def kind_of(value: Any) -> Kind:
    """What the decoder makes of a Python value."""
    if value is None or value != value:
        return Kind.MISSING
    if isinstance(value, bool):
        return Kind.BOOLEAN
    if isinstance(value, int | float):
        return Kind.INFINITE if abs(value) == float("inf") else Kind.NUMBER
    kinds: dict[type, Kind] = {str: Kind.STRING, list: Kind.LIST, dict: Kind.OBJECT}
    return kinds[type(value)]


def text_of(value: Any) -> str:
    """The decoder's text of a cell that is no number."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def cells(events: Sequence[Sequence[Cell]]) -> Cells:
    """The feature cells of events given as (name, value) pairs; a name may stand twice."""
    names = list(dict.fromkeys(name for event in events for name, _ in event))
    flat = [(row, name, value) for row, event in enumerate(events) for name, value in event]
    kinds = [kind_of(value) for _, _, value in flat]
    numeric = (Kind.NUMBER, Kind.INFINITE)
    held = [at for at, kind in enumerate(kinds) if kind not in (*numeric, Kind.MISSING)]
    return Cells(
        names=tuple(names),
        row=np.array([row for row, _, _ in flat], np.int32),
        name=np.array([names.index(name) for _, name, _ in flat], np.int32),
        kind=np.array(kinds, np.uint8),
        number=np.array([v if k in numeric else np.nan for (_, _, v), k in zip(flat, kinds, strict=True)], np.float64),
        text_cell=np.array(held, np.int32),
        text=pa.array([text_of(flat[at][2]) for at in held], pa.string()),
    )


def inferences(
    events: Sequence[Sequence[Cell]],
    *,
    ids: Sequence[int] | None = None,
    time_us: Sequence[int] | None = None,
    label: Sequence[str | None] | None = None,
    value: Sequence[float] | None = None,
    score: Sequence[float] | None = None,
    latency_ms: Sequence[float] | None = None,
) -> Inferences:
    """A decoded batch of one model version; ids are hashed from their number."""
    n = len(events)
    none = [float("nan")] * n
    hashes = [hashlib.blake2b(str(i).encode(), digest_size=16).digest() for i in (ids or range(n))]
    return Inferences(
        keys=(ModelKey("credit", "7"),),
        partitions=(PartitionId(Stream.INFERENCE, "inference", 0),),
        partition=np.zeros(n, np.int32),
        offset=np.arange(n),
        time_us=np.array(time_us if time_us is not None else np.arange(n), np.int64),
        record_time_us=np.full(n, NO_TIME),
        id_hi=np.array([int.from_bytes(h[:8], "big") for h in hashes], np.uint64),
        id_lo=np.array([int.from_bytes(h[8:], "big") for h in hashes], np.uint64),
        key=np.zeros(n, np.int32),
        cells=cells(events),
        label=pa.array(label or [None] * n, pa.string()),
        score=np.array(score or none, np.float64),
        value=np.array(value or none, np.float64),
        probabilities=pa.nulls(n, pa.string()),
        latency_ms=np.array(latency_ms or none, np.float64),
        segment=pa.nulls(n, pa.string()),
        truth_label=pa.nulls(n, pa.string()),
        truth_value=np.array(none, np.float64),
    )


def rows_of(events: Sequence[Sequence[Cell]], *, most_features: int = 2_000, **columns: Any) -> Rows:
    """All events as rows, in segment 0."""
    batch = inferences(events, **columns)
    n = len(events)
    return Rows.of(batch, np.arange(n), segment=np.zeros(n, np.int32), most_features=most_features)


def numbers(values: Sequence[float] | np.ndarray, name: str = "x", **columns: Any) -> Rows:
    """Rows of one numeric feature."""
    return rows_of([[(name, float(v))] for v in values], **columns)


def cell_table(rows: Rows) -> list[dict[tuple[str, str], Any]]:
    """Rows as Python dictionaries, missing cells left out: what two ways to build the same rows are compared by."""
    texts = {f: dict(zip(held.row.tolist(), held.text.to_pylist(), strict=True)) for f, held in rows.texts.items()}
    table: list[dict[tuple[str, str], Any]] = []
    for row in range(len(rows)):
        found: dict[tuple[str, str], Any] = {}
        for column, key in enumerate(rows.subjects):
            kind = Kind(int(rows.kind[row, column]))
            if kind in (Kind.NUMBER, Kind.INFINITE):
                found[(key.kind, key.name)] = float(rows.number[row, column])
            elif kind != Kind.MISSING:
                found[(key.kind, key.name)] = (kind, texts[column][row])
        table.append(found)
    return table
