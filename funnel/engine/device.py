"""To a GPU and back, with one wait; and, where Triton is, gathering and multiplying there in one pass."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["fused_dots", "to_device", "to_host"]

# Rows and dims that one program reads at a time: 16 rows of 128 float16 are 4 KB, enough in flight to hide memory, and
# a shortlist of 64 still gives four programs a query.
BLOCK_ROWS, BLOCK_DIMS = 16, 128

Dots: TypeAlias = Callable[..., torch.Tensor]


@lru_cache(maxsize=1)
def fused_dots() -> Dots | None:
    """The function `dots` below; None where Triton is not installed."""
    try:
        kernel = importlib.import_module("funnel.engine.kernels").dots
    except ImportError:
        return None
    return _checked(_launcher(kernel)) if torch.cuda.is_available() else _launcher(kernel)


def _checked(dots: Dots) -> Dots | None:
    """The function, if it compiles here and a small product comes out right; None, and a warning, if not."""
    device = torch.device("cuda")
    matrix = torch.arange(96, device=device, dtype=torch.float16).view(2, 48) / 96
    query, rows = matrix[1:].float(), torch.tensor([[1, 0, 1]], device=device)
    expected = torch.mv(matrix.float(), query[0])[rows]
    try:
        right = torch.allclose(dots(matrix, None, query, rows, None, 0, 48), expected, rtol=1e-4)
        why = "" if right else "its products are wrong"
    except Exception as error:  # Triton raises errors of its own, of the compiler it calls, and of the driver
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        warnings.warn(f"reranking gathers and multiplies, as the Triton kernel cannot be used: {why}", stacklevel=3)
    return dots if right else None


def _launcher(kernel: Any) -> Dots:
    def dots(
        matrix: torch.Tensor,
        scales: torch.Tensor | None,
        queries: torch.Tensor,
        rows: torch.Tensor,
        partial: torch.Tensor | None,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Dot products over dims [start, stop) in float32, times the row's scale, added to `partial`.

        matrix: [n, d] of any type; scales: float32 [n] or None; queries: float32 [q, d]; rows: int64 [q, s];
        partial: float32 [q, s] or None. All row-major on one device. Returns float32 [q, s].
        """
        count, size = rows.shape
        result = torch.empty((count, size), dtype=torch.float32, device=rows.device)
        grid = (count, -(-size // BLOCK_ROWS))
        if count and size:
            kernel[grid](
                matrix,
                result if scales is None else scales,
                queries,
                rows.contiguous(),
                result if partial is None else partial,
                result,
                size,
                matrix.stride(0),
                queries.stride(0),
                start,
                WIDTH=stop - start,  # a handful in an index: one kernel each
                SCALED=scales is not None,
                ADDED=partial is not None,
                ROWS=BLOCK_ROWS,
                DIMS=BLOCK_DIMS,
            )
        return result

    return dots


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; from locked memory, so that the call returns before the copy has begun."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[npt.NDArray[Any]]:
    """Tensors of one device as arrays. All are copied first, and then waited for once."""
    device = tensors[0].device
    if device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    locked = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(locked, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return [np.array(here.numpy()) for here in locked]  # copied: locked memory is used again, and there is little of it
