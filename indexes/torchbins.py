"""A coarse index of torch alone: every prefix is compared, and the top-k runs in two stages, bins first."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from indexes._bins import BinnedTop, rows_of_a_bin
from indexes._devicerows import LONGEST_SHORTLIST, DeviceRows
from indexes._fusedbins import FusedBins, fused_bins, quicker

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
