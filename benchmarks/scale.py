"""Cost against size: 90,000 to 720,000 real embeddings (wordllama, 256 dims), the same recall, one exponent fitted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, report
from benchmarks.texts import UNSEEN, lines_of, wordllama_encoder
from funnel import FunnelIndex
from funnel.monitoring.audit import true_recalls
from funnel.peers.measure import one_pass_us
from funnel.reports.tables import Column, text_table
from indexes import FlatBaseline

__all__ = ["scale"]

SIZES = (90_000, 180_000, 360_000, 720_000)
RECALLS = (0.95, 0.99)
TEXTS_AT_A_TIME = 20_000
K, PASSES = 10, 3
COLUMNS = (
    Column("rows", "rows", ",d"),
    Column("coarse", "coarse", left=True),
    Column("build_s", "build s", ".0f"),
    Column("flat_us", "flat us", ",.0f"),
    Column("recall", "asked", ".2f"),
    Column("found", "found", ".4f"),
    Column("us", "us", ",.1f"),
    Column("times_flat", "times flat", ".1f"),
    Column("us_single", "one query us", ",.0f"),
    Column("plan", "plan", left=True),
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True, help="Rows, separated by commas.")
@click.option("--coarse", help="A coarse family for all sizes. [default: chosen for each]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def scale(data: Path | None, sizes: str, coarse: str | None, out: Path | None) -> None:
    """Build over more and more of the same texts and fit how the cost of a query grows.

    Example: python -m benchmarks scale --data ../shared/data
    """
    folder = data_folder(data) / "package-texts"
    counts = sorted(int(size) for size in sizes.split(","))
    with tempfile.TemporaryDirectory() as temporary:
        encode = wordllama_encoder(Path(temporary) / "wordllama")
        vectors = _encoded(folder / "corpus.txt.gz", counts[-1], encode)
        queries = encode(list(lines_of(folder / "queries.txt.gz")))
        rows: list[dict[str, Any]] = []
        for count in counts:
            made = _measured(vectors[:count], queries, Path(temporary) / f"index-{count}", coarse)
            click.echo(text_table(made, COLUMNS))
            rows += made
    exponents = {recall: _exponent([row for row in rows if row["recall"] == recall]) for recall in RECALLS}
    click.echo("\n" + text_table(rows, COLUMNS))
    largest = [row for row in rows if row["rows"] == counts[-1] and row["recall"] == RECALLS[0]]
    targets = [
        *(Target.at_most(f"{at}: exponent of cost in size", value, 0.3) for at, value in exponents.items()),
        Target.at_least(f"0.95 on {counts[-1]:,} rows: times flat in batch", largest[0]["times_flat"], 35),
    ]
    report("scale", targets, {"rows": rows, "exponents": {str(at): value for at, value in exponents.items()}}, out)


def _encoded(path: Path, count: int, encode: Any) -> npt.NDArray[np.float32]:
    lines, parts, done = lines_of(path), [], 0
    while done < count:
        batch = list(islice(lines, min(TEXTS_AT_A_TIME, count - done)))
        if not batch:
            raise click.ClickException(f"{path} holds {done:,} texts, fewer than {count:,}")
        parts.append(encode(batch))
        done += len(batch)
    return np.concatenate(parts)


def _measured(
    vectors: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], path: Path, coarse: str | None
) -> list[dict[str, Any]]:
    """Build as a user does, with the later queries to certify, and measure on those it never saw."""
    started = time.perf_counter()
    index = FunnelIndex.build(vectors, path, queries=queries[UNSEEN:], coarse=coarse, progress=False)
    build_seconds = time.perf_counter() - started
    unseen, cascade = queries[:UNSEEN], index.searcher.cascade
    truth, _ = cascade.truth(index.searcher.prepare(unseen), K)
    flat = FlatBaseline(cascade.store)
    flat_us = _times_us(lambda asked: flat.search(asked, K), unseen)["us_batch"]
    result = []
    for recall in RECALLS:
        found = true_recalls(index.search_vectors(unseen, K, recall=recall).scores, truth).mean() / K

        def search(asked: npt.NDArray[np.float32], at: float = recall) -> object:
            return index.search_vectors(asked, K, recall=at)

        times = _times_us(search, unseen)
        result.append(
            {
                "rows": len(index),
                "coarse": f"{index.manifest.settings.coarse} over {index.manifest.coarse_width}",
                "build_s": build_seconds,
                "flat_us": flat_us,
                "recall": recall,
                "found": float(found),
                "us": times["us_batch"],
                "times_flat": flat_us / times["us_batch"],
                "us_single": times["us_single"],
                "plan": str(index.explain(K, recall=recall, batch=len(unseen)).plan),
            }
        )
    return result


def _exponent(rows: list[dict[str, Any]]) -> float:
    """The exponent b of cost = a n^b, by least squares on logarithms."""
    if len(rows) < 2:
        return float("nan")
    sizes, costs = np.log([row["rows"] for row in rows]), np.log([row["us"] for row in rows])
    return float(np.polyfit(sizes, costs, 1)[0])


def _times_us(search: Callable[[Any], object], queries: Any) -> dict[str, float]:
    """Microseconds a query, medians of three passes: all in one call, and one query a call."""
    passes = [one_pass_us(search, queries) for _ in range(PASSES)]
    return {clock: float(np.median([one[clock] for one in passes])) for clock in passes[0]}
