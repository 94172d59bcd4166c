"""One writer at a time, and readers whose generations stay."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from funnel.errors import StorageError
from funnel.storage import IndexFolder
from funnel.storage.layout import GENERATIONS, generation_name
from funnel.storage.locks import ReaderLock, Removal, WriterLock
from tests.funnel.storage.helpers import commit_all


def write_index(root: Path) -> None:
    """A new generation that shares nothing with the one before."""
    with IndexFolder(root).begin() as transaction:
        commit_all(transaction)


def test_the_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    first = WriterLock(tmp_path)
    with pytest.raises(StorageError, match=rf"being written by process {os.getpid()} on .+ since 20"):
        WriterLock(tmp_path)
    first.release()
    first.release()
    WriterLock(tmp_path).release()


def test_the_lock_file_is_written_anew_by_each_holder(tmp_path: Path) -> None:
    (tmp_path / ".funnel-lock").write_text("x" * 500)
    lock = WriterLock(tmp_path)
    assert re.fullmatch(rf"process {os.getpid()} on \S+ since \S+\n", (tmp_path / ".funnel-lock").read_text())
    lock.release()
    assert (tmp_path / ".funnel-lock").exists()


def test_a_lock_that_is_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".funnel-lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        WriterLock(tmp_path)
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / ".funnel-lock").unlink()
    os.mkfifo(tmp_path / ".funnel-lock")
    with pytest.raises(StorageError, match="not a regular file"):
        WriterLock(tmp_path)


def test_a_reader_keeps_its_generation_until_it_lets_go(tmp_path: Path) -> None:
    """Its manifest and parts stay through later commits, and go with the first commit afterwards."""
    root = tmp_path / "index"
    write_index(root)
    _, lock = IndexFolder(root).read()
    kept = [root / path for path in IndexFolder(root).manifest().files]
    write_index(root)
    write_index(root)
    assert all(path.exists() for path in kept)
    assert (root / "generations/000001.json").exists()
    assert not (root / "generations/000002.json").exists()
    lock.release()
    lock.release()
    write_index(root)
    assert not any(path.exists() for path in kept)
    assert sorted(path.name for path in (root / "generations").iterdir()) == ["000004.json"]


def test_what_a_dead_reader_held_goes(tmp_path: Path) -> None:
    """The system frees its lock, however it ends."""
    root = tmp_path / "index"
    write_index(root)
    code = "import sys; from funnel.storage import IndexFolder\n" + (
        "held = IndexFolder(sys.argv[1]).read(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        write_index(root)
        assert (root / "generations/000001.json").exists()
        process.kill()
    write_index(root)
    assert not (root / "generations/000001.json").exists()


def test_a_generation_that_is_being_removed_is_not_taken(tmp_path: Path) -> None:
    """Who comes between the look at CURRENT and the lock sees that the manifest is gone, or locked for good."""
    root = tmp_path / "index"
    write_index(root)
    path = root / "generations/000001.json"
    removal = Removal(path)
    assert removal.unread
    assert ReaderLock.take(root, 1) is None
    removal.close()
    held = ReaderLock.take(root, 1)
    assert held is not None
    removal = Removal(path)
    assert not removal.unread
    removal.close()
    path.unlink()
    assert ReaderLock.take(root, 1) is None


STORM = """
import random, signal, sys
from pathlib import Path
from funnel.storage.layout import GENERATIONS, generation_name
from funnel.storage.locks import ReaderLock, Removal, WriterLock

root = Path(sys.argv[1])
signal.signal(signal.SIGALRM, signal.default_int_handler)
delays, interrupted = random.Random(0), 0
for number in range(4_000):
    try:
        signal.setitimer(signal.ITIMER_REAL, delays.uniform(1e-6, 3e-4))
        while True:
            lock = WriterLock(root)
            del lock  # as where nobody came to release it
            readers = [ReaderLock.take(root, 1) for _ in range(9)]
            del readers
    except KeyboardInterrupt:
        interrupted += 1
WriterLock(root).release()
print(interrupted, Removal(Path(sys.argv[2])).unread)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_ctrl_c_anywhere_frees_every_lock(tmp_path: Path) -> None:
    """A real signal, 4,000 times: a lock that is let go is free, and no interrupt is lost in a finalizer."""
    manifest = tmp_path / GENERATIONS / generation_name(1)
    manifest.parent.mkdir()
    manifest.write_text("{}")
    ended = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path), str(manifest)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.split() == ["4000", "True"]  # each was raised, and nobody reads the generation
