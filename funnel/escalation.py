"""Which queries of a batch are hard, judged by the scores that a first plan found for them.

Two signals, both from the exact scores that the first plan has anyway. Closeness, the mean score of the top k: a query
far from every row has its neighbours all around it, where a graph or a list easily misses some. Margin, how far the
k-th score stands above the middle of the survivors beyond k: where it is small, rows that were missed are likely to
belong above it. Both are linear in the sorted scores, so that the rule is one product of a matrix and a vector.
Measured on 200,000 x 384 and 4,000 real queries (chance that a query with a recall@10 below .9 is judged harder than
another, at ef_search 24 to 128): closeness .85 to .89, depth of the final top k in the shortlist .76 to .80, margin
.63 to .80; closeness and margin, weighted on rows of the corpus, .87 to .92, and depth adds nothing to the two.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from funnel.plan import Escalation

__all__ = ["ease", "hard", "looked_at", "middle", "signals"]

Float32 = npt.NDArray[np.float32]


def middle(survivors: int, k: int) -> int:
    """The place, counted from 0 in falling order, of the score that the k-th is compared with; k - 1: no other."""
    return max(k - 1, (k + survivors) // 2 - 1)


def looked_at(survivors: int, k: int) -> int:
    """How many of the best scores the rule looks at."""
    return middle(survivors, k) + 1


def signals(scores: Float32, k: int) -> Float32:
    """Closeness and margin of each query: float32 [q, 2], not finite where candidates are missing.

    scores: float32 [q, looked_at], exact scores, falling.
    """
    with np.errstate(invalid="ignore"):
        margin = scores[:, k - 1] - scores[:, -1]
    return np.stack([scores[:, :k].mean(axis=1), margin], axis=1)


def ease(scores: Float32, k: int, closeness: float, margin: float) -> Float32:
    """The weighted sum of the signals: float32 [q], not finite where candidates are missing.

    scores: float32 [q, looked_at], exact scores, falling, -inf where there are fewer candidates.
    """
    weighted: Float32 = torch.mv(torch.from_numpy(scores), _weights(closeness, margin, scores.shape[1], k)).numpy()
    return weighted


def hard(escalation: Escalation, scores: Float32) -> npt.NDArray[np.bool_]:
    """Which queries go on: bool [q]. Those for which candidates are missing do. scores: as `ease` takes them."""
    judged = ease(scores, escalation.k, escalation.closeness, escalation.margin)
    easy: npt.NDArray[np.bool_] = (judged >= escalation.threshold) & (judged < np.inf)
    return ~easy


@lru_cache(maxsize=256)
def _weights(closeness: float, margin: float, count: int, k: int) -> torch.Tensor:
    """What `signals`, weighted, is as a product with the sorted scores: float32 [count]."""
    weights = torch.zeros(count, dtype=torch.float32)
    weights[:k] = closeness / k
    weights[k - 1] += margin
    weights[-1] -= margin
    return weights
