"""Plain .npy files of an index, mapped: type and shape are checked against the file's size before it is read."""

import math
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError

# Out of numpy's header parser, which evaluates the header as a Python literal of at most 10,000 characters.
_UNREADABLE = (ValueError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def map_npy(path: Path, dtypes: tuple[str, ...], dimensions: int) -> npt.NDArray[Any]:
    """The array of a .npy file, mapped and read-only.

    dtypes: names of the types that may be there, such as "int64". dimensions: how many the array has.

    Raises DamagedIndexError naming the file for another type or shape, or where the file is longer or shorter than they
    say; nothing is ever unpickled.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"its format is {version}, expected (1, 0) or (2, 0)")
            shape, by_column, dtype = _HEADERS[version](file)
            start = file.tell()
    except _UNREADABLE as error:
        raise DamagedIndexError(f"{path}: not a readable array ({error})") from error
    if dtype.hasobject or dtype.name not in dtypes or len(shape) != dimensions or min(shape, default=0) < 0:
        raise DamagedIndexError(
            f"{path}: holds {dtype} {list(shape)}; expected {' or '.join(dtypes)} of {dimensions} dimensions"
        )
    expected, found = start + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if by_column and dimensions > 1:
        raise DamagedIndexError(f"{path}: is saved column by column; expected row by row")
    if found != expected:
        raise DamagedIndexError(f"{path}: has {found:,} bytes, expected {expected:,} for {dtype} {list(shape)}")
    if not math.prod(shape):  # an empty array cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape)
