"""Products and bins in one pass on a GPU: the products stay in registers, and only the best of each bin is written.

Apart, the products of 1,024 queries and 10 million prefixes are 20 GB, written once and read once; here they are none.
"""

import importlib
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import torch

# Of one program: products [64, 128] and what is kept of them take 96 registers of each of 256 threads.
QUERIES_A_PROGRAM, FEWEST_QUERIES, BINS_A_PROGRAM = 64, 16, 128
STEP = 64  # dims of one matrix instruction's operands; a shorter prefix is filled up with zeros
WARPS = 8
TIMED = 3

FusedBins: TypeAlias = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


@lru_cache(maxsize=1)
def fused_bins() -> FusedBins | None:
    """The function `best_of_bins` below; None where Triton is not installed, or its kernel cannot be used here."""
    try:
        kernel = importlib.import_module("indexes._kernels").binned
    except ImportError:
        return None
    return _checked(_launcher(kernel)) if torch.cuda.is_available() else _launcher(kernel)


def _launcher(kernel: Any) -> FusedBins:
    def best_of_bins(queries: torch.Tensor, rows: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best product of each query with each bin of `size` rows: scores float32 and places int32 [q, bins].

        queries: [q, dim], rows: [n, dim], of one type, row-major, on one device. Bins without a row have -inf.
        """
        count, dim = queries.shape
        groups = -(-len(rows) // (BINS_A_PROGRAM * size))
        bins = groups * BINS_A_PROGRAM
        scores = torch.empty((count, bins), dtype=torch.float32, device=rows.device)
        places = torch.empty((count, bins), dtype=torch.int32, device=rows.device)
        block = min(QUERIES_A_PROGRAM, max(FEWEST_QUERIES, 1 << (count - 1).bit_length()))
        kernel[(-(-count // block), groups)](
            queries.contiguous(),
            rows,
            scores,
            places,
            count,
            len(rows),
            bins,
            size,
            DIM=dim,
            QUERIES=block,
            BINS=BINS_A_PROGRAM,
            STEP=STEP,
            num_warps=WARPS,
        )
        return scores, places

    return best_of_bins


def _checked(best_of_bins: FusedBins) -> FusedBins | None:
    """The function, if it compiles here and small products come out right; None, and a warning, if not."""
    generator = torch.Generator("cuda").manual_seed(0)
    queries, rows = (torch.randn(n, 96, generator=generator, device="cuda").half() for n in (20, 700))
    try:
        scores, places = best_of_bins(queries, rows, 3)
        expected = (queries.float() @ rows.float().T).gather(1, places.clamp(max=len(rows) - 1).long())
        filled = ~scores.isneginf()
        right = bool(filled.any()) and torch.allclose(scores[filled], expected[filled], atol=1e-2, rtol=1e-2)
        why = "" if right else "its products are wrong"
    except Exception as error:  # Triton raises errors of its own, of the compiler it calls, and of the driver
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        warnings.warn(f"bins are filled after the products, as the Triton kernel cannot be used: {why}", stacklevel=3)
    return best_of_bins if right else None


def quicker(first: Callable[[], object], second: Callable[[], object]) -> bool:
    """Whether the first call takes the device less time than the second: the medians of a few, after one of each."""
    medians = []
    for call in (first, second):
        call()
        times = []
        for _ in range(TIMED):
            torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        medians.append(sorted(times)[TIMED // 2])
    return medians[0] < medians[1]
