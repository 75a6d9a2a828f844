"""Baselines: built from rows, the same for the same rows, and whole again from a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_monitor.errors import InputError
from stream_monitor.judge.baseline import Baseline, Reading, build, is_baseline_file
from stream_monitor.records import Kind
from stream_monitor.summarize.protocol import MAIN, MISSING
from stream_monitor.summarize.rows import Rows, SubjectKey, Texts

ROWS = 2_000
CHANNELS = np.array(["web", "app", "shop"])


def rows(seed: int = 1) -> Rows:
    """A number (5 % missing), a class and a predicted number."""
    draw = np.random.default_rng(seed)
    kind = np.full((ROWS, 3), Kind.NUMBER, np.uint8)
    number = draw.normal(50, 10, size=(ROWS, 3))
    kind[:, 1], number[:, 1] = Kind.STRING, np.nan
    gone = draw.random(ROWS) < 0.05
    kind[gone, 0], number[gone, 0] = Kind.MISSING, np.nan
    channel = pa.array(CHANNELS[draw.integers(0, 3, ROWS)].tolist(), pa.string())
    return Rows(
        time_us=np.arange(ROWS),
        id_hi=draw.integers(0, 2**63, ROWS, dtype=np.uint64),
        id_lo=draw.integers(0, 2**63, ROWS, dtype=np.uint64),
        segment=np.zeros(ROWS, np.int32),
        subjects=(
            SubjectKey("feature", "age"),
            SubjectKey("feature", "channel"),
            SubjectKey("prediction", "prediction"),
        ),
        kind=kind,
        number=number,
        texts={1: Texts(np.arange(ROWS, dtype=np.int32), channel)},
    )


def built(of: Rows, **changes: Any) -> Baseline:
    """A baseline with the usual names."""
    names: dict[str, Any] = {
        "model": "credit",
        "version": "7",
        "provisional": False,
        "created_us": 5,
        "source": "a file",
    }
    return build(of, **{**names, "reading": Reading(), **changes})


def test_what_a_baseline_says() -> None:
    """Counts, means and deviations are those of the rows, by NumPy."""
    of = rows()
    baseline = built(of)
    assert baseline.profile.rows == ROWS
    assert baseline.profile.counts[0, MISSING] == np.isnan(of.number[:, 0]).sum()
    assert np.allclose(baseline.means[[0, 2]], np.nanmean(of.number[:, [0, 2]], axis=0), atol=1e-3)
    assert np.allclose(baseline.deviations[[0, 2]], np.nanstd(of.number[:, [0, 2]], axis=0), atol=1e-3)
    assert np.isnan(baseline.deviations[1])
    subjects = baseline.subjects()
    assert list(subjects.names) == ["age", "channel", "prediction"]
    assert list(subjects.kinds) == ["feature", "feature", "prediction"]
    assert subjects.numeric.tolist() == [True, False, True]
    assert baseline.representatives.shape == (3, MAIN)
    assert not np.isnan(baseline.representatives[2]).all()
    assert np.isnan(baseline.representatives[1]).all()


def test_equal_masses() -> None:
    """The baseline's own rows fill its bins evenly."""
    counts = built(rows()).profile.counts[2]
    used = counts[:MAIN][counts[:MAIN] > 0]
    assert used.max() - used.min() <= 2


def test_configuration_of_features() -> None:
    """Ignored features are gone, configured kinds hold, categories stop at the limit."""
    reading = Reading(most_categories=2, ignore=frozenset({"age"}))
    baseline = built(rows(), reading=reading)
    assert [s.key.name for s in baseline.schema.subjects] == ["channel", "prediction"]
    assert np.count_nonzero(baseline.profile.counts[0, :MAIN]) == 2


def test_the_id_is_of_the_content() -> None:
    """The order of the rows and the time of building do not matter; the rows, the model and the version do."""
    baseline = built(rows())
    shuffled = rows().take(np.random.default_rng(2).permutation(ROWS))
    assert built(shuffled, created_us=99, source="elsewhere").id == baseline.id
    others = [built(rows(2)), built(rows(), model="fraud"), baseline.serving("8")]
    assert len({baseline.id, *(other.id for other in others)}) == 4


def test_there_and_back() -> None:
    """A file holds all of it: what is read judges alike."""
    baseline = built(rows(), provisional=True, outcomes={"label": b"\x00sums", "click é": b""})
    body = baseline.to_bytes()
    assert is_baseline_file(body[:8])
    again = Baseline.from_bytes(body)
    assert again.to_bytes() == body
    assert again.id == baseline.id
    for name in ("model", "version", "provisional", "created_us", "source", "outcomes"):
        assert getattr(again, name) == getattr(baseline, name)
    assert np.array_equal(again.representatives, baseline.representatives, equal_nan=True)
    assert np.array_equal(again.profile.counts, baseline.profile.counts)
    assert np.array_equal(again.schema.encode(rows(3)).code, baseline.schema.encode(rows(3)).code)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_a_damaged_file_is_refused(at: int, flip: int) -> None:
    """Any one byte changed, or the end cut off: an InputError, never a baseline that judges otherwise."""
    body = bytearray(BODY)
    body[at % len(body)] ^= flip
    for damaged in (bytes(body), BODY[: at % len(BODY)]):
        with pytest.raises(InputError):
            Baseline.from_bytes(damaged)


BODY = built(rows().take(np.arange(50))).to_bytes()


@pytest.mark.parametrize("first", [b"", b"PAR1", b'{"model": 1}', b"SMBASE"])
def test_other_files_are_no_baselines(first: bytes) -> None:
    """Raw rows in any format are told apart by their first bytes."""
    assert not is_baseline_file(first)


def test_no_rows_no_baseline() -> None:
    """An empty file is refused with a sentence that names the model."""
    with pytest.raises(InputError, match="no usable rows for credit"):
        built(rows().take(np.zeros(0, np.int64)))


def test_serving_changes_the_version_alone() -> None:
    """Rows without a version make one baseline that serves any version."""
    baseline = built(rows(), version="")
    served = baseline.serving("9")
    assert served.version == "9"
    assert replace(served, version="") == baseline
