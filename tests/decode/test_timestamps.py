"""Timestamps against Python's datetime, and the line between what is read and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_monitor.decode.timestamps import DAY_US, read_times, settle_times
from stream_monitor.records import NO_TIME

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BASE_US = 1_795_255_200_000_000  # 2026-11-21T10:00:00Z

READ: list[tuple[str, int]] = [
    ('"2026-11-21T10:00:00Z"', 0),
    ('"2026-11-21t10:00:00z"', 0),
    ('"2026-11-21 10:00:00"', 0),
    ('"2026-11-21T10:00:00.5Z"', 500_000),
    ('"2026-11-21T10:00:00.123456789Z"', 123_456),
    ('"2026-11-21T10:00:00.999999999999+00:00"', 999_999),
    ('"2026-11-21T11:30:00+01:30"', 0),
    ('"2026-11-21T08:00:00-0200"', 0),
    ("1795255200", 0),
    ("1795255200.25", 250_000),
    ("1795255200123", 123_000),
    ("1795255200123.0", 123_000),
    ("1795255200123456", 123_456),
    ("1795255200123456789", 123_456),
]

UNREADABLE = [
    '""',
    '"soon"',
    '"2026-11-21"',
    '"2026-11-21T10:00Z"',
    '"2026-11-21T10:00:00."',
    '"2026-11-21T10:00:00.1234567890123Z"',
    '"2026-11-21T10:00:00+01"',
    '"2026-11-21T10:00:00+24:00"',
    '"2026-11-21T10:00:00+01:60"',
    '"2026-11-21T10:00:00 Z"',
    '"2026-11-21T10:00:00ZZ"',
    '"2026-11-21T10:00:00+01:00x"',
    '"2026-11-21T24:00:00Z"',
    '"2026-11-21T10:60:00Z"',
    '"2026-11-21T10:00:60Z"',
    '"2026-11-21T10:00:61Z"',
    '"2026-13-01T10:00:00Z"',
    '"2026-00-01T10:00:00Z"',
    '"2026-11-31T10:00:00Z"',
    '"2026-02-29T10:00:00Z"',
    '"2100-02-29T10:00:00Z"',
    '"2026-11-00T10:00:00Z"',
    '"2026/11/21T10:00:00Z"',
    '"20261121T100000Z"',
    '"٢٠٢٦-11-21T10:00:00Z"',
    '"1795255200"',
    "true",
    "{}",
    "[1]",
    "NaN",
    "Infinity",
    "1e400",
    "1" * 40,
]


@pytest.mark.parametrize(("text", "microseconds"), READ)
def test_readable(text: str, microseconds: int) -> None:
    """What common writers write is read to the microsecond."""
    times, unreadable = read_times(pa.array([text]), None)
    assert (times.tolist(), unreadable.tolist()) == ([BASE_US + microseconds], [False])


def test_leap_second() -> None:
    """Second 60 is read where UTC may have one, whatever the offset it is written with."""
    texts = pa.array(['"2016-12-31T23:59:60Z"', '"2017-01-01T05:29:60.5+05:30"', '"2017-01-01T05:59:60+05:30"'])
    times, unreadable = read_times(texts, None)
    new_year = 1_483_228_800_000_000
    assert times.tolist() == [new_year, new_year + 500_000, NO_TIME]
    assert unreadable.tolist() == [False, False, True]


def test_unreadable() -> None:
    """Everything else is present and unreadable, in one batch, next to good and absent ones."""
    texts = ['"2026-11-21T10:00:00Z"', *UNREADABLE, None, "1795255200"]
    times, unreadable = read_times(pa.array(texts, pa.string()), None)
    assert [text for text, bad in zip(texts, unreadable, strict=True) if bad] == UNREADABLE
    assert times[[0, -1]].tolist() == [BASE_US] * 2
    assert (times[1:-1] == NO_TIME).all()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.datetimes(datetime(1900, 1, 1), datetime(2199, 12, 31)), st.integers(-1439, 1439), st.sampled_from("T ")
        ),
        min_size=1,
        max_size=5,
    )
)
def test_equals_datetime(moments: list[tuple[datetime, int, str]]) -> None:
    """Texts that datetime writes, with any offset, are the instants datetime means."""
    aware = [(moment.replace(tzinfo=timezone(timedelta(minutes=offset))), sep) for moment, offset, sep in moments]
    texts = pa.array([f'"{moment.isoformat(sep)}"' for moment, sep in aware])
    times, unreadable = read_times(texts, None)
    assert not unreadable.any()
    assert times.tolist() == [(moment - EPOCH) // timedelta(microseconds=1) for moment, _ in aware]


@pytest.mark.parametrize(("unit", "factor"), [("s", 1_000_000), ("ms", 1_000), ("us", 1), ("ns", 0.001)])
def test_unit_overrides_magnitude(unit: str, factor: float) -> None:
    """A configured unit is taken at its word, for whole and for real numbers."""
    times, _ = read_times(pa.array(["1700000000", "1700000000.0", "-5000"]), unit)
    assert times.tolist() == [int(1_700_000_000 * factor)] * 2 + [int(-5_000 * factor)]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (10**11 - 1, (10**11 - 1) * 10**6),
        (10**11, 10**14),
        (10**14 - 1, (10**14 - 1) * 1_000),
        (10**14, 10**14),
        (10**17 - 1, 10**17 - 1),
        (10**17, 10**14),
    ],
)
def test_magnitudes(number: int, expected: int) -> None:
    """Seconds below 1e11, milliseconds below 1e14, microseconds below 1e17, else nanoseconds."""
    times, unreadable = read_times(pa.array([str(number)]), None)
    assert (times.tolist(), unreadable.tolist()) == ([expected], [False])


def test_settle_times() -> None:
    """Absent times are the record's; outside 2000 to 2100 or more than a day ahead of the record is refused."""
    start, end = 946_684_800_000_000, 4_133_980_800_000_000
    cases = [
        (NO_TIME, BASE_US, BASE_US, False),
        (NO_TIME, NO_TIME, NO_TIME, False),
        (NO_TIME, 0, 0, True),
        (BASE_US, NO_TIME, BASE_US, False),
        (BASE_US + DAY_US, BASE_US, BASE_US + DAY_US, False),
        (BASE_US + DAY_US + 1, BASE_US, BASE_US + DAY_US + 1, True),
        (start, BASE_US, start, False),
        (start - 1, BASE_US, start - 1, True),
        (end - 1, end, end - 1, False),
        (end, end, end, True),
        (-(2**62), 2**62, -(2**62), True),
    ]
    event, record, expected, refused = zip(*cases, strict=True)
    times, found = settle_times(np.array(event), np.array(record))
    assert (times.tolist(), found.tolist()) == (list(expected), list(refused))
