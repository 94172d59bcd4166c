"""What the process or the machine refuses is said as that, in one line: it is no damage, and nothing is lost."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from funnel import FunnelIndex
from funnel.errors import DamagedIndexError, FunnelError, NoSpaceError, NotAnIndexError, StorageError, of_environment
from funnel.storage import check
from tests.funnel.corpora import documents, hashed_words

HERE = Path(__file__).parent
QUICK = ("hybrid", "add")
ALL = (
    *QUICK,
    "open",
    "lazy",
    "search",
    "first search",
    "where",
    "exact",
    "check",
    "upsert",
    "delete",
    "refresh",
    "compact",
)
SOME, MANY = 2, 6
NEW = [{"_id": "new", "text": "the parser of part 44, again", "year": 1944}]
PAGE_BYTES = 4096


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("preload") / "preload.so"
    subprocess.run([compiler, "-O1", "-w", "-shared", "-fPIC", "-o", made, HERE / "preload.c", "-ldl"], check=True)
    return made


def failed(library: Path, home: Path, most: int, operations: tuple[str, ...]) -> None:
    environment = {**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(HERE / "failing.py"), str(library), str(home), str(most), *operations]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    calls, wrong = (int(word) for word in lines[-1].split() if word.isdigit())
    assert calls > 10 * len(operations)
    assert not wrong, "\n".join(lines)


def test_some_calls_of_the_system_fail(library: Path, tmp_path: Path) -> None:
    failed(library, tmp_path, SOME, QUICK)


@pytest.mark.slow
def test_many_calls_of_the_system_fail(library: Path, tmp_path: Path) -> None:
    failed(library, tmp_path, MANY, ALL)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *((code, True) for code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR)),
        *((code, True) for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR_READ)),
        *((code, False) for code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)),
        *((code, False) for code in (errno.ENOENT + 1000, sqlite3.SQLITE_MISMATCH)),
    ],
)
def test_what_sqlite_says_of_the_machine(code: int, expected: bool) -> None:
    error = sqlite3.OperationalError("said")
    error.sqlite_errorcode = code
    assert of_environment(error) is expected


@contextmanager
def few_files(more: int) -> Iterator[None]:
    """So many descriptors and no more can be opened, wherever the process has left gaps between its own."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = max(map(int, os.listdir("/proc/self/fd")))
    with ExitStack() as stack:
        while (filler := os.open(os.devnull, os.O_RDONLY)) < last:
            stack.callback(os.close, filler)
        os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1 + more, limits[1]))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        yield


@pytest.mark.parametrize(
    "operation",
    [
        lambda folder, _index: FunnelIndex.open(folder),
        lambda _folder, index: index.search("the parser of part 44"),
        lambda _folder, index: index.search("the parser of part 44", where="year > 1910"),
        lambda _folder, index: index.search("the parser of part 44", hybrid=0.5),
        lambda _folder, index: index.add(NEW),
        lambda _folder, index: index.delete("d7"),
        lambda _folder, index: index.compact(),
        lambda folder, _index: check(folder),
    ],
    ids=["open", "search", "where", "hybrid", "add", "delete", "compact", "check"],
)
def test_too_many_open_files(
    operation: Callable[[Path, FunnelIndex], object], text_folder: Path, copied: Callable[[Path], Path]
) -> None:
    folder = copied(text_folder)
    index = FunnelIndex.open(folder, encoder=hashed_words)
    refused: list[Exception] = []
    for more in range(40):
        try:
            with few_files(more):
                operation(folder, index)
        except (FunnelError, OSError) as error:
            refused.append(error)
            if "do not repeat it" in str(error) or "is complete and live" in str(error):
                break
        else:
            break
    for found in refused:
        assert "oo many open files" in str(found) or "SQLITE_CANTOPEN" in str(found), found
        assert not isinstance(found, DamagedIndexError | NotAnIndexError)
    assert more < 39
    index.refresh()
    assert len(FunnelIndex.open(folder)) == len(index) >= 299
    assert check(folder).ok
    assert index.search("the parser of part 44", hybrid=0.5, where="year > 1910")


def test_a_missing_part_is_damage(text_folder: Path, copied: Callable[[Path], Path]) -> None:
    folder = copied(text_folder)
    sorted(folder.glob("documents/*/documents.sqlite"))[0].unlink()
    with pytest.raises(DamagedIndexError, match=r"documents/.*\.sqlite in .* is missing"):
        FunnelIndex.open(folder)


def test_memory_that_sqlite_does_not_get(text_folder: Path) -> None:
    code = f"""
import contextlib
import sqlite3
from funnel import FunnelIndex
from funnel.errors import DamagedIndexError, StorageError
from tests.funnel.corpora import hashed_words
index = FunnelIndex.open({str(text_folder)!r}, encoder=hashed_words)
index.search("the parser of part 44", hybrid=0.5)
with contextlib.suppress(MemoryError):  # the limit is set, and what it is cannot be told any more
    sqlite3.connect(":memory:").execute("PRAGMA hard_heap_limit = 1000")
for options in ({{}}, {{"hybrid": 0.5}}, {{"where": "year > 1910"}}):
    try:
        index.search("the parser of part 45", 50, **options)
    except StorageError as error:
        assert not isinstance(error, DamagedIndexError) and "out of memory" in str(error), repr(error)
    else:
        raise AssertionError(options)
try:
    FunnelIndex.open({str(text_folder)!r})
except StorageError as error:
    assert not isinstance(error, DamagedIndexError) and "out of memory" in str(error), repr(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A memory file system, mounted with options; once more with others."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this user may mount nothing")
        return place

    if not shutil.which("mount"):
        pytest.skip("needs mount")
    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", place], check=True)  # what an index still maps goes with it


def test_a_disk_that_is_full(mounted: Callable[[str], Path], text_folder: Path) -> None:
    folder = mounted("size=2m") / "index"
    shutil.copytree(text_folder, folder)
    index = FunnelIndex.open(folder, encoder=hashed_words)
    filling = folder.parent / "filling"
    with filling.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(itertools.repeat(bytes(PAGE_BYTES)))
    for change in (lambda: index.add(NEW), lambda: index.delete("d3"), lambda: index.upsert(NEW)):
        with pytest.raises(NoSpaceError, match="no space left"):
            change()  # type: ignore[no-untyped-call]
    assert len(index.search("the parser of part 44", hybrid=0.5)) == 10
    assert check(folder).ok
    filling.unlink()
    index.add(NEW)
    assert len(FunnelIndex.open(folder)) == len(index) == 301


def test_a_file_system_that_is_read_only(mounted: Callable[[str], Path], text_folder: Path) -> None:
    folder = mounted("size=4m") / "index"
    shutil.copytree(text_folder, folder)
    writable = FunnelIndex.open(folder, encoder=hashed_words)
    writable.delete("d3")
    writable.close()
    subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
    for verify in ("full", "lazy"):
        index = FunnelIndex.open(folder, encoder=hashed_words, verify=verify)
        assert len(index.search("the parser of part 44", hybrid=0.5, where="year > 1910")) == 10
        assert not index.refresh()
    assert check(folder).ok
    for change in (lambda: index.add(NEW), lambda: index.delete("d4"), index.compact, index.tune):
        with pytest.raises(StorageError, match="Read-only file system") as caught:
            change()
        assert not isinstance(caught.value, DamagedIndexError)
        assert "\n" not in str(caught.value)
    with pytest.raises(StorageError, match="Read-only file system"):
        FunnelIndex.build(documents(5), folder.parent / "another", encoder=hashed_words, progress=False)
