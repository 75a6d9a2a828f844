"""The outbox: what receivers have to be told of incidents, from the transaction that changed them until it is delivered.

An event is written in the transaction of the change it tells of, handed to the couriers after the commit, and deleted
in the commit after its delivery. So a crash at any instant loses none; it may repeat one, under the same id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stream_monitor.config import Config, WebhookConfig
from stream_monitor.engine import Engine, incident_json, time_text
from stream_monitor.publish.cloudevents import event, event_id, news_of, state_of
from stream_monitor.publish.delivery import Channel, Courier, Delivery, Fate, TopicChannel
from stream_monitor.publish.log import fields
from stream_monitor.publish.webhook import WebhookChannel
from stream_monitor.records import MICROSECONDS, Json
from stream_monitor.source import open_sink
from stream_monitor.store import Store

log = logging.getLogger(__name__)

MOST_WAITING = 2_000
"""Events that may wait for one target; of some 10 kB each, so 20 MB in memory and in the state file. Beyond it the
oldest go: a receiver that was away for days needs to know how things stand more than how they came to."""

TOLD = "told"
"""Under which kind the state file keeps what was last told of each open incident."""

TOPIC, WEBHOOK = "topic", "webhook"


class Count(Protocol):
    """Adds to a counter of the state file."""

    def __call__(self, counter: str, increment: int, **labels: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Somebody who is told. `key` names it in the state file and changes when the address does."""

    key: str
    channel: Channel
    wants: Callable[[Json], bool] = lambda incident: True  # noqa: ARG005

    @property
    def kind(self) -> str:
        """What its metrics are labelled with."""
        return kind_of(self.key)


def kind_of(key: str) -> str:
    """`topic` or `webhook`."""
    return key.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Standing:
    """What waits for the targets of one kind; `oldest_us` is wall time."""

    waiting: int
    oldest_us: int | None


class Outbox:
    """Belongs to the loop's thread, which calls `write` before a commit and `send` after it; neither waits for a peer."""

    def __init__(
        self,
        store: Store,
        targets: Sequence[Target],
        *,
        source: str,
        give_up_seconds: float,
        count: Count,
        most_waiting: int = MOST_WAITING,
        wall: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._source = source
        self._count = count
        self._most = most_waiting
        self._wall = wall
        self._targets = {target.key: target for target in targets}
        self._couriers = {
            key: Courier(target.channel, give_up_seconds=give_up_seconds, wall=wall, rng=rng)
            for key, target in self._targets.items()
        }
        self._number = int(store.meta("outbox_number") or 0)
        self._told = {incident: state.decode() for incident, state in store.states(TOLD).items()}
        self._unsent: list[Delivery] = self._left_over()
        self._greet()
        for courier in self._couriers.values():
            courier.start()

    def _left_over(self) -> list[Delivery]:
        """What an earlier run did not deliver; nobody is left to tell where a target is configured no longer."""
        rows = [
            Delivery(number, target, identity, model, written_us, body.encode())
            for number, target, identity, model, written_us, body in self._store.outbox()
        ]
        orphans = [row for row in rows if row.target not in self._targets]
        self._forget([(row, Fate.DROPPED) for row in orphans])
        if orphans:
            log.warning("deliveries_dropped", extra=fields(reason="the target is configured no longer", n=len(orphans)))
        return [row for row in rows if row.target in self._targets]

    def _greet(self) -> None:
        """Take up where people were left: tell what was closed while nobody looked, by a promotion on the file.

        Incidents that were open before anybody was to be told are no news.
        """
        self.write(json.loads(body) for body in self._store.closed_bodies(list(self._told)))
        before = [json.loads(body) for body in self._store.open_bodies()]
        self._note({i["id"]: state_of(i) for i in before if i["id"] not in self._told})

    def write(self, incidents: Iterable[Json], *, at: str = "") -> None:
        """In the open transaction: forget what was delivered, and put what is new of these incidents.

        `at` is the event time of updates, which no incident tells; absent: when it opened.
        """
        for key, courier in self._couriers.items():
            settled = courier.settled()
            self._forget(settled.done)
            self._count("deliveries", settled.failed, target=kind_of(key), outcome=Fate.FAILED)
        for incident in incidents:
            self._write(incident, at or incident["opened_at"])
        self._bound()

    def _write(self, incident: Json, at: str) -> None:
        news = news_of(incident, self._told.get(incident["id"]))
        wanting = [target for target in self._targets.values() if target.wants(incident)]
        written_us = int(self._wall() * MICROSECONDS)
        for one in news:
            self._number += 1
            body = event(incident, one, source=self._source, number=self._number, at=at)
            for target in wanting:
                made = Delivery(self._number, target.key, event_id(incident, one), incident["model"], written_us, body)
                self._store.put_outbox([[*_key(made), made.id, made.model, made.written_us, body.decode()]])
                self._unsent.append(made)
        if not news:
            return
        self._store.set_meta("outbox_number", str(self._number))
        if incident["closed_at"] is None:
            self._note({incident["id"]: state_of(incident)})
        else:
            self._told.pop(incident["id"], None)
            self._store.drop_states(TOLD, [incident["id"]])

    def _note(self, told: Mapping[str, str]) -> None:
        self._told |= told
        self._store.put_states(TOLD, {incident: state.encode() for incident, state in told.items()})

    def send(self) -> None:
        """After the commit: hand over what it made durable."""
        unsent, self._unsent = self._unsent, []
        for key, courier in self._couriers.items():
            courier.offer([delivery for delivery in unsent if delivery.target == key])

    def _bound(self) -> None:
        """Drop the oldest of what is more than may wait."""
        for key, courier in self._couriers.items():
            fresh = sum(delivery.target == key for delivery in self._unsent)
            beyond = courier.standing()[0] + fresh - self._most
            dropped = [d for _ in range(max(beyond, 0)) if (d := courier.drop_oldest()) is not None]
            self._forget([(delivery, Fate.DROPPED) for delivery in dropped])
            if dropped:
                name = self._targets[key].channel.name
                log.error("deliveries_dropped", extra=fields(target=name, reason="too many wait", n=len(dropped)))

    def _forget(self, done: Sequence[tuple[Delivery, Fate]]) -> None:
        self._store.drop_outbox(_key(delivery) for delivery, _ in done)
        for (kind, fate), n in Counter((kind_of(d.target), fate) for d, fate in done).items():
            self._count("deliveries", n, target=kind, outcome=fate)

    def standing(self) -> dict[str, Standing]:
        """What waits, by the kind of target."""
        found: dict[str, Standing] = {}
        for key, courier in self._couriers.items():
            waiting, oldest_us = courier.standing()
            before = found.get(kind_of(key), Standing(0, None))
            ages = [us for us in (before.oldest_us, oldest_us) if us is not None]
            found[kind_of(key)] = Standing(before.waiting + waiting, min(ages, default=None))
        return found

    def close(self) -> None:
        """End the couriers; what waits is sent by the next run."""
        for courier in self._couriers.values():
            courier.stop()


def _key(delivery: Delivery) -> tuple[int, str]:
    return delivery.number, delivery.target


def open_outbox(config: Config, engine: Engine) -> Outbox | None:
    """The outbox of a service; None where nobody is to be told. Raises UsageError for a topic without brokers."""
    targets = configured_targets(config)
    if not targets:
        return None
    publish = config.publish
    return Outbox(
        engine.store, targets, source=publish.event_source, give_up_seconds=publish.give_up_after, count=engine.count
    )


def configured_targets(config: Config) -> list[Target]:
    """Everybody the configuration names."""
    topic = config.publish.drift_topic
    targets = [Target(f"{TOPIC}:{topic}", TopicChannel(topic, open_sink(config)))] if topic else []
    return [*targets, *map(_webhook, config.publish.webhooks)]


def _webhook(config: WebhookConfig) -> Target:
    # By a hash: an address may be a secret, and who reads the state file need not learn it.
    key = f"{WEBHOOK}:{hashlib.sha256(config.url.encode()).hexdigest()[:16]}"

    def wants(incident: Json) -> bool:
        return config.wants(model=incident["model"], kind=incident["kind"], severity=incident["severity"])

    return Target(key, WebhookChannel(config), wants)


def changed_incidents(engine: Engine) -> list[Json]:
    """The objects of the incidents that the next commit changes, as that commit writes them."""
    changed = engine.changed
    standing = {
        incident.id: incident
        for version in engine.versions.values() if changed
        for line in version.lines.values()
        for incident in line.book.open_incidents
    }  # fmt: skip
    return [incident_json(standing.get(incident.id, incident)) for incident in changed.values()]


def commit_time(engine: Engine) -> str:
    """Event time as far as it has come: when an update is dated."""
    return "" if engine.sealed_us is None else time_text(engine.sealed_us)
