from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funnel.adaptors import make_adaptor
from funnel.engine import rerank
from funnel.engine.cascade import Cascade, Float32, Space
from funnel.engine.rerank import reranked
from funnel.engine.workers import Workers
from funnel.plan import FLAT, Plan, Stage
from indexes import exact_search
from tests.funnel.cascades import cascade_over, stored_rows
from tests.funnel.clustered import clustered_rows

DIM, ROWS = 48, 1_000
LADDER = (8, 16, 24, 32, DIM)
PLANS = (
    FLAT,
    Plan(0, 60),
    Plan(0, 200, (Stage(16, 50),)),
    Plan(0, 300, (Stage(16, 100), Stage(24, 40), Stage(32, 20))),
)


@pytest.fixture(scope="module", params=["float16", "float32"])
def cascade(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cascade:
    folder = tmp_path_factory.mktemp(request.param)
    return cascade_over(clustered_rows(ROWS, DIM), folder, LADDER, "flat", request.param)[0]


@pytest.fixture(scope="module")
def queries() -> Float32:
    return clustered_rows(150, DIM, seed=5)


def true_scores(cascade: Cascade, queries: Float32) -> np.ndarray:
    return queries.astype(np.float64) @ stored_rows(cascade).astype(np.float64).T


@pytest.mark.parametrize("k", [1, 10, 100])
def test_with_a_shortlist_of_everything_it_is_brute_force(cascade: Cascade, queries: Float32, k: int) -> None:
    expected = -np.sort(-true_scores(cascade, queries), axis=1)[:, :k]
    for plan in (FLAT, Plan(0, ROWS), Plan(0, ROWS, (Stage(16, ROWS), Stage(32, ROWS)))):
        scores, rows = cascade.run(queries, plan, k)
        assert (scores.dtype, rows.dtype) == (np.float32, np.int64)  # type: ignore[comparison-overlap]
        np.testing.assert_allclose(scores, expected, atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(true_scores(cascade, queries), rows, axis=1), scores, atol=2e-6)


def test_every_stage_keeps_the_best_by_cosine_on_its_prefix(cascade: Cascade, queries: Float32) -> None:
    stored = stored_rows(cascade).astype(np.float64)
    plan, k = PLANS[3], 10
    scores, rows = cascade.run(queries, plan, k)
    for query, found, got in zip(queries.astype(np.float64), rows, scores, strict=True):
        left = np.arange(ROWS)
        for width, keep in [(8, plan.shortlist), *((s.width, s.keep) for s in plan.stages), (DIM, k)]:
            prefix = stored[left][:, :width]
            cosine = prefix @ query[:width] / (1 if width == DIM else np.linalg.norm(prefix, axis=1))
            left = left[np.argsort(-cosine, kind="stable")[:keep]]
        np.testing.assert_allclose(stored[left] @ query, got, atol=2e-6)
        np.testing.assert_array_equal(found, left)


def test_prefixes_are_renormalised(tmp_path: Path) -> None:
    """By raw partial dot product the long prefix would win, by cosine the one in the right direction does."""
    rows = np.array([[0.9, 0.3, 0.0, 0.3], [0.4, 0.0, 0.9, 0.0], [-1, 0, 0, 0.1]], dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cascade, _ = cascade_over(rows, tmp_path, (1, 2, 4))
    _, found = cascade.run(np.array([[1, 0, 0, 0]], dtype=np.float32), Plan(0, 3, (Stage(2, 1),)), 1)
    assert found.tolist() == [[1]]


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_batch_gives_what_single_queries_give(cascade: Cascade, queries: Float32, plan: Plan) -> None:
    scores, rows = cascade.run(queries, plan, 10)
    for i in range(0, len(queries), 7):
        one_scores, one_rows = cascade.run(queries[i : i + 1], plan, 10)
        np.testing.assert_allclose(one_scores[0], scores[i], atol=2e-6)
        np.testing.assert_array_equal(one_rows[0], rows[i])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_however_a_batch_is_cut_the_answers_are_the_same(
    cascade: Cascade, queries: Float32, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, rows = cascade.run(queries, plan, 10)
    monkeypatch.setattr(rerank, "CELLS_AT_A_TIME", 3 * DIM * max(1, plan.shortlist))
    monkeypatch.setattr(type(cascade.coarse), "queries_at_a_time", 11)
    cut_scores, cut_rows = cascade.run(queries, plan, 10)
    np.testing.assert_allclose(cut_scores, scores, atol=2e-6)
    np.testing.assert_array_equal(cut_rows, rows)


@pytest.mark.parametrize("family", ["flat", "hnsw-sq8", "ivf-sq8"])
def test_workers_give_what_one_thread_gives(
    family: str, queries: Float32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade, _ = cascade_over(clustered_rows(ROWS, DIM), tmp_path, LADDER, family)
    effort = cascade.coarse.efforts()[-1]
    plan = Plan(effort, 100, (Stage(16, 40),))
    results = []
    for count in (1, 3):
        pool = Workers(count)
        monkeypatch.setattr("funnel.engine.cascade.workers", lambda pool=pool: pool)
        results.append((*cascade.run(queries, plan, 10), cascade.shortlist(queries, 100, effort)))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-6)
    np.testing.assert_array_equal(results[0][1], results[1][1])
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_more_wanted_than_survives_is_padded(cascade: Cascade, queries: Float32) -> None:
    plan = Plan(0, 40, (Stage(16, 6),))
    scores, rows = cascade.run(queries, plan, 10)
    assert scores.shape == rows.shape == (len(queries), 10)
    assert (rows[:, :6] >= 0).all()
    assert (rows[:, 6:] == -1).all()
    assert np.isneginf(scores[:, 6:]).all()
    np.testing.assert_array_equal(rows[:, :6], cascade.run(queries, plan, 6)[1])


def test_candidates_that_the_coarse_search_did_not_find_never_come_back(tmp_path: Path, queries: Float32) -> None:
    """One small cell holds fewer rows than asked for: row 0, which stands in for the missing, must not appear."""
    rows = clustered_rows(ROWS, DIM)
    cascade, _ = cascade_over(rows, tmp_path, LADDER, "ivf-sq8", nlist=60)
    shortlist = cascade.shortlist(queries, 80, 1)
    assert (shortlist < 0).any(axis=1).mean() > 0.5
    for plan in (Plan(1, 80), Plan(1, 80, (Stage(16, 70), Stage(24, 60)))):
        scores, found = cascade.run(queries, plan, 50)
        for candidates, row_scores, row in zip(shortlist, scores, found, strict=True):
            real = row[row >= 0]
            assert set(real.tolist()) <= set(candidates[candidates >= 0].tolist())
            assert len(set(real.tolist())) == len(real) == min(50, int((candidates >= 0).sum()))
            assert np.isfinite(row_scores[: len(real)]).all()
            assert np.isneginf(row_scores[len(real) :]).all()
            assert (row[len(real) :] == -1).all()


def test_flat_search_is_the_cascades_exact(cascade: Cascade, queries: Float32) -> None:
    scores, rows = cascade.run(queries, FLAT, 10)
    expected_scores, expected_rows = exact_search(cascade.store, queries, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_the_shortlist_is_in_coarse_order(cascade: Cascade, queries: Float32) -> None:
    prefixes = stored_rows(cascade)[:, : cascade.width]
    cosine = queries[:, : cascade.width] @ (prefixes / np.linalg.norm(prefixes, axis=1, keepdims=True)).T
    found = np.take_along_axis(cosine, cascade.shortlist(queries, 30, 0), axis=1)
    np.testing.assert_allclose(found, -np.sort(-cosine, axis=1)[:, :30], atol=2e-6)


def test_one_stage_alone_keeps_the_best_dot_products(cascade: Cascade, queries: Float32) -> None:
    shortlist = cascade.shortlist(queries, 30, 0)
    kept = reranked(cascade.store, queries, shortlist, 24, 5)[1]
    rows = stored_rows(cascade)
    for query, candidates, best in zip(queries, shortlist, kept, strict=True):
        dots = rows[candidates][:, :24] @ query[:24]
        np.testing.assert_allclose(np.sort(rows[best][:, :24] @ query[:24]), np.sort(dots)[-5:], atol=2e-6)


def test_a_single_query_is_projected_as_many_are_and_nearly_so_for_what_is_reranked() -> None:
    rows = clustered_rows(500, 96, seed=4)
    space = Space(make_adaptor("pca", rows, progress=False), True)
    for width in (8, 32, 48):
        together = space.prefixes(rows[:20], width)
        for one, expected in zip(rows[:20], together, strict=True):
            np.testing.assert_allclose(space.prefixes(one[None], width)[0], expected, atol=1e-6)
            np.testing.assert_allclose(space.prefixes(one[None], width, nearly=True)[0], expected, atol=2e-4)
