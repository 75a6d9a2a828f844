"""Labels as a stream of their own: how they usually come, that they are late, and what waits for them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feeding import read
from scipy import special

from stream_monitor import delays
from stream_monitor.app import make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.judge.baseline import Baseline
from stream_monitor.records import Binding, Incident, IncidentKind, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

EVENTS, LABELS = PartitionId(Stream.INFERENCE, "t", 0), PartitionId(Stream.GROUND_TRUTH, "l", 0)
START = 1_790_000_040  # a multiple of 60 s
CONFIG: dict[str, Any] = {
    "pane": "10s",
    "allowed_lateness": "1s",
    "windows": ["1m", "5m"],
    "drift": {"learn_from": 100_000},
    "models": {"m": {"task": "binary", "positive_label": "yes"}},
}
Bodies = list[dict[str, Any]]


def built(config: Config, rows: Bodies) -> list[Baseline]:
    """A baseline of raw rows."""
    source = MemorySource([Binding(Stream.INFERENCE, "b")])
    source.start({})
    source.extend(PartitionId(Stream.INFERENCE, "b", 0), [json.dumps(row).encode() for row in rows])
    return baselines_of_rows(source.poll(len(rows), 0.0).batches, config, source="here")


class Story:
    """An engine that is told predictions and labels in slices of time."""

    def __init__(self, folder: Path, *, baseline: Bodies | None = None, **changes: Any) -> None:
        self._path = folder / "state.duckdb"
        self.config = parse({**CONFIG, **changes}, {})
        self._source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, LABELS)])
        self._source.start({})
        self._decoder = make_decoder(self.config)
        self.told: dict[str, Incident] = {}
        self._baselines = [] if baseline is None else built(self.config, baseline)
        self._open()

    def _open(self) -> None:
        self._store = Store(self._path)
        self.engine = Engine(self.config, self._store, baselines=self._baselines, expects_labels=True)

    def restart(self) -> None:
        """As after a crash right behind a checkpoint."""
        self._store.close()
        self._open()

    def close(self) -> None:
        """Let go of the state file."""
        self._store.close()

    def tell(self, events: Bodies, labels: Bodies) -> None:
        """Feed a slice and commit."""
        for partition, bodies in ((EVENTS, events), (LABELS, labels)):
            self._source.extend(partition, [json.dumps(body).encode() for body in bodies])
        self.told |= {i.id: i for i in read(self.engine, self._source, self._decoder)}

    def live(
        self,
        events: Bodies,
        labels: Bodies,
        *,
        slice_seconds: float = 600,
        restarts: bool = False,
        finishing: bool = False,
    ) -> None:
        """Feed what happens slice by slice, labels when they come."""
        first = min(body["timestamp"] for body in events)
        last = max(body["timestamp"] for body in [*events, *labels])
        for begin in np.arange(first, last + slice_seconds, slice_seconds).tolist():
            self.tell(*([b for b in bodies if begin <= b["timestamp"] < begin + slice_seconds]
                        for bodies in (events, labels)))  # fmt: skip
            if finishing and begin + slice_seconds > labels[-1]["timestamp"]:
                self.engine.flow.state(LABELS).finished = True  # as a file that is read to its end
            if restarts:
                self.restart()

    def of(self, kind: IncidentKind) -> list[Incident]:
        """Every incident of a kind, as it was last told."""
        return sorted((i for i in self.told.values() if i.kind is kind), key=lambda i: i.opened_us)


@pytest.fixture
def begin(tmp_path: Path) -> Iterable[Callable[..., Story]]:
    """Begins stories, each on a state file of its own."""
    made: list[Story] = []

    def make(**changes: Any) -> Story:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Story(folder, **changes))
        return made[-1]

    yield make
    for story in made:
        story.close()


def traffic(
    minutes: float,
    *,
    delay: Callable[[int, float], float | None],
    wrong: Callable[[int, float], bool],
    a_minute: int = 60,
) -> tuple[Bodies, Bodies]:
    """Predictions at an even pace; `delay` in seconds by (number, second of the story), None where no label comes."""
    events: Bodies = []
    labels: Bodies = []
    for number in range(int(minutes * a_minute)):
        at = number * 60 / a_minute
        chosen = number % 2 == 1
        events.append({"inference_id": number, "model": "m", "timestamp": START + at, "features": {"a": number * 7 % 17},
                       "prediction": {"label": "yes" if chosen else "no", "score": 0.9 if chosen else 0.1}})  # fmt: skip
        after = delay(number, at)
        if after is not None:
            truth = chosen != wrong(number, at)
            labels.append({"inference_id": number, "label": "yes" if truth else "no", "timestamp": START + at + after})
    return events, sorted(labels, key=lambda body: body["timestamp"])


def a_tenth(number: int, at: float) -> bool:
    """Every tenth prediction is wrong, of both classes alike."""
    del at
    return number % 20 in (3, 14)


def minute(us: int | None) -> float | None:
    """Minutes since the story began."""
    return None if us is None else (us / 1e6 - START) / 60


def usual(number: int, at: float) -> float | None:
    """Nine of ten are labelled, within half a minute."""
    del at
    return None if number % 10 == 7 else 5 + number * 13 % 25


def test_labels_that_stop_are_one_incident_that_closes(begin: Callable[..., Story]) -> None:
    """It opens within three minutes, says how many are missing since when, and closes when labels are back."""
    story = begin()

    def delay(number: int, at: float) -> float | None:
        return None if 3600 <= at < 5400 else usual(number, at)

    story.live(*traffic(150, delay=delay, wrong=a_tenth))
    (incident,) = story.of(IncidentKind.LABELS_LATE)
    assert minute(incident.onset_us) == 60
    assert 60 < (minute(incident.opened_us) or 0) <= 63
    assert 90 < (minute(incident.closed_us) or 0) <= 96
    assert incident.severity == "critical" or incident.severity == "warning"
    assert "labels are missing" in incident.summary
    assert "since 2026" in incident.summary


def test_an_objective_is_missed_on_ripe_cohorts(begin: Callable[..., Story]) -> None:
    """A collapse is found within three fast cohorts once they are ripe, and is over when two are good again."""
    story = begin(models={"m": {**CONFIG["models"]["m"], "objectives": {"accuracy": ">= 0.8"}}})

    def wrong(number: int, at: float) -> bool:
        return number % 2 == 0 if 3600 <= at < 5400 else a_tenth(number, at)

    story.live(*traffic(150, delay=usual, wrong=wrong))
    (incident,) = [i for i in story.of(IncidentKind.PERFORMANCE) if i.subjects[0].name == "accuracy"]
    assert minute(incident.onset_us) == 60
    assert not story.of(IncidentKind.LABELS_LATE)


def test_a_world_that_changes_and_changes_back_is_not_labels_that_depend_on_their_age(
    begin: Callable[..., Story],
) -> None:
    """Old cells know the bad hour longer than young ones: ages are compared in the same cells, and errors go on as they come."""

    def wrong(number: int, at: float) -> bool:
        return number % 2 == 0 if 3600 <= at < 7200 else a_tenth(number, at)

    def delay(number: int, at: float) -> float:
        del at
        return 100 + number * 7 % 60

    events, labels = traffic(60, delay=delay, wrong=a_tenth)
    truth = {label["inference_id"]: label["label"] for label in labels}
    story = begin(baseline=[event | {"label": truth[event["inference_id"]]} for event in events])
    story.live(*traffic(240, delay=delay, wrong=wrong), restarts=True)
    [row] = delays.rows(story.engine)
    assert (row["watch"]["state"], row["watch"]["age_seconds"], row["watch"]["held"]) == ("as_they_come", 0, 0)
    [incident] = story.of(IncidentKind.CONCEPT_DRIFT)
    assert abs((minute(incident.onset_us) or 0) - 60) <= 1
    assert 120 < (minute(incident.closed_us) or 0) < 140


def of_two_classes(first: int, last: int, *, found: float, spared: float, seed: int) -> tuple[Bodies, Bodies]:
    """Four predictions a second without scores: three of ten are yes, of which `found` are, and `spared` of the others."""
    rng = np.random.default_rng(seed)
    events: Bodies = []
    labels: Bodies = []
    for number in range(first * 240, last * 240):
        is_true = rng.random() < 0.3
        said = rng.random() < (found if is_true else 1 - spared)
        events.append({"inference_id": number, "model": "m", "timestamp": START + number / 4, "features": {"a": number % 7},
                       "prediction": {"label": "yes" if said else "no"}})  # fmt: skip
        labels.append({"inference_id": number, "label": "yes" if is_true else "no",
                       "timestamp": START + number / 4 + 5 + number % 10})  # fmt: skip
    return events, sorted(labels, key=lambda body: body["timestamp"])


def test_without_objectives_the_baseline_is_the_objective(begin: Callable[..., Story]) -> None:
    """Errors that change sides leave their rate alone: that positives are not found is told, beside the baseline's."""
    events, labels = of_two_classes(0, 80, found=0.8, spared=0.86, seed=1)
    truth = {label["inference_id"]: label["label"] for label in labels}
    story = begin(baseline=[event | {"label": truth[event["inference_id"]]} for event in events])
    story.live(*of_two_classes(0, 60, found=0.8, spared=0.86, seed=2), restarts=True)
    assert not story.of(IncidentKind.PERFORMANCE)
    story.live(*of_two_classes(60, 90, found=0.5, spared=0.988, seed=3), restarts=True)
    (incident,) = story.of(IncidentKind.PERFORMANCE)
    assert [subject.name for subject in incident.subjects] == ["recall"]
    assert "the recall is worse than the baseline's" in incident.summary
    assert re.search(r"where the baseline has 0\.(79|80)", incident.summary)
    assert 58 <= (minute(incident.onset_us) or 0) <= 62
    assert (minute(incident.opened_us) or 0) <= 70
    assert not story.of(IncidentKind.CONCEPT_DRIFT)


def test_slower_labels_are_late_and_hold_objectives_back(begin: Callable[..., Story]) -> None:
    """Labels that take ten minutes instead of half a one: late until they are as fast again; cohorts wait for them."""
    story = begin(models={"m": {**CONFIG["models"]["m"], "objectives": {"accuracy": ">= 0.8"}}})

    def delay(number: int, at: float) -> float | None:
        usually = usual(number, at)
        # What is wrong is told at once, what is right late: early labels of these cohorts are no sample of all.
        return usually if usually is None or not 3600 <= at < 5400 or a_tenth(number, at) else usually + 600

    story.live(*traffic(150, delay=delay, wrong=a_tenth))
    (late,) = story.of(IncidentKind.LABELS_LATE)
    assert minute(late.onset_us) == 60
    assert late.closed_us is not None
    assert not [i for i in story.of(IncidentKind.PERFORMANCE) if i.subjects[0].name == "accuracy"]


def test_the_class_that_comes_first_is_no_performance(begin: Callable[..., Story]) -> None:
    """All positives are labelled within a minute, wrong ones of them too, negatives after half an hour."""
    story = begin(models={"m": {**CONFIG["models"]["m"], "objectives": {"accuracy": ">= 0.8"}}})

    def wrong(number: int, at: float) -> bool:
        del at
        return number % 20 in (4, 10)  # predicted no, and yes in truth: a third or so of the positives

    def delay(number: int, at: float) -> float | None:
        positive = (number % 2 == 1) != wrong(number, at)
        return 20.0 if positive and (number % 3 == 0 or wrong(number, at)) else 1800.0 + number % 60

    story.live(*traffic(240, delay=delay, wrong=wrong))
    assert [i for i in story.told.values() if i.kind in (IncidentKind.PERFORMANCE, IncidentKind.LABELS_LATE)] == []
    standing = story.engine.outcomes.objectives._versions[0]
    assert max(pair.reached_us for pair in standing.pairs) > 0, "nothing was judged"


def test_labels_that_come_as_usual_are_never_late(begin: Callable[..., Story]) -> None:
    """Two days with random delays, pauses between batches of labels and a tenth that never comes."""
    story = begin(windows=["15m", "1h"])
    random = np.random.default_rng(7)
    delays = random.lognormal(5.0, 1.2, 48 * 60 * 2)
    never = random.random(len(delays)) < 0.1

    def delay(number: int, at: float) -> float | None:
        batch = 1200 - at % 1200  # someone writes them down three times an hour
        return None if never[number] else batch + float(delays[number])

    story.live(*traffic(48 * 60, delay=delay, wrong=a_tenth, a_minute=2), slice_seconds=7200)
    assert story.of(IncidentKind.LABELS_LATE) == []


def outage(number: int, at: float) -> float | None:
    """Labels stop for half an hour."""
    return None if 3600 <= at < 5400 else usual(number, at)


@pytest.mark.parametrize("way", ["shuffled", "restarted", "in other slices"])
def test_what_is_told_depends_on_times_alone(begin: Callable[..., Story], way: str) -> None:
    """Order within the lateness, restarts and how polls cut the stream change no incident and no curve."""
    one, other = begin(allowed_lateness="30s"), begin(allowed_lateness="30s")
    events, labels = traffic(110, delay=outage, wrong=a_tenth, a_minute=30)
    one.live(events, labels)
    if way == "shuffled":
        random = np.random.default_rng(3)
        events, labels = (
            [bodies[i] for i in np.argsort([b["timestamp"] + random.uniform(0, 20) for b in bodies])]
            for bodies in (events, labels)
        )
    other.live(events, labels, restarts=way == "restarted", slice_seconds=870 if way == "in other slices" else 600)
    assert one.of(IncidentKind.LABELS_LATE)
    assert other.of(IncidentKind.LABELS_LATE) == one.of(IncidentKind.LABELS_LATE)
    assert [rest for *_, rest in other.engine.outcomes.labels.rows()] == [
        rest for *_, rest in one.engine.outcomes.labels.rows()
    ]


def test_the_end_of_a_file_is_not_silence(begin: Callable[..., Story]) -> None:
    """The labels' file ends an hour before the events': nothing is late. Labels that stop in between are."""
    for stops, expected in ((False, 0), (True, 1)):
        story = begin()
        events, labels = traffic(150, delay=outage if stops else usual, wrong=a_tenth, a_minute=30)
        labels = [body for body in labels if body["timestamp"] < START + (7200 if stops else 5400)]
        story.live(events, labels, finishing=True)
        assert len(story.of(IncidentKind.LABELS_LATE)) == expected


def test_a_promoted_baseline_has_the_habit_learnt_anew(begin: Callable[..., Story]) -> None:
    """What is late by the old habit is closed and becomes the usual one."""
    story = begin()
    events, labels = traffic(
        200, delay=lambda n, at: (usual(n, at) or 5) + 600 * (at >= 3600), wrong=a_tenth, a_minute=30
    )
    half = START + 100 * 60
    story.live([e for e in events if e["timestamp"] < half], [b for b in labels if b["timestamp"] < half])
    assert story.of(IncidentKind.LABELS_LATE)[0].closed_us is None
    story.engine.outcomes.labels.relearn(0)
    story.engine.versions[0].whole().book.close(now_us=int(half * 1e6))
    story.live([e for e in events if e["timestamp"] >= half], [b for b in labels if b["timestamp"] >= half])
    assert len(story.of(IncidentKind.LABELS_LATE)) == 1
    assert not story.engine.outcomes.labels._versions[0].truths[0].is_late
    assert story.engine.outcomes.labels.through_us(0, 0) is not None


def test_what_people_see_of_labels(begin: Callable[..., Story]) -> None:
    """Delays by class, the curve, and coverage beside the usual one, in the API and in metrics; a restart keeps them."""
    story = begin()

    def delay(number: int, at: float) -> float | None:
        del at
        return None if number % 10 == 7 else 8.0 if number % 2 else 100.0

    story.live(*traffic(60, delay=delay, wrong=a_tenth, a_minute=30))
    (row,) = delays.rows(story.engine)
    assert [d["class"] for d in row["delays"]] == ["no", "yes"]
    assert row["delays"][0]["p50_seconds"] == pytest.approx(100, rel=0.5)
    assert row["delays"][1]["p50_seconds"] == pytest.approx(8, rel=0.5)
    assert sum(d["labels"] for d in row["delays"]) == story.engine.truth.ledger.labelled[0]
    curve = {point["age_seconds"]: point["coverage"] for point in row["curve"]}
    assert (curve[4], curve[8], curve[64], curve[128]) == pytest.approx((0, 0.4, 0.4, 0.9), abs=0.01)
    assert row["through_after_seconds"] == 128
    assert {cohort["ripeness"] for cohort in row["cohorts"]} >= {"ripe", "young"}
    assert (row["watch"]["state"], row["watch"]["age_seconds"]) == ("when_ripe", 128)
    assert row["watch"]["held"] > 0
    text = render(story.engine).decode()
    assert 'label_coverage_expected_ratio{model="m",version="unversioned",window="1m"}' in text
    assert 'label_delay_percentile_seconds{model="m",percentile="50",truth="no",version="unversioned"}' in text
    story.restart()
    assert delays.rows(story.engine) == [row]


class Asked:
    """A calibrated model of an event of one in five or so; from a second of the story on three truths in ten are turned."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def rows(self, n: int, *, from_number: int | None = None) -> list[tuple[dict[str, Any], str]]:
        """(prediction, truth) of each."""
        x = self.rng.normal(0, 1, n)
        score = special.expit(2 * x - 2)
        is_yes = self.rng.random(n) < score
        if from_number is not None:
            is_yes[from_number:] ^= self.rng.random(n - from_number) < 0.3
        said = [{"label": "yes" if s >= 0.5 else "no", "score": round(float(s), 4)} for s in score]
        return [(p, "yes" if y else "no") for p, y in zip(said, is_yes.tolist(), strict=True)]

    def baseline(self, n: int = 3_000) -> Bodies:
        """Rows with their truth."""
        return [
            {"model": "m", "features": {"a": k * 7 % 17}, "prediction": said, "label": truth}
            for k, (said, truth) in enumerate(self.rows(n))
        ]

    def traffic(
        self, minutes: int, delay: Callable[[np.random.Generator, bool, bool], float], *, changed: int | None = None
    ) -> tuple[Bodies, Bodies]:
        """A prediction a second; `delay` in seconds by (positive, wrong)."""
        rows = self.rows(minutes * 60, from_number=None if changed is None else changed * 60)
        events = [
            {"inference_id": k, "model": "m", "timestamp": START + k, "features": {"a": k * 7 % 17}, "prediction": said}
            for k, (said, _) in enumerate(rows)
        ]
        labels = [
            {"inference_id": k, "label": truth,
             "timestamp": START + k + delay(self.rng, truth == "yes", truth != said["label"])}
            for k, (said, truth) in enumerate(rows)
        ]  # fmt: skip
        return events, sorted(labels, key=lambda body: body["timestamp"])


Delay = Callable[[np.random.Generator, bool, bool], float]

BIASED: dict[str, Delay] = {
    "positives at once": lambda _, yes, __: 20 if yes else 2_400,
    "nine of ten positives": lambda rng, yes, _: 20 if yes and rng.random() < 0.9 else 2_400,
    "negatives at once": lambda _, yes, __: 2_400 if yes else 20,
    "complaints": lambda _, __, wrong: 15 if wrong else 1_800,
    "slower by class": lambda rng, yes, _: float(rng.lognormal(3 if yes else 7, 1.0)),
}
ALIKE: dict[str, Delay] = {
    "at once": lambda _, __, ___: 2,
    "in one go": lambda _, __, ___: 1_500,
    "spread": lambda rng, _, __: float(rng.exponential(400)),
}
QUIET: dict[str, Any] = {"label_horizon": "2h", "models": {
    "m": {"task": "binary", "positive_label": "yes", "objectives": {"accuracy": ">= 0.7"}}}}  # fmt: skip


def of_errors(story: Story) -> list[Incident]:
    """Incidents that speak of performance."""
    return story.of(IncidentKind.CONCEPT_DRIFT) + story.of(IncidentKind.PERFORMANCE)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("shape", BIASED)
def test_labels_that_come_first_ring_no_bell(begin: Callable[..., Story], shape: str, seed: int) -> None:
    """From the first label on, with a baseline: nothing is said of errors; after two hours they are watched all the same."""
    asked = Asked(seed)
    story = begin(**QUIET, baseline=asked.baseline())
    story.live(*asked.traffic(120, BIASED[shape]), slice_seconds=1_500)
    assert of_errors(story) == []
    watched = story.engine.outcomes._arrivals[(0, 0)].concept
    assert watched is not None
    assert watched.traffic.events > 1_000


@pytest.mark.parametrize("windows", [["1m", "5m"], ["15m", "1h"]])
def test_labels_of_which_complaints_alone_go_on_are_late_and_no_change(
    begin: Callable[..., Story], windows: list[str]
) -> None:
    """What still comes says that every answer was wrong: a relation that turned, if nobody asked where the others are."""
    asked = Asked(3)
    story = begin(**{**QUIET, "label_horizon": "1d", "windows": windows}, baseline=asked.baseline(10_000))
    events, labels = asked.traffic(160, lambda rng, _, __: float(rng.uniform(0, 1_800)))
    said = [event["prediction"]["label"] for event in events]
    left = [b for b in labels if (k := b["inference_id"]) < 120 * 60 or b["label"] != said[k]]
    story.live(events, [b for b in left if b["timestamp"] < START + 160 * 60], slice_seconds=60)
    assert of_errors(story) == []
    [late] = story.of(IncidentKind.LABELS_LATE)
    assert 120 < (minute(late.opened_us) or 0) < 150


@pytest.mark.parametrize("shape", [*ALIKE, "positives at once"])
def test_a_change_is_found_as_soon_as_labels_tell(begin: Callable[..., Story], shape: str) -> None:
    """Of a stream that has just begun: at once where labels come alike, when they are ripe where they do not."""
    asked = Asked(5)
    story = begin(**QUIET, baseline=asked.baseline(10_000))
    events, labels = asked.traffic(150, {**BIASED, **ALIKE}[shape], changed=60)
    story.live(events, labels, slice_seconds=1_500)
    [drift] = story.of(IncidentKind.CONCEPT_DRIFT)
    assert (minute(drift.onset_us) or 0) == pytest.approx(60, abs=6)
    affected = [b for b in labels if b["inference_id"] >= 3_600 and b["timestamp"] * 1e6 <= drift.opened_us]
    if shape in ALIKE:
        assert len(affected) <= 260
    else:
        assert 60 + 4_096 / 60 < (minute(drift.opened_us) or 0) < 60 + (4_096 + 400) / 60
