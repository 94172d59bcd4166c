"""Drift is looked for over all generations of an index that have one calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from funnel.engine.depth import Kept
from funnel.monitoring.drift import Drift
from funnel.monitoring.neighbours import Neighbours, Rows
from funnel.monitoring.reference import Reference
from funnel.plan import Plan
from funnel.planning.records import Calibration

__all__ = ["MOVED", "Watch"]

# A reference goes on while the distribution functions of the true scores differ from its own by no more than this: a
# window of 5,000 queries against as many tells .04 from nothing.
MOVED = 0.005
# Calibration queries by which a write is judged, in the call that writes; all of them would take 30 ms for 500 rows.
JUDGED_BY = 400


@dataclass(frozen=True, eq=False)
class Watch:
    """What looks for drift at one generation.

    drift: of every generation. reference: what searches are compared by; that of an earlier generation where little has
    changed since. first, now: the neighbours of some calibration queries at the generation of the reference, and at
    this one; None where nobody asked.
    """

    drift: Drift
    reference: Reference
    first: Neighbours | None = None
    now: Neighbours | None = None

    @classmethod
    def of(cls, calibration: Calibration, rows: Rows | None) -> Watch:
        """At the first generation."""
        return cls(Drift(reference := Reference(calibration, rows)), reference)

    def then(self, calibration: Calibration, rows: Rows | None) -> Watch:
        """At a later generation. calibration: the same, as it speaks of that one."""
        if rows is None or not self.drift.seen or self.drift.changed:
            return Watch(self.drift, Reference(calibration, rows))
        first = self.first or self.reference.some(JUDGED_BY)
        if first is None:
            return Watch(self.drift, Reference(calibration, rows))
        now = (self.now or first).then(rows)
        if now.moved_since(first) <= MOVED:
            return Watch(self.drift, self.reference, first, now)
        return Watch(self.drift, Reference(calibration, rows, self.reference), now, now)

    def see(self, scores: npt.NDArray[np.float32], plan: Plan, kept: Kept) -> bool:
        """See `Drift.see`."""
        return self.drift.see(scores, plan, kept, self.reference)
