"""Memory: how much there is, and what was freed and the C library still holds."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

__all__ = ["machine_bytes", "release_freed"]

CGROUPS = Path("/sys/fs/cgroup")


def release_freed() -> None:
    """Have glibc give freed memory back to the system; does nothing with another C library.

    glibc keeps freed blocks of up to 32 MB for later (mallopt(3), M_MMAP_THRESHOLD): after a pass over a matrix that is
    several blocks of rows, which would stay resident beside all that comes after. Takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def machine_bytes() -> int:
    """The memory this process may use: the machine's, or less where a cgroup or a resource limit says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()]
    for limited in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        soft, _ = resource.getrlimit(limited)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft)
    return min(limits)


def _cgroup_limits() -> list[int]:
    """memory.max of the process's cgroup (v2) and of those above it; empty where there is none."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder = CGROUPS / own.removeprefix("0::").lstrip("/")
    limits = []
    for place in (folder, *folder.parents):
        if place == CGROUPS.parent:
            break
        with suppress(OSError, ValueError):  # "max", or no such file: no limit here
            limits.append(int((place / "memory.max").read_text()))
    return limits
