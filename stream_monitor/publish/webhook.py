"""Posting an event to a webhook, signed as Standard Webhooks 1.0 says.

The headers `webhook-id`, `webhook-timestamp` and `webhook-signature` carry the event's id, the Unix time of the attempt
and `v1,` with the base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from urllib.parse import urlsplit

from stream_monitor.config import WebhookConfig
from stream_monitor.publish.cloudevents import CONTENT_TYPE
from stream_monitor.publish.delivery import LONGEST_RETRY_AFTER_SECONDS, Answer, Delivery, Fate

RETRIED = frozenset({408, 425, 429})
"""Statuses below 500 that ask for another attempt; the others say that this event will never be accepted."""


def signature(key: bytes, *, event_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`."""
    signed = b"%s.%d.%s" % (event_id.encode(), timestamp, body)
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def judge(status: int, retry_after: str | None, now: float) -> Answer:
    """What an HTTP status means for the event: 2xx accepts it, 5xx and some others ask for patience, the rest refuse it.

    A redirect refuses too: an address that moved is for a person to correct, not for a peer to decide.
    """
    if 200 <= status < 300:
        return Answer(Fate.DELIVERED)
    if status >= 500 or status in RETRIED:
        wait = retry_after_seconds(retry_after, now)
        # Who says when to come back says it for every event.
        return Answer(Fate.FAILED, f"status {status}", wait, is_of_peer=status == 429 or wait > 0)
    return Answer(Fate.REFUSED, f"status {status}")


def retry_after_seconds(text: str | None, now: float) -> float:
    """The header Retry-After, seconds or a date, bounded; 0 where it is absent or unreadable. `now` is Unix time."""
    if text is None:
        return 0.0
    if text.strip().isdecimal() and text.isascii():
        return min(float(text), LONGEST_RETRY_AFTER_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return min(max(0.0, (aware - datetime.fromtimestamp(now, tz=UTC)).total_seconds()), LONGEST_RETRY_AFTER_SECONDS)


class WebhookChannel:
    """One address. A connection for each attempt: incidents are rare, and an idle one would be dead when it is needed."""

    def __init__(self, config: WebhookConfig, *, wall: Callable[[], float] = time.time) -> None:
        self._config = config
        self._wall = wall
        self._connection: http.client.HTTPConnection | None = None
        self._lock = threading.Lock()
        self._closed = self._aborted = False
        self.name = host_of(config.url)

    def deliver(self, delivery: Delivery) -> Answer:
        now = self._wall()
        try:
            with self._connected() as connection:
                connection.request("POST", _target(self._config.url), delivery.body, self._headers(delivery, int(now)))
                answer = connection.getresponse()
                if self._aborted:  # what came of it until then may look like an answer
                    raise TimeoutError(f"no answer within {self._config.timeout} s")
                return judge(answer.status, answer.getheader("Retry-After"), now)
        except (OSError, http.client.HTTPException) as error:
            return Answer(Fate.FAILED, f"{type(error).__name__}: {error}", is_of_peer=True)

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._abort()

    def _headers(self, delivery: Delivery, timestamp: int) -> Mapping[str, str]:
        headers = {
            "Content-Type": CONTENT_TYPE,
            "User-Agent": f"stream-monitor/{version('stream-monitor')}",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
        }
        key = self._config.key
        if key is not None:
            signed = signature(key, event_id=delivery.id, timestamp=timestamp, body=delivery.body)
            headers["webhook-signature"] = signed
        return headers

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        """An open connection that ends with the time limit: the socket's own begins anew with every byte that trickles in."""
        connection = connect(self._config)
        timer = threading.Timer(self._config.timeout, self._abort)
        timer.daemon = True
        try:
            connection.connect()
            with self._lock:
                if self._closed:
                    raise ConnectionAbortedError("the service ends")
                self._connection, self._aborted = connection, False
            timer.start()
            yield connection
        finally:
            timer.cancel()
            with self._lock:
                self._connection = None
            connection.close()

    def _abort(self) -> None:
        with self._lock:
            self._aborted = True
            held = None if self._connection is None else self._connection.sock
        if held is not None:
            with contextlib.suppress(OSError):
                # The plain one: that of TLS takes the session away from the thread that reads.
                socket.socket.shutdown(held, socket.SHUT_RDWR)


def connect(config: WebhookConfig) -> http.client.HTTPConnection:
    """A connection to the address, not yet open; its certificate will be verified."""
    found = urlsplit(config.url)
    host = found.hostname or ""
    if found.scheme == "http":
        return http.client.HTTPConnection(host, found.port, timeout=config.timeout)
    trusted = ssl.create_default_context(cafile=None if config.ca_file is None else str(config.ca_file))
    return http.client.HTTPSConnection(host, found.port, timeout=config.timeout, context=trusted)


def unreachable(config: WebhookConfig) -> str | None:
    """Why nobody can be talked to at the address; None where a connection, with TLS a verified one, can be made."""
    try:
        with contextlib.closing(connect(config)) as connection:
            connection.connect()
    except OSError as error:
        return f"the webhook at {host_of(config.url)} cannot be reached: {error}"
    return None


def host_of(url: str) -> str:
    """What may be printed of an address: many hold a token in their path."""
    found = urlsplit(url)
    return f"{found.scheme}://{found.netloc}"


def _target(url: str) -> str:
    found = urlsplit(url)
    return (found.path or "/") + (f"?{found.query}" if found.query else "")
