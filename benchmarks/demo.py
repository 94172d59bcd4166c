"""The demo as a new user runs it: how long it takes, and how soon a fresh process answers on its index."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.common import Target, report
from funnel import FunnelIndex

__all__ = ["demo"]

QUERY = "sort a list by several keys"
STARTS = 5  # the median counts
# What a search from text cannot do without, beside the model itself.
IMPORTS = "import faiss, torch, tokenizers"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def demo(out: Path | None) -> None:
    """Run `funnel demo`, then time `funnel search` in processes of its own.

    Example: python -m benchmarks demo
    """
    with tempfile.TemporaryDirectory() as temporary:
        index, vector = Path(temporary) / "demo-index", Path(temporary) / "vector.npy"
        funnel = [sys.executable, "-m", "funnel"]
        whole = _seconds([*funnel, "demo", "--index", str(index), "--out", str(Path(temporary) / "demo-report")])
        opened = FunnelIndex.open(index)
        documents = len(opened)
        np.save(vector, opened.searcher.cascade.store.block(0, 1).cpu().float().numpy())
        search = [*funnel, "search", str(index)]
        from_text = _median_seconds([*search, QUERY])
        from_vector = _median_seconds([*search, "--vector", str(vector)])
        imports = _median_seconds([sys.executable, "-c", IMPORTS])
    targets = [
        Target.at_most("the demo, seconds", whole, 300),
        Target.at_least("documents", documents, 10_000),
        Target.at_most("second start, search from text, seconds", from_text, 6),
        Target.at_most("second start, search with a vector, seconds", from_vector, 2),
    ]
    click.echo(f"{IMPORTS}: {imports:.2f} s")
    report("demo", targets, {"imports_seconds": imports}, out)


def _median_seconds(command: Sequence[str]) -> float:
    return float(np.median([_seconds(command) for _ in range(STARTS)]))


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started
