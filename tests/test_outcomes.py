"""Labels through an engine that is fed by hand: what they say of a model, and what of it a restart forgets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from feeding import read

from stream_monitor import history, past
from stream_monitor.app import make_decoder
from stream_monitor.config import parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.publish.http import Filters
from stream_monitor.records import Binding, Incident, IncidentKind, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

EVENTS, LABELS = PartitionId(Stream.INFERENCE, "t", 0), PartitionId(Stream.GROUND_TRUTH, "l", 0)
CONFIG: dict[str, Any] = {
    "pane": "1s",
    "allowed_lateness": "1s",
    "windows": ["30s", "1m"],
    "drift": {"learn_from": 800, "detectors": ["adwin"]},
    "models": {"m": {"task": "binary", "positive_label": "yes", "segments": ["market"]}},
}
START = 1_790_000_040  # a multiple of 60 s


class Story:
    """An engine on a state file, and what it is told."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self._state = folder / "state.duckdb"
        self._config = parse({**CONFIG, **changes}, {})
        self._source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, LABELS)])
        self._source.start({})
        self._open()

    def _open(self) -> None:
        self._store = Store(self._state)
        self.engine = Engine(self._config, self._store)

    def restart(self) -> None:
        """As after a crash right behind a checkpoint."""
        self._store.close()
        self._open()

    def close(self) -> None:
        """Let go of the state file."""
        self._store.close()

    def tell(self, events: Iterable[dict[str, Any]], labels: Iterable[dict[str, Any]] = ()) -> list[Incident]:
        """Feed events and labels and commit; the incidents that changed."""
        for partition, bodies in ((EVENTS, events), (LABELS, labels)):
            self._source.extend(partition, [json.dumps(body).encode() for body in bodies])
        return read(self.engine, self._source, make_decoder(self._config))


@pytest.fixture
def story(tmp_path: Path) -> Iterable[Story]:
    """A story that has not begun."""
    made = Story(tmp_path)
    yield made
    made.close()


def event(number: int, seconds: float, *, yes: bool | None = None) -> dict[str, Any]:
    """An event of one of two segments; every second prediction is yes, unless it is said."""
    chosen = bool(number % 2) if yes is None else yes
    return {
        "inference_id": number,
        "model": "m",
        "timestamp": START + seconds,
        "features": {"a": number * 7 % 17},
        "prediction": {"label": "yes" if chosen else "no", "score": 0.9 if chosen else 0.1},
        "segment": {"market": "eu" if number % 3 else "us"},
    }


def label(number: int, seconds: float, *, right: bool) -> dict[str, Any]:
    """Its truth."""
    return {"inference_id": number, "label": "yes" if right == bool(number % 2) else "no", "timestamp": START + seconds}


def traffic(first: int, last: int, wrong: Callable[[int], bool]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ten events a second and their labels, half a second after them."""
    numbers = range(first, last)
    return [event(n, n / 10) for n in numbers], [label(n, n / 10 + 0.5, right=not wrong(n)) for n in numbers]


def never(number: int) -> bool:
    """No prediction is wrong."""
    del number
    return False


def series(engine: Engine, *families: str) -> list[str]:
    """The lines of some families."""
    return [line for line in render(engine).decode().splitlines() if line.startswith(families)]


def test_a_restart_loses_no_figure_of_the_windows_that_closed(story: Story) -> None:
    """What arrived in the newest closed window and its scores are shown again at once, not when the next one closes."""
    families = ("stream_monitor_performance", "stream_monitor_segment_performance",
                "stream_monitor_segment_feature_drift_score", "stream_monitor_label_coverage_ratio")  # fmt: skip
    story.tell(*traffic(0, 2000, lambda n: n % 10 == 0))
    before, features = series(story.engine, *families), history.features(story.engine, 0)
    assert {line.partition("{")[0] for line in before} >= set(families)
    for basis in ("arrival", "cohort"):
        assert any(f'basis="{basis}"' in line for line in before)
    story.restart()
    assert series(story.engine, *families) == before
    assert history.features(story.engine, 0) == features
    assert all(feature["latest"] for feature in features)


def figures(engine: Engine, basis: str) -> dict[str, tuple[float, int]]:
    """The accuracy of each window of one basis, with its rows."""
    rows = [row for row in history.performance_rows(engine) if not row.line.segment]
    rows = [row for row in rows if (row.metric, row.basis) == ("accuracy", basis)]
    return {f"{row.window} {row.window_start_us // 1_000_000 - START}": (row.value, row.samples) for row in rows}


@pytest.mark.parametrize("seconds", [45, 90], ids=["while the window is open", "after it closed"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_correction_reaches_the_windows_of_arrival(story: Story, seconds: int, restarts: bool) -> None:
    """Half the labels that came in the first half minute were wrong and are corrected: both bases tell so from then on."""
    story.tell(*traffic(0, 200, lambda n: n % 2 == 0))
    story.tell([event(n, n / 10) for n in range(200, seconds * 10)])
    first = figures(story.engine, "arrival")
    assert first["30s 0"] == (0.5, 200)
    story.restart() if restarts else None
    story.tell(
        [event(n, n / 10) for n in range(seconds * 10, seconds * 10 + 50)],
        [label(n, seconds, right=True) for n in range(0, 200, 2)],
    )
    story.restart() if restarts else None
    assert (
        figures(story.engine, "arrival") == figures(story.engine, "cohort") == {"30s 0": (1.0, 200), "1m 0": (1.0, 200)}
    )
    story.tell([event(n, n / 10) for n in range(2000, 2100)])
    assert figures(story.engine, "arrival")["1m 0"] == (1.0, 200)
    shown = series(story.engine, "stream_monitor_performance{")
    assert [line.rpartition(" ")[2] for line in shown if 'metric="accuracy"' in line and 'basis="arrival"' in line]


def test_incidents_that_are_over_are_forgotten(story: Story) -> None:
    """Each is counted once, and the memory of which were counted does not grow with them."""
    story.tell(*traffic(0, 900, never))
    for step in range(3):
        story.engine.note_loss(EVENTS, 10, 20)
        story.tell(*traffic(900 + 10 * step, 910 + 10 * step, never))
    lost = {"kind": "data_loss", "model": "m"}
    assert history.total(story.engine, "incidents_opened", **lost) == 3
    assert story.engine._known_incidents == {}


def test_what_grows_worse_says_when(story: Story) -> None:
    """The end of the window that raised the severity, for labels as for features: not when the incident opened."""
    story.tell(*traffic(0, 1200, lambda n: n % 10 == 0))
    [errors] = story.tell(*traffic(1200, 1800, lambda n: n % 4 == 0))
    assert (errors.severity, errors.opened_us, errors.worsened_us) == ("warning", (START * 10 + 1461) * 10**5, None)
    [errors] = story.tell(*traffic(1800, 2400, lambda n: n % 10 < 7))
    assert (errors.severity, errors.worsened_us) == ("critical", (START + 210) * 10**6)
    story.tell([event(n, n / 10, yes=n % 10 > 2) for n in range(2400, 3000)])
    changed = story.tell([event(n, n / 10, yes=True) for n in range(3000, 3600)])
    [drift] = [i for i in changed if i.kind == "prediction_drift" and not i.line.segment]
    assert (drift.severity, drift.opened_us, drift.worsened_us) == (
        "critical",
        (START * 10 + 2847) * 10**5,  # 4.7 s after they began to change, as the charts saw it
        (START + 330) * 10**6,
    )


@pytest.mark.parametrize(
    ("errors", "expected"),
    [([30, 5], []), ([10, 30], [False]), ([20, 2, 20], []), ([10, 40, 10], [True])],
    ids=["better", "worse", "better and back", "worse and back"],
)
def test_errors_that_fall_are_no_incident(tmp_path: Path, errors: list[int], expected: list[bool]) -> None:
    """So many in 100 are wrong in each five minutes: detectors see every change, but only harm is told, until it is over."""
    story = Story(tmp_path, windows=["1d"])  # none ends: what is found, is found between the windows
    draw = random.Random(1)
    wrong = [draw.random() * 100 < percent for percent in errors for _ in range(3000)]
    found = {}
    for start in range(0, len(wrong), 300):
        changed = story.tell(*traffic(start, start + 300, wrong.__getitem__))
        found.update({i.id: i for i in changed if i.kind == "concept_drift"})
    seen = history.total(story.engine, "detector_changes", feature="error_rate", detector="adwin")
    story.close()
    assert [i.closed_us is not None for i in found.values()] == expected
    assert all(i.severity != "info" for i in found.values())
    assert seen >= len(errors) - 1


def test_a_relation_that_changes_is_dated_by_its_predictions_and_survives_a_restart(tmp_path: Path) -> None:
    """Labels a minute late: the incident opens when they come, began when the predictions were made, and ends after a crash."""
    story = Story(tmp_path, windows=["1d"])
    draw = random.Random(3)
    wrong = [draw.random() * 100 < (60 if 1500 <= n < 2100 else 10) for n in range(4200)]
    found: dict[str, Incident] = {}
    for start in range(0, 4200, 300):
        numbers = range(start, start + 300)
        late = [label(n, n / 10 + 60, right=not wrong[n]) for n in numbers]
        changed = story.tell([event(n, n / 10) for n in numbers], late)
        found.update({i.id: i for i in changed if i.kind in ("concept_drift", "performance")})
        if start == 2100:
            assert [i.closed_us for i in found.values()] == [None]
            story.restart()
    story.close()
    [drift] = found.values()
    assert (drift.kind, drift.severity) == ("concept_drift", "critical")
    assert drift.onset_us == pytest.approx((START + 150) * 10**6, abs=3 * 10**6)
    assert drift.onset_between_us is not None
    assert drift.onset_between_us[0] <= drift.onset_us <= drift.onset_between_us[1]
    assert (START + 210) * 10**6 < drift.opened_us < (START + 215) * 10**6
    assert {e.name for e in drift.subjects} == {"error_rate", "calibration"}
    assert all("the relation changed, inputs did not" in e.detail for e in drift.subjects)
    assert drift.closed_us is not None


def test_a_segment_that_changes_alone_has_an_incident_of_its_own(tmp_path: Path) -> None:
    """One market of eight is wrong more often from then on, a second one always was: only the first is told of."""
    story = Story(tmp_path, windows=["1h"], drift={"learn_from": 10**6})
    draw = random.Random(5)

    def rate(number: int) -> float:
        return 0.3 if number % 8 == 1 else 0.6 if number % 8 == 3 and 10_000 <= number < 10_800 else 0.1

    wrong = [draw.random() < rate(n) for n in range(16_000)]
    told: dict[str, Incident] = {}
    for start in range(0, 16_000, 2_000):
        events, labels = traffic(start, start + 2_000, wrong.__getitem__)
        events = [{**e, "segment": {"market": f"m{e['inference_id'] % 8}"}} for e in events]
        told |= {i.id: i for i in story.tell(events, labels) if i.kind == "concept_drift"}
        if start == 8_000:
            story.restart()
    story.close()
    [incident] = [i for i in told.values() if i.line.segment]
    assert incident.line.segment == (("market", "m3"),)
    assert incident.onset_us == pytest.approx((START + 1_000) * 10**6, abs=20 * 10**6)
    assert incident.opened_us < (START + 1_060) * 10**6
    assert incident.closed_us is not None
    assert "m3" not in incident.subjects[0].detail
    assert all(i.opened_us > incident.opened_us for i in told.values() if not i.line.segment)


def test_a_class_that_turns_is_found_and_named(tmp_path: Path) -> None:
    """One of ten classes is taken for another more often than not: its incident opens within its next 200 truths."""
    story = Story(tmp_path, windows=["1h"], drift={"learn_from": 10**6}, models={"m": {"task": "multiclass"}})
    draw, told = random.Random(9), dict[str, Incident]()
    for start in range(0, 7_000, 1_000):
        numbers = range(start, start + 1_000)
        truth = {n: 0 if draw.random() < 0.3 else 1 + n % 9 for n in numbers}
        wrong = {n: draw.random() < (0.6 if truth[n] == 0 and n >= 4_000 else 0.1) for n in numbers}
        said = [{"label": f"c{(truth[n] + wrong[n]) % 10}"} for n in numbers]
        events = [{**event(n, n / 10), "prediction": p} for n, p in zip(numbers, said, strict=True)]
        labels = [{"inference_id": n, "label": f"c{truth[n]}", "timestamp": START + n / 10 + 0.5} for n in numbers]
        told |= {i.id: i for i in story.tell(events, labels) if i.kind == "concept_drift"}
        if start == 4_000:
            story.restart()
    story.close()
    [incident] = told.values()
    named = [e for e in incident.subjects if e.name == "error_rate[c0]"]
    assert [e.name for e in incident.subjects if "[" in e.name] == ["error_rate[c0]"]
    assert "where the truth is c0; the relation changed, inputs did not" in named[0].detail
    assert (START + 300) * 10**6 < incident.onset_us < (START + 405) * 10**6  # the whole, which it dilutes, is unsure
    assert incident.opened_us < (START + 460) * 10**6


def test_answers_that_move_by_themselves_are_not_taken_for_inputs(tmp_path: Path) -> None:
    """The features are as before and the scores are not: the summary sends people to what was deployed."""
    story, rng = Story(tmp_path, windows=["30s", "1m"], drift={"learn_from": 2_000}), random.Random(3)
    told: dict[str, Incident] = {}
    for step in range(40):
        events, labels = [], []
        for number in range(step * 250, step * 250 + 250):
            chance = rng.random()
            score = chance if step < 28 else min(chance + 0.4, 1.0)
            answer = {"label": "yes" if score >= 0.5 else "no", "score": score}
            events.append(event(number, number / 50) | {"features": {"a": chance}, "prediction": answer})
            labels.append({"inference_id": number, "label": "yes" if rng.random() < chance else "no",
                           "timestamp": START + number / 50 + 20})  # fmt: skip
        told |= {incident.id: incident for incident in story.tell(events, labels)}
    story.close()
    [found] = [i for i in told.values() if i.kind is IncidentKind.CONCEPT_DRIFT and not i.line.segment]
    assert "the answers moved (prediction" in found.summary
    assert "inputs did not" in found.summary


def test_an_incident_of_a_detector_ends_when_no_labels_come(tmp_path: Path) -> None:
    """Nothing will ever say that the errors are calm again: after an hour of traffic without a truth it is closed."""
    never_wrong = "1 per 1000000000000000000000000000000d"  # the charts would have to be surer than they can be here
    story = Story(tmp_path, windows=["1d"], drift={**CONFIG["drift"], "false_alarms": never_wrong})
    draw = random.Random(1)
    wrong = [draw.random() * 100 < (10 if n < 3000 else 20) for n in range(4500)]
    for start in range(0, 4500, 300):
        story.tell(*traffic(start, start + 300, wrong.__getitem__))
    story.restart()
    silence = [event(n, 600 + (n - 6000) * 10) for n in range(6000, 6370)]
    late = [label(6369, 4300, right=True)]
    told = [i for part in ((silence[:358],), (silence[358:], late)) for i in story.tell(*part)]
    story.close()
    assert [(i.kind, i.severity) for i in told] == [("concept_drift", "info")]
    assert told[0].closed_us == pytest.approx((START + 449.9 + 0.5 + 3600) * 10**6, abs=1)


def weeks(engine: Engine, store: Store, **filters: Any) -> list[dict[str, Any]]:
    """What the API says of past windows."""
    with store.reader() as reader:
        return [dict(r) for r in past.performance(reader, engine.names, Filters(**filters), history.references(engine))]


def test_the_weekly_line_is_of_calendar_weeks(tmp_path: Path) -> None:
    """Three weeks that begin on Mondays, the one under way included; the rows are those of the table, page by page."""
    story = Story(tmp_path, windows=["1d", "7d"])
    day = 86_400
    for step in range(0, 16 * day, 4 * 3_600):
        at = 1_793_577_600 - START + step  # 2026-11-02 was a Monday
        number = step // 3_600
        story.tell([event(number, at)], [label(number, at + 1, right=step < 7 * day)])
    lines = weeks(story.engine, story._store, metric="accuracy", window_seconds=7 * day, basis="cohort", since_us=0)
    whole = [row for row in lines if not row["segment"]]
    assert [(row["window_start"][:10], row["value"], row["samples"]) for row in whole] == [
        ("2026-11-16", 0.0, 12), ("2026-11-09", 0.0, 42), ("2026-11-02", 1.0, 42)]  # fmt: skip
    assert [row["coverage"] for row in whole] == [1.0, 1.0, 1.0]
    table = [history.performance_json(row) for row in history.performance_rows(story.engine)]
    every = weeks(story.engine, story._store, since_us=0, limit=100_000)
    assert sorted(map(str, every)) == sorted(map(str, table))
    pages = [
        weeks(story.engine, story._store, since_us=0, limit=100, offset=at) for at in range(0, len(every) + 1, 100)
    ]
    assert str([row for page in pages for row in page]) == str(every)
    bounded = weeks(
        story.engine, story._store, since_us=1_794_182_400 * 10**6, until_us=1_794_268_800 * 10**6, limit=10**6
    )
    assert {row["window_start"][:10] for row in bounded} == {"2026-11-09"}
    story.close()


def test_behind_the_figures_stand_matrices_and_histograms(tmp_path: Path) -> None:
    """Who was taken for what, what scores came true, and the errors of numbers beside those before."""
    story = Story(tmp_path, models={"m": {"task": "binary", "positive_label": "yes"}, "n": {"task": "regression"}})
    events, labels = traffic(0, 900, lambda n: n % 10 == 0)
    rises = [{**e, "model": "n", "inference_id": f"n{k}", "prediction": k / 100} for k, e in enumerate(events)]
    truths = [{"inference_id": f"n{k}", "value": k / 100 + 1 + k % 3, "timestamp": START + k / 10} for k in range(900)]
    story.tell(events + rises, labels + truths)
    with story._store.reader() as reader:
        told = past.details(reader, story.engine.names, Filters(window_seconds=30, basis="cohort"), {})
    classes = next(d for d in told if d["model"] == "m")
    cells = [n for row in classes["confusion_matrix"].values() for n in row.values()]
    assert sum(cells) == classes["rows"] == sum(tenth["rows"] for tenth in classes["reliability"]) == 300
    assert [(tenth["above"], tenth["mean_confidence"]) for tenth in classes["reliability"]] == [
        (0.0, pytest.approx(0.1)), (0.8, pytest.approx(0.9))]  # fmt: skip
    assert classes["receiver_operating_characteristic_curve"]["true_positive_rates"][-1] == 1.0
    numbers = next(d for d in told if d["model"] == "n")["error_histogram"]
    assert sum(numbers["share"]) == pytest.approx(1)
    assert len(numbers["share"]) == len(numbers["edges"]) + 1
    assert numbers["baseline_share"] is None
    story.close()


def test_a_state_file_from_before_forgets_past_performance_and_goes_on(story: Story, tmp_path: Path) -> None:
    """The sums of the older format are gone, the events and labels that came are not; what comes is judged."""
    story.tell(*traffic(0, 600, never))
    assert list(history.performance_rows(story.engine))
    before = history.summary(story.engine)
    story._store.put_states("cohort", {"0/0/30/0": b"\x02 of an older format"})
    story.engine.checkpoint()
    story.close()
    with duckdb.connect(str(tmp_path / "state.duckdb")) as file:
        file.execute("update meta set value = '2' where key = 'schema_version'")
    story._open()
    assert history.summary(story.engine) == before
    assert not list(history.performance_rows(story.engine))
    story.tell(*traffic(600, 1200, never))
    assert {row.value for row in history.performance_rows(story.engine) if row.metric == "accuracy"} == {1.0}
