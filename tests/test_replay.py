"""What `replay` makes of files whose times are missing or absurd."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
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


START = 1_790_000_000
Lines = list[dict[str, Any]]
CONFIG = parse({"pane": "10s", "windows": ["5m"], "drift": {"learn_from": 600}}, {})


def story() -> tuple[Lines, Lines]:
    """An hour of events whose feature moves and whose predictions go wrong, and their labels in the order of time."""
    events, labels = [], []
    for n in range(3600):
        drifted, right = n > 2400, n % 10 > (5 if n > 1800 else 0)
        prediction = {"label": "yes" if n % 3 else "no"}
        truth = prediction["label"] if right else "other"
        events.append(event(n, prediction=prediction, timestamp=START + n) | {"features": {"a": n % 17 + 9 * drifted}})
        labels.append({"inference_id": n, "label": truth, "timestamp": START + n + 30})
        if n % 50 == 0:
            labels.append({"inference_id": n, "label": "corrected", "timestamp": START + n + 90})
    return events, sorted(labels, key=lambda label: label["timestamp"])


def left(folder: Path, inference: Sequence[Lines], ground_truth: Sequence[Lines]) -> dict[str, Any]:
    """What a replay of these files leaves, but for the time it took."""
    folder.mkdir()
    paths: dict[str, list[Path]] = {"inference": [], "ground_truth": []}
    for stream, files in (("inference", inference), ("ground_truth", ground_truth)):
        for lines in files:
            path = folder / f"{stream}{len(paths[stream])}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths[stream].append(path)
    out = folder / "out"
    summary = replay(Job(CONFIG, paths["inference"], paths["ground_truth"], [], out))
    # Rows of one window stand in the order they were judged in: which of labels and features came first is no result.
    tables = {
        name: sorted(json.dumps(row, default=str) for row in pq.read_table(out / f"{name}.parquet").to_pylist())
        for name in ("scores", "performance")
    }
    incidents = [json.loads(line) for line in (out / "incidents.jsonl").read_text().splitlines()]
    figures = {key: value for key, value in summary.items() if key not in ("elapsed_seconds", "events_per_second")}
    return {**figures, **tables, "found": incidents}


def test_labels_of_a_file_are_met_in_the_order_of_their_times(tmp_path: Path) -> None:
    """However the lines stand, corrections before what they correct: the result is that of the sorted file."""
    events, labels = story()
    expected = left(tmp_path / "sorted", [events], [labels])
    assert expected["ground_truth"]["corrected"] == 72
    assert {"data_drift", "concept_drift"} <= {incident["kind"] for incident in expected["found"]}
    mixed = random.Random(3).sample(labels, len(labels))
    assert left(tmp_path / "mixed", [events], [mixed]) == expected
    assert left(tmp_path / "two", [events], [mixed[::2], labels[1::2][::-1]])["ground_truth"]["offered"] == len(labels)


def test_files_that_are_out_of_step_are_read_side_by_side(tmp_path: Path) -> None:
    """Two halves of the time, and every other event: the result is that of the one file."""
    events, labels = story()
    expected = left(tmp_path / "one", [events], [labels])
    assert left(tmp_path / "halves", [events[1800:], events[:1800]], [labels]) == expected
    assert left(tmp_path / "turns", [events[::2], events[1::2]], [labels]) == expected
