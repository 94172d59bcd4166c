"""Latencies of plans, each measured once: a quick figure to look at, and one that a promise can rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock
from typing import Any

from funnel.plan import Plan
from funnel.planning.remembered import Remembered
from indexes.system import free_in_children

__all__ = ["Held", "Latencies", "Latency"]


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
