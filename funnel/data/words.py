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
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from funnel.data.connections import Bounded, unreadable

__all__ = ["LexicalIndex", "PooledIndex", "insert_texts", "is_lexical", "make_table", "words_of"]

TABLE = "lexical"
# Porter's stemmer over Unicode 6.1 words without their accents. Without it BM25's nDCG@10 falls on scifact's training
# claims from .699 to .670; accents made no difference there.
TOKENIZER = "porter unicode61 remove_diacritics 2"
SCHEMA = (
    f"CREATE VIRTUAL TABLE {TABLE} USING fts5(title, text, content={{content}}, content_rowid='position', "
    f"tokenize='{TOKENIZER}')"
)
# The statement of any of SQLite's own tokenizers, and the tables that FTS5 keeps it in; a generated column needs AS.
_STATEMENT = re.compile(re.escape(SCHEMA.format(content="'documents'")).replace(re.escape(TOKENIZER), "[a-z0-9_ ]+"))
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

# What unicode61 takes for a word, as near as Python's classes come; combining accents stay inside it.
_WORD = re.compile(r"(?:[^\W_][\u0300-\u036f]*)+")
# Scripts that put no blanks between words: Thai, Lao, Burmese, Khmer, kana, bopomofo and Han, with the planes of rare
# Han characters. Each of their letters and each two neighbours are words of the table; a query asks for the pairs.
_BLANKLESS = (
    "\u0e01-\u0e5b\u0e81-\u0edf\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3105-\u312f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_RUN = re.compile(f"([{_BLANKLESS}]+)")


def make_table(connection: sqlite3.Connection, content: str = "'documents'") -> bool:
    """Make the empty table. content: the table that holds the texts, quoted; "''" for none. False without FTS5."""
    try:
        connection.execute(SCHEMA.format(content=content))
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
    if text.isascii() or _RUN.search(text) is None:
        return _WORD.findall(text)
    words: list[str] = []
    for part in _RUN.split(text):
        if _RUN.fullmatch(part) is None:
            words += _WORD.findall(part)
            continue
        words += _pairs(part) or _letters(part)
    return words


def telling_words(times: Mapping[str, int], count: Callable[[str], int], rows: int) -> dict[str, int]:
    """The words of a query that are worth asking for, rarest first.

    times: its words, and how often each comes. count: how many of all rows hold a word.
    """
    counts = {word: count(word) for word in times}
    known = sorted((word for word in times if counts[word]), key=lambda word: counts[word])
    telling = [word for word in known if counts[word] <= COMMON_SHARE * rows] or known
    return {word: times[word] for word in telling[:MOST_WORDS]}


def inverse_frequency(count: int, rows: int) -> float:
    """What FTS5 weighs a word by that `count` of `rows` rows hold."""
    weight = math.log((rows - count + 0.5) / (count + 0.5))
    return weight if weight > 0.0 else LEAST_WEIGHT


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

    @staticmethod
    def present(connection: sqlite3.Connection) -> bool:
        """Whether the file holds the table."""
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (TABLE,))
        return found.fetchone() is not None

    def rank(
        self,
        text: str,
        depth: int,
        allowed: NDArray[np.bool_] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """The best positions for a text by BM25, and their scores: int64 and float32 [at most depth], falling.

        A document counts that holds any of the words; equal scores come in order of position. allowed: bool by
        position; others are passed over. stopped: looked at all the time; once it is true the search ends, and None is
        returned. k1 = 1.2 and b = .75 are FTS5's own, and so is the least weight of 1e-6 for words of half the rows.

        Raises DamagedIndexError where the file cannot be read.
        """
        try:
            with self.reading(stopped) as connection:
                expression = self.expression(text)
                found = [] if expression is None else self._best(connection, expression, depth, allowed)
        except Stopped:
            return None
        positions = np.array([position for position, _ in found], dtype=np.int64)
        return positions, np.array([-score for _, score in found], dtype=np.float32)

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
                    yield connection
                finally:
                    ran_away = connection.ran_away
                    connection.bound()
        except (sqlite3.Error, MemoryError) as error:
            if stopped is not None and "interrupted" in str(error) and not ran_away:
                raise Stopped from None
            raise unreadable(self.path, error) from error

    def expression(self, text: str) -> str | None:
        """What FTS5 is asked: the text's words, each quoted, between ORs; None where no word of it is in the table.

        Nothing of the text is read as FTS5's own syntax. A word that comes twice counts twice, as in BM25.
        """
        asked = telling_words(Counter(words_of(text)), self.count, self.rows)
        return " OR ".join(f'"{word}"' for word, times in asked.items() for _ in range(times)) or None

    def count(self, word: str) -> int:
        """How many rows hold a word."""
        count = self._counts.get(word)
        if count is None:
            query = f"SELECT count(*) FROM {TABLE} WHERE {TABLE} MATCH ?"
            with self._connection() as connection:
                (count,) = connection.execute(query, (f'"{word}"',)).fetchone()
            if len(self._counts) >= REMEMBERED_WORDS:
                self._counts.clear()
            self._counts[word] = count
        return count

    def _best(
        self, connection: sqlite3.Connection, expression: str, depth: int, allowed: NDArray[np.bool_] | None
    ) -> list[tuple[int, float]]:
        query = f"SELECT rowid, bm25({TABLE}) FROM {TABLE} WHERE {TABLE} MATCH ? ORDER BY 2, 1 LIMIT ?"
        if allowed is None:
            return connection.execute(query, (expression, depth)).fetchall()
        best: list[tuple[int, float]] = []
        for position, score in connection.execute(query, (expression, -1)):
            if not 0 <= position < len(allowed):
                raise sqlite3.DatabaseError(f"a row of words has the position {position}")
            if allowed[position]:
                best.append((position, score))
                if len(best) == depth:
                    break
        return best


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
