"""A plan really run, step by step, on the calibration queries: what each step took and what it was worth."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from funnel.engine.cascade import Cascade, Float32
from funnel.engine.rerank import carry_on
from funnel.engine.steps import Found, StagedRun
from funnel.plan import Plan
from funnel.planning.calibration import TIE_TOLERANCE, Run, given_scores

__all__ = ["MeasuredStep", "measure_steps"]

QUERIES = 512  # measured on: recall to a standard error of .005 at .99
FEWEST_CALLS = 5  # a step's time is the median over calls


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step of a plan as it was run. ms: median of a call. recall: mean recall@k if stopped after it."""

    ms: float
    recall: float


def measure_steps(cascade: Cascade, run: Run, plan: Plan, k: int, batch: int) -> list[MeasuredStep]:
    """Run calls of `batch` of the recorded queries, each step for the whole batch before the next.

    run: queries and truth. Queries that are rows of the index are left out of their own answers.
    """
    extra = int((run.own_rows >= 0).any())
    widened = plan.widened() if extra else plan
    count = min(QUERIES, len(run.queries))
    calls = max(FEWEST_CALLS, -(-count // batch))
    numbers = np.resize(np.arange(len(run.queries)), calls * batch)
    times, recalls = [], []
    for call in range(calls):
        asked = numbers[call * batch : (call + 1) * batch]
        queries = np.ascontiguousarray(run.queries[asked])
        threshold = run.truth[asked, k - 1] - TIE_TOLERANCE
        took, found = _steps(cascade, queries, widened, k + extra)
        times.append(took)
        recalls.append([_recall(cascade, run, asked, step, threshold, k) for step in found])
    typical, mean = np.median(times, axis=0), np.mean(recalls, axis=0)
    return [MeasuredStep(float(ms), float(recall)) for ms, recall in zip(typical, mean, strict=True)]


def _steps(cascade: Cascade, queries: Float32, plan: Plan, k: int) -> tuple[list[float], list[Found]]:
    """Milliseconds of each step, and what would be answered after it."""
    started = time.perf_counter()
    if plan.is_flat:
        found = Found(*cascade.flat(queries, k), np.ones(len(queries), dtype=np.int64))
        return [(time.perf_counter() - started) * 1e3], [found]
    run = StagedRun(cascade, queries, plan)
    times, answers = [(time.perf_counter() - started) * 1e3], [run.answers(k)]
    for number in range(run.stages):
        started = time.perf_counter()
        run.stage(number)
        times.append((time.perf_counter() - started) * 1e3)
        answers.append(run.answers(k))
    return times, answers


def _recall(cascade: Cascade, run: Run, asked: np.ndarray, found: Found, threshold: np.ndarray, k: int) -> float:
    """Mean recall@k of the rows found for the queries `asked`, by their true scores."""
    queries, own = np.ascontiguousarray(run.queries[asked]), run.own_rows[asked]
    with torch.inference_mode():
        query, rows = cascade.tensors(cascade.as_stored(queries), found.rows.clip(min=0))
        scores = carry_on(cascade.store, query, rows, None, 0, cascade.store.dim).cpu().numpy()
    if run.given is not None and run.near_rows is not None and run.near_scores is not None:
        scores = given_scores((run.near_scores[asked], run.near_rows[asked]), found.rows, scores)
    true = (scores >= threshold[:, None]) & (found.rows >= 0) & (found.rows != own[:, None])
    return float(np.minimum(true.sum(axis=1), k).mean() / k)
