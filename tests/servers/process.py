"""A server as a child process: started, found ready, ended, and nothing of it left behind."""

from __future__ import annotations

import atexit
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path


class ServerError(RuntimeError):
    """A server did not start; the message holds the end of its log."""


def free_ports(count: int) -> list[int]:
    """Ports of loopback nobody listens on at the moment, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Process:
    """One child with its output in a log file; ended with the interpreter at the latest."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        atexit.register(self.kill)

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Return once `ready()`; raises ServerError where it never is, and ends the child."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ServerError(f"{self._child.args!r} is not ready:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.05)

    def stop(self, *, seconds: float = 15.0) -> None:
        """End it in order, by force after `seconds`."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """End it at once; may be called on one that has ended."""
        self.signal(signal.SIGKILL)
        self._child.wait()
        atexit.unregister(self.kill)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it still runs."""
        if self._child.poll() is None:
            self._child.send_signal(number)
