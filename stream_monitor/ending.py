"""When a service ends: at SIGTERM or SIGINT, whether it runs or is still starting."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Ending:
    """Hears the signals. Until `in_order` there is nothing to end: the program leaves at once, with exit code 0.

    From then on a signal sets `asked`, and whoever runs sees to it.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.in_order = False

    def listen(self) -> None:
        """Take the signals from now on; only the main thread can."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.asked.set()
        if not self.in_order:
            raise SystemExit(0)
