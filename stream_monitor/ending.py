"""When a service ends: at SIGTERM or SIGINT, whether it runs or is still starting."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Protocol


class Stop(Protocol):
    """Whether it is time to end; a `threading.Event` is one too, where another thread says so."""

    def is_set(self) -> bool: ...


class Ending:
    """Hears the signals. Until `in_order` there is nothing to end: the program leaves at once, with exit code 0.

    From then on a signal sets it, and whoever runs sees to it.
    """

    def __init__(self) -> None:
        # Not an Event: a handler runs between any two instructions of the main thread, and where that one holds the
        # Event's lock, waiting for it or hearing an earlier signal, `set` would wait for ever.
        self._asked = False
        self.in_order = False

    def is_set(self) -> bool:
        """Whether a signal came."""
        return self._asked

    def listen(self) -> None:
        """Take the signals from now on; only the main thread can."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True
        if not self.in_order:
            raise SystemExit(0)
