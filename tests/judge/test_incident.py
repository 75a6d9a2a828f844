"""The life of incidents: windows in, one incident a drift out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stream_monitor.judge.incident import Facts, IncidentBook, group_of, severity_of
from stream_monitor.records import Evidence, Incident, IncidentKind, LineKey, Score, Severity, Verdict

LINE = LineKey("credit", "7")
MINUTE = 60_000_000
K = IncidentKind


def score(
    subject: str,
    start: int,
    value: float,
    *,
    minutes: int = 15,
    effect: float = 0.3,
    kind: str = "feature",
    statistic: str = "wasserstein",
    expected: float = 0.2,
    verdict: Verdict | None = None,
) -> Score:
    """A score with threshold 1 of a window that starts at so many minutes: beyond 1 it drifts."""
    said = verdict or (Verdict.DRIFT if value > 1 else Verdict.OK)
    span = (f"{minutes}m", start * MINUTE, (start + minutes) * MINUTE, "baseline")
    return Score(LINE, *span, subject, kind, statistic, value, expected, 1.0, effect, 1000, 10_000, said)


def ratio(subject: str, start: int, value: float, expected: float = 0.01) -> Score:
    """A missing ratio with threshold 0.05."""
    said = Verdict.DRIFT if value > 0.05 else Verdict.OK
    span = ("15m", start * MINUTE, (start + 15) * MINUTE, "baseline")
    return Score(LINE, *span, subject, "feature", "missing_ratio", value, expected, 0.05, 0.4, 1000, 10_000, said)


def seen(name: str, statistic: str = "adwin") -> Evidence:
    """What a detector or a state brings."""
    return Evidence(name, "feature", statistic, 1.0, 1.0, 0.0, 16, 0, "")


class Story:
    """A book that is stored and restored before every step, and what it returned."""

    def __init__(self) -> None:
        self.book = IncidentBook(LINE)

    def windows(self, *scores: Score) -> list[Incident]:
        """Observe scores; the restored book must behave as the one that was never stored."""
        book = self.book
        restored = IncidentBook.from_json(json.loads(json.dumps(book.to_json(), allow_nan=False)))
        assert restored == book
        changed = [b.observe(list(scores), onset_of=begin, describe=words) for b in (book, restored)]
        assert changed[0] == changed[1]
        assert restored == book
        return changed[0]

    @property
    def open(self) -> list[Incident]:
        """What stands open."""
        return self.book.open_incidents


def begin(score: Score) -> int:
    """Every change began a minute after its window."""
    return score.window_start_us + MINUTE


def words(score: Score) -> str:
    """What a score is said to show."""
    return f"{score.value:g} of {score.subject}"


def test_a_drift_opens_one_incident_and_two_calm_windows_close_it() -> None:
    """Opened by the first window, silent while it lasts, closed at the end of the second calm one."""
    story = Story()
    assert story.windows(score("age", 0, 0.3)) == []
    [opened] = story.windows(score("age", 15, 1.5), score("income", 15, 0.2))
    assert (opened.kind, opened.severity, opened.closed_us) == (K.DATA_DRIFT, Severity.WARNING, None)
    assert (opened.opened_us, opened.onset_us) == (30 * MINUTE, 16 * MINUTE)
    assert opened.summary == "credit 7: age drifted (1.5 of age) since 1970-01-01 00:16 UTC."
    assert story.windows(score("age", 30, 1.2)) == []
    assert story.windows(score("age", 45, 0.2)) == []
    [closed] = story.windows(score("age", 60, 0.2))
    assert (closed.id, closed.closed_us) == (opened.id, 75 * MINUTE)
    assert closed.summary.endswith("over at 1970-01-01 01:15 UTC.")
    assert story.open == []


def test_subjects_join_and_are_ranked_by_evidence() -> None:
    """A later subject joins the open incident; the strongest stands first; evidence keeps its strongest window."""
    story = Story()
    story.windows(score("age", 0, 1.5))
    [joined] = story.windows(score("age", 15, 1.2), score("income", 15, 4.0))
    assert [(e.name, e.value, e.detail) for e in joined.subjects] == [
        ("income", 4.0, "4 of income"),
        ("age", 1.5, "1.5 of age"),
    ]
    assert story.windows(score("age", 30, 9.0), score("income", 30, 1.1)) == []
    assert [e.name for e in story.open[0].subjects] == ["age", "income"]
    story.windows(score("age", 45, 0.2), score("income", 45, 1.1))
    assert story.windows(score("age", 60, 0.2), score("income", 60, 0.2)) == []
    [closed] = story.windows(score("age", 75, 0.2), score("income", 75, 0.2))
    assert [e.value for e in closed.subjects] == [9.0, 4.0]


@pytest.mark.parametrize("verdict", [Verdict.INSUFFICIENT, Verdict.STALE])
def test_windows_that_say_nothing_end_nothing(verdict: Verdict) -> None:
    """Insufficient and stale windows neither count as calm nor break a row of calm ones."""
    story = Story()
    story.windows(score("age", 0, 2.0))
    for start in (15, 30, 45):
        assert story.windows(score("age", start, 0.1, verdict=verdict)) == []
    story.windows(score("age", 60, 0.1))
    story.windows(score("age", 75, 0.1, verdict=verdict))
    [closed] = story.windows(score("age", 90, 0.1))
    assert closed.closed_us == 105 * MINUTE


def test_a_drift_that_hovers_below_its_threshold_stays_open() -> None:
    """Calm is half-way back to the expected value, or an effect below half the practical floor."""
    story = Story()
    story.windows(score("age", 0, 1.1))
    for start in range(15, 150, 15):
        assert story.windows(score("age", start, 0.9 if start % 30 else 0.5)) == []
    story.windows(score("age", 150, 0.9, effect=0.04))
    assert len(story.windows(score("age", 165, 0.9, effect=0.04))) == 1


def test_a_longer_window_does_not_reopen_what_a_shorter_one_closed() -> None:
    """An hour that overlaps the episode is old news, the next hour is not, and another subject is news at once."""
    story = Story()
    story.windows(score("age", 0, 2.0))
    story.windows(score("age", 15, 0.1))
    [closed] = story.windows(score("age", 30, 0.1))
    assert story.windows(score("age", 0, 3.0, minutes=60)) == []
    [other] = story.windows(score("zip", 0, 3.0, minutes=60))
    assert [e.name for e in other.subjects] == ["zip"]
    [again] = story.windows(score("age", 60, 3.0, minutes=60))
    assert again.id == other.id != closed.id


def test_the_shortest_window_that_raised_it_closes_it() -> None:
    """Longer windows that still hold the drift keep nothing open; shorter ones that never saw it close nothing."""
    story = Story()
    story.windows(score("age", 0, 2.0, minutes=60))
    for start in range(60, 120, 15):
        assert story.windows(score("age", start, 0.1)) == []
    story.windows(score("age", 120, 2.0))
    story.windows(score("age", 120, 2.0, minutes=60), score("age", 135, 0.1))
    [closed] = story.windows(score("age", 150, 0.1))
    assert closed.closed_us == 165 * MINUTE


def test_labels_that_come_weeks_later_are_judged_in_the_windows_time() -> None:
    """Cohorts closed by late labels do not silence the cohorts after them."""
    story, late = Story(), 30 * 24 * 60 * MINUTE
    for start, value in ((0, 2.0), (15, 0.1), (30, 0.1)):
        cohort = [score("error_rate", start, value, kind="metric", statistic="error_rate")]
        changed = story.book.observe(cohort, onset_of=begin, describe=words, now_us=late + start * MINUTE)
    assert changed[0].closed_us == late + 30 * MINUTE
    cohort = [score("error_rate", 45, 2.0, kind="metric", statistic="error_rate")]
    [opened] = story.book.observe(cohort, onset_of=begin, describe=words, now_us=late + 45 * MINUTE)
    assert (opened.kind, opened.onset_us, opened.opened_us) == (K.CONCEPT_DRIFT, 46 * MINUTE, late + 45 * MINUTE)


def test_a_field_that_breaks_turns_bad_quality_into_broken_input() -> None:
    """The incident keeps its id, rises to critical, and does not sink back."""
    story = Story()
    [opened] = story.windows(ratio("income", 0, 0.3))
    assert (opened.kind, opened.severity) == (K.DATA_QUALITY, Severity.WARNING)
    [broken] = story.windows(ratio("income", 15, 1.0))
    assert (broken.id, broken.kind, broken.severity) == (opened.id, K.BROKEN_INPUT, Severity.CRITICAL)
    assert story.windows(ratio("income", 30, 0.3)) == []
    assert story.open[0].kind is K.BROKEN_INPUT


def test_kinds_keep_to_themselves() -> None:
    """Features, the prediction and bad values of one window are three incidents."""
    story = Story()
    changed = story.windows(score("age", 0, 2.0), score("prediction", 0, 2.0, kind="prediction"), ratio("zip", 0, 0.2))
    assert {i.kind for i in changed} == {K.DATA_DRIFT, K.PREDICTION_DRIFT, K.DATA_QUALITY}
    assert len({i.id for i in changed}) == 3


def test_a_detector_is_a_note_until_a_window_confirms_it() -> None:
    """Info first, warning with the window, not twice; alone it closes after an hour of silence."""
    story = Story()
    [noted] = story.book.note(K.DATA_DRIFT, seen("age"), now_us=5 * MINUTE, onset_us=4 * MINUTE)
    assert (noted.severity, noted.onset_us) == (Severity.INFO, 4 * MINUTE)
    assert story.book.note(K.DATA_DRIFT, seen("age"), now_us=6 * MINUTE, onset_us=6 * MINUTE) == []
    [confirmed] = story.windows(score("age", 0, 1.5))
    assert (confirmed.id, confirmed.severity) == (noted.id, Severity.WARNING)
    assert confirmed.subjects[0].statistic == "wasserstein"
    assert story.book.advance(now_us=600 * MINUTE) == []

    alone = IncidentBook(LINE)
    alone.note(K.DATA_DRIFT, seen("age"), now_us=0, onset_us=0)
    assert alone.advance(now_us=59 * MINUTE) == []
    [closed] = alone.advance(now_us=60 * MINUTE)
    assert closed.closed_us == 60 * MINUTE


def test_a_state_is_held_until_it_is_released() -> None:
    """A missing baseline opens once, whatever time passes, and closes when there is one."""
    book = IncidentBook(LINE)
    version = Evidence("7", "version", "baseline", float("nan"), float("nan"), float("nan"), 0, 0, "learning")
    [opened] = book.hold(K.BASELINE_MISSING, version, now_us=0, onset_us=0)
    assert opened.severity is Severity.WARNING
    assert opened.summary == "credit 7 has no baseline, so nothing can be judged (learning) since 1970-01-01 00:00 UTC."
    assert book.hold(K.BASELINE_MISSING, version, now_us=1, onset_us=1) == []
    assert book.advance(now_us=10**15) == []
    restored = IncidentBook.from_json(json.loads(json.dumps(book.to_json(), allow_nan=False)))
    [closed] = restored.release(K.BASELINE_MISSING, now_us=7 * MINUTE)
    assert (closed.id, closed.closed_us) == (opened.id, 7 * MINUTE)
    assert restored.release(K.BASELINE_MISSING, now_us=8 * MINUTE) == []


def test_a_promoted_baseline_closes_what_it_explains() -> None:
    """Closing by kind leaves the others, and old windows do not open it again."""
    story = Story()
    story.windows(score("age", 0, 2.0), ratio("zip", 0, 0.2))
    [closed] = story.book.close(now_us=20 * MINUTE, kinds=[K.DATA_DRIFT])
    assert (closed.kind, closed.closed_us) == (K.DATA_DRIFT, 20 * MINUTE)
    assert [i.kind for i in story.open] == [K.DATA_QUALITY]
    assert story.windows(score("age", 0, 3.0, minutes=60)) == []


def test_ids_depend_on_what_and_when_alone() -> None:
    """Two runs over the same windows name their incidents alike; another version's differ."""
    runs = [Story(), Story()]
    ids = [run.windows(score("age", 0, 2.0))[0].id for run in runs]
    assert ids[0] == ids[1]
    other = IncidentBook(LineKey("credit", "8")).observe([score("age", 0, 2.0)], onset_of=begin, describe=words)
    assert other[0].id != ids[0]


def test_windows_of_a_drained_backlog_are_taken_in_order() -> None:
    """All windows at once give the incidents of window after window."""
    scores = [score("age", start, value) for start, value in ((0, 2.0), (15, 0.1), (30, 0.1), (45, 2.0))]
    one, many = IncidentBook(LINE), IncidentBook(LINE)
    one.observe(scores[::-1], onset_of=begin, describe=words)
    for each in scores:
        many.observe([each], onset_of=begin, describe=words)
    assert one == many
    assert one.open_incidents[0].opened_us == 60 * MINUTE


F = (K.DATA_DRIFT, ("feature",) * 3, 0.5, 3, 10, False)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (F, Severity.CRITICAL),
        ((*F[:5], True), Severity.INFO),
        ((F[0], F[1], 0.49, 3, 10, False), Severity.WARNING),
        ((F[0], F[1], 0.9, 3, 11, False), Severity.WARNING),
        ((F[0], F[1], 0.9, 2, 2, False), Severity.WARNING),
        ((K.BROKEN_INPUT, ("feature",), 0.0, 1, 50, False), Severity.CRITICAL),
        ((K.BROKEN_INPUT, ("feature",), 0.0, 1, 50, True), Severity.INFO),
        ((K.DATA_QUALITY, ("feature",), 2.0, 1, 50, False), Severity.WARNING),
        ((K.PREDICTION_DRIFT, ("prediction",), 0.5, 0, 50, False), Severity.CRITICAL),
        ((K.PREDICTION_DRIFT, ("prediction",), 0.4, 0, 50, False), Severity.WARNING),
        ((K.CONCEPT_DRIFT, ("metric",), 0.5, 0, 50, False), Severity.CRITICAL),
        ((K.CONCEPT_DRIFT, ("metric",), 0.4, 0, 50, False), Severity.WARNING),
        ((K.DATA_LOSS, ("stream",), 0.0, 0, 50, False), Severity.CRITICAL),
        ((K.DATA_DRIFT, ("latency",), 3.0, 0, 50, False), Severity.INFO),
        ((K.DATA_DRIFT, ("latency", "feature"), 3.0, 1, 50, False), Severity.WARNING),
        ((K.BASELINE_MISSING, ("version",), 0.0, 0, 0, False), Severity.WARNING),
        ((K.DATA_DRIFT, ("feature",), 0.9, 1, 50, False, 0.5, False), Severity.CRITICAL),
        ((K.DATA_DRIFT, ("feature",), 0.9, 1, 50, False, 0.49, False), Severity.WARNING),
        ((K.DATA_DRIFT, ("feature",), 0.9, 1, 50, False, 0.0, True), Severity.INFO),
        ((K.BROKEN_INPUT, ("feature",), 0.9, 1, 50, False, 0.0, True), Severity.CRITICAL),
        ((K.DATA_DRIFT, ("feature",), 0.1, 1, 50, False, 0.0, False, True), Severity.CRITICAL),
        ((K.PERFORMANCE, ("metric",), 0.5, 0, 50, False), Severity.CRITICAL),
        ((K.PERFORMANCE, ("metric",), 0.4, 0, 50, False), Severity.WARNING),
        ((K.LABELS_LATE, ("outcome",), 0.5, 0, 50, False), Severity.WARNING),
        ((K.LABELS_LATE, ("outcome",), 0.49, 0, 50, False), Severity.INFO),
    ],
)
def test_the_rules_of_severity(facts: tuple[Any, ...], expected: Severity) -> None:
    """Every rule just above and just below its limits."""
    assert severity_of(Facts(*facts)) is expected


def test_groups_are_kinds_but_for_bad_values() -> None:
    """Bad quality and broken input share an incident; every other kind has its own."""
    groups = {kind: group_of(kind) for kind in K}
    assert groups[K.BROKEN_INPUT] == groups[K.DATA_QUALITY]
    assert len(set(groups.values())) == len(K) - 1


def test_a_foreign_format_is_refused() -> None:
    """A state of another format is an error, not a guess."""
    with pytest.raises(ValueError, match="format"):
        IncidentBook.from_json({"format": 99})


def test_importance_is_told_from_the_features_of_an_incident() -> None:
    """A feature of importance 2 makes a large effect critical, one of importance 0 makes it a note."""
    evidence = Evidence("age", "feature", "location", 9.0, 4.0, 0.7, 64, 10_000, "median 41 -> 47")
    for importance, expected in ((1.0, Severity.WARNING), (2.0, Severity.CRITICAL), (0.0, Severity.INFO)):
        book = IncidentBook(LINE, importance={"age": importance})
        book.begin_charts(features=50)
        [incident] = book.alarm(K.DATA_DRIFT, evidence, now_us=MINUTE, onset_us=0)
        assert incident.severity is expected


# -- the charts -------------------------------------------------------------------------------------


def charted(features: int = 10) -> Story:
    """A book of a line that charts watch."""
    story = Story()
    story.book.begin_charts(features=features)
    return story


def case(
    name: str, value: float = 8.0, *, effect: float = 0.3, kind: str = "feature", statistic: str = "location"
) -> Evidence:
    """What the charts bring, with a limit of 4."""
    return Evidence(name, kind, statistic, value, 4.0, effect, 64, 10_000, f"{value:g} of {name}")


def stored(book: IncidentBook) -> IncidentBook:
    """The book through JSON text."""
    return IncidentBook.from_json(json.loads(json.dumps(book.to_json(), allow_nan=False)))


def test_windows_open_nothing_where_charts_watch() -> None:
    """Neither of features, the prediction, latencies nor of bad values; of metrics they do, and once opened they size."""
    story = charted()
    loud = [score("age", 0, 9.0), score("prediction", 0, 9.0, kind="prediction"), score("ms", 0, 9.0, kind="latency")]
    assert story.windows(*loud, ratio("zip", 0, 1.0)) == []
    [opened] = story.windows(score("error_rate", 15, 2.0, kind="metric", statistic="error_rate"))
    assert opened.kind is K.CONCEPT_DRIFT
    story.book.alarm(K.DATA_DRIFT, case("age"), now_us=31 * MINUTE, onset_us=30 * MINUTE)
    story.windows(score("age", 30, 9.0), score("zip", 30, 9.0))
    drift = next(i for i in story.open if i.kind is K.DATA_DRIFT)
    assert [(e.name, e.statistic, e.value) for e in drift.subjects] == [("age", "wasserstein", 9.0)]


def test_an_alarm_is_one_incident_however_long_it_lasts() -> None:
    """Opened at its event; windows of any kind and time alone neither close nor repeat it; calm closes it."""
    story = charted()
    [opened] = story.book.alarm(K.DATA_DRIFT, case("age"), now_us=7 * MINUTE, onset_us=6 * MINUTE)
    assert (opened.severity, opened.opened_us, opened.onset_us) == (Severity.WARNING, 7 * MINUTE, 6 * MINUTE)
    assert opened.summary == "credit 7: age drifted (8 of age) since 1970-01-01 00:06 UTC."
    for start in range(0, 30 * 24 * 60, 24 * 60):
        assert story.windows(score("age", start, 0.1), score("age", start + 15, 9.0 if start % 7 else 0.1)) == []
        assert story.book.advance(now_us=start * MINUTE) == []
        assert story.book.alarm(K.DATA_DRIFT, case("age"), now_us=start * MINUTE, onset_us=0) == []
    assert [i.id for i in story.open] == [opened.id]
    [closed] = story.book.calm(K.DATA_DRIFT, "age", now_us=50_000 * MINUTE)
    assert (closed.id, closed.closed_us) == (opened.id, 50_000 * MINUTE)
    assert story.open == []
    assert story.book.calm(K.DATA_DRIFT, "age", now_us=50_001 * MINUTE) == []


def test_a_second_subject_joins_and_the_last_calm_closes() -> None:
    """The stronger stands first; a subject that calms and is raised again holds the incident."""
    story = charted()
    [opened] = story.book.alarm(K.DATA_DRIFT, case("age"), now_us=MINUTE, onset_us=0)
    [joined] = story.book.alarm(K.DATA_DRIFT, case("zip", 12.0), now_us=2 * MINUTE, onset_us=MINUTE)
    assert (joined.id, [e.name for e in joined.subjects]) == (opened.id, ["zip", "age"])
    assert story.book.calm(K.DATA_DRIFT, "age", now_us=3 * MINUTE) == []
    assert story.book.alarm(K.DATA_DRIFT, case("age", 20.0), now_us=4 * MINUTE, onset_us=MINUTE) == []
    assert story.book.calm(K.DATA_DRIFT, "zip", now_us=5 * MINUTE) == []
    assert story.book.calm(K.DATA_DRIFT, "other", now_us=5 * MINUTE) == []
    [closed] = story.book.calm(K.DATA_DRIFT, "age", now_us=6 * MINUTE)
    assert [(e.name, e.value) for e in closed.subjects] == [("age", 20.0), ("zip", 12.0)]
    [again] = story.book.alarm(K.DATA_DRIFT, case("age"), now_us=7 * MINUTE, onset_us=7 * MINUTE)
    assert again.id != opened.id


def test_kinds_of_alarms_keep_to_themselves() -> None:
    """A field that drifts, the prediction and a field that breaks; calm of one leaves the others."""
    story = charted()
    for kind, name in ((K.DATA_DRIFT, "age"), (K.PREDICTION_DRIFT, "prediction"), (K.DATA_QUALITY, "age")):
        story.book.alarm(kind, case(name), now_us=MINUTE, onset_us=0)
    assert len(story.open) == 3
    [closed] = story.book.calm(K.DATA_QUALITY, "age", now_us=2 * MINUTE)
    assert closed.kind is K.DATA_QUALITY
    assert {i.kind for i in story.open} == {K.DATA_DRIFT, K.PREDICTION_DRIFT}


def test_an_alarm_may_turn_bad_values_into_broken_input() -> None:
    """By a second subject that is broken: the same incident, critical; its calm is that of its group."""
    story = charted()
    bad = case("age", statistic="missing_ratio")
    [opened] = story.book.alarm(K.DATA_QUALITY, bad, now_us=MINUTE, onset_us=0)
    broken = case("zip", statistic="missing_ratio")
    [risen] = story.book.alarm(K.BROKEN_INPUT, broken, now_us=2 * MINUTE, onset_us=MINUTE)
    assert (risen.id, risen.kind, risen.severity) == (opened.id, K.BROKEN_INPUT, Severity.CRITICAL)
    assert story.book.calm(K.DATA_QUALITY, "zip", now_us=3 * MINUTE) == []
    [closed] = story.book.calm(K.BROKEN_INPUT, "age", now_us=4 * MINUTE)
    assert closed.kind is K.BROKEN_INPUT


def test_a_window_that_confirms_may_raise_the_severity() -> None:
    """The charts saw four events of a field that is wholly gone; the window says that it is broken."""
    story = charted()
    [opened] = story.book.alarm(K.DATA_QUALITY, case("age", statistic="missing_ratio"), now_us=MINUTE, onset_us=0)
    assert opened.severity is Severity.WARNING
    [risen] = story.windows(ratio("age", 0, 1.0))
    assert (risen.id, risen.kind, risen.severity) == (opened.id, K.BROKEN_INPUT, Severity.CRITICAL)
    assert risen.onset_us == opened.onset_us


@pytest.mark.parametrize(("features", "severity"), [(10, Severity.CRITICAL), (11, Severity.WARNING)])
def test_many_features_by_a_large_effect_are_critical(features: int, severity: Severity) -> None:
    """Three of ten are 30 %, three of eleven are not: the charts say how many there are before any window does."""
    story = charted(features)
    for name in ("a", "b", "c"):
        story.book.alarm(K.DATA_DRIFT, case(name, effect=0.6), now_us=MINUTE, onset_us=0)
    assert story.open[0].severity is severity


def test_what_a_detector_noted_the_charts_take_over() -> None:
    """From info to warning, with the stronger case; then neither the hour of quiet nor windows end it."""
    story = charted()
    [noted] = story.book.note(K.DATA_DRIFT, seen("age"), now_us=MINUTE, onset_us=MINUTE)
    [raised] = story.book.alarm(K.DATA_DRIFT, case("age"), now_us=2 * MINUTE, onset_us=MINUTE)
    assert (raised.id, raised.severity, raised.subjects[0].statistic) == (noted.id, Severity.WARNING, "location")
    assert story.book.advance(now_us=600 * MINUTE) == []
    [closed] = story.book.calm(K.DATA_DRIFT, "age", now_us=601 * MINUTE)
    assert closed.id == noted.id


def test_a_subject_stood_from_its_alarm_to_its_calm() -> None:
    """To the microsecond, before and after storing; of its own kind and name alone."""
    book = charted().book
    book.alarm(K.DATA_DRIFT, case("age"), now_us=10, onset_us=0)
    book.alarm(K.DATA_DRIFT, case("zip"), now_us=20, onset_us=0)
    expected = {9: (False, False), 10: (True, False), 19: (True, False), 20: (True, True), 10**9: (True, True)}
    for at, stood in expected.items():
        for each in (book, stored(book)):
            assert tuple(each.stood(K.DATA_DRIFT, name, at_us=at) for name in ("age", "zip")) == stood
    assert not book.stood(K.DATA_QUALITY, "age", at_us=15)
    book.calm(K.DATA_DRIFT, "age", now_us=30)
    book.calm(K.DATA_DRIFT, "zip", now_us=40)
    expected = {9: (False, False), 10: (True, False), 39: (True, True), 40: (False, False)}
    for at, stood in expected.items():
        for each in (book, stored(book)):
            assert tuple(each.stood(K.DATA_DRIFT, name, at_us=at) for name in ("age", "zip")) == stood


def test_a_book_with_charts_comes_back_from_json() -> None:
    """Open alarms, calm subjects, episodes and the number of features: the restored book does the same."""
    book = charted(7).book
    book.alarm(K.DATA_DRIFT, case("age"), now_us=10, onset_us=0)
    book.calm(K.DATA_DRIFT, "age", now_us=20)
    book.alarm(K.DATA_DRIFT, case("age"), now_us=30, onset_us=25)
    book.alarm(K.DATA_DRIFT, case("zip", float("inf"), effect=float("nan")), now_us=40, onset_us=25)
    book.calm(K.DATA_DRIFT, "age", now_us=50)
    restored = stored(book)
    assert restored.to_json() == book.to_json()
    assert restored.has_charts
    both = [each.calm(K.DATA_DRIFT, "zip", now_us=60) for each in (book, restored)]
    assert len(both[0]) == 1
    assert repr(both[0]) == repr(both[1])


def test_a_promoted_baseline_closes_alarms() -> None:
    """Whatever is raised: the charts begin anew, and their later calm is no news."""
    story = charted()
    story.book.alarm(K.DATA_DRIFT, case("age"), now_us=MINUTE, onset_us=0)
    [closed] = story.book.close(now_us=2 * MINUTE, kinds=[K.DATA_DRIFT])
    assert closed.closed_us == 2 * MINUTE
    assert story.book.calm(K.DATA_DRIFT, "age", now_us=3 * MINUTE) == []


def test_a_held_state_is_told_with_its_figures_of_now() -> None:
    """Other figures are no news unless they are graver; a subject that does not stand cannot be told again."""
    book = IncidentBook(LINE)
    few = Evidence("label", "outcome", "label_coverage", 0.8, 0.9, 0.3, 100, 1000, "10 labels are missing")
    assert book.restate(K.LABELS_LATE, few) == []
    (opened,) = book.hold(K.LABELS_LATE, few, now_us=10, onset_us=5)
    assert opened.severity is Severity.INFO
    assert book.restate(K.LABELS_LATE, replace(few, samples=200, detail="20 labels are missing")) == []
    assert "20 labels are missing" in book.open_incidents[0].summary
    (graver,) = book.restate(K.LABELS_LATE, replace(few, effect=2.5))
    assert (graver.id, graver.severity) == (opened.id, Severity.WARNING)
