"""What the machine gives us: the disk of the state file and the limit of memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where a container's limit stands, in the second and in the first version of control groups."""

_UNLIMITED = 2**60
"""The first version writes "no limit" as a number near 2^63."""


@dataclass(frozen=True, slots=True)
class Machine:
    """In bytes. `memory_limit` is None where there is none."""

    disk: int
    disk_free: int
    memory_limit: int | None = None


def look(state: Path, *, limits: tuple[Path, ...] = LIMITS) -> Machine:
    """As it is now; a few system calls, so once a commit costs nothing."""
    disk = shutil.disk_usage(state.parent)
    return Machine(disk.total, disk.free, _limit(limits))


def _limit(paths: tuple[Path, ...]) -> int | None:
    for path in paths:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() and int(text) < _UNLIMITED else None
    return None
