"""Sinks: what was sent before a flush that returned is there, at least once, whatever happened to the broker."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition
from pydantic import SecretStr
from reading import CLIENTS, ClientName, source_config
from servers.kafka import USERS, Kafka
from servers.process import free_ports

from stream_monitor.config import Config, SecurityConfig, SourceConfig
from stream_monitor.errors import InputError, PeerError, UsageError
from stream_monitor.source import open_sink
from stream_monitor.source import sink as sinks
from stream_monitor.source.sink import ConfluentSink, FileSink, KafkaSink, MemorySink, Sent, Sink

MakeSink = Callable[[SourceConfig], Sink]

_numbers = itertools.count()


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> ClientName:
    """Each client in turn."""
    found: ClientName = request.param
    return found


@pytest.fixture
def make_sink(client: ClientName) -> Iterator[MakeSink]:
    """Opens sinks of a client as the service does, and lets go of them."""
    opened: list[Sink] = []

    def make(source: SourceConfig) -> Sink:
        sink = open_sink(Config(source=source.model_copy(update={"client": client})))
        assert isinstance(sink, KafkaSink if client == "kafka-python" else ConfluentSink)
        opened.append(sink)
        return sink

    yield make
    for sink in opened:
        sink.close()
        sink.close()


def new_topic(broker: Kafka, partitions: int = 1) -> str:
    """A topic of its own for a test."""
    topic = f"sink-{next(_numbers)}"
    broker.create_topic(topic, partitions)
    return topic


def read_back(broker: Kafka, topic: str) -> list[Sent]:
    """Every record of a topic's first partition, in order."""
    partition = TopicPartition(topic, 0)
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    try:
        consumer.assign([partition])
        consumer.seek_to_beginning(partition)
        end = consumer.end_offsets([partition])[partition]
        found: list[Sent] = []
        until = time.monotonic() + 20
        while consumer.position(partition) < end:
            assert time.monotonic() < until
            records = consumer.poll(timeout_ms=200).get(partition, [])
            found += [Sent(topic, r.key, r.value, tuple(r.headers)) for r in records]
        return found
    finally:
        consumer.close()


def some(topic: str) -> list[Sent]:
    """Records of every shape."""
    return [
        Sent(topic, b"key", b'{"n": 1}', ()),
        Sent(topic, None, b"", (("reason", b"not_json"),)),
        Sent(topic, b"\xff\x00", b"\x80\x81 not text", (("a", b"\xfe"), ("b", b""))),
        Sent(topic, b"key", "ψ, größer".encode(), ()),
    ]


class TestKafka:
    """Both producers on a real broker."""

    def test_what_is_flushed_is_there(self, kafka: Kafka, make_sink: MakeSink) -> None:
        """Keys, values and headers arrive as they were sent, in order."""
        topic = new_topic(kafka)
        sink = make_sink(source_config(kafka.bootstrap, ["any"]))
        sink.flush(1.0)  # nothing was sent yet
        for sent in some(topic):
            sink.send(*sent)
        sink.flush(10.0)
        assert read_back(kafka, topic) == some(topic)

    def test_large_and_many(self, kafka: Kafka, make_sink: MakeSink) -> None:
        """A record near the broker's limit and many small ones need no waiting in between."""
        topic = new_topic(kafka)
        sink = make_sink(source_config(kafka.bootstrap, ["any"]))
        values = [b"x" * 1_000_000, *(b"%d" % i for i in range(5000))]
        for value in values:
            sink.send(topic, b"key", value)
        sink.flush(20.0)
        assert [sent.value for sent in read_back(kafka, topic)] == values

    def test_no_topic(self, kafka: Kafka, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
        """Records for a topic that does not exist are not taken for written."""
        monkeypatch.setattr(sinks, "_CONNECT_SECONDS", 2.0)
        sink = make_sink(source_config(kafka.bootstrap, ["any"]))

        def write() -> None:
            sink.send("there-is-no-such-topic", None, b"value")
            sink.flush(2.0)

        with pytest.raises(PeerError):
            write()

    def test_nobody_there(self, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a broker opening is no error, and writing is one."""
        monkeypatch.setattr(sinks, "_CONNECT_SECONDS", 1.0)
        (port,) = free_ports(1)
        sink = make_sink(source_config(f"127.0.0.1:{port}", ["any"]))

        def write() -> None:
            sink.send("any", None, b"value")
            sink.flush(1.0)

        before = time.monotonic()
        with pytest.raises(PeerError) as raised:
            write()
        assert raised.value.exit_code == 4
        assert time.monotonic() - before < 30

    def test_with_credentials(self, kafka_tls: Kafka, make_sink: MakeSink) -> None:
        """The producer is let in with what lets the consumer in."""
        topic = new_topic(kafka_tls)
        (user, password) = next(iter(USERS.items()))
        security = SecurityConfig(
            protocol="SASL_SSL",
            mechanism="SCRAM-SHA-512",
            username=user,
            password=SecretStr(password),
            ca_file=kafka_tls.ca_file,
        )
        sink = make_sink(source_config(kafka_tls.sasl_bootstrap, ["any"], security=security))
        for sent in some(topic):
            sink.send(*sent)
        sink.flush(15.0)
        assert read_back(kafka_tls, topic) == some(topic)


class Letters:
    """Writes numbered records as the service does: what a flush did not confirm is sent again."""

    def __init__(self, sink: Sink, topic: str) -> None:
        self._sink = sink
        self._topic = topic
        self._pending: list[bytes] = []
        self.written: list[bytes] = []
        self.failures = 0

    def write(self, count: int) -> None:
        """Send some more and try to have all of it confirmed."""
        first = len(self.written) + len(self._pending)
        self._pending += [b"%06d" % i for i in range(first, first + count)]
        try:
            for value in self._pending:
                self._sink.send(self._topic, b"key", value)
            self._sink.flush(0.5)
        except PeerError:
            self.failures += 1
        else:
            self.written += self._pending
            self._pending = []

    @property
    def waiting(self) -> bool:
        """Whether some are not confirmed."""
        return bool(self._pending)


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_at_least_once_over_a_restart(kafka: Kafka, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker goes, in order or not, while both clients write: every confirmed record is there, in order."""
    monkeypatch.setattr(sinks, "_CONNECT_SECONDS", 2.0)
    source = source_config(kafka.bootstrap, ["any"])
    opened: list[Sink] = [KafkaSink(source), ConfluentSink(source)]
    topics = [new_topic(kafka) for _ in opened]
    writers = [Letters(sink, topic) for sink, topic in zip(opened, topics, strict=True)]
    done = threading.Event()

    def write_on(letters: Letters) -> None:
        until = time.monotonic() + 30
        while (not done.is_set() or letters.waiting) and time.monotonic() < until:
            letters.write(7)

    threads = [threading.Thread(target=write_on, args=(letters,)) for letters in writers]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        getattr(kafka, ending)()
        time.sleep(1.5)
    finally:
        kafka.start()
        time.sleep(0.5)
        done.set()
        for thread in threads:
            thread.join()
    for letters, topic, sink in zip(writers, topics, opened, strict=True):
        assert not letters.waiting
        assert letters.failures, "a flush during the outage must say so"
        assert letters.written
        found = [sent.value for sent in read_back(kafka, topic)]
        assert list(dict.fromkeys(found)) == letters.written
        sink.close()


class TestFiles:
    """Sinks without a broker."""

    def test_lines(self, tmp_path: Path) -> None:
        """One JSON object a record, whatever its bytes; a file that is there is written on."""
        path = tmp_path / "made" / "letters.jsonl"
        for _ in range(2):
            sink = FileSink(path)
            for sent in some("letters"):
                sink.send(*sent)
            sink.flush(1.0)
            assert path.read_bytes().endswith(b"\n")
            sink.close()
            sink.close()
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert lines[:4] == lines[4:]
        assert lines[:4] == [
            {"topic": "letters", "key": "key", "value": '{"n": 1}', "headers": {}},
            {"topic": "letters", "key": None, "value": "", "headers": {"reason": "not_json"}},
            {
                "topic": "letters",
                "key": {"base64": "/wA="},
                "value": {"base64": "gIEgbm90IHRleHQ="},
                "headers": {"a": {"base64": "/g=="}, "b": ""},
            },
            {"topic": "letters", "key": "key", "value": "ψ, größer", "headers": {}},
        ]

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        """A folder instead of a file is said when it is opened."""
        with pytest.raises(InputError, match="cannot be written"):
            FileSink(tmp_path)

    def test_a_full_disk(self) -> None:
        """What could not be written is not taken for written."""
        sink = FileSink(Path("/dev/full"))
        sink.send("letters", None, b"value")
        with pytest.raises(PeerError, match="No space left"):
            sink.flush(1.0)
        sink.close()

    def test_memory(self) -> None:
        """Everything is kept, in order."""
        sink = MemorySink()
        for sent in some("letters"):
            sink.send(*sent)
        sink.flush(0.0)
        sink.close()
        assert sink.sent == some("letters")

    def test_files_have_no_topics(self) -> None:
        """A source of files has no broker to write to."""
        with pytest.raises(UsageError, match=r"source\.kind"):
            open_sink(Config(source=SourceConfig(kind="files")))
