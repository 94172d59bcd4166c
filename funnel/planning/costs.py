"""What each stage costs on this machine, measured at three batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from funnel.plan import Plan
from funnel.planning.remembered import Remembered
from indexes.system import free_in_children

__all__ = ["BATCH_SIZES", "Costs", "Held", "Latencies", "Latency", "Ms", "Positive", "batch_class", "rising"]

Ms = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**40)]

BATCH_SIZES = (1, 32, 256)


def batch_class(n_queries: int) -> int:
    """The batch size that stands for a call of n_queries: the next larger measured one, then powers of two."""
    for size in BATCH_SIZES:
        if size >= n_queries:
            return size
    return 1 << (n_queries - 1).bit_length()


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one call, by batch size.

    coarse: batch -> effort -> ms. rerank: batch -> columns gathered -> ms at each of `sizes` candidates; empty where
    the coarse index gives exact scores and nothing is reranked.
    flat: batch -> ms. base: batch -> ms that every call takes besides (checks, adaptor, ids).
    """

    machine: dict[str, str]
    sizes: Annotated[tuple[Positive, ...], msgspec.Meta(min_length=1, max_length=64)]
    coarse: dict[int, dict[int, Ms]]
    rerank: dict[int, dict[int, list[Ms]]]
    flat: dict[int, Ms]
    base: dict[int, Ms]

    def check(self) -> None:
        """ValueError unless every table has every batch size, and those of coarse search the same efforts."""
        for name in ("coarse", "rerank", "flat", "base"):
            if set(getattr(self, name)) != set(BATCH_SIZES):
                raise ValueError(f"{name} is not of the batch sizes {list(BATCH_SIZES)}")
        if len({tuple(sorted(table)) for table in self.coarse.values()}) != 1:
            raise ValueError("coarse has other efforts for another batch size")
        if any(len(ms) != len(self.sizes) for table in self.rerank.values() for ms in table.values()):
            raise ValueError(f"rerank has lists of another length than the {len(self.sizes)} sizes")
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes is {list(self.sizes)}, which does not rise")

    @property
    def reranked(self) -> bool:
        """Whether plans rerank what the coarse index finds."""
        return any(self.rerank.values())

    def predict(self, plan: Plan, batch: int, dim: int) -> float:
        """Predicted milliseconds of one call of `batch` queries (a batch class) under the plan."""
        return sum(self.stages(plan, batch, dim)) + self.base[min(batch, BATCH_SIZES[-1])] * self._times(batch)

    def stages(self, plan: Plan, batch: int, dim: int) -> list[float]:
        """Predicted milliseconds of each step of a plan."""
        if batch > BATCH_SIZES[-1]:
            return [ms * self._times(batch) for ms in self.stages(plan, BATCH_SIZES[-1], dim)]
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
    def _times(batch: int) -> float:
        """Above the largest measured one a batch costs in proportion."""
        return max(1.0, batch / BATCH_SIZES[-1])

    def _rerank(self, batch: int, candidates: int, columns: int) -> float:
        key = (batch, candidates, columns)
        if key not in self._reranks:
            table = self.rerank[batch]
            widths = sorted(table)
            beyond = max(1.0, candidates / self.sizes[-1])
            at_width = [float(np.interp(candidates, self.sizes, table[width])) * beyond for width in widths]
            self._reranks[key] = float(np.interp(columns, widths, at_width)) if table else 0.0
        return self._reranks[key]

    @cached_property
    def _reranks(self) -> dict[tuple[int, int, int], float]:
        """What was worked out, as it is asked for again and again."""
        return {}


def rising(ms: npt.ArrayLike, axis: int = 0) -> npt.NDArray[np.float64]:
    """Noisy times that should not fall along an axis, so that they do not: midway between all before and all behind."""
    times = np.asarray(ms, dtype=np.float64)
    behind = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
    return (np.maximum.accumulate(times, axis) + behind) / 2.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured milliseconds of one call, end to end, by one caller: median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Held:
    """What the 95th percentile of calls was in short windows, by two callers at once, in milliseconds.

    largest: of all of them. ms: what can be promised; more than the largest of few windows.
    """

    largest: float
    ms: float
    windows: int

    def __str__(self) -> str:
        of = f"the largest of {self.windows} windows, called by two threads at once"
        return f"{self.largest:.3g} ms at the 95th percentile, {of}"


class Latencies:
    """What calls of a plan, k and batch size take; measured on first use.

    measure and hold: see `Planner`. known: records of `records`, made on this machine.
    """

    def __init__(
        self,
        measure: Callable[[Plan, int, int], Latency],
        hold: Callable[[Plan, int, int, float | None], Held] | None,
        known: Iterable[list[Any]],
    ) -> None:
        self._measure = measure
        self._hold = hold
        self._quick: Remembered[tuple[Plan, int, int], Latency] = Remembered(
            {
                (Plan.from_json(plan), int(k), int(batch)): Latency(float(p50), float(p95))
                for plan, k, batch, p50, p95 in known
                if "escalation" not in plan  # of a plan in two parts, which older versions made
            }
        )
        self._held: Remembered[tuple[Plan, int, int], Held] = Remembered()
        self._lock = free_in_children(RLock())  # two that measure at once would measure each other

    def of(self, plan: Plan, k: int, batch: int) -> Latency:
        """Median and 95th percentile of a few calls by one caller."""
        key = (plan, k, batch)
        with self._lock:
            quick = self._quick.get(key)
            if quick is None:
                quick = self._quick[key] = self._measure(*key)
            return quick

    def held(self, plan: Plan, k: int, batch: int, allowed: float | None = None) -> Held | None:
        """What can be promised of it; None where nothing but the quick figure is measured.

        allowed: milliseconds, where no more is to be known than whether they can be promised. What was measured for
        others is enough where it decides that.
        """
        key = (plan, k, batch)
        if self._hold is None:
            return None
        with self._lock:
            held = self._held.get(key)
            if held is None or (allowed is not None and held.largest <= allowed < held.ms):
                held = self._held[key] = self._hold(*key, allowed)
            return held

    def within(self, plan: Plan, k: int, batch: int, allowed: float) -> bool:
        """Whether so many milliseconds can be promised.

        What is held may take seconds to measure: not where the quick figure is above already, nor where a plan that is
        no slower by its quick figure could not hold it.
        """
        with self._lock:
            quick = self.of(plan, k, batch).p95
            failed = [key for key, held in self._held.items() if key[2] == batch and held.largest > allowed]
            if quick > allowed or any(self.of(*key).p95 <= quick for key in failed):
                return False
            held = self.held(plan, k, batch, allowed)
            return held is None or held.ms <= allowed

    def tried(self, plan: Plan, k: int, batch: int) -> bool:
        """Whether what can be promised of it was measured."""
        return (plan, k, batch) in self._held

    def said(self, plan: Plan, k: int, batch: int) -> str:
        """The figure in words, the one that can be promised where it was measured."""
        held = self._held.get((plan, k, batch))
        return f"{self.of(plan, k, batch).p95:.3g} ms at the 95th percentile" if held is None else f"{held}"

    def records(self) -> list[list[object]]:
        """The quick figures, as `Calibration.latencies` keeps them."""
        return [[plan.to_json(), k, batch, v.p50, v.p95] for (plan, k, batch), v in list(self._quick.items())]
