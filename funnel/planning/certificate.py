"""What is promised about a plan's recall, and on what evidence: one readable record."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from funnel.planning.bounds import BETTING

__all__ = ["Certificate"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is promised about a plan's recall, and on what evidence.

    certified is True only where real queries passed the test for this recall and k. `estimate` and
    `lower_bound` are of the served plan and of the same queries: their mean recall@k, and the bound at 1 - delta, which
    is shown only where certified; `bound` names which one (see funnel.planning.bounds). delta: of this certificate
    alone; of twenty at .05 one may be false. Where a share of queries was asked for, both are of the share of queries
    with a recall@k of at least `recall`. mean_recall: of the served plan, whichever was asked for. machine: the
    fingerprint, as JSON. updates: what was added and deleted since it was measured, and how that is counted.
    queries_needed: about how many real queries would certify the recall, where there were too
    few.
    """

    recall: float | None
    k: int
    delta: float
    certified: bool
    estimate: float
    lower_bound: float
    n_queries: int
    query_kind: str
    date: str
    machine: str
    note: str = ""
    queries_needed: int | None = field(default=None)
    bound: str = BETTING
    share: float | None = None
    mean_recall: float = math.nan
    updates: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as plain values; None where nothing was measured, as NaN is no JSON, or no bound is certified."""
        values = {name: getattr(self, name) for name in self.__slots__}
        if not self.certified:
            values["lower_bound"] = None
        return {name: None if value != value else value for name, value in values.items()}

    @property
    def evidence(self) -> str:
        """What it rests on, in one line: estimate, bound and its name, confidence, queries, date."""
        kind = self.query_kind if "queries" in self.query_kind else f"queries, {self.query_kind}"
        on = f"{self.n_queries:,} {kind}" if self.n_queries else self.query_kind
        what = f"recall@{self.k} {self.estimate:.4f}"
        if self.share is not None:
            what = f"share of queries with recall@{self.k} ≥ {self.recall:g} {self.estimate:.4f}"
        bound = f", at least {self.lower_bound:.4f} with confidence {1 - self.delta:g} ({self.bound} bound)"
        return (
            f"{what} on {on}{bound if self.certified else ''}"
            + (f", measured {self.date}" if self.date else "")
            + (f"; {self.updates}" if self.updates else "")
        )

    def __str__(self) -> str:
        if self.certified and not self.note:
            whose = "" if self.share is None else f" for at least {self.share * 100:g} % of queries,"
            return (
                f"certified on {self.n_queries:,} real queries: recall@{self.k} ≥ {self.recall:g}{whose} "
                f"with confidence {1 - self.delta:g}"
            )
        return self.note
