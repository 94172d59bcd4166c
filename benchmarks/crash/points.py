"""The points of an operation at which it can be stopped: every operation on files, counted, and what happens at one.

Counted are the methods of `funnel.storage.files.Files` and, by Python's audit events, every file that anything else
opens for writing, makes, renames or removes inside the index folder: NumPy, SQLite, FAISS and safetensors write there.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from funnel.storage.files import FILES, Files

__all__ = ["Deed", "Points", "limit_file_size"]

Deed = Literal["kill", "ENOSPC", "EIO", "short"]

METHODS = ("make_folder", "write", "sync", "replace", "link", "remove", "remove_folder")
EVENTS = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.truncate",
    "sqlite3.connect",
    "shutil.copyfile",
}
WRITING = os.O_WRONLY | os.O_RDWR


class Points:
    """Counts the file operations of this process below `root`; at number `at` the deed is done.

    For the rest of this process's life: audit hooks cannot be taken away.
    """

    def __init__(self, root: Path, at: int | None = None, deed: Deed = "kill") -> None:
        self.count = 0
        self._root, self._at, self._deed = os.path.realpath(root), at, deed
        self._inside = False
        points = self

        class Counted(Files):
            def __getattribute__(self, name: str) -> Any:
                method = super().__getattribute__(name)
                if name not in METHODS:
                    return method
                return lambda *arguments: points._call(name, method, arguments)

        FILES.__class__ = Counted
        sys.addaudithook(self._audit)

    def _call(self, name: str, method: Any, arguments: tuple[Any, ...]) -> Any:
        if self._reached():
            if name == "write" and self._deed in ("kill", "short"):
                path, data = arguments
                self._inside = True
                path.write_bytes(data[: len(data) // 2])
            self._strike(arguments[0])
        self._inside = True
        try:
            return method(*arguments)
        finally:
            self._inside = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._inside or not (event == "open" or event in EVENTS):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        path = arguments[0]
        if isinstance(path, int) or not os.fsdecode(path).startswith(self._root):
            return
        if self._reached():
            self._strike(path)

    def _reached(self) -> bool:
        self.count += 1
        return self.count - 1 == self._at

    def _strike(self, path: Any) -> None:
        if self._deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        code = errno.EIO if self._deed == "EIO" else errno.ENOSPC
        self._inside = False
        raise OSError(code, os.strerror(code), os.fsdecode(path))


def limit_file_size(size: int) -> None:
    """No file grows beyond `size` bytes from here on: a write over the edge is a short one, the next fails (EFBIG)."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
