"""A receiver of webhooks that keeps what it was sent and answers as it is told."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Post:
    """One request as it came; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body read as JSON."""
        return json.loads(self.body)


class Webhook:
    """An HTTP server on a free port of loopback. `status` is what it answers with and may be changed at any time."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.status = 200
        self._posts: list[Post] = []
        self._arrived = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="webhook", daemon=True)
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' * (tls is not None)}://127.0.0.1:{self._server.server_port}/"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def posts(self) -> tuple[Post, ...]:
        """What came so far, in order, whatever was answered."""
        with self._arrived:
            return tuple(self._posts)

    def wait_for(self, wanted: int | Callable[[Post], bool], *, seconds: float = 90.0) -> tuple[Post, ...]:
        """Every post once there are `wanted` of them, or once one satisfies `wanted`; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        with self._arrived:
            while not self._has(wanted):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not within {seconds} s; {len(self._posts)} posts: {self._posts!r:.2000}")
                self._arrived.wait(left)
            return tuple(self._posts)

    def clear(self) -> None:
        """Forget what came."""
        with self._arrived:
            self._posts.clear()

    def _has(self, wanted: int | Callable[[Post], bool]) -> bool:
        if isinstance(wanted, int):
            return len(self._posts) >= wanted
        return any(wanted(post) for post in self._posts)

    def _receive(self, post: Post) -> int:
        with self._arrived:
            self._posts.append(post)
            self._arrived.notify_all()
            return self.status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receive = self._receive

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.send_response(receive(Post(self.path, headers, body)))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it is called with
                del format, args

        return Handler
