"""Files as partitions: every record once, in order, under its number; tables as JSON objects."""

from __future__ import annotations

import bz2
import gzip
import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stream_monitor.errors import InputError, UsageError
from stream_monitor.records import NO_TIME, Binding, PartitionId, Poll, RawBatch, Stream
from stream_monitor.source import files
from stream_monitor.source.files import FileSource

Read = dict[str, list[tuple[int, bytes]]]


def plain(data: bytes) -> bytes:
    """Nothing done to them."""
    return data


def bind(path: Path, **fields: str) -> Binding:
    """A file of inference events."""
    return Binding(Stream.INFERENCE, str(path), fields=fields)


def partition(path: Path) -> PartitionId:
    """The one partition of a file."""
    return PartitionId(Stream.INFERENCE, str(path), 0)


def opened(*paths: Path, positions: dict[Path, int] | None = None) -> FileSource:
    """A started source over files."""
    source = FileSource([bind(path) for path in paths])
    source.start({partition(path): offset for path, offset in (positions or {}).items()})
    return source


def polls(source: FileSource, most: int = 1000) -> list[Poll]:
    """Everything, poll by poll."""
    found = []
    while not source.finished:
        found.append(source.poll(most, 0.0))
    source.close()
    return found


def batches(source: FileSource) -> list[RawBatch]:
    """Every batch."""
    return [batch for poll in polls(source) for batch in poll.batches]


def records(found: Sequence[Poll]) -> Read:
    """(offset, value) of each file, in the order they came."""
    read: Read = {}
    for batch in (batch for poll in found for batch in poll.batches):
        pairs = zip(batch.offset.tolist(), batch.value.to_pylist(), strict=True)
        read.setdefault(batch.binding.topic, []).extend(pairs)
    return read


def rows(path: Path, **fields: str) -> list[dict[str, Any]]:
    """The JSON objects of a table."""
    source = FileSource([bind(path, **fields)])
    source.start({})
    found = batches(source)
    assert all(batch.is_table for batch in found)
    return [json.loads(value) for batch in found for value in batch.value.to_pylist()]


def table(path: Path, **columns: Any) -> Path:
    """A Parquet file; `__` in a name is a dot."""
    pq.write_table(pa.table({name.replace("__", "."): column for name, column in columns.items()}), path)
    return path


line = st.one_of(
    st.sampled_from([b"", b" ", b"\t \t", b"\r", b"{}", b"\xff\xfe", " \u00e9 ".encode()]),
    st.binary(max_size=12).map(lambda text: text.replace(b"\n", b"").rstrip(b"\r")),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(line, max_size=30),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    last=st.booleans(),
    bom=st.booleans(),
    block=st.integers(1, 40),
    most=st.integers(1, 9),
)
def test_lines_equal_those_split_by_python(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    lines: list[bytes],
    newline: bytes,
    last: bool,
    bom: bool,
    block: int,
    most: int,
) -> None:
    """However blocks and polls cut them: lines without their ends, blank ones left out, numbered from 0."""
    path = tmp_path / "events.jsonl"
    text = newline.join(lines) + (newline if last else b"")
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text)
    monkeypatch.setattr(files, "BLOCK_BYTES", block)
    text = text if bom else text.removeprefix(b"\xef\xbb\xbf")
    wanted = [one.rstrip(b"\r\n") for one in text.split(b"\n") if one.strip()]
    assert records(polls(opened(path), most)).get(str(path), []) == list(enumerate(wanted))


def test_a_resumed_source_delivers_exactly_what_follows(tmp_path: Path) -> None:
    """From every position of a JSONL, a CSV and a Parquet file, and from beyond their ends."""
    jsonl = tmp_path / "a.jsonl"
    jsonl.write_text("".join(f'{{"a":{i}}}\n\n' for i in range(7)))
    csv = tmp_path / "a.csv"
    csv.write_text("a\n" + "".join(f"{i}\n" for i in range(7)))
    for path in (jsonl, csv, table(tmp_path / "a.parquet", a=list(range(7)))):
        whole = records(polls(opened(path)))[str(path)]
        assert [offset for offset, _ in whole] == list(range(7))
        for position in range(10):
            found = polls(opened(path, positions={path: position}), 2)
            assert records(found).get(str(path), []) == whole[position:]
            assert found[-1].ends == {partition(path): 7}


def test_files_are_read_side_by_side_within_the_bound(tmp_path: Path) -> None:
    """Files advance together, a poll never holds more than asked for, and all is delivered once."""
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for path in paths:
        path.write_text("".join(f"{i}\n" for i in range(100)))
    found = polls(opened(*paths), 10)
    assert all(sum(map(len, poll.batches)) <= 10 for poll in found)
    for count in range(1, len(found)):
        read = [len(one) for one in records(found[:count]).values()]
        assert len(read) == 3
        assert max(read) - min(read) <= 4
    wanted = [(i, str(i).encode()) for i in range(100)]
    assert records(found) == {str(path): wanted for path in paths}


def test_fewer_records_than_files_still_reach_every_file(tmp_path: Path) -> None:
    """Polls of one record take turns."""
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for path in paths:
        path.write_text("1\n2\n")
    source = opened(*paths)
    first = [source.poll(1, 0.0) for _ in paths]
    assert {topic: len(one) for topic, one in records(first).items()} == {str(path): 1 for path in paths}
    assert sum(len(one) for one in records(polls(source, 1)).values()) == 3


def test_an_end_is_told_only_once_it_was_reached(tmp_path: Path) -> None:
    """Before that the number of records is not known."""
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    short.write_text("1\n")
    long.write_text("1\n2\n3\n4\n5\n6\n")
    source = opened(short, long)
    assert source.poll(2, 0.0).ends == {}
    assert source.poll(2, 0.0).ends == {partition(short): 1}
    assert not source.finished
    assert polls(source)[-1].ends == {partition(short): 1, partition(long): 6}
    assert source.finished


def test_a_paused_file_waits_and_loses_nothing(tmp_path: Path) -> None:
    """Nothing of it comes while it is paused; the set replaces the previous one."""
    held, free = tmp_path / "held.jsonl", tmp_path / "free.jsonl"
    for path in (held, free):
        path.write_text("1\n2\n3\n")
    source = opened(held, free)
    source.pause(frozenset([partition(held)]))
    found = [source.poll(2, 0.0) for _ in range(4)]
    assert set(records(found)) == {str(free)}
    assert not source.finished
    source.pause(frozenset())
    assert [value for _, value in records(polls(source))[str(held)]] == [b"1", b"2", b"3"]


@pytest.mark.parametrize("content", [b"", b"\n \n\r\n", b"\xef\xbb\xbf"])
def test_a_file_without_records_ends_at_once(tmp_path: Path, content: bytes) -> None:
    """Its end is 0."""
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    assert [poll.ends for poll in polls(opened(path))] == [{partition(path): 0}]


def test_an_empty_table_has_no_rows(tmp_path: Path) -> None:
    """No bytes, a header alone, a schema alone."""
    (tmp_path / "none.csv").write_bytes(b"")
    (tmp_path / "header.csv").write_text("a,b\n")
    paths = (tmp_path / "none.csv", tmp_path / "header.csv", table(tmp_path / "a.parquet", a=pa.array([], pa.int64())))
    for path in paths:
        assert rows(path) == []


@pytest.mark.parametrize(
    ("suffix", "packed"),
    [("", plain), (".gz", gzip.compress), (".zst", zstandard.compress)],
)
def test_packed_files_read_like_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, packed: Callable[[bytes], bytes]
) -> None:
    """Also two packed files put one after the other, and lines across blocks."""
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    wanted = [json.dumps({"a": i, "text": "é" * (i % 50)}).encode() for i in range(2000)]
    path = tmp_path / f"events.jsonl{suffix}"
    path.write_bytes(b"".join(packed(b"".join(one + b"\n" for one in half)) for half in (wanted[:900], wanted[900:])))
    assert records(polls(opened(path))) == {str(path): list(enumerate(wanted))}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_csv_is_a_table(tmp_path: Path, suffix: str) -> None:
    """The name says so behind the packing."""
    path = tmp_path / f"rows.csv{suffix}"
    path.write_bytes(gzip.compress(b"a\n1\n") if suffix == ".gz" else zstandard.compress(b"a\n1\n"))
    assert rows(path) == [{"features": {"a": 1}}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(bytes(range(256)) * 500)[:-12]),
        ("cut.jsonl.zst", zstandard.compress(bytes(range(256)) * 500)[:-12]),
        ("other.jsonl.gz", bz2.compress(b"{}\n")),
        ("other.jsonl.zst", b"{}\n"),
        ("other.parquet", b"{}\n"),
        ("cut.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 9000)[:-20]),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    """Truncated and mistaken files are an error, never a shorter file."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        polls(opened(path))


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    """Before anything is read."""
    with pytest.raises(UsageError) as caught:
        FileSource([bind(tmp_path / "a.jsonl"), bind(tmp_path / "b.csv")])
    assert [Path(problem.split()[-1]).name for problem in caught.value.problems] == ["a.jsonl", "b.csv"]


def test_a_rate_gives_every_record_its_time(tmp_path: Path) -> None:
    """Start plus number over rate, also after a resume; without a rate no time."""
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n3\n4\n")
    source = FileSource([bind(path)], rate_per_second=4.0, start_us=1_000)
    source.start({partition(path): 1})
    (batch,) = batches(source)
    assert batch.record_time_us.tolist() == [251_000, 501_000, 751_000]
    assert [batch.record_time_us.tolist() for batch in batches(opened(path))] == [[NO_TIME] * 4]


def test_columns_without_a_field_of_ours_are_features(tmp_path: Path) -> None:
    """Fields of ours keep their places, nested by their dots."""
    path = tmp_path / "a.csv"
    path.write_text("inference_id,age,prediction.label,prediction.score,segment.market.eu,latency_ms,odd name\n")
    with path.open("a") as file:
        file.write("x-1,41,deny,0.75,DE,12.5,word\n")
    assert rows(path) == [
        {
            "inference_id": "x-1",
            "features": {"age": 41, "odd name": "word"},
            "prediction": {"label": "deny", "score": 0.75},
            "segment": {"market.eu": "DE"},
            "latency_ms": 12.5,
        }
    ]


def test_with_feature_columns_the_others_are_none(tmp_path: Path) -> None:
    """Only `features.…` are features then; dots behind it belong to the feature's name."""
    path = table(tmp_path / "a.parquet", features__age=[41], features__a__b=[1.5], other=["x"])
    assert rows(path) == [{"features": {"age": 41, "a.b": 1.5}, "other": "x"}]


def test_mapped_columns_are_no_features(tmp_path: Path) -> None:
    """They stay where the mapping looks for them."""
    path = table(tmp_path / "a.parquet", key=["x"], out__score=[0.5], age=[41])
    mapping = {"inference_id": "key", "prediction.score": "$.out.score"}
    assert rows(path, **mapping) == [{"key": "x", "out": {"score": 0.5}, "features": {"age": 41}}]


def test_columns_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    """A value and a part of the same value: none is dropped in silence."""
    for names in (("prediction", "prediction__label"), ("prediction__label", "prediction")):
        path = table(tmp_path / "a.parquet", **{name: ["x"] for name in names})
        with pytest.raises(InputError, match="prediction"):
            rows(path)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("41", 41),
        ("-0.5", -0.5),
        ("1e3", 1000.0),
        (" 7 ", 7),
        (".5", 0.5),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("+5", 5.0),
        ("01234", "01234"),
        ("1.2.3", "1.2.3"),
        (".", "."),
        ("-", "-"),
        ("e5", "e5"),
        ("true", "true"),
        ('"a ""b"", c"', 'a "b", c'),
        ("", None),
        ("NaN", None),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("é\\", "é\\"),
    ],
)
def test_csv_cells(tmp_path: Path, cell: str, value: object) -> None:
    """Numbers are numbers, all else is text as it stands, and one word does not make words of a column."""
    path = tmp_path / "a.csv"
    path.write_text(f"id,a,version\n1,{cell},1.10\n2,3,1.10\n3,word,1.10\n", encoding="utf-8")
    found = rows(path)
    assert [row["features"]["a"] for row in found] == [value, 3, "word"]
    assert {row["version"] for row in found} == {"1.10"}


def test_parquet_cells(tmp_path: Path) -> None:
    """Every type keeps its value; a time without a zone is UTC whatever the machine's zone."""
    moment = datetime(2026, 11, 21, 10, 0, 0, 250_000)
    path = table(
        tmp_path / "a.parquet",
        timestamp=pa.array([moment, None]),
        whole=pa.array([2**53 + 1, None]),
        real=pa.array([0.1, None]),
        yes=pa.array([True, None]),
        word=pa.array(['é"\\', None]),
        vector=pa.array([[1.5, 2.0], None]),
        nested=pa.array([{"a": 1}, None]),
        kind=pa.array(["x", None]).dictionary_encode(),
        zoned=pa.array([moment.replace(tzinfo=UTC), None]),
    )
    first, second = rows(path)
    time_text = "2026-11-21T10:00:00.250000Z"
    assert first.pop("timestamp") == time_text
    assert first["features"] == {
        "whole": 2**53 + 1,
        "real": 0.1,
        "yes": True,
        "word": 'é"\\',
        "vector": [1.5, 2.0],
        "nested": {"a": 1},
        "kind": "x",
        "zoned": time_text,
    }
    assert second["timestamp"] is None
    assert set(second["features"].values()) == {None}


def test_the_zone_of_the_machine_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time without a zone is read alike in New York."""
    path = table(tmp_path / "a.parquet", timestamp=pa.array([datetime(2026, 11, 21, 10)]))
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert rows(path) == [{"timestamp": "2026-11-21T10:00:00.000000Z"}]
    finally:
        monkeypatch.undo()
        time.tzset()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(cells=[(math.copysign(math.nan, -1), None)])
@given(
    st.lists(
        st.tuples(
            st.floats(width=64) | st.none(),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9) | st.none(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_values_come_through_a_table_unchanged(tmp_path: Path, cells: list[tuple[float | None, str | None]]) -> None:
    """Numbers bit for bit, texts letter for letter, in the order of the rows."""
    numbers, words = zip(*cells, strict=True)
    path = table(tmp_path / "a.parquet", number=pa.array(numbers, pa.float64()), word=pa.array(words, pa.string()))
    source = opened(path)
    texts = [value.decode() for batch in batches(source) for value in batch.value.to_pylist()]
    read = [json.loads(text.replace(":inf,", ":Infinity,").replace(":-inf,", ":-Infinity,")) for text in texts]
    found = [row["features"]["number"] for row in read]
    np.testing.assert_array_equal(np.array(found, float), np.array(numbers, float))
    assert [row["features"]["word"] for row in read] == list(words)


def test_rows_keep_their_order_over_many_batches(tmp_path: Path) -> None:
    """More rows than DuckDB hands to one thread."""
    wanted = list(range(300_000))
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": wanted}), parquet, row_group_size=7_000)
    csv = tmp_path / "a.csv"
    csv.write_text("a\n" + "\n".join(map(str, wanted)) + "\n")
    for path in (parquet, csv):
        values = [value for _, value in records(polls(opened(path), 50_000))[str(path)]]
        assert values == [b'{"features":{"a":%d}}' % number for number in wanted]


@pytest.mark.slow
def test_half_a_million_lines_take_seconds(tmp_path: Path) -> None:
    """Lines of 100 bytes, a second on a quiet machine; the best of three, and five times that for a busy one."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"inference_id":"x","text":"' + b"y" * 69 + b'"}\n')
    path.write_bytes(path.read_bytes() * 500_000)

    def seconds() -> float:
        began = time.perf_counter()
        assert polls(opened(path), 20_000)[-1].ends == {partition(path): 500_000}
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 5.0
