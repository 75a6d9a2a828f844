"""Prometheus and Alertmanager as processes, for tests of what is scraped, ruled and told."""

from __future__ import annotations

import json
import shutil
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from .process import Process, free_ports


def unavailable() -> str | None:
    """Why no server can be started here; None if both can."""
    absent = [name for name in ("prometheus", "promtool", "prometheus-alertmanager") if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Alertmanager:
    """An Alertmanager that posts everything, at once, to one webhook; or that runs a given configuration."""

    def __init__(
        self, folder: Path, *, webhook_url: str | None = None, config: Mapping[str, Any] | None = None
    ) -> None:
        if (webhook_url is None) == (config is None):
            raise ValueError("give either webhook_url or config")
        folder.mkdir(parents=True, exist_ok=True)
        (self._port,) = free_ports(1)
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"http://{self.address}"
        self._folder = folder
        self._config = folder / "alertmanager.yml"
        self._config.write_text(yaml.safe_dump(config or _post_everything(str(webhook_url)), sort_keys=False))
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it is ready; raises ServerError."""
        command = [
            "prometheus-alertmanager",
            f"--config.file={self._config}",
            f"--storage.path={self._folder / 'data'}",
            f"--web.listen-address={self.address}",
            "--cluster.listen-address=",  # no gossip: alone, and no second port
        ]
        self._process = Process(command, self._folder / "alertmanager.log")
        self._process.wait_until(lambda: _answers(f"{self.url}/-/ready"), seconds=90)

    def stop(self) -> None:
        """End it; may be called twice."""
        if self._process is not None:
            self._process.stop()

    def alerts(self) -> list[dict[str, Any]]:
        """What is firing, inhibited and silenced alerts included."""
        found: list[dict[str, Any]] = _get_json(f"{self.url}/api/v2/alerts")
        return found


class Prometheus:
    """A Prometheus that scrapes and evaluates every second, unless `timing`, its `global` section, says otherwise.

    `targets` maps a job's name to the addresses (`host:port`) it scrapes, or to a whole scrape configuration.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Sequence[str] | Mapping[str, Any]],
        *,
        rule_files: Sequence[Path] = (),
        alertmanager: Alertmanager | None = None,
        timing: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (self._port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._alertmanager = alertmanager
        self._config = folder / "prometheus.yml"
        config = {
            "global": dict(timing or {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}),
            "scrape_configs": [_scrape(job, target) for job, target in targets.items()],
            "rule_files": [str(path.resolve()) for path in rule_files],
            "alerting": {"alertmanagers": [_static([alertmanager.address])] if alertmanager else []},
        }
        self._config.write_text(yaml.safe_dump(config, sort_keys=False))
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it is ready and, given one, knows its Alertmanager; raises ServerError."""
        command = [
            "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            # An alert sent before the Alertmanager was known is dropped, and sent again only after this long.
            "--rules.alert.resend-delay=2s",
        ]
        self._process = Process(command, self._folder / "prometheus.log")
        self._process.wait_until(self._is_ready, seconds=90)

    def stop(self) -> None:
        """End it; may be called twice."""
        if self._process is not None:
            self._process.stop()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant vector: each with `metric` (its labels) and `value` ([time, text])."""
        data = self.api("query", query=expression)
        result: list[dict[str, Any]] = data["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The value of the only sample; None if there is none; ValueError if there are several."""
        samples = self.query(expression)
        if len(samples) > 1:
            raise ValueError(f"{expression} has {len(samples)} samples")
        return float(samples[0]["value"][1]) if samples else None

    def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing alerts."""
        found: list[dict[str, Any]] = self.api("alerts")["alerts"]
        return found

    def api(self, path: str, **parameters: str) -> dict[str, Any]:
        """The `data` of an answer of the HTTP API."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        data: dict[str, Any] = _get_json(f"{self.url}/api/v1/{path}{query}")["data"]
        return data

    def wait_until(self, holds: Callable[[Prometheus], bool], *, seconds: float = 30.0) -> None:
        """Return once `holds(self)`; raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not holds(self):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {seconds} s; alerts: {self.alerts()}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        if not _answers(f"{self.url}/-/ready"):
            return False
        return self._alertmanager is None or bool(self.api("alertmanagers")["activeAlertmanagers"])


class StartAlertmanager(Protocol):
    """What the `alertmanager` fixture is: give it where to post to, or a whole configuration."""

    def __call__(self, *, webhook_url: str | None = None, config: Mapping[str, Any] | None = None) -> Alertmanager: ...


class StartPrometheus(Protocol):
    """What the `prometheus` fixture is: give it what to scrape, and optionally rules and an Alertmanager."""

    def __call__(
        self,
        targets: Mapping[str, Sequence[str] | Mapping[str, Any]],
        *,
        rule_files: Sequence[Path] = (),
        alertmanager: Alertmanager | None = None,
    ) -> Prometheus: ...


def _scrape(job: str, target: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(target, Mapping):
        return {"job_name": job, **target}
    return {"job_name": job, **_static(target)}


def _static(addresses: Sequence[str]) -> dict[str, Any]:
    return {"static_configs": [{"targets": list(addresses)}]}


def _post_everything(url: str) -> dict[str, Any]:
    route = {"receiver": "webhook", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s"}
    return {
        "route": {**route, "repeat_interval": "1h"},
        "receivers": [{"name": "webhook", "webhook_configs": [{"url": url, "send_resolved": True}]}],
    }


def _get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
