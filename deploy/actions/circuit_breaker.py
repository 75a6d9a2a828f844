"""Switch traffic back when a version is in trouble: asks the service, and runs a command once. A dry run without `--go`.

    python circuit_breaker.py --url http://stream-monitor:9464 --model credit --version 8 --for 120 --go \\
        -- kubectl argo rollouts abort credit

It trips when an incident of the given severities has been open for `--for` seconds without a break, and then stays open:
what switches traffic forward again is a person. Exit codes: 0 the command ran (or would have), 1 the time of `--until`
passed without trouble, 2 usage, 3 the command failed. While the service cannot be asked it does not trip and says so: a
monitor that is blind is no reason to roll back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from receiver import say

TIMEOUT_SECONDS = 10
MOST_INCIDENTS = 1_000

Incident = dict[str, Any]


@dataclass
class Breaker:
    """Pure: `trips` is told what is open and when."""

    severities: Sequence[str]
    kinds: Sequence[str]
    least_seconds: float
    _since: float | None = None

    def trips(self, incidents: Sequence[Incident], now: float) -> Incident | None:
        """The incident that trips it, once trouble has lasted long enough."""
        troubles = [
            i for i in incidents
            if i["closed_at"] is None and i["severity"] in self.severities and (not self.kinds or i["kind"] in self.kinds)
        ]  # fmt: skip
        if not troubles:
            self._since = None
            return None
        if self._since is None:
            self._since = now
        return troubles[0] if now - self._since >= self.least_seconds else None


def open_incidents(url: str, model: str, version: str) -> list[Incident]:
    """What the service says is open; raises OSError or ValueError where it cannot be asked."""
    asked = {"model": model, "version": version, "state": "open", "limit": MOST_INCIDENTS}
    address = f"{url.rstrip('/')}/api/v1/incidents?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:
        found: list[Incident] = json.load(answer)
        return found


def watch(
    breaker: Breaker,
    ask: Callable[[], list[Incident]],
    *,
    every_seconds: float,
    until: float,
    clock: Callable[[], float] = time.monotonic,
    rest: Callable[[float], None] = time.sleep,
) -> Incident | None:
    """The incident that tripped it; None when the time is over."""
    blind = False
    while clock() < until:
        try:
            found = ask()
        except (OSError, ValueError) as error:
            if not blind:
                say(f"blind: {error}")
            blind = True
        else:
            if blind:
                say("sees again")
            blind = False
            trouble = breaker.trips(found, clock())
            if trouble is not None:
                return trouble
        rest(every_seconds)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://localhost:9464", help="the service")
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--severities", nargs="+", default=("critical",))
    parser.add_argument("--kinds", nargs="+", default=(), help="of these kinds only")
    parser.add_argument("--for", dest="least", type=float, default=60.0, help="seconds that trouble must last")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between questions")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds to watch")
    parser.add_argument("--go", action="store_true", help="really run the command; else only say so")
    parser.add_argument("command", nargs="+", help="after --: what switches traffic back")
    given = parser.parse_args()
    trouble = watch(
        Breaker(given.severities, given.kinds, given.least),
        lambda: open_incidents(given.url, given.model, given.version),
        every_seconds=given.every,
        until=time.monotonic() + given.until,
    )
    if trouble is None:
        say("no trouble")
        return 1
    say(f"tripped by {trouble['id']}: {trouble['summary']}")
    if not given.go:
        say(f"would run: {' '.join(given.command)}")
        return 0
    try:
        return 0 if subprocess.run(given.command, check=False).returncode == 0 else 3
    except OSError as error:
        say(f"the command cannot be run: {error}")
        return 3


if __name__ == "__main__":
    sys.exit(main())
