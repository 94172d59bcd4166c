"""An index that lives: speed of adds and deletes, recall after 30 % of each, searches while it is compacted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import FLAT, FunnelIndex

__all__ = ["updates"]

UNSEEN, KNOWN = 2_000, 2_000  # queries that calibration never sees, and those it is made on
SINGLE, BATCH = 100, 1_000  # adds of one row; rows of a batch
SHARE = 0.3  # of the rows, added and deleted
RECALLS = (0.90, 0.95, 0.99)
K = 10
SEARCHES = 1_000  # single queries timed before a compaction

Float32 = npt.NDArray[np.float32]


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--rows", default=30_000, show_default=True, help="Rows of the first build.")
@click.option("--coarse", help="The coarse index by name; chosen otherwise.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def updates(vectors: Path | None, data: Path | None, rows: int, coarse: str | None, out: Path | None) -> None:
    """Add and delete 30 % of real embeddings, and measure recall on unseen queries after each step.

    Example: python -m benchmarks updates --vectors ../shared/data/vectors-384
    """
    folder = vectors or data_folder(data) / "vectors-384"
    corpus, queries = load_rows(next(folder.glob("corpus.*npy"))), load_rows(next(folder.glob("queries.*npy")))
    unseen, known = queries[:UNSEEN], queries[UNSEEN : UNSEEN + KNOWN]
    order = np.random.default_rng(0).permutation(len(corpus))
    more = round(SHARE * rows)
    first, then, single = np.split(corpus[order[: rows + more + SINGLE]], [rows, rows + more])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "index"
        index = FunnelIndex.build(first, path, queries=known, adaptor="pca", coarse=coarse)
        recalls = {"built": _recalls(index, unseen)}
        click.echo(f"built: {recalls['built']}")
        one_ms = [_ms(partial(index.add, single[at : at + 1])) for at in range(SINGLE)]
        batch_ms = [_ms(partial(index.add, then[at : at + BATCH])) for at in range(0, more, BATCH)]
        click.echo(
            f"single adds {_quantiles(one_ms)} ms, batches {_quantiles(batch_ms)} ms, all {sum(batch_ms):.0f} ms"
        )
        recalls["30 % added"] = _recalls(index, unseen)
        gone = np.random.default_rng(1).choice(index.ids(), more, replace=False)
        delete_ms = _ms(lambda: index.delete(gone))
        planned_ms = _ms(lambda: index.explain(K, recall=0.95))
        click.echo(f"deleted in {delete_ms:.0f} ms, planned in {planned_ms:.0f} ms")
        recalls["30 % deleted"] = _recalls(index, unseen)
        certified = {str(recall): str(index.explain(K, recall=recall).certificate) for recall in RECALLS}
        one_deleted_ms = [_ms(partial(_delete_and_search, index, at, unseen)) for at in index.ids()[:20]]
        click.echo(f"{recalls['30 % deleted']}; one deleted, and a search: {_quantiles(one_deleted_ms)} ms")
        reopened = _recalls(FunnelIndex.open(path), unseen)
        alone, beside, compact_s = _searches_beside_compaction(path, unseen)
        index.refresh()
        recalls["compacted"] = _recalls(index, unseen)
        largest = max(segment.rows for segment in index.segments)
    click.echo(_table(recalls))
    after = recalls["30 % deleted"]
    slower = float(np.median(beside) / np.median(alone))
    targets = [
        Target.at_least("adds from vectors in batches of 1,000, rows a second", more / (sum(batch_ms) / 1e3), 20_000),
        Target.at_most("a single add, durable, ms (median)", float(np.median(one_ms)), 20),
        *(Target.at_least(f"{r} after 30 % added and deleted: recall on unseen queries", after[str(r)], r - 0.01)
          for r in RECALLS),
        Target.at_most("a single search while another process compacts, times as long (median)", slower, 2),
    ]  # fmt: skip
    facts = {
        "rows": rows,
        "recalls": recalls,
        "reopened": reopened,
        "certified": certified,
        "single_add_ms": _quantiles(one_ms),
        "batch_add_ms": _quantiles(batch_ms),
        "delete_30_percent_ms": delete_ms,
        "planning_after_it_ms": planned_ms,
        "delete_one_and_search_ms": _quantiles(one_deleted_ms),
        "compact_seconds": compact_s,
        "rows_after": largest,
        "search_alone_ms": _quantiles(alone),
        "search_beside_compaction_ms": _quantiles(beside),
        "searches_beside_compaction": len(beside),
    }
    for name, fact in facts.items():
        if name not in ("recalls", "certified"):
            click.echo(f"{name}: {fact}")
    report("updates", targets, facts, out)


def _recalls(index: FunnelIndex, queries: Float32) -> dict[str, float]:
    """Recall@10 on these queries under each budget, ties counted."""
    true = index.search_vectors(queries, K, plan=FLAT).scores[:, -1:]
    return {
        str(recall): float((index.search_vectors(queries, K, recall=recall).scores >= true - 1e-6).mean())
        for recall in RECALLS
    }


def _delete_and_search(index: FunnelIndex, one: int, queries: Float32) -> None:
    """Delete a row, and ask under a budget, which is planned again."""
    index.delete(one)
    index.search_vectors(queries[:1], K, recall=0.95)


def _searches_beside_compaction(path: Path, queries: Float32) -> tuple[list[float], list[float], float]:
    """Milliseconds of single searches alone, and while another process compacts; seconds that took."""
    index = FunnelIndex.open(path)

    def search(number: int) -> float:
        at = number % len(queries)
        return _ms(lambda: index.search_vectors(queries[at : at + 1], K, recall=0.95))

    search(0)
    alone = [search(number) for number in range(SEARCHES)]
    started = time.perf_counter()
    command = [sys.executable, "-m", "funnel", "compact", str(path), "--quiet"]
    beside: list[float] = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            beside.append(search(len(beside)))
    if process.returncode:
        raise click.ClickException(f"compaction ended with {process.returncode}")
    return alone, beside, time.perf_counter() - started


def _ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def _quantiles(ms: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(ms, at)), 3) for name, at in (("p50", 50), ("p95", 95), ("most", 100))}


def _table(recalls: dict[str, dict[str, float]]) -> str:
    lines = [
        "| state | " + " | ".join(f"recall {recall}" for recall in RECALLS) + " |",
        "|:--|" + "--:|" * len(RECALLS),
    ]
    lines += [
        f"| {state} | " + " | ".join(f"{row[str(recall)]:.4f}" for recall in RECALLS) + " |"
        for state, row in recalls.items()
    ]
    return "\n".join(lines)
