"""The funnel by itself: a graph over a prefix, then a rerank at full width, against the same graph over whole rows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import load_rows, report
from funnel.adaptors import make_adaptor
from funnel.building.segment import write_prefixes
from funnel.engine.cascade import Cascade
from funnel.engine.coarse import build_coarse
from funnel.engine.generation import make_cascade, rerank_widths
from funnel.engine.space import Space
from funnel.plan import Plan
from funnel.storage.layout import VECTORS
from indexes import VectorStore, exact_search

__all__ = ["prefixes"]

K, BATCH, ROWS_AT_A_TIME = 10, 256, 5_000
SETTINGS = {"degree": 32, "ef_construction": 200}
EFFORTS = (56, 80, 110, 150, 200, 300, 450)
PASSES, SINGLE = 3, 200
SAMPLED = 20_000  # rows that PCA is fitted on

Float32 = npt.NDArray[np.float32]


@click.command()
@click.option(
    "--vectors", type=click.Path(exists=True, path_type=Path), required=True, help=".npy of unit rows [n, d]."
)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help=".npy of such rows.")
@click.option("--width", "widths", type=int, multiple=True, required=True, help="Width of a prefix. May be repeated.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def prefixes(vectors: Path, queries: Path, widths: tuple[int, ...], out: Path | None) -> None:
    """Recall@10, time and memory of SymphonyQG over PCA prefixes with a rerank, and over whole rows, at rising effort.

    Every plan is run in turns, in batches of 256 and one query alone; times are medians.

    Example: python -m benchmarks wide --data ../shared/data, then
    python -m benchmarks prefixes --vectors benchmarks/results/wide/corpus-1536.npy --queries
    benchmarks/results/wide/queries-1536.npy --width 192 --width 256 --width 384
    """
    rows, asked = np.load(vectors, mmap_mode="r", allow_pickle=False), np.ascontiguousarray(load_rows(queries)[:2_048])
    with tempfile.TemporaryDirectory() as folder:
        cascades = _cascades(rows, sorted(widths), Path(folder))
        truth = exact_search(next(iter(cascades.values())).store, asked, K)[1]
        plans = [(width, Plan(effort, max(K, effort // 2))) for effort in EFFORTS for width in cascades]
        found = [_row(cascades[width], width, plan, asked, truth) for width, plan in plans]
        batches: list[list[float]] = [[] for _ in plans]
        alone: list[list[float]] = [[] for _ in plans]
        for _ in range(PASSES):
            for number, (width, plan) in enumerate(plans):
                cascade = cascades[width]
                batches[number].append(_batch_us(cascade, plan, asked))
                alone[number].append(_single_us(cascade, plan, asked))
    for row, batch, single in zip(found, batches, alone, strict=True):
        row |= {"batch_us": float(np.median(batch)), "single_us": float(np.median(single))}
        click.echo(
            f"{row['width']:5} dims  {row['plan']:38} recall {row['recall']:.4f}  {row['batch_us']:6.1f} us in batch  "
            f"{row['single_us']:6.1f} alone  {row['held_mb']:6.0f} MB held"
        )
    report("prefixes", [], {"vectors": str(vectors), "rows": found}, out)


def _cascades(rows: npt.NDArray[Any], widths: list[int], folder: Path) -> dict[int, Cascade]:
    """By width of the coarse index; the last is over whole rows."""
    n, dim = rows.shape
    with VectorStore.create(folder / VECTORS, n, dim) as writer:
        for start in range(0, n, ROWS_AT_A_TIME):
            part = np.ascontiguousarray(rows[start : start + ROWS_AT_A_TIME], dtype=np.float32)
            writer.write(np.arange(start, start + len(part)), part)
    store, ladder = VectorStore.open(folder / VECTORS), (*widths, dim)
    sample = np.ascontiguousarray(rows[:: max(1, n // SAMPLED)], dtype=np.float32)
    space = Space(make_adaptor("pca", sample), True)
    adapted, made = write_prefixes(store, space, ladder, False), {}
    for width in ladder:
        started = time.perf_counter()
        coarse = build_coarse(store if width == dim else adapted, dim, width, "symqg", SETTINGS, 0, False)
        click.echo(f"SymphonyQG over {width} dims: {time.perf_counter() - started:.0f} s, {coarse.nbytes / 1e6:.0f} MB")
        steps = rerank_widths(ladder, "symqg", width)
        made[width] = make_cascade(coarse, store, folder, ladder, steps, space, release=False)
    return made


def _row(cascade: Cascade, width: int, plan: Plan, asked: Float32, truth: npt.NDArray[np.int64]) -> dict[str, Any]:
    found = cascade.run(asked, plan, K)[1]
    recall = float((found[:, :, None] == truth[:, None, :]).any(axis=2).mean())
    return {"width": width, "plan": str(plan), "recall": recall, "held_mb": cascade.coarse.nbytes / 1e6}


def _batch_us(cascade: Cascade, plan: Plan, asked: Float32) -> float:
    started = time.perf_counter()
    for start in range(0, len(asked), BATCH):
        cascade.run(asked[start : start + BATCH], plan, K)
    return (time.perf_counter() - started) / len(asked) * 1e6


def _single_us(cascade: Cascade, plan: Plan, asked: Float32) -> float:
    times = []
    for number in range(SINGLE):
        started = time.perf_counter()
        cascade.run(asked[number : number + 1], plan, K)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e6
