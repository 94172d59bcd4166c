"""The calibration's queries as a sample on which plans are measured under a filter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

from funnel.budget import Budget
from funnel.engine.allowed import AllowedRows
from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.rerank import carry_on, rows_at_a_time
from funnel.planning.calibration import TIE_TOLERANCE, Run
from funnel.planning.frontier import hits_needed

__all__ = ["MOST", "FilterSample"]

# Queries drawn at random, on which the recall is judged: enough to see .95 to within .005 (standard error).
AT_RANDOM = 448
# Besides, so many of those nearest to allowed rows, and of those farthest: a filter may come with queries of one kind.
EXTREME = 64
MOST = AT_RANDOM + 2 * EXTREME
NEAREST = 100  # neighbours by which it is judged how near a query is to allowed rows


@dataclass(frozen=True)
class FilterSample:
    """Queries and their true neighbours among the allowed rows.

    queries: float32 [q, d] as the cascade takes them: those at random, those nearest to allowed rows, those farthest;
    `groups` says which are which. own: int64 [q], the stored row that a query is, or -1. truth: float32 [q], the k-th
    true score.
    """

    queries: Float32
    own: Int64
    groups: tuple[slice, ...]
    truth: Float32
    k: int

    @classmethod
    def draw(cls, run: Run, allowed: AllowedRows, k: int, seed: int = 0) -> FilterSample:
        """Draw queries of a recorded run and find their true k among the allowed rows, their own row left out."""
        near = _nearness(run, allowed)
        shuffled = np.random.default_rng(seed).permutation(len(near))
        random, rest = shuffled[:AT_RANDOM], shuffled[AT_RANDOM:]
        rest = rest[np.argsort(near[rest], kind="stable")]
        extreme = min(EXTREME, len(rest) // 2)
        drawn = np.concatenate([random, rest[len(rest) - extreme :], rest[:extreme]])
        edges = np.cumsum([0, len(random), extreme, extreme]).tolist()
        groups = tuple(slice(a, b) for a, b in pairwise(edges) if b > a)
        queries = np.ascontiguousarray(run.queries[drawn])
        own = np.asarray(run.own_rows[drawn])
        beside = int((own >= 0).any())
        found = allowed.exact(queries, min(k + beside, len(allowed)))
        scores = np.where(found.rows == own[:, None], -np.inf, found.scores) if beside else found.scores
        truth = -np.sort(-scores, axis=1)[:, :k]
        return cls(queries, own, groups, np.ascontiguousarray(truth[:, -1]), k)

    def scored(self, cascade: Cascade, rows: Int64) -> Float32:
        """Exact scores of shortlists int64 [q, s]: float32 [q, s], -inf where there is no row or the query's own."""
        store, asked = cascade.store, cascade.as_stored(self.queries)
        result = np.empty(rows.shape, dtype=np.float32)
        at_a_time = rows_at_a_time(rows.shape[1], store.dim, store.device)
        with torch.inference_mode():
            for start in range(0, len(rows), at_a_time):
                part = slice(start, start + at_a_time)
                query, found = cascade.tensors(asked[part], np.ascontiguousarray(rows[part]))
                scores = carry_on(store, query, found.clamp(min=0), None, 0, store.dim)
                result[part] = scores.masked_fill(found < 0, -torch.inf).cpu().numpy()
        result[rows == self.own[:, None]] = -np.inf
        return result

    def hits(self, scores: Float32) -> npt.NDArray[np.int64]:
        """How many of the true k stand in shortlists with these scores, of each query: int64 [q], 0..k.

        A query with fewer than k candidates has them all: it is answered exactly.
        """
        enough = np.isfinite(scores).sum(axis=1) >= self.k
        found = (scores >= self.truth[:, None] - TIE_TOLERANCE).sum(axis=1).clip(max=self.k)
        return np.where(enough, found, self.k)

    def values(self, hits: npt.NDArray[np.int64], budget: Budget) -> npt.NDArray[np.float64]:
        """What the budget is about: each query's recall, or, for a share of queries, whether it gets the recall."""
        if budget.share is None or budget.recall is None:
            return hits / self.k
        return (hits >= hits_needed(budget.recall, self.k)).astype(np.float64)


def _nearness(run: Run, allowed: AllowedRows) -> npt.NDArray[np.float64]:
    """The share of each query's nearest recorded neighbours that are allowed: float64 [q]."""
    nearest = np.asarray(run.candidates[:, :NEAREST])
    share: npt.NDArray[np.float64] = (allowed.mask[nearest] & (nearest >= 0)).mean(axis=1)
    return share
