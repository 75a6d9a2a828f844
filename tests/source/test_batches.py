"""Batches as columns: equal, record by record, to what kafka-python makes of the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.structs import TopicPartition

from stream_monitor.source import batches
from stream_monitor.source.batches import FEW_RECORDS, Columns, columns_of, parse, read_columns

PLACE = TopicPartition("topic", 0)
GZIP = 1
LOG_APPEND_TIME = 0x08

Record = tuple[int, int, bytes | None, tuple[tuple[str, bytes | None], ...]]  # offset, time, value, headers

sizes = st.one_of(st.integers(0, 20), st.sampled_from([63, 64, 8191, 8192, 70_000]))
values = st.one_of(st.none(), sizes.map(lambda size: b"v" * size))
headers = st.lists(st.tuples(st.text(max_size=5), st.one_of(st.none(), st.binary(max_size=5))), max_size=2).map(tuple)
times = st.integers(-(2**40), 2**45)
gaps = st.integers(1, 300)
contents = st.lists(
    st.tuples(gaps, times, st.one_of(st.none(), st.binary(max_size=9)), values), min_size=1, max_size=40
)


def encode(
    records: Iterable[Record], *, first: int = 0, codec: int = 0, keys: Sequence[bytes | None] = (None,)
) -> bytes:
    """A batch that begins at offset `first`, as a broker keeps it."""
    builder = DefaultRecordBatchBuilder(2, codec, False, -1, -1, -1, 1 << 30)
    for place, (offset, time, value, of_record) in enumerate(records):
        builder.append(offset - first, time, keys[place % len(keys)], value, list(of_record))
    body = bytearray(builder.build())
    struct.pack_into(">q", body, 0, first)
    return bytes(body)


def plain(count: int, first: int = 0, text: str = "") -> list[Record]:
    """Records with a number for a value."""
    return [(first + i, 1000 + first + i, b"%d" % (first + i) + text.encode(), ()) for i in range(count)]


def rows(columns: Columns) -> list[Record]:
    """The records of columns."""
    of_records = columns.headers or [()] * len(columns.offset)
    found = zip(columns.offset.tolist(), columns.time_ms.tolist(), columns.value.to_pylist(), of_records, strict=True)
    return [(offset, time, value, tuple(h)) for offset, time, value, h in found]


def fetched(body: bytes, offset: int = 0, **options: Any) -> Any:
    """What the fetcher makes of an answer of the broker, as we have it read."""
    return batches._PartitionRecords(offset, PLACE, MemoryRecords(body), **options)


def drained(records: Any, most: int) -> list[Record]:
    """All of it, taken `most` at a time, as the fetcher does."""
    found: list[Record] = []
    while records:
        pieces = records.take(most)
        assert len(pieces) <= most
        if pieces:
            found += rows(columns_of(pieces))
            assert records.next_fetch_offset == found[-1][0] + 1
    return found


@given(contents, headers, st.sampled_from([0, GZIP]), st.booleans(), st.integers(0, 2**40))
def test_a_batch_equals_its_records(
    content: list[tuple[int, int, bytes | None, bytes | None]],
    some: tuple[tuple[str, bytes | None], ...],
    codec: int,
    logged: bool,
    first: int,
) -> None:
    """Offsets with gaps, times before and after the first, null values and keys, sizes at the bounds of their encoding."""
    offset, records = first, []
    for place, (gap, time, _, value) in enumerate(content):
        records.append((offset, time, value, some if place % 3 == 0 else ()))
        offset += gap
    body = bytearray(encode(records, first=first, codec=codec, keys=[key for _, _, key, _ in content]))
    if logged:
        body[22] |= LOG_APPEND_TIME
    expected = [(r.offset, r.timestamp, r.value, tuple(r.headers)) for r in DefaultRecordBatch(body)]
    assert rows(parse(DefaultRecordBatch(body))) == expected


@given(st.lists(st.integers(1, 3 * FEW_RECORDS), min_size=1, max_size=6), st.integers(0, 80), st.integers(1, 60))
def test_a_fetch_is_taken_in_pieces(counts: list[int], begin: int, most: int) -> None:
    """Small batches and large ones, from an offset within them on, never more than asked for at once."""
    body, written = b"", list[Record]()
    for count in counts:
        records = plain(count, len(written))
        body += encode(records, first=len(written), codec=GZIP if count % 2 else 0)
        written += records
    assert drained(fetched(body, begin), most) == written[begin:]


def test_formats_of_old() -> None:
    """Batches of format 1 come one by one, in their place among the others."""
    builder = LegacyRecordBatchBuilder(magic=1, compression_type=0, batch_size=1 << 20)
    for offset in range(30):
        builder.append(offset, 1000 + offset, None, b"%d" % offset)
    body = bytes(builder.build()) + encode(plain(30, 30), first=30)
    assert drained(fetched(body), 7) == plain(60)


@pytest.mark.parametrize("check_crcs", [True, False])
def test_a_damaged_batch_is_told_after_what_precedes_it(check_crcs: bool) -> None:
    """What came before is delivered first, and then every way of being damaged is one error."""
    good, bad = encode(plain(20)), bytearray(encode(plain(20, 20, "x" * 100), first=20))
    bad[-40] ^= 0xFF
    bad[61] = 0x7F
    records = fetched(good + bytes(bad), check_crcs=check_crcs)
    assert rows(columns_of(records.take(1000))) == plain(20)
    with pytest.raises(CorruptRecordError):
        records.take(1000)


def test_cut_off_records_are_damage() -> None:
    """Every length of a batch but the right one."""
    whole = encode(plain(FEW_RECORDS))
    for size in range(DefaultRecordBatch.HEADER_STRUCT.size, len(whole)):
        with pytest.raises(CorruptRecordError):
            parse(DefaultRecordBatch(whole[:size]))


def test_aborted_transactions_are_passed_over() -> None:
    """What the library leaves out of a transaction that was given up is left out of columns too."""

    def of_producer(body: bytes, producer: int) -> bytes:
        changed = bytearray(body)
        changed[22] |= 0x10  # transactional
        struct.pack_into(">q", changed, 43, producer)
        return bytes(changed)

    class Aborted:
        first_offset, producer_id = 20, 7

    body = encode(plain(20)) + of_producer(encode(plain(20, 20), first=20), 7) + encode(plain(20, 40), first=40)
    body += of_producer(encode(plain(20, 60), first=60), 8)
    records = fetched(body, check_crcs=False, isolation_level=1, aborted_transactions=[Aborted])
    assert drained(records, 15) == plain(20) + plain(40, 40)


def test_this_release_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed library is read in batches; one that is built otherwise is left alone."""

    class Consumer:
        _fetcher = Fetcher.__new__(Fetcher)

    assert read_columns(Consumer)
    assert Consumer._fetcher.PartitionRecords is batches._PartitionRecords
    assert not read_columns(object())
    monkeypatch.setattr(Fetcher.PartitionRecords, "take", lambda self, n, more: [])  # noqa: ARG005
    assert not read_columns(Consumer)


def test_records_one_by_one() -> None:
    """What a consumer gives that was left alone."""
    records = list(Fetcher.PartitionRecords(0, PLACE, MemoryRecords(encode(plain(3)))).take(10))
    assert rows(columns_of(records)) == plain(3)
