"""JSON records as columns: one DuckDB query parses a batch, and only rows that are JSON come back.

Facts this rests on (DuckDB 2.0, held by tests): paths are case-sensitive; of a key twice at the top of a record the
first is read; `json_keys` and `$.*` list an object's keys and values in order, repeated ones included; values come back
as canonical JSON, with NaN, Infinity and 1e400 as they stood; nesting depth does not matter. `json_valid` also takes a
comma before a closing bracket, which is looked for here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.decode.fields import Layout
from stream_monitor.decode.rejects import Refusals
from stream_monitor.decode.scalars import bytes_at, keep_if, nulls, spans
from stream_monitor.records import Bytes, Codes, Flags, Hashes, Ints, Reason

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BLOCK_BYTES = 1 << 16  # small enough to stay in the cache between the passes over it
_BLANKS = np.array([*b" \t\r\n"], np.uint8)
_OPEN_COMMA = re.compile(rb",[ \t\r\n]*[}\]]")


@dataclass(frozen=True, slots=True)
class RawCells:
    """Feature cells as parsed: position of the record, feature name, JSON text of the value; ordered by position."""

    position: Ints
    name: pa.Array
    value: pa.Array


@dataclass(frozen=True, slots=True)
class Parsed:
    """Records that are JSON, ascending by `row` of the batch: their scalar fields as JSON text, and their cells."""

    row: Codes
    fields: Mapping[str, pa.Array]
    id_hi: Hashes
    id_lo: Hashes
    cells: RawCells
    is_object: Flags
    has_features: Flags

    def __len__(self) -> int:
        return len(self.row)

    def select(self, kept: Flags) -> Parsed:
        """Only the records flagged (n,)."""
        if kept.all():
            return self
        mask = pa.array(kept)
        return Parsed(
            row=self.row[kept],
            fields={name: column.filter(mask) for name, column in self.fields.items()},
            id_hi=self.id_hi[kept],
            id_lo=self.id_lo[kept],
            cells=_select_cells(self.cells, kept),
            is_object=self.is_object[kept],
            has_features=self.has_features[kept],
        )

    def with_field(self, name: str, texts: pa.Array) -> Parsed:
        """The same records with another column for a field."""
        return replace(self, fields={**self.fields, name: texts})

    def with_ids(self, id_hi: Hashes, id_lo: Hashes) -> Parsed:
        """The same records under other ids."""
        return replace(self, id_hi=id_hi, id_lo=id_lo)


class JsonReader:
    """Parses batches of JSON texts. Owns an in-memory DuckDB connection, so it serves one thread."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(config={"threads": 1, "allocator_flush_threshold": "16MB"})
        self._connection.execute("SET arrow_lossless_conversion = true")  # 128-bit hashes as bytes

    def parse(self, texts: pa.Array, rows: Codes, layout: Layout) -> Parsed:
        """The texts that are JSON; `rows` are their row numbers, ascending. A null text is no JSON."""
        table = self._salvage(_parse_sql(layout), _numbered(texts))
        at = _ints(table, "i")
        flat = _flat(table, "x")
        width = len(layout.fields) + len(layout.segments) + len(layout.cells)
        flat = keep_if(flat, ~_is_null_literal(flat, width, len(layout.cells)))
        take = _Stride(flat, width, len(at))
        fields = {name: take(place) for place, (name, _) in enumerate(layout.fields)}
        if layout.segments:
            fields["segment"] = self._join_segments(layout, take, fields["segment"])
        id_hi, id_lo = _hash_words(table.column("h"))
        cells = _cells(table, layout, take)
        full = np.bincount(cells.position, minlength=len(at)) > 0
        is_object, has_features = self._shapes(texts, at, full, layout)
        return Parsed(rows[at], fields, id_hi, id_lo, cells, is_object, has_features)

    def hash_ids(self, ids: pa.Array) -> tuple[Hashes, Hashes]:
        """(n,) the 128-bit hash of JSON ids: of the text of a string or a number, so `7` and `"7"` are one."""
        table = self._run(f"SELECT i, {_hash_sql('v')} AS h FROM input", ids)
        return _hash_words(table.column("h"))

    def hash_texts(self, texts: pa.Array) -> tuple[Hashes, Hashes]:
        """(n,) the 128-bit hash of plain texts."""
        return _hash_words(self._run("SELECT i, md5_number(v) AS h FROM input", texts).column("h"))

    def unescape(self, texts: pa.Array) -> pa.Array:
        """The text that JSON strings stand for."""
        return _column(self._run("SELECT i, json_extract_string(v, '$') AS t FROM input", texts), "t")

    def query(self, sql: str, texts: pa.Array) -> pa.Table:
        """Rows of a query over `input(v, i)`: the texts, each of which must be JSON, and their places."""
        return self._run(sql, texts)

    def explode(self, objects: pa.Array) -> RawCells:
        """Keys and values of JSON objects; null has none."""
        table = self._run("SELECT i, json_keys(v) AS k, json_extract(v, '$.*') AS y FROM input", objects)
        return _object_cells(table)

    def _shapes(self, texts: pa.Array, at: Ints, full: Flags, layout: Layout) -> tuple[Flags, Flags]:
        """Which records are objects and which hold features. One with cells is and does; others are looked at."""
        is_object, has_features = full.copy(), full.copy()
        if full.all():
            return is_object, has_features
        shape = "json_type(v) = 'OBJECT' AS o, " + (
            f"coalesce(json_type(v, {_literal(layout.features)}) = 'OBJECT', false) AS f"
            if layout.features
            else "false AS f"
        )
        table = self._run(f"SELECT i, {shape} FROM input", texts.take(pa.array(at[~full])))
        is_object[~full] = _column(table, "o").to_numpy(zero_copy_only=False)
        has_features[~full] = _column(table, "f").to_numpy(zero_copy_only=False)
        return is_object, has_features

    def _join_segments(self, layout: Layout, take: Callable[[int], pa.Array], whole: pa.Array) -> pa.Array:
        """One JSON object of the segment keys mapped one by one, `whole` where a record has none of them."""
        first = len(layout.fields)
        parts = []
        for place, (name, _) in enumerate(layout.segments):
            key = pa.scalar("," + json.dumps(name, ensure_ascii=False) + ":")
            parts.append(pc.fill_null(pc.binary_join_element_wise(key, take(first + place), ""), ""))
        joined = pc.binary_join_element_wise(*parts, "")
        boxed = pc.binary_join_element_wise("{", pc.utf8_slice_codeunits(joined, 1), "}", "")
        return pc.if_else(pc.equal(joined, ""), whole, boxed)

    def _run(self, sql: str, texts: pa.Array) -> pa.Table:
        return self._execute(sql, _numbered(texts))

    def _salvage(self, sql: str, table: pa.Table) -> pa.Table:
        """The query's rows. Should the engine fail on a batch, halves of it are tried and a lone culprit left out."""
        try:
            return self._execute(sql, table)
        except (duckdb.DataError, duckdb.ProgrammingError):
            if not len(table):
                raise
        half = len(table) // 2
        parts = [table.slice(0, half), table.slice(half)] if half else [table.slice(0, 0)]
        found = [self._salvage(sql, part) for part in parts]
        return pa.concat_tables([part for part in found if len(part)] or found[:1])

    def _execute(self, sql: str, table: pa.Table) -> pa.Table:
        self._connection.register("input", table)
        found = self._connection.sql(sql).to_arrow_table()
        return found if len(found) else _plain_schema(found.schema).empty_table()


def _plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns without extension types, of which Arrow makes no empty columns."""
    return pa.schema([pa.field(column.name, _plain_type(column.type)) for column in schema])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    return pa.list_(_plain_type(kind.value_type)) if pa.types.is_list(kind) else kind


def _numbered(texts: pa.Array) -> pa.Table:
    return pa.table({"v": texts, "i": pa.array(np.arange(len(texts), dtype=np.int32))})


def readable_texts(values: pa.Array, limit_bytes: int, refusals: Refusals) -> pa.Array:
    """The records as UTF-8 texts, null where refused: nothing there, too large, not UTF-8, a stray closing comma."""
    values = values.cast(pa.binary()) if values.type != pa.binary() else values
    edges, _ = spans(values)
    sizes = np.diff(edges)
    absent = pc.is_null(values).to_numpy(zero_copy_only=False)
    refusals.refuse(absent | (sizes == 0), Reason.EMPTY)
    refusals.refuse(sizes > limit_bytes, Reason.TOO_LARGE)
    values = _hide(values, refusals.accepted)
    try:
        texts = values.cast(pa.string())
    except pa.ArrowInvalid:
        refusals.refuse(_not_utf8(values), Reason.INVALID_UTF8)
        texts = _hide(values, refusals.accepted).cast(pa.string())
    texts = _without_mark(texts)
    broken = _open_commas(texts)
    if len(broken):
        refusals.refuse(broken, Reason.NOT_JSON)
        texts = keep_if(texts, refusals.accepted)
    return texts


def merge(first: Parsed, second: Parsed) -> Parsed:
    """Both sets of records in the order of their rows; they share none."""
    rows = np.concatenate([first.row, second.row])
    order = np.argsort(rows, kind="stable")
    rank = np.empty(len(rows), np.int64)
    rank[order] = np.arange(len(rows))
    position = rank[np.concatenate([first.cells.position, second.cells.position + len(first)])]
    by_position = np.argsort(position, kind="stable")
    take = pa.array(order)
    return Parsed(
        row=rows[order],
        fields={name: pa.concat_arrays([first.fields[name], second.fields[name]]).take(take) for name in first.fields},
        id_hi=np.concatenate([first.id_hi, second.id_hi])[order],
        id_lo=np.concatenate([first.id_lo, second.id_lo])[order],
        cells=RawCells(
            position=position[by_position],
            name=pa.concat_arrays([first.cells.name, second.cells.name]).take(pa.array(by_position)),
            value=pa.concat_arrays([first.cells.value, second.cells.value]).take(pa.array(by_position)),
        ),
        is_object=np.concatenate([first.is_object, second.is_object])[order],
        has_features=np.concatenate([first.has_features, second.has_features])[order],
    )


class _Stride:
    """Column `place` of a flat list in which every record has `width` values."""

    def __init__(self, flat: pa.Array, width: int, count: int) -> None:
        self._flat, self._width, self._count = flat, width, count

    def __call__(self, place: int) -> pa.Array:
        return self._flat.take(pa.array(np.arange(self._count) * self._width + place))


def _parse_sql(layout: Layout) -> str:
    paths = [path for _, path in (*layout.fields, *layout.segments, *layout.cells)]
    id_path = dict(layout.fields)["inference_id"]
    listed = ", ".join(_literal(path) for path in paths)
    columns = [f"json_extract(v, [{listed}]) AS x"]
    if layout.features:
        columns.append(f"json_keys(v, {_literal(layout.features)}) AS k")
        columns.append(f"json_extract(v, {_literal(layout.features + '.*')}) AS y")
    id_place = paths.index(id_path) + 1
    inner = f"SELECT i, {', '.join(columns)} FROM input WHERE json_valid(v)"
    return f"SELECT *, {_hash_sql(f'x[{id_place}]')} AS h FROM ({inner})"


def _hash_sql(value: str) -> str:
    return f"md5_number(json_extract_string({value}, '$'))"


def _literal(text: str | None) -> str:
    return "'" + (text or "").replace("'", "''") + "'"


def _cells(table: pa.Table, layout: Layout, take: Callable[[int], pa.Array]) -> RawCells:
    """Cells of the features object, then those of features mapped one by one."""
    whole = _object_cells(table) if layout.features else RawCells(np.zeros(0, np.int64), nulls(0), nulls(0))
    if not layout.cells:
        return whole
    first = len(layout.fields) + len(layout.segments)
    columns = [take(first + place) for place in range(len(layout.cells))]
    present = [np.flatnonzero(pc.is_valid(column).to_numpy(zero_copy_only=False)) for column in columns]
    labels = [pa.scalar(name, pa.string()) for name, _ in layout.cells]
    names = [pa.repeat(label, len(at)) for label, at in zip(labels, present, strict=True)]
    position = np.concatenate([whole.position, *present])
    order = np.argsort(position, kind="stable")
    by_position = pa.array(order)
    return RawCells(
        position=position[order],
        name=pa.concat_arrays([whole.name, *names]).take(by_position),
        value=pa.concat_arrays([whole.value, *(column.drop_null() for column in columns)]).take(by_position),
    )


def _object_cells(table: pa.Table) -> RawCells:
    values = table.column("y").combine_chunks()
    sizes = values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return RawCells(np.repeat(np.arange(len(table)), sizes), _flat(table, "k"), _flat(table, "y"))


def _select_cells(cells: RawCells, kept: Flags) -> RawCells:
    inside = kept[cells.position]
    mask = pa.array(inside)
    position = (np.cumsum(kept) - 1)[cells.position[inside]]
    return RawCells(position, cells.name.filter(mask), cells.value.filter(mask))


def _flat(table: pa.Table, name: str) -> pa.Array:
    """The values of a column of lists, one after another."""
    return _storage(table.column(name).combine_chunks().flatten())


def _column(table: pa.Table, name: str) -> pa.Array:
    return _storage(table.column(name).combine_chunks())


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array.type, pa.BaseExtensionType) else array


def _ints(table: pa.Table, name: str) -> Ints:
    ints: Ints = _column(table, name).to_numpy(zero_copy_only=False).astype(np.int64)
    return ints


def _hash_words(column: pa.ChunkedArray) -> tuple[Hashes, Hashes]:
    """High and low halves of 128-bit numbers, which lie in memory low half first; zeros where there is none."""
    hashes = _storage(column.combine_chunks())
    if not len(hashes):
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    words = np.frombuffer(hashes.buffers()[1], np.uint64).reshape(-1, 2)[hashes.offset : hashes.offset + len(hashes)]
    return words[:, 1].copy(), words[:, 0].copy()


def _is_null_literal(flat: pa.Array, width: int, cells: int) -> Flags:
    """JSON null among scalar fields, which is absence; among cells it is a missing value and stays."""
    null = (bytes_at(flat, 0) == ord("n")) & (bytes_at(flat, 1) == ord("u"))
    if cells:
        null.reshape(-1, width)[:, width - cells :] = False
    flags: Flags = null
    return flags


def _hide(values: pa.Array, kept: Flags) -> pa.Array:
    """The same bytes with null where not kept; nothing is copied."""
    if kept.all():
        return values
    visible = kept if not values.offset else np.concatenate([np.zeros(values.offset, np.bool_), kept])
    bitmap = pa.py_buffer(np.packbits(visible, bitorder="little"))
    return pa.Array.from_buffers(values.type, len(values), [bitmap, *values.buffers()[1:]], offset=values.offset)


def _not_utf8(values: pa.Array) -> Ints:
    """Rows that are not UTF-8. Only rows with a byte beyond ASCII are looked at."""
    edges, data = spans(values)
    beyond = np.flatnonzero(data[edges[0] : edges[-1]] >= 0x80) + edges[0]
    suspects = np.unique(np.searchsorted(edges, beyond, side="right") - 1)
    return np.array([row for row in suspects.tolist() if not _is_utf8(values[row].as_py())], np.int64)


def _is_utf8(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_mark(texts: pa.Array) -> pa.Array:
    """Without a byte order mark, which some writers put before a file's first record."""
    marked = bytes_at(texts, 0) == _BYTE_ORDER_MARK[0]
    if not marked.any():
        return texts
    return pc.replace_substring_regex(texts, "^\ufeff", "")


def _open_commas(texts: pa.Array) -> Ints:
    """Rows with a comma before a closing bracket outside of strings: found by bytes, then confirmed."""
    edges, data = spans(texts)
    start, end = int(edges[0]), int(edges[-1])
    blocks = [_closing_places(data, at, min(at + _BLOCK_BYTES, end)) for at in range(start, end, _BLOCK_BYTES)]
    before = np.concatenate([*blocks, np.zeros(0, np.int64)]) - 1
    commas = [np.zeros(0, np.int64)]
    while len(before := before[before >= start]):
        commas.append(before[data[before] == ord(",")])
        before = before[np.isin(data[before], _BLANKS)] - 1
    suspects = np.unique(np.searchsorted(edges, np.concatenate(commas), side="right") - 1)
    return np.array([row for row in suspects.tolist() if _has_open_comma(texts[row].as_py())], np.int64)


def _closing_places(data: Bytes, start: int, end: int) -> Ints:
    """Where a closing bracket stands: `}` and `]` differ in one bit, and nothing else is either without that bit."""
    return np.flatnonzero((data[start:end] & 0xDF) == ord("]")) + start


def _has_open_comma(text: str | None) -> bool:
    return text is not None and _OPEN_COMMA.search(_STRINGS.sub(b'""', text.encode())) is not None
