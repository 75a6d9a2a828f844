"""One suite for every source: the laws of `protocol.Source`, over memory, files and a real broker with both clients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pytest
from kafka import KafkaProducer
from reading import CLIENTS, ClientName, Reader, Record, kafka_source, partition_of, source_config, write
from servers.kafka import Kafka

from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.files import FileSource
from stream_monitor.source.memory import MemorySource
from stream_monitor.source.protocol import Source

Headers = tuple[tuple[str, bytes], ...]

_numbers = itertools.count()


class Place(Protocol):
    """Somewhere partitions of records can be written, and read as a source."""

    grows: bool  # records may come while it is read

    def partition(self, number: int) -> PartitionId:
        """How the source names a partition."""

    def write(self, number: int, values: Sequence[bytes | None], headers: Headers = ()) -> None:
        """Append to a partition."""

    def write_gaps(self) -> dict[int, bytes]:
        """Write records to partition 0 whose offsets are not all those from 0 on; return them by offset."""

    def open(self) -> Source:
        """A source over all of it from the beginning, not yet started."""


class Memory:
    """MemorySource: the records are the source's own, so every source gets a copy."""

    grows = True

    def __init__(self, partitions: int) -> None:
        self._binding = Binding(Stream.INFERENCE, "memory")
        self._partitions = partitions
        self._written: list[tuple[int, bytes | None, Headers, int | None]] = []
        self._opened: list[MemorySource] = []

    def partition(self, number: int) -> PartitionId:
        return partition_of("memory", number)

    def write(self, number: int, values: Sequence[bytes | None], headers: Headers = ()) -> None:
        self._keep([(number, value, headers, None) for value in values])

    def write_gaps(self) -> dict[int, bytes]:
        written = {offset: b"%d" % offset for offset in (0, 1, 4, 5, 11)}
        self._keep([(0, value, (), offset) for offset, value in written.items()])
        return written

    def open(self) -> Source:
        source = MemorySource([self._binding], partitions=self._partitions)
        self._append(source, self._written)
        self._opened.append(source)
        return source

    def _keep(self, records: list[tuple[int, bytes | None, Headers, int | None]]) -> None:
        self._written += records
        for source in self._opened:
            self._append(source, records)

    def _append(self, source: MemorySource, records: list[tuple[int, bytes | None, Headers, int | None]]) -> None:
        for number, value, headers, offset in records:
            source.append(self.partition(number), value, headers=headers, offset=offset)


class Files:
    """One JSONL file a partition."""

    grows = False

    def __init__(self, folder: Path, partitions: int) -> None:
        self._paths = [folder / f"{number}.jsonl" for number in range(partitions)]
        for path in self._paths:
            path.touch()

    def partition(self, number: int) -> PartitionId:
        return partition_of(str(self._paths[number]))

    def write(self, number: int, values: Sequence[bytes | None], headers: Headers = ()) -> None:
        assert not headers
        with self._paths[number].open("ab") as file:
            file.writelines(value + b"\n" for value in values if value is not None)

    def write_gaps(self) -> dict[int, bytes]:
        # Blank lines are no records and have no number: what would be a gap elsewhere is none here.
        self._paths[0].write_bytes(b"a\n\n\nb\n  \nc\n\n")
        return {0: b"a", 1: b"b", 2: b"c"}

    def open(self) -> Source:
        return FileSource([Binding(Stream.INFERENCE, str(path)) for path in self._paths])


class Topic:
    """A topic of the real broker, read with one of the clients."""

    grows = True

    def __init__(self, broker: Kafka, client: ClientName, partitions: int) -> None:
        self._broker = broker
        self._client = client
        self._topic = f"contract-{next(_numbers)}"
        broker.create_topic(self._topic, partitions)

    def partition(self, number: int) -> PartitionId:
        return partition_of(self._topic, number)

    def write(self, number: int, values: Sequence[bytes | None], headers: Headers = ()) -> None:
        write(self._broker, self._topic, values, partition=number, headers=headers)

    def write_gaps(self) -> dict[int, bytes]:
        """Transactions end in markers, which take an offset; the records of one that was aborted are no records."""
        written: dict[int, bytes] = {}
        producer = KafkaProducer(bootstrap_servers=self._broker.bootstrap, transactional_id=self._topic)
        try:
            producer.init_transactions()
            for keep, values in ((True, [b"a", b"b"]), (False, [b"never"]), (True, [b"c"])):
                producer.begin_transaction()
                sent = [producer.send(self._topic, value, partition=0) for value in values]
                producer.flush(timeout=10)
                offsets = [future.get(timeout=10).offset for future in sent]
                if keep:
                    producer.commit_transaction()
                    written |= dict(zip(offsets, values, strict=True))
                else:
                    producer.abort_transaction()
        finally:
            producer.close(timeout=5)
        return written

    def open(self) -> Source:
        return kafka_source(self._client, source_config(self._broker.bootstrap, [self._topic]))


class Places:
    """Makes places of one kind, and ends the sources read from them."""

    def __init__(self, kind: str, request: pytest.FixtureRequest, folder: Path) -> None:
        self.kind = kind
        self._request = request
        self._folder = folder
        self._opened: list[Source] = []

    def make(self, partitions: int = 1) -> Place:
        """A new place."""
        if self.kind == "memory":
            return Memory(partitions)
        if self.kind == "files":
            return Files(self._folder, partitions)
        client: ClientName = "confluent" if self.kind == "confluent" else "kafka-python"
        return Topic(self._request.getfixturevalue("kafka"), client, partitions)

    def start(self, place: Place, positions: dict[int, int] | None = None) -> Reader:
        """Read a place from these offsets by number of partition, and from the beginning where none is given."""
        source = place.open()
        self._opened.append(source)
        source.start({place.partition(number): at for number, at in (positions or {}).items()})
        return Reader(source)

    def close(self) -> None:
        """End every source."""
        for source in self._opened:
            source.close()
            source.close()  # which may be said twice
            assert source.finished


@pytest.fixture(params=["memory", "files", *CLIENTS])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """The places of each kind of source in turn."""
    made = Places(request.param, request, tmp_path)
    yield made
    made.close()


def numbered(count: int, mark: str = "") -> list[bytes]:
    """Distinct values."""
    return [f'{{"n": "{mark}{i}"}}'.encode() for i in range(count)]


def test_each_partition_comes_in_order(places: Places) -> None:
    """All records of several partitions, each once, in order, however small the polls."""
    place = places.make(3)
    written = {number: numbered(400 + number, f"{number}-") for number in range(3)}
    for number, values in written.items():
        place.write(number, values)
    reader = places.start(place)
    assert reader.source.partitions() == tuple(place.partition(number) for number in range(3))
    reader.until_count(1203, max_records=97)
    for number, values in written.items():
        assert reader.of(place.partition(number)) == [Record(i, value) for i, value in enumerate(values)]


def test_every_offset_is_a_place_to_go_on_from(places: Places) -> None:
    """Started at any offset, the end included, exactly what follows comes; a partition not given begins afresh."""
    place = places.make(2)
    first, second = numbered(6, "a"), numbered(2, "b")
    place.write(0, first)
    place.write(1, second)
    for at in range(7):
        reader = places.start(place, {0: at})
        reader.until_count(6 - at + 2)
        assert reader.of(place.partition(0)) == [Record(i, first[i]) for i in range(at, 6)]
        assert reader.values(place.partition(1)) == second


def test_gaps_are_passed_over(places: Places) -> None:
    """Offsets nobody wrote a record to neither hold the reader up nor are delivered, from wherever it starts."""
    place = places.make()
    partition = place.partition(0)
    written = place.write_gaps()
    for at in range(max(written) + 2):
        following = [Record(offset, value) for offset, value in written.items() if offset >= at]
        reader = places.start(place, {0: at})
        reader.until_count(len(following))
        assert reader.of(partition) == following
        # Nothing is missing: a partition whose log ends in markers is at its end all the same.
        reader.until(lambda r=reader: r.last.ends.get(partition) == r.last.positions.get(partition, max(written) + 1))  # type: ignore[misc]


def test_a_pause_loses_nothing(places: Places) -> None:
    """Nothing of a paused partition comes; released, it goes on where it was; the set replaces the one before."""
    place = places.make(2)
    written = {number: numbered(600, f"{number}-") for number in range(2)}
    for number, values in written.items():
        place.write(number, values)
    reader = places.start(place)
    reader.until(lambda: bool(reader.counts()), max_records=20)
    for turn in range(12):
        paused = place.partition(turn % 2)
        reader.source.pause(frozenset({paused}))
        before = len(reader.of(paused))
        for _ in range(2):
            reader.poll(30)
        assert len(reader.of(paused)) == before
    reader.source.pause(frozenset(place.partition(number) for number in range(2)))
    held = reader.counts()
    reader.poll()
    assert reader.counts() == held
    assert not reader.source.finished
    reader.source.pause(frozenset())
    reader.until_count(1200)
    for number, values in written.items():
        assert reader.of(place.partition(number)) == [Record(i, value) for i, value in enumerate(values)]


def test_ends_and_positions(places: Places) -> None:
    """Once all is read, the end of each partition is where it goes on; an empty one is at its end too."""
    place = places.make(2)
    place.write(0, numbered(50))
    reader = places.start(place, {0: 10})
    reader.until_count(40)
    ends = {place.partition(0): 50, place.partition(1): 0}
    reader.until(lambda: reader.last.ends == ends)
    assert reader.last.positions in (ends, {})  # a file begins at its first record: nobody need be told
    assert reader.source.losses() == ()
    reader.source.commit(dict(ends))


def test_only_files_come_to_an_end(places: Places) -> None:
    """A log that may grow is never finished, and what is written later comes."""
    place = places.make()
    place.write(0, numbered(5))
    reader = places.start(place)
    reader.until_count(5)
    assert reader.source.finished == (not place.grows)
    if place.grows:
        place.write(0, numbered(3, "later"))
        reader.until_count(8)
        assert reader.values(place.partition(0)) == numbered(5) + numbered(3, "later")


@pytest.mark.parametrize("places", ["memory", *CLIENTS], indirect=True)
def test_headers_and_tombstones(places: Places) -> None:
    """Headers stay with their records, and a record without a value is still a record."""
    place = places.make(2)
    some: Headers = (("model", b"credit"), ("model", b"twice"), ("empty", b""))
    place.write(0, [b"plain"])
    place.write(0, [b"with", None], some)
    place.write(0, [None, b""])
    place.write(1, [b"other"])
    reader = places.start(place)
    reader.until_count(6)
    assert reader.of(place.partition(0)) == [
        Record(0, b"plain"),
        Record(1, b"with", some),
        Record(2, None, some),
        Record(3, None),
        Record(4, b""),
    ]
    assert reader.of(place.partition(1)) == [Record(0, b"other")]
