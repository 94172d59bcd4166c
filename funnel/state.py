"""What one opened generation is searched with: taken once at the start of a call, replaced as one by an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.asking import Asked
from funnel.beside import Beside
from funnel.hits import Hit, Hits, Served
from funnel.monitoring import Monitor
from funnel.opening import Opened
from funnel.plan import Plan
from funnel.planning.costs import batch_class
from funnel.planning.planner import Choice
from funnel.query_encoder import QueryEncoder
from funnel.segments import live_positions

__all__ = ["State"]


@dataclass(frozen=True, eq=False)
class State:
    """One generation, its monitor, and what was chosen for the budgets that were asked for."""

    opened: Opened
    beside: Beside
    monitor: Monitor
    choices: dict[tuple[object, ...], Served] = field(default_factory=dict)

    @classmethod
    def of(cls, opened: Opened, encoder: QueryEncoder) -> State:
        """A generation that is opened anew."""
        monitor = Monitor(opened.searcher.calibration, opened.searcher.truth)
        return cls(opened, Beside(encoder, opened.documents, opened.segments[-1].stop), monitor)

    def then(self, opened: Opened, encoder: QueryEncoder) -> State:
        """The next generation: audits and a void promise go on; choices too, where nothing was deleted or tuned.

        Rows that were only added are searched exactly, and no plan's recall becomes less by them.
        """
        searcher, before = opened.searcher, self.opened.searcher
        monitor = self.monitor.then(searcher.calibration, searcher.truth)
        beside = Beside(encoder, opened.documents, opened.segments[-1].stop)
        only_added = (
            opened.stored is self.opened.stored
            and searcher.cascade is before.cascade
            and (searcher.calibration is None) == (before.calibration is None)
            and _void_of(opened) == _void_of(self.opened)
        )
        return State(opened, beside, monitor, dict(self.choices) if only_added else {})

    def ids(self) -> list[Any]:
        """Every id that was not deleted, in input order."""
        opened = self.opened
        ids = opened.searcher.ids.all()
        if opened.live is None:
            return ids
        parts = [live_positions(segment, opened.live) for segment in opened.segments]
        kept = np.concatenate([part for part in parts if part is not None])
        return [one for one, there in zip(ids, kept, strict=True) if there]

    def choose(self, asked: Asked, k: int, n_queries: int) -> Choice:
        """The plan for such a call, and its certificate; a latency leaves room for encoder and documents."""
        wanted, beside_ms = asked.wanted, 0.0
        if wanted.latency_ms is not None:
            batch = batch_class(n_queries)
            beside_ms = self.beside.ms(batch, k, asked.from_text, asked.hits, wanted.latency_ms)
        return self.opened.searcher.choose(wanted, k, n_queries, beside_ms)

    def choice(self, asked: Asked, k: int, n_queries: int) -> Served:
        """What serves a budget, remembered under what the user wrote: a budget is checked once, not every call."""
        choices, batch = self.choices, batch_class(n_queries)
        key = (k, batch, asked.recall, asked.share, asked.latency_ms, asked.budget, asked.from_text, asked.hits)
        served = choices.get(key)
        if served is None:
            choice = self.choose(asked, k, n_queries)
            served = choices[key] = Served(choice.plan, choice.certificate.mean_recall)
        return served

    def explicit(self, plan: Plan, k: int) -> Served:
        """A plan of the user's own, checked."""
        choices, searcher, key = self.choices, self.opened.searcher, (plan, k)
        served = choices.get(key)
        if served is None:
            searcher.check(plan, k)
            served = choices[key] = Served(plan, searcher.estimate(plan, k))
        return served

    def hits(
        self,
        scores: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int64],
        served: Served,
        each: Sequence[Served] | None,
    ) -> list[Hits]:
        """What was found as lists of hits. each: how each query was answered, where they differ."""
        documents, found = self.opened.documents, each or [served] * len(scores)
        if documents is None:
            ids = self.opened.searcher.ids.at(positions)
            return [
                Hits((Hit(_plain(id_), float(score)) for id_, score, at in zip(*row, strict=True) if at >= 0), how)
                for *row, how in zip(ids, scores, positions, found, strict=True)
            ]
        result = []
        for row_scores, row, how in zip(scores, positions, found, strict=True):
            hits = (
                Hit(document.id, float(score), document.title, document.text, dict(document.metadata))
                for document, score in zip(documents.get(row[row >= 0]), row_scores, strict=False)
            )
            result.append(Hits(hits, how))
        return result


def _void_of(opened: Opened) -> str:
    """Why nothing can be certified; "" where it can."""
    calibration = opened.searcher.calibration
    return "" if calibration is None else calibration.void


def _plain(value: Any) -> str | int:
    return value if isinstance(value, str) else int(value)
