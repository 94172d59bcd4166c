"""What each stage costs on this machine, measured at three batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan

__all__ = ["BATCH_SIZES", "Costs", "Prices", "batch_class", "fit_rising"]

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
    sizes: tuple[int, ...]
    coarse: dict[int, dict[int, float]]
    rerank: dict[int, dict[int, list[float]]]
    flat: dict[int, float]
    base: dict[int, float]

    @property
    def reranked(self) -> bool:
        """Whether plans rerank what the coarse index finds."""
        return any(self.rerank.values())

    def predict(self, plan: Plan, batch: int, dim: int) -> float:
        """Predicted milliseconds of one call of `batch` queries (a batch class) under the plan."""
        return sum(self.stages(plan, batch, dim)) + self._scaled(self.base, batch)

    def stages(self, plan: Plan, batch: int, dim: int) -> list[float]:
        """Predicted milliseconds of each step of a plan."""
        if batch > BATCH_SIZES[-1]:  # above the largest measured one a batch costs in proportion
            return [ms * batch / BATCH_SIZES[-1] for ms in self.stages(plan, BATCH_SIZES[-1], dim)]
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
    def _scaled(table: dict[int, float], batch: int) -> float:
        return table[batch] if batch in table else table[BATCH_SIZES[-1]] * batch / BATCH_SIZES[-1]

    def _rerank(self, batch: int, candidates: int, columns: int) -> float:
        table = self.rerank[batch]
        if not table:
            return 0.0
        widths = sorted(table)
        at_width = [float(np.interp(candidates, self.sizes, table[width])) for width in widths]
        if candidates > self.sizes[-1]:
            at_width = [value * candidates / self.sizes[-1] for value in at_width]
        return float(np.interp(columns, widths, at_width))

    def to_json(self) -> dict[str, Any]:
        """The costs as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Costs:
        """The costs that `to_json` wrote."""
        return cls(
            machine=dict(value["machine"]),
            sizes=tuple(value["sizes"]),
            coarse={int(b): {int(e): ms for e, ms in t.items()} for b, t in value["coarse"].items()},
            rerank={int(b): {int(w): list(ms) for w, ms in t.items()} for b, t in value["rerank"].items()},
            flat={int(b): ms for b, ms in value["flat"].items()},
            base={int(b): ms for b, ms in value["base"].items()},
        )


class Prices:
    """Predicted milliseconds of one call under a plan, at every measured batch size; each step is worked out once."""

    batches = BATCH_SIZES

    def __init__(self, costs: Costs, dim: int) -> None:
        self._costs, self._dim = costs, dim
        self._reranks: dict[tuple[int, int], tuple[float, ...]] = {}

    def of(self, plan: Plan) -> tuple[float, ...]:
        """As `Costs.predict`, of a plan that is not flat."""
        return self.until(plan, self._dim)

    def until(self, plan: Plan, width: int) -> tuple[float, ...]:
        """Of the coarse search, the stages, and one rerank more, of what they leave, up to this width."""
        total = tuple(self._costs.coarse[batch][plan.effort] + self._costs.base[batch] for batch in self.batches)
        candidates, start = plan.shortlist, 0
        for end, keep in [*((stage.width, stage.keep) for stage in plan.stages), (width, 0)]:
            total = tuple(map(sum, zip(total, self._rerank(candidates, end - start), strict=True)))
            candidates, start = keep, end
        return total

    def _rerank(self, candidates: int, columns: int) -> tuple[float, ...]:
        key = (candidates, columns)
        if key not in self._reranks:
            self._reranks[key] = tuple(self._costs._rerank(batch, candidates, columns) for batch in self.batches)
        return self._reranks[key]


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
