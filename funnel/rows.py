"""Bare vectors: checked, scaled to unit length, and read from .npy files a piece at a time."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from funnel.errors import InputError
from funnel.identifiers import few, identifier, listed, named_twice
from indexes.system import npy_header

__all__ = [
    "SAFE_SQUARED_LENGTH",
    "NpyRows",
    "as_array",
    "check_ids",
    "is_table",
    "table_library",
    "unit_rows",
    "unmasked",
]

NAMED_ROWS = 10  # bad rows an error names before it only counts
# Squared lengths outside this range have lost digits in float32, whose smallest normal is 1e-38.
SAFE_SQUARED_LENGTH = (1e-20, 1e30)
ROW_TYPES = ("float32", "float16", "int8", "float64")
INT64_BITS = 63  # SQLite keeps whole numbers in 64 bits with sign


def unit_rows(
    batch: NDArray[np.generic], first_row: int | NDArray[np.int64], what: str, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Scale rows to unit length.

    Args:
        batch: float or integer [c, d].
        first_row: The number of the batch's first row in the whole, or of each row: int64 [c]; for messages.
        what: What the rows are, for messages, such as a file's name.
        out: float32 [c, d] to write them into; None: a new array.

    Returns:
        float32 [c, d], every row of length 1.

    Raises:
        InputError: not two-dimensional, not numbers, or rows with NaN, infinite or only zero values.
    """
    array = np.asarray(batch)
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InputError(
            f"{what}: expected float or integer rows of shape [n, d], got {array.dtype} of shape {list(array.shape)}"
        )
    low, high = SAFE_SQUARED_LENGTH
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.empty(array.shape, dtype=np.float32) if out is None else out
        rows[...] = array
        squared = np.einsum("ij,ij->i", rows, rows)
    safe: NDArray[np.bool_] = (squared > low) & (squared < high)
    lengths = np.sqrt(squared, where=safe, out=np.ones_like(squared))
    if not safe.all():
        unsafe = np.flatnonzero(~safe)
        numbers = first_row[unsafe] if isinstance(first_row, np.ndarray) else unsafe + first_row
        _refuse_bad_rows(array[unsafe], numbers, what)
        # Divided by their largest value first, so that very long and very short rows keep their digits.
        exact = array[unsafe].astype(np.float64)
        exact /= np.abs(exact).max(axis=1, keepdims=True)
        rows[unsafe] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    rows /= lengths[:, None]
    return rows


def _refuse_bad_rows(rows: NDArray[np.generic], numbers: NDArray[np.int64], what: str) -> None:
    values = rows.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1) | ~values.any(axis=1))
    if not bad.size:
        return
    named = ", ".join(f"{numbers[row]} ({_fault(values[row])})" for row in bad[:NAMED_ROWS])
    more = f" and {bad.size - NAMED_ROWS} more" if bad.size > NAMED_ROWS else ""
    raise InputError(
        f"{what}: {bad.size} row{'s' if bad.size > 1 else ''} cannot be scaled to unit length: "
        f"row {named}{more} (counted from 0); remove or repair them"
    )


def _fault(row: NDArray[np.float64]) -> str:
    return "NaN" if np.isnan(row).any() else "infinite" if np.isinf(row).any() else "all zero"


def unmasked(array: NDArray[Any]) -> NDArray[Any]:
    """The array without the mask it may have. InputError where values are masked."""
    masked = int(np.ma.getmaskarray(array).sum()) if isinstance(array, np.ma.MaskedArray) else 0
    if masked:
        raise InputError(
            f"{masked:,} values of the array are masked; fill them, as by array.filled(0), or leave out their rows"
        )
    return np.asarray(array)


class NpyRows:
    """The rows of a .npy file, read in order with plain reads; never pickled, never held whole.

    Raises:
        InputError: not a .npy file of rows [n, d] in float32, float16, float64 or int8; or cut short.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.count, self.dim, self.dtype = _read_header(file, path)
            self._offset = file.tell()
        expected = self._offset + self.count * self.dim * self.dtype.itemsize
        size = path.stat().st_size
        if size < expected:
            raise InputError(f"{path} is cut short: {size} bytes, its header promises {expected}; copy it again")

    def read(self, batch_rows: int) -> Iterator[NDArray[np.generic]]:
        """The rows in order, at most `batch_rows` at a time, in the file's own type."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for start in range(0, self.count, batch_rows):
                rows = min(batch_rows, self.count - start)
                values = np.fromfile(file, dtype=self.dtype, count=rows * self.dim)
                if values.size != rows * self.dim:
                    raise InputError(f"{self.path} ended in the rows from {start}; was it changed meanwhile?")
                yield values.reshape(rows, self.dim)


def _read_header(file: IO[bytes], path: Path) -> tuple[int, int, np.dtype[np.generic]]:
    try:
        shape, column_order, dtype = npy_header(file, swapped=True)
    except ValueError as error:
        raise InputError(f"{path} is not a readable .npy file ({error}); save it with numpy.save") from None
    if len(shape) != 2 or shape[1] < 1:
        raise InputError(f"{path} has shape {list(shape)}, expected rows [n, d]")
    if dtype.newbyteorder("=").name not in ROW_TYPES:
        raise InputError(f"{path} holds {dtype}, expected one of {', '.join(ROW_TYPES)}")
    if column_order and shape[0] > 1:
        raise InputError(
            f"{path} is saved column by column; save it with numpy.save(path, numpy.ascontiguousarray(rows))"
        )
    return int(shape[0]), int(shape[1]), dtype


def check_ids(ids: Sequence[str] | Sequence[int] | NDArray[np.generic], count: int) -> list[str] | list[int]:
    """Check the user's ids for bare vectors.

    Raises:
        InputError: not `count` of them; missing, empty, of mixed or wrong types; duplicates.
    """
    given: list[object] = listed(ids, "ids")
    if len(given) != count:
        raise InputError(f"{len(given)} ids for {count} vectors; give one id a vector")
    missing = [
        number
        for number, value in enumerate(given)
        if value is None or (isinstance(value, str | float) and (value == "" or value != value))
    ]
    if missing:
        raise InputError(f"{len(missing)} ids are missing or empty: rows {few(missing, NAMED_ROWS)}")
    values = [identifier(value, f"the id of row {number}") for number, value in enumerate(given)]
    kind = type(values[0])
    wrong = [number for number, value in enumerate(values) if type(value) is not kind]
    if wrong:
        got = type(values[wrong[0]]).__name__
        raise InputError(
            f"ids must be all text or all whole numbers: row {wrong[0]} is {got}, row 0 is {kind.__name__}"
        )
    if kind is int:
        wide = [
            number for number, value in enumerate(values) if isinstance(value, int) and value.bit_length() > INT64_BITS
        ]
        if wide:
            raise InputError(f"ids above 64 bits in rows {few(wide, NAMED_ROWS)}; give them as text")
    duplicates = [value for value, times in Counter(values).items() if times > 1]
    if duplicates:
        raise named_twice(duplicates, "vector")
    return values  # type: ignore[return-value]


def as_array(source: object) -> NDArray[Any] | None:
    """The array behind a numpy array, a torch tensor or a column of a table; None for anything else.

    InputError for masked values and for sparse tensors: what stands for what is missing is the user's to say; and for
    bytes, which are not the numbers that may be written in them.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        if not isinstance(source, memoryview) or source.itemsize == 1:
            raise InputError("bytes are given for numbers; read what is in them by numpy.frombuffer(value, 'float32')")
        return np.asarray(source)
    if isinstance(source, np.ndarray):
        array = unmasked(source)
        return _stacked(array) if array.dtype == object else array
    torch = sys.modules.get("torch")  # a tensor cannot have come without it
    if torch is not None and isinstance(source, torch.Tensor):
        if source.layout != torch.strided:
            raise InputError(f"the tensor is {source.layout}; expected a dense one: give tensor.to_dense()")
        tensor = source.detach().cpu()
        if tensor.dtype == torch.bfloat16:  # numpy has no such type
            tensor = tensor.float()
        rows: NDArray[Any] = tensor.numpy()
        return rows
    if hasattr(source, "__array__") and not is_table(source):
        column = np.asarray(source)
        return _stacked(column) if column.dtype == object else column
    return None


def is_table(source: object) -> bool:
    """Whether it is a frame or table whose rows `records_of` gives, again and again."""
    return table_library(source) is not None


def _stacked(column: NDArray[Any]) -> NDArray[Any]:
    """A column whose cells are lists of numbers as rows [n, d]; any other as it is."""
    first = column[0] if column.ndim == 1 and len(column) else None
    if not isinstance(first, list | tuple | np.ndarray):
        return column
    try:
        return np.asarray(column.tolist())
    except ValueError:
        raise InputError("the lists of numbers have different lengths; expected rows [n, d]") from None


def table_library(source: object) -> str | None:
    """The library that a table is from; it is loaded where one came from it."""
    kinds = {"pandas": ("DataFrame",), "polars": ("DataFrame",), "pyarrow": ("Table", "RecordBatch")}
    for name, types in kinds.items():
        module = sys.modules.get(name)
        if module is not None and isinstance(source, tuple(getattr(module, kind) for kind in types)):
            return name
    return None
