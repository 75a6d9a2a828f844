"""A world of ripe cohorts for objectives to judge: right and wrong answers by hour, and nothing else of the engine."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from stream_monitor.cohorts import CohortKey
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.judge.incident import IncidentBook
from stream_monitor.labels import LabelArrival, Ripeness
from stream_monitor.objectives import Objectives
from stream_monitor.outcomes import Outcomes
from stream_monitor.records import MICROSECONDS, Incident, Ints, LineKey
from stream_monitor.summarize.outcome import OutcomeProfile, Task

WEEK_US = 604_800 * MICROSECONDS
START_US = 2952 * WEEK_US  # windows of all lengths begin here
HOUR_US = 3600 * MICROSECONDS


def settings(*windows: str, objective: str = ">= 0.85", **changes: Any) -> Config:
    """One model of two classes of which so much accuracy is asked."""
    model = {"task": "binary", "positive_label": "yes", "objectives": {"accuracy": objective}}
    return parse({"windows": list(windows), "pane": "1m", "models": {"m": model}, **changes}, {})


class RipeCohorts:
    """Labels that are through at once; `right` and `wrong` (hours,) by hour of the story."""

    def __init__(self, config: Config, right: Ints, wrong: Ints) -> None:
        self.config = config
        self._right, self._wrong = (np.concatenate(([0], np.cumsum(part))) for part in (right, wrong))
        self._profiles: dict[CohortKey, OutcomeProfile | None] = {}
        self.missing: set[int] = set()  # ends of cohorts that lack labels
        self.states: dict[str, bytes] = {}
        self.book = IncidentBook(LineKey("m", "1"))
        version = SimpleNamespace(model=config.models["m"], whole=lambda: SimpleNamespace(number=0, book=self.book))
        store = SimpleNamespace(states=lambda _: self.states, put_states=lambda _, bodies: self.states.update(bodies))
        self._engine = SimpleNamespace(
            config=config, store=store, names=SimpleNamespace(outcomes=["label"]), versions={0: version},
            count_opened=lambda _, **__: None,
        )  # fmt: skip
        cohorts = SimpleNamespace(profile=self.profile, made=self.made, have=lambda _: None)
        self._outcomes = SimpleNamespace(cohorts=cohorts, reference=lambda *_: None)
        self._labels = SimpleNamespace(through_us=lambda *_: 0, since_us=lambda *_: START_US, ripeness=self._ripeness)
        self.told: dict[str, Incident] = {}
        self.objectives = self._opened()

    def _opened(self) -> Objectives:
        return Objectives(cast(Engine, self._engine), cast(Outcomes, self._outcomes), cast(LabelArrival, self._labels))

    def restart(self) -> None:
        """As after a checkpoint."""
        self.objectives.save()
        self.objectives = self._opened()

    def live(self, first: int, last: int, *, step: int = 1) -> list[Incident]:
        """Judge at the end of every `step` hours from the first to the last; every incident so far, as last told."""
        for hour in range(first + step, last + 1, step):
            for incident in self.objectives.judge(START_US + hour * HOUR_US):
                self.told[incident.id] = incident
        return sorted(self.told.values(), key=lambda incident: incident.opened_us)

    def made(self, line: int, seconds: int, start_us: int) -> int:
        """Predictions of a cohort; all of them are labelled."""
        found = self.profile((line, 0, seconds, start_us))
        return 0 if found is None else found.rows

    def profile(self, key: CohortKey) -> OutcomeProfile | None:
        """Of a cohort of whole hours; a shorter one has an equal part of its hour."""
        if key not in self._profiles:
            parts = max(HOUR_US // (key[2] * MICROSECONDS), 1)
            first, last = (
                us // HOUR_US for us in (key[3] - START_US, key[3] + key[2] * MICROSECONDS - START_US + HOUR_US - 1)
            )
            first, last = (min(max(hour, 0), len(self._right) - 1) for hour in (first, last))
            right, wrong = (int(sums[last] - sums[first]) // parts for sums in (self._right, self._wrong))
            found = OutcomeProfile(Task.BINARY, "yes", rows=right + wrong)
            found.pairs = Counter({pair: n for pair, n in ((("1", "1"), right), (("1", "0"), wrong)) if n})
            self._profiles[key] = found if right + wrong else None
        return self._profiles[key]

    def _ripeness(self, number: int, outcome: int, *, end_us: int, **counts: int) -> Ripeness:
        del number, outcome, counts
        return Ripeness.LABELS_MISSING if end_us in self.missing else Ripeness.RIPE


def hours(incident_us: int | None) -> float | None:
    """Hours since the story began."""
    return None if incident_us is None else (incident_us - START_US) / HOUR_US
