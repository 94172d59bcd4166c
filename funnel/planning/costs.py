"""What each stage costs on this machine, measured at three batch sizes."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64
from funnel.plan import Plan
from funnel.progress import Progress
from indexes.system import processor, usable_cores

__all__ = [
    "BATCH_SIZES",
    "Costs",
    "Prices",
    "batch_class",
    "fingerprint",
    "fit_rising",
    "measure_costs",
    "median_ms",
    "times_ms",
]

BATCH_SIZES = (1, 32, 256)
USUAL = 16  # the shortlist of the whole call that is timed for what a call takes besides its stages
RERANK_SIZES = (16, 64, 256, 1024)  # candidates at which a rerank is timed; between them, linear
SECONDS_PER_TIMING = 0.08  # each figure is the median of what fits, and at least of three
FEWEST_TIMINGS, MOST_TIMINGS = 3, 64
# Efforts are timed an octave apart, and a curve is laid through them. At 200,000 rows it missed what the others take
# when timed themselves by 2 to 4 % (single queries, median) and 9 % (batches of 256) at best; by up to as much again in
# batches while other processes disturbed the timings.
TIMED_STEP = 2.0
WIDTHS_TIMED = 4  # of the numbers of columns that stages gather, spread evenly; the others follow from a curve too
SHORTLISTS_TIMED = 8  # batches whose shortlists are reranked in turn: together they do not fit the cache


def batch_class(n_queries: int) -> int:
    """The batch size that stands for a call of n_queries: the next larger measured one, then powers of two."""
    return next((size for size in BATCH_SIZES if size >= n_queries), 1 << (n_queries - 1).bit_length())


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


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one call, by batch size.

    coarse: batch -> effort -> ms. rerank: batch -> columns gathered -> ms at each of `sizes` candidates; empty where
    the coarse index gives exact scores and nothing is reranked.
    flat: batch -> ms. base: batch -> ms that every call takes besides (checks, adaptor, ids).
    """

    machine: dict[str, str]
    sizes: tuple[int, ...]
    coarse: dict[int, dict[int, float]]
    rerank: dict[int, dict[int, list[float]]]
    flat: dict[int, float]
    base: dict[int, float]

    @property
    def reranked(self) -> bool:
        """Whether plans rerank what the coarse index finds."""
        return any(self.rerank.values())

    def predict(self, plan: Plan, batch: int, dim: int) -> float:
        """Predicted milliseconds of one call of `batch` queries (a batch class) under the plan."""
        return sum(self.stages(plan, batch, dim)) + self._scaled(self.base, batch)

    def stages(self, plan: Plan, batch: int, dim: int) -> list[float]:
        """Predicted milliseconds of each step of a plan."""
        if batch > BATCH_SIZES[-1]:  # above the largest measured one a batch costs in proportion
            return [ms * batch / BATCH_SIZES[-1] for ms in self.stages(plan, BATCH_SIZES[-1], dim)]
        if plan.is_flat:
            return [self.flat[batch]]
        result = [self.coarse[batch][plan.effort]]
        candidates, start = plan.shortlist, 0
        for stage in plan.reranks:
            width, keep = (dim, 0) if stage is None else (stage.width, stage.keep)
            result.append(self._rerank(batch, candidates, width - start))
            candidates, start = keep, width
        return result

    @staticmethod
    def _scaled(table: dict[int, float], batch: int) -> float:
        return table[batch] if batch in table else table[BATCH_SIZES[-1]] * batch / BATCH_SIZES[-1]

    def _rerank(self, batch: int, candidates: int, columns: int) -> float:
        table = self.rerank[batch]
        if not table:
            return 0.0
        widths = sorted(table)
        at_width = [float(np.interp(candidates, self.sizes, table[width])) for width in widths]
        if candidates > self.sizes[-1]:
            at_width = [value * candidates / self.sizes[-1] for value in at_width]
        return float(np.interp(columns, widths, at_width))

    def to_json(self) -> dict[str, Any]:
        """The costs as plain values."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Costs:
        """The costs that `to_json` wrote."""
        return cls(
            machine=dict(value["machine"]),
            sizes=tuple(value["sizes"]),
            coarse={int(b): {int(e): ms for e, ms in t.items()} for b, t in value["coarse"].items()},
            rerank={int(b): {int(w): list(ms) for w, ms in t.items()} for b, t in value["rerank"].items()},
            flat={int(b): ms for b, ms in value["flat"].items()},
            base={int(b): ms for b, ms in value["base"].items()},
        )


class Prices:
    """Predicted milliseconds of one call under a plan, at every measured batch size; each step is worked out once."""

    batches = BATCH_SIZES

    def __init__(self, costs: Costs, dim: int) -> None:
        self._costs, self._dim = costs, dim
        self._reranks: dict[tuple[int, int], tuple[float, ...]] = {}

    def of(self, plan: Plan) -> tuple[float, ...]:
        """As `Costs.predict`, of a plan that is not flat."""
        return self.until(plan, self._dim)

    def until(self, plan: Plan, width: int) -> tuple[float, ...]:
        """Of the coarse search, the stages, and one rerank more, of what they leave, up to this width."""
        total = tuple(self._costs.coarse[batch][plan.effort] + self._costs.base[batch] for batch in self.batches)
        candidates, start = plan.shortlist, 0
        for end, keep in [*((stage.width, stage.keep) for stage in plan.stages), (width, 0)]:
            total = tuple(map(sum, zip(total, self._rerank(candidates, end - start), strict=True)))
            candidates, start = keep, end
        return total

    def _rerank(self, candidates: int, columns: int) -> tuple[float, ...]:
        key = (candidates, columns)
        if key not in self._reranks:
            self._reranks[key] = tuple(self._costs._rerank(batch, candidates, columns) for batch in self.batches)
        return self._reranks[key]


def fit_rising(at: Sequence[float], ms: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """The values at `wanted` of a smooth, rising curve through measured times.

    a + b sqrt(x) + c x + d x log2(x), none of them negative, by least squares of the relative errors. at: above 0.
    """
    x, y = np.asarray(at, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    design = _terms(x) / y[:, None]
    best, error = np.zeros(design.shape[1]), np.inf
    for size in range(1, min(len(x), design.shape[1]) + 1):
        for chosen in combinations(range(design.shape[1]), size):
            weights = np.linalg.lstsq(design[:, chosen], np.ones(len(x)), rcond=None)[0]
            misfit = float(np.square(design[:, chosen] @ weights - 1.0).sum())
            if (weights >= 0).all() and misfit < error:
                best, error = np.zeros(design.shape[1]), misfit
                best[list(chosen)] = weights
    fitted: list[float] = (_terms(np.asarray(wanted, dtype=np.float64)) @ best).tolist()
    return fitted


def _terms(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.stack([np.ones_like(x), np.sqrt(x), x, x * np.log2(x + 1.0)], axis=1)


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

    queries: float32 [q, d] adapted unit rows, repeated where a batch needs more. widths: rerank widths.
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
        costs.coarse[batch] = _curve([_coarse_ms(cascade, batches, effort) for effort in timed], timed, efforts)
        shortlists = [_shortlist(cascade, rows, longest) for rows in batches[:SHORTLISTS_TIMED]]
        reranks = {
            width: [_rerank_ms(cascade, batches, shortlists, size, width) for size in sizes]
            for width in ([] if cascade.alone else gathered)
        }
        costs.rerank[batch] = {} if cascade.alone else _smooth(reranks, sizes, columns)
        costs.flat[batch] = _calls_ms(batches, lambda rows: cascade.flat(rows, min(10, cascade.store.n)))
        costs.base[batch] = 0.0
        whole = _calls_ms(batches, lambda rows: search(rows, smallest, k))
        costs.base[batch] = max(0.0, whole - costs.predict(smallest, batch, cascade.store.dim))
    return costs


def _curve(times: Sequence[float], timed: Sequence[int], efforts: Sequence[int]) -> dict[int, float]:
    """The times of all efforts by those of some; an effort of 0 (flat) is one like the others."""
    return dict(zip(efforts, fit_rising([e + 1 for e in timed], times, [e + 1 for e in efforts]), strict=True))


def _smooth(reranks: dict[int, list[float]], sizes: Sequence[int], columns: Sequence[int]) -> dict[int, list[float]]:
    """The times by columns and sizes, rising smoothly with either."""
    by_size = {width: fit_rising(sizes, times, sizes) for width, times in reranks.items()}
    widths = list(by_size)
    by_width = [fit_rising(widths, [by_size[width][i] for width in widths], columns) for i in range(len(sizes))]
    return {width: [times[i] for times in by_width] for i, width in enumerate(columns)}


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

    def stage(i: int) -> None:
        number = i % len(shortlists)  # other rows each time: the same ones would lie in the cache
        cascade.rerank(batches[number], shortlists[number][:, :size], 0, columns, max(1, size // 4))

    return median_ms(stage)
