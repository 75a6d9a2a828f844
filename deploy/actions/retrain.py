"""Start a retraining when a model has drifted: a webhook receiver with a policy. A dry run unless told `--go`.

    STREAM_MONITOR_WEBHOOK_SECRET=whsec_... python retrain.py --port 8080 --go -- argo submit retrain.yaml

The command learns what happened from its environment: STREAM_MONITOR_MODEL, _VERSION, _KIND, _SEVERITY, _INCIDENT,
_ONSET and _SUBJECTS (names, the strongest first, separated by commas). It runs without a shell. Point the service at it
with `publish: {webhooks: [{url: http://retrain:8080/, secret: ...}]}`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from receiver import SECRET, Event, say, serve

RETRAINED = ("data_drift", "prediction_drift", "concept_drift", "performance", "multivariate_drift")
"""What new data can mend. Broken input is mended upstream: a model trained on it would learn the breakage."""


@dataclass
class Policy:
    """Whether an event starts a retraining."""

    kinds: Sequence[str] = RETRAINED
    severities: Sequence[str] = ("critical",)
    cooldown_seconds: float = 6 * 3600.0
    clock: Callable[[], float] = time.monotonic
    _started: dict[str, float] = field(default_factory=dict)

    def verdict(self, event: Event) -> str | None:
        """Why not; None where it does.

        1. An incident that closed needs nothing, nor one that was over before we heard of it.
        2. Its kind is none that new data mends.
        3. It is not severe enough; growing so comes as an update.
        4. The model was retrained a moment ago: give it time to help.
        """
        incident = event["data"]
        if event["type"].endswith(".closed") or incident["closed_at"] is not None:
            return "it is over"
        if incident["kind"] not in self.kinds:
            return f"{incident['kind']} is not mended by new data"
        if incident["severity"] not in self.severities:
            return f"it is only {incident['severity']}"
        last = self._started.get(incident["model"])
        if last is not None and self.clock() - last < self.cooldown_seconds:
            return "one was started a moment ago"
        return None

    def started(self, model: str) -> None:
        self._started[model] = self.clock()


@dataclass
class Retraining:
    """Does it, one event after the other."""

    policy: Policy
    command: Sequence[str]
    is_dry: bool
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def act(self, event: Event) -> None:
        """Start the command where the policy says so; raises OSError where it cannot be started."""
        incident = event["data"]
        about = f"{incident['model']} {incident['version']} {incident['kind']} {incident['id']}"
        with self._lock:
            why_not = self.policy.verdict(event)
            if why_not is not None:
                say(f"nothing for {about}: {why_not}")
                return
            if not self.is_dry:
                started = subprocess.Popen(self.command, env=environment(event))
                threading.Thread(target=_await, args=(started, about), daemon=True).start()
            self.policy.started(incident["model"])
        say(f"{'would start' if self.is_dry else 'started'} a retraining for {about}: {' '.join(self.command)}")


def _await(started: subprocess.Popen[bytes], about: str) -> None:
    say(f"the retraining for {about} ended with exit code {started.wait()}")


def environment(event: Event) -> dict[str, str]:
    """What the command is told. Names come from events, so they are data to it and never a part of its line."""
    incident = event["data"]
    told = {name: str(incident[name]) for name in ("model", "version", "kind", "severity", "onset")}
    told |= {"incident": incident["id"], "subjects": ",".join(s["name"] for s in incident["subjects"])}
    ours = {name: text for name, text in os.environ.items() if name != SECRET}
    return ours | {f"STREAM_MONITOR_{name.upper()}": text.replace("\0", "") for name, text in told.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="where to listen")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--kinds", nargs="+", default=RETRAINED)
    parser.add_argument("--severities", nargs="+", default=("critical",))
    parser.add_argument("--cooldown", type=float, default=6 * 3600.0, help="seconds between retrainings of a model")
    parser.add_argument("--go", action="store_true", help="really start it; else only say so")
    parser.add_argument("command", nargs="+", help="after --: what starts a retraining")
    given = parser.parse_args()
    policy = Policy(given.kinds, given.severities, given.cooldown)
    serve(given.port, given.host, Retraining(policy, given.command, is_dry=not given.go).act)


if __name__ == "__main__":
    main()
