"""What a search gives back: hits or arrays, and how they were found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan

__all__ = ["Answers", "Hit", "Hits", "Served"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: the user's id, the cosine to the query, and the document where the index holds one."""

    id: str | int
    score: float
    title: str = ""
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """How a call was answered.

    plan: what was run, or begun. estimated_recall: mean recall@k of what was done of it on the calibration queries;
    NaN where it was not measured. void: whether live searches had shown by then that the estimate does not hold for
    them (see `FunnelIndex.health`). skipped: steps that a deadline left out; in a batch the most of any query.
    rows_seen: the share of the rows that flat search compared; less than 1 where a deadline stopped it, and then the
    estimate too.
    """

    plan: Plan
    estimated_recall: float
    void: bool = False
    skipped: int = 0
    rows_seen: float = 1.0
    allowed_rows: int | None = None

    @property
    def stages(self) -> int:
        """Steps of the whole plan: the coarse search, each stage and the exact one; flat search is one."""
        return self.plan.steps

    @property
    def stages_done(self) -> int:
        """Steps that were done."""
        return self.stages - self.skipped

    @property
    def complete(self) -> bool:
        """Whether every step was done; if not, `score` is the cosine on the prefix of the last one that was."""
        return self.skipped == 0

    def to_json(self) -> dict[str, Any]:
        """The record as plain values; an estimate that was not measured is None."""
        known = self.estimated_recall == self.estimated_recall
        return {
            "plan": self.plan.to_json(),
            "estimated_recall": self.estimated_recall if known else None,
            "stages_done": self.stages_done,
            "stages": self.stages,
            "complete": self.complete,
            "rows_seen": self.rows_seen,
            "void": self.void,
            "allowed_rows": self.allowed_rows,
        }

    def __str__(self) -> str:
        said = f"{self.plan}: {self._how_far}estimated recall {self.estimated_recall:.4f}"
        if self.allowed_rows is None:
            return said
        basis = "exact" if self.plan.is_flat else "measured under this filter, not certified"
        return f"{said} among {self.allowed_rows:,} allowed rows ({basis})"

    @property
    def _how_far(self) -> str:
        if self.complete:
            return ""
        what = f"{self.rows_seen:.0%} of the rows" if self.plan.is_flat else f"step {self.stages_done} of {self.stages}"
        return f"stopped after {what}, "


class Hits(list[Hit]):
    """The hits of one query, best first; `served` says how they were found."""

    __slots__ = ("served",)

    def __init__(self, hits: Iterable[Hit], served: Served) -> None:
        super().__init__(hits)
        self.served = served


class Answers(tuple[npt.NDArray[Any], npt.NDArray[np.float32]]):
    """(ids [n_queries, k], scores float32 [n_queries, k]); `served` says how they were found."""

    served: Served

    def __new__(cls, ids: npt.NDArray[Any], scores: npt.NDArray[np.float32], served: Served) -> Answers:
        """A pair that carries `served`."""
        pair = super().__new__(cls, (ids, scores))
        pair.served = served
        return pair

    @property
    def ids(self) -> npt.NDArray[Any]:
        """int64, or str in an object array: [n_queries, k], best first."""
        return self[0]

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Cosines, float32 [n_queries, k], falling."""
        return self[1]
