"""How fast rows that lie anywhere are reranked on a CPU, beside how fast memory is read in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, report
from funnel.engine.rerank import NO_WEIGHTS, loops
from funnel.engine.workers import workers
from funnel.reports.tables import Column, text_table

__all__ = ["rerank"]

SHAPES = ((32, 256), (32, 384), (128, 384), (50, 768), (32, 1_536), (50, 1_536), (256, 1_536), (50, 4_096))
KINDS = ("float16", "float32", "int8")
BATCH, KEPT, ALONE = 256, 10, 400  # queries in a call, rows that each keeps, queries that are timed one by one
PASSES, BATCHES = 5, 4
COPIED = 1 << 30
SHARE, ALONE_US = 0.5, 10.0
HALVES = 0x3BFF  # the bits of the largest float16 below 1: cells are finite
NORMAL = 0x2F80  # the upper bits of a float32 from which on, up to 1, none is subnormal: each of those costs an assist

COLUMNS = (
    Column("kind", "cells", left=True),
    Column("rows", "rows", ",d"),
    Column("width", "dims", ",d"),
    Column("gb", "GB/s", ".1f"),
    Column("share", "of a copy's", ".2f"),
    Column("alone", "one query us", ".1f"),
    Column("bytes_us", "its bytes us", ".1f"),
)

Search = Callable[[npt.NDArray[np.int64]], object]


@click.command()
@click.option("--gb", type=float, help="Of the matrix. [default: four times the last cache; 8 where it is not known]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def rerank(gb: float | None, out: Path | None) -> None:
    """Bytes of rows read a second by the compiled rerank, as a share of those that a copy of 1 GB reads.

    Batches of 256 queries, rows drawn at random, as many threads as the engine uses; then one query alone, on the
    thread that asks, beside the time that its bytes take at the rate of a copy on that thread. Each in turn with the
    copy; medians.

    Example: python -m benchmarks rerank
    """
    compiled = loops()
    if compiled is None:
        raise click.ClickException("numba is not installed; pip install 'funnel-retrieval[fast]'")
    gb = gb or 4 * last_cache_gb()
    generator = np.random.default_rng(0)
    whole = generator.integers(0, HALVES, int(gb * 1e9) // 2, dtype=np.uint16)
    source, target = np.ones(COPIED, np.uint8), np.zeros(COPIED, np.uint8)

    def copy(threads: int) -> float:
        """Bytes read a second."""
        cuts = np.linspace(0, COPIED, threads + 1).astype(int)
        pieces = [slice(*pair) for pair in pairwise(cuts)]
        began = time.perf_counter()
        if threads == 1:
            np.copyto(target, source)
        else:
            workers().run(lambda piece: np.copyto(target[piece], source[piece]), pieces)
        return COPIED / (time.perf_counter() - began)

    table: list[dict[str, Any]] = []
    targets = []
    for kind in KINDS:
        cells = whole if kind == "float16" else whole.view(kind)
        if kind == "float32":
            whole[1::2] = whole[1::2] % 0x1000 + NORMAL
        for rows, width in SHAPES:
            matrix = cells[: len(cells) // width * width].reshape(-1, width)
            row: dict[str, Any] = {"kind": kind, "rows": rows, "width": width}
            row |= measured(compiled, matrix, rows, copy, generator)
            table.append(row)
            at = f"{kind}, {rows} rows of {width} dims"
            targets.append(Target.at_least(f"{at}: share of a copy's bytes a second", row["share"], SHARE))
            targets.append(
                Target.at_most(f"{at}: one query beyond its bytes, us", row["alone"] - row["bytes_us"], ALONE_US)
            )
    click.echo(text_table(table, COLUMNS))
    report("rerank", targets, {"gb": gb, "threads": workers().count, "rows": table}, out)


def last_cache_gb() -> float:
    """The size of the processor's last cache; 2 where the system does not say."""
    sizes = [path.read_text() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.strip().rstrip("K")) / 1e6 for size in sizes), default=2.0)


def measured(
    compiled: Any, matrix: npt.NDArray[Any], rows: int, copy: Callable[[int], float], generator: np.random.Generator
) -> dict[str, float]:
    """The rerank in turns with the copy: bytes a second in batch, and microseconds of one query."""
    width = matrix.shape[1]
    queries = generator.standard_normal((BATCH, width)).astype(np.float32)

    def search(piece: npt.NDArray[np.int64]) -> None:
        shape = (len(piece), KEPT)
        best, found, places = np.empty(shape, np.float32), np.empty(shape, np.int64), np.empty(shape, np.int64)
        compiled.rerank(matrix, queries[: len(piece)], piece, width, NO_WEIGHTS, best, found, places)

    def drawn(count: int) -> npt.NDArray[np.int64]:
        return generator.integers(0, len(matrix), (count, rows))

    search(drawn(1))  # compiles
    threads, many, one, copied, copied_alone = workers().count, [], [], [], []
    for _ in range(PASSES):
        batches = [np.array_split(drawn(BATCH), 4 * threads) for _ in range(BATCHES)]
        began = time.perf_counter()
        for pieces in batches:
            workers().run(search, pieces)
        many.append(BATCHES * BATCH * rows * width * matrix.itemsize / (time.perf_counter() - began))
        copied.append(copy(threads))
        for query in np.split(drawn(ALONE // PASSES), ALONE // PASSES):
            began = time.perf_counter()
            search(query)
            one.append((time.perf_counter() - began) * 1e6)
        copied_alone.append(copy(1))
    gb, bytes_us = np.median(many) / 1e9, rows * width * matrix.itemsize / np.median(copied_alone) * 1e6
    return {
        "gb": float(gb),
        "share": float(gb * 1e9 / np.median(copied)),
        "alone": float(np.median(one)),
        "bytes_us": float(bytes_us),
    }
