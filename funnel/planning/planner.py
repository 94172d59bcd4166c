"""From a budget to a plan, and what is promised of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from funnel.budget import Budget
from funnel.errors import BudgetError, InputError
from funnel.plan import FLAT, Plan
from funnel.planning.bounds import betting_lower_bound, fixed_sequence, queries_needed
from funnel.planning.calibration import Calibration
from funnel.planning.certificate import Certificate
from funnel.planning.costs import Costs, Held, Latencies, Latency, batch_class
from funnel.planning.frontier import Frontier, hits_needed, tail_of
from funnel.planning.remembered import Remembered
from funnel.planning.run import LARGEST_K

__all__ = ["Choice", "Latency", "Planner"]

# A plan whose predicted cost is beyond the latency by more than this is not tried: predictions are within 1.5x.
PREDICTION_SLACK = 1.5
# From a plan that could not hold a latency to the next that is tried: so much cheaper. Of several plans at the edge one
# would hold it by luck, as each that is tried may break it in one window of 20.
STEP = 0.7


@dataclass(frozen=True, slots=True)
class Choice:
    """The plan that is served for a budget, and its certificate."""

    plan: Plan
    certificate: Certificate


class Planner:
    """Chooses the cheapest plan that meets a budget; remembers what it chose.

    measure(plan, k, batch) runs whole calls and gives their Latency; hold(plan, k, batch, allowed) measures what of it
    can be promised, see `held_ms` (None: what `measure` gives is). costs are those of this machine.
    """

    def __init__(
        self,
        calibration: Calibration,
        costs: Costs,
        measure: Callable[[Plan, int, int], Latency],
        hold: Callable[[Plan, int, int, float | None], Held] | None = None,
    ) -> None:
        self.calibration = calibration
        self.costs = costs
        self._chosen: Remembered[tuple[Budget, int, int, float], Choice] = Remembered()
        self._passes: Remembered[tuple[int, float | None, float | None, float], int] = Remembered()
        known = calibration.latencies if costs.machine == calibration.costs.machine else []
        self.latencies: Latencies = Latencies(measure, hold, known)

    def choose(self, budget: Budget, k: int, n_queries: int, beside_ms: float = 0.0) -> Choice:
        """The plan for this budget, k and batch size; beside_ms is what the call takes beside the search.

        Raises BudgetError, naming the nearest plans, when none meets the budget; InputError for a k that was not
        calibrated.
        """
        key = (budget, k, batch_class(n_queries), 0.0 if budget.latency_ms is None else beside_ms)
        choice = self._chosen.get(key)
        if choice is None:
            choice = self._chosen[key] = self._choose(*key)
        return choice

    def promised(self) -> list[dict[str, object]]:
        """What was chosen so far, as `Calibration.certificates` keeps it: batch size, plan and certificate."""
        return [
            {"batch": batch, "plan": choice.plan.to_json(), "certificate": choice.certificate.to_json()}
            for (_, _, batch, _), choice in list(self._chosen.items())
        ]

    def certificate(self, plan: Plan, budget: Budget, k: int) -> Certificate:
        """What can be said of this plan's recall@k; certified only where it passed the test for the budget."""
        if plan.is_flat:
            return self._exact(budget, k, "flat search at full width")
        frontier = self.frontier(budget, k)
        if frontier is None or plan not in frontier.plans:
            return self._record(budget, k, False, math.nan, 0.0, "uncertified: this plan was not calibrated")
        position = frontier.plans.index(plan)
        recalls = frontier.recalls(position)
        lost, most_lost, delta = self.calibration.storage_loss(k, budget.delta, whole=budget.share is not None)
        passed, note = False, "no recall was asked for, so none is certified"
        if not self.calibration.certifies:
            note = self.calibration.kind
        elif budget.recall is not None:
            passed = position < self._passed(frontier, budget)
            note = "" if passed else f"{budget.promise} is not certified for this plan"
        # The test is exact, the bound found to a resolution.
        least = (budget.target or 0.0) if passed else 0.0
        bound = max(least, betting_lower_bound(recalls, delta) - most_lost)
        mean = max(0.0, float(frontier.hits[position].mean() / k) - self.calibration.storage_loss(k, budget.delta)[0])
        return self._record(budget, k, passed, max(0.0, float(recalls.mean()) - lost), bound, note, mean=mean)

    def frontier(self, budget: Budget, k: int) -> Frontier | None:
        """The plans that are tested for a budget, in their order; None where k is beyond the record."""
        uniform = self.calibration.frontier(k)
        if budget.share is None or budget.recall is None or uniform is None:
            return uniform
        return tail_of(uniform, hits_needed(budget.recall, k))

    def mean_recall(self, plan: Plan, k: int) -> float:
        """Mean recall@k of a plan on the calibration queries; NaN where it is not among those tested so far."""
        known = self.calibration.frontiers.get(k)
        if known is None or plan not in known.plans:
            return math.nan
        return float(known.hits[known.plans.index(plan)].mean() / k)

    def _choose(self, budget: Budget, k: int, batch: int, beside_ms: float) -> Choice:
        frontier = self.frontier(budget, k)
        allowed = math.inf if budget.latency_ms is None else budget.latency_ms - beside_ms
        if frontier is None:  # flat search costs nothing for so few rows that the record is not deeper
            if not budget.exact and self.calibration.depth >= LARGEST_K:
                raise InputError(
                    f"k is {k}; this index is calibrated for k up to {self.calibration.depth}. "
                    "Ask for fewer, or for recall=1.0, which is exact search"
                )
            frontier = Frontier(k, (), np.empty((0, 0), dtype=np.uint8), None)
        if budget.recall is None:
            return self._most_recall(frontier, budget, batch, allowed)
        return self._cheapest(frontier, budget, batch, allowed)

    def candidates(self, budget: Budget, k: int, batch: int) -> list[Plan]:
        """The plans that hold the recall of the budget, flat search among them, from the cheapest up.

        batch: a batch class. k: within the calibrated depth.
        """
        frontier = self.frontier(budget, k)
        passed = () if frontier is None or budget.exact else frontier.plans[: self._passed(frontier, budget)]
        return sorted([FLAT, *passed], key=lambda plan: self._cost(plan, batch))

    def _exact(self, budget: Budget, k: int, why: str, needed: int | None = None) -> Certificate:
        """What can be said of flat search: it is exact over the rows as stored, and nearly always over those given."""
        storage = self.calibration.storage
        if storage is None or self.calibration.flat_recall(k) == 1.0:
            return self._record(budget, k, True, 1.0, 1.0, f"exact: {why}", needed)
        recalls = storage.kept(k)
        met = recalls if budget.share is None else (recalls >= (budget.recall or 1.0)).astype(np.float64)
        bound = betting_lower_bound(met, budget.delta)
        holds = budget.target is not None and bound >= budget.target
        note = (
            f"{why}, over rows as stored, which keeps {recalls.mean():.4f} of the true top "
            f"{min(k, storage.depth)} of the rows as given; built with dtype='float32' it is exact"
        )
        return self._record(budget, k, holds, float(met.mean()), bound, note, needed, float(recalls.mean()))

    def _passed(self, frontier: Frontier, budget: Budget) -> int:
        """How many of the first plans are certified for the budget: tested once, whatever the batch size."""
        key = (frontier.k, budget.recall, budget.share, budget.delta)
        passed = self._passes.get(key)
        if passed is None:
            _, lost, delta = self.calibration.storage_loss(frontier.k, budget.delta, whole=budget.share is not None)
            target = (budget.target or 1.0) + lost
            recalls = (frontier.recalls(i) for i in range(len(frontier.plans)))
            passed = self._passes[key] = 0 if target > 1.0 else fixed_sequence(recalls, target, delta)
        return passed

    def _cheapest(self, frontier: Frontier, budget: Budget, batch: int, allowed: float) -> Choice:
        k = frontier.k
        plans = self.candidates(budget, k, batch)
        for plan in plans:
            likely = self._cost(plan, batch) <= allowed * PREDICTION_SLACK
            if allowed == math.inf or (likely and self.latencies.within(plan, k, batch, allowed)):
                return Choice(plan, self._explained(plan, frontier, budget))
        raise self._neither(frontier, budget, batch, allowed, plans[0])

    def _most_recall(self, frontier: Frontier, budget: Budget, batch: int, allowed: float) -> Choice:
        fastest = min([FLAT, *frontier.plans], key=lambda plan: self._cost(plan, batch))
        dearest = allowed * PREDICTION_SLACK
        order = np.argsort([-frontier.recalls(i).mean() for i in range(len(frontier.plans))], kind="stable")
        for plan in [FLAT, *(frontier.plans[i] for i in order), fastest]:
            cost = self._cost(plan, batch)
            if cost > dearest and plan != fastest:
                continue
            if self.latencies.within(plan, frontier.k, batch, allowed):
                return Choice(plan, self.certificate(plan, budget, frontier.k))
            if self.latencies.tried(plan, frontier.k, batch):
                dearest = min(dearest, cost * STEP)
        raise BudgetError(
            f"no plan answers {_calls(batch)} for k={frontier.k} within {allowed:.3g} ms: the fastest "
            f"({self._named(fastest)}) takes {self.latencies.said(fastest, frontier.k, batch)}. "
            "Allow more time, or build with fewer dims"
        )

    def _neither(self, frontier: Frontier, budget: Budget, batch: int, allowed: float, cheapest: Plan) -> BudgetError:
        message = (
            f"no plan meets {budget} for {_calls(batch)} at k={frontier.k}: the cheapest that holds the recall "
            f"({self._named(cheapest)}) takes {self.latencies.said(cheapest, frontier.k, batch)}"
        )
        within = max(allowed, 1e-6)
        alone = Budget(latency_ms=within) if budget.share is None else replace(budget, latency_ms=within)
        try:
            nearest = self._most_recall(frontier, alone, batch, allowed)
        except BudgetError as error:
            return BudgetError(f"{message}; {error}")
        estimate, of_all = nearest.certificate.estimate, budget.share is None
        best = f"recall {estimate:.4f}" if of_all else f"that recall for {estimate * 100:.2f} % of queries"
        said = f"{message}; within {allowed:.3g} ms the best ({self._named(nearest.plan)}) has {best}"
        if not nearest.plan.is_flat and estimate > (budget.target or 1.0):  # fast enough, and only not certified
            needed = self._needed(frontier, budget, frontier.plans.index(nearest.plan))
            said += "" if needed is None else f", and about {needed:,} real queries would certify it"
        return BudgetError(said)

    def _explained(self, plan: Plan, frontier: Frontier, budget: Budget) -> Certificate:
        certificate = self.certificate(plan, budget, frontier.k)
        if not plan.is_flat or budget.exact:
            return certificate
        needed = self._needed(frontier, budget) if frontier.plans else None
        if self._passed(frontier, budget):
            why, needed = "flat search, the cheapest plan that holds the recall", None
        elif not frontier.plans:
            why = f"flat search: no plan that finds {frontier.k} candidates is cheaper"
        elif needed is None:
            weak = f"no recall above {budget.recall:g} on these queries"
            if budget.share is not None:
                weak = f"a recall of {budget.recall:g} for no more than {budget.share * 100:g} % of these queries"
            why = f"flat search: the strongest calibrated plan ({self._named(frontier.plans[0])}) has {weak}"
        else:
            few = f"{frontier.hits.shape[1]:,} queries are too few"
            why = f"flat search: {few} to certify {budget.promise}; about {needed:,} would do"
        kind = "" if self.calibration.certifies else f" ({self.calibration.kind})"
        return self._exact(budget, frontier.k, f"{why}{kind}", needed)

    def _named(self, plan: Plan) -> Plan:
        """The plan as a message names it: see `Plan.answering_alone`."""
        return plan if self.costs.reranked else plan.answering_alone()

    @staticmethod
    def _needed(frontier: Frontier, budget: Budget, position: int = 0) -> int | None:
        """About how many queries would certify the recall for a plan, by default the first that is tested."""
        recalls = frontier.recalls(position)
        needed = queries_needed(recalls, budget.target or 1.0, budget.delta)
        return None if needed is None else max(needed, len(recalls) + 1)

    def _cost(self, plan: Plan, batch: int) -> float:
        return self.costs.predict(plan, batch, self.calibration.dim)

    def _record(
        self,
        budget: Budget,
        k: int,
        certified: bool,
        estimate: float,
        bound: float,
        note: str,
        needed: int | None = None,
        mean: float | None = None,
    ) -> Certificate:
        calibration = self.calibration
        return Certificate(
            recall=budget.recall,
            k=k,
            delta=budget.delta,
            certified=certified,
            estimate=estimate,
            lower_bound=bound,
            n_queries=calibration.n_queries or calibration.n_corpus_rows,
            query_kind=calibration.kind,
            date=calibration.date,
            machine=json.dumps(calibration.costs.machine, sort_keys=True),
            note=note,
            queries_needed=needed,
            share=budget.share,
            mean_recall=estimate if mean is None else mean,
            updates=calibration.updates,
        )


def _calls(batch: int) -> str:
    return "one query" if batch == 1 else f"{batch} queries"
