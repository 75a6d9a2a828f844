"""Every kind of bad input through the whole engine by `replay`: each has its counted outcome, none stops it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stream_monitor.config import parse
from stream_monitor.replay import Job, replay

START_MS = 1_793_577_600_000  # 2026-11-02T00:00:00Z
GOOD = 300
"""Good events around the bad one."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: its summary, its metrics text and what it refused."""

    summary: dict[str, Any]
    metrics: str
    reasons: list[str]
    folder: Path

    @property
    def inference(self) -> dict[str, int]:
        return dict(self.summary["inference"])

    @property
    def ground_truth(self) -> dict[str, int]:
        return dict(self.summary["ground_truth"])

    def sample(self, name: str, **labels: str) -> float:
        """The value of one series of the metrics text; zero where there is none."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.metrics)
            for sample in family.samples
            if sample.name == f"stream_monitor_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found)


Run = Callable[..., Outcome]


def event(number: int, **changes: Any) -> dict[str, Any]:
    """A good event, one a second; a change to None takes the field away."""
    body = {
        "inference_id": f"e{number}",
        "model": "credit",
        "version": "1",
        "timestamp": START_MS + number * 1000,
        "features": {"age": 30 + number % 20, "channel": "web" if number % 3 else "phone"},
        "prediction": {"label": "approve", "score": 0.25},
    }
    return {k: v for k, v in (body | changes).items() if v is not None}


def line(number: int, **changes: Any) -> bytes:
    """The same as a line of JSON."""
    return json.dumps(event(number, **changes)).encode()


def truth(number: int, label: Any = "approve", **changes: Any) -> bytes:
    """A label for an event, half a minute after it."""
    body = {"inference_id": f"e{number}", "label": label, "timestamp": START_MS + number * 1000 + 30_000}
    return json.dumps(body | changes).encode()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Replays some lines among good ones, with a baseline, and reads what is left."""

    def replayed(*bad: bytes, labels: tuple[bytes, ...] = (), good: int = GOOD) -> Outcome:
        lines = [line(n) for n in range(good)]
        lines[good // 2 : good // 2] = bad
        files = {"events": lines, "labels": list(labels), "baseline": [line(n, timestamp=None) for n in range(1000)]}
        for name, content in files.items():
            (tmp_path / f"{name}.jsonl").write_bytes(b"".join(part + b"\n" for part in content))
        out = tmp_path / "out"
        config = parse({"windows": ["5m"], "drift": {"learn_from": 200}}, {})
        truths = [tmp_path / "labels.jsonl"] if labels else []
        summary = replay(Job(config, [tmp_path / "events.jsonl"], truths, [tmp_path / "baseline.jsonl"], out))
        rejects = (out / "rejects.jsonl").read_text("utf-8").splitlines()
        metrics = (out / "metrics.prom").read_bytes().decode()
        assert conserved(summary)
        return Outcome(summary, metrics, [json.loads(reject)["reason"] for reject in rejects], out)

    return replayed


def conserved(summary: dict[str, Any]) -> bool:
    """The conservation laws."""
    events, labels = summary["inference"], summary["ground_truth"]
    return bool(
        events["offered"] == sum(events[f] for f in ("summarised", "rejected", "late", "duplicate"))
        and labels["offered"] == sum(n for f, n in labels.items() if f != "offered")
        and sum(summary["predictions"].values()) == events["summarised"] + events["late"]
    )


DEEP = b"[" * 1000 + b"]" * 1000
MIDDLE = GOOD // 2

REFUSED: dict[str, tuple[bytes, str]] = {
    "truncated JSON": (line(MIDDLE)[:-9], "not_json"),
    "two objects on a line": (line(MIDDLE) + b" " + line(MIDDLE), "not_json"),
    "invalid UTF-8": (line(MIDDLE, note="x").replace(b'"x"', b'"\xff\xfe"'), "invalid_utf8"),
    "a list": (b"[1, 2]", "not_an_object"),
    "a number": (b"17", "not_an_object"),
    "a string": (b'"hello"', "not_an_object"),
    "null": (b"null", "not_an_object"),
    "no id": (line(MIDDLE, inference_id=None), "no_id"),
    "a null id": (line(MIDDLE).replace(b'"e150"', b"null"), "no_id"),
    "an id that is an object": (line(MIDDLE, inference_id={"a": 1}), "no_id"),
    "an id that is a fraction": (line(MIDDLE, inference_id=1.5), "no_id"),
    "no features": (line(MIDDLE, features=None), "no_features"),
    "features as a list": (line(MIDDLE, features=[1, 2]), "no_features"),
    "features as a string": (line(MIDDLE, features="age=3"), "no_features"),
    "no timestamp": (line(MIDDLE, timestamp=None), "no_timestamp"),
    "a timestamp that is a word": (line(MIDDLE, timestamp="yesterday"), "bad_timestamp"),
    "a timestamp in 1970": (line(MIDDLE, timestamp="1970-01-02T00:00:00Z"), "bad_timestamp"),
    "a timestamp in 2150": (line(MIDDLE, timestamp="2150-01-02T00:00:00Z"), "bad_timestamp"),
    "a timestamp of 1e400": (line(MIDDLE).replace(str(START_MS + MIDDLE * 1000).encode(), b"1e400"), "bad_timestamp"),
    "1,000 levels of nothing": (DEEP, "not_an_object"),
    "10 MB and a bit": (line(MIDDLE, note="x" * 10_000_001), "too_large"),
    "a model name of 10 kB": (line(MIDDLE, model="m" * 10_000), "name_too_long"),
    "NUL bytes": (b"\x00\x00\x00", "not_json"),
}
REFUSED = {name: (body.replace(b'"e150"', b'"bad"'), reason) for name, (body, reason) in REFUSED.items()}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_record_has_its_reason(run: Run, kind: str) -> None:
    """It is counted, shown in rejects.jsonl and in the metrics, and all others are summarised."""
    body, reason = REFUSED[kind]
    outcome = run(body)
    assert outcome.reasons == [reason]
    assert outcome.inference == {"offered": GOOD + 1, "summarised": GOOD, "rejected": 1, "late": 0, "duplicate": 0}
    assert outcome.sample("rejected_total", stream="inference", reason=reason) == 1


FEATURE_VALUES: dict[str, tuple[bytes, str]] = {
    "a number as a string": (b'"41"', "wrong_type"),
    "a word where the baseline has a number": (b'"old"', "wrong_type"),
    "a boolean": (b"true", "wrong_type"),
    "a list": (b"[1]", "wrong_type"),
    "1,000 levels of lists": (DEEP, "wrong_type"),
    "NaN": (b"NaN", "missing"),
    "null": (b"null", "missing"),
    "Infinity": (b"Infinity", "infinite"),
    "-Infinity": (b"-Infinity", "infinite"),
    "1e400": (b"1e400", "infinite"),
}


@pytest.mark.parametrize("kind", FEATURE_VALUES)
def test_a_bad_value_is_counted_against_its_feature_alone(run: Run, kind: str) -> None:
    """The event is summarised; one value in the window is of that kind of bad."""
    value, ratio = FEATURE_VALUES[kind]
    bad = line(MIDDLE, inference_id="bad", features={"age": "VALUE", "channel": "web"}).replace(b'"VALUE"', value)
    outcome = run(bad)
    assert outcome.inference["summarised"] == GOOD + 1
    scores = pq.read_table(outcome.folder / "scores.parquet").to_pylist()
    found = {
        row["statistic"].removesuffix("_ratio"): round(row["value"] * row["samples"])
        for row in scores
        if row["subject"] == "age" and row["statistic"] in ("missing_ratio", "wrong_type_ratio", "infinite_ratio")
    }
    assert found == {"missing": 0, "wrong_type": 0, "infinite": 0} | {ratio: 1}


def test_an_integer_and_its_text_are_one_id(run: Run) -> None:
    """`7` and `"7"` are one prediction."""
    outcome = run(line(MIDDLE, inference_id=7), line(MIDDLE, inference_id="7"))
    assert (outcome.inference["summarised"], outcome.inference["duplicate"]) == (GOOD + 1, 1)


def test_a_duplicate_is_one_whatever_it_carries(run: Run) -> None:
    """The same id within ten minutes, with other features."""
    outcome = run(line(MIDDLE - 1, features={"age": 99}))
    assert (outcome.inference["summarised"], outcome.inference["duplicate"]) == (GOOD, 1)


def test_a_late_event_is_late(run: Run) -> None:
    """Eleven seconds behind, with ten allowed; its own id."""
    outcome = run(line(MIDDLE - 12, inference_id="late"))
    assert (outcome.inference["summarised"], outcome.inference["late"]) == (GOOD, 1)


def test_a_clock_from_next_month_does_not_drag_the_watermark(run: Run) -> None:
    """One event far ahead is taken, and what follows is not late for it."""
    outcome = run(line(MIDDLE, inference_id="ahead", timestamp=START_MS + 40 * 86_400_000))
    assert (outcome.inference["summarised"], outcome.inference["late"]) == (GOOD + 1, 0)


def test_thousands_of_unknown_features_hide_nothing(run: Run) -> None:
    """An event with 5,000 strangers beside the known ones is one event of the known ones."""
    features = {f"stranger_{n}": n for n in range(5000)} | {"age": 31, "channel": "web"}
    outcome = run(line(MIDDLE, inference_id="bad", features=features))
    assert outcome.inference["summarised"] == GOOD + 1
    scores = pq.read_table(outcome.folder / "scores.parquet").to_pylist()
    assert {row["subject"] for row in scores} == {"age", "channel", "prediction", "prediction.score"}
    assert {row["samples"] for row in scores if row["statistic"] == "missing_ratio"} == {GOOD + 1}


@dataclass(frozen=True, slots=True)
class Told:
    """Labels and what must become of them."""

    labels: tuple[bytes, ...]
    fates: dict[str, int] = field(default_factory=dict)
    labelled: int = 0


LABELS: dict[str, Told] = {
    "good": Told((truth(1), truth(2)), {"matched": 2}, 2),
    "for an unknown id": Told((truth(9999),), {"orphan_waiting": 1}),
    "that changes its mind": Told((truth(1), truth(1, "deny", timestamp=START_MS + 60_000)), {"matched": 1, "corrected": 1}, 1),
    "told twice": Told((truth(1), truth(1)), {"matched": 1, "duplicate": 1}, 1),
    "before its prediction": Told((truth(200, timestamp=START_MS),), {"matched": 1}, 1),
    "without a time": Told((b'{"inference_id": "e5", "label": "deny"}',), {"matched": 1}, 1),
    "without a label": Told((b'{"inference_id": "e5"}',), {"rejected": 1}),
    "that is a list": Told((truth(5, ["approve"]),), {"rejected": 1}),
    "that is an object": Told((truth(5, {"a": 1}),), {"rejected": 1}),
    "without an id": Told((b'{"label": "deny"}',), {"rejected": 1}),
    "truncated": Told((b'{"inference_id": "e5", "lab',), {"rejected": 1}),
    "of another outcome": Told((truth(1), truth(1, "yes", outcome="click")), {"matched": 2}, 1),
    "of another model": Told((truth(1, model="fraud"),), {"orphan_waiting": 1}),
}  # fmt: skip


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_has_one_fate(run: Run, kind: str) -> None:
    """Each under its fate and no other, and the predictions that got a truth."""
    told = LABELS[kind]
    outcome = run(labels=told.labels)
    fates = {fate: count for fate, count in outcome.ground_truth.items() if count and fate != "offered"}
    assert fates == told.fates
    assert outcome.summary["predictions"]["labelled"] == told.labelled


NAMES = ['quote"s', "back\\slash", "new\nline", "tab\tand\rreturn", "emoji 🦆 é", "{curly=\"x\"}", "", " ", "\u2028", "a" * 200,
         "__name__", "le", "#", "null", "prediction"]  # fmt: skip


def test_a_feature_name_is_data(tmp_path: Path) -> None:
    """Names that break formats survive into scores and metrics; one of 10 kB is dropped and counted, its event is not."""
    names = [*NAMES, "x" * 10_000]
    rows = [line(n, features=dict.fromkeys(names, n % 50)) for n in range(1200)]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(rows))
    out = tmp_path / "out"
    config = parse({"windows": ["5m"], "drift": {"learn_from": 300}}, {})
    summary = replay(Job(config, [tmp_path / "events.jsonl"], [], [], out))
    assert summary["inference"]["summarised"] == 1200
    scores = pq.read_table(out / "scores.parquet").to_pylist()
    assert {*NAMES} <= {row["subject"] for row in scores}
    text = (out / "metrics.prom").read_bytes().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    seen = {s.labels["feature"] for s in samples if s.name == "stream_monitor_feature_missing_ratio"}
    assert {*NAMES} <= seen
    [dropped] = [s for s in samples if s.name == "stream_monitor_dropped_values_total"]
    assert (dropped.labels, dropped.value) == ({"reason": "name_too_long"}, 1200)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_metrics_of_hostile_names(tmp_path: Path) -> None:
    """Prometheus's own parser reads the metrics text."""
    rows = [line(n, features=dict.fromkeys(NAMES, n % 50)) for n in range(1200)]
    (tmp_path / "events.jsonl").write_bytes(b"\n".join(rows))
    config = parse({"windows": ["5m"], "drift": {"learn_from": 300}}, {})
    replay(Job(config, [tmp_path / "events.jsonl"], [], [], tmp_path / "out"))
    metrics = (tmp_path / "out" / "metrics.prom").read_bytes()
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, check=False)
    assert checked.returncode in (0, 3), checked.stderr.decode()  # 3: it reads, but has advice on style


def test_everything_at_once_stops_nothing(run: Run) -> None:
    """All refused kinds in one file: each is counted under its reason."""
    outcome = run(*(body for body, _ in REFUSED.values()))
    assert sorted(outcome.reasons) == sorted(reason for _, reason in REFUSED.values())
    assert outcome.inference["summarised"] == GOOD
