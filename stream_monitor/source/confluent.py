"""The client confluent-kafka: several times faster than kafka-python, an extra since it is a compiled library."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.config import SourceConfig
from stream_monitor.errors import PeerError, UsageError
from stream_monitor.source.kafka import (
    CONNECT_SECONDS,
    GROUP,
    LOOK_SECONDS,
    Fetched,
    OffsetsGoneError,
    Place,
    microseconds,
    unreachable,
)

try:
    import confluent_kafka as ck
except ImportError as error:
    raise UsageError("source.client: confluent needs the extra: pip install 'stream-monitor[confluent]'") from error

# How long a record may wait for others to be handed over with it.
_CONSUME_SECONDS = 0.1

_log = logging.getLogger(__name__)

_REFUSALS = (
    ck.KafkaError._AUTHENTICATION,
    ck.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ck.KafkaError.GROUP_AUTHORIZATION_FAILED,
    ck.KafkaError.SASL_AUTHENTICATION_FAILED,
)
_GONE = (ck.KafkaError._AUTO_OFFSET_RESET, ck.KafkaError.OFFSET_OUT_OF_RANGE)


def librdkafka_settings(config: SourceConfig) -> dict[str, Any]:
    """Address and security as librdkafka takes them."""
    found: dict[str, Any] = {
        "bootstrap.servers": config.bootstrap_servers,
        # The library waits up to 10 s between tries; the first record after an outage should not.
        "reconnect.backoff.max.ms": 500,
        "log_level": 0,
    }
    security = config.security
    if security is not None:
        found["security.protocol"] = security.protocol
        files = (("ca", security.ca_file), ("certificate", security.cert_file), ("key", security.key_file))
        found |= {f"ssl.{name}.location": str(path) for name, path in files if path is not None}
        if security.protocol.startswith("SASL"):
            found |= {
                "sasl.mechanism": security.mechanism,
                "sasl.username": security.username,
                "sasl.password": security.password.get_secret_value() if security.password else "",
            }
    return found


def open_producer(config: SourceConfig) -> ck.Producer:
    """A producer that writes each record at least once; it connects on its own."""
    return ck.Producer(
        librdkafka_settings(config)
        | {"enable.idempotence": True, "linger.ms": 50, "message.max.bytes": 10_000_000, "error_cb": _ignore},
        logger=_log,
    )


def _ignore(_: object) -> None:
    """What matters of an error comes with the delivery report."""


class ConfluentClient:
    """The consumer of confluent-kafka, told what to read."""

    def __init__(self, config: SourceConfig, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._config = config
        self._positions: dict[Place, int] = {}
        self._reached: dict[Place, int] = {}
        self._paused: frozenset[Place] = frozenset()
        self._connected = True
        self._refusal: str | None = None
        self._gone: set[Place] = set()
        self._consumer = ck.Consumer(
            librdkafka_settings(config)
            | {
                "group.id": GROUP,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "allow.auto.create.topics": False,
                "enable.partition.eof": True,
                "topic.metadata.refresh.interval.ms": int(look_seconds * 1000),
                # What waits inside the library counts against our memory too.
                "queued.max.messages.kbytes": 32_768,
                "fetch.wait.max.ms": 100,
                "error_cb": self._note_error,
            },
            logger=_log,
        )

    def connect(self, timeout_seconds: float) -> None:
        try:
            self._consumer.list_topics(timeout=timeout_seconds)
        except ck.KafkaException as error:
            self._consumer.poll(0)  # delivers what `error_cb` has to say
            raise unreachable(self._config, RuntimeError(self._refusal or str(error))) from error

    def partitions(self, topics: Iterable[str]) -> Mapping[str, Iterable[int]]:
        try:
            found = self._consumer.list_topics(timeout=1.0 if self._positions else CONNECT_SECONDS).topics
        except ck.KafkaException as error:
            self._connected = False
            raise self._peer_error(error) from error
        self._connected = True
        return {topic: sorted(found[topic].partitions) if topic in found else [] for topic in topics}

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        try:
            return {p: self._consumer.get_watermark_offsets(_at(p), timeout=CONNECT_SECONDS) for p in places}
        except ck.KafkaException as error:
            raise self._peer_error(error) from error

    def offsets_at(self, places: Sequence[Place], time_ms: int) -> Mapping[Place, int | None]:
        try:
            found = self._consumer.offsets_for_times([_at(p, time_ms) for p in places], timeout=CONNECT_SECONDS)
        except ck.KafkaException as error:
            raise self._peer_error(error) from error
        return {Place(f.topic, f.partition): f.offset if f.offset >= 0 else None for f in found}

    def read(self, positions: Mapping[Place, int]) -> None:
        again = [p for p in positions if p in self._positions]
        if again:
            self._consumer.incremental_unassign([_at(p) for p in again])
        self._consumer.incremental_assign([_at(p, at) for p, at in positions.items()])
        self._positions |= positions
        self._reached |= positions
        self._paused -= positions.keys()

    def pause(self, places: frozenset[Place]) -> None:
        self._consumer.resume([_at(p) for p in self._paused - places])
        self._consumer.pause([_at(p) for p in places - self._paused])
        self._paused = places

    def poll(self, max_records: int, timeout_seconds: float) -> list[Fetched]:
        if self._gone:
            gone, self._gone = frozenset(self._gone), set()
            raise OffsetsGoneError(gone)
        by_place = self._sorted(self._consume(max_records, timeout_seconds))
        if self._refusal is not None:
            raise _refused(self._refusal)
        return [_fetched(place, messages) for place, messages in by_place.items()]

    def _consume(self, max_records: int, timeout_seconds: float) -> list[Any]:
        """The library waits until it has `max_records`, so it is given a little time, again and again."""
        give_up = time.monotonic() + timeout_seconds
        while True:
            found: list[Any] = self._consumer.consume(max_records, min(timeout_seconds, _CONSUME_SECONDS))
            if found or time.monotonic() >= give_up:
                return found

    def _sorted(self, messages: Sequence[Any]) -> dict[Place, Sequence[Any]]:
        """Records by partition; what else comes is noted."""
        faults = [(i, fault) for i, fault in enumerate(map(_ERROR, messages)) if fault is not None]
        for i, fault in faults:
            self._note_fault(Place(messages[i].topic(), messages[i].partition()), messages[i].offset(), fault)
        if faults:
            left_out = {i for i, _ in faults}
            messages = [message for i, message in enumerate(messages) if i not in left_out]
        return _by_place(messages)

    def _note_fault(self, place: Place, offset: int, fault: Any) -> None:
        """What came in place of a record."""
        if fault.code() == ck.KafkaError._PARTITION_EOF:
            self._reached[place] = offset
        elif fault.code() in _GONE:
            self._gone.add(place)
        else:
            self._note_error(fault)

    def end(self, place: Place) -> int | None:
        _, high = self._consumer.get_watermark_offsets(_at(place), cached=True)
        return high if high >= 0 else None

    def reached(self, place: Place) -> int:
        return self._reached.get(place, 0)

    def commit(self, positions: Mapping[Place, int]) -> None:
        try:
            self._consumer.commit(offsets=[_at(p, at) for p, at in positions.items()], asynchronous=True)
        except ck.KafkaException as error:
            _log.debug("positions were not committed: %s", error)

    @property
    def connected(self) -> bool:
        return self._connected

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):  # closed already
            self._consumer.close()

    def _note_error(self, error: Any) -> None:
        """What the library says of its connections, within `poll` and the calls that ask the broker."""
        if error.code() == ck.KafkaError._ALL_BROKERS_DOWN:
            self._connected = False
        elif error.code() in _REFUSALS:
            self._refusal = str(error.str())
        else:
            _log.debug("%s", error)

    def _peer_error(self, error: ck.KafkaException) -> PeerError:
        """Ours for theirs; being refused is not cured by trying again."""
        reason = error.args[0]
        if reason.code() in _REFUSALS:
            return _refused(str(reason.str()))
        return PeerError(f"the Kafka brokers at {self._config.bootstrap_servers} did not answer: {reason.str()}")


def _refused(reason: str) -> PeerError:
    error = PeerError(f"the Kafka broker does not let us in: {reason}")
    error.retriable = False
    return error


def _at(place: Place, offset: int = 0) -> ck.TopicPartition:
    return ck.TopicPartition(place.topic, place.number, offset)


# Messages are read one column after the other by calls of C; of ours only short comprehensions run once for each.
_MESSAGE: Any = ck.Message  # its types allow for messages without topic and time, which a consumer hands over none of
_ERROR, _VALUE, _HEADERS = _MESSAGE.error, _MESSAGE.value, _MESSAGE.headers
_TOPIC, _NUMBER, _OFFSET, _TIME = _MESSAGE.topic, _MESSAGE.partition, _MESSAGE.offset, _MESSAGE.timestamp


def _by_place(messages: Sequence[Any]) -> dict[Place, Sequence[Any]]:
    """Records by partition, in the order in which they came."""
    n = len(messages)
    number = np.fromiter(map(_NUMBER, messages), np.int64, n)
    topics = list(map(_TOPIC, messages))
    code = {topic: index for index, topic in enumerate(sorted(set(topics)))}
    topic = np.fromiter(map(code.__getitem__, topics), np.int64, n)
    order = np.lexsort((number, topic))
    starts = np.flatnonzero(np.diff(topic[order], prepend=-1) | np.diff(number[order], prepend=-1))
    ordered = [messages[i] for i in order.tolist()]
    return {
        Place(ordered[start].topic(), ordered[start].partition()): ordered[start:stop]
        for start, stop in pairwise([*starts.tolist(), n])
    }


def _fetched(place: Place, messages: Sequence[Any]) -> Fetched:
    n = len(messages)
    offset = np.fromiter(map(_OFFSET, messages), np.int64, n)
    time_ms = np.fromiter(map(itemgetter(1), map(_TIME, messages)), np.int64, n)
    headers = [found or () for found in map(_HEADERS, messages)]
    value = pa.array(list(map(_VALUE, messages)), pa.binary())
    return Fetched(place, offset, value, microseconds(time_ms), headers if any(headers) else None)
