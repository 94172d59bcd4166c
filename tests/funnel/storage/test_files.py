"""The file layer: links, odd files, short reads, and the ways of saying that the disk is full."""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.errors import DamagedIndexError, NoSpaceError, StorageError
from funnel.storage.files import FILES, is_no_space, open_inside, read_chunks, remove_tree, writing


def test_a_link_is_not_followed_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"x")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "link").symlink_to(tmp_path / "real" / "file")
    for path in ("folder/file", "real/link"):
        with pytest.raises(DamagedIndexError, match=f"{path}.*link"):
            open_inside(tmp_path, path, FILES)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(DamagedIndexError, match="odd"):
        open_inside(tmp_path, "odd", FILES)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DamagedIndexError, match=r"a/b in .* is missing; restore it"):
        open_inside(tmp_path, "a/b", FILES)


def test_reading_past_the_end_says_where_the_file_ends(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"12345")
    descriptor = FILES.open(path)
    try:
        assert b"".join(read_chunks(descriptor, 1, 4, "short")) == b"2345"
        with pytest.raises(DamagedIndexError, match="short is cut short: it ends at byte 5, expected 9"):
            list(read_chunks(descriptor, 0, 9, "short"))
    finally:
        os.close(descriptor)


def test_removing_a_tree_leaves_what_links_point_to(tmp_path: Path) -> None:
    kept, gone = tmp_path / "kept", tmp_path / "gone"
    kept.mkdir()
    (kept / "file").write_bytes(b"x")
    (gone / "inner").mkdir(parents=True)
    (gone / "inner" / "link").symlink_to(kept)
    remove_tree(gone, FILES)
    assert not gone.exists()
    assert (kept / "file").exists()


def test_names_of_a_linked_folder_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert FILES.names(tmp_path / "link") == []
    assert FILES.names(tmp_path / "absent") == []
    assert FILES.names(tmp_path / "real") == ["file"]


def sqlite_full() -> BaseException:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE one (x)")
        connection.execute("PRAGMA max_page_count = 3")
        with pytest.raises(sqlite3.OperationalError) as caught:
            connection.execute("INSERT INTO one VALUES (zeroblob(100000))")
    return caught.value


def numpy_full() -> BaseException:
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(OSError, match="requested and") as caught:
        np.zeros(1_000_000).tofile(file)
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EIO, "x"), False),
        (RuntimeError("write error in vectors: No space left on device"), True),
        (RuntimeError("something else"), False),
        (sqlite3.OperationalError("no such table"), False),
    ],
)
def test_a_full_disk_is_known_by_code_or_by_the_system_s_words(error: Any, expected: bool) -> None:
    assert is_no_space(error) is expected


def test_a_full_disk_is_known_from_sqlite() -> None:
    assert is_no_space(sqlite_full())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full")
def test_a_full_disk_is_known_from_numpy_which_gives_no_code() -> None:
    error = numpy_full()
    assert is_no_space(error), repr(error)


def test_errors_while_writing_become_storage_errors(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError, match="generation before is untouched"), writing(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match="cannot write odd: Permission denied"), writing(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied", "odd")
    with pytest.raises(DamagedIndexError, match="as it was"), writing(tmp_path):
        raise DamagedIndexError("as it was")
