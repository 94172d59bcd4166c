"""Corpora and an encoder whose results can be worked out by hand."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel import FunnelIndex, Plan
from funnel.planning.bounds import fixed_sequence
from funnel.storage import IndexFolder

__all__ = [
    "DIM",
    "ROWS",
    "brute_force",
    "documents",
    "flip_byte",
    "funnel_plan",
    "hashed_words",
    "recall",
    "segment_file",
]

ROWS, DIM = 3_000, 64
SUBJECTS = ("file", "socket", "matrix", "thread", "parser", "clock", "queue", "cursor", "colour", "password")
VERBS = ("opens", "closes", "sorts", "merges", "reads", "prints", "copies", "locks", "hashes", "counts")


def hashed_words(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """A bag of words: every word is a fixed random direction, [n, 64]."""
    return np.stack([sum((_word(word) for word in text.lower().split()), _word("")) for text in texts])


def _word(word: str) -> npt.NDArray[np.float32]:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIM).astype(np.float32)


def documents(count: int) -> list[dict[str, Any]]:
    """Documents with texts of their own, and metadata."""
    return [
        {
            "_id": f"d{number}",
            "title": f"{SUBJECTS[number % 10]} {number}",
            "text": f"it {VERBS[number // 10 % 10]} the {SUBJECTS[number % 10]} of part {number}",
            "year": 1900 + number,
        }
        for number in range(count)
    ]


def brute_force(
    rows: npt.NDArray[Any], queries: npt.NDArray[Any], k: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Positions and cosines of the k nearest rows, by numpy in float64 on the vectors as the user gave them."""
    x, q = rows.astype(np.float64), queries.astype(np.float64)
    cosines = (q / np.linalg.norm(q, axis=1, keepdims=True)) @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return best, np.take_along_axis(cosines, best, axis=1)


def funnel_plan(index: FunnelIndex, recall: float = 0.9, k: int = 10) -> Plan:
    """The last plan that certifies the recall: over few rows the planner may prefer flat search, on some machines."""
    assert index.searcher.calibration is not None
    frontier = index.searcher.calibration.frontier(k)
    assert frontier is not None
    passed = fixed_sequence((frontier.recalls(i) for i in range(len(frontier.plans))), recall, 0.05)
    assert passed, f"no plan certifies recall {recall}"
    return frontier.plans[passed - 1]


def segment_file(folder: Path, name: str) -> Path:
    """Where a file of the first live segment lies, its documents.sqlite and columns.sqlite too."""
    manifest = IndexFolder(folder).manifest()
    named = {"segments": manifest.segments[0].id, **manifest.segments[0].beside}
    paths = {path: at for kind, one in named.items() for path, at in manifest.paths(kind, one).items()}
    return folder / paths.get(name, f"segments/{named['segments']}/{name}")


def flip_byte(path: Path, offset: int = -1) -> None:
    """Change one byte of a file; the last one by default."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """The share of the true rows [n, k] that were found [n, k]."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))
