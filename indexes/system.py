"""What operating systems have each in its own way, and what stands in where one has it not.

The only place that asks which system it is. What merely saves time or memory is left out elsewhere. Windows has no
locks on files here: `funnel.storage.locks` says what that means.
"""

import ctypes
import errno
import io
import mmap
import os
import platform
import sys
import tempfile
import threading
import tokenize
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock, RLock
from typing import IO, Any, BinaryIO, Literal, TypeVar

import numpy as np
import numpy.typing as npt

if sys.platform != "win32":
    import fcntl
    import resource

# Flags for opening what ought to be a plain file: not through a link, and without waiting where it is a pipe.
if sys.platform == "win32":
    PLAIN_FILE = os.O_BINARY | os.O_NOINHERIT
else:
    PLAIN_FILE = os.O_NOFOLLOW | os.O_NONBLOCK

CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")

# Of glibc's mallopt(3), and what they are set to under a limit on data: larger blocks are maps of their own, which end
# when they are freed, and threads share one heap.
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
OWN_MAP_BYTES = 262_144
# sha256 runs at 1 to 2 GB/s a core, so four keep up with a fast disk; they flush the 16 files of a commit in 2.1 ms,
# where one takes 4.1 and 16 take 1.9.
DISK_THREADS = 4

_reading = threading.Lock()  # where reading moves the file's position


class Descriptor(io.FileIO):
    """Owns an open descriptor of a file, and closes it when it is let go; `close` closes it before.

    That runs no line of Python, as a finalizer would: Ctrl-C would end there, with a traceback and the file left open.
    """

    _finalizing = None  # in the place of FileIO's own, by which it would warn that it was not closed


class Living:
    """What was added and is in use still. No Python runs when one is let go, as WeakSet does: Ctrl-C would end it."""

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Any]] = {}
        self._most = 64

    def add(self, one: object) -> None:
        """Know it for as long as others hold it."""
        if len(self._known) >= self._most:
            for key, known in list(self._known.items()):
                if known() is None:
                    self._known.pop(key, None)
            self._most = max(64, 2 * len(self._known))
        self._known[id(one)] = weakref.ref(one)

    def all(self) -> list[Any]:
        """Those that are in use."""
        return [one for known in list(self._known.values()) if (one := known()) is not None]


def lock(descriptor: int, exclusive: bool) -> None:
    """Take a lock on an open file, at once or not at all. OSError where another has it, or there are no locks."""
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    else:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)


def unlock(descriptor: int) -> None:
    """Free the lock on an open file. OSError where there are no locks."""
    if sys.platform == "win32":
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    else:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes of an open file from `offset` on; from any thread."""
    if sys.platform == "win32":
        with _reading:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, length)
    return os.pread(descriptor, length, offset)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk; Windows keeps folders by itself, and wants files that may be written."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, PLAIN_FILE | (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY))
    try:
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # fsync leaves it in the drive's own memory
        else:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def claim(descriptor: int, start: int, size: int) -> None:
    """Make an open file start + size bytes long; on Linux with room on the disk, so that a full one shows now."""
    if sys.platform == "linux" and size:
        os.posix_fallocate(descriptor, start, size)
    else:
        os.ftruncate(descriptor, start + size)


def path_of(descriptor: int) -> Path | None:
    """A path to an open file, wherever it was moved since; None where the system has none."""
    path = Path(f"/proc/self/fd/{descriptor}")
    return path if path.exists() else None


@contextmanager
def temporary_file() -> Iterator[tuple[IO[bytes], str]]:
    """An open temporary file and a path to it; on Linux it has no name, and goes if the process is killed."""
    with tempfile.TemporaryFile() if sys.platform == "linux" else tempfile.NamedTemporaryFile() as file:
        yield file, str(path_of(file.fileno()) or file.name)


def advise(mapping: mmap.mmap, advice: Literal["RANDOM", "WILLNEED", "DONTNEED"], start: int, length: int) -> None:
    """Say how a part of a map will be used: madvise(2)."""
    if sys.platform != "win32":
        mapping.madvise(getattr(mmap, f"MADV_{advice}"), start, length)


def at_fork(**calls: Callable[[], None]) -> None:
    """Have `before`, `after_in_parent` and `after_in_child` called at every fork; without forks, never."""
    if sys.platform != "win32":
        os.register_at_fork(**calls)


def usable_cores() -> int:
    """The cores this process may run on; where the system does not say, all there are."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
        return platform.machine()
    return platform.processor() or platform.machine()


def heed_memory_limit() -> bool:
    """Whether the process may take so much memory (`ulimit -d`, `ulimit -v`); then the C library keeps nothing freed.

    Such a limit counts what is reserved, touched or not, and glibc keeps what was freed: 180 of 680 MB in a build from
    1.5 GB of rows. It also reserves 64 MB for each thread. Where there is a limit it is told not to, in the whole
    process; that makes a build a quarter slower.
    """
    limited = bool(_own_limits())
    if limited:
        _keep_nothing_freed()
    return limited


def _own_limits() -> list[int]:
    """Bytes that the process may take, by its own resource limits; empty where there are none."""
    limits: list[int] = []
    if sys.platform != "win32":
        limits += [resource.getrlimit(limited)[0] for limited in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
        limits = [limit for limit in limits if limit != resource.RLIM_INFINITY]
    return limits


@lru_cache(maxsize=1)
def _keep_nothing_freed() -> None:
    option = _c_function("mallopt")
    if option is not None:
        option(M_ARENA_MAX, 1)
        option(M_MMAP_THRESHOLD, OWN_MAP_BYTES)


def _c_function(name: str) -> Any:
    """A function of the C library; None where it has no such."""
    return None if sys.platform == "win32" else getattr(ctypes.CDLL(None), name, None)


def release_freed() -> None:
    """Have glibc give freed memory back to the system; does nothing with another C library.

    glibc keeps freed blocks of up to 32 MB for later (mallopt(3), M_MMAP_THRESHOLD): after a pass over a matrix that is
    several blocks of rows, which would stay resident beside all that comes after. Takes milliseconds.
    """
    trim = _c_function("malloc_trim")
    if trim is not None:
        trim(0)


def machine_bytes() -> int:
    """The memory this process may use: the machine's, or less where a cgroup or a resource limit says so."""
    return min([_memory()[0], *_cgroup_limits(), *_own_limits()])


def resident_bytes(*fields: str) -> int:
    """Bytes of this process that lie in memory, by the names of /proc/self/status; 0 where the system has none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return sum(int(found.get(name, "0 kB").split()[0]) * 1024 for name in fields)


def free_bytes() -> int:
    """The machine's memory that nothing uses; where the system does not say (macOS), all it has."""
    return _memory()[1]


def _memory() -> tuple[int, int]:
    """Bytes of memory of the machine, and those that nothing uses."""
    if sys.platform == "win32":
        status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its own size, then what there is and what is available
        ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
        return status[1], status[2]
    free = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf(free)


def _cgroup_limits() -> list[int]:
    """What the memory controller allows the process's cgroup and those above it; empty where there is none."""
    limits: list[int] = []
    with suppress(OSError):
        for line in OWN_CGROUP.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):  # version 2, or 1
                root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
                folder = root / path.lstrip("/")
                for place in (folder, *folder.parents):
                    with suppress(OSError, ValueError):  # "max", or no such file: no limit here
                        limits.append(int((place / name).read_text(encoding="ascii")))
    return limits


AnyLock = TypeVar("AnyLock", bound=Any)

_locks = Living()


def free_in_children(lock: AnyLock) -> AnyLock:
    """The same `Lock` or `RLock`, which a forked child finds free, whoever held it in the parent."""
    _locks.add(lock)
    return lock


def _begin_child() -> None:
    """In the thread that forked, the only one of the child: OpenMP would wait for threads that are not there."""
    for lock in _locks.all():
        lock._at_fork_reinit()
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


assert all(hasattr(lock, "_at_fork_reinit") for lock in (Lock(), RLock())), "CPython's own locks have it"
at_fork(after_in_child=_begin_child)


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# Out of numpy's header parser, which evaluates the header as a Python literal of at most 10,000 characters.
UNREADABLE = (EOFError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError)


def mapped_below(folder: Path) -> Iterator[tuple[int, int, Path, int]]:
    """Start, bytes, path and resident bytes of what this process has mapped of files below a folder. Linux only."""
    start = size = 0
    path: Path | None = None
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):
            start, stop = (int(end, 16) for end in first.split("-"))
            size, path = stop - start, Path(rest[4]) if len(rest) == 5 else None
        elif first == "Rss:" and path is not None and folder in path.parents:
            yield start, size, path, int(rest[0]) * 1024


def touched_bytes(folder: Path) -> int | None:
    """What is resident of the files below a folder that this process has mapped; None on systems that do not say."""
    return sum(resident for *_, resident in mapped_below(folder)) if Path("/proc/self/smaps").exists() else None


_pools: dict[int, ThreadPoolExecutor] = {}


def disk_pool() -> ThreadPoolExecutor:
    """The process's own threads for the disk, each started when it is first needed, and kept.

    Ctrl-C while CPython starts a thread may leave it waiting for ever, and the process at its exit: a pool for every
    operation would start some each time. Every thread reserves 72 MB of address space, which `ulimit -v` counts.
    """
    process = os.getpid()
    if process not in _pools:
        heed_memory_limit()
        _pools[process] = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="funnel-disk")
    return _pools[process]


def map_file(file: BinaryIO) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
    """The whole of an open file: its map, and the bytes uint8 [size]. What is written to them does not reach the file.

    Under a limit on memory they must not be written to: `ulimit -d` counts what could be written, even privately, and
    spares a map that can only be read.
    """
    size = os.fstat(file.fileno()).st_size  # mmap would say "Invalid argument" where the system refuses to look
    whole = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ if heed_memory_limit() else mmap.ACCESS_COPY)
    return whole, np.asarray(_Mapped(whole)) if len(whole) else np.empty(0, np.uint8)


def npy_header(file: IO[bytes], swapped: bool = False) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type of the array of which a .npy file is read from here on.

    swapped: numbers may be in the other byte order than this machine's, as a type's name does not say.

    Raises ValueError for what is none, for Python objects, and for another version of the format than 1.0 and 2.0.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"it has .npy format {version}, expected (1, 0) or (2, 0)")
        shape, by_column, dtype = HEADERS[version](file)
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if not (swapped or dtype.isnative):
        raise ValueError(f"it holds {dtype}, whose byte order is not this machine's")
    if min(shape, default=0) < 0:
        raise ValueError(f"its shape is {list(shape)}")
    return shape, by_column, dtype


class _Mapped:
    """The bytes of a map for torch, which would warn of an array that is marked read-only."""

    def __init__(self, whole: mmap.mmap) -> None:
        self._bytes = np.frombuffer(whole, np.uint8)
        interface = self._bytes.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}
