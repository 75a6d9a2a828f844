"""The README is held to the code: its commands, files, tables and events are taken out of it and tried."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import typer
import yaml
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from stream_monitor import config as configuration
from stream_monitor import errors, exposition
from stream_monitor.cli import app, run_command
from stream_monitor.config import Config
from stream_monitor.decode import Decoder
from stream_monitor.publish.catalogue import CATALOGUE
from stream_monitor.publish.cloudevents import News, event
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import create_app
from stream_monitor.records import NO_TIME, Binding, IncidentKind, PartitionId, RawBatch, Reason, Severity, Stream
from stream_monitor.replay import Job, replay

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    README,
    *(path.read_text(encoding="utf-8") for path in [*(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md"]),
]


def section(heading: str) -> str:
    """The text under a second-level heading."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(text: str, first: str) -> list[list[str]]:
    """The cells of the table whose first column has this title."""
    found = re.search(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, first
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in found[1].splitlines()]


def blocks(language: str, text: str = README) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    """Every command line of this program that is shown, without the program's name."""
    lines = "\n".join(blocks("sh", text)).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("stream-monitor ")]


def bare(cell: str) -> str:
    """A cell without the quotes of code."""
    return cell.strip("`")


# -- commands --------------------------------------------------------------------------------------


def parsed(arguments: list[str]) -> None:
    """Have the command line read arguments as it would, without running anything; raises on an unknown option."""
    command: Any = typer.main.get_command(app)
    context: Any = None
    while hasattr(command, "commands"):
        name, *arguments = arguments
        context = command.context_class(command, info_name=name, parent=context)
        command = command.commands[name]
    command.make_context(arguments[0] if arguments else "", arguments, parent=context)


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every command."""
    if not hasattr(command, "commands"):
        yield path
        return
    for name, inner in command.commands.items():
        yield from leaves(inner, (*path, name))


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_a_command_that_is_shown_is_understood(arguments: list[str]) -> None:
    """The command exists and takes these options."""
    parsed(arguments)


def test_an_option_that_does_not_exist_would_be_noticed() -> None:
    """The check above refuses what the program refuses."""
    with pytest.raises(Exception, match="--bogus"):
        parsed(["run", "--config", "monitor.yaml", "--bogus"])


def test_every_command_is_mentioned() -> None:
    """Nobody has to find a command by --help alone."""
    shown = {tuple(arguments[: len(path)]) for arguments in commands() for path in leaves(typer.main.get_command(app))}
    named = {
        path
        for path in leaves(typer.main.get_command(app))
        if path in shown or f"stream-monitor {' '.join(path)}`" in README
    }
    assert set(leaves(typer.main.get_command(app))) == named


def test_make_targets_exist() -> None:
    """Each `make x` that is shown is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {line.split()[1] for line in "\n".join(blocks("sh")).splitlines() if line.startswith("make ")}
    assert {"demo", "test"} <= shown <= targets


def test_report_says_that_it_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """As the README does."""
    assert run_command(["report"]) == errors.UsageError.exit_code
    assert "not in this version" in capsys.readouterr().err


# -- configuration ---------------------------------------------------------------------------------


def test_yaml_examples_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each configuration that is shown is accepted, once the files it names are there."""
    monkeypatch.chdir(tmp_path)
    for name in ("ca.pem", "credit-7.baseline", "token"):
        Path(name).write_text("x", encoding="utf-8")
    loaded = 0
    for number, text in enumerate(blocks("yaml")):
        if "scrape_configs" in yaml.safe_load(text):
            continue
        path = tmp_path / f"{number}.yaml"
        path.write_text(text, encoding="utf-8")
        environment = {"KAFKA_PASSWORD": "secret", "WEBHOOK_SECRET": "whsec_c2VjcmV0"}
        assert configuration.load(path, environment).models["credit"].task == "binary"
        loaded += 1
    assert loaded == 3


def test_mappings_that_are_shown_decode() -> None:
    """The mapping of the second example finds what it names in such a payload."""
    [topic] = [
        t
        for text in blocks("yaml")
        for t in yaml.safe_load(text).get("source", {}).get("inference", [])
        if "fields" in t
    ]
    payload = {
        "request": {"id": 7, "applicant": {"age": 41}, "market": "eu"},
        "response": {"decision": "deny", "scores": [0.9]},
        "timestamp": "2026-11-21T10:00:00Z",
    }
    events, rejects = Decoder().inference(batch([payload], Binding(Stream.INFERENCE, "t", fields=topic["fields"])))
    assert not rejects.reason
    assert events.label.to_pylist() == ["deny"]
    assert events.score.tolist() == [0.9]
    assert events.cells.names == ("age",)
    assert json.loads(events.segment[0].as_py()) == {"market": "eu"}


def test_scrape_example_asks_the_default_port() -> None:
    """The Prometheus snippet fits the default of publish.http and the job name of the rules."""
    [scrape] = [yaml.safe_load(text) for text in blocks("yaml") if "scrape_configs" in text]
    [job] = scrape["scrape_configs"]
    shipped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert job["job_name"] == shipped["scrape_configs"][0]["job_name"]
    assert job["static_configs"] == [{"targets": [f"localhost:{Config().publish.port}"]}]


def keys(part: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(path, field) of every key; items of a list are `key[]`, those of a mapping `key.<name>`."""
    for name, field in part.model_fields.items():
        path = prefix + name
        yield path, field
        inner = model_in(field.annotation)
        if inner is None or path == "source.ground_truth":
            continue  # its keys are those of source.inference
        kind = "".join(map(str, (field.annotation, *field.metadata)))
        many = "[]" if kind.startswith("tuple") else ".<name>" if kind.startswith("dict") else ""
        yield from keys(inner, f"{path}{many}.")


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The configuration part inside an annotation, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := model_in(inner)) is not None), None)


def is_part(field: FieldInfo) -> bool:
    """Whether a key is a mapping whose keys have rows of their own and which is there by default."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def test_configuration_table_has_every_key() -> None:
    """No key is missing, none is made up, and they stand in the order of the models."""
    documented = [bare(row[0]) for row in rows(section("Configuration"), "key")]
    assert documented == [path for path, field in keys(Config) if not is_part(field)]


def test_configuration_table_tells_the_defaults() -> None:
    """Each default, read as YAML and checked as the configuration would, is the default of its model."""
    fields = dict(keys(Config))
    for path, default, *_ in rows(section("Configuration"), "key"):
        field = fields[bare(path)]
        if default == "*needed*":
            assert field.is_required(), path
            continue
        read = yaml.safe_load(bare(default))
        annotated: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        adapter: TypeAdapter[Any] = TypeAdapter(annotated)
        assert adapter.validate_python(read) == field.get_default(call_default_factory=True), path


def test_choices_in_the_configuration_table_are_all() -> None:
    """Where a key takes one of some words, the table names them, no more and no fewer."""
    fields = dict(keys(Config))
    for path, _, values, *_ in rows(section("Configuration"), "key"):
        words = [word for word in choices(fields[bare(path)].annotation) if isinstance(word, str)]
        if words:
            assert re.findall(r"`([^`]+)`", values) == words, path


def choices(annotation: Any) -> list[Any]:
    """The words of a Literal anywhere in an annotation."""
    return [w for inner in get_args(annotation) for w in ([inner] if isinstance(inner, str) else choices(inner))]


# -- what is published -----------------------------------------------------------------------------


def test_metrics_table_is_the_catalogue() -> None:
    """Same families, kinds, labels and words, in the same order."""
    documented = [
        (bare(name), kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in rows(section("Metrics"), "metric")
    ]
    assert documented == [(m.full_name, m.kind, m.labels, m.help) for m in CATALOGUE]


def test_every_family_is_filled_by_somebody() -> None:
    """A family nobody gives series to would be a promise broken in silence."""
    source = Path(exposition.__file__).read_text(encoding="utf-8")
    silent = {m.name for m in CATALOGUE if f'"{m.name}"' not in source}
    assert silent == {"series", "series_dropped_total"}


def test_http_table_is_the_routes() -> None:
    """Every route and no other."""
    view: Any = None
    served = {
        (method, str(vars(route)["path"]))
        for route in create_app(view, Publisher(series=1000)).routes
        for method in getattr(route, "methods", ())
        if method != "HEAD"
    }
    assert {(method, bare(path)) for method, path, _ in rows(section("HTTP API"), "method")} == served


def test_exit_codes_are_those_of_the_errors() -> None:
    """Done, and the code of every error class."""
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.MonitorError)]
    documented = [int(code) for code, _ in rows(section("Exit codes"), "code")]
    assert documented == sorted({0, *(c.exit_code for c in classes)})


def test_reject_reasons_are_all_there() -> None:
    """The closed set, in its order."""
    documented = [bare(reason) for reason, _ in rows(section("What becomes of every record"), "reason")]
    assert documented == [str(reason) for reason in Reason]


def test_severities_and_kinds_exist() -> None:
    """Named severities are all of them; named kinds are kinds."""
    text = section("How verdicts and incidents come about")
    assert {bare(severity) for severity, _ in rows(text, "severity")} == set(Severity)
    kinds = re.search(r"Kinds that this version opens: (.*?)\. Times", text, re.DOTALL)
    assert kinds is not None
    assert set(re.findall(r"`(\w+)`", kinds[1])) <= set(IncidentKind)


# -- events and files ------------------------------------------------------------------------------


def batch(events: list[dict[str, Any]], binding: Binding) -> RawBatch:
    """Records of one topic."""
    n = len(events)
    values = pa.array([json.dumps(event).encode() for event in events], pa.binary())
    partition = PartitionId(binding.stream, binding.topic, 0)
    return RawBatch(binding, (partition,), np.zeros(n, np.int32), np.arange(n), values, np.full(n, NO_TIME, np.int64))


def test_events_that_are_shown_are_accepted() -> None:
    """The three JSON examples, in the order of the text: inference, ground truth, baseline row."""
    inference, truth, row = [json.loads(text) for text in blocks("json", section("Event formats"))]
    events, rejects = Decoder().inference(batch([inference], Binding(Stream.INFERENCE, "t")))
    assert (len(events), rejects.reason) == (1, ())
    labels, rejects = Decoder().ground_truth(batch([truth], Binding(Stream.GROUND_TRUTH, "t")))
    assert (labels.label.to_pylist(), rejects.reason) == (["deny"], ())
    taught, rejects = Decoder().baseline(batch([row], Binding(Stream.INFERENCE, "t")))
    assert (taught.truth_label.to_pylist(), rejects.reason) == (["deny"], ())


def test_the_event_of_an_incident_is_as_shown() -> None:
    """The same attributes with the same kinds of values; its data is shown in part."""
    [shown] = [json.loads(text) for text in blocks("json", section("Acting on incidents"))]
    whole = {**shown["data"], "closed_at": None, "opened_at": shown["time"], "subjects": []}
    told = json.loads(event(whole, News.OPENED, source=Config().publish.event_source, number=42, at=""))
    assert {**shown, "id": told["id"], "data": whole} == told
    assert len(shown["id"]) == len(told["id"])


def test_every_example_of_acting_is_listed() -> None:
    """And each that is listed is there."""
    files = {path.name for path in (ROOT / "deploy/actions").iterdir() if path.is_file()}
    listed = {bare(name) for name, _ in rows(section("Acting on incidents"), "file")}
    assert listed == files - {"receiver.py"}


def write_lines(path: Path, events: list[dict[str, Any]]) -> None:
    """One event a line."""
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def test_replay_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two commands of the replay section, on files of their names, leave the files of the table."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)

    def event(**more: Any) -> dict[str, Any]:
        score = float(rng.random())
        prediction = {"label": "deny" if score > 0.5 else "approve", "score": score}
        features = {"age": float(rng.normal(41, 12)), "channel": str(rng.choice(["web", "app"]))}
        return {"model": "credit", "version": "7", "features": features, "prediction": prediction, **more}

    start = 1_795_255_200
    write_lines(tmp_path / "baseline.jsonl", [event(label="deny") for _ in range(300)])
    write_lines(tmp_path / "inference.jsonl", [event(inference_id=i, timestamp=start + i) for i in range(300)])
    write_lines(tmp_path / "labels.jsonl",
                [{"inference_id": i, "label": "deny", "timestamp": start + i + 5} for i in range(250)])  # fmt: skip
    build, run = commands(section("Replay over files").partition("It leaves")[0])
    assert run_command(build) == 0, capsys.readouterr().err
    assert run_command(run) == 0, capsys.readouterr().err
    left = {path.name for path in (tmp_path / "results").iterdir()}
    assert left == {bare(name) for name, _ in rows(section("Replay over files"), "file")}
    summary = json.loads((tmp_path / "results/summary.json").read_text(encoding="utf-8"))
    assert (summary["inference"]["offered"], summary["inference"]["summarised"]) == (300, 300)
    assert (summary["ground_truth"]["matched"], summary["predictions"]["waiting"]) == (250, 50)
    for stream, fate, _ in rows(section("What becomes of every record"), "stream"):
        assert bare(fate) in summary[stream.replace(" ", "_")]


def test_fates_are_all_there(tmp_path: Path) -> None:
    """Every fate a summary counts has a row, and no other."""
    write_lines(tmp_path / "one.jsonl", [{"inference_id": 1, "features": {"a": 1}, "timestamp": 1_795_255_200}])
    summary = replay(Job(configuration.parse({}, {}), [tmp_path / "one.jsonl"], [], [], tmp_path / "out"))
    counted = {
        (stream, fate)
        for stream in ("inference", "ground_truth", "predictions")
        for fate in summary[stream]
        if fate != "offered"
    }
    documented = rows(section("What becomes of every record"), "stream")
    assert {(stream.replace(" ", "_"), bare(fate)) for stream, fate, _ in documented} == counted


# -- the pages themselves --------------------------------------------------------------------------


def test_links_lead_somewhere() -> None:
    """Every relative link is a file of the repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_no_machine(page: str) -> None:
    """No absolute path and no long line."""
    assert not re.search(r"(?<![\w.:/])/(?:home|root|work|tmp|usr|var|etc)/", page)
    prose = [line for line in re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL).splitlines() if line]
    assert all(len(line) <= 120 for line in prose if not line.startswith("|"))


def test_benchmarks_that_are_named_exist() -> None:
    """Each script of the sizing table is there and knows the options it is shown with."""
    for name, options in re.findall(r"`python (tests/benchmarks/\w+\.py)([^`]*)`", section("Sizing")):
        source = (ROOT / name).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r"--[a-z-]+", options)), name
