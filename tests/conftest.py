"""Real servers as fixtures; a test that asks for one which cannot run here is skipped, with the reason.

With the environment variable `CI` set it fails instead.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from servers import docker
from servers import kafka as kafka_server
from servers import prometheus as prometheus_server
from servers.kafka import Kafka
from servers.prometheus import Alertmanager, Prometheus, StartAlertmanager, StartPrometheus
from servers.webhook import Webhook

Server = TypeVar("Server", Alertmanager, Prometheus)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker for the whole session: use topics of your own. A test that ends it must start it again."""
    yield from _broker(tmp_path_factory.mktemp("kafka"), secure=False)


@pytest.fixture(scope="session")
def kafka_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that also listens with SASL_SSL and SSL."""
    yield from _broker(tmp_path_factory.mktemp("kafka_tls"), secure=True)


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A running receiver of webhooks."""
    receiver = Webhook()
    receiver.start()
    yield receiver
    receiver.stop()


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[StartAlertmanager]:
    """Starts Alertmanagers and ends them after the test."""
    folders = _folders(tmp_path, "alertmanager")
    with ExitStack() as stack:

        def start(*, webhook_url: str | None = None, config: Mapping[str, Any] | None = None) -> Alertmanager:
            return _run(stack, Alertmanager(next(folders), webhook_url=webhook_url, config=config))

        _skip(prometheus_server.unavailable())
        yield start


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[StartPrometheus]:
    """Starts Prometheus servers and ends them after the test."""
    folders = _folders(tmp_path, "prometheus")
    with ExitStack() as stack:

        def start(
            targets: Mapping[str, Sequence[str] | Mapping[str, Any]],
            *,
            rule_files: Sequence[Path] = (),
            alertmanager: Alertmanager | None = None,
        ) -> Prometheus:
            server = Prometheus(next(folders), targets, rule_files=rule_files, alertmanager=alertmanager)
            return _run(stack, server)

        _skip(prometheus_server.unavailable())
        yield start


def _broker(folder: Path, *, secure: bool) -> Iterator[Kafka]:
    missing = kafka_server.unavailable()
    if missing is not None and not secure and docker.unavailable() is None:
        container = docker.DockerKafka(folder / "broker")
        container.start()
        yield container
        container.remove()
        return
    _skip(missing)
    kafka_server.fetch()
    broker = Kafka(folder / "broker", secure=secure)
    broker.start()
    yield broker
    broker.resume()  # a test may have left it hanging
    broker.stop()


def _run(stack: ExitStack, server: Server) -> Server:
    server.start()
    stack.callback(server.stop)
    return server


def _folders(root: Path, name: str) -> Iterator[Path]:
    return (root / f"{name}{number}" for number in itertools.count())


def _skip(reason: str | None) -> None:
    """Skip where a server cannot run; on a build machine, which sets `CI`, that is a failure: nobody reads skips."""
    if reason is None:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
