"""The state file: one DuckDB database, one writer, one transaction per checkpoint.

Everything the service must not forget changes together: offsets, counters, profiles, waiting
predictions, labels, incidents and history. A transaction is open from one `commit` to the next;
readers (the HTTP API) use `reader()`, which sees what was committed.

Data that expires lies on *shelves*: one table for each stretch of event time, dropped whole: to delete rows costs as
much as to write them, and their space can be used again only after most of those around them have gone. State that
changes in place is upserted by key.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from stream_monitor.errors import StateError
from stream_monitor.publish.log import fields
from stream_monitor.records import Ints, PartitionId, Stream

log = logging.getLogger(__name__)

SCHEMA_VERSION = 4

_DAY_US = 86_400_000_000

_OUTBOX = """
create table outbox (number bigint, target varchar, id varchar, model varchar, written_us bigint, body varchar);
"""
"""What has to be told and was not acknowledged yet: a row for each event and target, `number` in the order of events."""

_TABLES = f"""
create table meta (key varchar primary key, value varchar);
create table partitions (stream varchar, topic varchar, number integer, position bigint, highest_us bigint,
    suspects varchar, primary key (stream, topic, number));
create table counters (name varchar, labels varchar, value bigint, primary key (name, labels));
create table states (kind varchar, key varchar, value blob, primary key (kind, key));
create table incidents (id varchar primary key, opened_us bigint, closed_us bigint, model varchar, version varchar,
    kind varchar, severity varchar, body varchar);
{_OUTBOX}"""

_NO_PERFORMANCE = "delete from states where kind in ('made', 'cohort', 'arrival', 'arrivals')"
"""Weeks begin on Mondays now, and what labels say is kept in sums that cannot be made from those before them. So the
figures of past windows go; joined predictions, the fates of labels and everything else stay."""

MIGRATIONS: Mapping[int, str] = {1: _OUTBOX, 2: _NO_PERFORMANCE}
"""SQL that takes the file from version k to k + 1; where a step only widens tables there is none."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """A table cut along event time: `block_us` a piece. `columns` is its DDL."""

    name: str
    columns: str
    block_us: int

    def table(self, block: int) -> str:
        return f"{self.name}_{block}" if block >= 0 else f"{self.name}_m{-block}"


PANES = Shelf("panes", "line integer, start_us bigint, rows bigint, body blob", 2 * 3_600_000_000)
FIVE_MINUTES = Shelf("five_minutes", "line integer, start_us bigint, rows bigint, body blob", _DAY_US)
HOURS = Shelf("hours", "line integer, start_us bigint, rows bigint, body blob", 30 * _DAY_US)
DAYS = Shelf("days", "line integer, start_us bigint, rows bigint, body blob", 365 * _DAY_US)
SKETCHES = Shelf("sketches", "line integer, start_us bigint, rows bigint, body blob", 30 * _DAY_US)
SCORES = Shelf(
    "scores",
    "line integer, window_seconds integer, start_us bigint, reference varchar, subject varchar, subject_kind varchar, "
    "statistic varchar, value double, expected double, threshold double, effect double, samples bigint, "
    "baseline_samples bigint, verdict varchar",
    30 * _DAY_US,
)
PREDICTIONS = Shelf(
    "predictions",
    "seq bigint, id_hi ubigint, id_lo ubigint, version integer, segment integer, time_us bigint, arrival_us bigint, "
    "label varchar, score double, value double, probabilities varchar, expected_size double, expected_error double",
    _DAY_US,
)
LABELS = Shelf(
    "labels",
    "seq bigint, id_hi ubigint, id_lo ubigint, model integer, outcome integer, time_us bigint, arrival_us bigint, "
    "label varchar, number double, day bigint",
    _DAY_US,
)
SHELVES = (PANES, FIVE_MINUTES, HOURS, DAYS, SKETCHES, SCORES, PREDICTIONS, LABELS)
WIDENED: Mapping[int, tuple[Shelf, Sequence[str]]] = {
    3: (PREDICTIONS, ("expected_size double", "expected_error double"))
}
"""Columns that the tables of a shelf get on the way from version k to k + 1."""


STATE_BYTES = 4_000_000
"""About so much state in one upsert, which the engine holds several times over until it is done."""


class Store:
    """The state file, open. Not thread safe: `reader()` gives other threads a connection of their own."""

    def __init__(self, path: Path | None, *, memory_bytes: int = 192_000_000, threads: int = 2) -> None:
        """Open or create the file at `path` (None: in memory). Raises StateError when it cannot be had."""
        self.path = path
        self._put_meta: dict[str, str] = {}
        self._connection = _connect(path, memory_bytes=memory_bytes, threads=threads)
        try:
            self._prepare()
            self._blocks = self._find_blocks()
        except StateError:
            self._connection.close()
            raise
        except duckdb.Error as error:
            self._connection.close()
            raise StateError(f"the state file {path} cannot be read: {error}") from error
        self._seen_counters: dict[tuple[str, str], int] = {}
        self._put: dict[tuple[str, str], bytes] = {}
        self._dropped: set[tuple[str, str]] = set()
        self._connection.begin()

    # -- opening ---------------------------------------------------------------------------------

    def _prepare(self) -> None:
        names = {row[0] for row in self._connection.execute("select table_name from duckdb_tables()").fetchall()}
        if not names:
            self._connection.begin()
            self._connection.execute(_TABLES)
            self._connection.execute("insert into meta values ('schema_version', ?)", [str(SCHEMA_VERSION)])
            self._connection.commit()
            return
        if "meta" not in names:
            raise StateError(f"{self.path} is a DuckDB file, but not a state file of this program")
        found = int(self.meta("schema_version") or 0)
        if found > SCHEMA_VERSION:
            raise StateError(
                f"{self.path} was written by a newer version of this program (schema {found}, this one knows "
                f"{SCHEMA_VERSION}): use that version, or start with another state file"
            )
        if found < SCHEMA_VERSION:
            self._migrate(found)

    def _migrate(self, found: int) -> None:
        """Bring an older file forward, one version at a time, after a backup beside it."""
        if self.path is not None:
            self._connection.execute("checkpoint")
            backup = self.path.with_name(f"{self.path.name}.v{found}.bak")
            shutil.copyfile(self.path, backup)
            log.info("state_backup", extra=fields(path=str(backup), schema=found))
        for version in range(found, SCHEMA_VERSION):
            self._connection.begin()
            if version in MIGRATIONS:
                self._connection.execute(MIGRATIONS[version])
            self._widen(version)
            self.set_meta("schema_version", str(version + 1))
            self._write_meta()
            self._connection.commit()
            log.info("state_migrated", extra=fields(schema=version + 1))

    def _widen(self, version: int) -> None:
        if version not in WIDENED:
            return
        shelf, columns = WIDENED[version]
        for block in self._find_blocks()[shelf.name]:
            for column in columns:
                self._connection.execute(f"alter table {shelf.table(block)} add column if not exists {column}")

    def _find_blocks(self) -> dict[str, set[int]]:
        names = [row[0] for row in self._connection.execute("select table_name from duckdb_tables()").fetchall()]
        blocks: dict[str, set[int]] = {shelf.name: set() for shelf in SHELVES}
        for name in names:
            stem, _, tail = name.rpartition("_")
            if stem in blocks:
                blocks[stem].add(-int(tail[1:]) if tail.startswith("m") else int(tail))
        return blocks

    # -- the transaction -------------------------------------------------------------------------

    def commit(self) -> None:
        """Make everything since the last commit durable, at once, and begin the next transaction."""
        self._write_states()
        self._write_meta()
        self._connection.commit()
        self._connection.begin()

    def close(self) -> None:
        """Forget what was not committed and let go of the file."""
        self._connection.rollback()
        self._connection.close()

    def reader(self) -> duckdb.DuckDBPyConnection:
        """A connection for one other thread, to read what is committed; the caller closes it."""
        return self._connection.cursor()

    def size_bytes(self) -> int:
        """What file and write-ahead log take on disk."""
        if self.path is None:
            return 0
        log_path = self.path.with_name(self.path.name + ".wal")
        return sum(os.path.getsize(p) for p in (self.path, log_path) if p.exists())

    # -- keyed state -----------------------------------------------------------------------------

    def meta(self, key: str) -> str | None:
        self._write_meta()
        rows = self._connection.execute("select value from meta where key = ?", [key]).fetchall()
        return str(rows[0][0]) if rows else None

    def set_meta(self, key: str, value: str) -> None:
        """Upsert one value; written together with the next commit, or before the next reading of one."""
        self._put_meta[key] = value

    def _write_meta(self) -> None:
        if self._put_meta:
            incoming = pa.table({"key": list(self._put_meta), "value": list(self._put_meta.values())})
            self._put_meta = {}
            self._insert("meta", incoming, replace=True)

    def states(self, kind: str) -> dict[str, bytes]:
        """All states of one kind, by key."""
        self._write_states()
        rows = self._connection.execute("select key, value from states where kind = ? order by key", [kind]).fetchall()
        return {str(key): bytes(value) for key, value in rows}

    def state(self, kind: str, key: str) -> bytes | None:
        self._write_states()
        # All rows, though there is one: a result that is not read to its end blocks the connection's next query.
        rows = self._connection.execute("select value from states where kind = ? and key = ?", [kind, key]).fetchall()
        return bytes(rows[0][0]) if rows else None

    def some_states(self, kind: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Those of these states that are there: one scan of the table, as `state` costs for each single one."""
        if not keys:
            return {}
        self._write_states()
        wanted = pa.table({"key": pa.array(keys, pa.string())})
        found = self.query(
            "select key, value from states semi join wanted using (key) where kind = ?", [kind], wanted=wanted
        )
        return dict(zip(found["key"].to_pylist(), found["value"].to_pylist(), strict=True))

    def put_states(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Upsert states of one kind; written together with the next commit, or before the next reading of states."""
        self._put.update({(kind, key): value for key, value in values.items()})
        self._dropped.difference_update((kind, key) for key in values)

    def _write_states(self) -> None:
        """Few upserts: each costs some ms, and a hundred versions have hundreds of states."""
        self._drop_states()
        put, self._put = list(self._put.items()), {}
        ends = np.cumsum([len(value) for _, value in put]) // STATE_BYTES
        for part in np.unique(ends).tolist():
            some = put[np.searchsorted(ends, part) : np.searchsorted(ends, part, "right")]
            incoming = pa.table(
                {
                    "kind": pa.array([kind for (kind, _), _ in some], pa.string()),
                    "key": pa.array([key for (_, key), _ in some], pa.string()),
                    "value": pa.array([value for _, value in some], pa.binary()),
                }
            )
            self._insert("states", incoming, replace=True)

    def drop_states(self, kind: str, keys: Sequence[str]) -> None:
        """Forget states of one kind; carried out together with what was put."""
        dropped = {(kind, key) for key in keys}
        self._dropped |= dropped
        self._put = {place: value for place, value in self._put.items() if place not in dropped}

    def _drop_states(self) -> None:
        """One statement for all: each scans the table, and a hundred versions forget a hundred times."""
        if not self._dropped:
            return
        unwanted = pa.table(
            {
                "kind": pa.array([kind for kind, _ in self._dropped], pa.string()),
                "key": pa.array([key for _, key in self._dropped], pa.string()),
            }
        )
        self._dropped = set()
        self._connection.register("unwanted", unwanted)
        self._connection.execute(
            "delete from states using unwanted where states.kind = unwanted.kind and states.key = unwanted.key"
        )
        self._connection.unregister("unwanted")

    def expire_windows(self, short_before_us: int, long_before_us: int) -> None:
        """Forget outcomes by window that began before a time; windows of a day and longer are kept longer.

        Their keys end in `/<seconds>/<start_us>`.
        """
        for comparison, before_us in (("<", short_before_us), (">=", long_before_us)):
            self._connection.execute(
                "delete from states where kind in ('made', 'cohort', 'revised', 'arrival', 'predicted') "
                "and cast(string_split(key, '/')[-1] as bigint) < ? "
                f"and cast(string_split(key, '/')[-2] as bigint) {comparison} 86400",
                [before_us],
            )

    def counters(self) -> dict[tuple[str, str], int]:
        rows = self._connection.execute("select name, labels, value from counters").fetchall()
        return {(name, labels): int(value) for name, labels, value in rows}

    def put_counters(self, counters: Mapping[tuple[str, str], int]) -> None:
        """Upsert the counters that changed since they were last put."""
        changed = {k: v for k, v in counters.items() if self._seen_counters.get(k) != v}
        if not changed:
            return
        incoming = pa.table(
            {
                "name": pa.array([k[0] for k in changed], pa.string()),
                "labels": pa.array([k[1] for k in changed], pa.string()),
                "value": pa.array(list(changed.values()), pa.int64()),
            }
        )
        self._insert("counters", incoming, replace=True)
        self._seen_counters.update(changed)

    def positions(self) -> dict[PartitionId, tuple[int, int | None, list[int]]]:
        """(next offset, highest event time, suspect timestamps) of every partition ever read."""
        rows = self._connection.execute("select * from partitions").fetchall()
        return {
            PartitionId(Stream(stream), topic, number): (position, highest, json.loads(suspects))
            for stream, topic, number, position, highest, suspects in rows
        }

    def put_positions(self, positions: Mapping[PartitionId, tuple[int, int | None, list[int]]]) -> None:
        if not positions:
            return
        position, highest, suspects = zip(*positions.values(), strict=True)
        incoming = pa.table(
            {
                "stream": pa.array([str(p.stream) for p in positions], pa.string()),
                "topic": pa.array([p.topic for p in positions], pa.string()),
                "number": pa.array([p.number for p in positions], pa.int32()),
                "position": pa.array(position, pa.int64()),
                "highest_us": pa.array(highest, pa.int64()),
                "suspects": pa.array([json.dumps(times) for times in suspects], pa.string()),
            }
        )
        self._insert("partitions", incoming, replace=True)

    def put_incidents(self, rows: Iterable[Sequence[Any]]) -> None:
        """Upsert incidents: id, opened_us, closed_us, model, version, kind, severity, JSON body."""
        for row in rows:
            self._connection.execute("insert or replace into incidents values (?, ?, ?, ?, ?, ?, ?, ?)", list(row))

    def incident_bodies(self) -> list[str]:
        """Every incident's JSON, in the order they were opened."""
        return [r[0] for r in self._connection.execute("select body from incidents order by opened_us, id").fetchall()]

    def closed_bodies(self, ids: Sequence[str]) -> list[str]:
        """The JSON of those of these incidents that are closed, in the order they were opened."""
        if not ids:
            return []
        rows = self._connection.execute(
            "select body from incidents where list_contains(?, id) and closed_us is not null order by opened_us, id",
            [list(ids)],
        ).fetchall()
        return [str(row[0]) for row in rows]

    def open_bodies(self) -> list[str]:
        """The JSON of every incident that is open."""
        found = "select body from incidents where closed_us is null order by opened_us, id"
        return [str(row[0]) for row in self._connection.execute(found).fetchall()]

    def put_outbox(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add what has to be told: number, target, id, model, written_us, body."""
        for row in rows:
            self._connection.execute("insert into outbox values (?, ?, ?, ?, ?, ?)", list(row))

    def outbox(self) -> list[tuple[Any, ...]]:
        """Everything that waits to be told, in the order of the numbers."""
        return self._connection.execute("select * from outbox order by number, target").fetchall()

    def drop_outbox(self, keys: Iterable[tuple[int, str]]) -> None:
        """Forget rows by (number, target): they were told, or never will be."""
        for key in keys:
            self._connection.execute("delete from outbox where number = ? and target = ?", list(key))

    # -- shelves ---------------------------------------------------------------------------------

    def append(self, shelf: Shelf, rows: pa.Table, time_us: Ints) -> None:
        """Put rows on the tables of their `time_us`; columns as the shelf declares them, in that order."""
        if not len(rows):
            return
        block = np.asarray(time_us) // shelf.block_us
        for one in np.unique(block).tolist():
            self._ensure_block(shelf, one)
            chosen = rows if (block == one).all() else rows.filter(pa.array(block == one))
            self._insert(shelf.table(one), chosen)

    def _ensure_block(self, shelf: Shelf, block: int) -> None:
        if block not in self._blocks[shelf.name]:
            self._connection.execute(f"create table if not exists {shelf.table(block)} ({shelf.columns})")
            self._blocks[shelf.name].add(block)

    def _insert(self, table: str, rows: pa.Table, *, replace: bool = False) -> None:
        self._connection.register("incoming", rows)
        verb = "insert or replace into" if replace else "insert into"
        self._connection.execute(f"{verb} {table} by name select * from incoming")
        self._connection.unregister("incoming")

    def expired_blocks(self, shelf: Shelf, before_us: int) -> list[int]:
        """Blocks that lie wholly before a time."""
        return sorted(b for b in self._blocks[shelf.name] if (b + 1) * shelf.block_us <= before_us)

    def drop_block(self, shelf: Shelf, block: int) -> None:
        """Forget one block."""
        self._connection.execute(f"drop table if exists {shelf.table(block)}")
        self._blocks[shelf.name].discard(block)

    def forget_line(self, shelf: Shelf, line: int) -> None:
        """Delete the rows of one line; rare, so that the space they leave does not matter."""
        for block in self._blocks[shelf.name]:
            self._connection.execute(f"delete from {shelf.table(block)} where line = ?", [line])

    def relation(self, shelf: Shelf, since_us: int | None = None, until_us: int | None = None) -> str:
        """A FROM item that unites the shelf's tables which may hold rows of [since, until); empty ones included."""
        blocks = [
            b
            for b in sorted(self._blocks[shelf.name])
            if (since_us is None or (b + 1) * shelf.block_us > since_us)
            and (until_us is None or b * shelf.block_us < until_us)
        ]
        if not blocks:
            names = ", ".join(f"cast(null as {c.split()[1]}) as {c.split()[0]}" for c in shelf.columns.split(", "))
            return f"(select {names} where false)"
        return "(" + " union all ".join(f"select * from {shelf.table(b)}" for b in blocks) + ")"

    def blocks(self, shelf: Shelf) -> list[int]:
        """The blocks that are there, the oldest first."""
        return sorted(self._blocks[shelf.name])

    def is_empty(self, shelf: Shelf) -> bool:
        return not self._blocks[shelf.name]

    def query(self, sql: str, parameters: Sequence[Any] = (), **tables: pa.Table) -> pa.Table:
        """Run a SELECT in the open transaction; keyword tables can be named in it."""
        for name, table in tables.items():
            self._connection.register(name, table)
        try:
            return self._connection.sql(sql, params=list(parameters) or None).to_arrow_table()
        finally:
            for name in tables:
                self._connection.unregister(name)

    def profiles(self, shelf: Shelf, line: int, since_us: int, until_us: int) -> list[tuple[int, bytes]]:
        """(start, body) of the profiles of a line that start in [since, until), in the order of time."""
        if until_us <= since_us:
            return []
        source = self.relation(shelf, since_us, until_us)
        rows = self._connection.execute(
            f"select start_us, body from {source} where line = ? and start_us >= ? and start_us < ? order by start_us",
            [line, since_us, until_us],
        ).fetchall()
        return [(int(start), bytes(body)) for start, body in rows]


def _connect(path: Path | None, *, memory_bytes: int, threads: int) -> duckdb.DuckDBPyConnection:
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_bytes // 1_000_000}MB",
        "threads": threads,
        "preserve_insertion_order": True,
        # Else the engine's allocator keeps what it freed until the thread that did so is busy again: some 60 MB.
        "allocator_background_threads": True,
        "allocator_flush_threshold": "16MB",
    }
    if path is None:
        return duckdb.connect(":memory:", config=settings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return duckdb.connect(str(path), config=settings)
    except OSError as error:
        raise StateError(f"the folder of the state file {path} cannot be made: {error}") from error
    except duckdb.Error as error:
        if "lock" in str(error).lower():
            raise StateError(
                f"the state file {path} is in use by another process: one process owns it; "
                "stop that one, give this one its own `state`, or ask the running service with --url"
            ) from error
        raise StateError(f"the state file {path} is damaged or no state file: {error}") from error


def read_rows(reader: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Rows as dictionaries, through a cursor of its own that is closed afterwards."""
    with closing(reader.cursor()) as cursor:
        result = cursor.execute(sql, list(parameters))
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
