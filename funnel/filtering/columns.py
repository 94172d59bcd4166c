"""Metadata columns of one segment's documents: written beside them, read by conditions.

A column is a table `c<number>`, with a row for each document that has a value there. Those of the first metadata fields
are in the file; the others, and all of a segment without the file, are taken out of the documents whenever a condition
names them.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from funnel.data.connections import (
    Bounded,
    heeding_ctrl_c,
    held_open,
    reading_file,
    writing_file,
)
from funnel.data.documents import DocumentStore
from funnel.errors import DamagedIndexError
from funnel.filtering.condition import Condition, each_test
from funnel.filtering.sql import Cells, add_like, cells, compiled
from funnel.storage.files import REMEDY

__all__ = ["FilterColumns", "Values", "merged", "write_columns"]

OWN_COLUMNS = ("id", "title")  # of the document itself
HIDDEN = "metadata."  # before the name of a metadata field that is called as one of those, or so already
_HIDDEN_NAME = re.compile(rf"(?:{re.escape(HIDDEN)})*(?:{'|'.join(OWN_COLUMNS)})")
STORED = len(OWN_COLUMNS) + 256  # columns in the file: of as many metadata fields as come first
ROWS_AT_A_TIME = 20_000  # written together
EXAMPLE = 40  # characters kept of a value, for messages
CATALOGUE = (
    "CREATE TABLE catalogue (number INTEGER PRIMARY KEY, name TEXT NOT NULL, numbers INTEGER NOT NULL, "
    "texts INTEGER NOT NULL, booleans INTEGER NOT NULL, others INTEGER NOT NULL, example TEXT NOT NULL, "
    "numerals INTEGER NOT NULL, odd TEXT NOT NULL)"
)
COLUMN = "CREATE TABLE c{} (position INTEGER PRIMARY KEY, number, text TEXT, boolean INTEGER, present INTEGER)"
ALL_ROWS = "c0"  # of the ids, which every document has


@dataclass(slots=True)
class Values:
    """What a column holds: how many numbers, texts, booleans and others (lists, objects), and a value as example.

    numerals: how many of the texts are numbers as they are written. odd: a text that is none, nor empty, as example.
    """

    number: int = 0
    text: int = 0
    boolean: int = 0
    other: int = 0
    example: str = ""
    numerals: int = 0
    odd: str = ""

    def add(self, value: object, kept: Cells) -> None:
        """Count one document's value, and the cells that it is kept in."""
        number, text, boolean, _ = kept
        if self.example in ("", "''"):  # an empty text is a poor example
            self.example = repr(value)[:EXAMPLE]
        if text is not None:
            self.text += 1
            self.numerals += number is not None
            if text and number is None and not self.odd:
                self.odd = repr(text)[:EXAMPLE]
        else:
            kind = "number" if number is not None else "other" if boolean is None else "boolean"
            setattr(self, kind, getattr(self, kind) + 1)

    def __add__(self, more: Values) -> Values:
        numbers, texts, booleans = self.number + more.number, self.text + more.text, self.boolean + more.boolean
        numerals, example, odd = self.numerals + more.numerals, self.example or more.example, self.odd or more.odd
        return Values(numbers, texts, booleans, self.other + more.other, example, numerals, odd)

    def comparable(self, kind: str) -> bool:
        """Whether literals of a kind can be: it holds such values, or only texts all of which are numbers, or empty."""
        return bool(getattr(self, kind)) or (kind == "number" and self.numerals > 0 and not self.odd)


def merged(catalogues: Iterable[Mapping[str, Values]]) -> dict[str, Values]:
    """The columns of several segments as those of one."""
    result: defaultdict[str, Values] = defaultdict(Values)
    for name, values in (entry for catalogue in catalogues for entry in catalogue.items()):
        result[name] += values
    return dict(result)


def write_columns(documents: DocumentStore, path: Path) -> None:
    """Write the columns of documents to a new file.

    Raises NoSpaceError where the disk is full, StorageError where it cannot be written, DamagedIndexError for documents
    that cannot be read.
    """
    with writing_file(path), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")  # the file is new, and thrown away where anything fails
        connection.execute("PRAGMA synchronous = OFF")
        _fill(connection, documents, None)


def _fill(connection: sqlite3.Connection, documents: DocumentStore, only: Collection[str] | None) -> None:
    """Catalogue and tables, by one pass over the documents. only: the columns to make; None: those of a file."""
    seen: defaultdict[str, Values] = defaultdict(Values, {name: Values() for name in OWN_COLUMNS})
    tables: dict[str, str] = {}
    connection.execute("BEGIN")
    connection.execute(CATALOGUE)
    every = enumerate(_fields(documents))
    while True:
        block, rows = list(islice(every, ROWS_AT_A_TIME)), defaultdict[str, list[tuple[object, ...]]](list)
        for position, fields in block:
            for name, value in fields.items():
                if (kept := cells(value))[-1]:
                    seen[name].add(value, kept)
                    rows[name].append((position, *kept))
        for number, name in enumerate(seen):
            if name not in tables and (number < STORED if only is None else number == 0 or name in only):
                connection.execute(COLUMN.format(number))
                tables[name] = f"c{number}"
            if name in tables:
                connection.executemany(f"INSERT INTO {tables[name]} VALUES (?, ?, ?, ?, ?)", rows[name])
        if not block:
            break
    connection.executemany(
        "INSERT INTO catalogue VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((number, name, *astuple(values)) for number, (name, values) in enumerate(seen.items())),
    )
    connection.execute("COMMIT")


class FilterColumns:
    """The columns of a document store, by position. Safe in threads.

    path: of the file that `write_columns` made of the same documents; None: they are read whenever columns are asked
    for. Raises DamagedIndexError, as every call does, where the file cannot be used.
    """

    def __init__(self, documents: DocumentStore, path: Path | None) -> None:
        self._documents = documents
        self._path = path
        self._file = None if path is None else held_open(path, add_like)

    @property
    def stored(self) -> bool:
        """Whether they are in a file."""
        return self._path is not None

    @cached_property
    def catalogue(self) -> dict[str, Values]:
        """Every column by name: `id`, `title`, and whatever the documents have as metadata."""
        with self._open(()) as connection:
            if self._path is not None:
                _check_schema(self._path, connection)
            entries = connection.execute("SELECT * FROM catalogue ORDER BY number").fetchall()
        kinds = (int, str, int, int, int, int, str, int, str)
        sound = all(tuple(map(type, entry)) == kinds and entry[0] == place for place, entry in enumerate(entries))
        if not sound or [entry[1] for entry in entries[: len(OWN_COLUMNS)]] != list(OWN_COLUMNS):
            raise DamagedIndexError(f"{self._path} has a catalogue that funnel did not write; {REMEDY}")
        return {entry[1]: Values(*entry[2:]) for entry in entries}

    def positions(self, condition: Condition) -> npt.NDArray[np.int64]:
        """The positions of the documents for which the condition holds: int64, in no order.

        Columns that no document has are null.
        """
        tables = {name: f"c{number}" for number, name in enumerate(self.catalogue)}
        with self._open({test.column for test in each_test(condition)}) as connection:
            found = connection.execute(*compiled(condition, tables, ALL_ROWS))
            positions = np.fromiter((position for (position,) in found), dtype=np.int64)
        if len(positions) and not 0 <= positions.min() <= positions.max() < self._documents.count():
            raise DamagedIndexError(f"{self._path} names documents that are not there; {REMEDY}")
        return positions

    @contextmanager
    def _open(self, names: Collection[str]) -> Iterator[Bounded]:
        """A connection to tables of these columns: of the file where it has them all, else made of the documents."""
        if self._file is not None and self._path is not None and all(map(self._stored, names)):
            with reading_file(self._path), self._file.use() as connection:
                yield connection
            return
        with closing(sqlite3.connect(":memory:", isolation_level=None, factory=Bounded)) as connection:
            add_like(connection)
            _fill(connection, self._documents, names)
            with heeding_ctrl_c(connection):
                yield connection

    def _stored(self, name: str) -> bool:
        return name not in self.catalogue or name in islice(self.catalogue, STORED)


def _check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Nothing stands in the file but our own statements: a view, trigger or generated column would be run."""
    found = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
    own = {"catalogue": CATALOGUE} | {f"c{number}": COLUMN.format(number) for number in range(len(found) - 1)}
    if set(found) != {("table", name, name, sql) for name, sql in own.items()}:
        raise DamagedIndexError(f"{path} holds other tables than funnel writes; {REMEDY}")


def _fields(documents: DocumentStore) -> Iterator[dict[str, object]]:
    """What each document has by name, in order of position. Raises DamagedIndexError where some are missing."""
    for expected, (position, identifier, title, metadata) in enumerate(documents.fields()):
        if position != expected:
            raise DamagedIndexError(f"{documents.path} lacks the document at position {expected}; restore it")
        # "metadata.id" for a field `id`, and "metadata.metadata.id" for that
        named = {f"{HIDDEN}{name}" if _HIDDEN_NAME.fullmatch(name) else name: metadata[name] for name in metadata}
        yield {"id": identifier, "title": title, **named}
