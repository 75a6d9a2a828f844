"""Raw rows of one model version that wait for their pane to seal, as columns.

A row is an event; a subject is a feature, the prediction, its score or the latency. What a cell held is
kept raw (`Kind`, number, text), since the bins it will be coded on may not exist yet.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stream_monitor.errors import StateError
from stream_monitor.records import Bytes, Cells, Codes, Flags, Floats, Hashes, Inferences, Ints, Kind

FORMAT = 1


class SubjectKey(NamedTuple):
    """What is judged: `kind` is feature, prediction or latency."""

    kind: str
    name: str


PREDICTION = SubjectKey("prediction", "prediction")
SCORE = SubjectKey("prediction", "prediction.score")
LATENCY = SubjectKey("latency", "latency_ms")


@dataclass(frozen=True, slots=True)
class Texts:
    """The cells of one subject that hold text: row numbers, ascending, and the text of each."""

    row: Codes
    text: pa.Array


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows of F subjects."""

    time_us: Ints
    id_hi: Hashes
    id_lo: Hashes
    segment: Codes  # a number the caller understands
    subjects: tuple[SubjectKey, ...]
    kind: Bytes  # (n, F) Kind
    number: Floats  # (n, F), NaN where the cell holds none
    texts: dict[int, Texts]  # by subject
    true_label: pa.Array | None = None  # baseline rows only
    true_value: Floats | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)  # features not kept -> values they had; `take` forgets it

    def __len__(self) -> int:
        return len(self.time_us)

    @classmethod
    def empty(cls) -> Rows:
        """No rows and no subjects."""
        none = np.zeros(0, np.uint64)
        table = np.zeros((0, 0))
        return cls(np.zeros(0, np.int64), none, none, np.zeros(0, np.int32), (), table.astype(np.uint8), table, {})

    @classmethod
    def of(
        cls,
        inferences: Inferences,
        row: Ints,
        *,
        segment: Codes,
        most_features: int,
        known: Collection[str] | None = None,
    ) -> Rows:
        """The rows `row` of a batch.

        `known`: the features of the baseline, which alone are kept: a stranger with thousands of features costs
        nothing and crowds nobody out. Without it the `most_features` most frequent ones (the first of equals).
        """
        cells, names, left_out = _features(inferences.cells, row, len(inferences), most_features, known)
        kind, number, texts = cells
        subjects = [SubjectKey("feature", name) for name in names]
        index = pa.array(row)
        extra: list[tuple[SubjectKey, Bytes, Floats, Texts | None]] = []
        label = inferences.label.take(index)
        value = inferences.value[row]
        if label.null_count < len(row) or not np.isnan(value).all():
            extra.append((PREDICTION, *_prediction(label, value)))
        for key, column in ((SCORE, inferences.score[row]), (LATENCY, inferences.latency_ms[row])):
            if not np.isnan(column).all():
                extra.append((key, *_numbers(column), None))
        if extra:
            kind = np.concatenate([kind, np.stack([k for _, k, _, _ in extra], axis=1)], axis=1)
            number = np.concatenate([number, np.stack([x for _, _, x, _ in extra], axis=1)], axis=1)
            for key, _, _, text in extra:
                if text is not None:
                    texts[len(subjects)] = text
                subjects.append(key)
        return cls(inferences.time_us[row], inferences.id_hi[row], inferences.id_lo[row], segment, tuple(subjects),
                   kind, number, texts, left_out=left_out)  # fmt: skip

    def take(self, index: Ints) -> Rows:
        """The rows `index`, in that order."""
        place = np.full(len(self), -1, np.int64)
        texts = {}
        rising = len(index) < 2 or bool((np.diff(index) > 0).all())
        if self.texts:
            place[index] = np.arange(len(index))
        for subject, held in self.texts.items():
            row = place[held.row]
            kept = np.flatnonzero(row >= 0)
            if not rising:
                kept = kept[np.argsort(row[kept], kind="stable")]
            if len(kept) == len(held.row) and rising:
                texts[subject] = Texts(row[kept].astype(np.int32), held.text)
            elif len(kept):
                texts[subject] = Texts(row[kept].astype(np.int32), held.text.take(pa.array(kept)))
        return Rows(self.time_us[index], self.id_hi[index], self.id_lo[index], self.segment[index], self.subjects,
                    self.kind[index], self.number[index], texts)  # fmt: skip

    def since(self, time_us: int) -> Rows:
        """The rows not before this time."""
        kept = self.time_us >= time_us
        return self if kept.all() else self.take(np.flatnonzero(kept))

    def sorted(self) -> Rows:
        """By (time, id): the one order in which sums are added and detectors fed."""
        order = np.lexsort((self.id_lo, self.id_hi, self.time_us))
        if (order == np.arange(len(order))).all():
            return self
        return self.take(order)

    def to_bytes(self) -> bytes:
        """Arrow IPC, compressed."""
        columns: dict[str, pa.Array] = {
            "time_us": pa.array(self.time_us),
            "id_hi": pa.array(self.id_hi),
            "id_lo": pa.array(self.id_lo),
            "segment": pa.array(self.segment),
        }
        for f in range(len(self.subjects)):
            columns[f"k{f}"] = pa.array(np.ascontiguousarray(self.kind[:, f]))
            # Bit by bit: a NaN must stay a NaN.
            columns[f"n{f}"] = pa.array(np.ascontiguousarray(self.number[:, f]))
        for f, held in self.texts.items():
            place = np.full(len(self), -1, np.int64)
            place[held.row] = np.arange(len(held.row))
            columns[f"t{f}"] = held.text.take(pa.array(place, mask=place < 0))
        table = pa.table(columns).replace_schema_metadata(
            {"format": str(FORMAT), "subjects": json.dumps(self.subjects)}
        )
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, body: bytes) -> Rows:
        """What `to_bytes` wrote; raises StateError for anything else."""
        try:
            with pa.ipc.open_stream(body) as reader:
                table = reader.read_all().combine_chunks()
            about = table.schema.metadata
            subjects = tuple(SubjectKey(*s) for s in json.loads(about[b"subjects"]))
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise StateError(f"waiting rows are damaged: {error}") from error
        if about.get(b"format") != str(FORMAT).encode():
            raise StateError(f"waiting rows are of another format than {FORMAT}")
        n, count = len(table), len(subjects)
        kind, number = np.zeros((n, count), np.uint8), np.full((n, count), np.nan)
        texts = {}
        for f in range(count):
            kind[:, f] = table[f"k{f}"].to_numpy()
            number[:, f] = table[f"n{f}"].to_numpy()
            if f"t{f}" in table.column_names:
                column = _flat(table[f"t{f}"])
                row = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
                texts[f] = Texts(row.astype(np.int32), column.drop_null())
        return cls(table["time_us"].to_numpy(), table["id_hi"].to_numpy(), table["id_lo"].to_numpy(),
                   table["segment"].to_numpy(), subjects, kind, number, texts)  # fmt: skip


def concat(chunks: Sequence[Rows], *, most_features: int | None = None) -> Rows:
    """The rows of all chunks, one after the other; a subject a chunk does not have is missing there.

    Of more than `most_features` features those with the most values are kept (of equals the first by name).
    """
    if len(chunks) == 1:
        return chunks[0]
    left_out: Counter[str] = Counter()
    for chunk in chunks:
        left_out.update(chunk.left_out)
    subjects = tuple(dict.fromkeys(s for chunk in chunks for s in chunk.subjects))
    if most_features is not None and sum(s.kind == "feature" for s in subjects) > most_features:
        values = _values_of(chunks)
        ranked = sorted((s for s in subjects if s.kind == "feature"), key=lambda s: (-values[s], s.name))
        beyond = set(ranked[most_features:])
        left_out.update({s.name: values[s] for s in ranked[most_features:]})
        chunks = [_without(chunk, beyond) for chunk in chunks]
        subjects = tuple(s for s in subjects if s not in beyond)
    place = {subject: f for f, subject in enumerate(subjects)}
    n = sum(len(chunk) for chunk in chunks)
    kind = np.zeros((n, len(subjects)), np.uint8)
    number = np.full((n, len(subjects)), np.nan)
    held: dict[int, list[Texts]] = {}
    start = 0
    for chunk in chunks:
        columns = [place[s] for s in chunk.subjects]
        stop = start + len(chunk)
        if columns == list(range(len(subjects))):
            kind[start:stop], number[start:stop] = chunk.kind, chunk.number
        else:
            kind[start:stop, columns], number[start:stop, columns] = chunk.kind, chunk.number
        for f, texts in chunk.texts.items():
            held.setdefault(columns[f], []).append(Texts(texts.row + np.int32(start), texts.text))
        start = stop
    return Rows(
        np.concatenate([c.time_us for c in chunks]),
        np.concatenate([c.id_hi for c in chunks]),
        np.concatenate([c.id_lo for c in chunks]),
        np.concatenate([c.segment for c in chunks]),
        subjects,
        kind,
        number,
        {
            f: Texts(np.concatenate([t.row for t in ts]), pa.concat_arrays([t.text for t in ts]))
            for f, ts in held.items()
        },
        left_out=dict(left_out),
    )


def _values_of(chunks: Sequence[Rows]) -> Counter[SubjectKey]:
    """How many cells of each subject hold a value."""
    values: Counter[SubjectKey] = Counter()
    for chunk in chunks:
        values.update(dict(zip(chunk.subjects, np.count_nonzero(chunk.kind, axis=0).tolist(), strict=True)))
    return values


def _without(rows: Rows, subjects: set[SubjectKey]) -> Rows:
    """Rows without some subjects."""
    kept = [f for f, key in enumerate(rows.subjects) if key not in subjects]
    return replace(
        rows,
        subjects=tuple(rows.subjects[f] for f in kept),
        kind=rows.kind[:, kept],
        number=rows.number[:, kept],
        texts={to: rows.texts[f] for to, f in enumerate(kept) if f in rows.texts},
    )


def _features(
    cells: Cells, row: Ints, batch_rows: int, most: int, known: Collection[str] | None
) -> tuple[tuple[Bytes, Floats, dict[int, Texts]], list[str], dict[str, int]]:
    """The feature cells of some rows as matrices (n, F), the names of the F features, and what was left out."""
    n = len(row)
    cell_row, name, kind, number = cells.row, cells.name, cells.kind, cells.number
    text_cell, text = cells.text_cell, cells.text
    if n < batch_rows or (np.diff(row) < 0).any():
        # Cells are ordered by row: only those of the rows are touched, since a batch may be of many versions, and in the
        # order of the rows, since its partitions may be taken in another order than they have in it.
        start, stop = (np.searchsorted(cells.row, row.astype(np.int32), side) for side in ("left", "right"))
        text_start, text_stop = np.searchsorted(text_cell, start), np.searchsorted(text_cell, stop)
        moved = start - (np.cumsum(stop - start) - (stop - start))
        chosen, kept = _ranges(start, stop), _ranges(text_start, text_stop)
        text_cell = (text_cell[kept] - np.repeat(moved, text_stop - text_start)).astype(np.int32)
        text = text.take(pa.array(kept))
        cell_row = np.repeat(np.arange(n, dtype=np.int32), stop - start)
        name, kind, number = name[chosen], kind[chosen], number[chosen]
    cells_of = np.bincount(name, minlength=len(cells.names))
    kept_names = _kept(cells.names, cells_of, most, known)
    present = np.flatnonzero(cells_of)
    count = len(present)
    left_out: dict[str, int] = {}
    if not kept_names[present].all():
        values = np.bincount(name[kind != Kind.MISSING], minlength=len(cells.names))
        left_out = {cells.names[i]: int(values[i]) for i in present[~kept_names[present]].tolist() if values[i]}
    if count and len(name) == n * count and (cell_row.reshape(n, count) == np.arange(n)[:, None]).all():
        table = name.reshape(n, count)
        if (table == table[0]).all() and len(np.unique(table[0])) == count:
            columns = np.flatnonzero(kept_names[table[0]])
            texts = _split_texts(cell_row[text_cell], (text_cell % count).astype(np.int64), text)
            kind, number = kind.reshape(n, count), number.reshape(n, count)
            if len(columns) < count:
                kind, number = kind[:, columns], number[:, columns]
                texts = {to: texts[f] for to, f in enumerate(columns.tolist()) if f in texts}
            return (kind, number, texts), [cells.names[i] for i in table[0][columns]], left_out
    present = present[kept_names[present]]
    matrices = _scattered(n, cell_row, name, kind, number, text_cell, text, present)
    return matrices, [cells.names[i] for i in present], left_out


def _ranges(start: Ints, stop: Ints) -> Ints:
    """The numbers of every range [start, stop), one range after another."""
    size = stop - start
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))


def _kept(names: Sequence[str], cells_of: Ints, most: int, known: Collection[str] | None) -> Flags:
    """(names,) which features are kept."""
    if known is not None:
        return np.array([name in known for name in names], np.bool_)
    kept = np.zeros(len(names), np.bool_)
    kept[np.argsort(-cells_of, kind="stable")[:most]] = True
    return kept


def _scattered(
    n: int, cell_row: Codes, name: Codes, kind: Bytes, number: Floats, text_cell: Codes, text: pa.Array, present: Ints
) -> tuple[Bytes, Floats, dict[int, Texts]]:
    """Rows with different features: every cell to its place; of a name twice in one event the later counts."""
    count = len(present)
    column = np.full(int(present.max(initial=-1)) + 1 if count else 0, -1, np.int64)
    column[present] = np.arange(count)
    where = (
        np.where(name < len(column), column[np.minimum(name, max(len(column) - 1, 0))], -1)
        if count
        else np.full(len(name), -1, np.int64)
    )
    known = np.flatnonzero(where >= 0)
    flat = cell_row[known] * np.int64(count) + where[known]
    last = np.full(n * count, -1, np.int64)
    last[flat] = known
    kinds, numbers = np.zeros(n * count, np.uint8), np.full(n * count, np.nan)
    filled = np.flatnonzero(last >= 0)
    kinds[filled], numbers[filled] = kind[last[filled]], number[last[filled]]
    standing = np.zeros(len(name), np.bool_)
    standing[last[filled]] = True
    kept = np.flatnonzero(standing[text_cell])
    chosen = text_cell[kept]
    texts = _split_texts(cell_row[chosen], where[chosen], text.take(pa.array(kept)))
    return kinds.reshape(n, count), numbers.reshape(n, count), texts


def _split_texts(row: Codes, subject: Ints, text: pa.Array) -> dict[int, Texts]:
    """Text cells by subject, rows ascending."""
    if not len(row):
        return {}
    order = np.lexsort((row, subject))
    sizes = np.bincount(subject)
    ends = np.cumsum(sizes)
    ordered = text.take(pa.array(order))
    rows = row[order].astype(np.int32)
    return {
        int(f): Texts(rows[ends[f] - sizes[f] : ends[f]], ordered.slice(int(ends[f] - sizes[f]), int(sizes[f])))
        for f in np.flatnonzero(sizes)
    }


def _numbers(column: Floats) -> tuple[Bytes, Floats]:
    kind = np.where(np.isnan(column), Kind.MISSING, np.where(np.isinf(column), Kind.INFINITE, Kind.NUMBER))
    return kind.astype(np.uint8), column


def _prediction(label: pa.Array, value: Floats) -> tuple[Bytes, Floats, Texts | None]:
    """The predicted class where there is one, else the predicted number."""
    kind, number = _numbers(value)
    held = np.flatnonzero(label.is_valid().to_numpy(zero_copy_only=False))
    if not len(held):
        return kind, number, None
    kind[held] = Kind.STRING
    return kind, np.where(kind == Kind.STRING, np.nan, number), Texts(held.astype(np.int32), label.drop_null())


def _flat(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
