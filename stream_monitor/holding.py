"""Truths that wait until those of their age are a fair sample: nothing is said of errors by the labels that come first.

How long is learnt with the arrival of labels (`labels.LabelArrival.waits`); when each row is let go depends on the times
of predictions and labels alone. What waits is bounded: beyond `MOST_ROWS` a part of the predictions, chosen by their ids,
stands for all of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.labels import OPEN_END
from stream_monitor.records import NO_TIME, Flags, Hashes, Ints
from stream_monitor.summarize.outcome import Joined
from stream_monitor.truth import from_ipc, to_ipc

MOST_ROWS = 8_192
"""Truths that wait of one outcome; half of them are let go of when there are more. A change shows in some 200 labels: in a
twentieth of the time that is waited anyway, if 4,096 stand for all of it."""

ASK_EVERY = 1_024
"""Rows after which the bound is looked at: the same ones, however polls cut them."""

_TEXTS = ("truth_label", "label", "probabilities")
_NUMBERS = (
    "truth_number", "score", "value", "truth_probability", "label_probability", "squared_probability", "expected_size",
    "expected_error",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Arrived:
    """Joined truths of one line and outcome in the order of their arrival."""

    joined: Joined
    made_us: Ints  # when they were predicted
    time_us: Ints  # and when they arrived
    segment: Ints
    id_lo: Hashes

    def __len__(self) -> int:
        return len(self.time_us)

    def take(self, row: Ints) -> Arrived:
        """Some of the rows, in this order."""
        return Arrived(self.joined.take(row), self.made_us[row], self.time_us[row], self.segment[row], self.id_lo[row])

    def to_table(self) -> pa.Table:
        nothing, columns = np.full(len(self), np.nan), dict[str, Any]()
        for name in _TEXTS:
            column = getattr(self.joined, name)
            columns[name] = pa.nulls(len(self), pa.string()) if column is None else column.cast(pa.string())
        for name in _NUMBERS:
            column = getattr(self.joined, name)
            columns[name] = pa.array(nothing if column is None else column, pa.float64(), from_pandas=False)
        columns |= {name: getattr(self, name).astype(np.int64) for name in ("made_us", "time_us", "segment")}
        return pa.table({**columns, "id_lo": pa.array(self.id_lo, pa.uint64())})

    @classmethod
    def from_table(cls, rows: pa.Table) -> Arrived:
        flat = rows.combine_chunks()
        held = set(flat.column_names)  # an earlier version of this program held fewer
        texts = {name: _array(flat[name]) for name in _TEXTS if name in held}
        joined = Joined(**texts, **{name: flat[name].to_numpy() for name in _NUMBERS if name in held})
        return cls(joined, *(flat[name].to_numpy() for name in ("made_us", "time_us", "segment", "id_lo")))


def _one_after_the_other(held: pa.Table, more: pa.Table) -> pa.Table:
    """What was held by an earlier version of this program lacks some columns."""
    return pa.concat_tables([held, more], promote_options="default").select(more.column_names)


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


@dataclass(slots=True)
class Holding:
    """The truths of one outcome that wait. `thinned`: (made from, bits): of predictions made from then on those are
    taken whose id ends in so many zero bits."""

    rows: pa.Table | None = None
    seen: int = 0
    let_go_us: int = NO_TIME  # the time of what was let go last
    thinned: list[tuple[int, int]] = field(default_factory=lambda: [(NO_TIME, 0)])

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def take(self, part: Arrived, waits: Sequence[tuple[int, int]]) -> list[Arrived]:
        """Rows that arrived, in order; what may be let go by the time of the last, at its time."""
        found: list[Arrived] = []
        start = 0
        while start < len(part):
            stop = min(len(part), start + ASK_EVERY - self.seen % ASK_EVERY)
            some = part.take(np.arange(start, stop))
            self.seen, start = self.seen + stop - start, stop
            some = some.take(np.flatnonzero(self._is_taken(some.made_us, some.id_lo)))
            if len(some):
                table = some.to_table()
                self.rows = table if self.rows is None else _one_after_the_other(self.rows, table)
            found += self.let_go(int(part.time_us[stop - 1]), waits)
            if self.seen % ASK_EVERY == 0:
                self._bound(int(part.time_us[stop - 1]))
        return found

    def let_go(self, until_us: int, waits: Sequence[tuple[int, int]]) -> list[Arrived]:
        """What need not wait any longer, up to a time and with it; in the order in which it became free."""
        if self.rows is None or not len(self.rows):
            return []
        made, joined = self.rows["made_us"].to_numpy(), self.rows["time_us"].to_numpy()
        free, is_lost, is_late = free_at(made, joined, waits)
        free = _with_the_next(free, is_late | is_lost)
        ready = free <= until_us
        order = np.flatnonzero(ready & ~is_lost)
        # What becomes free at once goes by its predictions: by their arrival, those of one kind would lead.
        order = order[np.lexsort((made[order], free[order]))]
        found = Arrived.from_table(self.rows.take(order))
        times = np.maximum(free[order], self.let_go_us)
        if ready.any() or is_lost.any():
            rest = self.rows.filter(pa.array(~ready & ~is_lost)).combine_chunks()
            self.rows = rest if len(rest) else None
        if not len(order):
            return []
        self.let_go_us = int(times[-1])
        return [Arrived(found.joined, found.made_us, times, found.segment, found.id_lo)]

    def _is_taken(self, made_us: Ints, id_lo: Hashes) -> Flags:
        begins, bits = (np.array(column) for column in zip(*self.thinned, strict=True))
        mask = (1 << bits[np.searchsorted(begins, made_us, "right") - 1]) - 1
        return np.asarray(id_lo & mask.astype(np.uint64) == 0)

    def _bound(self, now_us: int) -> None:
        """Take fewer where too many wait; of predictions still to be made more again, where few do."""
        while len(self) > MOST_ROWS:
            assert self.rows is not None
            most = max(bits for _, bits in self.thinned) + 1
            self.thinned = [(NO_TIME, most)]
            kept = self._is_taken(self.rows["made_us"].to_numpy(), self.rows["id_lo"].to_numpy())
            self.rows = self.rows.filter(pa.array(kept)).combine_chunks()
        begin, bits = self.thinned[-1]
        oldest = now_us if not len(self) else int(self.rows["made_us"].to_numpy().min())  # type: ignore[index]
        if oldest >= begin and bits and len(self) < MOST_ROWS // 4:
            self.thinned = [(NO_TIME, bits), (now_us + 1, bits - 1)]

    def to_bytes(self) -> bytes:
        head = json.dumps([self.seen, self.let_go_us, self.thinned]).encode()
        return struct.pack("<I", len(head)) + head + (b"" if self.rows is None else to_ipc(self.rows))

    @classmethod
    def from_bytes(cls, state: bytes) -> Holding:
        (size,) = struct.unpack_from("<I", state)
        seen, let_go_us, thinned = json.loads(state[4 : 4 + size])
        rows = from_ipc(state[4 + size :]) if len(state) > 4 + size else None
        return cls(rows, seen, let_go_us, [(begin, bits) for begin, bits in thinned])


def free_at(made_us: Ints, joined_us: Ints, waits: Sequence[tuple[int, int]]) -> tuple[Ints, Flags, Flags]:
    """When each truth need not wait any longer, (n,), OPEN_END where that is not known yet; which are lost; which are late.

    `waits`: (from, age): from then on those of that age are let go of, before the first none is. Where the age grows,
    truths that came early have been let go of already; the rest of the same predictions would be a biased sample, and is
    lost. Late is what came when those of its age had been let go of.

    >>> free, _, late = free_at(np.array([0, 0]), np.array([5, 50]), [(10, 20)])
    >>> free.tolist(), late.tolist()
    ([20, 50], [False, True])
    """
    free, is_lost, is_late = np.full(len(made_us), OPEN_END), *np.zeros((2, len(made_us)), np.bool_)
    for (begin, age), (end, _) in pairwise([*waits, (OPEN_END, 0)]):
        if age < OPEN_END:
            at = np.maximum(np.maximum(joined_us, begin), made_us + age)
            now = (free == OPEN_END) & (at < end)
            free = np.where(now, at, free)
            is_late |= now & (age > 0) & (joined_us > made_us + age)
    for (_, before), (begin, age) in pairwise(waits):
        if age > before:
            is_lost |= (made_us > begin - age) & (made_us <= begin - before) & (free >= begin)
    return free, is_lost, is_late


def _with_the_next(free_us: Ints, waits: Flags) -> Ints:
    """Truths that wait, (n,), go with the next that does not; where no more come, they stay.

    What is late is of one kind, and only beside younger truths, of the other, a fair sample: of a version that predicts
    no longer the late ones alone are left.

    >>> _with_the_next(np.array([20, 30, 50, 70]), np.array([False, True, False, True])).tolist()[:3]
    [20, 50, 50]
    """
    punctual = np.append(np.sort(free_us[~waits]), OPEN_END)
    return np.where(waits, punctual[np.searchsorted(punctual, free_us)], free_us)
