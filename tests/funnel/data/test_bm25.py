"""BM25 over several tables: the scores are those that FTS5 itself gives over one table with all of their rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnel.data.connections import Bounded
from funnel.data.documents import Document, DocumentStore
from funnel.data.words import TABLE, Bm25, LexicalIndex, _numbers, insert_texts, make_table, words_of
from funnel.errors import DamagedIndexError

Texts = Sequence[tuple[str, str]]
VOCABULARY = ("cat", "cats", "dog", "running", "runs", "naïve", "tree", "²³", "的细胞", "the")

some_words = st.lists(st.sampled_from(VOCABULARY), max_size=8).map(" ".join)
some_texts = st.lists(st.tuples(some_words, some_words), max_size=8)


@contextmanager
def tables_of(*texts: Texts) -> Iterator[list[LexicalIndex]]:
    """A table for each list of titles and texts."""
    with ExitStack() as stack:
        tables: list[LexicalIndex] = []
        for rows in texts:
            connection = stack.enter_context(
                closing(sqlite3.connect(":memory:", isolation_level=None, factory=Bounded))
            )
            make_table(connection)
            insert_texts(connection, ((position, *row) for position, row in enumerate(rows)))
            tables.append(LexicalIndex(Path(f"{len(tables)}.sqlite"), lambda it=connection: nullcontext(it)))  # type: ignore[misc]
        yield tables


@contextmanager
def pool_of(*texts: Texts) -> Iterator[Bm25]:
    """The same as one, each table behind those before it."""
    with tables_of(*texts) as tables:
        yield Bm25(np.cumsum([0, *map(len, texts)])[:-1].tolist(), tables)


def by_position(found: tuple[np.ndarray, np.ndarray] | None) -> dict[int, float]:
    """Scores by position, best first."""
    assert found is not None
    assert (np.diff(found[1]) <= 0).all()
    return dict(zip(found[0].tolist(), found[1].tolist(), strict=True))


def in_one(texts: Sequence[Texts], query: str, depth: int = 1_000) -> dict[int, float]:
    """By FTS5's own bm25: of the query's words that are worth asking for, those twice that come twice."""
    with tables_of([row for rows in texts for row in rows]) as (table,), table.reading(None) as connection:
        count = f"SELECT count(*) FROM {TABLE} WHERE {TABLE} MATCH ?"
        best = f"SELECT rowid, -bm25({TABLE}) FROM {TABLE} WHERE {TABLE} MATCH ? ORDER BY 2 DESC, 1 LIMIT ?"
        counts = {word: connection.execute(count, (f'"{word}"',)).fetchone()[0] for word in words_of(query)}
        known = [word for word in words_of(query) if counts[word]]
        telling = [word for word in known if counts[word] <= table.rows / 2] or known
        asked = " OR ".join(f'"{word}"' for word in telling) or '""'
        return dict(connection.execute(best, (asked, depth)))


@given(st.lists(some_texts, min_size=1, max_size=4), some_words, st.integers(1, 12))
def test_scores_are_those_of_one_table(texts: list[Texts], query: str, depth: int) -> None:
    with pool_of(*texts) as pool:
        assert by_position(pool.rank(query, 1_000)) == pytest.approx(in_one(texts, query), rel=1e-6)
        best = list(by_position(pool.rank(query, depth)).values())
    assert best == pytest.approx(list(in_one(texts, query, depth).values()), rel=1e-6)


def test_lengths_of_every_width() -> None:
    """Lengths are kept in one byte up to 127 words, in two up to 16,383."""
    texts = [[(word * 3, f"{word} rare " * half) for half in (1, 63, 64)] for word in ("cat ", "dog ")]
    texts += [[("", "rare cat " * 8_191), ("", "rare cat " * 8_192), ("cat", "")], [("", "tree")] * 20]
    with pool_of(*texts) as pool:
        assert by_position(pool.rank("cat rare", 1_000)) == pytest.approx(in_one(texts, "cat rare"), rel=1e-6)


def test_a_word_is_common_where_it_is_so_in_all_tables_together() -> None:
    large = [("", f"the tree {number}") for number in range(20)]
    small = [("", "cat"), ("", "cat dog the"), ("", "cat")]
    with pool_of(large, small) as pool:
        # In each row of the small table, and in few of all.
        assert list(by_position(pool.rank("cat the", 1_000))) == [20, 22, 21]
        assert len(by_position(pool.rank("the", 1_000))) == 21  # alone it is asked for
        assert list(by_position(pool.rank("the dog", 1_000))) == [21]  # in one of three rows there, and in most of all


def test_a_table_of_one_row() -> None:
    large = [("", "quarterly report" if number % 5 < 2 else "minutes") for number in range(600)]
    with pool_of(large, [("", "quarterly report on zanzibar")]) as pool:
        best = by_position(pool.rank("zanzibar report", 10))
    assert list(best) == [600, 0, 1, 5, 6, 10, 11, 15, 16, 20]  # ties in order of position


def test_rows_that_may_not_be_found_count_all_the_same() -> None:
    texts = [[("", "cat"), ("", "cat dog"), ("", "tree")], [("", "dog"), ("", "cat tree tree"), ("", "tree")]]
    with pool_of(*texts) as pool:
        everything = by_position(pool.rank("cat dog", 1_000))
        allowed = np.array([False, True, True])
        some = by_position(pool.rank("cat dog", 1_000, [allowed, allowed]))
        assert some == {position: score for position, score in everything.items() if position in (1, 4)}
        assert list(by_position(pool.rank("cat dog", 1, [allowed, None]))) == list(everything)[:1]
        assert list(by_position(pool.rank("cat", 2, [np.zeros(3, dtype=np.bool_), None]))) == [4]


def test_no_word_of_a_query_is_there() -> None:
    with pool_of([("", "cat")], [("", "dog")]) as pool:
        assert by_position(pool.rank("", 1_000)) == by_position(pool.rank("zebra ²", 1_000)) == {}
    with pool_of([], [("", "")]) as pool:
        assert by_position(pool.rank("cat", 1_000)) == {}


def test_a_word_that_the_tokenizer_cuts() -> None:
    """U+19B0 is a letter to Python and none to FTS5: each of the two parts is looked for."""
    with pool_of([("", "b\u19b0c"), ("", "c x")], [("", "cat"), ("", "dog"), ("", "d")]) as pool:
        assert list(by_position(pool.rank("b\u19b0c", 1_000))) == [0, 1]


@given(st.text(max_size=60))
def test_any_text_can_be_asked_for(query: str) -> None:
    texts = [[("a tree", "of birds 7"), ("cat", "AND")], [("OR", "near NOT x"), ("É", "的细胞")]]
    with pool_of(*texts) as pool:
        assert all(0 <= position < 4 for position in by_position(pool.rank(query, 1_000)))


def packed(number: int) -> bytes:
    septets = [number & 127]
    while number := number >> 7:
        septets.append(number & 127 | 128)
    return bytes(reversed(septets))


@given(st.lists(st.integers(0, 2**40)))
def test_packed_numbers(numbers: list[int]) -> None:
    assert _numbers(b"".join(map(packed, numbers))).tolist() == numbers


def test_a_search_is_stopped() -> None:
    texts = [[("", f"word{n % 7} common{n % 3}") for n in range(part, 5_000)] for part in (0, 4_000)]
    with pool_of(*texts) as pool:
        assert pool.rank("word1", 10, None, lambda: True) is None
        whole = pool.rank("word1 common1", 10, None, lambda: False)
        for allowed in range(1, 12):
            looks = iter([False] * allowed + [True] * 1_000)
            assert pool.rank("word1 common1", 10, None, lambda looks=looks: next(looks)) is None  # type: ignore[misc]
        again = pool.rank("word1 common1", 10)  # the handler is gone
        assert whole is not None
        assert again is not None
        assert np.array_equal(whole[0], again[0])
        assert np.array_equal(whole[1], again[1])


def test_nothing_is_written(tmp_path: Path) -> None:
    names = [f"{number}.sqlite" for number in range(2)]
    for name in names:
        with DocumentStore.create(tmp_path / name) as made:
            made.append([Document(str(n), "", f"word{n} common {n}") for n in range(3_000)])
    before = [(tmp_path / name).read_bytes() for name in names]
    with DocumentStore.open(tmp_path / names[0]) as one, DocumentStore.open(tmp_path / names[1]) as other:
        tables = [one.lexical(), other.lexical()]
        best = by_position(Bm25([0, 3_000], tables).rank("word17 common word2999", 4))
    assert list(best) == [17, 2_999, 3_017, 5_999]
    assert [(tmp_path / name).read_bytes() for name in names] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DELETE FROM lexical_docsize", "1 of 0 rows hold 'dog'"),
        ("DELETE FROM lexical_docsize WHERE id = 1", "the rows that hold 'dog'"),
        ("UPDATE lexical_docsize SET sz = x'ff'", "the lengths of its rows"),
        ("UPDATE lexical_docsize SET sz = x'0000'", "the rows that hold 'dog'"),
        ("UPDATE lexical_docsize SET sz = x'ffffffffffffff7f01'", "the lengths of its rows"),
        ("UPDATE lexical_docsize SET sz = x'ffffffffffffffff7f01'", "too many bytes"),
        ("UPDATE lexical_docsize SET id = id - 5", "the rows that hold 'dog'"),
        ("UPDATE lexical_data SET block = x'ff' WHERE id > 10", "malformed"),
    ],
)
def test_a_damaged_table_is_named(damage: str, said: str) -> None:
    with tables_of([("", "cat")] * 3, [("", "cat"), ("", "dog")]) as tables:
        with tables[1].reading(None) as connection:
            connection.execute(damage)
        with pytest.raises(DamagedIndexError, match=rf"1\.sqlite is damaged .*{said}"):
            Bm25([0, 3], [tables[0], LexicalIndex(tables[1].path, tables[1]._connection)]).rank("dog", 10)
