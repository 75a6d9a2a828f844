"""The state file: one owner, one transaction, versions that go forward only, and shelves that expire."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from stream_monitor import store as store_module
from stream_monitor.errors import StateError
from stream_monitor.records import PartitionId, Stream
from stream_monitor.store import HOURS, PANES, PREDICTIONS, SCHEMA_VERSION, Store

HOUR_US = 3_600_000_000
PARTITION = PartitionId(Stream.INFERENCE, "inference", 0)


def panes(*start_us: int) -> pa.Table:
    """Rows of the panes' shelf."""
    return pa.table(
        {
            "line": pa.array([0] * len(start_us), pa.int32()),
            "start_us": pa.array(start_us, pa.int64()),
            "rows": pa.array([1] * len(start_us), pa.int64()),
            "body": pa.array([str(s).encode() for s in start_us], pa.binary()),
        }
    )


def put_panes(store: Store, *start_us: int) -> None:
    """The same, on their shelf."""
    store.append(PANES, panes(*start_us), np.array(start_us, np.int64))


def set_schema(path: Path, version: int) -> None:
    """Make a state file one of another version."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("update meta set value = ? where key = 'schema_version'", [str(version)])


def test_a_second_process_is_told_who_owns_the_file(tmp_path: Path) -> None:
    """It gets StateError, exit code 5, and a sentence that says what to do."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    program = (
        "import sys\nfrom pathlib import Path\nfrom stream_monitor.store import Store\n"
        "from stream_monitor.errors import StateError\n"
        "try:\n    Store(Path(sys.argv[1]))\nexcept StateError as error:\n"
        "    print(error)\n    sys.exit(error.exit_code)\n"
    )
    second = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)
    store.close()
    assert second.returncode == 5, second.stderr
    assert "in use by another process" in second.stdout
    assert "--url" in second.stdout


def test_the_command_line_leaves_with_5_while_the_file_is_owned(tmp_path: Path) -> None:
    """`run` on a state file that is in use: a sentence on stderr, no traceback."""
    store = Store(tmp_path / "state.duckdb")
    config = tmp_path / "monitor.yaml"
    config.write_text("state: state.duckdb\nsource: {bootstrap_servers: 'localhost:1'}\n")
    arguments = [sys.executable, "-m", "stream_monitor.cli", "run", "--config", str(config)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)
    store.close()
    assert found.returncode == 5, found.stderr
    assert "in use by another process" in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr


def test_what_was_not_committed_is_forgotten(tmp_path: Path) -> None:
    """Everything of a transaction is there after a commit, and nothing of it before."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    store.set_meta("kept", "1")
    store.put_positions({PARTITION: (7, 123, [1, 2])})
    store.commit()
    store.set_meta("lost", "1")
    store.put_states("kind", {"key": b"lost"})
    put_panes(store, 0)
    store.put_counters({("events", "{}"): 3})
    store.close()
    again = Store(path)
    assert again.meta("kept") == "1"
    assert again.positions() == {PARTITION: (7, 123, [1, 2])}
    assert again.meta("lost") is None
    assert again.state("kind", "key") is None
    assert again.is_empty(PANES)
    assert again.counters() == {}
    again.close()


def test_one_answer_does_not_block_the_next_question(tmp_path: Path) -> None:
    """A single value is read to its end, so that a query may follow at once."""
    store = Store(tmp_path / "state.duckdb")
    store.put_states("kind", {"key": b"value"})
    assert store.state("kind", "key") == b"value"
    assert store.query("select 1 as n")["n"].to_pylist() == [1]
    assert store.meta("schema_version") == str(SCHEMA_VERSION)
    assert store.query("select 2 as n")["n"].to_pylist() == [2]
    store.close()


def test_readers_see_what_is_committed(tmp_path: Path) -> None:
    """A connection of another thread does not see the open transaction."""
    store = Store(tmp_path / "state.duckdb")
    reader = store.reader()
    store.set_meta("key", "value")
    assert reader.execute("select count(*) from meta where key = 'key'").fetchall() == [(0,)]
    store.commit()
    assert reader.execute("select count(*) from meta where key = 'key'").fetchall() == [(1,)]
    reader.close()
    store.close()


def test_a_newer_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """It names both versions, changes nothing, and lets go of the file."""
    path = tmp_path / "state.duckdb"
    Store(path).close()
    set_schema(path, SCHEMA_VERSION + 1)
    before = path.read_bytes()
    with pytest.raises(StateError, match=rf"newer version.*schema {SCHEMA_VERSION + 1}.*{SCHEMA_VERSION}\)") as error:
        Store(path)
    assert error.value.exit_code == 5
    assert path.read_bytes() == before
    set_schema(path, SCHEMA_VERSION)  # nobody holds it
    Store(path).close()


@pytest.mark.parametrize("damage", ["not a database", "cut", "overwritten"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    """Text, a file cut short, a file with its head overwritten: StateError each time, never another."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    put_panes(store, *range(0, 1000 * HOUR_US, HOUR_US))
    store.commit()
    store.close()
    body = path.read_bytes()
    damaged = {
        "not a database": b"hello " * 100,
        "cut": body[:5000],
        "overwritten": b"\xff" * 20_000 + body[20_000:],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(StateError) as error:
        Store(path)
    assert error.value.exit_code == 5
    assert str(path) in str(error.value)


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A DuckDB file with other tables is not taken over."""
    path = tmp_path / "other.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table people (name varchar)")
    with pytest.raises(StateError, match="not a state file"):
        Store(path)
    with duckdb.connect(str(path)) as connection:
        assert connection.execute("select table_name from duckdb_tables()").fetchall() == [("people",)]


def test_predictions_of_an_older_file_lead_to_expect_nothing(tmp_path: Path) -> None:
    """Those that are there get the columns they lack, those that come after stand beside them."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    row = pa.table({"seq": [1], "time_us": [5], "expected_size": [0.5]})
    store.append(PREDICTIONS, row, np.array([5]))
    store.commit()
    store.close()
    with duckdb.connect(str(path)) as file:
        for column in ("expected_size", "expected_error"):
            file.execute(f"alter table {PREDICTIONS.table(0)} drop column {column}")
    set_schema(path, 3)
    store = Store(path)
    store.append(PREDICTIONS, pa.concat_tables([row, row]), np.array([5, 10**15]))
    found = store.query(f"select expected_size, expected_error from {store.relation(PREDICTIONS)} order by all")
    assert found["expected_size"].to_pylist() == [0.5, 0.5, None]
    assert found["expected_error"].to_pylist() == [None] * 3
    store.close()


def test_an_older_file_goes_forward_after_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two migrations in their order; the backup is the file as it was."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    store.set_meta("kept", "1")
    store.commit()
    store.close()
    steps = {
        SCHEMA_VERSION: "create table novelty (n integer); insert into novelty values (1)",
        SCHEMA_VERSION + 1: "update novelty set n = n + 10",
    }
    monkeypatch.setattr(store_module, "SCHEMA_VERSION", SCHEMA_VERSION + 2)
    monkeypatch.setattr(store_module, "MIGRATIONS", steps)
    migrated = Store(path)
    assert migrated.meta("schema_version") == str(SCHEMA_VERSION + 2)
    assert migrated.meta("kept") == "1"
    assert migrated.query("select n from novelty")["n"].to_pylist() == [11]
    migrated.close()
    with duckdb.connect(str(path.with_name(f"state.duckdb.v{SCHEMA_VERSION}.bak"))) as backup:
        assert backup.execute("select value from meta where key = 'schema_version'").fetchall() == [
            (str(SCHEMA_VERSION),)
        ]
        assert backup.execute("select value from meta where key = 'kept'").fetchall() == [("1",)]
        assert ("novelty",) not in backup.execute("select table_name from duckdb_tables()").fetchall()
    Store(path).close()  # and opens as what it is now


def test_a_file_of_the_first_version_gets_an_outbox(tmp_path: Path) -> None:
    """What it holds stays, and it can be written as a new one can."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    store.set_meta("kept", "1")
    store.commit()
    store.close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("drop table outbox")
    set_schema(path, 1)
    store = Store(path)
    assert store.meta("kept") == "1"
    store.put_outbox([(2, "b", "id-2", "m", 5, "{}"), (1, "b", "id-1", "m", 4, "{}"), (1, "a", "id-1", "m", 4, "{}")])
    store.commit()
    store.drop_outbox([(1, "b")])
    assert store.outbox() == [(1, "a", "id-1", "m", 4, "{}"), (2, "b", "id-2", "m", 5, "{}")]
    store.close()
    again = Store(path)
    assert len(again.outbox()) == 3
    again.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a step is no step: StateError, and the file still opens with the program that wrote it."""
    path = tmp_path / "state.duckdb"
    Store(path).close()
    with monkeypatch.context() as newer:
        newer.setattr(store_module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
        newer.setattr(
            store_module, "MIGRATIONS", {SCHEMA_VERSION: "create table half (n integer); select * from nowhere"}
        )
        with pytest.raises(StateError):
            Store(path)
    store = Store(path)
    assert store.meta("schema_version") == str(SCHEMA_VERSION)
    assert "half" not in store.query("select table_name from duckdb_tables()")["table_name"].to_pylist()
    store.close()


def test_shelves_expire_whole(tmp_path: Path) -> None:
    """A block goes when all of it lies before the time; what is left is read as before, also after reopening."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    put_panes(store, -HOUR_US, 0, HOUR_US, 2 * HOUR_US, 5 * HOUR_US)  # a block is two hours
    store.commit()
    assert store.expired_blocks(PANES, 2 * HOUR_US - 1) == [-1]
    assert store.expired_blocks(PANES, 4 * HOUR_US) == [-1, 0, 1]
    for block in store.expired_blocks(PANES, 2 * HOUR_US):
        store.drop_block(PANES, block)
    store.commit()
    store.close()
    again = Store(path)
    assert [start for start, _ in again.profiles(PANES, 0, -HOUR_US, 9 * HOUR_US)] == [2 * HOUR_US, 5 * HOUR_US]
    assert again.expired_blocks(PANES, 2 * HOUR_US) == []
    assert again.is_empty(HOURS)
    again.close()


def test_a_dropped_block_comes_back_when_it_was_not_committed(tmp_path: Path) -> None:
    """Expiry is part of the transaction too."""
    path = tmp_path / "state.duckdb"
    store = Store(path)
    put_panes(store, 0)
    store.commit()
    store.drop_block(PANES, 0)
    store.close()
    again = Store(path)
    assert again.profiles(PANES, 0, 0, 1) == [(0, b"0")]
    again.close()


def test_profiles_are_cut_to_the_line_and_the_time(tmp_path: Path) -> None:
    """[since, until), in the order of time, of one line."""
    store = Store(tmp_path / "state.duckdb")
    put_panes(store, 3 * HOUR_US, HOUR_US, 2 * HOUR_US)
    assert [start for start, _ in store.profiles(PANES, 0, HOUR_US, 3 * HOUR_US)] == [HOUR_US, 2 * HOUR_US]
    assert store.profiles(PANES, 1, 0, 9 * HOUR_US) == []
    store.forget_line(PANES, 0)
    assert store.profiles(PANES, 0, 0, 9 * HOUR_US) == []
    store.close()


def test_states_and_counters_are_upserted(tmp_path: Path) -> None:
    """The last value of a key counts; dropped keys are gone."""
    store = Store(tmp_path / "state.duckdb")
    store.put_states("a", {"x": b"1", "y": b"2"})
    store.put_states("a", {"x": b"3"})
    store.put_states("b", {"x": b"4"})
    store.drop_states("a", ["y"])
    store.put_counters({("n", "{}"): 1})
    store.put_counters({("n", "{}"): 2})
    assert store.states("a") == {"x": b"3"}
    assert store.states("b") == {"x": b"4"}
    assert store.counters() == {("n", "{}"): 2}
    store.close()
