"""Files mapped into memory, as arrays that torch takes; and the one reader of .npy headers."""

import mmap
import os
import tokenize
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from indexes.system import heed_data_limit

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Out of numpy's header parser, which evaluates the header as a Python literal of at most 10,000 characters.
UNREADABLE = (EOFError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError)


def map_file(file: BinaryIO) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
    """The whole of an open file: its map, and the bytes uint8 [size]. What is written to them does not reach the file.

    Under a limit on memory (`ulimit -d`) they must not be written to: the limit counts what could be written, even
    privately, and spares a map that can only be read.
    """
    size = os.fstat(
        file.fileno()
    ).st_size  # told, as mmap would say "Invalid argument" where the system refuses to look
    whole = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ if heed_data_limit() else mmap.ACCESS_COPY)
    return whole, np.asarray(_Mapped(whole)) if len(whole) else np.empty(0, np.uint8)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the array of which a .npy file is read from here on.

    Raises ValueError for what is none, for Python objects, and for another version of the format than 1.0 and 2.0.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"it has .npy format {version}, expected (1, 0) or (2, 0)")
        shape, by_column, dtype = HEADERS[version](file)
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {list(shape)}")
    return shape, by_column, dtype


class _Mapped:
    """The bytes of a map for torch, which would warn of an array that is marked read-only."""

    def __init__(self, whole: mmap.mmap) -> None:
        self._bytes = np.frombuffer(whole, np.uint8)
        interface = self._bytes.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
