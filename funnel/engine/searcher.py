"""From the user's vectors to ids: checks, adapts, plans, runs. What index, calibration and bench all call."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from funnel.adaptors import Adaptor
from funnel.budget import Budget
from funnel.checks import checked_name
from funnel.engine.cascade import Cascade, Float32, Int64, Space
from funnel.engine.segments import Others
from funnel.engine.steps import Found, allowed_only, search
from funnel.engine.timing import fingerprint, held_ms, measure_costs, times_ms
from funnel.engine.workers import workers
from funnel.errors import BudgetError, InputError
from funnel.plan import FLAT, Plan
from funnel.planning.calibration import SMALLEST_PLANNED, Calibration, step_recalls
from funnel.planning.certificate import Certificate
from funnel.planning.costs import Held, Latencies, Latency, batch_class
from funnel.planning.planner import Choice, Planner
from funnel.planning.remembered import Remembered
from funnel.request import Deadline
from funnel.rows import SAFE_SQUARED_LENGTH, unit_rows
from funnel.storage.ids import Ids, JoinedIds

__all__ = ["Searcher"]

SAMPLE_ROWS = 64  # rows that stand for queries where nothing was calibrated
ADAPTED_AT_A_TIME, FEWEST_ADAPTED = 64, 4  # queries adapted together on one worker
COMPARED_AT_A_TIME = 256  # queries whose lengths are looked at together on one worker
ROUNDING = 5e-7  # of squared lengths of rows that were scaled to unit length in float32; scores move by half of it
SECONDS_PER_LATENCY = 0.4  # a 95th percentile rests on as many calls as fit, up to 64


class Searcher:
    """One opened index, ready to answer vectors.

    cascade: of the first segment, over its live rows. order: its stored row -> input position. widths: of reranks, the
    last is d. calibration: None while one is being made. others: the segments beside the first; None where there are
    none, and then ids are those of the first. filtered: whether all are over the rows alone that a filter allows.
    """

    filtered: bool = False

    def __init__(
        self,
        cascade: Cascade,
        ids: Ids | JoinedIds,
        order: npt.NDArray[np.int64],
        widths: tuple[int, ...],
        calibration: Calibration | None = None,
        others: Others | None = None,
    ) -> None:
        self.others = others
        self.cascade = cascade
        self.space: Space = cascade.space
        self.ids = ids
        self.widths = widths
        self.calibration = calibration
        self.order: npt.NDArray[np.int64] = np.asarray(
            order
        )  # a view without the subclass of a map, whose indexing is slow
        # What they measure by: were they to hold the searcher that holds them, the coarse index would outlive its use.
        itself: Searcher = weakref.proxy(self)
        self._measures = partial(Searcher.latency, itself), partial(Searcher.hold, itself)
        self._flat = Latencies(*self._measures, [])  # of flat search, where there is no calibration to plan by
        self._step_recalls: Remembered[tuple[Plan, int, bool], tuple[float, ...]] = Remembered()

    @property
    def adaptor(self) -> Adaptor:
        """What was trained, chosen or given."""
        return self.cascade.space.adaptor

    @cached_property
    def dim(self) -> int:
        """The full width d."""
        return self.cascade.store.dim

    @cached_property
    def rows(self) -> int:
        """How many rows there are that were not deleted."""
        return self.cascade.rows + (0 if self.others is None else self.others.rows)

    @property
    def why_flat(self) -> str:
        """Why flat search serves every budget, where nothing is calibrated."""
        if self.others is None or self.rows < SMALLEST_PLANNED:
            return "the index is small enough for flat search"
        return (
            f"of the rows that are planned for {self.cascade.rows:,} are left, too few to measure, and "
            f"{self.others.rows:,} were added since: index.compact() or funnel compact plans for all of them"
        )

    def prepare(self, queries: npt.NDArray[np.generic]) -> Float32:
        """Unit rows of the user's vectors [n, d], as the cascade takes them: adapted where rows are stored so.

        Raises InputError for another width, and for NaN, infinite or zero rows (named).
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise InputError(
                f"queries have shape {list(queries.shape)}; expected [n_queries, {self.dim}], "
                f"as the index holds vectors of {self.dim} dims"
            )
        own = self.space.own
        if len(queries) == 1 and queries.dtype == np.float32:  # the general way takes several times as long
            row = np.ascontiguousarray(queries, dtype=np.float32)
            squared = float(np.vdot(row, row))
            if not abs(squared - 1.0) <= ROUNDING:  # NaN is not
                within = SAFE_SQUARED_LENGTH[0] < squared < SAFE_SQUARED_LENGTH[1]
                row = row * np.float32(1.0 / math.sqrt(squared)) if within else unit_rows(row, 0, "queries")
            return row if own else self.space.stored(row)
        if own and _are_unit_rows(queries):
            return queries
        if len(queries) < 2 * ADAPTED_AT_A_TIME:  # so that every bad row of a few is named
            return self.space.stored(unit_rows(queries, 0, "queries"))
        adapted = np.empty(queries.shape, dtype=np.float32)
        size = min(ADAPTED_AT_A_TIME, max(FEWEST_ADAPTED, -(-len(queries) // workers().count)))

        def piece(start: int) -> None:
            part = slice(start, start + size)
            rows = unit_rows(queries[part], start, "queries", adapted[part])
            if not own:
                adapted[part] = self.space.stored(rows)

        workers().run(piece, range(0, len(queries), size))
        return adapted

    def found(self, prepared: Float32, plan: Plan, k: int, deadline: Deadline | None = None) -> Found:
        """The best k of each query under the plan, by input position; with a deadline, as far as it was run by then.

        prepared: float32 [n, d], as `prepare` gives it.
        """
        inside = min(k, self.cascade.rows)
        if not inside:
            found = Found.none(len(prepared))
        elif deadline is None:
            found = Found(*self.cascade.run(prepared, plan, inside, fill=True))
        else:
            flat_ms = 0.0 if self.filtered else self.flat_ms(plan, k, len(prepared))
            found = search(self.cascade, prepared, plan, inside, deadline, flat_ms)
        found = Found(found.scores, self.positions(found.rows), found.done, found.seen)
        if self.others is None:
            return found
        if self.filtered:  # what a plan finds there was not measured
            plan, deadline = FLAT, None
        more = (search(cascade, prepared, plan, k, deadline) for _, cascade in self.others.coarse)
        return self.others.joined(self.cascade.rows, prepared, k, found, more)

    def among(self, masks: Mapping[str, npt.NDArray[np.bool_]], all_rows: npt.NDArray[np.bool_]) -> Searcher:
        """The same over some rows alone. masks: bool, of the rows of each segment by its identifier; all_rows: at once.

        Deletes are many rows less a few; what a filter allows may be few rows, which exact search gathers.
        """
        others = None if self.others is None else self.others.over(masks, all_rows)
        cascade = allowed_only(self.cascade, next(iter(masks.values())))
        made = Searcher(cascade, self.ids, self.order, self.widths, self.calibration, others)
        made.filtered = True
        return made

    def truth(self, prepared: Float32, k: int) -> tuple[Float32, Int64]:
        """The true best k by flat search over every row: scores float32 [n, k] and input positions int64 [n, k]."""
        scores, rows = self.cascade.truth(prepared, k)
        found = Found(scores, self.positions(rows))
        if self.others is not None:
            found = self.others.joined(self.cascade.rows, prepared, k, found, self.others.truths(prepared, k))
        return found.scores, found.rows

    def flat_ms(self, plan: Plan, k: int, n_queries: int) -> float:
        """The 95th percentile of flat search to its end, measured on first use; 0 for any other plan."""
        return self.latencies.of(FLAT, k, batch_class(n_queries)).p95 if plan.is_flat else 0.0

    def positions(self, rows: Int64) -> Int64:
        """Input positions of stored rows of the first segment; -1 stays -1."""
        return np.where(rows < 0, -1, self.order[rows])

    @cached_property
    def planner(self) -> Planner:
        """The planner, with costs measured again where the machine is another one."""
        calibration = self.calibration
        if calibration is None:
            raise InputError("this index has no calibration")
        costs = calibration.costs
        if costs.machine != fingerprint(self.cascade.store.device, self.cascade.store.placement):
            corpus, queries = calibration.runs()
            timed = (queries or corpus).queries
            costs = measure_costs(self.cascade, timed, corpus.efforts, self.widths, self.whole_call)
        return Planner(calibration, costs, *self._measures)

    def choose(self, budget: Budget, k: int, n_queries: int, beside_ms: float = 0.0) -> Choice:
        """The plan for a budget: see `Planner.choose`. Without a calibration flat search is served: it is exact."""
        if self.calibration is not None:
            choice = self.planner.choose(budget, k, n_queries, beside_ms)
            return replace(choice, plan=self.as_run(choice.plan))
        batch = batch_class(n_queries)
        if budget.latency_ms is not None and not self._flat.within(FLAT, k, batch, budget.latency_ms - beside_ms):
            raise BudgetError(
                f"no plan answers within {budget.latency_ms - beside_ms:.3g} ms: {self.why_flat}; flat search "
                f"takes {self._flat.said(FLAT, k, batch)} for a call of {batch}. Allow more time"
            )
        return Choice(FLAT, _exact_certificate(budget, k, self.why_flat))

    def as_run(self, plan: Plan) -> Plan:
        """The plan without an exact step, where the coarse index leaves none to do."""
        return plan.answering_alone() if self.cascade.alone and not plan.width else plan

    def given(self, plan: Plan, k: int) -> Plan:
        """A user's plan as this index runs it: of the coarse index where it begins at the width of that. InputError."""
        coarse, width = self.cascade.coarse, self.cascade.width
        if plan.width:  # by hand
            plan.check((*sorted({*self.cascade.ladder[:-1], width}), self.dim))
            if plan.width == width:
                enough = (effort for effort in coarse.efforts() if coarse.largest_shortlist(effort) >= plan.shortlist)
                plan = replace(plan, width=0, effort=plan.effort or next(enough, max(coarse.efforts())))
            elif plan.effort:
                raise InputError(f"plan {plan}: a scan takes no effort; @ is for the coarse index, of {width} dims")
        self.check(plan, k)
        return self.as_run(plan)

    def check(self, plan: Plan, k: int) -> None:
        """InputError unless this index can run the plan and it hands at least k candidates to the last stage."""
        plan.check(self.cascade.ladder if plan.width else self.widths)
        if plan.is_flat:
            return
        largest = plan.shortlist if plan.width else self.cascade.coarse.largest_shortlist(plan.effort)
        if plan.shortlist > largest:
            raise InputError(f"plan {plan}: at effort {plan.effort} this index gives a shortlist of at most {largest}")
        if plan.survivors < k:
            raise InputError(f"plan {plan} keeps {plan.survivors} candidates for full width, fewer than k={k}")

    def estimate(self, plan: Plan, k: int) -> float:
        """Mean recall@k of a plan on the calibration queries; NaN where it is not among those on record for k."""
        if plan.is_flat:
            return self.flat_recall(k)
        return math.nan if self.calibration is None else self.planner.mean_recall(plan, k)

    def flat_recall(self, k: int) -> float:
        """Mean recall@k of flat search: 1 where it is exact, else what storage leaves of the rows as given."""
        return 1.0 if self.calibration is None else self.calibration.flat_recall(k)

    def latency(self, plan: Plan, k: int, batch: int) -> Latency:
        """Run whole calls of `batch` queries and time them. Milliseconds."""
        times = times_ms(self.calls(plan, k, batch), SECONDS_PER_LATENCY)
        return Latency(float(np.median(times)), float(np.percentile(times, 95)))

    def hold(self, plan: Plan, k: int, batch: int, allowed: float | None = None) -> Held:
        """What can be promised of whole calls of `batch` queries, by two callers at once: see `held_ms`."""
        return held_ms(self.calls(plan, k, batch), allowed)

    def calls(self, plan: Plan, k: int, batch: int) -> Callable[[int], object]:
        """Call number 0, 1, … of a plan, each on the next of the sample, which comes round when all were used."""
        queries = self.sample_queries()
        queries = np.resize(queries, (max(batch, len(queries)), self.dim))
        batches = len(queries) // batch
        return lambda i: self.whole_call(queries[i % batches * batch :][:batch], plan, k)

    def step_recalls(self, plan: Plan, k: int) -> tuple[float, ...]:
        """Estimated recall@k if the plan were stopped after each of its steps; NaN where it was not measured."""
        key = (plan, k, plan.reranked)  # which is no part of a plan's value, and adds a step
        found = self._step_recalls.get(key)
        if found is None:
            if plan.is_flat or self.calibration is None:
                found = (1.0 if plan.is_flat else math.nan,) * plan.steps
            else:
                found = step_recalls(self.calibration, plan, k)
            self._step_recalls[key] = found
        return found

    def sample_queries(self) -> Float32:
        """Unit rows [q, d], as stored, to measure on: the real queries on record, held-out rows, or stored rows."""
        if self.calibration is None:
            return self.cascade.store.block(0, SAMPLE_ROWS).cpu().numpy()
        return self.calibration.run().queries

    @property
    def latencies(self) -> Latencies:
        """What calls take: of flat search alone, where nothing is calibrated."""
        return self._flat if self.calibration is None else self.planner.latencies

    def whole_call(self, prepared: Float32, plan: Plan, k: int) -> object:
        """One whole call, on queries that are prepared already: they are once more, for the time it takes."""
        self.prepare(prepared)
        found = self.found(prepared, plan, k)
        return self.ids.at(found.rows), found.scores


def _are_unit_rows(queries: npt.NDArray[np.generic]) -> TypeGuard[Float32]:
    """Whether rows [n, d] can be searched as they are, without a copy."""
    if queries.dtype != np.float32 or not queries.flags.c_contiguous:
        return False
    rows: Float32 = np.asarray(queries, dtype=np.float32)

    def unit(start: int) -> bool:
        part = rows[start : start + COMPARED_AT_A_TIME]
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.einsum("ij,ij->i", part, part)
        return bool((np.abs(lengths - 1.0) <= ROUNDING).all())

    further = range(COMPARED_AT_A_TIME, len(rows), COMPARED_AT_A_TIME)
    return unit(0) and (not further or all(workers().run(unit, further)))  # most that are not show it in the first rows


def _exact_certificate(budget: Budget, k: int, why: str) -> Certificate:
    return Certificate(
        recall=budget.recall,
        k=k,
        delta=budget.delta,
        certified=True,
        estimate=1.0,
        lower_bound=1.0,
        n_queries=0,
        query_kind="none",
        date="",
        machine="",
        note=f"exact: {why}",
        share=budget.share,
        mean_recall=1.0,
    )


def device_of(name: str) -> torch.device:
    """The torch device: "auto" is CUDA where there is any, else the CPU. InputError for one that is not there."""
    checked_name("device", name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; expected auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device is {name!r}; expected auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= (found := torch.cuda.device_count()):
        raise InputError(f"device is {name!r}, but torch finds {found or 'no'} CUDA device here; use auto or cpu")
    return device
