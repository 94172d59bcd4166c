"""Two-stage top-k: the best few of each bin of rows, then the best of those.

A sort of n scores a query is what a GPU is slowest at. Cut into bins, the scores are read once; a few of each bin are
left, and only these are sorted. What may be lost are rows that share a bin with better ones. Chern et al. 2022, arXiv
2206.14286 (one of each bin); Samaga et al. 2025, arXiv 2506.04165 (several).
"""

import torch


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


class ExactTop:
    """Takes blocks of scores, one after the other, and gives the best rows of all: a sort of every block."""

    def __init__(self, shortlist: int) -> None:
        self._shortlist = shortlist
        self._best: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, scores: torch.Tensor, first_row: int) -> None:
        """Look at a block: scores [queries, c]; its rows begin at `first_row`."""
        found, places = torch.topk(scores, min(self._shortlist, scores.shape[1]), dim=1)
        rows = places + first_row
        if self._best is not None:
            found, rows = torch.cat([self._best[0], found], dim=1), torch.cat([self._best[1], rows], dim=1)
            found, places = torch.topk(found, min(self._shortlist, found.shape[1]), dim=1)
            rows = rows.gather(1, places)
        self._best = found, rows

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [queries, s], falling, and rows int64 [queries, s], s <= shortlist."""
        assert self._best is not None, "asked before any block was given"
        return self._best
