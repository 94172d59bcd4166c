"""Searches that wait until there are enough of them for a look."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.depth import Kept, depths
from funnel.monitoring.neighbours import RANKS
from funnel.plan import Plan

__all__ = ["MOST_COMPARED", "STATISTICS", "Group", "Reference", "Waiting"]

STATISTICS = len(RANKS) + 1  # the last is the depth
# Of one call, evenly spaced: a test costs 1 us a query, which counts where a batch takes 20 of them, and a change of
# queries shows within 160.
MOST_COMPARED = 512

Float32 = npt.NDArray[np.float32]
# What a plan returned for the calibration queries when asked for k: see `funnel.monitoring.reference`.
Reference = Callable[[Plan, int], Float32 | None]


class Waiting:
    """Searches of one kind that wait together, in groups: each has the plan and the reference it is compared by."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._count = 0

    def add(self, scores: Float32, kept: Kept, plan: Plan, reference: Reference) -> int:
        """Take in one call, float32 [n, k]; gives how many queries wait."""
        groups = self.groups
        if not groups or not groups[-1].takes(plan, reference):
            # Threads may still end searches of the generation before, whose group goes on.
            found = next((group for group in groups if group.takes(plan, reference)), None)
            groups.append(Group(plan, reference) if found is None else groups.pop(groups.index(found)))
        groups[-1].add(scores, kept)
        self._count += len(scores)
        return self._count


class Group:
    """Searches under one plan. Single queries are noted as numbers: half a microsecond each."""

    def __init__(self, plan: Plan, reference: Reference) -> None:
        self.plan, self.reference = plan, reference
        self._best: list[float] = []
        self._tenth: list[float] = []
        self._kept: list[Kept] = []
        self._parts: list[Float32] = []

    def takes(self, plan: Plan | None, reference: Reference | None) -> bool:
        """Whether searches under this plan, compared by this reference, belong here."""
        return reference is self.reference and (plan is self.plan or plan == self.plan)

    def add(self, scores: Float32, kept: Kept) -> None:
        """Take in one call, float32 [n, k]. The scores are copied."""
        count, k = scores.shape
        if count > 1:
            step = -(-count // MOST_COMPARED)
            few = tuple(places[::step] for places in kept)
            self._parts.append(_columns(scores[::step], few))
        else:
            self._best.append(scores.item(0))
            self._tenth.append(scores.item(RANKS[1]) if k > RANKS[1] else math.nan)
            self._kept.append(kept if scores.item(k - 1) > -math.inf else ())

    def columns(self) -> Float32:
        """Everything that waits: float32 [n, STATISTICS]."""
        single = np.full((len(self._best), STATISTICS), math.nan, dtype=np.float32)
        single[:, 0], single[:, 1] = self._best, self._tenth
        single[np.isneginf(single)] = math.nan
        known = [number for number, kept in enumerate(self._kept) if kept]
        if known:
            steps = zip(*(self._kept[number] for number in known), strict=True)
            single[known, -1] = depths(tuple(torch.cat(step) for step in steps))
        return np.concatenate([single, *self._parts])


def _columns(scores: Float32, kept: Kept) -> Float32:
    """What is compared of one call: float32 [n, STATISTICS]."""
    found = np.full((len(scores), STATISTICS), math.nan, dtype=np.float32)
    found[:, 0] = scores[:, 0]
    if scores.shape[1] > RANKS[1]:
        found[:, 1] = scores[:, RANKS[1]]
    found[np.isneginf(found)] = math.nan  # fewer rows than hits asked for
    if kept:
        found[:, -1] = depths(kept)
        found[scores[:, -1] == -math.inf, -1] = math.nan  # places without a candidate are nowhere
    return found
