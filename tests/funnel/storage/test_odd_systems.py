"""Locks and folders where the system is not the usual one: forked children, no `flock`, NFS, odd names."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from funnel import FunnelIndex
from funnel.errors import InputError, StorageError
from funnel.storage.layout import CURRENT_TEMPORARY
from funnel.storage.locks import WriterLock

ROWS = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        lock.release()
        WriterLock(tmp_path).release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_forked_child_does_not_give_up_its_parents_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(StorageError, match="is being written by"):
        WriterLock(tmp_path)
    lock.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_it_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def none(_descriptor: int, _operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    index = FunnelIndex.build(ROWS, tmp_path / "index", progress=False)
    index.add(ROWS[:2])
    index.compact()
    assert len(index) == 22
    assert len(list((tmp_path / "index" / "segments").iterdir())) == 1


def test_nfs_takes_exclusive_locks_of_what_may_be_written_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock

    def nfs(descriptor: int, operation: int) -> None:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and mode == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    index = FunnelIndex.build(ROWS, tmp_path / "index", progress=False)
    index.add(ROWS[:2])
    index.compact()
    assert len(list((tmp_path / "index" / "generations").iterdir())) == 1


def test_a_folder_in_the_place_of_a_temporary_file_goes(tmp_path: Path) -> None:
    index = FunnelIndex.build(ROWS, tmp_path / "index", progress=False)
    (tmp_path / "index" / CURRENT_TEMPORARY).mkdir()
    (tmp_path / "index" / CURRENT_TEMPORARY / "file").touch()
    index.add(ROWS[:2])
    assert len(index) == 22


def test_a_path_that_is_not_utf8_is_refused_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not UTF-8"):
        FunnelIndex.build(ROWS, os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"), progress=False)
    assert list(tmp_path.iterdir()) == []
