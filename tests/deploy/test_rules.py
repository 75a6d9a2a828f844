"""Rules, runbooks and routing: run by Prometheus' own tools, and held to the catalogue of metrics."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_monitor.publish.catalogue import CATALOGUE, PREFIX

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
ROUTING = DEPLOY / "alertmanager" / "alertmanager.yml"
RUNBOOKS = sorted((DEPLOY / "runbooks").glob("*.md"))


def run_tool(*command: str, cwd: Path = PROMETHEUS) -> str:
    """The output of one of Prometheus' tools; a finding fails the test, a missing tool skips it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    """Every rule of the rules file."""
    body = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))
    return [rule for group in body["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Every alerting rule."""
    return [rule for rule in rules() if "alert" in rule]


def exposed() -> dict[str, set[str]]:
    """Every name that a scrape may hold, with its labels."""
    names = {}
    for metric in CATALOGUE:
        ends = ("_bucket", "_sum", "_count", "") if metric.kind == "histogram" else ("",)
        names.update({metric.full_name + end: {*metric.labels, *(["le"] if end == "_bucket" else [])} for end in ends})
    return names


def named(text: str) -> set[str]:
    """Every metric of ours in a text; names in recording rules have a level before them and are no metrics."""
    return set(re.findall(rf"(?<![\w:]){PREFIX}\w+(?!\w|:)", text))


def test_rules_pass_promtool_check() -> None:
    """The rules file parses and lints clean."""
    run_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")


def test_rules_hold_below_and_above_each_number() -> None:
    """The rule tests pass."""
    run_tool("promtool", "test", "rules", "rules_test.yaml")


def test_prometheus_configuration_is_valid() -> None:
    """prometheus.yml parses and finds the rules."""
    assert "1 rule files found" in run_tool("promtool", "check", "config", "prometheus.yml")


def test_alertmanager_configuration_is_valid() -> None:
    """alertmanager.yml and its templates parse."""
    found = run_tool("amtool", "check-config", str(ROUTING))
    assert "1 templates" in found


def test_every_alert_is_tested() -> None:
    """Each alert is expected to fire in one rule test, and expected to be silent in one."""
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    checks = [check for case in cases for check in case.get("alert_rule_test", [])]
    names = {alert["alert"] for alert in alerts()}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == names
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == names


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_metrics_of_the_catalogue(rule: dict[str, Any]) -> None:
    """Each metric name in an expression or a text is one that the service exposes."""
    text = "\n".join([rule["expr"], *rule.get("annotations", {}).values()])
    assert named(text) <= exposed().keys()
    assert named(text) or "up{" in text


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_selectors_use_labels_of_the_catalogue(rule: dict[str, Any]) -> None:
    """Each matcher on a metric of ours names a label it has, or one of the target."""
    labels = exposed()
    text = "\n".join([rule["expr"], *rule.get("annotations", {}).values()])
    for name, matchers in re.findall(rf"(?<![\w:])({PREFIX}\w+)\{{([^}}]*)\}}", text):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= labels[name] | {"job", "instance"}


def test_rule_tests_write_series_as_exposed() -> None:
    """The rule tests' input has names and labels of the catalogue, so that both cannot be wrong in the same way."""
    labels = exposed()
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text(encoding="utf-8"))["tests"]
    for series in (item["series"] for case in cases for item in case["input_series"]):
        name, _, rest = series.partition("{")
        if name != "up":
            assert set(re.findall(r'(\w+)="', rest)) - {"job", "instance"} == labels[name], series


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_every_alert_says_what_and_where_to_read_on(alert: dict[str, Any]) -> None:
    """Each alert has a severity, a summary, a description and a runbook that is there."""
    annotations = alert["annotations"]
    assert annotations["summary"].endswith(".")
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"deploy/runbooks/{alert['alert']}.md"
    assert (DEPLOY.parent / annotations["runbook_url"]).is_file()
    is_judged = "severity" in alert["expr"]  # an incident brings its own
    assert is_judged or alert["labels"]["severity"] in {"critical", "warning", "info"}


def test_no_runbook_without_an_alert() -> None:
    """There is one runbook for each alert and no other."""
    assert {path.stem for path in RUNBOOKS} == {alert["alert"] for alert in alerts()}


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_runbooks_have_four_parts_and_true_names(path: Path) -> None:
    """Each runbook has its four parts and names metrics of the catalogue and alerts of the rules only."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert text.startswith(f"# {path.stem}\n")
    assert named(text) <= exposed().keys()
    assert set(re.findall(r"\bStreamMonitor[A-Z]\w+", text)) <= {alert["alert"] for alert in alerts()}


def test_an_incident_is_one_alert_whatever_its_subjects() -> None:
    """The incident's labels are those of the gauge without `subject`, in every aggregation."""
    (rule,) = [alert for alert in alerts() if alert["alert"] == "StreamMonitorIncident"]
    kept = exposed()["stream_monitor_incident_active"] - {"subject"}
    for by in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
        assert {label.strip() for label in by.split(",")} == kept


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=StreamMonitorIncident", "model=credit", "severity=critical"), "people"),
        (("alertname=StreamMonitorIncident", "model=credit", "severity=warning"), "people"),
        (("alertname=StreamMonitorIncident", "model=credit", "severity=info"), "nobody"),
        (("alertname=StreamMonitorSegmentIncident", "model=credit", "severity=info"), "nobody"),
        (("alertname=StreamMonitorDown", "severity=critical"), "people"),
    ],
)
def test_alerts_reach_their_receiver(labels: tuple[str, ...], receiver: str) -> None:
    """Info is told to nobody, the rest to people."""
    found = run_tool("amtool", "config", "routes", "test", f"--config.file={ROUTING}", *labels)
    assert found.split() == [receiver]


def test_receivers_are_as_their_names_say() -> None:
    """The receiver for info has no address, the one for people hears of the end as well, a model is one message."""
    body = yaml.safe_load(ROUTING.read_text(encoding="utf-8"))
    receivers = {receiver.pop("name"): receiver for receiver in body["receivers"]}
    assert receivers["nobody"] == {}
    assert all(hook["send_resolved"] for hook in receivers["people"]["webhook_configs"])
    assert body["route"]["group_by"] == ["model"]


def test_no_alert_can_hold_itself_back() -> None:
    """No alert name is both source and target of one inhibition unless their severities differ."""
    body = yaml.safe_load(ROUTING.read_text(encoding="utf-8"))
    names = [alert["alert"] for alert in alerts()]
    for rule in body["inhibit_rules"]:
        source, target = (_matched(rule[side], names) for side in ("source_matchers", "target_matchers"))
        assert source, rule
        assert target, rule
        severities = {m for side in ("source_matchers", "target_matchers") for m in rule[side] if "severity" in m}
        assert not source & target or len(severities) == 2


def _matched(matchers: list[str], names: list[str]) -> set[str]:
    """The alerts whose name an inhibition's side matches."""
    (pattern,) = re.findall(r'alertname =~? "([^"]*)"', " ".join(matchers))
    return {name for name in names if re.fullmatch(pattern, name)}
