"""The example configuration, the compose file and the image: what can be held to the code without a Docker daemon."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from http.server import HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import yaml
from servers.kafka import Kafka

from stream_monitor.config import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def services() -> dict[str, dict[str, Any]]:
    """The services of the compose file."""
    body: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] = body["services"]
    return found


def datasources() -> list[dict[str, Any]]:
    """The data sources that Grafana is provisioned with."""
    path = ROOT / "grafana" / "provisioning" / "datasources" / "prometheus.yaml"
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    return found


def test_grafana_finds_its_dashboards() -> None:
    """They are mounted where the provisioning looks for them."""
    path = ROOT / "grafana" / "provisioning" / "dashboards" / "stream-monitor.yaml"
    (provider,) = yaml.safe_load(path.read_text(encoding="utf-8"))["providers"]
    mounts = dict(volume.split(":")[:2] for volume in services()["grafana"]["volumes"])
    assert mounts["../grafana/dashboards"] == provider["options"]["path"]
    assert mounts["../grafana/provisioning"] == "/etc/grafana/provisioning"


def test_example_configuration_loads() -> None:
    """deploy/monitor.yaml is valid and asks for nothing from the environment."""
    config = load(DEPLOY / "monitor.yaml", {})
    assert config.models.keys() == {"credit", "demand"}
    assert config.publish.port == 9464


def test_parts_find_each_other() -> None:
    """Each address in a configuration is a service of the compose file at the port that it listens on."""
    config = load(DEPLOY / "monitor.yaml", {})
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (scrape,) = prometheus["scrape_configs"]
    assert scrape["job_name"] == "stream-monitor"
    assert scrape["static_configs"][0]["targets"] == [f"stream-monitor:{config.publish.port}"]
    (manager,) = prometheus["alerting"]["alertmanagers"]
    routing = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text(encoding="utf-8"))
    hooks = [hook["url"] for receiver in routing["receivers"] for hook in receiver.get("webhook_configs", [])]
    panels = datasources()
    named = [*manager["static_configs"][0]["targets"], config.source.bootstrap_servers]
    named += [urlsplit(url).netloc for url in (*hooks, *(panel["url"] for panel in panels))]
    assert len(named) == 6
    assert services()["traffic"]["entrypoint"][-1] == config.source.bootstrap_servers
    assert {address.partition(":")[0] for address in named} <= services().keys()
    assert config.source.bootstrap_servers in services()["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]


def test_sample_limit_leaves_room_for_every_series() -> None:
    """A scrape is not refused whole before the service's own limit has dropped the least important series."""
    config = load(DEPLOY / "monitor.yaml", {})
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert prometheus["scrape_configs"][0]["sample_limit"] > config.limits.series


def test_grafana_knows_the_scrape_interval() -> None:
    """Its $__rate_interval is made of it: a shorter one leaves holes in every panel."""
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (source,) = datasources()
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_webhook_prints_what_alertmanager_sends(capsys: pytest.CaptureFixture[str]) -> None:
    """One line an alert, and an answer that Alertmanager takes as delivered."""
    alert = {"status": "firing", "labels": {"alertname": "A"}, "annotations": {"description": "age drifted."}}
    body = json.dumps({"alerts": [alert, alert | {"status": "resolved"}]}).encode()
    receiver = runpy.run_path(str(DEPLOY / "webhook" / "receiver.py"))["Receiver"]
    with HTTPServer(("127.0.0.1", 0), receiver) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        with urlopen(f"http://127.0.0.1:{server.server_port}/alerts", data=body, timeout=10) as answer:
            assert answer.status == 200
        thread.join(10)
    assert capsys.readouterr().out == "firing A age drifted.\nresolved A age drifted.\n"


def test_every_topic_is_made_before_the_service_starts() -> None:
    """The topics that the configuration names are created, for the broker creates none by itself."""
    source = load(DEPLOY / "monitor.yaml", {}).source
    (script,) = services()["topics"]["command"]
    made = set(re.findall(r"for topic in (.*); do", script)[0].split())
    assert made == {*(t.topic for t in (*source.inference, *source.ground_truth)), source.dead_letter_topic}


@pytest.mark.parametrize("name", sorted(services()))
def test_services_are_pinned_and_local(name: str) -> None:
    """Images have exact tags, and ports are open to this machine only."""
    service = services()[name]
    assert re.search(r":(v?\d+\.\d+\.\d+|local)$", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", sorted(services()))
def test_mounted_files_are_there(name: str) -> None:
    """A mounted path that is missing would become an empty folder without a word."""
    for volume in services()[name].get("volumes", []):
        source = volume.partition(":")[0]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source


def test_image_copies_what_the_context_holds() -> None:
    """Each path that the Dockerfile copies is there and not left out by .dockerignore."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n") if line[:1] == "!"}
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = {path for line in re.findall(r"^COPY (?!--)(.+) \S+$", dockerfile, re.MULTILINE) for path in line.split()}
    assert copied == kept
    assert all((ROOT / path).exists() for path in copied)


def test_image_is_built_on_a_named_release() -> None:
    """Every step stands on the same exact tag of a slim image: a build next year is the build of today."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (base,) = set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", base)


def test_image_runs_as_nobody_in_particular_and_tells_its_health() -> None:
    """The image has an unprivileged user, a health check on the configured port and the program as its entry."""
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    config = load(DEPLOY / "monitor.yaml", {})
    assert re.search(r"^USER 65532:65532$", dockerfile, re.MULTILINE)
    assert f"http://127.0.0.1:{config.publish.port}/healthz" in dockerfile
    assert 'ENTRYPOINT ["stream-monitor"]' in dockerfile
    assert f"VOLUME {config.state.parent}" in dockerfile


@pytest.fixture(scope="session")
def compose_parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parser of docker compose as a program; skipped where there is no Go, or no way to its modules."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    program = tmp_path_factory.mktemp("compose") / "parse"
    folder = Path(__file__).with_name("compose_parser")
    command = ["go", "build", "-o", str(program), "."]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("no way to its modules within four minutes")
    if done.returncode != 0:
        pytest.skip(f"cannot be built: {done.stderr[-300:]}")
    return program


def parsed(program: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """What the parser says of a compose file."""
    return subprocess.run([str(program), str(path)], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_docker_compose_reads_the_file(compose_parser: Path, tmp_path: Path) -> None:
    """Its own parser finds every service, and refuses a key that it does not know."""
    told = parsed(compose_parser, DEPLOY / "compose.yaml")
    assert told.returncode == 0, told.stderr
    assert set(told.stdout.split()) == services().keys()
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose.yaml").read_text(encoding="utf-8").replace("read_only:", "read_onlyy:"))
    assert "read_onlyy" in parsed(compose_parser, wrong).stderr


def test_traffic_is_the_demos_story_in_the_order_of_time() -> None:
    """Events and labels as they come due; a label never before its event, each on its topic."""
    made = runpy.run_path(str(DEPLOY / "traffic" / "generate.py"))["messages"](1_790_000_000_000_000)
    told = [next(made) for _ in range(3000)]
    assert [message.time_us for message in told] == sorted(message.time_us for message in told)
    source = load(DEPLOY / "monitor.yaml", {}).source
    (inference,), (truth,) = ([t.topic for t in topics] for topics in (source.inference, source.ground_truth))
    seen: set[bytes] = set()
    for message in told:
        if message.topic == inference:
            seen.add(message.key)
        else:
            assert message.topic == truth
            assert message.key in seen
    assert {json.loads(m.value)["model"] for m in told} == load(DEPLOY / "monitor.yaml", {}).models.keys()
    assert any(message.topic == truth for message in told)


def test_traffic_reaches_a_broker_and_tells_history_once(kafka: Kafka) -> None:
    """The hours before at once; who starts again finds them told and goes on in real time."""
    for topic in ("inference", "ground-truth"):
        kafka.create_topic(topic, 3)
    send = runpy.run_path(str(DEPLOY / "traffic" / "generate.py"))["send"]
    first = send(kafka.bootstrap, history_hours=0.1, seconds=0.0)
    assert first > 4 * 0.1 * 3600
    assert send(kafka.bootstrap, history_hours=0.1, seconds=0.0) < 10
