"""Where the vectors lie when searches run on a device: on it as stored, on it as int8 codes, or in host memory."""

import warnings
from collections.abc import Iterator

import torch

from indexes.base import Float32Array
from indexes.errors import CoarseIndexError

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
