"""FunnelSearch in BEIR's own evaluation, on scifact and on corpora small enough to check by hand."""

from __future__ import annotations

import gc
import importlib
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from beir.retrieval.evaluation import EvaluateRetrieval

from funnel import Budget, BudgetError
from funnel.adaptors import PCA, Identity
from funnel.data.queries import read_qrels
from funnel.errors import EncoderError, InputError, MissingPackageError
from funnel.integrations.beir import FunnelSearch
from tests.funnel.corpora import documents, hashed_words

Corpus = dict[str, dict[str, str]]
Results = dict[str, dict[str, float]]
Vectors = npt.NDArray[np.float32]

# The corpus keeps what is relevant to the test queries alone, so that the others, which certify, are farther from it:
# live queries do differ from them.
pytestmark = pytest.mark.filterwarnings("ignore::funnel.errors.DriftWarning")

ROWS = 1_500
K = 10


@dataclass(frozen=True)
class Collection:
    """Some documents of scifact, with every one that is relevant to a test query."""

    corpus: Corpus
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    encoder: Callable[[Sequence[str]], Vectors]
    other_queries: Vectors

    def flat(self) -> Results:
        """The top 10 by numpy."""
        rows = unit(self.encoder([f"{d['title']} {d['text']}".strip() for d in self.corpus.values()]))
        scores = unit(self.encoder(list(self.queries.values()))) @ rows.T
        ids = np.array(list(self.corpus))
        best = np.argsort(-scores, axis=1)[:, :K]
        return {
            query: {str(ids[row]): float(of[row]) for row in top}
            for query, of, top in zip(self.queries, scores, best, strict=True)
        }


def unit(rows: npt.NDArray[Any]) -> Vectors:
    rows = rows.astype(np.float32)
    result: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return result


@pytest.fixture(scope="module")
def scifact(data_dir: Path) -> Collection:
    folder = data_dir / "scifact"
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    rows, query_rows = np.load(folder / "minilm-corpus.f16.npy"), np.load(folder / "minilm-queries.f16.npy")
    qrels = read_qrels(folder, "test")
    relevant = {id_ for judged in qrels.values() for id_ in judged}
    kept = sorted(range(len(lines)), key=lambda number: lines[number]["_id"] not in relevant)[:ROWS]
    corpus = {lines[i]["_id"]: {"title": lines[i]["title"], "text": lines[i]["text"]} for i in kept}
    known = {f"{line['title']} {line['text']}".strip(): row for line, row in zip(lines, rows, strict=True)}
    known |= {query["text"]: row for query, row in zip(queries, query_rows, strict=True)}
    others = [row for query, row in zip(queries, query_rows, strict=True) if query["_id"] not in qrels]
    return Collection(
        corpus,
        {query["_id"]: query["text"] for query in queries if query["_id"] in qrels},
        qrels,  # type: ignore[arg-type]
        # A build times the encoder on texts of its own.
        lambda texts: np.stack([known.get(text, rows[0]) for text in texts]),
        np.stack(others),
    )


@pytest.fixture(scope="module")
def retriever(scifact: Collection, tmp_path_factory: pytest.TempPathFactory) -> FunnelSearch:
    """After its first search: an index in a folder, certified on queries of the other split."""
    made = FunnelSearch(
        scifact.encoder,
        adaptor="pca",
        recall=0.99,
        index_path=tmp_path_factory.mktemp("beir") / "index",
        queries=scifact.other_queries,
        dims=[64, 128],
    )
    made.search(scifact.corpus, dict(list(scifact.queries.items())[:1]), K)
    return made


def small(count: int) -> Corpus:
    return {d["_id"]: {"title": d["title"], "text": d["text"]} for d in documents(count)}


def made_small(**settings: Any) -> FunnelSearch:
    return FunnelSearch(hashed_words, **{"adaptor": "pca", **settings})


def assert_well_formed(results: Results, corpus: Corpus, queries: dict[str, str], k: int) -> None:
    assert list(results) == list(queries)
    for hits in results.values():
        assert len(hits) == k
        assert set(hits) <= set(corpus)
        scores = list(hits.values())
        assert all(type(score) is float and -1.001 <= score <= 1.001 for score in scores)
        assert scores == sorted(scores, reverse=True)


def test_ndcg_at_recall_99_is_that_of_flat_search(scifact: Collection, retriever: FunnelSearch) -> None:
    evaluation = EvaluateRetrieval(retriever, k_values=[1, K])
    results = evaluation.retrieve(scifact.corpus, scifact.queries)
    assert_well_formed(results, scifact.corpus, scifact.queries, K)
    found, *_ = evaluation.evaluate(scifact.qrels, results, [K])
    flat, *_ = evaluation.evaluate(scifact.qrels, scifact.flat(), [K])
    assert flat["NDCG@10"] > 0.6
    assert found["NDCG@10"] == pytest.approx(flat["NDCG@10"], abs=0.003)


def test_an_index_on_disk_is_opened_and_its_certificate_can_be_read(
    scifact: Collection, retriever: FunnelSearch
) -> None:
    generation = retriever.index.manifest.generation
    again = FunnelSearch(scifact.encoder, recall=0.9, index_path=retriever.index_path)
    results = again.search(scifact.corpus, scifact.queries, K)
    assert again.index.manifest.generation == generation
    certificate = again.explain(K).certificate
    assert certificate.certified
    assert certificate.recall == 0.9
    assert len(scifact.other_queries) - 5 <= certificate.n_queries <= len(scifact.other_queries)  # repeats count once
    flat = scifact.flat()
    recall = np.mean([len(results[id_].keys() & flat[id_].keys()) / K for id_ in flat])
    # The certificate is about their distribution: 300 queries of it may lie 2 % below.
    assert recall >= 0.88


def test_beyond_what_is_calibrated_flat_search_is_run(scifact: Collection, retriever: FunnelSearch) -> None:
    queries = dict(list(scifact.queries.items())[:3])
    results = retriever.search(scifact.corpus, queries, 1_000)
    assert_well_formed(results, scifact.corpus, queries, 1_000)
    assert retriever.explain(1_000).plan.is_flat


def test_a_latency_that_cannot_be_met_is_an_error(scifact: Collection, retriever: FunnelSearch) -> None:
    hasty = FunnelSearch(scifact.encoder, recall=0.99, latency_ms=1e-3, index_path=retriever.index_path)
    with pytest.raises(BudgetError, match=r"recall 0\.99 and latency 0\.001 ms"):
        hasty.search(scifact.corpus, scifact.queries, K)
    with pytest.raises(InputError, match="calibrated for k up to 100"):
        hasty.search(scifact.corpus, scifact.queries, 200)


def test_a_smaller_corpus_than_was_asked_for_gives_all_of_it() -> None:
    corpus, queries = small(12), {"q": "the file of part 3", "r": "socket"}
    evaluation = EvaluateRetrieval(made_small())
    assert evaluation.top_k == 1_000
    assert_well_formed(evaluation.retrieve(corpus, queries), corpus, queries, 12)


def test_calls_of_few_queries_give_what_one_call_gives() -> None:
    corpus, queries = small(30), {f"q{number}": f"queue {number}" for number in range(7)}
    one_call = made_small().search(corpus, queries, 5)
    for id_, hits in made_small(batch_size=2).search(corpus, queries, 5).items():
        assert hits == pytest.approx(one_call[id_], abs=1e-6)


def test_a_document_with_the_id_of_the_query_is_left_to_beir() -> None:
    corpus = small(12)
    queries = {"d3": f"{corpus['d3']['title']} {corpus['d3']['text']}"}
    results = made_small().search(corpus, queries, 5)
    assert next(iter(results["d3"])) == "d3"
    EvaluateRetrieval.evaluate({"d3": {"d3": 1}}, results, [5])
    assert "d3" not in results["d3"]
    assert len(results["d3"]) == 4


def test_no_queries_have_no_results() -> None:
    assert made_small().search(small(3), {}, 5) == {}


def test_a_document_may_lack_a_title() -> None:
    corpus = {"a": {"text": "a file"}, "b": {"title": None, "text": "a socket"}}
    assert list(made_small().search(corpus, {"q": "socket"}, 1)["q"]) == ["b"]  # type: ignore[arg-type]


class BeirModel:
    """What BEIR asks of a model; remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def encode_queries(self, queries: list[str], **_: Any) -> Vectors:
        return hashed_words(queries)

    def encode_corpus(self, corpus: list[dict[str, str]], **_: Any) -> Vectors:
        self.given += corpus
        return hashed_words([f"{document['title']} {document['text']}" for document in corpus])


def test_a_model_of_beir_is_given_documents_as_beir_gives_them() -> None:
    corpus, queries, model = small(12), {"q": "the file of part 3"}, BeirModel()
    found = FunnelSearch(model, adaptor="pca").search(corpus, queries, 5)
    assert model.given == list(corpus.values())
    assert found == made_small().search(corpus, queries, 5)


def test_embeddings_in_files_give_what_texts_give(tmp_path: Path) -> None:
    corpus, queries = small(30), {"q": "the file of part 3", "r": "socket"}
    evaluation = EvaluateRetrieval(made_small(), k_values=[5])
    folder = str(tmp_path / "embeddings")
    found = evaluation.encode_and_retrieve(corpus, queries, encode_output_path=folder)
    expected = made_small().search(corpus, queries, 5)
    assert {id_: list(hits) for id_, hits in found.items()} == {id_: list(hits) for id_, hits in expected.items()}
    assert found["q"] == pytest.approx(expected["q"], abs=1e-3)
    written = sorted(path.name for path in Path(folder).iterdir())
    assert written == ["corpus.0.pkl", "queries.pkl"]
    with pytest.raises(InputError, match="corpus_embeddings_files is empty"):
        made_small().search_from_files(f"{folder}/queries.pkl", [], 5)
    (tmp_path / "pickled.pkl").write_bytes(pickle.dumps((np.eye(2), ["a", "b"])))
    with pytest.raises(InputError, match=r"pickled\.pkl holds no embeddings of FunnelSearch\.encode"):
        made_small().search_from_files(str(tmp_path / "pickled.pkl"), [f"{folder}/corpus.0.pkl"], 5)


def test_another_corpus_gets_another_index_and_the_temporary_one_goes() -> None:
    retriever, queries = made_small(), {"q": "{title} {text}".format(**small(12)["d3"])}
    retriever.search(small(12), queries, 3)
    first = retriever.index.path
    retriever.search(small(12), queries, 5)
    assert retriever.index.path == first
    swapped = dict(zip(small(12), reversed(small(12).values()), strict=True))
    paths = [first]
    for corpus in (small(13), swapped, small(12)):
        found = retriever.search(corpus, queries, 3)
        assert set(found["q"]) <= set(corpus)
        gc.collect()
        paths.append(retriever.index.path)
    assert next(iter(found["q"])) == "d3"
    assert [path.exists() for path in paths] == [False, False, True, True]  # the one before goes with the next
    del retriever
    gc.collect()
    retriever = made_small()
    retriever.search(small(12), queries, 3)
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize(
    ("corpus", "settings", "difference"),
    [
        (small(13), {}, r"holds other documents \(12, the corpus has 13\)"),
        ({f"e{id_}": document for id_, document in small(12).items()}, {}, "holds other documents"),
        ({id_: {"text": f"other {number}"} for number, id_ in enumerate(small(12))}, {}, "the same ids"),
        (small(12), {"adaptor": "identity"}, r"has another adaptor \(pca\)"),
        (small(12), {"adaptor": PCA(np.eye(64, dtype=np.float32))}, "has another adaptor"),
        (small(12), {"encoder_or_model": lambda texts: hashed_words(texts)[:, :32]}, "64 dims, the model gives 32"),
        (small(12), {"encoder_or_model": lambda texts: hashed_words(texts)[:, ::-1]}, "by another model"),
    ],
)
def test_an_index_of_something_else_is_refused(corpus: Any, settings: Any, difference: str, tmp_path: Path) -> None:
    queries = {"q": "the file of part 3"}
    made_small(index_path=tmp_path / "index").search(small(12), queries, 3)
    given = {"encoder_or_model": hashed_words, **settings}
    with pytest.raises(InputError, match=f"{difference}.*give another index_path"):
        FunnelSearch(index_path=tmp_path / "index", **given).search(corpus, queries, 3)


def test_the_adaptor_of_an_index_may_be_named_given_or_left_open(tmp_path: Path) -> None:
    made_small(index_path=tmp_path / "index").search(small(12), {"q": "socket"}, 3)
    opened = FunnelSearch(hashed_words, index_path=tmp_path / "index")
    opened.search(small(12), {"q": "socket"}, 3)
    adaptor = opened.index.searcher.adaptor
    adaptor.save(tmp_path / "adaptor")
    for same in ("pca", "auto", adaptor, tmp_path / "adaptor", str(tmp_path / "adaptor")):
        again = FunnelSearch(hashed_words, adaptor=same, index_path=tmp_path / "index")
        assert len(again.search(small(12), {"q": "socket"}, 3)["q"]) == 3


@pytest.mark.parametrize("score_function", ["dot", "cos", None])
def test_other_score_functions_are_refused(score_function: str | None) -> None:
    with pytest.raises(InputError, match=r"ranks by cosine alone: give EvaluateRetrieval score_function='cos_sim'"):
        EvaluateRetrieval(made_small(), score_function=score_function).retrieve(small(3), {"q": "file"})


def test_arguments_of_a_search_are_checked() -> None:
    retriever, queries = made_small(), {"q": "file"}
    assert retriever.search(small(3), queries, 1, "cosine", return_sorted=True)
    with pytest.raises(InputError, match="'recall' is no argument of this search"):
        retriever.search(small(3), queries, 1, recall=0.9)
    for top_k in (0, -1, 2.5, True):
        with pytest.raises(InputError, match=r"top_k is .*expected a whole number from 1"):
            retriever.search(small(3), queries, top_k)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty"):
        made_small().search({}, queries, 1)
    with pytest.raises(InputError, match="document 'a' is a str; expected a dict with title and text"):
        retriever.search({"a": "text"}, queries, 1)  # type: ignore[dict-item]
    with pytest.raises(InputError, match="query 'q' is a int; expected a text"):
        retriever.search(small(3), {"q": 1}, 1)  # type: ignore[dict-item]


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="either budget, or recall and latency_ms"):
        made_small(budget=Budget(0.9), recall=0.9)
    with pytest.raises(InputError, match=r"recall is 1\.5"):
        made_small(recall=1.5)
    with pytest.raises(InputError, match="batch_size is 0"):
        made_small(batch_size=0)
    with pytest.raises(InputError, match=r"'path' is no option .* choose among .*memory_mb"):
        made_small(path="index")
    with pytest.raises(EncoderError, match="an encoder cannot be a int"):
        FunnelSearch(3)
    with pytest.raises(InputError, match="no index before the first search"):
        made_small().explain()


def test_a_build_that_fails_leaves_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError, match="the adaptor is for 3 dims"):
        made_small(adaptor=Identity(3)).search(small(3), {"q": "file"}, 1)
    assert not list(tmp_path.iterdir())


def test_without_beir_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "funnel.integrations.beir")
    monkeypatch.setitem(sys.modules, "beir.retrieval.search", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'funnel-retrieval\[beir\]'"):
        importlib.import_module("funnel.integrations.beir")


def test_prompts_and_width_reach_the_encoder_that_queries_and_documents_pass() -> None:
    search = FunnelSearch(hashed_words, query_prompt="query: ", truncate_dim=8)
    assert search._encoder.encode_query(["open a file"]).shape == (1, 8)
    expected = FunnelSearch(hashed_words, truncate_dim=8)._encoder.encode_query(["query: open a file"])
    np.testing.assert_array_equal(search._encoder.encode_query(["open a file"]), expected)
    with pytest.raises(InputError, match="a model of BEIR has prompts and a width of its own"):
        FunnelSearch(BeirModel(), query_prompt="query: ")
