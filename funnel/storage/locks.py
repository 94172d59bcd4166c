"""One writer at a time: an exclusive lock on a file of the index folder, freed by the system on any exit."""

import errno
import fcntl
import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

from funnel.errors import StorageError
from funnel.storage.layout import LOCK


class WriterLock:
    """An exclusive `flock` that says who holds it. The file stays: removing it would let two writers in."""

    def __init__(self, root: Path) -> None:
        """Take the lock at once. Raises StorageError saying who holds it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        self._descriptor: int | None = os.open(root / LOCK, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise StorageError(f"{LOCK} in {root} is not a regular file; remove it")
            self._take(root, self._descriptor)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Let the next writer in; nothing happens the second time."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @staticmethod
    def _take(root: Path, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise StorageError(f"{root} is being written by {holder}; wait until it ends, or stop it") from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode(), 0)
