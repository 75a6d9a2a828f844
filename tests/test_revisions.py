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
    for minute in (5, 6):
        cohort = found[minute]
        revisions = cohort["revisions"]
        # When it closed the last second's labels had not come; then each further tenth.
        assert [r["labelled"] for r in revisions] == [58, 60, 72, 84, 96, 108, 120]
        assert [r["coverage"] for r in (revisions[1], revisions[-1])] == [0.5, 1.0]
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
    story.tell([{**events[0], "inference_id": "last", "timestamp": START + 300}], [])  # now those labels are in order
    revisions = minutes(story)[1]["revisions"]
    assert [revision["labelled"] for revision in revisions] == [30, *range(60, 301, 30)]


def test_corrections_are_told_though_no_label_is_new(tmp_path: Path) -> None:
    """A figure that has left the interval it was given is a revision within the hour; they stay few, and one look is enough."""
    story = Story(tmp_path, windows=["10m", "1d"])
    midnight = START // 86_400 * 86_400 + 86_400
    events, labels = traffic(4, delay=lambda *_: 5.0, wrong=a_tenth, a_minute=60)
    story.live(events, labels)
    said = {e["inference_id"]: e["prediction"]["label"] for e in events}
    other, found = {"yes": "no", "no": "yes"}, []
    for hour in range(MOST_REVISIONS + 4):
        at = midnight + hour * 3600
        told = [{"inference_id": n, "label": other[label] if hour % 2 == 0 else label, "timestamp": at + 60 + k}
                for k, (n, label) in enumerate(said.items())]  # fmt: skip
        story.tell([{**events[0], "inference_id": f"later {hour}", "timestamp": at + 400}], told)
        found.append(of_first_day(story, midnight))
    story.tell([{**events[0], "inference_id": "last", "timestamp": at + 3700}], [])
    found.append(of_first_day(story, midnight))
    story.close()
    assert [value for _, value, _ in found[0]] == pytest.approx([0.9])
    assert found[1] == [*found[0], (midnight + 3600, 0.0, 240)]
    assert found[2] == [*found[1], (midnight + 7200, 1.0, 240)]
    assert len(found[-1]) == MOST_REVISIONS
    assert found[-1][0] == found[0][0]
    assert [value for _, value, _ in found[-1][-2:]] == [0.0, 1.0]


def of_first_day(story: Story, end: float) -> list[tuple[float, float, int]]:
    """(at, accuracy, labelled) of each revision of the cohort of a day that ended at a time."""
    [line] = story.engine.versions[0].lines.values()
    revisions = story.engine.revisions.of((line.number, 0, 86_400, round((end - 86_400) * 1e6)))
    return [(r.at_us / 1e6, r.figures["accuracy"][0], r.labelled) for r in revisions]


CUTS = (7, 60, 200, 10_000)
"""Seconds of event time that are joined together."""


def test_however_joins_fall_they_are_the_same(tmp_path: Path) -> None:
    """In one join or in many, with restarts or without: the same tenths at the same times, and the same figures."""
    events, labels = traffic(
        12, delay=lambda n, _: 20.0 + n * 7919 % 150, wrong=lambda n, at: a_tenth(n, at) or (at < 200 and n % 3 == 0),
        a_minute=120,
    )  # fmt: skip
    corrections = [{**labels[n], "label": "yes" if n % 2 else "no", "timestamp": labels[n]["timestamp"] + 60 + n % 200}
                   for n in range(0, len(labels), 5)]  # fmt: skip
    told = sorted([*labels, *corrections], key=lambda body: body["timestamp"])
    found = []
    for cut in CUTS:
        folder = tmp_path / str(cut)
        folder.mkdir()
        story = Story(folder, windows=["1m", "2m", "1h"])
        story.live(events, told, slice_seconds=cut, restarts=cut == CUTS[1])
        story.tell([{**events[0], "inference_id": "last", "timestamp": START + 1800}], [])
        story.engine.finish(1e7)
        story.engine.checkpoint()
        found.append(sorted(story.engine.revisions.all()))
        story.close()
    assert all(one == found[0] for one in found[1:])
    first = found[0]
    assert {key[2] for key, _ in first} == {60, 120}
    assert len(first) == 12 + 6
    for (_, _, seconds, start), revisions in first:
        assert all(start + seconds * 1e6 <= revision.at_us for revision in revisions)
        labelled = [revision.labelled for revision in revisions]
        assert labelled == sorted(labelled)
        assert len(set(labelled)) >= 8
    assert any(a.labelled == b.labelled for _, revisions in first for a, b in itertools.pairwise(revisions))


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
