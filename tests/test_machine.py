"""What alerts about memory and disk stand on."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import Service, snapshot
from stream_monitor.machine import Machine, look
from stream_monitor.store import Store


@pytest.mark.parametrize(
    ("text", "bytes_"), [("536870912\n", 536870912), ("max\n", None), ("9223372036854771712\n", None)]
)
def test_a_memory_limit_is_read_in_both_versions_of_control_groups(
    tmp_path: Path, text: str, bytes_: int | None
) -> None:
    """A number is a limit; `max`, and what the first version writes for it, is none."""
    (tmp_path / "limit").write_text(text, encoding="ascii")
    found = look(tmp_path / "monitor.duckdb", limits=(tmp_path / "absent", tmp_path / "limit"))
    assert found.memory_limit == bytes_
    assert 0 < found.disk_free <= found.disk


def test_no_file_is_no_limit(tmp_path: Path) -> None:
    """Outside a container nothing is said of a limit."""
    assert look(tmp_path / "monitor.duckdb", limits=()).memory_limit is None


def test_disk_and_limit_are_published(tmp_path: Path) -> None:
    """Disk and limit as they are; no series for a limit that is not there."""
    store = Store(tmp_path / "monitor.duckdb")
    engine = Engine(parse({}, {}), store, baselines=[])
    try:
        samples = snapshot(engine, Service(ready=True, machine=Machine(100, 40, 70))).samples
        assert samples["state_disk_bytes"] == [((), 100)]
        assert samples["state_disk_free_bytes"] == [((), 40)]
        assert samples["memory_limit_bytes"] == [((), 70)]
        assert "memory_limit_bytes" not in snapshot(engine, Service(ready=True, machine=Machine(100, 40))).samples
    finally:
        store.close()
