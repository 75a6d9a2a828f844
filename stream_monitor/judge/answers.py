"""Whether errors of one class were to be expected: what the newest answers gave it, whatever came true.

How many truths of a class are answered wrongly depends on which rows come, though nothing of the relation changes: inputs
that move bring rows of that class that look like another. What the probabilities of all rows gave the class says how many.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_monitor.errors import StateError
from stream_monitor.judge.calibration import Calibration, calibrate
from stream_monitor.judge.watch import compressed, decompressed
from stream_monitor.records import NO_TIME, Codes, Ints
from stream_monitor.summarize.histogram import Histogram
from stream_monitor.summarize.outcome import Joined
from stream_monitor.summarize.scores import ABSENT, Marks, ScoreProfile, middle_of_bin, of_texts

LOOKED_AT = 2_048
"""Answers up to an alarm among which it is asked: a class of 5 % has a hundred truths there."""
AT_ONCE = 1_024
"""Answers are taken in parts of at most so many, each followed by what it raised: what an alarm looks at is still there."""
CALIBRATING = 1_000
"""The first answers that tell what probabilities are worth where the baseline does not."""
FEWEST = 20
"""Truths of the class since the onset, below which nothing is said."""
FEWEST_TOLD = 0.9
"""Of the answers: where more of them give no probabilities, nothing is said."""


INTACT = 3.0
"""Standard errors within which errors are what was foretold."""
SELECTED = 2.0
"""Standard errors that chance has in a rise: the onset is where it is the largest, and an alarm comes when it is. Of 80
streams of numbers whose inputs moved (`tests/benchmarks/relations.py`) 12 were called drifts with one, with two 3."""


@dataclass(frozen=True, slots=True)
class Rise:
    """A mean of errors since an onset: what came, what was foretold, and the standard error of what is between them."""

    came: float
    foretold: float
    error: float

    def is_foretold(self, usual: float) -> bool:
        """Whether what came was foretold but for chance, and at least half of the way from the `usual` mean.

        >>> Rise(came=0.3, foretold=0.25, error=0.02).is_foretold(0.1)
        True
        >>> Rise(came=0.3, foretold=0.12, error=0.02).is_foretold(0.1)
        False
        """
        side = 1.0 if self.came >= usual else -1.0
        way, told = side * (self.came - usual) - SELECTED * self.error, side * (self.foretold - usual)
        return side * (self.came - self.foretold) <= INTACT * self.error and told > 0 and told >= way / 2


@dataclass(slots=True)
class Answers:
    """The newest answers of a model of several `classes`, with their truths. `add` in any chunks leaves the same."""

    classes: tuple[str, ...]
    made_us: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    time_us: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    truth: Codes = field(default_factory=lambda: np.zeros(0, np.int32))  # a place in `classes`, -1: another
    code: Marks | None = None  # (K, n), see `ClassProbabilities`
    first: ScoreProfile = field(default_factory=ScoreProfile)  # of the first answers, marked where they came true
    learnt: int = 0  # how many of them there were
    learnt_us: int = NO_TIME  # and when the truth of the last came

    def add(self, joined: Joined, made_us: Ints, time_us: Ints) -> None:
        """Take answers in the order of their truths, at most AT_ONCE."""
        self._learn(joined, time_us)
        texts = pa.nulls(len(joined), pa.string()) if joined.probabilities is None else joined.probabilities
        code = of_texts(texts, joined.label, self.classes).code
        place = pc.index_in(joined.truth_label.cast(pa.string()), value_set=pa.array(self.classes, pa.string()))
        truth = np.asarray(pc.fill_null(place, -1), np.int32)
        most = LOOKED_AT + AT_ONCE
        self.made_us = np.concatenate([self.made_us, made_us])[-most:]
        self.time_us = np.concatenate([self.time_us, time_us])[-most:]
        self.truth = np.concatenate([self.truth, truth])[-most:]
        self.code = (code if self.code is None else np.concatenate([self.code, code], axis=1))[:, -most:]

    def _learn(self, joined: Joined, time_us: Ints) -> None:
        wanted = min(CALIBRATING - self.learnt, len(joined))
        if wanted > 0:
            self.learnt, self.learnt_us = self.learnt + wanted, int(time_us[wanted - 1])
            if joined.probabilities is not None:
                self.first.add(of_texts(joined.probabilities[:wanted], joined.truth_label[:wanted], self.classes))

    def _learnt(self, label: str, until_us: int) -> Calibration | None:
        """What the first answers say of the probabilities of a class, if they had all come by a time."""
        if self.learnt < CALIBRATING or until_us <= self.learnt_us:
            return None
        keys, counts = self.first.classes.get(label, Histogram()).arrays()
        bins, at = np.unique(keys >> 1, return_inverse=True)
        if not len(bins):
            return None
        true, rows = (np.bincount(at, part, len(bins)).astype(np.float64) for part in (counts * (keys & 1), counts))
        return calibrate(bins, true, rows)

    def rise(self, label: str, calibration: Calibration | None, *, since_us: int, until_us: int) -> Rise | None:
        """Of the answers made since a time whose truths came by another; None where that cannot be told.

        `calibration`: of the class's probabilities; None: as the first answers bear them out.

        A row that gave the class q, calibrated, is of it with probability q. So of its truths the share answered wrongly
        is to be the sum of q where another was predicted over that of all q.
        """
        if self.code is None:
            return None
        known = np.flatnonzero(self.time_us <= until_us)[-LOOKED_AT:]
        after = known[self.made_us[known] >= since_us]
        code, is_true = self.code[self.classes.index(label)][after], self.truth[after] == self.classes.index(label)
        told = code != ABSENT
        if not len(after) or told.mean() < FEWEST_TOLD or (told & is_true).sum() < FEWEST:
            return None
        key, is_true = code[told].astype(np.int64), is_true[told]
        held = calibration or self._learnt(label, until_us)
        q = middle_of_bin(key >> 1) if held is None else held.read(key >> 1)
        missed = 1.0 - (key & 1)
        foretold = float(q @ missed / q.sum())
        # The rate that came less the one foretold is the sum of (true - q) (missed - foretold), over the truths.
        away, truths = missed - foretold, float(is_true.sum())
        variance = float((q * (1 - q) * away**2).sum())
        if held is not None:
            variance += held.variance(key >> 1, away)
        return Rise(float(missed[is_true].mean()), foretold, float(np.sqrt(variance)) / truths)

    def to_bytes(self) -> bytes:
        """The whole state."""
        first = self.first.to_bytes()
        head = json.dumps([self.classes, len(self.truth), len(first), self.learnt, self.learnt_us]).encode()
        code = np.zeros((len(self.classes), 0), np.int16) if self.code is None else self.code
        columns = (self.made_us, self.time_us, self.truth, code)
        return compressed(
            struct.pack("<I", len(head)) + head + first + b"".join(np.ascontiguousarray(c).tobytes() for c in columns)
        )

    @classmethod
    def from_bytes(cls, state: bytes, classes: Sequence[str]) -> Answers:
        """What `to_bytes` wrote, empty where that was of other classes; raises StateError for anything else."""
        try:
            body = decompressed(state)
            (size,) = struct.unpack_from("<I", body)
            stored, n, profile, *learnt = json.loads(body[4 : 4 + size])
            if stored != list(classes):
                return cls(tuple(classes))
            at = 4 + size + profile
            ends = np.cumsum([at, 8 * n, 8 * n, 4 * n, 2 * n * len(stored)]).tolist()
            types = (np.int64, np.int64, np.int32, np.int16)
            made, time, truth, code = (
                np.frombuffer(body[a:b], t) for a, b, t in zip(ends, ends[1:], types, strict=False)
            )
            first = ScoreProfile.from_bytes(body[4 + size : at])
            return cls(tuple(stored), made, time, truth, code.reshape(len(stored), n), first, *learnt)
        except (struct.error, ValueError, TypeError) as error:
            raise StateError(f"the newest answers of a model cannot be read: {error}") from error
