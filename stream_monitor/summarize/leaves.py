"""Leaves: a partition of rows by what their features hold, as a regression tree makes it, told without walking the tree.

A leaf is a box: of each subject it admits some bins. So each subject says which leaves a row may be in, as bits of one
integer, and the row's leaf is the one that all of them name (as in QuickScorer, Lucchese et al. 2015). A tree may also
split by the rating of a row, the sum of a number that each subject's bin has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_monitor.records import Floats, Hashes, Ints
from stream_monitor.summarize.categorical import Categories
from stream_monitor.summarize.rows import PREDICTION, Rows, SubjectKey

MOST_LEAVES = 64
"""Bits of an integer."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What one subject tells of the leaves.

    Numbers: bin i is of values above edges[i - 1] and up to edges[i]; categories have a bin each. What is neither (missing,
    of another type, infinite, unseen) has the last bin. `leaves` (bins,): the leaves that each bin admits, as bits;
    `rates` (bins,): what it adds to the rating.
    """

    key: SubjectKey
    leaves: Hashes
    rates: Floats
    edges: Floats
    categories: Categories | None = None

    def code(self, rows: Rows) -> Ints:
        """The bin of each row (n,)."""
        other = len(self.leaves) - 1
        if self.key not in rows.subjects:
            return np.full(len(rows), other)
        column = rows.subjects.index(self.key)
        number = np.ascontiguousarray(rows.number[:, column])
        if self.categories is not None:
            kind = np.ascontiguousarray(rows.kind[:, column])
            found = self.categories.encode(kind, number, rows.texts.get(column))
            return np.asarray(np.minimum(found, other), dtype=np.int64)
        return number_bins(number, self.edges)

    def to_json(self) -> dict[str, Any]:
        return {
            "key": list(self.key),
            "leaves": [f"{bits:x}" for bits in self.leaves.tolist()],
            "rates": self.rates.tolist(),
            "edges": self.edges.tolist(),
            "categories": None if self.categories is None else self.categories.to_json(),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Cut:
        named = body["categories"]
        return cls(
            SubjectKey(*body["key"]),
            np.array([int(bits, 16) for bits in body["leaves"]], np.uint64),
            np.array(body["rates"], np.float64),
            np.array(body["edges"], np.float64),
            None if named is None else Categories.from_json(named),
        )


def number_bins(number: Floats, edges: Floats) -> Ints:
    """Bins of numbers between ascending edges, 0 to len(edges); what is no finite number has the one after them."""
    code = np.searchsorted(edges, number, "left")
    return np.asarray(np.where(np.isfinite(number), code, len(edges) + 1), dtype=np.int64)


def _no_edges() -> Floats:
    return np.zeros(0)


def _every_leaf() -> Hashes:
    return np.full(1, 2**64 - 1, np.uint64)


@dataclass(frozen=True)
class Leaves:
    """`count` leaves that every row falls in exactly one of; `id`: a hash of what they say.

    `edges` (k,) of bins of the rating, and the leaves that each of them (k + 1,) admits.
    """

    count: int
    cuts: tuple[Cut, ...] = ()
    edges: Floats = field(default_factory=_no_edges)
    by_rating: Hashes = field(default_factory=_every_leaf)
    id: str = field(init=False)

    def __post_init__(self) -> None:
        text = json.dumps(self.to_json(), sort_keys=True)
        object.__setattr__(self, "id", hashlib.blake2b(text.encode(), digest_size=8).hexdigest())

    @property
    def features(self) -> frozenset[str]:
        """The features that are looked at."""
        return frozenset(cut.key.name for cut in self.cuts if cut.key != PREDICTION)

    def of(self, rows: Rows) -> Ints:
        """The leaf of each row (n,)."""
        admitted = np.full(len(rows), (1 << self.count) - 1, np.uint64)
        rating = np.zeros(len(rows))
        for cut in self.cuts:
            code = cut.code(rows)
            admitted &= cut.leaves[code]
            if len(self.edges):
                rating += cut.rates[code]
        if len(self.edges):
            admitted &= self.by_rating[np.searchsorted(self.edges, rating, "left")]
        return np.asarray(np.frexp(admitted.astype(np.float64))[1] - 1, dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "cuts": [cut.to_json() for cut in self.cuts],
            "edges": self.edges.tolist(),
            "by_rating": [f"{bits:x}" for bits in self.by_rating.tolist()],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Leaves:
        cuts: Sequence[Mapping[str, Any]] = body["cuts"]
        return cls(
            int(body["count"]),
            tuple(Cut.from_json(cut) for cut in cuts),
            np.array(body["edges"], np.float64),
            np.array([int(bits, 16) for bits in body["by_rating"]], np.uint64),
        )
