"""What predictions say of themselves, counted: bins, laws, and objects of probabilities however they are written."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_monitor.errors import StateError
from stream_monitor.summarize.histogram import Histogram
from stream_monitor.summarize.outcome import SCORE_BINS_PER_OCTAVE, score_bin
from stream_monitor.summarize.scores import (
    ABSENT,
    ScoreProfile,
    add_by_place,
    middle_of_bin,
    of_scores,
    of_texts,
    place_of_bin,
    probability_bin,
)

SCORES = st.lists(st.floats(-0.1, 1.1) | st.just(float("nan")), max_size=60)


def test_the_middle_of_a_bin_is_near_every_probability_in_it() -> None:
    """Within 1.6 % of the distance to the nearer end, down to 2^-40."""
    p = np.concatenate([np.linspace(0, 1, 5_001), 2.0 ** -np.arange(1, 39), 1 - 2.0 ** -np.arange(1, 39)])
    distance = np.maximum(np.minimum(p, 1 - p), 2.0**-40)
    assert (np.abs(middle_of_bin(probability_bin(p)) - p) <= 0.0161 * distance + 2.0**-40).all()


def test_bins_ascend_without_a_gap() -> None:
    """From nothing to certainty, and across a half."""
    p = np.linspace(0.2, 0.8, 200_001)
    place = place_of_bin(probability_bin(p))
    assert set(np.diff(place).tolist()) == {0, 1}


def test_finer_bins_of_outcomes_lie_within_these() -> None:
    """The labelled scores of a baseline are binned finer: their middles fall in the bin of the score itself."""
    p = np.random.default_rng(1).beta(0.3, 0.3, 20_000)
    finer = middle_of_bin(score_bin(p), per_octave=SCORE_BINS_PER_OCTAVE)
    assert (probability_bin(finer) == probability_bin(p)).all()


def counted(scores: list[float], marks: list[bool]) -> ScoreProfile:
    """A profile of scores."""
    profile = ScoreProfile({"1": Histogram()})
    profile.add(of_scores(np.array(scores, np.float64), np.array(marks, np.bool_)))
    return profile


@given(SCORES, SCORES)
def test_order_batches_and_storage_change_nothing(one: list[float], other: list[float]) -> None:
    """The profile of both is that of all rows in any order, and stored it is the same."""
    scores = [*one, *other]
    marks = [score > 0.3 for score in scores]
    both = counted(one, marks[: len(one)]).merge(counted(other, marks[len(one) :]))
    assert both == counted(scores[::-1], marks[::-1])
    assert ScoreProfile.from_bytes(both.to_bytes()) == both
    assert both.merge(ScoreProfile()) == both
    assert both.rows == sum(0 <= score <= 1 for score in scores)


def test_rows_go_to_their_places() -> None:
    """As if each place had been counted alone."""
    rng = np.random.default_rng(2)
    score, place = rng.random(500), rng.integers(0, 3, 500)
    profiles = [ScoreProfile() for _ in range(3)]
    add_by_place(profiles, of_scores(score, score > 0.5), place)
    for k, profile in enumerate(profiles):
        assert profile == counted(score[place == k].tolist(), (score[place == k] > 0.5).tolist())


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\x01", b"\x01nothing compressed"])
def test_damage_is_told(damage: bytes) -> None:
    """Bytes that are no profile are refused."""
    with pytest.raises(StateError):
        ScoreProfile.from_bytes(damage)


def test_probabilities_are_read_however_they_are_written() -> None:
    """Classes in any order, left out, unknown, or no numbers at all; each row alone gives what all give together."""
    texts = [
        '{"a": 0.2, "b": 0.8}',
        '{"b": 1, "a": 0}',
        '{"b": 0.4}',
        '{"a": 0.3, "b": 0.3, "z": 0.4}',
        '{"a": "0.3", "b": 0.7}',
        '{"a": true, "b": 0.7}',
        '{"a": 1.5, "b": 0.1}',
        "{}",
        None,
        '{"a": NaN, "b": 0.5}',
    ]
    marks = ["a", "b", "b", "z", "a", "a", "a", "b", "a", "b"]
    said = of_texts(pa.array(texts, pa.string()), pa.array(marks), ["a", "b"])
    alone = [of_texts(pa.array([t], pa.string()), pa.array([m]), ["a", "b"]) for t, m in zip(texts, marks, strict=True)]
    assert (said.code == np.concatenate([part.code for part in alone], axis=1)).all()
    want = {5: (1.0, 0.7), 0: (0.2, 0.8), 1: (0.0, 1.0), 2: (0.0, 0.4), 3: (0.3, 0.3), 7: (0.0, 0.0)}
    for row in range(len(texts)):
        if row in want:
            bins = probability_bin(np.array(want[row]))
            assert said.code[:, row].tolist() == [2 * b + (marks[row] == c) for b, c in zip(bins, "ab", strict=True)]
        else:
            assert (said.code[:, row] == ABSENT).all()


def test_rows_that_name_classes_alike_are_read_alike() -> None:
    """The way of uniform rows gives what the way of mixed ones does."""
    p = np.random.default_rng(3).dirichlet([1, 1, 1], 200)
    texts = [json.dumps(dict(zip("abc", row, strict=True))) for row in p.tolist()]
    marks = pa.array(["abc"[k] for k in p.argmax(axis=1)])
    uniform = of_texts(pa.array(texts), marks, ["c", "a"])
    mixed = of_texts(pa.array([*texts, "{}"]), pa.concat_arrays([marks, pa.array(["a"])]), ["c", "a"])
    assert (uniform.code == mixed.code[:, :-1]).all()


def test_without_labels_nothing_is_said() -> None:
    """A prediction without a label, or no row at all."""
    assert (of_texts(pa.array(["{}"]), pa.nulls(1, pa.string()), ["a"]).code == ABSENT).all()
    assert of_texts(pa.array([], pa.string()), pa.array([], pa.string()), ["a"]).code.shape == (1, 0)
