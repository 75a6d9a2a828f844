"""Asking a running service, for commands that need its state."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from stream_monitor.errors import PeerError, UsageError

_SECONDS = 40


def ask_service(url: str, path: str, *, body: Mapping[str, Any] | None = None, token: str | None = None) -> Any:
    """GET, or POST with a body, below `/api/v1/`; raises PeerError where nobody answers, UsageError where it refuses."""
    headers = {"Accept": "application/json"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url {url}: write it like http://localhost:9464")
    request = urllib.request.Request(
        f"{url.rstrip('/')}/api/v1/{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers=headers,
        method="GET" if body is None else "POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        detail = _detail(error.read())
        if error.code < 500:
            raise UsageError(f"the service at {url} refused: {detail}") from error
        raise PeerError(f"the service at {url} could not answer: {detail}") from error
    except (OSError, ValueError) as error:
        raise PeerError(f"no service answers at {url}: {error}") from error


def _detail(body: bytes) -> str:
    try:
        found = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
    return " ".join(found) if isinstance(found, list) else str(found)
