"""What each stage costs on this machine, measured at three batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from funnel.plan import Plan

__all__ = ["BATCH_SIZES", "Costs", "Ms", "Positive", "batch_class", "fit_rising"]

Ms = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**40)]

BATCH_SIZES = (1, 32, 256)


def batch_class(n_queries: int) -> int:
    """The batch size that stands for a call of n_queries: the next larger measured one, then powers of two."""
    for size in BATCH_SIZES:
        if size >= n_queries:
            return size
    return 1 << (n_queries - 1).bit_length()


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one call, by batch size.

    coarse: batch -> effort -> ms. rerank: batch -> columns gathered -> ms at each of `sizes` candidates; empty where
    the coarse index gives exact scores and nothing is reranked.
    flat: batch -> ms. base: batch -> ms that every call takes besides (checks, adaptor, ids).
    """

    machine: dict[str, str]
    sizes: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=64)]
    coarse: dict[int, dict[int, Ms]]
    rerank: dict[int, dict[int, list[Ms]]]
    flat: dict[int, Ms]
    base: dict[int, Ms]

    def check(self) -> None:
        """ValueError unless every table has every batch size, and those of coarse search the same efforts."""
        for name in ("coarse", "rerank", "flat", "base"):
            if set(getattr(self, name)) != set(BATCH_SIZES):
                raise ValueError(f"{name} is not of the batch sizes {list(BATCH_SIZES)}")
        if len({tuple(sorted(table)) for table in self.coarse.values()}) != 1:
            raise ValueError("coarse has other efforts for another batch size")
        if any(len(ms) != len(self.sizes) for table in self.rerank.values() for ms in table.values()):
            raise ValueError(f"rerank has lists of another length than the {len(self.sizes)} sizes")
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes is {list(self.sizes)}, which does not rise")

    @property
    def reranked(self) -> bool:
        """Whether plans rerank what the coarse index finds."""
        return any(self.rerank.values())

    def predict(self, plan: Plan, batch: int, dim: int) -> float:
        """Predicted milliseconds of one call of `batch` queries (a batch class) under the plan."""
        return sum(self.stages(plan, batch, dim)) + self.base[min(batch, BATCH_SIZES[-1])] * self._times(batch)

    def stages(self, plan: Plan, batch: int, dim: int) -> list[float]:
        """Predicted milliseconds of each step of a plan."""
        if batch > BATCH_SIZES[-1]:
            return [ms * self._times(batch) for ms in self.stages(plan, BATCH_SIZES[-1], dim)]
        if plan.is_flat:
            return [self.flat[batch]]
        result = [self.coarse[batch][plan.effort]]
        candidates, start = plan.shortlist, 0
        for stage in plan.reranks:
            width, keep = (dim, 0) if stage is None else (stage.width, stage.keep)
            result.append(self._rerank(batch, candidates, width - start))
            candidates, start = keep, width
        return result

    @staticmethod
    def _times(batch: int) -> float:
        """Above the largest measured one a batch costs in proportion."""
        return max(1.0, batch / BATCH_SIZES[-1])

    def _rerank(self, batch: int, candidates: int, columns: int) -> float:
        key = (batch, candidates, columns)
        if key not in self._reranks:
            table = self.rerank[batch]
            widths = sorted(table)
            beyond = max(1.0, candidates / self.sizes[-1])
            at_width = [float(np.interp(candidates, self.sizes, table[width])) * beyond for width in widths]
            self._reranks[key] = float(np.interp(columns, widths, at_width)) if table else 0.0
        return self._reranks[key]

    @cached_property
    def _reranks(self) -> dict[tuple[int, int, int], float]:
        """What was worked out, as it is asked for again and again."""
        return {}


def fit_rising(at: Sequence[float], ms: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """The values at `wanted` of a smooth, rising curve through measured times.

    a + b sqrt(x) + c x + d x log2(x), none of them negative, by least squares of the relative errors. at: above 0.
    """
    x, y = np.asarray(at, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    design = _terms(x) / y[:, None]
    best, error = np.zeros(design.shape[1]), np.inf
    for size in range(1, min(len(x), design.shape[1]) + 1):
        for chosen in combinations(range(design.shape[1]), size):
            weights = np.linalg.lstsq(design[:, chosen], np.ones(len(x)), rcond=None)[0]
            misfit = float(np.square(design[:, chosen] @ weights - 1.0).sum())
            if (weights >= 0).all() and misfit < error:
                best, error = np.zeros(design.shape[1]), misfit
                best[list(chosen)] = weights
    fitted: list[float] = (_terms(np.asarray(wanted, dtype=np.float64)) @ best).tolist()
    return fitted


def _terms(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([np.ones_like(x), np.sqrt(x), x, x * np.log2(x + 1.0)], axis=1)
