"""Documents, and the SQLite file that keeps them in the order they came."""

from __future__ import annotations

import datetime
import enum
import json
import math
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from funnel.data.connections import (
    UNREADABLE,
    Bounded,
    Connections,
    held_open,
    reading_file,
    unreadable,
    writing_file,
)
from funnel.data.words import LexicalIndex, insert_texts, is_lexical, make_table
from funnel.errors import DamagedIndexError, InputError, StorageError
from funnel.identifiers import named_twice, unicode_text

__all__ = ["Document", "DocumentStore", "pieces_of", "plain"]

MOST_NESTED = 100  # lists and objects inside each other; Python's reader of JSON gives up at some 1,000
NANOSECONDS = ("ns", "ps", "fs", "as")  # units that Python's datetime does not hold
NO_LENGTH = ("Y", "M", "generic")  # a year and a month have no fixed number of seconds


def plain(value: Any, depth: int = 0) -> Any:
    """A value of metadata as JSON keeps it: see the table.

    Raises TypeError for what is refused, ValueError for nested too deep.
    """
    match value:
        case None:
            return None
        case str():
            return str.__str__(value)
        case enum.Enum():
            return plain(value.value, depth)
        case bool():
            return value
        case int():
            return int(value)
        case float():
            return None if math.isnan(value) else float(value)
    if depth > MOST_NESTED:
        raise ValueError(f"lists and objects more than {MOST_NESTED} deep")
    return _held(value, depth)


def _held(value: Any, depth: int) -> Any:
    match value:
        case Mapping():
            return _object(value, depth)
        case list() | tuple():
            return [plain(one, depth + 1) for one in value]
        case np.datetime64() | np.timedelta64():
            return _of_numpy(value)
        case datetime.timedelta():
            return None if math.isnan(seconds := value.total_seconds()) else _whole(seconds)
        case Decimal():
            return _decimal(value)
        case uuid.UUID():
            return str(value)
    if hasattr(value, "isoformat"):
        text = str(value.isoformat())
        return None if text == "NaT" else text
    return _other(value, depth)


def _other(value: Any, depth: int) -> Any:
    """What gives Python's own values: arrays, series, scalars."""
    if type(value).__name__ == "NAType":
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind in "mM":  # whose list may hold bare counts of nanoseconds
        return [plain(one, depth + 1) for one in value] if value.ndim else _of_numpy(value[()])
    if isinstance(value, np.floating):  # longdouble among them
        return plain(float(value), depth)
    if not isinstance(value, np.void | np.complexfloating | np.bytes_ | memoryview):
        for name in ("as_py", "tolist", "to_pylist", "to_list"):
            if callable(getattr(value, name, None)):
                return plain(getattr(value, name)(), depth + 1)
    raise TypeError(f"a value of type {type(value).__name__}")


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, one in value.items():
        name = plain(key)
        if isinstance(name, bool) or not isinstance(name, str | int):
            raise TypeError(f"a key of type {type(key).__name__}")
        if str(name) in found:
            raise ValueError(f"the key {str(name)!r} twice")
        found[str(name)] = plain(one, depth + 1)
    return found


def _of_numpy(value: Any) -> str | int | float | None:
    if np.isnat(value):
        return None
    unit = np.datetime_data(value.dtype)[0]
    if isinstance(value, np.timedelta64):
        if unit in NO_LENGTH:
            raise TypeError(f"a timedelta64 in the unit {unit}")
        return _whole(value / np.timedelta64(1, "s"))
    if unit in NANOSECONDS:
        short = value.astype("M8[us]")
        if short != value:
            return str(value.astype("M8[ns]"))
        value = short
    held = value.tolist()  # a number where Python's calendar, the years 1 to 9999, does not hold it
    return held.isoformat() if isinstance(held, datetime.date) else str(value)


def _whole(seconds: Any) -> int | float:
    number = float(seconds)
    return int(number) if number.is_integer() else number


def _decimal(value: Decimal) -> int | float | str | None:
    if value.is_nan():
        return None
    number = float(value)
    if value.is_infinite() or Decimal(repr(number)) == value:
        return number
    return f"{value:f}" if abs(value.adjusted()) < 40 else str(value).replace("E", "e")


FORMAT_VERSION = 1  # of the table below, kept in SQLite's own user_version
SCHEMA = (
    "CREATE TABLE documents ("
    "position INTEGER PRIMARY KEY, "
    "id NOT NULL UNIQUE, "  # no declared type: an int stays an int and a text stays a text
    "title TEXT NOT NULL, "
    "text TEXT NOT NULL, "
    "metadata TEXT NOT NULL)"
)
# What sqlite_master says of the table, byte for byte; the index keeps ids unique.
OBJECTS = (
    ("table", "documents", "documents", SCHEMA),
    ("index", "sqlite_autoindex_documents_1", "documents", None),
)
LONGEST_SHOWN = 40  # characters of a name in a message
POSITIONS_PER_QUERY = 500  # below 999, SQLite's smallest default limit on bound values


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus.

    Attributes:
        id: The user's id.
        title: Title, may be empty.
        text: Body, may be empty.
        metadata: Any other fields; what they are stored as, `funnel.data.documents` says.
        vector: float32 [d], unit length, when the corpus carries embeddings.
        norm: its length as it was given.
    """

    id: str | int
    title: str = ""
    text: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict, hash=False)
    vector: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    norm: float = field(default=1.0, compare=False, repr=False)

    @property
    def content(self) -> str:
        """What is encoded: title and text with a space between (BEIR's convention)."""
        return f"{self.title} {self.text}".strip()


class DocumentStore(AbstractContextManager["DocumentStore", None]):
    """Documents by position (0, 1, … in input order) in one SQLite file.

    `create` gives a store that can be appended to, `open` one that can only be read, from any thread.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self._writable = writable
        self._connections = Connections(partial(_connect, path)) if writable else held_open(path)
        self._count = 0
        self._lexical = False

    @classmethod
    def create(cls, path: str | Path) -> Self:
        """Start an empty store in a new file.

        Raises:
            InputError: the file exists.
            StorageError: the file cannot be created.
        """
        path = Path(path)
        if path.exists():
            raise InputError(f"{path} exists already; a document store is created in a new file")
        store = cls(path, writable=True)
        with writing_file(path), store._unclosed.use() as connection:
            connection.execute(SCHEMA)
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            store._lexical = make_table(connection)
        return store

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a store for reading.

        Raises:
            DamagedIndexError: the file is missing, is no SQLite file or holds no documents table.
        """
        path = Path(path)
        if not path.is_file():
            raise DamagedIndexError(f"{path} is missing; restore it or build the index again")
        try:
            store = cls(path, writable=False)
        except OSError as error:
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            with reading_file(path), store._unclosed.use() as connection:
                store._lexical = "lexical" in _names(path, connection)
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version != FORMAT_VERSION:
                    raise DamagedIndexError(
                        f"{path} has documents format {version}, expected {FORMAT_VERSION}; build it again"
                    )
                first, last = connection.execute("SELECT min(position), max(position) FROM documents").fetchone()
                if first:
                    raise DamagedIndexError(f"{path} begins at position {first}, expected 0; build the index again")
        except StorageError:
            store.close()
            raise
        store._count = 0 if last is None else last + 1
        return store

    def append(self, documents: Sequence[Document]) -> None:
        """Add documents behind those already there, all of them or none, in one transaction.

        Raises:
            InputError: an id is there already or comes twice; metadata is not JSON; a text is not Unicode.
            NoSpaceError: the disk is full.
        """
        if not self._writable:
            raise InputError(f"{self.path} was opened for reading; documents are added by building")
        rows = [_row(self._count + offset, document) for offset, document in enumerate(documents)]
        with writing_file(self.path), self._unclosed.use() as connection, connection:
            connection.execute("BEGIN")
            try:
                connection.executemany("INSERT INTO documents VALUES (?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError:
                connection.rollback()
                raise _duplicate_error(connection, [row[1] for row in rows]) from None
            if self._lexical:
                insert_texts(connection, ((row[0], row[2], row[3]) for row in rows))
        self._count += len(rows)

    def lexical(self) -> LexicalIndex:
        """The words of titles and texts. InputError for a store that was written without them."""
        if not self._lexical:
            raise InputError(
                f"{self.path} holds no words to look for: it was written before there were any, or by an SQLite "
                "without FTS5; upgrade or build the index again, or leave hybrid out"
            )
        with reading_file(self.path), self._unclosed.use() as connection:
            first, last = connection.execute("SELECT min(id), max(id) FROM lexical_docsize").fetchone()
            if first is not None and not 0 <= first <= last < self._count:
                raise DamagedIndexError(
                    f"{self.path} has words of the positions {first} to {last}, and {self._count} documents; build the "
                    "index again"
                )
            return LexicalIndex(self.path, lambda: self._unclosed.use())

    def get(self, positions: Sequence[int] | NDArray[np.integer]) -> list[Document]:
        """The documents at these positions, in the order asked; the vectors are kept elsewhere.

        Raises:
            InputError: a position is outside the store.
            DamagedIndexError: the file cannot be read.
        """
        wanted = np.asarray(positions, dtype=np.int64).tolist()
        unique = sorted(set(wanted))
        if unique and not 0 <= unique[0] <= unique[-1] < self._count:
            outside = unique[0] if unique[0] < 0 else unique[-1]
            raise InputError(f"position {outside} is outside the store of {self._count} documents")
        try:
            found = _documents(self._selected("SELECT * FROM documents WHERE position IN ({})", unique))
        except UNREADABLE as error:
            raise unreadable(self.path, error) from error
        if len(found) != len(unique):
            raise DamagedIndexError(
                f"{self.path} lacks {len(unique) - len(found)} of {len(unique)} documents asked for; "
                "restore it or build the index again"
            )
        return list(map(found.__getitem__, wanted))

    def count(self) -> int:
        """How many documents there are."""
        return self._count

    def ids(self) -> Iterator[str | int]:
        """Every id in order of position, streamed."""
        with reading_file(self.path), self._unclosed.apart() as connection:
            for (identifier,) in connection.execute("SELECT id FROM documents ORDER BY position"):
                _check_kinds(identifier, "", "")
                yield identifier

    def fields(self) -> Iterator[tuple[int, str | int, str, dict[str, object]]]:
        """Position, id, title and metadata of every document in order of position, streamed."""
        with reading_file(self.path), self._unclosed.apart() as connection:
            query = "SELECT position, id, title, metadata FROM documents ORDER BY position"
            for position, identifier, title, metadata in connection.execute(query):
                _check_kinds(identifier, title, "")
                yield position, identifier, title, _metadata(identifier, metadata)

    def find_all(self, document_ids: Sequence[str | int]) -> dict[str | int, int]:
        """The positions of those ids that are there."""
        with reading_file(self.path):
            return dict(self._selected("SELECT id, position FROM documents WHERE id IN ({})", document_ids))

    def _selected(self, query: str, values: Sequence[str | int]) -> list[tuple[Any, ...]]:
        """The rows of a query by values, which stand at its {}; some values at a time."""
        rows = []
        with self._unclosed.use() as connection:
            for start in range(0, len(values), POSITIONS_PER_QUERY):
                part = values[start : start + POSITIONS_PER_QUERY]
                rows += connection.execute(query.format(", ".join("?" * len(part))), part).fetchall()
        return rows

    def close(self) -> None:
        """Close the connections; closing twice is fine."""
        self._connections.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _unclosed(self) -> Connections:
        if self._connections.closed:
            raise InputError(f"the document store {self.path} is closed; open it again")
        return self._connections


def _connect(path: Path) -> Bounded:
    # check_same_thread is off: threads take turns with a connection.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=Bounded)
    # The file becomes part of a generation only once it is complete and synced by the storage.
    connection.execute("PRAGMA journal_mode = MEMORY")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _names(path: Path, connection: sqlite3.Connection) -> set[str]:
    """The tables of the file. Nothing stands in it but our own statements: a view or trigger would be run."""
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    for kind, name, table, sql in found:
        known = (kind, name, table, sql) in OBJECTS or (kind == "table" and name == table and is_lexical(name, sql))
        if not known:
            raise DamagedIndexError(
                f"{path} holds the {str(kind)[:LONGEST_SHOWN]} {str(name)[:LONGEST_SHOWN]!r} by a statement that "
                "funnel did not write; restore it or build the index again"
            )
    return {name for _, name, _, _ in found}


def _row(position: int, document: Document) -> tuple[int, str | int, str, str, str]:
    try:
        metadata = json.dumps(plain(dict(document.metadata)), ensure_ascii=False)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"the metadata of document {document.id!r} is not JSON ({error}); "
            "use text, numbers, booleans, dates, lists and dicts"
        ) from None
    row = (position, document.id, document.title, document.text, metadata)
    for name, value in zip(("id", "title", "text", "metadata"), row[1:], strict=True):
        if isinstance(value, str):
            unicode_text(value, f"the {name} of document {document.id!r}")
    return row


def _documents(rows: Iterable[tuple[Any, ...]]) -> dict[int, Document]:
    """Documents by position; what is sound takes no call of ours."""
    found = {}
    for position, identifier, title, text, metadata in rows:
        if type(identifier) not in (str, int) or type(title) is not str or type(text) is not str:
            _check_kinds(identifier, title, text)
        values = json.loads(metadata) if type(metadata) is str and "\\u" not in metadata else None
        if type(values) is not dict:
            values = _metadata(identifier, metadata)
        found[position] = Document(identifier, title, text, values)
    return found


def _check_kinds(document_id: object, title: object, text: object) -> None:
    if type(document_id) not in (str, int) or type(title) is not str or type(text) is not str:
        raise DamagedIndexError(
            f"a document has an id of type {type(document_id).__name__}, a title of {type(title).__name__} and a text "
            f"of {type(text).__name__}; expected a text or whole number, a text and a text; build the index again"
        )


def _metadata(document_id: str | int, metadata: str) -> dict[str, object]:
    values = json.loads(metadata) if isinstance(metadata, str) else metadata
    if "\\u" in str(metadata):  # a lone surrogate is no Unicode, and can be written nowhere
        json.dumps(values, ensure_ascii=False).encode()
    if not isinstance(values, dict):
        raise DamagedIndexError(
            f"the metadata of document {str(document_id)[:LONGEST_SHOWN]!r} is a {type(values).__name__}, expected a "
            "JSON object; build the index again"
        )
    return values


def _duplicate_error(connection: sqlite3.Connection, ids: Iterable[str | int]) -> InputError:
    counts = Counter(ids)
    query = "SELECT 1 FROM documents WHERE id = ?"
    duplicates = [
        identifier
        for identifier, times in counts.items()
        if times > 1 or connection.execute(query, (identifier,)).fetchone() is not None
    ]
    return named_twice(duplicates, "document")


# Words of a run: most queries of the judged sets at hand have so many.
SHORTEST, LONGEST = 6, 18
# Words of a document that is worth cutting: twice those of the longest run. A shorter one is like a query itself.
LEAST_WORDS = 2 * LONGEST


def pieces_of(documents: Sequence[Document], count: int, seed: int = 0) -> list[str]:
    """Titles, and runs of 6 to 18 words from the bodies, of documents drawn at random.

    At most two of each document, of which one may be its title. None at all where fewer than half of the documents
    have 36 words: queries and documents are of one kind there.

    Args:
        documents: those of a corpus, or a sample of them.
        count: how many at most.
        seed: of the draw.
    """
    bodies = {number: document.text.split() for number, document in enumerate(documents)}
    long = [number for number, words in bodies.items() if len(words) >= LEAST_WORDS]
    if 2 * len(long) < len(documents):
        return []
    rng = np.random.default_rng(seed)
    pieces = []
    for place, number in enumerate(np.tile(rng.permutation(long), 2)[:count].tolist()):
        title, words = documents[number].title.strip(), bodies[number]
        if title and (place + place // len(long)) % 2 == 0:  # of a document that comes twice the title is taken once
            pieces.append(title)
            continue
        length = int(rng.integers(SHORTEST, LONGEST + 1))
        start = int(rng.integers(len(words) - length + 1))
        pieces.append(" ".join(words[start : start + length]))
    return pieces
