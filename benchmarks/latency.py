"""Latency budgets and deadlines on 200,000 x 384 real embeddings: windows held, recall of what was stopped."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import BudgetError, FunnelIndex
from funnel.engine.timing import CALLERS, window_p95s
from funnel.plan import FLAT, Plan, Stage
from funnel.reports.bench import recall_at_k

__all__ = ["latency"]

UNSEEN = 2_000  # queries that calibration never sees
K = 10
BUDGETS_MS = {1: 2.0, 32: 20.0, 256: 100.0}  # asked for at each batch size
WINDOWS, WINDOW_SECONDS = 50, 1.0
HELD_SHARE = 0.95  # of the windows
SHARES = (0.25, 0.5, 0.75)  # of a call's median, as deadlines
CALLS = 2_000  # with each deadline, or as many as fit the seconds
SECONDS_PER_DEADLINE = 2.5


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here; one that is there is opened.")
@click.option("--adaptor", default="auto", show_default=True)
@click.option("--windows", default=WINDOWS, show_default=True, help="Windows of a second for each figure.")
@click.option("--only", type=click.Choice(["windows", "deadlines"]), help="One part alone.")
@click.option("--batch", "batches", type=int, multiple=True, help="Windows of this batch size alone; several times.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def latency(
    vectors: Path | None,
    data: Path | None,
    index: Path | None,
    adaptor: str,
    windows: int,
    only: str | None,
    batches: tuple[int, ...],
    out: Path | None,
) -> None:
    """Windows of a second in which a latency is held, and what a deadline leaves.

    Example: python -m benchmarks latency --vectors ../shared/data/vectors-384
    """
    folder = vectors or data_folder(data) / "vectors-384"
    corpus, queries = next(folder.glob("corpus.*npy")), load_rows(next(folder.glob("queries.*npy")))
    unseen, known = queries[:UNSEEN], queries[UNSEEN:]
    targets: list[Target] = []
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        path = index or Path(temporary) / "index"
        if only != "deadlines":
            built = _made(corpus, path, known, adaptor, None)
            budgets = {batch: ms for batch, ms in BUDGETS_MS.items() if batch in (batches or BUDGETS_MS)}
            facts["windows"], made = measure_windows(built, unseen, windows, budgets)
            targets += made
        if only != "windows":
            # A deadline stops between stages; the index that is chosen by default may have a single one.
            staged = _made(corpus, path.with_name(f"{path.name}-staged"), known, adaptor, "hnsw-sq8")
            facts["deadlines"], made = measure_deadlines(staged, unseen)
            targets += made
    report("latency", targets, facts, out)


def _made(corpus: Path, path: Path, queries: npt.NDArray[np.float32], adaptor: str, coarse: str | None) -> FunnelIndex:
    """The index in the folder, built where there is none."""
    if (path / "CURRENT").exists():
        return FunnelIndex.open(path)
    return FunnelIndex.build(str(corpus), path, queries=queries, adaptor=adaptor, coarse=coarse, overwrite=True)


def measure_windows(
    index: FunnelIndex, queries: npt.NDArray[np.float32], windows: int, budgets: dict[int, float]
) -> tuple[list[dict[str, Any]], list[Target]]:
    """For each batch size and number of callers, the share of windows whose 95th percentile is within the budget."""
    rows, targets = [], []
    for batch, budget in budgets.items():
        started = time.perf_counter()
        try:
            explained = index.explain(K, latency_ms=budget, batch=batch)
        except BudgetError as error:
            click.echo(f"batch {batch}, {budget:g} ms: refused: {error}")
            rows.append({"batch": batch, "budget_ms": budget, "refused": str(error)})
            continue
        seconds = time.perf_counter() - started
        click.echo(f"batch {batch}, {budget:g} ms: {explained.plan}, held {explained.held} ({seconds:.1f} s to plan)")
        calls = _Calls(index, queries, batch, budget)
        for callers in (1, CALLERS):
            found = window_p95s(calls, windows, WINDOW_SECONDS, callers, math.inf)
            share = float(np.mean(np.array(found) <= budget))
            row = {
                "batch": batch, "budget_ms": budget, "callers": callers, "plan": str(explained.plan),
                "recall": explained.recall, "planned": str(explained.held), "quick_p95_ms": explained.p95_ms,
                "windows": len(found), "held_share": share, "p95_median_ms": float(np.median(found)),
                "p95_largest_ms": max(found), "seconds_to_plan": seconds, "health": str(index.health().latencies[-1]),
            }  # fmt: skip
            click.echo(
                f"  {callers} at once: held in {share:.0%} of {len(found)} windows, p95 {row['p95_median_ms']:.3g} ms "
                f"in the median, {row['p95_largest_ms']:.3g} ms at most"
            )
            rows.append(row)
            name = f"batch {batch}, {callers} at once: share of windows within {budget:g} ms"
            targets.append(Target.at_least(name, share, HELD_SHARE))
    return rows, targets


class _Calls:
    def __init__(self, index: FunnelIndex, queries: npt.NDArray[np.float32], batch: int, budget: float) -> None:
        self._index, self._queries, self._batch, self._budget = index, queries, batch, budget

    def __call__(self, number: int) -> object:
        start = number * self._batch % (len(self._queries) - self._batch + 1)
        return self._index.search_vectors(self._queries[start : start + self._batch], K, latency_ms=self._budget)


def measure_deadlines(
    index: FunnelIndex, queries: npt.NDArray[np.float32]
) -> tuple[list[dict[str, Any]], list[Target]]:
    """For each batch size, how long calls with a deadline took beyond it, and recall against its estimate."""
    rows, targets = [], []
    truth = index.search_vectors(queries, K, plan=FLAT).scores
    widths = index.searcher.widths[:-1]
    staged = Plan(256, 256, tuple(Stage(width, keep) for width, keep in zip(widths[:2], (128, 48), strict=False)))
    index.searcher.check(staged, K)
    for batch in BUDGETS_MS:
        for plan in (staged, FLAT):
            for row in _deadlines(index, queries, truth, plan, batch):
                rows.append(row)
                click.echo(
                    f"batch {batch}, {'flat' if plan.is_flat else 'staged'}, {row['deadline_ms']:.3g} of "
                    f"{row['whole_ms']:.3g} ms: took {row['took_p50_ms']:.3g}, over by {row['over_p50_ms']:.3g} (p95 "
                    f"{row['over_p95_ms']:.3g}), {row['stopped']:.0%} stopped, recall {row['recall']:.4f}, "
                    f"estimated {row['estimate']:.4f}"
                )
                if row["stopped"] > 0 and not plan.is_flat:
                    name = f"batch {batch}, deadline {row['share']:g} of a call: estimate beyond measured recall"
                    targets.append(Target.at_most(name, row["estimate"] - row["recall"], 0.01))
    return rows, targets


def _deadlines(
    index: FunnelIndex,
    queries: npt.NDArray[np.float32],
    truth: npt.NDArray[np.float32],
    plan: Plan,
    batch: int,
) -> list[dict[str, Any]]:
    whole = _timed(index, queries, truth, plan, batch, 1e6)
    rows = []
    for share in SHARES:
        row = _timed(index, queries, truth, plan, batch, share * whole["took_p50_ms"])
        rows.append({**row, "batch": batch, "plan": str(plan), "share": share, "whole_ms": whole["took_p50_ms"]})
    return rows


def _timed(
    index: FunnelIndex,
    queries: npt.NDArray[np.float32],
    truth: npt.NDArray[np.float32],
    plan: Plan,
    batch: int,
    deadline_ms: float,
) -> dict[str, Any]:
    stored = np.empty(len(index), dtype=np.int64)  # by id, which is the input position here
    stored[index.searcher.order] = np.arange(len(index))
    took, recalls, estimates, stopped = [], [], [], []
    until = time.perf_counter() + SECONDS_PER_DEADLINE
    for number in range(CALLS):
        start = number * batch % (len(queries) - batch + 1)
        asked = slice(start, start + batch)
        began = time.perf_counter()
        answers = index.search_vectors(queries[asked], K, plan=plan, deadline_ms=deadline_ms)
        took.append((time.perf_counter() - began) * 1e3)
        recalls.append(float(recall_at_k(_exact(index, queries[asked], answers.ids, stored), truth[asked], K).mean()))
        estimates.append(answers.served.estimated_recall)
        stopped.append(not answers.served.complete)
        if time.perf_counter() > until:
            break
    over = np.array(took) - deadline_ms
    return {
        "deadline_ms": deadline_ms,
        "calls": len(took),
        "took_p50_ms": float(np.median(took)),
        "over_p50_ms": float(np.median(over)),
        "over_p95_ms": float(np.percentile(over, 95)),
        "stopped": float(np.mean(stopped)),
        "recall": float(np.mean(recalls)),
        "estimate": float(np.mean(estimates)),
    }


def _exact(
    index: FunnelIndex,
    queries: npt.NDArray[np.float32],
    ids: npt.NDArray[np.int64],
    stored: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """True scores of rows found, as those of a search that was stopped are of a prefix: float32 [n, k], falling."""
    searcher = index.searcher
    rows = searcher.cascade.store.matrix.numpy()[stored[ids]].astype(np.float32)
    scores = np.einsum("qd,qkd->qk", searcher.prepare(queries), rows)
    falling: npt.NDArray[np.float32] = -np.sort(-scores, axis=1)
    return falling
