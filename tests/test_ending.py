"""How the program hears that it is to end."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

from stream_monitor.ending import Ending


def test_a_signal_is_heard_whatever_it_interrupts() -> None:
    """Between any two lines of hearing and asking another one comes: a handler that waits for a lock would hang."""
    ending = Ending()
    ending.in_order = True
    interrupted = []

    def interrupt(frame: FrameType, event: str, argument: Any) -> Any:
        del argument
        ending._hear(signal.SIGTERM, frame)
        interrupted.append(event)
        return interrupt

    def be_told() -> None:
        sys.settrace(interrupt)
        ending.is_set()
        ending._hear(signal.SIGTERM, None)
        sys.settrace(None)

    told = threading.Thread(target=be_told, daemon=True)
    told.start()
    told.join(30)
    assert not told.is_alive()
    assert interrupted.count("line") >= 3
    assert ending.is_set()
