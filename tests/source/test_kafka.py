"""What only a real broker does: outages, new partitions and topics, retention, and who is let in."""

from __future__ import annotations

import itertools
import logging
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from pydantic import SecretStr
from reading import CLIENTS, ClientName, Reader, Record, kafka_source, partition_of, source_config, write
from servers.kafka import Kafka
from servers.process import free_ports

from stream_monitor.config import Config, SecurityConfig, SourceConfig
from stream_monitor.engine import Engine
from stream_monitor.errors import DataLossError, PeerError
from stream_monitor.records import PartitionId, Poll
from stream_monitor.source import check_connection
from stream_monitor.source.kafka import GROUP, KafkaSource
from stream_monitor.source.protocol import Loss
from stream_monitor.store import Store

USER, PASSWORD = "alice", "alice-secret"
Start = Callable[..., Reader]

_numbers = itertools.count()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> ClientName:
    """Each client in turn."""
    found: ClientName = request.param
    return found


@pytest.fixture
def topic() -> str:
    """A name no other test has; nothing is created."""
    return f"broker-{next(_numbers)}"


@pytest.fixture
def start(kafka: Kafka, client: ClientName, topic: str) -> Iterator[Start]:
    """Starts sources over the topic and closes them."""
    opened: list[KafkaSource] = []

    def open_started(positions: dict[int, int] | None = None, **options: Any) -> Reader:
        source = kafka_source(client, source_config(kafka.bootstrap, [topic]), **options)
        opened.append(source)
        source.start({partition_of(topic, number): at for number, at in (positions or {}).items()})
        return Reader(source)

    yield open_started
    for source in opened:
        source.close()


def numbered(count: int, first: int = 0) -> list[bytes]:
    """Distinct values of some size, so that a poll cannot take them all."""
    return [b"%08d" % i * 8 for i in range(first, first + count)]


def during(action: Callable[[], None], poll: Callable[[], object]) -> None:
    """Poll for as long as an action takes in a thread of its own."""
    failures: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=act)
    thread.start()
    while thread.is_alive():
        poll()
    thread.join()
    assert not failures, failures


class Both:
    """A reader with each client over the same topic, polled in turn."""

    def __init__(self, broker: Kafka, topic: str) -> None:
        self.readers: dict[ClientName, Reader] = {}
        for client in CLIENTS:
            source = kafka_source(client, source_config(broker.bootstrap, [topic]), look_seconds=1.0)
            source.start({})
            self.readers[client] = Reader(source)

    def __iter__(self) -> Iterator[Reader]:
        return iter(self.readers.values())

    def poll(self) -> None:
        """Poll each once, for a part of what there may be."""
        for reader in self:
            reader.poll(250)

    def until(self, holds: Callable[[Reader], bool]) -> None:
        """Poll until something holds of each, no longer than an outage may take."""
        for reader in self:
            reader.until(lambda r=reader: holds(r), max_records=250)  # type: ignore[misc]

    def check(self, written: dict[PartitionId, list[bytes]]) -> None:
        """All of it came to each, once and in order, and nothing else."""
        for client, reader in self.readers.items():
            reader.until_count(sum(map(len, written.values())))
            for partition, values in written.items():
                assert reader.of(partition) == [Record(i, v) for i, v in enumerate(values)], client

    def close(self) -> None:
        """End both."""
        for reader in self:
            reader.source.close()


class Idleness:
    """The engine's view of one partition, told what the source says at times of our own."""

    def __init__(self, path: Path, partition: PartitionId) -> None:
        self._engine = Engine(Config(idle_timeout=30), Store(path))
        self._partition = partition

    def note(self, poll: Poll, now: float) -> None:
        """What the loop does with a poll without records, and once more without a poll."""
        self._engine.note_poll(poll, now)
        self._engine.step(now)

    def at(self, now: float) -> bool:
        """Whether the partition would count as idle."""
        return self._engine.flow.state(self._partition).idle(now, timeout_seconds=30)


@pytest.fixture
def both(kafka: Kafka, topic: str) -> Iterator[Both]:
    """Both clients, started on a topic of two partitions with many records in the first and a few in the second."""
    kafka.create_topic(topic, 2)
    write(kafka, topic, numbered(5000), partition=0)
    write(kafka, topic, numbered(10), partition=1)
    readers = Both(kafka, topic)
    yield readers
    readers.close()


class TestOutages:
    """A broker that goes away comes back to a reader that lost nothing and takes nothing twice."""

    def test_stopped_and_started(
        self, kafka: Kafka, both: Both, topic: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """In the middle of reading. While nobody answers, a partition that was at its end does not become idle."""
        caplog.set_level(logging.INFO, "stream_monitor")
        busy, quiet = partition_of(topic, 0), partition_of(topic, 1)
        for reader in both:
            reader.source.pause(frozenset({busy}))
        both.until(lambda r: len(r.of(quiet)) == 10 and r.last.ends.get(quiet) == 10)
        seen = {client: Idleness(tmp_path / client, quiet) for client in both.readers}
        for client, reader in both.readers.items():
            seen[client].note(reader.last, 0.0)
            assert not seen[client].at(29.0)
            assert seen[client].at(30.0)
            reader.source.pause(frozenset())
        both.until(lambda r: len(r.of(busy)) > 0)

        during(kafka.stop, both.poll)
        both.until(lambda r: not r.last.ends)
        for client, reader in both.readers.items():
            seen[client].note(reader.last, 20.0)
            assert not seen[client].at(1000.0)

        during(kafka.start, both.poll)
        both.until(lambda r: len(r.of(busy)) == 5000 and r.last.ends.get(quiet) == 10)
        for client, reader in both.readers.items():
            seen[client].note(reader.last, 1000.0)
            assert not seen[client].at(1029.0)
            assert seen[client].at(1030.0)

        for number in range(2):
            write(kafka, topic, [b"new"], partition=number)
        both.check({busy: [*numbered(5000), b"new"], quiet: [*numbered(10), b"new"]})
        ours = [r.message for r in caplog.records if r.name == "stream_monitor.source.kafka"]
        assert sorted(ours) == ["a Kafka broker answers again"] * 2 + ["no Kafka broker answers; trying on"] * 2

    def test_killed(self, kafka: Kafka, both: Both, topic: str) -> None:
        """As by a power cut, while somebody writes and we read."""
        both.until(lambda r: bool(r.counts()))
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True, "linger.ms": 5})
        killed = threading.Event()

        def write_slowly() -> None:
            for i, value in enumerate(numbered(1000, 5000)):
                producer.produce(topic, value, partition=0)
                producer.poll(0.001)
                if i == 300:
                    killed.set()
            assert producer.flush(30) == 0

        def kill_and_start() -> None:
            killed.wait(10)
            kafka.kill()
            kafka.start()

        writing = threading.Thread(target=write_slowly)
        writing.start()
        during(kill_and_start, both.poll)
        during(writing.join, both.poll)
        both.check({partition_of(topic, 0): numbered(6000), partition_of(topic, 1): numbered(10)})

    def test_hanging(self, kafka: Kafka, both: Both, topic: str) -> None:
        """A broker that stops answering for 3 s, connections open, only keeps the reader waiting."""
        both.until(lambda r: bool(r.counts()))
        kafka.pause()

        def wake() -> None:
            time.sleep(3.0)
            kafka.resume()

        during(wake, both.poll)
        write(kafka, topic, numbered(100, 5000))
        both.check({partition_of(topic, 0): numbered(5100), partition_of(topic, 1): numbered(10)})


class TestTopics:
    """What is read, and from where."""

    def test_new_partitions(self, kafka: Kafka, start: Start, topic: str) -> None:
        """Partitions added while reading are read from their first record, even where only news is wanted."""
        kafka.create_topic(topic)
        write(kafka, topic, numbered(3))
        reader = start(begin="latest", look_seconds=0.5)
        reader.poll()
        kafka.add_partitions(topic, 3)
        write(kafka, topic, [b"first"], partition=2)
        write(kafka, topic, [b"old one"], partition=0)
        reader.until_count(2)
        assert reader.of(partition_of(topic, 2)) == [Record(0, b"first")]
        assert reader.of(partition_of(topic)) == [Record(3, b"old one")]
        assert reader.source.partitions() == tuple(partition_of(topic, number) for number in range(3))

    def test_a_topic_that_appears(
        self, kafka: Kafka, start: Start, topic: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A topic that is not there is waited for, with one line of log, and then read from its first record."""
        caplog.set_level(logging.INFO, "stream_monitor")
        reader = start(begin="latest", look_seconds=0.3)
        for _ in range(8):
            reader.poll()
        assert reader.source.partitions() == ()
        kafka.create_topic(topic, 2)
        write(kafka, topic, numbered(2), partition=1)
        reader.until_count(2)
        assert reader.values(partition_of(topic, 1)) == numbered(2)
        ours = [r.message for r in caplog.records if r.name == "stream_monitor.source.kafka"]
        assert ours == [f"there is no topic {topic} yet; waiting for it", f"topic {topic} is there now"]

    def test_where_it_begins(self, kafka: Kafka, start: Start, topic: str) -> None:
        """At the first record, at the end, or at the first record of a time; a given position goes before all."""
        kafka.create_topic(topic)
        noon = (datetime.now(UTC) - timedelta(hours=2)).replace(microsecond=0)
        producer = KafkaProducer(bootstrap_servers=kafka.bootstrap)
        for minute in range(5):
            at = int((noon + timedelta(minutes=minute)).timestamp() * 1000)
            producer.send(topic, b"%d" % minute, partition=0, timestamp_ms=at)
        producer.close()
        begins: dict[Any, int] = {
            "earliest": 0,
            "latest": 5,
            noon + timedelta(minutes=2): 2,
            noon + timedelta(minutes=2, seconds=1): 3,
            (noon + timedelta(minutes=2)).replace(tzinfo=None): 2,  # without a zone: UTC
            noon - timedelta(days=1): 0,
            noon + timedelta(days=1): 5,
        }
        readers = [(at, start(begin=begin)) for begin, at in begins.items()]
        readers += [(4, start({0: 4}, begin=begin)) for begin in ("latest", noon)]
        write(kafka, topic, [b"new"])
        for at, reader in readers:
            reader.until_count(6 - at)
            assert [record.offset for record in reader.of(partition_of(topic))] == list(range(at, 6))

    def test_commits_are_seen(self, kafka: Kafka, start: Start, topic: str) -> None:
        """Lag tools see how far we are under our group."""
        kafka.create_topic(topic)
        write(kafka, topic, numbered(5))
        reader = start()
        reader.until_count(5)
        reader.source.commit({partition_of(topic): 4})
        consumer = KafkaConsumer(bootstrap_servers=kafka.bootstrap, group_id=GROUP, enable_auto_commit=False)
        try:
            reader.until(lambda: consumer.committed(TopicPartition(topic, 0)) == 4)
        finally:
            consumer.close()


class TestDataLoss:
    """Records that retention took before we read them."""

    @pytest.mark.parametrize(("position", "policy", "resumed"), [(3, "earliest", 7), (50, "latest", 10)])
    def test_at_the_start(
        self, kafka: Kafka, start: Start, topic: str, position: int, policy: Literal["earliest", "latest"], resumed: int
    ) -> None:
        """A position outside the log is an error, or reported and gone on from as told."""
        kafka.create_topic(topic)
        write(kafka, topic, numbered(10))
        kafka.delete_records(topic, 0, before=7)
        with pytest.raises(DataLossError, match=f"offset {position} of {topic}/0 is gone: .* 7 to 10"):
            start({0: position})
        reader = start({0: position}, on_data_loss=policy)
        write(kafka, topic, [b"new"])
        reader.until_count(11 - resumed)
        assert [record.offset for record in reader.of(partition_of(topic))] == list(range(resumed, 11))
        assert reader.source.losses() == (Loss(partition_of(topic), position, resumed),)
        assert reader.source.losses() == ()

    @pytest.mark.parametrize(("policy", "resumed"), [("fail", None), ("earliest", 7), ("latest", 10)])
    def test_while_reading(
        self,
        kafka: Kafka,
        start: Start,
        topic: str,
        policy: Literal["fail", "earliest", "latest"],
        resumed: int | None,
    ) -> None:
        """The same where retention overtakes a reader that holds the partition back."""
        kafka.create_topic(topic)
        write(kafka, topic, numbered(2))
        reader = start(on_data_loss=policy)
        reader.until_count(2)
        reader.source.pause(frozenset({partition_of(topic)}))
        for _ in range(5):  # whatever was being fetched is through
            reader.poll()
        write(kafka, topic, numbered(8, 2))
        kafka.delete_records(topic, 0, before=7)
        reader.source.pause(frozenset())
        if resumed is None:
            with pytest.raises(DataLossError, match=f"offset 2 of {topic}/0 is gone"):
                reader.until_count(10)
            return
        reader.until(lambda: reader.last.positions[partition_of(topic)] >= resumed)
        write(kafka, topic, [b"new"])
        reader.until_count(2 + 11 - resumed)
        assert [r.offset for r in reader.of(partition_of(topic))] == [0, 1, *range(resumed, 11)]
        assert reader.source.losses() == (Loss(partition_of(topic), 2, resumed),)


def sasl(broker: Kafka, mechanism: str, password: str = PASSWORD) -> SecurityConfig:
    """Credentials over TLS."""
    return SecurityConfig.model_validate(
        {
            "protocol": "SASL_SSL",
            "mechanism": mechanism,
            "username": USER,
            "password": SecretStr(password),
            "ca_file": broker.ca_file,
        }
    )


class Refusal(NamedTuple):
    """How a start ended, and how long that took."""

    error: BaseException | None
    seconds: float


Refusals = Mapping[tuple[ClientName, str], Refusal]


@pytest.fixture(scope="module")
def refusals(kafka_tls: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Refusals:
    """Every way not to be let in, with each client; all at once, since each waits its 10 s."""
    other = tmp_path_factory.mktemp("other") / "ca.pem"
    arguments = ["-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=other", "-keyout", f"{other}.key"]
    subprocess.run(["openssl", "req", "-x509", *arguments, "-out", other], check=True, capture_output=True)
    (port,) = free_ports(1)
    configs = {
        mechanism: source_config(
            kafka_tls.sasl_bootstrap, ["any"], security=sasl(kafka_tls, mechanism, "wrong-and-secret")
        )
        for mechanism in ("PLAIN", "SCRAM-SHA-512")
    }
    foreign = SecurityConfig(protocol="SSL", ca_file=other)
    configs["authority"] = source_config(kafka_tls.ssl_bootstrap, ["any"], security=foreign)
    configs["nobody"] = source_config(f"127.0.0.1:{port}", ["any"])
    cases = [(client, case) for client in CLIENTS for case in configs]
    with ThreadPoolExecutor(len(cases)) as threads:
        return dict(zip(cases, threads.map(lambda c: refused(c[0], configs[c[1]]), cases), strict=True))


def refused(client: ClientName, config: SourceConfig) -> Refusal:
    """Try to start."""
    source = kafka_source(client, config)
    before = time.monotonic()
    try:
        source.start({})
    except PeerError as error:
        return Refusal(error, time.monotonic() - before)
    finally:
        source.close()
    return Refusal(None, time.monotonic() - before)


class TestSecurity:
    """Who is let in, and what those who are not are told."""

    @pytest.mark.parametrize("mechanism", ["SSL", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    def test_let_in(self, kafka_tls: Kafka, client: ClientName, topic: str, mechanism: str) -> None:
        """Records come over TLS, with and without credentials."""
        kafka_tls.create_topic(topic)
        write(kafka_tls, topic, numbered(3))
        if mechanism == "SSL":
            address, security = kafka_tls.ssl_bootstrap, SecurityConfig(protocol="SSL", ca_file=kafka_tls.ca_file)
        else:
            address, security = kafka_tls.sasl_bootstrap, sasl(kafka_tls, mechanism)
        config = source_config(address, [topic], security=security).model_copy(update={"client": client})
        assert check_connection(config) == []
        source = kafka_source(client, config)
        source.start({})
        reader = Reader(source)
        reader.until_count(3)
        source.close()
        assert reader.values(partition_of(topic)) == numbered(3)

    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
    def test_wrong_password(self, refusals: Refusals, client: ClientName, mechanism: str) -> None:
        """It is said that the broker was reached, and that the credentials are what it did not like."""
        said = self.said(refusals[client, mechanism])
        assert f"user name {USER}" in said
        assert "password" in said
        assert "wrong-and-secret" not in said

    def test_wrong_authority(self, refusals: Refusals, client: ClientName) -> None:
        """It is said that the certificate is not trusted, and what to look at."""
        said = self.said(refusals[client, "authority"])
        assert "is not trusted" in said
        assert "ca_file" in said

    def test_nobody_there(self, refusals: Refusals, client: ClientName) -> None:
        """It is said which address refuses connections."""
        said = self.said(refusals[client, "nobody"])
        assert re.search(r"127\.0\.0\.1:\d+ refuses connections", said)

    @staticmethod
    def said(refusal: Refusal) -> str:
        """The sentence, which came in time as an error that ends the program with 4."""
        assert isinstance(refusal.error, PeerError)
        assert refusal.error.exit_code == 4
        assert refusal.seconds < 60
        return str(refusal.error)
