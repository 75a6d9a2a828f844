"""Which cohort of each window length people are shown first: the newest closed one that is ripe, however late labels come.

Cohorts are looked at from the newest that is old enough back to the first with a label, each but once: what was looked at
is remembered, and of what had too few labels the newest few are looked at again. So what is shown never goes back to an
earlier cohort, but once, when it becomes known when labels are through. When that is forgotten again (a promoted baseline
has it learnt anew, or ever fewer labels come), the age stays and the cohorts are not called ripe. Segments show the same
window as their whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stream_monitor.cohorts import CohortKey
from stream_monitor.labels import Ripeness
from stream_monitor.records import MICROSECONDS, NO_TIME, ModelKey, window_start
from stream_monitor.revisions import FEWEST_LABELS
from stream_monitor.summarize.outcome import OutcomeProfile

if TYPE_CHECKING:
    from stream_monitor.engine import Engine
    from stream_monitor.versions import Line

AGAIN = 8
"""Of the cohorts that had too few labels, so many of the newest are looked at again: when labels that were late have come,
these are through as well, and one of them is shown within a look."""

AT_ONCE = 250
"""Cohorts fetched together, 4 MB: each fetch is a scan of the states, and in 45 days are 4,320 quarters of an hour."""

MOST_LOOKED = 10_000
"""Cohorts looked back over, whatever the label horizon and the shortest window: at most so many once after a start."""

FULL = 0.9
"""While it is unknown when labels are through, a cohort is shown with 30 labels, or with so many of its predictions labelled."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """What is shown of one window length. `is_ripe`: its labels were through when it was chosen.

    `coverage` and `usual` are those of the newest cohort whose labels should be through, whether they are there or not
    (while that age is unknown, of this one); NaN where nothing is known.
    """

    key: CohortKey
    profile: OutcomeProfile
    is_ripe: bool
    coverage: float
    usual: float

    @property
    def end_us(self) -> int:
        """The end of its predictions."""
        return self.key[3] + self.key[2] * MICROSECONDS


@dataclass(slots=True)
class _Place:
    """Starts of windows of one version, outcome and length: what is shown, how far was looked, what is covered."""

    through_us: int | None  # the age by which labels are through, as it was last known
    shown_us: int = NO_TIME
    is_ripe: bool = False
    looked_us: int = NO_TIME
    covered_us: int = NO_TIME


class Shown:
    """The cohorts that are shown of every version and its segments. Holds nothing that the state file would have to keep."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._places: dict[tuple[int, int, int], _Place] = {}

    def cohort(self, line: Line, outcome: int, seconds: int) -> Cohort | None:
        """What is shown of a line, None while nothing is labelled enough."""
        number = self.engine.names.version_index(ModelKey(line.key.model, line.key.version))
        assert number is not None
        place = self._looked(number, outcome, seconds)
        if place is None or place.shown_us == NO_TIME:
            return None
        cohorts = self.engine.outcomes.cohorts
        key = (line.number, outcome, seconds, place.shown_us)
        profile = cohorts.profile(key)
        if profile is None or not profile.rows + profile.unusable:
            return None
        covered = (line.number, outcome, seconds, place.covered_us)
        usual = self._usual(number, outcome, seconds, place.covered_us) if line.is_whole else float("nan")
        return Cohort(key, profile, place.is_ripe, cohorts.coverage(covered, cohorts.profile(covered)), usual)

    def _usual(self, number: int, outcome: int, seconds: int, start_us: int) -> float:
        now_us = self.engine.joined_sealed_us
        if now_us is None:
            return float("nan")
        end_us = start_us + seconds * MICROSECONDS
        return self.engine.outcomes.labels.usual_coverage(number, outcome, start_us, end_us, now_us)

    def _looked(self, number: int, outcome: int, seconds: int) -> _Place | None:
        """The place, after a look at the cohorts that have become old enough since the last."""
        engine, labels = self.engine, self.engine.outcomes.labels
        first_us = labels.since_us(number, outcome)
        if first_us is None or engine.sealed_us is None or engine.joined_sealed_us is None:
            return None
        through_us, key = labels.through_us(number, outcome), (number, outcome, seconds)
        is_first = key in self._places and self._places[key].through_us is None and through_us is not None
        if key not in self._places or is_first:
            self._places[key] = _Place(through_us)
        place, span = self._places[key], seconds * MICROSECONDS
        place.through_us = place.through_us if through_us is None else through_us
        until_us = engine.sealed_us
        if place.through_us is not None:
            until_us = min(until_us, engine.joined_sealed_us - place.through_us)
        newest = window_start(until_us, seconds) - span
        is_final = place.is_ripe or through_us is None  # what is older than this one is not wanted any more
        oldest = max(
            window_start(first_us, seconds),
            newest - min(engine.config.label_horizon * MICROSECONDS, MOST_LOOKED * span),
            place.looked_us - AGAIN * span,
            place.shown_us + span if is_final else NO_TIME,
        )
        for begin in range(newest, oldest - span, -AT_ONCE * span):
            starts = list(range(begin, max(begin - AT_ONCE * span, oldest - span), -span))
            if self._take(place, number, outcome, seconds, starts, is_known=through_us is not None):
                break
        place.looked_us = max(place.looked_us, newest)
        return place

    def _take(
        self, place: _Place, number: int, outcome: int, seconds: int, starts: list[int], *, is_known: bool
    ) -> bool:
        """Look at some cohorts, the newest first; whether one of them ends the search."""
        cohorts, labels = self.engine.outcomes.cohorts, self.engine.outcomes.labels
        line, now_us = self.engine.versions[number].whole().number, self.engine.joined_sealed_us
        assert now_us is not None
        cohorts.have([(line, outcome, seconds, start) for start in starts])
        for start in starts:
            made, profile = cohorts.made(line, seconds, start), cohorts.profile((line, outcome, seconds, start))
            if not made:
                continue
            if place.through_us is not None:
                place.covered_us = max(place.covered_us, start)
            labelled = 0 if profile is None else profile.rows + profile.unusable
            end_us = start + seconds * MICROSECONDS
            ripeness = labels.ripeness(number, outcome, end_us=end_us, made=made, labelled=labelled, now_us=now_us)
            is_ripe = ripeness is Ripeness.RIPE and labelled > 0
            is_enough = labelled >= FEWEST_LABELS or 0 < FULL * made <= labelled
            if is_ripe or (is_enough and (not is_known or place.shown_us == NO_TIME)):
                place.shown_us, place.is_ripe = start, is_ripe
                if place.through_us is None:
                    place.covered_us = start
                if is_ripe or not is_known:
                    return True
        return False
