"""Seconds from the event that gives a drift away to the message about it, with everything as it is shipped.

A stream in real time goes to a real broker, the service reads it, Prometheus scrapes it and evaluates the shipped rules
as the shipped configuration says, Alertmanager routes by the shipped routes. One feature shifts. Needs Java, Prometheus
and Alertmanager (see tests/servers/).

python tests/benchmarks/notification.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import yaml
from kafka import KafkaProducer
from servers import prometheus as servers
from servers.kafka import Kafka, fetch, unavailable
from servers.service import MonitorProcess
from servers.webhook import Webhook

DEPLOY = Path(__file__).parents[2] / "deploy"
CLEAN_SECONDS = 45
PROMISED_SECONDS = 90


def event(draw: random.Random, number: int, at: float, *, drifted: bool) -> bytes:
    """One prediction of a model with two features, of which `income` shifts by a standard deviation."""
    features = {"age": draw.gauss(41, 12), "income": draw.gauss(52 + 15 * drifted, 15)}
    return json.dumps({"inference_id": f"n{number}", "model": "credit", "version": "7", "timestamp": at,
                       "features": features, "prediction": {"label": "deny", "score": 0.4}}).encode()  # fmt: skip


def baseline(folder: Path) -> Path:
    """Rows from before."""
    draw, path = random.Random(1), folder / "baseline.jsonl"
    rows = (event(draw, i, 1_700_000_000 + i, drifted=False) for i in range(20_000))
    path.write_bytes(b"".join(row + b"\n" for row in rows))
    return path


def routing(webhook_url: str) -> dict[str, Any]:
    """The shipped routes, with a receiver that exists here."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    config["templates"] = [str(DEPLOY / "alertmanager" / pattern) for pattern in config["templates"]]
    for receiver in config["receivers"]:
        for hook in receiver.get("webhook_configs", []):
            hook["url"] = webhook_url
    return config


def timing() -> Mapping[str, str]:
    """How often the shipped Prometheus scrapes and evaluates."""
    found: Mapping[str, str] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["global"]
    return found


def stream(broker: Kafka, topic: str, per_second: int, webhook: Webhook) -> tuple[float, float]:
    """Send in real time until the message comes; when the drift began, and when it came (Unix seconds)."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=10)
    draw, began, number, shifted_at = random.Random(3), time.time(), 0, 0.0
    while True:
        at = time.time()
        drifted = at - began > CLEAN_SECONDS
        if drifted and not shifted_at:
            shifted_at = at
        producer.send(topic, event(draw, number, at, drifted=drifted))
        number += 1
        told = [post for post in webhook.posts if any(a["labels"].get("kind") for a in post.json()["alerts"])]
        if told:
            producer.close()
            return shifted_at, time.time()
        if at - began > CLEAN_SECONDS + 5 * PROMISED_SECONDS:
            raise SystemExit("nothing was told")
        time.sleep(max(0.0, began + number / per_second - time.time()))


def measure(broker: Kafka, folder: Path, per_second: int, repeat: int) -> None:
    """One drift, from its first event to its message."""
    folder.mkdir()
    topic = f"notification-{repeat}"
    broker.create_topic(topic, 2)
    config = {
        "source": {"bootstrap_servers": broker.bootstrap, "start": "earliest", "inference": [topic]},
        "models": {"credit": {"task": "binary", "positive_label": "deny", "team": "risk",
                              "baseline": str(baseline(folder))}},
    }  # fmt: skip
    monitor, webhook = MonitorProcess(folder / "monitor", config), Webhook()
    webhook.start()
    monitor.start()
    pager = servers.Alertmanager(folder / "alertmanager", config=routing(webhook.url))
    metrics = servers.Prometheus(
        folder / "prometheus",
        {"stream-monitor": [f"127.0.0.1:{monitor.port}"]},
        rule_files=[DEPLOY / "prometheus" / "rules.yaml"],
        alertmanager=pager,
        timing=timing(),
    )
    try:
        pager.start()
        metrics.start()
        shifted_at, told_at = stream(broker, topic, per_second, webhook)
        (incident,) = [i for i in monitor.get("incidents") if i["kind"] == "data_drift"]
        evidence_at = datetime.fromisoformat(incident["opened_at"]).timestamp()
        print(
            f"{evidence_at - shifted_at:10.1f} {told_at - evidence_at:10.1f} {told_at - shifted_at:10.1f}", flush=True
        )
    finally:
        metrics.stop()
        pager.stop()
        monitor.stop()
        webhook.stop()


def main() -> None:
    """Print a line for each repetition."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--per-second", type=int, default=20)
    options = parser.parse_args()
    missing = unavailable() or servers.unavailable()
    if missing:
        print(f"notification: left out, {missing}")
        return
    fetch()
    with tempfile.TemporaryDirectory() as folder:
        broker = Kafka(Path(folder) / "broker")
        broker.start()
        print(f"seconds, {options.per_second} events/s, a shift of 1 sd; promised {PROMISED_SECONDS} from the evidence")
        print(f"{'to see it':>10} {'to tell it':>10} {'together':>10}")
        try:
            for repeat in range(options.repeats):
                measure(broker, Path(folder) / str(repeat), options.per_second, repeat)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
