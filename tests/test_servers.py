"""The servers of the tests themselves: what other tests lean on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from servers.kafka import USERS, Kafka
from servers.prometheus import StartAlertmanager, StartPrometheus
from servers.webhook import Webhook

RULE = """groups:
- name: test
  rules:
  - {alert: TooMuch, expr: thing > 1}
"""


@pytest.fixture
def exporter() -> Iterator[str]:
    """The address of something with one metric, `thing 2`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(b"thing 2\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def count(bootstrap: str, partition: TopicPartition, **security: str) -> int:
    """The number of records a client with these settings sees."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, **security)
    try:
        first, last = consumer.beginning_offsets([partition]), consumer.end_offsets([partition])
        return int(last[partition] - first[partition])
    finally:
        consumer.close()


def produce(broker: Kafka, topic: str, records: int) -> None:
    """Write to partition 0 and wait until all is acknowledged."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap)
    for number in range(records):
        producer.send(topic, str(number).encode(), partition=0)
    producer.flush()
    producer.close()


def test_a_broker_keeps_its_records_over_a_kill(kafka: Kafka) -> None:
    """What was acknowledged is there after SIGKILL and a start, at the same address."""
    kafka.create_topic("kept", 2)
    produce(kafka, "kept", 20)
    kafka.kill()
    kafka.start()
    assert count(kafka.bootstrap, TopicPartition("kept", 0)) == 20


def test_retention_and_new_partitions_can_be_staged(kafka: Kafka) -> None:
    """Records below an offset vanish, partitions are added."""
    kafka.create_topic("staged", 1)
    produce(kafka, "staged", 20)
    kafka.delete_records("staged", 0, 15)
    kafka.add_partitions("staged", 2)
    assert count(kafka.bootstrap, TopicPartition("staged", 0)) == 5
    assert count(kafka.bootstrap, TopicPartition("staged", 1)) == 0


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_the_secure_broker_lets_its_users_in(kafka_tls: Kafka, mechanism: str) -> None:
    """Every mechanism over TLS with the private CA."""
    topic = f"secret-{mechanism}"
    kafka_tls.create_topic(topic)
    produce(kafka_tls, topic, 3)
    user = {"sasl_plain_username": "alice", "sasl_plain_password": USERS["alice"], "sasl_mechanism": mechanism}
    secure = {"security_protocol": "SASL_SSL", "ssl_cafile": str(kafka_tls.ca_file)}
    assert count(kafka_tls.sasl_bootstrap, TopicPartition(topic, 0), **secure, **user) == 3


def test_an_alert_goes_from_a_scrape_to_a_webhook(
    tmp_path: Path,
    prometheus: StartPrometheus,
    alertmanager: StartAlertmanager,
    webhook: Webhook,
    exporter: str,
) -> None:
    """Scrape, rule, Alertmanager and post, each by the real program."""
    rules = tmp_path / "rules.yml"
    rules.write_text(RULE)
    server = prometheus({"thing": [exporter]}, rule_files=[rules], alertmanager=alertmanager(webhook_url=webhook.url))
    server.wait_until(lambda s: s.value("thing") == 2)
    (post, *_) = webhook.wait_for(1)
    assert [alert["labels"]["alertname"] for alert in post.json()["alerts"]] == ["TooMuch"]
    assert [alert["state"] for alert in server.alerts()] == ["firing"]
