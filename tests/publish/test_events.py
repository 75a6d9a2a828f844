"""What the terminal says of incidents: once each, in one line."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from stream_monitor.publish.events import Change, Terminal, Told, sentence
from stream_monitor.records import Incident, IncidentKind, LineKey, Severity

ONSET = int(datetime(2026, 11, 21, 8, 40, tzinfo=UTC).timestamp()) * 1_000_000
MINUTE = 60_000_000


def incident(**changes: Any) -> Incident:
    """An open incident of credit 7."""
    found = Incident(
        id="inc-1",
        line=LineKey("credit", "7", (("market", "eu"),)),
        kind=IncidentKind.DATA_DRIFT,
        severity=Severity.WARNING,
        onset_us=ONSET,
        opened_us=ONSET + 15 * MINUTE,
        closed_us=None,
        subjects=(),
        baseline_id="b-1",
        summary="Incomes moved: median 51 200 to 38 400.",
    )
    return replace(found, **changes)


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def told(*incidents: Incident, stream: io.StringIO | None = None) -> list[str]:
    """What a terminal shows of these, one after the other."""
    written = io.StringIO() if stream is None else stream
    Terminal(written).tell(incidents)
    return written.getvalue().splitlines()


def test_sentence_says_when_who_and_what() -> None:
    """Severity first, then the line and the kind, since when, and the summary."""
    assert sentence(incident(), Change.OPENED) == (
        "2026-11-21 08:55 warning opened: credit 7 [market=eu], data drift since 2026-11-21 08:40. "
        "Incomes moved: median 51 200 to 38 400."
    )


def test_closing_is_told_at_its_own_time() -> None:
    """The clock in front is that of the change."""
    assert sentence(incident(closed_us=ONSET + 60 * MINUTE), Change.CLOSED).startswith(
        "2026-11-21 09:40 warning closed:"
    )


def test_worsening_is_told_at_its_own_time() -> None:
    """Not when the incident opened, where it is known when it rose."""
    worse = incident(severity=Severity.CRITICAL, worsened_us=ONSET + 45 * MINUTE)
    assert told(incident(), worse)[1].startswith("2026-11-21 09:25 critical worsened:")


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        (None, {}, Change.OPENED),
        (None, {"closed_us": ONSET}, Change.CLOSED),
        ({}, {"summary": "more subjects"}, None),
        ({}, {"severity": Severity.CRITICAL}, Change.WORSENED),
        ({}, {"severity": Severity.INFO}, None),
        ({}, {"closed_us": ONSET}, Change.CLOSED),
        ({"closed_us": ONSET}, {}, Change.OPENED),
    ],
)
def test_only_news_is_told(before: dict[str, Any] | None, after: dict[str, Any], change: Change | None) -> None:
    """Opened, worse, closed; an incident that goes on is no news."""
    known = Told()
    if before is not None:
        known.change(incident(**before))
    assert known.change(incident(**after)) is change


def test_after_a_restart_open_incidents_are_known() -> None:
    """They are not opened a second time."""
    stream = io.StringIO()
    Terminal(stream, known=[incident()]).tell([incident(summary="still there")])
    assert stream.getvalue() == ""


def test_plain_where_it_is_no_terminal_and_coloured_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file gets no escape sequences; a terminal gets them, and brackets are shown as written."""
    assert told(incident()) == [sentence(incident(), Change.OPENED)]
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    [line] = told(incident(), stream=Tty())
    assert "\x1b[" in line
    assert "[market=eu]" in line


@pytest.mark.parametrize("bad", ["two\nlines", "\x1b[2J", "[red]", "\ud800", "\r"])
def test_names_cannot_write_to_the_terminal(bad: str) -> None:
    """A model's name is shown with escapes and stays on its line."""
    [line] = told(incident(line=LineKey(bad, "1")))
    assert line.isprintable()
