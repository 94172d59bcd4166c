"""Drift is looked for over all generations of an index that have one calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.depth import Kept
from funnel.monitoring.drift import Drift
from funnel.monitoring.neighbours import Neighbours, Rows
from funnel.monitoring.reference import Reference
from funnel.plan import Plan
from funnel.planning.records import Calibration

__all__ = ["MOVED", "Watch"]

# A reference goes on while the distribution functions of the true scores differ from its own by no more than this: a
# window of 5,000 queries against as many tells .04 from nothing.
MOVED = 0.005


@dataclass(frozen=True, eq=False)
class Watch:
    """What looks for drift at one generation.

    drift: of every generation. reference: what searches are compared by; that of an earlier generation where little has
    changed since. neighbours: those of the calibration queries at this generation; None where nobody asked.
    """

    drift: Drift
    reference: Reference
    neighbours: Neighbours | None = None

    @classmethod
    def of(cls, calibration: Calibration, rows: Rows | None) -> Watch:
        """At the first generation."""
        reference = Reference(calibration, rows)
        return cls(Drift(reference), reference)

    def then(self, calibration: Calibration, rows: Rows | None) -> Watch:
        """At a later generation. calibration: the same, as it speaks of that one."""
        if rows is None or not self.drift.seen or self.drift.changed:
            return Watch(self.drift, Reference(calibration, rows))
        first = self.reference.neighbours
        before = self.neighbours or first
        if first is None or before is None:
            return Watch(self.drift, Reference(calibration, rows))
        now = before.then(rows)
        little = now.moved_since(first) <= MOVED
        return Watch(self.drift, self.reference if little else Reference(calibration, rows, now), now)

    def see(self, scores: npt.NDArray[np.float32], plan: Plan, kept: Kept) -> bool:
        """See `Drift.see`."""
        return self.drift.see(scores, plan, kept, self.reference)
