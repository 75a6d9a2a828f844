"""Fetching and decoding in a thread of their own, so that the network and the sums do not wait for each other."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from stream_monitor.records import PartitionId, Poll
from stream_monitor.source.protocol import Loss, Source

T = TypeVar("T")

_log = logging.getLogger(__name__)

# Big enough that the per-poll cost of decoding vanishes, small enough that a queue of them fits in its bytes.
_RECORDS = 10_000
# An idle source still reports its ends this often: half of what the app may need to see that nothing is missing,
# and well below the 2 s within which `close` has to be through.
_POLL_SECONDS = 0.5
_CLOSE_SECONDS = 2.0
# Decoded, a poll takes several times its bytes: wide events come in smaller polls.
_POLL_BYTES = 4_000_000
_FEWEST_RECORDS = 500


class Fetcher(Generic[T]):
    """Runs a started source and `transform` in a thread; hands over pairs in the order of the polls.

    At most `max_polls` polls and about `max_bytes` bytes of record values wait at any time (a single poll larger than
    `max_bytes` is let through alone). Whatever the thread raises is raised by `get`, once the pairs before it are
    taken, and by every later `get`. Only the thread touches the source after construction.
    """

    def __init__(
        self,
        source: Source,
        *,
        transform: Callable[[Poll], T],
        max_polls: int = 2,
        max_bytes: int = 12_000_000,
        max_records: int = _RECORDS,
    ) -> None:
        self._source = source
        self._transform = transform
        self._max_polls = max_polls
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._wanted = min(max_records, _FEWEST_RECORDS)  # until it is known how large they are
        self._changed = threading.Condition()
        self._queue: deque[tuple[Poll, T, int]] = deque()
        self._bytes = 0
        self._error: BaseException | None = None
        self._ended = False
        self._closing = False
        self._paused: frozenset[PartitionId] | None = None
        self._commits: dict[PartitionId, int] = {}
        self._losses: list[Loss] = []
        self._thread = threading.Thread(target=self._run, name="fetcher", daemon=True)
        self._thread.start()

    def get(self, timeout_seconds: float) -> tuple[Poll, T] | None:
        """The next pair, or None where none came in time or none will come; raises what the thread raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._ended, timeout_seconds)
            if self._queue:
                poll, transformed, size = self._queue.popleft()
                self._bytes -= size
                self._changed.notify_all()
                return poll, transformed
            if self._error is not None:
                raise self._error
            return None

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        """Hold these back, from the next poll on; what already waits in the queue is still delivered."""
        with self._changed:
            self._paused = partitions

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        """Have the thread commit; positions not yet committed are replaced by newer ones."""
        with self._changed:
            self._commits.update(positions)
            self._changed.notify_all()

    def losses(self) -> tuple[Loss, ...]:
        """What the source lost since the last call."""
        with self._changed:
            lost, self._losses = tuple(self._losses), []
            return lost

    @property
    def finished(self) -> bool:
        """The source came to its end and every pair was taken; False where it broke instead."""
        with self._changed:
            return self._ended and self._error is None and not self._queue

    def close(self) -> None:
        """End the thread and the source, after what was asked to be committed; within 2 s, or it is left behind."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            _log.warning("the source did not end within %g s and is left behind", _CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                self._obey()
                self._step()
                if self._source.finished:
                    break
            self._obey()
        except BaseException as error:  # raised again by `get`, in the caller's thread
            self._error = error
        finally:
            self._close_source()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """True when there is room for a poll, False when it is time to end. Commits do not wait for room."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._commits or self._has_room())
                if self._closing:
                    return False
                if self._has_room():
                    return True
            self._obey()

    def _has_room(self) -> bool:
        return not self._queue or (len(self._queue) < self._max_polls and self._bytes < self._max_bytes)

    def _obey(self) -> None:
        """Pass on what the other thread asked for."""
        with self._changed:
            paused, self._paused = self._paused, None
            commits, self._commits = self._commits, {}
        if paused is not None:
            self._source.pause(paused)
        if commits:
            self._source.commit(commits)

    def _step(self) -> None:
        before = time.monotonic()
        poll = self._source.poll(self._wanted, _POLL_SECONDS)
        losses = self._source.losses()
        transformed = self._transform(poll)
        size = sum(batch.value.nbytes for batch in poll.batches)
        self._aim(size, sum(map(len, poll.batches)))
        with self._changed:
            self._losses += losses
            self._queue.append((poll, transformed, size))
            self._bytes += size
            self._changed.notify_all()
        if not poll.batches and time.monotonic() - before < _POLL_SECONDS / 10:
            self._rest()

    def _aim(self, size: int, records: int) -> None:
        """Ask for as many records as make a poll of `_POLL_BYTES`: decoded, a poll takes several times its bytes."""
        if records:
            fitting = max(_FEWEST_RECORDS, _POLL_BYTES * records // max(size, 1))
            self._wanted = min(self._max_records, fitting)

    def _rest(self) -> None:
        """A source that returns empty at once must not spin, nor fill the queue with nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, _POLL_SECONDS / 10)

    def _close_source(self) -> None:
        try:
            self._source.close()
        except Exception as error:
            _log.warning("closing the source failed: %s", error, exc_info=True)
