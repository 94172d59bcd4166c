"""What a plan returns for the calibration queries, and from how deep, from their record.

Scores change as rows are added and deleted, those of the calibration queries as those of live ones: each live search is
compared with what its plan would have returned for them at that time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.depth import depths
from funnel.monitoring.neighbours import RANKS, Neighbours, Rows
from funnel.plan import Plan
from funnel.planning.calibration import TIE_TOLERANCE, Run
from funnel.planning.records import Calibration

__all__ = ["Reference", "returned"]

# Share of the calibration queries whose hits tie with other candidates, up to which their depth is compared: which of
# several copies of a row is returned is chance, and so is its place.
MOST_TIED = 0.01

Float32 = npt.NDArray[np.float32]


class Reference:
    """What plans return for the calibration queries at one generation. Nothing is read before it is asked for.

    rows: those of the generation; None where nothing was ever added or deleted. before: that of an earlier generation
    with the same first segment, whose neighbours are carried on where they are known.
    """

    def __init__(self, calibration: Calibration, rows: Rows | None, before: Reference | None = None) -> None:
        self._calibration, self._rows = calibration, rows
        self._before = before.known if before is not None else None

    @property
    def known(self) -> Neighbours | None:
        """Neighbours that were worked out already, here or before."""
        found: Neighbours | None = self.__dict__.get("neighbours", self._before)
        return found

    @cached_property
    def neighbours(self) -> Neighbours | None:
        """Of the calibration queries among the rows; None where they cannot be told."""
        if self._rows is None:
            return None
        before = self._before
        return Neighbours.of(self._calibration, self._rows) if before is None else before.then(self._rows)

    def some(self, most: int) -> Neighbours | None:
        """Those of at most so many calibration queries, evenly spaced."""
        return None if self._rows is None else Neighbours.of(self._calibration, self._rows, most)

    def __call__(self, plan: Plan, k: int) -> Float32 | None:
        """See `returned`."""
        added = None
        if self._calibration.added is not None and self.neighbours is not None:
            added = self.neighbours.added
        return returned(self._calibration, plan, k, RANKS, added)


def returned(
    calibration: Calibration, plan: Plan, k: int, ranks: Sequence[int], added: Float32 | None = None
) -> Float32 | None:
    """Of a search for k: exact scores of the hits at `ranks` (from 0), and their depth: float32 [q, len(ranks) + 1].

    q: the real queries. added: the best scores among rows added since, float32 [q, any], where they are known. NaN
    where the plan returns fewer hits, and for the depth (see funnel.engine.depth) where it returns fewer than k or does
    not rerank, or where many hits tie with others. None where it cannot be followed on the record.
    """
    _, run = calibration.runs()
    if run is None:
        return None
    if added is None and calibration.added is not None:
        added = calibration.added(np.ascontiguousarray(run.queries))
    found = _followed(calibration, run, plan, k, ranks, added)
    # Where the coarse order is that of the hits they have no depth; where rows were deleted it is not on record.
    if found is not None and (not calibration.costs.reranked or run.live is not None):
        found[:, -1] = math.nan
    return found


def _followed(
    calibration: Calibration, run: Run, plan: Plan, k: int, ranks: Sequence[int], added: Float32 | None
) -> Float32 | None:
    result = np.full((len(run.queries), len(ranks) + 1), math.nan, dtype=np.float32)
    if plan.is_flat:
        result[:, :-1] = _at_ranks(run.truth, added, k, ranks)
        return result
    recorded = run.scores.get(plan.effort)
    if recorded is None or recorded.shape[1] < plan.shortlist:
        return None
    scores = torch.from_numpy(np.array(recorded[:, : plan.shortlist]))
    kept: list[torch.Tensor] = []
    tied = np.zeros(len(result), dtype=np.bool_)
    for stage in plan.stages:
        if stage.width not in run.widths:
            return None
        at_width = scores[:, :, run.widths.index(stage.width)]
        best_there, places = torch.topk(at_width, stage.keep, dim=1)
        kept.append(places)
        tied |= _tied(at_width, best_there)
        scores = scores.gather(1, kept[-1][:, :, None].expand(-1, -1, scores.shape[2]))
    top, places = torch.topk(scores[:, :, -1], min(k, scores.shape[1]), dim=1)
    best = top.numpy()
    if best.shape[1] == k:  # answered exactly where there were too few candidates: see funnel.engine.exact.filled_up
        best = np.where(np.isneginf(best[:, -1:]), run.truth[:, :k], best)
    result[:, :-1] = _at_ranks(best, added, k, ranks)
    tied |= _tied(scores[:, :, -1], top)
    if top.shape[1] == k and tied.mean() <= MOST_TIED:
        result[:, -1] = np.where(top[:, -1].numpy() > -math.inf, depths((*kept, places)), math.nan)
    return result


def _tied(scores: torch.Tensor, best: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Whether others score as the last of the best [q, k] of scores [q, s] does: bool [q]."""
    last = best[:, -1:]
    many = (scores >= last - TIE_TOLERANCE).sum(dim=1) > best.shape[1]
    tied: npt.NDArray[np.bool_] = (many & torch.isfinite(last[:, 0])).numpy()
    return tied


def _at_ranks(found: Float32, added: Float32 | None, k: int, ranks: Sequence[int]) -> Float32:
    """The scores at these ranks of the best k of those found and those added, each float32 [q, any]; NaN: too few."""
    if added is not None:
        found = np.concatenate([found, added], axis=1)
    best = -np.sort(-found, axis=1)[:, :k]
    best[np.isneginf(best)] = math.nan
    result = np.full((len(best), len(ranks)), math.nan, dtype=np.float32)
    for column, rank in enumerate(ranks):
        if rank < best.shape[1]:
            result[:, column] = best[:, rank]
    return result
