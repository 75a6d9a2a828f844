"""The fates of labels and whose truth they are, against a ledger kept by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.window.join import CORRECTED, DUPLICATE, NEW, decide, match


def read_aloud(
    rows: list[tuple[int, int, int]], held: dict[int, tuple[int, int]]
) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """One label after the other: (key, time, text) against what the key holds; the greatest (time, text) stays."""
    held = dict(held)
    fates = []
    for key, time, text in rows:
        if key not in held:
            fates.append(NEW)
            held[key] = (time, text)
        else:
            fates.append(DUPLICATE if held[key][1] == text else CORRECTED)
            held[key] = max(held[key], (time, text))
    return fates, held


label_rows = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(label_rows, st.dictionaries(st.integers(1, 5), st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=5))
def test_fates_equal_a_ledger_kept_by_hand(rows: list[tuple[int, int, int]], held: dict[int, tuple[int, int]]) -> None:
    """New, duplicate or corrected, and what every key holds afterwards."""
    fates, after = read_aloud(rows, held)
    key, time, text = (np.array(column) for column in zip(*rows, strict=True))
    decision = decide(
        key.astype(np.uint64),
        time,
        text.astype(np.int32),
        stored_key=np.array(list(held), np.uint64),
        stored_time_us=np.array([t for t, _ in held.values()], np.int64),
        stored_text=np.array([x for _, x in held.values()], np.int32),
    )
    assert decision.fate.tolist() == fates
    got = dict(held)
    for i in np.flatnonzero(decision.winner):
        got[int(key[i])] = (int(time[i]), int(text[i]))
    assert got == after


@settings(max_examples=200, deadline=None)
@given(label_rows, st.randoms())
def test_the_truth_that_remains_does_not_depend_on_the_order(rows: list[tuple[int, int, int]], random: object) -> None:
    """Shuffled labels leave the same truth for every key."""

    def truth(order: list[tuple[int, int, int]]) -> dict[int, tuple[int, int]]:
        key, time, text = (np.array(column) for column in zip(*order, strict=True))
        empty = np.zeros(0, np.int64)
        decision = decide(
            key.astype(np.uint64),
            time,
            text.astype(np.int32),
            stored_key=empty.astype(np.uint64),
            stored_time_us=empty,
            stored_text=empty.astype(np.int32),
        )
        return {int(key[i]): (int(time[i]), int(text[i])) for i in np.flatnonzero(decision.winner)}

    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert truth(rows) == truth(shuffled)


def pairs(
    labels: list[tuple[int, int, int, int]], predictions: list[tuple[int, int, int]], held: list[tuple[int, int]]
) -> set[tuple[int, int]]:
    """`match` on rows (id, model, outcome, time), (id, model, time) with seq = row number, (seq, outcome)."""
    lab = np.array(labels, np.int64).reshape(-1, 4)
    pred = np.array(predictions, np.int64).reshape(-1, 3)
    joined = np.array(held, np.int64).reshape(-1, 2)
    found = match(
        label_id=lab[:, 0].astype(np.uint64),
        label_model=lab[:, 1].astype(np.int32),
        label_outcome=lab[:, 2].astype(np.int32),
        label_time_us=lab[:, 3],
        prediction_id=pred[:, 0].astype(np.uint64),
        prediction_model=pred[:, 1].astype(np.int32),
        prediction_time_us=pred[:, 2],
        prediction_seq=np.arange(len(pred)),
        joined_seq=joined[:, 0],
        joined_outcome=joined[:, 1].astype(np.int32),
    )
    return set(zip(found.label.tolist(), found.prediction.tolist(), strict=True))


def test_a_label_without_a_model_serves_champion_and_challenger() -> None:
    """One truth, every prediction under its id."""
    assert pairs([(7, -1, 0, 50)], [(7, 0, 10), (7, 1, 11), (8, 0, 12)], []) == {(0, 0), (0, 1)}


def test_a_label_that_names_its_model_is_for_that_one() -> None:
    """Ids repeat across models."""
    assert pairs([(7, 1, 0, 50)], [(7, 0, 10), (7, 1, 11)], []) == {(0, 1)}


def test_outcomes_are_truths_of_their_own() -> None:
    """A click and a purchase both belong to the prediction."""
    assert pairs([(7, -1, 0, 50), (7, -1, 1, 60)], [(7, 0, 10)], []) == {(0, 0), (1, 0)}


def test_a_label_goes_to_the_newest_prediction_of_its_id() -> None:
    """An id used again beyond the duplicate horizon is a new prediction."""
    assert pairs([(7, -1, 0, 500)], [(7, 0, 10), (7, 0, 400)], []) == {(0, 1)}


def test_a_truth_that_is_held_stays_where_it_is() -> None:
    """A prediction made after the label does not take it from the one that has it."""
    assert pairs([(7, -1, 0, 50)], [(7, 0, 10), (7, 0, 400)], [(0, 0)]) == {(0, 0)}


def test_of_two_labels_in_scope_the_later_counts() -> None:
    """One names the model, one names none: the greater timestamp wins."""
    assert pairs([(7, -1, 0, 50), (7, 0, 0, 60)], [(7, 0, 10)], []) == {(1, 0)}
