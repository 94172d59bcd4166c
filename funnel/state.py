"""What one opened generation is searched with: taken once at the start of a call, replaced as one by an update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.beside import Beside
from funnel.budget import Budget
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.filtered_search import Filters
from funnel.engine.generation import Opened
from funnel.engine.hybrid import Lexical
from funnel.engine.segments import live_positions
from funnel.monitoring import Monitor, Rows
from funnel.plan import Plan
from funnel.planning.costs import batch_class
from funnel.planning.planner import Choice
from funnel.planning.remembered import Remembered
from funnel.request import Asked
from funnel.results import Hits, Served, make_hits

__all__ = ["State"]


@dataclass(frozen=True, eq=False)
class State:
    """One generation, its monitor, and what was chosen for the budgets that were asked for.

    lexical: BM25 over its documents; None where it holds bare vectors.
    """

    opened: Opened
    beside: Beside
    monitor: Monitor
    filters: Filters
    lexical: Lexical | None
    choices: Remembered[tuple[object, ...], Served] = field(default_factory=Remembered)

    @classmethod
    def of(cls, opened: Opened, encoder: QueryEncoder) -> State:
        """A generation that is opened anew."""
        searcher = opened.searcher
        return cls._made(opened, encoder, Monitor(searcher.calibration, searcher.truth, _rows_of(opened)), {})

    def then(self, opened: Opened, encoder: QueryEncoder) -> State:
        """The next generation: audits and a void promise go on, and what else is watched where its calibration does;
        choices too, where nothing was deleted or tuned.

        Rows that were only added are searched exactly, and no plan's recall becomes less by them.
        """
        searcher, before = opened.searcher, self.opened.searcher
        only_added = (
            opened.stored is self.opened.stored
            and searcher.cascade is before.cascade
            and (searcher.calibration is None) == (before.calibration is None)
            and _void_of(opened) == _void_of(self.opened)
        )
        same = opened.stored is self.opened.stored and opened.segments[0].id == self.opened.segments[0].id
        monitor = self.monitor.then(searcher.calibration, searcher.truth, _rows_of(opened), same)
        # A latency is measured again: calls search the added rows too.
        kept = {key: served for key, served in list(self.choices.items()) if only_added and not _of_latency(key)}
        return self._made(opened, encoder, monitor, kept)

    @classmethod
    def _made(
        cls, opened: Opened, encoder: QueryEncoder, monitor: Monitor, choices: dict[tuple[object, ...], Served]
    ) -> State:
        lexical = lexical_of(opened)
        beside = Beside(encoder, opened.documents, opened.segments[-1].stop, lexical)
        return cls(opened, beside, monitor, Filters(opened), lexical, Remembered(choices))

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
        wanted = asked.wanted
        return self.opened.searcher.choose(wanted, k, n_queries, self.beside_ms(asked, wanted, k, n_queries))

    def beside_ms(self, asked: Asked, wanted: Budget, k: int, n_queries: int) -> float:
        """What a latency must leave for encoder, words and documents; 0 where none is asked for."""
        if wanted.latency_ms is None:
            return 0.0
        batch = batch_class(n_queries)
        return self.beside.ms(batch, k, asked.from_text, asked.hits, wanted.latency_ms, asked.fused, asked.texts)

    def choice(self, asked: Asked, k: int, n_queries: int) -> Served:
        """What serves a budget, remembered under what the user wrote: a budget is checked once, not every call."""
        choices, batch = self.choices, batch_class(n_queries)
        key = (
            *(k, batch, asked.recall, asked.share, asked.latency_ms, asked.budget),
            *(asked.from_text, asked.hits, asked.fused),
        )
        served = choices.get(key)
        if served is None:
            asked.began = 0.0  # planning on first use does not count
            choice = self.choose(asked, k, n_queries)
            served = choices[key] = self._served(choice.plan, choice.certificate.mean_recall)
        elif self.monitor.void and not served.void:
            served = choices[key] = self.monitor.served(served)
        return served

    def explicit(self, plan: Plan, k: int) -> Served:
        """A plan of the user's own, checked."""
        choices, searcher, key = self.choices, self.opened.searcher, (plan, k)
        served = choices.get(key)
        if served is None:
            searcher.check(plan, k)
            served = choices[key] = self._served(searcher.as_run(plan), searcher.estimate(plan, k))
        return served

    def _served(self, plan: Plan, estimate: float) -> Served:
        """Marked where rows are searched by the plan that its estimate says nothing of."""
        return Served(plan, estimate, void=bool(_void_of(self.opened)) and not plan.is_flat)

    def hits(
        self,
        scores: npt.NDArray[np.float32],
        positions: npt.NDArray[np.int64],
        served: Served,
        each: Sequence[Served] | None,
    ) -> list[Hits]:
        """What was found as lists of hits. each: how each query was answered, where they differ."""
        how = each or [served] * len(scores)
        return make_hits(self.opened.documents, self.opened.searcher.ids, scores, positions, how)


def lexical_of(opened: Opened) -> Lexical | None:
    """BM25 over the documents of every segment that were not deleted; None where there are bare vectors."""
    stores = [(segment.first, segment.documents) for segment in opened.segments if segment.documents is not None]
    if not stores:
        return None
    return Lexical(stores, [live_positions(segment, opened.live) for segment in opened.segments])


def _rows_of(opened: Opened) -> Rows:
    """The rows of a generation, as its monitor is told of them."""
    others, segments = opened.searcher.others, opened.segments
    return Rows(
        tuple((segment.id, segment.stop) for segment in segments),
        None if others is None else others.exact,
        opened.live,
        opened.searcher.cascade.as_stored,
    )


def _of_latency(key: tuple[object, ...]) -> bool:
    """Whether a choice was made for a latency: keys are those of `State.choice`, or a plan and k."""
    if len(key) == 2:
        return False
    latency, budget = key[4:6]
    return latency is not None or (isinstance(budget, Budget) and budget.latency_ms is not None)


def _void_of(opened: Opened) -> str:
    """Why nothing can be certified; "" where it can."""
    calibration = opened.searcher.calibration
    return "" if calibration is None else calibration.void
