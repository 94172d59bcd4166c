"""What a plan returned for the calibration queries, and from how deep, from their record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from funnel.depth import depths
from funnel.escalation import hard
from funnel.plan import Plan
from funnel.planning.calibration import Run
from funnel.planning.escalating import best_scores
from funnel.planning.records import Calibration

__all__ = ["returned"]

Float32 = npt.NDArray[np.float32]


def returned(calibration: Calibration, plan: Plan, k: int, ranks: Sequence[int]) -> Float32 | None:
    """Of a search for k: exact scores of the hits at `ranks` (from 0), and their depth: float32 [q, len(ranks) + 1].

    q: the real queries. NaN where the plan returns fewer hits, and for the depth (see funnel.depth) where it returns
    fewer than k or does not rerank. None where it cannot be followed on the record.
    """
    _, run = calibration.runs()
    if run is None:
        return None
    found = _followed(run, plan, k, ranks)
    if found is not None and not calibration.costs.reranked:
        found[:, -1] = math.nan  # the coarse order is that of the hits: it has no depth
    return found


def _followed(run: Run, plan: Plan, k: int, ranks: Sequence[int]) -> Float32 | None:
    if plan.escalation is not None:
        first, then = (_followed(run, part, k, ranks) for part in plan.parts)
        if first is None or then is None:
            return None
        again = hard(plan.escalation, best_scores(run, plan, plan.escalation.k))
        return np.where(again[:, None], then, first)
    result = np.full((len(run.queries), len(ranks) + 1), math.nan, dtype=np.float32)
    shown = [(column, rank) for column, rank in enumerate(ranks) if rank < k]
    if plan.is_flat:
        for column, rank in shown:
            result[:, column] = run.truth[:, rank]
        return result
    recorded = run.scores.get(plan.effort)
    if recorded is None or recorded.shape[1] < plan.shortlist:
        return None
    scores = torch.from_numpy(np.array(recorded[:, : plan.shortlist]))
    kept: list[torch.Tensor] = []
    for stage in plan.stages:
        if stage.width not in run.widths:
            return None
        kept.append(torch.topk(scores[:, :, run.widths.index(stage.width)], stage.keep, dim=1).indices)
        scores = scores.gather(1, kept[-1][:, :, None].expand(-1, -1, scores.shape[2]))
    top, places = torch.topk(scores[:, :, -1], min(k, scores.shape[1]), dim=1)
    for column, rank in shown:
        if rank < top.shape[1]:
            result[:, column] = top[:, rank].numpy()
    if top.shape[1] == k:
        result[:, -1] = np.where(top[:, -1].numpy() > -math.inf, depths((*kept, places)), math.nan)
    return result
