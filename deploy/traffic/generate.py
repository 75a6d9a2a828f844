"""The demo's two models as traffic on Kafka: first the hours before, at once, then in real time.

    python generate.py --bootstrap-servers kafka:19092 --history 1.9

The story's first change comes in its third hour: with 1.9 hours told at once, six minutes after the start.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from stream_monitor.demo import SEED, events

INFERENCE, GROUND_TRUTH = "inference", "ground-truth"
MICROSECONDS = 1_000_000


class Message(NamedTuple):
    """One record and when it is due."""

    time_us: int
    topic: str
    key: bytes
    value: bytes


def messages(start_us: int) -> Iterator[Message]:
    """Events and, as they come due, their labels, in the order of time and for ever."""
    waiting: list[Message] = []
    for event in events(np.random.default_rng(SEED), start_us):
        while waiting and waiting[0].time_us <= event.time_us:
            yield heapq.heappop(waiting)
        yield _message(event.time_us, INFERENCE, event.body)
        if event.label_us is not None:
            label = event.label | {"timestamp": event.label_us / MICROSECONDS}
            heapq.heappush(waiting, _message(event.label_us, GROUND_TRUTH, label))


def _message(time_us: int, topic: str, body: dict[str, Any]) -> Message:
    return Message(time_us, topic, body["inference_id"].encode(), json.dumps(body).encode())


def has_records(bootstrap_servers: str) -> bool:
    """Whether somebody has written events before: then history would come too late to count."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers)
    try:
        partitions = [TopicPartition(INFERENCE, p) for p in consumer.partitions_for_topic(INFERENCE) or ()]
        return any(end > 0 for end in consumer.end_offsets(partitions).values())
    finally:
        consumer.close()


def send(bootstrap_servers: str, *, history_hours: float, seconds: float) -> int:
    """Send what is due, for so many seconds of real time; returns the number of records."""
    if has_records(bootstrap_servers):
        history_hours = 0.0
    producer = KafkaProducer(bootstrap_servers=bootstrap_servers, linger_ms=50, acks="all")
    began, sent = time.time(), 0
    for message in messages(int((began - history_hours * 3600) * MICROSECONDS)):
        due = message.time_us / MICROSECONDS
        if due > began + seconds:
            break
        time.sleep(max(0.0, due - time.time()))
        producer.send(message.topic, key=message.key, value=message.value)
        sent += 1
    producer.close()
    return sent


def main() -> None:
    """Until somebody ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap-servers", default="localhost:9092")
    parser.add_argument("--history", type=float, default=1.9, help="hours that are told at once (default 1.9)")
    chosen = parser.parse_args()
    send(chosen.bootstrap_servers, history_hours=chosen.history, seconds=float("inf"))


if __name__ == "__main__":
    main()
