"""The watch over joined truths: its run length, its laws, and what it calls what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import special

from stream_monitor.errors import StateError
from stream_monitor.judge.calibrate import Budget
from stream_monitor.judge.concept import Concept, Turn
from stream_monitor.judge.cusum import STEP, Bank, Growth, rise, run_length, tilted
from stream_monitor.judge.relation import Relation
from stream_monitor.records import Floats, IncidentKind, Ints
from stream_monitor.summarize.outcome import Joined, OutcomeProfile, Task

SECOND = 1_000_000
LATE_US = 7_200 * SECOND
DAY_US = 86_400 * SECOND
NAMES = {0: ["market is eu"], 1: ["market is us"]}


def binary(score: Floats, truth: Ints) -> Joined:
    """Predictions that say yes from a half on, with their truths."""
    names, nothing = np.array(["no", "yes"], object), np.full(len(score), np.nan)
    said = names[(score >= 0.5).astype(int)]
    return Joined(pa.array(names[truth]), nothing, pa.array(said), score, nothing, nothing)


def numbers(error: Floats) -> Joined:
    """Predictions of 100 that are off by so much."""
    none = pa.nulls(len(error), pa.string())
    nothing = np.full(len(error), np.nan)
    return Joined(none, 100.0 - error, none, nothing, np.full(len(error), 100.0), nothing)


def draw(rng: np.random.Generator, n: int, *, shift: float = 0.0, slope: float = 1.5, base: float = 0.0) -> Joined:
    """Scores that are probabilities of an input; the truth follows it with `slope`, the scores with 1.5."""
    x = rng.normal(shift, 1.0, n)
    return binary(special.expit(1.5 * x), (rng.random(n) < special.expit(slope * x + base)).astype(int))


def of(reference: Joined, *, budget: str = "1 per 100000 events") -> Concept:
    """A watch on these truths."""
    none = reference.truth_label.null_count > 0
    profile = OutcomeProfile(Task.REGRESSION if none else Task.BINARY, "yes")
    profile.add(reference)
    relation = Relation.of(profile)
    assert relation is not None
    return Concept(relation, Budget.parse(budget), 1.0, 0.1)


def feed(concept: Concept, joined: Joined, first: int = 0, *, delays: Ints | None = None) -> list[Turn]:
    """One truth a second, two hours after its prediction, from one of two markets."""
    number = np.arange(first, first + len(joined))
    time_us = number * SECOND + LATE_US
    made_us = time_us - (LATE_US if delays is None else delays)
    return concept.update(joined, made_us, time_us, number % 2, names=NAMES, share_at=lambda _: 1.0)


def test_the_run_length_is_that_of_simulated_sums() -> None:
    """Of steps whose mean is below nothing: 400 runs of them, against the solution of the chain."""
    steps, shares, limit = np.array([-0.118, 0.693]), np.array([0.9, 0.1]), 4.0
    rng, lengths = np.random.default_rng(3), []
    for _ in range(400):
        total = np.cumsum(np.where(rng.random(6_000) < 0.1, steps[1], steps[0]))
        sums = total - np.minimum(np.minimum.accumulate(total), 0)
        lengths.append(int(np.argmax(sums >= limit)) + 1 if (sums >= limit).any() else 6_000)
    assert run_length(steps, shares, limit) == pytest.approx(np.mean(lengths), rel=0.12)


def test_a_limit_keeps_its_run_length() -> None:
    """What a bank gives for a run length is what the chain says of it."""
    shares = np.array([0.8, 0.2])
    ratio = np.log(np.array([0.7, 0.3]) / shares)
    bank = Bank.of(ratio[None], shares, tilted(shares, ratio, 1e12)[None])
    for wanted in (20_000.0, 200_000.0):
        limit = float(bank.limits(wanted)[0]) * STEP
        assert run_length(bank.steps[0] * STEP, shares, limit) == pytest.approx(wanted, rel=0.1)


def test_a_small_baseline_raises_limits_and_a_tiny_one_silences_the_nearest_alternatives() -> None:
    """The rate is kept for 95 of 100 baselines; what lies within their error is no alternative."""
    shares = np.array([0.9, 0.1])
    ratio = np.log(np.array([0.87, 0.13]) / shares)[None]
    limits = [Bank.of(ratio, shares, tilted(shares, ratio[0], rows)[None]).limits(1e5)[0] for rows in (1e6, 2e3, 5e2)]
    assert limits[0] < limits[1] < limits[2]
    assert Growth.of(ratio[0], tilted(shares, ratio[0], 500)).slope == 0


def test_sums_do_not_depend_on_how_labels_are_cut() -> None:
    """Level and age after two parts are those after the whole."""
    steps = np.random.default_rng(1).integers(-5, 5, (300, 3))
    nothing = np.zeros(3, np.int64)
    whole = rise(nothing, steps, nothing)
    first = rise(nothing, steps[:117], nothing)
    second = rise(first[0][-1], steps[117:], first[1][-1])
    for one, parts in zip(whole, zip(first, second, strict=True), strict=True):
        np.testing.assert_array_equal(one, np.concatenate(parts))


@pytest.fixture(scope="module")
def reference() -> Joined:
    """10,000 labelled rows whose scores are probabilities."""
    return draw(np.random.default_rng(0), 10_000)


@pytest.mark.parametrize("cuts", [[500], [1, 2, 3, 2_400], list(range(97, 6_000, 97))])
def test_chunks_and_restarts_change_nothing(reference: Joined, cuts: list[int]) -> None:
    """Alarms, calms, words and onsets: the same where labels come at once and where each part meets a restored watch."""
    rng = np.random.default_rng(5)
    parts = [draw(rng, n, base=base) for n, base in ((2_000, 0.0), (1_500, 1.0), (2_500, 0.0))]
    every = [parts[k].take(np.arange(len(parts[k]))) for k in range(3)]
    joined = Joined(
        pa.concat_arrays([p.truth_label for p in every]), np.full(6_000, np.nan),
        pa.concat_arrays([p.label for p in every]), np.concatenate([p.score for p in every]),
        np.full(6_000, np.nan), np.full(6_000, np.nan),
    )  # fmt: skip
    delays = rng.integers(1, 3_600, 6_000) * SECOND
    expected = feed(of(reference, budget="1 per 7d"), joined, delays=delays)
    assert [turn.is_calm for turn in expected if not turn.is_again].count(True) >= 1
    found: list[Turn] = []
    concept = of(reference, budget="1 per 7d")
    for start, stop in zip([0, *cuts], [*cuts, 6_000], strict=True):
        rows = np.arange(start, stop)
        turns = feed(concept, joined.take(rows), start, delays=delays[rows])
        found += turns
        restored = of(reference, budget="1 per 7d")
        assert restored.restore(concept.to_bytes())
        concept = restored
    plain = [[(t.aspect, t.kind, t.time_us, t.is_calm, t.is_again, t.value, t.effect, t.detail, t.worst, t.onset_us,
               t.onset_between_us) for t in turns] for turns in (expected, found)]  # fmt: skip
    assert sorted(plain[0], key=str) == sorted(plain[1], key=str)


def test_a_state_of_another_reference_begins_anew_and_damage_is_said(reference: Joined) -> None:
    """Numbers have other aspects than classes; bytes that are no state raise."""
    watch = of(reference)
    assert not watch.restore(of(numbers(np.random.default_rng(1).normal(0, 1, 1_000))).to_bytes())
    with pytest.raises(StateError):
        watch.restore(b"nonsense")


def test_too_few_labels_are_no_reference() -> None:
    """199 rows say nothing, 200 do."""
    for rows, usable in ((199, False), (200, True)):
        profile = OutcomeProfile(Task.BINARY, "yes")
        profile.add(draw(np.random.default_rng(1), rows))
        assert (Relation.of(profile) is not None) == usable


def alarms(turns: list[Turn]) -> list[Turn]:
    """The first turn of each alarm."""
    return [turn for turn in turns if not turn.is_calm and not turn.is_again]


def test_errors_that_double_are_found_and_dated_by_their_predictions() -> None:
    """10 % become 20 %, without scores: within 400 labels, the onset within a quarter of an hour of predictions."""
    rng = np.random.default_rng(2)

    def wrong(rate: float, n: int) -> Joined:
        joined = binary(np.full(n, 0.9), (rng.random(n) >= rate).astype(int))
        return Joined(joined.truth_label, joined.truth_number, joined.label, joined.value, joined.value, joined.value)

    concept = of(wrong(0.1, 20_000))
    assert alarms(feed(concept, wrong(0.1, 5_000))) == []
    [found] = alarms(feed(concept, wrong(0.2, 1_500), 5_000))
    assert (found.aspect, found.kind) == ("error_rate", IncidentKind.CONCEPT_DRIFT)
    assert found.at < 400
    assert found.onset_us == pytest.approx(5_000 * SECOND, abs=900 * SECOND)
    assert found.onset_between_us[0] <= found.onset_us <= found.onset_between_us[1]
    assert found.detail.startswith("error rate 10 % -> ")


@pytest.mark.parametrize(("before", "after"), [(0.1, 0.2), (0.25, 0.37), (0.25, 0.31)])
def test_a_change_that_lasts_is_one_alarm_and_calms_after_it(before: float, after: float) -> None:
    """Whatever chance raised the alarm, it is not called over while errors are raised, and soon when they are not."""

    def errors(rng: np.random.Generator, rate: float, n: int) -> Joined:
        return binary(np.full(n, 0.9), (rng.random(n) >= rate).astype(int))

    for seed in range(3):
        rng = np.random.default_rng(seed)
        concept = of(errors(rng, before, 20_000), budget="1 per 1000000 events")
        assert not feed(concept, errors(rng, before, 5_000))
        turns = feed(concept, errors(rng, after, 20_000), 5_000)
        told = [turn.aspect for turn in turns if not turn.is_again]
        assert sorted(told) == ["calibration", "error_rate"], seed
        assert not any(turn.is_calm for turn in turns), seed
        over = feed(concept, errors(rng, before, 10_000), 25_000)
        assert sorted(turn.aspect for turn in over if turn.is_calm) == ["calibration", "error_rate"], seed
        assert all(turn.is_calm for turn in over), seed


def worse_for_a_while(rng: np.random.Generator, rate: float) -> tuple[Joined, Ints]:
    """10 % wrong, `rate` on the fourth day and until noon of the fifth, 2,000 a day; and how late each label is."""
    day = np.arange(18_000) / 2_000
    wrong = rng.random(len(day)) < np.where((day >= 3) & (day < 4.5), rate, 0.1)
    return binary(np.full(len(day), 0.9), 1 - wrong.astype(np.int64)), (rng.exponential(0.5, len(day)) * DAY_US).astype(
        np.int64
    )


def as_labels_come(concept: Concept, joined: Joined, late_us: Ints) -> list[Turn]:
    """What the watch says of them in the order of their arrival, and stored at each step."""
    made_us = np.arange(len(joined)) * (DAY_US // 2_000)
    order = np.argsort(made_us + late_us, kind="stable")
    found: list[Turn] = []
    for start in range(0, len(order), 3_000):
        row = order[start : start + 3_000]
        time_us = (made_us + late_us)[row]
        found += concept.update(joined.take(row), made_us[row], time_us, row % 2, names={}, share_at=lambda _: 1.0)
    return found


@pytest.mark.parametrize("rate", [0.25, 0.4])
def test_what_is_over_is_told_once_though_its_labels_still_come(rate: float) -> None:
    """Labels of the bad days that are late, and come when it is over, are no new change; no alarm stands on a handful."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        right = (rng.random(20_000) >= 0.1).astype(np.int64)
        concept = of(binary(np.full(20_000, 0.9), right), budget="1 per 100000 events")
        turns = as_labels_come(concept, *worse_for_a_while(rng, rate))
        rate_alone = [turn for turn in turns if turn.aspect == "error_rate" and not turn.is_again]
        assert [turn.is_calm for turn in rate_alone] == [False, True], seed
        assert abs(rate_alone[0].onset_us / DAY_US - 3) < 0.15, seed


def test_a_relation_that_turns_is_concept_drift_and_inputs_that_move_are_not(reference: Joined) -> None:
    """Scores condition the ratios: their own move says nothing, truths that leave them do."""
    for slope, shift, kinds in ((-1.5, 0.0, {IncidentKind.CONCEPT_DRIFT}), (1.5, 1.0, set()), (1.5, -1.0, set())):
        concept, rng = of(reference), np.random.default_rng(7)
        feed(concept, draw(rng, 1_000))
        found = alarms(feed(concept, draw(rng, 2_000, slope=slope, shift=shift), 1_000))
        assert {turn.kind for turn in found} == kinds


def test_harder_cases_that_scores_foretell_are_performance() -> None:
    """Errors grow since inputs moved to where answers are unsure; the relation holds."""
    rng = np.random.default_rng(11)
    concept = of(draw(rng, 10_000, shift=2.0))
    feed(concept, draw(rng, 1_000, shift=2.0))
    found = alarms(feed(concept, draw(rng, 2_000, shift=0.0), 1_000))
    assert [(turn.aspect, turn.kind) for turn in found] == [("error_rate", IncidentKind.PERFORMANCE)]


def test_as_many_errors_on_the_other_side_are_found() -> None:
    """Truths lean to no where they leant to yes: the calibration tells at once, though accuracy is as it was."""
    rng = np.random.default_rng(13)

    def asked(rate: float, n: int) -> Joined:
        score = np.where(rng.random(n) < 0.5, 0.2, 0.8)
        return binary(score, (rng.random(n) < np.where(score > 0.5, 0.8, rate)).astype(int))

    concept = of(asked(0.2, 10_000))
    score = np.where(np.random.default_rng(1).random(3_000) < 0.5, 0.2, 0.8)
    # Errors of those that said yes halve, those of the others grow by as much: 20 % of answers are wrong as before.
    truth = (np.random.default_rng(2).random(3_000) < np.where(score > 0.5, 0.9, 0.3)).astype(int)
    found = alarms(feed(concept, binary(score, truth)))
    assert [turn.aspect for turn in found] == ["calibration"]


def test_the_worst_segment_is_named(reference: Joined) -> None:
    """Truths of one market alone turn round."""
    concept, rng = of(reference), np.random.default_rng(17)
    feed(concept, draw(rng, 1_000))
    n = 1_000
    x, number = rng.normal(0, 1, n), np.arange(1_000, 1_000 + n)
    slope = np.where(number % 2 == 1, -1.5, 1.5)
    joined = binary(special.expit(1.5 * x), (rng.random(n) < special.expit(slope * x)).astype(int))
    told = [turn.worst for turn in feed(concept, joined, 1_000)]
    assert any(words.startswith("worst where market is us") for words in told)


def test_numbers_that_grow_worse_or_lean() -> None:
    """A spread of errors that doubles, and errors that lean by one standard deviation; smaller ones are good news."""
    rng = np.random.default_rng(19)
    errors: list[tuple[Floats, set[str]]] = [
        (rng.normal(0, 2, 1_000), {"mean_absolute_error"}),
        (rng.normal(0, 0.3, 1_000), set()),
        (np.abs(rng.normal(0, 1, 1_000)), {"bias"}),
    ]
    for error, expected in errors:
        concept = of(numbers(rng.normal(0, 1, 10_000)))
        feed(concept, numbers(rng.normal(0, 1, 1_000)))
        assert {turn.aspect for turn in alarms(feed(concept, numbers(error), 1_000))} == expected


def own(value: Floats) -> Joined:
    """Numbers of their own, beside predictions that say nothing of them."""
    none, nothing = pa.nulls(len(value), pa.string()), np.full(len(value), np.nan)
    return Joined(none, value, none, nothing, nothing, nothing)


def watch_over(reference: Floats, *, budget: str = "1 per 100000 events", minimum_effect: float = 0.1) -> Concept:
    """A watch over how high numbers lie."""
    profile = OutcomeProfile(Task.VALUE)
    profile.add(own(reference))
    relation = Relation.of(profile)
    assert relation is not None
    return Concept(relation, Budget.parse(budget), 1.0, minimum_effect)


WORLDS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, n: rng.normal(10, 3, n),
    "exponential": lambda rng, n: rng.exponential(10, n),
    "log-normal, deviation 2": lambda rng, n: rng.lognormal(0, 2, n),
    "Pareto, no variance": lambda rng, n: 1 + rng.pareto(1.5, n),
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.6, 0.0, rng.exponential(30, n)),
    "counts": lambda rng, n: rng.poisson(3, n).astype(np.float64),
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_level_of_clean_numbers_keeps_the_budget(world: str) -> None:
    """Five references of a thousand, 20,000 numbers each, one alarm per 20,000 allowed: 5 expected, 9 the most."""
    alarms = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        watch = watch_over(WORLDS[world](rng, 1_000), budget="1 per 20000 events", minimum_effect=0.0)
        alarms += sum(not t.is_calm and not t.is_again for t in feed(watch, own(WORLDS[world](rng, 20_000))))
    assert alarms <= 9


@pytest.mark.parametrize("world", WORLDS)
def test_a_level_that_halves_is_found_and_dated(world: str) -> None:
    """However skewed the numbers are; a doubled one too, and the words tell which."""
    for factor in (0.5, 2.0):
        rng = np.random.default_rng(11)
        watch = watch_over(WORLDS[world](rng, 2_000))
        assert feed(watch, own(WORLDS[world](rng, 2_000))) == []
        found = feed(watch, own(factor * WORLDS[world](rng, 1_500)), 2_000)
        first = found[0]
        assert (first.aspect, first.kind, first.is_calm) == ("mean", IncidentKind.PERFORMANCE, False)
        assert first.at < 500
        assert abs(first.onset_us // SECOND - 2_000) < 150
        assert (first.value < first.expected) == (factor < 1)
        assert first.detail.startswith("mean ")


def test_the_level_says_where_it_moved_most() -> None:
    """One of two markets falls, the other stands."""
    rng = np.random.default_rng(13)
    watch = watch_over(rng.exponential(10, 2_000))
    feed(watch, own(rng.exponential(10, 1_000)))
    factor = np.where(np.arange(1_500) % 2 == 1, 0.4, 1.0)
    found = feed(watch, own(factor * rng.exponential(10, 1_500)), 1_000)
    assert {turn.worst.partition("(")[0] for turn in found if turn.worst} == {"most where market is us "}


@pytest.mark.parametrize("cuts", [[1], [500, 501, 1_300], [64] * 20])
def test_chunks_and_restarts_change_nothing_for_a_level(cuts: list[int]) -> None:
    """As for errors."""
    rng = np.random.default_rng(17)
    reference, stream = rng.exponential(10, 1_000), np.concatenate([rng.exponential(10, 700), rng.exponential(4, 900)])
    whole = feed(watch_over(reference), own(stream))
    assert whole
    watch, found, start = watch_over(reference), [], 0
    for stop in [*np.cumsum(cuts).tolist(), len(stream)]:
        found += [replace(t, at=t.at + start) for t in feed(watch, own(stream[start:stop]), start)]
        stored, watch = watch.to_bytes(), watch_over(reference)
        assert watch.restore(stored)
        start = stop
    assert found == whole
