"""The self-test: what it says of data that is known, and that it says it of the engine and the rows it was given."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_monitor.cli import run_command
from stream_monitor.config import Config, parse
from stream_monitor.records import Kind
from stream_monitor.selftest import (
    AFTER,
    FEATURE_DRIFTS,
    Half,
    Job,
    Trial,
    _drawn,
    _targets,
    poisson_interval,
    selftest,
)
from stream_monitor.summarize.protocol import MISSING

ROWS = 4_000


def write_rows(path: Path, rows: int = ROWS, **head: Any) -> Path:
    """Rows of one model: a number, a whole number, a category, and a score."""
    rng = np.random.default_rng(5)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            score = round(float(rng.beta(2, 4)), 4)
            features = {
                "income": round(float(rng.lognormal(10, 0.5)), 2),
                "age": int(rng.integers(18, 80)),
                "channel": str(rng.choice(["web", "branch", "app"], p=[0.55, 0.3, 0.15])),
            }
            time = {"timestamp": 1_767_225_600 + number // 2}
            body = {"features": features, "prediction": {"label": "deny" if score > 0.4 else "approve", "score": score}}
            file.write(json.dumps({"model": "credit", "version": "7", **time, **body, **head}) + "\n")
    return path


def configuration(**drift: Any) -> Config:
    """A configuration of one model."""
    return parse({"models": {"credit": {"task": "binary", "positive_label": "deny"}}, "drift": drift}, {})


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a small self-test says, two runs of each drift."""
    rows = write_rows(tmp_path_factory.mktemp("selftest") / "rows.jsonl")
    [model] = selftest(Job(configuration(false_alarms="1 per 3650d"), [rows], events=80_000))["models"]
    return dict(model)


def drifts(tried: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The lines about one kind of drift."""
    return [row for row in tried["drifts"] if row["drift"] == name]


def test_nothing_is_found_without_drift_at_a_tiny_budget(tried: dict[str, Any]) -> None:
    """One false incident in ten years: none in eleven hours, which is said to prove little."""
    told = tried["false_incidents"]
    assert (told["seen"], told["kinds"], told["per_month_interval"][0]) == (0, {}, 0.0)
    assert told["accepted"] == pytest.approx(30 / 3650, rel=0.01)
    assert told["per_month_interval"][1] > 100 * told["accepted"]


def test_a_shift_of_a_deviation_is_found_in_every_run_under_the_right_name(tried: dict[str, Any]) -> None:
    """Within some hundred events, and people are told when the pane is sealed: 10 s of lateness later at least."""
    rows = drifts(tried, "shift of 1 sd")
    assert [row["subject"] for row in rows] == ["income", "age"]
    for row in rows:
        assert (row["runs"], row["found"], row["named"], row["kinds"]) == (2, 2, 2, {"data_drift": 2})
        assert 4 <= row["delay_events"] <= row["slowest_events"] <= 300
        assert 0 < row["delay_seconds"] - row["delay_events"] / tried["events_per_second"] < 21


def test_a_smaller_shift_takes_longer(tried: dict[str, Any]) -> None:
    """Half the shift needs some four times the events."""
    small, large = drifts(tried, "shift of 0.5 sd"), drifts(tried, "shift of 1 sd")
    assert all(a["delay_events"] > 1.5 * b["delay_events"] for a, b in zip(small, large, strict=True))


def test_a_wrong_type_becomes_broken_input(tried: dict[str, Any]) -> None:
    """Text for a number and a number for a category alike."""
    rows = drifts(tried, "wrong type")
    assert [row["subject"] for row in rows] == ["income", "age", "channel"]
    assert all(row["kinds"] == {"broken_input": 2} and row["named"] == 2 for row in rows)
    assert all(row["delay_events"] <= 16 for row in rows)


def test_missing_values_categories_and_predictions_are_told_as_what_they_are(tried: dict[str, Any]) -> None:
    """Each kind of drift has its kind of incident."""
    for name, kind in (("20 % missing", "data_quality"), ("5 % unseen", "data_drift"),
                       ("prediction +0.5 sd", "prediction_drift"), ("doubled spread", "data_drift")):  # fmt: skip
        assert drifts(tried, name)
        assert all(set(row["kinds"]) == {kind} for row in drifts(tried, name)), name


def test_the_rate_is_that_of_the_rows(tried: dict[str, Any]) -> None:
    """Two rows a second; the stream says how it was made."""
    assert tried["events_per_second"] == pytest.approx(2.0, rel=0.01)
    stream = tried["stream"]
    assert (stream["kind"], stream["rows"], stream["baseline_rows"], stream["block_rows"]) == ("rows", 2000, 2000, 100)
    assert stream["times_each_row"] == round(stream["events_played"] / 2000, 1)
    assert 0 < stream["halves_differ"] < 0.2


def test_the_halves_are_alternating_blocks_in_the_order_of_time(tmp_path: Path) -> None:
    """No row is on both sides, and the stream's rows follow each other as they did."""
    path = write_rows(tmp_path / "rows.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::-1]) + "\n")
    [target] = _targets(Job(configuration(), [path]))
    assert isinstance(target.stream, Half)
    incomes = np.array([json.loads(line)["features"]["income"] for line in lines])
    in_stream = np.arange(ROWS) // 100 % 2 == 1
    [income] = [c for c in target.stream.pool.columns if c.key.name == "income"]
    # Two rows share a second: of those the order of the file counts, and that was turned.
    assert sorted(income.number) == sorted(incomes[in_stream])
    assert np.array_equal(income.number.reshape(-1, 2), incomes[in_stream].reshape(-1, 2)[:, ::-1])
    assert target.baseline.profile.rows == ROWS // 2


def test_a_stream_uses_every_row_once_before_it_uses_one_again(tmp_path: Path) -> None:
    """A stretch around the circle first, blocks from random places after."""
    [target] = _targets(Job(configuration(), [write_rows(tmp_path / "rows.jsonl")]))
    assert isinstance(target.stream, Half)
    order = target.stream._order(np.random.default_rng(1), 4_550)
    assert len(order) == 4_550
    assert sorted(order[:2000]) == list(range(2000))
    assert (np.diff(order[2000:]) % 2000 == 1).mean() > 0.98


def test_every_event_played_is_summarised(tmp_path: Path) -> None:
    """No duplicate, none late, none refused: what is played is what is judged."""
    [target] = _targets(Job(configuration(), [write_rows(tmp_path / "rows.jsonl")]))
    rng = np.random.default_rng(0)
    trial = Trial(configuration(), target, rng)
    for pool in target.stream.feed(rng, AFTER):
        trial.play(pool)
    trial.engine.finish(0.0)
    fates = {
        json.loads(labels)["outcome"]: n for (name, labels), n in trial.engine.counters.items() if name == "events"
    }
    trial.close()
    assert fates == {"summarised": sum(AFTER)}


def test_a_built_baseline_is_drawn_from_its_bins(tmp_path: Path) -> None:
    """With its quantiles, its ties and its shares, and it is said that rows there are none."""
    path = write_rows(tmp_path / "rows.jsonl")
    built = tmp_path / "credit.baseline"
    arguments = ["--model", "credit", "--version", "7", "--out", str(built)]
    assert run_command(["baseline", "build", "--from", str(path), *arguments, "--json"]) == 0
    [target] = _targets(Job(configuration(), [built]))
    assert target.stream.describe(10)["kind"] == "bins"
    assert target.rate_is.startswith("assumed")
    rng = np.random.default_rng(2)
    drawn = {s.key.name: _drawn(s, target.baseline.profile.counts[f], 20_000, rng)
             for f, s in enumerate(target.baseline.schema.subjects)}  # fmt: skip
    rows = [json.loads(line)["features"] for line in path.read_text().splitlines()]
    for name in ("income", "age"):
        real = np.array([row[name] for row in rows], float)
        for q in (0.1, 0.5, 0.9):
            off = (np.quantile(drawn[name].number, q) - np.quantile(real, q)) / real.std()
            assert abs(off) < 0.05, (name, q)
    assert set(drawn["age"].number.tolist()) == {float(row["age"]) for row in rows}
    web = drawn["channel"].words.take(drawn["channel"].word).to_pylist().count("web") / 20_000
    assert web == pytest.approx(sum(row["channel"] == "web" for row in rows) / ROWS, abs=0.02)


def test_bad_cells_of_a_built_baseline_are_drawn_too(tmp_path: Path) -> None:
    """A third of the values missing in the baseline is a third missing in the stream."""
    [target] = _targets(Job(configuration(), [write_rows(tmp_path / "rows.jsonl")]))
    subject, counts = target.baseline.schema.subjects[0], target.baseline.profile.counts[0].copy()
    counts[MISSING] = counts.sum() // 2
    column = _drawn(subject, counts, 10_000, np.random.default_rng(0))
    missing = column.kind == Kind.MISSING
    assert missing.mean() == pytest.approx(1 / 3, abs=0.03)
    assert np.array_equal(missing, np.isnan(column.number))


def test_the_interval_of_a_count_is_the_exact_one() -> None:
    """Garwood's: at its ends the tails weigh a fortieth each."""
    for seen in (0, 1, 7, 60):
        low, high = poisson_interval(seen)

        def at_most(count: int, mean: float) -> float:
            return sum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1))

        assert at_most(seen, high) == pytest.approx(0.025)
        assert low == 0 if seen == 0 else 1 - at_most(seen - 1, low) == pytest.approx(0.025)


@pytest.fixture
def is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of drift, where only the form of the answer matters."""
    monkeypatch.setattr("stream_monitor.selftest.FEATURE_DRIFTS", FEATURE_DRIFTS[1:3])


def monitor_yaml(folder: Path, baseline: Path | None) -> Path:
    """A configuration file whose model has this baseline."""
    model = {"task": "binary", "positive_label": "deny"} | ({} if baseline is None else {"baseline": str(baseline)})
    path = folder / "monitor.yaml"
    path.write_text(json.dumps({"models": {"credit": model}}))
    return path


@pytest.mark.usefixtures("is_short")
def test_json_is_one_object_and_the_same_seed_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stdout nothing else; the baseline is the configured one."""
    path = monitor_yaml(tmp_path, write_rows(tmp_path / "rows.jsonl", 1_000))
    said = []
    for _ in range(2):
        assert run_command(["selftest", "--config", str(path), "--events", "1000", "--json"]) == 0
        out = capsys.readouterr().out
        assert out.count("\n") == 1
        said.append({key: value for key, value in json.loads(out).items() if key != "elapsed_seconds"})
    assert said[0] == said[1]
    assert [(m["model"], m["version"]) for m in said[0]["models"]] == [("credit", "7")]


@pytest.mark.usefixtures("is_short")
def test_people_are_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How the stream was made, what the budget allows and what was seen, and every drift."""
    path = monitor_yaml(tmp_path, write_rows(tmp_path / "rows.jsonl", 1_000))
    assert run_command(["selftest", "--config", str(path), "--events", "1000", "--rate", "10/s"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in ("500 rows are the baseline", "10 events/s (given)", "1 expected of 1 accepted", "Each row came 2 times",
                 "shift of 1 sd", "data drift"):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("content", "arguments", "exit_code", "words"),
    [
        (None, [], 2, "has a baseline"),
        (None, ["--baseline", "nowhere.jsonl"], 2, "there is no file nowhere.jsonl"),
        ("", ["--baseline", "rows.jsonl"], 3, "no row of rows.jsonl"),
        ('{"model": 7}\n', ["--baseline", "rows.jsonl"], 3, "no row of rows.jsonl"),
        ('{"features": {"a": 1}}\n' * 300, ["--baseline", "rows.jsonl"], 3, "each half needs 200"),
        ('{"features": {"a": 1}}\n' * 300, ["--baseline", "rows.jsonl", "--events", "10"], 2, "--events"),
        ('{"features": {"a": 1}}\n' * 300, ["--baseline", "rows.jsonl", "--rate", "fast"], 2, "--rate fast"),
    ],
)
def test_what_cannot_be_tried_has_its_exit_code(
    content: str | None, arguments: list[str], exit_code: int, words: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Usage 2, input 3, and a sentence that says why."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("rows.jsonl").write_text(content)
    config = monitor_yaml(tmp_path, None)
    assert run_command(["selftest", "--config", str(config), *arguments]) == exit_code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
