"""Kafka topics as a source: what is the same for every client, and the client kafka-python."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, Protocol

import kafka
import numpy as np
import pyarrow as pa
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailedError,
)
from kafka.structs import OffsetAndMetadata, TopicPartition

from stream_monitor.config import SourceConfig
from stream_monitor.errors import DataLossError, PeerError
from stream_monitor.records import NO_TIME, Binding, Ints, PartitionId, Poll, RawBatch, Stream
from stream_monitor.source.batches import DIRECT, Headers, columns_of, read_columns
from stream_monitor.source.protocol import Loss

_log = logging.getLogger(__name__)

GROUP = "stream-monitor"
"""Under which group id positions are committed for lag tools."""

CONNECT_SECONDS = 10.0
"""How long a first contact may take: a broker answers within one second, a cluster that restarts within a few."""

LOOK_SECONDS = 30.0
"""How often new partitions are looked for: they begin at their first record, so nothing is lost by the wait."""

_RETRY_SECONDS = 2.0

Begin = Literal["latest", "earliest"] | datetime


class Place(NamedTuple):
    """A partition as a client names it."""

    topic: str
    number: int


class Fetched(NamedTuple):
    """Records of one partition, in order."""

    place: Place
    offset: Ints
    value: pa.Array  # binary
    time_us: Ints  # NO_TIME where the broker gave none
    headers: list[Headers] | None  # None: no record has any


class OffsetsGoneError(Exception):
    """The positions of these partitions are not in their logs any more."""

    def __init__(self, places: frozenset[Place]) -> None:
        super().__init__(", ".join(f"{p.topic}/{p.number}" for p in sorted(places)))
        self.places = places


class Client(Protocol):
    """A consumer that is told what to read. Methods that ask the broker raise PeerError when it does not answer."""

    def connect(self, timeout_seconds: float) -> None:
        """Reach a broker."""

    def partitions(self, topics: Iterable[str]) -> Mapping[str, Iterable[int]]:
        """The partitions of those topics that exist."""

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        """First offset and end of each log."""

    def offsets_at(self, places: Sequence[Place], time_ms: int) -> Mapping[Place, int | None]:
        """The first offset at or after a time; None where there is none."""

    def read(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions from these offsets, and go on with those read before."""

    def pause(self, places: frozenset[Place]) -> None:
        """Hold back these and no others; they are all being read."""

    def poll(self, max_records: int, timeout_seconds: float) -> list[Fetched]:
        """What has come; raises OffsetsGoneError. An outage is no error: nothing comes."""

    def end(self, place: Place) -> int | None:
        """The end of the log as last heard, without asking."""

    def reached(self, place: Place) -> int:
        """Every readable record below this offset was delivered; more than the last record where markers follow it."""

    def commit(self, positions: Mapping[Place, int]) -> None:
        """Commit without waiting, errors ignored."""

    @property
    def connected(self) -> bool:
        """A broker answered lately."""

    def close(self) -> None:
        """Disconnect, waiting a second at most."""


class KafkaSource:
    """Topics read by partition: no consumer group decides who reads what, and positions come from the state file."""

    def __init__(
        self,
        client: Client,
        bindings: Sequence[Binding],
        *,
        begin: Begin = "latest",
        on_data_loss: Literal["fail", "earliest", "latest"] = "fail",
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._client = client
        self._bindings = {b.topic: b for b in bindings}
        self._begin = begin
        self._on_data_loss = on_data_loss
        self._clock = clock
        self._look_seconds = look_seconds
        self._given: dict[PartitionId, int] = {}
        self._next: dict[PartitionId, int] = {}
        self._ends: dict[PartitionId, int] = {}
        self._paused: frozenset[PartitionId] = frozenset()
        self._losses: list[Loss] = []
        self._missing: set[str] = set()
        self._connected = True
        self._look_at = 0.0
        self._closed = False

    def start(self, positions: Mapping[PartitionId, int]) -> None:
        self._given = dict(positions)
        self._client.connect(CONNECT_SECONDS)
        self._look(self._begin)

    def poll(self, max_records: int, timeout_seconds: float) -> Poll:
        if self._clock() >= self._look_at:
            self._look_again()
        fetched = self._fetch(max_records, timeout_seconds)
        for part in fetched:
            partition = self._partition(part.place)
            self._next[partition] = int(part.offset[-1]) + 1
        self._note_connection()
        return Poll(self._batches(fetched), self._known_ends(), dict(self._next))

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        self._paused = partitions
        self._client.pause(frozenset(_place(p) for p in partitions & self._next.keys()))

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        if self._connected:
            self._client.commit({_place(p): o for p, o in positions.items() if p in self._next})

    def partitions(self) -> tuple[PartitionId, ...]:
        return tuple(sorted(self._next))

    def losses(self) -> tuple[Loss, ...]:
        lost, self._losses = tuple(self._losses), []
        return lost

    @property
    def finished(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._client.close()

    def _look(self, begin: Begin) -> None:
        """Find partitions not yet read and begin on them."""
        self._look_at = self._clock() + self._look_seconds
        found = self._client.partitions(self._bindings)
        self._note_missing({topic for topic in self._bindings if not found.get(topic)})
        places = [Place(topic, number) for topic, numbers in found.items() for number in numbers]
        new = [p for p in map(self._partition, places) if p not in self._next]
        if new:
            self._read(self._placed({p: self._given.get(p) for p in new}, begin))

    def _look_again(self) -> None:
        """What is new was written after we started: it is read from its first record."""
        try:
            self._look("earliest")
        except PeerError as error:
            if not error.retriable:
                raise
            _log.debug("topics could not be looked at: %s", error)

    def _read(self, positions: Mapping[PartitionId, int]) -> None:
        self._next.update(positions)
        self._client.read({_place(p): o for p, o in positions.items()})
        self.pause(self._paused)

    def _fetch(self, max_records: int, timeout_seconds: float) -> list[Fetched]:
        if not self._next:
            time.sleep(timeout_seconds)
            return []
        try:
            return self._client.poll(max_records, timeout_seconds)
        except OffsetsGoneError as gone:
            at = {p: self._next[p] for p in map(self._partition, gone.places)}
            self._read(self._placed(at, "earliest"))
            return []

    def _placed(self, wanted: Mapping[PartitionId, int | None], begin: Begin) -> dict[PartitionId, int]:
        """Where to read each partition from: its position if that is still in the log, `begin` if it has none."""
        places = [_place(p) for p in wanted]
        bounds = self._client.bounds(places)
        fresh = [_place(p) for p, at in wanted.items() if at is None]
        at_time: Mapping[Place, int | None] = {}
        if isinstance(begin, datetime) and fresh:
            at_time = self._client.offsets_at(fresh, _milliseconds(begin))
        positions = {}
        for partition, at in wanted.items():
            low, high = bounds[_place(partition)]
            if at is None:
                found = at_time.get(_place(partition))
                at = low if begin == "earliest" else high if found is None else found
            elif not low <= at <= high:
                at = self._lose(partition, at, (low, high))
            positions[partition] = at
            self._ends[partition] = max(at, high)
        return positions

    def _lose(self, partition: PartitionId, expected: int, bounds: tuple[int, int]) -> int:
        low, high = bounds
        where = f"{partition.topic}/{partition.number}"
        held = f"offset {expected} of {where} is gone: the partition now holds {low} to {high}"
        if self._on_data_loss == "fail":
            raise DataLossError(f"{held}; set source.on_data_loss to go on")
        resumed = low if self._on_data_loss == "earliest" else high
        _log.error("%s; going on at %d", held, resumed)
        self._losses.append(Loss(partition, expected, resumed))
        return resumed

    def _known_ends(self) -> dict[PartitionId, int]:
        """Ends as last heard; none while no broker answers, since what we heard is then no news.

        A log may end in markers of transactions, which nobody delivers: where all of it was read, the end is what
        follows the last record.
        """
        if not self._connected:
            return {}
        for partition, at in self._next.items():
            place = _place(partition)
            end = self._client.end(place)
            end = self._ends[partition] if end is None else end
            read = end <= at or self._client.reached(place) >= end
            self._ends[partition] = at if read else end
        return dict(self._ends)

    def _batches(self, fetched: Sequence[Fetched]) -> tuple[RawBatch, ...]:
        by_topic: dict[str, list[Fetched]] = {}
        for part in fetched:
            by_topic.setdefault(part.place.topic, []).append(part)
        return tuple(
            _batch(self._bindings[topic], parts, tuple(self._partition(p.place) for p in parts))
            for topic, parts in by_topic.items()
        )

    def _partition(self, place: Place) -> PartitionId:
        return PartitionId(self._bindings[place.topic].stream, place.topic, place.number)

    def _note_missing(self, missing: set[str]) -> None:
        for topic in sorted(missing - self._missing):
            _log.warning("there is no topic %s yet; waiting for it", topic)
        for topic in sorted(self._missing - missing):
            _log.info("topic %s is there now", topic)
        self._missing = missing

    def _note_connection(self) -> None:
        """Records are no sign of life: clients go on handing out what they hold after the broker is gone."""
        connected = not self._next or self._client.connected
        if connected != self._connected:
            if connected:
                _log.info("a Kafka broker answers again")
            else:
                _log.warning("no Kafka broker answers; trying on")
        self._connected = connected
        if not connected:  # looking tells whether a broker is back, also where no records come
            self._look_at = min(self._look_at, self._clock() + _RETRY_SECONDS)


def _place(partition: PartitionId) -> Place:
    return Place(partition.topic, partition.number)


def _milliseconds(moment: datetime) -> int:
    """Since the epoch; a moment without a zone is meant in UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0, int(aware.timestamp() * 1000))


def _batch(binding: Binding, parts: Sequence[Fetched], partitions: tuple[PartitionId, ...]) -> RawBatch:
    sizes = [len(p.offset) for p in parts]
    headers: list[Headers] | None = None
    if any(p.headers is not None for p in parts):
        headers = [h for p in parts for h in (p.headers or [()] * len(p.offset))]
    return RawBatch(
        binding=binding,
        partitions=partitions,
        partition=np.repeat(np.arange(len(parts), dtype=np.int32), sizes),
        offset=np.concatenate([p.offset for p in parts]),
        value=pa.concat_arrays([p.value for p in parts]),
        record_time_us=np.concatenate([p.time_us for p in parts]),
        headers=headers,
    )


def bindings_of(config: SourceConfig) -> tuple[Binding, ...]:
    """Every topic or file the configuration names."""
    inference = [t.binding(Stream.INFERENCE) for t in config.inference]
    return (*inference, *(t.binding(Stream.GROUND_TRUTH) for t in config.ground_truth))


def settings(config: SourceConfig) -> dict[str, Any]:
    """Address and security as kafka-python's consumer, producer and admin client take them."""
    found: dict[str, Any] = {
        "bootstrap_servers": [s.strip() for s in config.bootstrap_servers.split(",") if s.strip()],
        # The library waits up to 30 s between tries; the first record after an outage should not.
        "reconnect_backoff_max_ms": 500,
    }
    security = config.security
    if security is not None:
        found |= {
            "security_protocol": security.protocol,
            "ssl_cafile": _text(security.ca_file),
            "ssl_certfile": _text(security.cert_file),
            "ssl_keyfile": _text(security.key_file),
        }
        if security.protocol.startswith("SASL"):
            found |= {
                "sasl_mechanism": security.mechanism,
                "sasl_plain_username": security.username,
                "sasl_plain_password": security.password.get_secret_value() if security.password else "",
            }
    return found


def _text(path: object) -> str | None:
    return None if path is None else str(path)


class PythonClient:
    """The consumer of kafka-python."""

    def __init__(self, config: SourceConfig, *, look_seconds: float = LOOK_SECONDS) -> None:
        quieten()
        self._config = config
        self._look_seconds = look_seconds
        self._positions: dict[TopicPartition, int] = {}  # where each was begun, or held back
        self._paused: frozenset[TopicPartition] = frozenset()
        self._consumer: Any = None  # made by `connect`, since making one connects

    def connect(self, timeout_seconds: float) -> None:
        try:
            self._consumer = kafka.KafkaConsumer(
                **settings(self._config),
                group_id=GROUP,
                enable_auto_commit=False,
                auto_offset_reset="none",
                isolation_level="read_committed",
                allow_auto_create_topics=False,
                metadata_max_age_ms=int(self._look_seconds * 1000),
                bootstrap_timeout_ms=int(timeout_seconds * 1000),
                # Large fetches cost less a record; what one brings is held several times while it is read.
                max_poll_records=10_000,
                max_partition_fetch_bytes=1_000_000,
                fetch_max_bytes=8_000_000,
                receive_buffer_bytes=1_000_000,
                proxy_url=DIRECT,
            )
        except (KafkaError, OSError) as error:
            raise unreachable(self._config, error) from error
        if not read_columns(self._consumer):
            _log.warning("this release of kafka-python is not the one we know how to read fast")

    def partitions(self, topics: Iterable[str]) -> Mapping[str, Iterable[int]]:
        # Asking for a topic that is not known waits for the broker without a limit.
        if self._positions and not self.connected:
            raise PeerError("no Kafka broker answers")
        try:
            return {topic: sorted(self._consumer.partitions_for_topic(topic)) for topic in topics}
        except KafkaError as error:
            raise self._peer_error(error) from error

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        wanted = [TopicPartition(*p) for p in places]
        limit = int(CONNECT_SECONDS * 1000)
        try:
            low = self._consumer.beginning_offsets(wanted, timeout_ms=limit)
            high = self._consumer.end_offsets(wanted, timeout_ms=limit)
        except KafkaError as error:
            raise self._peer_error(error) from error
        return {place: (low[tp], high[tp]) for place, tp in zip(places, wanted, strict=True)}

    def offsets_at(self, places: Sequence[Place], time_ms: int) -> Mapping[Place, int | None]:
        wanted = {TopicPartition(*p): time_ms for p in places}
        try:
            found = self._consumer.offsets_for_times(wanted, timeout_ms=int(CONNECT_SECONDS * 1000))
        except KafkaError as error:
            raise self._peer_error(error) from error
        return {Place(*tp): None if at is None or at.offset < 0 else at.offset for tp, at in found.items()}

    def read(self, positions: Mapping[Place, int]) -> None:
        given = {TopicPartition(*p): at for p, at in positions.items()}
        self._positions |= given
        self._assign(given)

    def pause(self, places: frozenset[Place]) -> None:
        """Held back is not assigned: the library's own pause keeps fetched records and may never let go of them."""
        paused = frozenset(TopicPartition(*p) for p in places)
        if paused != self._paused:
            self._positions |= {tp: self._position(tp) for tp in paused - self._paused}
            resumed, self._paused = self._paused - paused, paused
            self._assign(resumed)

    def _assign(self, begun: Iterable[TopicPartition]) -> None:
        """Read all but what is paused; those just begun on from their positions, the others as they go."""
        self._consumer.assign([tp for tp in self._positions if tp not in self._paused])
        for partition in begun:
            if partition not in self._paused:
                self._consumer.seek(partition, self._positions[partition])

    def _position(self, partition: TopicPartition) -> int:
        """The offset to fetch next."""
        known = None if partition in self._paused else self._consumer.position(partition, timeout_ms=0)
        return self._positions[partition] if known is None else int(known)

    def poll(self, max_records: int, timeout_seconds: float) -> list[Fetched]:
        try:
            found = self._consumer.poll(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
        except OffsetOutOfRangeError as error:
            raise OffsetsGoneError(frozenset(Place(*tp) for tp in error.args[0])) from error
        except LogTruncationError as error:
            raise OffsetsGoneError(frozenset(Place(*tp) for tp in error.divergent_offsets)) from error
        except KafkaError as error:
            refused = self._peer_error(error)
            if not refused.retriable:
                raise refused from error
            _log.debug("nothing could be fetched: %s", error)
            time.sleep(min(timeout_seconds, 0.1))
            return []
        return [_fetched(Place(*tp), records) for tp, records in found.items() if records]

    def end(self, place: Place) -> int | None:
        partition = TopicPartition(*place)
        found: int | None = None if partition in self._paused else self._consumer.highwater(partition)
        return found

    def reached(self, place: Place) -> int:
        return self._position(TopicPartition(*place))

    def commit(self, positions: Mapping[Place, int]) -> None:
        offsets = {TopicPartition(*p): OffsetAndMetadata(at, "", -1) for p, at in positions.items()}
        try:
            self._consumer.commit_async(offsets, callback=_note_commit)
        except KafkaError as error:
            _log.debug("positions were not committed: %s", error)

    @property
    def connected(self) -> bool:
        metrics = self._consumer.metrics() or {}
        return bool(metrics.get("consumer-metrics", {}).get("connection-count", 1))

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close(autocommit=False, timeout_ms=1000)

    def _peer_error(self, error: KafkaError) -> PeerError:
        """Ours for theirs; being refused is not cured by trying again."""
        if isinstance(error, AuthorizationError):
            refused = PeerError(f"the Kafka broker does not allow us to read: {error}")
        elif isinstance(error, SaslAuthenticationFailedError):
            refused = PeerError(f"the Kafka broker refused the credentials: {error}")
        else:
            return PeerError(f"the Kafka brokers at {self._config.bootstrap_servers} did not answer: {error}")
        refused.retriable = False
        return refused


def _fetched(place: Place, records: Sequence[Any]) -> Fetched:
    found = columns_of(records)
    return Fetched(place, found.offset, found.value, microseconds(found.time_ms), found.headers)


def microseconds(time_ms: Ints) -> Ints:
    """Kafka's timestamps in our unit; below zero there is none."""
    return np.where(time_ms < 0, NO_TIME, time_ms * 1000)


def _note_commit(_: object, answer: object) -> None:
    if isinstance(answer, Exception):
        _log.debug("positions were not committed: %s", answer)


def quieten() -> None:
    """kafka-python logs an error a try during an outage, where we log each change once."""
    logger = logging.getLogger("kafka")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.CRITICAL)


def unreachable(config: SourceConfig, error: BaseException) -> PeerError:
    """A failed first contact as one sentence that says what stands in the way."""
    problems = probe(config)
    if not problems:
        problems = [_probable_cause(config), str(error)]
    return PeerError(f"no Kafka broker answers at {config.bootstrap_servers}: {'; '.join(problems)}")


def _probable_cause(config: SourceConfig) -> str:
    security = config.security
    protocol = security.protocol if security else "PLAINTEXT"
    if security is not None and protocol.startswith("SASL"):
        return (
            f"the connection is made, but not let in: the user name {security.username}, its password or the mechanism"
            f" {security.mechanism} is probably wrong, or the listener is not {protocol}"
        )
    return f"the connection is made, but not answered: the listener is probably not {protocol}"


def probe(config: SourceConfig, timeout_seconds: float = 3.0) -> list[str]:
    """Why connections to the servers fail, by name, address and TLS; empty where one of them succeeds."""
    problems = []
    for server in config.bootstrap_servers.split(","):
        found = _probe_server(server.strip(), config, timeout_seconds)
        if found is None:
            return []
        problems.append(found)
    return problems


def _probe_server(server: str, config: SourceConfig, timeout_seconds: float) -> str | None:
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        return f"{server} is not host:port"
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout_seconds) as plain:
            if config.security is not None and config.security.protocol.endswith("SSL"):
                with _context(config).wrap_socket(plain, server_hostname=host):
                    pass
    except socket.gaierror:
        return f"the name {host} cannot be resolved"
    except ConnectionRefusedError:
        return f"{server} refuses connections: nothing listens there"
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {server} is not trusted ({error.verify_message}): is ca_file right?"
    except ssl.SSLError as error:
        return f"{server} does not speak TLS with us ({error.reason or error}): is it a TLS listener?"
    except TimeoutError:
        return f"{server} does not answer within {timeout_seconds:g} s"
    except OSError as error:
        return f"{server} cannot be reached: {error}"
    return None


def _context(config: SourceConfig) -> ssl.SSLContext:
    security = config.security
    context = ssl.create_default_context(cafile=_text(security.ca_file) if security else None)
    if security is not None and security.cert_file is not None:
        context.load_cert_chain(str(security.cert_file), _text(security.key_file))
    return context
