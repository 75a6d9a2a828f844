"""One sentence on the terminal when an incident opens, grows worse or closes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from rich.console import Console
from rich.text import Text

from stream_monitor.publish.log import printable
from stream_monitor.records import MICROSECONDS, Incident, LineKey, Severity


class Change(StrEnum):
    """What happened to an incident since people were last told."""

    OPENED = "opened"
    WORSENED = "worsened"
    CLOSED = "closed"


_COLOURS = {Severity.CRITICAL: "bold red", Severity.WARNING: "yellow", Severity.INFO: "blue"}
_RANK = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)


class Told:
    """Which incidents people know of, so that an incident that only goes on says nothing."""

    def __init__(self, known: Iterable[Incident] = ()) -> None:
        self._known: dict[str, Severity] = {i.id: i.severity for i in known if i.closed_us is None}

    def change(self, incident: Incident) -> Change | None:
        """What is new, None where nothing is. Remembers it.

        An incident that opened and closed between two checkpoints is told once, as closed.
        """
        before = self._known.get(incident.id)
        if incident.closed_us is not None:
            self._known.pop(incident.id, None)
            return Change.CLOSED
        self._known[incident.id] = incident.severity
        if before is None:
            return Change.OPENED
        return Change.WORSENED if _RANK.index(incident.severity) > _RANK.index(before) else None


def sentence(incident: Incident, change: Change) -> str:
    """When, how bad, opened or closed, which line, what kind since when; then the summary."""
    at = _time_of(incident, change)
    kind = incident.kind.replace("_", " ")
    head = (
        f"{_clock(at)} {incident.severity} {change}: {_line(incident.line)}, {kind} since {_clock(incident.onset_us)}."
    )
    return printable(f"{head} {incident.summary}")


def _time_of(incident: Incident, change: Change) -> int:
    if change is Change.WORSENED and incident.worsened_us is not None:
        return incident.worsened_us
    return incident.opened_us if incident.closed_us is None else incident.closed_us


class Terminal:
    """Writes sentences to a stream: in colour on a terminal, plain anywhere else."""

    def __init__(self, stream: TextIO | None = None, *, known: Iterable[Incident] = ()) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._console = Console(file=self._stream, highlight=False, soft_wrap=True) if self._stream.isatty() else None
        self._told = Told(known)

    def tell(self, incidents: Iterable[Incident]) -> None:
        """A line for each incident that opened, worsened or closed."""
        for incident in incidents:
            change = self._told.change(incident)
            if change is not None:
                self._write(incident, change)

    def _write(self, incident: Incident, change: Change) -> None:
        words = sentence(incident, change)
        if self._console is None:
            self._stream.write(words + "\n")
            self._stream.flush()
            return
        # A Text, not a string: brackets in a name are no markup.
        self._console.print(Text(words, style="green" if change is Change.CLOSED else _COLOURS[incident.severity]))


def _line(line: LineKey) -> str:
    parts = ", ".join(f"{name}={value}" for name, value in line.segment)
    return f"{line.model} {line.version}" + (f" [{parts}]" if parts else "")


def _clock(time_us: int) -> str:
    """Day and minute: an incident may be told days after it began, as in a replay."""
    return f"{datetime.fromtimestamp(time_us // MICROSECONDS, tz=UTC):%Y-%m-%d %H:%M}"
