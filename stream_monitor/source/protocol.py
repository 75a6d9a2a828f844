"""What every source of records promises, whether it reads Kafka, files or memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from stream_monitor.records import PartitionId, Poll


class Loss(NamedTuple):
    """Records of a partition that were gone before we read them: offsets `expected` up to `resumed`."""

    partition: PartitionId
    expected: int
    resumed: int


class Source(Protocol):
    """A set of ordered logs, read from given offsets.

    Laws, held by one suite over every implementation:

    - The offsets of a partition ascend strictly over all polls. They may have gaps (compaction, transactions).
    - A source started at `offset + 1` of a record delivers exactly what follows that record. A partition that
      `start` was not told of begins where the source is configured to begin; one found later begins at its first
      record, since all of it was written after we started.
    - `Poll.ends` never falls below what has been delivered. A partition without an entry has an unknown end.
    - Nothing of a paused partition is delivered, and nothing of it is lost.
    - A source is used from one thread. The batches of a poll belong to the caller.

    The caller may not assume that a poll is full, that topics exist, or that equal polls come after a restart.
    """

    def start(self, positions: Mapping[PartitionId, int]) -> None:
        """Begin; called once, before `poll`. A position is the offset to read next.

        Raises PeerError where the other side cannot be reached, DataLossError where a position is no longer there
        and the policy is to fail.
        """

    def poll(self, max_records: int, timeout_seconds: float) -> Poll:
        """At most `max_records` records, waiting up to the timeout for the first; raises DataLossError."""

    def pause(self, partitions: frozenset[PartitionId]) -> None:
        """Hold these back and no others: the set replaces the previous one."""

    def commit(self, positions: Mapping[PartitionId, int]) -> None:
        """Tell the other side how far we are, for lag tools. Never raises; nothing depends on it."""

    def partitions(self) -> tuple[PartitionId, ...]:
        """Every partition known now, in order."""

    def losses(self) -> tuple[Loss, ...]:
        """What was lost since the last call, where the policy is to go on."""

    @property
    def finished(self) -> bool:
        """Nothing more will ever come."""

    def close(self) -> None:
        """Let go of everything; may be called twice."""
