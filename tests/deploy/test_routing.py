"""The shipped routes and inhibitions in a running Alertmanager: who is told, and what is held back."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers.prometheus import Alertmanager, StartAlertmanager
from servers.webhook import Webhook

DEPLOY = Path(__file__).parents[2] / "deploy"

Labels = dict[str, str]


def routing(url: str) -> dict[str, Any]:
    """The shipped configuration, with receivers that exist here and a shorter wait."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    config["templates"] = [str(DEPLOY / "alertmanager" / pattern) for pattern in config["templates"]]
    for receiver in config["receivers"]:
        for hook in receiver.get("webhook_configs", []):
            hook["url"] = url
    return config


def send(manager: Alertmanager, *alerts: Labels) -> None:
    """Fire alerts as Prometheus does."""
    body = [{"labels": labels, "annotations": {"what": "a test", "description": "A test."}} for labels in alerts]
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{manager.url}/api/v2/alerts", json.dumps(body).encode(), headers, method="POST")
    urllib.request.urlopen(request, timeout=5).close()


def held_back(manager: Alertmanager) -> set[tuple[str, str]]:
    """(name, model) of the alerts that are inhibited."""
    alerts = manager.alerts()
    return {(a["labels"]["alertname"], a["labels"].get("model", "")) for a in alerts if a["status"]["inhibitedBy"]}


def of_model(name: str, model: str, severity: str = "warning", **more: str) -> Labels:
    """An alert about version 7 of a model."""
    return {"alertname": f"StreamMonitor{name}", "model": model, "severity": severity, "version": "7", **more}


def own(name: str, severity: str = "warning", **more: str) -> Labels:
    """An alert about the monitor itself."""
    return {"alertname": f"StreamMonitor{name}", "job": "stream-monitor", "severity": severity, **more}


MODELS = [
    # What explains, and what it holds back; the third of each is another model or version, which it must not.
    of_model("BrokenInput", "broken", "critical", incident="a"),
    of_model("DataDrift", "broken", "critical", incident="b"),
    of_model("ConceptDrift", "broken", incident="c"),
    of_model("SegmentIncident", "broken", segment="market=eu", kind="data_drift", incident="d"),
    of_model("DataDrift", "broken too", incident="e"),
    # Counted over all versions of a model, of whatever outcome.
    {"alertname": "StreamMonitorLabelsLate", "model": "late", "severity": "warning"},
    of_model("Performance", "late", incident="f"),
    of_model("ObjectiveMissed", "late", metric="accuracy"),
    of_model("DataDrift", "late", incident="g"),
    # Found by the service in one version; in another, of another outcome, or not worth telling.
    of_model("LabelsLate", "found", kind="labels_late", outcome="label", incident="m"),
    of_model("ConceptDrift", "found", incident="n"),
    of_model("ObjectiveMissed", "found", metric="accuracy"),
    of_model("SegmentIncident", "found", segment="market=eu", kind="performance", incident="o"),
    of_model("LabelsLate", "found in 6", kind="labels_late", outcome="label", incident="p") | {"version": "6"},
    of_model("ConceptDrift", "found in 6", incident="q"),
    of_model("LabelsLate", "clicks", kind="labels_late", outcome="named", incident="r"),
    of_model("ConceptDrift", "clicks", incident="s"),
    of_model("Performance", "clicks", incident="t"),
    of_model("LabelsLate", "few", "info", kind="labels_late", outcome="label", incident="u"),
    of_model("Performance", "few", incident="v"),
    of_model("DataDrift", "grown", "critical", incident="h"),
    of_model("DataDrift", "grown", "warning", incident="h"),
    of_model("DataQuality", "whole", kind="data_quality", incident="i"),
    of_model("SegmentIncident", "whole", segment="market=eu", kind="data_quality", incident="j"),
    of_model("SegmentIncident", "part", segment="market=eu", kind="data_drift", incident="k"),
    {"alertname": "StreamMonitorNoTraffic", "model": "silent", "severity": "critical"},
    {"alertname": "StreamMonitorVolumeLow", "model": "silent", "severity": "warning"},
]
HELD = {
    ("StreamMonitorDataDrift", "broken"),
    ("StreamMonitorConceptDrift", "broken"),
    ("StreamMonitorSegmentIncident", "broken"),
    ("StreamMonitorPerformance", "late"),
    ("StreamMonitorObjectiveMissed", "late"),
    ("StreamMonitorConceptDrift", "found"),
    ("StreamMonitorObjectiveMissed", "found"),
    ("StreamMonitorSegmentIncident", "found"),
    ("StreamMonitorDataDrift", "grown"),
    ("StreamMonitorSegmentIncident", "whole"),
    ("StreamMonitorVolumeLow", "silent"),
}


def test_what_explains_holds_back_what_it_explains(alertmanager: StartAlertmanager, webhook: Webhook) -> None:
    """Broken input over drift, late labels over performance, the whole over its part; each model is one message."""
    manager = alertmanager(config=routing(webhook.url))
    send(manager, *MODELS)
    models = {alert["model"] for alert in MODELS}
    posts = webhook.wait_for(len(models), seconds=60)
    assert held_back(manager) == HELD
    told = [post.json() for post in posts]
    assert sorted(message["groupLabels"]["model"] for message in told) == sorted(models)
    named = {(a["labels"]["alertname"], a["labels"]["model"]) for message in told for a in message["alerts"]}
    assert not named & (HELD - {("StreamMonitorDataDrift", "grown")})
    assert {message["receiver"] for message in told} == {"people"}


@pytest.mark.parametrize("trouble", [own("Down", "critical", instance="a:1"), own("CheckpointOld", "critical")])
def test_the_monitors_own_trouble_holds_back_all_it_cannot_judge(
    trouble: Labels, alertmanager: StartAlertmanager, webhook: Webhook
) -> None:
    """Gone or standing still: one message about the monitor, none about a model; a storm and a full disk likewise."""
    manager = alertmanager(config=routing(webhook.url))
    about_models = [*MODELS, of_model("VolumeHigh", "loud"), of_model("BaselineMissing", "new", incident="l")]
    follows = [own("NotReady"), own("ConsumerLagGrowing", stream="inference")]
    send(manager, trouble, *about_models, *follows)
    (post,) = webhook.wait_for(1, seconds=60)
    assert post.json()["receiver"] == "people"
    assert [alert["labels"]["alertname"] for alert in post.json()["alerts"]] == [trouble["alertname"]]
    told = {(alert["alertname"], alert.get("model", "")) for alert in (*about_models, *follows)}
    assert held_back(manager) == told


def test_what_is_refused_or_waits_is_nobodys_missing_traffic(alertmanager: StartAlertmanager, webhook: Webhook) -> None:
    """While records are refused or wait to be read, volumes and labels are not judged; drift is."""
    silent = [
        {"alertname": f"StreamMonitor{n}", "model": "m", "severity": "warning"} for n in ("NoTraffic", "LabelsLate")
    ]
    drift = of_model("DataDrift", "m", incident="a")
    manager = alertmanager(config=routing(webhook.url))
    send(
        manager,
        own("RejectStorm", "critical", stream="inference"),
        own("RejectsHigh", stream="inference"),
        *silent,
        drift,
    )
    webhook.wait_for(2, seconds=60)
    assert held_back(manager) == {
        ("StreamMonitorRejectsHigh", ""),
        ("StreamMonitorNoTraffic", "m"),
        ("StreamMonitorLabelsLate", "m"),  # by the traffic that is missing
    }
    late = alertmanager(config=routing(webhook.url))
    webhook.clear()
    send(late, own("WatermarkStuck", stream="inference"), *silent, drift)
    webhook.wait_for(2, seconds=60)
    assert held_back(late) == {("StreamMonitorNoTraffic", "m"), ("StreamMonitorLabelsLate", "m")}


def test_a_team_reads_its_models_and_nobody_else_does(alertmanager: StartAlertmanager, webhook: Webhook) -> None:
    """By team to its receiver, one message a model; info to nobody."""
    manager = alertmanager(config=routing(webhook.url))
    send(
        manager,
        of_model("DataDrift", "credit", team="risk", incident="a"),
        of_model("PredictionDrift", "credit", "critical", team="risk", incident="b"),
        of_model("DataDrift", "credit", "info", team="risk", incident="c"),
        of_model("ConceptDrift", "demand", team="supply", incident="d"),
    )
    posts = webhook.wait_for(2, seconds=60)
    messages = [post.json() for post in posts]
    told = {message["receiver"]: sorted(a["labels"]["incident"] for a in message["alerts"]) for message in messages}
    assert told == {"risk": ["a", "b"], "supply": ["d"]}
