"""A plan run stage by stage for a whole batch: what a deadline interrupts, and what `explain` times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64, final, some_missing
from funnel.engine.deadline import Deadline
from funnel.engine.rerank import best, rows_at_a_time
from funnel.plan import FLAT, Plan
from indexes import RunningTop, VectorStore

__all__ = ["Found", "StagedRun", "run_until", "scan_until"]

# Values compared between two looks at the clock by flat search: 10 MB as float32, 2 to 4 ms for one query.
CELLS_BETWEEN_LOOKS = 2_621_440


@dataclass(frozen=True, slots=True)
class Found:
    """What a run gave that may have been stopped.

    scores: float32 [n, k], falling: exact cosines where every stage was done, else cosines on the prefix of the last
    stage done (as the coarse index's codes give them, where that is the coarse search). rows: stored rows int64
    [n, k]. done: int64 [n], steps done of each query: 1 after the coarse search, one more for each stage. seen: the
    share of the rows that flat search compared.
    """

    scores: Float32
    rows: Int64
    done: npt.NDArray[np.int64]
    seen: float = 1.0


@dataclass(slots=True)
class _Part:
    """The candidates of a few queries after the last step that was done, best first."""

    places: slice | Int64
    query: torch.Tensor
    rows: torch.Tensor
    missing: torch.Tensor | None
    scores: torch.Tensor
    partial: torch.Tensor | None = None
    start: int = 0
    done: int = 1


class StagedRun:
    """Runs a plan that is not flat: every query through the coarse search, then every query through each stage.

    `Cascade.run` takes each piece of a batch through the whole plan, which keeps its candidates in the cache; here a
    step is done for all pieces before the next begins, so that at any moment every query has an answer. queries:
    float32 [n, d], unit rows, C-contiguous. Making it runs the coarse search.
    """

    def __init__(self, cascade: Cascade, queries: Float32, plan: Plan) -> None:
        self._cascade = cascade
        self._queries = queries
        self._plan = plan
        self._widths = [cascade.store.dim if stage is None else stage.width for stage in plan.reranks]
        pieces = cascade.pieces(queries)
        found: list[tuple[Float32, Int64]] = [(np.empty(0), np.empty(0))] * len(pieces)  # type: ignore[list-item]

        def coarse(number: int) -> None:
            found[number] = cascade.coarse_search(queries[pieces[number]], plan.shortlist, plan.effort)

        cascade.each(coarse, range(len(pieces)))
        self._parts = [
            part for at, (scores, rows) in zip(pieces, found, strict=True) for part in self._cut(at, scores, rows)
        ]

    def _cut(self, places: slice | Int64, scores: Float32, rows: Int64) -> Iterator[_Part]:
        """The queries of a piece that are reranked together."""
        cascade = self._cascade
        numbers = np.arange(places.start, places.stop) if isinstance(places, slice) else places
        at_a_time = rows_at_a_time(rows.shape[1], cascade.store.dim, cascade.store.device)
        for start in range(0, len(rows), at_a_time):
            part = slice(start, start + at_a_time)
            query, shortlist = cascade.tensors(
                cascade.as_stored(self._queries[numbers[part]]), np.ascontiguousarray(rows[part])
            )
            missing = shortlist < 0 if some_missing(rows[part]) else None
            ranked = torch.from_numpy(np.ascontiguousarray(scores[part])).to(query.device)
            yield _Part(numbers[part], query, shortlist.clamp(min=0), missing, ranked)

    @property
    def stages(self) -> int:
        """Steps after the coarse search, the exact one among them."""
        return len(self._widths)

    def stage(self, number: int, deadline: Deadline | None = None) -> None:
        """Do one stage, counted from 0, for every piece that has done all before it; none after the deadline."""

        def one(part: _Part) -> None:
            if part.done == number + 1 and (deadline is None or not deadline.passed()):
                self._narrow(part, number)

        with_stage = [part for part in self._parts if part.done == number + 1]
        self._cascade.each(one, with_stage)

    def _narrow(self, part: _Part, number: int) -> None:
        width = self._widths[number]
        if self._cascade.alone:  # its scores are exact already
            part.start, part.done = width, number + 2
            return
        keep = part.rows.shape[1] if width == self._cascade.store.dim else self._plan.stages[number].keep
        with torch.inference_mode():
            partial, scores = self._cascade.scores_at(
                part.query, part.rows, part.missing, part.partial, part.start, width
            )
            part.scores, places = best(scores, keep)
            part.rows, part.partial = part.rows.gather(1, places), partial.gather(1, places)
            part.missing = None if part.missing is None else part.missing.gather(1, places)
        part.start, part.done = width, number + 2

    def answers(self, k: int) -> Found:
        """The best k of each query after the steps that were done."""
        count = len(self._queries)
        result = Found(
            np.empty((count, k), np.float32), np.empty((count, k), np.int64), np.empty(count, dtype=np.int64)
        )
        for part in self._parts:
            with torch.inference_mode():
                scores, rows, _ = final(part.scores, part.rows, part.missing, k)
                norms = part.query[:, : part.start or self._cascade.width].norm(dim=1, keepdim=True)
                scores = scores / norms.clamp(min=torch.finfo(norms.dtype).tiny)
            result.scores[part.places] = scores.cpu().numpy()
            result.rows[part.places] = rows.cpu().numpy()
            result.done[part.places] = part.done
        return result


def run_until(
    cascade: Cascade, queries: Float32, plan: Plan, k: int, deadline: Deadline, flat_ms: float = math.inf
) -> Found:
    """The best k found by the deadline. The coarse search is always finished, so that every query has an answer.

    queries: float32 [n, d], unit rows, C-contiguous. The clock is looked at before each stage of each piece. flat_ms:
    what FLAT takes, see `scan_until`.
    """
    if plan.is_flat:
        return scan_until(cascade, queries, k, deadline, flat_ms)
    run = StagedRun(cascade, queries, plan)
    for number in range(run.stages):
        if deadline.passed():
            break
        run.stage(number, deadline)
    return run.answers(k)


def scan_until(cascade: Cascade, queries: Float32, k: int, deadline: Deadline, flat_ms: float = math.inf) -> Found:
    """Flat search over blocks of rows up to the deadline, and over k rows at least.

    Where flat_ms, what it takes otherwise, are left, it is run as otherwise: pruned, for one. On a GPU, and where the
    matrix is small, it is one piece that is not stopped.
    """
    store: VectorStore = cascade.store
    rows_between = max(k, CELLS_BETWEEN_LOOKS // store.dim)
    done = np.full(len(queries), FLAT.steps, dtype=np.int64)
    if store.device.type != "cpu" or store.n <= rows_between or deadline.left_ms() >= flat_ms:
        return Found(*cascade.flat(queries, k), done)
    top, stop = RunningTop(cascade.as_stored(queries), k), 0
    while stop < store.n and not (stop and deadline.passed()):
        top.update(store.block(stop, stop + rows_between).numpy(), stop, cascade.live)
        stop = min(stop + rows_between, store.n)
    if stop < store.n:
        done[:] = 0
    return Found(*top.filled(), done, stop / store.n)
