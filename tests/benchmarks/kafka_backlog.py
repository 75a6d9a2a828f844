"""Events a second from a real broker into committed state: `stream-monitor run` as a process consumes a backlog.

The rate is that of the process from the first committed events to the last, by what /api/v1/summary says; the whole
time, the start included, stands beside it. Needs Java (see tests/servers/kafka.py).

python tests/benchmarks/kafka_backlog.py --events 1000000 --partitions 4
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import events
from servers.kafka import Kafka, fetch, unavailable
from servers.service import MonitorProcess

CLIENTS = ("confluent", "kafka-python")


def produce(broker: Kafka, topic: str, stream: events.Stream, partitions: int) -> None:
    """Send every event, partition by turns, in the order of time."""
    from confluent_kafka import Producer

    broker.create_topic(topic, partitions)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 50, "batch.size": 1_000_000,
                         "queue.buffering.max.messages": 1_000_000})  # fmt: skip
    sent = 0
    for chunk in events.inference(stream):
        for value in chunk.to_pylist():
            producer.produce(topic, value.encode(), partition=sent % partitions)
            sent += 1
        producer.poll(0)
        if sent % 200_000 == 0:
            producer.flush()
    producer.flush()


def cpu_seconds(process: int) -> float:
    """User and system time of a process so far."""
    ticks = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, ticks)) / 100


def resident_mb(process: int) -> float:
    """The largest resident size of a process so far."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1000


def consume(broker: Kafka, topic: str, client: str, count: int, folder: Path) -> tuple[float, float, float, float]:
    """Events a second, whole seconds, CPU seconds and MB until everything is committed."""
    source = {
        "bootstrap_servers": broker.bootstrap,
        "client": client,
        "start": "earliest",
        "inference": [topic],
    }
    monitor = MonitorProcess(folder, {"source": source})
    began = time.monotonic()
    monitor.start()
    assert monitor._process is not None
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][1] < count:
        assert monitor.running, monitor.log.read_text()[-3000:]
        found = monitor.get("summary")
        offered = found["inference"]["offered"] if found else 0
        if offered and (not seen or offered > seen[-1][1]):
            seen.append((time.monotonic(), offered))
        time.sleep(0.2)  # commits come once a second; asking more often takes from what is measured
    whole, cpu, size = seen[-1][0] - began, cpu_seconds(monitor._process.pid), resident_mb(monitor._process.pid)
    (first_at, first), (last_at, last) = seen[0], seen[-1]
    rate = (last - first) / (last_at - first_at) if last > first else float("nan")
    monitor.stop()
    return rate, whole, cpu, size


def main() -> None:
    """Print a line for each client."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=25)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--per-second", type=float, default=1_000.0, help="events in a second of event time")
    parser.add_argument("--broken", type=float, default=0.0, help="share of broken records")
    options = parser.parse_args()
    missing = unavailable()
    if missing:
        print(f"kafka_backlog: left out, {missing}")
        return
    fetch()
    stream = events.Stream(
        options.events, options.features, per_second=options.per_second, broken_records=options.broken
    )
    print(f"{'from a broker':16} {'events/s':>10} {'whole s':>8} {'us CPU/event':>13} {'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        broker = Kafka(Path(folder) / "broker")
        broker.start()
        try:
            produce(broker, "inference", stream, options.partitions)
            for client in CLIENTS:
                rate, whole, cpu, size = consume(broker, "inference", client, options.events, Path(folder) / client)
                cost = cpu / options.events * 1e6
                print(f"{client:16} {rate:10,.0f} {whole:8.1f} {cost:13.1f} {size:6.0f}", flush=True)
        finally:
            broker.stop()


if __name__ == "__main__":
    main()
