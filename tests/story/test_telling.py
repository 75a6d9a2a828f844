"""A running service tells others of its incidents: killed, stopped and refused, on webhooks and on a topic."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from servers.kafka import Kafka
from servers.service import MonitorProcess
from servers.webhook import Post, Webhook

from stream_monitor.cli import run_command

SECRET = "whsec_" + base64.b64encode(b"a secret of some length").decode()
ROWS = 6_000


def events() -> list[bytes]:
    """Ten minutes of a model; after half of them its applicants grow older by two standard deviations."""
    rng = random.Random(4)
    start = time.time() - 7200
    return [
        json.dumps(
            {
                "inference_id": n,
                "model": "credit",
                "version": "7",
                "timestamp": start + n * 0.1,
                "features": {"age": rng.gauss(41 + 24 * (n > ROWS / 2), 12), "channel": rng.choice("ab")},
            }
        ).encode()
        for n in range(ROWS)
    ]


def configuration(folder: Path, **publish: Any) -> dict[str, Any]:
    """A file read to its end, and who is told."""
    (folder / "inference.jsonl").write_bytes(b"\n".join(events()) + b"\n")
    return {
        "source": {"kind": "files", "inference": [str(folder / "inference.jsonl")]},
        "pane": "1s",
        "windows": ["1m"],
        "drift": {"learn_from": 1000},
        "publish": publish,
    }


def is_drift(post: Post) -> bool:
    """Whether it tells that the drift opened."""
    body = post.json()
    return bool(body["data"]["kind"] == "data_drift" and body["type"] == "stream_monitor.incident.opened")


def is_genuine(post: Post) -> bool:
    """Verified as the standard says, by the test's own code."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    signed = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.".encode() + post.body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return hmac.compare_digest(expected, post.headers["webhook-signature"])


@pytest.mark.slow
def test_killed_while_the_receiver_fails_each_change_still_has_one_id(webhook: Webhook, tmp_path: Path) -> None:
    """500, SIGKILL, start again, accepted: the same ids, the incidents of the API, and nothing told a second time."""
    webhook.status = 500
    hook = {"url": f"{webhook.url}hunter2", "secret": SECRET}
    service = MonitorProcess(tmp_path, configuration(tmp_path, webhooks=[hook]))
    service.start()
    webhook.wait_for(2, seconds=180)
    service.kill()
    failed = {post.headers["webhook-id"]: post.body for post in webhook.posts}
    webhook.clear()
    webhook.status = 200
    service.start()
    webhook.wait_for(is_drift, seconds=180)
    service.wait_until(lambda s: s["inference"]["offered"] == ROWS)

    def settled(text: str) -> bool:
        return 'stream_monitor_deliveries_waiting{target="webhook"} 0.0' in text

    until = time.monotonic() + 60
    while not settled(metrics := service.metrics()):
        assert time.monotonic() < until, metrics
        time.sleep(0.2)
    posts = webhook.posts
    told = {post.headers["webhook-id"]: post for post in posts}
    assert failed.items() <= {identity: post.body for identity, post in told.items()}.items()
    assert all(is_genuine(post) for post in posts)
    assert all(post.headers["webhook-id"] == post.json()["id"] for post in posts)
    once = [(post.json()["data"]["id"], post.json()["type"]) for post in told.values()]
    once = [(incident, what) for incident, what in once if not what.endswith("updated")]
    assert len(set(once)) == len(once) >= 2
    latest = {body["data"]["id"]: body["data"] for body in (post.json() for post in told.values())}
    listed = {incident["id"]: incident for incident in service.get("incidents")}
    assert {i: d["closed_at"] for i, d in latest.items()} == {i: d["closed_at"] for i, d in listed.items()}
    assert 'stream_monitor_deliveries_total{outcome="delivered",target="webhook"}' in metrics
    assert service.stop() == 0

    webhook.clear()
    service.start()
    service.wait_until(lambda s: s["inference"]["offered"] == ROWS)
    assert service.stop() == 0
    assert webhook.posts == ()
    log = service.log.read_text(encoding="utf-8")
    assert "delivery_failing" in log
    assert "delivered" in log
    assert "hunter2" not in log
    assert SECRET not in log


@pytest.mark.slow
def test_a_replay_tells_nobody(webhook: Webhook, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the configuration says: January is over. It says so."""
    (tmp_path / "monitor.yaml").write_text(json.dumps(configuration(tmp_path, webhooks=[{"url": webhook.url}])))
    arguments = ["--inference", str(tmp_path / "inference.jsonl"), "--config", str(tmp_path / "monitor.yaml")]
    assert run_command(["replay", *arguments, "--out", str(tmp_path / "out"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["incidents"] >= 2
    assert "a replay tells nobody" in said.err
    assert webhook.posts == ()


@pytest.mark.slow
def test_a_webhook_that_hangs_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Nor the service: it reads on, answers, and ends at SIGTERM."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/"
        service = MonitorProcess(tmp_path, configuration(tmp_path, webhooks=[{"url": url, "timeout": "5m"}]))
        service.start()
        mute.settimeout(180)
        peer, _ = mute.accept()
        with peer:
            assert peer.recv(4)
            service.wait_until(lambda s: s["inference"]["offered"] == ROWS)
            began = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_incidents_on_a_topic(kafka: Kafka, tmp_path: Path, client: str) -> None:
    """Keyed by model, in order, the objects of the API; both clients write the same."""
    if client == "confluent":
        pytest.importorskip("confluent_kafka")
    topic = f"acting-{client}"
    kafka.create_topic(topic, 1)
    kafka.create_topic(f"{topic}-drift", 3)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    for event in events():
        producer.send(topic, event)
    producer.flush()
    producer.close()
    config = configuration(tmp_path, drift_topic=f"{topic}-drift", event_source="/test")
    config["source"] = {
        "bootstrap_servers": kafka.bootstrap,
        "client": client,
        "start": "earliest",
        "inference": [topic],
    }
    service = MonitorProcess(tmp_path, config)
    service.start()
    service.wait_until(lambda s: s["inference"]["offered"] == ROWS)
    consumer = KafkaConsumer(f"{topic}-drift", bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest",
                             consumer_timeout_ms=30_000)  # fmt: skip
    found = []
    for record in consumer:
        body = json.loads(record.value)
        found.append(body)
        assert record.key == b"credit"
        assert dict(record.headers)["content-type"].startswith(b"application/cloudevents+json")
        if body["data"]["kind"] == "data_drift":
            break
    consumer.close()
    assert [body["sequence"] for body in found] == sorted(body["sequence"] for body in found)
    assert {body["source"] for body in found} == {"/test"}
    assert found[-1]["type"] == "stream_monitor.incident.opened"
    listed = {incident["id"]: incident for incident in service.get("incidents")}
    assert {body["data"]["id"] for body in found} <= set(listed)
    assert [s["name"] for s in found[-1]["data"]["subjects"]] == ["age"]
    assert service.stop() == 0
