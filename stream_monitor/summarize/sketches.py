"""Sketches for people: quantiles of numbers, distinct counts and frequent values of categories.

Apache DataSketches' KLL draws from a generator that cannot be seeded, so two runs over the same values give other
bytes: sketches are outside every equality we promise, and no verdict reads them. They are kept for an hour of a
line, since a sketch for every pane and feature would cost more than all counts together.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from datasketches import (
    frequent_items_error_type,
    frequent_strings_sketch,
    hll_sketch,
    hll_union,
    kll_doubles_sketch,
)

from stream_monitor.errors import StateError
from stream_monitor.records import Floats

FORMAT = 1
KLL_SIZE = 200
"""Rank error about 1.3 % with 99 % confidence, about 3 kB a subject."""
HLL_LOG_SIZE = 11
"""Distinct counts to about 2.3 % (one standard deviation), 1 kB a subject."""
FREQUENT_LOG_SIZE = 6
"""64 slots: a category of more than 2.5 % of the unseen rows is sure to be listed."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(slots=True)
class Sketches:
    """Per subject number: KLL of its numbers; HLL and frequent items of the categories the baseline does not know."""

    quantiles: dict[int, kll_doubles_sketch] = field(default_factory=dict)
    distinct: dict[int, hll_sketch] = field(default_factory=dict)
    frequent: dict[int, frequent_strings_sketch] = field(default_factory=dict)

    def update(self, number: Floats, unseen: Mapping[int, pa.StructArray]) -> None:
        """Fold numbers (n, F), NaN left out, and the distinct unseen texts with their counts, by subject."""
        for f in range(number.shape[1]):
            column = number[:, f]
            held = column[~np.isnan(column)]
            if len(held):
                if f not in self.quantiles:
                    self.quantiles[f] = kll_doubles_sketch(KLL_SIZE)
                self.quantiles[f].update(held)
        for f, counts in unseen.items():
            distinct = self.distinct.setdefault(f, hll_sketch(HLL_LOG_SIZE))
            frequent = self.frequent.setdefault(f, frequent_strings_sketch(FREQUENT_LOG_SIZE))
            for text, count in zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True):
                distinct.update(text)
                frequent.update(text, count)

    def merge(self, other: Sketches) -> Sketches:
        """The sketches of both; neither changes."""
        merged = Sketches.from_bytes(self.to_bytes())
        for f, kll in other.quantiles.items():
            merged.quantiles.setdefault(f, kll_doubles_sketch(KLL_SIZE)).merge(kll)
        for f, hll in other.distinct.items():
            union = hll_union(HLL_LOG_SIZE)
            union.update(hll)
            if f in merged.distinct:
                union.update(merged.distinct[f])
            merged.distinct[f] = union.get_result()
        for f, items in other.frequent.items():
            merged.frequent.setdefault(f, frequent_strings_sketch(FREQUENT_LOG_SIZE)).merge(items)
        return merged

    def quantiles_of(self, subject: int) -> dict[float, float]:
        """Estimated quantiles of a subject's numbers, empty without any."""
        kll = self.quantiles.get(subject)
        if kll is None or kll.is_empty():
            return {}
        return dict(zip(QUANTILES, map(float, kll.get_quantiles(list(QUANTILES))), strict=True))

    def new_categories(self, subject: int) -> tuple[float, list[tuple[str, int]]]:
        """How many distinct unseen categories, and the most frequent of them with their counts."""
        hll, items = self.distinct.get(subject), self.frequent.get(subject)
        if hll is None or items is None:
            return 0.0, []
        rows = items.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES)
        return float(hll.get_estimate()), [(str(row[0]), int(row[1])) for row in rows[:10]]

    def to_bytes(self) -> bytes:
        parts = [struct.pack("<B", FORMAT)]
        for tag, held in ((0, self.quantiles), (1, self.distinct), (2, self.frequent)):
            for f, sketch in held.items():
                body = sketch.serialize_compact() if tag == 1 else sketch.serialize()
                parts.append(struct.pack("<BII", tag, f, len(body)) + body)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, body: bytes) -> Sketches:
        """What `to_bytes` wrote; raises StateError for another format."""
        if body[:1] != struct.pack("<B", FORMAT):
            raise StateError(f"sketches of another format than {FORMAT}")
        read = (kll_doubles_sketch.deserialize, hll_sketch.deserialize, frequent_strings_sketch.deserialize)
        made = cls()
        held = (made.quantiles, made.distinct, made.frequent)
        at = 1
        while at < len(body):
            tag, f, size = struct.unpack_from("<BII", body, at)
            at += 9
            held[tag][f] = read[tag](body[at : at + size])
            at += size
        return made
