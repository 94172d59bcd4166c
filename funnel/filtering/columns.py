"""Metadata columns of one segment's documents, taken out when a filter first needs them, and conditions run over them.

The document store is only read; columns and their indexes lie in a side file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from funnel.data.connections import Bounded, heeding_ctrl_c, open_to_read
from funnel.data.documents import DocumentStore
from funnel.errors import DamagedIndexError, NoSpaceError, StorageError, of_environment, reason
from funnel.filtering.condition import Condition, each_test
from funnel.filtering.sql import ALL_ROWS, add_like, cells, compiled, indexable
from funnel.storage.files import is_no_space, remove_own, there
from indexes.forks import free_in_children

__all__ = ["ColumnCache", "SideFile", "Values", "merged"]

CACHE_VARIABLE = "FUNNEL_CACHE"
TRIES = 5  # a file may be replaced between being listed and being opened
# All side files of a cache folder together: beyond it those that were not used for longest go.
LARGEST_FOLDER = 4 << 30


def default_folder() -> Path | None:
    """$FUNNEL_CACHE/filters, else ~/.cache/funnel-retrieval/filters; None for a user without a home folder."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(os.path.abspath(given)) / "filters"
    try:
        return Path.home() / ".cache" / "funnel-retrieval" / "filters"
    except RuntimeError:
        return None


class SideFile:
    """The side file called `key` in a folder; in a temporary folder where that one cannot be written.

    Not for several threads at once. Its connection is read-only.
    """

    def __init__(self, key: str, folder: Path | None = None) -> None:
        self._key = key
        self._elsewhere = False
        self._connection: Bounded | None = None
        self._process = os.getpid()
        chosen = default_folder() if folder is None else folder
        if chosen is None:
            self._go_elsewhere()
        else:
            self._folder = chosen

    @property
    def path(self) -> Path | None:
        """The newest file, unchecked."""
        return self._newest(self._folder)

    def _newest(self, folder: Path) -> Path | None:
        found = []
        try:
            for entry in folder.glob(f"{self._key}.*.sqlite"):
                with suppress(FileNotFoundError):  # replaced since it was listed
                    found.append((entry.stat().st_mtime_ns, entry))
        except OSError:
            return None
        return max(found)[1] if found else None

    def connection(self) -> Bounded | None:
        """To the newest file that is sound; None where there is none. Damaged ones are removed."""
        if self._process != os.getpid():  # no connection is carried over a fork, nor closed by the child
            self._process, self._inherited, self._connection = os.getpid(), self._connection, None
        if self._connection is None:
            self._connection = self._open()
        if self._connection is not None:
            self._connection.bound()
        return self._connection

    def _open(self) -> Bounded | None:
        for _ in range(TRIES):
            path = self.path
            if path is None:
                return None
            try:
                sound = _sha256(path) == _named(path)
                if sound:
                    os.utime(path) if os.access(path, os.W_OK) else None  # used: it goes last
                    return _connect(path)
            except (OSError, sqlite3.Error, MemoryError) as error:
                if of_environment(error) and there(path):
                    raise StorageError(f"the columns in {path} cannot be read now: {reason(error)}") from error
                sound = False
            if not sound:
                self._remove(path)
        return None

    def discard(self) -> None:
        """Throw the file away: it was found to be damaged while it was used."""
        path = self.path
        self.close()
        if path is not None:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError:  # a folder that cannot be written to: go on elsewhere
            self._go_elsewhere()

    def rewrite(self, change: Callable[[sqlite3.Connection], None]) -> Bounded:
        """Make a change in a copy and put it in the place of the file; gives the connection to the new one.

        change: is given the copy of the newest sound file, which another handle may have made since this one looked, or
        an empty file. Raises NoSpaceError where neither the folder nor a temporary one has room for it, StorageError
        where neither can be written to, and what `change` raises.
        """
        source = self._folder
        try:
            return self._rewritten(source, change)
        except (OSError, sqlite3.OperationalError) as error:
            if not _of_the_folder(error):
                raise
            failed: dict[str, Exception] = {str(source): error}
            if self._elsewhere:
                raise _kept_nowhere(failed) from error
        try:
            self._go_elsewhere()
            return self._rewritten(source, change)
        except (OSError, sqlite3.OperationalError) as error:
            if not _of_the_folder(error):
                raise
            raise _kept_nowhere({**failed, "a temporary folder": error}) from error

    def _rewritten(self, source: Path, change: Callable[[sqlite3.Connection], None]) -> Bounded:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = list(self._folder.glob(f"{self._key}.*.sqlite"))  # those put there meanwhile are not ours to remove
        handle, name = tempfile.mkstemp(prefix=f"{self._key}-", suffix=".tmp", dir=self._folder)
        os.close(handle)
        made = Path(name)
        try:
            self._copy_newest(source, made)
            _change(made, change)
            final = self._folder / f"{self._key}.{_sha256(made)}.sqlite"
            connection = _connect(made)  # before it has its name, from when on another process may replace it
            try:
                os.replace(made, final)
            except OSError:
                connection.close()
                raise
        finally:
            made.unlink(missing_ok=True)
        self.close()
        self._connection = connection
        for older in before:
            if older != final:
                older.unlink(missing_ok=True)
        _tidy(self._folder, final)
        return connection

    def _copy_newest(self, source: Path, made: Path) -> None:
        """Copy the newest file of a folder; `made` stays empty where there is none, or only a damaged one."""
        for _ in range(TRIES):
            newest = self._newest(source)
            if newest is None:
                break
            try:
                shutil.copyfile(newest, made)
            except FileNotFoundError:
                continue
            if _sha256(made) == _named(newest):
                return
            break
        os.truncate(made, 0)

    def _go_elsewhere(self) -> None:
        if not self._elsewhere:
            self._folder = Path(tempfile.mkdtemp(prefix="funnel-filters-"))
            self._elsewhere = True
            weakref.finalize(self, remove_own, os.getpid(), self._folder)

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(path: Path) -> Bounded:
    connection = open_to_read(path, path.stat().st_size)  # threads take turns, see ColumnCache
    try:
        add_like(connection)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opened now, while the file has this name
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _change(path: Path, change: Callable[[sqlite3.Connection], None]) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")  # the file is new, and thrown away where anything fails
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        change(connection)
        connection.execute("COMMIT")
    finally:
        connection.close()


def _of_the_folder(error: Exception) -> bool:
    """Whether it is the folder that fails, and neither the documents read nor a statement that is run."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR
    return not isinstance(error, StorageError)


def _kept_nowhere(failed: dict[str, Exception]) -> StorageError:
    """The error for folders none of which took the file, and why."""
    said = " nor in ".join(f"{folder} ({error})" for folder, error in failed.items())
    full = any(is_no_space(error) for error in failed.values())
    return (NoSpaceError if full else StorageError)(
        f"the columns that filters need cannot be kept in {said}. "
        f"{'Free some space, or set' if full else 'Set'} {CACHE_VARIABLE} to a folder that can be written to"
    )


def _named(path: Path) -> str:
    """The sha256 that a file should have."""
    return path.name.split(".")[1]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tidy(folder: Path, keep: Path) -> None:
    """Remove the files that were not used for longest, until the folder holds no more than it may."""
    try:
        found = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry) for entry in folder.glob("*.sqlite"))
        total = sum(size for _, size, _ in found)
        for _, size, entry in found:
            if total <= LARGEST_FOLDER:
                return
            if entry != keep:
                entry.unlink(missing_ok=True)
                total -= size
    except OSError:  # another process tidies at the same time
        return


FORMAT = "v4"  # of the tables below, part of the file's name
OWN_COLUMNS = ("id", "title")  # of the document itself
HIDDEN = "metadata."  # before the name of a metadata field that is called as one of those, or so already
ROWS_AT_A_TIME = 20_000  # written together
EXAMPLE = 40  # characters kept of a value, for messages
SCHEMA = (
    "CREATE TABLE catalogue (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, numbers INTEGER, texts INTEGER, "
    "booleans INTEGER, others INTEGER, example TEXT, numerals INTEGER, odd TEXT)"
)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
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

    def __add__(self, more: Values) -> Values:
        numbers, texts, booleans, others = (a + b for a, b in zip(self.counts, more.counts, strict=True))
        example, odd = self.example or more.example, self.odd or more.odd
        return Values(numbers, texts, booleans, others, example, self.numerals + more.numerals, odd)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The numbers, texts, booleans and others."""
        return self.number, self.text, self.boolean, self.other

    def comparable(self, kind: str) -> bool:
        """Whether literals of a kind can be: it holds such values, or only texts all of which are numbers, or empty."""
        return bool(getattr(self, kind)) or (kind == "number" and self.numerals > 0 and not self.odd)


class _Seen:
    """What was seen of a column so far."""

    def __init__(self) -> None:
        self.counts = [0, 0, 0, 0]
        self.example = self.odd = ""
        self.numerals = 0

    def add(self, value: object) -> None:
        """Count one document's value."""
        number, text, boolean, present = cells(value)
        if present is None:
            return
        if self.example in ("", "''"):  # an empty text is a poor example
            self.example = repr(value)[:EXAMPLE]
        if text is not None:
            self.counts[1] += 1
            self.numerals += number is not None
            if text and number is None and not self.odd:
                self.odd = repr(text)[:EXAMPLE]
        else:
            self.counts[0 if number is not None else 2 if boolean is not None else 3] += 1

    def values(self) -> Values:
        """What the column holds."""
        numbers, texts, booleans, others = self.counts
        return Values(numbers, texts, booleans, others, self.example, self.numerals, self.odd)


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
        self._lock = free_in_children(Lock())

    def catalogue(self) -> dict[str, Values]:
        """Every column by name: `id`, `title`, and whatever the documents have as metadata."""
        with self._lock:
            return self._sound(
                lambda connection: {name: values for name, (_, values) in _catalogue(connection).items()}
            )

    def positions(self, condition: Condition) -> npt.NDArray[np.int64]:
        """The positions of the documents for which the condition holds: int64, in no order.

        Columns that no document has are null. Raises NoSpaceError where there is no room for the columns, StorageError
        where they can be written nowhere.
        """
        with self._lock:
            return self._sound(lambda connection: self._positions(connection, condition))

    def _sound(self, use: Callable[[Bounded], Result]) -> Result:
        """Use the side file; where it turns out to be damaged, once more with one that is made anew."""
        try:
            return use(self._opened())
        except (sqlite3.DatabaseError, MemoryError) as error:
            if of_environment(error):
                raise StorageError(f"the columns that filters need cannot be read now: {reason(error)}") from error
            self._file.discard()
            return use(self._opened())

    def _opened(self) -> Bounded:
        return self._file.connection() or self._file.rewrite(self._begin)

    def _begin(self, connection: sqlite3.Connection) -> None:
        """In an empty file: which columns there are, and the positions."""
        if "catalogue" in _names(connection):
            return
        connection.execute(SCHEMA)
        connection.executemany(
            "INSERT INTO catalogue VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (number, name, *values.counts, values.example, values.numerals, values.odd)
                for number, (name, values) in enumerate(_looked_through(self._documents).items())
            ],
        )
        connection.execute(f"CREATE TABLE {ALL_ROWS} (position INTEGER PRIMARY KEY)")
        connection.executemany(
            f"INSERT INTO {ALL_ROWS} VALUES (?)", ((position,) for position in range(self._documents.count()))
        )

    def _positions(self, connection: Bounded, condition: Condition) -> npt.NDArray[np.int64]:
        if any(_lacking(connection, condition)):
            connection = self._file.rewrite(lambda made: self._complete(made, condition))
        statement = compiled(condition, _tables(connection, condition))
        with heeding_ctrl_c(connection):
            found = connection.execute(statement.sql, statement.parameters)
            return np.fromiter((position for (position,) in found), dtype=np.int64)

    def _complete(self, made: sqlite3.Connection, condition: Condition) -> None:
        """Put in what a condition needs and this file lacks: it may hold more, or less, than the one that was open."""
        self._begin(made)
        tables, indexes = _lacking(made, condition)
        _take_out(self._documents, tables, made)
        for table, cell in indexes:
            made.execute(f"CREATE INDEX {table}_{cell} ON {table} ({cell})")


def _catalogue(connection: sqlite3.Connection) -> dict[str, tuple[int, Values]]:
    rows = connection.execute(
        "SELECT number, name, numbers, texts, booleans, others, example, numerals, odd FROM catalogue"
    )
    return {name: (number, Values(*values)) for number, name, *values in rows}


def _names(connection: sqlite3.Connection) -> set[str]:
    """The tables and indexes there are."""
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}


def _tables(connection: sqlite3.Connection, condition: Condition) -> dict[str, str]:
    """The table of every column that a condition names, made or not; none for what no document has."""
    numbers = dict(connection.execute("SELECT name, number FROM catalogue"))
    return {name: f"c{numbers[name]}" for test in each_test(condition) if (name := test.column.name) in numbers}


def _lacking(connection: sqlite3.Connection, condition: Condition) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """What a condition needs and the file has not: tables by column, and indexes as table and cell."""
    tables, there = _tables(connection, condition), _names(connection)
    indexes = {(tables[name], cell) for name, cell in indexable(condition) if name in tables}
    return (
        {name: table for name, table in tables.items() if table not in there},
        sorted((table, cell) for table, cell in indexes if f"{table}_{cell}" not in there),
    )


def _looked_through(documents: DocumentStore) -> dict[str, Values]:
    """Which columns there are and what they hold: one pass over all documents."""
    found: defaultdict[str, _Seen] = defaultdict(_Seen, {name: _Seen() for name in OWN_COLUMNS})
    for fields in _fields(documents):
        for name, value in fields.items():
            found[name].add(value)
    return {name: seen.values() for name, seen in found.items()}


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
                ((position, *cells(fields.get(name))) for position, fields in block),
            )


def _fields(documents: DocumentStore) -> Iterator[dict[str, object]]:
    """What each document has by name, in order of position. Raises DamagedIndexError where some are missing."""
    for expected, (position, identifier, title, metadata) in enumerate(documents.fields()):
        if position != expected:
            raise DamagedIndexError(f"{documents.path} lacks the document at position {expected}; restore it")
        yield {**{column_of(name): value for name, value in metadata.items()}, "id": identifier, "title": title}


def column_of(name: str) -> str:
    """The column of a metadata field: its name, but "metadata.id" for `id` and "metadata.metadata.id" for that."""
    inner = name
    while inner.startswith(HIDDEN):
        inner = inner.removeprefix(HIDDEN)
    return f"{HIDDEN}{name}" if inner in OWN_COLUMNS else name
