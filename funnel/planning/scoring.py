"""Scores of many candidates of many queries, at every rerank width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32
from funnel.engine.rerank import carry_on, rows_at_a_time

__all__ = ["score"]

# Of a pass over a matrix that memory does not hold: candidates that are sorted together (32 MB), and scored together.
PAIRS_SORTED, PAIRS_SCORED = 1_000_000, 4_096
CELLS_AT_A_TIME = 2_097_152  # of the matrix, as read: 8 MB as float32


def score(cascade: Cascade, queries: Float32, rows: npt.NDArray[Any], widths: Sequence[int], result: Float32) -> None:
    """Fill result float32 [q, s, len(widths)]: each candidate's score at each width; -inf where the row is -1.

    queries: float32 [q, d], unit rows. rows: int [q, s]. widths: rising. A score is the cosine on the prefix up to the
    query's norm, and the inner product at full width.
    """
    store, queries = cascade.store, cascade.as_stored(queries)
    if store.exceeds_memory and store.placement == "mapped":
        at_a_time = max(1, PAIRS_SORTED // max(1, rows.shape[1]))
        for begin in range(0, len(rows), at_a_time):
            part = slice(begin, begin + at_a_time)
            _score_in_a_pass(cascade, queries[part], rows[part], widths, result[part])
        return
    at_a_time = rows_at_a_time(rows.shape[1], store.dim, store.device)
    with torch.inference_mode():
        for begin in range(0, len(rows), at_a_time):
            block = torch.from_numpy(rows[begin : begin + at_a_time].astype(np.int64)).to(store.device)
            query = torch.from_numpy(queries[begin : begin + at_a_time]).to(store.device)
            found, partial, start = block.clamp(min=0), None, 0
            for column, width in enumerate(widths):
                partial = carry_on(store, query, found, partial, start, width)
                scores = partial if width == store.dim else partial * cascade.inverse_norms[width][found]
                scores = scores.masked_fill(block < 0, -torch.inf)
                result[begin : begin + at_a_time, :, column] = scores.cpu().numpy()
                start = width


def _score_in_a_pass(
    cascade: Cascade, queries: Float32, rows: npt.NDArray[Any], widths: Sequence[int], result: Float32
) -> None:
    """The same in one pass over the matrix: gathered query by query, every row would be read from the disk anew.

    Within 300 MB of memory and over 750 MB of rows, the disk gave 14,000 of them a second.
    """
    store = cascade.store
    result[...] = -np.inf
    asked, places = np.nonzero(rows >= 0)
    order = np.argsort(rows[asked, places], kind="stable")
    asked, places = asked[order], places[order]
    wanted = rows[asked, places].astype(np.int64)
    size = max(1, CELLS_AT_A_TIME // store.dim)
    for first in range(0, store.n, size):
        begin, end = np.searchsorted(wanted, (first, first + size))
        if begin == end:
            continue
        block = store.block(first, first + size).cpu().numpy()
        for start in range(begin, end, PAIRS_SCORED):
            pairs = slice(start, min(start + PAIRS_SCORED, end))
            numbers, query = wanted[pairs], queries[asked[pairs]]
            products = block[numbers - first] * query
            partial, before = np.zeros(len(numbers), dtype=np.float32), 0
            for column, width in enumerate(widths):
                partial += products[:, before:width].sum(axis=1)
                before = width
                known = width == store.dim
                scale = 1.0 if known else cascade.inverse_norms[width].cpu().numpy()[numbers]
                result[asked[pairs], places[pairs], column] = partial * scale
    store.release()
