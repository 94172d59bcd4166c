"""Rerank: gather rows, multiply, keep the best. One code for CPU and CUDA; there Triton does the first two at once."""

from __future__ import annotations

import threading
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.device import fused_dots
from indexes import VectorStore

__all__ = ["Kept", "best", "carry_on", "depths", "gather_rows", "gathered", "queries_together", "rows_at_a_time"]

Kept: TypeAlias = tuple[torch.Tensor, ...]
"""Of each step after the coarse search, the places it kept among those it was given: int64 [n, keep], the k hits last.

Or mean places, float32 [n, 1], by themselves; () where nothing was reranked, so that there is no depth.
"""


def depths(kept: Kept) -> npt.NDArray[np.float32]:
    """The mean place of each query's hits in the coarse shortlist, from 0: float32 [n]. kept: not empty."""
    places = kept[0]
    for step in kept[1:]:
        places = places.gather(1, step)
    mean: npt.NDArray[np.float32] = places.mean(dim=1, dtype=torch.float32).cpu().numpy()
    return mean


# Elements gathered at a time on one thread: 3 MB as float32. From 0.8 to 1.2 million the time a query is the same
# within the noise (80 us at a shortlist of 64, coarse search included); at 0.1 million it is half as long again, at
# 2.5 million a fifth, as the rows leave the cache.
CELLS_AT_A_TIME = 800_000
# A GPU wants the opposite: few, large launches; 256 MB of float32.
CELLS_AT_A_TIME_CUDA = 64_000_000
QUERIES_TOGETHER_FUSED = 8_192  # with 1,024 candidates each: 64 MB of row numbers
TORCH_GRAIN = 32_768  # elements from which torch spreads an operation (at::internal::GRAIN_SIZE)
VIEWS_KEPT = 256  # shapes a thread remembers: plans have a handful, the last piece of a batch adds odd ones


class _Scratch(threading.local):
    """Buffers that a thread gathers into again and again: fresh ones cost a page fault for every 4 KB."""

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, torch.Tensor] = {}
        self._views: dict[tuple[torch.dtype, int, int], torch.Tensor] = {}

    def take(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised matrix [rows, width], valid until the next call for this type on this thread."""
        view = self._views.get((dtype, rows, width))
        return self._make(rows, width, dtype) if view is None else view

    def _make(self, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
        cells, buffer = rows * width, self._buffers.get(dtype)
        if buffer is None or buffer.numel() < cells:
            with torch.inference_mode(False):  # usable in and outside of inference mode
                buffer = self._buffers[dtype] = torch.empty(cells, dtype=dtype)
            self._views.clear()
        if len(self._views) >= VIEWS_KEPT:
            self._views.clear()
        view = self._views[dtype, rows, width] = buffer[:cells].view(rows, width)
        return view


_scratch = _Scratch()


def rows_at_a_time(candidates: int, width: int, device: torch.device) -> int:
    """How many queries to rerank together when each has `candidates` rows of `width` dims."""
    cells = CELLS_AT_A_TIME if device.type == "cpu" else CELLS_AT_A_TIME_CUDA
    return max(1, cells // max(1, candidates * width))


def queries_together(store: VectorStore, candidates: int) -> int:
    """How many queries to take through all stages together: as many as come, where nothing is gathered."""
    if store.device.type == "cuda" and store.placement == "device" and fused_dots() is not None:
        return QUERIES_TOGETHER_FUSED
    return rows_at_a_time(candidates, store.dim, store.device)


def carry_on(
    store: VectorStore,
    queries: torch.Tensor,
    rows: torch.Tensor,
    partial: torch.Tensor | None,
    start: int,
    stop: int,
) -> torch.Tensor:
    """Dot products over dims [start, stop), added to those over [0, start).

    queries: float32 [n, d]; rows: int64 [n, s]; partial: float32 [n, s] or None. Returns float32 [n, s].
    Accumulated in float32 whatever the store keeps. Where parts of rows are codes and whole rows are not, the full
    width begins anew.
    """
    if store.codes is not None and stop == store.dim:
        partial, start = None, 0
    if store.device.type == "cuda" and not _in_host_memory(store, start, stop):
        fused = fused_dots()
        if fused is not None:
            return fused(*_stored(store), queries, rows, partial, start, stop)
    dots = gathered(store, queries, rows, start, stop)
    return dots if partial is None else dots.add_(partial)


def gathered(store: VectorStore, queries: torch.Tensor, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Dot products over dims [start, stop): rows are gathered, then multiplied. As `carry_on` without a partial."""
    n, s = rows.shape
    if n == 1:
        return _one_query(store, queries[0, start:stop], rows[0], start, stop).unsqueeze(0)
    # A row times a matrix for each query: half the time of the matrix times a column.
    wanted = gather_rows(store, rows.reshape(-1), start, stop).view(n, s, stop - start)
    return torch.bmm(queries[:, None, start:stop], wanted.transpose(1, 2)).squeeze(1)


def _in_host_memory(store: VectorStore, start: int, stop: int) -> bool:
    """Whether these dims are gathered by the host."""
    return store.placement == "host" or (store.codes is not None and stop - start == store.dim)


def _stored(store: VectorStore) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What lies on the device: rows and no scales, or codes and theirs."""
    return (store.matrix, None) if store.codes is None else (store.codes.codes, store.codes.scales)


def _one_query(store: VectorStore, query: torch.Tensor, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """One matrix times one vector: on the CPU in parts that torch does not spread over its own threads.

    A single query runs on the caller's thread. Each part spread over two threads is a wait for the other one: 256 rows
    of 384 dims took 100 ms instead of .2 while other processes kept both cores busy.
    """
    at_a_time = len(rows) if store.placement != "mapped" else max(1, (TORCH_GRAIN - 1) // (stop - start))
    if len(rows) <= at_a_time:
        return torch.mv(gather_rows(store, rows, start, stop), query)
    parts = (rows[i : i + at_a_time] for i in range(0, len(rows), at_a_time))
    return torch.cat([torch.mv(gather_rows(store, part, start, stop), query) for part in parts])


def gather_rows(store: VectorStore, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Dims [start, stop) of some rows as float32 [r, stop - start], to be overwritten."""
    if store.placement != "mapped":
        return store.gather(rows, start, stop).float()
    wide = _scratch.take(len(rows), stop - start, torch.float32)
    if store.matrix.dtype == torch.float32:
        return store.gather(rows, start, stop, out=wide)
    stored = _scratch.take(len(rows), stop - start, store.matrix.dtype)
    return wide.copy_(store.gather(rows, start, stop, out=stored))


def best(scores: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `keep` largest of each row of scores [n, s], falling, and where they stood: [n, keep] twice."""
    values, places = torch.topk(scores, min(keep, scores.shape[1]), dim=1)
    return values, places
