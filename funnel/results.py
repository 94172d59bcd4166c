"""What a search gives back: hits or arrays, and how they were found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.engine.segments import Documents
from funnel.plan import Plan
from funnel.storage.ids import Ids, JoinedIds

__all__ = ["Answers", "Hit", "Hits", "Ranks", "Served", "make_hits"]

BM25_ALONE = "words alone, by BM25"


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where a hit of a hybrid search stood in the two lists, from 1, and its scores there; None where it was not."""

    dense: int | None = None
    cosine: float | None = None
    lexical: int | None = None
    bm25: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: the user's id, the cosine to the query, and the document where the index holds one.

    Of a hybrid search the score is the sum of weighted reciprocal ranks, at most 1/61, and `ranks` says what it came
    from; else that is None.
    """

    id: str | int
    score: float
    title: str = ""
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """How a call was answered.

    plan: what was run, or begun. estimated_recall: mean recall@k of what was done of it on the calibration queries;
    NaN where it was not measured. void: whether live searches had shown by then that the estimate does not hold for
    them, or rows were added whose own coarse index was not measured (see `FunnelIndex.health`). skipped: steps that a
    deadline left out; in a batch the most of any query.
    rows_seen: the share of the rows that flat search compared; less than 1 where a deadline stopped it, and then the
    estimate too. lexical: of a hybrid search, whose other fields speak of its dense list: whether BM25 was done by the
    deadline; else None. dense: False where BM25 alone was asked for: no plan was run, and nothing estimated.
    """

    plan: Plan
    estimated_recall: float
    void: bool = False
    skipped: int = 0
    rows_seen: float = 1.0
    lexical: bool | None = None
    allowed_rows: int | None = None
    dense: bool = True

    @property
    def stages(self) -> int:
        """Steps of the whole plan: see `Plan.steps`."""
        return self.plan.steps if self.dense else 0

    @property
    def stages_done(self) -> int:
        """Steps that were done."""
        return self.stages - self.skipped

    @property
    def complete(self) -> bool:
        """Whether every step was done; if not, `score` is the cosine on the prefix of the last one that was."""
        return self.skipped == 0 and self.lexical is not False

    def to_json(self) -> dict[str, Any]:
        """The record as plain values; an estimate that was not measured is None."""
        known = self.estimated_recall == self.estimated_recall
        hybrid = {} if self.lexical is None else {"lexical": self.lexical}
        return {
            "plan": self.plan.to_json() if self.dense else None,
            "estimated_recall": self.estimated_recall if known else None,
            "stages_done": self.stages_done,
            "stages": self.stages,
            "complete": self.complete,
            "rows_seen": self.rows_seen,
            "void": self.void,
            **hybrid,
            "allowed_rows": self.allowed_rows,
        }

    def __str__(self) -> str:
        if not self.dense:
            among = "" if self.allowed_rows is None else f" among {self.allowed_rows:,} allowed rows"
            return f"{BM25_ALONE}{among}{'' if self.complete else ', stopped before it was done'}"
        said = f"{self.plan}: {self._how_far}{self._worth}"
        if self.stored_only:
            said += ", as this search is exact over the rows as stored, not over the rows as given"
        if self.allowed_rows is None:
            return said
        basis = " (measured under this filter, not certified)"
        if self.plan.is_flat:
            basis = " (each compared, as stored)" if self.stored_only else ""
        return f"{said} among {self.allowed_rows:,} allowed rows{basis}"

    @property
    def stored_only(self) -> bool:
        """Whether this is flat search to its end, and rows were stored in so few bits that it is not exact."""
        return self.plan.is_flat and self.rows_seen == 1.0 and self.estimated_recall < 1.0

    @property
    def _worth(self) -> str:
        if self.plan.is_flat and self.complete and self.estimated_recall == 1.0:
            return "exact"
        known = self.estimated_recall == self.estimated_recall
        return f"estimated recall {self.estimated_recall:.4f}" if known else "recall not measured"

    @property
    def _how_far(self) -> str:
        if self.complete:
            return ""
        if not self.skipped:
            return "stopped before BM25 was done, the dense list alone, "
        what = f"{self.rows_seen:.0%} of the rows" if self.plan.is_flat else f"step {self.stages_done} of {self.stages}"
        return f"stopped after {what}, "


class Hits(list[Hit]):
    """The hits of one query, best first; `served` says how they were found."""

    __slots__ = ("served",)

    def __init__(self, hits: Iterable[Hit], served: Served) -> None:
        super().__init__(hits)
        self.served: Served = served


def make_hits(
    documents: Documents | None,
    ids: Ids | JoinedIds,
    scores: npt.NDArray[np.float32],
    positions: npt.NDArray[np.int64],
    served: Sequence[Served],
) -> list[Hits]:
    """Hits for each query, with the documents where there are any; positions below 0 give none.

    scores, positions: [n, k]. served: one a query.
    """
    if documents is None:
        return [
            Hits((Hit(_plain(id_), float(score)) for id_, score, at in zip(*row, strict=True) if at >= 0), how)
            for *row, how in zip(ids.at(positions), scores, positions, served, strict=True)
        ]
    result = []
    for row_scores, row, how in zip(scores, positions, served, strict=True):
        hits = (
            Hit(document.id, float(score), document.title, document.text, dict(document.metadata))
            for document, score in zip(documents.get(row[row >= 0]), row_scores, strict=False)
        )
        result.append(Hits(hits, how))
    return result


def _plain(value: Any) -> str | int:
    return value if isinstance(value, str) else int(value)


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
