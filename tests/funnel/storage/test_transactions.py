"""Transactions: all or nothing, whatever fails or is killed at whichever operation."""

import errno
import os
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.errors import (
    DamagedIndexError,
    FormatVersionError,
    InputError,
    NoSpaceError,
    NotAnIndexError,
    StorageError,
)
from funnel.storage import IndexFolder, Transaction, check
from funnel.storage.files import Files
from funnel.storage.generations import current_line
from funnel.storage.manifest import Manifest, encode
from tests.funnel.storage.helpers import (
    CountingFiles,
    FailingFiles,
    FullDiskFiles,
    KillingFiles,
    body,
    commit_all,
    commit_second,
    segment_entry,
    settings,
    write_segment,
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("transactions") / "index"
    with IndexFolder(root).begin() as transaction:
        commit_all(transaction)
    return root


@pytest.fixture
def index(original: Path, tmp_path: Path) -> IndexFolder:
    return IndexFolder(shutil.copytree(original, tmp_path / "index"))


def second(root: Path, files: Any) -> None:
    with IndexFolder(root, files).begin() as transaction:
        commit_second(transaction)


def first(root: Path, files: Any) -> None:
    with IndexFolder(root, files).begin() as transaction:
        commit_all(transaction)


def count_operations(write: Any, root: Path) -> int:
    files = CountingFiles()
    write(root, files)
    return len(files.done)


def assert_whole(root: Path) -> int:
    """The live generation is complete; gives its number, 0 where there is none."""
    folder = IndexFolder(root)
    if not folder.exists():
        with pytest.raises((NotAnIndexError, DamagedIndexError)):
            folder.manifest()
        return 0
    manifest = folder.manifest()
    assert folder.verify(manifest).damaged_caches == {}
    coarse = manifest.paths("segments", manifest.segments[0].id)["coarse.faiss"]
    expected = b"a coarse index" if manifest.generation == 1 else b"another coarse index"
    assert (folder.path / coarse).read_bytes() == expected
    return manifest.generation


def assert_usable_again(root: Path, before: Any) -> None:
    """The next writer gets in, cleans up, and ends with nothing stray."""
    write = second if before else first
    write(root, CountingFiles())
    assert assert_whole(root) == before + 1
    assert {line.status for line in check(root).lines} == {"ok"}


@pytest.mark.parametrize("layer", [FailingFiles, FullDiskFiles])
@pytest.mark.parametrize("write", [first, second])
def test_a_failure_at_any_operation_leaves_the_old_or_the_new(
    original: Path, tmp_path: Path, write: Any, layer: Any
) -> None:
    before = 0 if write is first else 1

    def fresh(name: str) -> Path:
        return tmp_path / name if write is first else shutil.copytree(original, tmp_path / name)

    seen = set()
    total = count_operations(write, fresh("counted"))
    for at in range(total):
        root = fresh(str(at))
        raised = None
        try:
            write(root, layer(at))
        except StorageError as error:
            raised = error
        live = assert_whole(root) if root.exists() else 0
        if raised is None:  # a hard link that fails is replaced by a copy; what is not swept now is swept later
            assert live == before + 1
        else:
            expected = NoSpaceError if layer is FullDiskFiles and live == before else StorageError
            assert isinstance(raised, expected), f"operation {at}: {raised!r}"
        seen.add(live)
        assert live in (before, before + 1)
        if at % 10 == 0:
            assert_usable_again(root, live)
    assert seen == {before, before + 1}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("write", [first, second])
def test_a_kill_at_any_operation_leaves_the_old_or_the_new(original: Path, tmp_path: Path, write: Any) -> None:
    before = 0 if write is first else 1

    def fresh(name: str) -> Path:
        return tmp_path / name if write is first else shutil.copytree(original, tmp_path / name)

    seen = set()
    total = count_operations(write, fresh("counted"))
    for at in range(0, total, max(1, total // 20)):
        root = fresh(str(at))
        child = os.fork()
        if child == 0:
            try:
                write(root, KillingFiles(at))
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGKILL
        live = assert_whole(root) if root.exists() else 0
        seen.add(live)
        assert live in (before, before + 1)
        assert_usable_again(root, live)
    assert seen == {before, before + 1}


def test_leaving_without_a_commit_leaves_no_trace(index: IndexFolder) -> None:
    before = sorted(path for path in index.path.rglob("*"))
    with index.begin() as transaction:
        write_segment(transaction.folder("segments"))
    assert sorted(path for path in index.path.rglob("*")) == before
    assert assert_whole(index.path) == 1


def fail_inside(index: IndexFolder, error: Any) -> None:
    with index.begin() as transaction:
        write_segment(transaction.folder("segments"))
        raise error


def test_an_error_inside_is_passed_on_and_cleaned_up_after(index: IndexFolder) -> None:
    before = sorted(path for path in index.path.rglob("*"))
    with pytest.raises(ZeroDivisionError):
        fail_inside(index, ZeroDivisionError())
    assert sorted(path for path in index.path.rglob("*")) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError("4096 requested and 17 written"),
        RuntimeError(f"faiss: write failed: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_a_full_disk_met_by_whoever_writes_inside_is_a_no_space_error(index: IndexFolder, error: Any) -> None:
    with pytest.raises(NoSpaceError, match="untouched") as caught:
        fail_inside(index, error)
    assert caught.value.__cause__ is error
    assert assert_whole(index.path) == 1


def test_other_errors_of_the_system_inside_stay_what_they_are(index: IndexFolder) -> None:
    with pytest.raises(FileNotFoundError), index.begin():
        raise FileNotFoundError(errno.ENOENT, "No such file", "corpus.jsonl")
    with pytest.raises(sqlite3.OperationalError), index.begin():
        raise sqlite3.OperationalError("no such table")


def test_unreferenced_parts_go_and_reused_ones_stay(index: IndexFolder) -> None:
    old = index.manifest()
    with index.begin() as transaction:
        new = commit_second(transaction)
    assert new.generation == 2
    assert new.adaptor == old.adaptor
    assert not (index.path / "segments" / old.segments[0].id).exists()
    assert not (index.path / "calibrations" / str(old.calibration)).exists()
    assert list((index.path / "tombstones").iterdir()) == []
    assert [path.name for path in (index.path / "generations").iterdir()] == ["000002.json"]
    assert assert_whole(index.path) == 2


def test_linked_files_share_their_bytes(index: IndexFolder) -> None:
    old = index.manifest()
    path = index.path / old.paths("segments", old.segments[0].id)["vectors.npy"]
    number = path.stat().st_ino
    with index.begin() as transaction:
        new = commit_second(transaction)
    moved = new.paths("segments", new.segments[0].id)["vectors.npy"]
    assert (index.path / moved).stat().st_ino == number
    assert new.files[moved] == old.files[path.relative_to(index.path).as_posix()]


def test_where_links_fail_bytes_are_copied(index: IndexFolder) -> None:
    class NoLinks(CountingFiles):
        def link(self, _source: Any, _target: Any) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    with IndexFolder(index.path, NoLinks()).begin() as transaction:
        commit_second(transaction)
    assert assert_whole(index.path) == 2


def test_files_that_funnel_did_not_make_are_never_swept(index: IndexFolder) -> None:
    (index.path / "notes.txt").write_text("mine")
    (index.path / "segments" / "mine").mkdir()
    (index.path / "segments" / "mine" / "file").write_text("mine")
    (index.path / "generations" / "notes.json").write_text("mine")
    second(index.path, CountingFiles())
    assert (index.path / "notes.txt").exists()
    assert (index.path / "segments" / "mine" / "file").exists()
    assert (index.path / "generations" / "notes.json").exists()


def test_a_second_writer_is_refused_and_the_next_one_let_in(index: IndexFolder) -> None:
    with index.begin():
        with pytest.raises(StorageError, match=f"being written by process {os.getpid()}"):
            index.begin()
        assert assert_whole(index.path) == 1
    with index.begin():
        pass


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StorageError, match=r"thesis\.txt.* no index; choose"):
        IndexFolder(tmp_path).begin()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is not a folder"):
        IndexFolder(tmp_path / "file").begin()


def test_a_folder_that_may_not_be_written_is_a_storage_error(tmp_path: Path) -> None:
    class DeniedFiles(FailingFiles):
        code = errno.EACCES

    with pytest.raises(StorageError, match=r"cannot write .*index: Permission denied; nothing was committed"):
        IndexFolder(tmp_path / "index", DeniedFiles(0)).begin()


def test_everything_is_flushed_before_current_changes(index: IndexFolder) -> None:
    class Recording(Files):
        def __init__(self) -> None:
            self.flushed: set[tuple[int, int]] = set()
            self.before_current: set[tuple[int, int]] = set()

        def sync(self, path: Path) -> None:
            super().sync(path)
            self.flushed.add((path.stat().st_ino, path.stat().st_size))

        def replace(self, source: Any, target: Any) -> None:
            if target.name == "CURRENT":
                self.before_current = set(self.flushed)
                self.flushed.clear()
            super().replace(source, target)

    files = Recording()
    with IndexFolder(index.path, files).begin() as transaction:
        manifest = commit_second(transaction)
        new = [index.path, index.path / "CURRENT", index.path / "generations" / "000002.json"]
        new += [index.path / "generations", index.path / "segments"]
        new += [(index.path / path).parent for path in manifest.files if path.startswith("segments")]
        new += [index.path / path for path in manifest.files if path.startswith("segments")]
        root = index.path.stat().st_ino
        assert {path.stat().st_ino for path in new} <= {number for number, _ in files.before_current}
        assert root in {number for number, _ in files.flushed}
        sizes = dict(files.before_current)
        assert all(sizes[path.stat().st_ino] == path.stat().st_size for path in new if path.is_file())


def test_nothing_is_written_over_an_index_that_cannot_be_read(index: IndexFolder) -> None:
    current = index.path / "CURRENT"
    current.write_bytes(b"rubbish")
    with pytest.raises(DamagedIndexError, match="CURRENT"):
        index.begin()
    newer = encode({"format_version": 9})
    (index.path / "generations" / "000001.json").write_bytes(newer)
    current.write_bytes(current_line(1, newer))
    with pytest.raises(FormatVersionError):
        index.begin()
    assert list((index.path / "segments").iterdir()) != []


def test_a_linked_folder_of_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    folder = IndexFolder(tmp_path / "index")
    with folder.begin() as transaction:
        (tmp_path / "index" / "segments").symlink_to(tmp_path / "outside")
        with pytest.raises(StorageError, match="segments is a link"):
            transaction.folder("segments")


def commit_with(transaction: Transaction, spoil: Any, **changes: Any) -> Manifest:
    segment = transaction.folder("segments")
    write_segment(segment)
    spoil(segment)
    return transaction.commit(body(segments=[segment_entry(transaction, segment)], **changes))


@pytest.mark.parametrize(
    ("spoil", "changes", "words"),
    [
        (lambda folder: (folder / "extra.bin").touch(), {}, "cannot hold 'extra.bin'"),
        (lambda folder: (folder / "documents.sqlite").mkdir(), {}, "documents.sqlite"),
        (lambda folder: (folder / "documents.sqlite").symlink_to("/etc/hosts"), {}, "documents.sqlite"),
        (lambda folder: (folder / "ids.npy").unlink(), {}, "has no ids.npy"),
        (lambda _folder: None, {"d": 0}, "d is 0"),
        (lambda _folder: None, {"colour": "red"}, "colour"),
        (lambda _folder: None, {"adaptor": "000001-00000000"}, "has no adaptor.json"),
        (lambda _folder: None, {"settings": settings(memory_mb=float("inf"))}, "JSON"),
    ],
)
def test_what_does_not_fit_the_layout_is_refused_before_anything_moves(
    index: IndexFolder, spoil: Any, changes: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words), index.begin() as transaction:
        commit_with(transaction, spoil, **changes)
    assert assert_whole(index.path) == 1


def test_a_part_that_the_body_does_not_name_is_refused(index: IndexFolder) -> None:
    with index.begin() as transaction:
        write_segment(transaction.folder("segments"))
        with pytest.raises(InputError, match="does not name that part"):
            transaction.commit(body())


def test_the_libraries_that_the_caller_names_stand_in_the_manifest(index: IndexFolder) -> None:
    with index.begin() as transaction:
        manifest = commit_with(transaction, lambda _folder: None, versions={"faiss": "9.9"})
    assert manifest.versions["faiss"] == "9.9"
    assert manifest.versions["numpy"] == np.__version__


@pytest.mark.usefixtures("bars_at_once")
def test_progress_shows_bytes(index: IndexFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with index.begin() as transaction:
        write_segment(transaction.folder("segments"))
        transaction.reuse("adaptor")
        with pytest.raises(InputError):
            transaction.commit(body(), progress=True)
    assert "hashing" in capsys.readouterr().err
