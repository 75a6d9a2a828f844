"""The outbox: no change of state is told never, or under two ids, wherever the process ends; what waits is bounded."""

from __future__ import annotations

import copy
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.errors import UsageError
from stream_monitor.outbox import (
    Outbox,
    Standing,
    Target,
    changed_incidents,
    commit_time,
    configured_targets,
    open_outbox,
)
from stream_monitor.publish.delivery import Answer, Delivery, Fate
from stream_monitor.records import Evidence, IncidentKind, ModelKey
from stream_monitor.store import Store

SUBJECTS = ("age", "income", "channel")
SEVERITIES = ("info", "warning", "critical")


class Peer:
    """A receiver that keeps what it accepted, and is away or refuses when it is told to."""

    name = "peer"

    def __init__(self) -> None:
        self.accepted: list[Delivery] = []
        self.answer = Answer(Fate.DELIVERED)
        self.asked = threading.Event()

    def deliver(self, delivery: Delivery) -> Answer:
        answer = self.answer
        if answer.fate is Fate.DELIVERED:
            self.accepted.append(delivery)
        self.asked.set()
        return answer

    def close(self) -> None:
        """Nothing to let go."""


class Eager(random.Random):
    """Draws short waits, so that tests need no patience."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return 0.002


AWAY = Answer(Fate.FAILED, "away", is_of_peer=True)


def incident(identity: str, *subjects: str, closed: bool = False, **changes: Any) -> dict[str, Any]:
    """An incident's object, as far as it matters here."""
    body = {
        "id": identity,
        "model": identity[0],
        "version": "1",
        "kind": "data_drift",
        "severity": "warning",
        "opened_at": "2026-11-21T08:00:00.000Z",
        "closed_at": "2026-11-21T09:00:00.000Z" if closed else None,
        "subjects": [{"name": name} for name in subjects or ("age",)],
    }
    return {**body, **changes}


def put(store: Store, *bodies: dict[str, Any]) -> None:
    """Write incidents as the engine's checkpoint does."""
    store.put_incidents(
        [b["id"], 1, None if b["closed_at"] is None else 2, b["model"], "1", b["kind"], b["severity"], json.dumps(b)]
        for b in bodies
    )


def wait_until(holds: Callable[[], Any]) -> None:
    """Wait for a condition."""
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


class Host:
    """A service's life around an outbox: commits, crashes, starts again on the same file."""

    def __init__(self, path: Path, peers: Sequence[Peer], **options: Any) -> None:
        self.path = path
        self.peers = peers
        self.options = options
        self.counted: Counter[tuple[str, str]] = Counter()
        self.start()

    def start(self) -> None:
        self.store = Store(self.path)
        targets = [Target(f"webhook:{n}", peer) for n, peer in enumerate(self.peers)]
        self.outbox = Outbox(
            self.store, targets, source="/m", give_up_seconds=1e6, count=self.count, rng=Eager(), **self.options
        )  # fmt: skip

    def count(self, counter: str, increment: int, **labels: str) -> None:
        assert counter == "deliveries"
        if increment:
            self.counted[labels["target"], str(labels["outcome"])] += increment

    def write(self, *changed: dict[str, Any]) -> None:
        self.outbox.write(changed, at="2026-11-21T08:30:00.000Z")
        put(self.store, *changed)

    def commit(self, *changed: dict[str, Any]) -> None:
        self.write(*changed)
        self.store.commit()
        self.outbox.send()

    def settle(self) -> None:
        """Everything that waits is delivered."""
        wait_until(lambda: all(s.waiting == 0 for s in self.outbox.standing().values()))

    def crash(self) -> None:
        """What was not committed is gone; whatever a courier had under way may have arrived."""
        self.outbox.close()
        self.store.close()


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def host(tmp_path: Path, peer: Peer) -> Iterator[Host]:
    """A host with one receiver."""
    made = Host(tmp_path / "state.duckdb", [peer])
    yield made
    made.crash()


def told(peer: Peer) -> list[tuple[str, str]]:
    """(incident, what happened) as it was accepted, repetitions and all."""
    return [(e["data"]["id"], e["type"].rpartition(".")[2]) for e in map(events, peer.accepted)]


def events(delivery: Delivery) -> dict[str, Any]:
    """The event of a delivery."""
    found: dict[str, Any] = json.loads(delivery.body)
    return found


def test_an_incident_is_told_from_opening_to_closing(host: Host, peer: Peer) -> None:
    """Once each, and forgotten in the commit after."""
    host.commit(incident("a1"))
    host.commit(incident("a1", summary="stronger"))
    host.commit(incident("a1", "age", "income"))
    host.commit(incident("a1", "age", "income", closed=True))
    host.settle()
    assert told(peer) == [("a1", "opened"), ("a1", "updated"), ("a1", "closed")]
    assert len(host.store.outbox()) > 0
    host.commit()
    assert host.store.outbox() == []
    assert host.counted["webhook", "delivered"] == 3


def test_what_opened_and_closed_in_one_commit_is_told_as_both(host: Host, peer: Peer) -> None:
    """Lost records do so: whoever waits for openings hears of it."""
    host.commit(incident("a1", kind="data_loss", closed=True))
    host.settle()
    assert told(peer) == [("a1", "opened"), ("a1", "closed")]


def test_nothing_is_told_before_its_commit(host: Host, peer: Peer) -> None:
    """A crash before it leaves no trace; what then happens is told as it happened."""
    host.write(incident("a1"))
    host.crash()
    host.start()
    host.commit(incident("a1", "age", "income"))
    host.settle()
    assert told(peer) == [("a1", "opened")]
    assert len(events(peer.accepted[0])["data"]["subjects"]) == 2


def test_a_crash_between_commit_and_delivery_loses_nothing(host: Host, peer: Peer) -> None:
    """The next run delivers it."""
    host.write(incident("a1"))
    host.store.commit()
    host.crash()
    host.start()
    host.commit()
    host.settle()
    assert told(peer) == [("a1", "opened")]


def test_a_crash_after_delivery_repeats_it_under_the_same_id(host: Host, peer: Peer) -> None:
    """With the same bytes, so that a receiver can tell."""
    host.commit(incident("a1"))
    host.settle()
    host.crash()
    host.start()
    host.commit()
    host.settle()
    first, second = peer.accepted
    assert (first.id, first.body) == (second.id, second.body)
    host.commit()
    host.crash()
    host.start()
    host.commit()
    host.settle()
    assert len(peer.accepted) == 2


def test_what_a_promotion_closed_on_the_file_is_told_by_the_next_run(host: Host, peer: Peer) -> None:
    """`baseline promote --state` knows no receivers."""
    host.commit(incident("a1"), incident("b1"))
    host.settle()
    host.commit()
    host.crash()
    store = Store(host.path)
    put(store, incident("a1", closed=True))
    store.commit()
    store.close()
    host.start()
    host.commit()
    host.settle()
    assert told(peer) == [("a1", "opened"), ("b1", "opened"), ("a1", "closed")]


def test_what_was_open_before_anybody_was_to_be_told_is_no_news(tmp_path: Path, peer: Peer) -> None:
    """Only what changes from then on is told."""
    store = Store(tmp_path / "state.duckdb")
    put(store, incident("a1"), incident("a2"), incident("a3", closed=True))
    store.commit()
    store.close()
    host = Host(tmp_path / "state.duckdb", [peer])
    host.commit()
    host.commit(incident("a2", closed=True))
    host.settle()
    host.crash()
    assert told(peer) == [("a2", "closed")]


def test_targets_that_are_configured_no_longer_are_forgotten(tmp_path: Path, peer: Peer) -> None:
    """What waited for them is dropped and counted; the others get theirs."""
    gone = Peer()
    gone.answer = peer.answer = AWAY
    host = Host(tmp_path / "state.duckdb", [peer, gone])
    host.commit(incident("a1"))
    host.crash()
    host.peers, peer.answer = [peer], Answer(Fate.DELIVERED)
    host.start()
    host.commit()
    host.settle()
    host.commit()
    assert host.counted["webhook", "dropped"] == 1
    assert host.counted["webhook", "delivered"] == 1
    assert told(peer) == [("a1", "opened")]
    assert host.store.outbox() == []
    host.crash()


def test_filters_are_asked_for_each_target(tmp_path: Path) -> None:
    """One id for all of them; who wants critical ones hears of an incident when it becomes one."""
    everything, critical = Peer(), Peer()
    host = Host(tmp_path / "state.duckdb", [])
    host.crash()
    host.store = Store(host.path)
    targets = [Target("topic:t", everything), Target("webhook:c", critical, lambda i: i["severity"] == "critical")]
    host.outbox = Outbox(host.store, targets, source="/m", give_up_seconds=1e6, count=host.count)
    host.commit(incident("a1"))
    host.commit(incident("a1", severity="critical"))
    host.commit(incident("a1", severity="critical", closed=True))
    host.settle()
    assert told(everything) == [("a1", "opened"), ("a1", "updated"), ("a1", "closed")]
    assert told(critical) == [("a1", "updated"), ("a1", "closed")]
    assert [d.id for d in critical.accepted] == [d.id for d in everything.accepted[1:]]
    assert [d.body for d in critical.accepted] == [d.body for d in everything.accepted[1:]]
    host.commit()
    assert host.counted == {("topic", "delivered"): 3, ("webhook", "delivered"): 2}
    host.crash()


def test_what_waits_is_bounded(tmp_path: Path, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest go, are counted and logged; what stands in the file is what waits."""
    peer.answer = AWAY
    host = Host(tmp_path / "state.duckdb", [peer], most_waiting=3)
    host.commit(incident("a0"))
    assert peer.asked.wait(30)
    for number in range(1, 8):
        host.commit(incident(f"a{number}"))
    host.commit()
    assert host.outbox.standing()["webhook"].waiting == 3
    assert len(host.store.outbox()) == 3
    assert host.counted["webhook", "dropped"] == 5
    assert host.counted["webhook", "failed"] >= 1
    assert {r.message for r in caplog.records} == {"delivery_failing", "deliveries_dropped"}
    peer.answer = Answer(Fate.DELIVERED)
    host.crash()
    host.start()
    host.commit()
    host.settle()
    assert [name for name, _ in told(peer)][-2:] == ["a6", "a7"]
    host.crash()


def test_standing_sums_the_targets_of_a_kind(tmp_path: Path) -> None:
    """Waiting of all, and the oldest of them; nothing where nothing waits."""
    peers = [Peer(), Peer()]
    wall = [100.0]
    host = Host(tmp_path / "state.duckdb", peers, wall=lambda: wall[0])
    assert host.outbox.standing() == {"webhook": Standing(0, None)}
    for peer in peers:
        peer.answer = AWAY
    host.commit(incident("a1"))
    wall[0] = 200.0
    host.commit(incident("b1"))
    assert host.outbox.standing() == {"webhook": Standing(4, 100_000_000)}
    host.crash()


# -- the law ---------------------------------------------------------------------------------------


class World:
    """Incidents that come, change and go, and what was committed of them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now: dict[str, dict[str, Any]] = {}
        self.committed: dict[str, dict[str, Any]] = {}
        self.changes: set[tuple[str, str, str]] = set()
        self._born = 0

    def step(self) -> None:
        """One change: a new incident, a subject, a severity, the end."""
        live = [b for b in self.now.values() if b["closed_at"] is None]
        if not live or self.rng.random() < 0.3:
            self._born += 1
            identity = f"{self.rng.choice('abc')}{self._born}"
            self.now[identity] = incident(identity, severity="info")
            return
        one = self.rng.choice(live)
        what = self.rng.choice(["subject", "severity", "stronger", "close"])
        if what == "subject":
            names = {s["name"] for s in one["subjects"]} | {self.rng.choice(SUBJECTS)}
            one["subjects"] = [{"name": name} for name in self.rng.sample(sorted(names), len(names))]
        elif what == "severity":
            one["severity"] = SEVERITIES[min(2, SEVERITIES.index(one["severity"]) + 1)]
        elif what == "stronger":
            one["summary"] = str(self.rng.random())
        else:
            one["closed_at"] = "2026-11-21T09:00:00.000Z"

    def changed(self) -> list[dict[str, Any]]:
        return [copy.deepcopy(b) for i, b in self.now.items() if self.committed.get(i) != b]

    def commit(self) -> None:
        """What a receiver has to hear of, by rules of the test's own."""
        for body in self.changed():
            before = self.committed.get(body["id"])
            if before is None:
                self.changes.add((body["id"], "opened", ""))
            if body["closed_at"] is not None:
                self.changes.add((body["id"], "closed", ""))
            elif before is not None and sides(before) != sides(body):
                self.changes.add((body["id"], "updated", sides(body)))
            self.committed[body["id"]] = body

    def crash(self) -> None:
        """Back to what was committed: what follows may come otherwise."""
        self.now = copy.deepcopy(self.committed)


def sides(body: dict[str, Any]) -> str:
    """What makes two states of an incident two."""
    return repr((body["kind"], body["severity"], {s["name"]: 0 for s in sorted(body["subjects"], key=str)}))


@pytest.mark.parametrize("seed", range(4))
def test_no_change_is_told_never_or_under_two_ids(tmp_path: Path, seed: int) -> None:
    """Crashes before a commit, between commit and delivery, and between delivery and deletion, in any order."""
    rng = random.Random(seed)
    world, peer = World(rng), Peer()
    host = Host(tmp_path / "state.duckdb", [peer])
    for _ in range(30):
        for _ in range(rng.randint(0, 3)):
            world.step()
        peer.answer = rng.choice([Answer(Fate.DELIVERED), AWAY])
        ending = rng.choice(["commit", "commit", "commit and wait", "before", "committed", "delivered"])
        host.write(*world.changed())
        if ending != "before":
            host.store.commit()
            world.commit()
            if ending != "committed":
                host.outbox.send()
        if ending in ("commit and wait", "delivered") and peer.answer is not AWAY:
            wait_until(lambda: host.outbox.standing()["webhook"].waiting == 0)
        if ending in ("before", "committed", "delivered"):
            host.crash()
            world.crash()
            host.start()
    peer.answer = Answer(Fate.DELIVERED)
    host.crash()  # begins anew, without the patience it had with the peer
    host.start()
    host.commit()
    host.settle()
    host.commit()
    assert host.store.outbox() == []
    host.crash()

    bodies: dict[str, bytes] = {}
    changes: dict[tuple[str, str, str], str] = {}
    first: list[Delivery] = []
    for delivery in peer.accepted:
        body = events(delivery)
        what = body["type"].rpartition(".")[2]
        change = (body["data"]["id"], what, sides(body["data"]) if what == "updated" else "")
        assert changes.setdefault(change, delivery.id) == delivery.id == body["id"]
        if delivery.id not in bodies:
            first.append(delivery)
        assert bodies.setdefault(delivery.id, delivery.body) == delivery.body
    assert set(changes) == world.changes
    assert len(set(changes.values())) == len(changes) > 10
    assert len(peer.accepted) > len(first), "no resend was seen: the test would not notice one under another id"
    for model in "abc":
        numbers = [events(d)["sequence"] for d in first if d.model == model]
        assert numbers == sorted(set(numbers))


# -- with the engine and the configuration -----------------------------------------------------------


def test_the_engines_changes_are_those_of_the_commit(tmp_path: Path) -> None:
    """The objects told are those the state file holds after the commit, with evidence that grew in the meantime."""
    store = Store(tmp_path / "state.duckdb")
    engine = Engine(parse({}, {}), store)
    assert changed_incidents(engine) == []
    assert commit_time(engine) == ""
    evidence = Evidence("age", "feature", "psi", 1.0, 0.5, 0.4, 500, 5000, "moved")
    book = engine.versions[engine._version_index(ModelKey("m", "1"))].whole().book
    engine.note(book.alarm(IncidentKind.DATA_DRIFT, evidence, now_us=2_000_000, onset_us=1_000_000))
    book.alarm(IncidentKind.DATA_DRIFT, Evidence("age", "feature", "psi", 1.1, 0.5, 0.4, 900, 5000, "moved"),
               now_us=3_000_000, onset_us=1_000_000)  # fmt: skip
    said = {body["id"]: body for body in changed_incidents(engine)}
    engine.checkpoint()
    kept = {body["id"]: body for body in map(json.loads, store.incident_bodies())}
    assert json.loads(json.dumps(said)) == kept
    assert [s["samples"] for b in kept.values() if b["kind"] == "data_drift" for s in b["subjects"]] == [900]
    store.close()


def test_nothing_goes_out_unless_it_is_configured(tmp_path: Path) -> None:
    """No outbox, no threads; and a topic needs brokers."""
    store = Store(tmp_path / "state.duckdb")
    engine = Engine(parse({}, {}), store)
    assert open_outbox(engine.config, engine) is None
    files = parse({"source": {"kind": "files"}, "publish": {"drift_topic": "drift"}}, {})
    with pytest.raises(UsageError, match=r"source\.kind"):
        configured_targets(files)
    store.close()


def test_targets_of_a_configuration_keep_addresses_to_themselves() -> None:
    """The state file and the metrics learn neither path nor secret of a webhook."""
    hook = {"url": "https://example.org/hunter2", "secret": "hunter2", "models": ["credit"]}
    topic, webhook = configured_targets(parse({"publish": {"drift_topic": "drift", "webhooks": [hook]}}, {}))
    assert (topic.key, topic.kind, topic.channel.name) == ("topic:drift", "topic", "topic drift")
    assert (webhook.kind, webhook.channel.name) == ("webhook", "https://example.org")
    assert "hunter2" not in repr((webhook.key, webhook.channel.name))
    assert webhook.wants(incident("a1", model="credit"))
    assert not webhook.wants(incident("a1"))
    assert topic.wants(incident("a1"))
