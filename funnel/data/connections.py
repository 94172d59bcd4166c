"""Connections to SQLite files: a few that threads take turns with; neither threads nor forks leave files open."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet

from indexes.system import at_fork

__all__ = ["Connections"]

# In use at once in the whole process: more than cores and disks keep busy, and far below 256 open files, the smallest
# limit that is common (macOS).
MOST_IN_USE = 16
MOST_IDLE = 2  # kept open for each file: what one or two callers at a time need
FORK_WAIT_S = 1.0  # how long a fork waits for statements at work; a longer one may leave SQLite locked in the child

_pools: WeakSet[Connections] = WeakSet()
_turns = threading.BoundedSemaphore(MOST_IN_USE)
_mine = threading.local()  # .held: how many turns the thread has; .taken: how many it took to fork


class Connections:
    """The connections to one file. make: opens one."""

    def __init__(self, make: Callable[[], sqlite3.Connection]) -> None:
        self._make = make
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._idle: list[sqlite3.Connection] = []
        self._local = threading.local()
        self._closed = False

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """A connection for the calling thread alone; inside of another use of it the same one."""
        held: sqlite3.Connection | None = getattr(self._local, "held", None)
        if held is not None:
            yield held
            return
        nested = getattr(_mine, "held", 0)
        turns = _turns
        if not nested:  # a thread that waits for a second turn could wait for itself
            turns.acquire()
        _mine.held = nested + 1
        try:
            connection = self._take()
            self._local.held = connection
            try:
                yield connection
            finally:
                self._local.held = None
                self._give(connection)
        finally:
            _mine.held = nested
            if not nested and turns is _turns:
                turns.release()

    @contextmanager
    def apart(self) -> Iterator[sqlite3.Connection]:
        """A connection for rows that are streamed: it is not waited for, and may be left in another thread."""
        connection = self._take()
        try:
            yield connection
        finally:
            self._give(connection)

    def close(self) -> None:
        """Close those that are idle; those in use are closed when they come back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> sqlite3.Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._make()

    def _give(self, connection: sqlite3.Connection) -> None:
        if self._closed or len(self._idle) >= MOST_IDLE:
            connection.close()
        else:
            self._idle.append(connection)


def _before_fork() -> None:
    """Wait until no thread is inside SQLite: its own locks would stay locked in the child."""
    limit = time.monotonic() + FORK_WAIT_S
    wanted = MOST_IN_USE - (1 if getattr(_mine, "held", 0) else 0)
    _mine.taken = 0
    while _mine.taken < wanted and _turns.acquire(timeout=max(0.0, limit - time.monotonic())):
        _mine.taken += 1


def _in_parent() -> None:
    for _ in range(_mine.taken):
        _turns.release()


def _in_child() -> None:
    """Connections are not carried over a fork; those of the parent are neither used nor closed."""
    global _turns
    _turns = threading.BoundedSemaphore(MOST_IN_USE)
    for pool in list(_pools):
        _left_alone.append(pool._idle)
        closed = pool._closed
        pool._begin()
        pool._closed = closed


_left_alone: list[list[sqlite3.Connection]] = []
at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
