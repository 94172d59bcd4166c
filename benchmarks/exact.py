"""Exact search on 200,000 x 384 real embeddings: flat, FAISS's Panorama and pruned; and rows without structure."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import FunnelIndex
from funnel.adaptors import Identity
from funnel.building.segment import write_norms
from funnel.engine.cascade import Cascade, Space
from funnel.engine.coarse import build_coarse
from funnel.engine.generation import make_cascade
from funnel.engine.steps import pruning_of
from funnel.reports.tables import Column, text_table
from indexes import FlatBaseline, VectorStore

__all__ = ["exact"]

Float32: TypeAlias = npt.NDArray[np.float32]
Search: TypeAlias = Callable[[Float32, int], tuple[Float32, npt.NDArray[np.int64]]]

K = 10
BATCHES = (1, 32, 256, 2_000)
SECONDS = 4.0  # for every search of a batch size, and at least FEWEST calls
FEWEST = 3
TIE = 1e-6  # a row whose true score is this near to the k-th is one of the top k
# IndexFlatIPPanorama: of 4, 8, 16 levels and batches of 128, 1,024 rows the fastest, or within 3 % of it.
PANORAMA_LEVELS, PANORAMA_ROWS = 8, 1_024
STRUCTURELESS = (50_000, 384)

COLUMNS = (
    Column("batch", "batch", ",d"),
    Column("flat", "flat us", ",.0f"),
    Column("panorama", "panorama us", ",.0f"),
    Column("own_flat", "own flat us", ",.0f", optional=True),
    Column("pruned", "exact us", ",.0f"),
    Column("ratio", "times flat", ".2f"),
    Column("how", "how", left=True),
    Column("misses", "misses", ",d"),
)


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path), help="Folder with corpus.*.npy and queries.*.npy.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--index", type=click.Path(path_type=Path), help="An index of them; built with PCA if not there.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def exact(vectors: Path | None, data: Path | None, index: Path | None, out: Path | None) -> None:
    """Exact search against flat search: what it costs, and every one of 6,000 queries checked.

    Example: python -m benchmarks exact --vectors ../shared/data/vectors-384
    """
    folder = vectors or data_folder(data) / "vectors-384"
    corpus, queries = next(folder.glob("corpus.*npy")), load_rows(next(folder.glob("queries.*npy")))
    with tempfile.TemporaryDirectory() as temporary:
        path = index or Path(temporary) / "index"
        opened = FunnelIndex.open(path) if path.exists() else FunnelIndex.build(str(corpus), path, adaptor="pca")
        cascade = opened.searcher.cascade
        prepared = opened.searcher.prepare(queries)
        rows = _compared(cascade, prepared, panorama=True)
        _check(cascade, prepared, rows)
        click.echo(text_table(rows, COLUMNS))
        memory = getattr(cascade.exact, "resident_bytes", 0)
        click.echo(f"\n{memory / 1e6:.1f} MB resident for it; adaptor {opened.searcher.adaptor.kind}")
        click.echo(str(opened.explain(K, recall=1.0, batch=256)))
        unstructured = _compared(*_structureless(Path(temporary)), panorama=False)
        click.echo(f"\nrows without structure, {STRUCTURELESS[0]:,} x {STRUCTURELESS[1]}:")
        click.echo(text_table(unstructured, [each for each in COLUMNS if each.key not in ("panorama", "misses")]))
    targets = []
    for row in rows:
        targets.append(Target.at_least(f"batch {row['batch']:,}: times flat", row["ratio"], 1.0))
        targets.append(Target.at_least(f"batch {row['batch']:,}: times Panorama", row["panorama"] / row["pruned"], 1.0))
    targets.append(Target.at_most("true neighbours missed, all batches", sum(row["misses"] for row in rows), 0))
    slowest = max(row["pruned"] / row["own_flat"] for row in unstructured)
    targets.append(Target.at_most("rows without structure: cost over flat", slowest, 1.1))
    report("exact", targets, {"rows": rows, "unstructured": unstructured, "resident_bytes": memory}, out)


def _compared(cascade: Cascade, queries: Float32, panorama: bool) -> list[dict[str, Any]]:
    """Microseconds a query of each search by batch size, calls taken in turn, and how exact search was run."""
    searches: dict[str, Search] = {"flat": FlatBaseline(cascade.store).search, "pruned": cascade.exact}
    if panorama:
        searches["panorama"] = _panorama(cascade)
    else:
        searches["own_flat"] = cascade.truth
    rows = []
    for batch in BATCHES:
        row: dict[str, Any] = {"batch": batch, **_microseconds(searches, queries, batch)}
        row["ratio"] = row["flat"] / row["pruned"]
        row["how"] = str(pruning_of(cascade, queries[:batch], K, batch) or "flat")
        rows.append(row)
    return rows


def _microseconds(searches: dict[str, Search], queries: Float32, batch: int) -> dict[str, float]:
    """The median of each search's calls, on the same queries one after the other."""
    batches = [np.ascontiguousarray(queries[i : i + batch]) for i in range(0, len(queries) - batch + 1, batch)]
    names = list(searches)
    times: dict[str, list[float]] = {name: [] for name in names}
    for search in searches.values():  # chooses a threshold, judges a sample: once
        search(batches[-1], K)
    until = time.perf_counter() + SECONDS * len(searches)
    number = 0
    while number < FEWEST or time.perf_counter() < until:
        asked = batches[number % len(batches)]
        turn = number % len(names)  # each follows each other one in turn: threads of the one before may still spin
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            searches[name](asked, K)
            times[name].append((time.perf_counter() - started) / batch * 1e6)
        number += 1
    return {name: float(np.median(each)) for name, each in times.items()}


def _check(cascade: Cascade, queries: Float32, rows: list[dict[str, Any]]) -> None:
    """Put into each row how many of the true top k of all queries are missed at its batch size."""
    truth, _ = cascade.truth(queries, K)
    for row in rows:
        batches = [queries[start : start + row["batch"]] for start in range(0, len(queries), row["batch"])]
        numbers = np.concatenate([cascade.exact(np.ascontiguousarray(part), K)[1] for part in batches])
        scores = np.empty(numbers.shape, dtype=np.float32)
        for start in range(0, len(queries), 500):
            part = slice(start, start + 500)
            full = cascade.store.matrix[numbers[part].ravel()].float().numpy().reshape(-1, K, cascade.store.dim)
            scores[part] = np.einsum("qd,qkd->qk", queries[part], full)
        unique = np.array([len(set(each)) == K for each in numbers.tolist()])
        row["misses"] = int((scores < truth[:, -1:] - TIE).sum() + K * (~unique).sum())


def _panorama(cascade: Cascade) -> Search:
    """FAISS's flat index that prunes by Cauchy-Schwarz level by level, over the same vectors, adapted, as float32."""
    import faiss

    store, space = cascade.store, cascade.space
    index = faiss.IndexFlatIPPanorama(store.dim, PANORAMA_LEVELS, PANORAMA_ROWS)
    for _, rows in store.chunks(65_536):
        index.add(space.adapted(rows))
    return lambda queries, k: index.search(space.adapted(queries), k)


def _structureless(folder: Path) -> tuple[Cascade, Float32]:
    """Random directions: every prefix holds the same share of every row, and no bound rules anything out."""
    n, dim = STRUCTURELESS
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((n, dim), dtype=np.float32)
    queries = generator.standard_normal((4_000, dim), dtype=np.float32)
    ladder = (128, 192, 256, dim)
    with VectorStore.create(folder / "vectors.npy", n, dim) as writer:
        writer.write(np.arange(n), rows / np.linalg.norm(rows, axis=1, keepdims=True))
    store = VectorStore.open(folder / "vectors.npy")
    write_norms(store, ladder, folder / "norms.npy", progress=False)
    coarse = build_coarse(store, dim, ladder[0], "ivf-sq8", {}, 0, progress=False)
    cascade = make_cascade(coarse, store, folder, ladder, ladder[1:], Space(Identity(dim), True), release=False)
    return cascade, queries / np.linalg.norm(queries, axis=1, keepdims=True)
