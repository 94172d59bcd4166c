"""Memory: how much there is, and what was freed and the C library still holds."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path

__all__ = ["machine_bytes", "release_freed"]

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


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
    """What the memory controller allows the process's cgroup and those above it; empty where there is none."""
    limits: list[int] = []
    with suppress(OSError):
        for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                limits += _limits_above(CGROUPS, path, "memory.max")
            elif "memory" in controllers.split(","):  # version 1
                limits += _limits_above(CGROUPS / "memory", path, "memory.limit_in_bytes")
    return limits


def _limits_above(root: Path, path: str, name: str) -> list[int]:
    folder, limits = root / path.lstrip("/"), []
    for place in (folder, *folder.parents):
        if place == root.parent:
            break
        with suppress(OSError, ValueError):  # "max", or no such file: no limit here
            limits.append(int((place / name).read_text(encoding="ascii")))
    return limits
