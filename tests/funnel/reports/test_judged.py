import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from funnel.adaptors import PCA, Identity
from funnel.building.training import Embedded, EmbeddingCache
from funnel.encoding.encoders import CallableEncoder
from funnel.errors import EncoderError, InputError
from funnel.reports.adaptors import JudgedSet, SetFigures, mean_shares, measure, ways_of
from tests.funnel.adaptors.clusters import clustered
from tests.funnel.corpora import hashed_words
from tests.funnel.reports.beir_sets import beir_set, write_set


def embedded(letter: str, rows: npt.NDArray[np.float32]) -> Embedded:
    return Embedded("set", [f"{letter}{i}" for i in range(len(rows))], np.asarray(rows, np.float32))


def judged_set(documents: Any, queries: npt.NDArray[np.float32], qrels: Any) -> JudgedSet:
    return JudgedSet(embedded("d", documents), embedded("q", queries), qrels)


def by_hand(documents: Any, queries: npt.NDArray[np.float32], qrels: Any, width: int) -> dict[str, float]:
    """nDCG@10, recall@100 and shortlist recall in plain numpy, without left-out documents.

    Passes over data with a near-tie: two scores that float32 cannot tell apart rank either way.
    """
    documents, queries = documents.astype(np.float64), queries.astype(np.float64)
    found: dict[str, list[float]] = {"ndcg@10": [], "recall@100": [], "shortlist recall": []}
    for i, query in enumerate(queries):
        part = documents[:, :width] / np.linalg.norm(documents[:, :width], axis=1, keepdims=True)
        scores = part @ query[:width]
        order = np.argsort(-scores)
        assume(np.diff(np.sort(scores)).min() > 1e-6 * np.linalg.norm(query[:width]))
        grades = np.zeros(len(documents))
        for name, grade in qrels[f"q{i}"].items():
            grades[int(name[1:])] = max(grade, 0)
        gain = sum(grades[row] / math.log2(rank + 2) for rank, row in enumerate(order[:10]))
        best = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(sorted(grades, reverse=True)[:10]))
        found["ndcg@10"].append(gain / best)
        found["recall@100"].append((grades[order[:100]] > 0).sum() / (grades > 0).sum())
        true = np.argsort(-(documents @ query))[:10]
        found["shortlist recall"].append(len(set(true) & set(order[:50])) / len(true))
    return {name: float(np.mean(values)) for name, values in found.items()}


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(5, 160))
def test_the_figures_are_those_of_plain_arithmetic(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    documents, queries = clustered(count, 8, seed=seed), clustered(6, 8, seed=seed + 1)
    qrels = {
        f"q{i}": {f"d{row}": grade for row, grade in zip(rng.permutation(count)[:4], (3, 1, 0.25, 0), strict=True)}
        for i in range(6)
    }
    figures = measure(judged_set(documents, queries, qrels), {"truncation": Identity(8)}, [2, 5]).figures
    for width in (2, 5, 8):
        expected = by_hand(documents, queries, qrels, width)
        assert {name: ways["truncation"][width] for name, ways in figures.items()} == pytest.approx(expected, abs=1e-5)


def test_a_rotation_changes_prefixes_and_not_the_full_width() -> None:
    documents, queries = clustered(300, 16), clustered(40, 16, seed=1)
    near = np.argsort(-queries @ documents.T, axis=1)[:, :3]
    judged = judged_set(documents, queries, {f"q{i}": {f"d{row}": 1 for row in rows} for i, rows in enumerate(near)})
    found = measure(judged, ways_of(documents, PCA.fit(documents)), [4, 8])
    for ways in found.figures.values():
        assert ways["adaptor"] == ways["pca"]
        assert ways["pca"][16] == pytest.approx(ways["truncation"][16], abs=1e-6)
        assert ways["pca"][4] > ways["truncation"][4]
    assert found.full == pytest.approx({"ndcg@10": 1.0, "recall@100": 1.0, "shortlist recall": 1.0})
    assert (found.documents, found.queries, found.left_out) == (300, 40, 0)


def test_a_document_that_equals_the_query_is_left_out_unless_it_is_judged() -> None:
    documents = clustered(30, 8)
    own = documents[:2]
    second = np.argsort(-own @ documents.T, axis=1)[:, 1]
    qrels = {"q0": {f"d{second[0]}": 1}, "q1": {"d1": 1}}
    found = measure(judged_set(documents, own, qrels), {"truncation": Identity(8)}, [4])
    assert found.left_out == 1
    assert found.full["ndcg@10"] == 1.0  # q0: the nearest other document; q1: the one that equals it, being judged
    assert found.full["shortlist recall"] == 1.0
    # Copies of one document are all left out, and as many others come in their place.
    copied = np.concatenate([documents, np.repeat(own[:1], 20, axis=0)])
    found = measure(judged_set(copied, own, qrels), {"truncation": Identity(8)}, [4])
    assert found.left_out == 21
    assert found.full["ndcg@10"] == 1.0


def test_documents_that_tie_stand_for_each_other() -> None:
    documents = clustered(100, 8)
    query = np.roll(documents[:1], 1, axis=1)
    nearest = documents[np.argmax(query @ documents.T)]
    copied = np.concatenate([documents, np.repeat(nearest[None], 150, axis=0)])
    found = measure(judged_set(copied, query, {"q0": {"d0": 1}}), {"truncation": Identity(8)}, [7])
    assert found.full["shortlist recall"] == 1.0


def test_a_corpus_of_nothing_but_the_query() -> None:
    rows = clustered(1, 8)
    found = measure(judged_set(rows, rows, {"q0": {"elsewhere": 1}}), {"truncation": Identity(8)}, [4])
    assert found.full == {"ndcg@10": 0.0, "recall@100": 0.0, "shortlist recall": 0.0}


def test_shares_are_averaged_over_sets_and_not_over_queries() -> None:
    def figures(name: str, small: Any, full: Any) -> SetFigures:
        return SetFigures(name, 5, 5, 0, {"ndcg@10": {"truncation": {4: small, 8: full}, "pca": {4: full, 8: full}}})

    shares = mean_shares([figures("a", 0.1, 0.4), figures("b", 0.6, 0.8)])
    assert shares == {"truncation": {4: pytest.approx(0.5), 8: 1.0}, "pca": {4: 1.0, 8: 1.0}}
    with pytest.raises(InputError, match="nothing: the full embedding's nDCG@10 is 0"):
        mean_shares([figures("nothing", 0.1, 0.0)])


def test_widths_and_encoders_must_fit() -> None:
    judged = judged_set(clustered(20, 8), clustered(3, 8, seed=1), {f"q{i}": {"d0": 1} for i in range(3)})
    with pytest.raises(EncoderError, match="pca takes vectors of 6 dims, and those of set have 8"):
        measure(judged, {"truncation": Identity(8), "pca": Identity(6)}, [4])
    with pytest.raises(EncoderError, match="queries have 6 dims, the documents 8"):
        judged_set(clustered(20, 8), clustered(3, 6), {"q0": {"d0": 1}})


def read(folder: Path, split: str = "test", encoder: Any = None, cache: Any = None) -> JudgedSet:
    return JudgedSet.read(folder, folder.name, split, encoder, cache or EmbeddingCache(folder / "cache"), False)


def test_only_the_judged_queries_are_read(tmp_path: Path) -> None:
    judged = read(beir_set(tmp_path / "small"))
    assert judged.queries.ids == [f"q{i}" for i in range(0, 60, 2)]
    np.testing.assert_allclose(judged.queries.vectors, clustered(60, 16, seed=1)[::2], atol=1e-6)
    np.testing.assert_allclose(judged.documents.vectors, clustered(200, 16), atol=1e-6)
    assert judged.name == "small"
    assert read(tmp_path / "small", "train").queries.ids[0] == "q1"


def test_only_the_judged_queries_are_encoded(tmp_path: Path) -> None:
    asked = []

    def encode(texts: list[str]) -> npt.NDArray[np.float32]:
        asked.extend(texts)
        return hashed_words(texts)

    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": "one word"}\n{"_id": "b", "text": "two words"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "x", "text": "one"}\n{"_id": "y", "text": "another"}\n')
    (tmp_path / "test.tsv").write_text("x\ta\t1\ny\ta\t0\n")
    judged = read(tmp_path, encoder=CallableEncoder(encode, "words"))
    assert asked[-3:] == ["one word", "two words", "one"]
    assert "another" not in asked
    assert (judged.queries.ids, judged.documents.ids, dict(judged.qrels)) == (["x"], ["a", "b"], {"x": {"a": 1}})


def test_judgements_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    rows = clustered(20, 8)
    folder = write_set(tmp_path / "odd", rows, rows[:2], {"test": {"q0": {"d1": 1}, "q7": {"d1": 1}}})
    with pytest.raises(InputError, match=r"1 of 2 judged queries are not in .*queries.jsonl \(q7\)"):
        read(folder)
    (folder / "qrels" / "dev.tsv").write_text("q0\td1\t0\n")
    with pytest.raises(InputError, match=r"none of the 1 queries judged in .*odd \(dev\) has a relevant document"):
        read(folder, "dev")
    with pytest.raises(InputError, match="no judgements at"):
        read(folder, "train")
