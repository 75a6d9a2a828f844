"""Structured logs on stderr: one event for each change of state, never one for each record.

A call says what happened and with which fields: `log.warning("partition lost", extra=fields(topic=t, number=n))`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

Style = Literal["text", "json"]

FIELDS = "stream_monitor_fields"
"""Under which attribute a log record carries its fields: none of logging's own."""

VALUE_CHARACTERS = 500
"""A field is a name or a number; what is longer is somebody's payload and has no place in a log."""


def fields(**values: object) -> dict[str, Mapping[str, object]]:
    """Fields of one event, as `extra` of a logging call."""
    return {FIELDS: values}


def configure(*, style: Style = "text", level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send our logs to stderr in this style, and warnings of the libraries too. Calling it again replaces it."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, (JsonFormatter, TextFormatter))]:
        root.removeHandler(old)
    root.addHandler(handler)
    # The libraries below log reconnects and requests at INFO: of those, only what is wrong.
    root.setLevel(logging.WARNING)
    logging.getLogger("stream_monitor").setLevel(level)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, the fields, and the traceback under `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        body = {**_fields(record), **_standard(record)}
        if record.exc_info:
            body["exception"] = self.formatException(record.exc_info)
        return json.dumps(body, ensure_ascii=True, default=str)


class TextFormatter(logging.Formatter):
    """`2026-11-21T10:00:01.250Z warning partition lost topic=inference number=3`; a traceback follows."""

    def format(self, record: logging.LogRecord) -> str:
        standard = _standard(record)
        pairs = [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        line = " ".join([standard["time"], standard["level"], printable(standard["event"]), *pairs])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _standard(record: logging.LogRecord) -> dict[str, str]:
    moment = datetime.fromtimestamp(record.created, tz=UTC).isoformat(timespec="milliseconds")
    return {
        "time": moment.replace("+00:00", "Z"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
    }


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields, long texts cut; JSON's own kinds stay, all else becomes text."""
    values: Mapping[str, object] = getattr(record, FIELDS, {})
    return {name: _short(value) for name, value in values.items()}


def _short(value: object) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    text = str(value)
    return text if len(text) <= VALUE_CHARACTERS else f"{text[:VALUE_CHARACTERS]}…"


def printable(text: str) -> str:
    """One line, with nothing in it that moves a terminal's cursor or ends the line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _quoted(value: object) -> str:
    """A value that can be told from the next pair: in quotes where it holds a space, a quote or nothing."""
    if value is None:
        return "-"
    text = printable(str(value))
    if text and not any(c in ' "=\\' for c in text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
