"""What was measured of every plan on sample queries: recorded once, evaluated for any k.

Each effort of the coarse index is run once at its own largest shortlist; smaller shortlists are prefixes of that
run. Every candidate's score is recorded at every rerank width, so the survivors of any stages follow from the
record without running them.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from funnel.cascade import Cascade
from funnel.plan import Plan, Stage
from funnel.rerank import carry_on, rows_at_a_time

__all__ = ["LARGEST_K", "Run", "hits", "record"]

LARGEST_K = 100  # truth is recorded to this depth: any k up to it can be certified from the record
TIE_TOLERANCE = 1e-6  # a returned row whose true score is this close to the k-th counts (design: recall is tie-aware)
# Efforts rise until held-out rows miss fewer than this share of the true top 100: more effort could no longer be
# told apart on a thousand queries.
ENOUGH_RECALL = 0.9995
# They end as well where the coarse search alone takes this share of the time of flat search: with reranking and its
# lower recall such a plan is never worth serving.
DEAREST = 0.6
# Queries that plans are followed for at once: the scores of 1,000 x 1,024 candidates at 8 widths are 33 MB.
QUERIES_AT_A_TIME = 1_000

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One set of queries, run at every effort.

    queries: float32 [q, d], adapted unit rows. own_rows: int64 [q], the stored row that each query is (left out of
    truth and shortlists), or -1. truth: float32 [q, LARGEST_K], true scores, falling. widths: the rerank widths,
    the last is d. shortlists: effort -> int32 [q, s], stored rows in coarse order, -1 where none.
    scores: effort -> float32 [q, s, len(widths)], prefix cosine up to the query's norm, exact at d.
    """

    queries: Float32
    own_rows: Int64
    truth: Float32
    widths: tuple[int, ...]
    shortlists: dict[int, npt.NDArray[np.int32]]
    scores: dict[int, Float32]

    @property
    def efforts(self) -> tuple[int, ...]:
        """The efforts on record, rising."""
        return tuple(sorted(self.scores))

    def recall(self, effort: int, k: int) -> float:
        """Mean recall@k of the whole shortlist at this effort."""
        plan = Plan(effort, self.shortlists[effort].shape[1])
        return float(hits(self, [plan], k)[0].mean() / k)


def record(
    cascade: Cascade,
    queries: Float32,
    own_rows: Int64 | None,
    widths: Sequence[int],
    efforts: Sequence[int] | None = None,
    progress: bool = False,
    label: str = "calibrate",
    folder: Path | None = None,
) -> Run:
    """Truth, shortlists and scores of the queries at every effort.

    queries: float32 [q, d], adapted unit rows; own_rows: int64 [q] or None; widths: rerank widths, the last is d.
    efforts: which to run; None: rising, until one finds all but a share of 5e-4 of the true neighbours, or takes
    most of the time of flat search. folder: where shortlists and scores are kept, in files without a name that go with
    the record; None, or one that cannot be written to: in memory. Each effort takes 4 bytes a candidate, and 4 more for
    each width: 180 MB for 5,000 queries, 1,000 candidates and 8 widths.
    """
    own = np.full(len(queries), -1, dtype=np.int64) if own_rows is None else own_rows
    depth = min(LARGEST_K, cascade.store.n - (1 if own_rows is not None else 0))
    started = time.perf_counter()
    truth_scores, truth_rows = cascade.truth(queries, min(depth + 1, cascade.store.n))
    flat_seconds = time.perf_counter() - started
    truth = _without_own(truth_scores, truth_rows, own, depth)
    run = Run(queries, own, truth, tuple(widths), {}, {})
    wanted = cascade.coarse.efforts() if efforts is None else efforts
    with tqdm(total=len(wanted) * len(queries), desc=label, unit="queries", disable=not progress) as bar:
        for effort in wanted:
            started = time.perf_counter()
            found = cascade.shortlist(queries, cascade.coarse.largest_shortlist(effort), effort)
            dear = time.perf_counter() - started > DEAREST * flat_seconds
            rows = _drop_own(found, own)
            run.shortlists[effort] = _kept(rows.shape, np.int32, folder)
            run.shortlists[effort][:] = rows
            run.scores[effort] = _kept((*rows.shape, len(widths)), np.float32, folder)
            _score(cascade, queries, rows, run.widths, run.scores[effort])
            bar.update(len(queries))
            deep = found.shape[1] >= 2 * depth  # room for every k, whatever the clock says
            if efforts is None and ((dear and deep) or run.recall(effort, depth) >= ENOUGH_RECALL):
                break
    return run


def _without_own(scores: Float32, rows: Int64, own: Int64, depth: int) -> Float32:
    """True scores with each query's own row taken out: float32 [q, depth]."""
    mine = rows == own[:, None]
    mine[~mine.any(axis=1), -1] = True  # where it is not among them, the last one goes
    kept: Float32 = scores[~mine].reshape(len(scores), -1) if rows.shape[1] > depth else scores
    return np.ascontiguousarray(kept[:, :depth])


def _drop_own(rows: Int64, own: Int64) -> Int64:
    """Shortlists with each query's own row taken out, the rest moved up, -1 at the end."""
    mine = (rows == own[:, None]) & (own[:, None] >= 0)
    if not mine.any():
        return rows
    order = np.argsort(mine, axis=1, kind="stable")
    moved = np.take_along_axis(rows, order, axis=1)
    moved[np.take_along_axis(mine, order, axis=1)] = -1
    return moved


def _kept(shape: tuple[int, ...], dtype: npt.DTypeLike, folder: Path | None) -> npt.NDArray[Any]:
    """An array to fill; in a mapped file where there is a folder, as the system can then take its pages back."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or not size:
        return np.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk then shows here, and not as a signal on writing
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))  # the map keeps the file
    except OSError:  # no room, or no right to write: an index that is only opened needs neither
        return np.empty(shape, dtype=dtype)


def _score(cascade: Cascade, queries: Float32, rows: Int64, widths: Sequence[int], result: Float32) -> None:
    """Fill result float32 [q, s, len(widths)]: each candidate's score at each width; -inf where the row is -1."""
    store = cascade.store
    at_a_time = rows_at_a_time(rows.shape[1], store.dim, store.device)
    with torch.inference_mode():
        for begin in range(0, len(rows), at_a_time):
            block = torch.from_numpy(rows[begin : begin + at_a_time]).to(store.device)
            query = torch.from_numpy(queries[begin : begin + at_a_time]).to(store.device)
            found, partial, start = block.clamp(min=0), None, 0
            for column, width in enumerate(widths):
                partial = carry_on(store, query, found, partial, start, width)
                scores = partial if width == store.dim else partial * cascade.inverse_norms[width][found]
                scores = scores.masked_fill(block < 0, -torch.inf)
                result[begin : begin + at_a_time, :, column] = scores.cpu().numpy()
                start = width


def hits(run: Run, plans: Sequence[Plan], k: int) -> npt.NDArray[np.uint8]:
    """How many of the true top k each plan returns for each query: uint8 [len(plans), q], 0..k.

    Tie-aware: a survivor whose exact score is within 1e-6 of the k-th true score, or above it, counts.
    """
    result = np.zeros((len(plans), len(run.queries)), dtype=np.uint8)
    for start in range(0, len(run.queries), QUERIES_AT_A_TIME):
        _count(run, plans, k, slice(start, start + QUERIES_AT_A_TIME), result)
    return result


def _count(run: Run, plans: Sequence[Plan], k: int, queries: slice, result: npt.NDArray[np.uint8]) -> None:
    """Fill the columns of some queries in what `hits` returns."""
    threshold = torch.from_numpy(run.truth[queries, k - 1] - TIE_TOLERANCE)
    order = sorted(range(len(plans)), key=lambda i: (plans[i].effort, plans[i].shortlist, plans[i].stages))
    for effort, group in groupby(order, key=lambda i: plans[i].effort):
        scores = torch.from_numpy(run.scores[effort][queries])
        true = scores[:, :, -1] >= threshold[:, None]
        for size, members in groupby(group, key=lambda i: plans[i].shortlist):
            wanted: dict[tuple[Stage, ...], list[int]] = {}
            for i in members:
                wanted.setdefault(plans[i].stages, []).append(i)
            for stages, counts in _survivors(scores[:, :size], true[:, :size], run.widths, tuple(wanted)):
                result[wanted[stages], queries] = counts.clamp(max=k).to(torch.uint8).numpy()


def _survivors(
    scores: torch.Tensor,
    true: torch.Tensor,
    widths: tuple[int, ...],
    wanted: tuple[tuple[Stage, ...], ...],
    done: tuple[Stage, ...] = (),
) -> Iterator[tuple[tuple[Stage, ...], torch.Tensor]]:
    """For every wanted continuation of `done`: how many true neighbours survive it, [q].

    scores: [q, s, len(widths)] and true: bool [q, s] of the candidates that survived `done`.
    """
    depth = len(done)
    if done in wanted:
        yield done, true.sum(dim=1)
    deeper = sorted({stages[depth] for stages in wanted if len(stages) > depth and stages[:depth] == done})
    for width, steps in groupby(deeper, key=lambda stage: stage.width):
        order = torch.argsort(scores[:, :, widths.index(width)], dim=1, descending=True, stable=True)
        for step in steps:
            kept = order[:, : step.keep]
            reached = (*done, step)
            longer = tuple(stages for stages in wanted if stages[: depth + 1] == reached)
            if longer == (reached,):
                yield reached, true.gather(1, kept).sum(dim=1)
                continue
            inside = scores.gather(1, kept[:, :, None].expand(-1, -1, scores.shape[2]))
            yield from _survivors(inside, true.gather(1, kept), widths, longer, reached)
