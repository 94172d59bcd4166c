"""Metadata columns of one segment's documents, taken out when a filter first needs them, and conditions run over them.

The document store is only read; columns and their indexes lie in a side file.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from funnel.data.documents import DocumentStore
from funnel.errors import DamagedIndexError
from funnel.filters.compiling import ALL_ROWS, KINDS, compiled, indexable
from funnel.filters.expression import Condition, each_test
from funnel.filters.sidefile import SideFile
from funnel.filters.tokens import LARGEST_INT

__all__ = ["ColumnCache", "Values", "merged"]

FORMAT = "v1"  # of the tables below, part of the file's name
OWN_COLUMNS = ("id", "title")  # of the document itself; a metadata field of such a name is hidden by it
ROWS_AT_A_TIME = 20_000  # written together
EXAMPLE = 40  # characters kept of a value, for messages
SCHEMA = (
    "CREATE TABLE catalogue (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, numbers INTEGER, texts INTEGER, "
    "booleans INTEGER, others INTEGER, example TEXT)"
)

Result = TypeVar("Result")
Cells = tuple[int | float | None, str | None, int | None, int | None]
MISSING: Cells = (None, None, None, None)


@dataclass(frozen=True, slots=True)
class Values:
    """What a column holds: how many numbers, texts, booleans and others (lists, objects), and a value as example."""

    number: int = 0
    text: int = 0
    boolean: int = 0
    other: int = 0
    example: str = ""

    def __add__(self, more: Values) -> Values:
        numbers, texts, booleans, others = (a + b for a, b in zip(self.counts, more.counts, strict=True))
        return Values(numbers, texts, booleans, others, self.example or more.example)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The numbers, texts, booleans and others."""
        return self.number, self.text, self.boolean, self.other


def merged(catalogues: Iterable[Mapping[str, Values]]) -> dict[str, Values]:
    """The columns of several segments as those of one."""
    result: dict[str, Values] = {}
    for catalogue in catalogues:
        for name, values in catalogue.items():
            result[name] = result.get(name, Values()) + values
    return result


class ColumnCache:
    """Columns of a document store, by position. Safe in threads, and for several processes at once.

    key: names the contents of the store, such as its sha256: the side file is shared by all that hold the same.
    folder: of side files; default $FUNNEL_CACHE/filters.
    """

    def __init__(self, documents: DocumentStore, key: str, folder: Path | None = None) -> None:
        self._documents = documents
        self._file = SideFile(f"{key[:32]}-{FORMAT}", folder)
        self._lock = Lock()

    def catalogue(self) -> dict[str, Values]:
        """Every column by name: `id`, `title`, and whatever the documents have as metadata."""
        with self._lock:
            return self._sound(
                lambda connection: {name: values for name, (_, values) in _catalogue(connection).items()}
            )

    def positions(self, condition: Condition) -> npt.NDArray[np.int64]:
        """The positions of the documents for which the condition holds: int64, in no order.

        Columns that no document has are null. Raises NoSpaceError where there is no room for the columns.
        """
        with self._lock:
            return self._sound(lambda connection: self._positions(connection, condition))

    def _sound(self, use: Callable[[sqlite3.Connection], Result]) -> Result:
        """Use the side file; where it turns out to be damaged, once more with one that is made anew."""
        try:
            return use(self._opened())
        except sqlite3.DatabaseError:
            self._file.discard()
            return use(self._opened())

    def _opened(self) -> sqlite3.Connection:
        return self._file.connection() or self._file.rewrite(self._begin)

    def _begin(self, connection: sqlite3.Connection) -> None:
        """An empty cache: which columns there are, and the positions."""
        found = _looked_through(self._documents)
        connection.execute(SCHEMA)
        connection.executemany(
            "INSERT INTO catalogue VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (number, name, values.number, values.text, values.boolean, values.other, values.example)
                for number, (name, values) in enumerate(found.items())
            ],
        )
        connection.execute(f"CREATE TABLE {ALL_ROWS} (position INTEGER PRIMARY KEY)")
        connection.executemany(
            f"INSERT INTO {ALL_ROWS} VALUES (?)", ((position,) for position in range(self._documents.count()))
        )

    def _positions(self, connection: sqlite3.Connection, condition: Condition) -> npt.NDArray[np.int64]:
        numbers = {name: number for name, (number, _) in _catalogue(connection).items()}
        names = {test.column.name for test in each_test(condition)} & numbers.keys()
        tables = {name: f"c{numbers[name]}" for name in names}
        indexes = {(tables[name], cell) for name, cell in indexable(condition) if name in tables}
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        lacking = {name: table for name, table in tables.items() if table not in there}
        unindexed = sorted((table, cell) for table, cell in indexes if f"{table}_{cell}" not in there)
        if lacking or unindexed:

            def change(made: sqlite3.Connection) -> None:
                _take_out(self._documents, lacking, made)
                for table, cell in unindexed:
                    made.execute(f"CREATE INDEX {table}_{cell} ON {table} ({cell})")

            connection = self._file.rewrite(change)
        statement = compiled(condition, tables)
        found = connection.execute(statement.sql, statement.parameters)
        return np.fromiter((position for (position,) in found), dtype=np.int64)


def _catalogue(connection: sqlite3.Connection) -> dict[str, tuple[int, Values]]:
    rows = connection.execute("SELECT number, name, numbers, texts, booleans, others, example FROM catalogue")
    return {name: (number, Values(*values)) for number, name, *values in rows}


def _looked_through(documents: DocumentStore) -> dict[str, Values]:
    """Which columns there are and what they hold: one pass over all documents."""
    counts = {name: [0, 0, 0, 0] for name in OWN_COLUMNS}
    examples: dict[str, str] = {}
    for fields in _fields(documents):
        for name, value in fields.items():
            cells = _cells(value)
            if cells == MISSING:
                counts.setdefault(name, [0, 0, 0, 0])
                continue
            kind = next((place for place, cell in enumerate(cells[:3]) if cell is not None), len(KINDS))
            counts.setdefault(name, [0, 0, 0, 0])[kind] += 1
            if name not in examples:
                examples[name] = repr(value)[:EXAMPLE]
    return {
        name: Values(number, text, boolean, other, examples.get(name, ""))
        for name, (number, text, boolean, other) in counts.items()
    }


def _take_out(documents: DocumentStore, tables: Mapping[str, str], connection: sqlite3.Connection) -> None:
    """Fill a new table for each of some columns: one pass over all documents."""
    if not tables:
        return
    for table in tables.values():
        connection.execute(
            f"CREATE TABLE {table} (position INTEGER PRIMARY KEY, number, text TEXT, boolean INTEGER, present INTEGER)"
        )
    every = enumerate(_fields(documents))
    while block := list(islice(every, ROWS_AT_A_TIME)):
        for name, table in tables.items():
            connection.executemany(
                f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?)",
                ((position, *_cells(fields.get(name))) for position, fields in block),
            )


def _fields(documents: DocumentStore) -> Iterator[dict[str, object]]:
    """What each document has by name, in order of position. Raises DamagedIndexError where some are missing."""
    for expected, (position, identifier, title, metadata) in enumerate(documents.fields()):
        if position != expected:
            raise DamagedIndexError(f"{documents.path} lacks the document at position {expected}; restore it")
        yield {**metadata, "id": identifier, "title": title}


def _cells(value: object) -> Cells:
    """A value of JSON in the cell of its kind; what SQLite's integers do not hold becomes a float, NaN is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool):
        return None, None, int(value), 1
    if isinstance(value, int):
        return _number(value), None, None, 1
    if isinstance(value, float):
        return value, None, None, 1
    if isinstance(value, str):
        return None, value, None, 1
    return None, None, None, 1


def _number(value: int) -> int | float:
    if -LARGEST_INT <= value <= LARGEST_INT:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
