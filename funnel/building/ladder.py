"""Which widths to use: the coarse prefix, and the rerank widths above it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from funnel.building.segment import unit_prefixes
from funnel.progress import Progress
from funnel.widths import checked_widths
from indexes import RunningTop, VectorStore

Float32: TypeAlias = npt.NDArray[np.float32]

__all__ = ["NARROWEST", "checked_ladder", "choose_ladder", "steps_above"]

CANDIDATES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
NARROWEST = CANDIDATES[0]
PROBES = 256  # held-out rows that widths are judged on: the standard error at .98 is .003
PROBED_ROWS = 200_000  # rows they are judged against
RUNS = 64  # in which those are read
CELLS_AT_A_TIME = 6_291_456  # as read from disk: 25 MB as float32
DEPTH, SHORTLIST = 10, 50
# A prefix is wide enough when a shortlist of 50 holds this share of the true top 10: then recall .99 is within
# reach of a few hundred candidates, and a narrower graph loses more recall than its cheaper hops win.
ENOUGH = 0.98


def steps_above(width: int, dim: int) -> tuple[int, ...]:
    """The ladder from the coarse width: half-octave steps, each a multiple of 8, then the full width."""
    ladder, step = [width], 0
    while True:
        step += 1
        following = int(width * 2 ** (step // 2) * (1.5 if step % 2 else 1)) // 8 * 8
        if following >= dim * 3 / 4:
            break
        if following > ladder[-1]:
            ladder.append(following)
    return (*ladder, dim) if width < dim else (dim,)


def checked_ladder(dims: Sequence[int], dim: int) -> tuple[int, ...]:
    """The user's widths, rising, with the full width at the end.

    Raises InputError unless they are whole numbers from 1 to d that rise.
    """
    ladder = checked_widths(dims, dim)
    return ladder if ladder[-1] == dim else (*ladder, dim)


def choose_ladder(store: VectorStore, seed: int, progress: bool = False) -> tuple[int, ...]:
    """The narrowest coarse width whose shortlist holds enough of the true neighbours, and the steps above it."""
    widths = [width for width in CANDIDATES if width < store.dim]
    ranges = _probed_ranges(store)
    total = sum(stop - start for start, stop in ranges)
    depth = min(DEPTH, total - 1)
    if depth < 1 or not widths:
        return (store.dim,)
    probes = np.sort(np.random.default_rng(seed).choice(total, min(PROBES, total), replace=False))
    queries = np.concatenate([rows[_inside(probes, first, len(rows))] for first, rows in _read(store, ranges)])
    truth = RunningTop(queries, depth + 1)
    found = {width: RunningTop(unit_prefixes(queries, width), SHORTLIST + 1) for width in widths}
    with Progress(total=total, desc="compare widths", unit="rows", unit_scale=True, disable=not progress) as bar:
        for first, rows in _read(store, ranges):
            truth.update(rows, first)
            for width, top in found.items():
                top.update(unit_prefixes(rows, width), first)
            bar.update(len(rows))
    enough = (width for width in widths if _held(truth.rows, found[width].rows, probes, depth) >= ENOUGH)
    return steps_above(next(enough, store.dim), store.dim)


def _probed_ranges(store: VectorStore) -> list[tuple[int, int]]:
    """Runs of rows spread over the whole matrix, which is in cluster order."""
    share = min(1.0, PROBED_ROWS / store.n)
    run = -(-store.n // RUNS)
    starts = range(0, store.n, run)
    return [(start, start + max(1, round(min(run, store.n - start) * share))) for start in starts]


def _read(store: VectorStore, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, Float32]]:
    """Batches of the rows in the ranges, numbered from 0 as if they lay together."""
    size, done = max(1, CELLS_AT_A_TIME // store.dim), 0
    for start, stop in ranges:
        for _, rows in store.chunks(size, start, stop):
            yield done, rows
            done += len(rows)


def _inside(numbers: npt.NDArray[np.int64], first: int, count: int) -> npt.NDArray[np.int64]:
    """Which of the rising numbers lie in [first, first + count), counted from first."""
    begin, end = np.searchsorted(numbers, (first, first + count))
    return numbers[begin:end] - first


def _held(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64], own: npt.NDArray[np.int64], depth: int) -> float:
    """The mean share of the true neighbours, the query's own row left out, that the shortlists hold."""
    shares = []
    for true, short, mine in zip(truth, found, own, strict=True):
        wanted = [row for row in true if row != mine][:depth]
        shares.append(np.isin(wanted, short).mean())
    return float(np.mean(shares))
