"""Exact neighbours among rows in memory, block by block."""

from __future__ import annotations

import torch

__all__ = ["nearest", "scaled"]

SCORES_AT_A_TIME = 6_291_456  # 25 MB as float32


def scaled(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [..., m] scaled to unit length; zero vectors stay zero."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def nearest(
    queries: torch.Tensor, rows: torch.Tensor, k: int, own: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k rows of the largest dot product, best first.

    queries: [q, m]. rows: [n, m]. own: int64 [q], a row to leave out for each query. Returns scores [q, k] and row
    numbers int64 [q, k].
    """
    size = max(1, SCORES_AT_A_TIME // len(rows))
    scores = torch.empty((len(queries), k), dtype=queries.dtype, device=queries.device)
    found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        products = queries[part] @ rows.T
        if own is not None:
            products.scatter_(1, own[part, None], -torch.inf)
        torch.topk(products, k, dim=1, out=(scores[part], found[part]))
    return scores, found
