"""The same broker from an image, where there is a Docker engine and no Java."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from servers.kafka import Kafka
from servers.process import ServerError, free_ports

IMAGE = "confluentinc/cp-kafka:7.9.0"


def unavailable() -> str | None:
    """Why no container can be started here; None if it can."""
    if shutil.which("docker") is None:
        return "there is no Docker"
    found = subprocess.run(["docker", "info"], capture_output=True, text=True)
    return None if found.returncode == 0 else "no Docker engine answers"


class DockerKafka(Kafka):
    """A broker in a container, with the operations the tests ask of one; no TLS."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (self._port,) = free_ports(1)
        self.bootstrap = f"127.0.0.1:{self._port}"
        self._container: Any = None

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers; raises ServerError."""
        from testcontainers.community.kafka import KafkaContainer

        if self._container is None:
            self._container = KafkaContainer(IMAGE).with_kraft().with_bind_ports(9093, self._port)
            self._container.start()
        else:
            self._container.get_wrapped_container().start()
        until = time.monotonic() + 60
        while not self._answers():
            if time.monotonic() > until:
                raise ServerError(f"{IMAGE} does not answer")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it in order; its records stay until the tests end."""
        if self._container is not None:
            self._container.get_wrapped_container().stop(timeout=30)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._container.get_wrapped_container().kill()

    def pause(self) -> None:
        """Let it hang."""
        self._container.get_wrapped_container().pause()

    def resume(self) -> None:
        """Let a hanging one go on."""
        if self._container is not None:
            wrapped = self._container.get_wrapped_container()
            wrapped.reload()
            if wrapped.status == "paused":
                wrapped.unpause()

    def remove(self) -> None:
        """Leave nothing behind."""
        if self._container is not None:
            self._container.stop()
