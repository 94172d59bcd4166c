"""What a user gets: hits, how they were found, and how a budget is met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.plan import Plan
from funnel.planning.certificate import Certificate
from funnel.planning.costs import Held
from indexes import Pruning

__all__ = [
    "BM25_ALONE",
    "Answers",
    "Explanation",
    "Hit",
    "Hits",
    "Ranks",
    "Served",
    "StageLine",
    "stage_lines",
]

BM25_ALONE = "words alone, by BM25"
BAR = 30  # characters of the longest bar that is drawn


@dataclass(frozen=True, slots=True)
class Ranks:
    """Where a hit of a hybrid search stood in the two lists, from 1, and its scores there; None where it was not."""

    dense: int | None = None
    cosine: float | None = None
    lexical: int | None = None
    bm25: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One result: the user's id, the cosine to the query, and the document where the index holds one.

    Of a hybrid search the score is the sum of weighted reciprocal ranks, at most 1/61, and `ranks` says what it came
    from; else that is None.
    """

    id: str | int
    score: float
    title: str = ""
    text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    ranks: Ranks | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """How a call was answered.

    plan: what was run, or begun. estimated_recall: mean recall@k of what was done of it on the calibration queries;
    NaN where it was not measured. void: whether live searches had shown by then that the estimate does not hold for
    them, or rows were added whose own coarse index was not measured (see `FunnelIndex.health`). skipped: steps that a
    deadline left out; in a batch the most of any query.
    rows_seen: the share of the rows that flat search compared; less than 1 where a deadline stopped it, and then the
    estimate too. lexical: of a hybrid search, whose other fields speak of its dense list: whether BM25 was done by the
    deadline; else None. dense: False where BM25 alone was asked for: no plan was run, and nothing estimated.
    """

    plan: Plan
    estimated_recall: float
    void: bool = False
    skipped: int = 0
    rows_seen: float = 1.0
    lexical: bool | None = None
    allowed_rows: int | None = None
    dense: bool = True

    @property
    def stages(self) -> int:
        """Steps of the whole plan: see `Plan.steps`."""
        return self.plan.steps if self.dense else 0

    @property
    def stages_done(self) -> int:
        """Steps that were done."""
        return self.stages - self.skipped

    @property
    def complete(self) -> bool:
        """Whether every step was done; if not, `score` is the cosine on the prefix of the last one that was."""
        return self.skipped == 0 and self.lexical is not False

    def to_json(self) -> dict[str, Any]:
        """The record as plain values; an estimate that was not measured is None."""
        known = self.estimated_recall == self.estimated_recall
        hybrid = {} if self.lexical is None else {"lexical": self.lexical}
        return {
            "plan": self.plan.to_json() if self.dense else None,
            "estimated_recall": self.estimated_recall if known else None,
            "stages_done": self.stages_done,
            "stages": self.stages,
            "complete": self.complete,
            "rows_seen": self.rows_seen,
            "void": self.void,
            **hybrid,
            "allowed_rows": self.allowed_rows,
        }

    def __str__(self) -> str:
        if not self.dense:
            among = "" if self.allowed_rows is None else f" among {self.allowed_rows:,} allowed rows"
            return f"{BM25_ALONE}{among}{'' if self.complete else ', stopped before it was done'}"
        said = f"{self.plan}: {self._how_far}{self._worth}"
        if self.stored_only:
            said += ", as this search is exact over the rows as stored, not over the rows as given"
        if self.allowed_rows is None:
            return said
        basis = " (measured under this filter, not certified)"
        if self.plan.is_flat:
            basis = " (each compared, as stored)" if self.stored_only else ""
        return f"{said} among {self.allowed_rows:,} allowed rows{basis}"

    @property
    def stored_only(self) -> bool:
        """Whether this is flat search to its end, and rows were stored in so few bits that it is not exact."""
        return self.plan.is_flat and self.rows_seen == 1.0 and self.estimated_recall < 1.0

    @property
    def _worth(self) -> str:
        if self.plan.is_flat and self.complete and self.estimated_recall == 1.0:
            return "exact"
        known = self.estimated_recall == self.estimated_recall
        return f"estimated recall {self.estimated_recall:.4f}" if known else "recall not measured"

    @property
    def _how_far(self) -> str:
        if self.complete:
            return ""
        if not self.skipped:
            return "stopped before BM25 was done, the dense list alone, "
        what = f"{self.rows_seen:.0%} of the rows" if self.plan.is_flat else f"step {self.stages_done} of {self.stages}"
        return f"stopped after {what}, "


class Hits(list[Hit]):
    """The hits of one query, best first; `served` says how they were found."""

    __slots__ = ("served",)

    def __init__(self, hits: Iterable[Hit], served: Served) -> None:
        super().__init__(hits)
        self.served: Served = served


class Answers(tuple[npt.NDArray[Any], npt.NDArray[np.float32]]):
    """(ids [n_queries, k], scores float32 [n_queries, k]); `served` says how they were found."""

    served: Served

    def __new__(cls, ids: npt.NDArray[Any], scores: npt.NDArray[np.float32], served: Served) -> Answers:
        """A pair that carries `served`."""
        pair = super().__new__(cls, (ids, scores))
        pair.served = served
        return pair

    @property
    def ids(self) -> npt.NDArray[Any]:
        """int64, or str in an object array: [n_queries, k], best first."""
        return self[0]

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Cosines, float32 [n_queries, k], falling."""
        return self[1]


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
    was promised by, where one was asked for. candidates: the coarse indexes that were timed on a sample of the rows
    before one was built: coarse, width, held_bytes over all rows, and us, microseconds a query in batch at recall@10
    .95, None where that was not reached.
    """

    budget: str
    k: int
    batch: int
    plan: Plan
    stages: tuple[StageLine, ...]
    p50_ms: float
    p95_ms: float
    certificate: Certificate
    exact: str = ""
    held: Held | None = None
    candidates: tuple[Mapping[str, Any], ...] = ()

    @property
    def recall(self) -> float:
        """Mean recall@k on the calibration queries."""
        known = self.certificate
        return known.estimate if known.share is None else known.mean_recall

    @property
    def recall_lower_bound(self) -> float:
        """Of the same queries, at the certificate's confidence; NaN where none is certified, or a share was asked."""
        known = self.certificate
        return known.lower_bound if known.certified and known.share is None else math.nan

    @property
    def share(self) -> float | None:
        """The share of queries that get the recall asked for; None where the mean was."""
        return None if self.certificate.share is None else self.certificate.estimate

    @property
    def share_lower_bound(self) -> float | None:
        """Its bound, as that of the recall; None where there is none."""
        known = self.certificate
        return known.lower_bound if known.certified and known.share is not None else None

    @property
    def bytes_touched(self) -> int:
        """Bytes of vectors read by the reranks of one query."""
        return sum(line.bytes_touched or 0 for line in self.stages if line.name != "coarse")

    @property
    def promised(self) -> str:
        """What was measured of recall, in words."""
        if self.is_exact:
            return f"recall@{self.k} 1.0000"
        if self.share is None and math.isnan(self.recall):
            return f"recall@{self.k} not measured"
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
        names = ("recall", "recall_lower_bound", "p50_ms", "p95_ms", "exact", "share", "share_lower_bound")
        record: dict[str, Any] = {name: getattr(self, name) for name in ("budget", "k", "batch", *names)}
        return {name: None if value != value else value for name, value in record.items()} | {
            "plan": self.plan.to_json(),
            "stages": [asdict(line) for line in self.stages],
            "certificate": self.certificate.to_json(),
            "held": None if self.held is None else asdict(self.held),
            "candidates": list(self.candidates),
        }

    def __str__(self) -> str:
        flat = "exact" if self.is_exact else "exact over the rows as stored"
        lines = [
            f"{self.budget} at k={self.k}: {self.plan}" + (f": {flat}, {self.exact}" if self.exact else ""),
            f"  {self.promised}; p50 {self.p50_ms:.3f} ms, p95 {self.p95_ms:.3f} ms for {_calls(self.batch)}",
            f"  {self.certificate}",
        ]
        if not self.plan.is_flat and not math.isnan(self.recall):
            lines.append(f"  {self.certificate.evidence}")
        if self.held is not None:
            lines.append(f"  held: {self.held}")
        return "\n".join([*lines, *self._table(), *self._drawn(), *self._timed()])

    def _timed(self) -> list[str]:
        """The candidates, the quickest first."""
        lines = ["  coarse indexes timed on a sample, µs a query in batch at recall@10 .95, MB held over all rows:"]
        for one in sorted(self.candidates, key=lambda one: one["us"] or math.inf):
            us = "–" if one["us"] is None else f"{one['us']:.1f}"
            over = f"{one['coarse']} over {one['width']} dims"
            lines.append(f"  {over:<28}{us:>8} µs{one['held_bytes'] / 1e6:>10,.0f} MB")
        return lines if self.candidates else []

    @property
    def is_exact(self) -> bool:
        """Whether this is exact search, of which no recall is estimated."""
        return self.plan.is_flat and self.recall >= 1.0

    def _table(self) -> list[str]:
        run = any(line.measured_ms is not None for line in self.stages)
        head = f"  {'a query':<8}{'dims':>6}{'in':>13}{'out':>9}{'MB touched':>12}{'predicted µs':>14}{'recall':>8}"
        lines = [head + (f"{'measured µs':>13}{'measured recall':>17}" if run else "")]
        for line in self.stages:
            touched = "–" if line.bytes_touched is None else f"{line.bytes_touched / 1e6:,.3f}"
            recall = "–" if math.isnan(line.recall) else f"{line.recall:.4f}"
            predicted = "–" if math.isnan(line.predicted_ms) else f"{line.predicted_ms * 1e3 / self.batch:,.1f}"
            text = (
                f"  {line.name:<8}{line.width:>6}{line.candidates_in:>13,}{line.candidates_out:>9,}{touched:>12}"
                f"{predicted:>14}{recall:>8}"
            )
            measured = "" if line.measured_ms is None else f"{line.measured_ms * 1e3 / self.batch:>13,.1f}"
            lines.append(text + (f"{measured}{line.measured_recall:>17.4f}" if run else ""))
        return lines

    def _drawn(self) -> list[str]:
        """The rows that are left along the widths, a bar for each step, and recall; of a plan that was run."""
        most, lines = max(line.candidates_out for line in self.stages), []
        for line in self.stages if len(self.stages) > 1 else ():
            if line.measured_recall is not None:
                bar = "█" * max(1, BAR * line.candidates_out // most)
                left = f"{line.candidates_out:,} left".ljust(BAR + 12 - len(bar))
                lines.append(f"  {line.width:>5} {bar} {left} recall {line.measured_recall:.4f}")
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
    measured: Sequence[tuple[float, float]] = (),
    pruning: Pruning | None = None,
) -> tuple[StageLine, ...]:
    """The steps of a plan. widths: of the first search, and d; the rest as in StageLine, a figure a step.

    pruning: how flat search is run. measured: for each step the median milliseconds of a call, and the mean recall@k if
    stopped after it.
    """
    coarse_width, dim = widths
    if plan.is_flat:
        name, width, share = ("flat", dim, 0.0) if pruning is None else ("pruned", pruning.width, pruning.share)
        a_code = 1 if pruning is not None and pruning.kept else bytes_per_value
        touched = rows * width * a_code + round(rows * share) * dim * bytes_per_value
        lines = [StageLine(name, width, rows, k, predicted_ms[0], touched, recalls[0])]
    else:
        first = "scan" if plan.width else "coarse"
        lines = [StageLine(first, coarse_width, rows, plan.shortlist, predicted_ms[0], coarse_bytes, recalls[0])]
        candidates = plan.shortlist
        steps = [(dim, k, "exact") if stage is None else (stage.width, stage.keep, "rerank") for stage in plan.reranks]
        for (width, keep, name), ms, recall in zip(steps, predicted_ms[1:], recalls[1:], strict=True):
            touched = candidates * width * bytes_per_value
            lines.append(StageLine(name, width, candidates, keep, ms, touched, recall))
            candidates = keep
    if not measured:
        return tuple(lines)
    return tuple(
        replace(line, measured_ms=ms, measured_recall=recall)
        for line, (ms, recall) in zip(lines, measured, strict=True)
    )


def _calls(batch: int) -> str:
    return "one query" if batch == 1 else f"a call of {batch} queries"
