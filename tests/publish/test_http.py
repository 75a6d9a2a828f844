"""The routes, the guard in front of them, and the server's thread."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from datetime import UTC, datetime

import httpx
import pytest
from fake_view import FakeView, incidents
from fastapi.testclient import TestClient

from stream_monitor.errors import UsageError
from stream_monitor.publish.collector import Publisher
from stream_monitor.publish.http import Filters, Promotion, Server, View, create_app, is_loopback

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PROMOTE = "/api/v1/baselines/promote"
BODY = {"model": "credit", "version": "7", "from_version": "6"}


def client(view: View, *, host: str = "127.0.0.1", token: str | None = None) -> TestClient:
    """A browser on this machine."""
    app = create_app(view, Publisher(series=1000), host=host, token=token)
    return TestClient(app, base_url="http://127.0.0.1:9464", raise_server_exceptions=False)


@pytest.fixture
def view() -> FakeView:
    """A fresh fake."""
    return FakeView()


def test_health_says_alive_while_ready_says_why_not(view: FakeView) -> None:
    """Two questions: is the process there, and does it keep up."""
    view.reasons = ["the consumer is 90 s behind"]
    web = client(view)
    assert web.get("/healthz").status_code == 200
    answer = web.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"ready": False, "reasons": view.reasons})
    view.reasons = []
    assert (web.get("/readyz").status_code, web.head("/readyz").status_code) == (200, 200)


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", b"\n"),
        (OPENMETRICS, f"{OPENMETRICS}; charset=utf-8", b"# EOF\n"),
    ],
)
def test_metrics_come_in_the_format_asked_for(view: FakeView, accept: str, content_type: str, end: bytes) -> None:
    """Prometheus 3 refuses a scrape without the exact content type."""
    answer = client(view).get("/metrics", headers={"Accept": accept})
    assert answer.headers["content-type"] == content_type
    assert answer.content.endswith(end)


@pytest.mark.parametrize(
    "path",
    [
        "summary",
        "models",
        "features",
        "budgets",
        "labels",
        "scores",
        "incidents",
        "performance",
        "performance/details",
        "baselines",
        "status",
    ],
)
def test_every_question_has_an_answer(view: FakeView, path: str) -> None:
    """All are JSON; none is cached."""
    answer = client(view).get(f"/api/v1/{path}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    answer.json()


def test_incidents_are_the_objects_of_the_file(view: FakeView) -> None:
    """A list, as in incidents.jsonl; one by its id; none is a 404."""
    web = client(view)
    assert web.get("/api/v1/incidents").json() == incidents()
    assert web.get("/api/v1/incidents/inc-2").json() == incidents()[1]
    assert web.get("/api/v1/incidents/nope").status_code == 404


def test_nan_is_null(view: FakeView) -> None:
    """JSON has no NaN."""
    assert client(view).get("/api/v1/scores").json()[1]["value"] is None


def test_filters_reach_the_view_in_our_units(view: FakeView) -> None:
    """Durations in seconds, times in microseconds with UTC assumed, one row more for the next page."""
    query = {"model": "credit", "version": "7", "feature": "a b", "window": "15m", "since": "2026-11-21T10:00:00",
             "until": "2026-11-21T12:00:00.000001+01:00", "limit": 5, "offset": 2}  # fmt: skip
    assert client(view).get("/api/v1/scores", params=query).status_code == 200
    start = int(datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()) * 1_000_000
    wanted = Filters(model="credit", version="7", feature="a b", window_seconds=900, since_us=start,
                     until_us=start + 3_600_000_001, limit=6, offset=2)  # fmt: skip
    assert view.asked == [wanted]


def test_the_whole_model_and_one_outcome_can_be_asked_for(view: FakeView) -> None:
    """An empty segment is the whole model; labels are asked for by outcome alone."""
    query = {"metric": "mae", "window": "7d", "basis": "cohort", "outcome": "label", "segment": ""}
    assert client(view).get("/api/v1/performance", params=query).status_code == 200
    query = {"outcome": "click", "segment": "market=eu"}
    assert client(view).get("/api/v1/performance/details", params=query).status_code == 200
    assert client(view).get("/api/v1/labels", params={"outcome": "click"}).status_code == 200
    week = Filters(metric="mae", window_seconds=604_800, basis="cohort", outcome="label", segment="", limit=101)
    assert view.asked == [week, Filters(outcome="click", segment="market=eu", limit=101),
                          Filters(outcome="click", limit=101)]  # fmt: skip


def test_pages_follow_each_other_without_gap(view: FakeView) -> None:
    """Following `next` until there is none gives every row once."""
    web, found = client(view), []
    answer = web.get("/api/v1/scores?limit=3&model=x%26y")
    for _ in range(5):
        found += [row["subject"] for row in answer.json()]
        if "next" not in answer.links:
            break
        answer = web.get(answer.links["next"]["url"])
    assert found == [f"f{i}" for i in range(7)]
    assert {f.model for f in view.asked} == {"x&y"}


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("limit=1000000", "limit"),
        ("window=soon", "duration"),
        ("since=yesterday", "since"),
        ("modell=credit", "modell"),
        ("offset=-1", "offset"),
    ],
)
def test_bad_questions_get_a_sentence(view: FakeView, query: str, word: str) -> None:
    """422, which parameter and what is wrong with it; the view is not asked."""
    answer = client(view).get(f"/api/v1/scores?{query}")
    assert answer.status_code == 422
    [sentence] = answer.json()["detail"]
    assert word in sentence
    assert sentence.endswith(".")
    assert view.asked == []


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("performance?metric=acuracy", "metric: no such metric; did you mean accuracy?"),
        ("performance?since=2026-11-22&until=2026-11-21", "since lies after until."),
        ("incidents?since=2026-11-21T10:00:00Z&until=2026-11-21T10:30:00%2B01:00", "since lies after until."),
        ("scores?since=2026-11-22&until=2026-11-21", "since lies after until."),
    ],
)
def test_what_cannot_be_is_not_answered_with_nothing(view: FakeView, query: str, sentence: str) -> None:
    """A misspelt metric or a period that ends before it begins gets a sentence."""
    answer = client(view).get(f"/api/v1/{query}")
    assert (answer.status_code, answer.json()["detail"]) == (422, [sentence])
    assert view.asked == []


@pytest.mark.parametrize(
    "query",
    ["metric=recall%5Bdeny%5D", "metric=p50", "metric=mape", "since=2026-11-21&until=2026-11-21", "model=not-yet"],
)
def test_what_may_come_later_is_asked(view: FakeView, query: str) -> None:
    """Classes, models and outcomes are not known beforehand."""
    assert client(view).get(f"/api/v1/performance?{query}").status_code == 200
    assert len(view.asked) == 1


def test_promotion_reaches_the_view(view: FakeView) -> None:
    """On loopback without a token it is allowed; what the view cannot do is a 422 with its sentences."""
    web = client(view)
    assert web.post(PROMOTE, json=BODY).json()["baseline_id"] == "b-2"
    assert view.promoted == [Promotion("credit", "7", from_version="6")]
    answer = web.post(PROMOTE, json={**BODY, "version": "9"})
    assert (answer.status_code, answer.json()["detail"]) == (422, ["credit 9 has not been seen", "promote one of: 7"])
    assert web.post(PROMOTE, json={"model": "credit"}).status_code == 422
    assert web.post(PROMOTE, content="{", headers={"Content-Type": "application/json"}).status_code == 422


def test_a_built_baseline_arrives_as_its_bytes(view: FakeView) -> None:
    """Base64 in, bytes out; what is not base64 is a sentence."""
    body = {"model": "credit", "version": "7"}
    sent = body | {"baseline": base64.b64encode(bytes(range(256))).decode()}
    assert client(view).post(PROMOTE, json=sent).status_code == 200
    assert view.promoted == [Promotion("credit", "7", baseline=bytes(range(256)))]
    assert client(view).post(PROMOTE, json=body | {"baseline": "!"}).status_code == 422


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"from_version": "6", "since": "2026-11-21"},
        {"from_version": "6", "until": "2026-11-21"},
        {"until": "2026-11-21"},
    ],
)
def test_a_promotion_is_of_one_thing(view: FakeView, what: dict[str, str]) -> None:
    """Nothing, or two things at once, is refused."""
    answer = client(view).post(PROMOTE, json={"model": "credit", "version": "7"} | what)
    assert answer.status_code == 422
    assert answer.json()["detail"][0].endswith(".")
    assert view.promoted == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:9464"}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:8000"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Length": "99999999999999999999"}, 413),
        ({"Content-Length": "64000001"}, 413),
    ],
)
def test_a_page_from_elsewhere_changes_nothing(view: FakeView, headers: dict[str, str], status: int) -> None:
    """Forms, other origins and endless bodies are refused before any route sees them."""
    content = json.dumps(BODY).encode()
    answer = client(view).post(PROMOTE, content=content, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == status
    assert bool(view.promoted) == (status == 200)


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "192.168.0.7:9464", "", "[::1", "a@b[", "user@evil.example"]
)
def test_a_foreign_name_for_loopback_reads_nothing(view: FakeView, name: str) -> None:
    """A page whose name resolves to 127.0.0.1 is of that name's origin, and could read all."""
    assert client(view).get("/api/v1/models", headers={"Host": name}).status_code == 421


@pytest.mark.parametrize("name", ["localhost:9464", "127.0.0.1", "[::1]:9464"])
def test_this_machine_may_be_called_by_its_names(view: FakeView, name: str) -> None:
    """Every way to write loopback is right."""
    assert client(view).get("/api/v1/models", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize(
    ("host", "token", "sent", "status"),
    [
        ("0.0.0.0", None, None, 403),
        ("", None, "Bearer anything", 403),
        ("0.0.0.0", "s3cret", None, 401),
        ("0.0.0.0", "s3cret", "Bearer wrong", 401),
        ("0.0.0.0", "s3cret", "Basic s3cret", 401),
        ("0.0.0.0", "s3cret", "Bearer s3cret", 200),
        ("127.0.0.1", "s3cret", None, 401),
        ("127.0.0.1", "s3cret", "bearer s3cret", 200),
    ],
)
def test_who_may_change_something(view: FakeView, host: str, token: str | None, sent: str | None, status: int) -> None:
    """The token, where there is one; else only loopback. Reading needs none."""
    web = client(view, host=host, token=token)
    answer = web.post(PROMOTE, json=BODY, headers={} if sent is None else {"Authorization": sent})
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert web.get("/api/v1/models").status_code == 200


def test_loopback_is_told_from_the_rest() -> None:
    """Listening on every address is not loopback."""
    found = {
        host: is_loopback(host) for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "", "web")
    }
    assert [host for host, yes in found.items() if yes] == ["localhost", "127.0.0.1", "127.9.9.9", "::1"]


def test_server_serves_and_stops_within_two_seconds(view: FakeView) -> None:
    """On a free port, with an idle and a half-sent connection open."""
    app = create_app(view, Publisher(series=1000))
    server = Server(app, host="127.0.0.1", port=0)
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as web:
        assert web.get("/healthz").json() == {"alive": True}
        with socket.create_connection(("127.0.0.1", server.port)) as half:
            half.sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
            began = time.monotonic()
            server.stop()
            assert time.monotonic() - began < 5.0
    assert not any(t.name == "http" for t in threading.enumerate())


def test_port_in_use_is_a_sentence(view: FakeView) -> None:
    """The second service on a port is told so at once."""
    app = create_app(view, Publisher(series=1000))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen"):
        Server(app, host="127.0.0.1", port=taken.getsockname()[1]).start()
