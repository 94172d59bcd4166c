"""Giving back the pages of mapped files, so that the next search is a cold one. Linux only."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from indexes.system import mapped_below

__all__ = ["forget"]

DONTNEED = 4  # of madvise


def forget(folder: Path) -> None:
    """Give back the pages of the files below a folder, and have the system read them from the disk again."""
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for start, size, path, _ in mapped_below(folder):
        if advise(start, size, DONTNEED):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # type: ignore[attr-defined, unused-ignore]
