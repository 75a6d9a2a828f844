"""A source in a thread of its own, with a bounded queue between it and the loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from stream_monitor.records import PartitionId, Poll
from stream_monitor.source.protocol import Loss, Source

T = TypeVar("T")

POLL_RECORDS = 10_000
"""A poll of 10,000 records spreads the fixed cost of decoding a batch (about a millisecond) thin."""

_POLL_SECONDS = 0.25


class Fetcher(Generic[T]):
    """Polls and transforms in its own thread; `get` hands over (poll, transformed) in order.

    The queue is bounded by polls and by bytes, so that a slow loop does not fill the memory. An error of the source or the
    transform ends the thread and is raised by the next `get` after what was fetched before it.
    """

    def __init__(
        self,
        source: Source,
        *,
        transform: Callable[[Poll], T],
        positions: Mapping[PartitionId, int],
        max_polls: int = 4,
        max_bytes: int = 64_000_000,
    ) -> None:
        self._source = source
        self._transform = transform
        self._positions = positions
        self._queue: queue.Queue[tuple[Poll, T, int]] = queue.Queue(max_polls)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._room = threading.Condition()
        self._stop = threading.Event()
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._paused: frozenset[PartitionId] | None = None
        self._committed: Mapping[PartitionId, int] | None = None
        self._losses: list[Loss] = []
        self._thread = threading.Thread(target=self._run, name="fetcher", daemon=True)
        self._thread.start()

    def get(self, timeout_seconds: float) -> tuple[Poll, T] | None:
        """The next poll, None if none came in time; raises what ended the thread."""
        try:
            poll, made, size = self._queue.get(timeout=timeout_seconds) if timeout_seconds else self._queue.get_nowait()
        except queue.Empty:
            if self._error is not None and self._queue.empty():
                raise self._error from None
            return None
        with self._room:
            self._bytes -= size
            self._room.notify()
        return poll, made

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        """Have the source pause exactly these partitions before its next poll."""
        self._paused = partitions

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        """Have the source commit these positions before its next poll; only the latest ones matter."""
        self._committed = dict(positions)

    def losses(self) -> list[Loss]:
        """What the source reported lost since the last call."""
        found, self._losses = self._losses, []
        return found

    @property
    def finished(self) -> bool:
        """The source is read to its end and everything was handed over."""
        return self._done.is_set() and self._error is None and self._queue.empty()

    def close(self) -> None:
        """End the thread and close the source."""
        self._stop.set()
        with self._room:
            self._room.notify()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                self._thread.join(0.05)

    def _run(self) -> None:
        try:
            self._source.start(self._positions)
            while not self._stop.is_set() and not self._source.finished:
                self._relay()
                poll = self._source.poll(POLL_RECORDS, _POLL_SECONDS)
                self._hand_over(poll)
            self._relay()
        except BaseException as error:  # raised again by get(), in the thread that can act on it
            self._error = error
        finally:
            self._done.set()
            self._source.close()

    def _relay(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            self._source.pause(paused)
        committed, self._committed = self._committed, None
        if committed is not None:
            self._source.commit(committed)
        self._losses += self._source.losses()

    def _hand_over(self, poll: Poll) -> None:
        size = sum(int(batch.value.nbytes) for batch in poll.batches)
        made = self._transform(poll)
        with self._room:
            while self._bytes and self._bytes + size > self._max_bytes and not self._stop.is_set():
                self._room.wait(0.1)
            self._bytes += size
        while not self._stop.is_set():
            try:
                self._queue.put((poll, made, size), timeout=0.1)
            except queue.Full:
                continue
            return
