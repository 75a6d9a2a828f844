"""The fates of labels and whose truth they are, against a ledger kept by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.records import NO_TIME
from stream_monitor.window.join import CORRECTED, DUPLICATE, NEW, Aims, Decision, aim, decide, truth_rank, truths


def read_aloud(rows: list[tuple[int, int, int]]) -> tuple[list[int], list[bool]]:
    """One label after the other: (key, time, text) against what the key holds; the greatest (time, text) stays."""
    held: dict[int, tuple[int, int]] = {}
    fates, spare = [], []
    for key, time, text in rows:
        spare.append(key in held and held[key][0] == time and text <= held[key][1])
        if key not in held:
            fates.append(NEW)
            held[key] = (time, text)
        else:
            fates.append(DUPLICATE if held[key][1] == text else CORRECTED)
            held[key] = max(held[key], (time, text))
    return fates, spare


label_rows = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 3)), max_size=40)


def decided(rows: list[tuple[int, int, int]]) -> Decision:
    """`decide` on rows (key, time, text)."""
    columns = np.array(rows, np.int64).reshape(-1, 3)
    return decide(columns[:, 0].astype(np.uint64), columns[:, 1], columns[:, 2].astype(np.int32))


@settings(max_examples=300, deadline=None)
@given(label_rows)
def test_fates_equal_a_ledger_kept_by_hand(rows: list[tuple[int, int, int]]) -> None:
    """New, duplicate or corrected, and which labels could never matter again."""
    decision = decided(rows)
    assert (decision.fate.tolist(), decision.spare.tolist()) == read_aloud(rows)


@settings(max_examples=200, deadline=None)
@given(label_rows)
def test_a_spare_label_leaves_the_fates_of_the_others(rows: list[tuple[int, int, int]]) -> None:
    """What is forgotten is not missed."""
    decision = decided(rows)
    rest = np.flatnonzero(~decision.spare)
    assert decided([rows[i] for i in rest]).fate.tolist() == decision.fate[rest].tolist()


def test_truths_are_ranked_by_time_then_text_and_those_without_a_time_by_row() -> None:
    """The greater timestamp wins, whatever the order; a label without one gives way."""
    time = np.array([5, NO_TIME, 5, 5, NO_TIME, 7])
    assert truth_rank(time, np.array([2, 3, 1, 2, 0, 0], np.int32)).tolist() == [3, 0, 2, 3, 1, 4]


def aims(labels: list[tuple[int, int, int]], predictions: list[tuple[int, int, int]]) -> Aims:
    """`aim` on rows (id, model, time)."""
    lab, pred = (np.array(rows, np.int64).reshape(-1, 3) for rows in (labels, predictions))
    return aim(
        label_id=lab[:, 0].astype(np.uint64),
        label_model=lab[:, 1].astype(np.int32),
        label_time_us=lab[:, 2],
        prediction_id=pred[:, 0].astype(np.uint64),
        prediction_model=pred[:, 1].astype(np.int32),
        prediction_time_us=pred[:, 2],
    )


@pytest.mark.parametrize(
    ("label", "predictions", "found"),
    [
        ((7, -1, 50), [], set()),
        ((7, -1, 50), [(7, 0, 10), (7, 1, 11), (8, 0, 12)], {0, 1}),  # no model: champion and challenger
        ((7, 1, 50), [(7, 0, 10), (7, 1, 11)], {1}),  # ids repeat across models
        ((7, 2, 50), [(7, 0, 10), (7, 1, 11)], set()),
        ((7, -1, 500), [(7, 0, 10), (7, 0, 400)], {1}),  # an id used again is a new prediction
        ((7, -1, 400), [(7, 0, 400), (7, 0, 10)], {0}),  # in whatever order, to the microsecond
        ((7, -1, 399), [(7, 0, 10), (7, 0, 400)], {0}),
        ((7, -1, 5), [(7, 0, 400), (7, 0, 10)], {1}),  # none by then: the earliest after it
        ((7, -1, 50), [(7, 0, 10), (7, 1, 60), (7, 1, 400), (7, 0, 400)], {0, 1}),
    ],
)
def test_a_label_speaks_of_the_newest_prediction_by_its_time(
    label: tuple[int, int, int], predictions: list[tuple[int, int, int]], found: set[int]
) -> None:
    """In every model it speaks for; where there is none yet, of the first to come."""
    assert set(aims([label], predictions).prediction.tolist()) == found


rows_of_ids = st.tuples(st.integers(1, 3), st.integers(0, 1), st.integers(0, 9))
scoped_labels = st.tuples(st.integers(1, 3), st.integers(-1, 1), st.integers(0, 9))


@settings(max_examples=300, deadline=None)
@given(st.lists(scoped_labels, max_size=12), st.lists(rows_of_ids, max_size=12, unique=True))
def test_labels_have_one_epoch_exactly_if_they_speak_of_the_same_predictions(
    labels: list[tuple[int, int, int]], predictions: list[tuple[int, int, int]]
) -> None:
    """Among those of one id and scope; against targets looked up one by one."""
    found = aims(labels, predictions)
    about: list[set[int]] = [set() for _ in labels]
    for label, prediction in zip(found.label.tolist(), found.prediction.tolist(), strict=True):
        about[label].add(prediction)
    for (one, model, time), got in zip(labels, about, strict=True):
        wanted = set()
        for scope in (0, 1) if model == -1 else (model,):
            mine = sorted((t, i) for i, (p, m, t) in enumerate(predictions) if (p, m) == (one, scope))
            by_then = [i for t, i in mine if t <= time]
            wanted |= set(by_then[-1:] or [i for _, i in mine[:1]])
        assert got == wanted
    for i, (one, scope, _) in enumerate(labels):
        for j, (other, scope_of_other, _) in enumerate(labels):
            if (one, scope) == (other, scope_of_other):
                assert (found.epoch[i] == found.epoch[j]) == (about[i] == about[j])


def settled(
    labels: list[tuple[int, int, int, int]], made_us: list[int], told: list[tuple[int, int]]
) -> list[tuple[int, ...]]:
    """`truths` of labels (outcome, time, text, arrival) told of predictions (label, prediction) that arrived when made."""
    lab, pairs = np.array(labels, np.int64).reshape(-1, 4), np.array(told, np.int64).reshape(-1, 2)
    found = truths(
        Aims(pairs[:, 0], pairs[:, 1], np.zeros(len(lab), np.int64)),
        rank=truth_rank(lab[:, 1], lab[:, 2].astype(np.int32)),
        outcome=lab[:, 0].astype(np.int32),
        label_arrival_us=lab[:, 3],
        prediction_arrival_us=np.array(made_us, np.int64),
    )
    columns = (found.prediction, found.outcome, found.label, found.first, found.opening, found.joined_us)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(
    ("labels", "told", "rows"),
    [
        ([], [], []),
        # (prediction, outcome, truth, first label, opening, joined)
        ([(0, 50, 0, 50)], [(0, 0), (0, 1)], [(0, 0, 0, 0, 0, 50), (1, 0, 0, 0, 0, 60)]),
        ([(0, 50, 0, 50), (1, 55, 0, 55)], [(0, 0), (1, 0)], [(0, 0, 0, 0, 0, 50), (0, 1, 1, 1, 1, 55)]),
        ([(0, 50, 0, 50), (0, 40, 1, 50)], [(0, 0), (1, 0)], [(0, 0, 0, 0, 0, 50)]),  # the greater timestamp wins
        ([(0, 50, 0, 50), (0, 55, 1, 55)], [(0, 0), (1, 0)], [(0, 0, 1, 0, 0, 50)]),  # a correction came after joining
        ([(0, 50, 0, 50), (0, 55, 1, 55)], [(0, 1), (1, 1)], [(1, 0, 1, 0, 1, 60)]),  # this one while it waited
        ([(0, 50, 1, 50), (0, 50, 1, 50)], [(0, 0), (1, 0)], [(0, 0, 0, 0, 0, 50)]),  # of equal ones the first
    ],
)
def test_of_the_labels_that_speak_of_a_prediction_one_is_its_truth(
    labels: list[tuple[int, int, int, int]], told: list[tuple[int, int]], rows: list[tuple[int, ...]]
) -> None:
    """Outcome by outcome; and what was known when prediction and first label had both arrived."""
    assert settled(labels, [10, 60], told) == rows
