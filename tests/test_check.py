"""`check --connect` and those who are told of incidents: reached, and told nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from servers.kafka import Kafka
from servers.process import free_ports
from servers.webhook import Webhook

from stream_monitor.check import check_configuration
from stream_monitor.config import Config, parse
from stream_monitor.errors import PeerError


def files(folder: Path, **publish: Any) -> Config:
    """A configuration that needs no broker."""
    (folder / "a.jsonl").write_bytes(b"")
    return parse({"source": {"kind": "files", "inference": [str(folder / "a.jsonl")]}, "publish": publish}, {})


def test_a_webhook_is_reached_and_not_posted_to(webhook: Webhook, tmp_path: Path) -> None:
    """Whether it is signed is said as well; of its address only the host."""
    host = webhook.url.rstrip("/")
    hooks = [{"url": f"{webhook.url}hunter2", "secret": "s"}, {"url": webhook.url}]
    report = check_configuration(files(tmp_path, webhooks=hooks), connect=True, sample=0)
    assert report["connection"] == [
        f"{host}: a webhook that can be reached",
        f"{host}: a webhook that can be reached; without a secret nobody can tell our events from forged ones",
    ]
    assert webhook.posts == ()


def test_every_one_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    """With exit code 4; without --connect nobody is asked."""
    one, other = free_ports(2)
    hooks = [{"url": f"http://127.0.0.1:{port}/hunter2"} for port in (one, other)]
    config = files(tmp_path, webhooks=hooks, drift_topic="drift")
    assert check_configuration(config, connect=False, sample=0) == {"configuration": "ok"}
    with pytest.raises(PeerError) as raised:
        check_configuration(config, connect=True, sample=0)
    assert raised.value.exit_code == 4
    assert "publish.drift_topic needs brokers" in str(raised.value)
    assert f"127.0.0.1:{one}" in str(raised.value)
    assert f"127.0.0.1:{other}" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_the_topic_of_incidents_has_to_be_there(kafka: Kafka) -> None:
    """As those that are read."""
    kafka.create_topic("check-events", 1)
    source = {"bootstrap_servers": kafka.bootstrap, "inference": ["check-events"]}
    config = parse({"source": source, "publish": {"drift_topic": "check-no-such-topic"}}, {})
    with pytest.raises(PeerError, match="there is no topic check-no-such-topic"):
        check_configuration(config, connect=True, sample=0)
    kafka.create_topic("check-no-such-topic", 1)
    assert check_configuration(config, connect=True, sample=0)["connection"]
