"""Delivering events to one target: in order for each model, again after a failure, given up after a time.

`Schedule` decides what is tried next and is pure: time is an argument. `Courier` is the thread that does it, so that
nobody else waits for a peer; it keeps nothing that must survive, the outbox does.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from stream_monitor.errors import PeerError
from stream_monitor.publish.cloudevents import CONTENT_TYPE
from stream_monitor.publish.log import fields
from stream_monitor.records import MICROSECONDS
from stream_monitor.source.sink import Sink

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 300.0
"""Attempts wait anywhere between nothing and twice as long as before (full jitter, so that peers that come back are not
met by all at once), from a second up to five minutes: a receiver that was down all night hears of it within that."""

LONGEST_RETRY_AFTER_SECONDS = 3600.0
"""A peer may ask for more patience than we have; it does not decide for how long nobody is told."""

STOP_SECONDS = 2.0
"""How long the end of the service waits for a delivery under way; it is made again at the next start."""


class Fate(StrEnum):
    """What became of an attempt or of an event; a metric label. `FAILED` attempts are made again."""

    DELIVERED = "delivered"
    FAILED = "failed"
    REFUSED = "refused"
    GIVEN_UP = "given_up"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event for one target. `id` is that of the change of state, the same for every target and every attempt."""

    number: int
    target: str
    id: str
    model: str
    written_us: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt went; `wait_seconds` is what the peer asked for, `is_of_peer` says that no event would pass."""

    fate: Fate
    reason: str = ""
    wait_seconds: float = 0.0
    is_of_peer: bool = False


class Channel(Protocol):
    """The way to one target. `deliver` may take as long as its own time limit, and is called by one thread."""

    @property
    def name(self) -> str:
        """What logs call it: no secret, no path."""

    def deliver(self, delivery: Delivery) -> Answer:
        """One attempt; raises nothing for what a peer may do."""

    def close(self) -> None:
        """Let go at once, also of an attempt that another thread has under way; may be called twice."""


class TopicChannel:
    """A Kafka topic, keyed by model."""

    FLUSH_SECONDS = 10.0

    def __init__(self, topic: str, sink: Sink) -> None:
        self.name = f"topic {topic}"
        self._topic = topic
        self._sink = sink

    def deliver(self, delivery: Delivery) -> Answer:
        key = delivery.model.encode("utf-8", "backslashreplace")
        try:
            self._sink.send(self._topic, key, delivery.body, [("content-type", CONTENT_TYPE.encode())])
            self._sink.flush(self.FLUSH_SECONDS)
        except PeerError as error:
            return Answer(Fate.FAILED, str(error), is_of_peer=True)
        return Answer(Fate.DELIVERED)

    def close(self) -> None:
        self._sink.close()


@dataclass(slots=True)
class _Queue:
    """The events of one model; only the first is tried, so that its order is kept."""

    waiting: deque[Delivery] = field(default_factory=deque)
    attempts: int = 0
    due: float = 0.0


class Schedule:
    """What is tried next. An event that the peer does not want holds up its own model, a peer that is away holds up all."""

    def __init__(self, *, give_up_seconds: float, rng: random.Random) -> None:
        self._give_up_us = int(give_up_seconds * MICROSECONDS)
        self._rng = rng
        self._queues: dict[str, _Queue] = {}
        self._peer_attempts = 0
        self._peer_due = 0.0

    def __len__(self) -> int:
        return sum(len(queue.waiting) for queue in self._queues.values())

    @property
    def oldest_us(self) -> int | None:
        """When the oldest waiting event was written, in wall time."""
        return min((queue.waiting[0].written_us for queue in self._queues.values()), default=None)

    def add(self, delivery: Delivery) -> None:
        self._queues.setdefault(delivery.model, _Queue()).waiting.append(delivery)

    def next(self, now: float) -> tuple[Delivery | None, float | None]:
        """What to try now, else None and in how many seconds to ask again (None: when something was added)."""
        if not self._queues:
            return None, None
        first = min(self._queues.values(), key=lambda queue: (queue.due, queue.waiting[0].number))
        wait = max(first.due, self._peer_due) - now
        return (first.waiting[0], 0.0) if wait <= 0 else (None, wait)

    def settle(self, delivery: Delivery, answer: Answer, now: float) -> None:
        """Take the answer to an attempt: the event is out of the way, or waits for its next one."""
        queue = self._queues[delivery.model]
        if answer.fate is not Fate.FAILED:
            self._peer_attempts = 0
            self._remove(delivery)
            return
        if answer.is_of_peer:
            self._peer_attempts += 1
            self._peer_due = now + max(answer.wait_seconds, self._backoff(self._peer_attempts))
        else:
            queue.attempts += 1
            queue.due = now + max(answer.wait_seconds, self._backoff(queue.attempts))

    def expired(self, wall_us: int) -> list[Delivery]:
        """Take out what has waited too long."""
        old = [d for queue in self._queues.values() for d in queue.waiting if wall_us - d.written_us > self._give_up_us]
        for delivery in old:
            self._remove(delivery)
        return old

    def drop_oldest(self, spare: Delivery | None) -> Delivery | None:
        """Take out the oldest but for one that is under way: the newer says more about how things stand."""
        waiting = [d for queue in self._queues.values() for d in queue.waiting if d is not spare]
        if not waiting:
            return None
        oldest = min(waiting, key=lambda d: d.number)
        self._remove(oldest)
        return oldest

    def _remove(self, delivery: Delivery) -> None:
        queue = self._queues[delivery.model]
        is_first = queue.waiting[0] is delivery
        queue.waiting.remove(delivery)
        if is_first:
            queue.attempts, queue.due = 0, 0.0
        if not queue.waiting:
            del self._queues[delivery.model]

    def _backoff(self, attempts: int) -> float:
        longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(attempts - 1, 20))
        return self._rng.uniform(0.0, longest)


@dataclass(frozen=True, slots=True)
class Settled:
    """What happened since it was last asked: events that are out of the way, and attempts that failed."""

    done: Sequence[tuple[Delivery, Fate]]
    failed: int


class Courier:
    """The thread of one target. Every other method returns at once; `clock` is monotonic, `wall` Unix time."""

    def __init__(
        self,
        channel: Channel,
        *,
        give_up_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.channel = channel
        self._schedule = Schedule(give_up_seconds=give_up_seconds, rng=rng or random.Random())
        self._clock = clock
        self._wall = wall
        self._changed = threading.Condition()
        self._under_way: Delivery | None = None
        self._done: list[tuple[Delivery, Fate]] = []
        self._failed = 0
        self._is_failing = False
        self._stopping = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        """Events that are committed and have to be delivered."""
        with self._changed:
            for delivery in deliveries:
                self._schedule.add(delivery)
            self._changed.notify()

    def drop_oldest(self) -> Delivery | None:
        """Make room; None where nothing can be dropped."""
        with self._changed:
            return self._schedule.drop_oldest(self._under_way)

    def settled(self) -> Settled:
        """What happened since the last call. Raises what ended the thread, which is a bug."""
        with self._changed:
            if self._error is not None:
                raise self._error
            found = Settled(self._done, self._failed)
            self._done, self._failed = [], 0
            return found

    def standing(self) -> tuple[int, int | None]:
        """How many events wait, and when the oldest was written."""
        with self._changed:
            return len(self._schedule), self._schedule.oldest_us

    def stop(self) -> None:
        """Let go of the peer, whatever is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self.channel.close()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as error:
            with self._changed:
                self._error = error

    def _turn(self) -> bool:
        """Wait for something to try, and try it; False at the end."""
        with self._changed:
            if self._stopping:
                return False
            self._give_up()
            chosen, wait = self._schedule.next(self._clock())
            if chosen is None:
                self._changed.wait(wait)
                return True
            self._under_way = chosen
        answer = self.channel.deliver(chosen)
        with self._changed:
            self._under_way = None
            if not self._stopping or answer.fate is Fate.DELIVERED:
                self._take(chosen, answer)
        return True

    def _take(self, delivery: Delivery, answer: Answer) -> None:
        self._schedule.settle(delivery, answer, self._clock())
        about = fields(target=self.channel.name, event=delivery.id, model=delivery.model, reason=answer.reason)
        if answer.fate is Fate.FAILED:
            self._failed += 1
            if not self._is_failing:
                log.warning("delivery_failing", extra=about)
            self._is_failing = True
            return
        self._done.append((delivery, answer.fate))
        if answer.fate is Fate.REFUSED:
            log.error("delivery_refused", extra=about)
            return
        self._is_failing = False
        log.info("delivered", extra=fields(target=self.channel.name, event=delivery.id, model=delivery.model))

    def _give_up(self) -> None:
        for delivery in self._schedule.expired(int(self._wall() * MICROSECONDS)):
            self._done.append((delivery, Fate.GIVEN_UP))
            about = fields(target=self.channel.name, event=delivery.id, model=delivery.model)
            log.error("delivery_given_up", extra=about)
