"""Connections to SQLite files that may be anybody's."""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from random import Random
from threading import Barrier, Thread

import pytest

from funnel.data.connections import MOST_IN_USE, Bounded, held_open, open_to_read, unreadable
from funnel.data.documents import Document, DocumentStore
from funnel.errors import DamagedIndexError

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"


@pytest.fixture
def opened(tmp_path: Path) -> Bounded:
    path = tmp_path / "some.sqlite"
    made = sqlite3.connect(path)
    made.execute("CREATE TABLE t(a)")
    made.close()
    return open_to_read(path, path.stat().st_size)


def test_a_statement_that_never_ends_is_ended(opened: Bounded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.data.connections.STEPS", 1_000_000)
    opened.bound()
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        opened.execute(ENDLESS)
    assert opened.ran_away
    opened.bound()
    assert not opened.ran_away
    assert opened.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_statement_is_ended_when_its_caller_has_enough(opened: Bounded) -> None:
    looks: list[None] = []
    opened.bound(lambda: bool(looks.append(None)) or len(looks) > 3)  # type: ignore[func-returns-value]
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        opened.execute(ENDLESS)
    assert len(looks) == 4
    assert not opened.ran_away


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("INSERT INTO t VALUES (1)", "readonly"),
        ("ATTACH ':memory:' AS other", "too many attached"),
        (f"SELECT {', '.join('1' for _ in range(101))}", "too many columns"),
        (f"SELECT {'-+' * 1_001}1", "too large|overflow"),
        (f"SELECT '{'x' * 1_000_001}'", "too (big|large)|longer than"),
        ("SELECT zeroblob(1000000001)", "too big"),
    ],
)
def test_limits_of_what_is_read(statement: str, said: str, opened: Bounded) -> None:
    with pytest.raises((sqlite3.Error, ValueError), match=said):
        opened.execute(statement).fetchall()


def _struck(lent: Callable[[], AbstractContextManager[Bounded]]) -> None:
    """Ctrl-C comes while a statement runs, and passes through what lends the connection."""
    with lent() as connection:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        connection.execute(ENDLESS).fetchone()


def test_ctrl_c_inside_a_statement_is_no_damage(tmp_path: Path) -> None:
    with DocumentStore.create(tmp_path / "documents.sqlite") as store:
        store.append([Document("a", text="a file")])
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with DocumentStore.open(tmp_path / "documents.sqlite") as store:
            for lent in (store._unclosed.use, store._unclosed.apart):
                with pytest.raises(KeyboardInterrupt):
                    _struck(lent)
            assert store.get([0])[0].text == "a file"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "written.sqlite"
    with DocumentStore.create(path) as store:
        store.append([Document(str(number), "a title", f"the text {number} " * 99) for number in range(99)])
    return path


def malformed(code: int) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT | 1 << 8])
def test_malformed_once_and_sound_after_is_a_read_that_failed(code: int, written: Path) -> None:
    said = unreadable(written, malformed(code))
    assert not isinstance(said, DamagedIndexError)
    assert str(said).endswith("a moment later it was sound; try again")
    with written.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    assert isinstance(unreadable(written, malformed(code)), DamagedIndexError)


def test_no_python_runs_when_connections_are_let_go(written: Path) -> None:
    """Ctrl-C would end it, and be lost; and the files are closed at once, not when garbage is collected."""
    pool = held_open(written)
    with pool.use() as first, pool.apart() as second:
        assert [one.execute("SELECT count(*) FROM documents").fetchone() for one in (first, second)] == [(99,)] * 2
    ran: list[str] = []
    sys.setprofile(lambda frame, event, _: ran.append(frame.f_code.co_name) if event == "call" else None)
    del pool
    sys.setprofile(None)
    assert ran == []
    for one in (first, second):
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            one.execute("SELECT 1")


def test_a_connection_left_in_a_transaction_is_not_used_again(written: Path) -> None:
    pool = held_open(written)
    with pool.use() as left:
        left.execute("BEGIN")
    with pool.use() as other:
        other.execute("BEGIN")
    pool.close()


def test_no_turn_is_lost_to_ctrl_c(written: Path) -> None:
    pool, draw = held_open(written), Random(0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(8_000):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-6, 60e-6))
                while True:
                    with pool.use():
                        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    together, met = Barrier(MOST_IN_USE, timeout=5.0), list[int]()

    def meet() -> None:
        with pool.use():
            met.append(together.wait())

    threads = [Thread(target=meet, daemon=True) for _ in range(MOST_IN_USE)]  # daemons: one that waits ends no process
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10.0)
        assert not thread.is_alive(), f"{len(met)} of {MOST_IN_USE} got a turn"
    assert sorted(met) == list(range(MOST_IN_USE))
