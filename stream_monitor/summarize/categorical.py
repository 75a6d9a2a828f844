"""The categories of a baseline, the most frequent first; everything else is unseen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.records import Bytes, Floats, Kind
from stream_monitor.summarize.protocol import INFINITE, MISSING, UNSEEN, WRONG_TYPE
from stream_monitor.summarize.rows import Texts

_TEXT_KINDS = (Kind.STRING, Kind.BOOLEAN)


@dataclass(frozen=True, slots=True)
class Categories:
    """`values`: at most 256 texts. `numbers`: whether a number is a category too (the configuration says so)."""

    values: tuple[str, ...]
    numbers: bool = False

    @classmethod
    def learn(cls, texts: pa.Array, *, most: int, numbers: bool = False) -> Categories:
        """From the baseline's texts; equally frequent ones in the order of their text."""
        counts = pc.value_counts(texts)
        pairs = sorted(zip(counts.field(1).to_pylist(), counts.field(0).to_pylist(), strict=True), key=_by_frequency)
        return cls(tuple(text for _, text in pairs[:most]), numbers)

    def encode(self, kind: Bytes, number: Floats, texts: Texts | None) -> np.ndarray[Any, Any]:
        """The code of each cell (n,), uint16."""
        code = np.full(len(kind), WRONG_TYPE, np.uint16)
        code[kind == Kind.MISSING] = MISSING
        code[kind == Kind.INFINITE] = INFINITE
        row, text = category_texts(kind, number, texts, numbers=self.numbers)
        if len(row):
            found = pc.index_in(text, value_set=pa.array(self.values, pa.string()))
            code[row] = pc.fill_null(found, UNSEEN).to_numpy(zero_copy_only=False).astype(np.uint16)
        return code

    def to_json(self) -> dict[str, Any]:
        return {"values": list(self.values), "numbers": self.numbers}

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Categories:
        return cls(tuple(body["values"]), bool(body["numbers"]))


def category_texts(
    kind: Bytes, number: Floats, texts: Texts | None, *, numbers: bool
) -> tuple[np.ndarray[Any, Any], pa.Array]:
    """Row numbers and texts of the cells that are categories."""
    row, text = np.zeros(0, np.int32), pa.array([], pa.string())
    if texts is not None:
        usable = np.isin(kind[texts.row], _TEXT_KINDS)
        row, text = texts.row, texts.text
        if not usable.all():
            row, text = row[usable], text.filter(pa.array(usable))
    if numbers:
        held = np.flatnonzero(kind == Kind.NUMBER)
        if len(held):
            row, text = np.concatenate([row, held]), pa.concat_arrays([text, _number_texts(number[held])])
    return row, text


def _number_texts(number: Floats) -> pa.Array:
    """Numbers as JSON text; 94107.0 is `94107`."""
    distinct, place = np.unique(number, return_inverse=True)
    texts = [str(int(x)) if x == int(x) and abs(x) < 2**53 else repr(x) for x in distinct.tolist()]
    return pa.array(texts, pa.string()).take(pa.array(place))


def _by_frequency(pair: tuple[int, str]) -> tuple[int, str]:
    return -pair[0], pair[1]
