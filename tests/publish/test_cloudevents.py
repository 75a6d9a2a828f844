"""Incidents as CloudEvents: what is news, one id for each change of state, and an envelope others can read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stream_monitor.decode import Decoder
from stream_monitor.publish.cloudevents import News, event, event_id, news_of, state_of
from stream_monitor.records import NO_TIME, Binding, PartitionId, RawBatch, Stream


def incident(*subjects: str, closed: str | None = None, **changes: Any) -> dict[str, Any]:
    """An incident's object as `incidents.jsonl` has it, as far as it matters here."""
    body = {
        "id": "inc-1",
        "model": "credit",
        "version": "7",
        "kind": "data_drift",
        "severity": "warning",
        "opened_at": "2026-11-21T08:55:00.000Z",
        "closed_at": closed,
        "subjects": [{"name": name, "value": 0.3} for name in subjects or ("income",)],
        "summary": "Incomes moved.",
    }
    return {**body, **changes}


CLOSED = "2026-11-21T09:40:00.000Z"


@pytest.mark.parametrize(
    ("now", "told", "news"),
    [
        (incident(), None, ["opened"]),
        (incident(), incident(), []),
        (incident(summary="stronger"), incident(), []),
        (incident("income", "age"), incident(), ["updated"]),
        (incident(severity="critical"), incident(), ["updated"]),
        (incident(kind="broken_input"), incident(kind="data_quality"), ["updated"]),
        (incident("age", "income"), incident("income", "age"), []),
        (incident(closed=CLOSED), incident(), ["closed"]),
        (incident(severity="critical", closed=CLOSED), incident(), ["closed"]),
        (incident(closed=CLOSED), None, ["opened", "closed"]),
    ],
)
def test_what_is_news(now: dict[str, Any], told: dict[str, Any] | None, news: list[str]) -> None:
    """Opened, another state, closed; the order of subjects and stronger evidence are none."""
    assert news_of(now, None if told is None else state_of(told)) == news


def test_one_id_for_each_change() -> None:
    """The same whenever it is told, with whatever evidence; another for every other change."""
    states = [incident(), incident("income", "age"), incident(severity="critical"), incident(id="inc-2")]
    ids = {event_id(state, News.UPDATED) for state in states}
    assert len(ids) == len(states)
    assert event_id(incident("age", "income", summary="later"), News.UPDATED) in ids
    for once in (News.OPENED, News.CLOSED):
        assert event_id(incident(), once) == event_id(incident("a", "b", severity="critical"), once)
        assert event_id(incident(), once) not in ids
    assert event_id(incident(), News.OPENED) != event_id(incident(), News.CLOSED)
    assert "." not in "".join(ids), "the signature separates its parts by dots"


def test_envelope() -> None:
    """Required attributes of CloudEvents 1.0, documented extensions, and the incident as its data."""
    told = event(incident(), News.UPDATED, source="/m", number=12, at="2026-11-21T09:00:00.000Z")
    assert json.loads(told) == {
        "specversion": "1.0",
        "id": event_id(incident(), News.UPDATED),
        "source": "/m",
        "type": "stream_monitor.incident.updated",
        "subject": "credit/7",
        "time": "2026-11-21T09:00:00.000Z",
        "datacontenttype": "application/json",
        "sequence": "000000000012",
        "partitionkey": "credit",
        "data": incident(),
    }


def test_times_are_those_of_the_changes() -> None:
    """Opening and closing have their own."""
    body = incident(closed=CLOSED)
    times = {
        news: json.loads(event(body, news, source="/m", number=1, at="2026-01-01T00:00:00Z"))["time"] for news in News
    }
    assert times == {"opened": body["opened_at"], "updated": "2026-01-01T00:00:00Z", "closed": CLOSED}


def test_odd_names_are_still_bytes() -> None:
    """What no UTF-8 can hold is escaped, and read back as it was."""
    body = incident("\ud800", model="größe\n")
    told = event(body, News.OPENED, source="/m", number=1, at="")
    assert told.isascii()
    assert json.loads(told)["data"] == body


def test_our_own_decoder_takes_the_envelope() -> None:
    """It is structured CloudEvents as we read them: refused for what the data lacks, not for its form."""
    told = event(incident(), News.OPENED, source="/m", number=1, at="")
    binding, partition = Binding(Stream.INFERENCE, "t"), PartitionId(Stream.INFERENCE, "t", 0)
    raw = RawBatch(binding, (partition,), np.zeros(1, np.int32), np.arange(1), pa.array([told], pa.binary()),
                   np.full(1, NO_TIME, np.int64))  # fmt: skip
    _, rejects = Decoder().inference(raw)
    assert [str(reason) for reason in rejects.reason] == ["no_features"]
