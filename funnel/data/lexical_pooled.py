"""BM25 over the tables of several files, as over one table that holds the rows of all of them.

FTS5's own bm25() knows one table: how many of its rows hold a word, and how long they are on average. Its scores of
different tables do not compare: in a table of one row no word weighs anything. Here the words' places are read from
each table, and the formula is worked out with the counts of all of them together.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from funnel.data.lexical import (
    K1,
    TABLE,
    TOKENIZER,
    B,
    LexicalIndex,
    Stopped,
    inverse_frequency,
    telling_words,
    words_of,
)

__all__ = ["PooledIndex"]

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Allowed: TypeAlias = NDArray[np.bool_]

COLUMNS = 2  # title and text
LONGEST_NUMBER = 9  # bytes that SQLite packs one into
ROWS_AT_A_TIME = 262_144  # whose lengths are read together: some ten megabytes meanwhile
# Numbers are read as one value for all rows: a thread that asks for row after row waits for Python's lock every time.
LENGTHS = f"SELECT group_concat(id), group_concat(hex(sz), '') FROM {TABLE}_docsize WHERE id >= ? AND id < ?"
# Tables of one connection, in memory: nothing is written to the file. The first is every place of every term.
PLACES = f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.places USING fts5vocab(main, {TABLE}, instance)"
ASKED = f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.asked USING fts5(word, tokenize='{TOKENIZER}')"
TERMS = "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(temp, asked, instance)"
WITH_TERM = "SELECT group_concat(doc) FROM temp.places WHERE term = ?"  # a row as often as the term comes in it
WITH_WORD = f"SELECT group_concat(rowid) FROM {TABLE} WHERE {TABLE} MATCH ?"


class _Word(NamedTuple):
    """A word that is asked for: what it weighs, and what the tokenizer makes of it."""

    text: str
    weight: float
    terms: tuple[str, ...]


class PooledIndex:
    """Several tables whose rows are ranked together. Making it reads the length of every row.

    firsts: the position of the first row of each.
    """

    def __init__(self, firsts: Sequence[int], tables: Sequence[LexicalIndex]) -> None:
        self._parts = [(first, table, _lengths(table)) for first, table in zip(firsts, tables, strict=True)]
        self._rows = sum(table.rows for table in tables)
        self._mean = sum(int(lengths.sum()) for _, _, lengths in self._parts) / max(1, self._rows)

    def rank(
        self,
        text: str,
        depth: int,
        allowed: Sequence[Allowed | None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> tuple[Int64, NDArray[np.float32]] | None:
        """The best positions for a text, and their scores: as `LexicalIndex.rank` of one table of all rows.

        allowed: for each table which of its rows may be found; the others count in the formula all the same.
        """
        times = Counter(words_of(text))
        counts: Counter[str] = Counter()
        masks = [None] * len(self._parts) if allowed is None else allowed
        try:
            for _, table, _ in self._parts:
                with table.reading(stopped):
                    counts.update({word: table.count(word) for word in times})
            telling = telling_words(times, counts.__getitem__, self._rows)
            asked = [
                _Word(word, times[word] * inverse_frequency(counts[word], self._rows), terms)
                for word, terms in _terms(self._parts[0][1], telling).items()
            ]
            found = []
            for (first, table, lengths), mask in zip(self._parts, masks, strict=True):
                positions, values = _best(self._scores(table, lengths, asked, stopped), mask, depth)
                found.append((positions + first, values))
        except Stopped:
            return None
        joined = np.concatenate([scores for _, scores in found])
        best = np.argsort(-joined, kind="stable")[:depth]
        return np.concatenate([positions for positions, _ in found])[best], joined[best].astype(np.float32)

    def _scores(
        self, table: LexicalIndex, lengths: Int32, asked: Sequence[_Word], stopped: Callable[[], bool] | None
    ) -> NDArray[np.float64]:
        """BM25 of every row of a table; 0 where it holds no word."""
        scores = np.zeros(len(lengths))
        with table.reading(stopped) as connection:
            connection.execute(PLACES)
            for word in asked:
                if table.count(word.text):
                    rows, times = _postings(connection, word, len(lengths))
                    norms = K1 * (1 - B + B * lengths[rows] / self._mean)
                    scores[rows] += word.weight * (times * (K1 + 1) / (times + norms))
        return scores


def _best(scores: NDArray[np.float64], allowed: Allowed | None, depth: int) -> tuple[Int64, NDArray[np.float64]]:
    """The best rows that have a score and are allowed, falling; equal ones in order of position."""
    if allowed is not None:
        scores[~allowed[: len(scores)]] = 0.0
    found = np.flatnonzero(scores)
    if len(found) > depth:
        found = found[scores[found] >= np.partition(scores[found], -depth)[-depth]]
    best = found[np.argsort(-scores[found], kind="stable")[:depth]]
    return best, scores[best]


def _postings(connection: sqlite3.Connection, word: _Word, stop: int) -> tuple[Int64, Int64]:
    """The rows below `stop` that hold a word, rising, and how often each does.

    Of a word that the tokenizer cuts, as it does at 21 letters of Unicode's, once a row is all that is counted.
    """
    query, what = (WITH_TERM, word.terms[0]) if len(word.terms) == 1 else (WITH_WORD, f'"{word.text}"')
    (places,) = connection.execute(query, (what,)).fetchone()
    rows, times = np.unique(_integers(places), return_counts=True)
    if not len(rows) or rows[-1] >= stop:
        raise sqlite3.DatabaseError(f"the rows that hold {word.text!r} cannot be read")
    return rows, times


def _lengths(table: LexicalIndex) -> Int32:
    """How many words each row has, by position; 0 where there is no row."""
    with table.reading(None) as connection:
        (last,) = connection.execute(f"SELECT max(id) FROM {TABLE}_docsize").fetchone()
        lengths = np.zeros(0 if last is None else last + 1, dtype=np.int32)
        for start in range(0, len(lengths), ROWS_AT_A_TIME):
            ids, sizes = connection.execute(LENGTHS, (start, start + ROWS_AT_A_TIME)).fetchone()
            rows, numbers = _integers(ids), _numbers(bytes.fromhex(sizes or ""))
            if len(numbers) != COLUMNS * len(rows):
                raise sqlite3.DatabaseError("the lengths of its rows cannot be read")
            lengths[rows] = numbers.reshape(-1, COLUMNS).sum(axis=1)
    return lengths


def _integers(text: str | None) -> Int64:
    """Those of a group_concat."""
    return np.fromstring(text, dtype=np.int64, sep=",") if text else np.empty(0, dtype=np.int64)


def _numbers(data: bytes) -> Int64:
    """Integers as SQLite packs them: seven bits a byte, the highest first; the last byte of each is below 128."""
    septets = np.frombuffer(data, dtype=np.uint8)
    lasts = np.flatnonzero(septets < 128)
    numbers, widths = septets[lasts].astype(np.int64), np.diff(lasts, prepend=-1)
    if widths.max(initial=1) > LONGEST_NUMBER:
        raise sqlite3.DatabaseError("a number of more than nine bytes")
    for back in range(1, int(widths.max(initial=1))):
        longer = widths > back
        numbers[longer] += (septets[lasts[longer] - back] & 127).astype(np.int64) << 7 * back
    return numbers


def _terms(table: LexicalIndex, words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What the tokenizer makes of each word; FTS5 tells it only of words in a table, which these are for a moment."""
    terms: dict[str, tuple[str, ...]] = dict.fromkeys(words, ())
    numbered = list(terms)
    with table.reading(None) as connection:
        connection.execute(ASKED)
        connection.execute(TERMS)
        connection.execute("BEGIN")
        try:
            connection.executemany("INSERT INTO temp.asked(rowid, word) VALUES (?, ?)", enumerate(numbered))
            for number, term in connection.execute("SELECT doc, term FROM temp.terms ORDER BY doc, offset"):
                terms[numbered[number]] += (term,)
        finally:
            connection.execute("ROLLBACK")
    return terms
