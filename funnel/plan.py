"""A plan: the settings of the coarse search and the stages that follow it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from reprlib import repr as shown
from typing import Any

from funnel.checks import checked_whole
from funnel.errors import InputError

__all__ = ["FLAT", "Plan", "Stage"]

LARGEST = 2**31 - 1  # candidates, and efforts of a coarse index


@dataclass(frozen=True, slots=True, order=True)
class Stage:
    """Rerank at the first `width` dims and keep the best `keep` candidates."""

    width: int
    keep: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How one search is run.

    effort: the coarse index's own setting (ef_search of a graph, nprobe of lists, 0 where it has none).
    shortlist: how many candidates the coarse search hands on; 0 means flat search over every row.
    stages: intermediate reranks at rising widths, below full width. The last stage, exact scores at full
    width of whatever is left, is part of every plan and not listed.
    reranked: False where the coarse index gives exact
    scores at full width by itself, so that no step follows it: it says how the plan is named and its steps counted.
    """

    effort: int
    shortlist: int
    stages: tuple[Stage, ...] = ()
    reranked: bool = field(default=True, compare=False, repr=False)

    @property
    def is_flat(self) -> bool:
        """Whether this is flat search at full width."""
        return self.shortlist == 0

    @property
    def survivors(self) -> int:
        """How many candidates reach full width."""
        return self.stages[-1].keep if self.stages else self.shortlist

    @property
    def steps(self) -> int:
        """How many steps it has: the coarse search, each stage and the exact one.

        Flat search is one, and so is a coarse search that leaves nothing to rerank.
        """
        return 1 if self.is_flat else len(self.reranks) + 1

    @property
    def reranks(self) -> tuple[Stage | None, ...]:
        """What follows the coarse search: its stages, and None for the exact one."""
        return (*self.stages, None) if self.reranked else ()

    def answering_alone(self) -> Plan:
        """The same, of a coarse index that leaves nothing to rerank."""
        return replace(self, reranked=False)

    def widened(self) -> Plan:
        """The plan with room for one candidate more at each step: for queries that are rows, and find themselves."""
        if self.is_flat:
            return self
        stages = tuple(Stage(stage.width, stage.keep + 1) for stage in self.stages)
        effort = self.effort + 1 if self.effort == self.shortlist else self.effort  # a graph's shortlist is its effort
        return replace(self, effort=effort, shortlist=self.shortlist + 1, stages=stages)

    def check_types(self) -> None:
        """InputError for a part of another type than it is to have; what the numbers mean is left to `check`."""
        if not isinstance(self.stages, tuple) or not all(isinstance(stage, Stage) for stage in self.stages):
            raise InputError(f"plan: stages is {shown(self.stages)}; expected a tuple of Stage")
        for name in ("effort", "shortlist"):
            checked_whole(f"plan: {name}", getattr(self, name), 0, LARGEST)
        for stage in self.stages:
            checked_whole("plan: the width of a stage", stage.width)
            checked_whole("plan: keep of a stage", stage.keep)

    def check(self, widths: tuple[int, ...]) -> None:
        """InputError unless the stages rise in width, fall in number and use the given widths."""
        if self.is_flat:
            if self.stages:
                raise InputError(f"plan {self}: flat search (shortlist 0) takes no stages")
            return
        if self.shortlist < 0 or self.effort < 0:
            raise InputError(f"plan {self}: effort and shortlist must not be negative")
        keep, width = self.shortlist, 0
        for stage in self.stages:
            if stage.width not in widths[:-1]:
                raise InputError(
                    f"plan {self}: no stage can be run at {stage.width} dims; "
                    f"this index keeps norms for {', '.join(map(str, widths[:-1]))}"
                )
            if stage.width <= width or not 0 < stage.keep <= keep:
                raise InputError(f"plan {self}: stages must rise in width and fall in candidates")
            keep, width = stage.keep, stage.width

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        stages = [[stage.width, stage.keep] for stage in self.stages]
        return {"effort": self.effort, "shortlist": self.shortlist, "stages": stages}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        stages = tuple(Stage(int(width), int(keep)) for width, keep in value["stages"])
        return cls(int(value["effort"]), int(value["shortlist"]), stages)

    def __str__(self) -> str:
        if self.is_flat:
            return "flat"
        effort = f"effort {self.effort}, " if self.effort else ""
        steps = [f"{effort}shortlist {self.shortlist}"]
        steps += [f"{stage.keep} at {stage.width}" for stage in self.stages]
        return " → ".join([*steps, "exact"] if self.reranked else steps)


FLAT = Plan(effort=0, shortlist=0)
"""Flat search at full width: exact, and the plan of last resort."""
