"""What each stage of a funnel takes on a device, beside what its bytes and operations take at the measured rates."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from benchmarks.devices.rates import Rates, device_seconds, wait
from funnel.engine.cascade import Cascade, Float32
from funnel.engine.rerank import carry_on, gathered, to_device
from funnel.plan import Plan
from indexes import CoarseIndex, TorchBinsIndex, _devicerows
from indexes._devicerows import DeviceRows
from indexes.torchbins import BinnedTop, fused_bins, rows_of_a_bin

__all__ = ["block_rows", "rerank_rows", "stage_rows", "waits"]

RERANKED = 256  # candidates a query of the rerank that is held against the copy bandwidth
BLOCKS = (16_777_216, 67_108_864, 268_435_456)  # products held at a time; the least of them fit the cache of an H100
BYTES = {torch.float16: 2, torch.float32: 4}


def stage_rows(cascade: Cascade, plan: Plan, queries: Float32, rates: Rates, seconds: float) -> list[dict[str, Any]]:
    """Times of the products, the bins and the last top-k of a coarse search by bins, and of the reranks after it."""
    device, index = cascade.store.device, cascade.coarse
    assert isinstance(index, DeviceRows)
    with torch.inference_mode():
        query = to_device(queries, device)
        prefix = query[:, : cascade.width].contiguous()
        working = index._working(prefix / prefix.norm(dim=1, keepdim=True))
        size = rows_of_a_bin(index.ntotal, plan.effort)

        def products() -> None:
            for _ in index._blocks(working, size):
                pass

        top: list[BinnedTop] = []

        def binned() -> None:
            top[:] = [BinnedTop(len(queries), index.ntotal, size, index.settings["kept"], working)]
            for start, block in index._blocks(working, size):
                top[0].update(block, start)

        gemm, both = device_seconds(products, device, seconds), device_seconds(binned, device, seconds)
        fused = fused_bins() if device.type == "cuda" else None
        once = None if fused is None else device_seconds(lambda: fused(working, index._rows, size), device, seconds)
        last = device_seconds(lambda: top[0].best(plan.shortlist), device, seconds)
        _, rows = index.search_tensors(prefix, plan.shortlist, plan.effort)
        rows = rows.clamp(min=0)
        whole = device_seconds(lambda: index.search_tensors(prefix, plan.shortlist, plan.effort), device, seconds)
        exact = device_seconds(
            lambda: carry_on(cascade.store, query, rows, None, 0, cascade.store.dim), device, seconds
        )
    element = BYTES[working.dtype]
    scores = len(queries) * index.ntotal * element
    read = len(queries) * plan.shortlist * cascade.store.dim * BYTES[cascade.store.matrix.dtype]
    operations = 2 * len(queries) * index.ntotal * cascade.width
    moved = scores + index.ntotal * cascade.width * 2
    least = max(operations / rates.gemm, index.ntotal * cascade.width * 2 / rates.copy)
    stages = [
        _row("products", gemm, max(operations / rates.gemm, moved / rates.copy)),
        _row("bins", max(0.0, both - gemm), scores / rates.copy),
        _row("last top-k", last, len(queries) * plan.effort * element / rates.copy),
        _row("coarse search as served", whole, least),
        _row("rerank at full width", exact, read / rates.copy),
    ]
    return stages if once is None else [*stages[:2], _row("products and bins in one kernel", once, least), *stages[2:]]


def block_rows(index: CoarseIndex, effort: int, queries: Float32, seconds: float) -> dict[int, float]:
    """Milliseconds of a coarse search block by block, by the number of products held at a time."""
    assert isinstance(index, TorchBinsIndex)
    before, found = _devicerows.PRODUCTS_AT_A_TIME_CUDA, {}
    size = rows_of_a_bin(index.ntotal, effort)
    with torch.inference_mode():
        prefix = to_device(np.ascontiguousarray(queries[:, : index.dim]), index.device)
        working = index._working(prefix)
        try:
            for cells in BLOCKS:
                _devicerows.PRODUCTS_AT_A_TIME_CUDA = cells
                took = device_seconds(lambda: index._blockwise(working, 100, size, None), index.device, seconds)
                found[cells] = took * 1e3
        finally:
            _devicerows.PRODUCTS_AT_A_TIME_CUDA = before
    return found


def _row(name: str, took: float, bound: float) -> dict[str, Any]:
    return {"stage": name, "ms": took * 1e3, "bound_ms": bound * 1e3, "share": bound / took if took else 0.0}


def rerank_rows(
    cascade: Cascade, queries: Float32, rates: Rates, seconds: float, size: int = RERANKED
) -> dict[str, Any]:
    """Bytes of rows that a rerank at full width reads a second, against the copy bandwidth; rows drawn at random.

    Each row counts once, as stored, though it may be moved more often; neighbours that several queries share and that
    the cache would give twice are left out by the draw.
    """
    store = cascade.store
    with torch.inference_mode():
        query = to_device(queries, store.device)
        rows = torch.randint(store.n, (len(queries), size), device=store.device)
        took = device_seconds(lambda: carry_on(store, query, rows, None, 0, store.dim), store.device, seconds)
        got = carry_on(store, query[:8], rows[:8], None, 0, store.dim)
        true = torch.einsum(
            "qd,qsd->qs",
            query[:8].double(),
            store.gather(rows[:8].reshape(-1), 0, store.dim).double().view(*got.shape, -1),
        )
        off = float((got.double() - true).abs().max())
        plain = device_seconds(lambda: gathered(store, query, rows, 0, store.dim), store.device, seconds)
    rate = len(queries) * size * store.dim * BYTES[store.matrix.dtype] / took
    facts = {"ms": took * 1e3, "gathered_ms": plain * 1e3, "bytes_per_second": rate, "share": rate / rates.copy}
    return {**facts, "largest_error": off}


def waits(cascade: Cascade, plan: Plan, queries: Float32) -> int | None:
    """How often torch waits for the device between the queries' way there and the answers' back; None on the CPU."""
    device = cascade.store.device
    if device.type != "cuda":
        return None
    with torch.inference_mode(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        query = to_device(queries, device)
        cascade.on_tensors(query, plan, 10)
        wait(device)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            cascade.on_tensors(query, plan, 10)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in seen)
