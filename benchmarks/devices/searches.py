"""Flat searches and funnels over rows that lie on a device, each from queries in host memory to answers there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.devices.rates import wall_seconds
from funnel.adaptors import Identity
from funnel.engine.cascade import Cascade, Float32, Int64, Space
from funnel.engine.rerank import to_device, to_host
from funnel.plan import Plan, Stage
from indexes import CoarseIndex, VectorStore, exact_search
from indexes._devicerows import DeviceRows
from indexes.exact import ExactTop
from indexes.gpu import brute_force

__all__ = [
    "K",
    "Search",
    "best_plans",
    "coarse_index",
    "faiss_flat",
    "funnel",
    "recall",
    "search_by",
    "torch_flat",
    "widths",
]

K = 10
ROWS_AT_A_TIME = 262_144
SHORTLISTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BINS_TRIED = 3  # efforts of a family that are tried: the least, one between, the most
STAGED_FROM = 64  # shortlists from here on are also tried with a stage at twice the coarse width
KEPT_SHARE = 3
Search = Callable[[Float32], tuple[Float32, Int64]]


def torch_flat(rows: torch.Tensor, cells: int) -> Search:
    """Flat search with torch: float16 products of `cells` at a time (float32 on the CPU), a top-k of every block."""
    on_cpu = rows.device.type == "cpu"

    def search(queries: Float32) -> tuple[Float32, Int64]:
        with torch.inference_mode():
            query = to_device(queries, rows.device)
            query = query if on_cpu else query.half()
            step, top = max(K, cells // len(queries)), ExactTop(K)
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                top.update(query @ (block.float() if on_cpu else block).T, start)
            scores, found = to_host(*top.best())
        return scores, found

    return search


def faiss_flat(rows: torch.Tensor) -> Search:
    """Flat search with FAISS on the GPU, over the same float16 tensor."""

    def search(queries: Float32) -> tuple[Float32, Int64]:
        with torch.inference_mode():
            scores, found = to_host(*brute_force(to_device(queries, rows.device).half(), rows, K))
        return scores, found

    return search


def widths(dim: int) -> tuple[int, ...]:
    """Coarse widths to try: a sixth to half of the dims, multiples of 32 where there are enough."""
    step = 32 if dim >= 384 else 8
    return tuple(sorted({max(step, round(dim * share / step) * step) for share in (1 / 6, 1 / 4, 1 / 3, 1 / 2)}))


def prefixes(rows: torch.Tensor, width: int) -> Iterator[torch.Tensor]:
    """Unit prefixes float32 [c, width], block by block."""
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        block = rows[start : start + ROWS_AT_A_TIME, :width].float()
        yield block / block.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def coarse_index(family: type[CoarseIndex], rows: torch.Tensor, width: int) -> CoarseIndex:
    """A coarse index over the prefixes of all rows."""
    index = family(width)
    if isinstance(index, DeviceRows):
        index.place(rows.device)
        for block in prefixes(rows, width):
            index.add_tensor(block)
        return index
    index.train(next(prefixes(rows, width)).cpu().numpy())
    for block in prefixes(rows, width):
        index.add(block.cpu().numpy())
    return index


def funnel(index: CoarseIndex, store: VectorStore) -> Cascade:
    """The engine's own cascade: coarse index, a stage at twice its width where a plan asks for it, full width."""
    middle = min(2 * index.dim, store.dim)
    norms = [
        store.matrix[i : i + ROWS_AT_A_TIME, :middle].float().norm(dim=1) for i in range(0, store.n, ROWS_AT_A_TIME)
    ]

    def flat(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return exact_search(store, queries, k)

    inverse = torch.cat(norms).clamp_(min=torch.finfo(torch.float32).tiny).reciprocal_()
    return Cascade(index, index.dim, store, Space(Identity(store.dim), True), None, {middle: inverse}, flat, flat)


def search_by(cascade: Cascade, plan: Plan) -> Search:
    """The plan as a call. On the CPU too it takes the way of a device."""

    def search(queries: Float32) -> tuple[Float32, Int64]:
        if cascade.on_device or cascade.coarse.device.type != "cpu":
            return cascade.run(queries, plan, K)
        return cascade.piece_on_device(queries, plan, K)

    return search


def recall(found: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    """The share of the true rows [q, k] that are found."""
    return float(np.mean([np.isin(t, f).mean() for f, t in zip(found, true, strict=True)]))


def best_plans(
    cascade: Cascade, chosen_with: Float32, true: Int64, asked: float, batch: int, seconds: float
) -> list[tuple[float, Plan]]:
    """Plans of one coarse index that reach the recall, with seconds a call of `batch`: the shortest of each kind."""
    found = []
    for plan in _reaching(cascade, chosen_with, true, asked):
        search, queries = search_by(cascade, plan), np.ascontiguousarray(chosen_with[:batch])
        found.append((wall_seconds(partial(search, queries), cascade.store.device, seconds), plan))
    return found


def _reaching(cascade: Cascade, queries: Float32, true: Int64, asked: float) -> Iterator[Plan]:
    for effort in _some(cascade.coarse.efforts()):
        longest = min(SHORTLISTS[-1], cascade.coarse.largest_shortlist(effort))
        rows = cascade.begin(queries, Plan(effort, longest), slice(None)).rows
        sizes = [size for size in SHORTLISTS if size <= longest]
        size = next((size for size in sizes if recall(rows[:, :size], true) >= asked), None)
        if size is None:
            continue
        yield Plan(effort, size)
        middle = 2 * cascade.width
        if size >= STAGED_FROM and middle < cascade.store.dim:
            staged = Plan(effort, size, (Stage(middle, size // KEPT_SHARE),))
            if recall(search_by(cascade, staged)(queries)[1], true) >= asked:
                yield staged


def _some(efforts: Sequence[int]) -> list[int]:
    places = np.unique(np.linspace(0, len(efforts) - 1, BINS_TRIED).round().astype(int))
    return [efforts[place] for place in places]
