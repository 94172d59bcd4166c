"""Memory that was freed and that the C library still holds."""

from __future__ import annotations

import ctypes

__all__ = ["release_freed"]


def release_freed() -> None:
    """Have glibc give freed memory back to the system; does nothing with another C library.

    glibc keeps freed blocks of up to 32 MB for later (mallopt(3), M_MMAP_THRESHOLD): after a pass over a matrix that is
    several blocks of rows, which would stay resident beside all that comes after. Takes milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
