"""What a plan returned for the calibration queries, from their record."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from funnel.escalation import hard
from funnel.plan import Plan
from funnel.planning.calibration import Run
from funnel.planning.escalating import best_scores
from funnel.planning.records import Calibration

__all__ = ["returned_scores"]


def returned_scores(calibration: Calibration, plan: Plan, ranks: Sequence[int]) -> npt.NDArray[np.float32] | None:
    """The exact scores of the hits at `ranks` (from 0) for each real query: float32 [n_queries, len(ranks)].

    NaN where the plan returns fewer hits; None where it cannot be followed on the record.
    """
    _, run = calibration.runs()
    if run is None:
        return None
    if plan.is_flat:
        return _at_ranks(calibration, run, run.truth, ranks)
    if plan.escalation is not None:
        first, then = (returned_scores(calibration, part, ranks) for part in plan.parts)
        if first is None or then is None:
            return None
        again = hard(plan.escalation, best_scores(run, plan, plan.escalation.k))
        return np.where(again[:, None], then, first)
    recorded = run.scores.get(plan.effort)
    if recorded is None or recorded.shape[1] < plan.shortlist:
        return None
    scores = torch.from_numpy(np.array(recorded[:, : plan.shortlist]))
    for stage in plan.stages:
        if stage.width not in run.widths:
            return None
        kept = torch.topk(scores[:, :, run.widths.index(stage.width)], stage.keep, dim=1).indices
        scores = scores.gather(1, kept[:, :, None].expand(-1, -1, scores.shape[2]))
    return _at_ranks(calibration, run, scores[:, :, -1].numpy(), ranks)


def _at_ranks(
    calibration: Calibration, run: Run, found: npt.NDArray[np.float32], ranks: Sequence[int]
) -> npt.NDArray[np.float32]:
    """The scores at these ranks of what was found [q, any], and of what was added since; NaN where there are fewer."""
    if calibration.added is not None:
        found = np.concatenate([found, calibration.added(np.ascontiguousarray(run.queries))], axis=1)
    final = -np.sort(-found, axis=1)
    result = np.full((len(final), len(ranks)), math.nan, dtype=np.float32)
    for column, rank in enumerate(ranks):
        if rank < final.shape[1]:
            result[:, column] = final[:, rank]
    return result
