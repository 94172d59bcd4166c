"""Ways to search, swept, and timed in turns: what takes the least at a recall is read off without interpolation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from indexes import RunningTop

__all__ = [
    "BATCH",
    "CLOCKS",
    "LEVELS",
    "PASSES",
    "Truth",
    "Way",
    "cheapest",
    "finalists",
    "measure",
    "time_in_turns",
    "timed_batch",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

LEVELS = (0.95, 0.98, 0.99)
CLOCKS = ("batch_us", "single_us")
BATCH, SINGLE, SCREENED_SINGLE = 256, 200, 40  # queries in a call; queries that are timed one by one
PASSES = 5
KEPT = 3  # that took the least when they were swept are timed in turns, of each kind, recall and clock
ROWS_AT_A_TIME = 16_384
TIE = 1e-6  # a row whose score is this close to the k-th counts, as everywhere in the project


class Truth:
    """Exact search over rows as given. For recall that counts ties."""

    def __init__(self, rows: npt.NDArray[Any], asked: Float32, k: int) -> None:
        self.k, self.n = k, len(rows)
        top = RunningTop(asked, min(2 * k + 10, self.n))
        for start in range(0, self.n, ROWS_AT_A_TIME):
            part = np.ascontiguousarray(rows[start : start + ROWS_AT_A_TIME], dtype=np.float32)
            top.update(part / np.linalg.norm(part, axis=1, keepdims=True), start)
        good = top.scores >= top.scores[:, k - 1 : k] - TIE
        self._good = self._numbered(top.rows)[good]

    def _numbered(self, rows: npt.NDArray[np.integer[Any]]) -> Int64:
        """Pairs of query and row as one number each; -1 where there is no row."""
        numbers: Int64 = np.where(rows < 0, -1, rows.astype(np.int64) + np.arange(len(rows))[:, None] * self.n)
        return numbers

    def recall(self, found: npt.NDArray[np.integer[Any]]) -> float:
        """Mean recall@k of rows [queries, k]."""
        return float(np.isin(self._numbered(found), self._good).sum()) / (len(found) * self.k)


@dataclass(eq=False)
class Way:
    """One way to search, and what was measured of it.

    kind: what it is compared as. label: its settings. search: from queries float32 [n, d] to rows [n, k]. about: what
    is known of it besides, for the record. batch_us, single_us: microseconds a query, of every pass.
    """

    kind: str
    label: str
    search: Callable[[Float32], npt.NDArray[np.integer[Any]]]
    held_mb: float
    about: dict[str, Any] = field(default_factory=dict)
    recall: float = 0.0
    batch_us: list[float] = field(default_factory=list)
    single_us: list[float] = field(default_factory=list)

    def us(self, clock: str) -> float:
        """The median of the passes."""
        return float(np.median(getattr(self, clock)))

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        times = {clock: self.us(clock) for clock in CLOCKS} | {"passes": len(self.batch_us)}
        return (
            {"kind": self.kind, "plan": self.label, "recall": self.recall, "held_mb": self.held_mb} | times | self.about
        )


def measure(way: Way, asked: Float32, truth: Truth) -> Way:
    """Recall, and one pass of each clock."""
    way.search(asked[:BATCH])
    found: list[npt.NDArray[np.integer[Any]]] = []
    way.batch_us = [timed_batch(way, asked, found)]
    way.recall = truth.recall(np.concatenate(found))
    way.single_us = [_single_us(way, asked, SCREENED_SINGLE)]
    return way


def finalists(ways: Iterable[Way], levels: Sequence[float] = LEVELS) -> list[Way]:
    """Those that took the least, of each kind that reach each recall, by each clock."""
    ways = list(ways)
    chosen: dict[int, Way] = {}
    for kind in dict.fromkeys(way.kind for way in ways):
        for level in levels:
            reaching = [way for way in ways if way.kind == kind and way.recall >= level]
            for clock in CLOCKS:
                for way in sorted(reaching, key=lambda one: one.us(clock))[:KEPT]:
                    chosen[id(way)] = way
    return [way for way in ways if id(way) in chosen]


def time_in_turns(ways: Sequence[Way], asked: Float32, passes: int = PASSES) -> None:
    """Every way once, then every way again: a machine that slows down slows all of them."""
    for way in ways:
        way.batch_us, way.single_us = [], []
    for number in tqdm(range(passes), desc=f"{len(ways)} plans in turns", unit="pass"):
        for way in ways if number % 2 == 0 else ways[::-1]:
            way.search(asked[:BATCH])  # what the way before left in the caches is not its own
            way.batch_us.append(timed_batch(way, asked))
            way.single_us.append(_single_us(way, asked, SINGLE))


def cheapest(ways: Iterable[Way], level: float, clock: str) -> Way | None:
    """Of those that reach a recall the one that takes the least."""
    return min((way for way in ways if way.recall >= level), key=lambda way: way.us(clock), default=None)


def timed_batch(way: Way, asked: Float32, found: list[npt.NDArray[np.integer[Any]]] | None = None) -> float:
    """Microseconds a query, in batches; found: takes what each of these gave."""
    started = time.perf_counter()
    for start in range(0, len(asked), BATCH):
        rows = way.search(asked[start : start + BATCH])
        if found is not None:
            found.append(rows)
    return (time.perf_counter() - started) / len(asked) * 1e6


def _single_us(way: Way, asked: Float32, count: int) -> float:
    times = []
    for number in range(min(count, len(asked))):
        started = time.perf_counter()
        way.search(asked[number : number + 1])
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e6
