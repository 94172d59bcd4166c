"""Figures on held-out queries, width by width: share of the true neighbours in a shortlist, and nDCG@10."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from funnel.adaptors.judgements import Judged
from funnel.adaptors.neighbours import nearest, scaled

__all__ = ["DEPTH", "HeldOutJudged", "HeldOutRows", "Map", "ndcg", "own_rows"]

Map: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""[n, d] -> [n, w], w at least the widest width that is looked at."""

DEPTH = 10  # true neighbours looked for
SHORTLIST = 50  # the shortlist they are looked for in, on corpora of 5,000 rows and more
SHORTLIST_SHARE = 0.01  # the same on smaller ones: a shortlist of a tenth of the corpus would tell nothing apart
ROWS_AT_A_TIME = 8_192  # mapped at once
# A document that equals the query (a verse looked up in its own book) answers nothing: it is left out of rankings.
SAME = 0.9999


@dataclass(frozen=True)
class HeldOutRows:
    """Rows kept from training, as queries against the rows that are trained on.

    Attributes:
        queries: float32 [h, d].
        rows: float32 [n, d].
        truth: int64 [h, depth], each query's neighbours at full width.
        shortlist: how many rows each width may offer.
    """

    queries: torch.Tensor
    rows: torch.Tensor
    truth: torch.Tensor
    shortlist: int

    @classmethod
    def of(cls, queries: torch.Tensor, rows: torch.Tensor) -> HeldOutRows:
        """Find the truth. Both [., d], unit rows."""
        depth = min(DEPTH, len(rows))
        shortlist = min(SHORTLIST, max(depth, round(SHORTLIST_SHARE * len(rows))))
        return cls(queries, rows, nearest(queries, rows, depth)[1], shortlist)

    def per_query(self, project: Map, widths: Sequence[int]) -> dict[int, torch.Tensor]:
        """For each width the share of each query's true neighbours inside the shortlist, float32 [h]."""
        with torch.inference_mode():
            queries, rows = project(self.queries), _mapped(project, self.rows, max(widths))
            shares = {}
            for width in widths:
                found = nearest(scaled(queries[:, :width]), scaled(rows[:, :width]), self.shortlist)[1]
                shares[width] = (self.truth[:, :, None] == found[:, None, :]).any(2).float().mean(1)
        return shares

    def figures(self, project: Map, widths: Sequence[int]) -> dict[int, float]:
        """The means of `per_query`."""
        return {width: float(share.mean()) for width, share in self.per_query(project, widths).items()}


@dataclass(frozen=True)
class HeldOutJudged:
    """Judged queries kept from training. rows: all documents, float32 [n, d]."""

    judged: Judged
    rows: torch.Tensor

    def per_query(self, project: Map, widths: Sequence[int]) -> dict[int, torch.Tensor]:
        """For each width each query's nDCG@10 when all documents are ranked by that prefix, float32 [h]."""
        queries = self.judged.queries
        with torch.inference_mode():
            own = own_rows(queries, self.rows)
            mapped, rows = project(queries), _mapped(project, self.rows, max(widths))
            figures = {}
            for width in widths:
                depth = min(DEPTH + 1, len(rows))
                found = nearest(scaled(mapped[:, :width]), scaled(rows[:, :width]), depth)[1]
                figures[width] = ndcg(found, own, self.judged)
        return figures

    def figures(self, project: Map, widths: Sequence[int]) -> dict[int, float]:
        """The means of `per_query`."""
        return {width: float(values.mean()) for width, values in self.per_query(project, widths).items()}


def ndcg(found: torch.Tensor, own: torch.Tensor, judged: Judged, depth: int = DEPTH) -> torch.Tensor:
    """nDCG@depth of rankings, linear gain and log2 discount as trec_eval computes it: float32 [q].

    found: int64 [q, at least depth + 1], best first. own: int64 [q], a document left out of each ranking unless it is
    judged itself, or -1.
    """
    discounts = 1.0 / torch.log2(torch.arange(2, depth + 2, dtype=torch.float64))
    values = torch.zeros(len(found), dtype=torch.float32)
    for i, (documents, grades) in enumerate(zip(judged.documents, judged.grades, strict=True)):
        left_out = -1 if own[i] in documents else int(own[i])
        ranking = found[i][found[i] != left_out][:depth]
        gains = ((ranking[:, None] == documents[None, :]) * grades.double()[None, :]).sum(1)
        ideal = grades.double().sort(descending=True).values[:depth]
        best = float((ideal * discounts[: len(ideal)]).sum())
        values[i] = float((gains * discounts[: len(gains)]).sum()) / best if best > 0 else 0.0
    return values


def own_rows(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """For each query the row that equals it, or -1."""
    scores, found = nearest(queries, rows, 1)
    return torch.where(scores[:, 0] >= SAME, found[:, 0], -1)


def _mapped(project: Map, rows: torch.Tensor, width: int) -> torch.Tensor:
    """The first dims of all rows, mapped block by block: [n, width]."""
    mapped = torch.empty((len(rows), width), dtype=rows.dtype, device=rows.device)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        mapped[start : start + ROWS_AT_A_TIME] = project(rows[start : start + ROWS_AT_A_TIME])[:, :width]
    return mapped
