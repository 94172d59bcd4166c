"""Pages of mapped files: which of them this process holds in memory, and giving them back. Linux only."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["forget", "touched_bytes"]

DONTNEED = 4  # of madvise


def touched_bytes(folder: Path) -> int:
    """What is resident of the files below a folder that this process has mapped."""
    return sum(resident for *_, resident in _mappings(folder))


def forget(folder: Path) -> None:
    """Give back the pages of such files, and have the system read them from the disk again."""
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, size, path, _ in _mappings(folder):
        if advise(start, size, DONTNEED):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _mappings(folder: Path) -> Iterator[tuple[int, int, Path, int]]:
    """Start, bytes, file and resident bytes of each."""
    start = size = 0
    path: Path | None = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            start, stop = (int(end, 16) for end in first.split("-"))
            size, path = stop - start, Path(rest[4]) if len(rest) == 5 else None
        elif first == "Rss:" and path is not None and folder in path.parents and path.is_file():
            yield start, size, path, int(rest[0]) * 1024
