"""Rules, runbooks and routing: run by Prometheus' own tools, and held to the catalogue of metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_monitor.config import load
from stream_monitor.publish.catalogue import CATALOGUE, PREFIX
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import create_app
from stream_monitor.records import IncidentKind

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
ROUTING = DEPLOY / "alertmanager" / "alertmanager.yml"
TEMPLATES = ROUTING.parent / "templates" / "*.tmpl"
RULE_TESTS = ("rules_test.yaml", "rules_weeks_test.yaml")
DASHBOARDS = {"Models", "Model", "Feature", "Labels and performance", "The monitor itself"}
RUNBOOKS = sorted((DEPLOY / "runbooks").glob("*.md"))


def run_tool(*command: str, cwd: Path = PROMETHEUS) -> str:
    """The output of one of Prometheus' tools; a finding fails the test, a missing tool skips it."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    """Every rule of the rules file."""
    body = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text(encoding="utf-8"))
    return [rule for group in body["groups"] for rule in group["rules"]]


def cases() -> list[dict[str, Any]]:
    """Every case of the rule tests."""
    bodies = [yaml.safe_load((PROMETHEUS / name).read_text(encoding="utf-8")) for name in RULE_TESTS]
    return [case for body in bodies for case in body["tests"]]


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
    """Every metric of ours in a text; what a rule records has a level before its name and is no metric."""
    return set(re.findall(rf"(?<![\w:]){PREFIX}\w+(?!\w|:)", text))


def test_rules_pass_promtool_check() -> None:
    """The rules file parses and lints clean."""
    run_tool("promtool", "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml")


@pytest.mark.parametrize("name", RULE_TESTS)
def test_rules_hold_below_and_above_each_number(name: str) -> None:
    """The rule tests pass."""
    run_tool("promtool", "test", "rules", name)


def test_what_is_recorded_is_used_and_what_is_used_is_recorded() -> None:
    """No rule reads a name that no rule writes, and none is written for nobody."""
    made = {rule["record"] for rule in rules() if "record" in rule}
    text = "\n".join(rule["expr"] + "\n".join(rule.get("annotations", {}).values()) for rule in rules())
    assert set(re.findall(r"\w+:stream_monitor_\w+:\w+", text)) == made


def test_every_kind_of_incident_rings_under_one_name() -> None:
    """Each kind that the service may open is caught by one alert; lost records by a rule of their own."""
    caught: dict[str, set[str]] = {str(kind): set() for kind in IncidentKind}
    for alert in alerts():
        rings_on = re.sub(r"last_over_time\([^)]*\)", "", alert["expr"])  # what was open lately only holds back
        for operator, value in re.findall(r'_incident_active:open\{\s*kind(=|!~)"([^"]*)"', rings_on):
            for kind, names in caught.items():
                if (kind == value) if operator == "=" else re.fullmatch(value, kind) is None:
                    names.add(alert["alert"])
    assert caught.pop("data_loss") == set()
    assert all(len(names) == 1 for names in caught.values()), caught


def test_prometheus_configuration_is_valid() -> None:
    """prometheus.yml parses and finds the rules."""
    assert "1 rule files found" in run_tool("promtool", "check", "config", "prometheus.yml")


def test_alertmanager_configuration_is_valid() -> None:
    """alertmanager.yml and its templates parse."""
    found = run_tool("amtool", "check-config", str(ROUTING))
    assert "1 templates" in found


def test_every_alert_is_tested() -> None:
    """Each alert is expected to fire in one rule test, and expected to be silent in one."""
    checks = [check for case in cases() for check in case.get("alert_rule_test", [])]
    names = {alert["alert"] for alert in alerts()}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == names
    assert {check["alertname"] for check in checks if not check["exp_alerts"]} == names - {"Watchdog"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_use_metrics_of_the_catalogue(rule: dict[str, Any]) -> None:
    """Each metric name in an expression or a text is one that the service exposes."""
    text = "\n".join([rule["expr"], *rule.get("annotations", {}).values()])
    assert named(text) <= exposed().keys()
    assert "stream_monitor" in text or "up{" in text or rule["alert"] == "Watchdog"


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
    for series in (item["series"] for case in cases() for item in case["input_series"]):
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
    assert annotations.get("dashboard", "/d/stream-monitor-").startswith("/d/stream-monitor-")
    is_judged = "_active:open" in alert["expr"]  # an incident brings its own
    assert is_judged or alert["labels"]["severity"] in {"critical", "warning", "none"}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_alerts_about_models_name_the_team(alert: dict[str, Any]) -> None:
    """Whatever names a model can be routed to who answers for it; the rest is the monitor's own."""
    is_about_model = "model" in alert["annotations"]
    assert is_about_model == ("_active:open" in alert["expr"] or "model_info:team" in alert["expr"])


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


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_runbooks_name_where_to_look(path: Path) -> None:
    """The diagnosis names a dashboard, and a call that the service answers (the two tools' own for the Watchdog)."""
    diagnosis = path.read_text(encoding="utf-8").partition("## Diagnosis")[2]
    assert set(re.findall(r'[Dd]ashboards? "([^"]+)"', diagnosis)) <= DASHBOARDS
    assert re.search(r'[Dd]ashboard "', diagnosis)
    view: Any = None
    routes = {str(vars(route)["path"]) for route in create_app(view, Publisher(series=1000)).routes}
    called = re.findall(r"`GET (/[^?`]*)", diagnosis)
    assert called or path.stem == "Watchdog"
    assert {re.sub(r"<\w+>", "{incident_id}", call) for call in called} <= routes


def test_an_incident_is_one_alert_whatever_its_subjects() -> None:
    """The incident's labels are those of the gauge without `subject`, in every aggregation."""
    for family in ("incident", "segment_incident"):
        (rule,) = [r for r in rules() if r.get("record") == f"{family}:stream_monitor_{family}_active:open"]
        kept = exposed()[f"stream_monitor_{family}_active"] - {"subject"}
        for by in re.findall(r"\b(?:by|or on) \(([^)]*)\)", rule["expr"]):
            assert {label.strip() for label in by.split(",")} == kept


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        (("alertname=StreamMonitorDataDrift", "model=credit", "team=risk", "severity=critical"), "pager,risk"),
        (("alertname=StreamMonitorDataDrift", "model=credit", "team=risk", "severity=warning"), "risk"),
        (("alertname=StreamMonitorDataDrift", "model=credit", "team=risk", "severity=info"), "nobody"),
        (("alertname=StreamMonitorSegmentIncident", "model=demand", "team=supply", "severity=warning"), "supply"),
        (("alertname=StreamMonitorVolumeLow", "model=other", "severity=warning"), "people"),
        (("alertname=StreamMonitorNoTraffic", "model=other", "team=new", "severity=critical"), "pager,people"),
        (("alertname=StreamMonitorDown", "severity=critical"), "pager,people"),
        (("alertname=Watchdog", "severity=none"), "watchdog"),
    ],
)
def test_alerts_reach_their_receiver(labels: tuple[str, ...], receivers: str) -> None:
    """By team, critical ones the pager as well; info is told to nobody; the Watchdog has its own way."""
    command = ("amtool", "config", "routes", "test", f"--config.file={ROUTING}", f"--verify.receivers={receivers}")
    assert run_tool(*command, *labels).split() == [receivers]


TEAM = re.compile(r'team = "(\w+)"')


def test_every_team_of_the_example_has_a_route() -> None:
    """The example configuration's teams are those the example routes send to."""
    body = yaml.safe_load(ROUTING.read_text(encoding="utf-8"))
    routed = {m[1] for r in body["route"]["routes"] if (m := TEAM.fullmatch(*r.get("matchers", [""])[:1]))}
    assert routed == {model.team for model in load(DEPLOY / "monitor.yaml", {}).models.values()}


def test_receivers_are_as_their_names_say() -> None:
    """Nobody has no address, those that have one hear of the end as well, a model is one message."""
    body = yaml.safe_load(ROUTING.read_text(encoding="utf-8"))
    receivers = {receiver.pop("name"): receiver for receiver in body["receivers"]}
    assert receivers["nobody"] == {}
    assert {name for name, receiver in receivers.items() if receiver} == {"risk", "supply", "people"}
    assert all(hook["send_resolved"] for receiver in receivers.values() for hook in receiver.get("webhook_configs", []))
    assert body["route"]["group_by"] == ["model"]


def test_the_examples_in_the_routing_are_valid(tmp_path: Path) -> None:
    """Slack, PagerDuty, e-mail and webhook, freed of their comment signs, parse."""
    text = re.sub(r"(?m)^  #   ", "    ", ROUTING.read_text(encoding="utf-8"))
    given = {key for receiver in yaml.safe_load(text)["receivers"] for key in receiver}
    assert given == {"name", "slack_configs", "pagerduty_configs", "email_configs", "webhook_configs"}
    shutil.copytree(TEMPLATES.parent, tmp_path / "templates")
    (tmp_path / "alertmanager.yml").write_text(text, encoding="utf-8")
    assert "1 templates" in run_tool("amtool", "check-config", str(tmp_path / "alertmanager.yml"))


def message(status: str, *told: dict[str, Any]) -> dict[str, Any]:
    """What Alertmanager gives a template."""
    alerts = [{"status": status, "startsAt": "2026-11-21T10:03:00Z", **alert} for alert in told]
    return {"receiver": "risk", "status": status, "alerts": alerts, "groupLabels": {"model": "credit"}}


BROKEN = {
    "labels": {"alertname": "StreamMonitorBrokenInput", "model": "credit", "version": "7", "severity": "critical"},
    "annotations": {
        "what": "broken input",
        "features": "age, income, zip, note, tenure",
        "effect": "3.1",
        "since": "2026-11-21 10:02 UTC",
        "dashboard": "/d/stream-monitor-model?var-model=credit",
    },
}
SILENT = {
    "labels": {"alertname": "StreamMonitorNoTraffic", "model": "credit", "severity": "critical"},
    "annotations": {"what": "no traffic", "description": "Nothing came.", "dashboard": "/d/stream-monitor-models"},
}
PARAGRAPH = """\
broken input, version 7
since 2026-11-21 10:02 UTC, size 3.1
age, income, zip, note, tenure
"""


def rendered(tmp_path: Path, data: dict[str, Any]) -> tuple[str, str]:
    """Title and text, by Alertmanager's own tool."""
    path = tmp_path / "data.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    text = '{{ template "stream-monitor.title" . }}|{{ template "stream-monitor.text" . }}'
    options = (f"--template.glob={TEMPLATES}", f"--template.data={path}", f"--template.text={text}")
    title, _, body = run_tool("amtool", "template", "render", *options).partition("|")
    return title, body


def test_a_message_fits_a_phone(tmp_path: Path) -> None:
    """Model and what in the title; since when, how bad, the worst features and the link below, in short lines."""
    title, body = rendered(tmp_path, message("firing", BROKEN, SILENT))
    assert title == "credit: broken input +1"
    assert body.startswith(f"critical: {PARAGRAPH}http://localhost:3000/d/stream-monitor-model?var-model=credit\n")
    assert "critical: Nothing came.\nsince 2026-11-21 10:03 UTC\nhttp://localhost:3000/d/stream-monitor-models" in body
    assert all(len(line) <= 70 for line in body.splitlines())


def test_a_message_says_that_it_is_over(tmp_path: Path) -> None:
    """One alert, resolved: no link, since nothing is left to look at."""
    assert rendered(tmp_path, message("resolved", BROKEN)) == ("Over: credit: broken input", f"over: {PARAGRAPH}")


def test_a_long_name_does_not_push_the_rest_off_the_screen(tmp_path: Path) -> None:
    """A title is at most 64 characters."""
    data = message("firing", {**BROKEN, "annotations": {"what": "w" * 80}})
    data["groupLabels"] = {"model": "m" * 80}
    assert len(rendered(tmp_path, data)[0]) <= 64


def test_no_alert_can_hold_itself_back() -> None:
    """No alert is both source and target of one inhibition unless their severities, or its kind of subject, differ."""
    body = yaml.safe_load(ROUTING.read_text(encoding="utf-8"))
    names = {alert["alert"]: "model" in alert["annotations"] for alert in alerts()}
    for rule in body["inhibit_rules"]:
        source, target = (_matched(rule[side], names) for side in ("source_matchers", "target_matchers"))
        assert source, rule
        assert target, rule
        severities = {m for side in ("source_matchers", "target_matchers") for m in rule[side] if "severity" in m}
        assert not source & target or len(severities) == 2


def test_the_monitors_trouble_holds_back_all_it_cannot_judge() -> None:
    """Down, absent or standing still: every alert about a model is a target."""
    body = yaml.safe_load(ROUTING.read_text(encoding="utf-8"))
    names = {alert["alert"]: "model" in alert["annotations"] for alert in alerts()}
    for trouble in ("StreamMonitorDown", "StreamMonitorAbsent", "StreamMonitorCheckpointOld"):
        held: set[str] = set()
        for rule in body["inhibit_rules"]:
            if trouble in _matched(rule["source_matchers"], names) and "equal" not in rule:
                held |= _matched(rule["target_matchers"], names)
        assert held >= {name for name, is_about_model in names.items() if is_about_model}


def _matched(matchers: list[str], names: dict[str, bool]) -> set[str]:
    """The alerts that an inhibition's side matches by name, and by whether they are about a model."""
    (pattern,) = re.findall(r'alertname =~? "([^"]*)"', " ".join(matchers))
    needs_model = 'model != ""' in matchers
    return {name for name, has_model in names.items() if re.fullmatch(pattern, name) and (has_model or not needs_model)}
