"""Counts by integer key that add, subtract and do not care about order: bins of scores, errors and truths."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stream_monitor.records import Ints

_NOTHING: Ints = np.zeros(0, np.int64)

_FEW = 32
"""Keys of one addition that are counted in a dictionary: for fewer, arrays cost more than the loop."""

_MOST_FRESH = 256
"""Keys in the dictionary before they join the arrays, which costs some 50 µs: a fifth of a microsecond for each."""


class Histogram:
    """A sparse histogram in two sorted arrays, eight and eight bytes a key; what is new waits in a dictionary.

    Laws: `add` in any order and batching gives equal histograms; adding negative counts undoes it, and keys that are
    back at nothing are forgotten; `merge` changes neither.

    >>> bins = Histogram([(3, 2), (-1, 5)])
    >>> bins.add(np.array([3]), np.array([-2]))
    >>> bins
    Histogram([(-1, 5)])
    """

    __slots__ = ("_counts", "_fresh", "_keys")

    def __init__(self, items: Iterable[tuple[int, int]] = ()) -> None:
        table = np.array(sorted(items), dtype=np.int64).reshape(-1, 2)
        self._keys: Ints = np.ascontiguousarray(table[:, 0])
        self._counts: Ints = np.ascontiguousarray(table[:, 1])
        self._fresh: dict[int, int] = {}

    def add(self, keys: Ints, counts: Ints) -> None:
        """Count keys, each of them once in the array."""
        if len(keys) > _FEW:
            self._settle(keys, counts)
            return
        fresh = self._fresh
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            fresh[key] = fresh.get(key, 0) + count
        if len(fresh) > _MOST_FRESH:
            self._settle()

    def arrays(self) -> tuple[Ints, Ints]:
        """Keys that ascend, and their counts; neither is to be written to."""
        if self._fresh:
            self._settle()
        return self._keys, self._counts

    def items(self) -> list[tuple[int, int]]:
        """Keys that ascend, with their counts."""
        keys, counts = self.arrays()
        return list(zip(keys.tolist(), counts.tolist(), strict=True))

    def merge(self, other: Histogram) -> Histogram:
        """The counts of both."""
        total = Histogram()
        total._keys, total._counts = self.arrays()
        total._settle(*other.arrays())
        return total

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return int(self.arrays()[1].sum())

    def __getitem__(self, key: int) -> int:
        keys, counts = self.arrays()
        at = int(np.searchsorted(keys, key))
        return int(counts[at]) if at < len(keys) and keys[at] == key else 0

    def __len__(self) -> int:
        return len(self.arrays()[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        pairs = zip(self.arrays(), other.arrays(), strict=True)
        return all(np.array_equal(mine, theirs) for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Histogram({self.items()})"

    def to_bytes(self) -> bytes:
        """The differences of the keys, then the counts: what compresses well."""
        keys, counts = self.arrays()
        table = np.array((keys, counts), "<i8")
        table[0, 1:] -= keys[:-1]  # as np.diff does, in a fifth of the time: a batch of labels writes thousands
        return bytes(table.tobytes())

    @classmethod
    def from_bytes(cls, state: bytes) -> Histogram:
        """What `to_bytes` wrote."""
        steps, counts = np.frombuffer(state, "<i8").reshape(2, -1)
        made = cls()
        made._keys, made._counts = np.cumsum(steps, dtype=np.int64), counts.astype(np.int64)
        return made

    def _settle(self, keys: Ints = _NOTHING, counts: Ints = _NOTHING) -> None:
        """Take what is fresh, and what is given, into new arrays; the old ones may be shared."""
        n = len(self._fresh)
        keys = np.concatenate((self._keys, np.fromiter(self._fresh, np.int64, n), keys))
        counts = np.concatenate((self._counts, np.fromiter(self._fresh.values(), np.int64, n), counts))
        self._fresh = {}
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        first = np.ones(len(keys), np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        if not first.all():
            keys, counts = keys[first], np.add.reduceat(counts, np.flatnonzero(first))
        held = counts != 0
        self._keys, self._counts = keys[held], counts[held]
