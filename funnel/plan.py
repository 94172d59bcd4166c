"""A plan: the settings of the coarse search and the stages that follow it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from reprlib import repr as shown
from typing import Any

from funnel.checks import checked_whole
from funnel.errors import InputError

__all__ = ["FLAT", "Plan", "Stage"]

LARGEST = 2**31 - 1  # candidates, and efforts of a coarse index
NUMBER = "[1-9][0-9]{0,9}"
WRITTEN = re.compile(rf"\s*({NUMBER}:{NUMBER})(?:@({NUMBER}))?((?:\s+{NUMBER}:{NUMBER})*)\s*")


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
    width: of the first search, in a plan by hand; 0: that of the coarse index. At another width every row is scanned.
    """

    effort: int
    shortlist: int
    stages: tuple[Stage, ...] = ()
    reranked: bool = field(default=True, compare=False, repr=False)
    width: int = 0

    @classmethod
    def parse(cls, text: str) -> Plan:
        """The plan of a text such as "8:400 16:200 32:100": w:n for each step, search or rerank at w dims and keep n.

        Exact scores at full width follow, and are not written. Where w of the first step is the coarse index's own
        width that index is searched, with the least effort that gives n candidates, or as in "64:400@500" with effort
        500; at any other width that the index stores every row is scanned. "flat" is flat search. It is how `str`
        writes such plans. Raises InputError for another text.
        """
        if text.strip() == "flat":
            return FLAT
        found = WRITTEN.fullmatch(text)
        if found is None:
            raise InputError(
                f"plan is {shown(text)}; expected w:n for each step, rerank at w dims and keep n, both from 1, such as "
                "'8:400 16:200 32:100'"
            )
        first, effort, rest = found.groups()
        (width, keep), *stages = (map(int, step.split(":")) for step in (first, *rest.split()))
        return cls(int(effort or 0), keep, tuple(Stage(*stage) for stage in stages), width=width)

    @classmethod
    def halving(cls, width: int, dim: int, keep: int, k: int = 10) -> Plan:
        """The funnel of Matryoshka embeddings: widths double from `width` up to half of `dim`, kept rows halve.

        It begins with `keep` rows and never keeps fewer than k; where it keeps k it ends, as no stage could drop more:
        halving(8, 1536, 400) is 8:400 16:200 32:100 64:50 128:25 256:12 512:10. dim: the full width. The index has to
        store these widths, as it does from 8 on unless its build was given others. As in "funnel retrieval" of
        Kusupati et al. 2022 (section 4.3.1). Raises InputError.
        """
        checked_whole("dim", dim, 2)
        checked_whole("width", width, 1, dim - 1)
        checked_whole("k", k)
        checked_whole("keep", keep, k, LARGEST)
        first, stages = Plan(0, keep, width=width), []
        while 4 * width <= dim and keep > k:
            width, keep = 2 * width, max(k, keep // 2)
            stages.append(Stage(width, keep))
        return replace(first, stages=tuple(stages))

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
        for name in ("effort", "shortlist", "width"):
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
        for width in (*([self.width] if self.width else ()), *(stage.width for stage in self.stages)):
            if width not in widths[:-1]:
                raise InputError(
                    f"plan {self}: no stage can be run at {width} dims below full width, which is implied; here it "
                    f"may have {', '.join(map(str, dict.fromkeys(widths[:-1]))) or 'none'}: dims= at build stores more"
                )
        keep, width = self.shortlist, self.width
        for stage in self.stages:
            if stage.width <= width or not 0 < stage.keep <= keep:
                raise InputError(f"plan {self}: stages must rise in width and fall in candidates")
            keep, width = stage.keep, stage.width

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        stages = [[stage.width, stage.keep] for stage in self.stages]
        width = {"width": self.width} if self.width else {}
        return {"effort": self.effort, "shortlist": self.shortlist, "stages": stages, **width}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """The plan that `to_json` wrote."""
        stages = tuple(Stage(int(width), int(keep)) for width, keep in value["stages"])
        return cls(int(value["effort"]), int(value["shortlist"]), stages, width=int(value.get("width", 0)))

    def __str__(self) -> str:
        if self.is_flat:
            return "flat"
        if self.width:
            first = f"{self.width}:{self.shortlist}" + (f"@{self.effort}" if self.effort else "")
            return " ".join([first, *(f"{stage.width}:{stage.keep}" for stage in self.stages)])
        effort = f"effort {self.effort}, " if self.effort else ""
        steps = [f"{effort}shortlist {self.shortlist}"]
        steps += [f"{stage.keep} at {stage.width}" for stage in self.stages]
        return " → ".join([*steps, "exact"] if self.reranked else steps)


FLAT = Plan(effort=0, shortlist=0)
"""Flat search at full width: exact, and the plan of last resort."""
