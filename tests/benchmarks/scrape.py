"""Seconds to take a snapshot of an engine with so many series, to render it, and to scrape it over HTTP.

python tests/benchmarks/scrape.py --series 10000
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

import events

from stream_monitor.app import decode_batch, make_decoder
from stream_monitor.config import Config
from stream_monitor.engine import Engine
from stream_monitor.exposition import Service, snapshot
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Server, View, create_app
from stream_monitor.store import Store
from stream_monitor.views import freeze


def filled(series: int) -> Engine:
    """An engine whose models, of 20 features each, give at least so many series."""
    config = Config.model_validate({"drift": {"learn_from": 200}, "windows": [60, 300]})
    engine = Engine(config, Store(None))
    decoder = make_decoder(config)
    models = max(1, series // 720)
    stream = events.Stream(models * 2_000, features=20, models=models, per_second=models * 10.0)
    for raw in events.polls(stream):
        engine.offer(decode_batch(decoder, raw))
        engine.step(0.0, seal_now=True)
    engine.checkpoint()
    return engine


def best(work: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """The quickest of some runs: wall seconds, CPU seconds."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=10_000)
    options = parser.parse_args()
    engine = filled(options.series)
    publisher = Publisher(series=engine.config.limits.series)
    shot = snapshot(engine, Service(ready=True))
    publisher.publish(shot)
    lines = sum(not line.startswith(b"#") for line in publisher.text.splitlines())
    print(f"{f'{lines:,} series, {len(publisher.text) / 1e6:.1f} MB':36} {'wall s':>8} {'CPU s':>8}")
    _row("snapshot of the engine", best(lambda: snapshot(engine, Service(ready=True))))
    _row("rendered", best(lambda: publisher.publish(shot)))
    _row("answers of the API frozen", best(lambda: freeze(engine, 0.0)))
    app = create_app(cast(View, _View()), publisher, host="127.0.0.1", token=None)
    server = Server(app, host="127.0.0.1", port=0)
    server.start()
    try:
        _row("scraped over HTTP", best(lambda: _scrape(server.port, "text/plain")))
        _row("scraped as OpenMetrics", best(lambda: _scrape(server.port, "application/openmetrics-text"), repeats=1))
    finally:
        server.stop()


class _View:
    """Nothing: only /metrics is asked."""

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *_: {}


def _scrape(port: int, accept: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def _row(name: str, took: tuple[float, float]) -> None:
    print(f"{name:36} {took[0]:8.3f} {took[1]:8.3f}", flush=True)


if __name__ == "__main__":
    main()
