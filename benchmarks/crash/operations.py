"""The operations that are stopped, as a table: what each begins with, calls, and holds after each call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from funnel import FunnelIndex

__all__ = ["OPERATIONS", "STARTS", "Content", "Operation", "document", "grow", "vectors"]

DIM, ROWS, QUERIES = 32, 300, 40  # more than 256 rows, below which nothing is calibrated
SUBJECTS = 16
ADDED, CALLS = 5, 3  # documents of a call, and calls of an operation

Content: TypeAlias = "dict[str, int] | None"
"""Document id -> version; None: no index."""
Acknowledge: TypeAlias = Callable[[], None]


@dataclass(frozen=True)
class Operation:
    """One row of the table.

    start: a key of STARTS, the index that it begins with. run: makes the calls and acknowledges each that came back.
    contents: what the index holds before any call, and after each.
    """

    name: str
    start: str
    run: Callable[[Path, Acknowledge], None]
    contents: tuple[Content, ...]


def document(name: str, version: int) -> dict[str, Any]:
    """A document that its id and version determine."""
    return {
        "_id": name,
        "text": f"{name} in version {version}",
        "version": version,
        "vector": vectors({name: version})[0],
    }


def vectors(content: dict[str, int]) -> npt.NDArray[np.float32]:
    """The unit vectors of documents, float32 [n, DIM]: near one of a few subjects, so that a graph has neighbours."""
    centres = np.random.default_rng(0).standard_normal((SUBJECTS, DIM))
    rows = []
    for name, version in content.items():
        number = int(name.removeprefix("d"))
        noise = np.random.default_rng((number, version)).standard_normal(DIM)
        rows.append(centres[number % SUBJECTS] + 0.5 * noise)
    found = np.stack(rows)
    scaled: npt.NDArray[np.float32] = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _numbered(first: int, count: int, version: int = 0) -> dict[str, int]:
    return {f"d{number}": version for number in range(first, first + count)}


def _documents(content: dict[str, int]) -> list[dict[str, Any]]:
    return [document(name, version) for name, version in content.items()]


BUILT = _numbered(0, ROWS)
REBUILT = _numbered(0, ROWS, 1)
GROWN = {**_numbered(20, ROWS - 20), **_numbered(ROWS, 2 * ADDED)}


def _built(path: Path, content: dict[str, int]) -> None:
    asked = vectors(_numbered(5_000, QUERIES))
    FunnelIndex.build(
        _documents(content),
        path,
        queries=asked,
        adaptor="pca",
        dims=[16],
        coarse="hnsw-sq8",
        progress=False,
        overwrite=True,
    )


def _grown(path: Path) -> None:
    _built(path, BUILT)
    index = FunnelIndex.open(path)
    for first in (ROWS, ROWS + ADDED):
        index.add(_documents(_numbered(first, ADDED)))
    index.delete([f"d{number}" for number in range(20)])


STARTS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda _path: None,
    "built": lambda path: _built(path, BUILT),
    "grown": _grown,
}


def grow(path: Path, content: Content, name: str = "d9000") -> dict[str, int]:
    """What the next writer does: one document more, or a build where there is no index; gives what must be there."""
    if content is None:
        _built(path, BUILT)
        return BUILT
    FunnelIndex.open(path).add([document(name, 0)])
    return {**content, name: 0}


def _build(path: Path, acknowledge: Acknowledge) -> None:
    _built(path, BUILT)
    acknowledge()


def _rebuild(path: Path, acknowledge: Acknowledge) -> None:
    _built(path, REBUILT)
    acknowledge()


def _tune(path: Path, acknowledge: Acknowledge) -> None:
    FunnelIndex.open(path).tune(vectors(_numbered(6_000, QUERIES)), progress=False)
    acknowledge()


def _compact(path: Path, acknowledge: Acknowledge) -> None:
    FunnelIndex.open(path).compact(progress=False)
    acknowledge()


def _add(path: Path, acknowledge: Acknowledge) -> None:
    index = FunnelIndex.open(path)
    for call in range(CALLS):
        index.add(_documents(_numbered(1_000 + call * ADDED, ADDED)))
        acknowledge()


def _upsert(path: Path, acknowledge: Acknowledge) -> None:
    index = FunnelIndex.open(path)
    for call in range(CALLS):
        index.upsert(_documents(_upserted(call)))
        acknowledge()


def _upserted(call: int) -> dict[str, int]:
    """Some that are there, in a new version, and some that are not."""
    return {**_numbered(100 + call * ADDED, ADDED, 1), **_numbered(2_000 + call, 1)}


def _delete(path: Path, acknowledge: Acknowledge) -> None:
    index = FunnelIndex.open(path)
    for call in range(CALLS):
        index.delete(_deleted(call))
        acknowledge()


def _deleted(call: int) -> list[str]:
    return [*_numbered(200 + call * ADDED, ADDED), f"d{ROWS + call}"]  # of both segments


def _after(content: dict[str, int], change: Callable[[dict[str, int], int], dict[str, int]]) -> tuple[Content, ...]:
    contents: list[dict[str, int]] = [content]
    for call in range(CALLS):
        contents.append(change(dict(contents[-1]), call))
    return tuple(contents)


OPERATIONS: tuple[Operation, ...] = (
    Operation("build", "nothing", _build, (None, BUILT)),
    Operation("build over an index", "built", _rebuild, (BUILT, REBUILT)),
    Operation("tune", "built", _tune, (BUILT, BUILT)),
    Operation("add", "grown", _add, _after(GROWN, lambda now, call: now | _numbered(1_000 + call * ADDED, ADDED))),
    Operation("upsert", "grown", _upsert, _after(GROWN, lambda now, call: now | _upserted(call))),
    Operation(
        "delete",
        "grown",
        _delete,
        _after(GROWN, lambda now, call: {name: v for name, v in now.items() if name not in _deleted(call)}),
    ),
    Operation("compact", "grown", _compact, (GROWN, GROWN)),
)
