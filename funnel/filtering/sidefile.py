"""An SQLite file beside the index: a cache that is checked before it is used and thrown away where it is damaged.

A file is never changed once it has its name, which holds its sha256: a change is made in a copy that takes its place.
So readers need no locks, a kill leaves the file before or the one after, and a flipped bit shows when it is opened.
Several handles, threads and processes may put copies in its place at once: the last one stays, and what it lacks of the
others is put in again when it is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from funnel.data.connections import Bounded, open_to_read
from funnel.errors import NoSpaceError, StorageError, of_environment, reason
from funnel.filtering.like import add_like
from funnel.storage.files import is_no_space, remove_own, there

__all__ = ["SideFile", "default_folder"]

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
