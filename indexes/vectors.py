"""The full-width vectors: one row-major matrix in a .npy file, mapped into memory or held on a device."""

import errno
import math
import mmap
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
import torch

from indexes.base import Float32Array, Int64Array
from indexes.errors import CoarseIndexError
from indexes.system import advise, claim, machine_bytes, map_file, npy_header

# mapped: the file itself, on the CPU. device: as stored, on the device. int8: codes on the device for the stages below
# full width, the stored rows in pinned host memory for the last one. host: only that.
PLACEMENTS = ("auto", "mapped", "device", "int8", "host")

# Of the memory that is free on the device; the rest is for the coarse index, products and survivors.
SHARE = 0.75
LARGEST_CODE = 127
SCALE_BYTES = 4


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a CUDA device, as it says itself."""
    return int(torch.cuda.mem_get_info(device)[0])


def code_bytes(n: int, dim: int) -> int:
    """Bytes of int8 codes of n rows, and of their scales."""
    return n * (dim + SCALE_BYTES)


def fitting(n: int, dim: int, itemsize: int, free: int) -> str:
    """The placement for a matrix [n, dim] where `free` bytes of the device are free: device, else int8, else host."""
    if n * dim * itemsize <= SHARE * free:
        return "device"
    return "int8" if code_bytes(n, dim) <= SHARE * free else "host"


def check_placement(asked: str, device: torch.device) -> None:
    """Raise CoarseIndexError for a placement that is unknown, or not for this device."""
    if asked not in PLACEMENTS:
        raise CoarseIndexError(f"placement is {asked!r}; choose one of: {', '.join(PLACEMENTS)}")
    if asked == "mapped" and device.type != "cpu":
        raise CoarseIndexError(f"placement 'mapped' is for the CPU, and the device is {device}; choose another")


def settled(asked: str, device: torch.device, n: int, dim: int, itemsize: int) -> str:
    """The placement in force: the one asked for, or what suits the device and fits. Raises as `check_placement`."""
    check_placement(asked, device)
    if asked != "auto":
        return asked
    return "mapped" if device.type == "cpu" else fitting(n, dim, itemsize, free_bytes(device))


def pinned(matrix: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a matrix in page-locked memory, which a device reads at its full rate; as it is for the CPU."""
    if device.type == "cpu":
        return matrix
    try:
        return torch.empty(matrix.shape, dtype=matrix.dtype, pin_memory=True).copy_(matrix)
    except RuntimeError as error:  # the system grants no more locked memory
        warnings.warn(
            f"{matrix.nbytes:,} bytes of vectors could not be locked in memory and are read from the file, several "
            f"times slower: {str(error).splitlines()[0]}",
            stacklevel=2,
        )
        return matrix


class Codes:
    """int8 codes [n, dim] of rows on a device, each row with a scale of its own: the largest component is 127.

    A dot product with a unit query is off by a normal error of scale / sqrt(12): at 384 dims some .0007.
    """

    def __init__(self, chunks: Iterator[tuple[int, Float32Array]], n: int, dim: int, device: torch.device) -> None:
        try:
            self.codes = torch.empty((n, dim), dtype=torch.int8, device=device)
        except torch.cuda.OutOfMemoryError as error:
            raise CoarseIndexError(
                f"{code_bytes(n, dim):,} bytes of int8 codes do not fit on {device}; open the vectors with placement "
                "'host', or free memory there"
            ) from error
        self.scales = torch.empty(n, dtype=torch.float32, device=device)
        for first, rows in chunks:
            block = torch.from_numpy(rows).to(device)
            scales = block.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny) / LARGEST_CODE
            self.codes[first : first + len(rows)] = (block / scales[:, None]).round_().to(torch.int8)
            self.scales[first : first + len(rows)] = scales

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.codes.nbytes + self.scales.nbytes

    def gather(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Dims [start, stop) of some rows, as the codes have them: int64 [r] to float32 [r, stop - start]."""
        codes = torch.index_select(self.codes[:, start:stop], 0, rows)
        return codes.float().mul_(self.scales[rows][:, None])


# Half the bytes of float32 for at most 2e-4 in a cosine, and the default; both are read without conversion.
STORED_TYPES = (np.dtype(np.float16), np.dtype(np.float32))
# Matrices up to here are held as float32 once they were searched in full: converting them anew would take most of the
# time of a single flat search. 10,000 rows at 384 dims are 15 MB.
SMALL_BYTES = 16_777_216
ROWS_CODED_AT_A_TIME = 65_536
MAPPED_SHARE = 0.5  # of the memory there is: larger matrices are not kept there whole
# Rows that come in any order touch every page of the matrix again and again: once it does not fit in memory, each of
# them waits for the disk (10 MB a second within 1 GB, and 79 GB read after five minutes). So the rows of a large matrix
# are first put into buckets, one behind the other, and then in order within each.
LARGE_BYTES, BUCKET_BYTES = 268_435_456, 33_554_432


class VectorWriter:
    """Fills a matrix that `VectorStore.create` laid out on disk, in order once it is closed. A context manager."""

    def __init__(self, path: Path, rows: int, dim: int, dtype: npt.DTypeLike) -> None:
        stored = np.dtype(dtype)
        if stored not in STORED_TYPES:
            raise CoarseIndexError(f"vectors are stored as float16 or float32, not {stored}")
        if rows < 0 or dim < 1:
            raise CoarseIndexError(f"a matrix of {rows} x {dim}; give rows >= 0 and dim >= 1")
        self.path, self.rows, self.dim, self.dtype = Path(path), rows, dim, stored
        self._written = 0
        self._start = self._preallocate()
        self._bucket = max(1, BUCKET_BYTES // (dim * stored.itemsize))
        large = rows * dim * stored.itemsize > LARGE_BYTES
        self._places = np.full(rows, -1, dtype=np.int64) if large else None
        self._filled = np.zeros(-(-rows // self._bucket), dtype=np.int64)

    def _preallocate(self) -> int:
        """Write the header and claim the space, so that a full disk shows before any work is done."""
        size = self.rows * self.dim * self.dtype.itemsize
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.rows, self.dim)}
        with open(self.path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            file.flush()
            claim(file.fileno(), start, size)
        return start

    def write(self, positions: Int64Array, vectors: Float32Array) -> None:
        """Put rows where they belong: `vectors` float32 [c, dim] at `positions` int64 [c].

        Each row is written once; calls may come in any order.

        Raises:
            CoarseIndexError: The shapes disagree, or a position is outside the matrix.
        """
        if vectors.shape != (len(positions), self.dim):
            raise CoarseIndexError(
                f"vectors of shape {list(vectors.shape)} for {len(positions)} positions; "
                f"give [{len(positions)}, {self.dim}]"
            )
        if not len(positions):
            return
        if positions.min() < 0 or positions.max() >= self.rows:
            raise CoarseIndexError(
                f"positions {positions.min()} to {positions.max()}; the matrix has rows 0 to {self.rows - 1}"
            )
        self._matrix()[self._slots(positions)] = vectors
        self._written += len(positions)

    def _matrix(self) -> npt.NDArray[np.generic]:
        """Mapped anew for each call: pages of a map count as resident until it is closed."""
        return np.memmap(self.path, self.dtype, "r+", self._start, (self.rows, self.dim))

    def _slots(self, positions: Int64Array) -> Int64Array:
        """Where rows are written first: where they belong or, in a large matrix, in the next places of their bucket."""
        if self._places is None:
            return positions
        buckets = positions // self._bucket
        slots = np.empty_like(positions)
        for bucket in np.unique(buckets):
            mine = np.flatnonzero(buckets == bucket)
            slots[mine] = bucket * self._bucket + self._filled[bucket] + np.arange(len(mine))
            self._filled[bucket] += len(mine)
        self._places[slots] = positions
        return slots

    def _settle(self) -> None:
        """Put the rows of each bucket in order."""
        if self._places is None:
            return
        for start in range(0, self.rows, self._bucket):
            belongs = self._places[start : start + self._bucket] - start
            if not np.array_equal(np.sort(belongs), np.arange(len(belongs))):
                raise CoarseIndexError(
                    f"{self.path} was given a row of {start} to {start + len(belongs) - 1} twice; write each once"
                )
            rows = self._matrix()[start : start + len(belongs)]
            settled = np.empty_like(rows)
            settled[belongs] = rows
            rows[:] = settled

    def close(self) -> None:
        """Flush the file to the disk.

        Raises:
            CoarseIndexError: Fewer rows were written than the matrix has.
        """
        if self._written < self.rows:
            raise CoarseIndexError(
                f"{self.path} was given {self._written} of {self.rows} rows; write all of them before closing"
            )
        self._settle()
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


class VectorStore:
    """A matrix [n, dim] of unit rows. Made by `open`.

    Attributes:
        matrix: torch [n, dim], float16 or float32. Where it is mapped, a private map of the file: do not write to it.
        device: Where searches run: what is gathered comes to lie there.
        placement: Where the vectors lie: "mapped" (the file), "device", "int8" (codes on the device, `matrix` in pinned
            host memory) or "host" (`matrix` in pinned host memory).
        codes: The int8 codes, under "int8".
        exceeds_memory: Whether the file is too large to be kept in memory whole, so that rows that lie apart are
            better read in passes over it.
    """

    def __init__(
        self,
        matrix: torch.Tensor,
        device: torch.device,
        placement: str,
        path: Path = Path(),
        mapping: mmap.mmap | None = None,
        start: int = 0,
    ) -> None:
        self.matrix, self.placement, self.path = matrix, placement, path
        self.device = torch.empty(0, device=device).device  # with its number
        self.n, self.dim = matrix.shape
        self.dtype = np.dtype(np.float16 if matrix.dtype == torch.float16 else np.float32)
        self._map, self._start = mapping, start
        self.exceeds_memory = mapping is not None and len(mapping) > MAPPED_SHARE * machine_bytes()
        self._views: dict[tuple[int, int], torch.Tensor] = {}
        self._whole: torch.Tensor | None = None
        self._cells: npt.NDArray[np.generic] | None = None
        self._guard: Callable[[Int64Array], None] | None = None
        coded = placement == "int8"
        self.codes = Codes(self.chunks(ROWS_CODED_AT_A_TIME), self.n, self.dim, self.device) if coded else None

    @classmethod
    def held(cls, matrix: torch.Tensor) -> Self:
        """A store of rows [n, dim] that are in memory already, on any device, and in no file.

        Raises CoarseIndexError for anything but a row-major float16 or float32 matrix.
        """
        if matrix.ndim != 2 or matrix.dtype not in (torch.float16, torch.float32) or not matrix.is_contiguous():
            raise CoarseIndexError(
                f"a {matrix.dtype} tensor of shape {list(matrix.shape)}; give a contiguous float16 or float32 [n, dim]"
            )
        return cls(matrix, matrix.device, "device")

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], rows: int, dim: int, dtype: npt.DTypeLike = np.float16
    ) -> VectorWriter:
        """Lay out a matrix on disk, to be filled by the writer that is returned.

        Raises:
            CoarseIndexError: Another type than float16 or float32, or an impossible shape.
            OSError: The disk has no room for it.
        """
        return VectorWriter(Path(path), rows, dim, dtype)

    @classmethod
    def open(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu", placement: str = "auto") -> Self:
        """Map the file at `path`; for another device than the CPU, put the vectors where `placement` says.

        "auto" takes the first of "device", "int8" and "host" that fits what is free on the device.

        Raises:
            CoarseIndexError: The file does not hold such a matrix, the placement is unknown or of another device.
            OSError: The file cannot be opened.
        """
        place, (shape, dtype, start) = torch.device(device), _read_header(Path(path))
        with open(path, "rb") as file:
            mapping, whole = map_file(file)
        placement = settled(placement, place, *shape, dtype.itemsize)
        mapped = torch.from_numpy(np.frombuffer(whole, dtype, math.prod(shape), start).reshape(shape))
        matrix = pinned(mapped, place) if placement in ("int8", "host") else mapped.to(place)
        store = cls(matrix, place, placement, Path(path), mapping, start)
        if store.exceeds_memory:  # rows lie anywhere: reading ahead would push out what is needed next
            advise(mapping, "RANDOM", 0, len(mapping))
        return store

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix."""
        return self.n * self.dim * self.dtype.itemsize

    @property
    def resident_bytes(self) -> int:
        """Bytes held in memory; a mapped matrix counts 0, as the system may drop its pages at any time."""
        held = 0 if self._whole is None else self._whole.nbytes
        if self.placement == "mapped":
            return held
        return held + self.nbytes + (0 if self.codes is None else self.codes.nbytes)

    @property
    def small(self) -> bool:
        """Whether `whole` may be held in memory."""
        return self.n * self.dim * 4 <= SMALL_BYTES

    def whole(self) -> torch.Tensor:
        """Every row as float32 [n, dim], kept from the first call on. For small matrices."""
        if self._whole is None:
            self._whole = self.block(0, self.n)
        return self._whole

    def release(self) -> None:
        """Give the mapped pages back to the system; they are read again when next used."""
        if self._map is not None:
            advise(self._map, "DONTNEED", 0, len(self._map))

    def guard(self, check: Callable[[Int64Array], None]) -> None:
        """Have `check` called with the rows of every read, before it, to verify them."""
        self._guard = check

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop` as float32 [stop - start, dim]."""
        return self.prefixes(start, stop, self.dim).to(self.device, non_blocking=True).float()

    def prefixes(self, start: int, stop: int, width: int) -> torch.Tensor:
        """The first `width` dims of rows `start` to `stop`, as stored: a view of the map."""
        if self._guard is not None:
            self._guard(np.arange(start, min(stop, self.n), dtype=np.int64))
        if self._map is not None and self.exceeds_memory:  # the system does not read ahead by itself
            row = self.dim * self.dtype.itemsize
            begin = (self._start + start * row) // mmap.PAGESIZE * mmap.PAGESIZE
            advise(self._map, "WILLNEED", begin, self._start + min(stop, self.n) * row - begin)
        return self.matrix[start:stop, :width]

    def gather(self, rows: torch.Tensor, start: int, stop: int, out: torch.Tensor | None = None) -> torch.Tensor:
        """Dimensions `start` to `stop` of some rows: int64 [r] on `device` to [r, stop - start]. Hot path.

        Under "int8" whole rows are the stored ones, and parts of them what the codes say.
        """
        if self._guard is not None:
            self._guard(rows.numpy())
        if self.codes is not None and stop - start < self.dim:
            return self.codes.gather(rows, start, stop)
        if self.placement in ("int8", "host"):
            return self._from_host(rows, start, stop)
        view = self._views.get((start, stop))
        if view is None:
            # A view: index_select then copies the wanted dimensions only.
            view = self._views[start, stop] = self.matrix[:, start:stop]
        return torch.index_select(view, 0, rows, out=out)

    def _from_host(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The host gathers, as rows lie apart and a copy wants them together; so it waits for the row numbers."""
        on_gpu = self.device.type != "cpu"
        together = torch.empty((len(rows), stop - start), dtype=self.matrix.dtype, pin_memory=on_gpu)
        torch.index_select(self.matrix[:, start:stop], 0, rows.cpu(), out=together)
        return together.to(self.device, non_blocking=True)

    def cells(self, rows: Int64Array) -> npt.NDArray[np.generic]:
        """The matrix in host memory, for a loop over these rows (below 0: none): float16 as the uint16 of its bits."""
        if self._guard is not None:
            self._guard(rows[rows >= 0])
        if self._cells is None:
            whole: npt.NDArray[np.generic] = self.matrix.numpy()
            self._cells = whole.view(np.uint16) if whole.dtype == np.float16 else whole
        return self._cells

    def chunks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Float32Array]]:
        """Pass over rows `start` to `stop` in order, `size` at a time: (first row, float32 [c, dim]).

        The file is read, not the map, so that a whole pass leaves the resident memory as it was.

        Raises:
            CoarseIndexError: `size` is below 1, or the file ends early.
        """
        if size < 1:
            raise CoarseIndexError(f"chunks of {size} rows; give at least 1")
        last = self.n if stop is None else min(stop, self.n)
        with nullcontext() if self._map is None else open(self.path, "rb") as file:
            for first in range(start, last, size):
                after = min(first + size, last)
                yield first, self.block(first, after).cpu().numpy() if file is None else self._read(file, first, after)

    def _read(self, file: BinaryIO, first: int, after: int) -> Float32Array:
        count = after - first
        if self._guard is not None:
            self._guard(np.arange(first, after, dtype=np.int64))
        file.seek(self._start + first * self.dim * self.dtype.itemsize)
        values = np.fromfile(file, self.dtype, count * self.dim)
        if len(values) != count * self.dim:
            if os.fstat(file.fileno()).st_size >= file.tell() + (count * self.dim - len(values)) * self.dtype.itemsize:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))  # numpy says only that it got less
            raise CoarseIndexError(f"{self.path} ends within rows {first} to {after - 1}; restore it")
        return values.reshape(count, self.dim).astype(np.float32, copy=False)


def _read_header(path: Path) -> tuple[tuple[int, int], np.dtype[np.generic], int]:
    """Shape, type and first byte of the matrix, checked against the size of the file."""
    with open(path, "rb") as file:
        try:
            shape, fortran, dtype = npy_header(file, swapped=True)
        except ValueError as error:
            raise CoarseIndexError(f"{path} is not a .npy file: {error}") from error
        start = file.tell()
    if len(shape) != 2 or fortran or dtype not in STORED_TYPES:
        order = "column-major" if fortran else "row-major"
        raise CoarseIndexError(
            f"{path} holds a {order} {dtype} array of shape {list(shape)}; "
            "expected a row-major float16 or float32 matrix [n, dim]"
        )
    expected, found = start + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if found != expected:
        raise CoarseIndexError(f"{path} has {found} bytes; a {dtype} matrix of {list(shape)} has {expected}")
    return (shape[0], shape[1]), dtype, start
