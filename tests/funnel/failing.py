"""In a process of its own under `preload.c`: every operation on an index, with each call of the system failing once.

python failing.py LIBRARY FOLDER MOST OPERATION...: prints what was wrong, a line each, and how many calls failed.
FOLDER: empty. MOST: calls of each operation that fail with each error, spread over all of them.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from funnel import FunnelIndex
from funnel.errors import DamagedIndexError, FunnelError, NotAnIndexError
from funnel.storage import check
from tests.funnel.corpora import documents, hashed_words

OPEN, READ, WRITE, STAT = 1, 2, 4, 8
# What may come of each kind of call. An interruption is tried again by Python and by SQLite.
CODES = {
    errno.EMFILE: OPEN,
    errno.ENFILE: OPEN,
    errno.EACCES: OPEN | STAT,
    errno.ENOSPC: WRITE,
    errno.EROFS: WRITE,
    errno.EINTR: OPEN | READ | WRITE,
    errno.ENOMEM: OPEN | READ | STAT,
    errno.EIO: OPEN | READ | WRITE | STAT,
    errno.ETIMEDOUT: OPEN | READ | WRITE | STAT,
    errno.ESTALE: OPEN | READ | STAT,
}
REASONS = ("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_NOMEM", "SQLITE_FULL", "out of memory", "no space left")
ROWS = 300
NEW = [{"_id": "new", "text": "the parser of part 44, again", "year": 1944}]
CONDITION = "year > 1950"


def opened(folder: Path) -> FunnelIndex:
    return FunnelIndex.open(folder, encoder=hashed_words)


def found(index: FunnelIndex, **options: object) -> list[tuple[object, str]]:
    return [(hit.id, hit.text) for hit in index.search("the parser of part 44", 5, **options)]  # type: ignore[call-overload]


def checked(folder: Path) -> object:
    report = check(folder)
    wrong = [line for line in report.lines if line.status in ("damaged", "rebuildable")]
    if wrong:
        raise DamagedIndexError(f"check says {wrong[0]}")
    return report.ok


def refreshed(index: FunnelIndex) -> object:
    return index.refresh(), len(index)


class Trials:
    """Each operation, on a copy of the folder that it is tried on."""

    def __init__(self, library: str, home: Path, most: int) -> None:
        self.watched, self.most = home / "watched", most
        self.calls = ctypes.CDLL(library)
        self.fresh = home / "fresh"
        FunnelIndex.build(documents(ROWS), self.fresh, encoder=hashed_words, progress=False)
        added = opened(self.fresh)
        added.add([{"_id": "second", "text": "a file of part 12", "year": 1999}])
        added.delete("d3")
        self.failed = 0
        self.calls.watch(os.fsencode(self.watched))

    def begin(self) -> FunnelIndex:
        shutil.rmtree(self.watched, ignore_errors=True)
        shutil.copytree(self.fresh, self.watched / "index")
        index = opened(self.watched / "index")
        found(index)
        return index

    def operations(self) -> dict[str, Callable[[FunnelIndex], object]]:
        folder = self.watched / "index"

        return {
            "open": lambda _: len(opened(folder)),
            "lazy": lambda _: found(FunnelIndex.open(folder, encoder=hashed_words, verify="lazy")),
            "search": found,
            "first search": lambda _: found(opened(folder)),
            "exact": lambda index: found(index, recall=1.0),
            "where": lambda index: found(index, where=CONDITION),
            "hybrid": lambda index: found(index, hybrid=0.5),
            "check": lambda _: checked(folder),
            "add": lambda index: (index.add(NEW), len(index)),
            "upsert": lambda index: (index.upsert([{**NEW[0], "_id": "d5"}]), len(index)),
            "delete": lambda index: (index.delete(["d7", "second"]), len(index)),
            "refresh": refreshed,
            "compact": lambda index: (index.compact(), len(index)),
        }

    def run(self, names: Sequence[str]) -> Iterator[str]:
        for name, operation in self.operations().items():
            if name not in names:
                continue
            expected, before, after = self.undisturbed(name, operation)
            for code, kinds in CODES.items():
                for lasts in (0, 1) if code != errno.EINTR else (0,):  # else it is tried again for ever
                    yield from self.with_code(name, operation, code, kinds, lasts, expected, (before, after))

    def undisturbed(self, name: str, operation: Callable[[FunnelIndex], object]) -> tuple[object, ...]:
        index = self.prepared(name)
        before = sorted(map(str, opened(self.watched / "index").ids()))
        result = operation(index)
        return repr(result), before, sorted(map(str, opened(self.watched / "index").ids()))

    def prepared(self, name: str) -> FunnelIndex:
        index = self.begin()
        if name == "refresh":
            opened(self.watched / "index").delete("d9")
        return index

    def with_code(
        self,
        name: str,
        operation: Callable[[FunnelIndex], object],
        code: int,
        kinds: int,
        lasts: int,
        expected: object,
        states: tuple[object, ...],
    ) -> Iterator[str]:
        index = self.prepared(name)
        self.calls.arm(kinds, 1 << 30, code, 0)
        operation(index)
        count = (1 << 30) - self.calls.remaining()
        self.calls.disarm()
        for at in sorted({round(number * (count - 1) / max(1, self.most - 1)) for number in range(self.most)}):
            if count:
                index = self.prepared(name)
                label = f"{name}, {errno.errorcode[code]} {'from' if lasts else 'at'} call {at} of {count}"
                yield from self.one(index, label, operation, (code, kinds, at, lasts), expected, states)

    def one(
        self,
        index: FunnelIndex,
        label: str,
        operation: Callable[[FunnelIndex], object],
        failure: tuple[int, int, int, int],
        expected: object,
        states: tuple[object, ...],
    ) -> Iterator[str]:
        code, kinds, at, lasts = failure
        said: BaseException | None = None
        self.calls.arm(kinds, at, code, lasts)
        try:
            result = operation(index)
        except BaseException as error:
            said = error
        self.failed += bool(self.calls.disarm())
        if said is None:
            if repr(result) != expected:
                yield f"{label}: gave {repr(result)[:300]}, expected {str(expected)[:300]}"
        else:
            text = str(said)
            reason = any(part in text for part in (os.strerror(code), *REASONS))
            kind = isinstance(said, FunnelError | OSError) and not isinstance(said, DamagedIndexError | NotAnIndexError)
            reason = reason or "and a moment later it was sound" in text  # what SQLite itself calls CORRUPT
            if not kind or not reason or "\n" in text or "damaged" in text:
                yield f"{label}: {type(said).__name__}: {text[:400]}"
        del said
        try:
            again = opened(self.watched / "index")
            if sorted(map(str, again.ids())) not in states:
                yield f"{label}: then there are {len(again)} rows"
            found(again)
            found(index)
            index.refresh()
            if sorted(map(str, index.ids())) not in states:
                yield f"{label}: then the handle has {len(index)} rows"
            checked(self.watched / "index")
            index.delete("d11")
            if len(opened(self.watched / "index")) != len(index):
                yield f"{label}: then another handle sees other rows"
        except BaseException as error:
            yield f"{label}: afterwards {type(error).__name__}: {str(error)[:400]}"


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "builtin type", DeprecationWarning)
    trials = Trials(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    wrong = 0
    for line in trials.run(sys.argv[4:]):
        wrong += 1
        print(line, flush=True)
    gc.collect()
    print(f"{trials.failed} calls failed, {wrong} wrong", flush=True)
