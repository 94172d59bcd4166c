"""Plans run stage by stage: the same answers as in one go, and what is left when the clock stops them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel.engine import steps as staged
from funnel.engine.cascade import Cascade, Float32
from funnel.engine.steps import search, steps
from funnel.plan import FLAT, Plan, Stage
from funnel.request import Deadline
from indexes import exact_search
from tests.funnel.cascades import cascade_over, stored_rows
from tests.funnel.clocks import Clock
from tests.funnel.clustered import clustered_rows

DIM, ROWS, K = 48, 1_000, 10
LADDER = (8, 16, 24, 32, DIM)
PLAN = Plan(0, 300, (Stage(16, 100), Stage(32, 20)))


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    return cascade_over(clustered_rows(ROWS, DIM), tmp_path_factory.mktemp("staged"), LADDER)[0]


@pytest.fixture(scope="module")
def queries() -> Float32:
    return clustered_rows(150, DIM, seed=5)


@pytest.mark.parametrize("count", [1, 7, 150])
@pytest.mark.parametrize("plan", [FLAT, Plan(0, 60), PLAN])
def test_with_time_enough_it_is_the_plan(cascade: Cascade, queries: Float32, plan: Plan, count: int) -> None:
    found = search(cascade, queries[:count], plan, K, Deadline(1e6))
    scores, rows = cascade.run(queries[:count], plan, K)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scores, scores, atol=1e-6)
    assert (np.asarray(found.done) == plan.steps).all()
    assert found.seen == 1.0


@pytest.mark.parametrize("count", [1, 7, 150])
def test_a_deadline_that_has_passed_gives_the_coarse_order_and_its_cosines(
    cascade: Cascade, queries: Float32, count: int
) -> None:
    found = search(cascade, queries[:count], PLAN, K, Clock(0))
    np.testing.assert_array_equal(found.rows, cascade.shortlist(queries[:count], PLAN.shortlist, 0)[:, :K])
    assert (np.asarray(found.done) == 1).all()
    np.testing.assert_allclose(found.scores, prefix_cosines(cascade, queries[:count], found.rows, 8), atol=1e-5)


@pytest.mark.parametrize("stages", [1, 2])
def test_after_each_stage_its_best_are_left_with_their_cosines(cascade: Cascade, queries: Float32, stages: int) -> None:
    found = search(cascade, queries[:1], PLAN, K, Clock(2 * stages))  # looked at before a stage, and before its part
    assert np.asarray(found.done).tolist() == [stages + 1]
    left = cascade.shortlist(queries[:1], PLAN.shortlist, 0)
    for stage in PLAN.stages[:stages]:
        cosines = prefix_cosines(cascade, queries[:1], left, stage.width)
        left = np.take_along_axis(left, np.argsort(-cosines, axis=1, kind="stable")[:, : stage.keep], axis=1)
    np.testing.assert_array_equal(found.rows, left[:, :K])
    width = PLAN.stages[stages - 1].width
    np.testing.assert_allclose(found.scores, prefix_cosines(cascade, queries[:1], found.rows, width), atol=1e-5)


def test_a_part_of_a_batch_that_is_stopped_says_so_itself(
    cascade: Cascade, queries: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "QUERIES_BETWEEN_LOOKS", 20)
    parts = len(next(steps(cascade, queries, PLAN, K)))
    assert parts > 4
    found = search(cascade, queries, PLAN, K, Clock(1 + parts // 2))
    done, counts = np.unique(np.asarray(found.done), return_counts=True)
    assert done.tolist() == [1, 2]
    assert counts.min() >= 10
    _, rows = cascade.run(queries, Plan(0, 300, (Stage(16, K),)), K)
    reached = np.asarray(found.done) == 2
    assert (np.sort(found.rows[reached], axis=1) == np.sort(rows[reached], axis=1)).all()


def test_no_candidates_are_made_up(tmp_path: Path, queries: Float32) -> None:
    """Lists that hold fewer rows than the shortlist: what is missing stays at the end."""
    cascade, _ = cascade_over(clustered_rows(300, DIM), tmp_path, LADDER, "ivf-sq8", nlist=100)
    for looks in range(6):
        found = search(cascade, queries[:1], Plan(1, 200, (Stage(16, 100), Stage(24, 50))), 30, Clock(looks))
        missing = found.rows < 0
        assert missing.any()
        assert (np.isneginf(found.scores) == missing).all()
        assert (np.diff(missing.astype(int), axis=1) >= 0).all()


def test_flat_search_stops_between_blocks_and_says_how_much_it_saw(
    cascade: Cascade, queries: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("funnel.engine.steps.CELLS_AT_A_TIME", 100 * DIM)
    found = search(cascade, queries, FLAT, K, Clock(3))  # one block before the first look
    assert found.seen == 0.4
    assert (np.asarray(found.done) == 0).all()
    best = np.argsort(-(queries @ stored_rows(cascade)[:400].T), axis=1, kind="stable")[:, :K]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found.rows, best, strict=True)]) > 0.999
    whole = search(cascade, queries, FLAT, K, Clock(100))
    assert whole.seen == 1.0
    assert (np.asarray(whole.done) == 1).all()
    np.testing.assert_allclose(whole.scores, exact_search(cascade.store, queries, K)[0], atol=1e-6)


def prefix_cosines(cascade: Cascade, queries: Float32, rows: np.ndarray, width: int) -> np.ndarray:
    prefixes = stored_rows(cascade)[rows][:, :, :width].astype(np.float64)
    query = queries[:, None, :width].astype(np.float64)
    norms = np.linalg.norm(prefixes, axis=2) * np.linalg.norm(query, axis=2)
    cosines: np.ndarray = (prefixes * query).sum(axis=2) / norms
    return cosines
