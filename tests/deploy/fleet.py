"""A few models through the real engine, on a clock moved by hand, and what it exposes of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import Service, snapshot
from stream_monitor.machine import Machine
from stream_monitor.publish.collector import Publisher
from stream_monitor.records import NO_TIME, Binding, Incident, PartitionId, RawBatch, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

EVENTS, LABELS = PartitionId(Stream.INFERENCE, "inference", 0), PartitionId(Stream.GROUND_TRUTH, "ground-truth", 0)

Body = Mapping[str, Any]


class Fleet:
    """Models with baselines of their own. `tell` feeds and commits; `publisher` holds what a scrape would read."""

    def __init__(self, folder: Path, config: Mapping[str, Any], baseline: Iterable[Body]) -> None:
        self._config = parse({"source": {"ground_truth": [LABELS.topic]}, **config}, {})
        self._source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, LABELS)])
        self._source.start({})
        self._decoder = make_decoder(self._config)
        self._store = Store(folder / "fleet.duckdb")
        learnt = baselines_of_rows([_rows(baseline)], self._config, source="training data")
        self.engine = Engine(self._config, self._store, baselines=learnt)
        self.publisher = Publisher(series=self._config.limits.series)

    def close(self) -> None:
        """Let go of the state file."""
        self._store.close()

    def tell(self, events: Iterable[Body], labels: Iterable[Body], now_seconds: float) -> list[Incident]:
        """Events and labels, a commit and its figures; the incidents that changed."""
        for partition, bodies in ((EVENTS, events), (LABELS, labels)):
            self._source.extend(partition, [json.dumps(body).encode() for body in bodies])
        poll = self._source.poll(100_000, 0.0)
        for batch in decode_poll(self._decoder, poll):
            self.engine.offer(batch)
        self.engine.note_poll(poll, now_seconds)
        self.engine.step(now_seconds, seal_now=True)
        self.engine.join(now_seconds)
        changed = self.engine.checkpoint()
        figures = Service(ready=True, checkpoint_unix_seconds=now_seconds, machine=Machine(10**11, 6 * 10**10, 10**9))
        self.publisher.publish(snapshot(self.engine, figures))
        return changed


class Scraped:
    """A port of loopback that answers scrapes with what a publisher holds."""

    def __init__(self, publisher: Publisher) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body, content_type = publisher.exposition(self.headers.get("Accept", ""))
                self.send_response(200)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it is called with
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _rows(bodies: Iterable[Body]) -> RawBatch:
    values = [json.dumps(body).encode() for body in bodies]
    return RawBatch(
        Binding(Stream.INFERENCE, "training data"),
        (PartitionId(Stream.INFERENCE, "training data", 0),),
        np.zeros(len(values), np.int32),
        np.arange(len(values)),
        pa.array(values, pa.binary()),
        np.full(len(values), NO_TIME, np.int64),
    )
