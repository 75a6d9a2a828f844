"""What people are shown of model quality when labels come days late: there, right, and not another window at each look."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_labels import START, Bodies, Story

from stream_monitor import delays, history
from stream_monitor.app import Monitor
from stream_monitor.exposition import Service, snapshot
from stream_monitor.publish.http import Filters
from stream_monitor.records import MICROSECONDS
from stream_monitor.store import Store
from stream_monitor.views import LiveView

DAY = 86_400
EVERY = 300  # seconds between two predictions: three in a quarter of an hour
WINDOWS = {"15m": 900, "1h": 3600, "1d": DAY, "7d": 7 * DAY}
LONG: dict[str, Any] = {"windows": list(WINDOWS), "pane": "60s", "allowed_lateness": "60s"}


@pytest.fixture
def begin(tmp_path: Path) -> Iterable[Callable[..., Story]]:
    """Begins stories, each on a state file of its own."""
    made: list[Story] = []

    def make(**changes: Any) -> Story:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Story(folder, **{**LONG, **changes}))
        return made[-1]

    yield make
    for story in made:
        story.close()


def is_right(number: int) -> bool:
    """Whether a prediction turns out to be: seven in ten, in no rhythm of hours or days."""
    return number * 7919 % 101 < 71


def says_yes(number: int) -> bool:
    """What it predicts."""
    return number % 2 == 0


def predicted(number: int) -> dict[str, Any]:
    """A prediction."""
    label = "yes" if says_yes(number) else "no"
    return {"inference_id": number, "model": "m", "version": "1", "timestamp": START + number * EVERY,
            "features": {"a": number % 17}, "prediction": {"label": label}}  # fmt: skip


def truth(number: int, delay: float) -> dict[str, Any]:
    """Its label."""
    label = "yes" if says_yes(number) == is_right(number) else "no"
    return {"inference_id": number, "label": label, "timestamp": START + number * EVERY + delay}


def day(story: Story, number: int, *, delay: float, labels: bool = True) -> None:
    """The predictions of one day, and the labels that come on it."""
    made = range(number * DAY // EVERY, (number + 1) * DAY // EVERY)
    behind = int(delay // EVERY)
    come = [n - behind for n in made if n >= behind] if labels else []
    story.tell([predicted(n) for n in made], [truth(n, delay) for n in come])


def gauges(story: Story, name: str, metric: str = "accuracy") -> dict[str, float]:
    """A family's figures of the cohorts, by window."""
    found = snapshot(story.engine, Service(ready=True)).samples.get(name, [])
    wanted: Sequence[Sequence[str]] = (("m", "1", metric, "cohort"), ("m", "1", "cohort"), ("m", "1"))
    return {labels[-1]: value for labels, value in found if list(labels[:-1]) in [list(w) for w in wanted]}


def by_hand(end: float, seconds: int, *, until: float) -> tuple[float, int]:
    """Accuracy of the predictions of a window that were made `until` so many seconds of the story, and how many there are."""
    numbers = [n for n in range(int(until // EVERY)) if end - seconds <= START + n * EVERY < end]
    return sum(map(is_right, numbers)) / len(numbers), len(numbers)


def test_labels_two_days_late_have_figures_of_every_length(begin: Callable[..., Story]) -> None:
    """Ripe, as counted by hand, and of windows that only go forward; the newest is as old as labels need."""
    story = begin()
    ends: dict[str, list[float]] = {window: [] for window in WINDOWS}
    for number in range(20):
        day(story, number, delay=2 * DAY)
        for window, end in gauges(story, "performance_window_end_timestamp_seconds").items():
            ends[window].append(end)
            accuracy, made = by_hand(end, WINDOWS[window], until=(number - 1) * DAY)
            assert gauges(story, "performance")[window] == pytest.approx(accuracy)
            assert gauges(story, "performance_samples")[window] == made
    assert set(gauges(story, "performance_ripe").values()) == {1}
    (age,) = [value for labels, value in snapshot(story.engine, Service(ready=True)).samples["label_through_seconds"]]
    assert 2 * DAY <= age <= 4 * DAY
    now = (story.engine.joined_sealed_us or 0) / MICROSECONDS
    for window, seconds in WINDOWS.items():
        assert len(ends[window]) >= 5  # of 20 days: the first weeks are over on the fourth and the eleventh
        assert now - age - seconds < ends[window][-1] <= now - age
        backward = [b for a, b in zip(ends[window], ends[window][1:], strict=False) if b < a]
        assert len(backward) <= 1  # when it becomes known that two days are all
        assert gauges(story, "label_coverage_ratio")[window] == 1


def test_labels_twenty_days_late_have_figures_from_their_first_day(begin: Callable[..., Story]) -> None:
    """Before it is known when labels are through: there, right and called unripe; then ripe."""
    story = begin()
    for number in range(34):
        day(story, number, delay=20 * DAY)
        found = gauges(story, "performance")
        assert ("15m" in found) == (number >= 20)
        for window, end in gauges(story, "performance_window_end_timestamp_seconds").items():
            assert found[window] == pytest.approx(by_hand(end, WINDOWS[window], until=(number - 19) * DAY)[0])
        if number == 25:
            assert set(gauges(story, "performance_ripe").values()) == {0}
    assert set(gauges(story, "performance_ripe").values()) == {1}
    assert gauges(story, "performance_ripe").keys() >= {"15m", "1h", "1d"}


def test_labels_that_stay_away_leave_the_last_ripe_cohort_and_show_in_the_coverage(begin: Callable[..., Story]) -> None:
    """The figures stand with their time; the coverage is that of the windows whose labels should be there."""
    story = begin()
    for number in range(14):
        day(story, number, delay=2 * DAY)
    before = gauges(story, "performance_window_end_timestamp_seconds")
    for number in range(14, 19):
        day(story, number, delay=2 * DAY, labels=False)
    after = gauges(story, "performance_window_end_timestamp_seconds")
    now = (story.engine.joined_sealed_us or 0) / MICROSECONDS
    assert before["15m"] <= after["15m"] <= START + 12 * DAY < now - 6 * DAY
    assert gauges(story, "label_coverage_ratio")["1h"] == 0
    assert gauges(story, "label_coverage_expected_ratio")["1h"] == pytest.approx(1)
    active = snapshot(story.engine, Service(ready=True)).samples["incident_active"]
    assert [labels[2:5] for labels, _ in active if labels[2] == "labels_late"] == [("labels_late", "label", "warning")]
    shown = [row for row in history.recent_performance(story.engine) if row["basis"] == "cohort"]
    assert {row["ripe"] for row in shown} == {True}
    late = [truth(n, 2 * DAY) for n in range(12 * DAY // EVERY, 17 * DAY // EVERY)]
    story.tell([predicted(19 * DAY // EVERY)], [{**body, "timestamp": START + 19 * DAY} for body in late])
    assert gauges(story, "performance_window_end_timestamp_seconds")["15m"] > START + 15 * DAY
    assert gauges(story, "label_coverage_ratio")["1h"] == 1


def test_a_habit_that_is_learnt_anew_shows_cohorts_of_the_same_age(begin: Callable[..., Story]) -> None:
    """Not the young ones, as if nothing had been known: that would be a jump there and one back."""
    story = begin()
    for number in range(14):
        day(story, number, delay=2 * DAY)
    before = gauges(story, "performance_window_end_timestamp_seconds")
    story.engine.outcomes.labels.relearn(0)
    for number in (14, 15):
        day(story, number, delay=2 * DAY)
        after = gauges(story, "performance_window_end_timestamp_seconds")
        assert after["1h"] == before["1h"] + DAY
        before = after
    assert gauges(story, "performance_ripe")["1h"] == 0


def test_a_restart_shows_the_same(begin: Callable[..., Story]) -> None:
    """It is found again in the state file."""
    story = begin()
    for number in range(14):
        day(story, number, delay=2 * DAY)
    names = ("performance", "performance_window_end_timestamp_seconds", "performance_ripe", "label_coverage_ratio")
    before = {name: gauges(story, name) for name in names}
    story.restart()
    assert {name: gauges(story, name) for name in names} == before


def test_a_second_look_reads_nothing_from_the_state_file(
    begin: Callable[..., Story], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was looked at is remembered: a checkpoint does not cost a scan of 45 days."""
    story = begin()
    for number in range(14):
        day(story, number, delay=2 * DAY)
    story.restart()
    asked: list[int] = []
    read = Store.some_states

    def counted(store: Store, kind: str, keys: Sequence[str]) -> dict[str, bytes]:
        asked.append(len(keys))
        return read(store, kind, keys)

    monkeypatch.setattr(Store, "some_states", counted)
    snapshot(story.engine, Service(ready=True))
    assert 0 < sum(asked) <= 2 * len(WINDOWS) * 250
    asked.clear()
    snapshot(story.engine, Service(ready=True))
    assert sum(asked) == 0


def test_the_line_of_a_metric_is_of_one_segment_and_outcome(begin: Callable[..., Story]) -> None:
    """Without a period and with one: what is asked for and nothing between it."""
    story = begin(models={"m": {"task": "binary", "positive_label": "yes", "segments": ["market"]}}, windows=["15m"])
    for at in range(0, 5_400, 600):
        events = [{**predicted(n), "timestamp": START + n, "segment": {"market": "eu" if n % 2 else "us"}}
                  for n in range(at, at + 600)]  # fmt: skip
        labels = [{"inference_id": n, "label": "yes", "timestamp": START + n + 5} for n in range(at, at + 590)]
        story.tell(events, labels + [{**body, "outcome": "click"} for body in labels])
    view = LiveView(cast(Monitor, SimpleNamespace(engine=story.engine)))
    view.refresh()
    since = START * MICROSECONDS
    period = Filters(metric="accuracy", basis="cohort", since_us=since, until_us=since + 3_600 * MICROSECONDS)
    for filters, count in ((Filters(metric="accuracy", basis="cohort"), 1), (period, 4)):
        for segment, market in (("", {}), ("market=eu", {"market": "eu"})):
            for outcome in ("label", "click"):
                rows = view.performance(replace(filters, outcome=outcome, segment=segment))
                assert {(row["outcome"], str(row["segment"])) for row in rows} == {(outcome, str(market))}
                starts = [row["window_start"] for row in rows]
                assert len(set(starts)) == len(starts) == count
        assert len(view.performance(filters)) == count * 3 * 2
    assert {row["outcome"] for row in view.labels(Filters(outcome="click"))} == {"click"}
    told = view.performance_details(Filters(basis="cohort", outcome="click", segment="market=us"))
    assert {(row["outcome"], row["segment"]["market"]) for row in told} == {("click", "us")}
    view.close()


def labelled(label: Callable[[int], Any], *, key: str = "label", count: int = 1_800) -> tuple[Bodies, Bodies]:
    """Half an hour of predictions, one a second, and labels ten seconds behind."""
    events = [{**predicted(n), "timestamp": START + n} for n in range(count)]
    return events, [{"inference_id": n, key: label(n), "timestamp": START + n + 10} for n in range(count - 60)]


def test_a_class_nobody_knows_is_told(begin: Callable[..., Story], caplog: pytest.LogCaptureFixture) -> None:
    """It counts as the other class in silence; so it is counted by name, warned of once, and outlives a restart."""
    story = begin(drift={"learn_from": 300})
    events, labels = labelled(lambda n: "Yes" if n % 10 == 0 else "yes" if n % 2 else "no")
    with caplog.at_level(logging.WARNING, logger="stream_monitor"):
        for at in range(0, 1_800, 300):
            story.tell(events[at : at + 300], labels[at : at + 300] if at >= 600 else [])
    assert [r.getMessage() for r in caplog.records].count("label_of_unknown_class") == 1
    story.restart()
    (row,) = delays.rows(story.engine)
    wanted = {("Yes", False): 114, ("no", True): 456, ("yes", True): 570}
    assert {(c["class"], c["known"]): c["truths"] for c in row["classes"]} == wanted
    told = snapshot(story.engine, Service(ready=True)).samples["truths_total"]
    assert {(name, known == "true"): count for (_, _, name, known), count in told} == wanted


def test_without_a_baseline_the_first_truths_say_which_classes_there_are(begin: Callable[..., Story]) -> None:
    """What is among the first 1,000 is known, what comes later is not."""
    story = begin()
    events, labels = labelled(lambda n: "maybe" if n >= 1_500 else "yes" if n % 2 else "no")
    for at in range(0, 1_800, 300):
        story.tell(events[at : at + 300], labels[at : at + 300])
    (row,) = delays.rows(story.engine)
    assert {(c["class"], c["known"]): c["truths"] for c in row["classes"]} == {
        ("maybe", False): 240, ("no", True): 750, ("yes", True): 750}  # fmt: skip


def test_a_class_that_is_never_predicted_is_known_by_its_truths(begin: Callable[..., Story]) -> None:
    """Of several classes, the first 1,000 truths tell those that the model misses; one that comes later is unknown."""
    story = begin(models={"m": {"task": "multiclass"}}, drift={"learn_from": 300})
    events, labels = labelled(lambda n: "new" if n >= 1_700 else "rare" if n % 100 == 0 else "no")
    for at in range(0, 1_800, 300):
        story.tell(events[at : at + 300], labels[at : at + 300])
    (row,) = delays.rows(story.engine)
    assert {(c["class"], c["known"]): c["truths"] for c in row["classes"]} == {
        ("new", False): 40, ("no", True): 1_683, ("rare", True): 17}  # fmt: skip


def test_classes_are_bounded(begin: Callable[..., Story]) -> None:
    """A text of its own for each prediction makes no place of its own for each; none is lost."""
    story = begin(models={"m": {"task": "multiclass"}})
    events, labels = labelled(lambda n: f"c{n}")
    story.tell(events, labels)
    (row,) = delays.rows(story.engine)
    assert len(row["classes"]) <= 2 * 20 + 2
    assert sum(c["truths"] for c in row["classes"]) == len(labels)
    assert {(c["class"], c["known"]) for c in row["classes"]} >= {("c0", True), ("(other)", False)}


def test_labels_that_cannot_be_read_are_labels_and_are_counted(begin: Callable[..., Story]) -> None:
    """A text for a number: covered, unusable, and the same in the metrics and in both places of the API."""
    story = begin(models={"m": {"task": "regression"}}, windows=["5m"])
    events, labels = labelled(lambda n: "soon" if n % 3 == 0 else 1.5, key="label")
    story.tell([{**body, "prediction": 1.0} for body in events], labels)
    (row,) = delays.rows(story.engine)
    cohort = next(c for c in row["cohorts"] if c["labelled"] == c["predictions"])
    assert (cohort["unusable"], cohort["coverage"]) == (100, 1)
    shown = next(r for r in history.recent_performance(story.engine) if r["basis"] == "cohort" and r["metric"] == "mae")
    assert (shown["samples"], shown["unusable"], shown["coverage"]) == (200, 100, 1)
    assert gauges(story, "performance_unusable") == {"5m": 100}
    assert gauges(story, "label_coverage_ratio") == {"5m": 1}
    assert row["classes"] == []


def test_numbers_have_one_delay_and_classes_have_theirs_in_buckets(begin: Callable[..., Story]) -> None:
    """Every truth of a regression is another number: no class of its own. The buckets hold every label."""
    story = begin(models={"m": {"task": "regression"}})
    events, labels = labelled(lambda n: n / 7, key="value")
    story.tell([{**body, "prediction": 1.0} for body in events], labels)
    (row,) = delays.rows(story.engine)
    (delay,) = row["delays"]
    assert (delay["class"], delay["labels"]) == ("(all)", len(labels))
    (bucket,) = delay["buckets"]
    assert bucket["labels"] == len(labels)
    assert bucket["up_to_seconds"] == pytest.approx(10)
    samples = snapshot(story.engine, Service(ready=True)).samples["label_delay_percentile_seconds"]
    assert {labels[2:] for labels, _ in samples} == {("(all)", "50"), ("(all)", "90"), ("(all)", "99")}
