"""The whole line, live: Kafka events in, a page out."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaProducer
from servers.kafka import Kafka
from servers.prometheus import StartAlertmanager, StartPrometheus
from servers.service import MonitorProcess
from servers.webhook import Webhook

DEPLOY = Path(__file__).parents[2] / "deploy"
ROWS_A_SECOND = 40  # of event time, which runs 30 times as fast as the clock
PACE = 30.0


def event(rng: random.Random, number: int, at: float, *, drifted: bool) -> bytes:
    """A credit event; the drift is in `income` alone."""
    body = {
        "inference_id": f"s{number}",
        "model": "credit",
        "version": "7",
        "timestamp": at,
        "features": {"age": rng.gauss(41, 12), "income": rng.gauss(52 + 20 * drifted, 15), "channel": rng.choice("ab")},
        "prediction": {"label": "deny", "score": 0.4},
    }
    return json.dumps(body).encode()


def baseline(folder: Path) -> Path:
    """Rows from before, as a team has them."""
    rng = random.Random(1)
    path = folder / "baseline.jsonl"
    path.write_bytes(b"".join(event(rng, i, 1_700_000_000 + i, drifted=False) + b"\n" for i in range(20_000)))
    return path


class Stream:
    """Sends events whose event time runs faster than the clock."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=10)
        self._topic = topic
        self._rng = random.Random(3)
        self._number = 0
        self._time = time.time() - 6 * 3600

    def send(self, event_seconds: float, *, drifted: bool) -> None:
        """So many seconds of event time, at the pace."""
        for _ in range(int(event_seconds)):
            for part in range(ROWS_A_SECOND):
                at = self._time + part / ROWS_A_SECOND
                self._number += 1
                value = event(self._rng, self._number, at, drifted=drifted)
                self._producer.send(self._topic, key=str(self._number).encode(), value=value)
            self._time += 1
            time.sleep(1 / PACE)
        self._producer.flush()

    def close(self) -> None:
        self._producer.close()


def routing(webhook_url: str) -> dict[str, Any]:
    """The shipped routes, with a receiver that exists here and waits of a second instead of a minute."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "2s", "group_interval": "2s"}
    config["templates"] = [str(DEPLOY / "alertmanager" / pattern) for pattern in config["templates"]]
    for receiver in config["receivers"]:
        for hook in receiver.get("webhook_configs", []):
            hook["url"] = webhook_url
    return config


def rules(folder: Path) -> Path:
    """The shipped rules, but resolved alerts are let go of at once."""
    text = (DEPLOY / "prometheus" / "rules.yaml").read_text().replace("keep_firing_for: 1m", "keep_firing_for: 3s")
    path = folder / "rules.yaml"
    path.write_text(text)
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_drift_reaches_a_person_once_and_is_taken_back(
    kafka: Kafka, prometheus: StartPrometheus, alertmanager: StartAlertmanager, webhook: Webhook, tmp_path: Path
) -> None:
    """Producer, Kafka, service, Prometheus, rule, Alertmanager, webhook: one message naming model and feature; resolved."""
    kafka.create_topic("live", 2)
    config = {
        "source": {"bootstrap_servers": kafka.bootstrap, "start": "earliest", "inference": ["live"]},
        "pane": "1s",
        "allowed_lateness": "2s",
        "windows": ["30s"],
        "models": {
            "credit": {"task": "binary", "positive_label": "deny", "team": "risk", "baseline": str(baseline(tmp_path))}
        },
    }
    monitor = MonitorProcess(tmp_path / "monitor", config)
    monitor.start()
    pager = alertmanager(config=routing(webhook.url))
    metrics = prometheus(
        {"stream-monitor": [f"127.0.0.1:{monitor.port}"]}, rule_files=[rules(tmp_path)], alertmanager=pager
    )
    stream = Stream(kafka, "live")
    try:
        stream.send(100, drifted=False)
        monitor.wait_until(lambda s: s["inference"]["summarised"] >= 3900)
        metrics.wait_until(lambda p: bool(p.query("stream_monitor_feature_drift_score")))
        assert not webhook.posts

        stream.send(90, drifted=True)
        posts = webhook.wait_for(lambda post: is_about(post.json(), "firing"), seconds=180)
        stream.send(60, drifted=True)
        firing = [post.json() for post in posts if is_about(post.json(), "firing")]
        assert len(firing) == 1
        alert = next(a for a in firing[0]["alerts"] if a["labels"]["kind"] == "data_drift")
        assert alert["labels"]["model"] == "credit"
        assert "income" in alert["annotations"]["features"]
        assert "age" not in alert["annotations"]["features"]
        drift = [i for i in monitor.get("incidents") if i["kind"] == "data_drift"]
        assert [s["name"] for s in drift[0]["subjects"]] == ["income"]

        stream.send(150, drifted=False)
        webhook.wait_for(lambda post: is_about(post.json(), "resolved"), seconds=180)
        told = [[(a["status"], a["labels"], a["startsAt"]) for a in post.json()["alerts"]] for post in webhook.posts]
        assert [[alert[0] for alert in alerts] for alerts in told] == [["firing"], ["resolved"]], told
        closed = [i for i in monitor.get("incidents?state=closed") if i["kind"] == "data_drift"]
        assert len(closed) == 1
    finally:
        stream.close()
        assert monitor.stop() == 0


def is_about(body: dict[str, Any], status: str) -> bool:
    """Whether a message says that a data drift is firing, or over."""
    return any(a["status"] == status and a["labels"].get("kind") == "data_drift" for a in body["alerts"])
