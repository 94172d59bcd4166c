"""scifact from text to ranking: encoding, index, flat and funnel nDCG@10."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from benchmarks.common import Target, data_folder, report
from funnel import FunnelIndex
from funnel.data.queries import open_queries, read_qrels
from funnel.reports.bench import BenchQueries, bench
from funnel.reports.pages import write_results

__all__ = ["scifact"]

PUBLISHED = 0.645  # nDCG@10 of all-MiniLM-L6-v2 on scifact


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def scifact(data: Path | None, out: Path | None) -> None:
    """Build from the texts of scifact, calibrate on its training claims, judge on its test claims.

    Example: python -m benchmarks scifact --data ../shared/data
    """
    folder = data_folder(data) / "scifact"
    queries = open_queries(str(folder / "queries.jsonl"))
    assert queries.texts is not None
    assert queries.ids is not None
    qrels = read_qrels(folder, "test")
    texts = dict(zip(map(str, queries.ids), queries.texts, strict=True))
    known = [text for id_, text in texts.items() if id_ not in qrels]
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        index = FunnelIndex.build(str(folder), Path(temporary) / "index", queries=known)
        build_seconds = time.perf_counter() - started
        vectors = index.encode_queries([texts[id_] for id_ in qrels])
        measured_on = BenchQueries(vectors, list(qrels))
        results = bench(index, measured_on, "scifact, test claims", qrels, progress=True)
        click.echo(write_results(results, (out or Path(__file__).parent / "results") / "scifact"))
    flat = results["flat"]["ndcg@10"]
    funnel = next(row for row in results["funnel"] if row["target"] == 0.99)["ndcg@10"]
    targets = [
        Target.at_most("flat nDCG@10, distance from the published 0.645", abs(flat - PUBLISHED), 0.005),
        Target.at_most("funnel at recall 0.99: nDCG@10 below flat", flat - funnel, 0.003),
    ]
    report("scifact", targets, {"build_seconds": build_seconds, "results": results}, out)
