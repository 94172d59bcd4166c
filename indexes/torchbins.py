"""A coarse index of torch alone: every prefix is compared, and the top-k runs in two stages, bins first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from indexes._bins import BinnedTop, expected_recall, rows_of_a_bin
from indexes._devicerows import LONGEST_SHORTLIST, DeviceRows
from indexes.base import register
from indexes.errors import CoarseIndexError

__all__ = ["TorchBinsIndex"]

# With 131,072 bins a shortlist of 1,024 keeps .996 of its rows in the mean (`expected_recall`), one of 100 keeps .9996.
MOST_BINS = 131_072


@register
class TorchBinsIndex(DeviceRows):
    """Prefix products in chunks, the best `kept` of each bin, then the best of those; effort is the number of bins.

    Settings: `kept`, rows that survive of each bin. Runs on CPU tensors too. arXiv 2506.04165.
    """

    name: ClassVar[str] = "torch-bins"
    default_settings: ClassVar[Mapping[str, int]] = {"kept": 1}
    recordable: ClassVar[bool] = True

    @classmethod
    def complete_settings(cls, settings: Mapping[str, int]) -> dict[str, int]:
        """`settings` with the defaults filled in; CoarseIndexError for values that are out of range."""
        complete = super().complete_settings(settings)
        if complete["kept"] < 1:
            raise CoarseIndexError(f"setting kept of {cls.name} is {complete['kept']}; give a whole number >= 1")
        return complete

    def efforts(self) -> tuple[int, ...]:
        """Numbers of bins, doubling, from those that the longest shortlist needs, to a bin for each row or the most."""
        count = max(1, self.ntotal)
        bins = -(-LONGEST_SHORTLIST // self._settings["kept"])
        result = []
        while bins < min(count, MOST_BINS):
            result.append(bins)
            bins *= 2
        return (*result, min(count, MOST_BINS))

    def expected_recall(self, shortlist: int, effort: int) -> float:
        """The expected share of the best `shortlist` prefixes that bins let through at `effort`; see `_bins`."""
        return expected_recall(self.ntotal, effort, self._settings["kept"], min(shortlist, self.ntotal))

    def _scan(
        self, queries: torch.Tensor, shortlist: int, effort: int, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = rows_of_a_bin(len(self._rows), effort)
        top = BinnedTop(len(queries), len(self._rows), size, self._settings["kept"], queries)
        for start, products in self._blocks(queries, size):
            if mask is not None:
                products.masked_fill_(~mask[start : start + products.shape[1]], -torch.inf)
            top.update(products, start)
        return top.best(shortlist)
