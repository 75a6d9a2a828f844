"""Rows: from cells to columns, joined, reordered and stored without loss."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from summarize_rows import Cell, cell_table, inferences, kind_of, rows_of, text_of

from stream_monitor.errors import StateError
from stream_monitor.records import Kind
from stream_monitor.summarize.rows import Rows, SubjectKey, concat

values: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**53), 2**53),
    st.text(max_size=5),
    st.lists(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)
events = st.lists(st.lists(st.tuples(st.sampled_from("abcdé "), values), max_size=6), min_size=1, max_size=12)


def expected(event: list[Cell]) -> dict[tuple[str, str], Any]:
    """What one event's cells are: of a name twice the later one."""
    found: dict[tuple[str, str], Any] = {}
    for name, value in dict(event).items():
        kind = kind_of(value)
        if kind in (Kind.NUMBER, Kind.INFINITE):
            found[("feature", name)] = float(value)
        elif kind != Kind.MISSING:
            found[("feature", name)] = (kind, text_of(value))
    return found


@given(events)
def test_every_cell_is_in_its_place(batch: list[list[Cell]]) -> None:
    """Whatever keys events have, in whatever order, missing, twice: each row holds its own values."""
    assert cell_table(rows_of(batch)) == [expected(event) for event in batch]


def test_a_key_twice_in_a_row_of_average_width() -> None:
    """Cells that fill a matrix by accident are not taken for one: row 0 has three cells, row 1 has one."""
    batch: list[list[Cell]] = [[("a", 1), ("b", 2), ("a", 3)], [("b", 4)]]
    assert cell_table(rows_of(batch)) == [expected(event) for event in batch]


@given(events, st.randoms(use_true_random=False))
def test_taking_is_indexing(batch: list[list[Cell]], random: Any) -> None:
    """`take` gives the rows asked for, in that order, texts with them."""
    index = random.sample(range(len(batch)), random.randint(0, len(batch)))
    taken = rows_of(batch).take(np.array(index, np.int64))
    assert cell_table(taken) == [expected(batch[i]) for i in index]


@given(st.lists(events, min_size=1, max_size=4))
def test_chunks_join_by_name(batches: list[list[list[Cell]]]) -> None:
    """Chunks with different features line up by name."""
    joined = concat([rows_of(batch) for batch in batches])
    assert cell_table(joined) == [expected(event) for batch in batches for event in batch]


@given(events)
def test_bytes_and_back(batch: list[list[Cell]]) -> None:
    """Waiting rows survive the state file."""
    rows = rows_of(batch)
    again = Rows.from_bytes(rows.to_bytes())
    assert again.subjects == rows.subjects
    assert cell_table(again) == cell_table(rows)
    for name in ("time_us", "id_hi", "id_lo", "segment", "kind", "number"):
        before, after = getattr(rows, name), getattr(again, name)
        assert before.dtype == after.dtype
        assert np.array_equal(before, after, equal_nan=name == "number")


def test_damaged_bytes_are_refused() -> None:
    """Bytes that are no rows raise the error of a broken state, not some library's."""
    with pytest.raises(StateError):
        Rows.from_bytes(b"no rows")


def test_sorted_by_time_then_id() -> None:
    """The order is (time, id hash), as Python sorts tuples."""
    draw = np.random.default_rng(3)
    rows = rows_of([[("a", i)] for i in range(200)], time_us=draw.integers(0, 20, 200).tolist())
    order = sorted(range(200), key=lambda i: (rows.time_us[i], rows.id_hi[i], rows.id_lo[i]))
    assert rows.sorted().number[:, 0].tolist() == rows.number[order, 0].tolist()


def test_outputs_are_subjects_where_present() -> None:
    """Prediction, score and latency stand behind the features; a class goes before a number."""
    nan = float("nan")
    rows = rows_of([[("a", 1)]] * 3, label=["yes", None, None], value=[1.0, 2.0, nan], latency_ms=[nan, 5.0, np.inf])
    assert rows.subjects == (
        SubjectKey("feature", "a"),
        SubjectKey("prediction", "prediction"),
        SubjectKey("latency", "latency_ms"),
    )
    prediction, latency = ("prediction", "prediction"), ("latency", "latency_ms")
    table = cell_table(rows)
    assert [row.get(prediction) for row in table] == [(Kind.STRING, "yes"), 2.0, None]
    assert [row.get(latency) for row in table] == [None, 5.0, np.inf]


@given(events, st.randoms(use_true_random=False), st.booleans())
def test_rows_of_a_batch_in_any_order(batch: list[list[Cell]], random: Any, alike: bool) -> None:
    """All or some rows, as partitions are taken in another order than they have in the batch: each keeps its values."""
    if alike:
        batch = [[("a", i), ("b", str(i))] for i in range(len(batch))]
    index = random.sample(range(len(batch)), random.choice([len(batch), random.randint(1, len(batch))]))
    row = np.array(index, np.int64)
    taken = Rows.of(inferences(batch), row, segment=np.zeros(len(row), np.int32), most_features=100)
    assert cell_table(taken) == [expected(batch[i]) for i in index]


def test_rows_of_a_part_of_a_batch() -> None:
    """Rows of other versions in the batch leave no trace."""
    batch: list[list[Cell]] = [[("a", 1), ("b", "x")], [("c", True)], [("b", "y"), ("a", 2)], [("c", [1])]]
    row = np.array([0, 2])
    part = Rows.of(inferences(batch), row, segment=np.zeros(2, np.int32), most_features=10)
    assert cell_table(part) == [expected(batch[0]), expected(batch[2])]
    assert {key.name for key in part.subjects} == {"a", "b"}


@pytest.mark.parametrize("same_keys", [True, False])
def test_features_beyond_the_limit_are_left_out(same_keys: bool) -> None:
    """The most frequent are kept, the first of equals; what is left out is counted."""
    batch = [[(f"f{i}", i) for i in range(30)] for _ in range(3)]
    if not same_keys:
        batch.insert(0, [("g", 1), ("f29", 7)])
    rows = rows_of(batch, most_features=20)
    kept = {f"f{i}" for i in range(20)} if same_keys else {"f29", *(f"f{i}" for i in range(19))}
    assert {key.name for key in rows.subjects} == kept
    every = {f"f{i}": 3 for i in range(30)} | ({} if same_keys else {"g": 1, "f29": 4})
    assert rows.left_out == {name: count for name, count in every.items() if name not in kept}


@given(events, st.frozensets(st.sampled_from("abcdé ")))
def test_only_known_features_are_kept(batch: list[list[Cell]], known: frozenset[str]) -> None:
    """A baseline's features are kept however many others there are; of the others the values are counted."""
    n = len(batch)
    rows = Rows.of(inferences(batch), np.arange(n), segment=np.zeros(n, np.int32), most_features=1, known=known)
    wanted = [{key: value for key, value in expected(event).items() if key[1] in known} for event in batch]
    assert cell_table(rows) == wanted
    others = [name for event in batch for name, value in event if name not in known and kind_of(value) != Kind.MISSING]
    assert rows.left_out == Counter(others)


def test_joined_chunks_keep_to_the_limit() -> None:
    """Chunks with strange features of their own do not add up to any width."""
    chunks = [rows_of([[("a", 1), ("b", "x"), (f"stranger{i}", 1)]] * 2) for i in range(9)]
    joined = concat(chunks, most_features=2)
    assert [key.name for key in joined.subjects] == ["a", "b"]
    assert cell_table(joined) == [expected([("a", 1), ("b", "x")])] * 18
    assert joined.left_out == {f"stranger{i}": 2 for i in range(9)}
