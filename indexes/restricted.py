"""A coarse index that returns allowed rows only, for families that cannot prepare a filter themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from indexes.base import CoarseIndex, Float32Array, Int64Array, Mask

__all__ = ["RestrictedIndex", "only_allowed"]


class RestrictedIndex:
    """Everything as the index has it, but for `search` and `search_tensors`.

    A family that filters does so itself. One that cannot is asked for as many rows as the effort finds, and those that
    are not allowed are dropped: a filter that leaves few rows then leaves few results.
    """

    def __init__(self, index: CoarseIndex, mask: Mask) -> None:
        self._of = index
        self._mask = mask

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def search_tensors(
        self, queries: torch.Tensor, shortlist: int, effort: int, allowed: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CoarseIndex.search_tensors`."""
        if self._of.supports_filter:
            mask = torch.from_numpy(self._mask).to(queries.device)
            return self._of.search_tensors(queries, shortlist, effort, mask)
        scores, rows = self.search(queries.cpu().numpy(), shortlist, effort)
        return torch.from_numpy(scores).to(queries.device), torch.from_numpy(rows).to(queries.device)

    def search(self, queries: Float32Array, shortlist: int, effort: int) -> tuple[Float32Array, Int64Array]:
        """See `CoarseIndex.search`."""
        if self._of.supports_filter:
            return self._of.search(queries, shortlist, effort, self._mask)
        scores, rows = self._of.search(queries, max(shortlist, self._of.largest_shortlist(effort)), effort)
        scores, rows = only_allowed(scores, rows, self._mask)
        return scores[:, :shortlist], rows[:, :shortlist]


def only_allowed(scores: Float32Array, rows: Int64Array, mask: Mask) -> tuple[Float32Array, Int64Array]:
    """Scores and rows [n, s] without those that mask, bool [all rows], leaves out: the others move up, in their order.

    -inf and -1 stand at the end.
    """
    dropped = ~mask[rows] | (rows < 0)
    if not dropped.any():
        return scores, rows
    order = np.argsort(dropped, axis=1, kind="stable")
    dropped = np.take_along_axis(dropped, order, axis=1)
    scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
    scores[dropped], rows[dropped] = -np.inf, -1
    return scores, rows
