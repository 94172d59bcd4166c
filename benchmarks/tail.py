"""Budgets on the tail: the share of unseen queries that get the recall, and what a query then takes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import FunnelIndex
from funnel.planning.frontier import hits_needed
from funnel.reports.tables import Column, text_table

__all__ = ["tail"]

BUDGETS = ((0.8, 0.9), (0.9, 0.9), (0.9, 0.95), (0.95, 0.95), (0.9, 0.99))
K = 10
UNSEEN = 2_000  # queries that calibration never sees
BATCHES = (256, 1)
ROUNDS = 15  # of every call; the fastest counts, as other work only adds
SINGLES = 600  # of them asked one by one

COLUMNS = (
    Column("budget", "budget", left=True),
    Column("batch", "batch"),
    Column("certified", "certified", ".4f"),
    Column("unseen", "unseen", ".4f"),
    Column("us", "µs a query", ".1f"),
    Column("plan", "what is run", left=True),
)


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here, and use the one that is there.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def tail(vectors: Path | None, data: Path | None, index: Path | None, out: Path | None) -> None:
    """Budgets on the share of queries that each get a recall, held against queries that calibration never saw.

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
        rows = [_row(built, unseen, truth, *budget, batch) for budget in BUDGETS for batch in BATCHES]
    click.echo(text_table(rows, COLUMNS))
    targets = [
        Target.at_least(f"{row['budget']}, batch {row['batch']}: share of unseen queries",
                        row["unseen"], row["share"] - row["error"])
        for row in rows
    ]  # fmt: skip
    report("tail", targets, {"rows": rows}, out)


def _row(
    index: FunnelIndex,
    unseen: npt.NDArray[np.float32],
    truth: npt.NDArray[np.float32],
    recall: float,
    share: float,
    batch: int,
) -> dict[str, Any]:
    """What a budget promises, what unseen queries get, and what it takes."""
    explained = index.explain(K, recall=recall, share=share, batch=batch)
    found = index.search_vectors(unseen, K, plan=explained.plan).scores
    met = (found >= truth[:, None] - 1e-6).sum(axis=1) >= hits_needed(recall, K)
    return {
        "budget": f"recall {recall:g}, {share:.0%} of queries",
        "share": share,
        "batch": batch,
        "certified": explained.certificate.lower_bound,
        "unseen": float(met.mean()),
        "error": 2 * float(np.sqrt(share * (1 - share) / len(met))),
        "us": _us(index, unseen, recall, share, batch),
        "plan": str(explained.plan),
    }


def _us(index: FunnelIndex, queries: npt.NDArray[np.float32], recall: float, share: float, batch: int) -> float:
    """Microseconds a query, the mean of calls of which each is the fastest of some rounds."""
    starts = range(0, SINGLES if batch == 1 else len(queries) - batch + 1, batch)
    least = np.full(len(starts), np.inf)
    for _ in range(ROUNDS):
        for number, start in enumerate(starts):
            started = time.perf_counter()
            index.search_vectors(queries[start : start + batch], K, recall=recall, share=share)
            least[number] = min(least[number], (time.perf_counter() - started) / batch * 1e6)
    return float(least.mean())
