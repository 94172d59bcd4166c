"""A plan run stage by stage for a whole batch: what a deadline interrupts, and what `explain` times."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Cascade, Float32, Int64, final, some_missing
from funnel.engine.rerank import best, carry_on, rows_at_a_time
from funnel.plan import FLAT, Plan
from funnel.planning.run import TIE_TOLERANCE, Run, given_scores
from funnel.request import Deadline
from funnel.results import MeasuredStep, Served
from indexes import RunningTop, VectorStore

__all__ = ["Found", "StagedRun", "measure_steps", "run_until", "served_each", "served_in_all"]

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


QUERIES = 512  # measured on: recall to a standard error of .005 at .99
FEWEST_CALLS = 5  # a step's time is the median over calls


def measure_steps(cascade: Cascade, run: Run, plan: Plan, k: int, batch: int) -> list[MeasuredStep]:
    """Run calls of `batch` of the recorded queries, each step for the whole batch before the next.

    run: queries and truth. Queries that are rows of the index are left out of their own answers.
    """
    extra = int((run.own_rows >= 0).any())
    widened = plan.widened() if extra else plan
    count = min(QUERIES, len(run.queries))
    calls = max(FEWEST_CALLS, -(-count // batch))
    numbers = np.resize(np.arange(len(run.queries)), calls * batch)
    times, recalls = [], []
    for call in range(calls):
        asked = numbers[call * batch : (call + 1) * batch]
        queries = np.ascontiguousarray(run.queries[asked])
        threshold = run.truth[asked, k - 1] - TIE_TOLERANCE
        took, found = _steps(cascade, queries, widened, k + extra)
        times.append(took)
        recalls.append([_recall(cascade, run, asked, step, threshold, k) for step in found])
    typical, mean = np.median(times, axis=0), np.mean(recalls, axis=0)
    return [MeasuredStep(float(ms), float(recall)) for ms, recall in zip(typical, mean, strict=True)]


def _steps(cascade: Cascade, queries: Float32, plan: Plan, k: int) -> tuple[list[float], list[Found]]:
    """Milliseconds of each step, and what would be answered after it."""
    started = time.perf_counter()
    if plan.is_flat:
        found = Found(*cascade.flat(queries, k), np.ones(len(queries), dtype=np.int64))
        return [(time.perf_counter() - started) * 1e3], [found]
    run = StagedRun(cascade, queries, plan)
    times, answers = [(time.perf_counter() - started) * 1e3], [run.answers(k)]
    for number in range(run.stages):
        started = time.perf_counter()
        run.stage(number)
        times.append((time.perf_counter() - started) * 1e3)
        answers.append(run.answers(k))
    return times, answers


def _recall(cascade: Cascade, run: Run, asked: np.ndarray, found: Found, threshold: np.ndarray, k: int) -> float:
    """Mean recall@k of the rows found for the queries `asked`, by their true scores."""
    queries, own = np.ascontiguousarray(run.queries[asked]), run.own_rows[asked]
    with torch.inference_mode():
        query, rows = cascade.tensors(cascade.as_stored(queries), found.rows.clip(min=0))
        scores = carry_on(cascade.store, query, rows, None, 0, cascade.store.dim).cpu().numpy()
    if run.given is not None and run.near_rows is not None and run.near_scores is not None:
        scores = given_scores((run.near_scores[asked], run.near_rows[asked]), found.rows, scores)
    true = (scores >= threshold[:, None]) & (found.rows >= 0) & (found.rows != own[:, None])
    return float(np.minimum(true.sum(axis=1), k).mean() / k)


def served_each(found: Found, served: Served, recalls: Sequence[float]) -> list[Served]:
    """One record a query. served: of the plan run to its end; recalls: estimated after each of its steps.

    Flat search that was stopped found the true neighbours among the rows it saw: their share is the estimate. Rows lie
    in the order of a cluster tree, so that this is a mean over queries, and says little of a single one.
    """
    made: dict[int, Served] = {}
    for done in np.unique(found.done).tolist():
        made[done] = _served(served, served.stages - done, found.seen, recalls)
    return [made[done] for done in found.done.tolist()]


def served_in_all(each: Sequence[Served], found: Found, served: Served) -> Served:
    """One record for a whole batch: the most steps that were left out, and the mean of the estimates."""
    if (found.done == served.stages).all():
        return each[0]
    estimate = float(np.mean([one.estimated_recall for one in each]))
    skipped = int(served.stages - found.done.min())
    return replace(served, estimated_recall=estimate, skipped=skipped, rows_seen=found.seen)


def _served(served: Served, skipped: int, seen: float, recalls: Sequence[float]) -> Served:
    if not skipped and not math.isnan(served.estimated_recall):
        return served
    estimate = seen if served.plan.is_flat else recalls[served.stages - skipped - 1]
    return replace(served, estimated_recall=estimate, skipped=skipped, rows_seen=seen)
