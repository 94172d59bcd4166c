from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import pytest

from indexes import release_freed

STATM = Path("/proc/self/statm")
BLOCK = 65_536  # below what glibc maps on its own: freed blocks of this size stay with the process
MEGABYTE = 1_000_000


def resident_mb() -> float:
    return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim") or not STATM.exists(), reason="not glibc on Linux")
def test_freed_memory_goes_back_to_the_system() -> None:
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(2_000)]
    blocks = blocks[::2]  # the rest lies between the freed blocks, so that nothing goes back by itself
    before = resident_mb()
    release_freed()
    assert resident_mb() < before - 30
    assert all(block[-1] == 1 for block in blocks)
    release_freed()  # with nothing to give back
