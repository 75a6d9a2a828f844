"""What `replay` makes of files whose times are missing or absurd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stream_monitor.cli import run_command
from stream_monitor.config import parse
from stream_monitor.replay import Job, replay


def run(folder: Path, events: list[dict[str, Any]], *, rate: float | None = None) -> dict[str, Any]:
    """Replay these events; the summary."""
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return replay(Job(parse({}, {}), [path], [], [], folder / "out", rate))


def event(number: int, **more: Any) -> dict[str, Any]:
    """A small event."""
    return {"inference_id": number, "features": {"a": number}, **more}


def test_a_rate_gives_events_without_a_time_one(tmp_path: Path) -> None:
    """One event a second from a fixed day on; a timestamp of its own goes before."""
    summary = run(tmp_path, [event(i) for i in range(10)], rate=1.0)
    assert summary["inference"]["summarised"] == 10
    assert summary["models"][0]["first_event"] == "2020-01-01T00:00:00.000Z"
    assert summary["models"][0]["last_event"] == "2020-01-01T00:00:09.000Z"
    timed = run(tmp_path, [event(i, timestamp="2026-01-01T00:00:00Z") for i in range(10)], rate=1.0)
    assert timed["models"][0]["last_event"] == "2026-01-01T00:00:00.000Z"


def test_one_absurd_time_does_not_expire_the_rest(tmp_path: Path) -> None:
    """A date in 2099 among today's: the clock does not follow it, to the end."""
    events = [event(i, timestamp=1_790_000_000 + i) for i in range(50)]
    events.insert(25, event(99, timestamp="2099-01-01T00:00:00Z"))
    summary = run(tmp_path, events)
    assert summary["inference"]["summarised"] == 51
    assert summary["predictions"] == {"labelled": 0, "waiting": 51, "expired_unlabelled": 0}


def test_a_folder_is_no_baseline_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is there, so nobody is told that it is not; what it could be is said."""
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps(event(1, timestamp=1_790_000_000)) + "\n")
    arguments = ["replay", "--inference", str(path), "--baseline", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run_command(arguments) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} is a folder" in said
    assert "statistics.json" in said
