from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from funnel.engine import measuring
from funnel.engine.cascade import Cascade, Float32
from funnel.engine.measuring import record
from funnel.plan import Plan, Stage
from funnel.planning import run as calibration
from funnel.planning.frontier import shortlists
from funnel.planning.run import LARGEST_K, TIE_TOLERANCE, Run, hits
from tests.funnel.cascades import cascade_over, stored_rows
from tests.funnel.planning.conftest import FAMILIES, QUERIES, Recorded
from tests.funnel.planning.made_up import plans_of_effort

ROUNDING = 2e-6  # sums of the same products in another order
# Share of queries whose hits may differ, because two candidates tie at the edge of a stage and either may
# go. 8-bit codes seldom tie, 4-bit codes often; neither way is favoured, so the mean must agree all the same.
TIED = {"ivf-pq": 0.25}
MEAN_TOLERANCE = 3e-3

Recording = Callable[[str], Recorded]


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def true_scores(cascade: Cascade, queries: Float32) -> npt.NDArray[np.float64]:
    return queries.astype(np.float64) @ stored_rows(cascade).astype(np.float64).T


def run_and_count(cascade: Cascade, queries: Float32, plan: Plan, k: int) -> npt.NDArray[np.int64]:
    """Hits of a plan that is really run: returned rows at or above the k-th true score, ties included."""
    scores, rows = cascade.run(queries, plan, k)
    true = true_scores(cascade, queries)
    kth = np.sort(true, axis=1)[:, -k]
    found = np.take_along_axis(true, rows.clip(min=0), axis=1)
    assert np.abs(found - scores)[rows >= 0].max() < 1e-5
    counts: npt.NDArray[np.int64] = ((found >= kth[:, None] - TIE_TOLERANCE) & (rows >= 0)).sum(axis=1)
    return counts


def random_plans(run: Run, count: int, seed: int, k: int, by_effort: bool) -> list[Plan]:
    """Plans of the grid, and others of any sizes."""
    generator = np.random.default_rng(seed)
    plans: list[Plan] = []
    while len(plans) < count:
        effort = int(generator.choice(run.efforts))
        largest = run.shortlist(effort).shape[1]
        if largest < k:
            continue
        if len(plans) % 2:
            grid = list(plans_of_effort(effort, shortlists(largest, 8 if by_effort else None), run.widths[:-1]))
            plan = grid[generator.integers(len(grid))]
        else:
            inner = run.widths[:-1]
            used = sorted(generator.choice(inner, generator.integers(0, len(inner) + 1), replace=False).tolist())
            sizes = sorted(generator.integers(k, largest + 1, len(used) + 1).tolist(), reverse=True)
            plan = Plan(effort, sizes[0], tuple(map(Stage, used, sizes[1:])))
        plan.check(run.widths)
        if plan.survivors >= k:
            plans.append(plan)
    return plans


@pytest.mark.parametrize("k", [1, 10, 37])
def test_recall_from_the_record_is_recall_of_running(recorded: Recording, name: str, k: int) -> None:
    cascade, _, run = recorded(name)
    plans = random_plans(run, 40, k, k, name.startswith("hnsw"))
    assert {len(plan.stages) for plan in plans} >= set(range(min(3, len(run.widths))))  # full width is no stage
    counted = hits(run, plans, k)
    assert counted.dtype == np.uint8
    everything_ran = []
    for plan, recorded_hits in zip(plans, counted, strict=True):
        ran = run_and_count(cascade, run.queries, plan, k)
        everything_ran.append(ran.mean())
        apart = ran != recorded_hits
        assert apart.mean() <= TIED.get(name, 0.01), f"{plan}: {np.abs(ran - recorded_hits.astype(int))}"
    assert abs(np.mean(everything_ran) - counted.mean()) / k < MEAN_TOLERANCE


def test_the_record_tells_plans_apart(recorded: Recording, name: str) -> None:
    _, _, run = recorded(name)
    weakest = Plan(run.efforts[0], 10, (Stage(run.widths[0], 10),))
    largest = run.shortlist(run.efforts[-1]).shape[1]
    few, many = hits(run, [weakest, Plan(run.efforts[-1], largest)], 10).mean(axis=1) / 10
    assert few < many - 0.05
    assert many > 0.98


def test_truth_is_the_largest_true_scores(recorded: Recording, name: str) -> None:
    cascade, corpus, queries = recorded(name)
    true = true_scores(cascade, queries.queries)
    assert queries.truth.shape == (len(true), LARGEST_K)
    np.testing.assert_allclose(queries.truth, -np.sort(-true, axis=1)[:, :LARGEST_K], atol=1e-5)
    # Of held-out rows: the row itself is left out, its duplicate is not.
    true = true_scores(cascade, corpus.queries)
    true[np.arange(len(true)), corpus.own_rows] = -np.inf
    np.testing.assert_allclose(corpus.truth, -np.sort(-true, axis=1)[:, :LARGEST_K], atol=1e-5)


def test_a_held_out_row_is_in_none_of_its_shortlists(recorded: Recording, name: str) -> None:
    cascade, corpus, _ = recorded(name)
    for effort in corpus.efforts:
        rows = corpus.shortlist(effort)
        assert rows.dtype == np.int32
        assert not (rows == corpus.own_rows[:, None]).any()
        raw = cascade.shortlist(corpus.queries, rows.shape[1], effort)
        for without, whole, own in zip(rows, raw, corpus.own_rows, strict=True):
            left = whole[whole != own]
            np.testing.assert_array_equal(without[: len(left)], left)
            assert (without[len(left) :] == -1).all()


def test_recall_of_held_out_rows_is_that_of_an_index_without_them(recorded: Recording) -> None:
    """Counted by hand: coarse order without the row itself, stage by stage, against truth without the row itself."""
    cascade, run, _ = recorded("flat")
    stored, widths = stored_rows(cascade).astype(np.float64), run.widths
    plan, k = Plan(0, 96, (Stage(widths[0], 40), Stage(widths[1], 16))), 10
    expected = []
    for query, own in zip(run.queries.astype(np.float64), run.own_rows, strict=True):
        others = np.delete(np.arange(len(stored)), own)
        prefix = stored[others][:, : cascade.width]
        coarse = prefix @ query[: cascade.width] / np.linalg.norm(prefix, axis=1)
        left = others[np.argsort(-coarse, kind="stable")[: plan.shortlist]]
        for stage in plan.stages:
            prefix = stored[left][:, : stage.width]
            scores = prefix @ query[: stage.width] / np.linalg.norm(prefix, axis=1)
            left = left[np.argsort(-scores, kind="stable")[: stage.keep]]
        kth = np.sort(stored[others] @ query)[-k]
        expected.append(min(k, int((stored[left] @ query >= kth - TIE_TOLERANCE).sum())))
    counted = hits(run, [plan], k)[0]
    assert np.mean(counted != expected) <= 0.02
    assert 5 < np.mean(expected) < 10


def test_a_row_that_ties_with_the_last_counts_whichever_is_returned(tmp_path: Path) -> None:
    """Twenty copies of one row: any ten of them are a perfect answer."""
    base = np.eye(8, dtype=np.float32)[0]
    others = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    others[:, 0] = -np.abs(others[:, 0])
    rows = np.concatenate([np.tile(base, (20, 1)), others / np.linalg.norm(others, axis=1, keepdims=True)])
    cascade, widths = cascade_over(rows.astype(np.float32), tmp_path, (4, 8))
    run = record(cascade, base[None, :].copy(), None, widths)
    assert hits(run, [Plan(0, 10)], 10)[0, 0] == 10
    assert hits(run, [Plan(0, 5)], 10)[0, 0] == 5
    assert hits(run, [Plan(0, 50)], 10)[0, 0] == 10  # never more than k


def test_rows_that_only_nearly_tie_do_not_count(tmp_path: Path) -> None:
    angles = np.array([0.0, 0.01, 0.02, 0.5])
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    cascade, widths = cascade_over(rows, tmp_path, (2,))
    run = record(cascade, rows[:1].copy(), None, widths)
    run.candidate_scores[0, :2] = run.candidate_scores[0, 2:4]  # the best two were not found
    assert hits(run, [Plan(0, 2)], 2)[0, 0] == 0


def test_missing_candidates_never_count(recorded: Recording) -> None:
    cascade, _, run = recorded("ivf-sq8")
    first = run.efforts[0]
    missing = run.shortlist(first) < 0
    assert missing.any(), "one cell holds fewer rows than the largest shortlist"
    assert np.isneginf(run.scores_at(first)[missing]).all()
    assert np.isfinite(run.scores_at(first)[~missing]).all()
    plan = Plan(first, run.shortlist(first).shape[1])
    np.testing.assert_array_equal(hits(run, [plan], 37)[0], run_and_count(cascade, run.queries, plan, 37))


def test_scores_on_record_are_prefix_cosines(recorded: Recording, name: str) -> None:
    cascade, _, run = recorded(name)
    effort = run.efforts[0]
    found = run.shortlist(effort)[:, :20]
    rows = stored_rows(cascade)[found.clip(min=0)]
    for column, width in enumerate(run.widths):
        dots = np.einsum("qd,qsd->qs", run.queries[:, :width], rows[:, :, :width])
        if width < cascade.store.dim:
            dots = dots / np.linalg.norm(rows[:, :, :width], axis=2)
        recorded_scores = run.scores_at(effort)[:, :20, column]
        np.testing.assert_allclose(recorded_scores[found >= 0], dots[found >= 0], atol=ROUNDING)


def test_a_record_on_disk_is_that_in_memory(recorded: Recording, name: str, tmp_path: Path) -> None:
    cascade, corpus, _ = recorded(name)
    queries = corpus.queries[:30]
    efforts = corpus.efforts[:2]
    mapped, held = (
        record(cascade, queries, corpus.own_rows[:30], corpus.widths, efforts, folder=folder)
        for folder in (tmp_path, None)
    )
    assert on_disk(mapped.candidate_scores)
    assert not on_disk(held.candidate_scores)
    for effort in efforts:
        assert on_disk(mapped.places[effort])
        assert not on_disk(held.places[effort])
        np.testing.assert_array_equal(mapped.shortlist(effort), held.shortlist(effort))
        np.testing.assert_array_equal(mapped.scores_at(effort), held.scores_at(effort))
        assert mapped.scores_at(effort).dtype == np.float32
    assert not list(tmp_path.iterdir())  # the files have no name, so that none is left behind


def test_where_no_file_can_be_written_the_record_is_in_memory(recorded: Recording, tmp_path: Path) -> None:
    cascade, corpus, _ = recorded("flat")
    run = record(cascade, corpus.queries[:5], None, corpus.widths, folder=tmp_path / "missing")
    assert not on_disk(run.candidate_scores)
    np.testing.assert_array_equal(run.shortlist(0), record(cascade, run.queries, None, run.widths).shortlist(0))


def on_disk(array: npt.NDArray[np.generic]) -> bool:
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, mmap.mmap)


def test_each_candidate_is_scored_once_whatever_efforts_find_it(recorded: Recording, name: str) -> None:
    _, corpus, _ = recorded(name)
    for query in range(0, len(corpus.queries), 10):
        candidates = corpus.candidates[query][corpus.candidates[query] >= 0]
        assert len(set(candidates.tolist())) == len(candidates)
        found = {row for effort in corpus.efforts for row in corpus.shortlist(effort)[query].tolist()} - {-1}
        assert found == set(candidates.tolist())
    longest = max(corpus.largest(effort) for effort in corpus.efforts)
    assert corpus.candidates.shape[1] <= sum(corpus.largest(effort) for effort in corpus.efforts)
    assert corpus.candidates.shape[1] >= longest - 1
    stored = corpus.candidate_scores
    assert np.isneginf(stored[corpus.candidates < 0]).all()
    assert np.isfinite(stored[corpus.candidates >= 0]).all()


@pytest.mark.parametrize("cells", [1, 5_000])
def test_however_many_are_listed_at_a_time_the_record_is_the_same(
    recorded: Recording, name: str, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade, _, run = recorded(name)
    efforts = run.efforts[:3]
    queries = run.queries[:20]
    whole = record(cascade, queries, None, run.widths, efforts)
    monkeypatch.setattr(measuring, "CELLS_LISTED", cells)
    parts = record(cascade, queries, None, run.widths, efforts)
    np.testing.assert_array_equal(parts.candidates, whole.candidates)
    for effort in efforts:
        np.testing.assert_array_equal(parts.places[effort], whole.places[effort])


@pytest.mark.parametrize("queries_at_a_time", [1, 7, QUERIES])
def test_however_many_queries_at_a_time_the_hits_are_the_same(
    recorded: Recording, name: str, queries_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, run = recorded(name)
    plans = random_plans(run, 12, 4, 10, name.startswith("hnsw"))
    whole = hits(run, plans, 10)
    monkeypatch.setattr(calibration, "QUERIES_AT_A_TIME", queries_at_a_time)
    np.testing.assert_array_equal(hits(run, plans, 10), whole)


def test_order_of_the_plans_asked_for_does_not_matter(recorded: Recording, name: str) -> None:
    _, _, run = recorded(name)
    plans = random_plans(run, 30, 9, 10, name.startswith("hnsw"))
    order = np.random.default_rng(1).permutation(len(plans))
    np.testing.assert_array_equal(hits(run, [plans[i] for i in order], 10), hits(run, plans, 10)[order])


def test_a_plan_asked_for_twice_is_counted_twice(recorded: Recording) -> None:
    _, _, run = recorded("flat")
    plan = Plan(0, 64, (Stage(run.widths[0], 16),))
    first, second = hits(run, [plan, plan], 10)
    np.testing.assert_array_equal(first, second)
    assert first.any()


@pytest.mark.parametrize("name", ["hnsw-sq8", "ivf-sq8"])
def test_efforts_rise_until_all_is_found(recorded: Recording, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade, corpus, _ = recorded(name)
    monkeypatch.setattr(measuring, "DEAREST", np.inf)
    monkeypatch.setattr(measuring, "ENOUGH_RECALL", 0.9)
    run = record(cascade, corpus.queries, corpus.own_rows, corpus.widths)
    offered = cascade.coarse.efforts()
    assert run.efforts == offered[: len(run.efforts)]
    plans = [Plan(effort, run.largest(effort)) for effort in run.efforts if run.largest(effort) >= LARGEST_K]
    recalls = hits(run, plans, LARGEST_K).mean(axis=1) / LARGEST_K
    assert all(recall < 0.9 for recall in recalls[:-1])
    assert recalls[-1] >= 0.9
    assert len(run.efforts) < len(offered)


def test_efforts_end_where_the_coarse_search_is_as_dear_as_flat_search(
    recorded: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade, corpus, _ = recorded("hnsw-sq8")
    monkeypatch.setattr(measuring, "DEAREST", 0.0)
    run = record(cascade, corpus.queries, corpus.own_rows, corpus.widths)
    # whatever the clock says, the last effort has room for every k: twice the depth of the truth
    deep = [effort for effort in cascade.coarse.efforts() if cascade.coarse.largest_shortlist(effort) >= 2 * LARGEST_K]
    assert run.efforts == tuple(effort for effort in cascade.coarse.efforts() if effort <= deep[0])
    assert run.efforts != cascade.coarse.efforts()


@pytest.mark.parametrize(("single_ms", "ended"), [(20.0, False), (0.0, True)])
def test_what_is_dear_in_batch_alone_is_run_on(
    recorded: Recording, monkeypatch: pytest.MonkeyPatch, single_ms: float, ended: bool
) -> None:
    """Flat search of a single query takes 20 ms or no time, of a batch none: it is a product of matrices there."""
    cascade, corpus, _ = recorded("hnsw-sq8")
    monkeypatch.setattr(measuring, "ENOUGH_RECALL", 1.1)
    known = dict(zip(map(bytes, corpus.queries), range(len(corpus.queries)), strict=True))
    truth = cascade.truth(corpus.queries, LARGEST_K + 1)

    def in_no_time(queries: Float32, k: int) -> tuple[Float32, npt.NDArray[np.int64]]:
        places = [known[bytes(query)] for query in queries]
        return truth[0][places, :k], truth[1][places, :k]

    def flat(queries: Float32, k: int) -> tuple[Float32, npt.NDArray[np.int64]]:
        time.sleep(single_ms / 1e3)
        return in_no_time(queries, k)

    quick = replace(cascade, truth=in_no_time, exact=flat)
    run = record(quick, corpus.queries, corpus.own_rows, corpus.widths)
    assert (run.efforts != cascade.coarse.efforts()) is ended
