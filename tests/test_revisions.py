"""What was said of a cohort as its labels came, held to the labels that had come by then."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from test_labels import START, Bodies, Story, a_tenth, traffic

from stream_monitor import delays
from stream_monitor.records import Json
from stream_monitor.revisions import MOST_REVISIONS


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """An engine without a past."""
    made = Story(tmp_path)
    yield made
    made.close()


def halves(number: int, at: float) -> float:
    """The delay of a label: every other pair's come within the minute, those of the rest two minutes later."""
    del at
    return 2.0 if number % 4 < 2 else 120.0


def minutes(story: Story) -> dict[int, Json]:
    """The newest cohorts of a minute, by the minute of the story they begin at."""
    [row] = delays.rows(story.engine)
    begun = {(datetime.fromisoformat(c["window_start"]).timestamp() - START) / 60: c for c in row["cohorts"]
             if c["window"] == "1m"}  # fmt: skip
    return {round(minute): cohort for minute, cohort in sorted(begun.items())}


def accuracy_of_first(count: int, events: Bodies, labels: Bodies, *, minute: int) -> float:
    """The share of right answers by the first labels that came for the predictions of a minute, from the bodies alone."""
    said = {e["inference_id"]: e["prediction"]["label"] for e in events
            if minute <= (e["timestamp"] - START) / 60 < minute + 1}  # fmt: skip
    came: list[bool] = [said[b["inference_id"]] == b["label"] for b in labels if b["inference_id"] in said]
    return sum(came[:count]) / count


def test_a_cohort_tells_what_it_was_as_its_labels_came(story: Story) -> None:
    """Each revision is the figure of as many labels as it names, the first that came; now is the figure of all."""
    events, labels = traffic(10, delay=halves, wrong=lambda n, at: a_tenth(n, at) or n % 12 == 2, a_minute=120)
    story.live(events, labels, slice_seconds=20)
    found = minutes(story)
    assert len(found) == delays.SHOWN_COHORTS
    figures = set()
    for minute in (5, 6, 7):
        cohort = found[minute]
        revisions = cohort["revisions"]
        assert [r["labelled"] for r in (revisions[0], revisions[-1])] == [60, 120]
        assert [r["coverage"] for r in (revisions[0], revisions[-1])] == [0.5, 1.0]
        assert sorted(r["at"] for r in revisions) == [r["at"] for r in revisions]
        for revision in revisions:
            expected = accuracy_of_first(revision["labelled"], events, labels, minute=minute)
            assert revision["figures"][0]["metric"] == "accuracy"
            assert revision["figures"][0]["value"] == pytest.approx(expected, abs=1e-12)
            figures.add(round(expected, 6))
        now = cohort["figures"][0]
        assert {k: now[k] for k in ("metric", "value", "lower", "upper")} == revisions[-1]["figures"][0]
    assert len(figures) > 1


def test_a_restart_keeps_them(story: Story) -> None:
    """They are in the state file, and go on from there."""
    events, labels = traffic(6, delay=halves, wrong=a_tenth, a_minute=120)
    story.live(events, labels, slice_seconds=30, restarts=True)
    before = minutes(story)
    assert len(before[3]["revisions"]) >= 2
    story.restart()
    assert minutes(story) == before


def test_there_are_few_of_them(story: Story) -> None:
    """However many joins restate a cohort: one for each tenth of it, and none before thirty labels."""
    events, labels = traffic(4, delay=lambda n, _: 60.0 + n % 97, wrong=a_tenth, a_minute=300)
    story.live(events, labels, slice_seconds=4)
    revisions = minutes(story)[1]["revisions"]
    assert 5 <= len(revisions) <= 10
    assert revisions[0]["labelled"] >= 30
    assert all(b["labelled"] - a["labelled"] >= 30 for a, b in itertools.pairwise(revisions))


def test_corrections_are_told_though_no_label_is_new(story: Story) -> None:
    """A figure that has left the interval it was given is a revision; however often that happens, they stay few."""
    events, labels = traffic(4, delay=lambda *_: 5.0, wrong=a_tenth, a_minute=120)
    story.live(events, labels, slice_seconds=30)
    first = minutes(story)[1]["revisions"]
    assert [revision["figures"][0]["value"] for revision in first] == pytest.approx([0.9], abs=0.05)
    said = {e["inference_id"]: e["prediction"]["label"] for e in events if 60 <= e["timestamp"] - START < 120}
    for k in range(MOST_REVISIONS + 4):
        other = {"yes": "no", "no": "yes"}
        told = [{"inference_id": n, "label": other[label] if k % 2 == 0 else label, "timestamp": START + 240 + k / 10}
                for n, label in said.items()]  # fmt: skip
        story.tell([{**events[0], "inference_id": f"later {k}", "timestamp": START + 240 + k / 10}], told)
        if k == 0:
            *before, now = minutes(story)[1]["revisions"]
            assert before == first
            assert (now["labelled"], now["figures"][0]["value"]) == (first[-1]["labelled"], 0.0)
    revisions = minutes(story)[1]["revisions"]
    assert len(revisions) == MOST_REVISIONS
    assert revisions[0] == first[0]
    assert [revision["figures"][0]["value"] for revision in revisions[-2:]] == [0.0, 1.0]


def test_what_is_not_followed_any_more_is_let_go(story: Story) -> None:
    """Memory holds the newest cohorts of each length, and a label for an older one brings no revision back."""
    events, labels = traffic(40, delay=halves, wrong=a_tenth)
    story.live(events, labels, slice_seconds=120)
    first = events[:60]
    belated = [{"inference_id": e["inference_id"], "label": "maybe", "timestamp": START + 2700} for e in first]
    story.tell([{**events[0], "inference_id": "new", "timestamp": START + 2700}], belated)
    held = {(seconds, (start / 1e6 - START) / 60) for _, _, seconds, start in story.engine.revisions._held}
    assert held
    assert min(minute for seconds, minute in held if seconds == 60) >= 45 - 1 - 8


def test_numbers_have_no_classes(tmp_path: Path) -> None:
    """The delays of a regression's labels are told together: no value is a class of its own."""
    story = Story(tmp_path, models={"m": {"task": "regression"}})
    events, labels = traffic(2, delay=lambda *_: 10.0, wrong=a_tenth)
    story.live(
        [{**event, "prediction": 5.0} for event in events],
        [{"inference_id": b["inference_id"], "value": 4.0 + n / 7, "timestamp": b["timestamp"]}
         for n, b in enumerate(labels)],
        slice_seconds=60,
    )  # fmt: skip
    [row] = delays.rows(story.engine)
    [told] = row["delays"]
    assert (told["class"], told["labels"]) == ("(all)", story.engine.truth.ledger.labelled[0])
    assert told["labels"] > 60
    assert told["p50_seconds"] == pytest.approx(10, rel=0.5)
    assert {truth for _, truth, _, _ in delays.quantiles(story.engine)} == {"(all)"}
    story.close()
