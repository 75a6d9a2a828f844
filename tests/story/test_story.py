"""One stream through decoder, engine and state file: what is conserved, what is told, and that nothing else matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from story_stream import Driver, Logs, Result, Tally, baselines, shuffled, story

from stream_monitor.judge.baseline import Baseline

Told = tuple[str, str, str, str, str, str, str | None, tuple[str, ...]]

TIMELINE: list[Told] = [
    ("forecast", "", "baseline_missing", "warning", "00:00:01.452", "00:00:01.452", "01:40:19.347", ("2",)),
    ("credit", "", "data_drift", "warning", "02:00:05.843", "02:01:03.190", "03:09:25.840", ("income",)),
    ("credit", "", "concept_drift", "critical", "03:00:00.770", "03:12:23.452", None, ("error_rate", "calibration")),
    ("credit", "", "broken_input", "critical", "04:00:00.736", "04:00:08.188", None, ("channel",)),
]  # fmt: skip
"""(model, market, kind, severity, onset, opened, closed, subjects), times of the story's day."""


@pytest.fixture(scope="module")
def told() -> tuple[Logs, Tally]:
    """The stream and what its writer knows of it."""
    return story()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> list[Baseline]:
    """The baseline of `credit`."""
    return baselines(tmp_path_factory.mktemp("baseline"))


@pytest.fixture(scope="module")
def unbroken(told: tuple[Logs, Tally], known: list[Baseline], tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What a run that nothing disturbs leaves."""
    return Driver(tmp_path_factory.mktemp("unbroken") / "state.duckdb", told[0], known).run()


def assert_equal(one: Result, other: Result) -> None:
    """Everything alike; floats of performance to nine digits, since labels of a cohort are summed as they come."""
    assert other.summary == one.summary
    assert other.counters == one.counters
    assert other.ledger == one.ledger
    assert other.incidents == one.incidents
    assert other.scores == one.scores
    assert other.performance.keys() == one.performance.keys()
    for key, values in one.performance.items():
        np.testing.assert_allclose(other.performance[key], values, rtol=1e-9, atol=1e-9, err_msg=str(key))


def test_every_record_has_the_fate_its_writer_gave_it(told: tuple[Logs, Tally], unbroken: Result) -> None:
    """Inference events, labels and predictions are counted under the outcomes the generator counted itself."""
    tally = told[1]
    assert unbroken.summary["inference"] == tally.inference
    assert unbroken.summary["ground_truth"] == tally.ground_truth
    assert unbroken.summary["predictions"]["labelled"] == tally.labelled


def test_fates_add_up(unbroken: Result) -> None:
    """Offered = summarised + rejected + late + duplicate; labels and predictions likewise."""
    events, labels = unbroken.summary["inference"], unbroken.summary["ground_truth"]
    assert events["offered"] == sum(events[fate] for fate in ("summarised", "rejected", "late", "duplicate"))
    assert labels["offered"] == sum(count for fate, count in labels.items() if fate != "offered")
    assert sum(unbroken.summary["predictions"].values()) == events["summarised"] + events["late"]


def test_score_rows_hold_every_summarised_event_once(unbroken: Result) -> None:
    """The samples of the tumbling windows of one subject add up to the events that were summarised."""
    summarised = next(n for name, n in unbroken.counters.items() if "credit" in name and '"summarised"' in name)
    samples: dict[str, int] = {}
    for model, _, segment, window, _, _, reference, subject, statistic, *rest in unbroken.scores:
        if (model, segment, reference, subject, statistic) == ("credit", "{}", "baseline", "age", "missing_ratio"):
            samples[window] = samples.get(window, 0) + rest[-3]
    assert samples == {"15m": summarised, "1h": summarised}


def test_the_timeline_of_incidents_is_exact(unbroken: Result) -> None:
    """Which incidents, when they began, opened and closed, and what they name."""

    def hour(text: str | None) -> str | None:
        return None if text is None else text.removeprefix("2026-11-02T").removesuffix("Z")

    found = [
        (i["model"], i["segment"].get("market", ""), i["kind"], i["severity"], hour(i["onset"]), hour(i["opened_at"]),
         hour(i["closed_at"]), tuple(s["name"] for s in i["subjects"]))
        for i in unbroken.incidents
    ]  # fmt: skip
    assert found == TIMELINE


@pytest.mark.parametrize("seed", [0, 1])
def test_twenty_deaths_change_nothing(
    told: tuple[Logs, Tally], known: list[Baseline], unbroken: Result, tmp_path: Path, seed: int
) -> None:
    """Abandoned at twenty random polls, with whatever was committed by then, the run ends as if it had not been."""
    deaths = np.random.default_rng(seed).choice(np.arange(1, 70), 20, replace=False).tolist()
    driver = Driver(tmp_path / "state.duckdb", told[0], known, seed=seed, holds=0.3 * seed)
    assert_equal(unbroken, driver.run(deaths=deaths))
    assert driver.polls >= max(deaths)


@pytest.mark.parametrize(("poll", "holds"), [(137, 0.0), (3000, 0.0), (300, 0.4)])
def test_how_polls_cut_and_interleave_the_partitions_does_not_matter(
    told: tuple[Logs, Tally], known: list[Baseline], unbroken: Result, tmp_path: Path, poll: int, holds: float
) -> None:
    """Small polls, large ones, and partitions that are held back at random."""
    driver = Driver(tmp_path / "state.duckdb", told[0], known, poll=poll, holds=holds, seed=poll, checkpoints=0.1)
    assert_equal(unbroken, driver.run())


def test_order_within_the_lateness_does_not_matter(
    told: tuple[Logs, Tally], known: list[Baseline], unbroken: Result, tmp_path: Path
) -> None:
    """Every partition shuffled by up to nine seconds, with ten allowed."""
    assert_equal(unbroken, Driver(tmp_path / "state.duckdb", shuffled(told[0], 9), known).run())
