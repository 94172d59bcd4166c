"""Files mapped into memory, as arrays that torch takes."""

from __future__ import annotations

import mmap
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from indexes.system import heed_data_limit

__all__ = ["map_file"]


def map_file(file: BinaryIO) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
    """The whole of an open file: its map, and the bytes uint8 [size]. What is written to them does not reach the file.

    Under a limit on memory (`ulimit -d`) they must not be written to: the limit counts what could be written, even
    privately, and spares a map that can only be read.
    """
    whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ if heed_data_limit() else mmap.ACCESS_COPY)
    return whole, np.asarray(_Mapped(whole)) if len(whole) else np.empty(0, np.uint8)


class _Mapped:
    """The bytes of a map for torch, which would warn of an array that is marked read-only."""

    def __init__(self, whole: mmap.mmap) -> None:
        self._bytes = np.frombuffer(whole, np.uint8)
        interface = self._bytes.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
