"""Writing one segment: rows in cluster order, the norms of their prefixes, the coarse index."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from funnel.adaptors import Adaptor
from funnel.building.intake import Intake
from funnel.engine.turn import answers_alone, turn_of
from funnel.progress import Progress
from indexes import ClusterTree, CoarseIndex, VectorStore, family, release_freed, stored_order

__all__ = ["ADDED_DTYPE", "build_coarse", "order_rows", "store_rows", "unit_prefixes", "write_norms", "write_rows"]

# Prefix dims that rows are put in cluster order by: they hold most of the energy after any adaptor.
ORDERED_DIMS = 32
# Bytes of prefixes handed to the coarse index at once: the largest array of a build beside the index itself.
BLOCK_BYTES = 134_217_728
CELLS_AT_A_TIME = 2_097_152  # as read from disk: 8 MB as float32
# Rows that are added are searched exactly, and kept as they are given, so that they cost the promise nothing.
ADDED_DTYPE = "float32"
TRAINING_ROWS = 65_536  # of the coarse index's codes and cells


class RowMap(Protocol):
    """What rows go through before they are stored: an adaptor."""

    @property
    def dim(self) -> int:
        """The width."""
        ...

    def unit_transform(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Rows [n, d], adapted and of unit length."""
        ...


def unit_prefixes(rows: npt.NDArray[np.float32], width: int) -> npt.NDArray[np.float32]:
    """The first `width` dims of rows [n, d], scaled to unit length (zero prefixes stay zero): float32 [n, width]."""
    prefixes = rows[:, :width]
    norms = np.linalg.norm(prefixes, axis=1, keepdims=True)
    scaled: npt.NDArray[np.float32] = np.ascontiguousarray(prefixes / np.maximum(norms, np.finfo(np.float32).tiny))
    return scaled


def write_rows(intake: Intake, adaptor: RowMap, folder: Path, dtype: str, seed: int, progress: bool) -> None:
    """Adapt every row and store it in cluster order: vectors.npy, and order.npy (stored row -> input position)."""
    store_rows(intake, adaptor, order_rows(intake, adaptor, folder, seed, progress), folder, dtype, progress)


def order_rows(
    intake: Intake,
    adaptor: RowMap,
    folder: Path,
    seed: int,
    progress: bool,
    watch: Callable[[npt.NDArray[np.float32]], object] | None = None,
) -> npt.NDArray[np.int64]:
    """Put the rows in cluster order: order.npy (stored row -> input position). Gives input position -> stored row.

    watch: is shown all rows as given, batch by batch, in input order.
    """
    width = min(ORDERED_DIMS, intake.dim)
    tree = ClusterTree.fit(_adapted_prefixes(intake.sample, adaptor, width), seed=seed)
    intake.drop_sample()
    release_freed()
    leaves = np.empty(intake.count, dtype=np.int64)
    done = 0
    with Progress(total=intake.count, desc="order", unit="rows", unit_scale=True, disable=not progress) as bar:
        for rows in intake.rows():
            leaves[done : done + len(rows)] = tree.assign(_adapted_prefixes(rows, adaptor, width))
            if watch is not None:
                watch(rows)
            done += len(rows)
            bar.update(len(rows))
    # A block's prefixes are at most as wide as the matrix; the coarse width is chosen after the rows are stored.
    order = stored_order(leaves, BLOCK_BYTES // (4 * min(intake.dim, 256)), seed)
    del leaves
    positions = np.empty(intake.count, dtype=np.int64)
    positions[order] = np.arange(intake.count)
    np.save(folder / "order.npy", order)
    return positions


def store_rows(
    intake: Intake, adaptor: RowMap, positions: npt.NDArray[np.int64], folder: Path, dtype: str, progress: bool
) -> None:
    """Adapt every row and store it where it belongs: vectors.npy. positions: input position -> stored row."""
    done = 0
    with (
        VectorStore.create(folder / "vectors.npy", intake.count, intake.dim, dtype) as writer,
        Progress(total=intake.count, desc="store", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        for rows in intake.rows():
            writer.write(positions[done : done + len(rows)], adaptor.unit_transform(rows))
            done += len(rows)
            bar.update(len(rows))
    release_freed()


def _adapted_prefixes(rows: npt.NDArray[np.float32], adaptor: RowMap, width: int) -> npt.NDArray[np.float32]:
    """Unit prefixes of rows [n, d] as the adaptor maps them: float32 [n, width]."""
    prefixes = np.empty((len(rows), width), dtype=np.float32)
    size = max(1, CELLS_AT_A_TIME // adaptor.dim)
    for start in range(0, len(rows), size):
        prefixes[start : start + size] = unit_prefixes(adaptor.unit_transform(rows[start : start + size]), width)
    return prefixes


def write_norms(store: VectorStore, ladder: Sequence[int], path: Path, progress: bool) -> None:
    """norms.npy: the norm of every prefix of every stored row, float32 [n, len(ladder)]."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (store.n, len(ladder))}
    with (
        path.open("wb") as file,
        Progress(total=store.n, desc="norms", unit="rows", unit_scale=True, disable=not progress) as bar,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for _, rows in store.chunks(max(1, CELLS_AT_A_TIME // store.dim)):
            edges = [0, *ladder]
            squares = [np.einsum("nd,nd->n", rows[:, a:b], rows[:, a:b]) for a, b in itertools.pairwise(edges)]
            np.sqrt(np.cumsum(np.stack(squares, axis=1), axis=1, dtype=np.float32)).tofile(file)
            bar.update(len(rows))


def build_coarse(
    store: VectorStore,
    width: int,
    name: str,
    settings: Mapping[str, int],
    seed: int,
    progress: bool,
    adaptor: Adaptor | None = None,
) -> CoarseIndex:
    """Train and fill a coarse index over the unit prefixes of the stored rows.

    One that answers alone (exact scores over the full width) takes the rows as they are stored, turned back into the
    user's own space where the adaptor allows that.
    """
    index = family(name)(width, **settings)
    alone = answers_alone(index, store.dim)
    turn = turn_of(adaptor) if alone and adaptor is not None else None
    index.train(_training_sample(store, width, seed))  # spectra and lengths are the same in either space
    release_freed()
    block = np.empty((min(store.n, max(1, BLOCK_BYTES // (4 * width))), width), dtype=np.float32)
    with Progress(total=store.n, desc=f"index {name}", unit="rows", unit_scale=True, disable=not progress) as bar:
        for start in range(0, store.n, len(block)):
            prefixes = _fill(block[: store.n - start], store, start, unit=not alone)
            index.add(prefixes if turn is None else turn.own(prefixes))
            bar.update(len(prefixes))
    return index


def _fill(block: npt.NDArray[np.float32], store: VectorStore, start: int, unit: bool = True) -> npt.NDArray[np.float32]:
    """The block [n, width], filled with the prefixes of n rows from `start` on, scaled to unit length or as stored."""
    for first, rows in store.chunks(max(1, CELLS_AT_A_TIME // store.dim), start, start + len(block)):
        width = block.shape[1]
        block[first - start : first - start + len(rows)] = unit_prefixes(rows, width) if unit else rows[:, :width]
    return block


def _training_sample(store: VectorStore, width: int, seed: int) -> npt.NDArray[np.float32]:
    """Unit prefixes of rows drawn evenly; read in runs, as rows that lie together come in one read."""
    if store.n <= TRAINING_ROWS:
        return _fill(np.empty((store.n, width), dtype=np.float32), store, 0)
    chosen = np.sort(np.random.default_rng(seed).choice(store.n, TRAINING_ROWS, replace=False))
    sample = np.empty((TRAINING_ROWS, width), dtype=np.float32)
    for first, rows in store.chunks(max(1, CELLS_AT_A_TIME // store.dim)):
        begin, end = np.searchsorted(chosen, (first, first + len(rows)))
        sample[begin:end] = unit_prefixes(rows[chosen[begin:end] - first], width)
    return sample
