"""The composition root and the loop: fetch and decode in one thread, everything else in one loop.

`Monitor` is that loop, the same for `run`, `replay` and `demo`; the functions below put its parts together.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from stream_monitor.baselines import read_baselines
from stream_monitor.config import Config
from stream_monitor.decode import Decoder, DecoderOptions, ModelOptions
from stream_monitor.ending import Stop
from stream_monitor.engine import Engine, Refused
from stream_monitor.judge.baseline import Baseline
from stream_monitor.memory import Sweeper
from stream_monitor.records import Incident, Inferences, Labels, PartitionId, Poll, RawBatch, Stream
from stream_monitor.source.fetcher import Fetcher
from stream_monitor.source.protocol import Source
from stream_monitor.store import Store
from stream_monitor.window.flow import Decoded

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 1.0
"""The least time between checkpoints: with pane and lateness it bounds how old a published figure is."""

CHECKPOINT_SHARE = 0.2
"""The most of the loop's time that checkpoints may take: a slow disk makes them rarer, not the consumer slower."""

JOIN_SHARE = 0.1
"""The most of the loop's time that joining labels may take: the scan costs the same for ten labels as for a million."""

CHECKPOINT_MOST_SECONDS = 10.0
"""The most time between checkpoints, however long one took: what is not yet written waits in memory."""

JOIN_LABELS = 100_000
"""So many labels are joined whatever share of the time that takes: they wait in memory, and are in every checkpoint."""

SEAL_SECONDS = 0.5
"""A live stream is sealed at least this often; while a backlog is drained the engine waits for more rows."""

Batch = Decoded[Inferences] | Decoded[Labels]


def make_decoder(config: Config) -> Decoder:
    """The decoder as the configuration wants it."""
    models = {name: ModelOptions(m.task, m.positive_label) for name, m in config.models.items()}
    return Decoder(DecoderOptions(record_bytes=config.limits.record_bytes, models=models))


def decode_poll(decoder: Decoder, poll: Poll) -> list[Batch]:
    """Every batch of a poll as columns."""
    return [decode_batch(decoder, raw) for raw in poll.batches if len(raw)]


def decode_batch(decoder: Decoder, raw: RawBatch) -> Batch:
    """One batch as columns."""
    if raw.binding.stream == Stream.INFERENCE:
        columns, rejects = decoder.inference(raw)
        return Decoded(raw, columns, rejects)
    labels, rejects = decoder.ground_truth(raw)
    return Decoded(raw, labels, rejects)


def fetch(source: Source, config: Config, *, positions: Mapping[PartitionId, int]) -> Fetcher[list[Batch]]:
    """A thread that reads the source from these positions and decodes what comes."""
    decoder = make_decoder(config)
    source.start(positions)
    return Fetcher(source, transform=lambda poll: decode_poll(decoder, poll))


def open_engine(config: Config, store: Store) -> Engine:
    """The engine on a state file, with the baselines that the configuration names."""
    return Engine(config, store, baselines=configured_baselines(config))


def configured_baselines(config: Config) -> list[Baseline]:
    """Every baseline file the configuration names, read."""
    found: list[Baseline] = []
    for name, model in config.models.items():
        if model.baseline is not None:
            found += [b for b in read_baselines([model.baseline], config, model=name) if b.model == name]
    return found


@dataclass(slots=True)
class Pace:
    """When something may happen again, so that it takes at most a share of the time."""

    least_seconds: float
    share: float
    most_seconds: float = math.inf
    due: float = 0.0

    def done(self, began: float, ended: float) -> None:
        """It took this long; set when it is due again."""
        rest = max(self.least_seconds, (ended - began) * (1 / self.share - 1))
        self.due = ended + min(rest, self.most_seconds)


@dataclass
class Monitor:
    """The loop.

    `before_commit` may put a commit off by returning False; `on_checkpoint` is called after each commit with the
    incidents that changed. `haste`: how many times faster than life events come, for a story told to people: it may take
    as much more of the loop's time to keep figures fresh.
    """

    engine: Engine
    fetcher: Fetcher[list[Batch]]
    on_refused: Callable[[Refused], None] | None = None
    before_commit: Callable[[], bool] | None = None
    on_checkpoint: Callable[[list[Incident]], None] | None = None
    haste: float = 1.0
    last_checkpoint_seconds: float = 0.0
    clock: Callable[[], float] = time.monotonic
    _checkpoints: Pace = field(init=False)
    _joins: Pace = field(init=False)
    _sweeper: Sweeper = field(default_factory=Sweeper)
    _sealed_at: float = 0.0
    _took: bool = True
    _crowded: frozenset[PartitionId] = frozenset()
    _commands: queue.Queue[tuple[Callable[[Engine], Any], Future[Any]]] = field(default_factory=queue.Queue)
    _done: list[tuple[Future[Any], Any]] = field(default_factory=list)  # what was done and is not yet committed

    def __post_init__(self) -> None:
        self._checkpoints = Pace(CHECKPOINT_SECONDS / self.haste, CHECKPOINT_SHARE, CHECKPOINT_MOST_SECONDS)
        self._joins = Pace(0.0, self.haste * JOIN_SHARE)

    def run(self, stop: Stop) -> None:
        """Turn until told to stop or the source is read to its end; then write a last checkpoint."""
        while not stop.is_set() and not self.turn():
            pass
        self._joins.due = 0.0
        self.checkpoint()

    def turn(self, timeout_seconds: float = 0.2) -> bool:
        """Take one poll through every stage; True when the source is finished and everything in hand is taken."""
        # What is parked waits for a slower partition's rows: only after a step that took some may a further one help.
        got = self.fetcher.get(0.0 if self._took and self.engine.flow.parked_rows() else timeout_seconds)
        now = self.clock()
        if got is not None:
            poll, batches = got
            for batch in batches:
                self.engine.offer(batch)
            self.engine.note_poll(poll, now)
        for loss in self.fetcher.losses():
            self.engine.note_loss(loss.partition, loss.expected, loss.resumed)
        seal_now = got is None or now - self._sealed_at >= SEAL_SECONDS
        if seal_now:
            self._sealed_at = now
        done = self.engine.step(now, seal_now=seal_now)
        self._took = done.records > 0
        for refused in done.refused:
            if self.on_refused is not None:
                self.on_refused(refused)
        self._steer()
        self._obey()
        if now >= self._checkpoints.due or self._has_many_labels():
            self.checkpoint()
        self._sweeper.sweep_if_grown()
        return self.fetcher.finished and not done.records and not self.engine.flow.parked_rows()

    def _has_many_labels(self) -> bool:
        return self.engine.truth.pending_labels() >= JOIN_LABELS

    def _steer(self) -> None:
        """Pause the partitions that hold enough."""
        crowded = self.engine.flow.crowded()
        if crowded != self._crowded:
            self._crowded = crowded
            self.fetcher.pause(crowded)

    def ask(self, command: Callable[[Engine], Any]) -> Future[Any]:
        """Have the loop do something with the engine, from another thread; answered once it is committed and can be read."""
        answer: Future[Any] = Future()
        self._commands.put((command, answer))
        return answer

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits to read back what was done for them."""
        return bool(self._done)

    def rest(self) -> None:
        """Nothing will come any more: do what is asked, and commit it."""
        now = self.clock()
        self.engine.step(now, seal_now=True)
        if not self._commands.empty() or now >= self._checkpoints.due:
            self._obey()
            self.checkpoint()

    def _obey(self) -> None:
        while not self._commands.empty():
            command, answer = self._commands.get_nowait()
            try:
                self._done.append((answer, command(self.engine)))
                self._checkpoints.due = 0.0
            except Exception as error:  # handed to whoever asked, who waits for it
                answer.set_exception(error)

    def checkpoint(self) -> None:
        """Join what is due, commit, and tell people."""
        began = self.clock()
        if began >= self._joins.due or self._has_many_labels():
            self.engine.join(began)
            joined = self.clock()
            self._joins.done(began, joined)
            began = joined
        if self.before_commit is not None and not self.before_commit():
            self._checkpoints.done(began, self.clock())
            return
        changed = self.engine.checkpoint()
        ended = self.clock()
        self.last_checkpoint_seconds = ended - began
        self._checkpoints.done(began, ended)
        self.fetcher.commit(self.engine.positions())
        self._sweeper.sweep()
        if self.on_checkpoint is not None:
            self.on_checkpoint(changed)
        done, self._done = self._done, []
        for answer, result in done:
            answer.set_result(result)

    def finish(self) -> None:
        """The files are read: judge what is left, and commit."""
        self.engine.finish(self.clock())
        changed = self.engine.checkpoint()
        if self.on_checkpoint is not None:
            self.on_checkpoint(changed)


def dead_letter(refused: Refused) -> list[tuple[bytes, bytes | None, list[tuple[str, bytes]]]]:
    """(key, value, headers) of each refused record: where it stood and why it was refused."""
    raw = refused.raw
    letters = []
    for row, reason in zip(refused.row.tolist(), refused.reason, strict=True):
        partition = raw.partitions[int(raw.partition[row])]
        offset = int(raw.offset[row])
        key = f"{partition.topic}/{partition.number}/{offset}".encode()
        headers = [
            ("reason", str(reason).encode()),
            ("topic", partition.topic.encode()),
            ("partition", str(partition.number).encode()),
            ("offset", str(offset).encode()),
        ]
        letters.append((key, raw.value[row].as_py(), headers))
    return letters


def reject_line(refused: Refused) -> list[str]:
    """The same as lines of `rejects.jsonl`; bytes that are no text are shown with escapes."""
    lines = []
    for key, value, headers in dead_letter(refused):
        body: Mapping[str, Any] = {
            "position": key.decode(),
            **{name: text.decode() for name, text in headers},
            "value": None if value is None else value.decode("utf-8", "backslashreplace"),
        }
        lines.append(json.dumps(body, ensure_ascii=False))
    return lines
