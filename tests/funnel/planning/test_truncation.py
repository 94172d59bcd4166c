from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from funnel.engine.cascade import Cascade
from funnel.engine.steps import Found, answers, steps
from funnel.plan import Plan, Stage
from funnel.planning.calibration import Calibration, step_recalls, truncations
from funnel.planning.run import TIE_TOLERANCE, Run
from tests.funnel.planning.conftest import Recorded
from tests.funnel.planning.made_up import DIM, costs_of

K = 10


def calibration_of(corpus: Run, queries: Run) -> Calibration:
    return Calibration(
        costs=costs_of([Plan(effort, 100) for effort in queries.efforts]),
        by_effort=True,
        dim=DIM,
        date="",
        n_queries=len(queries.queries),
        n_corpus_rows=len(corpus.queries),
        depth=100,
        corpus=corpus,
        queries=queries,
    )


def effort_for(run: Run, shortlist: int) -> int:
    """The smallest effort on record that gives so long a shortlist."""
    return next(effort for effort in run.efforts if run.largest(effort) >= shortlist)


def test_truncations_are_what_is_left_after_each_step() -> None:
    plan = Plan(64, 60, (Stage(16, 30), Stage(32, 20)))
    assert truncations(plan, K) == (
        Plan(64, K),
        Plan(64, 60, (Stage(16, K),)),
        Plan(64, 60, (Stage(16, 30), Stage(32, K))),
        plan,
    )
    assert truncations(Plan(64, 60), K) == (Plan(64, K), Plan(64, 60))


@pytest.mark.parametrize("name", ["hnsw-sq8", "ivf-sq8"])
def test_the_record_says_what_a_stopped_plan_finds(recorded: Callable[[str], Recorded], name: str) -> None:
    cascade, corpus, queries = recorded(name)
    effort, size = effort_for(queries, 60), 60
    plan = Plan(effort, size, (Stage(32, size // 2), Stage(48, size // 3)))
    said = step_recalls(calibration_of(corpus, queries), plan, K)
    found = [
        measured_recall(cascade, queries, answers(cascade, parts, K))
        for parts in steps(cascade, queries.queries, plan, K)
    ]
    assert len(said) == plan.steps == 4
    np.testing.assert_allclose(said, found, atol=2e-3)  # scores of equal rank may change places
    assert said[0] < said[-1]


def measured_recall(cascade: Cascade, queries: Run, found: Found) -> float:
    rows = found.rows
    scores = np.einsum("qd,qkd->qk", queries.queries, cascade.store.matrix.float().numpy()[rows.clip(min=0)])
    true = (scores >= queries.truth[:, K - 1, None] - 2 * TIE_TOLERANCE) & (rows >= 0)
    return float(true.sum(axis=1).clip(max=K).mean() / K)


def test_what_was_not_recorded_is_unknown(recorded: Callable[[str], Recorded]) -> None:
    _, corpus, queries = recorded("hnsw-sq8")
    calibration = calibration_of(corpus, queries)
    effort = effort_for(queries, 20)
    unknown = next(other for other in range(effort, 1000) if other not in queries.efforts)
    for plan, k in (
        (Plan(unknown, 20), K),
        (Plan(effort, queries.largest(effort) + 1), K),
        (Plan(effort, 20, (Stage(31, 15),)), K),
        (Plan(effort, 20), 101),
    ):
        said = step_recalls(calibration, plan, k)
        assert len(said) == plan.steps
        assert all(math.isnan(recall) for recall in said)


def test_the_record_is_read_from_disk(recorded: Callable[[str], Recorded], tmp_path: Path) -> None:
    _, corpus, queries = recorded("hnsw-sq8")
    calibration = calibration_of(corpus, queries)
    calibration.frontier(K)
    calibration.save(tmp_path)
    opened = Calibration.load(tmp_path)
    effort = effort_for(queries, 16)
    plan = Plan(effort, 16)
    assert step_recalls(opened, plan, K) == step_recalls(calibration, plan, K)
