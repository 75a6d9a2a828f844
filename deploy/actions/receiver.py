"""What every receiver of Stream Monitor's events does first: verify the signature, and take each event once.

Plain Python, for the examples beside it and as a beginning for your own. The secret is taken from the environment
variable STREAM_MONITOR_WEBHOOK_SECRET; without one nothing is accepted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "STREAM_MONITOR_WEBHOOK_SECRET"
TOLERANCE_SECONDS = 300  # as Standard Webhooks advises: what is older was recorded and played again
MOST_BYTES = 5_000_000
REMEMBERED = 10_000  # ids; deliveries are repeated within minutes, not after ten thousand others

Event = dict[str, Any]


def key_of(secret: str) -> bytes:
    """After `whsec_` base64, else the text itself, as the service takes it."""
    return base64.b64decode(secret[6:], validate=True) if secret.startswith("whsec_") else secret.encode()


def refusal(key: bytes, headers: Mapping[str, str], body: bytes, now: float) -> str | None:
    """Why a request is not from the service; None where it is. `headers` by their names in lower case."""
    try:
        identity, stamp = headers["webhook-id"], headers["webhook-timestamp"]
        given = [base64.b64decode(part[3:]) for part in headers["webhook-signature"].split() if part.startswith("v1,")]
        age = abs(now - int(stamp))
    except (KeyError, ValueError, binascii.Error):
        return "not signed"
    if age > TOLERANCE_SECONDS:
        return "too old"
    expected = hmac.digest(key, f"{identity}.{stamp}.".encode() + body, hashlib.sha256)
    return None if any(hmac.compare_digest(expected, one) for one in given) else "wrong signature"


class Receiver(ThreadingHTTPServer):
    """Hands each genuine event to `act` once. An `act` that raises is asked again: the service repeats the event."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], key: bytes, act: Callable[[Event], None]) -> None:
        super().__init__(address, _Handler)
        self._key = key
        self._act = act
        self._seen: OrderedDict[str, None] = OrderedDict()

    def take(self, headers: Mapping[str, str], body: bytes) -> int:
        """The status to answer with."""
        problem = refusal(self._key, headers, body, time.time())
        if problem is not None:
            say(f"refused: {problem}")
            return 401
        identity = headers["webhook-id"]
        if identity in self._seen:
            return 200
        try:
            self._act(json.loads(body))
        except Exception as error:  # whatever it was, the service will ask again
            say(f"event {identity} failed: {type(error).__name__}: {error}")
            return 503
        self._seen[identity] = None
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return 200


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    timeout = 30

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            self.send_error(413)
            return
        status = self.server.take(
            {name.lower(): text for name, text in self.headers.items()}, self.rfile.read(int(length))
        )
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it is called with
        """Requests are not logged; what is done about them is."""


def serve(port: int, host: str, act: Callable[[Event], None]) -> None:
    """Listen until interrupted; says where."""
    secret = os.environ.get(SECRET, "")
    if not secret:
        sys.exit(f"set {SECRET} to the secret of this webhook: without it anybody could start what this starts")
    server = Receiver((host, port), key_of(secret), act)
    say(f"listening on {host}:{server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def say(words: str) -> None:
    """One line on stdout, at once."""
    print(words.encode("unicode_escape").decode(), flush=True)
