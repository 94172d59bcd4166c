"""Connections to SQLite files: a few that threads take turns with; neither threads nor forks leave files open."""

from __future__ import annotations

import errno
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from operator import methodcaller
from pathlib import Path
from queue import Empty, SimpleQueue
from weakref import ref

from funnel.errors import DamagedIndexError, FunnelError, NoSpaceError, StorageError, of_environment, reason
from indexes.system import PLAIN_FILE, Descriptor, Living, at_fork, path_of

__all__ = [
    "UNREADABLE",
    "Bounded",
    "Connections",
    "heeding_ctrl_c",
    "held_open",
    "open_to_read",
    "reading_file",
    "unreadable",
    "writing_file",
]

# Our statements are far below these; what stands in a file that somebody else wrote may not make SQLite go beyond.
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000_000,  # bytes: SQLite's own default, whatever it was built with
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 1_000,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 1_000_000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
# Steps of SQLite's machine that reading may take in one use: a pass over all rows takes some ten for each.
STEPS, STEPS_PER_BYTE = 100_000_000, 100
STEPS_BETWEEN_LOOKS = 100_000  # a millisecond
STEPS_BETWEEN_CLOCKS = 1_000  # where there is something to be stopped for: some ten microseconds

# In use at once in the whole process: more than cores and disks keep busy, and far below 256 open files, the smallest
# limit that is common (macOS).
MOST_IN_USE = 16
READ_BYTES = 1 << 20
MALFORMED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)  # ERROR: of FTS5's own tables
UNREADABLE = (sqlite3.Error, MemoryError, ValueError, RecursionError)  # the others of JSON, Unicode, and long numbers
MOST_IDLE = 2  # kept open for each file: what one or two callers at a time need
FORK_WAIT_S = 1.0  # how long a fork waits for statements at work; a longer one may leave SQLite locked in the child


def _all_turns() -> SimpleQueue[None]:
    """One None for each that may be in use; a semaphore's own Python would keep its lock where Ctrl-C ends it."""
    turns: SimpleQueue[None] = SimpleQueue()
    for _ in range(MOST_IN_USE):
        turns.put(None)
    return turns


_pools = Living()
_turns = _all_turns()
_mine = threading.local()  # .held: how many uses the thread is in; .taken: the turns that it took to fork


class _Closing(ref["Connections"]):
    """Closes a connection at once when its pool is let go: SQLite's cache of statements makes a cycle of each.

    No Python runs then, as it would in a finalizer: Ctrl-C would end there, and be lost.
    """

    __slots__ = ("close",)
    close: Callable[[], None]

    @classmethod
    def of(cls, pool: Connections, connection: Bounded) -> _Closing:
        made = cls(pool, methodcaller("close"))
        made.close = connection.close
        return made


class Bounded(sqlite3.Connection):
    """A connection whose statements end.

    size: bytes of the file; None where it is our own, and only `stopped` ends them. ran_away: whether they took more
    steps than they may. ended: whether one of them was ended by `bound`. closing: what closes it with its pool.
    """

    closing: _Closing | None = None
    size: int | None = None
    ran_away = False
    ended = False

    def bound(self, stopped: Callable[[], bool] | None = None) -> None:
        """Count anew. stopped: looked at all the time; once it is true, statements are interrupted."""
        every = STEPS_BETWEEN_LOOKS if stopped is None else STEPS_BETWEEN_CLOCKS
        left = math.inf if self.size is None else (STEPS + STEPS_PER_BYTE * self.size) // every
        self.ran_away = False
        itself = ref(self)  # held by what it holds, it would stay open until garbage is collected

        def look() -> bool:
            nonlocal left
            left -= 1
            connection = itself()
            assert connection is not None, "it runs a statement"
            connection.ran_away = left < 0
            connection.ended = connection.ran_away or (stopped is not None and stopped())
            return connection.ended

        self.set_progress_handler(None if stopped is None and self.size is None else look, every)


def open_to_read(path: Path, size: int) -> Bounded:
    """Open a file that may be anybody's: read-only, nothing in its schema trusted, statements bounded.

    Immutable: no locks and no look for a journal. Threads take turns with it.
    """
    uri = path.absolute().as_uri() + "?mode=ro&immutable=1"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, factory=Bounded)
    connection.size = size
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    for limit, most in LIMITS.items():
        connection.setlimit(limit, most)
    connection.bound()
    return connection


def unreadable(path: Path, error: Exception) -> Exception:
    """The error for a file of the index that SQLite cannot read: damage, unless the machine is to blame, or we said."""
    if isinstance(error, FunnelError):
        return error
    cause: Exception | None = error
    if not of_environment(error):  # SQLite calls a file malformed too where the disk cannot read it
        cause = _of_the_disk(path)
    if cause is not None:
        return StorageError(f"{path} cannot be read now: {reason(cause)}")
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in MALFORMED and _sound(path):
        return StorageError(f"{path} cannot be read now: {reason(error)}, and a moment later it was sound; try again")
    return DamagedIndexError(f"{path} is damaged ({error}); restore it or build the index again")


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """What SQLite says while a file of the index is read, as `unreadable` gives it."""
    try:
        yield
    except UNREADABLE as error:
        raise unreadable(path, error) from error


@contextmanager
def writing_file(path: Path) -> Iterator[None]:
    """What SQLite says while a new file is written, as NoSpaceError or StorageError."""
    try:
        yield
    except (sqlite3.Error, MemoryError) as error:
        code, why = getattr(error, "sqlite_errorcode", 0) & 0xFF, reason(error)
        if code == sqlite3.SQLITE_FULL:
            raise NoSpaceError(f"no space left while writing {path}; free some and build again") from error
        if code in MALFORMED[1:]:  # of a file that nobody else has written
            why = f"{os.strerror(errno.EIO)}: what was written did not come back as it was ({why})"
        raise StorageError(f"cannot write {path}: {why}") from error


def _of_the_disk(path: Path) -> OSError | None:
    """What the system says where it cannot read the whole of a file."""
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass
    except OSError as error:
        return error if of_environment(error) else None
    return None


def _sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a whole file: where it did before, a read failed and the next did not."""
    try:
        with closing(open_to_read(path, path.stat().st_size)) as connection:
            return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
    except (sqlite3.Error, OSError):
        return False


class Connections:
    """The connections to one file. make: opens one. file: a descriptor of it, closed with them.

    closed: whether `close` was called.
    """

    def __init__(self, make: Callable[[], Bounded], file: Descriptor | None = None) -> None:
        self._make = make
        self._file = file
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._idle: list[Bounded] = []
        self._local = threading.local()
        self.closed = False

    @contextmanager
    def use(self) -> Iterator[Bounded]:
        """A connection for the calling thread alone; inside of another use of it the same one."""
        held: Bounded | None = getattr(self._local, "held", None)
        if held is not None:
            yield held
            return
        nested = getattr(_mine, "held", 0)
        turns, taken = _turns, list[None]()
        try:
            if not nested:  # a thread that waits for a second turn could wait for itself
                taken.extend(map(SimpleQueue.get, [turns]))  # in one step: Ctrl-C finds it in the queue or in the list
            _mine.held = nested + 1
            connection = self._take()
            self._local.held = connection
            try:
                with heeding_ctrl_c(connection):
                    yield connection
            finally:
                self._local.held = None
                self._give(connection)
        finally:
            if taken and turns is _turns:
                turns.put(None)
            _mine.held = nested

    @contextmanager
    def apart(self) -> Iterator[Bounded]:
        """A connection for rows that are streamed: it is not waited for, and may be left in another thread."""
        connection = self._take()
        try:
            with heeding_ctrl_c(connection):
                yield connection
        finally:
            self._give(connection)

    def close(self) -> None:
        """Close those that are idle; those in use are closed when they come back."""
        self.closed = True
        while self._idle:
            self._idle.pop().close()
        if self._file is not None:
            self._file.close()

    def _take(self) -> Bounded:
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._make()
            connection.closing = _Closing.of(self, connection)
            return connection
        connection.bound()
        return connection

    def _give(self, connection: Bounded) -> None:
        if self.closed or connection.in_transaction or len(self._idle) >= MOST_IDLE:  # Ctrl-C may leave it in one
            connection.close()
        else:
            self._idle.append(connection)


def held_open(path: Path, prepare: Callable[[Bounded], None] | None = None) -> Connections:
    """Connections that read a file, also where its folder was renamed since. prepare: is given each new one.

    Raises OSError where it cannot be opened.
    """
    file = Descriptor(os.open(path, os.O_RDONLY | PLAIN_FILE))

    def connect() -> Bounded:
        connection = open_to_read(path_of(file.fileno()) or path, os.fstat(file.fileno()).st_size)
        if prepare is not None:
            prepare(connection)
        return connection

    return Connections(connect, file)


@contextmanager
def heeding_ctrl_c(connection: Bounded) -> Iterator[None]:
    """SQLite calls it an interrupted statement where Ctrl-C ends what `Bounded` looks at it by, and drops that."""
    connection.ended = False
    try:
        yield
    except sqlite3.OperationalError as error:
        code = getattr(error, "sqlite_errorcode", None)  # none where Python's module found the fault
        if code == sqlite3.SQLITE_INTERRUPT and not connection.ended:
            raise KeyboardInterrupt from error
        raise


def _before_fork() -> None:
    """Wait until no thread is inside SQLite: its own locks would stay locked in the child."""
    limit = time.monotonic() + FORK_WAIT_S
    wanted = MOST_IN_USE - (1 if getattr(_mine, "held", 0) else 0)
    _mine.taken = []
    with suppress(Empty):
        while len(_mine.taken) < wanted:
            _mine.taken.append(_turns.get(timeout=max(0.0, limit - time.monotonic())))


def _in_parent() -> None:
    for turn in _mine.taken:
        _turns.put(turn)


def _in_child() -> None:
    """Connections are not carried over a fork; those of the parent are neither used nor closed."""
    global _turns
    _turns = _all_turns()
    for pool in _pools.all():
        for connection in pool._idle:
            connection.closing = None
        _left_alone.append(pool._idle)
        closed = pool.closed
        pool._begin()
        pool.closed = closed


_left_alone: list[list[Bounded]] = []
at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
