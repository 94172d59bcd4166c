"""One trial: a forked child runs an operation and is stopped, another looks at what is left."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from benchmarks.crash.operations import Content, Operation, grow, vectors
from benchmarks.crash.points import Deed, Points, limit_file_size
from funnel import FLAT, FunnelIndex, Hits
from funnel.errors import DamagedIndexError, FunnelError, NoSpaceError, NotAnIndexError
from funnel.storage import check

__all__ = ["Stop", "Trial", "measure", "prepare", "run_trial"]

LONGEST = 900.0  # seconds after which a trial is given up, and counted as broken: a busy machine stops some for minutes
SAME = 0.999  # cosine of a stored row to the one given: float16 moves it by up to 2e-4


@dataclass(frozen=True)
class Stop:
    """How a trial is stopped: at a file operation, after some seconds, or by files that may not grow."""

    deed: Deed
    at: int | None = None
    seconds: float | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Trial:
    """What came of one: fault is None where all is as it should be. stopped: whether the stop took place."""

    operation: str
    stop: Stop
    acknowledged: int
    stopped: bool
    error: str
    fault: str | None


def in_child(deed: Callable[[Callable[[object], None]], None], seconds: float | None = None) -> tuple[list[Any], bool]:
    """Run `deed` in a forked child; gives what it sent, and whether it was killed. seconds: when to kill it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _be_child(deed, writing)
    os.close(writing)
    data, end = b"", time.monotonic() + (LONGEST if seconds is None else seconds)
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
        chunk = os.read(reading, 65_536) if ready else b""
        if not chunk:
            break
        data += chunk
    if not ready:
        os.kill(child, signal.SIGKILL)
        while chunk := os.read(reading, 65_536):
            data += chunk
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return [json.loads(line) for line in data.splitlines()], os.WIFSIGNALED(status)


def _be_child(deed: Callable[[Callable[[object], None]], None], writing: int) -> None:
    tqdm.set_lock(RLock())  # the parent's may have been held when it forked: its bar has a thread of its own
    quiet = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # faiss and torch write there when a file cannot be written
        os.dup2(quiet, stream)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            deed(lambda said: _send(writing, said))
    except BaseException:
        _send(writing, {"failed": traceback.format_exc()[-600:]})
    os._exit(0)


def _send(writing: int, said: object) -> None:
    os.write(writing, json.dumps(said).encode() + b"\n")


def prepare(start: Callable[[Path], None], folder: Path) -> None:
    """Make the index that operations begin with. Raises RuntimeError where that fails."""
    said, killed = in_child(lambda _send: start(folder))
    if said or killed:
        raise RuntimeError(f"{folder.name} could not be made: {said}")


def measure(operation: Operation, start: Path, scratch: Path) -> tuple[int, float, int]:
    """The file operations of an operation, its seconds, and the bytes of the largest file it leaves."""
    folder = _fresh(start, scratch)

    def deed(send: Callable[[object], None]) -> None:
        points, began = Points(folder), time.monotonic()
        operation.run(folder, lambda: None)
        largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        send([points.count, time.monotonic() - began, largest])

    said, _ = in_child(deed)
    if len(said) != 1 or not isinstance(said[0], list):
        raise RuntimeError(f"{operation.name} fails unstopped: {said}")
    count, seconds, largest = said[0]
    return count, seconds, largest


def run_trial(operation: Operation, start: Path, scratch: Path, stop: Stop, write: bool) -> Trial:
    """Run the operation on a copy, stop it, and look. write: have the next writer do something as well."""
    folder = _fresh(start, scratch)

    def deed(send: Callable[[object], None]) -> None:
        if stop.file_bytes is not None:
            limit_file_size(stop.file_bytes)
        else:
            Points(folder, stop.at, stop.deed)
        try:
            operation.run(folder, lambda: send("done"))
        except BaseException as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            known = isinstance(error, (FunnelError, OSError)) or "CoarseIndexError" in kinds
            send({"error": type(error).__name__, "known": known, "text": str(error)[:300]})

    said, killed = in_child(deed, stop.seconds)
    acknowledged = said.count("done")
    raised = next((one for one in said if isinstance(one, dict)), None)
    error = "" if raised is None else str(raised.get("error", "failed"))
    fault = None
    if raised is not None and not raised.get("known"):
        fault = f"an error of no documented type: {raised}"
    elif stop.deed == "ENOSPC" and raised is not None and not _says_full(raised):
        fault = f"a full disk is called {raised}"
    fault = fault or _look(operation, folder, acknowledged, write)
    return Trial(operation.name, stop, acknowledged, killed or raised is not None, error, fault)


def _says_full(raised: dict[str, Any]) -> bool:
    """NoSpaceError; or, after CURRENT was replaced, the word that this generation is live and not confirmed."""
    return raised["error"] == NoSpaceError.__name__ or "is complete and live" in raised["text"]


def _look(operation: Operation, folder: Path, acknowledged: int, write: bool) -> str | None:
    """What is wrong with the index that is left, if anything."""
    allowed = operation.contents[acknowledged : acknowledged + 2]

    def deed(send: Callable[[object], None]) -> None:
        send({"fault": _fault(folder, allowed, write)})

    said, killed = in_child(deed)
    if killed or not said:
        return "the process that opened the index was killed, or took too long"
    found = said[-1]
    return str(found["failed"]) if "failed" in found else found["fault"]


def _fault(folder: Path, allowed: tuple[Content, ...], write: bool) -> str | None:
    content: Content = None
    if _holds_index(folder):
        report = check(folder)
        if not report.ok:
            return f"check: {[line for line in report.lines if line.status == 'damaged']}"
        found = _content(FunnelIndex.open(folder))
        if found not in allowed:
            return _difference(found, allowed)
        content = found
    elif None not in allowed:
        return "no index is left"
    if not write:
        return None
    after = grow(folder, content)
    if _content(FunnelIndex.open(folder)) != after:
        return "the next write is not what is there"
    # The writer had the generation before open until it moved on, so that its manifest goes with the next write.
    odd = [line for line in check(folder).lines if line.status != "ok" and not line.detail.startswith("of generation")]
    return f"after the next write: {odd}" if odd else None


def _holds_index(folder: Path) -> bool:
    """Whether an index is there; a first build that was killed before its end left none, and that is said."""
    try:
        FunnelIndex.open(folder)
    except NotAnIndexError:
        return False
    except DamagedIndexError as error:
        if "a first build was stopped" in str(error):
            return False
        raise
    return True


def _content(index: FunnelIndex) -> dict[str, int]:
    """What the index holds: every id that is listed, in the version found by searching for it."""
    content: dict[str, int] = {}
    names = [str(one) for one in index.ids()]
    if len(set(names)) != len(names):
        return {"an id stands twice": -1}
    for version in (0, 1):
        wanted = [name for name in names if name not in content]
        asked = vectors(dict.fromkeys(wanted, version)) if wanted else np.empty((0, index.dim), np.float32)
        answers = cast("list[Hits]", index.search(asked, 1, plan=FLAT))
        for name, hits in zip(wanted, answers, strict=True):
            hit = hits[0]
            if hit.id == name and hit.score > SAME and hit.text == f"{name} in version {version}":
                content[name] = version
    return content | {name: -1 for name in names if name not in content}


def _difference(found: dict[str, int], allowed: tuple[Content, ...]) -> str:
    said = []
    for content in allowed:
        lost = sorted((content or {}).items() - found.items())
        more = sorted(found.items() - (content or {}).items())
        said.append(f"lost {lost[:5]} ({len(lost)}), never given {more[:5]} ({len(more)})")
    return "; or ".join(said)


def _fresh(start: Path, scratch: Path) -> Path:
    folder = scratch / "index"
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    if start.exists():
        shutil.copytree(start, folder)
    return folder
