"""Records from files: JSONL (plain, .gz, .zst), CSV and Parquet, each file one partition, read side by side.

The offset of a record is its number in the file, from 0; blank JSONL lines are no records. Rows of a table become JSON
objects in one vectorised step, so that decode sees one kind of record only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.errors import InputError, UsageError
from stream_monitor.records import (
    MICROSECONDS,
    NO_TIME,
    Binding,
    Bytes,
    Flags,
    Ints,
    PartitionId,
    Poll,
    RawBatch,
    Stream,
)
from stream_monitor.source.protocol import Loss

BLOCK_BYTES = 8_000_000
TABLE_ROWS = 20_000

_NEWLINE = ord("\n")
_WHITE = np.isin(np.arange(256), [ord(c) for c in " \t\n\v\f\r"])
_BOM = b"\xef\xbb\xbf"
_PARQUET = (".parquet", ".pq")

_EVENT_COLUMNS = (
    "inference_id", "model", "version", "timestamp", "prediction", "latency_ms", "segment", "attributions", "label",
    "value", "outcome",
)  # fmt: skip
_KEYED = ("features", "segment", "attributions")
"""Fields whose keys are the user's: after the first dot all is one name."""


class FileSource:
    """Files as partitions. `rate_per_second` gives records a time where their events carry none.

    `copies`: by name, JSONL with the same records in another order, which is read in place of the file.
    """

    def __init__(
        self,
        bindings: Sequence[Binding],
        *,
        rate_per_second: float | None = None,
        start_us: int = 0,
        copies: Mapping[str, Path] | None = None,
    ) -> None:
        copied = copies or {}
        self._files = {
            PartitionId(b.stream, b.topic, 0): _File(b, rate_per_second, start_us, copied.get(b.topic))
            for b in bindings
        }
        missing = [b.topic for b in bindings if not Path(b.topic).is_file()]
        if missing:
            raise UsageError(f"there is no file {missing[0]}", tuple(f"there is no file {m}" for m in missing))
        self._paused: frozenset[PartitionId] = frozenset()
        self._polls = 0

    def start(self, positions: Mapping[PartitionId, int]) -> None:
        for partition, position in positions.items():
            if partition in self._files:
                self._files[partition].skip = position

    def poll(self, max_records: int, timeout_seconds: float) -> Poll:
        del timeout_seconds
        batches = []
        left = max_records
        for waiting, (partition, file) in self._turns():
            batch = file.read(partition, -(-left // waiting)) if left else None
            if batch is not None:
                batches.append(batch)
                left -= len(batch)
        return Poll(tuple(batches), {p: f.position for p, f in self._files.items() if f.ended})

    def _turns(self) -> Iterator[tuple[int, tuple[PartitionId, _File]]]:
        """Files with something to read, each with how many have yet to be read: first the one after the last first."""
        ready = [(p, f) for p, f in self._files.items() if p not in self._paused and not f.ended]
        first = self._polls % len(ready) if ready else 0
        self._polls += 1
        yield from zip(range(len(ready), 0, -1), ready[first:] + ready[:first], strict=True)

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        self._paused = partitions

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        del positions

    def partitions(self) -> tuple[PartitionId, ...]:
        return tuple(self._files)

    def losses(self) -> tuple[Loss, ...]:
        return ()

    @property
    def finished(self) -> bool:
        return all(file.ended for file in self._files.values())

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _File:
    """One file, read from its beginning; `skip` records are passed over."""

    def __init__(self, binding: Binding, rate_per_second: float | None, start_us: int, copy: Path | None) -> None:
        self.binding = binding
        self._copy = copy
        self.skip = 0
        self.position = 0
        self.ended = False
        # A label without a time is met when its prediction is: making one up would date the truth.
        self._rate = rate_per_second if binding.stream == Stream.INFERENCE else None
        self._start_us = start_us
        self._values: Iterator[pa.Array] | None = None
        self._held: pa.Array | None = None
        self._is_table = False

    def read(self, partition: PartitionId, most: int) -> RawBatch | None:
        """The next records; None when none were left."""
        values = self._next(most)
        if values is None:
            self.ended = True
            return None
        n = len(values)
        offset = np.arange(self.position, self.position + n)
        self.position += n
        times = np.full(n, NO_TIME, np.int64)
        if self._rate is not None:
            times = self._start_us + (offset * (MICROSECONDS / self._rate)).astype(np.int64)
        return RawBatch(
            self.binding, (partition,), np.zeros(n, np.int32), offset, values, times,
            made_time=self._rate is not None, is_table=self._is_table,
        )  # fmt: skip

    def _next(self, most: int) -> pa.Array | None:
        if self._values is None:
            self._values = self._open()
        while self.skip > self.position or self._held is None or not len(self._held):
            if self._held is not None and len(self._held):
                passed = min(self.skip - self.position, len(self._held))
                self._held, self.position = self._held[passed:], self.position + passed
                continue
            self._held = next(self._values, None)
            if self._held is None:
                return None
        taken, self._held = self._held[:most], self._held[most:]
        return taken

    def _open(self) -> Iterator[pa.Array]:
        name = self.binding.topic.lower()
        self._is_table = name.removesuffix(".gz").removesuffix(".zst").endswith((".csv", *_PARQUET))
        try:
            if self._is_table and self._copy is None:
                yield from _table_rows(self.binding)
            else:
                yield from _lines(str(self._copy or self.binding.topic))
        except (OSError, pa.ArrowException, duckdb.Error) as error:
            raise InputError(f"{self.binding.topic} cannot be read: {error}") from error

    def close(self) -> None:
        self._values, self._held = iter(()), None


def _stream(path: str) -> pa.NativeFile:
    # Arrow reads several frames in one file and notices a truncated last one, which zstandard's own reader does not.
    compression = {".gz": "gzip", ".zst": "zstd"}.get(Path(path).suffix.lower())
    return pa.input_stream(path, compression=compression)


def _lines(path: str) -> Iterator[pa.Array]:
    """The lines of a file, blank ones left out, block by block."""
    with _stream(path) as file:
        rest = file.read(len(_BOM)).removeprefix(_BOM)
        while block := file.read(BLOCK_BYTES):
            block = rest + block
            cut = block.rfind(b"\n") + 1
            rest = block[cut:]
            if cut:
                yield _split(block[:cut])
        if rest.strip():
            yield _split(rest + b"\n")


def _split(block: bytes) -> pa.Array:
    """A block that ends in a newline as an array of its lines without their ends, blank ones left out."""
    data = np.frombuffer(block, np.uint8)
    stops = np.flatnonzero(data == _NEWLINE) + 1
    starts = np.concatenate([[0], stops[:-1]])
    offsets = np.concatenate([starts, [len(block)]]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(block)]
    # Trimming wants text and looks at bytes: what is no UTF-8 passes through unchanged.
    lines = pc.ascii_rtrim(pa.Array.from_buffers(pa.string(), len(starts), buffers), characters="\r\n")
    blank = _blank(data, starts)
    return (lines.filter(pa.array(~blank)) if blank.any() else lines).view(pa.binary())


def _blank(data: Bytes, starts: Ints) -> Flags:
    """Lines of white space only. Records rarely begin with white space: without one that does, one look a line."""
    if not _WHITE[data[starts]].any():
        return np.zeros(len(starts), np.bool_)
    return cast(Flags, np.logical_and.reduceat(_WHITE[data], starts))


def _table_rows(binding: Binding) -> Iterator[pa.Array]:
    """The rows of a CSV or Parquet file as JSON objects."""
    is_csv = not binding.topic.lower().endswith(_PARQUET)
    # Cell by cell, not column by column: one word among numbers must not make words of them all.
    reader, options = ("read_csv", ", all_varchar=true, header=true") if is_csv else ("read_parquet", "")
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")  # what a timestamp without a zone is in
        source = f"{reader}(?{options})"
        columns = connection.execute(f"describe select * from {source}", [binding.topic]).fetchall()
        types = {name: "CSV" if is_csv else kind for name, kind, *_ in columns}
        sql = f"select {_object(_tree(list(types), binding), types)}::varchar as v from {source}"
        for batch in connection.sql(sql, params=[binding.topic]).to_arrow_reader(TABLE_ROWS):
            yield batch.column(0).cast(pa.binary())


Tree = dict[str, "Tree | str"]


def _tree(columns: Sequence[str], binding: Binding) -> Tree:
    """Columns nested by the dots in their names; a file without `features.` columns has the others as features."""
    tree: Tree = {}
    nested = any(name.startswith("features.") for name in columns)
    mapped = {path.removeprefix("$.").split(".")[0].split("[")[0] for path in binding.fields.values()}
    for name in columns:
        head = name.split(".")[0]
        if name == "features" or nested or head in _EVENT_COLUMNS or head in mapped:
            path = name.split(".", 1) if head in _KEYED else name.split(".")
        else:
            path = ["features", name]
        place = tree
        for part in path[:-1]:
            inner = place.setdefault(part, {})
            if isinstance(inner, str):
                raise InputError(f"{binding.topic}: column {name} does not go with column {inner}")
            place = inner
        if path[-1] in place:
            raise InputError(f"{binding.topic}: column {name} does not go with columns below it or like it")
        place[path[-1]] = name
    return tree


def _object(tree: Tree, types: Mapping[str, str]) -> str:
    """SQL that makes a JSON object of a row; null values are null in it, which every reader takes for absent."""
    parts = []
    for key, value in tree.items():
        if isinstance(value, dict):
            parts += [_quoted(key), _object(value, types)]
            continue
        column = '"' + value.replace('"', '""') + '"'
        if types[value].startswith(("TIMESTAMP", "DATE")):
            column = f"strftime(({column})::timestamptz at time zone 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
        elif types[value] == "CSV" and value not in _NAMES:
            column = _csv_cell(column, is_object=key in _JSON_COLUMNS)
        elif types[value].startswith("VARCHAR") and key in _JSON_COLUMNS:
            column = (
                f"case when json_valid({column}) and left(trim({column}), 1) = '{{' "
                f"then {column}::json else to_json({column}) end"
            )
        elif types[value] in ("DOUBLE", "FLOAT"):
            # DuckDB writes no infinity as JSON, and a NaN by its sign (`-nan`): decode reads the literals, null is missing.
            column = (
                f"case when isfinite({column}) then to_json({column}) "
                f"when isinf({column}) then ({column})::varchar::json end"
            )
        parts += [_quoted(key), column]
    return f"json_object({', '.join(parts)})"


def _csv_cell(column: str, *, is_object: bool) -> str:
    """SQL that reads one cell: what JSON would read as a number is one, all else is text (`01234` is no number)."""
    word = f"lower(trim({column}))"
    cases = [
        f"when regexp_full_match(trim({column}), '{_JSON_NUMBER}') then trim({column})::json",
        f"when regexp_full_match(trim({column}), '{_OTHER_NUMBER}') then to_json(try_cast({column} as double))",
        f"when {word} = 'nan' then null",
        f"when {word} in ('inf', '+inf', 'infinity', '+infinity') then 'Infinity'::json",
        f"when {word} in ('-inf', '-infinity') then '-Infinity'::json",
    ]
    if is_object:
        cases.insert(0, f"when json_valid({column}) and left(trim({column}), 1) = '{{' then {column}::json")
    return f"case {' '.join(cases)} else to_json({column}) end"


_JSON_NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?"
_OTHER_NUMBER = r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
"""`.5`, `5.` and `+5`, as statistics packages write them."""
_NAMES = ("inference_id", "model", "version", "outcome")
"""Columns of names: version 1.10 is not version 1.1."""

_JSON_COLUMNS = ("prediction", "segment", "features", "attributions")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
