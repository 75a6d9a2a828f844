"""Delivering: order for each model, patience with full jitter, an end to it, and nobody waits for a peer."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.errors import PeerError
from stream_monitor.publish.delivery import (
    FIRST_WAIT_SECONDS,
    LONGEST_WAIT_SECONDS,
    Answer,
    Courier,
    Delivery,
    Fate,
    Schedule,
    TopicChannel,
)
from stream_monitor.source.sink import MemorySink

DELIVERED = Answer(Fate.DELIVERED)


def delivery(number: int, model: str = "m", written_us: int = 0) -> Delivery:
    """An event of a model."""
    return Delivery(number, "webhook:x", f"id-{number}", model, written_us, b"{}")


def schedule(*deliveries: Delivery, give_up_seconds: float = 1e9) -> Schedule:
    """A schedule with these events."""
    made = Schedule(give_up_seconds=give_up_seconds, rng=random.Random(3))
    for one in deliveries:
        made.add(one)
    return made


class TestSchedule:
    """The order of attempts on a clock moved by hand."""

    def test_a_model_keeps_its_order_and_holds_up_no_other(self) -> None:
        """The event of `a` that fails is tried again before the next of `a`; `b` goes on."""
        plan = schedule(delivery(1, "a"), delivery(2, "a"), delivery(3, "b"))
        first, _ = plan.next(0.0)
        assert first == delivery(1, "a")
        plan.settle(first, Answer(Fate.FAILED), 0.0)
        other, _ = plan.next(0.0)
        assert other == delivery(3, "b")
        plan.settle(other, DELIVERED, 0.0)
        nothing, wait = plan.next(0.0)
        assert nothing is None
        assert wait is not None
        assert plan.next(wait)[0] == delivery(1, "a")

    def test_a_peer_that_is_away_holds_up_all(self) -> None:
        """And what it asks for is waited for, at least."""
        plan = schedule(delivery(1, "a"), delivery(2, "b"))
        plan.settle(delivery(1, "a"), Answer(Fate.FAILED, wait_seconds=100.0, is_of_peer=True), 0.0)
        assert plan.next(99.0)[0] is None
        assert plan.next(101.0)[0] == delivery(1, "a")

    @pytest.mark.parametrize("is_of_peer", [True, False])
    def test_waits_double_with_full_jitter_and_are_bounded(self, is_of_peer: bool) -> None:
        """Attempt n waits anywhere up to 2^(n-1) seconds, at most five minutes, and begins anew after a success."""
        longest: list[float] = [0.0] * 14
        for seed in range(200):
            plan = Schedule(give_up_seconds=1e9, rng=random.Random(seed))
            plan.add(delivery(1))
            for attempt in range(14):
                plan.settle(delivery(1), Answer(Fate.FAILED, is_of_peer=is_of_peer), 0.0)
                wait = plan.next(0.0)[1]
                assert wait is not None
                assert wait <= min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**attempt)
                longest[attempt] = max(longest[attempt], wait)
        assert longest[0] > 0.9 * FIRST_WAIT_SECONDS
        assert longest[5] > 0.9 * 32
        assert longest[-1] > 0.9 * LONGEST_WAIT_SECONDS
        plan.settle(delivery(1), DELIVERED, 0.0)
        plan.add(delivery(2))
        plan.settle(delivery(2), Answer(Fate.FAILED, is_of_peer=is_of_peer), 0.0)
        wait = plan.next(0.0)[1]
        assert wait is None or wait <= FIRST_WAIT_SECONDS

    def test_what_waited_too_long_is_given_up(self) -> None:
        """By its own age, wherever it stands; what follows is tried at once."""
        plan = schedule(delivery(1, written_us=0), delivery(2, written_us=50_000_000), give_up_seconds=60)
        plan.settle(delivery(1, written_us=0), Answer(Fate.FAILED), 0.0)
        assert plan.expired(60_000_000) == []
        assert plan.expired(60_000_001) == [delivery(1, written_us=0)]
        assert plan.next(0.0)[0] == delivery(2, written_us=50_000_000)
        assert plan.oldest_us == 50_000_000

    def test_the_oldest_is_dropped_but_not_what_is_under_way(self) -> None:
        """Room is made from the old end."""
        under_way = delivery(1)
        plan = schedule(under_way, delivery(2), delivery(3, "b"))
        assert plan.drop_oldest(under_way) == delivery(2)
        assert plan.drop_oldest(under_way) == delivery(3, "b")
        assert plan.drop_oldest(under_way) is None
        assert len(plan) == 1

    @settings(max_examples=100)
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["ok", "bad", "away", "refused"])), max_size=40),
           st.integers(0, 99))  # fmt: skip
    def test_every_event_has_one_end_in_the_order_of_its_model(self, plan: list[tuple[str, str]], seed: int) -> None:
        """Whatever the peer answers: nothing is lost, nothing ends twice, no event overtakes one of its model."""
        rng = random.Random(seed)
        made = Schedule(give_up_seconds=1e9, rng=rng)
        for number, (model, _) in enumerate(plan):
            made.add(delivery(number, model))
        troubles = {number: how for number, (_, how) in enumerate(plan) if how != "ok"}
        now, ended = 0.0, []
        while len(made):
            chosen, wait = made.next(now)
            if chosen is None:
                assert wait is not None
                assert wait > 0
                now += wait
                continue
            trouble = troubles.pop(chosen.number, "ok")
            answers = {"ok": DELIVERED, "refused": Answer(Fate.REFUSED), "bad": Answer(Fate.FAILED),
                       "away": Answer(Fate.FAILED, is_of_peer=True)}  # fmt: skip
            made.settle(chosen, answers[trouble], now)
            if answers[trouble].fate is not Fate.FAILED:
                ended.append(chosen)
        assert sorted(d.number for d in ended) == list(range(len(plan)))
        for model in "abc":
            numbers = [d.number for d in ended if d.model == model]
            assert numbers == sorted(numbers)


class Peer:
    """A channel that answers as it is told, and can hang."""

    name = "peer"

    def __init__(self, answer: Callable[[Delivery], Answer] = lambda _: DELIVERED) -> None:
        self.answer = answer
        self.tried: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def deliver(self, delivery: Delivery) -> Answer:
        self.entered.set()
        self.gate.wait(60)
        self.tried.append(delivery.id)
        return self.answer(delivery)

    def close(self) -> None:
        self.gate.set()


def wait_until(holds: Callable[[], Any]) -> None:
    """Wait for a condition."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


class TestCourier:
    """The thread around it."""

    def test_what_is_offered_is_delivered_and_settled_once(self) -> None:
        """And a failed attempt is counted beside it."""
        troubles = itertools.chain([Answer(Fate.FAILED, "status 500")], itertools.repeat(DELIVERED))
        peer = Peer(lambda _: next(troubles))
        courier = Courier(peer, give_up_seconds=60, rng=random.Random(1))
        courier.start()
        courier.offer([delivery(1, written_us=10**18), delivery(2, "b", written_us=10**18)])
        wait_until(lambda: courier.standing() == (0, None))
        settled = courier.settled()
        assert {(d.number, fate) for d, fate in settled.done} == {(1, Fate.DELIVERED), (2, Fate.DELIVERED)}
        assert settled.failed == 1
        assert courier.settled().done == []
        courier.stop()

    def test_nobody_waits_for_a_peer_that_hangs(self) -> None:
        """Every call returns, the event under way is not dropped, and stopping lets go of it."""
        peer = Peer(lambda _: Answer(Fate.FAILED))
        peer.gate.clear()
        courier = Courier(peer, give_up_seconds=1e12)
        courier.start()
        courier.offer([delivery(1), delivery(2)])
        assert peer.entered.wait(30)
        assert courier.standing() == (2, 0)
        assert courier.drop_oldest() == delivery(2)
        assert courier.drop_oldest() is None
        assert courier.settled().done == []
        courier.stop()
        assert courier.settled().failed == 0

    def test_what_nobody_accepts_is_given_up(self, caplog: pytest.LogCaptureFixture) -> None:
        """Counted and logged with its id; failing is logged once, not at every attempt."""
        wall = [100.0]
        courier = Courier(
            Peer(lambda _: Answer(Fate.FAILED, "status 500")), give_up_seconds=60, wall=lambda: wall[0],
            rng=random.Random(1),
        )  # fmt: skip
        courier.start()
        courier.offer([delivery(1, written_us=100_000_000)])
        failed = 0
        done: list[tuple[Delivery, Fate]] = []

        def look() -> tuple[int, int]:
            nonlocal failed
            settled = courier.settled()
            failed += settled.failed
            done.extend(settled.done)
            return failed, len(done)

        wait_until(lambda: look()[0] >= 2)
        wall[0] = 161.0
        wait_until(lambda: look()[1])
        assert [(d.id, fate) for d, fate in done] == [("id-1", Fate.GIVEN_UP)]
        courier.stop()
        assert [r.message for r in caplog.records] == ["delivery_failing", "delivery_given_up"]

    def test_a_bug_in_the_thread_is_the_loops(self) -> None:
        """It does not end in silence."""

        def broken(_: Delivery) -> Answer:
            raise ZeroDivisionError

        courier = Courier(Peer(broken), give_up_seconds=60)
        courier.start()
        courier.offer([delivery(1, written_us=10**18)])

        def asked() -> bool:
            try:
                courier.settled()
            except ZeroDivisionError:
                return True
            return False

        wait_until(asked)
        courier.stop()


class TestTopic:
    """A topic through a sink."""

    def test_keyed_by_model(self) -> None:
        """The whole event is the value; a name that is no text still makes a key."""
        sink = MemorySink()
        channel = TopicChannel("drift", sink)
        assert channel.deliver(delivery(1, "größe")) == DELIVERED
        assert channel.deliver(delivery(2, "\ud800")) == DELIVERED
        first, second = sink.sent
        assert (first.topic, first.key, first.value) == ("drift", "größe".encode(), b"{}")
        assert dict(first.headers)["content-type"].startswith(b"application/cloudevents+json")
        assert second.key == b"\\ud800"

    def test_what_is_not_written_failed(self) -> None:
        """And is the broker's trouble, not the event's."""

        class Broken(MemorySink):
            def flush(self, timeout_seconds: float) -> None:  # noqa: ARG002
                raise PeerError("no broker")

        assert TopicChannel("drift", Broken()).deliver(delivery(1)) == Answer(Fate.FAILED, "no broker", is_of_peer=True)
