"""Estimates through an engine: the same however events come, beside what labels show, and silent without a calibration."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feeding import read

from stream_monitor import history, past
from stream_monitor.app import make_decoder
from stream_monitor.baselines import baselines_of_rows
from stream_monitor.config import Config, parse
from stream_monitor.engine import Engine
from stream_monitor.exposition import render
from stream_monitor.judge.baseline import Baseline
from stream_monitor.publish.http import Filters
from stream_monitor.records import Binding, PartitionId, Stream
from stream_monitor.source.memory import MemorySource
from stream_monitor.store import Store

Row = dict[str, Any]

EVENTS, LABELS = PartitionId(Stream.INFERENCE, "t", 0), PartitionId(Stream.GROUND_TRUTH, "l", 0)
MORE_EVENTS = PartitionId(Stream.INFERENCE, "t", 1)
BINARY = {"task": "binary", "positive_label": "yes", "segments": ["market"]}
START = 1_790_000_040  # a multiple of 60 s


def configured(model: Row) -> Config:
    """Windows of half a minute and of one."""
    return parse(
        {"pane": "1s", "allowed_lateness": "1s", "windows": ["30s", "1m"], "drift": {"learn_from": 10_000},
         "models": {"m": model}},
        {},
    )  # fmt: skip


def predicted(rng: random.Random, *, low: float = 0.0, high: float = 1.0) -> Row:
    """A binary prediction, its score anywhere in a range."""
    score = round(rng.uniform(low, high), 4)
    return {"label": "yes" if score >= 0.5 else "no", "score": score}


def truth(rng: random.Random, prediction: Row) -> str:
    """As the score says."""
    return "yes" if rng.random() < prediction["score"] else "no"


def built(config: Config, rows: list[Row]) -> Baseline:
    """A baseline of raw rows."""
    source = MemorySource([Binding(Stream.INFERENCE, "b")])
    source.start({})
    source.extend(PartitionId(Stream.INFERENCE, "b", 0), [json.dumps({"model": "m", **row}).encode() for row in rows])
    return baselines_of_rows(source.poll(len(rows), 0.0).batches, config, source="here")[0]


def calibrating(config: Config, *, labelled: bool = True) -> Baseline:
    """2,000 rows of a calibrated binary model."""
    rng = random.Random(1)
    rows = []
    for k in range(2_000):
        said = predicted(rng)
        rows.append(
            {"features": {"x": k % 97}, "prediction": said, **({"label": truth(rng, said)} if labelled else {})}
        )
    return built(config, rows)


def events(n: int, **scores: float) -> list[Row]:
    """Ten a second, in two markets; the last ends every window."""
    rng = random.Random(2)
    made = [
        {"inference_id": f"i{k}", "model": "m", "version": "1", "timestamp": START + k / 10, "features": {"x": k % 97},
         "prediction": predicted(rng, **scores), "segment": {"market": "eu" if k % 3 else "us"}}
        for k in range(n)
    ]  # fmt: skip
    return [*made, {**made[-1], "inference_id": "last", "timestamp": START + n / 10 + 61}]


def labels(made: list[Row], *, flipped: bool = False) -> list[Row]:
    """True as the scores say, or just the other way."""
    rng, found = random.Random(3), []
    for event in made:
        said = truth(rng, event["prediction"])
        label = ("no" if said == "yes" else "yes") if flipped else said
        found.append({"inference_id": event["inference_id"], "label": label, "timestamp": event["timestamp"] + 0.5})
    return found


class Service:
    """An engine on a state file, fed by hand."""

    def __init__(self, path: Path, config: Config, baseline: Baseline | None) -> None:
        self._path, self._config, self._baseline = path, config, baseline
        self._source = MemorySource([Binding(p.stream, p.topic) for p in (EVENTS, LABELS)])
        self._source.start({})
        self._open()

    def _open(self) -> None:
        self.store = Store(self._path)
        self.engine = Engine(self._config, self.store, baselines=[self._baseline] if self._baseline else [])

    def restart(self) -> None:
        """As after a crash right behind a checkpoint."""
        self.store.close()
        self._open()

    def tell(
        self,
        events: list[Row],
        labels: list[Row] | None = None,
        *,
        seal: bool = True,
        partition: PartitionId = EVENTS,
    ) -> None:
        """Feed, join and commit; `seal`: time passes, too."""
        for where, bodies in ((partition, events), (LABELS, labels or [])):
            self._source.extend(where, [json.dumps(body).encode() for body in bodies])
        read(self.engine, self._source, make_decoder(self._config), seal=seal)

    def estimated(self) -> pa.Table:
        """The estimated rows of `performance.parquet`."""
        table = history.performance_table(self.engine)
        return table.filter(pc.equal(table["basis"], "estimated"))


def played(path: Path, chunks: list[list[Row]], *, restarts: bool, model: Row = BINARY) -> pa.Table:
    """What stands at the end of events that come in these chunks, every other one in a partition of its own."""
    config = configured(model)
    service = Service(path, config, calibrating(config) if model is BINARY else measuring(config))
    for k, chunk in enumerate(chunks):
        service.tell(chunk, seal=k == len(chunks) - 1, partition=(EVENTS, MORE_EVENTS)[k % 2])
        if restarts and k < len(chunks) - 1:
            service.restart()
    found = service.estimated()
    service.store.close()
    return found


REGRESSION: Row = {"task": "regression", "segments": ["market"]}


def measured(rng: random.Random, *, most: float = 1.0) -> tuple[Row, Row]:
    """Features and an error: it grows with x, and in shops it is three times as large. Not every event has all."""
    x, shop = rng.uniform(0, most), rng.random() < 0.3
    size = (1 + 4 * x) * (3 if shop else 1)
    features: Row = {"x": round(x, 4), "where": "shop" if shop else "web", "noise": rng.random()}
    if rng.random() < 0.1:
        features |= rng.choice([{"x": None}, {"x": "high"}, {"where": "kiosk"}, {"where": 7}, {"x": 1e999}])
    return features, {"error": rng.gauss(0, size)}


def measuring(config: Config) -> Baseline:
    """4,000 rows of a regression whose errors depend on the inputs."""
    rng = random.Random(6)
    rows = []
    for k in range(4_000):
        features, said = measured(rng)
        rows.append({"features": features, "prediction": 50 + k % 7, "value": 50 + k % 7 - said["error"]})
    return built(config, rows)


def measurements(n: int, **inputs: float) -> tuple[list[Row], list[Row]]:
    """As `events`, of the regression; with their labels."""
    rng, made, truths = random.Random(7), events(n), []
    for k, event in enumerate(made):
        features, said = measured(rng, **inputs)
        event["features"], event["prediction"] = features, 50 + k % 7
        truths.append({"inference_id": event["inference_id"], "value": 50 + k % 7 - said["error"],
                       "timestamp": event["timestamp"] + 0.5})  # fmt: skip
    return made, truths[:-1]


@pytest.mark.parametrize("model", [BINARY, REGRESSION])
def test_order_batches_and_restarts_change_nothing(tmp_path: Path, model: Row) -> None:
    """Events at once, and shuffled in seven polls of two partitions with a restart after each: the same to the last bit."""
    made = events(900) if model is BINARY else measurements(900)[0]
    whole = played(tmp_path / "a.duckdb", [made], restarts=False, model=model)
    mixed = made[:]
    random.Random(4).shuffle(mixed)
    parts = played(tmp_path / "b.duckdb", [mixed[k::7] for k in range(7)], restarts=True, model=model)
    assert whole.num_rows > 0
    assert [repr(row) for row in whole.to_pylist()] == [repr(row) for row in parts.to_pylist()]  # NaN is not itself


def test_an_estimate_stands_before_any_label(tmp_path: Path) -> None:
    """Each window and segment has its rows, of all its predictions and of no label."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config))
    service.tell(events(600))
    rows = [row for row in service.estimated().to_pylist() if row["metric"] == "accuracy" and row["window"] == "30s"]
    whole = [row for row in rows if row["segment"] == "{}"]
    assert [row["samples"] for row in whole] == [300, 300, 1]
    assert {row["segment"] for row in rows} == {"{}", '{"market": "eu"}', '{"market": "us"}'}
    for row in whole[:2]:
        assert row["lower"] < 0.75 < row["upper"]  # the mean of max(p, 1 - p) of uniform scores
        assert row["coverage"] == 0
        assert 0.7 < row["baseline_value"] < 0.8
    text = render(service.engine).decode()
    assert 'stream_monitor_performance{basis="estimated",metric="auc",model="m",version="1",window="30s"}' in text
    assert 'stream_monitor_performance_upper{basis="estimated",metric="auc",model="m",version="1",window="30s"}' in text
    service.store.close()


def test_late_predictions_are_counted_in_their_own_window(tmp_path: Path) -> None:
    """As a cohort's are: an event that comes after its pane is sealed waits for its label, too."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config))
    service.tell(events(300))
    service.tell([{**events(1)[0], "inference_id": "late"}])
    rows = [row for row in service.estimated().to_pylist() if row["metric"] == "brier" and row["segment"] == "{}"]
    assert [row["samples"] for row in rows if row["window"] == "30s"] == [301, 1]
    service.store.close()


def api(service: Service) -> dict[tuple[str, str], Row]:
    """The estimated rows of the whole version in the answer of the API, by metric and window."""
    return {
        (row["metric"], row["window"]): row
        for row in history.recent_performance(service.engine)
        if row["basis"] == "estimated" and not row["segment"]
    }


@pytest.mark.parametrize(("flipped", "outside"), [(False, False), (True, True)])
def test_a_concept_that_drifts_leaves_the_interval(tmp_path: Path, flipped: bool, outside: bool) -> None:
    """Estimated beside realised: labels as the scores say stay within; turned around they are outside in every window."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config))
    made = events(2_100)
    # The event that ends the windows comes right behind the others here.
    made = [*made[:-1], {**made[-1], "timestamp": START + 211}]
    service.tell(made)
    before = api(service)[("auc", "30s")]
    assert before["realised"] is None
    assert (before["realised_samples"], before["outside_windows"]) == (0, 0)
    service.tell([], labels(made[:-1], flipped=flipped))
    row = api(service)[("auc", "30s")]
    assert row["realised_samples"] == 300
    assert (row["lower"] <= row["realised"] <= row["upper"]) is not outside
    assert (row["outside_windows"] == -7) is outside
    text = render(service.engine).decode()
    gap = 'performance_gap_windows{metric="auc",model="m",version="1",window="30s"} '
    assert (gap + "-7.0" in text) is outside
    assert gap in text
    if outside:
        assert row["gap"].startswith("In 7 labelled windows in a row auc was below what the predictions")
    else:
        assert row["outside_windows"] > -3
        assert row["gap"] is None
    service.store.close()


def test_a_gap_is_seen_however_late_labels_come(tmp_path: Path) -> None:
    """Labels are ten windows behind: those windows are compared whose labels are through, not the newest ones."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config))
    made = [{**event, "timestamp": START + k} for k, event in enumerate(events(3_000)[:-1])]
    late = [{**label, "timestamp": label["timestamp"] + 300} for label in labels(made, flipped=True)]
    service.tell(made, [label for label in late if label["timestamp"] < START + 3_000])
    row = api(service)[("auc", "1m")]
    assert row["realised"] is row["adjusted"] is None
    assert row["outside_windows"] == -8
    assert "In 8 labelled windows in a row auc was below" in row["gap"]
    arrival = next(iter(service.engine.estimates.readers().values())).arrival
    assert arrival is not None
    assert sum(int(counts.sum()) for counts in arrival.delays.values()) == 2_700
    assert arrival.lacking((START + 1_000) * 10**6, (START + 1_030) * 10**6) is not None
    service.store.close()


@pytest.mark.parametrize("model", [BINARY, REGRESSION])
def test_the_adjusted_estimate_becomes_what_labels_show(tmp_path: Path, model: Row) -> None:
    """None before labels; with half of them its interval is narrower; with all it is the realised figure; so in the past."""
    config, metric = configured(model), "brier" if model is BINARY else "mae"
    service = Service(tmp_path / "s.duckdb", config, calibrating(config) if model is BINARY else measuring(config))
    made, truths = measurements(600) if model is REGRESSION else (events(600), [])
    made = [*made[:-1], {**made[-1], "timestamp": START + 61}]
    truths = truths or labels(made[:-1])
    service.tell(made)
    before = api(service)[(metric, "1m")]
    assert before["adjusted"] is before["adjusted_lower"] is None
    service.tell([], truths[::2])
    half = api(service)[(metric, "1m")]
    assert half["value"] == before["value"]
    assert half["adjusted_lower"] < half["adjusted"] < half["adjusted_upper"]
    assert half["adjusted_upper"] - half["adjusted_lower"] < half["upper"] - half["lower"]
    with service.store.reader() as reader:
        told = past.performance(
            reader, service.engine.names, Filters(basis="estimated", metric=metric, window_seconds=60, limit=100),
            history.references(service.engine), estimators=service.engine.estimates.readers(),
        )  # fmt: skip
    assert [row["adjusted"] for row in told if not row["segment"] and row["samples"] == 600] == [half["adjusted"]]
    service.tell([], truths[1::2])
    whole = api(service)[(metric, "1m")]
    assert whole["realised_samples"] == 600
    assert whole["adjusted"] == whole["adjusted_lower"] == whole["adjusted_upper"]
    assert whole["adjusted"] == pytest.approx(whole["realised"], rel=1e-12)
    assert half["adjusted_lower"] <= whole["realised"] <= half["adjusted_upper"]
    service.store.close()


def test_past_windows_are_read_as_the_newest(tmp_path: Path) -> None:
    """What the API reads from the state file is what the engine says, the newest window first."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config))
    made = events(900)
    service.tell(made, labels(made))
    with service.store.reader() as reader:

        def asked(**filters: Any) -> list[Row]:
            rows = past.performance(
                reader,
                service.engine.names,
                Filters(**filters),
                history.references(service.engine),
                estimators=service.engine.estimates.readers(),
            )
            return [dict(row) for row in rows]

        every = asked(basis="estimated", limit=10_000)
        stored = [dict(row) for row in service.estimated().to_pylist()]
        assert len(every) == len(stored)
        assert {round(row["value"], 12) for row in every if row["value"]} == {
            round(row["value"], 12) for row in stored if row["value"] and row["value"] == row["value"]
        }
        starts = [row["window_start"] for row in asked(metric="auc", limit=10_000)]
        assert starts == sorted(starts, reverse=True)
        assert {row["basis"] for row in asked(metric="auc", limit=10_000)} == {"estimated", "cohort", "arrival"}
        assert {row["window"] for row in asked(basis="estimated", window_seconds=60)} == {"1m"}
        assert asked(basis="estimated", until_us=START * 10**6) == []
        assert asked(basis="estimated", model="another") == []
    service.store.close()


def test_several_classes_are_estimated_from_their_probabilities(tmp_path: Path) -> None:
    """Accuracy and the figures of each class, from the objects of the events."""
    rng = random.Random(5)

    def row() -> tuple[Row, str]:
        weights = [rng.expovariate(1) for _ in "abc"]
        p = {c: w / sum(weights) for c, w in zip("abc", weights, strict=True)}
        said = {"label": max(p, key=lambda c: p[c]), "probabilities": p}
        return said, rng.choices("abc", list(p.values()))[0]

    config = configured({"task": "multiclass"})
    rows = [row() for _ in range(3_000)]
    service = Service(
        tmp_path / "s.duckdb",
        config,
        built(config, [{"features": {"x": k % 89}, "prediction": p, "label": t} for k, (p, t) in enumerate(rows)]),
    )
    later = [row() for _ in range(600)]
    made = [{**event, "prediction": said} for event, (said, _) in zip(events(600)[:-1], later, strict=True)]
    service.tell(made)
    found = {r["metric"]: r for r in service.estimated().to_pylist() if r["window"] == "1m" and r["segment"] == "{}"}
    right = sum(said["label"] == t for said, t in later) / 600
    assert found["accuracy"]["lower"] < right < found["accuracy"]["upper"]
    assert found["accuracy"]["samples"] == 600
    assert {"log_loss", "brier", "f1", "weighted_f1", "precision[a]", "recall[c]"} <= set(found)
    text = render(service.engine).decode()
    assert 'basis="estimated",metric="weighted_f1"' in text
    assert "precision[a]" not in text
    service.store.close()


def test_without_truth_nothing_is_estimated_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No rows, no series, one line in the log, and the reason beside the baseline."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config, labelled=False))
    with caplog.at_level(logging.INFO, logger="stream_monitor.estimates"):
        service.tell(events(300))
        service.tell([{**events(1)[0], "inference_id": "late"}])
        assert service.estimated().num_rows == 0
        assert 'basis="estimated"' not in render(service.engine).decode()
    assert [record.message for record in caplog.records] == ["no_performance_estimate"]
    assert history.baselines(service.engine)[0]["estimate"] == "none: the rows of the baseline carry no truth"
    service.store.close()


def test_a_promoted_baseline_calibrates_from_then_on(tmp_path: Path) -> None:
    """Predictions before it were not counted: there is nothing to say of them."""
    config = configured(BINARY)
    service = Service(tmp_path / "s.duckdb", config, calibrating(config, labelled=False))
    first, second = events(300), events(900)[600:]
    service.tell(first[:-1])
    version = service.engine.versions[0]
    service.engine.note(version.promote(calibrating(config), now_us=service.engine.sealed_us))
    service.tell(second)
    rows = [row for row in service.estimated().to_pylist() if row["metric"] == "auc" and row["segment"] == "{}"]
    assert [row["samples"] for row in rows if row["window"] == "30s"] == [300, 1]
    assert "isotonic, fitted on 2000 labelled rows" in history.baselines(service.engine)[0]["estimate"]
    service.store.close()


def regression(path: Path) -> Service:
    """A service that knows how errors of the regression depend on its inputs."""
    config = configured(REGRESSION)
    return Service(path, config, measuring(config))


def test_a_regression_is_told_what_losses_to_expect(tmp_path: Path) -> None:
    """Inputs on which it errs less: the estimate follows, holds what labels show, and is published like the others."""
    service = regression(tmp_path / "s.duckdb")
    made, truths = measurements(600, most=0.3)
    made = [*made[:-1], {**made[-1], "timestamp": START + 61}]
    service.tell(made)
    row = api(service)[("mae", "1m")]
    assert row["samples"] == 600
    assert row["value"] < 0.75 * row["baseline_value"]
    assert row["realised"] is None
    assert 'basis="estimated",metric="absolute_error_p90"' in render(service.engine).decode()
    said = history.baselines(service.engine)[0]["estimate"]
    assert said.startswith("errors of 2400 labelled rows in ")
    assert "where, x" in said
    service.tell([], truths)
    row = api(service)[("mae", "1m")]
    assert row["realised_samples"] == 600
    assert row["lower"] < row["realised"] < row["upper"]
    assert row["outside_windows"] == 0
    with service.store.reader() as reader:
        rows = past.performance(
            reader, service.engine.names, Filters(basis="estimated", limit=10_000), history.references(service.engine),
            estimators=service.engine.estimates.readers(),
        )  # fmt: skip
    assert len(rows) == service.estimated().num_rows
    service.store.close()


def test_late_events_and_events_without_a_number(tmp_path: Path) -> None:
    """A late event counts where it belongs; one that predicts no number, or an absurd one, has no error to expect."""
    service = regression(tmp_path / "s.duckdb")
    made, _ = measurements(300)
    odd: list[Any] = [None, "high", 1e300]
    made = [*({**made[0], "inference_id": f"odd{k}", "prediction": said} for k, said in enumerate(odd)), *made]
    service.tell(made)
    service.tell([{**made[5], "inference_id": "late"}])
    rows = [row for row in service.estimated().to_pylist() if row["metric"] == "mae" and row["segment"] == "{}"]
    assert [row["samples"] for row in rows if row["window"] == "30s"] == [301, 1]
    service.store.close()


def test_a_baseline_of_an_earlier_program_says_what_it_lacks(tmp_path: Path) -> None:
    """Stored without losses: no estimate, and why; from the configured rows it takes what is missing at the next start."""
    config = configured(REGRESSION)
    whole = measuring(config)
    older = replace(whole, losses=None)
    service = Service(tmp_path / "s.duckdb", config, older)
    made, _ = measurements(300)
    service.tell(made[:-1])
    assert "built by an earlier version" in history.baselines(service.engine)[0]["estimate"]
    assert service.estimated().num_rows == 0
    service._baseline = whole
    service.restart()
    service.tell(made[-1:])
    assert service.estimated().num_rows > 0
    service.restart()
    assert history.baselines(service.engine)[0]["estimate"].startswith("errors of 2400")
    service.store.close()


def test_another_tree_counts_beside_the_first(tmp_path: Path) -> None:
    """After a promotion the windows under way are of what came since, and those before are not misread."""
    config = configured(REGRESSION)
    service = Service(tmp_path / "s.duckdb", config, measuring(config))
    made, _ = measurements(900)
    service.tell(made[:450], seal=False)
    rng = random.Random(8)
    rows = []
    for _ in range(1_000):
        features, said = measured(rng)
        rows.append({"features": features, "prediction": 50, "value": 50 - 3 * said["error"]})
    service.engine.note(service.engine.versions[0].promote(built(config, rows), now_us=None))
    service.tell(made[450:])
    mae = [row for row in service.estimated().to_pylist() if row["metric"] == "mae" and row["segment"] == "{}"]
    assert [row["samples"] for row in mae if row["window"] == "30s"] == [150, 300, 1]
    assert all(row["value"] > 10 for row in mae if row["samples"] > 1)
    service.store.close()
