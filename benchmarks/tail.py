"""Budgets on the tail: what per-query escalation saves over the cheapest uniform plan that keeps the same promise."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import Budget, FunnelIndex, Plan
from funnel.planning.bounds import fixed_sequence
from funnel.planning.escalating import mean_ms
from funnel.planning.tail import TailFrontier, hits_needed
from funnel.reports.tables import Column, text_table

__all__ = ["tail"]

BUDGETS = ((0.8, 0.9), (0.9, 0.9), (0.9, 0.95), (0.95, 0.95), (0.9, 0.99))
MEANS = (0.8, 0.9, 0.95, 0.99)  # mean budgets, for what escalation would save there
K = 10
UNSEEN = 2_000  # queries that calibration never sees
BATCH = 256
ROUNDS = 15  # of every call, under every plan in turn; the fastest counts, as other work only adds
SINGLES = 600  # of them asked one by one

COLUMNS = (
    Column("budget", "budget", left=True),
    Column("batch", "batch"),
    Column("kind", "plan", left=True),
    Column("certified", "certified", ".4f"),
    Column("unseen", "unseen", ".4f"),
    Column("predicted_us", "predicted µs", ".1f"),
    Column("us", "µs a query", ".1f"),
    Column("p95_us", "p95 µs", ".0f"),
    Column("ratio", "ratio", ".3f"),
    Column("served", "served", left=True),
    Column("plan", "what is run", left=True),
)


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here, and use the one that is there.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def tail(vectors: Path | None, data: Path | None, index: Path | None, out: Path | None) -> None:
    """Uniform against escalating plans, under the same budgets and certificates.

    Example: python -m benchmarks tail --vectors ../shared/data/vectors-384
    """
    folder = vectors or data_folder(data) / "vectors-384"
    corpus, queries = next(folder.glob("corpus.*npy")), load_rows(next(folder.glob("queries.*npy")))
    unseen, known = queries[:UNSEEN], queries[UNSEEN:]
    with tempfile.TemporaryDirectory() as temporary:
        path = index or Path(temporary) / "index"
        if (path / "CURRENT").exists():
            built = FunnelIndex.open(path)
        else:
            built = FunnelIndex.build(str(corpus), path, queries=known)
        truth = built.search_vectors(unseen, K, recall=1.0).scores[:, -1]
        rows = [row for recall, share in BUDGETS for row in _compared(built, unseen, truth, recall, share)]
        means = {recall: _mean_ratio(built, recall) for recall in MEANS}
        seconds = _first_use_seconds(built)
    click.echo(text_table(rows, COLUMNS))
    click.echo(f"\nmean budgets, predicted cost with escalation over without: {means}")
    click.echo(f"the plans of a tail budget are worked out in {seconds:.1f} s on first use")
    targets = [
        Target.at_least(f"{row['budget']}, batch {row['batch']}, {row['kind']}: share of unseen queries",
                        row["unseen"], row["share"] - row["error"])
        for row in rows
    ]  # fmt: skip
    targets += [
        Target.at_most(f"{row['budget']}, batch {row['batch']}: served, cost over uniform", row["ratio"], 1.0)
        for row in rows
        if row["served"]
    ]
    report("tail", targets, {"rows": rows, "means": means, "first_use_seconds": seconds}, out)


def _compared(
    index: FunnelIndex, unseen: npt.NDArray[np.float32], truth: npt.NDArray[np.float32], recall: float, share: float
) -> list[dict[str, Any]]:
    """For each batch size the cheapest uniform plan, certified alone, and the cheapest escalating one."""
    rows = []
    for batch in (BATCH, 1):
        served = index.searcher.choose(Budget(recall, share=share), K, batch).plan
        found = {
            "uniform": _cheapest(index, recall, share, batch, False),
            "escalating": _cheapest(index, recall, share, batch, True),
        }
        plans = {kind: plan for kind, plan in found.items() if plan is not None}
        times = _times(index, unseen, plans, batch)
        for kind, plan in plans.items():
            found = index.search_vectors(unseen, K, plan=plan).scores
            met = (found >= truth[:, None] - 1e-6).sum(axis=1) >= hits_needed(recall, K)
            certificate = index.searcher.planner.certificate(plan, Budget(recall, share=share), K)
            per_query = times[kind].mean()
            rows.append(
                {
                    "budget": f"recall {recall:g}, {share:.0%} of queries",
                    "share": share,
                    "batch": batch,
                    "kind": kind,
                    "certified": certificate.lower_bound,
                    "unseen": float(met.mean()),
                    "error": 2 * float(np.sqrt(share * (1 - share) / len(met))),
                    "predicted_us": _predicted_us(index, plan, batch),
                    "us": float(per_query),
                    "p95_us": float(np.percentile(times[kind], 95)),
                    "served": "yes" if plan == served else "",
                    "ratio": float(per_query / times["uniform"].mean()) if "uniform" in times else float("nan"),
                    "plan": str(plan),
                }
            )
    return rows


def _cheapest(index: FunnelIndex, recall: float, share: float, batch: int, escalating: bool) -> Plan | None:
    """The cheapest that passes, of escalating plans, or of uniform ones when they are tested alone at level .05."""
    frontier = index.searcher.planner.frontier(Budget(recall, share=share), K)
    assert isinstance(frontier, TailFrontier)
    alone = [i for i, plan in enumerate(frontier.plans) if plan.escalation is None]
    passed = set(alone[: fixed_sequence((frontier.recalls(i) for i in alone), share, 0.05)])
    if escalating:
        passed = set(frontier.passed(share, 0.05)) - set(alone)
    plans = [frontier.plans[i] for i in passed]
    return min(plans, key=lambda plan: _predicted_us(index, plan, batch), default=None)


def _predicted_us(index: FunnelIndex, plan: Plan, batch: int) -> float:
    return mean_ms(index.searcher.planner.costs, plan, batch, index.dim) / batch * 1e3


def _times(
    index: FunnelIndex, queries: npt.NDArray[np.float32], plans: dict[str, Plan], batch: int
) -> dict[str, npt.NDArray[np.float64]]:
    """Microseconds a query of each call, the least of some rounds: float64 [calls]; plans take turns call by call."""
    starts = range(0, SINGLES if batch == 1 else len(queries) - batch + 1, batch)
    result = {kind: np.full(len(starts), np.inf) for kind in plans}
    for turn in range(ROUNDS):
        for number, start in enumerate(starts):
            part = queries[start : start + batch]
            for kind in list(plans)[:: 1 if turn % 2 else -1]:
                took = _seconds(_call(index, part, plans[kind])) / batch * 1e6
                result[kind][number] = min(result[kind][number], took)
    return result


def _call(index: FunnelIndex, queries: npt.NDArray[np.float32], plan: Plan) -> Callable[[], object]:
    return lambda: index.search_vectors(queries, K, plan=plan)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _mean_ratio(index: FunnelIndex, recall: float) -> dict[str, float]:
    """What the same machinery would save on the mean: predicted cost over that of uniform plans, by batch size."""
    planner = index.searcher.planner
    frontier = planner.frontier(Budget(1 / K, share=0.5), K)  # from one hit on: plans are then ordered by mean hits
    assert frontier is not None
    uniform = [i for i, plan in enumerate(frontier.plans) if plan.escalation is None]
    result = {}
    for batch in (BATCH, 1):
        cheapest = []
        for places in (uniform, range(len(frontier.plans))):
            passed = fixed_sequence((frontier.hits[i] / K for i in places), recall, 0.05)
            cheapest.append(min(_predicted_us(index, frontier.plans[i], batch) for i in list(places)[:passed]))
        result[str(batch)] = cheapest[1] / cheapest[0]
    return result


def _first_use_seconds(index: FunnelIndex) -> float:
    fresh = FunnelIndex.open(index.path, verify="lazy")
    fresh.searcher.calibration.runs()  # type: ignore[union-attr]
    return _seconds(lambda: fresh.searcher.planner.frontier(Budget(0.9, share=0.95), K))
