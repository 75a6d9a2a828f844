"""Event timestamps: RFC 3339 texts and Unix numbers into microseconds, a column at a time.

A text is read as RFC 3339 with four allowances that common writers need: no offset means UTC, `t`, `z` and a space are
taken as in the RFC's notes, an offset may lack its colon (`+0000`), and any number of fraction digits up to twelve is
read, those beyond microseconds cut off. A bare date, a lone hour offset (`+01`), week dates and texts of digits are not
timestamps. A leap second is the first moment of the next minute, where UTC may have one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.decode.scalars import QUOTE, as_floats, bytes_at, is_number, spans
from stream_monitor.records import MICROSECONDS, NO_TIME, Bytes, Flags, Ints

EARLIEST_US = 946_684_800 * MICROSECONDS  # 2000-01-01T00:00:00Z
LATEST_US = 4_133_980_800 * MICROSECONDS  # 2101-01-01T00:00:00Z: the year 2100 is still read
DAY_US = 86_400 * MICROSECONDS

_STEM = len("2026-11-21T10:00:00")
_TAIL = len(".123456789012+00:00")
_SEPARATORS = ((4, b"-"), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":"))
_UNIT_US = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_MONTH_DAYS = np.array([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


def read_times(texts: pa.Array, unit: str | None) -> tuple[Ints, Flags]:
    """(n,) microseconds of JSON values, NO_TIME where absent, and which present ones could not be read.

    `unit` is that of numbers (s, ms, us, ns); None goes by magnitude: seconds below 1e11, milliseconds below 1e14,
    microseconds below 1e17, else nanoseconds.
    """
    first = bytes_at(texts, 0)
    times = np.full(len(texts), NO_TIME)
    quoted, numeric = first == QUOTE, is_number(texts, first)
    if quoted.any():
        times[quoted] = _read_quoted(texts if quoted.all() else texts.filter(pa.array(quoted)))
    if numeric.any():
        times[numeric] = _read_numbers(texts.filter(pa.array(numeric)), unit)
    return times, (first != 0) & (times == NO_TIME)


def settle_times(event_us: Ints, record_us: Ints, *, trusted: bool = True) -> tuple[Ints, Flags]:
    """(n,) the event's time, else its record's; and which lie outside 2000 to 2100 or a day ahead of their record.

    `trusted`: the record's time is a broker's, and so a measure for the event's.
    """
    times: Ints = np.where(event_us == NO_TIME, record_us, event_us)
    known = times != NO_TIME
    outside = (times < EARLIEST_US) | (times >= LATEST_US)
    # The right-hand side is formed only where both are sane, so it cannot overflow.
    ahead = trusted & (record_us >= 0) & ~outside & (times - DAY_US > np.maximum(record_us, 0))
    refused: Flags = known & (outside | ahead)
    return times, refused


def _read_quoted(texts: pa.Array) -> Ints:
    """Microseconds of JSON strings, NO_TIME where not a timestamp."""
    edges, data = spans(texts)
    start, size = edges[:-1] + 1, np.diff(edges) - 2
    stem = _window(data, start, np.minimum(size, _STEM), _STEM)
    tail = _window(data, start + _STEM, np.clip(size - _STEM, 0, _TAIL), _TAIL)
    seconds, stem_ok, leap = _read_stem(stem)
    fraction, offset_seconds, tail_ok = _read_tail(tail)
    utc = seconds - offset_seconds
    fine = stem_ok & tail_ok & (size >= _STEM) & (size <= _STEM + _TAIL) & (~leap | (utc % 86_400 == 0))
    return np.where(fine, utc * MICROSECONDS + fraction, NO_TIME)


def _window(data: Bytes, start: Ints, size: Ints, width: int) -> Bytes:
    """(n, width) the bytes of each text from its start, 0 beyond its size."""
    at = np.arange(width)
    places = np.minimum(start[:, None] + at, len(data) - 1)
    return np.where(at < size[:, None], data[places], np.uint8(0))


def _digits(window: Bytes, places: slice) -> tuple[Ints, Flags]:
    """(n,) the decimal number in some places, and whether all of them are digits."""
    figures = window[:, places] - np.uint8(48)  # wraps below '0': then above 9
    powers = 10 ** np.arange(figures.shape[1] - 1, -1, -1)
    numeric: Flags = np.logical_and.reduce(figures <= 9, axis=1)
    return figures.astype(np.int64) @ powers, numeric


def _read_stem(stem: Bytes) -> tuple[Ints, Flags, Flags]:
    """Seconds since the epoch of `YYYY-MM-DDThh:mm:ss` as if UTC, whether it is one, whether it says second 60."""
    fields = [_digits(stem, slice(at, at + width)) for at, width in ((0, 4), (5, 2), (8, 2), (11, 2), (14, 2), (17, 2))]
    year, month, day, hour, minute, second = (number for number, _ in fields)
    fine = np.logical_and.reduce([ok for _, ok in fields])
    for at, allowed in _SEPARATORS:
        fine &= np.isin(stem[:, at], np.frombuffer(allowed, np.uint8))
    common_year = (year % 4 != 0) | ((year % 100 == 0) & (year % 400 != 0))
    fine &= (month >= 1) & (month <= 12) & (hour <= 23) & (minute <= 59) & (second <= 60) & (day >= 1)
    fine &= (day <= _MONTH_DAYS[np.where(fine, month, 0)]) & ~(common_year & (month == 2) & (day == 29))
    seconds = _days_from_civil(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second
    return seconds, fine, second == 60


def _days_from_civil(year: Ints, month: Ints, day: Ints) -> Ints:
    """Days from 1970-01-01 in the proleptic Gregorian calendar, counting years from March so leap days come last."""
    from_march = (month + 9) % 12
    march_year = year - (month <= 2)
    leap_days = march_year // 4 - march_year // 100 + march_year // 400
    return march_year * 365 + leap_days + (153 * from_march + 2) // 5 + day - 1 - 719_468


def _read_tail(tail: Bytes) -> tuple[Ints, Ints, Flags]:
    """Microseconds and offset in seconds of what follows the seconds: `.123`, then nothing, `Z` or `+hh:mm`."""
    rows = np.arange(len(tail))
    dotted = tail[:, 0] == ord(".")
    run = np.logical_and.accumulate((tail[:, 1:] - np.uint8(48)) <= 9, axis=1)
    digits = np.where(dotted, run.sum(axis=1), 0)
    figures = np.where(run[:, :6] & dotted[:, None], tail[:, 1:7] - np.uint8(48), 0).astype(np.int64)
    fraction = figures @ (10 ** np.arange(5, -1, -1))
    at = digits + dotted
    width = tail.shape[1]
    # Six bytes of zone after the fraction; beyond the tail's end stands nothing.
    zone = np.zeros((len(tail), 7), np.uint8)
    for place in range(7):
        inside = at + place < width
        zone[inside, place] = tail[rows[inside], (at + place)[inside]]
    offset, zone_ok = _read_zone(zone)
    return fraction, offset, zone_ok & (~dotted | ((digits >= 1) & (digits <= 12)))


def _read_zone(zone: Bytes) -> tuple[Ints, Flags]:
    """Offset east of UTC in seconds of `` `` (none), `Z`, `+hh:mm` or `+hhmm`."""
    none = zone[:, 0] == 0
    utc = ((zone[:, 0] | 0x20) == ord("z")) & (zone[:, 1] == 0)
    signed = (zone[:, 0] == ord("+")) | (zone[:, 0] == ord("-"))
    colon = zone[:, 3] == ord(":")
    hours, hours_ok = _digits(zone, slice(1, 3))
    wide, wide_ok = _digits(zone, slice(4, 6))
    tight, tight_ok = _digits(zone, slice(3, 5))
    minutes = np.where(colon, wide, tight)
    ends = np.where(colon, zone[:, 6] == 0, zone[:, 5] == 0)
    written = signed & hours_ok & np.where(colon, wide_ok, tight_ok) & ends & (hours <= 23) & (minutes <= 59)
    size = np.where(written, hours * 3_600 + minutes * 60, 0)
    return np.where(zone[:, 0] == ord("-"), -size, size), none | utc | written


def _read_numbers(texts: pa.Array, unit: str | None) -> Ints:
    """Microseconds of JSON numbers, NO_TIME where no instant."""
    # 18 digits always fit 64 bits, and reading whole numbers as such keeps nanoseconds exact.
    whole: Flags = pc.match_substring_regex(texts, r"^-?\d{1,18}$|^1\d{18}$").to_numpy(zero_copy_only=False)
    times = np.full(len(texts), NO_TIME)
    if whole.any():
        times[whole] = _scale_whole(texts.filter(pa.array(whole)).cast(pa.int64()).to_numpy(), unit)
    if not whole.all():
        times[~whole] = _scale_real(as_floats(texts.filter(pa.array(~whole))), unit)
    return times


def _magnitude(numbers: np.ndarray[tuple[int], np.dtype[np.generic]]) -> Ints:
    """0 for seconds, 1 milliseconds, 2 microseconds, 3 nanoseconds."""
    bounds = np.array([10**11, 10**14, 10**17], numbers.dtype)  # 1e17 - 1 is no double
    places: Ints = np.searchsorted(bounds, np.abs(numbers), side="right")
    return places


def _scale_whole(numbers: Ints, unit: str | None) -> Ints:
    scale = np.full(len(numbers), list(_UNIT_US).index(unit)) if unit else _magnitude(numbers)
    factor = np.array([1_000_000, 1_000, 1, 1])[scale]
    small = np.abs(numbers) < 10**18 // factor
    return np.where(scale == 3, numbers // 1_000, np.where(small, numbers * np.where(small, factor, 1), NO_TIME))


def _scale_real(numbers: np.ndarray[tuple[int], np.dtype[np.float64]], unit: str | None) -> Ints:
    factor = _UNIT_US[unit] if unit else np.array(list(_UNIT_US.values()))[_magnitude(numbers)]
    times = numbers * factor
    fine = np.abs(times) < 1e18
    return np.where(fine, np.rint(np.where(fine, times, 0)).astype(np.int64), NO_TIME)
