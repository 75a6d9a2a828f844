"""The fetch thread and the source in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import pytest

from stream_monitor.errors import DataLossError
from stream_monitor.records import Binding, PartitionId, Poll, Stream
from stream_monitor.source.fetcher import Fetcher
from stream_monitor.source.memory import MemorySource
from stream_monitor.source.protocol import Loss

EVENTS = Binding(Stream.INFERENCE, "events")
FIRST = PartitionId(Stream.INFERENCE, "events", 0)
SECOND = PartitionId(Stream.INFERENCE, "events", 1)


def rows(poll: Poll) -> list[tuple[PartitionId, int, bytes | None]]:
    """Every record of a poll as (partition, offset, value)."""
    return [
        (batch.partitions[p], o, v)
        for batch in poll.batches
        for p, o, v in zip(batch.partition.tolist(), batch.offset.tolist(), batch.value.to_pylist(), strict=True)
    ]


def offsets(poll: Poll, partition: PartitionId) -> list[int]:
    """The offsets delivered of one partition."""
    return [o for p, o, _ in rows(poll) if p == partition]


def drain(fetcher: Fetcher[int]) -> Iterator[Poll]:
    """Polls until the fetcher is finished, or 5 s without one."""
    while not fetcher.finished:
        pair = fetcher.get(5.0)
        if pair is None:
            return
        yield pair[0]


def count(poll: Poll) -> int:
    """A transform: how many records a poll has."""
    return sum(len(batch) for batch in poll.batches)


def filled(n: int) -> MemorySource:
    """A started source with `n` records in its first partition and no more to come."""
    source = MemorySource([EVENTS])
    source.extend(FIRST, [b"%d" % i for i in range(n)])
    source.finish()
    source.start({})
    return source


class TestMemorySource:
    def test_starts_at_the_position(self) -> None:
        """A position is the offset read next, and ends say where the log stops."""
        source = MemorySource([EVENTS], partitions=2)
        source.extend(FIRST, [b"a", b"b", None])
        source.append(SECOND, b"x", headers=[("k", b"v")])
        source.start({FIRST: 1})
        poll = source.poll(10, 0)
        assert sorted(rows(poll)) == [(FIRST, 1, b"b"), (FIRST, 2, None), (SECOND, 0, b"x")]
        assert poll.ends == {FIRST: 3, SECOND: 1}
        assert poll.positions == {FIRST: 3, SECOND: 1}
        assert poll.batches[0].headers is not None
        assert [list(h) for h in poll.batches[0].headers] == [[], [], [("k", b"v")]]

    def test_begins_at_the_end_when_told(self) -> None:
        """`latest` skips what is there, except in partitions that come later."""
        source = MemorySource([EVENTS], begin="latest")
        source.append(FIRST, b"old")
        source.start({})
        source.append(FIRST, b"new")
        source.append(SECOND, b"first of a new partition")
        assert sorted(rows(source.poll(10, 0))) == [(FIRST, 1, b"new"), (SECOND, 0, b"first of a new partition")]

    def test_gaps_and_limits(self) -> None:
        """Offsets may skip; a poll stops at its limit and the next goes on."""
        source = MemorySource([EVENTS])
        for offset in (0, 5, 6, 20):
            source.append(FIRST, b"", offset=offset)
        source.start({FIRST: 2})
        assert [offsets(source.poll(2, 0), FIRST) for _ in range(3)] == [[5, 6], [20], []]
        with pytest.raises(ValueError, match="below its end 21"):
            source.append(FIRST, b"", offset=20)

    def test_a_paused_partition_waits(self) -> None:
        """Pausing loses nothing, and a finished source with records held back is not finished."""
        source = filled(3)
        source.pause(frozenset({FIRST}))
        assert rows(source.poll(10, 0)) == []
        assert not source.finished
        source.pause(frozenset())
        assert offsets(source.poll(10, 0), FIRST) == [0, 1, 2]
        assert source.finished

    def test_data_loss_fails_or_goes_on(self) -> None:
        """A position below the first offset is an error, or a reported jump."""
        for policy, resumed in (("earliest", 7), ("latest", 10)):
            source = MemorySource([EVENTS], on_data_loss=policy)  # type: ignore[arg-type]
            source.extend(FIRST, [b""] * 10)
            source.truncate(FIRST, 7)
            source.start({FIRST: 2})
            assert offsets(source.poll(10, 0), FIRST) == list(range(resumed, 10))
            assert source.losses() == (Loss(FIRST, 2, resumed),)
            assert source.losses() == ()
        failing = MemorySource([EVENTS])
        failing.extend(FIRST, [b""])
        failing.start({FIRST: 2})
        with pytest.raises(DataLossError, match="offset 2 of events/0"):
            failing.poll(10, 0)

    def test_polls_wake_up(self) -> None:
        """A waiting poll returns as soon as another thread writes."""
        source = MemorySource([EVENTS])
        source.start({})
        writer = threading.Timer(0.05, source.append, (FIRST, b"x"))
        writer.start()
        before = time.monotonic()
        assert offsets(source.poll(10, 60.0), FIRST) == [0]
        assert time.monotonic() - before < 30
        writer.join()


class TestFetcher:
    def test_delivers_everything_in_order(self) -> None:
        """Every record once and in order, with the transform's result beside it."""
        fetcher = Fetcher(filled(1000), transform=count, max_records=64)
        seen: list[int] = []
        while not fetcher.finished:
            pair = fetcher.get(5.0)
            assert pair is not None
            assert pair[1] == count(pair[0])
            seen += offsets(pair[0], FIRST)
        assert seen == list(range(1000))
        assert fetcher.get(0) is None
        fetcher.close()

    def test_transform_runs_in_the_thread(self) -> None:
        """Decoding happens beside the caller."""
        fetcher = Fetcher(filled(1), transform=lambda _: threading.current_thread().name)
        pair = fetcher.get(5.0)
        assert pair is not None
        assert pair[1] == "fetcher"
        fetcher.close()

    @pytest.mark.parametrize(("limits", "polls"), [({"max_polls": 3}, 3), ({"max_bytes": 1}, 1)])
    def test_the_queue_is_bounded(self, limits: dict[str, int], polls: int) -> None:
        """Fetching stops at the limit of polls or of bytes, and nothing is lost by that."""
        done: list[int] = []
        fetcher = Fetcher(filled(100), transform=lambda p: done.append(count(p)), max_records=10, **limits)
        time.sleep(0.3)
        assert len(done) == polls
        seen = 0
        while not fetcher.finished:
            pair = fetcher.get(5.0)
            assert pair is not None
            seen += count(pair[0])
        assert seen == 100
        fetcher.close()

    def test_errors_come_after_what_preceded_them(self) -> None:
        """What was fetched before an error is delivered; then every get raises it."""
        source = MemorySource([EVENTS])
        source.extend(FIRST, [b""] * 5)
        source.start({})
        fetcher = Fetcher(source, transform=count)
        pair = fetcher.get(5.0)
        assert pair is not None
        assert pair[1] == 5
        source.truncate(FIRST, 9)
        for _ in range(2):
            with pytest.raises(DataLossError):
                list(drain(fetcher))
        assert not fetcher.finished
        fetcher.close()

    def test_transform_errors_are_raised(self) -> None:
        """A broken transform is the caller's to know."""

        def broken(_: Poll) -> int:
            raise ZeroDivisionError("decoder")

        fetcher = Fetcher(filled(1), transform=broken)
        with pytest.raises(ZeroDivisionError, match="decoder"):
            fetcher.get(5.0)
        fetcher.close()

    def test_an_idle_source_still_reports_its_ends(self) -> None:
        """Nothing to read is itself news, several times a second at most."""
        source = MemorySource([EVENTS])
        source.start({})
        fetcher = Fetcher(source, transform=count)
        before = time.monotonic()
        for _ in range(2):
            pair = fetcher.get(5.0)
            assert pair is not None
            assert pair[0].batches == ()
            assert pair[0].ends == {FIRST: 0}
        assert time.monotonic() - before > 0.5
        fetcher.close()

    def test_pause_holds_back_and_releases(self) -> None:
        """A pause reaches the source, and its replacement frees what was held back."""
        source = MemorySource([EVENTS], partitions=2)
        source.start({})
        fetcher = Fetcher(source, transform=count)
        fetcher.pause(frozenset({FIRST}))
        time.sleep(0.7)
        source.append(FIRST, b"held")
        source.append(SECOND, b"free")
        source.finish()
        seen: list[PartitionId] = []
        while not seen:
            pair = fetcher.get(5.0)
            assert pair is not None
            seen += [p for p, _, _ in rows(pair[0])]
        assert seen == [SECOND]
        fetcher.pause(frozenset())
        assert [r for poll in drain(fetcher) for r in rows(poll)] == [(FIRST, 0, b"held")]
        fetcher.close()

    def test_commits_are_made_by_the_thread(self) -> None:
        """Commits pass through the fetch thread even when the queue is full, and before the end."""
        by: list[str] = []

        class Committing(MemorySource):
            def commit(self, positions: Mapping[PartitionId, int]) -> None:
                by.append(threading.current_thread().name)
                super().commit(positions)

        source = Committing([EVENTS])
        source.extend(FIRST, [b""] * 100)
        source.start({})
        fetcher = Fetcher(source, transform=count, max_polls=1, max_records=1)
        time.sleep(0.1)
        fetcher.commit({FIRST: 1})
        time.sleep(0.2)
        assert source.committed == {FIRST: 1}
        fetcher.commit({FIRST: 2})
        fetcher.close()
        assert source.committed == {FIRST: 2}
        assert set(by) == {"fetcher"}

    def test_close_is_quick_and_closes_the_source(self) -> None:
        """An idle or a full fetcher ends in seconds, its thread with it."""
        for source in (MemorySource([EVENTS]), filled(100)):
            source.start({})
            fetcher = Fetcher(source, transform=count, max_polls=1, max_records=1)
            time.sleep(0.05)
            before = time.monotonic()
            fetcher.close()
            assert time.monotonic() - before < 5
            assert source.finished
            assert "fetcher" not in {t.name for t in threading.enumerate()}
