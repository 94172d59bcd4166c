"""Who writes and who reads, by locks that the system frees on any exit.

One writer at a time holds an exclusive lock on a file of the index folder. Each reader holds a shared lock on the
manifest of the generation that it has open, so that the writer knows which old generations it may remove.
"""

import errno
import os
import socket
import stat
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from funnel.errors import StorageError
from funnel.storage.layout import GENERATIONS, LOCK, generation_name
from indexes.system import PLAIN_FILE, Descriptor, lock, read_at, unlock

# A file system without locks: generations are then removed while they are read, as files that are mapped stay readable,
# and who writes sees to it that nobody else does.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class WriterLock:
    """An exclusive `flock` that says who holds it. The file stays: removing it would let two writers in."""

    def __init__(self, root: Path) -> None:
        """Take the lock at once. Raises StorageError saying who holds it."""
        self._owner = os.getpid()
        flags = os.O_RDWR | os.O_CREAT | PLAIN_FILE
        self._held = Descriptor(os.open(root / LOCK, flags, 0o644))  # freed where Ctrl-C comes before this is held, too
        try:
            if not stat.S_ISREG(os.fstat(self._held.fileno()).st_mode):
                raise StorageError(f"{LOCK} in {root} is not a regular file; remove it")
            self._take(root, self._held.fileno())
        except BaseException:
            self.release()
            raise

    @property
    def owned(self) -> bool:
        """Whether this process took it: a child that was forked meanwhile has it too, and must leave all as it is."""
        return self._owner == os.getpid()

    def release(self) -> None:
        """Let the next writer in; nothing happens the second time.

        Unlocked as well as closed: children that were forked meanwhile hold the same lock. They only close it.
        """
        if self._held.closed:
            return
        try:
            if self.owned:
                with suppress(OSError):  # no locks here
                    unlock(self._held.fileno())
        finally:
            self._held.close()

    @staticmethod
    def _take(root: Path, descriptor: int) -> None:
        try:
            lock(descriptor, exclusive=True)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = read_at(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
                raise StorageError(f"{root} is being written by {holder}; wait until it ends, or stop it") from error
            if error.errno not in _NO_LOCKS:
                raise
        now = datetime.now(UTC).isoformat(timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())


class ReaderLock:
    """A shared `flock` on a generation's manifest, held until the object is let go or the process ends."""

    def __init__(self, held: Descriptor) -> None:
        """Own a descriptor that is locked; see `take`."""
        self._held = held

    @classmethod
    def take(cls, root: Path, generation: int) -> "ReaderLock | None":
        """Keep a generation from being removed; None where it is gone or being removed."""
        try:
            held = Descriptor(os.open(root / GENERATIONS / generation_name(generation), os.O_RDONLY | PLAIN_FILE))
        except FileNotFoundError:
            return None
        try:
            lock(held.fileno(), exclusive=False)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            if error.errno not in _NO_LOCKS:
                raise
        if os.fstat(held.fileno()).st_nlink == 0:  # removed between opening and locking it
            return None
        return cls(held)

    def release(self) -> None:
        """Let the generation go; nothing happens the second time."""
        self._held.close()


class Removal:
    """An exclusive lock on the manifest of an old generation, where nobody reads it."""

    def __init__(self, path: Path) -> None:
        """Try to take the lock; `unread` says whether nobody had it."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | PLAIN_FILE)  # NFS locks for itself what may be written only
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._descriptor = os.open(path, os.O_RDONLY | PLAIN_FILE)
        try:
            lock(self._descriptor, exclusive=True)
            self.unread: bool = True
        except OSError as error:
            self.unread = error.errno in _NO_LOCKS

    def close(self) -> None:
        """Free the lock."""
        os.close(self._descriptor)
