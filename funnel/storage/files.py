"""Every operation on the disk, one small method each, so that tests can make any of them fail.

Also here: the mapping from the many ways in which libraries say that the disk is full to `NoSpaceError`.
"""

import atexit
import errno
import os
import re
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import ref

from funnel.errors import DamagedIndexError, NoSpaceError, StorageError, of_environment
from indexes.system import PLAIN_FILE, disk_pool, flush, read_at

# Read in pieces of 1 MiB: large enough that hashlib releases the interpreter lock, small enough for caches.
CHUNK_BYTES = 1024 * 1024

# What to do about a damaged file; nothing is written into an index whose state cannot be read.
REMEDY = "restore it from a copy, or remove the folder and build the index again"

# numpy.ndarray.tofile gives no errno when the disk is full, only this text.
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")


def there(path: Path) -> bool:
    """Whether something stands at a path, be it a broken link. OSError where the system cannot say."""
    return _kind(path, links=False) is not None


def is_folder(path: Path, links: bool = True) -> bool:
    """Whether a folder stands at a path, or with `links` at what a link there names. OSError as `there`."""
    return stat.S_ISDIR(_kind(path, links) or 0)


def is_plain_file(path: Path) -> bool:
    """Whether a regular file stands at a path, not a link to one. OSError as `there`."""
    return stat.S_ISREG(_kind(path, links=False) or 0)


def _kind(path: Path, links: bool) -> int | None:
    # Not os.path.exists and its like: to them whatever cannot be looked at now is not there, and would be swept away.
    try:
        return os.stat(path, follow_symlinks=links).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


class Files:
    """The operations that storage needs; the default is the operating system's own."""

    def make_folder(self, path: Path) -> None:
        """Make one folder; nothing happens where it stands already."""
        path.mkdir(exist_ok=True)

    def write(self, path: Path, data: bytes) -> None:
        """Write a whole file, in place of any that stands there."""
        path.write_bytes(data)

    def sync(self, path: Path) -> None:
        """Flush a file or a folder to the disk."""
        flush(path)

    def sync_all(self, paths: Sequence[Path]) -> None:
        """Flush several at once: the disk confirms some together."""
        list(disk_pool().map(self.sync, paths))

    def replace(self, source: Path, target: Path) -> None:
        """Rename atomically; a file at `target` is replaced."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name (a hard link): no bytes are copied."""
        os.link(source, target, follow_symlinks=False)

    def remove(self, path: Path) -> None:
        """Remove one file or link."""
        path.unlink()

    def remove_folder(self, path: Path) -> None:
        """Remove one empty folder."""
        path.rmdir()

    def open(self, path: Path) -> int:
        """Open a regular file for reading, not through a link; gives the descriptor."""
        descriptor = os.open(path, os.O_RDONLY | PLAIN_FILE)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return descriptor

    def names(self, path: Path) -> list[str]:
        """The names in a folder, sorted; none where there is no such folder or it is a link."""
        if not is_folder(path, links=False):
            return []
        return sorted(os.listdir(path))


FILES = Files()


_temporary: dict[Path, tuple[int, ref[object]]] = {}  # by folder: the process that made it, and whose it is


def keep_for(owner: object, folder: Path) -> None:
    """Remove a temporary folder once its owner was let go: at the next call of this, or at the end of the process.

    Not at once: Ctrl-C in a finalizer would be lost. Nor in a forked child of the process that made it.
    """
    _temporary[folder] = os.getpid(), ref(owner)
    _sweep(False)


def _sweep(all_of_them: bool = True) -> None:
    for folder, (process, owner) in list(_temporary.items()):
        if process == os.getpid() and (all_of_them or owner() is None):
            shutil.rmtree(folder, ignore_errors=True)
            _temporary.pop(folder, None)


atexit.register(_sweep)


def remove_tree(path: Path, files: Files) -> None:
    """Remove a file, a link (not what it points to) or a folder with all it holds."""
    if not is_folder(path, links=False):
        files.remove(path)
        return
    for name in files.names(path):
        remove_tree(path / name, files)
    files.remove_folder(path)


def open_inside(root: Path, relative: str, files: Files) -> int:
    """Open the file `relative` of the index folder `root` for reading; gives the descriptor.

    Links below `root` are not followed. Raises DamagedIndexError naming the file where it is missing, a
    link, or unreadable by the disk; StorageError where the system does not allow reading it.
    """
    inner = root
    for part in relative.split("/"):
        inner = inner / part
        if inner.is_symlink():
            raise DamagedIndexError(f"{relative} in {root}: {part!r} is a link, and links are not followed")
    try:
        return files.open(inner)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not is_folder(root):
            raise StorageError(
                f"{root} is there no more: it was moved or removed; open the index where it is"
            ) from error
        raise DamagedIndexError(f"{relative} in {root} is missing; {REMEDY}") from error
    except PermissionError as error:
        raise StorageError(f"{relative} in {root} may not be read by this user: {error.strerror}") from error
    except OSError as error:
        if of_environment(error):
            raise StorageError(f"{relative} in {root} cannot be read now: {error.strerror}") from error
        raise DamagedIndexError(f"{relative} in {root} cannot be read: {error.strerror}") from error


def read_chunks(descriptor: int, offset: int, length: int, name: str) -> Iterator[bytes]:
    """The bytes from `offset` on, `length` in all, in pieces of at most CHUNK_BYTES.

    Raises DamagedIndexError naming `name` where the file ends before or the disk cannot read it.
    """
    end = offset + length
    while offset < end:
        try:
            chunk = read_at(descriptor, min(CHUNK_BYTES, end - offset), offset)
        except OSError as error:
            if of_environment(error):
                raise StorageError(f"{name} cannot be read now: {error.strerror}") from error
            raise DamagedIndexError(f"{name} cannot be read at byte {offset:,}: {error.strerror}") from error
        if not chunk:
            raise DamagedIndexError(f"{name} is cut short: it ends at byte {offset:,}, expected {end:,}")
        yield chunk
        offset += len(chunk)


def is_no_space(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, SQLite, FAISS or safetensors says that the disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    text = str(error)
    if isinstance(error, OSError) and _SHORT_WRITE.search(text):
        return True
    # FAISS and safetensors give the system's words inside errors of their own.
    return any(os.strerror(code) in text for code in (errno.ENOSPC, errno.EDQUOT))


def no_space_error(root: Path) -> NoSpaceError:
    """The error for a full disk, with what to do."""
    return NoSpaceError(
        f"no space left on the disk while writing {root}: nothing was committed and the generation before is "
        "untouched; free some space and try again"
    )


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn what the system says while `root` is written into `NoSpaceError` or `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if is_no_space(error):
            raise no_space_error(root) from error
        raise StorageError(
            f"cannot write {error.filename or root}: {error.strerror or error}; nothing was committed "
            "and the generation before is untouched"
        ) from error
