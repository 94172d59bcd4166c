"""An SQLite file beside the index: a cache that is checked before it is used and thrown away where it is damaged.

A file is never changed once it has its name, which holds its sha256: a change is made in a copy that takes its place.
So readers need no locks, a kill leaves the file before or the one after, and a flipped bit shows when it is opened.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

from funnel.errors import NoSpaceError

__all__ = ["SideFile", "default_folder"]

CACHE_VARIABLE = "FUNNEL_CACHE"
TRIES = 5  # a file may be replaced between being listed and being opened
# All side files of a cache folder together: beyond it those that were not used for longest go.
LARGEST_FOLDER = 4 << 30


def default_folder() -> Path:
    """$FUNNEL_CACHE/filters, else ~/.cache/funnel-retrieval/filters."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "funnel-retrieval") / "filters"


class SideFile:
    """The side file called `key` in a folder; in a temporary folder where that one cannot be written.

    Not for several threads at once. Its connection is read-only.
    """

    def __init__(self, key: str, folder: Path | None = None) -> None:
        self._key = key
        self._folder = default_folder() if folder is None else folder
        self._elsewhere = False
        self._connection: sqlite3.Connection | None = None

    @property
    def path(self) -> Path | None:
        """The newest file, unchecked."""
        try:
            found = [(entry.stat().st_mtime_ns, entry) for entry in self._folder.glob(f"{self._key}.*.sqlite")]
        except OSError:
            return None
        return max(found)[1] if found else None

    def connection(self) -> sqlite3.Connection | None:
        """To the newest file that is sound; None where there is none. Damaged ones are removed."""
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    def _open(self) -> sqlite3.Connection | None:
        for _ in range(TRIES):
            path = self.path
            if path is None:
                return None
            try:
                sound = _sha256(path) == path.name.split(".")[1]
                if sound:
                    os.utime(path) if os.access(path, os.W_OK) else None  # used: it goes last
                    return _connect(path)
            except (OSError, sqlite3.Error):
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

    def rewrite(self, change: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        """Make a change in a copy and put it in the place of the file; gives the connection to the new one.

        Raises NoSpaceError where neither the folder nor a temporary one can hold it.
        """
        source = self.path if self.connection() is not None else None
        try:
            return self._rewritten(source, change)
        except (OSError, sqlite3.OperationalError):
            pass
        try:
            self._go_elsewhere()
            return self._rewritten(source, change)
        except (OSError, sqlite3.OperationalError) as error:
            raise NoSpaceError(
                f"the columns that filters need cannot be kept in {default_folder()} nor in {self._folder}: {error}. "
                f"Free some space, or set {CACHE_VARIABLE} to a folder that can be written to"
            ) from error

    def _rewritten(self, source: Path | None, change: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(prefix=f"{self._key}-", suffix=".tmp", dir=self._folder)
        os.close(handle)
        made = Path(name)
        try:
            if source is not None and source.exists():
                shutil.copyfile(source, made)
            _change(made, change)
            final = self._folder / f"{self._key}.{_sha256(made)}.sqlite"
            os.replace(made, final)
        finally:
            made.unlink(missing_ok=True)
        self.close()
        self._connection = _connect(final)
        for older in self._folder.glob(f"{self._key}.*.sqlite"):
            if older != final:
                older.unlink(missing_ok=True)
        _tidy(self._folder, final)
        return self._connection

    def _go_elsewhere(self) -> None:
        if not self._elsewhere:
            self._elsewhere = True
            self._folder = Path(tempfile.mkdtemp(prefix="funnel-filters-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def close(self) -> None:
        """Close the connection; it is opened again when it is needed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _connect(path: Path) -> sqlite3.Connection:
    # Immutable: no locks and no look for a journal. Threads take turns, see ColumnCache.
    uri = path.absolute().as_uri() + "?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
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
