"""A search over one segment, step by step: run to its end, up to a deadline, or timed after each step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from funnel.engine.cascade import Candidates, Cascade, Float32, Int64, padded, some_missing
from funnel.engine.exact import AllowedScan
from funnel.engine.rerank import scored
from funnel.plan import FLAT, Plan
from funnel.planning.run import TIE_TOLERANCE, Run, given_scores
from funnel.request import Deadline
from funnel.results import Served
from indexes import RunningTop, VectorStore

__all__ = ["Found", "answers", "measure_steps", "search", "served_each", "served_in_all", "steps"]

# Values compared between two looks at the clock by flat search: 10 MB as float32, 2 to 4 ms for one query.
CELLS_BETWEEN_LOOKS = 2_621_440
QUERIES_BETWEEN_LOOKS = 64  # by a stage: .1 to 10 ms


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gave.

    scores: float32 [n, k], falling: exact cosines where every stage was done, else cosines on the prefix of the last
    stage done (as the coarse index's codes give them, where that is the coarse search). rows: int64 [n, k]. done: int64
    [n], steps done of each query: 1 after the coarse search, one more for each stage; None: all. seen: the share of the
    rows that flat search compared.
    """

    scores: Float32
    rows: Int64
    done: npt.NDArray[np.int64] | None = None
    seen: float = 1.0


def search(
    cascade: Cascade, queries: Float32, plan: Plan, k: int, deadline: Deadline | None = None, flat_ms: float = math.inf
) -> Found:
    """The best k of each query, by stored rows; exact where a plan lacks some of the best k that there are.

    queries: float32 [n, d], unit rows, C-contiguous. k: at most the cascade's rows. With a deadline the coarse search
    is always finished, so that every query has an answer, and the clock is looked at before each stage of each piece;
    flat_ms: what FLAT takes, see `scan_until`. Rows of a shortlist may have been deleted, and the lists that were
    searched may be short or empty: such queries are answered exactly, unless the deadline has passed.
    """
    if deadline is None:
        found = Found(*cascade.run(queries, plan, k))
    elif plan.is_flat:
        return scan_until(cascade, queries, k, deadline, flat_ms)
    else:
        *_, parts = steps(cascade, queries, plan, k, deadline)
        found = answers(cascade, parts, k)
    if plan.is_flat or not some_missing(found.rows) or (deadline is not None and deadline.passed()):
        return found
    count = min(k, cascade.rows)
    if not count or not some_missing(found.rows[:, :count]):
        return found
    short = np.flatnonzero(found.rows[:, count - 1] < 0)
    scores, rows = np.array(found.scores), np.array(found.rows)
    scores[short, :count], rows[short, :count] = cascade.flat(np.ascontiguousarray(queries[short]), count)
    return replace(found, scores=scores, rows=rows)


def steps(
    cascade: Cascade, queries: Float32, plan: Plan, k: int, deadline: Deadline | None = None
) -> Iterator[list[Candidates]]:
    """Run a plan that is not flat: what is left after the coarse search of every query, then after each stage.

    `Cascade.run` takes each piece of a batch through the whole plan, which keeps its candidates in the cache; here a
    step is done for all pieces before the next begins, so that at any moment every query has an answer. After the
    deadline no further piece is taken through a stage.
    """
    parts: list[Candidates] = []
    pieces = cascade.pieces(queries, QUERIES_BETWEEN_LOOKS)
    cascade.each(lambda places: parts.append(cascade.begin(queries[places], plan, places)), pieces)
    yield parts
    for number, stage in enumerate(plan.reranks, start=1):
        if deadline is not None and deadline.passed():
            return

        def one(part: Candidates) -> None:
            if deadline is None or not deadline.passed():
                cascade.narrow(part, stage, k)  # noqa: B023  called before the loop goes on

        cascade.each(one, [part for part in parts if part.done == number])
        yield parts


def answers(cascade: Cascade, parts: Sequence[Candidates], k: int) -> Found:
    """The best k of each query after the steps that were done."""
    count = sum(len(part.queries) for part in parts)
    scores, rows = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    done = np.empty(count, dtype=np.int64)
    for part in parts:
        prefixes = cascade.space.prefixes(part.queries, part.width or cascade.width)
        norms = np.linalg.norm(prefixes, axis=1, keepdims=True)
        best, rows[part.places] = padded(part.scores, part.rows, k)
        scores[part.places] = best / np.maximum(norms, np.finfo(np.float32).tiny)
        done[part.places] = part.done
    return Found(scores, rows, done)


def scan_until(cascade: Cascade, queries: Float32, k: int, deadline: Deadline, flat_ms: float = math.inf) -> Found:
    """Flat search over blocks of rows up to the deadline, and over k rows at least.

    Where flat_ms, what it takes otherwise, are left, it is run as otherwise: pruned, for one. On a GPU, and where the
    matrix is small, it is one piece that is not stopped.
    """
    store: VectorStore = cascade.store
    if isinstance(cascade.exact, AllowedScan):
        scores, rows, seen = cascade.exact.until(queries, k, deadline)
        return Found(scores, rows, np.full(len(queries), FLAT.steps if seen == 1.0 else 0), seen)
    rows_between = max(k, CELLS_BETWEEN_LOOKS // store.dim)
    done = np.full(len(queries), FLAT.steps, dtype=np.int64)
    if store.device.type != "cpu" or store.n <= rows_between or deadline.left_ms() >= flat_ms:
        return Found(*cascade.flat(queries, k), done)
    top, stop = RunningTop(queries, k), 0
    while stop < store.n and not (stop and deadline.passed()):
        top.update(store.block(stop, stop + rows_between).numpy(), stop, cascade.live)
        stop = min(stop + rows_between, store.n)
    if stop < store.n:
        done[:] = 0
    return Found(*top.filled(), done, stop / store.n)


QUERIES = 512  # measured on: recall to a standard error of .005 at .99
FEWEST_CALLS = 5  # a step's time is the median over calls


def measure_steps(cascade: Cascade, run: Run, plan: Plan, k: int, batch: int) -> list[tuple[float, float]]:
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
    return [(float(ms), float(recall)) for ms, recall in zip(typical, mean, strict=True)]


def _steps(cascade: Cascade, queries: Float32, plan: Plan, k: int) -> tuple[list[float], list[Found]]:
    """Milliseconds of each step, and what would be answered after it."""
    started = time.perf_counter()
    if plan.is_flat:
        found = Found(*cascade.flat(queries, k))
        return [(time.perf_counter() - started) * 1e3], [found]
    times, after = [], []
    for parts in steps(cascade, queries, plan, k):
        times.append((time.perf_counter() - started) * 1e3)
        after.append(answers(cascade, parts, k))
        started = time.perf_counter()
    return times, after


def _recall(cascade: Cascade, run: Run, asked: np.ndarray, found: Found, threshold: np.ndarray, k: int) -> float:
    """Mean recall@k of the rows found for the queries `asked`, by their true scores."""
    queries, own = np.ascontiguousarray(run.queries[asked]), run.own_rows[asked]
    scores = scored(cascade.store, queries, found.rows, cascade.store.dim)
    if run.given is not None and run.near_rows is not None and run.near_scores is not None:
        scores = given_scores((run.near_scores[asked], run.near_rows[asked]), found.rows, scores)
    true = (scores >= threshold[:, None]) & (found.rows >= 0) & (found.rows != own[:, None])
    return float(np.minimum(true.sum(axis=1), k).mean() / k)


def served_each(found: Found, served: Served, recalls: Sequence[float]) -> list[Served]:
    """One record a query. served: of the plan run to its end; recalls: estimated after each of its steps.

    Flat search that was stopped found the true neighbours among the rows it saw: their share is the estimate. Rows lie
    in the order of a cluster tree, so that this is a mean over queries, and says little of a single one.
    """
    assert found.done is not None, "of a call that had a deadline"
    made: dict[int, Served] = {}
    for done in np.unique(found.done).tolist():
        made[done] = _served(served, served.stages - done, found.seen, recalls)
    return [made[done] for done in found.done.tolist()]


def served_in_all(each: Sequence[Served], found: Found, served: Served) -> Served:
    """One record for a whole batch: the most steps that were left out, and the mean of the estimates."""
    assert found.done is not None, "of a call that had a deadline"
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
