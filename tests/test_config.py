"""Configuration: the promised defaults, what is refused and in which words, and secrets that stay secret."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stream_monitor.config import (
    OBJECTIVE_METRICS,
    VALUE_METRICS,
    Config,
    FalseAlarms,
    duration_seconds,
    duration_text,
    load,
    parse,
    size_bytes,
)
from stream_monitor.errors import UsageError
from stream_monitor.judge.objective import Objective
from stream_monitor.judge.performance import metrics
from stream_monitor.records import Binding, Stream
from stream_monitor.summarize.outcome import OutcomeProfile, Task

SASL = {"protocol": "SASL_SSL", "mechanism": "SCRAM-SHA-512", "username": "monitor"}


def problems(body: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """What is wrong with a configuration."""
    with pytest.raises(UsageError) as raised:
        parse(body, environment or {})
    return raised.value.problems


def written(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "monitor.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_promised_ones() -> None:
    """An empty file is a whole configuration."""
    config = parse({}, {})
    assert config.state == Path("state/monitor.duckdb")
    source = config.source
    assert (source.kind, source.client, source.bootstrap_servers) == ("kafka", "kafka-python", "localhost:9092")
    assert (source.start, source.on_data_loss, source.dead_letter_topic) == ("latest", "fail", None)
    assert (config.pane, config.allowed_lateness, config.idle_timeout, config.duplicate_horizon) == (10, 10, 30, 600)
    assert config.windows == (900, 3600, 86_400, 604_800)
    assert config.label_horizon == 45 * 86_400
    kept = config.retention
    assert (kept.panes, kept.hours, kept.days) == (7200, 60 * 86_400, 730 * 86_400)
    drift = config.drift
    assert (drift.budget, drift.minimum_effect) == (FalseAlarms(1, 30 * 86_400, None), 0.1)
    assert (drift.seasonality, drift.learn_from) == ("none", 10_000)
    limits = config.limits
    assert (limits.models, limits.features, limits.segments, limits.categories) == (200, 2000, 50, 200)
    assert (limits.series, limits.record_bytes) == (20_000, 10_000_000)
    publish = config.publish
    assert (publish.host, publish.port, publish.token_file, publish.drift_topic) == ("127.0.0.1", 9464, None, None)
    assert publish.webhooks == ()


def test_every_key_can_be_said(tmp_path: Path) -> None:
    """The whole of it, as a person writes it."""
    baseline = tmp_path / "baseline.parquet"
    baseline.write_bytes(b"")
    text = f"""
state: {tmp_path}/m.duckdb
source:
  kind: kafka
  bootstrap_servers: a:9092,b:9092
  client: confluent
  start: 2026-11-21T10:00:00Z
  on_data_loss: earliest
  security: {{protocol: SASL_SSL, mechanism: PLAIN, username: u, password: "${{KAFKA_PASSWORD}}"}}
  inference: [plain, {{topic: mapped, model: credit, version: 7, fields: {{inference_id: $.id}}, timestamp_unit: ms}}]
  ground_truth: [{{topic: truth}}]
  dead_letter_topic: letters
pane: 15s
windows: [15m, 1h]
drift: {{false_alarms: 2 per 100000 events, minimum_effect: 0, seasonality: weekly, learn_from: 500}}
models:
  credit:
    {{task: binary, positive_label: deny, team: risk, baseline: {baseline}, segments: [market],
     objectives: {{accuracy: ">= 0.85"}}, outcomes: {{click: {{positive_label: "yes", horizon: 1h}}, stay: {{task: value}}}},
     features: {{zip: {{kind: categorical, importance: 2}}, 7: {{ignore: true}}}}}}
limits: {{record_bytes: 500kB, series: 1000}}
publish: {{http: "[::1]:0", webhooks: [{{url: "https://example.org/x", secret: s}}]}}
"""
    config = load(written(tmp_path, text), {"KAFKA_PASSWORD": "pa: ss"})
    source = config.source
    assert source.start == datetime(2026, 11, 21, 10, tzinfo=UTC)
    assert source.security is not None
    assert source.security.password is not None
    assert source.security.password.get_secret_value() == "pa: ss"
    assert [t.binding(Stream.INFERENCE) for t in source.inference] == [
        Binding(Stream.INFERENCE, "plain"),
        Binding(Stream.INFERENCE, "mapped", "credit", "7", {"inference_id": "$.id"}, "ms"),
    ]
    assert (config.windows, config.drift.budget) == ((900, 3600), FalseAlarms(2, None, 100_000))
    credit = config.model("credit")
    assert (credit.features["zip"].importance, credit.features["7"].ignore) == (2.0, True)
    assert (credit.outcomes["click"].horizon, credit.outcomes["stay"].task) == (3600, "value")
    assert (config.limits.record_bytes, config.publish.host, config.publish.port) == (500_000, "::1", 0)
    assert config.model("never named").features == {}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800), ("45 d", 3_888_000), ("0s", 0)]
)
def test_durations(text: str, seconds: int) -> None:
    """A number and one letter."""
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "m", "1.5h", "-1s", "1w", "1h30m"])
def test_what_is_no_duration(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="15m"):
        duration_seconds(text)


@given(st.integers(0, 10**9))
def test_duration_text_is_read_back(seconds: int) -> None:
    """Whatever is written is read as the same."""
    assert duration_seconds(duration_text(seconds)) == seconds


def test_window_labels_are_short() -> None:
    """The labels of windows in metrics and tables."""
    assert [duration_text(s) for s in (900, 3600, 86_400, 604_800, 90)] == ["15m", "1h", "1d", "7d", "90s"]


def test_sizes_are_decimal() -> None:
    """Powers of a thousand; binary units and bare numbers are refused."""
    assert [size_bytes(t) for t in ("7B", "500kB", "10MB", "1 GB")] == [7, 500_000, 10_000_000, 10**9]
    with pytest.raises(ValueError, match="10MB"):
        size_bytes("10MiB")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"widnows": []}, "widnows: no such key; did you mean windows?"),
        ({"drift": {"minimum_efect": 1}}, "drift.minimum_efect: no such key; did you mean minimum_effect?"),
        (
            {"models": {"m": {"features": {"f": {"ignored": True}}}}},
            "models.m.features.f.ignored: no such key; did you mean ignore?",
        ),
        ({"source": {"inference": [{"topic": "a", "modle": "m"}]}},
         "source.inference[0].modle: no such key; did you mean model?"),
        ({"publish": {"webhooks": [{"url": "http://a", "secrets": "s"}]}},
         "publish.webhooks[0].secrets: no such key; did you mean secret?"),
        ({"retention": {"xyz": 1}}, "retention.xyz: no such key; known are panes, hours, days"),
        ({"pane": "soon"}, "pane: write a duration like 90s, 15m, 1h or 7d"),
        ({"pane": "16m"}, "pane: Input should be less than or equal to 900"),
        ({"pane": "0s"}, "pane: Input should be greater than or equal to 1"),
        ({"pane": True}, "pane: this must be a whole number"),
        ({"pane": "7s"}, "windows: no multiple of pane (7s): 15m, 1h, 1d"),
        ({"windows": []}, "windows: name at least one, each once"),
        ({"windows": ["1h", "60m"]}, "windows: name at least one, each once"),
        ({"drift": {"false_alarms": "never"}},
         "drift.false_alarms: write it like '1 per 30d' or '1 per 100000 events'"),
        ({"drift": {"false_alarms": "0 per 30d"}},
         "drift.false_alarms: write it like '1 per 30d' or '1 per 100000 events'"),
        ({"drift": {"minimum_effect": -1}}, "drift.minimum_effect: Input should be greater than or equal to 0"),
        ({"limits": {"record_bytes": "10 apples"}}, "limits.record_bytes: write a size like 500kB, 10MB or 1GB"),
        ({"limits": 5}, "limits: this must be a mapping of keys"),
        ({"source": {"start": "soon"}}, "source.start: write latest, earliest or a timestamp like 2026-11-21T10:00:00Z"),
        ({"source": {"inference": []}}, "source: inference needs at least one topic"),
        ({"source": {"inference": "a"}}, "source.inference: this must be a list"),
        ({"source": {"inference": ["a"], "ground_truth": ["a"]}}, "source: topics named twice: a"),
        ({"source": {"inference": [{"model": "m"}]}}, "source.inference[0].topic: this key is needed"),
        ({"source": {"security": SASL}}, "source.security: SASL_SSL needs mechanism, username and password"),
        ({"models": {"m": {"positive_label": False}}}, "models.m.positive_label: this must be text: put it in quotes"),
        ({"models": {"m": {"objectives": {"accuracy": "good"}}}},
         "models.m.objectives.accuracy: write an objective like '>= 0.85'"),
        ({"models": {"m": {"objectives": {"accuracy": ">= 1.5"}}}},
         "models.m: objectives: '>= 1.5' asks nothing of accuracy, which is at least 0 and is at most 1"),
        ({"models": {"m": {"objectives": {"mae": ">= -3"}}}},
         "models.m: objectives: '>= -3' asks nothing of mae, which is at least 0"),
        ({"models": {"m": {"objectives": {"bias": "<= 1e999"}}}},
         "models.m: objectives: '<= 1e999' asks nothing of bias, which is a number"),
        ({"models": {"m": {"objectives": {"accuracy": ">= .e3"}}}},
         "models.m.objectives.accuracy: write an objective like '>= 0.85'"),
        ({"models": {"m": {"objectives": {"acuracy": ">= 0.8"}}}},
         "models.m.objectives.acuracy: no such metric; did you mean accuracy?"),
        ({"models": {"m": {"objectives": {"accuracy": 0.8}}}},
         "models.m.objectives.accuracy: this must be text: put it in quotes"),
        ({"models": {"m": {"task": "regression", "objectives": {"mae": "<= 4.2", "recall[a]": ">= 0.8"}}}},
         "models.m: objectives: recall[a]: no metric of task regression"),
        ({"models": {"m": {"baseline": "./not-there"}}}, "models.m.baseline: there is no file not-there"),
        ({"publish": {"token_file": "./not-there"}}, "publish.token_file: there is no file not-there"),
        ({"publish": {"http": "localhost"}}, "publish.http: write an address like 127.0.0.1:9464"),
        ({"publish": {"http": "localhost:99999"}}, "publish.http: write an address like 127.0.0.1:9464"),
        ({"publish": {"webhooks": [{"url": "file:///etc"}]}},
         "publish.webhooks[0].url: write an address that begins with http:// or https://"),
        *[({"publish": {"webhooks": [{"url": url}]}}, f"publish.webhooks[0].url: {words}") for url, words in (
            ("http://a:port/", "this address names no host or no port that can be"),
            ("http://a:99999/", "this address names no host or no port that can be"),
            ("https://:80/", "this address names no host or no port that can be"),
            ("https://a..b/", "this address names no host or no port that can be"),
            (f"https://{'a' * 64}.org/", "this address names no host or no port that can be"),
            ("http://a/ü", "write an address that begins with http:// or https://"),
            ("http://a/\r\nHost: b", "write an address that begins with http:// or https://"),
            ("https://me:hunter2@a/", "an address with a user name or password in it would be printed: "
                                      "sign with a secret instead"),
        )],
        ({"publish": {"webhooks": [{"url": "http://a"}, {"url": "http://a"}]}},
         "publish: webhooks: an address stands there twice"),
        ({"publish": {"webhooks": [{"url": "http://a", "secret": "whsec_?"}]}},
         "publish.webhooks[0].secret: what follows whsec_ must be base64"),
        ({"publish": {"webhooks": [{"url": "http://a", "secret": ""}]}},
         "publish.webhooks[0].secret: this secret is empty"),
        ({"publish": {"webhooks": [{"url": "http://a", "severities": ["bad"]}]}},
         "publish.webhooks[0].severities[0]: Input should be 'critical', 'warning' or 'info'"),
        ({"publish": {"webhooks": [{"url": "http://a", "ca_file": "./not-there"}]}},
         "publish.webhooks[0].ca_file: there is no file not-there"),
        ({"publish": {"event_source": "my monitor"}},
         "publish.event_source: String should match pattern '^[!-~]+$'"),
        ({"state": "${HOME_OF_STATE}"}, "state: the environment has no HOME_OF_STATE"),
        ({"publish": {"http": "${ADDRESS}"}}, "publish.http: the environment has no ADDRESS"),
    ],
)  # fmt: skip
def test_each_problem_is_said_with_its_path(body: Mapping[str, Any], problem: str) -> None:
    """One line: where, what is wrong, and what would be right."""
    assert problems(body) == (problem,)


def test_every_problem_is_said_at_once() -> None:
    """Also those between keys that are each right, beside keys that are wrong."""
    body = {
        "pane": "7s",
        "drift": {"learn_from": 1},
        "source": {"client": "other", "inference": ["a", "a"]},
        "publish": {"http": "${NOWHERE}"},
        "sorce": {},
    }
    paths = [line.partition(":")[0] for line in problems(body)]
    assert sorted(paths) == ["drift.learn_from", "publish.http", "sorce", "source", "source.client", "windows"]


def test_a_rule_is_not_asked_about_a_default() -> None:
    """With a wrong pane, windows that do not fit the default are no second problem."""
    assert len(problems({"pane": "soon", "windows": ["7s"]})) == 1


def test_missing_files_are_named_beside_wrong_keys() -> None:
    """Whoever corrects the keys should not meet the next problem only then."""
    found = problems({"models": {"m": {"baseline": "./not-there"}}, "pane": "soon"})
    assert [line.partition(":")[0] for line in found] == ["pane", "models.m.baseline"]


def test_secrets_come_from_files_and_are_never_shown(tmp_path: Path) -> None:
    """Neither in the repr nor in what is wrong with a configuration."""
    (tmp_path / "password").write_text("hunter2\n", encoding="utf-8")
    config = parse({"source": {"security": SASL | {"password_file": str(tmp_path / "password")}}}, {})
    assert config.source.security is not None
    assert config.source.security.password is not None
    assert config.source.security.password.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(config)
    body = {"source": {"security": SASL | {"password": "hunter2", "mechanism": "NONE"}}}
    assert "hunter2" not in " ".join(problems(body))
    [problem] = problems({"source": {"security": SASL | {"password_file": str(tmp_path / "none")}}})
    assert problem.startswith("source.security.password_file: ")


def test_secrets_of_webhooks_come_from_files_too(tmp_path: Path) -> None:
    """They are never shown, and a file that holds none is a problem with its path."""
    (tmp_path / "secret").write_text("whsec_aHVudGVyMg==\n", encoding="utf-8")
    hooks = [
        {"url": "https://a/hunter2", "secret_file": str(tmp_path / "secret"), "severities": ["critical"]},
        {"url": "https://b", "secret": "${SECRET}", "kinds": ["data_drift", "data_loss"], "models": [7]},
    ]
    config = parse({"publish": {"webhooks": hooks}}, {"SECRET": "hunter2"})
    assert [hook.key for hook in config.publish.webhooks] == [b"hunter2", b"hunter2"]
    assert "hunter2" not in repr(config)
    assert "aHVudGVyMg" not in repr(config)
    first, second = config.publish.webhooks
    assert first.wants(model="any", kind="volume", severity="critical")
    assert not first.wants(model="any", kind="volume", severity="warning")
    assert second.wants(model="7", kind="data_loss", severity="info")
    assert not second.wants(model="8", kind="data_loss", severity="info")
    assert not second.wants(model="7", kind="volume", severity="info")
    for name, content in (("empty", b""), ("bad", b"whsec_hunter2!"), ("binary", b"hunter2\xff"), ("none", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        [problem] = problems({"publish": {"webhooks": [{"url": "https://a", "secret_file": str(tmp_path / name)}]}})
        assert problem.startswith("publish.webhooks[0].secret_file: ")
        assert "hunter2" not in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pane: [", "line 1: not YAML"),
        ("- a\n", "must hold a mapping"),
        ("pane: 10s\npane: 20s\n", "line 2: not YAML: the key pane stands there twice"),
        ("drift: {learn_from: 300, learn_from: 400}", "learn_from stands there twice"),
        ("a: !!python/object:os.system {}", "line 1: not YAML"),
    ],
)
def test_what_is_no_configuration_file(tmp_path: Path, text: str, words: str) -> None:
    """One sentence with the line."""
    with pytest.raises(UsageError, match=words):
        load(written(tmp_path, text), {})


def test_a_broken_line_is_not_quoted(tmp_path: Path) -> None:
    """It may be the one with the password."""
    with pytest.raises(UsageError) as raised:
        load(written(tmp_path, 'password: "hunter2\n'), {})
    assert "hunter2" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    """Not there, a folder, or not text."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none", tmp_path, tmp_path / "binary"):
        with pytest.raises(UsageError, match="cannot be read"):
            load(path, {})


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """Comments alone are nothing."""
    assert load(written(tmp_path, "# nothing yet\n"), {}) == Config()


def test_configuration_is_frozen() -> None:
    """Nobody changes it on the way."""
    with pytest.raises(ValidationError, match="frozen"):
        parse({}, {}).pane = 5


@pytest.mark.parametrize("start", ["2026-11-21T11:00:00+01:00", "2026-11-21 10:00:00", datetime(2026, 11, 21, 10)])
def test_start_is_a_time_in_utc(start: object) -> None:
    """Without an offset UTC is meant."""
    assert parse({"source": {"start": start}}, {}).source.start == datetime(2026, 11, 21, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"task": "binary"}, "models.m: task binary needs positive_label"),
        ({"outcomes": {"click": {"task": "binary"}}}, "models.m.outcomes.click: task binary needs positive_label"),
        ({"outcomes": {"stay": {"task": "value", "positive_label": "yes"}}},
         "models.m.outcomes.stay: task value has no positive_label"),
        ({"outcomes": {"label": {"task": "value"}}}, "models.m: the task and positive_label of the outcome label"),
        ({"outcomes": {"click": {"horizn": "1h"}}}, "models.m.outcomes.click.horizn: no such key; did you mean horizon?"),
        ({"outcomes": {"click": {"horizon": "90d"}}}, "models.m.outcomes.click.horizon: longer than label_horizon (45d)"),
        ({"outcomes": {f"o{n}": {} for n in range(21)}}, "models.m.outcomes: "),
    ],
)  # fmt: skip
def test_what_an_outcome_cannot_be(model: dict[str, Any], problem: str) -> None:
    """One sentence each, with the path: a binary task without its positive label would call every answer right."""
    found = problems({"models": {"m": model}})
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_the_label_may_have_a_horizon_of_its_own() -> None:
    """Shorter than that of the others, for one model."""
    config = parse({"label_horizon": "30d", "models": {"m": {"outcomes": {"label": {"horizon": "1d"}}}}}, {})
    assert config.model("m").outcomes["label"].horizon == 86_400


def test_every_wrong_objective_is_told_at_once() -> None:
    """Names and bounds of several models, each with its path."""
    body = {
        "models": {"a": {"objectives": {"acuracy": ">= 0.8", "recall": "high"}}, "b": {"objectives": {"mea": "<= 4"}}}
    }
    assert [problem.partition(":")[0] for problem in problems(body)] == [
        "models.a.objectives.acuracy", "models.a.objectives.recall", "models.b.objectives.mea"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "text", "limit"),
    [
        ("accuracy", ">= .5", 0.5),
        ("brier", "<= 1e-3", 0.001),
        ("bias", "> -2.5E+1", -25.0),
        ("r2", ">= -0.5", -0.5),
        ("recall[deny]", ">=1.", 1.0),
        ("mae", "< 12", 12.0),
    ],
)
def test_objectives_are_read_as_people_write_numbers(metric: str, text: str, limit: float) -> None:
    """With or without a digit before the point, and with an exponent."""
    [(name, written)] = parse({"models": {"m": {"objectives": {metric: text}}}}, {}).model("m").objectives.items()
    assert Objective.parse(name, written).limit == limit


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.VALUE])
def test_objectives_may_be_of_every_metric_there_is(task: Task) -> None:
    """Those of single classes but for, which have no names before there are classes."""
    known = metrics(OutcomeProfile(task, None))
    assert set(OBJECTIVE_METRICS[task]) == set(known)


def test_numbers_of_their_own_have_metrics_by_name() -> None:
    """A question may be of them, too."""
    assert set(VALUE_METRICS) == set(metrics(OutcomeProfile(Task.VALUE, None)))
