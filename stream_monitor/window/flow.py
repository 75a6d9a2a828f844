"""Keeping partitions side by side in event time while a backlog is drained.

A partition that runs more than the lateness and six panes ahead of the slowest has its rows parked, and its
fetching paused, or hundreds of panes would stand open. What is parked is not yet taken: positions, clocks
and counts move only when rows are admitted, so a restart reads parked rows again.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from stream_monitor.records import NO_TIME, Codes, Inferences, Ints, Labels, PartitionId, RawBatch, Rejects
from stream_monitor.window.watermark import PartitionClock, PartitionState, slowest

PANES_AHEAD = 6
"""So many panes beyond the lateness may stand open for the sake of a faster partition."""

PARKED_ROWS = 20_000
"""A partition with this many rows parked is not fetched from: two polls' worth."""

Columns = TypeVar("Columns", Inferences, Labels)


@dataclass(frozen=True, slots=True)
class Decoded(Generic[Columns]):
    """One RawBatch with what decode made of it."""

    raw: RawBatch
    columns: Columns
    rejects: Rejects


@dataclass(slots=True)
class _Piece:
    """The rows of one partition in one decoded batch that are still parked."""

    batch: int
    decoded: Decoded[Inferences] | Decoded[Labels]
    partition: PartitionId
    offset: Ints  # of every raw row, ascending
    raw_start: int  # first raw row of the partition in the batch
    row_start: int  # first decoded row of the partition in the batch
    row_offset: Ints  # offsets of the decoded rows
    reached: Ints  # the clock after each decoded row
    taken: int = 0  # raw rows taken so far


@dataclass(frozen=True, slots=True)
class Admitted:
    """Rows taken from one partition: decoded rows [start, stop), refused raw rows, and how many records these are.

    `batch` numbers the batches in the order they were offered: taken in that order, no partition's rows change theirs.
    """

    batch: int
    decoded: Decoded[Inferences] | Decoded[Labels]
    partition: PartitionId
    start: int
    stop: int
    reject: Ints  # indices into decoded.rejects
    records: int


@dataclass(slots=True)
class Flow:
    """The partitions' states and what is parked of them."""

    slack_us: int
    states: dict[PartitionId, PartitionState] = field(default_factory=dict)
    _parked: dict[PartitionId, deque[_Piece]] = field(default_factory=dict)
    _tail: dict[PartitionId, PartitionClock] = field(default_factory=dict)
    _offered: int = 0

    def state(self, partition: PartitionId) -> PartitionState:
        """The state of a partition, new if it was never seen."""
        return self.states.setdefault(partition, PartitionState())

    def offer(self, decoded: Decoded[Inferences] | Decoded[Labels]) -> None:
        """Park the rows of a batch behind what their partitions already hold."""
        raw, columns = decoded.raw, decoded.columns
        self._offered += 1
        for index, partition in enumerate(raw.partitions):
            raw_rows = np.flatnonzero(raw.partition == index)
            if not len(raw_rows):
                continue
            rows = _rows_of(columns, partition)
            self.state(partition)
            tail = self._tail.setdefault(partition, deepcopy(self.states[partition].clock))
            before = tail.observe(columns.time_us[rows], columns.record_time_us[rows])
            reached = np.append(before[1:], NO_TIME if tail.highest_us is None else tail.highest_us)
            piece = _Piece(
                batch=self._offered,
                decoded=decoded,
                partition=partition,
                offset=raw.offset[raw_rows],
                raw_start=int(raw_rows[0]),
                row_start=int(rows[0]) if len(rows) else 0,
                row_offset=columns.offset[rows],
                reached=reached[: len(rows)],
            )
            self._parked.setdefault(partition, deque()).append(piece)

    def reach(self, partition: PartitionId, position: int) -> None:
        """The source goes on from `position`: so do we, where nothing of the partition is parked."""
        state = self.state(partition)
        if not self._parked.get(partition):
            state.position = position if state.position is None else max(state.position, position)

    def admit(self) -> list[Admitted]:
        """Take every parked row that is not too far ahead, in order, partition by partition."""
        frontier = {p: _reached(pieces[0]) for p, pieces in self._parked.items() if pieces}
        admitted: list[Admitted] = []
        if not frontier:
            return admitted
        lowest = slowest(self.states, frontier)
        for pieces in self._parked.values():
            while pieces:
                timed = _reached(pieces[0]) is not None
                if timed and lowest is None:
                    break
                part = self._take(pieces[0], lowest + self.slack_us if timed and lowest is not None else None)
                if part is not None:
                    admitted.append(part)
                if pieces[0].taken < len(pieces[0].offset):
                    break
                pieces.popleft()
        return admitted

    def _take(self, piece: _Piece, horizon_us: int | None) -> Admitted | None:
        count = len(piece.reached) if horizon_us is None else int(np.searchsorted(piece.reached, horizon_us, "right"))
        everything = count == len(piece.reached)
        raw_stop = len(piece.offset) if everything else int(np.searchsorted(piece.offset, piece.row_offset[count]))
        if raw_stop <= piece.taken:
            return None
        first, last = piece.raw_start + piece.taken, piece.raw_start + raw_stop
        reject_rows = piece.decoded.rejects.row
        start = int(np.searchsorted(piece.row_offset, piece.offset[piece.taken]))
        part = Admitted(
            batch=piece.batch,
            decoded=piece.decoded,
            partition=piece.partition,
            start=piece.row_start + start,
            stop=piece.row_start + count,
            reject=np.flatnonzero((reject_rows >= first) & (reject_rows < last)),
            records=raw_stop - piece.taken,
        )
        self.states[piece.partition].position = int(piece.offset[raw_stop - 1]) + 1
        piece.taken = raw_stop
        return part

    def parked_rows(self) -> int:
        """Rows in hand that are not yet taken."""
        return sum(len(piece.offset) - piece.taken for pieces in self._parked.values() for piece in pieces)

    def crowded(self) -> frozenset[PartitionId]:
        """Partitions that hold enough and should not be fetched from."""
        return frozenset(
            p for p, pieces in self._parked.items() if sum(len(x.offset) - x.taken for x in pieces) >= PARKED_ROWS
        )


def _rows_of(columns: Inferences | Labels, partition: PartitionId) -> Codes:
    if partition not in columns.partitions:
        return np.zeros(0, np.int32)
    return np.flatnonzero(columns.partition == columns.partitions.index(partition)).astype(np.int32)


def _reached(piece: _Piece) -> int | None:
    """How far the clock is at the end of a piece; None where no row of it carries a time."""
    if not len(piece.reached):
        return None
    last = int(piece.reached[-1])
    return None if last == NO_TIME else last
