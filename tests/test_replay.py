"""What `replay` makes of files whose times are missing or absurd."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from stream_monitor import replay as replay_module
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
        for name in ("scores", "performance", "revisions")
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
    assert len(expected["revisions"]) > 2 * 11
    mixed = random.Random(3).sample(labels, len(labels))
    assert left(tmp_path / "mixed", [events], [mixed]) == expected
    assert left(tmp_path / "two", [events], [mixed[::2], labels[1::2][::-1]])["ground_truth"]["offered"] == len(labels)


def test_files_that_are_out_of_step_are_read_side_by_side(tmp_path: Path) -> None:
    """Two halves of the time, and every other event: the result is that of the one file."""
    events, labels = story()
    expected = left(tmp_path / "one", [events], [labels])
    assert left(tmp_path / "halves", [events[1800:], events[:1800]], [labels]) == expected
    assert left(tmp_path / "turns", [events[::2], events[1::2]], [labels]) == expected


def test_refused_labels_stand_where_they_stood(tmp_path: Path) -> None:
    """A file that was not in the order of time is read from a sorted copy; its refused lines are named as they were given."""
    events, labels = story()
    labels = labels[::-1]
    labels[7] = {"inference_id": 5}
    labels[1200] = {"inference_id": 6, "label": ["no"]}
    summary = left(tmp_path / "it", [events], [labels[:600], labels[600:]])
    assert summary["ground_truth"]["rejected"] == 2
    lines = [json.loads(line) for line in (tmp_path / "it" / "out" / "rejects.jsonl").read_text().splitlines()]
    found = {line["reason"]: (line["topic"], int(line["offset"]), line["position"]) for line in lines}
    first, second = (str(tmp_path / "it" / f"ground_truth{k}.jsonl") for k in (0, 1))
    assert found == {"no_label": (first, 7, f"{first}/0/7"), "bad_label": (second, 600, f"{second}/0/600")}
    assert "stream-monitor-" not in (tmp_path / "it" / "out" / "metrics.prom").read_text()


def test_what_was_said_of_a_cohort_and_when(tmp_path: Path) -> None:
    """A row for each figure of each revision: never before the window's end, and the last is what the cohort is."""
    events, labels = story()
    left(tmp_path / "it", [events], [labels])
    out = tmp_path / "it" / "out"
    rows = pq.read_table(out / "revisions.parquet").to_pylist()
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    assert all(row["at"] >= row["window_end"] for row in rows)
    said = {(row["window_start"], row["metric"]): row for row in rows}
    stands = {
        (row["window_start"], row["metric"]): row
        for row in pq.read_table(out / "performance.parquet").to_pylist() if row["basis"] == "cohort"
    }  # fmt: skip
    assert {name for _, name in said} == {"accuracy", "f1"}
    for key, row in said.items():
        columns = ("model", "version", "segment", "outcome", "window", "window_end", "samples", "coverage", "value")
        assert {name: row[name] for name in columns} == {name: stands[key][name] for name in columns}


def test_the_time_it_took_is_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written at the end is in it."""
    clock = [100.0]
    monkeypatch.setattr(replay_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    write = pq.write_table

    def slowly(table: Any, path: Path) -> None:
        clock[0] += 2.0
        write(table, path)

    monkeypatch.setattr(pq, "write_table", slowly)
    summary = run(tmp_path, [event(i, timestamp=START + i) for i in range(60)])
    assert summary["elapsed_seconds"] == 6.0
    assert summary["events_per_second"] == 10.0
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
