"""Which events were seen before: a vectorised hash table of recent (model, id) keys and their event times."""

from __future__ import annotations

import numpy as np

from stream_monitor.records import Flags, Hashes, Ints

_EMPTY = np.uint64(0)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads consecutive numbers over the table


def prediction_key(id_hi: Hashes, id_lo: Hashes, model_hash: Hashes) -> Hashes:
    """One 64-bit key for (model, id): of a million ids within the horizon two collide once in 37 million tries."""
    key = (id_lo ^ (id_hi * _MULTIPLIER)) + model_hash * _MULTIPLIER
    return np.where(key == _EMPTY, np.uint64(1), key)


class RecentPredictions:
    """The event times of the predictions of the last `horizon_us`, by key.

    A prediction is a duplicate when its key was accepted at most `horizon_us` away from it in event
    time, before or after. Open addressing with linear probing; at most half full, so that a probe
    ends after about 1.5 steps. 16 bytes a slot.
    """

    def __init__(self, horizon_us: int) -> None:
        self.horizon_us = horizon_us
        self._allocate(1 << 14)

    def _allocate(self, slots: int) -> None:
        self._keys = np.zeros(slots, np.uint64)
        self._times = np.zeros(slots, np.int64)
        self._used = 0
        self._shift = np.uint64(64 - (slots.bit_length() - 1))

    def __len__(self) -> int:
        return self._used

    def accept(self, keys: Hashes, time_us: Ints, *, floor_us: int) -> Flags:
        """Flag the duplicates among rows in order and remember the others. Keys older than `floor_us` may be forgotten."""
        self._make_room(len(keys), floor_us)
        duplicate = np.zeros(len(keys), np.bool_)
        _, first, inverse, times_seen = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        alone = times_seen[inverse] == 1
        singles = np.flatnonzero(alone)
        duplicate[singles] = self._accept_distinct(keys[singles], time_us[singles])
        if len(singles) < len(keys):
            del first
            self._accept_repeated(keys, time_us, np.flatnonzero(~alone), duplicate)
        return duplicate

    def _accept_repeated(self, keys: Hashes, time_us: Ints, rows: Ints, duplicate: Flags) -> None:
        """Keys that stand more than once in one batch, round by round: the first of each, then the second, ..."""
        order = rows[np.argsort(keys[rows], kind="stable")]
        _, starts, sizes = np.unique(keys[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(starts, sizes)
        last: dict[int, int] = {}
        if int(sizes.max()) <= 4:
            for k in range(int(sizes.max())):
                chosen = order[rank == k]
                duplicate[chosen] = self._accept_distinct(keys[chosen], time_us[chosen])
            return
        # A flood of one id: a dictionary is quicker than thousands of rounds.
        heads = order[rank == 0]
        duplicate[heads] = self._accept_distinct(keys[heads], time_us[heads])
        slots = self._find(keys[heads])
        last = dict(zip(keys[heads].tolist(), self._times[slots].tolist(), strict=True))
        tail = order[rank > 0]
        for row, key, time in zip(tail.tolist(), keys[tail].tolist(), time_us[tail].tolist(), strict=True):
            if abs(time - last[key]) <= self.horizon_us:
                duplicate[row] = True
            else:
                last[key] = max(last[key], time)
        self._times[slots] = [last[key] for key in keys[heads].tolist()]

    def remember(self, keys: Hashes, time_us: Ints) -> None:
        """Take predictions that were accepted before a restart; of a repeated key the newest counts."""
        order = np.lexsort((time_us, keys))
        newest = np.ones(len(order), np.bool_)
        newest[:-1] = keys[order][1:] != keys[order][:-1]
        chosen = order[newest]
        self._make_room(len(chosen), None)
        self._accept_distinct(keys[chosen], time_us[chosen])

    def _home(self, keys: Hashes) -> Ints:
        return ((keys * _MULTIPLIER) >> self._shift).astype(np.int64)

    def _find(self, keys: Hashes) -> Ints:
        """The slot of each key, or the empty slot where its probe ended."""
        mask = len(self._keys) - 1
        slot = self._home(keys)
        open_rows = np.arange(len(keys))
        while len(open_rows):
            there = self._keys[slot[open_rows]]
            open_rows = open_rows[(there != keys[open_rows]) & (there != _EMPTY)]
            slot[open_rows] = (slot[open_rows] + 1) & mask
        return slot

    def _accept_distinct(self, keys: Hashes, time_us: Ints) -> Flags:
        duplicate = np.zeros(len(keys), np.bool_)
        rows = np.arange(len(keys))
        while len(rows):
            slot = self._find(keys[rows])
            known = self._keys[slot] == keys[rows]
            seen, where = rows[known], slot[known]
            duplicate[seen] = np.abs(time_us[seen] - self._times[where]) <= self.horizon_us
            fresh = ~duplicate[seen]
            self._times[where[fresh]] = np.maximum(self._times[where[fresh]], time_us[seen[fresh]])
            # Two new keys may have ended at one empty slot: the one that stands there afterwards is in, the rest try again.
            rows, slot = rows[~known], slot[~known]
            self._keys[slot] = keys[rows]
            stands = self._keys[slot] == keys[rows]
            self._times[slot[stands]] = time_us[rows[stands]]
            self._used += int(stands.sum())
            rows = rows[~stands]
        return duplicate

    def _make_room(self, incoming: int, floor_us: int | None) -> None:
        if 2 * (self._used + incoming) <= len(self._keys):
            return
        keep = self._keys != _EMPTY
        if floor_us is not None:
            keep &= self._times >= floor_us - self.horizon_us
        keys, times = self._keys[keep], self._times[keep]
        slots = len(self._keys)
        # Grow unless at least half of the load was stale: else every other batch would sweep the table.
        while 4 * len(keys) + 2 * incoming > slots:
            slots *= 2
        self._allocate(slots)
        self._accept_distinct(keys, times)
