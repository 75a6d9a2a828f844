"""One port for machines and people: metrics, health, the API and the console, over a `View` that the app implements.

Nothing here touches the engine: what is read was committed, what changes something is asked for and waited for.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol, Self
from urllib.parse import urlencode, urlsplit

import orjson
import uvicorn
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_monitor.config import any_metric, duration_seconds
from stream_monitor.errors import MonitorError, UsageError
from stream_monitor.publish import console
from stream_monitor.publish.collector import Publisher
from stream_monitor.records import MICROSECONDS, IncidentKind, Json, Severity

API = "/api/v1"

BODY_BYTES = 64_000_000
"""A built baseline of 2,000 features with 256 bins each, in base64, with room."""

STOP_SECONDS = 2.0
"""Orchestrators wait ten seconds or more; the last checkpoint needs them, not open connections."""

PAGE_ROWS = 10_000
"""The most rows of one answer: they are built in memory."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a question is narrowed to; None: not at all. Times are event time, `until_us` is exclusive."""

    model: str | None = None
    version: str | None = None
    feature: str | None = None
    statistic: str | None = None
    window_seconds: int | None = None
    metric: str | None = None
    basis: str | None = None
    outcome: str | None = None
    segment: str | None = None  # as its name is published, `market=eu`; empty: the whole model
    kind: str | None = None
    severity: str | None = None
    state: str | None = None  # open | closed
    since_us: int | None = None
    until_us: int | None = None
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Promotion:
    """Make a profile the baseline of a version: exactly one of `baseline`, `from_version` and `since_us` is given.

    `baseline` is a built baseline file's bytes, `from_version` names a version whose baseline is taken, `since_us` and
    `until_us` bound the traffic that becomes one.
    """

    model: str
    version: str
    baseline: bytes | None = None
    from_version: str | None = None
    since_us: int | None = None
    until_us: int | None = None


class View(Protocol):
    """What the app lets people see. Called from several threads at once; answers are plain JSON values, NaN allowed.

    Lists come in a stable order, the newest or the worst first, with at most `limit` rows from `offset` on.
    Raises MonitorError for what cannot be answered; `promote` a UsageError for what cannot be done.
    """

    def summary(self) -> Json:
        """As in `summary.json`."""

    def models(self) -> Sequence[Json]:
        """Every version with its traffic, baseline and open incidents."""

    def features(self, filters: Filters) -> Sequence[Json]:
        """Subjects of the versions asked for. Filters: model, version, feature, window."""

    def budgets(self, filters: Filters) -> Sequence[Json]:
        """How each version's budget of false alarms is spent and what it buys. Filters: model, version."""

    def labels(self, filters: Filters) -> Sequence[Json]:
        """How the labels of each version and outcome come. Filters: model, version, outcome."""

    def scores(self, filters: Filters) -> Sequence[Json]:
        """Rows of `scores.parquet`. Filters: model, version, feature, statistic, window, since, until."""

    def incidents(self, filters: Filters) -> Sequence[Json]:
        """Objects of `incidents.jsonl`. Filters: model, version, feature, kind, severity, state, since, until."""

    def incident(self, incident_id: str) -> Json | None:
        """One of them, None where there is none."""

    def performance(self, filters: Filters) -> Sequence[Json]:
        """Rows of `performance.parquet`: one window of each length and basis; with since or until every window that starts
        in between. Filters: model, version, metric, basis, outcome, segment, window, since, until.
        """

    def performance_details(self, filters: Filters) -> Sequence[Json]:
        """What stands behind the figures of each window. Filters: as of `performance`, but for the metric."""

    def baselines(self) -> Sequence[Json]:
        """The baselines in use."""

    def status(self) -> Json:
        """How the service is: lag, watermark, last checkpoint, state size, versions."""

    def ready(self) -> tuple[bool, list[str]]:
        """Whether it keeps up, and why not, in sentences."""

    def promote(self, promotion: Promotion) -> Json:
        """Do it and return the new baseline."""


# -- queries ---------------------------------------------------------------------------------------


def _utc_us(moment: datetime) -> int:
    """A time without an offset means UTC, as in events."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    since_epoch = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (since_epoch.days * 86_400 + since_epoch.seconds) * MICROSECONDS + since_epoch.microseconds


def _duration(text: str) -> str:
    duration_seconds(text)
    return text


def _from_base64(text: object) -> bytes:
    try:
        found = base64.b64decode(str(text), validate=True)
    except ValueError:
        found = b""
    if not found:
        raise ValueError("send a built baseline file in base64")
    return found


Name = Annotated[str, Field(max_length=10_000)]
Window = Annotated[str, AfterValidator(_duration), Field(max_length=20, description="15m, 1h, 1d")]
Outcome = Annotated[str, Field(max_length=10_000, description="label, or the name of another outcome")]
Segment = Annotated[str, Field(max_length=10_000, description="market=eu; empty for the whole model")]
Offset = Annotated[int, Field(ge=0, le=10_000_000)]


class _Query(BaseModel):
    """Parameters every list understands; an unknown one is an error, not silence."""

    model_config = ConfigDict(extra="forbid")

    model: Name | None = None
    version: Name | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_ROWS)] = 100
    offset: Offset = 0

    def filters(self) -> Filters:
        """As the view takes it."""
        given = self.model_dump(exclude_none=True)
        if "window" in given:
            given["window_seconds"] = duration_seconds(given.pop("window"))
        for name in ("since", "until"):
            if name in given:
                given[f"{name}_us"] = _utc_us(given.pop(name))
        return Filters(**given)


class _Period(_Query):
    since: datetime | None = None
    until: datetime | None = None

    @model_validator(mode="after")
    def _goes_forward(self) -> Self:
        if self.since is not None and self.until is not None and _utc_us(self.since) > _utc_us(self.until):
            raise ValueError("since lies after until")
        return self


class BudgetQuery(_Query):
    pass


class LabelQuery(_Query):
    outcome: Outcome | None = None


class FeatureQuery(_Query):
    feature: Name | None = None
    window: Window | None = None


class ScoreQuery(_Period):
    feature: Name | None = None
    statistic: Name | None = None
    window: Window | None = None


class IncidentQuery(_Period):
    feature: Name | None = None
    kind: IncidentKind | None = None
    severity: Severity | None = None
    state: Literal["open", "closed"] | None = None


class PerformanceQuery(_Period):
    metric: Annotated[Name, AfterValidator(any_metric)] | None = None
    basis: Literal["cohort", "arrival", "estimated"] | None = None
    outcome: Outcome | None = None
    segment: Segment | None = None
    window: Window | None = None


class DetailQuery(_Period):
    basis: Literal["cohort", "arrival"] | None = None
    outcome: Outcome | None = None
    segment: Segment | None = None
    window: Window | None = None


class PromoteBody(BaseModel):
    """Whose baseline, and what it is made of: a built one, another version's, or traffic."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    version: Annotated[str, Field(min_length=1, max_length=200)]
    baseline: (
        Annotated[bytes, BeforeValidator(_from_base64), Field(description="a built baseline file, in base64")] | None
    ) = None
    from_version: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    since: datetime | None = None
    until: datetime | None = None

    @model_validator(mode="after")
    def _of_one_thing(self) -> PromoteBody:
        if sum(given is not None for given in (self.baseline, self.from_version, self.since)) != 1:
            raise ValueError("give one of baseline, from_version and since")
        if self.until is not None and self.since is None:
            raise ValueError("until needs since")
        return self

    def promotion(self) -> Promotion:
        """As the view takes it."""
        since = None if self.since is None else _utc_us(self.since)
        until = None if self.until is None else _utc_us(self.until)
        return Promotion(self.model, self.version, self.baseline, self.from_version, since, until)


# -- answers ---------------------------------------------------------------------------------------

BUDGETS = """The configured budget and the events between two false incidents that it means at the present rate;
`shares` of it for data, labels and segments; and for each subject its own part (`events_between_false_alarms`), the
`limit` of the shortest and longest window in standard deviations, whether it is `insufficient`, and `events_to_find`: the
median number of events until a change is found, now and at twice the budget. A change that cannot be is left out; null
is never, within twice the longest window. Those in `below_minimum_effect` are not told however soon they are found."""


LABELS = """For each version and outcome: `delays` of each class with their quantiles and histogram (`buckets`, each up to
a bound from the one before it; those of numbers have no class; a week weighs half as much as the next); `classes`, how many
truths were of each and whether it is `known` to the baseline, or among the first 1,000 truths: what is spelled otherwise
counts as wrong; the arrival `curve`, the share of
predictions labelled by an age, from predictions that have reached it alone, its `dispersion` over binomial chance and
whether that is enough to be `judged` by; `through_after_seconds`, the age by which labels are through, null while it cannot
be told; `is_late`, whether an incident says so; and the newest `cohorts` with their coverage, what it usually is by now and
their `ripeness`: objectives are judged on those that are `ripe`, and wait for `young` ones, for those with `labels_missing`
and while the habit is `unknown`. `watch` says which truths errors are watched by (`state`: as they come, when they are of
`age_seconds`, or none while it waits), why, and how many are `held` back. Of each cohort `figures` are its first metrics by
the labels so far, beside what was expected without them and the baseline's, and `revisions` what was said before, for each
further tenth that was labelled. `labelled` are all predictions with a label, `unusable` those among them that cannot be
read for the task."""


PERFORMANCE = """Without `since` and `until`: one window of each length and basis. By cohort it is the newest that is `ripe`,
however late labels come: its labels are through, as those of usual cohorts are; while it is unknown when they are, the
newest with 30 labels or nine tenths of its predictions labelled. By arrival it is the newest with labels. With one of
them: every window kept that starts in between, the newest first;
`window=7d&metric=mae&basis=cohort&outcome=label&segment=&since=2026-01-01` is the line of the weekly error of the whole
model, and the window under way is in it. A restated cohort stands as it is now. `coverage` counts every labelled
prediction, `samples` are those that can be read for the task. Rows of basis `estimated` are
what calibrated scores, or of numbers the baseline's errors on such inputs, lead to expect of all predictions of a window
before their labels come; beside them stand what came of it, `realised` by the cohort, of `realised_samples` labels, and the
estimate `adjusted` for the labels that have come, with its interval `adjusted_lower` to `adjusted_upper`: it becomes the
realised figure as they all do. Without a period they also say `outside_windows`, of how many labelled windows in a row the
realised figure lies above (+) or below (-) the estimate's interval, and from three on what such a `gap` means in words."""

PERFORMANCE_DETAILS = """One object for each window, the newest first. Classes: `confusion_matrix` (rows by truth and
prediction; binary: 1 is the positive label), `reliability` (what came true of each tenth of the confidences, now and in
the baseline) and, where there are scores, `receiver_operating_characteristic_curve` and `precision_recall_curve`.
Numbers: `error_histogram`, the shares of predicted - true now and in the baseline between common `edges`; the first and
last share are of what lies beyond."""


class JsonResponse(Response):
    """JSON in which NaN and infinities are null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _refusal(status: int, *sentences: str) -> JsonResponse:
    return JsonResponse({"detail": list(sentences)}, status_code=status)


def _paged(rows: Sequence[Json], request: Request, filters: Filters) -> JsonResponse:
    """The rows; where there may be more, the Link header says how to get them."""
    headers = {}
    if len(rows) > filters.limit:
        query = {**request.query_params, "limit": filters.limit, "offset": filters.offset + filters.limit}
        headers["Link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return JsonResponse(list(rows[: filters.limit]), headers=headers)


def _one_more(filters: Filters) -> Filters:
    """Ask for one row more than wanted: that is how we know of a next page."""
    return replace(filters, limit=filters.limit + 1)


# -- the guard -------------------------------------------------------------------------------------

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address we listen on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(header: str) -> str:
    """A Host header without its port; empty where it is none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Guard:
    """Refuses, before any route sees it, what a page from elsewhere could make a browser send.

    Rules, in order: (1) on loopback the Host header must name this machine, else a foreign name that resolves to it
    reads everything; (2) a request that changes something must come from no page or from ours, (3) be JSON, which no
    form can send, (4) be short, and (5) carry the token, or without one come in over loopback.
    """

    def __init__(self, app: ASGIApp, *, host: str, token: str | None) -> None:
        self._app = app
        self._host = host
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (n.lower().encode(), v.encode())
                        for n, v in SECURITY_HEADERS.items()
                        if n.lower().encode() not in present
                    ),
                ]
            await send(message)

        refusal = self._refuse(scope["method"], Request(scope).headers)
        await (self._app if refusal is None else refusal)(scope, receive, send_hardened)

    def _refuse(self, method: str, headers: Mapping[str, str]) -> Response | None:
        if is_loopback(self._host) and not is_loopback(_host_name(headers.get("host", ""))):
            return _refusal(421, "This service answers on its own machine only: ask for localhost or 127.0.0.1.")
        if method in ("GET", "HEAD"):
            return None
        return self._foreign(headers) or self._malformed(headers) or self._unauthorised(headers)

    def _foreign(self, headers: Mapping[str, str]) -> Response | None:
        origin = headers.get("origin")
        same = origin is None or origin.partition("://")[2] == headers.get("host")
        if same and headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return None
        return _refusal(403, "A page of another origin may not change anything here.")

    def _malformed(self, headers: Mapping[str, str]) -> Response | None:
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return _refusal(415, "Send JSON with the header Content-Type: application/json.")
        length = headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            return _refusal(411, "Send the header Content-Length.")
        if len(length) > 9 or int(length) > BODY_BYTES:
            return _refusal(413, f"The body may have {BODY_BYTES} bytes.")
        return None

    def _unauthorised(self, headers: Mapping[str, str]) -> Response | None:
        if self._token is None:
            if is_loopback(self._host):
                return None
            return _refusal(
                403, "Without publish.token_file nothing can be changed unless the service listens on loopback."
            )
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Headers are Latin-1; comparing bytes takes the same time wherever they differ.
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._token.encode()):
            return None
        refusal = _refusal(401, "Send the header Authorization: Bearer with the token of publish.token_file.")
        refusal.headers["WWW-Authenticate"] = "Bearer"
        return refusal


# -- the application -------------------------------------------------------------------------------


def create_app(view: View, publisher: Publisher, *, host: str = "127.0.0.1", token: str | None = None) -> FastAPI:
    """Every route. `host` is the address it will listen on: what may be changed without a token depends on it."""
    app = FastAPI(title="Stream Monitor", version="1", docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    app.add_middleware(Guard, host=host, token=token)
    _add_errors(app)
    _add_health(app, view, publisher)
    _add_pages(app, view)
    _add_totals(app, view)
    _add_lists(app, view)
    _add_changes(app, view)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        return _refusal(422, *map(_sentence, error.errors()))

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> Response:
        answer = _refusal(error.status_code, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(MonitorError)
    def broken(_: Request, error: MonitorError) -> Response:
        if isinstance(error, UsageError):
            return _refusal(422, str(error), *error.problems)
        return _refusal(503, str(error))


def _sentence(problem: Mapping[str, Any]) -> str:
    """`limit: Input should be greater than or equal to 1.`"""
    if problem["type"] == "json_invalid":
        return "The body is not JSON."
    where = ".".join(str(part) for part in problem["loc"][1:])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "there is no such parameter"
    whole = f"{where}: {message}" if where else message
    return whole if whole.endswith("?") else f"{whole}."


def _add_health(app: FastAPI, view: View, publisher: Publisher) -> None:
    @app.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def healthz() -> Response:
        # On the event loop, not in a worker: it answers while every worker waits for the state file.
        return JsonResponse({"alive": True})

    @app.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
    def readyz() -> Response:
        ready, reasons = view.ready()
        return JsonResponse({"ready": ready, "reasons": reasons}, status_code=200 if ready else 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics(request: Request) -> Response:
        body, content_type = publisher.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})


def _add_pages(app: FastAPI, view: View) -> None:
    headers = {"Content-Security-Policy": console.CONTENT_SECURITY_POLICY}

    @app.get("/", include_in_schema=False)
    def root() -> Response:
        return HTMLResponse(_console(view), headers=headers)

    @app.get("/api/docs", include_in_schema=False)
    def docs() -> Response:
        return HTMLResponse(console.docs_page(app.openapi()), headers=headers)


def _console(view: View) -> str:
    """The console over what the view says now."""
    return console.page(
        summary=view.summary(),
        models=view.models(),
        features=view.features(Filters(limit=PAGE_ROWS)),
        opened=view.incidents(Filters(state="open")),
        closed=view.incidents(Filters(state="closed", limit=console.RECENT_CLOSED)),
        performance=view.performance(Filters(basis="cohort", limit=PAGE_ROWS)),
        reasons=view.ready()[1],
        labels=view.labels(Filters(limit=PAGE_ROWS)),
        estimated=view.performance(Filters(basis="estimated", limit=PAGE_ROWS)),
    )


def _add_totals(app: FastAPI, view: View) -> None:
    @app.get(f"{API}/summary", response_class=JsonResponse, summary="Every record and prediction by its fate")
    def summary() -> Response:
        return JsonResponse(view.summary())

    @app.get(f"{API}/models", response_class=JsonResponse, summary="Model versions with their traffic")
    def models() -> Response:
        return JsonResponse(view.models())

    @app.get(f"{API}/baselines", response_class=JsonResponse, summary="The baselines in use")
    def baselines() -> Response:
        return JsonResponse(view.baselines())

    @app.get(f"{API}/status", response_class=JsonResponse, summary="How the service itself is")
    def status() -> Response:
        return JsonResponse(view.status())


def _add_lists(app: FastAPI, view: View) -> None:
    @app.get(f"{API}/features", response_class=JsonResponse, summary="Features with their latest scores")
    def features(request: Request, query: Annotated[FeatureQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.features(_one_more(filters)), request, filters)

    @app.get(
        f"{API}/budgets",
        response_class=JsonResponse,
        summary="The budget of false alarms of each version and what it buys",
        description=BUDGETS,
    )
    def budgets(request: Request, query: Annotated[BudgetQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.budgets(_one_more(filters)), request, filters)

    @app.get(
        f"{API}/labels",
        response_class=JsonResponse,
        summary="How labels come: delays, the arrival curve, coverage now and usually",
        description=LABELS,
    )
    def labels(request: Request, query: Annotated[LabelQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.labels(_one_more(filters)), request, filters)

    @app.get(f"{API}/scores", response_class=JsonResponse, summary="Scores of final windows")
    def scores(request: Request, query: Annotated[ScoreQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.scores(_one_more(filters)), request, filters)

    @app.get(f"{API}/incidents", response_class=JsonResponse, summary="Incidents, the newest first")
    def incidents(request: Request, query: Annotated[IncidentQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.incidents(_one_more(filters)), request, filters)

    @app.get(f"{API}/incidents/{{incident_id}}", response_class=JsonResponse, summary="One incident")
    def incident(incident_id: str) -> Response:
        found = view.incident(incident_id)
        return _refusal(404, "There is no incident of this id.") if found is None else JsonResponse(found)

    @app.get(
        f"{API}/performance", response_class=JsonResponse, summary="Model quality from labels", description=PERFORMANCE
    )
    def performance(request: Request, query: Annotated[PerformanceQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.performance(_one_more(filters)), request, filters)

    @app.get(
        f"{API}/performance/details",
        response_class=JsonResponse,
        summary="Confusion, curves, reliability and error histograms",
        description=PERFORMANCE_DETAILS,
    )
    def performance_details(request: Request, query: Annotated[DetailQuery, Query()]) -> Response:
        filters = query.filters()
        return _paged(view.performance_details(_one_more(filters)), request, filters)


def _add_changes(app: FastAPI, view: View) -> None:
    @app.post(f"{API}/baselines/promote", response_class=JsonResponse, summary="Make a profile the baseline")
    def promote(body: PromoteBody) -> Response:
        return JsonResponse(view.promote(body.promotion()))


# -- the server ------------------------------------------------------------------------------------


class Server:
    """Serves an app from a thread of its own. `start` raises UsageError where the address cannot be had."""

    def __init__(self, app: FastAPI, *, host: str, port: int) -> None:
        self._host, self._port = host, port
        settings = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=1,
            proxy_headers=False, timeout_keep_alive=30,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port it listens on, also when 0 was asked for."""
        return self._port if self._socket is None else int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Listen; returns when requests are answered."""
        self._socket = _listen(self._host, self._port)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)

    def stop(self) -> None:
        """Finish within 2 s, whatever connections are open."""
        if self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS * 0.75)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(STOP_SECONDS * 0.25)
        if self._socket is not None:
            self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is an error here and not in a thread."""
    try:
        [family, kind, protocol, _, address], *_ = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        raise UsageError(f"publish.http: cannot listen on {host}:{port}: {error}") from error
    return found
