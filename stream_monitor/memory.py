"""The memory of the process: one heap for everybody, and what is freed given back before it piles up."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pyarrow as pa

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Parameters of glibc's mallopt (malloc.h)."""

_KEPT_BYTES = 1 << 26
_LARGE_BYTES = 1 << 25
"""What is freed is kept up to so much at the heap's end; arrays up to the second, the most glibc takes, come from the heap."""

_MORE_BYTES = 1 << 25
"""The growth after which the heap is swept: some polls' columns. A sweep takes ten milliseconds, and pages back."""


def hold_memory() -> None:
    """One heap for all threads and for Arrow, which keeps what is freed for a while; to be called first.

    By default every thread has heaps of its own, every array of 128 kB its own pages, and both are returned at once and
    asked for again: the kernel then cleared pages for a seventh of the time, and the process held 150 MB more.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # another C library has its own ways
    if mallopt is not None:
        for parameter, value in ((_ARENA_MAX, 1), (_TRIM_THRESHOLD, _KEPT_BYTES), (_MMAP_THRESHOLD, _LARGE_BYTES)):
            mallopt(parameter, value)


def resident_bytes() -> float | None:
    """What the kernel says this process holds in memory; None where it does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return float(pages) * resource.getpagesize()


class Sweeper:
    """Gives back what a busy minute took: people size machines by what we hold."""

    def __init__(self) -> None:
        self._floor = 0.0

    def sweep(self) -> None:
        """Return what is free anywhere in the heap."""
        pa.default_memory_pool().release_unused()
        self._floor = resident_bytes() or 0.0

    def sweep_if_grown(self) -> None:
        """The same, where the process has grown: free memory between what is in use never leaves by itself."""
        held = resident_bytes()
        if held is not None and held > self._floor + _MORE_BYTES:
            self.sweep()
