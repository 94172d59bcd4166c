"""BM25 over titles and texts: an FTS5 table in an SQLite file, and the way from a query's text to ranked positions.

The table holds no copy of the texts: it is a table of external content, beside the documents that it speaks of.
"""

from __future__ import annotations

import math
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from funnel.data.connections import Bounded, unreadable

__all__ = ["Bm25", "LexicalIndex", "insert_texts", "is_lexical", "make_table", "words_of"]

Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Allowed: TypeAlias = NDArray[np.bool_]

TABLE = "lexical"
# Porter's stemmer over Unicode 6.1 words without their accents. Without it BM25's nDCG@10 falls on scifact's training
# claims from .699 to .670; accents made no difference there.
TOKENIZER = "porter unicode61 remove_diacritics 2"
SCHEMA = (
    f"CREATE VIRTUAL TABLE {TABLE} USING fts5(title, text, content='documents', content_rowid='position', "
    f"tokenize='{TOKENIZER}')"
)
# The statement of any of SQLite's own tokenizers, and the tables that FTS5 keeps it in; a generated column needs AS.
_STATEMENT = re.compile(re.escape(SCHEMA).replace(re.escape(TOKENIZER), "[a-z0-9_ ]+"))
SHADOWS = frozenset(f"{TABLE}_{part}" for part in ("data", "idx", "docsize", "config"))
_COMPUTED = re.compile(r"\bas\b", re.IGNORECASE)
K1, B = 1.2, 0.75  # FTS5's own
LEAST_WEIGHT = 1e-6  # of a term: FTS5's own too
# FTS5 gives a term of more than half of the rows a weight of 1e-6, so leaving it out changes no ranking of others; the
# rows that it alone would bring are most of the work.
COMMON_SHARE = 0.5
# Of longer queries the rarest words are asked for: the time grows with each, and these carry the weight.
MOST_WORDS = 64
REMEMBERED_WORDS = 65_536  # how many rows hold a word is counted once: some megabytes

COLUMNS = 2  # title and text
LONGEST_ROW = 1_000_000_000  # words of a title or text: SQLite's own limit of bytes
LONGEST_NUMBER = 8  # bytes that SQLite packs one below 2**56 into
ROWS_AT_A_TIME = 262_144  # whose lengths are read together: some ten megabytes meanwhile
# Numbers are read as one value for all rows: a thread that asks for row after row waits for Python's lock every time.
# On 200,000 short texts this and numpy take a quarter of the time that FTS5's own bm25 does.
LENGTHS = f"SELECT group_concat(id), group_concat(hex(sz), '') FROM {TABLE}_docsize WHERE id >= ? AND id < ?"
WITH_TERM = "SELECT group_concat(doc) FROM temp.places WHERE term = ?"  # a row as often as the term comes in it
# Tables of one connection, in memory: nothing is written to the file. Every place of every term, in how many rows
# each is, and the words of a query with the terms that the tokenizer makes of them.
BESIDE = (
    f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.places USING fts5vocab(main, {TABLE}, instance)",
    f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.counted USING fts5vocab(main, {TABLE}, row)",
    f"CREATE VIRTUAL TABLE IF NOT EXISTS temp.asked USING fts5(words, tokenize='{TOKENIZER}')",
    "CREATE VIRTUAL TABLE IF NOT EXISTS temp.terms USING fts5vocab(temp, asked, row)",
)

# What unicode61 takes for a word, as near as Python's classes come; combining accents stay inside it.
_WORD = re.compile(r"(?:[^\W_][\u0300-\u036f]*)+")
# Scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, bopomofo and Han, with the planes of rare
# Han characters. Each of their letters and each two neighbours are words of the table; a query asks for the pairs.
_BLANKLESS = (
    "\u0e01-\u0e5b\u0e81-\u0edf\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN = re.compile(f"([{_BLANKLESS}]+)")


def make_table(connection: sqlite3.Connection) -> bool:
    """Make the empty table. False without FTS5."""
    try:
        connection.execute(SCHEMA)
    except sqlite3.OperationalError as error:
        if "no such module" not in str(error):
            raise
        return False
    return True


def is_lexical(name: str, sql: str | None) -> bool:
    """Whether a table of sqlite_master is that of the words, or one of those that FTS5 keeps it in."""
    if name == TABLE:
        return sql is not None and _STATEMENT.fullmatch(sql) is not None
    return name in SHADOWS and sql is not None and _COMPUTED.search(sql) is None


def insert_texts(connection: sqlite3.Connection, rows: Iterable[tuple[int, str, str]]) -> None:
    """Add (position, title, text) to the table; rows without a word of text take no place in it."""
    connection.executemany(
        f"INSERT INTO {TABLE}(rowid, title, text) VALUES (?, ?, ?)",
        ((position, _spaced(title), _spaced(text)) for position, title, text in rows if title or text),
    )


def _spaced(text: str) -> str:
    """The text as the tokenizer is to cut it: runs of scripts without blanks as their letters and pairs of letters."""
    if text.isascii():
        return text
    return _RUN.sub(lambda run: f" {' '.join([*_pairs(run[0]), *_letters(run[0])])} ", text)


def _letters(run: str) -> list[str]:
    return [letter for letter in run if letter.isalnum()]


def _pairs(run: str) -> list[str]:
    return ["".join(pair) for pair in pairwise(_letters(run))]


def words_of(text: str) -> list[str]:
    """The words of a query in order, those that come twice twice; nothing else of it is kept.

    Of scripts without blanks between words these are each two neighbouring letters, and a letter that stands alone.
    """
    words: list[str] = []
    for part in _RUN.split(text):
        words += _pairs(part) or _letters(part) if _RUN.fullmatch(part) else _WORD.findall(part)
    return words


def telling_terms(times: Mapping[str, int], counts: Mapping[str, int], rows: int) -> dict[str, float]:
    """The terms of a query that are worth asking for, rarest first, and what each weighs.

    times: its terms, and how often each comes. counts: how many of all rows hold a term.
    """
    known = sorted((term for term in times if counts[term]), key=lambda term: counts[term])
    telling = [term for term in known if counts[term] <= COMMON_SHARE * rows] or known
    odds = {term: (rows - counts[term] + 0.5) / (counts[term] + 0.5) for term in telling[:MOST_WORDS]}
    return {term: times[term] * max(LEAST_WEIGHT, math.log(odd)) for term, odd in odds.items()}  # as FTS5 weighs it


class Stopped(Exception):  # noqa: N818 - it is no error
    """A search was stopped."""


class LexicalIndex:
    """The table of one file, read from any thread.

    path: of the file, for messages. connection: lends the calling thread a connection to it.
    """

    def __init__(self, path: Path, connection: Callable[[], AbstractContextManager[Bounded]]) -> None:
        self.path = path
        self._connection = connection
        with connection() as opened:
            self.rows: int = opened.execute(f"SELECT count(*) FROM {TABLE}_docsize").fetchone()[0]
        self._counts: dict[str, int] = {}

    @contextmanager
    def reading(self, stopped: Callable[[], bool] | None) -> Iterator[sqlite3.Connection]:
        """A connection for the calling thread, for a search.

        Raises Stopped once `stopped` is true, and DamagedIndexError where the file cannot be read.
        """
        if stopped is not None and stopped():  # a short search is over before the handler is called
            raise Stopped
        ran_away = False
        try:
            with self._connection() as connection:
                connection.bound(stopped)
                try:
                    for statement in BESIDE:
                        connection.execute(statement)
                    yield connection
                finally:
                    ran_away = connection.ran_away
                    connection.bound()
        except (sqlite3.Error, MemoryError) as error:
            if stopped is not None and "interrupted" in str(error) and not ran_away:
                raise Stopped from None
            raise unreadable(self.path, error) from error

    def count(self, connection: sqlite3.Connection, term: str) -> int:
        """How many rows hold a term; for a connection of `reading`."""
        count = self._counts.get(term)
        if count is None:
            found = connection.execute("SELECT doc FROM temp.counted WHERE term = ?", (term,)).fetchone()
            count = 0 if found is None else found[0]
            if not 0 <= count <= self.rows:
                raise sqlite3.DatabaseError(f"{count} of {self.rows} rows hold {term!r}")
            if len(self._counts) >= REMEMBERED_WORDS:
                self._counts.clear()
            self._counts[term] = count
        return count

    def terms(self, words: Sequence[str]) -> Counter[str]:
        """What the tokenizer makes of some words, and how often each term comes.

        FTS5 tells it only of words in a table, which these are for a moment.
        """
        with self.reading(None) as connection:
            connection.execute("BEGIN")
            try:
                connection.execute("INSERT INTO temp.asked VALUES (?)", (" ".join(words),))
                return Counter(dict(connection.execute("SELECT term, cnt FROM temp.terms")))
            finally:
                connection.execute("ROLLBACK")

    def lengths(self) -> Int32:
        """How many words each row has, by position; 0 where there is no row. DamagedIndexError: they do not fit."""
        with self.reading(None) as connection:
            (last,) = connection.execute(f"SELECT max(id) FROM {TABLE}_docsize").fetchone()
            lengths = np.zeros(0 if last is None else max(0, last + 1), dtype=np.int32)
            for start in range(0, len(lengths), ROWS_AT_A_TIME):
                ids, sizes = connection.execute(LENGTHS, (start, start + ROWS_AT_A_TIME)).fetchone()
                rows, numbers = _integers(ids), _numbers(bytes.fromhex(sizes or ""))
                if len(numbers) != COLUMNS * len(rows) or (numbers > LONGEST_ROW).any():
                    raise sqlite3.DatabaseError("the lengths of its rows cannot be read")
                lengths[rows] = numbers.reshape(-1, COLUMNS).sum(axis=1)
        return lengths


class Bm25:
    """The tables of several files, whose rows are ranked together. Making it reads the length of every row.

    firsts: the position of the first row of each.
    """

    def __init__(self, firsts: Sequence[int], tables: Sequence[LexicalIndex]) -> None:
        self._parts = [(first, table, table.lengths()) for first, table in zip(firsts, tables, strict=True)]
        self._rows = sum(table.rows for table in tables)
        self._mean = sum(int(lengths.sum()) for _, _, lengths in self._parts) / max(1, self._rows)

    def rank(
        self,
        text: str,
        depth: int,
        allowed: Sequence[Allowed | None] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> tuple[Int64, NDArray[np.float32]] | None:
        """The best positions for a text, and their scores: int64 and float32 [at most depth], falling.

        A document counts that holds any of the words, in any form of the same stem; equal scores come in order of
        position. Nothing of the text is read as FTS5's own syntax. A word that comes twice counts twice. k1 = 1.2 and
        b = .75 are FTS5's own, and so is the least weight of 1e-6 for words of half the rows.

        allowed: for each table which of its rows may be found; the others count in the formula all the same. stopped:
        looked at all the time; once it is true the search ends, and None is returned.

        Raises DamagedIndexError where a file cannot be read.
        """
        masks = [None] * len(self._parts) if allowed is None else allowed
        counts: Counter[str] = Counter()
        try:
            times = self._parts[0][1].terms(words_of(text))
            for _, table, _ in self._parts:
                with table.reading(stopped) as connection:
                    counts.update({term: table.count(connection, term) for term in times})
            asked = telling_terms(times, counts, self._rows)
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
        self, table: LexicalIndex, lengths: Int32, asked: Mapping[str, float], stopped: Callable[[], bool] | None
    ) -> NDArray[np.float64]:
        """BM25 of every row of a table; 0 where it holds no word."""
        scores = np.zeros(len(lengths))
        with table.reading(stopped) as connection:
            for term, weight in asked.items():
                (places,) = connection.execute(WITH_TERM, (term,)).fetchone()
                rows, times = np.unique(_integers(places), return_counts=True)
                there = not len(rows) or bool(0 <= rows[0] <= rows[-1] < len(lengths) and lengths[rows].all())
                if len(rows) != table.count(connection, term) or not there:
                    raise sqlite3.DatabaseError(f"the rows that hold {term!r} cannot be read")
                norms = K1 * (1 - B + B * lengths[rows] / self._mean)
                scores[rows] += weight * (times * (K1 + 1) / (times + norms))
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


def _integers(text: str | None) -> Int64:
    """Those of a group_concat."""
    return np.fromstring(text, dtype=np.int64, sep=",") if text else np.empty(0, dtype=np.int64)


def _numbers(data: bytes) -> Int64:
    """Integers as SQLite packs them: seven bits a byte, the highest first; the last byte of each is below 128."""
    septets = np.frombuffer(data, dtype=np.uint8)
    lasts = np.flatnonzero(septets < 128)
    numbers, widths = septets[lasts].astype(np.int64), np.diff(lasts, prepend=-1)
    if widths.max(initial=1) > LONGEST_NUMBER:
        raise sqlite3.DatabaseError("a number of too many bytes")
    for back in range(1, int(widths.max(initial=1))):
        longer = widths > back
        numbers[longer] += (septets[lasts[longer] - back] & 127).astype(np.int64) << 7 * back
    return numbers
