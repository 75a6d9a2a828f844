"""An engine that is fed by hand: one poll through every stage, with time advanced as far as the records allow."""

from __future__ import annotations

from stream_monitor.app import decode_poll
from stream_monitor.decode import Decoder
from stream_monitor.engine import Engine
from stream_monitor.records import Incident
from stream_monitor.source.memory import MemorySource

MOST_RECORDS = 1_000_000


def read(engine: Engine, source: MemorySource, decoder: Decoder, *, seal: bool = True) -> list[Incident]:
    """Read what the source has and commit; the incidents that changed. `seal`: time passes and labels are joined, too."""
    poll = source.poll(MOST_RECORDS, 0.0)
    for batch in decode_poll(decoder, poll):
        engine.offer(batch)
    engine.note_poll(poll, 0.0)
    for now in (0.0, 1e6) if seal else (0.0,):  # the second step finds every partition idle: nothing holds time back
        engine.step(now, seal_now=seal)
        if seal:
            engine.join(now)
    return engine.checkpoint()
