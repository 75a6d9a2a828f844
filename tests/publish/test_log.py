"""Logs are one line an event, whatever is in it, and can be read back."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from stream_monitor.publish.log import Style, configure, fields

log = logging.getLogger("stream_monitor.test")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    """Leave the root logger as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(style: Style, event: str, **values: object) -> list[str]:
    """What one event writes."""
    stream = io.StringIO()
    configure(style=style, stream=stream)
    log.warning("%s", event, extra=fields(**values))
    return stream.getvalue().splitlines()


def test_json_holds_the_fields_by_their_names() -> None:
    """Numbers stay numbers; the event and its level are there."""
    [line] = lines("json", "partition lost", topic="inference", number=3, lag=1.5, missing=None)
    body = json.loads(line)
    moment = body.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert body == {"level": "warning", "logger": "stream_monitor.test", "event": "partition lost",
                    "topic": "inference", "number": 3, "lag": 1.5, "missing": None}  # fmt: skip


def test_text_is_pairs() -> None:
    """key=value, in quotes where it is needed."""
    [line] = lines("text", "partition lost", topic="a b", number=3, said='"no"', empty="", none=None)
    assert line.endswith(r'warning partition lost topic="a b" number=3 said="\"no\"" empty="" none=-')


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("bad", ["two\nlines", "\x1b[31mred", "\r", "\u2028", "\ud800", "🦊" * 600])
def test_nothing_in_an_event_makes_a_second_line_or_moves_the_cursor(style: Style, bad: str) -> None:
    """Names come from other people's records: an event cannot be forged with one."""
    [line] = lines(style, bad, name=bad)
    assert line.isprintable()
    assert len(line) < 600 * 12 * 2


def test_nan_and_infinity_are_json() -> None:
    """A log shipper refuses NaN."""
    [line] = lines("json", "x", a=float("nan"), b=float("inf"))
    body = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert (body["a"], body["b"]) == (None, None)


@pytest.mark.parametrize("style", ["text", "json"])
def test_an_error_keeps_its_traceback(style: Style) -> None:
    """The one broad except logs where it broke."""
    stream = io.StringIO()
    configure(style=style, stream=stream)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("the loop ended")
    assert "ValueError: broken" in stream.getvalue()


def test_fields_cannot_overwrite_the_event() -> None:
    """A field called `level` does not make an error look harmless."""
    [line] = lines("json", "x", level="debug")
    assert json.loads(line)["level"] == "warning"


def test_configuring_twice_logs_once_and_libraries_only_warn() -> None:
    """A second call replaces the first; a client's INFO is not ours."""
    stream = io.StringIO()
    configure(stream=io.StringIO())
    configure(stream=stream)
    log.info("ours")
    logging.getLogger("kafka.conn").info("theirs")
    assert [line.split(" ", 2)[2] for line in stream.getvalue().splitlines()] == ["ours"]
