"""Reading sources in tests: what a source delivers, partition by partition, and how topics are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from kafka import KafkaProducer
from servers.kafka import Kafka

from stream_monitor.config import SecurityConfig, SourceConfig, TopicConfig
from stream_monitor.records import PartitionId, Poll, Stream
from stream_monitor.source.confluent import ConfluentClient
from stream_monitor.source.kafka import Begin, KafkaSource, PythonClient, bindings_of
from stream_monitor.source.protocol import Source

ClientName = Literal["kafka-python", "confluent"]
CLIENTS: tuple[ClientName, ...] = ("kafka-python", "confluent")


class Record(NamedTuple):
    """One record as it was delivered."""

    offset: int
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Reader:
    """Polls a source and keeps what came, checking on the way what holds of every poll of every source."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.records: dict[PartitionId, list[Record]] = {}
        self.last = Poll((), {})

    def poll(self, max_records: int = 1000, timeout_seconds: float = 0.1) -> Poll:
        """Poll once."""
        self.last = poll = self.source.poll(max_records, timeout_seconds)
        assert sum(len(batch) for batch in poll.batches) <= max_records
        for batch in poll.batches:
            headers = batch.headers if batch.headers is not None else [()] * len(batch)
            rows = zip(batch.partition.tolist(), batch.offset.tolist(), batch.value.to_pylist(), headers, strict=True)
            for p, offset, value, of_record in rows:
                record = Record(offset, value, tuple((name, content) for name, content in of_record))
                self.records.setdefault(batch.partitions[p], []).append(record)
        for partition, records in self.records.items():
            following = records[-1].offset + 1
            assert poll.ends.get(partition, following) >= following
            assert poll.positions.get(partition, following) >= following
        return poll

    def until(self, holds: Callable[[], bool], *, seconds: float = 20.0, max_records: int = 1000) -> None:
        """Poll until something holds."""
        give_up = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < give_up, f"not within {seconds} s: {self.counts()}, {self.last.ends}"
            self.poll(max_records)

    def until_count(self, count: int, *, seconds: float = 20.0, max_records: int = 1000) -> None:
        """Poll until so many records came, and a little longer: no more may come."""
        self.until(lambda: sum(self.counts().values()) >= count, seconds=seconds, max_records=max_records)
        self.poll(max_records)
        assert sum(self.counts().values()) == count

    def counts(self) -> Mapping[PartitionId, int]:
        """How many records came of each partition."""
        return {partition: len(records) for partition, records in self.records.items()}

    def of(self, partition: PartitionId) -> list[Record]:
        """What came of a partition, in the order it came."""
        return self.records.get(partition, [])

    def values(self, partition: PartitionId) -> list[bytes | None]:
        """The values of a partition, in the order they came."""
        return [record.value for record in self.of(partition)]


def source_config(bootstrap: str, topics: Sequence[str], *, security: SecurityConfig | None = None) -> SourceConfig:
    """Topics of inference events on a broker."""
    return SourceConfig(
        bootstrap_servers=bootstrap, inference=tuple(TopicConfig(topic=t) for t in topics), security=security
    )


def kafka_source(
    client: ClientName,
    config: SourceConfig,
    *,
    begin: Begin = "earliest",
    on_data_loss: Literal["fail", "earliest", "latest"] = "fail",
    look_seconds: float = 30.0,
) -> KafkaSource:
    """A source that reads with this client, not yet started."""
    make = PythonClient if client == "kafka-python" else ConfluentClient
    return KafkaSource(
        make(config, look_seconds=look_seconds),
        bindings_of(config),
        begin=begin,
        on_data_loss=on_data_loss,
        look_seconds=look_seconds,
    )


def partition_of(topic: str, number: int = 0) -> PartitionId:
    """A partition of inference events."""
    return PartitionId(Stream.INFERENCE, topic, number)


def write(
    broker: Kafka, topic: str, values: Iterable[bytes | None], *, partition: int = 0, headers: Any = (), **options: Any
) -> None:
    """Write records in order and wait until the broker has them."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=5, **options)
    try:
        sent = [producer.send(topic, v, key=b"k", partition=partition, headers=list(headers)) for v in values]
        producer.flush(timeout=20)
        for future in sent:
            future.get(timeout=1)
    finally:
        producer.close(timeout=5)
