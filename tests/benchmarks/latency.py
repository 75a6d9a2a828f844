"""Seconds from a record's arrival at the broker until /metrics shows it; promised is pane + lateness + 3 s.

A trickle of events goes to a real broker; one of a model never seen before is sent in their midst, and /metrics is
asked until it is counted there, and until the pane it lies in is sealed. Needs Java (see tests/servers/kafka.py).

python tests/benchmarks/latency.py --client confluent --repeats 5
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from servers.kafka import Kafka, fetch, unavailable
from servers.service import MonitorProcess

PANE_SECONDS = 10
LATENESS_SECONDS = 10
PROMISED_SECONDS = PANE_SECONDS + LATENESS_SECONDS + 3


def event(model: str, number: int) -> bytes:
    """An event of this moment."""
    features = {"amount": number % 97, "channel": "web"}
    body = {"inference_id": f"{model}-{number}", "model": model, "timestamp": time.time(), "features": features}
    return json.dumps(body).encode()


def sealed(text: str) -> float:
    """How far event time is sealed, as /metrics says."""
    head = 'stream_monitor_watermark_timestamp_seconds{stream="inference"}'
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(head)), 0.0)


def main() -> None:
    """Print the waits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--client", default="kafka-python")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--per-second", type=float, default=100.0)
    options = parser.parse_args()
    missing = unavailable()
    if missing:
        print(f"latency: left out, {missing}")
        return
    fetch()
    with tempfile.TemporaryDirectory() as folder:
        broker = Kafka(Path(folder) / "broker")
        broker.start()
        broker.create_topic("inference", 1)
        source = {"bootstrap_servers": broker.bootstrap, "client": options.client, "start": "earliest",
                  "inference": ["inference"]}  # fmt: skip
        monitor = MonitorProcess(Path(folder) / "monitor", {"source": source})
        monitor.start()
        try:
            measure(broker, monitor, options)
        finally:
            monitor.stop()
            broker.stop()


def measure(broker: Kafka, monitor: MonitorProcess, options: argparse.Namespace) -> None:
    """Send, wait, print."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})
    over = threading.Event()

    def trickle() -> None:
        number = 0
        while not over.wait(1 / options.per_second):
            producer.produce("inference", event("steady", number))
            producer.poll(0)
            number += 1

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    monitor.wait_until(lambda found: found["inference"]["offered"] > 0)
    print(f"{'promised within ' + str(PROMISED_SECONDS) + ' s':28} {'counted s':>10} {'sealed s':>10}")
    for repeat in range(options.repeats):
        model, sent = f"marked_{repeat}", time.time()
        producer.produce("inference", event(model, 0))
        producer.flush()
        counted = None
        while True:
            with urllib.request.urlopen(f"{monitor.url}/metrics", timeout=5) as answer:
                text = answer.read().decode()
            if counted is None and f'model="{model}"' in text:
                counted = time.time() - sent
            if counted is not None and sealed(text) > sent:
                break
            time.sleep(0.05)
        print(f"{model:28} {counted:10.1f} {time.time() - sent:10.1f}", flush=True)
    over.set()
    thread.join()


if __name__ == "__main__":
    main()
