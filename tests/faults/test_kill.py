"""SIGKILL at any instant, start again: the same counts, scores, joins and incidents as a run that was never killed."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer
from servers.kafka import Kafka
from servers.service import MonitorProcess

from stream_monitor import history
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.store import Store

EVENTS = 30_000
KILLS = 20
STEP_SECONDS = 0.05  # event time between events: 25 minutes in all
CONFIG: dict[str, Any] = {
    "pane": "1s",
    "allowed_lateness": "2s",
    "windows": ["30s", "1m", "5m"],
    "drift": {"learn_from": 2000, "false_alarms": "1 per 1d"},
    "models": {"credit": {"task": "binary", "positive_label": "yes", "segments": ["market"]}},
}


def stream(seed: int) -> Iterator[tuple[str, str, bytes]]:
    """(topic, key, value) in the order of sending: drift, duplicates, late events, corrections, labels in flight."""
    rng = random.Random(seed)
    start = time.time() - 3 * 3600
    due: list[tuple[float, str, bytes]] = []
    for i in range(EVENTS):
        at = start + i * STEP_SECONDS
        score = rng.random()
        body = {
            "inference_id": f"i{i}",
            "model": "credit",
            "version": "7",
            "timestamp": at - (30 if i % 997 == 0 else rng.random()),
            "features": {"a": rng.gauss(2.0 if i > 0.6 * EVENTS else 0.0, 1), "b": rng.choice("xyz"), "c": i % 7},
            "prediction": {"label": "yes" if score > 0.5 else "no", "score": score},
            "segment": {"market": rng.choice(["eu", "us"])},
        }
        value = json.dumps(body).encode()
        yield "inference", str(i), value
        if i % 501 == 0:
            yield "inference", str(i), value
        if i % 333 == 0:
            yield "inference", str(i), b"{broken"
        if i % 2 == 0:
            flipped = i > 0.7 * EVENTS
            truth = (rng.random() < score) != flipped
            label = {"inference_id": f"i{i}", "label": "yes" if truth else "no", "timestamp": at + 20}
            due.append((at + 20, str(i), json.dumps(label).encode()))
            if i % 100 == 0:
                changed = {**label, "label": "no" if truth else "yes", "timestamp": at + 40}
                due.append((at + 40, str(i), json.dumps(changed).encode()))
        while due and due[0][0] <= at:
            _, key, label_value = due.pop(0)
            yield "labels", key, label_value
        due.sort()


def marker(topic: str, number: int) -> bytes:
    """A last record for each partition, so far ahead that every pane before it seals."""
    body: dict[str, Any] = {"inference_id": f"end-{topic}-{number}", "timestamp": time.time() - 3600}
    if topic == "labels":
        return json.dumps({**body, "label": "yes"}).encode()
    return json.dumps({**body, "model": "credit", "version": "7", "features": {"a": 0.0, "b": "x", "c": 1}}).encode()


def produce(kafka: Kafka, seed: int, *, seconds: float) -> dict[str, int]:
    """Send the whole stream over some time; how many records of each topic."""
    producer = KafkaProducer(bootstrap_servers=kafka.bootstrap, linger_ms=20)
    sent = {"inference": 0, "labels": 0}
    began = time.monotonic()
    for number, (topic, key, value) in enumerate(stream(seed)):
        producer.send(f"kill-{topic}", key=key.encode(), value=value)
        sent[topic] += 1
        ahead = number / (1.6 * EVENTS) * seconds - (time.monotonic() - began)
        if ahead > 0.05:
            time.sleep(ahead)
    for topic, partitions in (("inference", 3), ("labels", 2)):
        for number in range(partitions):
            producer.send(f"kill-{topic}", partition=number, value=marker(topic, number))
            sent[topic] += 1
    producer.flush()
    producer.close()
    return sent


def configuration(kafka: Kafka) -> dict[str, Any]:
    """Two topics from their beginning."""
    source = {
        "bootstrap_servers": kafka.bootstrap,
        "start": "earliest",
        "inference": ["kill-inference"],
        "ground_truth": ["kill-labels"],
    }
    return {**CONFIG, "source": source}


def is_read(sent: dict[str, int]) -> Any:
    """Whether a summary counts everything that was sent, each record once."""
    return lambda s: (
        s["inference"]["offered"] == sent["inference"] and s["ground_truth"]["offered"] == sent["labels"]
        and s["ground_truth"]["orphan_waiting"] == 2
    )  # fmt: skip


def contents(state: Path) -> dict[str, Any]:
    """What a state file says, as tables and JSON."""
    store = Store(state)
    try:
        engine = Engine(parse(CONFIG, {}), store)
        summary = history.summary(engine)
        scores = history.scores_table(engine)
        performance = history.performance_table(engine)
        incidents = [json.loads(body) for body in store.incident_bodies()]
        return {"summary": summary, "scores": scores, "performance": performance, "incidents": incidents}
    finally:
        store.close()


def rows(table: pa.Table) -> Counter[str]:
    """A table's rows as text, every digit of them; NaN equals NaN there."""
    return Counter(json.dumps(row, default=str, sort_keys=True) for row in table.to_pylist())


def difference(got: pa.Table, expected: pa.Table) -> list[str]:
    """The rows that only one of the tables has, the first few: a whole table says nothing in a log."""
    missing = [f"missing {row}" for row in rows(expected) - rows(got)]
    return sorted(missing + [f"extra {row}" for row in rows(got) - rows(expected)])[:12]


def wait_sealed(monitor: MonitorProcess, sent: dict[str, int]) -> None:
    """Everything is read and every pane before the markers is sealed."""
    monitor.wait_until(is_read(sent), seconds=120)
    monitor.wait_until(
        lambda s: s["label_watermark"] == s["watermark"] is not None and s["rows_open"] <= 3, path="status"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times_equals_never_killed(kafka: Kafka, tmp_path: Path) -> None:
    """Real Kafka, labels in flight, SIGKILL at twenty random instants."""
    kafka.create_topic("kill-inference", 3)
    kafka.create_topic("kill-labels", 2)
    sent: dict[str, int] = {}
    producing = threading.Thread(target=lambda: sent.update(produce(kafka, 11, seconds=60)))
    producing.start()
    rng = random.Random(5)
    broken = MonitorProcess(tmp_path / "broken", configuration(kafka))
    for _ in range(KILLS):
        broken.start()
        time.sleep(rng.uniform(0.2, 4.5))
        assert broken.running, broken.log.read_text()[-3000:]
        broken.kill()
    producing.join()
    broken.start()
    wait_sealed(broken, sent)
    assert broken.stop() == 0

    whole = MonitorProcess(tmp_path / "whole", configuration(kafka))
    whole.start()
    wait_sealed(whole, sent)
    assert whole.stop() == 0

    got, expected = contents(broken.state), contents(whole.state)
    assert got["summary"] == expected["summary"]
    assert got["incidents"] == expected["incidents"]
    assert len(expected["incidents"]) >= 3
    assert expected["summary"]["ground_truth"]["corrected"] > 0
    assert expected["summary"]["inference"]["late"] > 0
    assert expected["scores"].num_rows > 1000
    assert difference(got["scores"], expected["scores"]) == []
    assert difference(got["performance"], expected["performance"]) == []
