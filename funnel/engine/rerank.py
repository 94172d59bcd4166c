"""Rerank: gather rows, multiply, keep the best.

On the CPU compiled loops do it in one pass where numba is installed; else, and on CUDA, torch does; there Triton
gathers and multiplies at once.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from indexes import VectorStore

__all__ = [
    "Float32",
    "Int64",
    "best",
    "carry_on",
    "fused_dots",
    "gather_rows",
    "gathered",
    "loops",
    "queries_together",
    "reranked",
    "rows_at_a_time",
    "scored",
    "to_device",
    "to_host",
    "writable",
]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Elements gathered at a time by torch on one thread: 3 MB as float32, which stay in the cache.
CELLS_AT_A_TIME = 800_000
# A GPU wants the opposite: few, large launches; 256 MB of float32.
CELLS_AT_A_TIME_CUDA = 64_000_000
QUERIES_TOGETHER_FUSED = 8_192  # with 1,024 candidates each: 64 MB of row numbers
NO_WEIGHTS = np.empty(0, dtype=np.float32)


@lru_cache(maxsize=1)
def loops() -> ModuleType | None:
    """The compiled loops; None where numba is not installed."""
    try:
        from indexes import compiled
    except ImportError:
        return None
    return compiled


def _compiled(store: VectorStore) -> ModuleType | None:
    return loops() if store.placement in ("mapped", "device") and store.device.type == "cpu" else None


def scored(store: VectorStore, queries: Float32, rows: Int64, width: int) -> Float32:
    """Products with rows int64 [n, s] over the first `width` dims: float32 [n, s], -inf where a row is -1.

    queries: float32 [n, d], as rows are stored. Summed in float32 whatever the store keeps. On this thread.
    """
    compiled = _compiled(store)
    if compiled is None:
        return _by_torch(store, queries, rows, width).cpu().numpy()
    rows, found = np.ascontiguousarray(rows), np.empty(rows.shape, dtype=np.float32)
    compiled.dots(store.cells(rows), writable(queries), rows, width, found)
    return found


def reranked(
    store: VectorStore, queries: Float32, rows: Int64, width: int, keep: int, weights: torch.Tensor | None = None
) -> tuple[Float32, Int64, Int64]:
    """The best of rows int64 [n, s] by `scored`: scores, falling, rows and where these stood, [n, min(keep, s)] each.

    weights: float32 [rows of the store], by which the product of each is multiplied first.
    """
    compiled, keep = _compiled(store), min(keep, rows.shape[1])
    if compiled is None:
        with torch.inference_mode():
            products = _by_torch(store, queries, rows, width)
            if weights is not None:
                products *= weights[torch.from_numpy(rows.clip(min=0)).to(store.device)]
            values, at = best(products, keep)
        places: Int64 = at.cpu().numpy()
        return values.cpu().numpy(), np.take_along_axis(rows, places, axis=1), places
    rows, shape = np.ascontiguousarray(rows), (len(rows), keep)
    scores, found, places = np.empty(shape, np.float32), np.empty(shape, np.int64), np.empty(shape, np.int64)
    scale = NO_WEIGHTS if weights is None else weights.numpy()
    compiled.rerank(store.cells(rows), writable(queries), rows, width, scale, scores, found, places)
    return scores, found, places


def writable(queries: Float32) -> Float32:
    """Queries of the one kind that loops were compiled for."""
    return queries if queries.flags.writeable else np.array(queries)


def _by_torch(store: VectorStore, queries: Float32, rows: Int64, width: int) -> torch.Tensor:
    parts, at_a_time = [], rows_at_a_time(rows.shape[1], width, store.device)
    with torch.inference_mode():
        query, found = to_device(np.array(queries), store.device), to_device(np.array(rows), store.device)
        for start in range(0, max(1, len(rows)), at_a_time):
            part = slice(start, start + at_a_time)
            products = carry_on(store, query[part], found[part].clamp(min=0), None, 0, width)
            parts.append(products.masked_fill_(found[part] < 0, -torch.inf))
        return torch.cat(parts)


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
    # A row times a matrix for each query: half the time of the matrix times a column.
    wanted = gather_rows(store, rows.reshape(-1), start, stop).view(n, s, stop - start)
    return torch.bmm(queries[:, None, start:stop], wanted.transpose(1, 2)).squeeze(1)


def _in_host_memory(store: VectorStore, start: int, stop: int) -> bool:
    """Whether these dims are gathered by the host."""
    return store.placement == "host" or (store.codes is not None and stop - start == store.dim)


def _stored(store: VectorStore) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What lies on the device: rows and no scales, or codes and theirs."""
    return (store.matrix, None) if store.codes is None else (store.codes.codes, store.codes.scales)


def gather_rows(store: VectorStore, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Dims [start, stop) of some rows as float32 [r, stop - start], to be overwritten."""
    return store.gather(rows, start, stop).float()


def best(scores: torch.Tensor, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `keep` largest of each row of scores [n, s], falling, and where they stood: [n, keep] twice."""
    values, places = torch.topk(scores, min(keep, scores.shape[1]), dim=1)
    return values, places


# Rows and dims that one program reads at a time: 16 rows of 128 float16 are 4 KB, enough in flight to hide memory, and
# a shortlist of 64 still gives four programs a query.
BLOCK_ROWS, BLOCK_DIMS = 16, 128

Dots: TypeAlias = Callable[..., torch.Tensor]


@lru_cache(maxsize=1)
def fused_dots() -> Dots | None:
    """The function `dots` below; None where Triton is not installed."""
    try:
        kernel = importlib.import_module("funnel.engine.kernels").dots
    except ImportError:
        return None
    return _checked(_launcher(kernel)) if torch.cuda.is_available() else _launcher(kernel)


def _checked(dots: Dots) -> Dots | None:
    """The function, if it compiles here and a small product comes out right; None, and a warning, if not."""
    device = torch.device("cuda")
    matrix = torch.arange(96, device=device, dtype=torch.float16).view(2, 48) / 96
    query, rows = matrix[1:].float(), torch.tensor([[1, 0, 1]], device=device)
    expected = torch.mv(matrix.float(), query[0])[rows]
    try:
        right = torch.allclose(dots(matrix, None, query, rows, None, 0, 48), expected, rtol=1e-4)
        why = "" if right else "its products are wrong"
    except Exception as error:  # Triton raises errors of its own, of the compiler it calls, and of the driver
        right, why = False, f"{type(error).__name__}: {error}".splitlines()[0]
    if not right:
        warnings.warn(f"reranking gathers and multiplies, as the Triton kernel cannot be used: {why}", stacklevel=3)
    return dots if right else None


def _launcher(kernel: Any) -> Dots:
    def dots(
        matrix: torch.Tensor,
        scales: torch.Tensor | None,
        queries: torch.Tensor,
        rows: torch.Tensor,
        partial: torch.Tensor | None,
        start: int,
        stop: int,
    ) -> torch.Tensor:
        """Dot products over dims [start, stop) in float32, times the row's scale, added to `partial`.

        matrix: [n, d] of any type; scales: float32 [n] or None; queries: float32 [q, d]; rows: int64 [q, s];
        partial: float32 [q, s] or None. All row-major on one device. Returns float32 [q, s].
        """
        count, size = rows.shape
        result = torch.empty((count, size), dtype=torch.float32, device=rows.device)
        grid = (count, -(-size // BLOCK_ROWS))
        if count and size:
            kernel[grid](
                matrix,
                result if scales is None else scales,
                queries,
                rows.contiguous(),
                result if partial is None else partial,
                result,
                size,
                matrix.stride(0),
                queries.stride(0),
                start,
                WIDTH=stop - start,  # a handful in an index: one kernel each
                SCALED=scales is not None,
                ADDED=partial is not None,
                ROWS=BLOCK_ROWS,
                DIMS=BLOCK_DIMS,
            )
        return result

    return dots


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; from locked memory, so that the call returns before the copy has begun."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[npt.NDArray[Any]]:
    """Tensors of one device as arrays. All are copied first, and then waited for once."""
    device = tensors[0].device
    if device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    locked = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(locked, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return [np.array(here.numpy()) for here in locked]  # copied: locked memory is used again, and there is little of it
