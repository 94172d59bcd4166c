"""Plans by hand: what they find, cost and say, over an index whose coarse search is exact."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from funnel import FunnelIndex, Plan
from funnel.cli.main import cli
from funnel.errors import InputError
from funnel.plan import FLAT, Stage
from tests.funnel.clustered import clustered_rows

WIDTHS = (8, 16, 32, 64)
DIM = 96
HALVING = Plan.halving(8, DIM, 400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 rows, and a flat coarse index over 8 dims, so that what is found is what numpy finds."""
    path = tmp_path_factory.mktemp("by-hand") / "index"
    rows, queries = clustered_rows(3_000, DIM, seed=1), clustered_rows(300, DIM, seed=2)
    FunnelIndex.build(rows, path, queries=queries, dims=WIDTHS, coarse="flat", dtype="float32", progress=False)
    return path


@pytest.fixture(scope="module")
def index(folder: Path) -> FunnelIndex:
    return FunnelIndex.open(folder)


@pytest.fixture(scope="module")
def asked() -> np.ndarray:
    return clustered_rows(70, DIM, seed=3)


def plain(index: FunnelIndex, queries: np.ndarray, plan: Plan, k: int, gone: np.ndarray | None = None) -> np.ndarray:
    """Scores of a plain numpy funnel over the adapted prefixes of the index, float64 [n, k]."""
    cascade, prepared = index.searcher.cascade, index.searcher.prepare(queries)
    stored = cascade.store.matrix.float().numpy().astype(np.float64)
    left = np.tile(np.arange(len(stored)), (len(queries), 1))
    if gone is not None:
        left = np.tile(np.setdiff1d(np.arange(len(stored)), gone), (len(queries), 1))
    scores: np.ndarray = np.empty(0)
    steps = [(plan.width, plan.shortlist), *((stage.width, stage.keep) for stage in plan.stages), (DIM, k)]
    for width, keep in steps:
        rows, query = stored, prepared.astype(np.float64)
        if width < DIM:
            rows = cascade.at(width).matrix.float().numpy()[:, :width].astype(np.float64)
            rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            query = cascade.space.prefixes(prepared, width).astype(np.float64)
        scores = np.einsum("nd,nsd->ns", query, rows[left])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
        left, scores = np.take_along_axis(left, best, axis=1), np.take_along_axis(scores, best, axis=1)
    return scores


@pytest.mark.parametrize("plan", [HALVING, Plan.parse("16:300 64:40"), Plan.parse("32:25"), Plan.parse("64:10")])
@pytest.mark.parametrize("count", [1, 70])
def test_a_funnel_by_hand_finds_what_a_plain_one_does(
    index: FunnelIndex, asked: np.ndarray, plan: Plan, count: int
) -> None:
    found = index.search_vectors(asked[:count], 10, plan=str(plan))
    np.testing.assert_allclose(found.scores, plain(index, asked[:count], plan, 10), atol=2e-3)
    close = np.abs(found.scores - plain(index, asked[:count], plan, 10)) < 1e-5
    assert close.mean() > 0.99  # ties apart, which rounding may order otherwise
    np.testing.assert_array_equal(index.search_vectors(asked[:count], 10, plan=plan).ids, found.ids)


def test_the_first_width_says_what_is_searched(index: FunnelIndex, asked: np.ndarray) -> None:
    coarse = index.search_vectors(asked, 10, plan="8:400 16:200").served.plan
    assert coarse == Plan(0, 400, (Stage(16, 200),))  # a flat coarse index has no effort
    assert str(index.search_vectors(asked, 10, plan="16:200 32:50").served.plan) == "16:200 32:50"
    assert index.search_vectors(asked, 10, plan="flat").served.plan == FLAT
    every = index.search_vectors(asked, 10, plan="64:3000")
    np.testing.assert_array_equal(every.ids, index.search_vectors(asked, 10, recall=1.0).ids)


def test_the_least_effort_is_taken_or_the_one_that_is_named(graph: FunnelIndex, unseen: np.ndarray) -> None:
    efforts = graph.searcher.cascade.coarse.efforts()
    least = next(effort for effort in efforts if effort >= 50)
    assert graph.search_vectors(unseen, 10, plan="32:50 48:20").served.plan == Plan(least, 50, (Stage(48, 20),))
    assert graph.search_vectors(unseen, 10, plan="32:50@90 48:20").served.plan == Plan(90, 50, (Stage(48, 20),))
    assert graph.search_vectors(unseen, 10, plan="48:50").served.plan == Plan(0, 50, width=48)


def test_deleted_rows_and_rows_outside_a_filter_are_left_out(folder: Path, asked: np.ndarray, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "index")
    index = FunnelIndex.open(tmp_path / "index")
    found = index.search_vectors(asked, 5, recall=1.0).ids
    gone = np.unique(found)
    index.delete(gone.tolist())
    positions = np.flatnonzero(np.isin(np.asarray(index.searcher.order), gone))
    for plan in (HALVING, Plan.parse("16:300 64:40")):
        left = index.search_vectors(asked, 10, plan=plan)
        assert not np.isin(left.ids, gone).any()
        np.testing.assert_allclose(left.scores, plain(index, asked, plan, 10, positions), atol=2e-3)
    allowed = np.setdiff1d(np.arange(3_000), gone)[::50].tolist()
    few = index.search_vectors(asked, 10, plan="16:40", allowed_ids=allowed)
    assert np.isin(few.ids, allowed).all()


def test_a_deadline_gives_the_order_of_the_scan(index: FunnelIndex, asked: np.ndarray) -> None:
    stopped = index.search_vectors(asked, 10, plan="16:200 32:50", deadline_ms=1e-6)
    assert (stopped.served.stages_done, stopped.served.stages) == (1, 3)
    assert (np.diff(stopped.scores, axis=1) <= 0).all()
    assert (np.abs(stopped.scores) <= 1.0).all()


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (
            "24:100 64:50",
            r"plan 24:100 64:50: no stage can be run at 24 dims.*8, 16, 32, 64: dims= at build stores more",
        ),
        ("16:100 48:50", r"plan 16:100 48:50: no stage can be run at 48 dims.*8, 16, 32, 64: dims="),
        ("16:100 96:50", r"no stage can be run at 96 dims below full width, which is implied"),
        ("32:100 16:50", "stages must rise in width and fall in candidates"),
        ("8:100 16:200", "stages must rise in width and fall in candidates"),
        ("16:100 32:9", "keeps 9 candidates for full width, fewer than k=10"),
        ("16:9", "keeps 9 candidates for full width, fewer than k=10"),
        ("16:100@7", "a scan takes no effort; @ is for the coarse index, of 8 dims"),
        ("8:4000", "this index gives a shortlist of at most"),
        ("16:0", "expected w:n for each step"),
        ("fast", "expected w:n for each step"),
        (16, "plan is a int; expected a Plan, a text such as '8:400 16:200', or what explain gave"),
    ],
)
def test_plans_by_hand_that_cannot_be_run(index: FunnelIndex, asked: np.ndarray, plan: str, said: str) -> None:
    for call in (lambda: index.search_vectors(asked, 10, plan=plan), lambda: index.explain(10, plan=plan)):
        with pytest.raises(InputError, match=said) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_plan_by_hand_takes_no_budget_and_is_not_explained_under_a_filter(index: FunnelIndex) -> None:
    with pytest.raises(InputError, match="give either a plan or a budget"):
        index.explain(plan="16:100", recall=0.9)
    with pytest.raises(InputError, match="explain takes a plan or a filter"):
        index.explain(plan="16:100", allowed_ids=[1, 2])


def test_a_plan_by_hand_is_explained_and_drawn(index: FunnelIndex) -> None:
    run = index.explain(plan=HALVING, run=True)
    assert [(line.name, line.width) for line in run.stages][1:] == [
        ("rerank", 16),
        ("rerank", 32),
        ("exact", 96),
    ]
    assert [line.candidates_out for line in run.stages] == [400, 200, 100, 10]
    recalls = [line.measured_recall or 0.0 for line in run.stages]
    assert recalls == sorted(recalls)
    assert run.recall == recalls[-1] > 0.5
    bars = [line.split()[1] for line in str(run).splitlines() if "█" in line]
    assert [len(bar) for bar in bars] == [30, 15, 7, 1]
    scan = index.explain(plan="16:300 64:40", run=True)
    first = scan.stages[0]
    itemsize = index.searcher.cascade.at(16).dtype.itemsize
    assert (first.name, first.width, first.candidates_in) == ("scan", 16, 3_000)
    assert first.bytes_touched == 3_000 * (16 * itemsize + 4)
    assert not scan.certificate.certified
    assert "a plan by hand: its recall is not certified" in str(scan)
    assert "not measured" in str(index.explain(plan="16:300 64:40"))
    assert index.explain(plan="flat").is_exact


def test_the_command_line_takes_plans_by_hand(folder: Path, asked: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "q.npy", asked[:1])
    query = ["--vector", str(tmp_path / "q.npy")]

    def shown(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, list(arguments))
        return result.exit_code, result.output

    code, text = shown("search", str(folder), *query, "--plan", "16:300 64:40")
    assert (code, "plan by hand 16:300 64:40" in text) == (0, True), text
    code, text = shown("explain", str(folder), "--plan", "8:400 16:200 32:100 64:50", "--run")
    assert (code, "█" in text, "measured µs" in text) == (0, True, True), text
    np.save(tmp_path / "unseen.npy", clustered_rows(300, DIM, seed=4))
    asked_of = ["bench", str(folder), "--queries", str(tmp_path / "unseen.npy"), "--out", str(tmp_path / "report")]
    code, text = shown(*asked_of, "--plan", "16:300 64:40")
    assert (code, "plan by hand" in text, (tmp_path / "report" / "results.json").exists()) == (0, True, True), text
    code, text = shown("search", str(folder), *query, "--plan", "9:300")
    assert (code, text.count("\n"), "no stage can be run at 9 dims" in text) == (2, 1, True), text
    code, text = shown("search", str(folder), *query, "--plan", "16:300", "--recall", "0.9")
    assert (code, text) == (2, "Error: give either a plan or a budget, not both\n")
