"""The laws every detector keeps, and what they find."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

from stream_monitor.errors import StateError
from stream_monitor.judge.detectors import BLOCK, MAKES, Change, DetectorBank
from stream_monitor.records import Floats

SHIFTED = np.concatenate(
    [np.random.default_rng(1).normal(size=400), np.random.default_rng(2).normal(3.0, 1.0, size=400)]
)
makes = pytest.mark.parametrize("make", sorted(MAKES))


def stream(rows: int, subjects: int, seed: int = 3) -> Floats:
    """Standardised values with gaps, the first subject shifted half-way."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(rows, subjects))
    values[rows // 2 :, 0] += 2.0
    values[draw.random(values.shape) < 0.1] = np.nan
    return values


@makes
@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(0, 800), max_size=5))
def test_chunks_do_not_matter(make: str, cuts: list[int]) -> None:
    """Any cutting of the stream gives the changes of the whole."""
    whole = MAKES[make]().update(SHIFTED)
    detector = MAKES[make]()
    edges = [0, *sorted(cuts), len(SHIFTED)]
    found = [a + k for a, b in pairwise(edges) for k in detector.update(SHIFTED[a:b])]
    assert found == whole
    assert any(400 <= k < 500 for k in whole)


@makes
@settings(deadline=None, max_examples=15)
@given(cut=st.integers(0, 800))
def test_a_restored_detector_goes_on_as_if_nothing_happened(make: str, cut: int) -> None:
    """Saved in the middle and loaded into a fresh one, the changes are those of the unbroken run."""
    whole = MAKES[make]().update(SHIFTED)
    first, second = MAKES[make](), MAKES[make]()
    found = first.update(SHIFTED[:cut])
    second.load(first.save())
    assert second.save() == first.save()
    assert found + [cut + k for k in second.update(SHIFTED[cut:])] == whole


@makes
def test_reset_forgets_everything(make: str) -> None:
    """After a reset the same values give the same changes as the first time."""
    detector = MAKES[make]()
    first = detector.update(SHIFTED)
    detector.reset()
    assert detector.save() == MAKES[make]().save()
    assert detector.update(SHIFTED) == first


@makes
def test_a_damaged_state_is_a_sentence(make: str) -> None:
    """What cannot be read raises StateError, never a crash in someone else's code."""
    with pytest.raises(StateError):
        MAKES[make]().load(b"not a state")


def test_adwin_is_rivers() -> None:
    """The compiled half used alone reports what river's wrapper reports."""
    make: Any = drift.ADWIN
    oracle, found = make(), []
    for k, value in enumerate(SHIFTED.tolist()):
        oracle.update(value)
        if oracle.drift_detected:
            found.append(k)
    assert MAKES["adwin"]().update(SHIFTED) == found


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(0, 3000), max_size=6))
def test_a_bank_does_not_care_how_it_is_fed_or_restored(cuts: list[int]) -> None:
    """Chunks, gaps and a round trip through bytes after each chunk leave the changes as they are."""
    values, times = stream(3000, 3), np.arange(3000) * 7
    whole = DetectorBank(3).update(values, times)
    bank, found = DetectorBank(3), list[Change]()
    for a, b in pairwise([0, *sorted(cuts), 3000]):
        found += bank.update(values[a:b], times[a:b])
        bank = DetectorBank.from_bytes(bank.to_bytes())
    assert sorted(found, key=str) == sorted(whole, key=str)
    assert {change.subject for change in whole} == {0}


def test_a_change_carries_the_time_of_its_last_value() -> None:
    """Blocks are cut from the values that are there: the time is that of the sixteenth value of a block."""
    values, times = stream(3000, 1), np.arange(3000) * 7
    present = np.flatnonzero(np.isfinite(values[:, 0]))
    blocks = values[present[: len(present) // BLOCK * BLOCK], 0].reshape(-1, BLOCK)
    positions = MAKES["adwin"]().update(blocks.sum(axis=1) / 4)
    expected = [int(times[present[(k + 1) * BLOCK - 1]]) for k in positions]
    assert [c.time_us for c in DetectorBank(1, makes=("adwin",)).update(values, times)] == expected


def test_clean_values_raise_nothing() -> None:
    """Five subjects, 200,000 clean standard normal values each: no alarm by the default detectors."""
    values = np.random.default_rng(11).normal(size=(200_000, 5))
    assert DetectorBank(5).update(values, np.arange(200_000)) == []


def test_a_subject_can_start_afresh() -> None:
    """Resetting one subject makes it as new and leaves the other."""
    values, times = stream(3000, 2), np.arange(3000)
    bank = DetectorBank(2)
    bank.update(values, times)
    bank.reset(0)
    other = DetectorBank(2)
    other.update(np.column_stack((np.full(3000, np.nan), values[:, 1])), times)
    assert bank.to_bytes() == other.to_bytes()


def test_a_damaged_or_foreign_bank_is_refused() -> None:
    """Neither noise nor a cut state nor the wrong number of subjects gets in."""
    state = DetectorBank(2).to_bytes()
    for broken in (b"", b"noise", state[:-9]):
        with pytest.raises(StateError):
            DetectorBank.from_bytes(broken)
    with pytest.raises(ValueError, match="subjects"):
        DetectorBank(2).update(np.zeros((1, 3)), np.arange(1))
