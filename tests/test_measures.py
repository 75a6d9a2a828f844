"""Outcomes other than the label: what their truths are held to, and what is said of them, through an engine."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from feeding import read

from stream_monitor import history, past
from stream_monitor.app import decode_poll, make_decoder
from stream_monitor.config import ModelConfig, parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.measures import Measure, in_words_of_the_outcome, measure
from stream_monitor.publish.http import Filters
from stream_monitor.records import Binding, Incident, IncidentKind, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import PREDICTIONS, Store
from stream_monitor.summarize.outcome import Task

EVENTS, LABELS = PartitionId(Stream.INFERENCE, "t", 0), PartitionId(Stream.GROUND_TRUTH, "l", 0)
START = 1_790_000_040  # a multiple of 60 s
CONFIG: dict[str, Any] = {
    "pane": "1s",
    "allowed_lateness": "1s",
    "windows": ["30s", "1m"],
    "drift": {"learn_from": 100_000, "false_alarms": "50 per 100000 events"},
    "models": {"m": {"task": "binary", "positive_label": "yes", "segments": ["market"]}},
}
Body = dict[str, Any]


class Story:
    """An engine on a state file, and what it is told."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self._state = folder / "state.duckdb"
        self._source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, LABELS)])
        self._source.start({})
        self.told: dict[str, Incident] = {}
        self._open(parse({**CONFIG, **changes}, {}))

    def _open(self, config: Any) -> None:
        self.config, self._decoder, self._store = config, make_decoder(config), Store(self._state)
        self.engine = Engine(config, self._store)

    def restart(self, **changes: Any) -> None:
        """As after a crash right behind a checkpoint, perhaps with another configuration."""
        self._store.close()
        self._open(parse({**CONFIG, **changes}, {}) if changes else self.config)

    def close(self) -> None:
        """Let go of the state file."""
        self._store.close()

    def tell(self, events: Iterable[Body], labels: Iterable[Body] = ()) -> None:
        """Feed events and labels and commit."""
        for partition, bodies in ((EVENTS, events), (LABELS, labels)):
            self._source.extend(partition, [json.dumps(body).encode() for body in bodies])
        self.told |= {incident.id: incident for incident in read(self.engine, self._source, self._decoder)}

    def tell_in_haste(self, events: Iterable[Body], labels: Iterable[Body] = ()) -> None:
        """The same where there was no time to join: the service commits, and joins when that is due."""
        for partition, bodies in ((EVENTS, events), (LABELS, labels)):
            self._source.extend(partition, [json.dumps(body).encode() for body in bodies])
        for batch in decode_poll(self._decoder, self._source.poll(1_000_000, 0.0)):
            self.engine.offer(batch)
        for now in (0.0, 1e6):
            self.engine.step(now, seal_now=True)
        self.engine.checkpoint()

    def figures(self, outcome: str, *, basis: str = "cohort", window: str = "1m") -> dict[str, list[Body]]:
        """The rows of an outcome by metric, in the order of time."""
        rows = [history.performance_json(r) for r in history.performance_rows(self.engine)]
        found: dict[str, list[Body]] = {}
        for row in sorted(rows, key=lambda r: str(r["window_start"])):
            if (row["outcome"], row["basis"], row["window"], row["segment"]) == (outcome, basis, window, {}):
                found.setdefault(row["metric"], []).append(row)
        return found

    def details(self, **wanted: Any) -> Sequence[Mapping[str, Any]]:
        """What stands behind the figures."""
        with self._store.reader() as reader:
            return past.details(reader, self.engine.names, Filters(**wanted), history.references(self.engine))

    def of_kind(self, kind: IncidentKind) -> list[Incident]:
        """What was told of it, as it stood last."""
        return [incident for incident in self.told.values() if incident.kind is kind]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Story]]:
    """Begins a story with changes to the configuration."""
    made: list[Story] = []

    def start(**changes: Any) -> Story:
        made.append(Story(tmp_path, **changes))
        return made[-1]

    yield start
    for story in made:
        story.close()


def event(number: int, **changes: Any) -> Body:
    """Ten a second; every second prediction is yes."""
    yes = bool(number % 2)
    return {
        "inference_id": number, "model": "m", "timestamp": START + number / 10, "features": {"a": number * 7 % 17},
        "prediction": {"label": "yes" if yes else "no", "score": 0.9 if yes else 0.1},
        "segment": {"market": "eu" if number % 3 else "us"}, **changes,
    }  # fmt: skip


def truth(number: int, outcome: str, *, after: float = 0.5, **said: Any) -> Body:
    """So many seconds after its prediction."""
    return {"inference_id": number, "outcome": outcome, "timestamp": START + number / 10 + after, **said}


def stays(numbers: range, rng: random.Random, mean: float) -> list[Body]:
    """How long somebody stayed, exponential."""
    return [truth(n, "dwell_seconds", value=rng.expovariate(1 / mean)) for n in numbers]


def rows(truths: list[str | None], numbers: list[float | None], said: list[str | None]) -> pa.Table:
    """As a join brings them, as far as it matters here."""
    nan = float("nan")
    return pa.table(
        {
            "label": pa.array(truths, pa.string()),
            "number": pa.array([nan if n is None else n for n in numbers]),
            "predicted_label": pa.array(said, pa.string()),
            "value": pa.array([nan] * len(truths)),
        }
    )


BINARY = ModelConfig(task="binary", positive_label="yes")
ASKED = ModelConfig.model_validate(
    {"task": "regression", "outcomes": {"sold": {"task": "regression"}, "click": {"positive_label": "1"}, "far": {}}}
)
WORDS = rows(["yes", "no"], [None, None], ["no", "yes"])
CLICKS = rows(["click", "none"], [None, None], ["no", "yes"])
FIGURES = rows(["1", "3.5"], [1.0, 3.5], ["no", "yes"])


@pytest.mark.parametrize(
    ("model", "outcome", "found", "expected"),
    [
        (BINARY, "label", FIGURES, Measure(Task.BINARY, "yes")),
        (BINARY, "chargeback", WORDS, Measure(Task.BINARY, "yes")),
        (BINARY, "click", CLICKS, Measure(Task.VALUE, is_settled=False)),
        (BINARY, "dwell_seconds", FIGURES, Measure(Task.VALUE)),
        (ModelConfig(), "appeal", WORDS, Measure(Task.MULTICLASS)),
        (ModelConfig(), "click", CLICKS, Measure(Task.VALUE, is_settled=False)),
        (ModelConfig(), "dwell_seconds", FIGURES, Measure(Task.VALUE)),
        (ASKED, "label", FIGURES, Measure(Task.REGRESSION)),
        (ASKED, "dwell_seconds", FIGURES, Measure(Task.VALUE)),
        (ASKED, "sold", FIGURES, Measure(Task.REGRESSION)),
        (ASKED, "click", FIGURES, Measure(Task.BINARY, "1")),
        (ASKED, "far", FIGURES, Measure(Task.VALUE)),
        (ASKED, "word", WORDS, Measure(Task.VALUE, is_settled=False)),
    ],
)
def test_what_truths_are_held_to(model: ModelConfig, outcome: str, found: pa.Table, expected: Measure) -> None:
    """The five rules."""
    assert measure(model, outcome, found) == expected


def test_a_model_and_an_outcome_may_call_the_positive_by_other_names() -> None:
    """To say `show` is to foretell that `click` turns out `yes`; what is said beside is no."""
    model = ModelConfig.model_validate(
        {"task": "binary", "positive_label": "show", "outcomes": {"click": {"positive_label": "yes"}}}
    )
    told = in_words_of_the_outcome(model, "click", rows(["yes"] * 4, [None] * 4, ["show", "hide", "yes", None]))
    assert told["predicted_label"].to_pylist() == ["yes", "", "", None]


@pytest.mark.parametrize("model", [{"task": "binary", "positive_label": "yes"}, {"task": "regression"}, {}])
def test_a_number_of_its_own_is_watched_whatever_the_model_predicts(begin: Callable[..., Story], model: Body) -> None:
    """Its mean falls: figures with intervals and coverage, one incident that says what moved, over when it is back."""
    story, rng = begin(models={"m": model}), random.Random(1)
    plain = {"prediction": 5.0} if model.get("task") == "regression" else {}
    for k in range(26):
        numbers = range(k * 300, k * 300 + 300)
        story.tell([event(n, **plain) for n in numbers], stays(numbers, rng, 3.0 if 10 <= k < 17 else 10.0))
        if k in (8, 13):
            story.restart()
    found = story.figures("dwell_seconds")
    assert set(found) == {"mean", "p05", "p50", "p95"}
    row = found["mean"][3]
    assert 8.5 < row["lower"] < row["value"] < row["upper"] < 11.5
    assert (row["samples"], row["coverage"], row["best_constant"]) == (600, 1.0, None)
    assert 9 < row["baseline_value"] < 11
    assert story.figures("dwell_seconds", basis="arrival")["mean"]
    (incident,) = story.of_kind(IncidentKind.PERFORMANCE)
    (subject,) = incident.subjects
    assert (subject.name, subject.kind, subject.statistic) == ("dwell_seconds.mean", "metric", "mean")
    assert ": the mean of dwell seconds fell (mean 10" in incident.summary
    assert abs(incident.onset_us / 1e6 - (START + 300)) < 10
    assert incident.closed_us is not None
    assert START + 500 < incident.closed_us / 1e6 < START + 700
    assert not story.of_kind(IncidentKind.CONCEPT_DRIFT)
    shown = [line for line in render(story.engine).decode().splitlines() if 'outcome="dwell_seconds"' in line]
    of_mean = [
        line for line in shown if 'basis="cohort",metric="mean"' in line or 'metric="mean",basis="cohort"' in line
    ]
    assert 8.5 < float(of_mean[0].split()[-1]) < 11.5
    assert any(
        line.startswith("stream_monitor_outcome_label_coverage_ratio") and line.endswith(" 1.0") for line in shown
    )
    (detail, *_) = story.details(basis="cohort", window_seconds=60)
    assert (detail["task"], len(detail["value_histogram"]["edges"])) == ("value", 41)


def test_a_corrected_number_moves_its_cohort(begin: Callable[..., Story]) -> None:
    """And the same again is a duplicate."""
    story = begin()
    story.tell([event(n) for n in range(600)], [truth(n, "dwell_seconds", value=10.0) for n in range(600)])
    before = story.figures("dwell_seconds")["mean"][0]["value"]
    again = [truth(n, "dwell_seconds", value=10.0 if n else 610.0, after=1.0) for n in range(300)]
    story.tell([event(n) for n in range(600, 700)], again)
    assert (before, story.figures("dwell_seconds")["mean"][0]["value"]) == (10.0, 11.0)
    fates = history.summary(story.engine)["ground_truth"]
    assert (fates["matched"], fates["corrected"], fates["duplicate"]) == (600, 1, 299)


def test_classes_no_prediction_names_are_counted_until_the_configuration_tells_them(
    begin: Callable[..., Story],
) -> None:
    """Then they are held to the score and to what the model calls positive."""
    story = begin()
    for k in range(3):
        numbers = range(k * 600, k * 600 + 600)
        story.tell(
            [event(n) for n in numbers], [truth(n, "click", label="click" if n % 2 else "pass") for n in numbers]
        )
    assert not any(row["samples"] for rows in story.figures("click").values() for row in rows)
    click = {"click": {"positive_label": "click"}}
    story.restart(models={"m": {"task": "binary", "positive_label": "yes", "outcomes": click}})
    for k in range(3, 6):
        numbers = range(k * 600, k * 600 + 600)
        labels = [truth(n, "click", label="click" if n % 2 and n % 10 != 1 else "pass") for n in numbers]
        story.tell([event(n) for n in numbers], labels)
    found = story.figures("click")
    assert [row["value"] for row in found["recall"]][-2:] == [1.0, 1.0]
    assert [row["value"] for row in found["accuracy"]][-2:] == [0.9, 0.9]
    assert [row["coverage"] for row in found["accuracy"]] == [1.0] * 3


def test_a_first_truth_that_could_be_anything_settles_nothing(begin: Callable[..., Story]) -> None:
    """`no` alone is no positive label; the `yes` behind it shows what the outcome is."""
    story = begin()
    story.tell([event(n) for n in range(600)], [truth(n, "chargeback", label="no") for n in range(10)])
    story.restart()
    story.tell([], [truth(n, "chargeback", label="yes" if n % 2 else "no") for n in range(10, 600)])
    (row,) = story.figures("chargeback")["accuracy"]
    assert (row["value"], row["samples"], row["coverage"]) == (1.0, 590, 1.0)


def test_a_flood_of_outcome_names_is_refused(begin: Callable[..., Story]) -> None:
    """Twenty have places, those that are configured and the label always; the rest has a reason, over restarts too."""
    model = {"task": "binary", "positive_label": "yes", "outcomes": {"late": {"task": "value"}}}
    story = begin(models={"m": model})
    story.tell([event(n) for n in range(600)], [truth(n, f"o{n}", label="yes") for n in range(300)])
    story.restart()
    story.tell([], [truth(n, f"o{n}", label="yes") for n in range(10, 300)])
    story.tell(
        [], [truth(n, "late", value=1.0) for n in range(10)] + [truth(n, "label", label="yes") for n in range(10)]
    )
    story.tell([], [truth(n, f"o{n}", label="yes", model="m") for n in range(300, 400)])
    fates = history.summary(story.engine)["ground_truth"]
    assert fates["offered"] == 300 + 290 + 20 + 100
    assert (fates["matched"], fates["duplicate"], fates["rejected"]) == (20 + 20 + 20, 10, 280 + 280 + 80)
    assert history.total(story.engine, "rejected", reason="too_many_outcomes") == fates["rejected"]
    assert len(story.engine.names.outcomes) == 42


def test_models_that_never_predicted_share_their_series(begin: Callable[..., Story]) -> None:
    """Anybody can make such names up; one that predicts after all has its own, and no counter falls."""

    def told() -> dict[tuple[str, str], int]:
        return dict(story.engine.truth.ledger.told_labels)

    story = begin()
    story.tell([event(n) for n in range(600)], [truth(n, "label", label="yes", model=f"zz{n}") for n in range(500)])
    story.tell([], [truth(n, "label", label="yes") for n in range(100)])
    assert {model for model, _ in told()} == {"m", "(others)"}
    assert told()[("(others)", "orphan_waiting")] == 500
    story.tell([event(n, model="zz7") for n in range(7, 600)])
    assert told()[("zz7", "matched")] == 1
    assert {model for model, _ in told()} == {"m", "zz7", "(others)"}


def test_a_truth_beyond_its_horizon_does_not_count(begin: Callable[..., Story]) -> None:
    """Nor does it correct one that came in time; each such label has expired, and the figures of the outcome are final."""
    outcomes = {"click": {"positive_label": "yes", "horizon": "1m"}}
    story = begin(models={"m": {"task": "binary", "positive_label": "yes", "outcomes": outcomes}})
    numbers = range(600)
    story.tell(
        [event(n) for n in numbers], [truth(n, "click", label="yes" if n % 2 else "no") for n in numbers if n % 3]
    )
    before = story.figures("click")["accuracy"][0]
    story.restart()
    late = [truth(n, "click", label="no" if n % 2 else "yes", after=61.0) for n in numbers]
    story.tell([], [*late, truth(0, "click", label="no", after=60.0), truth(0, "label", label="no", after=61.0)])
    fates = history.summary(story.engine)["ground_truth"]
    assert (fates["matched"], fates["orphan_expired"], fates["corrected"]) == (402, 600, 0)
    assert fates["offered"] == 1_002
    after = story.figures("click")["accuracy"][0]
    assert (before["value"], before["coverage"], before["samples"]) == (1.0, 400 / 600, 400)
    assert (after["value"], after["coverage"], after["samples"]) == (1.0, 401 / 600, 401)
    outcome = story.engine.names.outcomes.index("click")
    asked = {"end_us": START * 10**6, "made": 100, "labelled": 66}
    labels = story.engine.outcomes.labels
    assert labels.ripeness(0, outcome, now_us=(START + 60) * 10**6, **asked) in ("ripe", "labels_missing")


def test_what_came_in_time_counts_however_late_it_is_joined(begin: Callable[..., Story]) -> None:
    """Labels of a day ago wait to be joined while another model's predictions run ahead by weeks."""
    story = begin(label_horizon="2d")
    story.tell([event(n) for n in range(600)])
    labels = [truth(n, "label", label="yes", after=1.9 * 86_400) for n in range(600)]
    ahead = [event(10**7 + n, model="other", timestamp=START + 40 * 86_400 + n) for n in range(60)]
    story.tell_in_haste(ahead, labels)
    story.tell([])
    assert history.summary(story.engine)["ground_truth"]["matched"] == 600
    assert len(story.figures("label")["accuracy"]) == 1
    story.tell([])
    assert START // 86_400 not in story.engine.store.blocks(PREDICTIONS)


def test_a_label_beyond_the_horizon_has_expired_though_its_prediction_is_still_there(
    begin: Callable[..., Story],
) -> None:
    """How long predictions are there depends on what else the stream holds; what counts does not. Also one of 2099."""
    story = begin(label_horizon="1d")
    story.tell([event(n) for n in range(60)])
    story.tell([], [truth(n, "label", label="yes", after=86_400 + n - 9) for n in range(20)])
    story.tell([], [truth(n, "label", label="yes", after=73 * 365 * 86_400) for n in range(20, 40)])
    fates = history.summary(story.engine)["ground_truth"]
    assert (fates["matched"], fates["orphan_expired"], fates["orphan_waiting"]) == (10, 30, 0)


@pytest.mark.parametrize("prediction_first", [True, False])
def test_a_label_and_its_prediction_part_whichever_comes_first(
    begin: Callable[..., Story], prediction_first: bool
) -> None:
    """What waited for its prediction has expired once that is known to be too old."""
    outcomes = {"click": {"positive_label": "yes", "horizon": "1m"}}
    story = begin(models={"m": {"task": "binary", "positive_label": "yes", "outcomes": outcomes}})
    labels = [truth(n, "click", label="yes", after=61.0 if n else 59.0) for n in range(10)]
    events = [event(n) for n in range(10)]
    for step in [(events, []), ([], labels)] if prediction_first else [([], labels), (events, [])]:
        story.tell(*step)
        story.restart()
    fates = history.summary(story.engine)["ground_truth"]
    assert (fates["matched"], fates["orphan_expired"], fates["orphan_waiting"]) == (1, 9, 0)


def test_clicks_alone_do_not_label_what_waits_for_its_label(begin: Callable[..., Story]) -> None:
    """As long as nothing else comes they do; from the first truth of the outcome `label` on, it alone counts."""

    def predictions() -> tuple[int, ...]:
        return tuple(history.summary(story.engine)["predictions"].values())

    story = begin(label_horizon="2d")
    story.tell([event(n) for n in range(600)], [truth(n, "click", value=1.0) for n in range(400)])
    assert predictions() == (400, 200, 0)
    story.restart()
    story.tell([], [truth(n, "label", label="yes") for n in range(100)])
    assert predictions() == (100, 500, 0)
    story.restart()
    story.tell([], [truth(n, "click", value=1.0) for n in range(400, 600)])
    story.tell([], [truth(n, "label", label="no") for n in range(90, 110)])
    assert predictions() == (110, 490, 0)
    story.tell([event(10**7 + n, timestamp=START + 4 * 86_400 + n) for n in range(60)])
    assert predictions() == (110, 60, 490)


def test_clicks_whose_days_are_gone_leave_predictions_that_expired_without_a_label(begin: Callable[..., Story]) -> None:
    """The first label comes when the first predictions are forgotten already."""
    story = begin(label_horizon="2d")
    story.tell([event(n) for n in range(600)], [truth(n, "click", value=1.0) for n in range(400)])
    late = 4 * 86_400
    story.tell([event(10**7 + n, timestamp=START + late + n) for n in range(60)])
    counted = history.summary(story.engine)["predictions"]
    assert (counted["labelled"], counted["waiting"], counted["expired_unlabelled"]) == (400, 60, 200)
    label = {"inference_id": 10**7, "label": "yes", "timestamp": START + late + 1}
    story.tell([], [label])
    counted = history.summary(story.engine)["predictions"]
    assert (counted["labelled"], counted["waiting"], counted["expired_unlabelled"]) == (1, 59, 600)


def test_the_budget_is_divided_by_the_outcomes_of_the_model_that_are_heard(begin: Callable[..., Story]) -> None:
    """Not by those of other models, nor by one that fell silent a month ago; a restart knows it too."""
    story = begin(label_horizon="45d")
    story.tell([event(n) for n in range(600)], [truth(n, f"o{n % 3}", value=1.0) for n in range(300)])
    other = [event(n, model="other") for n in range(600)]
    story.tell(other, [truth(n, "far", value=1.0, model="other") for n in range(300)])
    late = 40 * 86_400
    again = [event(10**7 + n, timestamp=START + late + n) for n in range(60)]
    story.tell(again, [{**truth(0, "o1", value=1.0), "inference_id": e["inference_id"],
                        "timestamp": e["timestamp"] + 0.5} for e in again])  # fmt: skip
    for _ in range(2):
        mine, outcomes = story.engine.versions[0].whole(), story.engine.outcomes
        at = [START - 1, START + 100, START + 20 * 86_400, START + late + 120]
        assert [outcomes.heard(mine, seconds * 10**6) for seconds in at] == [1, 3, 3, 1]
        story.restart()
