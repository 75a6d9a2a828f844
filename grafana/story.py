"""The demo's story as a Prometheus would have scraped it: the service's own `/metrics`, on a clock advanced by hand.

The engine reads the demo's events, a minute of event time at a time, and after each minute the exposition is fetched
over HTTP. What was fetched becomes a database of blocks, so that hours of panels can be looked at after seconds.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from stream_monitor import demo, machine
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import Service, snapshot
from stream_monitor.judge.baseline import Baseline
from stream_monitor.memory import resident_bytes
from stream_monitor.publish.catalogue import CHECKPOINT_BUCKETS
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Server, View, create_app
from stream_monitor.publish.snapshot import Distribution
from stream_monitor.records import MICROSECONDS, Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

START = 1_793_577_600
"""2026-11-02T00:00:00Z, a Monday: the same pictures whenever they are drawn."""

HOURS = 7.5
"""Half an hour after credit's version 8 went live, so that two versions stand side by side."""

BASELINE_ROWS = 5_000

INCIDENT_HOUR = 5.5
"""When most is wrong at once: the demand model's errors have risen, and credit's ages come as text."""

MARKETS = ("eu", "eu", "eu", "us", "eu", "us", "eu", "uk", "eu", "us")
MARKET_HOUR = 3.0
"""From when debts are higher in one small market alone, and the demand model gets a feature it did not have."""

TARGET = {"job": "stream-monitor", "instance": "127.0.0.1:9464"}
BROKEN_EVERY, LATE_EVERY, DUPLICATE_EVERY = 401, 301, 251
"""What every real bus carries and the demo's does not."""


@dataclass
class Telling:
    """The engine with its source and an endpoint that is scraped; `text` is what was scraped, as OpenMetrics.

    `step_seconds`: event time between two scrapes. `rate`: events of each model a second.
    """

    folder: Path
    step_seconds: int = 60
    rate: float = 2.0
    hours: float = HOURS
    text: list[str] = field(default_factory=list)
    durations: list[int] = field(default_factory=lambda: [0] * (len(CHECKPOINT_BUCKETS) + 1))
    spent: float = 0.0
    refused: int = 0

    def run(self) -> Path:
        """Tell it to its end; the file of samples."""
        config = story_config(self.folder / "story.duckdb")
        store = Store(config.state)
        source = MemorySource([Binding(p.stream, p.topic) for p in (demo.INFERENCE, demo.LABELS)])
        engine = Engine(config, store, baselines=baselines(config), expects_labels=True)
        publisher = Publisher(series=config.limits.series)
        server = Server(create_app(cast(View, None), publisher), host="127.0.0.1", port=0)
        server.start()
        try:
            source.start(engine.positions())
            for number, (events, labels) in enumerate(self._steps(), start=1):
                source.extend(demo.INFERENCE, events)
                source.extend(demo.LABELS, labels)
                at = START + number * self.step_seconds
                self._read(engine, source, config, at)
                publisher.publish(snapshot(engine, self._figures(config, at)))
                self._scrape(f"http://127.0.0.1:{server.port}/metrics", at)
        finally:
            server.stop()
            store.close()
        path = self.folder / "story.om"
        path.write_text("\n".join([*self.text, "# EOF", ""]))
        return path

    def _steps(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Inference events and labels of each step, in the order of their arrival."""
        due: list[tuple[int, int, bytes]] = []
        sent: list[bytes] = []
        step_us = self.step_seconds * MICROSECONDS
        until = START * MICROSECONDS + step_us
        for number, event in enumerate(told(self.rate)):
            while event.time_us >= until:
                labels = []
                while due and due[0][0] < until:
                    labels.append(heapq.heappop(due)[2])
                yield sent, labels
                sent, until = [], until + step_us
                if until > (START + self.hours * 3600) * MICROSECONDS:
                    return
            sent += list(wire(number, event.body))
            if event.label_us is not None:
                told_at = event.label | {"timestamp": event.label_us / MICROSECONDS}
                heapq.heappush(due, (event.label_us, number, line(told_at)))

    def _read(self, engine: Engine, source: MemorySource, config: Config, now: float) -> None:
        """Take all that came, then write a checkpoint."""
        decoder = make_decoder(config)
        while (poll := source.poll(2_000, 0.0)).batches:
            for batch in decode_poll(decoder, poll):
                engine.offer(batch)
            engine.note_poll(poll, now)
            self.refused += len(engine.step(now, seal_now=True).refused)
        began = time.perf_counter()
        engine.join(now)
        engine.checkpoint()
        took = time.perf_counter() - began
        self.durations[bisect_left(CHECKPOINT_BUCKETS, took)] += 1
        self.spent += took

    def _figures(self, config: Config, now: float) -> Service:
        return Service(
            ready=True,
            checkpoint_unix_seconds=now,
            memory_bytes=resident_bytes(),
            checkpoints=Distribution(tuple(self.durations), self.spent),
            dead_letters=self.refused,
            machine=machine.look(config.state),
        )

    def _scrape(self, url: str, at: int) -> None:
        """Fetch what a Prometheus would, and add what it adds."""
        began = time.perf_counter()
        with urllib.request.urlopen(url, timeout=30) as answer:
            body: str = answer.read().decode()
        took = time.perf_counter() - began
        samples = [line for line in body.splitlines() if line and not line.startswith("#")]
        own = ("up 1", f"scrape_duration_seconds {took}", f"scrape_samples_scraped {len(samples)}")
        self.text += [f"{with_target(line)} {at}" for line in (*samples, *own)]


def with_target(line: str) -> str:
    """A sample with the labels that a scrape adds."""
    added = ",".join(f'{name}="{value}"' for name, value in TARGET.items())
    name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()  # type: ignore[union-attr]
    return f"{name}{{{labels + ',' if labels else ''}{added}}} {value}"


def story_config(state: Path) -> Config:
    """What the demo monitors, with segments, objectives and the example's teams."""
    return parse(
        {
            "state": str(state),
            "models": {
                "credit": {
                    "task": "binary",
                    "positive_label": "deny",
                    "team": "risk",
                    "segments": ["market"],
                    "objectives": {"accuracy": ">= 0.7"},
                },
                "demand": {"task": "regression", "team": "supply", "objectives": {"mae": "<= 7"}},
            },
        },
        {},
    )


def baselines(config: Config) -> list[Baseline]:
    """Rows from before the story, with their truths, for each version."""
    rng = np.random.default_rng(demo.SEED + 1)
    rows = []
    for _ in range(BASELINE_ROWS):
        for version in ("7", "8"):
            body, truth = demo.credit(rng, 0.0, version)
            rows.append(line({"model": "credit", "version": version, **body, **truth}))
        body, truth = demo.demand(rng, 0.0)
        rows.append(line({"model": "demand", "version": "3", **body, **truth}))
    source = MemorySource([Binding(Stream.INFERENCE, "training data")])
    source.extend(PartitionId(Stream.INFERENCE, "training data", 0), rows)
    source.start({})
    return baselines_of_rows(list(source.poll(len(rows), 0.0).batches), config, source="training data")


def told(rate: float) -> Iterator[demo.Event]:
    """The demo's story at another rate, event by event, for ever."""
    rng = np.random.default_rng(demo.SEED)
    for number in itertools.count():
        at = number / rate
        hour, time_us = at / 3600, int((START + at) * MICROSECONDS)
        version = "8" if hour >= 7 else "7"
        for model, (body, truth) in (("credit", demo.credit(rng, hour, version)), ("demand", demo.demand(rng, hour))):
            head = {"inference_id": f"{model}-{number}", "model": model, "version": version if model == "credit" else "3",
                    "timestamp": time_us / MICROSECONDS}  # fmt: skip
            delay = rng.exponential(600) if model == "credit" else 900 + rng.exponential(60)
            comes = model == "demand" or rng.random() < 0.7
            label = {"inference_id": head["inference_id"], "model": model, **truth}
            yield demo.Event(time_us, head | body, label, time_us + int(delay * MICROSECONDS) if comes else None)


def wire(number: int, body: dict[str, Any]) -> Iterator[bytes]:
    """An event as it comes over the bus: now and then late, twice, or preceded by something broken."""
    hour = (body["timestamp"] - START) / 3600
    body = body | {"segment": {"market": MARKETS[number // 2 % len(MARKETS)]}, "features": dict(body["features"])}
    if body["segment"]["market"] == "uk" and body["features"].get("debt") is not None and hour >= MARKET_HOUR:
        body["features"]["debt"] += (
            5_500  # its standard deviation: a tenth of that in the whole model, too little to tell
        )
    if body["model"] == "demand" and hour >= MARKET_HOUR:
        body["features"]["promotion" + "x" * (5_000 if number % LATE_EVERY == 0 else 0)] = "none"
    if number % BROKEN_EVERY == BROKEN_EVERY - 1:
        yield b'{"inference_id": "cut o'
    if number % LATE_EVERY == LATE_EVERY - 1:
        body = body | {"timestamp": body["timestamp"] - 120}
    yield line(body)
    if number % DUPLICATE_EVERY == DUPLICATE_EVERY - 1:
        yield line(body)


def line(body: dict[str, Any]) -> bytes:
    """An event's bytes."""
    return json.dumps(body, separators=(",", ":")).encode()


@contextlib.contextmanager
def prometheus(samples: Path, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that holds the samples."""
    promtool, program = (found(name) for name in ("promtool", "prometheus"))
    data = folder / "data"
    subprocess.run([promtool, "tsdb", "create-blocks-from", "openmetrics", str(samples), str(data)], check=True,
                   capture_output=True)  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "prometheus.yml"
    config.write_text("{}\n")
    url = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [program, f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address=127.0.0.1:{port}",
             # The story is of another day, and told in steps longer than a scrape.
             "--storage.tsdb.retention.time=100y", "--query.lookback-delta=10m"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_until_ready(url, server)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def found(program: str) -> str:
    """The path of a program; FileNotFoundError where it is not installed."""
    path = shutil.which(program)
    if path is None:
        raise FileNotFoundError(f"{program} is not installed")
    return path


def wait_until_ready(url: str, server: subprocess.Popen[bytes], *, seconds: float = 60.0) -> None:
    """Return once it answers queries."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/-/ready", timeout=2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"Prometheus is not ready at {url}")
