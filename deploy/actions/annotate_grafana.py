"""Mark incidents on every Grafana dashboard: a webhook receiver that writes annotations.

    STREAM_MONITOR_WEBHOOK_SECRET=whsec_... GRAFANA_TOKEN=... python annotate_grafana.py --grafana http://grafana:3000

An incident is a region from its onset to its end. The token is that of a service account that may write annotations.
Show them by an annotation query of the data source "-- Grafana --" with the tag `stream-monitor`.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import urllib.parse
import urllib.request
from datetime import datetime
from html import escape
from typing import Any

from receiver import Event, say, serve

TIMEOUT_SECONDS = 10


class Grafana:
    """Its API for annotations. An incident is found again by its tag, so that nothing has to be kept here."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._lock = threading.Lock()

    def act(self, event: Event) -> None:
        """Write or correct the annotation of the incident; raises OSError where Grafana does not take it."""
        incident = event["data"]
        body = annotation(incident)
        with self._lock:
            query = urllib.parse.urlencode({"tags": _tag(incident), "limit": 1})
            known = self._ask("GET", f"/api/annotations?{query}")
            if known:
                self._ask("PATCH", f"/api/annotations/{known[0]['id']}", body)
            else:
                self._ask("POST", "/api/annotations", body)
        say(f"annotated {incident['id']}: {event['type']}")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)


def annotation(incident: dict[str, Any]) -> dict[str, Any]:
    """From the onset to the end; while it is open, a point. Grafana shows HTML, and names come from events."""
    begin = _milliseconds(incident["onset"])
    end = begin if incident["closed_at"] is None else max(begin, _milliseconds(incident["closed_at"]))
    names = ["model", "version", "kind", "severity"]
    tags = ["stream-monitor", _tag(incident), *(f"{name}:{incident[name]}" for name in names)]
    return {"time": begin, "timeEnd": end, "tags": tags, "text": escape(incident["summary"])}


def _tag(incident: dict[str, Any]) -> str:
    return f"incident:{incident['id']}"


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="where to listen")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--grafana", default="http://localhost:3000", help="its address")
    given = parser.parse_args()
    serve(given.port, given.host, Grafana(given.grafana, os.environ.get("GRAFANA_TOKEN")).act)


if __name__ == "__main__":
    main()
