"""`stream-monitor run` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from servers.process import free_ports


class MonitorProcess:
    """A service on a configuration; can be ended in order or killed, and started again on the same state."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.state = folder / "monitor.duckdb"
        self.log = folder / "monitor.log"
        self._config = folder / "monitor.yaml"
        publish = {"http": f"127.0.0.1:{self.port}", **config.get("publish", {})}
        body = {"state": str(self.state), **config, "publish": publish}
        self._config.write_text(json.dumps(body), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; does not wait."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "stream_monitor.cli", "run", "--config", str(self._config)]
            # So that `_end` can have a process that hangs say where.
            environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """SIGKILL, as the kernel does to what takes too much memory."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; its exit code. AssertionError with what every thread does when it does not end."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        try:
            return self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGABRT)
            self._process.wait(timeout=60)
            raise AssertionError(f"does not end:\n{self.log.read_text()[-6000:]}") from None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> Any:
        """What the API answers below /api/v1/; None while nobody answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=5) as answer:
                return json.load(answer)
        except (urllib.error.URLError, OSError, ValueError):
            return None

    def metrics(self) -> str:
        """The text of /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            body: bytes = answer.read()
        return body.decode()

    def wait_until(self, holds: Callable[[Any], bool], *, path: str = "summary", seconds: float = 180.0) -> Any:
        """The answer of the API once it is as wanted; AssertionError with the log's end when it takes too long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.running, self.log.read_text()[-3000:]
            found = self.get(path)
            if found and holds(found):
                return found
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {found}\n{self.log.read_text()[-3000:]}")
