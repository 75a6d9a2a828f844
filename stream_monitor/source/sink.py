"""Where records go: verdicts to a topic, refused records to the dead letters. At least once."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import kafka
from kafka.errors import KafkaError

from stream_monitor.config import SourceConfig
from stream_monitor.errors import InputError, PeerError
from stream_monitor.source.kafka import quieten, settings, unreachable

_log = logging.getLogger(__name__)

Headers = Sequence[tuple[str, bytes]]

_CONNECT_SECONDS = 10.0


class Sink(Protocol):
    """Takes records and says when they are safe.

    What was sent before a `flush` that returned is there, at least once; what was sent after the last one may be
    lost with the process. Records of one topic and key keep their order.
    """

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        """Hand over one record; may return before it is written. Raises PeerError."""

    def flush(self, timeout_seconds: float) -> None:
        """Wait until everything sent is written; raises PeerError where it is not, by then or at all."""

    def close(self) -> None:
        """Let go; may be called twice. Does not wait for what was not flushed."""


class Sent(NamedTuple):
    """One record as MemorySink keeps it."""

    topic: str
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class MemorySink:
    """Keeps what it is given, for tests and the demo."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        self.sent.append(Sent(topic, key, value, tuple(headers)))

    def flush(self, timeout_seconds: float) -> None:
        """Everything is there already."""

    def close(self) -> None:
        """Nothing to let go."""


class FileSink:
    """Appends one JSON object a record: `topic`, `key`, `value`, `headers`.

    Keys and values that are no UTF-8 are written as `{"base64": ...}`, so that no record is lost to its encoding.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error}") from error

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        line = {
            "topic": topic,
            "key": None if key is None else _readable(key),
            "value": _readable(value),
            "headers": {name: _readable(content) for name, content in headers},
        }
        with self._reported():
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def flush(self, timeout_seconds: float) -> None:  # noqa: ARG002  a file does not keep us waiting
        with self._reported():
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what was not flushed was promised to nobody
            self._file.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PeerError(f"{self._file.name} could not be written: {error}") from error


def _readable(content: bytes) -> str | dict[str, str]:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}


class KafkaSink:
    """The producer of kafka-python. It connects at the first record, so that a quiet sink needs no broker."""

    def __init__(self, config: SourceConfig) -> None:
        quieten()
        self._config = config
        self._producer: Any = None
        self._failure: BaseException | None = None
        self._changed = threading.Lock()

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        try:
            if self._producer is None:
                self._producer = self._connect()
            future = self._producer.send(topic, key=key, value=value, headers=list(headers))
        except KafkaError as error:
            raise PeerError(f"a record could not be sent to {topic}: {error}") from error
        future.add_errback(self._fail)

    def flush(self, timeout_seconds: float) -> None:
        if self._producer is None:
            return
        try:
            self._producer.flush(timeout=timeout_seconds)
        except KafkaError as error:
            raise PeerError(f"records were not written within {timeout_seconds:g} s: {error}") from error
        with self._changed:
            failure, self._failure = self._failure, None
        if failure is not None:
            raise PeerError(f"records were not written: {failure}") from failure

    def close(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=1)

    def _connect(self) -> Any:
        try:
            return kafka.KafkaProducer(
                **settings(self._config),
                acks="all",
                enable_idempotence=True,
                linger_ms=50,
                batch_size=256_000,
                max_request_size=10_000_000,
                max_block_ms=int(_CONNECT_SECONDS * 1000),
                bootstrap_timeout_ms=int(_CONNECT_SECONDS * 1000),
            )
        except (KafkaError, OSError) as error:
            raise unreachable(self._config, error) from error

    def _fail(self, error: BaseException) -> None:
        """Called in the producer's thread."""
        with self._changed:
            self._failure = self._failure or error


class ConfluentSink:
    """The producer of confluent-kafka."""

    def __init__(self, config: SourceConfig) -> None:
        from stream_monitor.source.confluent import open_producer

        self._failure: str | None = None
        self._producer = open_producer(config)

    def send(self, topic: str, key: bytes | None, value: bytes, headers: Headers = ()) -> None:
        give_up = time.monotonic() + _CONNECT_SECONDS
        while True:
            try:
                self._producer.produce(topic, value=value, key=key, headers=list(headers), on_delivery=self._note)
            except BufferError:  # the producer's queue is full: let it write
                if time.monotonic() > give_up:
                    raise PeerError(f"a record could not be sent to {topic}: nothing is being written") from None
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def flush(self, timeout_seconds: float) -> None:
        left = self._producer.flush(timeout_seconds)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise PeerError(f"records were not written: {failure}")
        if left:
            raise PeerError(f"{left} records were not written within {timeout_seconds:g} s")

    def close(self) -> None:
        """The producer ends with its last reference; what it still holds is dropped."""
        self._producer.purge()

    def _note(self, error: object, _: object) -> None:
        if error is not None:
            self._failure = self._failure or str(error)
