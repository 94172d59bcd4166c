"""Gather and dot product in one pass on a GPU: a row of a shortlist is read once, and only its score is written.

A gather followed by a matrix product moves each row four times: read, written, read again, and in float32. Written in
Triton, which comes with torch's CUDA builds; without it, and on the CPU, rerank gathers and multiplies.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import torch

__all__ = ["Dots", "fused_dots"]

# Rows and dims that one program reads at a time: 16 rows of 128 float16 are 4 KB, enough in flight to hide memory, and
# a shortlist of 64 still gives four programs a query.
BLOCK_ROWS, BLOCK_DIMS = 16, 128

Dots: TypeAlias = Callable[..., torch.Tensor]


@lru_cache(maxsize=1)
def fused_dots() -> Dots | None:
    """The function `dots` below; None where Triton is not installed."""
    try:
        kernel = importlib.import_module("funnel.kernels").dots
    except ImportError:
        return None

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
