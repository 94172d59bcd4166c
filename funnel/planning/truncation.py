"""What a plan is worth when it is stopped before its end, from the record."""

from __future__ import annotations

import math

from funnel.plan import Plan, Stage
from funnel.planning.calibration import hits
from funnel.planning.records import Calibration

__all__ = ["step_recalls", "truncations"]


def truncations(plan: Plan, k: int) -> tuple[Plan, ...]:
    """Plans whose survivors are what `plan` would return for k if it were stopped after each of its steps.

    The k best in coarse order, then the k best at each stage's width, then the plan itself.
    """
    if not plan.reranked:  # one step
        return (plan,)
    stages = plan.stages
    stopped = (Plan(plan.effort, plan.shortlist, (*stages[:i], Stage(stages[i].width, k))) for i in range(len(stages)))
    return (Plan(plan.effort, k), *stopped, plan)


def step_recalls(calibration: Calibration, plan: Plan, k: int) -> tuple[float, ...]:
    """Mean recall@k on the calibration queries if a plan that is not flat were stopped after each of its steps.

    NaN where the plan's effort, its shortlist, its widths or so large a k are not on record.
    """
    unknown = (math.nan,) * plan.steps
    if k > calibration.depth:
        return unknown
    run = calibration.run()
    if plan.effort not in run.places or run.largest(plan.effort) < plan.shortlist:
        return unknown
    if any(stage.width not in run.widths for stage in plan.stages):
        return unknown
    found = hits(run, truncations(plan, k), k)
    return tuple(float(value) / k for value in found.mean(axis=1))
