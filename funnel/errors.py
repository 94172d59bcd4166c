"""Every error that funnel raises on purpose.

FunnelError
├── InputError              a value, a line or a row that cannot be used (also a ValueError)
├── BudgetError             no plan meets the budget (also a ValueError)
├── EncoderError            a text came where no encoder is at hand, or the encoder misbehaved
├── MissingPackageError     an optional package is needed (also an ImportError)
└── StorageError            the index on disk (also an OSError)
    ├── NotAnIndexError     the folder holds no index
    ├── FormatVersionError  the index was written by a newer funnel, or its calibration by a much older one
    ├── DamagedIndexError   a file is missing, cut short or changed; names the file
    └── NoSpaceError        the disk is full; the generation before is untouched

DriftWarning                a warning: live searches have voided the certificates (also a UserWarning)

The coarse families raise `indexes.CoarseIndexError` and `indexes.MissingBackendError`, which stand
beside this tree because `indexes` does not know `funnel`.
"""

import errno
import re
import sqlite3

__all__ = [
    "BudgetError",
    "DamagedIndexError",
    "DriftWarning",
    "EncoderError",
    "FormatVersionError",
    "FunnelError",
    "InputError",
    "MissingPackageError",
    "NoSpaceError",
    "NotAnIndexError",
    "StorageError",
    "of_environment",
    "reason",
]

# Of SQLite (https://sqlite.org/rescode.html): PERM, BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN.
_SQLITE_ENVIRONMENT = (3, 5, 6, 7, 8, 10, 13, 14)
# Of the system: no such file, or what stands there is none. All others speak of the process, the machine or the disk.
_OF_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO)

LONGEST, ENDING = 1_500, 500  # characters of a message, and of its end: what to do stands there


def of_environment(error: BaseException) -> bool:
    """Whether an error of Python or SQLite speaks of the process or machine, and says nothing about the file read."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_ENVIRONMENT
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


def reason(error: BaseException) -> str:
    """What an error of the environment says, for a message: SQLite's own words may leave out what it met."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, sqlite3.Error):
        return f"{error} ({getattr(error, 'sqlite_errorname', 'SQLite')})"
    return (isinstance(error, OSError) and error.strerror) or str(error)


class FunnelError(Exception):
    """The base of every error that funnel raises on purpose.

    Its message is one line that can be read, whatever value it quotes: of a very long one the middle is left out.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(_line(arg) if isinstance(arg, str) else arg for arg in args))


def _line(message: str) -> str:
    line = re.sub(r"\s*[\r\n]\s*", " ", message)
    if not line.isprintable():  # what a terminal would obey, and halves of surrogate pairs, which nothing prints
        line = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - ENDING]} … {line[-ENDING:]}"


class DriftWarning(UserWarning):
    """Live queries have changed, or an audit found less recall than promised: certificates are void until tuned."""


class InputError(FunnelError, ValueError):
    """A value that cannot be used: the message names it, what was expected and what to do."""


class BudgetError(FunnelError, ValueError):
    """No plan meets the budget: the message names the nearest plan on each side."""


class EncoderError(FunnelError):
    """A text needs an encoder that is not at hand, or the encoder gave something unusable."""


class MissingPackageError(FunnelError, ImportError):
    """An optional package is needed: the message says how to install it."""


class StorageError(FunnelError, OSError):
    """Something is wrong with the index on disk."""


class NotAnIndexError(StorageError):
    """The folder holds no index."""


class FormatVersionError(StorageError):
    """The index, or a part of it, was written in a format that this version does not read."""


class DamagedIndexError(StorageError):
    """A file of the index is missing, cut short or changed: the message names it."""


class NoSpaceError(StorageError):
    """The disk is full: nothing was committed and the generation before is untouched."""
