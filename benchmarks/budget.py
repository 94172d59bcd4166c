"""Budgets on 200,000 x 384 real embeddings: build time, speed over flat search, recall on unseen queries."""

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
from benchmarks.queries import asked_sets
from funnel import FunnelIndex
from funnel.engine.rerank import reranked
from funnel.reports.bench import BenchQueries, bench
from funnel.reports.pages import write_results
from funnel.reports.tables import Column, Results, comparison_rows, microseconds, text_table, times

__all__ = ["budget"]

PASSES = 7
UNSEEN = 2_000  # queries of each kind that calibration never sees
HEADLINE = (
    Column("search", "search", left=True),
    Column("plan", "plan in batch", left=True),
    Column("us_batch", "batch", lambda us: f"{microseconds(us)} µs"),
    Column("speedup_batch", "times flat", times),
    Column("us_single", "one query", lambda us: f"{microseconds(us)} µs"),
    Column("speedup_single", "times flat", times),
    Column("recall", "recall, unseen", ".4f"),
    Column("recall_error", "±", ".4f"),
    Column("predicted_recall", "recall, certifying", ".4f"),
    Column("recall_low", "lower bound", ".4f"),
)


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index of the first set of queries here.")
@click.option("--rows", type=int, help="Only the first so many rows, to see that it runs.")
@click.option("--memory-mb", type=float, help="What the coarse index may hold: 700 allows a graph over whole rows.")
@click.option("--batch", default=UNSEEN, show_default=True, help="Queries in a call for the figures in batch.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def budget(
    vectors: Path | None,
    data: Path | None,
    index: Path | None,
    rows: int | None,
    memory_mb: float | None,
    batch: int,
    out: Path | None,
) -> None:
    """Build, calibrate and measure on 200,000 x 384 real embeddings, with each set of queries by itself.

    Example: python -m benchmarks budget --vectors ../shared/data/vectors-384
    """
    folder, results_folder = vectors or data_folder(data) / "vectors-384", out or Path(__file__).parent / "results"
    corpus: str | npt.NDArray[np.float32] = str(next(folder.glob("corpus.*npy")))
    if rows is not None:
        corpus = load_rows(Path(str(corpus)))[:rows]
    targets: list[Target] = []
    facts: dict[str, Any] = {}
    for number, asked in enumerate(asked_sets(folder)):
        unseen, certifying = asked.vectors[:UNSEEN], asked.vectors[UNSEEN:]
        with tempfile.TemporaryDirectory() as temporary:
            path = index if index is not None and number == 0 else Path(temporary) / "index"
            started = time.perf_counter()
            built = FunnelIndex.build(corpus, path, queries=certifying, overwrite=True, memory_mb=memory_mb)
            seconds = time.perf_counter() - started
            title = f"{folder.name}, {asked.name}"
            results = bench(built, BenchQueries(unseen), f"{title}, unseen", batch=batch, progress=True)
            name = "budget" if number == 0 else f"budget-{number + 1}"
            click.echo(write_results(results, results_folder / name))
            own = {str(recall): own_python_us(built, unseen, recall) for recall in (0.90, 0.95, 0.99)}
        table = text_table(comparison_rows(results), HEADLINE)
        said = f"{title}: {len(certifying):,} certify, {len(unseen):,} others are unseen; built in {seconds:.0f} s"
        click.echo(f"\n{said}\n\n{table}\n")
        facts[asked.name] = {"own_python_us": own, "build_seconds": seconds, "headline": table, "results": results}
        targets += _targets(asked.name, results, seconds, max(own.values()))
    report("budget", targets, facts, out)


def _targets(name: str, results: Results, seconds: float, own_us: float) -> list[Target]:
    row = {row["target"]: row for row in results["funnel"]}
    return [
        Target.at_most(f"{name}: build, seconds", seconds, 180),
        Target.at_least(f"{name}: 0.95: times flat in batch", row[0.95]["speedup_batch"], 14),
        Target.at_least(f"{name}: 0.95: recall on unseen queries", row[0.95]["recall"], 0.945),
        Target.at_least(f"{name}: 0.99: times flat in batch", row[0.99]["speedup_batch"], 4),
        Target.at_least(f"{name}: 0.99: recall on unseen queries", row[0.99]["recall"], 0.985),
        Target.at_most(f"{name}: the engine's own Python in a single query, us", own_us, 60),
    ]


def own_python_us(index: FunnelIndex, queries: npt.NDArray[np.float32], recall: float) -> float:
    """Microseconds that a single query takes beyond the bare library calls: FAISS, gather, multiply, top-k, rotation.

    The bare calls are made here one after the other with everything prepared. Whole passes over all queries are made in
    turn, so that both ways find the cache as a new query finds it; of each query the median pass counts, as another
    process that takes the core for a while would else be counted in.
    """
    plan = index.explain(recall=recall).plan
    if plan.is_flat:
        return 0.0
    bare = _bare_search(index, queries, plan) if index.searcher.cascade.alone else _bare_calls(index, queries, plan)
    whole, alone = np.empty((2, PASSES, len(queries)))
    for number in range(PASSES):
        _seconds(lambda i: index.search_vectors(queries[i : i + 1], 10, recall=recall), whole[number])
        _seconds(bare, alone[number])
    return float((np.median(whole, axis=0) - np.median(alone, axis=0)).mean()) * 1e6


def _bare_calls(index: FunnelIndex, queries: npt.NDArray[np.float32], plan: Any) -> Callable[[int], object]:
    searcher = index.searcher
    cascade, dim, width, space = searcher.cascade, searcher.dim, searcher.cascade.width, searcher.space
    prepared = searcher.prepare(queries)

    def bare(i: int) -> None:
        query = prepared[i : i + 1]
        rows = cascade.coarse.search(space.prefixes(query, width), plan.shortlist, plan.effort)[1]
        for stage in plan.stages:
            asked, weights = space.prefixes(query, stage.width), cascade.inverse_norms[stage.width]
            _, rows, _ = reranked(cascade.at(stage.width), asked, rows, stage.width, stage.keep, weights)
        reranked(cascade.store, query, rows, dim, 10)

    return bare


def _bare_search(index: FunnelIndex, queries: npt.NDArray[np.float32], plan: Any) -> Callable[[int], object]:
    """The coarse search, where that is all: of the queries as the user gives them."""
    coarse, prepared = index.searcher.cascade.coarse, index.searcher.prepare(queries)
    return lambda i: coarse.search(prepared[i : i + 1], plan.shortlist, plan.effort)


def _seconds(call: Callable[[int], object], result: npt.NDArray[np.float64]) -> None:
    """Fill the result with the seconds of the calls number 0, 1, ..."""
    for i in range(len(result)):
        start = time.perf_counter()
        call(i)
        result[i] = time.perf_counter() - start
