"""One side file under several handles, in threads and in processes at once; and what is said when it fails."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from funnel.data.documents import Document, DocumentStore
from funnel.errors import DamagedIndexError, NoSpaceError, StorageError
from funnel.filtering import columns as sidefile
from funnel.filtering.columns import ColumnCache, SideFile
from funnel.filtering.condition import parse

COUNT, COLUMNS = 40, 6


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Six columns, in which the documents 1, 2, … have the numbers 1, 2, …."""
    path = tmp_path / "documents.sqlite"
    names = [f"column{number}" for number in range(COLUMNS)]
    with DocumentStore.create(path) as made:
        made.append([Document(f"d{i}", metadata={**dict.fromkeys(names, i), "word": "zebra"}) for i in range(COUNT)])
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def counted(cache: ColumnCache, where: str) -> int:
    return len(cache.positions(parse(where)))


def files(folder: Path) -> list[Path]:
    return list(folder.glob("*.sqlite"))


def test_what_another_handle_has_put_in_is_there_already(documents: Path, folder: Path) -> None:
    with DocumentStore.open(documents) as store:
        first, second = ColumnCache(store, "key", folder), ColumnCache(store, "key", folder)
        assert counted(first, "column0 >= 10") == 30
        assert counted(second, "column1 <> 10") == 39
        assert counted(first, "column1 <> 10") == 39  # the table is there
        assert counted(second, "column2 >= 20 AND column1 >= 10") == 20
        assert counted(first, "column1 >= 10 AND column2 >= 30") == 10  # and its index
        (only,) = files(folder)
        assert only.name.split(".")[1] == sidefile._sha256(only)


def test_what_another_handle_has_thrown_away_is_made_again(documents: Path, folder: Path) -> None:
    with DocumentStore.open(documents) as store:
        first = ColumnCache(store, "key", folder)
        assert counted(first, "column0 >= 10") == 30
        files(folder)[0].unlink()
        assert counted(first, "column1 >= 10") == 30
        assert counted(first, "column0 >= 20 AND column1 >= 30") == 10


def test_what_was_damaged_since_it_was_opened_is_not_copied(documents: Path, folder: Path) -> None:
    with DocumentStore.open(documents) as store:
        first = ColumnCache(store, "key", folder)
        assert counted(first, "word = 'zebra'") == COUNT
        (path,) = files(folder)
        damaged = path.read_bytes().replace(b"zebra", b"zabra")
        path.unlink()
        path.write_bytes(damaged)
        assert counted(first, "column0 >= 10") == 30
        assert counted(ColumnCache(store, "key", folder), "word = 'zebra'") == COUNT


def test_a_copy_put_in_place_meanwhile_stays(folder: Path) -> None:
    first, second = SideFile("key", folder), SideFile("key", folder)

    def table(name: str) -> Callable[[sqlite3.Connection], None]:
        def make(made: sqlite3.Connection) -> None:
            made.execute(f"CREATE TABLE {name} (x)")

        return make

    def with_second_between(made: sqlite3.Connection) -> None:
        table("a")(made)
        second.rewrite(table("b"))

    first.rewrite(with_second_between)
    assert len(files(folder)) == 2
    for one, name in ((first, "a"), (second, "b")):
        connection = one.connection()
        assert connection is not None
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [(name,)]
    first.rewrite(table("c"))
    assert len(files(folder)) == 1


def asked_in_turn(cache: ColumnCache, order: list[int], wait: Callable[[], object]) -> list[int]:
    """Conditions on one column after the other, each when all others ask theirs."""
    found = []
    for column in order:
        wait()
        found.append(counted(cache, f"column{column} >= {column}"))
        found.append(counted(cache, f"column{column} <> 3"))
    return found


def in_order(order: list[int]) -> list[int]:
    return [number for column in order for number in (COUNT - column, COUNT - 1)]


ORDERS = [list(range(COLUMNS)), list(reversed(range(COLUMNS))), [3, 1, 5, 0, 2, 4]]


def test_handles_in_threads_fill_it_at_once(documents: Path, folder: Path) -> None:
    barrier = threading.Barrier(len(ORDERS), timeout=60)
    with DocumentStore.open(documents) as store, ThreadPoolExecutor(len(ORDERS)) as pool:
        caches = [ColumnCache(store, "key", folder) for _ in ORDERS]
        found = list(pool.map(lambda cache, order: asked_in_turn(cache, order, barrier.wait), caches, ORDERS))
    assert found == [in_order(order) for order in ORDERS]
    assert not list(folder.glob("*.tmp"))


def ask_here(
    documents: Path, folder: Path, order: list[int], barrier: Barrier, answers: multiprocessing.Queue[Any]
) -> None:
    """In a process of its own: what was found, or the error; and whether it went elsewhere."""
    try:
        with DocumentStore.open(documents) as store:
            cache = ColumnCache(store, "key", folder)
            found = asked_in_turn(cache, order, lambda: barrier.wait(60))
            answers.put((order, found, cache._file._folder == folder))
    except Exception as error:
        barrier.abort()
        answers.put((order, repr(error), True))


def test_processes_fill_it_at_once(documents: Path, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    asking = [context.Process(target=ask_here, args=(documents, folder, one, barrier, answers)) for one in ORDERS[:2]]
    for process in asking:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in asking)
    for process in asking:
        process.join(60)
    assert found == [(order, in_order(order), True) for order in ORDERS[:2]]


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_folder_that_is_not_writable_is_not_called_full(
    documents: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", failing(13))
    with DocumentStore.open(documents) as store, pytest.raises(StorageError) as caught:
        counted(ColumnCache(store, "key", folder), "column0 = 1")
    said = str(caught.value)
    assert not isinstance(caught.value, NoSpaceError)
    assert "space" not in said
    assert f"kept in {folder} ([Errno 13] Permission denied) nor in a temporary folder ([Errno 13]" in said
    assert said.endswith("Set FUNNEL_CACHE to a folder that can be written to")


def test_a_full_folder_is_called_full_where_there_is_no_temporary_one(
    documents: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", failing(28))
    monkeypatch.setattr(tempfile, "mkdtemp", failing(2))
    with DocumentStore.open(documents) as store:
        cache = ColumnCache(store, "key", folder)
        for _ in range(2):  # the second time as the first
            with pytest.raises(NoSpaceError, match=r"No space left.* nor in a temporary folder .*Free some space"):
                counted(cache, "column0 = 1")


def test_damaged_documents_are_not_called_lack_of_space(documents: Path, folder: Path) -> None:
    with sqlite3.connect(documents) as connection:
        connection.execute("DELETE FROM documents WHERE position = 7")
    connection.close()
    with (
        DocumentStore.open(documents) as store,
        pytest.raises(DamagedIndexError, match="lacks the document at position 7"),
    ):
        counted(ColumnCache(store, "key", folder), "column0 = 1")


def drop_unheard(made: sqlite3.Connection) -> None:
    made.execute("DROP TABLE unheard")


def test_a_statement_that_fails_is_said_as_it_is(folder: Path) -> None:
    file = SideFile("key", folder)
    with pytest.raises(sqlite3.OperationalError, match="no such table: unheard"):
        file.rewrite(drop_unheard)
    assert file._folder == folder
    assert not list(folder.iterdir())
