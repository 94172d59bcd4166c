"""What `explain` says: the plan of a budget, stage by stage, and what is promised of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from funnel.plan import Plan
from funnel.planning.certificate import Certificate
from indexes import Pruning

__all__ = ["Explanation", "StageLine", "stage_lines"]


@dataclass(frozen=True, slots=True)
class StageLine:
    """One step of a plan.

    width: dims looked at. candidates_in, candidates_out: rows a query. predicted_ms: for one call of the batch.
    bytes_touched: of vectors, a query; for the coarse search None, as that depends on the walk.
    """

    name: str
    width: int
    candidates_in: int
    candidates_out: int
    predicted_ms: float
    bytes_touched: int | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The plan that a budget is served by. May be given to `search` as its plan.

    recall: mean recall@k on the calibration queries; recall_lower_bound at the certificate's confidence.
    p50_ms, p95_ms: measured milliseconds of one call of `batch` queries, end to end from vectors.
    exact: where the plan is flat, how it is run: every row at full width, or pruned by a prefix.
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

    @property
    def bytes_touched(self) -> int:
        """Bytes of vectors read by the reranks of one query."""
        return sum(line.bytes_touched or 0 for line in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        record = {name: getattr(self, name) for name in self.__slots__ if name not in ("plan", "stages", "certificate")}
        record["plan"] = self.plan.to_json()
        record["stages"] = [{name: getattr(line, name) for name in line.__slots__} for line in self.stages]
        record["certificate"] = self.certificate.to_json()
        return record

    def __str__(self) -> str:
        lines = [
            f"{self.budget} at k={self.k}: {self.plan}" + (f": exact, {self.exact}" if self.exact else ""),
            f"  recall@{self.k} {self.recall:.4f} (lower bound {self.recall_lower_bound:.4f}); "
            f"p50 {self.p50_ms:.3f} ms, p95 {self.p95_ms:.3f} ms for {_calls(self.batch)}",
            f"  {self.certificate}",
        ]
        if not self.plan.is_flat:
            lines.append(f"  {self.certificate.evidence}")
        for line in self.stages:
            touched = "" if line.bytes_touched is None else f", {line.bytes_touched / 1024:.1f} KiB a query"
            lines.append(
                f"  {line.name:<8} {line.width:>5} dims  {line.candidates_in:>9,} → {line.candidates_out:<7,} "
                f"{line.predicted_ms:8.3f} ms predicted{touched}"
            )
        return "\n".join(lines)


def stage_lines(
    plan: Plan,
    k: int,
    rows: int,
    coarse_width: int,
    dim: int,
    bytes_per_value: int,
    predicted_ms: list[float],
    pruning: Pruning | None = None,
) -> tuple[StageLine, ...]:
    """The steps of a plan, with the predicted milliseconds of each. pruning: how flat search is run."""
    if plan.is_flat and pruning is not None:
        looked_at = rows * pruning.width + round(rows * pruning.share) * dim
        return (StageLine("pruned", pruning.width, rows, k, predicted_ms[0], looked_at * bytes_per_value),)
    if plan.is_flat:
        return (StageLine("flat", dim, rows, k, predicted_ms[0], rows * dim * bytes_per_value),)
    lines = [StageLine("coarse", coarse_width, rows, plan.shortlist, predicted_ms[0], None)]
    candidates, start = plan.shortlist, 0
    steps = [(stage.width, stage.keep, "rerank") for stage in plan.stages] + [(dim, k, "exact")]
    for (width, keep, name), ms in zip(steps, predicted_ms[1:], strict=True):
        touched = candidates * (width - start) * bytes_per_value
        lines.append(StageLine(name, width, candidates, keep, ms, touched))
        candidates, start = keep, width
    return tuple(lines)


def _calls(batch: int) -> str:
    return "one query" if batch == 1 else f"a call of {batch} queries"
