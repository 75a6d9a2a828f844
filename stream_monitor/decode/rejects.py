"""Which rows of a batch were refused, and why: the first reason found for a row is the one it keeps."""

from __future__ import annotations

import numpy as np

from stream_monitor.records import Codes, Flags, Ints, Reason, Rejects

REASONS = tuple(Reason)


class Refusals:
    """Collects the refused rows of one batch of `rows` records."""

    def __init__(self, rows: int) -> None:
        self._code = np.zeros(rows, np.uint8)  # 0: accepted, k: REASONS[k - 1]

    def refuse(self, rows: Flags | Ints | Codes, reason: Reason) -> None:
        """Refuse rows, given as (n,) flags or as row numbers; rows already refused keep their reason."""
        chosen = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        fresh = chosen[self._code[chosen] == 0]
        self._code[fresh] = REASONS.index(reason) + 1

    @property
    def accepted(self) -> Flags:
        """(n,) rows nobody refused so far."""
        accepted: Flags = self._code == 0
        return accepted

    def rejects(self) -> Rejects:
        """The refused rows, ascending."""
        rows = np.flatnonzero(self._code)
        return Rejects(row=rows.astype(np.int32), reason=tuple(REASONS[code - 1] for code in self._code[rows].tolist()))
