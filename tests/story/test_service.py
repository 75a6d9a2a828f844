"""`stream-monitor run` and its command line on a real broker: dead letters, one owner, an orderly end, promotion."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from servers.kafka import Kafka
from servers.service import MonitorProcess

ROWS = 3_000


def event(number: int, **changes: Any) -> bytes:
    """A good event, or one with something changed."""
    body = {
        "inference_id": number,
        "model": "credit",
        "version": "7",
        "timestamp": time.time() - 7200 + number * 0.1,
        "features": {"age": 40 + number % 20, "channel": "web"},
    }
    return json.dumps({**body, **changes}).encode()


def configuration(kafka: Kafka, topic: str) -> dict[str, Any]:
    """One topic with dead letters."""
    return {
        "source": {
            "bootstrap_servers": kafka.bootstrap,
            "start": "earliest",
            "inference": [topic],
            "dead_letter_topic": f"{topic}-rejects",
        },
        "pane": "1s",
        "windows": ["1m"],
        "drift": {"learn_from": 500},
    }


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the program; its output."""
    return subprocess.run(
        [sys.executable, "-m", "stream_monitor.cli", *arguments], capture_output=True, text=True, timeout=180
    )


@pytest.mark.slow
def test_a_service_lives_and_ends_in_order(kafka: Kafka, tmp_path: Path) -> None:
    """What is refused goes to the dead letters with its place; a second owner is refused; totals go on over a restart."""
    kafka.create_topic("orderly", 2)
    kafka.create_topic("orderly-rejects", 1)
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
    for i in range(ROWS):
        producer.send("orderly", key=str(i).encode(), value=event(i))
    bad = {
        b"{broken": "not_json",
        b"[1]": "not_an_object",
        event(1, inference_id=None): "no_id",
        b"\xff{}": "invalid_utf8",
    }
    for value in bad:
        producer.send("orderly", partition=0, value=value)
    producer.flush()

    monitor = MonitorProcess(tmp_path, configuration(kafka, "orderly"))
    monitor.start()
    seen = monitor.wait_until(lambda s: s["inference"]["offered"] == ROWS + len(bad))
    assert seen["inference"]["summarised"] == ROWS
    assert seen["inference"]["rejected"] == len(bad)

    consumer = KafkaConsumer("orderly-rejects", bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest",
                             consumer_timeout_ms=5000)  # fmt: skip
    letters = {}
    for record in consumer:
        letters[record.value] = dict(record.headers)
        if len(letters) == len(bad):
            break
    consumer.close()
    assert {value: headers["reason"].decode() for value, headers in letters.items()} == bad
    assert all(headers["topic"] == b"orderly" and headers["partition"] == b"0" for headers in letters.values())

    second = command("run", "--config", str(tmp_path / "monitor.yaml"))
    assert second.returncode == 5
    assert "in use by another process" in second.stderr

    listed = command("baseline", "list", "--url", monitor.url, "--json")
    assert json.loads(listed.stdout)["baselines"][0]["provisional"] is True
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 7200))
    promoted = command("baseline", "promote", "--url", monitor.url, "--model", "credit", "--version", "7",
                       "--since", since, "--json")  # fmt: skip
    assert promoted.returncode == 0, promoted.stderr
    assert json.loads(promoted.stdout)["rows"] > 1000
    listed = command("baseline", "list", "--url", monitor.url, "--json")
    assert json.loads(listed.stdout)["baselines"][0]["provisional"] is False

    began = time.monotonic()
    assert monitor.stop() == 0
    assert time.monotonic() - began < 10

    for i in range(ROWS, ROWS + 100):
        producer.send("orderly", key=str(i).encode(), value=event(i))
    producer.flush()
    producer.close()
    monitor.start()
    again = monitor.wait_until(lambda s: s["inference"]["offered"] == ROWS + len(bad) + 100)
    assert again["inference"]["rejected"] == len(bad)
    assert monitor.stop() == 0
    kept = command("baseline", "list", "--state", str(monitor.state), "--json")
    assert json.loads(kept.stdout)["baselines"][0]["provisional"] is False


def test_exit_codes_name_what_is_wrong(tmp_path: Path) -> None:
    """2 for the configuration, with every problem; 3 for refused input; 4 for a peer; 5 for a damaged state file."""
    config = tmp_path / "bad.yaml"
    config.write_text("pan: 10s\nsource: {clent: x}\n")
    found = command("check", str(config))
    assert found.returncode == 2
    assert "did you mean pane?" in found.stderr
    assert "did you mean client?" in found.stderr

    assert command("replay", "--inference", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "o")).returncode == 2

    rubbish = tmp_path / "rubbish.jsonl"
    rubbish.write_text("{\nnothing\n")
    refused = command("replay", "--inference", str(rubbish), "--out", str(tmp_path / "o"), "--json")
    assert refused.returncode == 3
    assert refused.stdout == ""

    lonely = tmp_path / "lonely.yaml"
    lonely.write_text(json.dumps({"source": {"bootstrap_servers": "127.0.0.1:1"}, "state": str(tmp_path / "a.duckdb"),
                                  "publish": {"http": "127.0.0.1:0"}}))  # fmt: skip
    unreached = command("check", str(lonely), "--connect")
    assert unreached.returncode == 4
    assert "127.0.0.1:1" in unreached.stderr

    damaged = tmp_path / "damaged.duckdb"
    damaged.write_bytes(b"no database at all" * 1000)
    assert command("baseline", "list", "--state", str(damaged)).returncode == 5
