"""The funnel measured against flat search."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from funnel import FLAT, FunnelIndex
from funnel.errors import InputError
from funnel.reports import bench as module
from funnel.reports.bench import BenchQueries, bench, held_out_queries
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import DIM, ROWS, brute_force, funnel_plan


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_PER_FIGURE", 0.02)


def test_figures(graph: FunnelIndex, unseen: np.ndarray) -> None:
    results = bench(graph, BenchQueries(unseen), "a test", targets=(0.9, 1.0))
    assert (results["title"], results["k"], results["n_queries"]) == ("a test", 10, 300)
    assert [point["target"] for point in results["funnel"]] == [0.9, 1.0]
    assert results["flat"]["bytes"] == ROWS * DIM * 4
    for point in results["funnel"]:
        assert point["target"] is not None
        assert point["recall"] >= point["target"] - 0.02
        assert point["speedup_single"] == pytest.approx(results["flat"]["us_single"] / point["us_single"])
        assert point["speedup_batch"] == pytest.approx(results["flat"]["us_batch"] / point["us_batch"])
        assert min(point["us_single"], point["us_batch"], point["predicted_us_single"]) > 0
        assert "ndcg@10" not in point
    exact = results["funnel"][1]
    assert (exact["plan"], exact["recall"], exact["exact"]) == ("flat", 1.0, True)
    assert not results["funnel"][0]["exact"]
    assert results["index"]["rows"] == ROWS
    assert results["index"]["certificate"] == "certified on 600 real queries"


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_of_any_size(batch: int, graph: FunnelIndex, unseen: np.ndarray) -> None:
    (point,) = bench(graph, BenchQueries(unseen[:20]), "", targets=(1.0,), batch=batch)["funnel"]
    assert point["us_batch"] > 0


@pytest.mark.parametrize("batch", [0, -1])
def test_no_batch(batch: int, graph: FunnelIndex, unseen: np.ndarray) -> None:
    with pytest.raises(InputError, match="batch is"):
        bench(graph, BenchQueries(unseen), "", batch=batch)


def test_recall_is_that_of_numpy(graph: FunnelIndex, rows: np.ndarray, unseen: np.ndarray) -> None:
    plan = funnel_plan(graph, 0.8)
    truth, _ = brute_force(rows, unseen, 10)
    found, _ = graph.search_vectors(unseen, 10, plan=plan)
    positions = [[int(id_.split()[1]) for id_ in row] for row in found]
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(positions, truth.tolist(), strict=True)])
    prepared = graph.searcher.prepare(unseen)
    assert module._Truth(graph, prepared, None, 10).recall(plan)[0] == pytest.approx(expected, abs=1e-3)


def test_rows_as_queries_do_not_find_themselves(graph: FunnelIndex, rows: np.ndarray) -> None:
    held = held_out_queries(graph)
    assert held.own_positions is not None
    assert len(held.vectors) == 500
    assert_allclose(held.vectors, rows[held.own_positions], atol=1e-5)
    assert_array_equal(held_out_queries(graph).own_positions, held.own_positions)
    prepared = graph.searcher.prepare(held.vectors)
    truth = module._Truth(graph, prepared, held.own_positions, 10)
    assert truth.recall(FLAT) == (1.0 - truth.lost, 0.0)
    assert truth.lost < 5e-4
    without = brute_force(rows, rows[held.own_positions], 11)[1][:, 1:]
    assert_allclose(truth._scores, without, atol=2e-6)


def test_judgements(texts: FunnelIndex) -> None:
    pytest.importorskip("pytrec_eval")
    asked = texts.encode_queries(["it opens the file of part 0", "it closes the clock of part 15"])
    qrels = {"q0": {"d0": 1}, "q1": {"d15": 1}, "unasked": {"d1": 1}}
    results = bench(texts, BenchQueries(asked, ["q0", "q1"]), "", qrels, targets=(0.9,))
    assert results["flat"]["ndcg@10"] == pytest.approx(1.0)
    assert results["funnel"][0]["recall@100"] == pytest.approx(1.0)
    with pytest.raises(InputError, match="queries with ids"):
        bench(texts, BenchQueries(asked), "", qrels)
    with pytest.raises(InputError, match="belong together"):
        bench(texts, BenchQueries(asked, ["x", "y"]), "", qrels)


def test_what_cannot_be_measured(graph: FunnelIndex) -> None:
    with pytest.raises(InputError, match="k is 0"):
        bench(graph, BenchQueries(clustered_rows(3)), "", k=0)
    with pytest.raises(InputError, match="32"):
        bench(graph, BenchQueries(clustered_rows(3, 32)), "")
    with pytest.raises(InputError, match="no 3000 neighbours"):
        bench(graph, held_out_queries(graph), "", k=ROWS)
