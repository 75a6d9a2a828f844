"""A morning's bad deploy, to the page: engine, Prometheus, shipped rules, Alertmanager, shipped routes, webhook."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fleet import Body, Fleet, Scraped
from servers.prometheus import StartAlertmanager, StartPrometheus
from servers.webhook import Post, Webhook

DEPLOY = Path(__file__).parents[2] / "deploy"
MODELS = {"credit": "risk", "fraud": "risk", "demand": "supply"}
FEATURES = [f"f{number:02}" for number in range(40)]
RATE = 4  # events a second of each model
STEP = 10  # seconds of event time between two commits: a pane
START = 1_790_000_040


class Morning:
    """Three models of forty features; what is told of them moves on by steps."""

    def __init__(self, folder: Path) -> None:
        self._rng = np.random.default_rng(11)
        self._number = count()
        self._now = START
        models = {model: {"task": "binary", "positive_label": "yes", "team": team} for model, team in MODELS.items()}
        baseline = [self._event(model, broken=False) for model in MODELS for _ in range(3000)]
        self.fleet = Fleet(folder, {"models": models, "windows": ["1m", "5m"]}, baseline)

    def _event(self, model: str, *, broken: bool) -> dict[str, Any]:
        values = self._rng.normal(0, 1, len(FEATURES)).round(4).tolist()
        score = 0.95 if broken else round(float(self._rng.random()), 4)
        features = {name: str(value) if broken else value for name, value in zip(FEATURES, values, strict=True)}
        return {
            "model": model,
            "version": "7",
            "features": features,
            "prediction": {"label": "yes" if score > 0.5 else "no", "score": score},
        }

    def _events(self, *, broken: bool) -> Iterator[Body]:
        for part in range(STEP * RATE):
            for model in MODELS:
                head = {"inference_id": next(self._number), "timestamp": self._now + part / RATE}
                yield head | self._event(model, broken=broken)

    def step(self, *, broken: bool, panes: int = 1) -> None:
        """The next panes of all three, in one commit."""
        events: list[Body] = []
        for _ in range(panes):
            events += self._events(broken=broken)
            self._now += STEP
        self.fleet.tell(events, [], self._now)


def routing(url: str) -> dict[str, Any]:
    """The shipped routes, with receivers that exist here and waits of seconds: the clock here runs ten times as fast."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    config["route"] |= {"group_wait": "2s", "group_interval": "3s"}
    config["templates"] = [str(DEPLOY / "alertmanager" / pattern) for pattern in config["templates"]]
    for receiver in config["receivers"]:
        for hook in receiver.get("webhook_configs", []):
            hook["url"] = url
    return config


def rules(folder: Path) -> Path:
    """The shipped rules; what is resolved is let go of at once, and half a minute is three seconds."""
    text = (DEPLOY / "prometheus" / "rules.yaml").read_text()
    path = folder / "rules.yaml"
    path.write_text(text.replace("keep_firing_for: 1m", "keep_firing_for: 3s").replace("for: 30s", "for: 3s"))
    return path


def told(posts: tuple[Post, ...], status: str) -> list[dict[str, Any]]:
    """The messages of a status."""
    return [post.json() for post in posts if post.json()["status"] == status]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_forty_broken_features_on_three_models_are_three_pages(
    prometheus: StartPrometheus, alertmanager: StartAlertmanager, webhook: Webhook, tmp_path: Path
) -> None:
    """One message a model, saying what broke and the worst of it; nothing more while it lasts; one when it is over."""
    morning = Morning(tmp_path)
    morning.step(broken=False, panes=30)
    scraped = Scraped(morning.fleet.publisher)
    pager = alertmanager(config=routing(webhook.url))
    metrics = prometheus({"stream-monitor": [scraped.address]}, rule_files=[rules(tmp_path)], alertmanager=pager)
    try:
        metrics.wait_until(lambda p: len(p.query("model:stream_monitor_model_info:team")) == len(MODELS))
        assert not webhook.posts

        # The half minute in which a field goes from bad to broken passes in one commit: a slow machine must not stretch
        # it. That it is told once where it does take half a minute is in rules_test.yaml.
        morning.step(broken=True, panes=6)
        _until(morning, webhook, "firing", broken=True)
        for _ in range(8):  # it lasts, through several group intervals
            morning.step(broken=True)
            time.sleep(1)
        firing = told(webhook.posts, "firing")
        assert sorted(message["groupLabels"]["model"] for message in firing) == sorted(MODELS)
        for message in firing:
            assert {a["labels"]["alertname"] for a in message["alerts"]} == {"StreamMonitorBrokenInput"}
            (alert,) = message["alerts"]
            assert alert["labels"]["team"] == MODELS[alert["labels"]["model"]]
            assert len(set(alert["annotations"]["features"].split(", ")) & set(FEATURES)) == 5
            assert float(alert["annotations"]["effect"]) > 1
        open_kinds = {
            found["metric"]["kind"] for found in metrics.query("incident:stream_monitor_incident_active:open")
        }
        assert open_kinds > {"broken_input"}  # there is more, which it explains

        _until(morning, webhook, "resolved", broken=False)
        assert len(told(webhook.posts, "firing")) == len(MODELS)
    finally:
        scraped.close()
        morning.fleet.close()


def _until(morning: Morning, webhook: Webhook, status: str, *, broken: bool) -> None:
    """Go on until each model was told of."""
    deadline = time.monotonic() + 90
    while len({m["groupLabels"]["model"] for m in told(webhook.posts, status)}) < len(MODELS):
        assert time.monotonic() < deadline, webhook.posts
        morning.step(broken=broken)
        time.sleep(0.2)
