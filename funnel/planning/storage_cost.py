"""What storing rows in fewer bits costs: recall of exact search over the rows as stored, against the rows as given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.planning.bounds import betting_lower_bound
from funnel.planning.run import TIE_TOLERANCE

__all__ = ["EXACT_ENOUGH", "SHARE_OF_DELTA", "StorageCost"]

# Exact search over stored rows is called exact where it keeps this share of the true top k of the rows as given: of
# 1,000 queries it then misses 5 of 10,000 neighbours.
EXACT_ENOUGH = 0.9995
# Of delta, for the bound on what storage costs, where it is taken off another bound: the two hold together.
SHARE_OF_DELTA = 0.1


@dataclass(frozen=True)
class StorageCost:
    """Exact search over the rows as stored, judged by the rows as given.

    found: float32 [q, depth], true scores (by the rows as given) of the best stored rows, in their stored order.
    truth: float32 [q, depth], the best true scores, falling.
    """

    found: npt.NDArray[np.float32]
    truth: npt.NDArray[np.float32]

    @property
    def depth(self) -> int:
        """The largest k that was measured; it stands for every larger one."""
        return int(self.found.shape[1])

    def kept(self, k: int) -> npt.NDArray[np.float64]:
        """The share of each query's true top k that exact search over the stored rows returns: float64 [q]."""
        k = min(k, self.depth)
        true = self.found[:, :k] >= self.truth[:, k - 1 : k] - TIE_TOLERANCE
        kept: npt.NDArray[np.float64] = true.mean(axis=1, dtype=np.float64)
        return kept

    def exact(self, k: int) -> bool:
        """Whether that is called exact: see EXACT_ENOUGH."""
        return bool(self.kept(k).mean() >= EXACT_ENOUGH)

    def loss(self, k: int, delta: float, whole: bool = False) -> tuple[float, float]:
        """How much recall@k storage costs: the mean, and what it is at most with confidence 1 - delta.

        whole: of the share of queries that lose anything at all, in place of the mean recall.
        A plan that returns S of the stored top k returns at least S less what storage lost of the true top k.
        """
        kept = self.kept(k)
        if whole:
            kept = (kept >= 1.0).astype(np.float64)
        return float(1.0 - kept.mean()), 1.0 - betting_lower_bound(kept, delta)
