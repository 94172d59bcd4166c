"""Escalation on the record: which queries are hard, and what it costs to search them again, without doing so."""

from __future__ import annotations

import math
import time
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from funnel.escalation import hard, looked_at, signals
from funnel.plan import Escalation, Plan
from funnel.planning.calibration import QUERIES_AT_A_TIME, Run
from funnel.planning.costs import BATCH_SIZES, Costs

__all__ = ["again_ms", "best_scores", "expected_stages_ms", "judging_ms", "mean_ms", "weights_of"]

# Fewer held-out rows than this that were found in full, or not in full, say too little of what makes a query hard.
FEWEST_OF_A_KIND = 8
RIDGE = 1.0  # pull of the weights, of signals scaled to unit variance, towards zero: that of scikit-learn's default
NEWTON_STEPS = 12  # of a convex problem in three unknowns: converged to 1e-9 after six
JUDGING_REPEATS = 30

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def best_scores(run: Run, plan: Plan, k: int) -> Float32:
    """The exact scores that the rule looks at after the first part of a plan: float32 [q, looked_at], falling.

    -inf where candidates are missing.
    """
    count = looked_at(plan.survivors, k)
    result = np.full((len(run.queries), count), -np.inf, dtype=np.float32)
    for start in range(0, len(result), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        scores = run.scores_at(plan.effort, part, plan.shortlist)
        for stage in plan.stages:  # in numpy: torch would wake its threads for a millisecond's work, again and again
            if stage.keep < scores.shape[1]:
                ranked = scores[:, :, run.widths.index(stage.width)]
                places = np.argpartition(ranked, -stage.keep, axis=1)[:, -stage.keep :]
                scores = np.take_along_axis(scores, places[:, :, None], axis=1)
        best = -np.sort(-scores[:, :, -1], axis=1)[:, :count]
        result[part, : best.shape[1]] = best
    return result


def weights_of(scores: Float32, missed: npt.NDArray[np.bool_], k: int) -> tuple[float, float] | None:
    """The weights of closeness and margin that best tell which queries a plan found in full: a logistic regression.

    scores: as `best_scores`. missed: bool [q], whether any of the true top k was not found. None where nearly all or
    nearly none were: there is nothing to learn from.
    """
    found = signals(scores, k).astype(np.float64)
    known = np.isfinite(found).all(axis=1)
    found, full = found[known], ~missed[known]
    if min(full.sum(), (~full).sum()) < FEWEST_OF_A_KIND:
        return None
    spread = found.std(axis=0)
    spread[spread == 0] = np.inf  # a signal that is the same everywhere says nothing
    inputs = np.column_stack([(found - found.mean(axis=0)) / spread, np.ones(len(found))])
    weights = np.zeros(3)
    pull = np.array([RIDGE, RIDGE, 0.0])
    for _ in range(NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-inputs @ weights))
        slope = inputs.T @ (full - chance) - pull * weights
        curve = (inputs * (chance * (1.0 - chance))[:, None]).T @ inputs + np.diag(pull + 1e-9)
        weights += np.linalg.solve(curve, slope)
    closeness, margin = (weights[:2] / spread).tolist()
    return (closeness, margin) if math.isfinite(closeness) and math.isfinite(margin) else None


def mean_ms(costs: Costs, plan: Plan, batch: int, dim: int) -> float:
    """Mean milliseconds of one call of `batch` queries under a plan, by its recorded rate where it escalates."""
    rule = plan.escalation
    if rule is None:
        return costs.predict(plan, batch, dim)
    again = sum(expected_stages_ms(costs, rule, batch, dim))
    judging = judging_ms(batch, looked_at(plan.survivors, rule.k), rule.k)
    return costs.predict(plan.parts[0], batch, dim) + judging + again


def expected_stages_ms(costs: Costs, escalation: Escalation, batch: int, dim: int) -> list[float]:
    """Mean milliseconds of each step of the second plan in a call of `batch` queries, whether or not any goes on."""
    steps: list[float] = again_ms(costs, escalation.then, np.array([escalation.rate]), batch, dim)[:, 0].tolist()
    return steps


def again_ms(costs: Costs, then: Plan, rates: Float64, batch: int, dim: int) -> Float64:
    """Mean milliseconds of each step of a second plan, by the share of queries that go on: float64 [steps, rates].

    Those that go on are a smaller batch, which costs more a query; its cost lies between those of the measured sizes.
    """
    if batch > BATCH_SIZES[-1]:  # cut into pieces, each with hard queries of its own
        return again_ms(costs, then, rates, BATCH_SIZES[-1], dim) * (batch / BATCH_SIZES[-1])
    any_at_all = 1.0 - (1.0 - rates) ** batch
    size = np.divide(rates * batch, any_at_all, out=np.ones_like(rates), where=any_at_all > 0)
    measured = zip(*(costs.stages(then, size_, dim) for size_ in BATCH_SIZES), strict=True)
    return np.stack([any_at_all * np.interp(size, BATCH_SIZES, step) for step in measured])


def judging_ms(batch: int, looked_at: int, k: int) -> float:
    """Milliseconds that judging a batch takes on this machine."""
    if batch > BATCH_SIZES[-1]:
        return _judging_ms(BATCH_SIZES[-1], looked_at, k) * batch / BATCH_SIZES[-1]
    return _judging_ms(batch, looked_at, k)


@lru_cache(maxsize=256)
def _judging_ms(batch: int, looked_at: int, k: int) -> float:
    rule = Escalation(k, 1.0, 1.0, 0.0, Plan(0, looked_at))
    scores = np.ones((batch, looked_at), dtype=np.float32)
    times = []
    for _ in range(JUDGING_REPEATS):
        started = time.perf_counter()
        np.flatnonzero(hard(rule, scores))
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3
