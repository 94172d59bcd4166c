"""Cascades over a few rows on disk, made of the same parts as an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.adaptors import Identity
from funnel.building.segment import write_norms
from funnel.engine.cascade import Cascade, Space
from funnel.engine.coarse import build_coarse
from funnel.engine.generation import make_cascade, rerank_widths
from indexes import VectorStore

__all__ = ["cascade_over", "stored_rows"]


def cascade_over(
    rows: npt.NDArray[np.float32],
    folder: Path,
    ladder: tuple[int, ...],
    coarse: str = "flat",
    dtype: str = "float32",
    **settings: int,
) -> tuple[Cascade, tuple[int, ...]]:
    """A cascade over the rows in the order given, and its rerank widths."""
    folder.mkdir(parents=True, exist_ok=True)
    with VectorStore.create(folder / "vectors.npy", len(rows), rows.shape[1], dtype) as writer:
        writer.write(np.arange(len(rows)), rows)
    store = VectorStore.open(folder / "vectors.npy")
    write_norms(store, ladder, folder / "norms.npy", progress=False)
    index = build_coarse(store, store.dim, ladder[0], coarse, settings, 0, progress=False)
    widths = rerank_widths(ladder, coarse, ladder[0])
    return make_cascade(index, store, folder, ladder, widths, Space(Identity(store.dim), True), release=False), widths


def stored_rows(cascade: Cascade) -> npt.NDArray[np.float32]:
    """What the store holds, as float32."""
    rows: npt.NDArray[Any] = cascade.store.matrix.float().numpy()
    return rows
