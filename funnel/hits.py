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

    plan: what was run. estimated_recall: mean recall@k of it on the calibration queries; NaN where it was not measured.
    void: whether live searches had shown by then that the estimate does not hold for them (see `FunnelIndex.health`).
    """

    plan: Plan
    estimated_recall: float
    void: bool = False


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
