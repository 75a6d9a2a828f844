"""The laws of what adds: read(merge(A, B)) is read(A and B together), whatever the order and the cut."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from summarize_rows import Cell, rows_of

from stream_monitor.errors import StateError
from stream_monitor.records import Floats
from stream_monitor.summarize.profile import (
    LARGEST_DEVIATION,
    SPARSE_ROWS,
    UNIT,
    Coded,
    Profile,
    Schema,
    deviations,
    means,
    pane_bodies,
)
from stream_monitor.summarize.protocol import BINS
from stream_monitor.summarize.rows import Rows
from stream_monitor.summarize.sketches import Sketches


def event(draw: np.random.Generator) -> list[Cell]:
    """A number, a flag, a class, a vector, a constant; each sometimes missing or of another kind."""
    cells: list[tuple[str, Any]] = [
        ("amount", float(draw.normal(50, 10))),
        ("flag", int(draw.random() < 0.1)),
        ("channel", str(draw.choice(["web", "app", "shop"]))),
        ("vector", draw.normal(size=3).round(3).tolist()),
        ("constant", 4.2),
        ("never", None),
    ]
    odd: list[Any] = [None, "text", True, float("inf"), float("-inf"), [1, "x"], {"a": 1}, 1e308, -0.0, [9.0]]
    return [(name, odd[int(draw.integers(len(odd)))]) if draw.random() < 0.1 else (name, v) for name, v in cells]


def some_rows(count: int, seed: int) -> Rows:
    """Rows whose ids differ between seeds."""
    draw = np.random.default_rng(seed)
    return rows_of([event(draw) for _ in range(count)], ids=[seed * 1_000_000 + i for i in range(count)])


SCHEMA = Schema.learn(some_rows(600, 1), most_categories=200)
LIVE = some_rows(400, 2)
CODED = SCHEMA.encode(LIVE)


def part(index: Any) -> Coded:
    """Some of the live rows, coded."""
    return Coded(CODED.code[index], CODED.number[index])


def profile(index: Any) -> Profile:
    """Some of the live rows, folded."""
    return Profile.fold(SCHEMA, part(index))


def same(one: Profile, other: Profile) -> bool:
    """Equal in everything a profile holds, to the last bit."""
    arrays = zip((one.counts, *one.moments.parts()), (other.counts, *other.moments.parts()), strict=True)
    return (one.schema_id, one.rows) == (other.schema_id, other.rows) and all(
        a.tobytes() == b.tobytes() for a, b in arrays
    )


cuts = st.lists(st.integers(0, len(LIVE)), max_size=6).map(lambda at: [0, *sorted(at), len(LIVE)])


@given(cuts, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_any_cut_in_any_order_gives_the_same_profile(at: list[int], random: Any) -> None:
    """Associative and commutative to the last bit: parts add up to the whole however they are cut and shuffled."""
    order = list(range(len(LIVE)))
    random.shuffle(order)
    parts = [profile(order[a:b]) for a, b in pairwise(at)]
    random.shuffle(parts)
    whole = Profile.empty(SCHEMA)
    for piece in parts:
        whole = whole.merge(piece)
    assert same(whole, profile(slice(None)))
    assert whole.to_bytes() == profile(slice(None)).to_bytes()


def test_merge_is_associative_and_empty_is_its_identity() -> None:
    """(A + B) + C = A + (B + C); A + nothing = A."""
    a, b, c = profile(slice(0, 50)), profile(slice(50, 51)), profile(slice(51, 400))
    assert same(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert same(a.merge(Profile.empty(SCHEMA)), a)
    assert same(Profile.empty(SCHEMA).merge(a), a)


def test_merge_changes_neither_argument() -> None:
    """What was folded before stays as it is."""
    a, b = profile(slice(0, 50)), profile(slice(50, 90))
    before = a.to_bytes(), b.to_bytes()
    a.merge(b)
    assert (a.to_bytes(), b.to_bytes()) == before


def test_other_bins_refuse() -> None:
    """Profiles of different schemas do not add, and bytes of one schema are not read as another's."""
    other = Schema.learn(some_rows(600, 3), most_categories=200)
    stranger = Profile.fold(other, other.encode(LIVE))
    with pytest.raises(StateError, match="do not add"):
        profile(slice(None)).merge(stranger)
    with pytest.raises(StateError, match="does not fit"):
        Profile.from_bytes(SCHEMA, stranger.to_bytes())


@pytest.mark.parametrize("rows", [0, 1, SPARSE_ROWS, SPARSE_ROWS + 1, 256, 400])
def test_bytes_and_back(rows: int) -> None:
    """Small profiles are stored as codes, larger ones as counts: both come back to the last bit."""
    folded = profile(slice(0, rows))
    assert same(Profile.from_bytes(SCHEMA, folded.to_bytes()), folded)


def test_counts_beyond_32_bits_survive() -> None:
    """A day at 60,000 events a second has 5e9 rows in one count."""
    large = profile(slice(0, 100))
    for _ in range(40):
        large = large.merge(large)
    assert large.rows == 100 * 2**40
    assert same(Profile.from_bytes(SCHEMA, large.to_bytes()), large)


@given(st.binary(max_size=60))
def test_damaged_bytes_are_refused(body: bytes) -> None:
    """Any bytes, and a profile cut short anywhere, give a StateError: never another error or a profile."""
    whole = profile(slice(0, 9)).to_bytes()
    for damaged in (body, whole[: len(whole) - 1 - len(body)], whole[:20] + body):
        with pytest.raises(StateError):
            Profile.from_bytes(SCHEMA, damaged)


@given(cuts)
@settings(deadline=None)
def test_panes_are_profiles(at: list[int]) -> None:
    """`pane_bodies` writes what folding each run of rows by itself would."""
    starts = sorted(set(at) - {len(LIVE)})
    stops = [*starts[1:], len(LIVE)]
    bodies = pane_bodies(SCHEMA, CODED, np.array(starts))
    assert [rows for rows, _ in bodies] == [b - a for a, b in zip(starts, stops, strict=True)]
    assert [body for _, body in bodies] == [profile(slice(a, b)).to_bytes() for a, b in zip(starts, stops, strict=True)]


def test_no_panes() -> None:
    """No rows, no panes."""
    assert pane_bodies(SCHEMA, part(slice(0, 0)), np.zeros(0, np.int64)) == []


@given(cuts, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=25)
def test_codes_do_not_depend_on_the_neighbours(at: list[int], random: Any) -> None:
    """A row is coded by itself: chunking and order change nothing."""
    order = np.array(random.sample(range(len(LIVE)), len(LIVE)))
    shuffled = LIVE.take(order)
    for a, b in pairwise(at):
        coded = SCHEMA.encode(shuffled.take(np.arange(a, b)))
        assert np.array_equal(coded.code, CODED.code[order[a:b]])
        assert np.array_equal(coded.number, CODED.number[order[a:b]], equal_nan=True)


def test_counts_are_bincounts() -> None:
    """Every count against NumPy's bincount of the subject's codes."""
    folded = profile(slice(None))
    for subject in range(len(SCHEMA)):
        assert folded.counts[subject].tolist() == np.bincount(CODED.code[:, subject], minlength=BINS).tolist()
    assert (folded.counts.sum(axis=1) == folded.rows).all()


def test_a_part_can_be_taken_away() -> None:
    """Counts without a part are the counts of the rest."""
    rest = profile(slice(None)).counts_without(profile(slice(0, 123)))
    assert np.array_equal(rest, profile(slice(123, None)).counts)


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e6),
    st.lists(st.floats(-100, 100), min_size=1, max_size=50),
)
@settings(deadline=None)
def test_moments_are_exact_sums_of_rounded_deviations(centre: float, spread: float, steps: list[float]) -> None:
    """Mean and deviation against fractions of Python: within half a unit of the baseline's standard deviation."""
    baseline = rows_of([[("x", centre + spread * (i % 2 * 2 - 1))] for i in range(200)])
    schema = Schema.learn(baseline, most_categories=10)
    values = [centre + spread * step for step in steps]
    folded = Profile.fold(schema, schema.encode(rows_of([[("x", v)] for v in values])))
    exact = [Fraction(v) for v in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    variance = sum(((v - mean) ** 2 for v in exact), Fraction(0)) / len(exact)
    scale = float(schema.scale[0])
    assert means(folded)[0] == pytest.approx(float(mean), abs=UNIT * scale + 1e-9 * abs(centre))
    assert deviations(folded)[0] == pytest.approx(math.sqrt(variance), abs=2 * UNIT * scale + 1e-9 * abs(centre))
    assert folded.moments.minimum[0] == min(values)
    assert folded.moments.maximum[0] == max(values)


def test_spread_of_large_numbers_is_not_lost() -> None:
    """Timestamps of 1.7e15 with a standard deviation of 1: sums of plain squares would say anything."""
    draw = np.random.default_rng(5)
    values = 1.7e15 + draw.normal(0, 1, 5_000).round()
    rows = rows_of([[("x", v)] for v in values])
    schema = Schema.learn(rows, most_categories=10)
    assert deviations(Profile.fold(schema, schema.encode(rows)))[0] == pytest.approx(np.std(values - 1.7e15), rel=1e-4)


def test_far_values_count_as_the_largest_deviation() -> None:
    """1e308 overflows nothing: mean and spread are bounded, the extremes are the true ones."""
    values = [0.0, 1.0, 1e308, -1e308, 1e308]
    schema = Schema.learn(rows_of([[("x", i % 2)] for i in range(100)]), most_categories=10)
    folded = Profile.fold(schema, schema.encode(rows_of([[("x", v)] for v in values])))
    clipped: Floats = np.clip(values, 0.5 - LARGEST_DEVIATION / 2, 0.5 + LARGEST_DEVIATION / 2)
    assert means(folded)[0] == pytest.approx(clipped.mean())
    assert deviations(folded)[0] == pytest.approx(clipped.std())
    assert (folded.moments.minimum[0], folded.moments.maximum[0]) == (-1e308, 1e308)


def test_minus_zero_is_zero() -> None:
    """The bytes of a profile do not depend on which zero came first."""
    schema = Schema.learn(rows_of([[("x", i)] for i in range(100)]), most_categories=10)
    bodies = {
        Profile.fold(schema, schema.encode(rows_of([[("x", v)] for v in zeros], ids=ids))).to_bytes()
        for zeros, ids in (([0.0, -0.0], [1, 2]), ([-0.0, 0.0], [2, 1]))
    }
    assert len(bodies) == 1


def unseen(texts: list[str]) -> dict[int, pa.StructArray]:
    """Distinct texts with their counts, for subject 0."""
    return {0: pa.array(texts, pa.string()).value_counts()}


@given(st.integers(0, 3_000))
@settings(deadline=None, max_examples=15)
def test_merged_sketches_read_as_sketches_of_both(cut: int) -> None:
    """Within their stated errors: quantiles by rank, distinct counts and the frequent values."""
    values = np.random.default_rng(7).permutation(3_000).astype(np.float64)
    texts = [f"c{i % 500}" for i in range(3_000)] + ["often"] * 600
    one, other = Sketches(), Sketches()
    one.update(values[:cut, None], unseen(texts[:cut]) if cut else {})
    other.update(values[cut:, None], unseen(texts[cut:]))
    before = one.to_bytes(), other.to_bytes()
    merged = one.merge(other)
    assert (one.to_bytes(), other.to_bytes()) == before
    for read in (merged, Sketches.from_bytes(merged.to_bytes())):
        for share, value in read.quantiles_of(0).items():
            assert abs(value / 3_000 - share) < 0.04
        distinct, frequent = read.new_categories(0)
        assert distinct == pytest.approx(501, rel=0.1)
        assert frequent[0][0] == "often"


def test_nothing_to_sketch() -> None:
    """Without values there are no quantiles and no categories."""
    empty = Sketches.from_bytes(Sketches().to_bytes())
    assert empty.quantiles_of(0) == {}
    assert empty.new_categories(0) == (0.0, [])
