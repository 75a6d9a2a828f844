"""Counts by integer key that add, subtract and do not care about order: bins of scores and errors, and truths as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np

from stream_monitor.records import Flags, Floats, Ints

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
        total = type(self)()
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


MOST_NUMBERS = 1024
"""Distinct numbers that are kept: at most 16 kB, and a sixtieth of a standard deviation apart where there are more."""

FINEST_BITS = 32
"""Of the mantissa of a number: quarters of what lies near a thousand million. With the exponent and the sign 45 bits, which
leaves room for the number of a profile in one integer where rows of many are counted at once."""

COARSEST_BITS = 7
"""Kept in any case: bins less than .8 % wide."""

MOST_SCORES = 4096
"""As many keys as 9 bits leave of 200,000 scores of rare events; with 1,024, PR-AUC of 2,000 scores and twenty positives is
off by .003."""

SCORE_BITS = 9
"""Kept of a score's distance to the nearer of 0 and 1 in any case: with 7, PR-AUC is off by .001 on scores of rare events
(`tests/benchmarks/performance.py`)."""


_SMALLEST = 1e-300


class Numbers(Histogram):
    """A histogram of finite numbers, each by its sign and the leading bits of its size, as many as can be had.

    Truths may lie far from zero, and close together: bins of so much of their size would hold all in one. So each number
    is a key of its own until there are more than `most`; then as many trailing bits are cut off as it takes,
    the same of all. `cut` is how many were.

    Laws: those of a histogram, and `cut` is what the numbers need, whatever their order; but what was cut off stays off
    when numbers are taken out again.

    >>> truths = Numbers()
    >>> truths.add_numbers(np.array([101325.0, 101325.5, 0.0, -3.0, -3.0]))
    >>> lower, upper = truths.ends()
    >>> lower.tolist(), truths.arrays()[1].tolist()
    ([-3.0000000004656613, 0.0, 101325.0, 101325.5], [2, 1, 1, 1])
    """

    __slots__ = ("cut",)

    most = MOST_NUMBERS
    least_bits = COARSEST_BITS

    def __init__(self, items: Iterable[tuple[int, int]] = (), *, cut: int = 0) -> None:
        super().__init__(items)
        self.cut = cut

    @staticmethod
    def keys_of(values: Floats) -> Ints:
        """The keys of finite numbers, (n,), which ascend with them: 0 is zero's."""
        size = np.maximum(np.abs(values), _SMALLEST).view(np.int64) >> (52 - FINEST_BITS)
        return np.asarray(np.where(values == 0, 0, np.sign(values).astype(np.int64) * size), dtype=np.int64)

    def add_numbers(self, values: Floats) -> None:
        """Count numbers."""
        keys, counts = np.unique(self.keys_of(values), return_counts=True)
        self.add(keys, counts.astype(np.int64))

    def ends(self) -> tuple[Floats, Floats]:
        """The lower and the upper end of each key; both 0 for zero's."""
        keys, _ = self.arrays()
        return ends_of(keys, self.cut)

    def cut_to(self, cut: int) -> Self:
        """With so many bits cut off at least."""
        keys, counts = self.arrays()  # and now `cut` is what they need
        found = type(self)(cut=max(cut, self.cut))
        found._settle(keys, counts)
        return found

    def merge(self, other: Histogram) -> Self:
        """The counts of both."""
        keys, counts = other.arrays()
        total = self.cut_to(other.cut if isinstance(other, Numbers) else 0)
        total._settle(keys, counts)
        return total

    def __getitem__(self, key: int) -> int:
        self.arrays()
        return super().__getitem__(int(_shortened(np.array([key]), self.cut)[0]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Numbers) and super().__eq__(other) and self.cut == other.cut

    __hash__ = None

    def to_bytes(self) -> bytes:
        """What was cut off, then as any histogram."""
        table = super().to_bytes()
        return self.cut.to_bytes(8, "little") + table

    @classmethod
    def from_bytes(cls, state: bytes) -> Self:
        """What `to_bytes` wrote."""
        held = Histogram.from_bytes(state[8:])
        made = cls(cut=int.from_bytes(state[:8], "little"))
        made._keys, made._counts = held.arrays()
        return made

    def _settle(self, keys: Ints = _NOTHING, counts: Ints = _NOTHING) -> None:
        """Take new keys in, and cut off what makes them too many."""
        fresh = np.array(list(self._fresh.items()), np.int64).reshape(-1, 2)
        self._fresh = {}
        new = _shortened(np.concatenate((fresh[:, 0], keys)), self.cut)
        super()._settle(new, np.concatenate((fresh[:, 1], counts)))
        while len(self._keys) > self.most and self.cut < FINEST_BITS - self.least_bits:
            self.cut += 1
            self._keys = _shortened(self._keys, self.cut)
            super()._settle()


_POSITIVE = 1 << 44  # above the exponent and the mantissa of what is below 2
_SCORE_FLOOR = 2.0**-40
_HALF = int(Numbers.keys_of(np.array([0.5]))[0])


class Scores(Numbers):
    """Scores in [0, 1] with their truths: each by its distance to the nearer of 0 and 1, down to 2^-40."""

    __slots__ = ()

    most = MOST_SCORES
    least_bits = SCORE_BITS

    @staticmethod
    def keys_of_scores(score: Floats, true: Flags) -> Ints:
        """The keys of scores (n,) by what came true; those of lower ones are negative."""
        lower = score < 0.5
        distance = Numbers.keys_of(np.maximum(np.where(lower, score, 1 - score), _SCORE_FLOOR))
        return np.asarray(np.where(lower, -1, 1) * (distance + _POSITIVE * true), dtype=np.int64)

    def steps(self, bits: int | None = None) -> tuple[Ints, Ints, Ints]:
        """The step of each key, ascending with the score, what came true (0 or 1), and rows.

        Steps below a half end at -2, from there on they begin at 1; they are as wide as what was cut off leaves them, or
        as so many bits of the distance do.
        """
        keys, counts = self.arrays()
        cut = self.cut if bits is None else FINEST_BITS - bits
        distance = ((np.abs(keys) & (_POSITIVE - 1)) >> cut) - (_HALF >> cut) - 1
        return np.where(keys < 0, distance, -distance), (np.abs(keys) >= _POSITIVE).astype(np.int64), counts

    @classmethod
    def of_steps(cls, step: Ints, true: Ints, counts: Ints) -> Scores:
        """From steps as coarse as they get."""
        cut = FINEST_BITS - SCORE_BITS
        distance = np.where(step < 0, step, -step) + (_HALF >> cut) + 1
        keys = np.where(step < 0, -1, 1) * ((distance << cut) + _POSITIVE * true)
        return cls(zip(keys.tolist(), counts.tolist(), strict=True), cut=cut)


def _shortened(keys: Ints, bits: int) -> Ints:
    return np.asarray(np.sign(keys) * ((np.abs(keys) >> bits) << bits), dtype=np.int64)


def _number_of(size: Ints) -> Floats:
    """The smallest number with these leading bits; that of none is 0, and so are its ends."""
    return np.asarray((size << (52 - FINEST_BITS)).view(np.float64), dtype=np.float64)


def ends_of(keys: Ints, cut: int) -> tuple[Floats, Floats]:
    """The lower and the upper end of keys of numbers of which so many bits are cut off; both 0 for zero's."""
    sign, size = np.sign(keys), np.abs(keys)
    inner, outer = (_number_of(part) * sign for part in (size, size + (1 << cut)))
    return np.where(keys < 0, outer, inner), np.where(keys < 0, inner, outer)
