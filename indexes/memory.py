"""Memory: how much there is, and what was freed and the C library still holds."""

from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

__all__ = ["heed_data_limit", "machine_bytes", "release_freed"]

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

# Of glibc's mallopt(3), and what they are set to under a limit on data: larger blocks are maps of their own, which end
# when they are freed, and threads share one heap.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
OWN_MAP_BYTES = 262_144


def heed_data_limit() -> bool:
    """Whether the process may take so much memory and no more (RLIMIT_DATA, `ulimit -d`).

    The limit counts what is reserved, touched or not, and glibc keeps what was freed: 180 of 680 MB in a build from
    1.5 GB of rows. Where there is a limit it is told not to, in the whole process; that makes a build a quarter slower.
    """
    if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
        return False
    _keep_nothing_freed()
    return True


@lru_cache(maxsize=1)
def _keep_nothing_freed() -> None:
    option = getattr(ctypes.CDLL(None), "mallopt", None)
    if option is not None:
        option(M_ARENA_MAX, 1)
        option(M_MMAP_THRESHOLD, OWN_MAP_BYTES)


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
