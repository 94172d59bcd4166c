"""How long steps take, for planning, and whole calls, for promises: the 95th percentile over short windows."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.engine.rerank import reranked
from funnel.plan import Plan
from funnel.planning.costs import BATCH_SIZES, Costs, Held, rising
from funnel.progress import Progress
from indexes.system import processor, usable_cores

__all__ = [
    "CALLERS",
    "FEWEST_TIMINGS",
    "MOST_TIMINGS",
    "PERCENTILE",
    "fingerprint",
    "held_ms",
    "measure_costs",
    "median_ms",
    "timed_efforts",
    "times_ms",
    "window_p95s",
]

# A latency is promised to so many threads that call at once: a single one is faster nearly always.
CALLERS = 2
PERCENTILE = 95.0
# The next window's percentile is above the largest of 19 with a probability of at most 1/20, whatever the times are
# distributed like, so long as windows are exchangeable.
WINDOWS = 19
# Six seconds a plan. At .15 s one stall of the machine was 5 % of a window's calls of 6 ms, and 20 ms were refused.
# Percentiles of whole seconds vary less than these.
WINDOW_SECONDS = 0.3
MOST_SECONDS = 20.0  # of calls so slow that a window holds one, fewer windows are measured
FEWEST_WINDOWS = 3
# After three it is looked at whether more are needed. One above what is allowed decides against a plan, as would the
# largest of 19. For it decide three where their largest, times 20 / (3 + 1), is allowed: with a Pareto tail of exponent
# 1, which has no mean, the next is above that as often as above the largest of 19.
CAUTION = (WINDOWS + 1) / (FEWEST_WINDOWS + 1)


def held_ms(call: Callable[[int], object], allowed: float | None = None) -> Held:
    """The 95th percentile of call(0), call(1), … that is kept in 19 windows of 20, by two callers at once.

    call must be safe to be made by several threads at once. allowed: milliseconds; measuring ends as soon as it is
    known whether so many can be promised. None: all 19 windows.
    """
    found = window_p95s(call, WINDOWS if allowed is None else FEWEST_WINDOWS)
    if allowed is None or not max(found) <= allowed < CAUTION * max(found):
        return Held(max(found), (1.0 if allowed is None else CAUTION) * max(found), len(found))
    found += window_p95s(call, WINDOWS - len(found))
    return Held(max(found), max(found), len(found))


def window_p95s(
    call: Callable[[int], object],
    windows: int,
    seconds: float | None = None,
    callers: int = CALLERS,
    most_seconds: float | None = None,
) -> list[float]:
    """The 95th percentile of the calls that began in each of some windows, one after the other: milliseconds.

    callers: threads that call in a closed loop, at once. A call belongs to the window in which it began, so that one
    may end after it; a window in which none began is left out. Windows are longer where a single call takes longer, and
    fewer where so many would take more than MOST_SECONDS.
    """
    call(0)
    begun = time.perf_counter()
    call(1)
    length = max(WINDOW_SECONDS if seconds is None else seconds, time.perf_counter() - begun)
    most = MOST_SECONDS if most_seconds is None else most_seconds
    windows = max(min(windows, FEWEST_WINDOWS), int(min(windows, most / (length * callers))))
    together = threading.Barrier(callers)

    def caller(turn: int) -> list[tuple[int, float]]:
        try:
            call(turn)  # a thread's first call makes its buffers
        finally:
            together.wait()
        times: list[tuple[int, float]] = []
        first = start = time.perf_counter()
        while start < first + windows * length:
            turn += callers
            call(turn)
            now = time.perf_counter()
            times.append((min(int((start - first) / length), windows - 1), (now - start) * 1e3))
            start = now
        return times

    with ThreadPoolExecutor(callers) as pool:
        calls = [each for times in pool.map(caller, range(callers)) for each in times]
    return [
        float(np.percentile(took, PERCENTILE))
        for i in range(windows)
        if (took := [ms for window, ms in calls if window == i])
    ]


USUAL = 16  # the shortlist of the whole call that is timed for what a call takes besides its stages


RERANK_SIZES = (16, 64, 256, 1024)  # candidates at which a rerank is timed; between them, linear


SECONDS_PER_TIMING = 0.08  # each figure is the median of what fits, and at least of three


FEWEST_TIMINGS, MOST_TIMINGS = 3, 64


# Efforts are timed an octave apart, and lines are laid between them. At 20,000 rows they missed what the others take
# when timed themselves by 1 % (single queries, median) and 8 % at most; a curve of roots and logarithms by 4 and 13.
TIMED_STEP = 2.0


WIDTHS_TIMED = 4  # of the numbers of columns that stages gather, spread evenly; between them, linear


SHORTLISTS_TIMED = 8  # batches whose shortlists are reranked in turn: together they do not fit the cache


def fingerprint(device: torch.device, placement: str = "mapped") -> dict[str, str]:
    """What the costs depend on: processor, cores, threads, device, where the vectors lie, and library versions."""
    try:
        faiss_version = getattr(importlib.import_module("faiss"), "__version__", "none")
    except ImportError:  # a device may be searched without it
        faiss_version = "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "processor": processor(),
        "cores": str(usable_cores()),
        "threads": str(torch.get_num_threads()),
        "device": name if placement in ("mapped", "device") else f"{name}, vectors {placement}",
        "torch": torch.__version__.split("+")[0],
        "faiss": str(faiss_version),
    }


def times_ms(call: Callable[[int], object], seconds: float = SECONDS_PER_TIMING) -> list[float]:
    """Wall milliseconds of call(0), call(1), …: warmed once, then repeated for about `seconds`."""
    call(0)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < FEWEST_TIMINGS or (time.perf_counter() < until and len(times) < MOST_TIMINGS):
        start = time.perf_counter()
        call(len(times) + 1)
        times.append((time.perf_counter() - start) * 1e3)
    return times


def median_ms(call: Callable[[int], object]) -> float:
    """The median of `times_ms`."""
    return float(np.median(times_ms(call)))


def timed_efforts(efforts: Sequence[int]) -> list[int]:
    """The efforts to time: at most about an octave apart, the first and the last among them."""
    timed = [efforts[0]]
    for effort, following in pairwise(efforts):
        if following > timed[-1] * TIMED_STEP and effort > timed[-1]:
            timed.append(effort)
    return timed if timed[-1] == efforts[-1] else [*timed, efforts[-1]]


def measure_costs(
    cascade: Cascade,
    queries: Float32,
    efforts: Sequence[int],
    widths: Sequence[int],
    search: Callable[[Float32, Plan, int], object],
    progress: bool = False,
) -> Costs:
    """Time the coarse search at some efforts, reranks, flat search and a whole call, at every batch size.

    queries: float32 [q, d] unit rows as stored, repeated where a batch needs more. widths: rerank widths.
    search(queries, plan, k): one whole call as the user makes it, on vectors as the user gives them.
    """
    found = cascade.coarse.largest_shortlist(max(efforts))
    longest = next(effort for effort in efforts if cascade.coarse.largest_shortlist(effort) == found)
    sizes = (*tuple(size for size in RERANK_SIZES if size < found), found)
    timed, columns = timed_efforts(efforts), sorted({*widths, *np.diff(sorted(widths)).tolist()})
    gathered = [columns[round(i)] for i in np.linspace(0, len(columns) - 1, min(len(columns), WIDTHS_TIMED))]
    costs = Costs(fingerprint(cascade.store.device, cascade.store.placement), sizes, {}, {}, {}, {})
    usual = next((effort for effort in efforts if cascade.coarse.largest_shortlist(effort) >= USUAL), efforts[-1])
    smallest = Plan(usual, min(USUAL, cascade.coarse.largest_shortlist(usual)))
    k = min(10, smallest.shortlist)
    for batch in Progress(BATCH_SIZES, desc="time the stages", unit="batch size", even=False, disable=not progress):
        batches = _batches(queries, batch)
        times = rising([_coarse_ms(cascade, batches, effort) for effort in timed])
        costs.coarse[batch] = dict(zip(efforts, np.interp(efforts, timed, times).tolist(), strict=True))
        shortlists = [_shortlist(cascade, rows, longest) for rows in batches[:SHORTLISTS_TIMED]]
        costs.rerank[batch] = {}
        if not cascade.alone:
            reranks = [[_rerank_ms(cascade, batches, shortlists, size, width) for size in sizes] for width in gathered]
            costs.rerank[batch] = dict(zip(gathered, rising(rising(reranks), 1).tolist(), strict=True))
        costs.flat[batch] = _calls_ms(batches, lambda rows: cascade.exact(rows, min(10, cascade.store.n)))
        costs.base[batch] = 0.0
        whole = _calls_ms(batches, lambda rows: search(rows, smallest, k))
        costs.base[batch] = max(0.0, whole - costs.predict(smallest, batch, cascade.store.dim))
    return costs


def _batches(queries: Float32, batch: int) -> list[Float32]:
    repeated = np.resize(queries, (max(batch, len(queries)), queries.shape[1]))
    count = min(MOST_TIMINGS, len(repeated) // batch)
    return [np.ascontiguousarray(repeated[i * batch : (i + 1) * batch]) for i in range(count)]


def _calls_ms(batches: list[Float32], call: Callable[[Float32], object]) -> float:
    return median_ms(lambda i: call(batches[i % len(batches)]))


def _shortlist(cascade: Cascade, queries: Float32, effort: int) -> Int64:
    return cascade.shortlist(queries, cascade.coarse.largest_shortlist(effort), effort).clip(min=0)


def _coarse_ms(cascade: Cascade, batches: list[Float32], effort: int) -> float:
    size = cascade.coarse.largest_shortlist(effort)
    return _calls_ms(batches, lambda rows: cascade.shortlist(rows, size, effort))


def _rerank_ms(cascade: Cascade, batches: list[Float32], shortlists: list[Int64], size: int, columns: int) -> float:
    """One stage over real shortlists (neighbours lie together in the matrix, random rows would not)."""
    store, keep = cascade.store, max(1, size // 4)

    def stage(i: int) -> None:
        queries, rows = batches[i % len(batches)], shortlists[i % len(shortlists)][:, :size]  # not those in the cache
        cascade.spread(queries, lambda places: reranked(store, queries[places], rows[places], columns, keep))

    return median_ms(stage)
