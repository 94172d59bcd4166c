"""One writer at a time."""

import os
import re

import pytest

from funnel.errors import StorageError
from funnel.storage.locks import WriterLock


def test_the_second_writer_is_told_who_writes(tmp_path):
    first = WriterLock(tmp_path)
    with pytest.raises(StorageError, match=rf"being written by process {os.getpid()} on .+ since 20"):
        WriterLock(tmp_path)
    first.release()
    first.release()
    WriterLock(tmp_path).release()


def test_the_lock_file_is_written_anew_by_each_holder(tmp_path):
    (tmp_path / ".funnel-lock").write_text("x" * 500)
    lock = WriterLock(tmp_path)
    assert re.fullmatch(rf"process {os.getpid()} on \S+ since \S+\n", (tmp_path / ".funnel-lock").read_text())
    lock.release()
    assert (tmp_path / ".funnel-lock").exists()


def test_a_lock_that_is_a_link_or_a_pipe_is_refused(tmp_path):
    (tmp_path / ".funnel-lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        WriterLock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / ".funnel-lock").unlink()
    os.mkfifo(tmp_path / ".funnel-lock")
    with pytest.raises(StorageError, match="not a regular file"):
        WriterLock(tmp_path)
