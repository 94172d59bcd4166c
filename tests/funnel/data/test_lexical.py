"""BM25 by FTS5: what is asked of it, what it answers, and that nothing of a query is read as its syntax."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.data.documents import Document, DocumentStore
from funnel.data.words import MOST_WORDS, Bm25, LexicalIndex, telling_terms, words_of
from funnel.errors import DamagedIndexError, InputError

TEXTS = (
    ("cats", "the cat sat on the mat"),
    ("dogs", "the dog chased the cat over the mat and over the mat again"),
    ("", "the birds are singing in the trees"),
    ("", ""),
    ("tree", "a tree sings of its birds and of the tree beside it"),
    ("naïve café", "the drink AND the cup OR the NEAR thing"),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DocumentStore]:
    path = tmp_path_factory.mktemp("lexical") / "documents.sqlite"
    with DocumentStore.create(path) as made:
        documents = [Document(f"d{number}", title, text) for number, (title, text) in enumerate(TEXTS)]
        made.append(documents[:2])
        made.append(documents[2:])
    with DocumentStore.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def words(store: DocumentStore) -> Bm25:
    return bm25(store.lexical())


def bm25(table: LexicalIndex | None) -> Bm25:
    assert table is not None
    return Bm25([0], [table])


def ranked(words: Bm25, text: str, depth: int = 10, allowed: np.ndarray | None = None) -> list[int]:
    found = words.rank(text, depth, None if allowed is None else [allowed])
    assert found is not None
    result: list[int] = found[0].tolist()
    return result


def test_words_are_stemmed_and_lose_their_accents(words: Bm25) -> None:
    assert ranked(words, "sing") == ranked(words, "singing") == ranked(words, "SINGS")
    assert sorted(ranked(words, "sing")) == [2, 4]
    assert ranked(words, "naive cafe\u0301") == [5]


def test_scores_are_bm25(words: Bm25) -> None:
    """Robertson's formula with FTS5's k1 and b, worked out by hand; the rows are those with any text."""
    found = words.rank("cat", 10)
    assert found is not None
    lengths = {0: 7, 1: 14, 2: 7, 4: 13, 5: 11}
    frequency = {0: 2, 1: 1}  # "cats" in the title of the first is the same word
    idf = math.log((5 - 2 + 0.5) / (2 + 0.5))
    mean = sum(lengths.values()) / 5
    expected = {row: idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * lengths[row] / mean)) for row, f in frequency.items()}
    assert found[0].tolist() == [0, 1]
    assert np.allclose(found[1], [expected[0], expected[1]], rtol=1e-5)


def test_a_word_that_comes_twice_counts_twice(words: Bm25) -> None:
    once, twice = words.rank("mat", 10), words.rank("mat mat", 10)
    assert once is not None
    assert twice is not None
    assert np.allclose(twice[1], 2 * once[1])


def test_words_of_more_than_half_of_the_rows_are_asked_for_only_alone(store: DocumentStore, words: Bm25) -> None:
    table = store.lexical()
    assert table is not None
    assert table.rows == 5
    assert ranked(words, "the cat") == ranked(words, "cat") == [0, 1]
    assert sorted(ranked(words, "the")) == [0, 1, 2, 4, 5]


def test_depth_and_allowed(words: Bm25) -> None:
    assert ranked(words, "cat mat", depth=1) == ranked(words, "cat mat")[:1]
    allowed = np.ones(len(TEXTS), dtype=np.bool_)
    allowed[ranked(words, "cat mat")[0]] = False
    assert ranked(words, "cat mat", 1, allowed) == ranked(words, "cat mat")[1:2]
    assert ranked(words, "cat", 5, np.zeros(len(TEXTS), dtype=np.bool_)) == []


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", '"', '""" OR', "AND", "cat AND NOT", "title:cats", "{title text}: cats", "cat*", "^cat", "cat + mat",
        "NEAR(cat mat, 2)", "cat\0mat", "\ud800cat", "-cat", "(cat", "lexical:cat; DROP TABLE documents",
        "的细胞", "²³¼",
        "x" * 5_000,
    ],
)  # fmt: skip
def test_a_query_is_never_syntax(words: Bm25, text: str) -> None:
    by_word = [set(ranked(words, word)) for word in set(words_of(text))]
    telling = [rows for rows in by_word if 0 < len(rows) <= (len(TEXTS) - 1) / 2]
    assert set(ranked(words, text)) == set().union(*(telling or by_word))


@given(st.text(max_size=60))
def test_any_text_can_be_asked_for(words: Bm25, text: str) -> None:
    found = words.rank(text, 10)
    assert found is not None
    assert all(0 <= position < len(TEXTS) for position in found[0])
    assert (np.diff(found[1]) <= 0).all()


def test_of_long_queries_the_rarest_words_are_asked_for() -> None:
    counts = {f"w{number}": number for number in range(200)}
    assert list(telling_terms(dict.fromkeys(counts, 1), counts, 300)) == [f"w{n}" for n in range(1, MOST_WORDS + 1)]
    assert list(telling_terms({"w60": 1, "w40": 2, "w0": 1}, counts, 100)) == ["w40"]  # the other: in more than half


def test_a_search_is_stopped(words: Bm25) -> None:
    assert words.rank("cat mat birds tree", 10, stopped=lambda: True) is None
    assert words.rank("cat", 10, stopped=lambda: False) is not None
    assert ranked(words, "cat") == [0, 1]  # the handler is gone


def test_a_search_is_stopped_midway(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as made:
        made.append([Document(str(n), "", f"word{n % 7} common{n % 3}") for n in range(5_000)])
        words = bm25(made.lexical())
        looks: list[bool] = []

        def second_look() -> bool:
            looks.append(True)
            return len(looks) > 4

        assert words.rank("word1 common1 common2", 10, stopped=second_look) is None
        assert len(looks) >= 5
        assert words.rank("word1 common1 common2", 10, stopped=lambda: False) is not None


def test_a_store_without_the_words_says_so(tmp_path: Path) -> None:
    older = tmp_path / "documents.sqlite"
    with DocumentStore.create(older) as made:
        made.append([Document(f"d{number}", *pair) for number, pair in enumerate(TEXTS)])
    connection = sqlite3.connect(older)
    connection.execute("DROP TABLE lexical")
    connection.close()
    with DocumentStore.open(older) as opened, pytest.raises(InputError, match="holds no words"):
        opened.lexical()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "documents.sqlite"
    with DocumentStore.create(path) as made:
        made.append([Document(str(n), "", f"word{n} common {n}") for n in range(3_000)])
    data = bytearray(path.read_bytes())
    for start in range(8192, len(data), 4096):
        data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    with pytest.raises(DamagedIndexError, match=r"documents\.sqlite"), DocumentStore.open(path) as opened:
        bm25(opened.lexical()).rank("common word17", 10)


def test_sqlite_without_fts5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are kept all the same; what needs the words says why there are none."""
    monkeypatch.setattr("funnel.data.words.SCHEMA", "CREATE VIRTUAL TABLE lexical USING fts0(title)")
    with DocumentStore.create(tmp_path / "documents.sqlite") as made:
        made.append([Document("a", "", "one")])
    with DocumentStore.open(tmp_path / "documents.sqlite") as opened:
        with pytest.raises(InputError, match="without FTS5"):
            opened.lexical()
        assert opened.get([0])[0].text == "one"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("天気", ["天気"]),
        ("今天天气 v2", ["今天", "天天", "天气", "v2"]),
        ("雨", ["雨"]),
        ("ตลาด", ["ตล", "ลา", "าด"]),
        ("naïve 2x", ["naïve", "2x"]),
    ],
)
def test_words_of_scripts_without_blanks_are_pairs_of_letters(text: str, expected: list[str]) -> None:
    assert words_of(text) == expected
