"""Latencies of plans, each measured once: a quick figure to look at, and one that a promise can rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock
from typing import Any

from funnel.plan import Plan
from funnel.planning.windows import Held

__all__ = ["Latencies", "Latency"]


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured milliseconds of one call, end to end, by one caller: median and 95th percentile."""

    p50: float
    p95: float


class Latencies:
    """What calls of a plan, k and batch size take; measured on first use.

    measure and hold: see `Planner`. known: records of `records`, made on this machine.
    """

    def __init__(
        self,
        measure: Callable[[Plan, int, int], Latency],
        hold: Callable[[Plan, int, int], Held] | None,
        known: Iterable[list[Any]],
    ) -> None:
        self._measure = measure
        self._hold = hold
        self._quick = {
            (Plan.from_json(plan), int(k), int(batch)): Latency(float(p50), float(p95))
            for plan, k, batch, p50, p95 in known
        }
        self._held: dict[tuple[Plan, int, int], Held] = {}
        self._lock = RLock()  # two that measure at once would measure each other

    def of(self, plan: Plan, k: int, batch: int) -> Latency:
        """Median and 95th percentile of a few calls by one caller."""
        key = (plan, k, batch)
        with self._lock:
            if key not in self._quick:
                self._quick[key] = self._measure(plan, k, batch)
            return self._quick[key]

    def held(self, plan: Plan, k: int, batch: int) -> Held | None:
        """What can be promised of it; None where nothing but the quick figure is measured."""
        key = (plan, k, batch)
        if self._hold is None:
            return None
        with self._lock:
            if key not in self._held:
                self._held[key] = self._hold(plan, k, batch)
            return self._held[key]

    def within(self, plan: Plan, k: int, batch: int, allowed: float) -> bool:
        """Whether so many milliseconds can be promised.

        What is held takes seconds to measure: not where the quick figure is above already, nor where a plan that is no
        slower by its quick figure could not hold it.
        """
        with self._lock:
            quick = self.of(plan, k, batch).p95
            if quick > allowed:
                return False
            if (plan, k, batch) not in self._held:
                failed = [key for key, held in self._held.items() if key[2] == batch and held.ms > allowed]
                if any(self.of(*key).p95 <= quick for key in failed):
                    return False
            held = self.held(plan, k, batch)
            return held is None or held.ms <= allowed

    def known(self, plan: Plan, k: int, batch: int) -> Held | None:
        """What can be promised of it, where that was measured already."""
        return self._held.get((plan, k, batch))

    def said(self, plan: Plan, k: int, batch: int) -> str:
        """The figure in words, the one that can be promised where it was measured."""
        with self._lock:
            held = self.known(plan, k, batch)
            if held is not None:
                return f"{held.ms:.3g} ms at the 95th percentile ({held})"
            return f"{self.of(plan, k, batch).p95:.3g} ms at the 95th percentile"

    def records(self) -> list[list[object]]:
        """The quick figures, as `Calibration.latencies` keeps them."""
        return [[plan.to_json(), k, batch, v.p50, v.p95] for (plan, k, batch), v in self._quick.items()]
