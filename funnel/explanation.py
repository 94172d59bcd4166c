"""What `explain` says: the plan of a budget, stage by stage, and what is promised of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from funnel.engine.steps import MeasuredStep
from funnel.plan import Plan
from funnel.planning.certificate import Certificate
from funnel.planning.windows import Held
from indexes import Pruning

__all__ = ["Explanation", "StageLine", "stage_lines"]


@dataclass(frozen=True, slots=True)
class StageLine:
    """One step of a plan.

    width: dims looked at. candidates_in, candidates_out: rows a query. predicted_ms: for one call of the batch.
    bytes_touched: a query; of vectors, and for the coarse search of codes and links (None where it was not counted).
    recall: estimated mean recall@k if the plan were stopped after this step. measured_ms, measured_recall: of the
    plan as it was run for this, step by step; None where it was not.
    """

    name: str
    width: int
    candidates_in: int
    candidates_out: int
    predicted_ms: float
    bytes_touched: int | None
    recall: float
    measured_ms: float | None = None
    measured_recall: float | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan that a budget is served by. May be given to `search` as its plan.

    recall: mean recall@k on the calibration queries; recall_lower_bound, of the same queries, at the certificate's
    confidence, NaN where nothing is certified or a share of queries was asked for. share, share_lower_bound: the same
    of the share of queries that get the recall asked for; None where the mean was, the bound also where nothing is
    certified. p50_ms, p95_ms: measured milliseconds of one call of `batch` queries, end to end from vectors, by one
    caller.
    exact: where the plan is flat, how it is run: every row at full width, or pruned by a prefix. held: what a latency
    was promised by, where one was asked for.
    """

    budget: str
    k: int
    batch: int
    plan: Plan
    stages: tuple[StageLine, ...]
    recall: float
    recall_lower_bound: float
    p50_ms: float
    p95_ms: float
    certificate: Certificate
    exact: str = ""
    held: Held | None = None
    share: float | None = None
    share_lower_bound: float | None = None

    @classmethod
    def of(
        cls,
        budget: str,
        k: int,
        batch: int,
        plan: Plan,
        stages: tuple[StageLine, ...],
        times_ms: tuple[float, float],
        certificate: Certificate,
        exact: str,
        held: Held | None,
    ) -> Explanation:
        """What a certificate says, and the rest. times_ms: p50 and p95."""
        whole = (budget, k, batch, plan, stages)
        rest = (*times_ms, certificate, exact, held)
        if certificate.share is None:
            made = cls(*whole, certificate.estimate, certificate.lower_bound, *rest)
        else:
            share = (certificate.estimate, certificate.lower_bound)
            made = cls(*whole, certificate.mean_recall, math.nan, *rest, *share)
        return made.under(certificate)

    def under(self, certificate: Certificate) -> Explanation:
        """The same under a certificate as it now stands: without a bound where nothing is certified."""
        if certificate.certified:
            return replace(self, certificate=certificate)
        return replace(self, certificate=certificate, recall_lower_bound=math.nan, share_lower_bound=None)

    @property
    def bytes_touched(self) -> int:
        """Bytes of vectors read by the reranks of one query."""
        return sum(line.bytes_touched or 0 for line in self.stages if line.name != "coarse")

    @property
    def promised(self) -> str:
        """What was measured of recall, in words."""
        if self.is_exact:
            return f"recall@{self.k} 1.0000"
        if self.share is None:
            bound = "" if math.isnan(self.recall_lower_bound) else f" (lower bound {self.recall_lower_bound:.4f})"
            return f"recall@{self.k} {self.recall:.4f}{bound}"
        bound = "" if self.share_lower_bound is None else f" (lower bound {self.share_lower_bound * 100:.2f} %)"
        return (
            f"recall@{self.k} ≥ {self.certificate.recall:g} for {self.share * 100:.2f} % of queries{bound}, "
            f"mean {self.recall:.4f}"
        )

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        record = {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("plan", "stages", "certificate", "held")
        }
        if math.isnan(self.recall_lower_bound):  # NaN is not JSON
            record["recall_lower_bound"] = None
        record["plan"] = self.plan.to_json()
        record["stages"] = [{name: getattr(line, name) for name in line.__slots__} for line in self.stages]
        record["certificate"] = self.certificate.to_json()
        record["held"] = None if self.held is None else asdict(self.held)
        return record

    def __str__(self) -> str:
        lines = [
            f"{self.budget} at k={self.k}: {self.plan}" + (f": {self._flat}, {self.exact}" if self.exact else ""),
            f"  {self.promised}; p50 {self.p50_ms:.3f} ms, p95 {self.p95_ms:.3f} ms for {_calls(self.batch)}",
            f"  {self.certificate}",
        ]
        if not self.plan.is_flat:
            lines.append(f"  {self.certificate.evidence}")
        if self.held is not None:
            lines.append(f"  95th percentile held: {self.held}")
        return "\n".join([*lines, *self._table()])

    @property
    def is_exact(self) -> bool:
        """Whether this is exact search, of which no recall is estimated."""
        return self.plan.is_flat and self.recall >= 1.0

    @property
    def _flat(self) -> str:
        return "exact" if self.is_exact else "exact over the rows as stored"

    def _table(self) -> list[str]:
        run = any(line.measured_ms is not None for line in self.stages)
        head = f"  {'step':<15}{'dims':>5}{'in':>11}{'out':>7}{'KiB a query':>13}{'predicted ms':>14}{'recall':>8}"
        lines = [head + (f"{'measured ms':>13}{'measured recall':>17}" if run else "")]
        for line in self.stages:
            touched = "–" if line.bytes_touched is None else f"{line.bytes_touched / 1024:,.1f}"
            recall = "–" if math.isnan(line.recall) else f"{line.recall:.4f}"
            text = (
                f"  {line.name:<15}{line.width:>5}{line.candidates_in:>11,}{line.candidates_out:>7,}{touched:>13}"
                f"{line.predicted_ms:>14.3f}{recall:>8}"
            )
            lines.append(text + (f"{line.measured_ms:>13.3f}{line.measured_recall:>17.4f}" if run else ""))
        return lines


def stage_lines(
    plan: Plan,
    k: int,
    rows: int,
    widths: tuple[int, int],
    bytes_per_value: int,
    predicted_ms: Sequence[float],
    recalls: Sequence[float],
    coarse_bytes: int | None = None,
    measured: Sequence[MeasuredStep] = (),
    pruning: Pruning | None = None,
) -> tuple[StageLine, ...]:
    """The steps of a plan. widths: of the coarse index, and d; the rest as in StageLine, a figure a step.

    pruning: how flat search is run.
    """
    coarse_width, dim = widths
    if plan.is_flat and pruning is not None:
        looked_at = rows * pruning.width + round(rows * pruning.share) * dim
        touched = looked_at * bytes_per_value
        lines = [StageLine("pruned", pruning.width, rows, k, predicted_ms[0], touched, recalls[0])]
    elif plan.is_flat:
        lines = [StageLine("flat", dim, rows, k, predicted_ms[0], rows * dim * bytes_per_value, recalls[0])]
    else:
        lines = [StageLine("coarse", coarse_width, rows, plan.shortlist, predicted_ms[0], coarse_bytes, recalls[0])]
        candidates, start = plan.shortlist, 0
        steps = [(dim, k, "exact") if stage is None else (stage.width, stage.keep, "rerank") for stage in plan.reranks]
        for (width, keep, name), ms, recall in zip(steps, predicted_ms[1:], recalls[1:], strict=True):
            touched = candidates * (width - start) * bytes_per_value
            lines.append(StageLine(name, width, candidates, keep, ms, touched, recall))
            candidates, start = keep, width
    if not measured:
        return tuple(lines)
    return tuple(
        replace(line, measured_ms=step.ms, measured_recall=step.recall)
        for line, step in zip(lines, measured, strict=True)
    )


def _calls(batch: int) -> str:
    return "one query" if batch == 1 else f"a call of {batch} queries"
