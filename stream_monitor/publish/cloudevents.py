"""Incidents as CloudEvents 1.0: which changes of state there are to tell, under which id, and the bytes that tell it.

All of it depends on the incident's object alone (that of `incidents.jsonl`), so a crash, a resend or another run over
the same records gives one change of state the same id.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any

from stream_monitor.records import Json

CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"
TYPE_PREFIX = "stream_monitor.incident."


class News(StrEnum):
    """What happened to an incident; the end of the event's type."""

    OPENED = "opened"
    UPDATED = "updated"
    CLOSED = "closed"


def state_of(incident: Json) -> str:
    """What people act on, as text: kind, severity and subjects. Evidence that only grows stronger is no news."""
    subjects = sorted(subject["name"] for subject in incident["subjects"])
    return json.dumps([incident["kind"], incident["severity"], subjects])


def news_of(incident: Json, told: str | None) -> list[News]:
    """What is new since a state was told (None: nothing was).

    Changes that fall into one commit are told as its last state; but what opened and closed in one, as lost records
    do, is told as both: whoever waits for openings must not miss it.
    """
    found = [News.OPENED] if told is None else []
    if incident["closed_at"] is not None:
        return [*found, News.CLOSED]
    return found or ([] if told == state_of(incident) else [News.UPDATED])


def event_id(incident: Json, news: News) -> str:
    """One id for each change of state. An incident opens and closes once; in between only its state tells updates apart."""
    told = state_of(incident) if news is News.UPDATED else ""
    return hashlib.sha256(json.dumps([incident["id"], news, told]).encode()).hexdigest()[:32]


def event(incident: Json, news: News, *, source: str, number: int, at: str) -> bytes:
    """The event in structured mode, as ASCII: a name may hold what no UTF-8 can.

    `number` orders the events of one source, `at` dates an update; both are written once, so that a resend says the same.
    """
    times = {News.OPENED: incident["opened_at"], News.CLOSED: incident["closed_at"], News.UPDATED: at}
    body: dict[str, Any] = {
        "specversion": "1.0",
        "id": event_id(incident, news),
        "source": source,
        "type": TYPE_PREFIX + news,
        "subject": f"{incident['model']}/{incident['version']}",
        "time": times[news],
        "datacontenttype": "application/json",
        # Extensions the specification documents: texts that sort as the numbers do, and what keeps its order.
        "sequence": f"{number:012d}",
        "partitionkey": incident["model"],
        "data": dict(incident),
    }
    return json.dumps(body).encode()
