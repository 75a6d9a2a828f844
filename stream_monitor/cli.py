"""The command line. Exit codes: 0 done, 2 usage or configuration, 3 input refused, 4 a peer, 5 the state file, 70 a bug.

Each command imports what it needs when it runs: the engine alone takes seconds, and `--help` needs none of it.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from stream_monitor import __doc__ as about
from stream_monitor.client import ask_service
from stream_monitor.ending import Ending
from stream_monitor.errors import InputError, MonitorError, UsageError
from stream_monitor.publish.log import configure

if TYPE_CHECKING:
    from stream_monitor.config import Config
    from stream_monitor.judge.baseline import Baseline

app = typer.Typer(
    help=about, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
baseline_app = typer.Typer(help="Build, look at and promote baselines.", no_args_is_help=True)
app.add_typer(baseline_app, name="baseline")

JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON object on stdout and nothing else.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="The configuration file (YAML).")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run_command(arguments))


def run_command(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a command; every error becomes a sentence on stderr."""
    err = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        given = sys.argv[1:] if arguments is None else arguments
        result = typer.main.get_command(app).main(args=_spread(given), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except MonitorError as error:
        err.print(f"stream-monitor: {error}", markup=False)
        for problem in error.problems if isinstance(error, UsageError) else ():
            err.print(f"  {problem}", markup=False)
        # A client's thread may outlive us with the error in hand, and with it all that our frames hold: DuckDB's
        # connections would still be there when the interpreter is not, and it says so on stderr.
        traceback.clear_frames(error.__traceback__)
        return error.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        return 130
    except typer.Exit as leave:
        return int(leave.exit_code)
    except Exception as error:
        show = getattr(error, "show", None)
        if show is not None and hasattr(error, "exit_code"):
            show()
            return int(error.exit_code)
        traceback.print_exc()
        err.print("stream-monitor: this is a bug in the program; the traceback above says where.", markup=False)
        return 70


LISTS = ("--inference", "--ground-truth", "--baseline", "--from")
"""Options that take several files: `--inference a.jsonl b.jsonl` is `--inference a.jsonl --inference b.jsonl`."""


def _spread(arguments: Sequence[str]) -> list[str]:
    """Repeat an option that takes files before each file after the first."""
    out: list[str] = []
    option, files = "", 0
    for argument in arguments:
        if argument.startswith("-"):
            option, files = argument, 0
        elif option in LISTS:
            files += 1
            if files > 1:
                out.append(option)
        out.append(argument)
    return out


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")],
    log_json: Annotated[bool, typer.Option("--log-json", help="Logs as JSON lines.")] = False,
) -> None:
    """Attach to the event bus and watch until told to stop."""
    ending = Ending()
    ending.listen()
    configure(style="json" if log_json else "text")
    loaded = _configuration(config)
    from stream_monitor.service import serve

    serve(loaded, ending)


@app.command()
def demo(
    port: Annotated[int, typer.Option(help="Where the page and /metrics are served.")] = 9464,
    for_: Annotated[str | None, typer.Option("--for", help="Stop after this time, e.g. 60s.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open the page.")] = False,
) -> None:
    """Everything embedded: a seeded story of two models, no broker, no Docker."""
    from stream_monitor.demo import run_demo

    configure(level=logging.WARNING)
    run_demo(port=port, duration=for_, browser=not no_browser)


@app.command("replay")
def replay_command(
    inference: Annotated[list[Path], typer.Option("--inference", help="Files of inference events (repeatable).")],
    out: Annotated[Path, typer.Option("--out", help="The folder for the results.")],
    ground_truth: Annotated[list[Path] | None, typer.Option("--ground-truth", help="Files of labels.")] = None,
    baseline: Annotated[list[Path] | None, typer.Option("--baseline", help="Rows, or a built baseline.")] = None,
    config: ConfigOption = None,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Events a second where they carry no time, e.g. 1/s.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """The service's own engine over files, as fast as the machine goes."""
    from stream_monitor.publish.events import Terminal
    from stream_monitor.replay import Job, replay

    configure(level=logging.WARNING)
    job = Job(_configuration(config), inference, ground_truth or [], baseline or [], out, _rate(rate))
    err = Console(stderr=True, soft_wrap=True, highlight=False)
    if job.config.publish.drift_topic or job.config.publish.webhooks:
        err.print("a replay tells nobody: publish.drift_topic and publish.webhooks are for `run`", markup=False)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as progress:
        task = progress.add_task("reading")
        summary = replay(
            job,
            on_incidents=Terminal().tell,
            on_progress=lambda n: progress.update(task, description=f"{n:,} records"),
        )
    _print(summary, as_json=as_json, table=lambda: _summary_table(summary, out))


@baseline_app.command("build")
def baseline_build(
    from_: Annotated[list[Path], typer.Option("--from", help="Files of baseline rows (repeatable).")],
    out: Annotated[Path, typer.Option("--out", help="The baseline file to write.")],
    model: Annotated[str | None, typer.Option(help="The model of rows that name none.")] = None,
    version: Annotated[str | None, typer.Option(help="The version of rows that name none.")] = None,
    config: ConfigOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Build a baseline from CSV, Parquet or JSONL rows."""
    missing = [path for path in from_ if not path.is_file()]
    if missing:
        raise UsageError(f"there is no file {missing[0]}", tuple(f"there is no file {p}" for p in missing))
    from stream_monitor.baselines import build_baselines

    built = build_baselines(from_, _configuration(config), model=model, version=version)
    chosen = [b for b in built if model in (None, b.model) and version in (None, b.version, "")] if model else built
    if len(chosen) != 1:
        held = ", ".join(f"{b.model} {b.version or '(any version)'}" for b in built)
        raise InputError(
            f"one baseline is written to a file, but the rows hold {held}: choose with --model and --version"
        )
    made = chosen[0] if version is None else chosen[0].serving(version)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(made.to_bytes())
    body = _baseline_json(made)
    _print(body, as_json=as_json, table=lambda: _pairs({**body, "file": str(out)}))


@baseline_app.command("show")
def baseline_show(
    file: Annotated[Path | None, typer.Argument(help="A built baseline, or rows.")] = None,
    config: ConfigOption = None,
    rate: Annotated[str | None, typer.Option("--rate", help="Events a second to expect, e.g. 10/s.")] = None,
    url: Annotated[str | None, typer.Option(help="Instead of a file, a running service.")] = None,
    model: Annotated[str | None, typer.Option(help="With --url: of this model.")] = None,
    version: Annotated[str | None, typer.Option(help="With --url: of this version.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """What a baseline holds, and what the budget of false alarms buys with it: events until a change is found."""
    if (url is None) == (file is None):
        raise UsageError("say which: a FILE, or --url of a running service")
    if url is not None:
        found = _baselines_of_service(url, model, version)
    else:
        assert file is not None
        found = _baselines_of_file(file, _configuration(config), _rate(rate))
    _print({"baselines": found}, as_json=as_json, table=lambda: _feature_tables(found))


def _baselines_of_file(file: Path, config: Config, rate: float | None) -> list[dict[str, Any]]:
    from stream_monitor.baselines import read_baselines
    from stream_monitor.budgets import of_baseline, shown
    from stream_monitor.history import estimate_text
    from stream_monitor.judge.watch import ASSUMED_RATE

    found = []
    for baseline in read_baselines([file], config):
        spending = of_baseline(baseline, config, events_per_second=rate or ASSUMED_RATE)
        estimate = estimate_text(baseline, config.model(baseline.model).positive_label)
        found.append({**_baseline_json(baseline, features=True), "estimate": estimate, "budget": shown(spending)})
    return found


def _baselines_of_service(url: str, model: str | None, version: str | None) -> list[dict[str, Any]]:
    query = {k: v for k, v in (("model", model), ("version", version), ("limit", "10000")) if v is not None}
    budgets = {(b["model"], b["version"]): b for b in ask_service(url, f"budgets?{urlencode(query)}")}
    rows = _from_service_or_state(url, None)
    return [
        {**row, "budget": budgets[row["model"], row["version"]]}
        for row in rows
        if (row["model"], row["version"]) in budgets
    ]


@baseline_app.command("list")
def baseline_list(
    url: Annotated[str | None, typer.Option(help="A running service.")] = None,
    state: Annotated[Path | None, typer.Option(help="A state file nobody uses.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The baselines a service or a state file judges by."""
    rows = _from_service_or_state(url, state)
    _print({"baselines": rows}, as_json=as_json, table=lambda: _rows_table(rows))


@baseline_app.command("promote")
def baseline_promote(
    model: Annotated[str, typer.Option(help="The model.")],
    version: Annotated[str, typer.Option(help="The version that shall be judged by it.")],
    file: Annotated[Path | None, typer.Option("--from", help="A built baseline, or rows.")] = None,
    from_version: Annotated[str | None, typer.Option(help="With --url: the baseline of another version.")] = None,
    since: Annotated[str | None, typer.Option(help="With --url: the version's traffic from this time on.")] = None,
    until: Annotated[str | None, typer.Option(help="With --since: up to this time.")] = None,
    url: Annotated[str | None, typer.Option(help="A running service.")] = None,
    state: Annotated[Path | None, typer.Option(help="A state file nobody uses.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The token of the service.")] = None,
    config: ConfigOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Judge a version by another baseline from now on; closes the incidents it explains."""
    if (url is None) == (state is None):
        raise UsageError("say which: --url of a running service, or --state of a file nobody uses")
    chosen = None if file is None else _one_baseline(file, _configuration(config), model, version)
    if url is not None:
        token = token_file.read_text(encoding="utf-8").strip() if token_file else None
        asked = {"model": model, "version": version, "from_version": from_version, "since": since, "until": until}
        if chosen is not None:
            asked["baseline"] = base64.b64encode(chosen.to_bytes()).decode()
        body = {key: value for key, value in asked.items() if value is not None}
        answer = ask_service(url, "baselines/promote", body=body, token=token)
    else:
        assert state is not None
        if chosen is None:
            raise UsageError("--state needs --from with a baseline file")
        from stream_monitor.stored import promote_in_state

        answer = promote_in_state(state, chosen)
    _print(answer, as_json=as_json, table=lambda: _pairs(answer))


@app.command()
def check(
    config: Path,
    connect: Annotated[bool, typer.Option("--connect", help="Reach brokers, topics and webhooks.")] = False,
    sample: Annotated[int, typer.Option(help="Read so many real records and say what they hold.")] = 0,
    as_json: JsonFlag = False,
) -> None:
    """Check a configuration, and with --connect or --sample what it points at."""
    configure(level=logging.WARNING)
    loaded = _configuration(config)
    from stream_monitor.check import check_configuration

    report = check_configuration(loaded, connect=connect or sample > 0, sample=sample)
    _print(report, as_json=as_json, table=lambda: _check_lines(report))


@app.command("selftest")
def selftest_command(
    config: Annotated[Path, typer.Option("--config", help="The configuration file (YAML).")],
    baseline: Annotated[
        list[Path] | None,
        typer.Option("--baseline", help="Rows, or a built baseline; else those of the configuration."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="This model only; also the model of rows that name none.")] = None,
    events: Annotated[
        int | None, typer.Option(min=1_000, help="Events without drift; for each 32,000 a run of every drift.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another stream.")] = 0,
    rate: Annotated[
        str | None, typer.Option("--rate", help="Events a second, e.g. 10/s; else of the rows' times.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """What to expect: the live configuration on the baseline's own rows, as they are and with known drifts."""
    from stream_monitor.selftest import Job, selftest

    configure(level=logging.WARNING)
    job = Job(_configuration(config), baseline or [], model, events, seed, _rate(rate))
    err = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=err, transient=True) as progress:
        task = progress.add_task("reading")
        tried = selftest(job, on_progress=lambda text: progress.update(task, description=text))
    _print(tried, as_json=as_json, table=lambda: _selftest_lines(tried))


@app.command()
def report(
    replayed: Annotated[Path | None, typer.Option("--replay", help="What `replay --out` left.")] = None,
    state: Annotated[Path | None, typer.Option(help="A state file nobody uses.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The page to write.")] = None,
) -> None:
    """The HTML report: not in this version yet."""
    del replayed, state, out
    raise UsageError("`report` is not in this version yet; `replay --out DIR` leaves the same figures as tables")


def _one_baseline(file: Path, config: Config, model: str, version: str) -> Baseline:
    from stream_monitor.baselines import read_baselines

    found = read_baselines([file], config, model=model)
    fitting = [b for b in found if b.model == model and b.version in (version, "")] or found
    if len(fitting) != 1:
        raise InputError(f"{file} holds {len(fitting)} baselines for {model} {version}: one is needed")
    return fitting[0].serving(version)


# -- printing ------------------------------------------------------------------------------------


def _configuration(path: Path | None) -> Config:
    from stream_monitor.config import load, parse

    return load(path, os.environ) if path is not None else parse({}, os.environ)


def _rate(text: str | None) -> float | None:
    """`1/s`, `10/s`, `60/m` as events a second."""
    if text is None:
        return None
    count, _, unit = text.partition("/")
    seconds = {"s": 1, "m": 60, "h": 3600}.get(unit)
    try:
        rate = float(count) / seconds if seconds else 0.0
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise UsageError(f"--rate {text}: write it like 1/s or 60/m")
    return rate


def _print(body: dict[str, Any], *, as_json: bool, table: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
    else:
        out = Console(highlight=False)
        for part in table():
            out.print(part)


def _pairs(body: dict[str, Any]) -> list[Table]:
    table = Table(show_header=False, box=None)
    for key, value in body.items():
        table.add_row(key.replace("_", " "), str(value))
    return [table]


def _summary_table(summary: dict[str, Any], out: Path) -> list[Any]:
    table = Table(title="What became of the records")
    for name in ("stream", "fate", "records"):
        table.add_column(name, justify="right" if name == "records" else "left")
    for stream in ("inference", "ground_truth", "predictions"):
        for fate, count in summary[stream].items():
            table.add_row(stream.replace("_", " "), fate.replace("_", " "), f"{count:,}")
    speed = f"{summary['events_per_second']:,.0f} events/s" if summary["events_per_second"] else ""
    incidents = f"{summary['incidents']} incident{'s' * (summary['incidents'] != 1)}"
    return [table, f"{incidents}; {summary['elapsed_seconds']:.1f} s {speed}; results in {out}"]


def _rows_table(rows: list[dict[str, Any]]) -> list[Any]:
    if not rows:
        return ["none"]
    table = Table()
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return [table]


def _baseline_json(baseline: Any, *, features: bool = False) -> dict[str, Any]:
    body = {
        "baseline_id": baseline.id,
        "model": baseline.model,
        "version": baseline.version or "(any)",
        "rows": baseline.profile.rows,
        "features": sum(s.key.kind == "feature" for s in baseline.schema.subjects),
        "provisional": baseline.provisional,
        "outcomes": sorted(baseline.outcomes),
    }
    if features:
        body["subjects"] = [
            {"name": s.key.name, "kind": s.key.kind, "value_kind": s.value_kind} for s in baseline.schema.subjects
        ]
    return body


def _feature_tables(baselines: list[dict[str, Any]]) -> list[Any]:
    from stream_monitor.budget_tables import budget_parts

    parts: list[Any] = []
    for body in baselines:
        parts += _pairs({k: v for k, v in body.items() if k not in ("subjects", "budget")})
        parts += _rows_table(body["subjects"]) if "subjects" in body else []
        parts += budget_parts(body["budget"])
    return parts or ["none"]


def _from_service_or_state(url: str | None, state: Path | None) -> list[dict[str, Any]]:
    if (url is None) == (state is None):
        raise UsageError("say which: --url of a running service, or --state of a file nobody uses")
    if url is not None:
        found = ask_service(url, "baselines")
        return list(found["baselines"]) if isinstance(found, dict) else list(found)
    assert state is not None
    from stream_monitor.stored import stored_baselines

    return stored_baselines(state)


def _check_lines(report: dict[str, Any]) -> list[Any]:
    lines: list[Any] = [f"configuration: {report['configuration']}"]
    lines += [f"connection: {line}" for line in report.get("connection", [])]
    for topic in report.get("topics", []):
        lines.append(f"{topic['topic']}: {topic['read']} records read, {topic['refused']} would be refused")
        lines += [f"  refused: {count} x {reason}" for reason, count in topic["reasons"].items()]
        lines += [f"  {note}" for note in topic["notes"]]
        if topic.get("fields"):
            lines += _rows_table(topic["fields"])
    return lines


def _selftest_lines(tried: dict[str, Any]) -> list[Any]:
    lines: list[Any] = list(tried["notes"])
    for model in tried["models"]:
        lines += [
            "",
            escape(f"{model['model']} {model['version']}"),
            _stream_line(model),
            *_false_incident_lines(model),
            "",
        ]
        features = model["features"]
        if len(features["tried"]) < features["of"]:
            lines.append(f"A sample of {len(features['tried'])} of {features['of']} features.")
        lines.append(
            f"Each run: {model['events_before_drift']:,} events, then up to {model['events_with_drift']:,} with the drift."
        )
        lines.append(_drift_table(model["drifts"]))
    return [*lines, f"{tried['elapsed_seconds']:.0f} s"]


def _stream_line(model: dict[str, Any]) -> str:
    stream = model["stream"]
    rate = f"{model['events_per_second']:g} events/s ({model['rate_is']})."
    if stream["kind"] == "bins":
        return (
            "The baseline is built and holds no rows: events are drawn from its bins, every subject and event by itself. "
            f"Real ones depend on each other, so expect more false incidents and longer delays of them. {rate}"
        )
    return (
        f"{stream['baseline_rows']:,} rows are the baseline, the {stream['rows']:,} others the stream. By chance these halves "
        f"differ by an effect of up to {stream['halves_differ']:g}, which every run carries. The runs with drift played "
        f"{stream['events_played']:,} events: each row {stream['times_each_row']:g} times, in stretches from random places. "
        f"{rate}"
    )


def _false_incident_lines(model: dict[str, Any]) -> list[str]:
    told = model["false_incidents"]
    raised, (low, high) = told["raised"], told["per_month_interval"]
    lower, upper = raised["interval"]
    lines = [
        f"False incidents in {told['month_days']} days: {told['expected']:g} expected of {told['accepted']:g} accepted. "
        f"{told['seen']} seen in {told['events']:,} events ({told['days']:g} days), so between {low:g} and {high:g} in "
        f"{told['month_days']} days (95 %).",
        f"At a budget of {raised['false_alarms']}: {raised['expected']:g} expected, {raised['seen']} seen "
        f"({lower:g} to {upper:g}): {_in_words(raised['expected'], lower, upper)}.",
    ]
    again = told["times_each_row"] or 1
    if again > 1:
        lines.append(
            f"Each row came {again:g} times, and its coincidences with it: with no more than one, counts are fair."
        )
    return lines


def _in_words(expected: float, lower: float, upper: float) -> str:
    if lower > expected:
        return "more than the budget allows on these rows"
    return "fewer than the budget allows" if upper < expected else "in keeping with the budget"


def _drift_table(drifts: list[dict[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("drift", "of", "found", "named", "events", "seconds", "told as"):
        table.add_column(
            name, justify="left" if name in ("drift", "of", "told as") else "right", no_wrap=name != "told as"
        )
    for row in drifts:
        kinds = ", ".join(kind.replace("_", " ") for kind in row["kinds"])
        figures = ["" if row[key] is None else f"{row[key]:,g}" for key in ("delay_events", "delay_seconds")]
        counts = [f"{row[key]}/{row['runs']}" for key in ("found", "named")]
        table.add_row(row["drift"], escape(row["subject"]), *counts, *figures, kinds)
    return table


if __name__ == "__main__":
    main()
