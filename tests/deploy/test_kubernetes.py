"""The manifests, built by kubectl's own Kustomize and held to the schemas of Kubernetes and to the code; no cluster."""

from __future__ import annotations

import functools
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from stream_monitor.config import duration_seconds, load, size_bytes
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import create_app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = sorted(str(path.parent.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("kustomization.yaml"))
OF_THE_OPERATOR = {"ServiceMonitor", "PrometheusRule"}  # whose schemas no package carries: read strictly below

Objects = dict[str, dict[str, Any]]


@functools.cache
def built(folder: str) -> Objects:
    """The objects of a base or overlay by their kind, as `kubectl apply -k` would send them."""
    command = [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(KUBERNETES / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings of deprecated fields
    objects = [body for body in yaml.safe_load_all(done.stdout) if body]
    found = {body["kind"]: body for body in objects}
    assert len(found) == len(objects)
    return found


def pod(objects: Objects) -> dict[str, Any]:
    """The pod's description."""
    found: dict[str, Any] = objects["StatefulSet"]["spec"]["template"]["spec"]
    return found


def container(objects: Objects) -> dict[str, Any]:
    """The only container."""
    (found,) = pod(objects)["containers"]
    return dict(found)


each_folder = pytest.mark.parametrize("folder", FOLDERS)


def test_base_and_overlays_are_all_there() -> None:
    """What the tests below run over."""
    assert FOLDERS == ["base", "overlays/monitoring", "overlays/secure-kafka"]


@each_folder
@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_objects_fit_the_schemas_of_kubernetes(folder: str, version: str) -> None:
    """Each object of Kubernetes' own kinds is valid in an older and a newer release, and has no unknown field."""
    for kind, body in built(folder).items():
        if kind not in OF_THE_OPERATOR:
            kubernetes_validate.validate(body, version, strict=True)


def test_a_wrong_field_would_be_noticed() -> None:
    """The check above is not blind: a name misspelt and a number as a word are refused."""
    body = yaml.safe_load(yaml.safe_dump(built("base")["StatefulSet"]))
    wrong: list[Callable[[dict[str, Any]], None]] = [
        lambda b: b["spec"]["template"]["spec"].update(securitycontext={}),
        lambda b: b["spec"].update(replicas="one"),
    ]
    for break_it in wrong:
        broken = yaml.safe_load(yaml.safe_dump(body))
        break_it(broken)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(broken, "1.34", strict=True)


@each_folder
def test_selectors_select_the_pod(folder: str) -> None:
    """Service, policy and set mean the pod that is there; the cluster's DNS is meant by its own label alone."""
    objects = built(folder)
    labels = objects["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items()
    assert labels >= objects["StatefulSet"]["spec"]["selector"]["matchLabels"].items()
    assert labels >= objects["Service"]["spec"]["selector"].items()
    policy = objects["NetworkPolicy"]["spec"]
    assert labels >= policy["podSelector"]["matchLabels"].items()
    assert policy["egress"][0]["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert objects["StatefulSet"]["spec"]["serviceName"] == objects["Service"]["metadata"]["name"]


@each_folder
def test_the_pod_may_do_nothing_it_need_not(folder: str) -> None:
    """Not root, no rights to gain, nothing to write to but its volumes, the default system calls, no account."""
    inner, outer = container(built(folder))["securityContext"], pod(built(folder))
    assert outer["securityContext"]["runAsNonRoot"]
    assert outer["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not outer["automountServiceAccountToken"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert user
    assert (outer["securityContext"]["runAsUser"], outer["securityContext"]["runAsGroup"]) == tuple(
        map(int, user.groups())
    )


@each_folder
def test_one_writer_that_is_scraped_while_it_catches_up(folder: str) -> None:
    """One replica with a volume of its own; its address is published before it is ready."""
    objects = built(folder)
    assert objects["StatefulSet"]["spec"]["replicas"] == 1
    (claim,) = objects["StatefulSet"]["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"
    assert objects["Service"]["spec"]["publishNotReadyAddresses"]
    assert objects["Service"]["spec"]["clusterIP"] == "None"


@each_folder
def test_probes_ask_what_is_served_where_it_is_served(folder: str) -> None:
    """Life is /healthz, readiness is /readyz, at the configured port, by its name."""
    inner = container(built(folder))
    view: Any = None
    routes = {str(vars(route)["path"]) for route in create_app(view, Publisher(series=1000)).routes}
    probes = {name: inner[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"
    }  # fmt: skip
    assert {probe["path"] for probe in probes.values()} <= routes
    (port,) = inner["ports"]
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    assert built(folder)["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]


@each_folder
def test_the_configuration_is_valid_and_finds_its_files(folder: str, tmp_path: Path) -> None:
    """What the config map holds loads; state, token and certificates lie where volumes are mounted, and it has a token."""
    objects = built(folder)
    text = objects["ConfigMap"]["data"]["monitor.yaml"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(objects)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(objects)["volumes"]}
    assert mounts.keys() == volumes.keys() | {"state"}
    assert volumes["config"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for item in volumes["token"]["secret"]["items"]:
        (secrets / item["path"]).write_text("x", encoding="utf-8")
    path = tmp_path / "monitor.yaml"
    path.write_text(text.replace(mounts["token"], str(secrets)), encoding="utf-8")
    config = load(path, {})  # a file that is not there would be an error
    assert str(config.state.parent) == mounts["state"]
    assert config.publish.port == container(objects)["ports"][0]["containerPort"]
    assert config.publish.host != "127.0.0.1"
    assert config.publish.token_file == secrets / "token"
    assert container(objects)["args"] == ["run", "--config", f"{mounts['config']}/monitor.yaml"]
    broker = int(config.source.bootstrap_servers.rpartition(":")[2])
    assert broker in {port["port"] for port in built(folder)["NetworkPolicy"]["spec"]["egress"][1]["ports"]}


@each_folder
def test_memory_has_room_above_what_was_measured(folder: str) -> None:
    """The limit is above the most that the README's sizing ever saw, by a fifth or more."""
    limit = container(built(folder))["resources"]["limits"]["memory"]
    sizing = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Sizing")[2]
    told = re.findall(r"(?:rose to|at most) ([\d,]+)", sizing)
    measured = max(int(number.replace(",", "")) for number in told)
    assert int(limit.removesuffix("Mi")) * 2**20 > 1.2 * size_bytes(f"{measured}MB")


def test_the_rule_object_is_the_rules_file() -> None:
    """Written by the script, and group for group what Prometheus is given elsewhere."""
    written = (KUBERNETES / "overlays" / "monitoring" / "prometheusrule.yaml").read_text(encoding="utf-8")
    assert written == runpy.run_path(str(KUBERNETES / "prometheus_rule.py"))["prometheus_rule"]()
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text(encoding="utf-8"))
    assert built("overlays/monitoring")["PrometheusRule"]["spec"] == rules


def test_the_rule_object_is_read_strictly() -> None:
    """By the fields the operator knows: groups of rules with texts for texts and durations for durations."""
    duration = re.compile(r"(\d+(ms|s|m|h|d|w|y))+")
    for group in built("overlays/monitoring")["PrometheusRule"]["spec"]["groups"]:
        assert group.keys() <= {"name", "interval", "rules", "limit", "labels"}
        for rule in group["rules"]:
            assert rule.keys() <= {"alert", "record", "expr", "for", "keep_firing_for", "labels", "annotations"}
            assert ("alert" in rule) != ("record" in rule)
            assert all(duration.fullmatch(rule[key]) for key in ("for", "keep_firing_for") if key in rule)
            texts = [rule["expr"], *rule.get("labels", {}).values(), *rule.get("annotations", {}).values()]
            assert all(isinstance(text, str) for text in texts)


def test_the_service_monitor_is_read_strictly_and_scrapes_as_prometheus_does() -> None:
    """It selects the service, by the port's name, at the pace of prometheus.yml, and the job has the rules' name."""
    objects = built("overlays/monitoring")
    monitor = objects["ServiceMonitor"]["spec"]
    assert monitor.keys() == {"selector", "endpoints", "sampleLimit"}
    assert objects["Service"]["metadata"]["labels"].items() >= monitor["selector"]["matchLabels"].items()
    assert objects["Service"]["metadata"]["name"] == "stream-monitor"  # what the operator makes the job's name of
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (endpoint,) = monitor["endpoints"]
    assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["port"] == objects["Service"]["spec"]["ports"][0]["name"]
    paces = (endpoint["interval"], endpoint["scrapeTimeout"])
    assert paces == tuple(prometheus["global"][key] for key in ("scrape_interval", "scrape_timeout"))
    assert duration_seconds(endpoint["scrapeTimeout"]) < duration_seconds(endpoint["interval"])
    assert monitor["sampleLimit"] == prometheus["scrape_configs"][0]["sample_limit"]
    for kind in OF_THE_OPERATOR:
        assert objects[kind]["metadata"]["labels"]["release"] == "kube-prometheus-stack"
