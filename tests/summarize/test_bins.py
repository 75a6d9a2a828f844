"""Bins of numbers, categories and vectors: equal masses whatever the ties, and the right code for every odd value."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from summarize_rows import Cell, numbers, rows_of

from stream_monitor.records import Floats
from stream_monitor.summarize.numeric import ROWS_A_BIN, NumericBins
from stream_monitor.summarize.profile import Profile, Schema, representatives
from stream_monitor.summarize.protocol import ABOVE, BELOW, BINS, INFINITE, MAIN, MISSING, UNSEEN, WRONG_TYPE
from stream_monitor.summarize.rows import Rows
from stream_monitor.summarize.vector import measure

INFINITY = float("inf")


def learn(rows: Any, **options: Any) -> Schema:
    """A schema with room for 200 categories."""
    return Schema.learn(rows, **{"most_categories": 200, **options})


def codes(schema: Schema, cells: list[Any], name: str = "x") -> list[int]:
    """Codes of one feature's cells."""
    return [int(code) for code in schema.encode(rows_of([[(name, cell)] for cell in cells])).code[:, 0]]


Sample = Callable[[np.random.Generator, int], Floats]
samples: dict[str, Sample] = {
    "normal": lambda draw, n: draw.normal(size=n),
    "whole numbers": lambda draw, n: draw.poisson(3, n).astype(np.float64),
    "a flag": lambda draw, n: (draw.random(n) < 0.03).astype(np.float64),
    "mostly zero": lambda draw, n: np.where(draw.random(n) < 0.7, 0.0, draw.exponential(size=n)),
    "constant": lambda _, n: np.full(n, 4.2),
}


@pytest.mark.parametrize("name", samples)
@pytest.mark.parametrize("rows", [3_000, 20_000])
def test_live_rows_fill_the_bins_evenly(name: str, rows: int) -> None:
    """Fresh rows of the same kind spread over all bins: chi-square against equal masses, ties or not.

    Where bins end at values they are random as the live rows are, and the variance of a bin is up to (1 + n / m) times
    the multinomial one; within ties hashes split, and it is that alone.
    """
    sample, live = samples[name], 20_000
    schema = learn(numbers(sample(np.random.default_rng(1), rows)))
    fresh = numbers(sample(np.random.default_rng(2), live), ids=range(10**6, 10**6 + live))
    counts = np.bincount(schema.encode(fresh).code[:, 0], minlength=BINS)
    assert counts[MAIN:].sum() <= live / rows * 5  # beyond the baseline's extremes: about 2 rows of every m + 1
    main = counts[:MAIN]
    statistic = ((main - live / MAIN) ** 2).sum() / (live / MAIN)
    assert stats.chi2(MAIN - 1).ppf(1e-4) < statistic < stats.chi2(MAIN - 1).ppf(1 - 1e-4) * (1 + live / rows)


@given(
    st.lists(st.sampled_from([0.0, 1.0, 1.5, 2.0, 7.0, 1e9]) | st.floats(-1e3, 1e3), min_size=1, max_size=300),
    st.floats(-2e3, 2e3),
)
@settings(deadline=None)
def test_a_code_lies_where_the_rank_does(baseline: list[float], value: float) -> None:
    """Bins between floor(K F(x-)) and floor(K F(x)), by bisection on the sorted list; outside it below or above."""
    bins = NumericBins.learn(np.array(baseline))
    ordered, count = sorted(baseline), max(1, min(MAIN, len(baseline) // ROWS_A_BIN))
    for x in (value, *ordered[:: max(1, len(ordered) // 10)]):
        (code,) = codes(learn(numbers(baseline)), [x])
        if not ordered[0] <= x <= ordered[-1]:
            assert code == (BELOW if x < ordered[0] else ABOVE)
            continue
        first, last = bisect_left(ordered, x), bisect_right(ordered, x)
        assert count * first // len(ordered) <= code <= min(-(-count * last // len(ordered)), count - 1)
    assert bins.bins == count


def test_the_same_id_splits_a_tie_alike_and_features_independently() -> None:
    """A tie's bin depends on the id and the feature alone; between features it is independent."""
    rows = [[("a", 1.0), ("b", 1.0)] for _ in range(4_000)]
    schema = learn(rows_of(rows))
    one, again = schema.encode(rows_of(rows)).code, schema.encode(rows_of(rows[:100])).code
    assert np.array_equal(one[:100], again)
    assert abs(np.corrcoef(one[:, 0], one[:, 1])[0, 1]) < 4 / math.sqrt(4_000)


def test_odd_values_of_a_number() -> None:
    """Missing, infinite and everything that is not a number have codes of their own."""
    schema = learn(numbers(range(100)))
    odd: list[Any] = [None, float("nan"), INFINITY, -INFINITY, "41", True, [1], {"a": 1}, -1, 100]
    expected = [MISSING, MISSING, INFINITE, INFINITE, WRONG_TYPE, WRONG_TYPE, WRONG_TYPE, WRONG_TYPE, BELOW, ABOVE]
    assert codes(schema, odd) == expected


def test_a_feature_that_is_never_there() -> None:
    """All missing in the baseline: any number is out of range, and nothing fails."""
    schema = learn(rows_of([[("x", None)]] * 50))
    assert codes(schema, [None, 3, "a"]) == [MISSING, ABOVE, WRONG_TYPE]


def test_a_feature_the_rows_do_not_have_is_missing() -> None:
    """A feature that vanished in mid-stream counts as missing in every row."""
    schema = learn(rows_of([[("x", i), ("y", i)] for i in range(50)]))
    assert schema.encode(rows_of([[("y", 3)]] * 4)).code[:, 0].tolist() == [MISSING] * 4


def test_no_rows_are_coded_as_none() -> None:
    """Time may pass without events: codes and numbers of no rows still have a column a subject."""
    coded = learn(rows_of([[("x", i), ("y", "a")] for i in range(50)])).encode(Rows.empty())
    assert coded.code.shape == coded.number.shape == (0, 2)


def test_representatives_are_the_means_of_the_bins() -> None:
    """Against NumPy on the sorted values of a continuous sample: the mean of each 1/256 of them."""
    values = np.random.default_rng(4).normal(size=MAIN * 40)
    schema = learn(numbers(values))
    table = representatives(schema, schema.encode(numbers(values)))
    assert np.allclose(table[0], np.sort(values).reshape(MAIN, 40).mean(axis=1))


def test_representatives_do_not_depend_on_the_order() -> None:
    """A baseline of the same rows is the same baseline."""
    values = np.round(np.random.default_rng(4).normal(size=3_000), 1)
    rows = numbers(values)
    schema = learn(rows)
    shuffled = rows.take(np.random.default_rng(5).permutation(3_000))
    assert learn(shuffled).id == schema.id
    tables = [representatives(schema, schema.encode(r)) for r in (rows, shuffled)]
    assert tables[0].tobytes() == tables[1].tobytes()


def test_categories_by_frequency() -> None:
    """The most frequent first, equal ones by their text; the rest and new ones are unseen."""
    cells: list[Any] = ["b"] * 3 + ["a"] * 3 + ["c"] * 5 + ["rare"] + [True] * 2
    schema = learn(rows_of([[("x", cell)] for cell in cells]), most_categories=4)
    odd: list[Any] = ["c", "a", "b", True, "true", "rare", "", None, 1, [1], INFINITY]
    assert codes(schema, odd) == [0, 1, 2, 3, 3, UNSEEN, UNSEEN, MISSING, WRONG_TYPE, WRONG_TYPE, INFINITE]


def test_numbers_are_categories_where_configured() -> None:
    """A zip code: its text is the category, 41 and 41.0 are one."""
    cells: list[Any] = [10115] * 3 + [0.5] * 2 + ["A-1010"]
    schema = learn(rows_of([[("zip", cell)] for cell in cells]), kinds={"zip": "categorical"})
    assert codes(schema, [10115.0, "10115", 0.5, "A-1010", 7, True], "zip") == [0, 0, 1, 2, UNSEEN, UNSEEN]


def test_kinds_follow_most_rows_and_the_configuration() -> None:
    """Numeric, categorical, vector as most rows have it; what is configured wins, what is ignored is gone."""
    row: list[Cell] = [("n", 1), ("c", "a"), ("v", [1, 2]), ("b", False), ("gone", 1), ("forced", 1)]
    other: list[Cell] = [("n", "x"), ("c", 1), ("v", 1), ("b", 1), ("gone", 1), ("forced", 1)]
    rows = rows_of([row] * 60 + [other] * 40, label=["yes"] * 100, score=[0.5] * 100)
    schema = learn(rows, kinds={"forced": "categorical", "prediction": "numeric"}, ignore=frozenset({"gone"}))
    assert [(s.key.name, s.value_kind) for s in schema.subjects] == [
        ("n", "numeric"),
        ("c", "categorical"),
        ("v", "vector"),
        ("b", "categorical"),
        ("forced", "categorical"),
        ("prediction", "categorical"),
        ("prediction.score", "numeric"),
    ]


def test_odd_values_of_a_vector() -> None:
    """Another length, an element that is no number, and what is no list are of a wrong type."""
    draw = np.random.default_rng(6)
    schema = learn(rows_of([[("x", v.tolist())] for v in draw.normal(size=(100, 2))] + [[("x", [1.0])]]))
    odd: list[Any] = [[1], [], [1, "2"], [1, None], [[1], 2], [True, 1], 5, INFINITY, "a", None, [1e300, 1e300]]
    assert codes(schema, odd) == [WRONG_TYPE] * 9 + [MISSING, WRONG_TYPE]
    assert codes(schema, [[0.0, 0.0], [50.0, 50.0]]) == [BELOW, ABOVE]


vectors = st.lists(st.floats(-1e100, 1e100) | st.integers(-(10**20), 10**20), min_size=1, max_size=6)


@given(st.lists(vectors, min_size=1, max_size=8))
@settings(deadline=None)
def test_norms_are_euclidean(lists: list[list[float]]) -> None:
    """Length and norm against Python's, as JSON writes the numbers, with broken neighbours that disturb nothing."""
    texts = [text for items in lists for text in (json.dumps(items), '["x"]', "[]", "[[1]]", "[NaN]")]
    found = measure(pa.array(texts, pa.string()))
    assert found.length.reshape(-1, 5).tolist() == [[len(items), -1, -1, -1, -1] for items in lists]
    for items, norm in zip(lists, found.norm[::5].tolist(), strict=True):
        assert norm == pytest.approx(math.sqrt(sum(float(x) ** 2 for x in items)), rel=1e-12)


def test_a_schema_survives_json() -> None:
    """The same bins, codes and id again."""
    draw = np.random.default_rng(7)
    rows = rows_of(
        [
            [("n", draw.normal()), ("c", "ab"[draw.integers(2)]), ("v", draw.normal(size=2).tolist()), ("e", None)]
            for _ in range(300)
        ]
    )
    schema = learn(rows)
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again.id == schema.id
    assert Profile.fold(again, again.encode(rows)).to_bytes() == Profile.fold(schema, schema.encode(rows)).to_bytes()
