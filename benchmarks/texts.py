"""720,285 real texts through a user-given encoder (wordllama, 256 dims, natively nested)."""

from __future__ import annotations

import gzip
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, report
from funnel import FunnelIndex
from funnel.reports.bench import BenchQueries, bench
from funnel.reports.pages import write_results

__all__ = ["lines_of", "texts", "wordllama_encoder"]

UNSEEN = 2_000
TOKENIZER = "l2_supercat_tokenizer_config.json"


def wordllama_encoder(cache: Path) -> Callable[[list[str]], npt.NDArray[np.float32]]:
    """The 256-dim model of wordllama, loaded from the installed package without a network."""
    from wordllama import WordLlama

    spec = find_spec("wordllama")
    assert spec is not None
    assert spec.origin is not None
    for name in ("tokenizers", "tokenizer"):
        (cache / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(spec.origin).parent / "tokenizers" / TOKENIZER, cache / name / TOKENIZER)
    model = WordLlama.load(cache_dir=cache, disable_download=True)

    def wordllama(batch: list[str]) -> npt.NDArray[np.float32]:
        return np.asarray(model.embed(batch), dtype=np.float32)

    return wordllama


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a gzip file, without their ends."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file)


def _documents(path: Path, rows: int | None) -> Iterator[dict[str, Any]]:
    for number, text in enumerate(lines_of(path)):
        if rows is not None and number >= rows:
            return
        yield {"_id": str(number), "text": text}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--rows", type=int, help="Only the first so many texts.")
@click.option("--batch", default=UNSEEN, show_default=True, help="Queries in a call for the figures in batch.")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def texts(data: Path | None, rows: int | None, batch: int, index: Path | None, out: Path | None) -> None:
    """Build from 720,285 texts with wordllama and measure on 2,000 unseen queries.

    Example: python -m benchmarks texts --data ../shared/data
    """
    folder = data_folder(data) / "package-texts"
    queries = list(lines_of(folder / "queries.txt.gz"))
    with tempfile.TemporaryDirectory() as temporary:
        encoder = wordllama_encoder(Path(temporary) / "wordllama")
        started = time.perf_counter()
        built = FunnelIndex.build(
            _documents(folder / "corpus.txt.gz", rows),
            index or Path(temporary) / "index",
            encoder=encoder,
            queries=queries[UNSEEN:],
        )
        build_seconds = time.perf_counter() - started
        measured_on = BenchQueries(built.encode_queries(queries[:UNSEEN]))
        results = bench(built, measured_on, "package texts, unseen queries", batch=batch, progress=True)
        click.echo(write_results(results, (out or Path(__file__).parent / "results") / "texts"))
    at_95 = next(row for row in results["funnel"] if row["target"] == 0.95)
    targets = [
        Target.at_most("build, seconds", build_seconds, 480),
        Target.at_least("0.95: times flat in batch", at_95["speedup_batch"], 9),
        Target.at_least("0.95: recall on unseen queries", at_95["recall"], 0.945),
    ]
    report("texts", targets, {"build_seconds": build_seconds, "results": results}, out)
