from typing import Any

import numpy as np
import pytest
import torch

from funnel.adaptors import PCA, Judged
from funnel.adaptors.sampling import held_out_judged, held_out_rows, ndcg, own_rows
from tests.funnel.adaptors.clusters import clustered

pytrec_eval = pytest.importorskip("pytrec_eval")


def test_shortlist_recall_is_what_a_loop_finds() -> None:
    rows, queries = clustered(600, 16), clustered(30, 16, seed=1)
    held_out = held_out_rows(torch.from_numpy(queries), torch.from_numpy(rows))
    assert held_out.depth == 10
    found = held_out.per_query(lambda vectors: vectors, (4, 16))
    for width in (4, 16):
        prefixes = rows[:, :width] / np.linalg.norm(rows[:, :width], axis=1, keepdims=True)
        for i, query in enumerate(queries):
            truth = np.argsort(-(rows @ query))[:10]
            short = np.argsort(-(prefixes @ query[:width]))[:10]
            assert found[width][i] == pytest.approx(len(set(truth) & set(short)) / 10)
    assert held_out.figures(lambda vectors: vectors, (16,))[16] == 1.0


def test_the_shortlist_is_a_share_of_a_small_corpus_and_fifty_of_a_large_one() -> None:
    for rows, expected in ((6, 6), (300, 10), (2_000, 20), (9_000, 50)):
        vectors = torch.from_numpy(clustered(rows, 8))
        assert held_out_rows(vectors[:3], vectors).depth == expected


def judged_set(seed: int) -> tuple[torch.Tensor, Judged]:
    rng = np.random.default_rng(seed)
    rows = clustered(80, 12, seed)
    queries = torch.from_numpy(clustered(9, 12, seed + 1))
    documents = [torch.from_numpy(rng.choice(80, rng.integers(1, 15), replace=False)) for _ in range(9)]
    grades = [torch.from_numpy(rng.integers(1, 4, len(found)).astype(np.float32)) for found in documents]
    return torch.from_numpy(rows), Judged(queries, documents, grades)


@pytest.mark.parametrize("seed", range(5))
def test_ndcg_is_that_of_trec_eval(seed: Any) -> None:
    rows, judged = judged_set(seed)
    scores = judged.queries @ rows.T
    own = torch.full((9,), -1)
    found = ndcg(scores.argsort(dim=1, descending=True), own, judged)
    qrels = {
        str(q): {str(int(d)): int(g) for d, g in zip(judged.documents[q], judged.grades[q], strict=True)}
        for q in range(9)
    }
    run = {str(q): {str(d): float(scores[q, d]) for d in range(80)} for q in range(9)}
    expected = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    assert found.tolist() == pytest.approx([expected[str(q)]["ndcg_cut_10"] for q in range(9)], abs=1e-6)


def test_a_document_that_equals_the_query_is_left_out_unless_it_is_judged() -> None:
    rows = torch.eye(4)
    judged = Judged(rows[:2], [torch.tensor([3]), torch.tensor([1])], [torch.ones(1), torch.ones(1)])
    assert own_rows(judged.queries, rows).tolist() == [0, 1]
    ranking = torch.tensor([[0, 3, 1, 2], [1, 0, 2, 3]])
    assert ndcg(ranking, torch.tensor([0, 1]), judged).tolist() == [1.0, 1.0]
    figures = held_out_judged(judged, rows).figures(lambda vectors: vectors, (4,))
    assert 0 < figures[4] <= 1


def test_pca_keeps_more_than_truncation() -> None:
    rows, queries = clustered(3_000), clustered(200, seed=1)
    held_out = held_out_rows(torch.from_numpy(queries), torch.from_numpy(rows))
    plain = held_out.figures(lambda vectors: vectors, (8,))[8]
    assert held_out.figures(PCA.fit(rows).map, (8,))[8] > plain + 0.1
