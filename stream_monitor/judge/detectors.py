"""Online change detectors, between windows: when did the mean of a stream of values move?

All are fed with means of `BLOCK` consecutive standardised values, times the root of BLOCK so that a block again has
standard deviation 1: river's detectors depend on the scale, and a sixteenth of the updates is what 200 features can
afford. What is left of a block waits in the state, so chunking does not matter: a detector that gets its values in
any pieces, or is stored and restored in between, reports the same changes.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from stream_monitor.errors import StateError
from stream_monitor.records import Floats, Ints

BLOCK = 16
FORMAT = 1
ADWIN_DELTA = 0.002  # river's default: no alarm in 200,000 independent standard normal updates (measured)
# Page-Hinkley sums deviations beyond PAGE_HINKLEY_SLACK and alarms at PAGE_HINKLEY_LIMIT. On independent updates its
# run length is about exp(2 slack limit) / (2 slack^2) on each side: 8 million updates, 130 million values. A shift of s
# standard deviations is 4 s in a block's units and found after some limit / (4 s - slack) blocks: 0.25 sd after 67.
# river's fading of the sums is off: with it they settle where the slack is cancelled and wander by 70, past the limit
# (measured: 130 alarms in 2 million clean updates, without it none).
PAGE_HINKLEY_SLACK = 0.1
PAGE_HINKLEY_LIMIT = 60.0
KSWIN_ALPHA = 1e-5  # river's 0.005 fires every 800 updates on clean data
KSWIN_SEED = 20261


def _river() -> Any:
    """river's detectors, loaded by those who watch errors or ask for them: 60 MB and a second that others need not spend."""
    from river import drift

    return drift


class Detector(Protocol):
    """One stream's change detector.

    Laws: `update(a)` then `update(b)` reports what `update(a + b)` reports, positions shifted by len(a);
    `load(save())` on a fresh detector of the same make continues as if nothing had happened; `reset` makes it as new.
    """

    name: str

    def update(self, block: Floats) -> list[int]:
        """Take finite values in order; the positions in `block` at which a change was found."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def save(self) -> bytes:
        """The whole state."""
        ...

    def load(self, state: bytes) -> None:
        """Become what was saved; raises StateError if it cannot be read."""
        ...


class Adwin:
    """ADWIN: keeps a window whose two halves have the same mean at confidence `delta`; a change drops the older half.

    Blind to a change of spread alone. Limit: assumes independent updates; on autocorrelated streams it fires often.
    Source: Bifet and Gavalda, Learning from time-changing data with adaptive windowing, 2007; river's implementation.
    """

    name = "adwin"

    def __init__(self, *, delta: float = ADWIN_DELTA) -> None:
        self._delta = delta
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        # river's wrapper costs as much as the update: its compiled half is used alone, and reset as the wrapper does.
        self._window = _river().ADWIN(delta=self._delta)._helper

    def update(self, block: Floats) -> list[int]:
        """See `Detector.update`."""
        values = block.tolist()
        found: list[int] = []
        start = 0
        while start < len(values):
            step = self._window.update
            hit = next((k for k in range(start, len(values)) if step(values[k])), None)
            if hit is None:
                break
            found.append(hit)
            self.reset()
            start = hit + 1
        return found

    def save(self) -> bytes:
        """See `Detector.save`."""
        state = bytes(self._window.__getstate__())
        return struct.pack("<I", zlib.crc32(state)) + state

    def load(self, state: bytes) -> None:
        """See `Detector.load`."""
        # The compiled half panics on a damaged state instead of raising: it must not see one.
        if len(state) < 4 or struct.unpack("<I", state[:4])[0] != zlib.crc32(state[4:]):
            raise StateError("the state of an ADWIN detector is damaged")
        self._window.__setstate__(state[4:])


class PageHinkley:
    """Page-Hinkley, two-sided: sums of deviations from the running mean, less a slack, that exceed a limit.

    Statistic: the larger of max over s <= t of sum_{s..t} (x - mean - slack) and the same downwards. Limit: the
    running mean follows a slow drift. Source: Page, Continuous inspection schemes, 1954; river's implementation.
    """

    name = "page_hinkley"
    _STATE = struct.Struct("<7d?")

    def __init__(self, *, slack: float = PAGE_HINKLEY_SLACK, limit: float = PAGE_HINKLEY_LIMIT) -> None:
        self._detector: Any = _river().PageHinkley(delta=slack, threshold=limit, alpha=1.0)

    def reset(self) -> None:
        """Forget everything."""
        self._detector._reset()

    def update(self, block: Floats) -> list[int]:
        """See `Detector.update`."""
        return _positions(self._detector, block)

    def save(self) -> bytes:
        """See `Detector.save`."""
        d = self._detector
        sums = (d._sum_increase, d._sum_decrease, d._min_increase, d._max_decrease)
        return self._STATE.pack(d._x_mean.n, d._x_mean.get(), *sums, 0.0, d.drift_detected)

    def load(self, state: bytes) -> None:
        """See `Detector.load`."""
        d = self._detector
        try:
            n, mean, d._sum_increase, d._sum_decrease, d._min_increase, d._max_decrease, _, found = self._STATE.unpack(
                state
            )
        except struct.error as error:
            raise StateError(f"the state of a Page-Hinkley detector cannot be read: {error}") from error
        d._x_mean.n, d._x_mean._mean, d._drift_detected = n, mean, found


class Kswin:
    """KSWIN: the newest 30 of 100 updates against 30 drawn from the older ones, by a Kolmogorov-Smirnov test.

    Sees any change of shape; costs 300 us an update, so only on request. Seeded, and the generator is part of the
    state. Source: Raab, Heusinger and Schleif, Reactive soft prototype computing, 2020; river's implementation.
    """

    name = "kswin"

    def __init__(self, *, alpha: float = KSWIN_ALPHA, seed: int = KSWIN_SEED) -> None:
        self._detector: Any = _river().KSWIN(alpha=alpha, seed=seed)

    def reset(self) -> None:
        """Forget everything; the generator starts from its seed again."""
        self._detector._reset()

    def update(self, block: Floats) -> list[int]:
        """See `Detector.update`."""
        return _positions(self._detector, block)

    def save(self) -> bytes:
        """See `Detector.save`."""
        d = self._detector
        version, words, gauss = d._rng.getstate()
        state = [list(d.window), d.n, float(d.p_value), d.drift_detected, version, list(words), gauss]
        return json.dumps(state).encode()

    def load(self, state: bytes) -> None:
        """See `Detector.load`."""
        d = self._detector
        try:
            window, d.n, d.p_value, d._drift_detected, version, words, gauss = json.loads(state)
            d.window = deque(window, maxlen=d.window_size)
            d._rng = random.Random()
            d._rng.setstate((version, tuple(words), gauss))
        except (ValueError, TypeError) as error:
            raise StateError(f"the state of a KSWIN detector cannot be read: {error}") from error


MAKES: Mapping[str, Callable[[], Detector]] = {"adwin": Adwin, "page_hinkley": PageHinkley, "kswin": Kswin}
DEFAULT_MAKES = ("adwin", "page_hinkley")


@dataclass(slots=True)
class _Subject:
    """One subject's detectors and the values that do not fill a block yet."""

    rest: Floats
    detectors: list[Detector]


@dataclass(frozen=True, slots=True)
class Change:
    """A detector's finding: which subject, by index, found by what, and the time of the last value it had seen."""

    subject: int
    detector: str
    time_us: int


@dataclass(slots=True)
class DetectorBank:
    """The detectors of F subjects. Laws as `Detector`, with missing values skipped subject by subject.

    For 0/1 errors and for absolute errors the same bank serves, standardised by the baseline's error (see
    `performance.standardised_errors`): on errors river's DDM and EDDM are heuristics without a rate and HDDM_A costs
    some ten times ADWIN's update for the same Hoeffding bound, while ADWIN gave no alarm in 200,000 clean errors.
    """

    subjects: int
    makes: Sequence[str] = DEFAULT_MAKES
    _members: list[_Subject] = field(init=False)

    def __post_init__(self) -> None:
        self._members = [self._new() for _ in range(self.subjects)]

    def update(self, values: Floats, times: Ints) -> list[Change]:
        """Take standardised `values` (n, F) of `times` (n,) in order; NaN is no value. Changes come by time."""
        if values.shape[1] != self.subjects:
            raise ValueError(f"values of {values.shape[1]} subjects for detectors of {self.subjects}")
        changes = [change for f in range(self.subjects) for change in self._update_one(f, values[:, f], times)]
        return sorted(changes, key=lambda change: (change.time_us, change.subject, change.detector))

    def reset(self, subject: int) -> None:
        """Forget what the detectors of one subject have seen."""
        self._members[subject] = self._new()

    def to_bytes(self) -> bytes:
        """The whole state, compact and versioned; no pickle."""
        parts = [struct.pack("<II", FORMAT, self.subjects), _packed(json.dumps(list(self.makes)).encode())]
        for member in self._members:
            parts.append(_packed(member.rest.astype("<f8").tobytes()))
            parts += [_packed(detector.save()) for detector in member.detectors]
        return zlib.compress(b"".join(parts), 1)

    @classmethod
    def from_bytes(cls, state: bytes) -> DetectorBank:
        """The bank that was stored; raises StateError if it is damaged or of a newer format."""
        try:
            reader = _Reader(zlib.decompress(state))
            version, subjects = struct.unpack("<II", reader.take(8))
            if version != FORMAT:
                raise StateError(f"detector state of format {version}: this program reads format {FORMAT}")
            bank = cls(subjects, makes=tuple(json.loads(reader.packed())))
            for member in bank._members:
                member.rest = np.frombuffer(reader.packed(), dtype="<f8").astype(np.float64)
                for detector in member.detectors:
                    detector.load(reader.packed())
        except (zlib.error, struct.error, ValueError, KeyError) as error:
            raise StateError(f"the state of the detectors cannot be read: {error}") from error
        return bank

    def _new(self) -> _Subject:
        return _Subject(rest=np.empty(0), detectors=[MAKES[make]() for make in self.makes])

    def _update_one(self, subject: int, column: Floats, times: Ints) -> list[Change]:
        member = self._members[subject]
        present = np.flatnonzero(np.isfinite(column))
        waiting = len(member.rest)
        values = np.concatenate((member.rest, column[present]))
        blocks = len(values) // BLOCK
        member.rest = values[blocks * BLOCK :]
        if not blocks:
            return []
        # Each block is summed on its own, in a fixed order: its mean must not depend on its neighbours.
        means = values[: blocks * BLOCK].reshape(blocks, BLOCK).sum(axis=1) / np.sqrt(BLOCK)
        return [
            Change(subject, detector.name, int(times[present[(position + 1) * BLOCK - 1 - waiting]]))
            for detector in member.detectors
            for position in detector.update(means)
        ]


@dataclass(slots=True)
class _Reader:
    content: bytes
    at: int = 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.content):
            raise ValueError("it ends too early")
        self.at += size
        return self.content[self.at - size : self.at]

    def packed(self) -> bytes:
        return self.take(struct.unpack("<I", self.take(4))[0])


def _packed(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def _positions(detector: Any, block: Floats) -> list[int]:
    found = []
    for position, value in enumerate(block.tolist()):
        detector.update(value)
        if detector.drift_detected:
            found.append(position)
    return found
