"""A search over one segment: exact, or step by step to its end, up to a deadline, or timed after each step.

And the one mask that says which of its rows may be returned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from funnel.engine.cascade import Candidates, Cascade, Float32, Int64, padded
from funnel.engine.rerank import CELLS_AT_A_TIME, best, gather_rows, scored
from funnel.engine.workers import workers
from funnel.plan import FLAT, Plan
from funnel.planning.run import TIE_TOLERANCE, Run, given_scores
from funnel.request import Deadline
from funnel.results import Served
from indexes import Projected, PrunedSearch, Pruning, RunningTop, VectorStore, exact_search

__all__ = [
    "AllowedScan",
    "Found",
    "allowed_only",
    "answers",
    "best_of",
    "measure_steps",
    "over_live",
    "pruned_exact",
    "pruning_of",
    "search",
    "served_each",
    "served_in_all",
    "steps",
]

# Candidates for k results in the search whose k-th score rules rows out. Of 200,000 rows 24 for 10 lack the k-th true
# score by .004; twice as many cost more than they rule out.
SEEDS_PER_RESULT = 2
FEWEST_SEEDS = 24
# Where a shortlist does not grow with effort (lists), the effort to use: the fourth, eight lists.
LIST_EFFORT = 3
# Up to so many values compared the caller's own thread does it; more are worth handing to workers.
CELLS_OF_ONE_THREAD = 1_600_000
# On a GPU the block of scores bounds it: 1,024 queries x 65,536 rows are 256 MB.
ROWS_AT_A_TIME_CUDA = 65_536


def pruned_exact(cascade: Cascade, norms: Float32, ladder: tuple[int, ...], release: bool, keep: bool) -> PrunedSearch:
    """What FLAT is served by: see `indexes.PrunedSearch`. norms: float32 [n, len(ladder)], may be mapped."""

    def spread(function: Callable[[Sequence[range]], None], pieces: Sequence[Sequence[range]]) -> None:
        workers().run(function, pieces)

    projected = None if cascade.adapted is None else Projected(cascade.adapted, cascade.space.prefixes)
    threads = torch.get_num_threads()
    return PrunedSearch(cascade.store, norms, ladder, _reached(cascade), spread, threads, release, keep, projected)


def over_live(cascade: Cascade, live: npt.NDArray[np.bool_] | None) -> Cascade:
    """The cascade over its live rows alone, bool [n]; None: over all. What it holds in memory is shared."""
    if live is None and cascade.live is None:
        return cascade
    store, exact = cascade.store, cascade.exact

    def flat(queries: Float32, k: int) -> tuple[Float32, Int64]:
        return exact_search(store, queries, k, live=live)

    made = replace(cascade, live=live, truth=flat, exact=flat)
    if isinstance(exact, PrunedSearch):
        made = replace(made, exact=exact.among(live, _reached(made)))
    return made


def allowed_only(cascade: Cascade, mask: npt.NDArray[np.bool_]) -> Cascade:
    """The cascade over the rows alone where mask, bool [n], is set: the coarse index finds no others.

    Deletes are many rows less a few, which `over_live` takes out of what the coarse index finds; what a filter allows
    may be few rows, which exact search gathers.
    """
    scan = AllowedScan(cascade.store, np.flatnonzero(mask))
    return replace(cascade, coarse=cascade.coarse.restricted(scan.rows), exact=scan, truth=scan, live=mask)


class AllowedScan:
    """Exact search over some rows of a store. rows: int64 [a], rising."""

    def __init__(self, store: VectorStore, rows: Int64) -> None:
        self.rows = rows
        self._store = store

    def __call__(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        """The best k: scores float32 [n, k], falling, and stored rows int64 [n, k]; fewer columns where rows are fewer.

        queries: float32 [n, d], as rows are stored.
        """
        return self.until(queries, k, None)[:2]

    def until(self, queries: Float32, k: int, deadline: Deadline | None) -> tuple[Float32, Int64, float]:
        """The same among the rows compared by the deadline, k at least; and the share of them that was compared."""
        store, k = self._store, min(k, len(self.rows))
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 1.0
        if store.device.type != "cpu":
            return *self._on_device(queries, k), 1.0
        size = max(k, CELLS_AT_A_TIME // store.dim)

        def scanned(rows: Int64) -> tuple[Float32, Int64, int]:
            """Compare a piece that stays in the cache after the other, one at least, up to the deadline."""
            top, seen = RunningTop(queries, k), 0
            with torch.inference_mode():
                while seen < len(rows) and not (seen and deadline is not None and deadline.passed()):
                    part = torch.from_numpy(rows[seen : seen + size])
                    top.update(gather_rows(store, part, 0, store.dim).numpy(), seen)
                    seen += len(part)
            return top.scores, np.where(top.rows < 0, -1, rows[top.rows]), seen

        few = len(self.rows) * store.dim <= CELLS_OF_ONE_THREAD
        count = 1 if few else min(workers().count, len(self.rows) // k)
        scans = [scanned(self.rows)] if count == 1 else workers().run(scanned, np.array_split(self.rows, count))
        scores, rows = best_of([(found, numbers) for found, numbers, _ in scans], k)
        return scores, rows, sum(seen for _, _, seen in scans) / len(self.rows)

    def _on_device(self, queries: Float32, k: int) -> tuple[Float32, Int64]:
        """The same where the matrix lies on a GPU: in one go, with torch."""
        store = self._store
        with torch.inference_mode():
            query, rows = torch.from_numpy(queries).to(store.device), torch.from_numpy(self.rows).to(store.device)
            scores = torch.full((len(queries), 0), -torch.inf, device=store.device)
            found = torch.empty((len(queries), 0), dtype=torch.int64, device=store.device)
            for start in range(0, len(rows), ROWS_AT_A_TIME_CUDA):
                part = rows[start : start + ROWS_AT_A_TIME_CUDA]
                products = query @ gather_rows(store, part, 0, store.dim).T
                scores, places = best(torch.cat([scores, products], dim=1), k)
                found = torch.cat([found, part.expand(len(queries), -1)], dim=1).gather(1, places)
            return scores.cpu().numpy(), found.cpu().numpy()


def best_of(answers: Sequence[tuple[Float32, Int64]], k: int) -> tuple[Float32, Int64]:
    """The best k of several answers [n, any]: scores falling, with -inf and -1 at the end where there are fewer."""
    if len(answers) == 1:
        return padded(*answers[0], k)
    scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*answers, strict=True))
    scores, rows = padded(scores, rows, max(k, scores.shape[1]))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _reached(cascade: Cascade) -> Callable[[Float32, int], Float32 | None]:
    """A cheap search for k rows that score high, and the last of their scores; None where too few are found."""

    def reached(queries: Float32, k: int) -> Float32 | None:
        coarse, wanted = cascade.coarse, max(FEWEST_SEEDS, SEEDS_PER_RESULT * k)
        enough = [effort for effort in coarse.efforts() if coarse.largest_shortlist(effort) >= wanted]
        if not enough:
            return None
        effort = enough[0 if coarse.shortlist_grows else min(LIST_EFFORT, len(enough) - 1)]
        return cascade.run(queries, Plan(effort, wanted), k)[0][:, -1]

    return reached


def pruning_of(cascade: Cascade, queries: Float32, k: int, batch: int) -> Pruning | None:
    """How FLAT is run for calls of `batch` such queries; None: every row at full width.

    queries: float32 [q, d], unit rows as the cascade takes them, repeated where a batch needs more.
    """
    exact = cascade.exact
    repeated = np.ascontiguousarray(np.resize(queries, (batch, queries.shape[1])))
    return exact.choose(repeated, k) if isinstance(exact, PrunedSearch) else None


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

    @classmethod
    def none(cls, n_queries: int) -> Found:
        """Where there are no rows."""
        return cls(np.empty((n_queries, 0), np.float32), np.empty((n_queries, 0), np.int64))


def search(
    cascade: Cascade, queries: Float32, plan: Plan, k: int, deadline: Deadline | None = None, flat_ms: float = math.inf
) -> Found:
    """The best k of each query, by stored rows; exact where a plan lacks some of the best k that there are.

    queries: float32 [n, d], unit rows, C-contiguous. k: at most the cascade's rows. With a deadline the coarse search
    is always finished, so that every query has an answer, and the clock is looked at before each stage of each piece;
    flat_ms: what FLAT takes, see `scan_until`. Queries that a plan leaves short are answered exactly (see
    `Cascade.filled`), unless the deadline has passed.
    """
    if deadline is None:
        return Found(*cascade.run(queries, plan, k, fill=True))
    if plan.is_flat:
        return scan_until(cascade, queries, k, deadline, flat_ms)
    *_, parts = steps(cascade, queries, plan, k, deadline)
    found = answers(cascade, parts, k)
    return found if deadline.passed() else Found(*cascade.filled(queries, found.scores, found.rows), found.done)


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
    """Flat search over pieces of the rows up to the deadline, and over k rows at least.

    Where flat_ms, what it takes otherwise, are left, it is run as otherwise: pruned, for one. On a GPU it is one piece
    that is not stopped.
    """
    scan, whole = cascade.exact, np.full(len(queries), FLAT.steps, dtype=np.int64)
    if not isinstance(scan, AllowedScan):
        if cascade.store.device.type != "cpu" or deadline.left_ms() >= flat_ms:
            return Found(*scan(queries, k), whole)
        live = np.ones(cascade.store.n, dtype=np.bool_) if cascade.live is None else cascade.live
        scan = AllowedScan(cascade.store, np.flatnonzero(live))
    scores, rows, seen = scan.until(queries, k, deadline)
    return Found(scores, rows, whole if seen == 1.0 else np.zeros_like(whole), seen)


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
        found = Found(*cascade.exact(queries, k))
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
    steps_done = np.full(len(found.rows), served.stages) if found.done is None else found.done
    made = {done: _served(served, served.stages - done, found.seen, recalls) for done in np.unique(steps_done).tolist()}
    return [made[done] for done in steps_done.tolist()]


def served_in_all(each: Sequence[Served], found: Found, served: Served) -> Served:
    """One record for a whole batch: the most steps that were left out, and the mean of the estimates."""
    if found.done is None or (found.done == served.stages).all():
        return each[0]
    estimate = float(np.mean([one.estimated_recall for one in each]))
    skipped = int(served.stages - found.done.min())
    return replace(served, estimated_recall=estimate, skipped=skipped, rows_seen=found.seen)


def _served(served: Served, skipped: int, seen: float, recalls: Sequence[float]) -> Served:
    if not skipped and not math.isnan(served.estimated_recall):
        return served
    estimate = seen if served.plan.is_flat else recalls[served.stages - skipped - 1]
    return replace(served, estimated_recall=estimate, skipped=skipped, rows_seen=seen)
