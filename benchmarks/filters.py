"""Filters: recall among the allowed rows and time, by selectivity and by how queries go with the filter."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import FunnelIndex
from funnel.data.documents import Document
from funnel.planning.run import TIE_TOLERANCE
from funnel.reports.tables import Column, text_table

__all__ = ["filters"]

K = 10
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001)
RECALLS = (0.90, 0.95, 0.99)
UNSEEN = 3_000  # queries that calibration never sees
ASKED = 750  # of them: those nearest to what is allowed, those farthest, and as many at random
BATCH = 256
SINGLES = 150
TOLERANCE = 0.01  # recall may lie so far below the budget
PASSES = 3  # of all batches; the fastest counts, as other work only adds

COLUMNS = (
    Column("selectivity", "allowed", ".1%"),
    Column("queries", "queries are", left=True),
    Column("target", "budget", ".2f"),
    Column("recall", "recall@10", ".4f"),
    Column("batch_us", "batch µs", ".1f"),
    Column("exact_us", "exact µs", ".1f"),
    Column("single_us", "single µs", ".0f"),
    Column("exact_single_us", "exact µs", ".0f"),
    Column("planning_s", "planned s", ".1f"),
    Column("plan", "plan in batch", left=True),
)


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--rows", default=50_000, show_default=True, help="How many rows of the corpus to index.")
@click.option("--coarse", help="The coarse index by name; chosen by size otherwise.")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here, and use the one that is there.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def filters(
    vectors: Path | None, data: Path | None, rows: int, coarse: str | None, index: Path | None, out: Path | None
) -> None:
    """Recall among allowed rows: selectivity x independent, near and far queries x budgets.

    A filter of random rows is independent of every query. One of the rows nearest to some row is not: the queries
    nearest to that row are asked, and those farthest from it, under the same filter and plan.

    Example: python -m benchmarks filters --vectors ../shared/data/vectors-384
    """
    folder = vectors or data_folder(data) / "vectors-384"
    corpus, queries = load_rows(next(folder.glob("corpus.*npy")))[:rows], load_rows(next(folder.glob("queries.*npy")))
    near = corpus @ corpus[0]
    with tempfile.TemporaryDirectory() as temporary:
        path = index or Path(temporary) / "index"
        if (path / "CURRENT").exists():
            built = FunnelIndex.open(path)
        else:
            built = FunnelIndex.build(_documents(corpus, near), path, queries=queries[UNSEEN:], coarse=coarse)
        unseen = queries[:UNSEEN]
        order = np.argsort(-(unseen @ corpus[0]))
        kinds = {"near": unseen[order[:ASKED]], "far": unseen[order[-ASKED:]]}
        table = []
        started = time.perf_counter()
        for selectivity in SELECTIVITIES:
            table += _measured(built, f"random < {selectivity}", selectivity, {"independent": unseen[:ASKED]})
            table += _measured(built, f"rank < {round(selectivity * len(corpus))}", selectivity, kinds)
        seconds = time.perf_counter() - started
    click.echo(text_table(table, COLUMNS))
    worst = min(table, key=lambda row: row["recall"] - row["target"])
    said = f"{worst['selectivity']:.1%}, {worst['queries']}, {worst['target']:g}"
    targets = [
        Target.at_least(f"recall minus budget, the least of {len(table)} ({said})", _margin(worst), -TOLERANCE),
        Target.at_most("batch time over exact search's among the allowed rows, the most", _slowest(table), 1.15),
    ]
    report("filters", targets, {"index": repr(built), "seconds": seconds, "rows": table}, out)


def _documents(corpus: npt.NDArray[np.float32], near: npt.NDArray[np.float32]) -> Iterator[Document]:
    """Rows with the metadata that filters ask for."""
    random = np.random.default_rng(0).random(len(corpus))
    rank = np.empty(len(corpus), dtype=np.int64)
    rank[np.argsort(-near)] = np.arange(len(corpus))
    for number, vector in enumerate(corpus):
        metadata = {"random": float(random[number]), "rank": int(rank[number])}
        yield Document(str(number), metadata=metadata, vector=vector)


def _measured(
    index: FunnelIndex, where: str, selectivity: float, kinds: dict[str, npt.NDArray[np.float32]]
) -> list[dict[str, Any]]:
    rows = []
    exact = {
        kind: (_batch_us(index, asked, where, 1.0), _single_us(index, asked, where, 1.0))
        for kind, asked in kinds.items()
    }
    for recall in RECALLS:
        started = time.perf_counter()
        explained = index.explain(K, recall=recall, where=where, batch=BATCH)
        planning = time.perf_counter() - started
        index.explain(K, recall=recall, where=where)
        for kind, asked in kinds.items():
            truth = index.search_vectors(asked, K, recall=1.0, where=where).scores
            parts = np.array_split(asked, -(-len(asked) // BATCH))
            found = np.concatenate([index.search_vectors(p, K, recall=recall, where=where).scores for p in parts])
            rows.append(
                {
                    "selectivity": selectivity,
                    "queries": kind,
                    "target": recall,
                    "recall": float((found >= truth[:, -1:] - TIE_TOLERANCE).mean()),
                    "batch_us": _batch_us(index, asked, where, recall),
                    "single_us": _single_us(index, asked, where, recall),
                    "exact_us": exact[kind][0],
                    "exact_single_us": exact[kind][1],
                    "planning_s": planning,
                    "plan": str(explained.plan),
                }
            )
    return rows


def _batch_us(index: FunnelIndex, asked: npt.NDArray[np.float32], where: str, recall: float) -> float:
    parts = [asked[start : start + BATCH] for start in range(0, len(asked) - BATCH + 1, BATCH)]
    passes = []
    for _ in range(PASSES):
        started = time.perf_counter()
        for part in parts:
            index.search_vectors(part, K, recall=recall, where=where)
        passes.append(time.perf_counter() - started)
    return min(passes) / (len(parts) * BATCH) * 1e6


def _single_us(index: FunnelIndex, asked: npt.NDArray[np.float32], where: str, recall: float) -> float:
    times = []
    for query in asked[:SINGLES]:
        started = time.perf_counter()
        index.search_vectors(query[None, :], K, recall=recall, where=where)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e6


def _margin(row: dict[str, Any]) -> float:
    return float(row["recall"] - row["target"])


def _slowest(table: list[dict[str, Any]]) -> float:
    return max(float(row["batch_us"] / row["exact_us"]) for row in table)
