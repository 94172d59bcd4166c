"""A coarse index of torch alone: every prefix is compared, and the top-k runs in two stages.

The best few of each bin of rows come first, then the best of those. A sort of n scores a query is what a GPU is slowest
at. Cut into bins, the scores are read once; a few of each bin are left, and only these are sorted. What may be lost are
rows that share a bin with better ones. Chern et al. 2022, arXiv 2206.14286 (one of each bin); Samaga et al. 2025, arXiv
2506.04165 (several).
"""

import importlib
import time
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias

import torch

from indexes._devicerows import LONGEST_SHORTLIST, DeviceRows


def rows_of_a_bin(rows: int, bins: int) -> int:
    """How many rows a bin has when `rows` are cut into at most `bins` of one size; the last may be short."""
    return -(-rows // max(1, bins))


class BinnedTop:
    """Takes blocks of scores, one after the other, and gives the best rows among those that survive their bins.

    queries: how many; rows: of all blocks together; size: rows of a bin (every block but the last is a multiple of it);
    kept: of each bin. Survivors take queries x bins x kept x 8 bytes at most.
    """

    def __init__(self, queries: int, rows: int, size: int, kept: int, like: torch.Tensor) -> None:
        self._size, self._kept, self._last = size, min(kept, size), rows - 1
        width = -(-rows // size) * self._kept
        self._scores = torch.empty((queries, width), dtype=like.dtype, device=like.device)
        self._rows = torch.empty((queries, width), dtype=torch.int32, device=like.device)
        self._filled = 0

    def update(self, scores: torch.Tensor, first_row: int) -> None:
        """Keep the best of each bin of a block: scores [queries, c], overwritten; its rows begin at `first_row`.

        Row j of the block is in bin j mod (number of bins in it): neighbouring threads then read neighbouring scores.
        """
        count, size = scores.shape[1], self._size
        bins = -(-count // size)
        if count < bins * size:
            scores = torch.nn.functional.pad(scores, (0, bins * size - count), value=-torch.inf)
        layers = scores.view(len(scores), size, bins)
        own = torch.arange(first_row, first_row + bins, device=scores.device)
        for turn in range(self._kept):
            best, layer = layers.max(dim=1)
            if turn + 1 < self._kept:
                layers.scatter_(1, layer.unsqueeze(1), -torch.inf)
            place = slice(self._filled, self._filled + bins)
            self._scores[:, place] = best
            self._rows[:, place] = layer * bins + own
            self._filled += bins

    def best(self, shortlist: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [queries, s], falling, and rows int64 [queries, s] of the best, s <= shortlist.

        Where a score is -inf the row stands for none.
        """
        top, places = torch.topk(self._scores[:, : self._filled], min(shortlist, self._filled), dim=1)
        return top, self._rows.gather(1, places).long().clamp_(max=self._last)  # what fills up a bin is no row


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


# With 131,072 bins a shortlist of 1,024 keeps .996 of its rows in the mean (arXiv 2506.04165), one of 100 keeps .9996.
MOST_BINS = 131_072


class TorchBinsIndex(DeviceRows):
    """Prefix products in chunks, the best `kept` of each bin, then the best of those; effort is the number of bins.

    Settings: `kept`, rows that survive of each bin. Runs on CPU tensors too. arXiv 2506.04165.
    """

    name: ClassVar[str] = "torch-bins"
    default_settings: ClassVar[Mapping[str, int]] = {"kept": 1}
    settings_taken: ClassVar[Mapping[str, range]] = {"kept": range(1, 4_097)}

    def __init__(self, dim: int, **settings: int) -> None:
        super().__init__(dim, **settings)
        self._fused_is_quicker: dict[tuple[int, int], bool] = {}

    def efforts(self) -> tuple[int, ...]:
        """Numbers of bins, doubling, from those that the longest shortlist needs, to a bin for each row or the most."""
        count = max(1, self.ntotal)
        bins = -(-LONGEST_SHORTLIST // self._settings["kept"])
        result = []
        while bins < min(count, MOST_BINS):
            result.append(bins)
            bins *= 2
        return (*result, min(count, MOST_BINS))

    def _scan(
        self, queries: torch.Tensor, shortlist: int, effort: int, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = rows_of_a_bin(len(self._rows), effort)
        fused = self._fused(queries, shortlist, size) if mask is None and self._device.type == "cuda" else None
        if fused is not None:
            return self._best_of_bins(fused, queries, shortlist, size)
        return self._blockwise(queries, shortlist, size, mask)

    def _blockwise(
        self, queries: torch.Tensor, shortlist: int, size: int, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Products of a block of rows, then their bins, block by block."""
        top = BinnedTop(len(queries), len(self._rows), size, self._settings["kept"], queries)
        for start, products in self._blocks(queries, size):
            if mask is not None:
                products.masked_fill_(~mask[start : start + products.shape[1]], -torch.inf)
            top.update(products, start)
        return top.best(shortlist)

    def _best_of_bins(
        self, fused: FusedBins, queries: torch.Tensor, shortlist: int, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Products and bins in one pass: the same bins but for their order, and a few more of them."""
        scores, places = fused(queries, self._rows, size)
        top, at = torch.topk(scores, min(shortlist, scores.shape[1]), dim=1)
        return top, places.gather(1, at).long().clamp_(max=len(self._rows) - 1)

    def _fused(self, queries: torch.Tensor, shortlist: int, size: int) -> FusedBins | None:
        """The kernel for both, where there is one and it was quicker when it was tried for as many queries and bins."""
        fused = fused_bins() if self._settings["kept"] == 1 else None
        if fused is None or not len(queries):
            return None
        key = (len(queries).bit_length(), size)
        if key not in self._fused_is_quicker:
            self._fused_is_quicker[key] = quicker(
                lambda: self._best_of_bins(fused, queries, shortlist, size),
                lambda: self._blockwise(queries, shortlist, size, None),
            )
        return fused if self._fused_is_quicker[key] else None
