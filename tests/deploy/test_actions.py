"""The examples under deploy/actions, run for real: as processes, against the service's own signatures and answers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers.process import free_ports
from servers.prometheus import StartPrometheus

from stream_monitor.config import parse
from stream_monitor.publish.catalogue import CATALOGUE
from stream_monitor.publish.cloudevents import News, event, event_id
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.delivery import Answer, Delivery, Fate
from stream_monitor.publish.snapshot import Snapshot
from stream_monitor.publish.webhook import WebhookChannel

ACTIONS = Path(__file__).parents[2] / "deploy" / "actions"
SECRET = "whsec_" + base64.b64encode(b"of these tests").decode()
ONSET_MS = 1_795_255_200_000  # 2026-11-21T10:00:00Z


def incident(**changes: Any) -> dict[str, Any]:
    """An incident's object."""
    body = {
        "id": "inc-1",
        "model": "credit",
        "version": "8",
        "kind": "data_drift",
        "severity": "critical",
        "onset": "2026-11-21T10:00:00.000Z",
        "opened_at": "2026-11-21T10:10:00.000Z",
        "closed_at": None,
        "subjects": [{"name": "income"}, {"name": "age; rm -rf"}],
        "summary": "credit 8: <b>income</b> moved.",
    }
    return {**body, **changes}


class Script:
    """One of the examples as a process; `said` is its stdout."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(ACTIONS / name), *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.said.append(line.rstrip("\n"))
                self._changed.notify_all()

    def wait_for(self, words: str) -> str:
        """The first line that holds these words."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(words in line for line in self.said), 60), self.said
            return next(line for line in self.said if words in line)

    def end(self) -> int:
        """Its exit code, by itself."""
        code = self._process.wait(60)
        self._thread.join(10)
        return code

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(60)
        self._thread.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def running(name: str, *arguments: str, **environment: str) -> Iterator[Script]:
    """An example, ended afterwards."""
    script = Script(name, arguments, environment)
    try:
        yield script
    finally:
        script.stop()


@contextmanager
def listening(name: str, *arguments: str, **environment: str) -> Iterator[tuple[Script, str]]:
    """A receiver and its address, once it listens."""
    (port,) = free_ports(1)
    told = {"STREAM_MONITOR_WEBHOOK_SECRET": SECRET, **environment}
    with running(name, "--port", str(port), *arguments, **told) as script:
        script.wait_for("listening")
        yield script, f"http://127.0.0.1:{port}/"


def post(url: str, body: dict[str, Any], news: News = News.OPENED, *, secret: str = SECRET, age: float = 0.0) -> Answer:
    """What the service's own channel is answered."""
    hook = parse({"publish": {"webhooks": [{"url": url, "secret": secret, "timeout": "30s"}]}}, {}).publish.webhooks[0]
    told = event(body, news, source="/m", number=1, at=body["opened_at"])
    delivery = Delivery(1, "webhook:x", event_id(body, news), body["model"], 0, told)
    return WebhookChannel(hook, wall=lambda: time.time() - age).deliver(delivery)


DELIVERED = Answer(Fate.DELIVERED)


def test_retraining_is_started_once_by_a_genuine_event(tmp_path: Path) -> None:
    """The command is given what happened as data; a forged, an old and a repeated event start nothing."""
    program = (
        "import json, os, sys; told = {k: v for k, v in os.environ.items() if k.startswith('STREAM_MONITOR')}; "
        "print(json.dumps(told), file=open(sys.argv[1], 'a'))"
    )
    done = tmp_path / "done.jsonl"
    command = ["--go", "--", sys.executable, "-c", program, str(done)]
    with listening("retrain.py", *command) as (script, url):
        assert post(url, incident(), secret="another").fate is Fate.REFUSED
        script.wait_for("refused: wrong signature")
        assert post(url, incident(), age=3600).fate is Fate.REFUSED
        script.wait_for("refused: too old")
        assert not done.exists()
        assert post(url, incident(severity="warning")) == DELIVERED
        script.wait_for("it is only warning")
        assert post(url, incident(severity="critical"), News.UPDATED) == DELIVERED
        script.wait_for("ended with exit code 0")
        assert post(url, incident(severity="critical"), News.UPDATED) == DELIVERED
        assert post(url, incident(id="inc-2")) == DELIVERED
        script.wait_for("one was started a moment ago")
        assert post(url, incident(id="inc-3", model="other", kind="broken_input")) == DELIVERED
        script.wait_for("broken_input is not mended by new data")
        assert post(url, incident(id="inc-4", model="other", closed_at="2026-11-21T11:00:00Z")) == DELIVERED
        script.wait_for("it is over")
    (line,) = done.read_text(encoding="utf-8").splitlines()
    told = json.loads(line)
    assert told == {
        "STREAM_MONITOR_MODEL": "credit",
        "STREAM_MONITOR_VERSION": "8",
        "STREAM_MONITOR_KIND": "data_drift",
        "STREAM_MONITOR_SEVERITY": "critical",
        "STREAM_MONITOR_INCIDENT": "inc-1",
        "STREAM_MONITOR_ONSET": "2026-11-21T10:00:00.000Z",
        "STREAM_MONITOR_SUBJECTS": "income,age; rm -rf",
    }


def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    """It is the default, and says what it would do."""
    done = tmp_path / "done"
    with listening("retrain.py", "--", "touch", str(done)) as (script, url):
        assert post(url, incident()) == DELIVERED
        assert "would start a retraining for credit 8" in script.wait_for("would start")
    assert not done.exists()


def test_a_command_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """The service keeps the event until it can."""
    with listening("retrain.py", "--go", "--", str(tmp_path / "no-such-program")) as (script, url):
        assert post(url, incident()) == Answer(Fate.FAILED, "status 503")
        script.wait_for("failed: FileNotFoundError")
        assert post(url, incident()) == Answer(Fate.FAILED, "status 503")


def test_no_receiver_without_a_secret() -> None:
    """Anybody could start what it starts."""
    with running("retrain.py", "--", "true", STREAM_MONITOR_WEBHOOK_SECRET="") as script:
        assert script.end() == 1
        assert "set STREAM_MONITOR_WEBHOOK_SECRET" in script.said[0]


class Fake:
    """An HTTP server that answers by a function of method, path and body, and keeps what it was asked."""

    def __init__(self, answer: Any) -> None:
        self.asked: list[tuple[str, str, Any, Mapping[str, str]]] = []
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                read = json.loads(body) if body else None
                asked.append((self.command, self.path, read, dict(self.headers)))
                status, told = answer(self.command, self.path, read)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(told).encode())

            do_GET = do_POST = do_PATCH = do  # noqa: N815 - the names they are called with

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_grafana_is_told_of_an_incident_and_of_its_end() -> None:
    """One annotation for each incident, found again by its tag; names are no HTML; trouble there is tried again."""
    kept: dict[int, dict[str, Any]] = {}
    trouble = [True]

    def grafana(method: str, path: str, body: Any) -> tuple[int, Any]:
        """The annotations API, as far as it is asked."""
        found = urllib.parse.urlsplit(path)
        if method == "GET":
            tags = urllib.parse.parse_qs(found.query)["tags"]
            return 200, [{"id": i, **a} for i, a in kept.items() if set(tags) <= set(a["tags"])]
        if trouble:
            trouble.clear()
            return 500, {"message": "database is locked"}
        if method == "POST" and found.path == "/api/annotations":
            kept[len(kept) + 1] = body
            return 200, {"id": len(kept)}
        number = int(found.path.rpartition("/")[2])
        kept[number] |= body
        return 200, {"message": "Annotation patched"}

    fake = Fake(grafana)
    with listening("annotate_grafana.py", "--grafana", fake.url, GRAFANA_TOKEN="token") as (_, url):
        assert post(url, incident()).fate is Fate.FAILED
        assert post(url, incident()) == DELIVERED
        assert post(url, incident(id="inc-2", model="other")) == DELIVERED
        assert kept[1]["time"] == kept[1]["timeEnd"] == ONSET_MS
        assert kept[1]["text"] == "credit 8: &lt;b&gt;income&lt;/b&gt; moved."
        assert {"stream-monitor", "model:credit", "version:8", "severity:critical"} <= set(kept[1]["tags"])
        closed = incident(closed_at="2026-11-21T11:00:00.000Z")
        assert post(url, closed, News.CLOSED) == DELIVERED
    fake.stop()
    assert len(kept) == 2
    assert kept[1]["timeEnd"] - kept[1]["time"] == 3_600_000
    assert all(headers["Authorization"] == "Bearer token" for *_, headers in fake.asked)


@pytest.fixture
def service() -> Iterator[Fake]:
    """An API with one incident, which opens at the third question; the second is answered by an error."""
    count = [0]

    def api(method: str, *_: Any) -> tuple[int, Any]:
        assert method == "GET"
        count[0] += 1
        if count[0] == 2:
            return 503, {"detail": "catching up"}
        return 200, [incident()] if count[0] >= 3 else []

    fake = Fake(api)
    yield fake
    fake.stop()


def test_the_circuit_breaker_trips_once_trouble_lasts(service: Fake, tmp_path: Path) -> None:
    """It asks for what is open of the version, rides over a moment without answers, and runs the command once."""
    done = tmp_path / "done"
    arguments = ["--url", service.url, "--model", "credit", "--version", "8", "--for", "0.3", "--every", "0.1"]
    with running("circuit_breaker.py", *arguments, "--go", "--", "touch", str(done)) as script:
        assert script.end() == 0
        assert script.said[0].startswith("blind: ")
        assert script.said[1:] == ["sees again", "tripped by inc-1: credit 8: <b>income</b> moved."]
    assert done.exists()
    asked = [urllib.parse.parse_qs(urllib.parse.urlsplit(path).query) for _, path, _, _ in service.asked]
    assert asked[0] == {"model": ["credit"], "version": ["8"], "state": ["open"], "limit": ["1000"]}
    assert len(asked) >= 4


def test_the_circuit_breaker_is_dry_by_default(service: Fake, tmp_path: Path) -> None:
    """It says what it would run; without trouble it ends with 1, with a command that fails with 3."""
    done = tmp_path / "done"
    arguments = ["--url", service.url, "--model", "credit", "--version", "8", "--for", "0", "--every", "0.05"]
    with running("circuit_breaker.py", *arguments, "--", "touch", str(done)) as script:
        assert script.end() == 0
        assert script.said[-1] == f"would run: touch {done}"
    assert not done.exists()
    with running("circuit_breaker.py", *arguments, "--severities", "info", "--until", "0.3", "--", "true") as script:
        assert script.end() == 1
    with running("circuit_breaker.py", *arguments, "--go", "--", "false") as script:
        assert script.end() == 3


# -- Argo Rollouts -----------------------------------------------------------------------------------


def template() -> dict[str, Any]:
    """The analysis template."""
    found: dict[str, Any] = yaml.safe_load((ACTIONS / "rollback-analysis.yaml").read_text(encoding="utf-8"))
    return found


def filled(text: str, **given: str) -> str:
    """As Argo fills in arguments; one that is not known would be seen."""
    values = {a["name"]: a["value"] for a in template()["spec"]["args"] if "value" in a} | given
    for name, value in values.items():
        text = text.replace("{{args." + name + "}}", value)
    assert "{{" not in text
    return text


def test_the_template_is_one() -> None:
    """Kind, names and arguments as Argo Rollouts wants them; every metric is of the catalogue."""
    body = template()
    assert (body["apiVersion"], body["kind"]) == ("argoproj.io/v1alpha1", "AnalysisTemplate")
    assert {a["name"] for a in body["spec"]["args"] if "value" not in a} == {"model", "version"}
    known = {metric.full_name for metric in CATALOGUE}
    allowed = {"name", "interval", "initialDelay", "count", "failureLimit", "inconclusiveLimit", "successCondition",
               "failureCondition", "provider"}  # fmt: skip
    for metric in body["spec"]["metrics"]:
        assert set(metric) <= allowed
        assert set(metric["provider"]["prometheus"]) == {"address", "query"}
        assert metric["count" if "count" in metric else "interval"]
        query = filled(metric["provider"]["prometheus"]["query"], model="m", version="1")
        assert any(name in query for name in known)


def verdicts(prometheus: Any, version: str) -> dict[str, str]:
    """What each metric's measurement would be, its query asked of a real Prometheus."""
    found = {}
    for metric in template()["spec"]["metrics"]:
        query = filled(metric["provider"]["prometheus"]["query"], model="credit", version=version)
        result = [float(sample["value"][1]) for sample in prometheus.query(query)]
        assert len(result) == 1, query
        succeeded = condition(metric["successCondition"], result)
        failed = condition(metric.get("failureCondition", "true"), result)
        found[metric["name"]] = "Successful" if succeeded else "Failed" if failed else "Inconclusive"
    return found


def condition(text: str, result: list[float]) -> bool:
    """An expression of Argo's, as far as the template uses its language."""
    left, _, right = filled(text, model="", version="").partition(" ")
    if not right:
        return {"true": True, "false": False}[left]
    operator, number = right.split()
    assert left == "result[0]"
    return {
        "==": result[0] == float(number),
        ">": result[0] > float(number),
        "<": result[0] < float(number),
        ">=": result[0] >= float(number),
    }[operator]


class Exposed:
    """Serves a snapshot as the service does."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.publisher = Publisher(series=1000)
        self.publisher.publish(snapshot)
        text = self.publisher.text

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_the_analysis_takes_back_what_is_in_trouble(prometheus: StartPrometheus) -> None:
    """On a real Prometheus that scrapes what the service exposes: trouble, health, too few events, a blind monitor."""
    head = ("credit", "8", "data_drift", "income", "critical", "inc-1")
    counted = ("inference", "summarised")
    exposed = Exposed(
        Snapshot(
            {
                "incident_active": [(head, 1.0), (("credit", "9", "data_drift", "income", "warning", "inc-2"), 1.0)],
                "events_total": [
                    (("credit", "8", *counted), 5000.0),
                    (("credit", "9", *counted), 5000.0),
                    (("credit", "10", *counted), 20.0),
                ],
                "checkpoint_timestamp_seconds": [((), time.time())],
            }
        )
    )
    try:
        server = prometheus({"stream-monitor": [exposed.address]})
        until = time.monotonic() + 60
        while not server.query("stream_monitor_incident_active"):
            assert time.monotonic() < until
            time.sleep(0.2)
        healthy = {"no-critical-incident": "Successful", "monitor-looks": "Successful", "enough-events": "Successful"}
        assert verdicts(server, "8") == {**healthy, "no-critical-incident": "Failed"}
        assert verdicts(server, "9") == healthy
        assert verdicts(server, "10") == {**healthy, "enough-events": "Inconclusive"}
    finally:
        exposed.stop()


def test_a_monitor_that_is_not_there_is_not_health(prometheus: StartPrometheus) -> None:
    """Nothing is scraped: neither a failure nor a success."""
    server = prometheus({})
    assert verdicts(server, "8") == {
        "no-critical-incident": "Successful",
        "monitor-looks": "Inconclusive",
        "enough-events": "Inconclusive",
    }
