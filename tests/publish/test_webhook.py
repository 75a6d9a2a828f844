"""Webhooks: signatures others verify, what each answer means, and peers that misbehave in every way."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest
from servers.process import free_ports
from servers.webhook import Post, Webhook

from stream_monitor.config import WebhookConfig, parse
from stream_monitor.publish.delivery import LONGEST_RETRY_AFTER_SECONDS, Answer, Delivery, Fate
from stream_monitor.publish.webhook import WebhookChannel, host_of, judge, retry_after_seconds, signature, unreachable

NOW = 1_795_255_200.0
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
EVENT = Delivery(7, "webhook:x", "0123456789abcdef", "credit", 0, b'{"specversion": "1.0"}')


def hook(url: str, **more: object) -> WebhookConfig:
    """A webhook as a configuration file would have it."""
    return parse({"publish": {"webhooks": [{"url": url, **more}]}}, {}).publish.webhooks[0]


def is_genuine(post: Post, secret: str) -> bool:
    """The verification of Standard Webhooks, written from its text and not from our code."""
    key = base64.b64decode(secret.split("_", 1)[1])
    content = f"{post.headers['webhook-id']}.{post.headers['webhook-timestamp']}.{post.body.decode()}"
    expected = base64.b64encode(hmac.digest(key, content.encode(), hashlib.sha256)).decode()
    versions = [part.split(",", 1) for part in post.headers["webhook-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(given, expected) for version, given in versions)


def test_signature_is_the_standards() -> None:
    """The example of the specification's reference libraries."""
    found = signature(
        base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"),
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        timestamp=1614265330,
        body=b'{"test": 2432232314}',
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_delivery_is_posted_whole_and_signed(webhook: Webhook) -> None:
    """The receiver finds the id, the time of the attempt and the bytes, and can tell a forgery."""
    channel = WebhookChannel(hook(webhook.url + "in?token=t", secret=SECRET), wall=lambda: NOW)
    assert channel.deliver(EVENT) == Answer(Fate.DELIVERED)
    (post,) = webhook.posts
    assert (post.path, post.body) == ("/in?token=t", EVENT.body)
    assert post.headers["content-type"].startswith("application/cloudevents+json")
    assert post.headers["webhook-id"] == EVENT.id
    assert post.headers["webhook-timestamp"] == str(int(NOW))
    assert is_genuine(post, SECRET)
    assert not is_genuine(Post(post.path, post.headers, post.body + b" "), SECRET)
    assert not is_genuine(post, "whsec_" + base64.b64encode(b"other").decode())


def test_without_a_secret_nothing_is_signed(webhook: Webhook) -> None:
    """And the id is there all the same."""
    assert WebhookChannel(hook(webhook.url)).deliver(EVENT).fate is Fate.DELIVERED
    (post,) = webhook.posts
    assert "webhook-signature" not in post.headers
    assert post.headers["webhook-id"] == EVENT.id


@pytest.mark.parametrize(
    ("status", "retry_after", "answer"),
    [
        (200, None, Answer(Fate.DELIVERED)),
        (202, "60", Answer(Fate.DELIVERED)),
        (204, None, Answer(Fate.DELIVERED)),
        (301, None, Answer(Fate.REFUSED, "status 301")),
        (307, None, Answer(Fate.REFUSED, "status 307")),
        (400, None, Answer(Fate.REFUSED, "status 400")),
        (401, "60", Answer(Fate.REFUSED, "status 401")),
        (404, None, Answer(Fate.REFUSED, "status 404")),
        (408, None, Answer(Fate.FAILED, "status 408")),
        (425, None, Answer(Fate.FAILED, "status 425")),
        (429, None, Answer(Fate.FAILED, "status 429", is_of_peer=True)),
        (429, "60", Answer(Fate.FAILED, "status 429", 60.0, is_of_peer=True)),
        (500, None, Answer(Fate.FAILED, "status 500")),
        (503, "5", Answer(Fate.FAILED, "status 503", 5.0, is_of_peer=True)),
    ],
)
def test_what_an_answer_means(status: int, retry_after: str | None, answer: Answer) -> None:
    """Accepted, again later, or never."""
    assert judge(status, retry_after, NOW) == answer


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0.0),
        ("120", 120.0),
        ("0", 0.0),
        (format_datetime(datetime.fromtimestamp(NOW + 90, tz=UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, tz=UTC), usegmt=True), 0.0),
        ("Fri, 01 Jan 9999 00:00:00 GMT", LONGEST_RETRY_AFTER_SECONDS),
        ("9" * 400, LONGEST_RETRY_AFTER_SECONDS),
        ("-5", 0.0),
        ("soon", 0.0),
        ("²", 0.0),
        ("", 0.0),
    ],
)
def test_retry_after(text: str | None, seconds: float) -> None:
    """Seconds or a date; nonsense is no reason to wait, and nobody may ask for more than an hour."""
    assert retry_after_seconds(text, NOW) == seconds


def test_redirects_are_not_followed(webhook: Webhook) -> None:
    """Whoever answers for the address does not decide where incidents go."""
    webhook.status = 307
    assert WebhookChannel(hook(webhook.url)).deliver(EVENT) == Answer(Fate.REFUSED, "status 307")
    assert len(webhook.posts) == 1


def test_nobody_there() -> None:
    """A closed port and a name nobody has are failures that may pass."""
    (port,) = free_ports(1)
    for url in (f"http://127.0.0.1:{port}/secret-path", "http://no-such-host.invalid/secret-path"):
        answer = WebhookChannel(hook(url)).deliver(EVENT)
        assert (answer.fate, answer.is_of_peer) == (Fate.FAILED, True)
        assert "secret-path" not in answer.reason
        reason = unreachable(hook(url))
        assert reason is not None
        assert "secret-path" not in reason


class Raw:
    """A server of one connection that says these bytes, then a byte every so often, and never ends."""

    def __init__(self, greeting: bytes, *, drip: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http{'s' * (tls is not None)}://127.0.0.1:{self._socket.getsockname()[1]}/"
        self._greeting, self._drip, self._tls = greeting, drip, tls
        self.heard = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        peer, _ = self._socket.accept()
        if self._tls is not None:
            peer = self._tls.wrap_socket(peer, server_side=True)
        with peer:
            peer.recv(65_536)
            self.heard.set()
            try:
                peer.sendall(self._greeting)
                while not self._done.wait(0.05):
                    peer.sendall(self._drip)
            except OSError:
                return

    def stop(self) -> None:
        self._done.set()
        self._thread.join(10)
        self._socket.close()


@pytest.mark.parametrize(
    ("greeting", "drip"),
    [(b"", b""), (b"HTTP/1.1 200", b""), (b"HTTP/1.1 200 OK\r\nX: ", b"x"), (b"", b"x"), (b"SSH-2.0-x\r\n", b"")],
)
def test_a_peer_that_hangs_or_talks_nonsense_ends_with_the_time_limit(greeting: bytes, drip: bytes) -> None:
    """Silence, half an answer, a byte now and then, another protocol: a failure that may pass."""
    server = Raw(greeting, drip=drip)
    began = time.monotonic()
    answer = WebhookChannel(hook(server.url, timeout="1s")).deliver(EVENT)
    assert (answer.fate, answer.is_of_peer) == (Fate.FAILED, True)
    assert time.monotonic() - began < 30
    server.stop()


def test_closing_lets_go_of_an_attempt_under_way() -> None:
    """The end of the service does not wait for a peer's time limit."""
    server = Raw(b"")
    channel = WebhookChannel(hook(server.url, timeout="5m"))
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(channel.deliver(EVENT)))
    thread.start()
    assert server.heard.wait(30)
    channel.close()
    channel.close()
    thread.join(30)
    assert [answer.fate for answer in answers] == [Fate.FAILED]
    assert channel.deliver(EVENT).fate is Fate.FAILED
    server.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What a server of this machine needs for TLS, and the certificate nobody knows yet."""
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=receiver",
                    "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)],
                   check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made


@pytest.fixture
def tls(certificate: tuple[ssl.SSLContext, Path]) -> Iterator[tuple[str, Path]]:
    """(address, certificate) of a receiver."""
    context, made = certificate
    receiver = Webhook(tls=context)
    receiver.start()
    yield receiver.url, made
    receiver.stop()


@pytest.mark.parametrize(("greeting", "drip"), [(b"", b""), (b"HTTP/1.1 200 OK\r\nX: ", b"x")])
def test_time_limits_hold_with_tls_too(certificate: tuple[ssl.SSLContext, Path], greeting: bytes, drip: bytes) -> None:
    """Nothing but an answer comes of it, whatever the thread that reads is taken away."""
    context, made = certificate
    server = Raw(greeting, drip=drip, tls=context)
    answer = WebhookChannel(hook(server.url, ca_file=str(made), timeout="1s")).deliver(EVENT)
    assert (answer.fate, answer.is_of_peer) == (Fate.FAILED, True)
    server.stop()


def test_certificates_are_verified(tls: tuple[str, Path]) -> None:
    """An unknown one is a failure, a named one is trusted, and one for another name is not."""
    url, certificate = tls
    answer = WebhookChannel(hook(url)).deliver(EVENT)
    assert answer.fate is Fate.FAILED
    assert "certificate" in answer.reason.lower()
    assert "certificate" in (unreachable(hook(url)) or "").lower()
    trusting = hook(url, ca_file=str(certificate))
    assert WebhookChannel(trusting).deliver(EVENT).fate is Fate.DELIVERED
    assert unreachable(trusting) is None
    other = hook(url.replace("127.0.0.1", "localhost"), ca_file=str(certificate))
    assert WebhookChannel(other).deliver(EVENT).fate is Fate.FAILED


def test_what_is_printed_of_an_address_holds_no_secret(webhook: Webhook, caplog: pytest.LogCaptureFixture) -> None:
    """Its host alone."""
    assert host_of("https://hooks.example.org:8443/T0/hunter2?k=hunter2") == "https://hooks.example.org:8443"
    with caplog.at_level(logging.DEBUG):
        WebhookChannel(hook(webhook.url + "hunter2", secret="hunter2")).deliver(EVENT)
    assert "hunter2" not in json.dumps([record.getMessage() for record in caplog.records])
