"""Plain .npy files of an index, mapped: type and shape are checked against the file's size before it is read."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError
from indexes.system import npy_header


def map_npy(path: Path, dtypes: tuple[str, ...], dimensions: int) -> npt.NDArray[Any]:
    """The array of a .npy file, mapped and read-only.

    dtypes: names of the types that may be there, such as "int64". dimensions: how many the array has.

    Raises DamagedIndexError naming the file for another type or shape, or where the file is longer or shorter than they
    say; nothing is ever unpickled.
    """
    try:
        with path.open("rb") as file:
            shape, by_column, dtype = npy_header(file)
            start = file.tell()
    except ValueError as error:
        raise DamagedIndexError(f"{path}: not a readable array ({error})") from error
    if dtype.name not in dtypes or len(shape) != dimensions:
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
