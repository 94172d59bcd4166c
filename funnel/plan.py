"""A plan: the settings of the coarse search and the stages that follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from reprlib import repr as shown
from typing import Any

from funnel.checked import checked_whole
from funnel.errors import InputError

__all__ = ["FLAT", "Escalation", "Plan", "Stage"]

LARGEST = 2**31 - 1  # candidates, and efforts of a coarse index


@dataclass(frozen=True, slots=True, order=True)
class Stage:
    """Rerank at the first `width` dims and keep the best `keep` candidates."""

    width: int
    keep: int


@dataclass(frozen=True, slots=True)
class Escalation:
    """Which queries go on to a stronger plan: those whose ease, judged by the first plan's scores, is too low.

    k: how many of the best hits the rule looks at. closeness, margin: weights of the two signals, see
    funnel.escalation. threshold: a query of less ease goes on. then: the plan that answers it instead, from a coarse
    search of its own. rate: the share of the calibration queries that went on; it says what to expect and decides
    nothing.
    """

    k: int
    closeness: float
    margin: float
    threshold: float
    then: Plan
    rate: float = field(default=math.nan, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The rule as plain values."""
        rate = None if math.isnan(self.rate) else self.rate
        numbers = {"closeness": self.closeness, "margin": self.margin, "threshold": self.threshold, "rate": rate}
        return {"k": self.k, **numbers, "then": self.then.to_json()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Escalation:
        """The rule that `to_json` wrote."""
        closeness, margin, threshold = (float(value[name]) for name in ("closeness", "margin", "threshold"))
        rate = math.nan if value["rate"] is None else float(value["rate"])
        return cls(int(value["k"]), closeness, margin, threshold, Plan.from_json(value["then"]), rate)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one search is run.

    effort: the coarse index's own setting (ef_search of a graph, nprobe of lists, 0 where it has none).
    shortlist: how many candidates the coarse search hands on; 0 means flat search over every row.
    stages: intermediate reranks at rising widths, below full width. The last stage, exact scores at full
    width of whatever is left, is part of every plan and not listed.
    escalation: None, or which queries are searched again, with what. reranked: False where the coarse index gives exact
    scores at full width by itself, so that no step follows it: it says how the plan is named and its steps counted.
    """

    effort: int
    shortlist: int
    stages: tuple[Stage, ...] = ()
    escalation: Escalation | None = None
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
        """How many steps it has: the coarse search, each stage and the exact one, of both parts.

        Flat search is one, and so is a coarse search that leaves nothing to rerank.
        """
        return 1 if self.is_flat else sum(len(part.reranks) + 1 for part in self.parts)

    @property
    def reranks(self) -> tuple[Stage | None, ...]:
        """What follows the coarse search: its stages, and None for the exact one."""
        return (*self.stages, None) if self.reranked else ()

    @property
    def parts(self) -> tuple[Plan, ...]:
        """The plan without its escalation, and the plan that hard queries go on to where there is one."""
        if self.escalation is None:
            return (self,)
        return replace(self, escalation=None), self.escalation.then

    def answering_alone(self) -> Plan:
        """The same, of a coarse index that leaves nothing to rerank."""
        rule = self.escalation
        again = None if rule is None else replace(rule, then=rule.then.answering_alone())
        return replace(self, escalation=again, reranked=False)

    def widened(self) -> Plan:
        """The plan with room for one candidate more at each step: for queries that are rows, and find themselves."""
        if self.is_flat:
            return self
        stages = tuple(Stage(stage.width, stage.keep + 1) for stage in self.stages)
        effort = self.effort + 1 if self.effort == self.shortlist else self.effort  # a graph's shortlist is its effort
        rule = self.escalation
        again = None if rule is None else replace(rule, k=rule.k + 1, then=rule.then.widened())
        return replace(self, effort=effort, shortlist=self.shortlist + 1, stages=stages, escalation=again)

    def check_types(self) -> None:
        """InputError for a part of another type than it is to have; what the numbers mean is left to `check`."""
        if not isinstance(self.stages, tuple) or not all(isinstance(stage, Stage) for stage in self.stages):
            raise InputError(f"plan: stages is {shown(self.stages)}; expected a tuple of Stage")
        for name in ("effort", "shortlist"):
            checked_whole(f"plan: {name}", getattr(self, name), 0, LARGEST)
        for stage in self.stages:
            checked_whole("plan: the width of a stage", stage.width)
            checked_whole("plan: keep of a stage", stage.keep)
        if self.escalation is not None:
            if not isinstance(self.escalation, Escalation) or not isinstance(self.escalation.then, Plan):
                raise InputError(f"plan: escalation is {shown(self.escalation)}; expected None or an Escalation")
            self.escalation.then.check_types()

    def check(self, widths: tuple[int, ...]) -> None:
        """InputError unless the stages rise in width, fall in number and use the given widths."""
        if self.escalation is not None:
            self._check_escalation(self.escalation)
            for part in self.parts:
                part.check(widths)
            return
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

    def _check_escalation(self, escalation: Escalation) -> None:
        numbers = (escalation.closeness, escalation.margin, escalation.threshold)
        if not all(math.isfinite(number) for number in numbers):
            raise InputError(f"plan {self}: weights and threshold are {numbers}; expected finite numbers")
        if self.is_flat or escalation.then.is_flat:
            raise InputError(f"plan {self}: flat search is exact, there is nothing to go on to or from")
        if not 1 <= escalation.k <= self.survivors:
            raise InputError(f"plan {self}: its rule looks at the best {escalation.k} of {self.survivors} candidates")
        if escalation.then.escalation is not None:
            raise InputError(f"plan {self}: a query goes on once; give a second plan without an escalation")

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        stages = [[stage.width, stage.keep] for stage in self.stages]
        value: dict[str, Any] = {"effort": self.effort, "shortlist": self.shortlist, "stages": stages}
        if self.escalation is not None:
            value["escalation"] = self.escalation.to_json()
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        stages = tuple(Stage(int(width), int(keep)) for width, keep in value["stages"])
        escalation = value.get("escalation")
        rule = None if escalation is None else Escalation.from_json(escalation)
        return cls(int(value["effort"]), int(value["shortlist"]), stages, rule)

    def __str__(self) -> str:
        if self.is_flat:
            return "flat"
        effort = f"effort {self.effort}, " if self.effort else ""
        steps = [f"{effort}shortlist {self.shortlist}"]
        steps += [f"{stage.keep} at {stage.width}" for stage in self.stages]
        said = " → ".join([*steps, "exact"] if self.reranked else steps)
        if self.escalation is None:
            return said
        rate = "hard queries" if math.isnan(self.escalation.rate) else f"the hardest {self.escalation.rate:.1%}"
        return f"{said}; {rate} again: {self.escalation.then}"


FLAT = Plan(effort=0, shortlist=0)
"""Flat search at full width: exact, and the plan of last resort."""
