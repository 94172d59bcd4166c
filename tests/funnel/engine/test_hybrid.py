"""Hybrid search: fusion by reciprocal ranks, several stores, deadlines, budgets, and what is refused."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from funnel import FLAT, BudgetError, FunnelIndex
from funnel.data.documents import Document, DocumentStore
from funnel.engine.hybrid import DEFAULT_WEIGHT, DEPTH, RRF_K, Lexical, fuse, list_depth
from funnel.errors import EncoderError, InputError
from funnel.plan import Plan, Stage
from funnel.request import Deadline, Reading
from funnel.results import Hits, Ranks
from tests.funnel.corpora import documents, hashed_words


def ranking(*positions: int) -> tuple[np.ndarray, np.ndarray]:
    return np.array(positions, dtype=np.int64), np.linspace(1, 0.5, len(positions), dtype=np.float32)


def found(hits: object) -> list[object]:
    assert isinstance(hits, Hits)
    return [hit.id for hit in hits]


def test_fusion_worked_out_by_hand() -> None:
    best = fuse(ranking(7, 8, 9), ranking(9, 5), weight=0.25, k=3)
    expected = {
        7: 0.75 / (RRF_K + 1), 8: 0.75 / (RRF_K + 2), 9: 0.75 / (RRF_K + 3) + 0.25 / (RRF_K + 1), 5: 0.25 / (RRF_K + 2),
    }  # fmt: skip
    assert [position for position, _, _ in best] == sorted(expected, key=lambda p: -expected[p])[:3] == [9, 7, 8]
    assert [score for _, score, _ in best] == [pytest.approx(expected[p]) for p in (9, 7, 8)]
    assert best[0][2] == Ranks(dense=3, cosine=0.5, lexical=1, bm25=1.0)
    assert best[1][2] == Ranks(dense=1, cosine=1.0)


def test_fusion_at_its_ends() -> None:
    dense, words = ranking(1, 2, -1), ranking(2, 3)
    assert [position for position, _, _ in fuse(dense, words, 0.0, 9)] == [1, 2]
    assert [position for position, _, _ in fuse(dense, words, 1.0, 9)] == [2, 3]
    assert [position for position, _, _ in fuse(dense, None, 0.5, 9)] == [1, 2]
    assert [position for position, _, _ in fuse(ranking(4), ranking(5), 0.5, 2)] == [4, 5]  # a tie: the dense one first


def test_depth_of_the_lists() -> None:
    assert list_depth(3, 10_000) == DEPTH
    assert list_depth(DEPTH + 5, 10_000) == DEPTH + 5
    assert list_depth(3, 7) == 7
    plan = Plan(effort=64, shortlist=64, stages=(Stage(48, 20),))
    assert list_depth(10, 10_000, plan) == 20
    assert list_depth(10, 10_000, FLAT) == DEPTH


def stores_of(tmp_path: Path, *parts: list[str]) -> list[tuple[int, DocumentStore]]:
    stores, first = [], 0
    for number, texts in enumerate(parts):
        path = tmp_path / f"{number}.sqlite"
        with DocumentStore.create(path) as made:
            made.append([Document(text, "", text) for text in texts])
        stores.append((first, DocumentStore.open(path)))
        first += len(texts)
    return stores


def test_several_stores_are_one_list(tmp_path: Path) -> None:
    rest = ["plum", "pear", "fig", "date"]
    lexical = Lexical(stores_of(tmp_path, ["red apple", *rest], ["apple", *rest], rest))
    best = lexical.rank("apple", 10)
    assert best is not None
    assert best[0].tolist() == [5, 0]  # the shorter document is first, whichever store it is in
    assert (np.diff(best[1]) < 0).all()
    assert [one[0].tolist() for one in lexical.rank_all(["apple", "fig", "nothing"], 2) if one] == [[5, 0], [3, 8], []]
    allowed = np.ones(5, dtype=np.bool_)
    allowed[0] = False
    without = Lexical(lexical.stores, [None, allowed, None]).rank("apple", 10)
    assert without is not None
    assert without[0].tolist() == [0]


def test_stores_without_words(tmp_path: Path) -> None:
    lexical = Lexical(stores_of(tmp_path, [""], ["plum", "red apple", "fig"], [""]))
    best = lexical.rank("apple", 10)
    assert best is not None
    assert best[0].tolist() == [2]
    nothing = Lexical(lexical.stores[:1]).rank("apple", 10)
    assert nothing is not None
    assert nothing[0].tolist() == []


def test_added_documents_rank_as_after_compaction(tmp_path: Path) -> None:
    said = ("quarterly report of unit", "minutes of the board on unit", "letter to the owners of unit")
    texts = [f"{said[number * 2 % 5 % 3]} {number}" for number in range(600)]
    index = FunnelIndex.build(
        [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts)],
        tmp_path / "index", encoder=hashed_words, progress=False,
    )  # fmt: skip
    index.add([{"_id": "z", "text": "quarterly report on zanzibar"}])
    index.add([{"_id": "y", "text": "the report"}, {"_id": "x", "title": "zanzibar", "text": "letter to the board"}])
    queries = ["zanzibar report", "report", "quarterly report of unit 17", "the board", "letter zanzibar zanzibar"]
    before = [index.search(query, 10, hybrid=1.0) for query in queries]
    assert found(before[0])[:2] == ["z", "x"]
    index.compact()
    for query, hits in zip(queries, before, strict=True):
        after = index.search(query, 10, hybrid=1.0)
        assert found(hits) == found(after)
        assert [hit.ranks and hit.ranks.bm25 for hit in hits] == pytest.approx(
            [hit.ranks and hit.ranks.bm25 for hit in after], rel=1e-6
        )


def test_both_lists_reach_the_hits(texts: FunnelIndex) -> None:
    query = "the parser of part 44"
    hits = texts.search(query, 5, hybrid=0.5)
    dense = texts.search(query, DEPTH)
    assert isinstance(hits, Hits)
    assert isinstance(dense, Hits)
    assert texts.lexical is not None
    words = texts.lexical.rank(query, DEPTH)
    assert words is not None
    near = {hit.id: (rank, hit.score) for rank, hit in enumerate(dense, 1)}
    ids = texts.ids()
    lexical = {ids[position]: rank for rank, position in enumerate(words[0].tolist(), 1)}
    for hit in hits:
        assert hit.ranks is not None
        assert hit.text
        rank, cosine = near.get(hit.id, (None, None))
        assert (hit.ranks.dense, hit.ranks.lexical) == (rank, lexical.get(hit.id))
        assert hit.ranks.cosine == (None if cosine is None else pytest.approx(cosine, abs=1e-6))
        both = [0.5 / (RRF_K + rank) for rank in (hit.ranks.dense, hit.ranks.lexical) if rank is not None]
        assert hit.score == pytest.approx(sum(both))
    assert hits[0].id == "d44"
    assert hits.served.lexical is True
    assert hits.served.complete
    assert hits.served.to_json()["lexical"] is True
    assert "lexical" not in dense.served.to_json()
    assert dense[0].ranks is None


def test_weights_at_their_ends_are_the_two_parts(texts: FunnelIndex) -> None:
    query = "locks the queue of part 76"
    exact = found(texts.search(query, 7, recall=1.0))
    assert found(texts.search(query, 7, recall=1.0, hybrid=0.0)) == exact
    assert found(texts.search(query, 7, recall=1.0, hybrid=False)) == exact
    words = texts.lexical and texts.lexical.rank(query, 7)
    assert words is not None
    assert found(texts.search(query, 7, hybrid=1.0)) == [f"d{position}" for position in words[0]]  # type: ignore[index]
    assert found(texts.search("zzz", 5, hybrid=1)) == []  # no document holds the word
    assert len(found(texts.search("zzz", 5, hybrid=0.5))) == 5
    assert found(texts.search(query, 7, hybrid=True)) == found(texts.search(query, 7, hybrid=DEFAULT_WEIGHT))


def test_languages_without_blanks_between_words(tmp_path: Path) -> None:
    """Beside an encoder that knows no such word, so that the fused hit is BM25's."""
    sentences = {
        "zh": ("中国资本市场的发展正在加快", "市场发展"),
        "ja": ("今日は天気がいいので散歩に行きます", "天気"),
        "kana": ("コンピューターを修理する", "コンピューター"),
        "th": ("ราคาข้าวในตลาดโลกสูงขึ้น", "ตลาดโลก"),
    }
    records = [{"_id": name, "text": text} for name, (text, _) in sentences.items()]
    made = FunnelIndex.build(
        [*records, *documents(60)], tmp_path / "index", encoder=lambda texts: hashed_words(["same"] * len(texts)),
        progress=False,
    )  # fmt: skip
    made.add([{"_id": "later", "text": "北京的天空很蓝"}], progress=False)
    for name, query in [*((name, query) for name, (_, query) in sentences.items()), ("later", "天空")]:
        for weight in (0.5, 1.0):
            hit = made.search(query, k=3, hybrid=weight)[0]
            assert hit.id == name
            assert hit.ranks is not None
            assert hit.ranks.lexical == 1
    assert [hit.id for hit in made.search("天气", k=3, hybrid=1)] == []


def test_several_texts_at_once(texts: FunnelIndex) -> None:
    queries = [f"part {number}" for number in range(12)]
    together = texts.search(queries, 4, recall=1.0, hybrid=0.3)
    alone = [texts.search(query, 4, recall=1.0, hybrid=0.3) for query in queries]
    assert [found(hits) for hits in together] == [found(hits) for hits in alone]
    assert texts.search([], 4, hybrid=0.3) == []


def test_a_deadline_stops_bm25(texts: FunnelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    relaxed = texts.search("part 7", 3, recall=1.0, hybrid=0.5, deadline_ms=60_000)
    assert isinstance(relaxed, Hits)
    assert relaxed.served.complete
    assert found(relaxed) == found(texts.search("part 7", 3, recall=1.0, hybrid=0.5))
    monkeypatch.setattr(Deadline, "passed", lambda _: True)
    stopped = texts.search("part 7", 3, hybrid=0.5, deadline_ms=50)
    assert isinstance(stopped, Hits)
    assert stopped.served.lexical is False
    assert not stopped.served.complete
    assert [hit.ranks.lexical for hit in stopped if hit.ranks] == [None] * 3
    assert "stopped" in str(stopped.served)


def test_a_latency_leaves_room_for_bm25(texts: FunnelIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(found(texts.search("part 7", 3, hybrid=0.5, latency_ms=5_000))) == 3
    slow = FunnelIndex.open(texts.path, encoder=hashed_words)
    monkeypatch.setattr("funnel.search.times_ms", lambda call: (call(0), [500.0])[1])
    with pytest.raises(BudgetError, match="BM25 for one query takes 500 ms"):
        slow._state.beside.ms(1, 10, Reading(fused=3), 100.0)


def test_an_explicit_plan(graph_texts: FunnelIndex) -> None:
    plan = Plan(effort=64, shortlist=64, stages=(Stage(48, 20),))
    hits = graph_texts.search("the parser of part 44", 5, hybrid=0.5, plan=plan)
    assert isinstance(hits, Hits)
    assert hits.served.plan == plan
    assert max(hit.ranks.dense or 0 for hit in hits if hit.ranks) <= 20


@pytest.fixture(scope="module")
def graph_texts(tmp_path_factory: pytest.TempPathFactory) -> FunnelIndex:
    """Documents beside a graph."""
    path = tmp_path_factory.mktemp("graph-texts") / "index"
    FunnelIndex.build(
        documents(1_500), path, encoder=hashed_words, adaptor="pca", dims=[32, 48], coarse="hnsw-sq8", progress=False
    )
    return FunnelIndex.open(path, encoder=hashed_words)


def test_an_index_built_without_the_words_says_so(text_folder: Path, copied: Callable[[Path], Path]) -> None:
    (path,) = copied(text_folder).glob("documents/*/documents.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE lexical")
    connection.close()
    with DocumentStore.open(path) as store, pytest.raises(InputError, match="holds no words to look for"):
        Lexical([(0, store)]).rank("clock 5", 9)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan"), "half", [0.5]])
def test_a_weight_outside_0_to_1(texts: FunnelIndex, weight: object) -> None:
    with pytest.raises(InputError, match=r"hybrid is .*; expected the weight of the lexical list from 0 to 1"):
        texts.search("file", hybrid=weight)  # type: ignore[call-overload]


def test_vectors_and_bare_vectors_are_refused(texts: FunnelIndex, graph: FunnelIndex) -> None:
    with pytest.raises(InputError, match=r"hybrid=0\.5 .* vectors were given; give their words by text="):
        texts.search(hashed_words(["file"]), hybrid=0.5)
    with pytest.raises(InputError, match=r"hybrid=0\.5 needs documents .* holds vectors alone"):
        graph.search("file", hybrid=0.5)


@pytest.fixture(scope="module")
def with_vectors(tmp_path_factory: pytest.TempPathFactory) -> FunnelIndex:
    """Texts beside vectors of the user's own: no encoder is at hand."""
    given = documents(200)
    vectors = hashed_words([f"{one['title']} {one['text']}" for one in given])
    corpus = [{**one, "vector": vector} for one, vector in zip(given, vectors, strict=True)]
    return FunnelIndex.build(corpus, tmp_path_factory.mktemp("own") / "index", progress=False)


def test_words_beside_a_vector(with_vectors: FunnelIndex, texts: FunnelIndex) -> None:
    query = "the parser of part 44"
    vector = hashed_words([query])
    both = with_vectors.search(vector[0], 5, recall=1.0, text=query, hybrid=0.3)
    assert found(both)[0] == "d44"
    assert both.served.lexical is True
    assert [hit.ranks for hit in both if hit.ranks] == [hit.ranks for hit in both]
    assert found(with_vectors.search(vector[0], 5, text=query)) == found(
        with_vectors.search(vector[0], 5, text=query, hybrid=True)
    )
    several = with_vectors.search(np.repeat(vector, 2, axis=0), 5, text=[query, "clock"], hybrid=0.5)
    assert found(several[0])[0] == "d44"
    assert found(several[1]) != found(several[0])
    # Beside an encoder the vector given is what is searched by.
    assert found(texts.search(vector[0], 5, recall=1.0, text=query, hybrid=0.5)) == found(
        texts.search(query, 5, recall=1.0, hybrid=0.5)
    )


def test_words_alone_need_no_encoder(with_vectors: FunnelIndex, texts: FunnelIndex) -> None:
    hits = with_vectors.search("the parser of part 44", 5, hybrid=1.0)
    assert isinstance(hits, Hits)
    assert hits[0].id == "d44"
    assert found(hits) == found(texts.search("the parser of part 44", 5, hybrid=1.0))[: len(hits)]
    assert str(hits.served) == "words alone, by BM25"
    assert hits.served.complete
    assert hits.served.stages == 0
    assert hits.served.to_json()["plan"] is hits.served.to_json()["estimated_recall"] is None
    few = with_vectors.search(["part", "clock"], 5, hybrid=1, allowed_ids=["d3", "d4"], latency_ms=5_000)
    assert all({hit.id for hit in hits} <= {"d3", "d4"} and hits.served.allowed_rows == 2 for hits in few)
    with pytest.raises(EncoderError, match="hybrid=1 looks for its words alone"):
        with_vectors.search("part", hybrid=0.5)


@pytest.mark.parametrize(
    ("query", "options", "said"),
    [
        ("file", {"text": "file"}, r"text='file' gives the words beside a vector, and the query is a text"),
        (np.ones((2, 64)), {"text": "file"}, "text: 1 given for 2 vectors"),
        (np.ones((1, 64)), {"text": [3]}, "text holds 3; expected a text for each vector"),
        (np.ones(64), {"text": 3}, "text holds 3; expected a text"),
    ],
)
def test_words_that_do_not_go_with_the_query(
    texts: FunnelIndex, query: object, options: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        texts.search(query, **options)  # type: ignore[call-overload]
