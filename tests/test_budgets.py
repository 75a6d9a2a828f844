"""The budget that is shown: its split, and the same figures in the command, the API and the metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from stream_monitor import budgets
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.baselines import read_baselines
from stream_monitor.budget_tables import budget_parts, short
from stream_monitor.cli import run_command
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import Service, snapshot
from stream_monitor.judge.baseline import Baseline
from stream_monitor.judge.power import CHANGES
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Server, create_app
from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store
from stream_monitor.views import LiveView

START = 1_790_000_010
ROWS = 2_000
EVENTS = 600  # more than the 256 of the first reading of the rate
RATE = 50.0
CHANNELS = ("web", "app", "shop")


def features(number: int) -> dict[str, Any]:
    """Two numbers, a category, and one that is nearly never there."""
    draw = np.random.default_rng(number)
    rare = {"rare": 1.0} if number < 50 else {}
    return {"age": float(draw.normal(41, 12)), "channel": CHANNELS[int(draw.choice(3, p=[0.5, 0.3, 0.2]))], **rare}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built baseline."""
    folder = tmp_path_factory.mktemp("baseline")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"features": features(i)}) + "\n" for i in range(ROWS)), encoding="utf-8")
    assert run_command(["baseline", "build", "--from", str(rows), "--model", "m", "--version", "7",
                        "--out", str(folder / "m.baseline"), "--json"]) == 0  # fmt: skip
    return folder / "m.baseline"


@pytest.fixture(scope="module")
def baseline(file: Path) -> Baseline:
    """The same, read."""
    [found] = read_baselines([file], parse({}, {}))
    return found


def configuration(**drift: Any) -> Config:
    """Segments and labels, so that the budget is split."""
    return parse(
        {
            "pane": "1s",
            "allowed_lateness": "1s",
            "windows": ["30s"],
            "drift": drift,
            "models": {"m": {"segments": ["market"]}},
            "source": {"inference": ["t"], "ground_truth": ["labels"]},
        },
        {},
    )


@pytest.fixture
def engine(tmp_path: Path, baseline: Baseline) -> Iterator[Engine]:
    """After some seconds of steady traffic."""
    config = configuration()
    source = MemorySource([Binding(Stream.INFERENCE, "t", "m", "7")], partitions=1)
    body = [
        {"inference_id": i, "timestamp": START + i / RATE, "features": features(i), "segment": {"market": "eu"}}
        for i in range(EVENTS)
    ]
    source.extend(PartitionId(Stream.INFERENCE, "t", 0), [json.dumps(event).encode() for event in body])
    source.start({})
    store = Store(tmp_path / "state.duckdb")
    engine, decoder = Engine(config, store, baselines=[baseline]), make_decoder(config)
    for batch in decode_poll(decoder, source.poll(5000, 0.0)):
        engine.offer(batch)
    engine.step(0.0, seal_now=True)
    engine.step(1.0, seal_now=True)
    engine.checkpoint()
    yield engine
    store.close()


def subject(body: Any, name: str) -> Any:
    """One subject of a budget's JSON."""
    [found] = [s for s in body["subjects"] if s["name"] == name]
    return found


def of_file(baseline: Baseline, config: Config, rate: float = 10.0) -> Any:
    """The JSON of a baseline that no service has yet."""
    return budgets.shown(budgets.of_baseline(baseline, config, events_per_second=rate))


def test_the_split(baseline: Baseline) -> None:
    """A fifth for labels, half of the rest for segments; days become events at the rate."""
    body = of_file(baseline, configuration(), 20.0)
    assert body["shares"] == {"data": 0.4, "labels": 0.2, "segments": 0.4}
    assert (body["events_between_false_incidents"], body["rate_assumed"]) == (30 * 86_400 * 20, True)
    whole = of_file(baseline, parse({}, {}))
    assert whole["shares"] == {"data": 1.0, "labels": 0.0, "segments": 0.0}
    assert whole["subjects_judged"] == 2
    alone = {s["name"]: s["events_between_false_alarms"] for s in whole["subjects"]}
    assert alone["age"] == pytest.approx(2 * whole["events_between_false_incidents"], rel=0.01)
    assert alone["rare"] is None


def test_a_budget_in_events_knows_no_rate(baseline: Baseline) -> None:
    """The limits are the same whatever the traffic."""
    config = configuration(false_alarms="2 per 100000 events")
    slow, fast = (of_file(baseline, config, rate) for rate in (0.1, 1_000.0))
    assert slow["events_between_false_incidents"] == 50_000
    assert slow["subjects"] == fast["subjects"]


def test_twice_the_budget_is_what_the_double_would_be(baseline: Baseline) -> None:
    """What is told of two a month is what two a month are, and it is no slower."""
    one, two = (of_file(baseline, configuration(false_alarms=f"{n} per 30d")) for n in (1, 2))
    for s in one["subjects"]:
        assert s["events_to_find_at_twice_the_budget"] == subject(two, s["name"])["events_to_find"]
        known = [(n, s["events_to_find_at_twice_the_budget"][c]) for c, n in s["events_to_find"].items()]
        assert all(now is None or twice <= now for now, twice in known)


def test_each_subject_tells_what_can_happen_to_it(baseline: Baseline) -> None:
    """Shifts of numbers, shares of categories, nothing of what is not judged; smaller changes are marked."""
    body = of_file(baseline, configuration(minimum_effect=0.3))
    names = [c.name for c in CHANGES]
    age, channel, rare = (subject(body, name) for name in ("age", "channel", "rare"))
    assert list(age["events_to_find"]) == [n for n in names if not n.startswith("largest_share")]
    assert list(channel["events_to_find"]) == [n for n in names if not n.startswith(("shift", "spread"))]
    assert (rare["insufficient"], rare["limit"], rare["events_to_find"]) == (True, None, {})
    assert age["below_minimum_effect"] == ["shift_0.1", "shift_0.25"]
    assert channel["below_minimum_effect"] == ["largest_share_minus_0.1", "largest_share_plus_0.1"]
    assert age["limit"]["8192"] > age["limit"]["4"] > 3
    json.dumps(body, allow_nan=False)


def test_a_service_tells_what_the_file_did(engine: Engine, baseline: Baseline) -> None:
    """At the rate it has seen, the limits of the line at work are those foretold."""
    [version] = engine.versions.values()
    spending = budgets.of_version(version)
    assert spending is not None
    body = budgets.shown(spending)
    assert not body["rate_assumed"]
    assert body["events_per_second"] == pytest.approx(RATE, rel=0.02)
    assert body == {**of_file(baseline, engine.config, body["events_per_second"]), "rate_assumed": False}


def test_the_api(engine: Engine) -> None:
    """One object a version; filters and pages as elsewhere; described in the OpenAPI document."""
    monitor: Any = SimpleNamespace(engine=engine)
    view = LiveView(monitor)
    view.refresh()
    web = TestClient(create_app(view, Publisher(series=1000)), base_url="http://127.0.0.1:9464")
    [body] = web.get("/api/v1/budgets?model=m&version=7").json()
    assert (body["model"], body["version"], body["false_alarms"]) == ("m", "7", "1 per 30d")
    assert subject(body, "age")["events_to_find"]["shift_1"] < 100
    assert web.get("/api/v1/budgets?version=8").json() == web.get("/api/v1/budgets?offset=1").json() == []
    assert "events_to_find" in web.get("/api/openapi.json").json()["paths"]["/api/v1/budgets"]["get"]["description"]
    view.close()


def test_the_metrics(engine: Engine) -> None:
    """Events between false incidents, and the worst feature's delay; worked out once while the limits stay."""
    samples = snapshot(engine, Service(ready=True)).samples
    [(labels, between)] = samples["false_alarm_budget_events"]
    [version] = engine.versions.values()
    spending = budgets.of_version(version)
    assert spending is not None
    assert (labels, between) == (("m", "7"), spending.events_between)
    told = dict(samples["detectable_shift_events"])
    age = subject(budgets.shown(spending), "age")["events_to_find"]
    assert {k: np.ceil(n) for k, n in told.items()} == {
        ("m", "7", "0.5"): age["shift_0.5"],
        ("m", "7", "1"): age["shift_1"],
    }
    assert budgets.worst_shifts(version.whole()) is budgets.worst_shifts(version.whole())


def test_show_of_a_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], baseline: Baseline) -> None:
    """As JSON the same as elsewhere, as text within eighty characters; --config and --rate count."""
    capsys.readouterr()
    config = tmp_path / "monitor.yaml"
    config.write_text(json.dumps({"drift": {"false_alarms": "3 per 7d"}}), encoding="utf-8")
    assert run_command(["baseline", "show", str(file), "--config", str(config), "--rate", "50/s", "--json"]) == 0
    [shown] = json.loads(capsys.readouterr().out)["baselines"]
    assert [s["name"] for s in shown["subjects"]] == ["age", "channel", "rare"]
    loaded = parse({"drift": {"false_alarms": "3 per 7d"}}, {})
    assert shown["budget"] == of_file(baseline, loaded, 50.0)
    assert run_command(["baseline", "show", str(file)]) == 0
    shown_text = capsys.readouterr().out
    assert max(map(len, shown_text.splitlines())) <= 80
    text = " ".join(shown_text.split())
    assert "one false incident in 25,920,000 events at 10 events/s (assumed)" in text
    assert "insufficient" in text
    assert "If twice as many" in text


def test_show_of_a_service(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """The baselines in use, each with its budget; a version that is not there is none."""
    monitor: Any = SimpleNamespace(engine=engine)
    view = LiveView(monitor)
    view.refresh()
    server = Server(create_app(view, Publisher(series=1000)), host="127.0.0.1", port=0)
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    try:
        assert run_command(["baseline", "show", "--url", url, "--model", "m", "--json"]) == 0
        [shown] = json.loads(capsys.readouterr().out)["baselines"]
        assert run_command(["baseline", "show", "--url", url, "--version", "8"]) == 0
        assert capsys.readouterr().out == "none\n"
    finally:
        server.stop()
        view.close()
    assert (shown["version"], shown["budget"]["subjects_judged"]) == ("7", 2)


@pytest.mark.parametrize("arguments", [[], ["x.baseline", "--url", "http://localhost:1"]])
def test_show_wants_one_of_both(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A file or a service."""
    assert run_command(["baseline", "show", *arguments]) == 2
    assert "say which" in capsys.readouterr().err


def test_parts_tell_the_split_and_what_nobody_is_told(baseline: Baseline) -> None:
    """The sentences around the tables."""
    sentences = [p for p in budget_parts(of_file(baseline, configuration(minimum_effect=0.3))) if isinstance(p, str)]
    assert "data 40%, labels 20%, segments 40%; that of data over 2 subjects" in sentences[1]
    assert "minimum_effect 0.3" in sentences[-1]


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (999, "999"), (1_234, "1.23k"), (25_920_000, "25.9M")])
def test_short_counts(count: float, text: str) -> None:
    """Three figures and a unit."""
    assert short(count) == text
