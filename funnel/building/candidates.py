"""Which coarse index is built: every candidate is made over a sample of the rows, and timed at equal recall."""

from __future__ import annotations

import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from funnel.building.segment import write_prefixes
from funnel.engine.cascade import Cascade, Float32, Int64, Space
from funnel.engine.coarse import build_coarse
from funnel.engine.generation import make_cascade, rerank_widths
from funnel.engine.rerank import scored
from funnel.errors import InputError
from funnel.plan import Plan
from funnel.planning.run import TIE_TOLERANCE, without_own
from funnel.progress import Progress
from funnel.storage.layout import VECTORS
from funnel.storage.settings import Candidate
from indexes import CoarseIndexError, FamilyChoice, VectorStore, choose, exact_search, graphs, release_freed
from indexes.selection import FLAT_ROWS

__all__ = ["choose_coarse", "fitting"]

# Rows of the sample: long runs of rows, which lie in cluster order, so that they are as near to each other as in the
# whole, and a prefix has as many to tell apart. In 8 runs of 1,280 of 100,000 x 1,536 a graph over 128 dims came out as
# quick as over 256, which takes half of its time over all rows.
ROWS, RUNS = 16_384, 2
BYTES = 268_435_456  # that a graph over the sample may hold: of 4,096 dims there are 8,096 rows in it
QUERIES = 256  # rows of the sample, their own place left out of what they find
K, RECALL = 10, 0.95
EFFORTS_ABOVE = (1.0, 1.3, 1.7)  # times the least that reaches the recall, with ever shorter shortlists
PASSES = 7
NEARLY = 1.1  # times the quickest: the smallest of those is built
WORTH_SAYING = 1.2  # times as fast, of whole rows that there was no room for
# Times the narrowest width whose shortlists hold the neighbours: what suits a graph most often, and what is tried.
WIDER, WIDEST = 2, 3
MEGABYTE = 1_000_000


def fitting(
    n: int, ladder: tuple[int, ...], base: int, memory_mb: float | None, device: torch.device, whole: bool
) -> list[FamilyChoice]:
    """What fits the memory, the likeliest to be quick first.

    base: the narrowest width that is considered, and the one for families other than graphs with codes in their links.
    whole: whether rows of full width may be indexed where the ladder goes on below it. Raises InputError where nothing
    fits.
    """
    widths = [width for width in ladder[:-1] if base <= width <= WIDEST * base]
    widths.sort(key=lambda width: (width > WIDER * base, -width if width <= WIDER * base else width))
    widths = [*ladder[-1:], *widths] if whole or base == ladder[-1] else widths
    memory = None if memory_mb is None else max(0, int(memory_mb * MEGABYTE) - _norms(n, ladder, base))
    try:
        return choose(n, base, memory, ladder[-1], widths if device.type == "cpu" else (), device)
    except CoarseIndexError as error:
        raise InputError(f"memory_mb={memory_mb:g} is too little for {n:,} rows: {error}") from error


def choose_coarse(
    store: VectorStore,
    space: Space,
    ladder: tuple[int, ...],
    base: int,
    memory_mb: float | None,
    whole: bool,
    seed: int,
    progress: bool,
) -> tuple[FamilyChoice, list[Candidate]]:
    """The quickest of those that fit, or the smallest of those nearly as quick; and what was measured of all.

    base, whole: as in `fitting`.
    A line on stderr says what whole rows would gain where there is no room for them. Where none reaches the recall,
    where a GPU searches, and where a flat scan is quick, the first that fits is taken. Raises InputError.
    """
    choices = fitting(store.n, ladder, base, memory_mb, store.device, whole)
    if store.n <= FLAT_ROWS or store.device.type != "cpu":
        return choices[0], []
    beyond = graphs(store.n, ladder[-1:]) if whole and choices[0].dim < store.dim else []
    with tempfile.TemporaryDirectory(dir=store.path.parent) as folder:
        times = _timed([*choices, *beyond], _sample(store, Path(folder)), space, ladder, seed, progress)
    release_freed()
    quickest = min(times[: len(choices)])
    nearly = [choice for choice, us in zip(choices, times, strict=False) if us <= NEARLY * quickest]
    chosen = choices[0] if np.isinf(quickest) else min(nearly, key=lambda choice: choice.estimated_bytes)
    gain = times[choices.index(chosen)] / times[-1] if beyond and np.isfinite(quickest) else 0.0
    if progress and gain > WORTH_SAYING:
        held = beyond[0].estimated_bytes
        needed = -(-(held + _norms(store.n, ladder, base)) // MEGABYTE)
        said = f"over whole rows it would be {gain:.1f} times as fast, and hold {held / MEGABYTE:,.0f} MB"
        Progress.write(f"coarse: {chosen.name} over {chosen.dim} dims; {said}: memory_mb={needed}", file=sys.stderr)
    measured = zip([*choices, *beyond], times, strict=True)
    return chosen, [
        Candidate(choice.name, choice.dim, choice.estimated_bytes, round(us, 2) if np.isfinite(us) else None)
        for choice, us in measured
    ]


def _norms(n: int, ladder: tuple[int, ...], base: int) -> int:
    """Bytes at most of the norms of prefixes that stages read, which are held too: see `rerank_widths`."""
    return 4 * n * max(base < ladder[-1], sum(width > base for width in ladder[:-1]))


def _timed(
    choices: Sequence[FamilyChoice],
    sample: VectorStore,
    space: Space,
    ladder: tuple[int, ...],
    seed: int,
    progress: bool,
) -> list[float]:
    """Microseconds a query in batch of each, over the sample; infinite where it does not reach the recall."""
    adapted = write_prefixes(sample, space, ladder, False)
    own = np.arange(0, sample.n, max(1, sample.n // QUERIES))
    queries = np.concatenate([rows for _, rows in sample.chunks(sample.n)])[own]
    truth = without_own(*exact_search(sample, queries, K + 1), own, K)[0]
    plans: list[tuple[int, Cascade, Plan]] = []
    for number, choice in enumerate(Progress(choices, desc="time candidates", unit="indexes", disable=not progress)):
        # Cells are as many as suit the rows that there are: 0 leaves it to the index.
        settings = {name: 0 if name == "nlist" else value for name, value in choice.settings.items()}
        source = adapted if choice.dim < sample.dim else sample
        coarse = build_coarse(source, sample.dim, choice.dim, choice.name, settings, seed, False)
        widths = rerank_widths(ladder, choice.name, choice.dim)
        cascade = make_cascade(coarse, sample, sample.path.parent, ladder, widths, space, release=False)
        plans += [(number, cascade, plan) for plan in _plans(cascade, queries, own, truth)]
    times = [np.inf] * len(choices)
    for (number, _, _), seconds in zip(plans, _in_turns(plans, queries), strict=True):
        times[number] = min(times[number], seconds / len(queries) * 1e6)
    return times


def _sample(store: VectorStore, folder: Path) -> VectorStore:
    """Runs of rows, spread over the whole matrix."""
    size = min(store.n, ROWS, BYTES // (8 * store.dim + 384)) // RUNS
    starts = np.linspace(0, store.n - size, RUNS).astype(np.int64).tolist()
    with VectorStore.create(folder / VECTORS, size * RUNS, store.dim, store.dtype.name) as writer:
        for number, start in enumerate(starts):
            done = number * size
            for first, rows in store.chunks(size, start, start + size):
                writer.write(np.arange(done + first - start, done + first - start + len(rows)), rows)
    return VectorStore.open(folder / VECTORS)


def _plans(cascade: Cascade, queries: Float32, own: Int64, truth: Float32) -> list[Plan]:
    """Plans that reach the recall: of the least effort, and of greater ones whose shortlists may be shorter."""
    efforts, found = cascade.coarse.efforts(), dict[int, npt.NDArray[np.float64]]()

    def held(at: int) -> npt.NDArray[np.float64]:
        """The share of the true neighbours in the first rows of the shortlist, by its length less one."""
        if at not in found:
            size = cascade.coarse.largest_shortlist(efforts[at])
            rows = cascade.shortlist(queries, size, efforts[at])
            hits = scored(cascade.store, queries, rows, cascade.store.dim) >= truth[:, -1:] - TIE_TOLERANCE
            hits[rows == own[:, None]] = False
            found[at] = hits.cumsum(axis=1).clip(max=truth.shape[1]).mean(axis=0) / truth.shape[1]
        return found[at]

    least = bisect_left(range(len(efforts)), RECALL, key=lambda at: float(held(at)[-1]))
    plans = []
    for times in EFFORTS_ABOVE if least < len(efforts) else ():
        at = min(bisect_left(efforts, times * efforts[least]), len(efforts) - 1)
        enough = np.flatnonzero(held(at) >= RECALL)
        if len(enough):
            # A query's own row is found too: of shortlists that are longer than what is asked for, one place is its.
            plans.append(Plan(efforts[at], max(truth.shape[1], int(enough[0]) + 1)))
    return list(dict.fromkeys(plans))


def _in_turns(plans: Sequence[tuple[int, Cascade, Plan]], queries: Float32) -> list[float]:
    """Seconds of each plan for all queries, the least of several passes over all plans: other work only adds."""
    seconds = np.empty((PASSES, len(plans)))
    for one in seconds:
        for at, (_, cascade, plan) in enumerate(plans):
            started = time.perf_counter()
            cascade.run(queries, plan, K)
            one[at] = time.perf_counter() - started
    return [float(each) for each in seconds.min(axis=0)]
