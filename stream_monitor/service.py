"""A running service: the loop, what it publishes, and an orderly end."""

from __future__ import annotations

import bisect
import logging
import time
from collections.abc import Callable
from pathlib import Path

from stream_monitor.app import Monitor, Pace, dead_letter, fetch, open_engine
from stream_monitor.config import Config
from stream_monitor.ending import Ending, Stop
from stream_monitor.engine import Engine, Refused
from stream_monitor.errors import PeerError, UsageError
from stream_monitor.exposition import Deliveries, snapshot
from stream_monitor.exposition import Service as ServiceFigures
from stream_monitor.machine import look
from stream_monitor.memory import hold_memory, resident_bytes
from stream_monitor.outbox import Outbox, changed_incidents, commit_time, open_outbox
from stream_monitor.publish.catalogue import CHECKPOINT_BUCKETS
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Server, create_app
from stream_monitor.publish.log import fields
from stream_monitor.publish.snapshot import Distribution
from stream_monitor.records import MICROSECONDS, Incident
from stream_monitor.source import open_sink, open_source
from stream_monitor.source.protocol import Source
from stream_monitor.source.sink import Sink
from stream_monitor.store import Store
from stream_monitor.views import LiveView

log = logging.getLogger(__name__)

PUBLISH_SHARE = 0.1
"""The most of the loop's time that building and rendering the metrics may take."""

IDLE_SECONDS = 0.2

FLUSH_SECONDS = 5.0
"""How long a commit waits for dead letters to be acknowledged; then it is a problem of the broker's, and logged."""


class Service:
    """The loop with everything around it. `on_incidents` hears of every change; `haste` is the loop's."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        source: Source,
        *,
        dead_letters: Sink | None = None,
        outbox: Outbox | None = None,
        on_incidents: Callable[[list[Incident]], None] | None = None,
        haste: float = 1.0,
    ) -> None:
        self.config = config
        self.engine = engine
        self._dead_letters = dead_letters
        self._outbox = outbox
        self._on_incidents = on_incidents
        self._sent = 0
        self._letters: list[tuple[str, bytes | None, bytes, list[tuple[str, bytes]]]] = []
        self._stuck = False
        self._durations = [0] * (len(CHECKPOINT_BUCKETS) + 1)
        self._duration_total = 0.0
        self._publishing = Pace(1.0 / haste, haste * PUBLISH_SHARE)
        self.publisher = Publisher(series=config.limits.series)
        self.monitor = Monitor(
            engine,
            fetch(source, config, positions=engine.positions()),
            on_refused=self._refuse,
            before_commit=self._prepare,
            on_checkpoint=self._tell,
            haste=haste,
        )
        self.view = LiveView(self.monitor)
        host, port = config.publish.host, config.publish.port
        app = create_app(self.view, self.publisher, host=host, token=_token(config.publish.token_file))
        self.server = Server(app, host=host, port=port)

    def run(self, stop: Stop) -> None:
        """Serve until told to stop or, with files, until everything is read and `stop` is set."""
        self.server.start()
        log.info("listening", extra=fields(host=self.config.publish.host, port=self.server.port))
        try:
            self.monitor.run(stop)
            self._publish()
            while not stop.is_set():  # files are read to their end: people may still ask and promote
                self.monitor.rest()
                time.sleep(IDLE_SECONDS)
            self.monitor.fetcher.close()
            if self._prepare():
                self.engine.close()
        finally:
            # After an error nothing is written: what the engine holds may be half of a step.
            self.close()

    def close(self) -> None:
        """Stop fetching, let go of the port and of the brokers; writes nothing."""
        self.monitor.fetcher.close()
        self.server.stop()
        self.view.close()
        if self._dead_letters is not None:
            self._dead_letters.close()
        if self._outbox is not None:
            self._outbox.close()

    # -- around a checkpoint ---------------------------------------------------------------------

    def _prepare(self) -> bool:
        """What belongs to the coming commit; False when it has to wait for the dead letters."""
        if not self._flush():
            return False
        if self._outbox is not None:
            self._outbox.write(changed_incidents(self.engine), at=commit_time(self.engine))
        return True

    def _refuse(self, refused: Refused) -> None:
        if self._dead_letters is None:
            return
        topic = self.config.source.dead_letter_topic
        assert topic is not None
        self._letters += [
            (topic, key, value if value is not None else b"", h) for key, value, h in dead_letter(refused)
        ]

    def _flush(self) -> bool:
        """Dead letters are acknowledged before the offsets behind them are committed: at least once.

        False when no broker takes them: the checkpoint waits, and the letters are sent again.
        """
        if self._dead_letters is None or not self._letters:
            return True
        try:
            for letter in self._letters:
                self._dead_letters.send(*letter)
            self._dead_letters.flush(FLUSH_SECONDS)
        except PeerError as error:
            if not self._stuck:
                log.error("dead_letters_stuck", extra=fields(waiting=len(self._letters), reason=str(error)))
            self._stuck = True
            return False
        self._sent += len(self._letters)
        self._letters, self._stuck = [], False
        return True

    def _tell(self, changed: list[Incident]) -> None:
        seconds = self.monitor.last_checkpoint_seconds
        self._durations[bisect.bisect_left(CHECKPOINT_BUCKETS, seconds)] += 1
        self._duration_total += seconds
        for incident in changed:
            log.info(
                "incident_closed" if incident.closed_us is not None else "incident",
                extra=fields(incident=incident.id, model=incident.line.model, version=incident.line.version,
                       kind=str(incident.kind), severity=str(incident.severity), summary=incident.summary),
            )  # fmt: skip
        if self._outbox is not None:
            self._outbox.send()
        if changed and self._on_incidents is not None:
            self._on_incidents(changed)
        now = time.monotonic()
        if changed or self.monitor.is_asked or now >= self._publishing.due:
            self._publish()
            self._publishing.done(now, time.monotonic())

    def _deliveries(self) -> dict[str, Deliveries]:
        now_us = time.time() * MICROSECONDS
        standing = {} if self._outbox is None else self._outbox.standing()
        return {
            kind: Deliveries(s.waiting, 0.0 if s.oldest_us is None else max(0.0, (now_us - s.oldest_us) / MICROSECONDS))
            for kind, s in standing.items()
        }

    def _publish(self) -> None:
        self.view.refresh()
        ready, _ = self.view.ready()
        figures = ServiceFigures(
            ready=ready,
            checkpoint_unix_seconds=time.time(),
            memory_bytes=resident_bytes(),
            checkpoints=Distribution(tuple(self._durations), self._duration_total),
            dead_letters=self._sent,
            deliveries=self._deliveries(),
            machine=look(self.config.state),
        )
        self.publisher.publish(snapshot(self.engine, figures))


def serve(config: Config, ending: Ending) -> None:
    """Attach to the event bus and watch until the end. Raises MonitorError for what a person has to mend."""
    hold_memory()
    store = Store(config.state)
    try:
        engine = open_engine(config, store)
        source = open_source(config, clock=time.monotonic)
        dead_letters = open_sink(config) if config.source.dead_letter_topic else None
        outbox = open_outbox(config, engine)
        service = Service(config, engine, source, dead_letters=dead_letters, outbox=outbox)
        log.info("started", extra=fields(state=str(config.state), positions=len(engine.positions())))
        ending.in_order = True
        service.run(ending)
        log.info("stopped")
    finally:
        store.close()


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise UsageError(f"publish.token_file: {path} is empty")
    return token
