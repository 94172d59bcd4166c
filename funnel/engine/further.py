"""What a filter allows in the segments beside the first: compared exactly, and joined to what the first gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.engine.allowed import AllowedRows
from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.generation import Opened
from funnel.engine.segments import ExactRows, Segment, best_of

__all__ = ["Further"]

Mask = npt.NDArray[np.bool_]
Answer = tuple[Float32, Int64]


@dataclass(frozen=True, eq=False)
class Further:
    """The allowed rows of the further segments of one generation.

    coarse: those of segments with a coarse index. exact: the rows of those without, of which `mask`, bool [all rows of
    the index], says which are allowed. count: how many are allowed.
    """

    coarse: tuple[tuple[Segment, AllowedRows], ...]
    exact: ExactRows | None
    mask: Mask
    count: int

    @classmethod
    def of(cls, opened: Opened, masks: Sequence[Mask]) -> Further | None:
        """From bool [rows] for every segment, rows that were deleted not set; None where there is but one segment."""
        others = opened.searcher.others
        if others is None:
            return None
        by_segment = {segment.id: mask for segment, mask in zip(opened.segments, masks, strict=True)}
        coarse = tuple(
            (segment, AllowedRows.from_mask(by_segment[segment.id], cascade)) for segment, cascade in others.coarse
        )
        return cls(coarse, others.exact, np.concatenate(list(masks)), sum(int(mask.sum()) for mask in masks[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.mask.nbytes + sum(allowed.nbytes for _, allowed in self.coarse)

    def join(self, first: Cascade, prepared: Float32, k: int, found: Answer) -> Answer:
        """The best k of what was found in the first segment, scores [n, any] and input positions, and of these."""
        answers = [found]
        for segment, allowed in self.coarse:
            if len(allowed):
                best = allowed.exact(prepared, min(k, len(allowed)))
                answers.append((best.scores, segment.positions(best.rows)))
        if self.exact is not None:
            answers.append(self.exact.search(first.as_stored(prepared), k, self.mask))
        return best_of(answers, k)
