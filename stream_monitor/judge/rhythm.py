"""The rhythm of a day in how likely errors are, read off the labels, so that every night is not news.

A sum of log-likelihood ratios rises by chance as rarely as it should because the mean of the ratio itself is 1 while
nothing has changed. Where errors come more often at noon it is not: of the labels of noon it is more. To take the logarithm
of the hour's mean off each label's evidence makes it 1 again, at every hour and whatever the errors' distribution.

Only what comes back is a rhythm. The means are kept apart for odd and for even days: a bad night is in one of the two, and
does not agree with the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_monitor.records import MICROSECONDS, Floats, Ints

HOURS = 24
"""By UTC: only that the rhythm comes back has to be known, not when it is noon."""
HOUR_US = 3_600 * MICROSECONDS
FEWEST = 16
"""Labels of an hour, of odd and of even days each, before it takes part."""
EVIDENCE = 4.0
"""Standard errors by which odd and even days have to agree."""
FADES_AFTER_DAYS = 28
"""After so many days all means count half: habits change."""


@dataclass(slots=True)
class Rhythm:
    """Labels by parity of the day, hour and cell: `count` (2, hours, C), not whole once it has faded."""

    count: Floats
    faded_day: int = -1

    @classmethod
    def of(cls, cells: int) -> Rhythm:
        """Without a label."""
        return cls(np.zeros((2, HOURS, cells)))

    def add(self, cell: Ints, made_us: Ints) -> None:
        """Take labels (n,) by their cells and the times of their predictions."""
        if not len(cell):
            return
        hour = made_us // HOUR_US
        place = (hour // HOURS % 2 * HOURS + hour % HOURS) * self.count.shape[2] + cell
        self.count += np.bincount(place, minlength=self.count.size).reshape(self.count.shape)
        day = int(hour.max()) // HOURS
        if self.faded_day < 0:
            self.faded_day = day
        if day - self.faded_day >= FADES_AFTER_DAYS:
            self.count, self.faded_day = self.count / 2, day

    def shift(self, ratios: Floats, inflation: float) -> Floats:
        """(hours, K) to take off the log-likelihood ratios; 0 where no rhythm can be told from chance.

        `ratios` (K, C): the likelihood ratio of each alternative in each cell. `inflation`: how much more sums of
        neighbouring labels vary than those of independent ones.
        """
        found = np.zeros((HOURS, len(ratios)))
        labels = self.count.sum(axis=2)
        known = (labels >= FEWEST).all(axis=0)
        if known.sum() < 2:
            return found
        count, n = self.count[:, known], labels[:, known, None]
        total = count @ ratios.T
        half = (total / n) / (total.sum(axis=1) / n.sum(axis=1))[:, None] - 1
        shares = count.sum(axis=(0, 1)) / n.sum()
        mean = ratios @ shares
        variance = inflation * np.maximum(ratios**2 @ shares / mean**2 - 1, 1e-12)
        weight = np.sqrt(n[0] * n[1])
        agreement = (weight * half[0] * half[1]).sum(axis=0)
        is_rhythm = agreement / variance / np.sqrt(len(weight)) > EVIDENCE
        signal = np.maximum(agreement / weight.sum(axis=0), 0.0)
        # An hour's mean is believed by as much as the rhythm is more than the noise in it (James and Stein 1961).
        trust = np.where(is_rhythm, signal / (signal + variance / n.sum(axis=0)), 0.0)
        found[known] = np.log1p(trust * (total.sum(axis=0) / n.sum(axis=0) / mean - 1))
        return found

    def to_json(self) -> list[Any]:
        return [self.count.tolist(), self.faded_day]

    @classmethod
    def from_json(cls, body: list[Any]) -> Rhythm:
        count, faded_day = body
        return cls(np.array(count), faded_day)
