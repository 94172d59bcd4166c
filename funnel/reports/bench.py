"""Measures the funnel against flat search over the same vectors: recall, time, bytes, and ranking quality."""

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.budget import check_k
from funnel.engine.explain import checked_batch
from funnel.engine.timing import fingerprint, times_ms
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
from funnel.plan import FLAT, Plan
from funnel.planning.costs import BATCH_SIZES
from funnel.progress import Progress
from funnel.reports.tables import FlatResult, FunnelResult, Results
from funnel.request import plan_of
from funnel.results import Explanation
from indexes import FlatBaseline
from indexes.system import free_bytes

# Scores of equal rows differ by rounding alone: float32 sums of unit vectors agree to about 1e-7.
TIE_TOLERANCE = 1e-6

# What grades with fractions are scaled to: rounds by 1e-5, and trec_eval keeps a table of so many grades.
LARGEST_GRADE = 50_000

# Our name of a measure, pytrec_eval's name to ask for it, and its name in the answer.
RANKING_MEASURES = (
    ("ndcg@10", "ndcg_cut.10", "ndcg_cut_10"),
    ("recall@100", "recall.100", "recall_100"),
)


def recall_at_k(
    returned_scores: NDArray[Any], true_scores: NDArray[Any], k: int, tolerance: float = TIE_TOLERANCE
) -> NDArray[np.float32]:
    """Share of the true top k that each query got, ties counted in its favour.

    A returned row counts if its true score is within the tolerance of the k-th true score, or above
    it, so that exchanging duplicates of one document costs nothing; at most k rows count.

    Args:
        returned_scores: float [n_queries, n_returned], the *true* score (exact, full width) of every
            row returned, in any order, each row once; NaN or −inf where fewer were returned.
        true_scores: float [n_queries, at least k], the best scores of flat search, in any order.
        k: how many were asked for.
        tolerance: how far below the k-th true score still counts as a tie.

    Returns:
        float32 [n_queries], from 0 to 1.
    """
    true = true_scores.astype(np.float64)
    position = true.shape[1] - k
    kth = np.partition(true, position, axis=1)[:, position]
    counted = (returned_scores.astype(np.float64) >= kth[:, None] - tolerance).sum(axis=1)
    share: NDArray[np.float32] = (np.minimum(counted, k) / k).astype(np.float32)
    return share


def ranking_metrics(
    run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """nDCG@10 and recall@100 by trec_eval, averaged over the judged queries.

    The average is that of `trec_eval -c`: over every query with at least one relevant document; one
    that is missing from the run counts as 0.

    Args:
        run: query id → document id → score.
        qrels: query id → document id → relevance; above 0 is relevant, fractions too.

    Returns:
        {"ndcg@10": …, "recall@100": …}.

    Raises:
        InputError: no query has a relevant document; a relevance is not finite.
        MissingPackageError: pytrec_eval is not installed.
    """
    judged = {
        str(query): _whole({str(document): float(relevance) for document, relevance in documents.items()})
        for query, documents in qrels.items()
        if any(relevance > 0 for relevance in documents.values())
    }
    if not judged:
        raise InputError(f"none of the {len(qrels)} judged queries has a relevant document; check the qrels file")
    scored = {
        str(query): {str(document): float(score) for document, score in documents.items()}
        for query, documents in run.items()
        if documents
    }
    try:
        import pytrec_eval
    except ImportError as error:
        raise MissingPackageError(
            "ranking metrics need pytrec_eval; install it with: pip install 'funnel-retrieval[beir]'"
        ) from error
    evaluator = pytrec_eval.RelevanceEvaluator(judged, {measure for _, measure, _ in RANKING_MEASURES})
    answers: dict[str, dict[str, float]] = evaluator.evaluate(scored)
    return {name: sum(answer[key] for answer in answers.values()) / len(judged) for name, _, key in RANKING_MEASURES}


def _whole(grades: dict[str, float]) -> dict[str, int]:
    """Grades as trec_eval takes them: where some have fractions, all times one factor, which changes no measure."""
    if not all(map(math.isfinite, grades.values())):
        raise InputError("the qrels hold a grade that is not finite; give numbers")
    if all(grade.is_integer() for grade in grades.values()):
        return {document: int(grade) for document, grade in grades.items()}
    factor = LARGEST_GRADE / max(map(abs, grades.values()))
    return {document: max(1, round(grade * factor)) if grade > 0 else 0 for document, grade in grades.items()}


TARGETS = (0.80, 0.90, 0.95, 0.99)
RANKED = 100  # documents a query that ranking measures look at
SECONDS_PER_FIGURE = 1.0
HELD_OUT = 500  # rows used as queries where the user has none
# Flat search over float32 rows in memory is the fastest there is; above this share of the free memory the mapped
# matrix is searched instead.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class BenchQueries:
    """Queries to measure on.

    vectors: [q, d] as the encoder gives them. ids: of each, where there are judgements. own_positions: int64 [q],
    the input position of the row that each query is, to be left out of its results; None for real queries.
    """

    vectors: NDArray[np.float32]
    ids: Sequence[str] | None = None
    own_positions: NDArray[np.int64] | None = None


def held_out_queries(index: FunnelIndex, seed: int = 7) -> BenchQueries:
    """Rows of the index to be used as queries, where there are no real ones. Easier than real queries.

    Raises InputError where the adaptor cannot be inverted, so that the user's vectors are not known.
    """
    searcher = index.searcher
    count = min(HELD_OUT, max(1, len(index) // 2))
    rows = np.sort(np.random.default_rng(seed).choice(len(index), count, replace=False))
    store = searcher.cascade.store
    stored = store.gather(torch.from_numpy(rows).to(store.device), 0, store.dim).float().cpu().numpy()
    return BenchQueries(searcher.space.given(stored), None, np.asarray(searcher.order[rows]))


def bench(
    index: FunnelIndex,
    queries: BenchQueries,
    title: str,
    qrels: Mapping[str, Mapping[str, float]] | None = None,
    k: int = 10,
    targets: Sequence[float] = TARGETS,
    batch: int = BATCH_SIZES[-1],
    plan: Plan | Explanation | str | None = None,
    progress: bool = False,
) -> Results:
    """Every target's plan against flat search at full width over the same vectors, on the same queries.

    batch: queries in a call for the figures in batch. plan: one of the user's own, measured too. Raises InputError for
    a k, a plan or queries that cannot be used.
    """
    k = check_k(k, len(index))
    checked_batch(batch)
    prepared = index.searcher.prepare(queries.vectors)
    truth = _Truth(index, prepared, queries.own_positions, k)
    asked: list[Mapping[str, Any]] = [{"recall": target} for target in targets]
    if plan is not None:
        asked.append({"plan": plan_of(plan)})
        index.searcher.given(plan_of(plan), k)  # before minutes of measuring rather than after
    store, search = index.searcher.cascade.store, _flat_search(index)
    flat: FlatResult = {
        "us_single": _us(lambda rows: search(rows, k), prepared, 1),
        "us_batch": _us(lambda rows: search(rows, k), prepared, batch),
        "bytes": store.n * store.dim * 4,
        "recall": 1.0 - truth.lost,
    }
    if qrels is not None:
        flat.update(_ranking(index, queries, qrels, FLAT))  # type: ignore[typeddict-item]
    steps = Progress(asked, desc="bench", unit="budgets", disable=not progress)
    measured = [_measured(index, queries, truth, qrels, one, k, batch, flat) for one in steps]
    return {
        "title": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "index": index_facts(index),
        "machine": machine_facts(index),
        "k": k,
        "n_queries": len(prepared),
        "queries": "queries" if queries.own_positions is None else "rows of the index as queries",
        "flat": flat,
        "funnel": measured,
    }


class _Truth:
    """The true top k of every query, its own row left out."""

    def __init__(
        self, index: FunnelIndex, prepared: NDArray[np.float32], own: NDArray[np.int64] | None, k: int
    ) -> None:
        self._index, self._prepared, self._own, self._k = index, prepared, own, k
        self._extra = 0 if own is None else 1
        calibration = index.searcher.calibration
        storage = None if calibration is None else calibration.storage
        self.lost = 0.0 if storage is None else float(1.0 - storage.kept(k).mean())
        if k + self._extra > len(index):
            raise InputError(f"k is {k}; an index of {len(index)} rows has no {k} neighbours of its own rows")
        self._scores = self._run(FLAT)

    def recall(self, plan: Plan) -> tuple[float, float]:
        """Mean recall@k of a plan, by the rows as stored and less what storage costs, and its standard error."""
        found = recall_at_k(self._run(plan), self._scores, self._k).astype(np.float64)
        return max(0.0, float(found.mean()) - self.lost), float(found.std()) / math.sqrt(len(found))

    def _run(self, plan: Plan) -> NDArray[np.float32]:
        widened = plan.widened() if self._extra else plan
        found = self._index.searcher.found(self._prepared, widened, self._k + self._extra)
        if self._own is None:
            return found.scores
        kept = np.where(found.rows == self._own[:, None], -np.inf, found.scores)
        return -np.sort(-kept, axis=1)[:, : self._k]


def _flat_search(index: FunnelIndex) -> Callable[[NDArray[np.float32], int], object]:
    """FAISS's flat index over the same vectors in memory, at its best setting; the mapped matrix if too large."""
    store = index.searcher.cascade.store
    if index.searcher.others is not None or index.searcher.cascade.live is not None:  # not all rows, or not only they
        return index.searcher.truth
    if store.device.type != "cpu" or store.n * store.dim * 4 > MEMORY_SHARE * free_bytes():
        return index.searcher.cascade.truth
    return FlatBaseline(store).search


def _measured(
    index: FunnelIndex,
    queries: BenchQueries,
    truth: _Truth,
    qrels: Mapping[str, Mapping[str, float]] | None,
    asked: Mapping[str, Any],
    k: int,
    batch: int,
    flat: FlatResult,
) -> FunnelResult:
    single = index.explain(k, **asked, batch=1)
    many = index.explain(k, **asked, batch=batch)
    us_single = _us(lambda rows: index.search_vectors(rows, k, **asked), queries.vectors, 1)
    us_batch = _us(lambda rows: index.search_vectors(rows, k, **asked), queries.vectors, batch)
    recall, error = min(truth.recall(plan) for plan in dict.fromkeys([many.plan, single.plan]))
    certified = many.certificate.certified and single.certificate.certified
    bounds = [line.recall_lower_bound for line in (many, single) if not line.is_exact]  # exact search has none
    result: FunnelResult = {
        "target": asked.get("recall"),
        "plan": str(many.plan) if many.plan == single.plan else f"{many.plan}; single: {single.plan}",
        "recall": recall,
        "recall_error": error,
        "recall_low": min(bounds) if certified and bounds else None,
        "predicted_recall": min(many.recall, single.recall),
        "certified": certified,
        "exact": many.is_exact and single.is_exact,
        "us_single": us_single,
        "us_batch": us_batch,
        "predicted_us_single": _predicted_us(index, single),
        "predicted_us_batch": _predicted_us(index, many),
        "speedup_single": flat["us_single"] / us_single,
        "speedup_batch": flat["us_batch"] / us_batch,
        "bytes": many.bytes_touched,
    }
    if qrels is not None and ("plan" not in asked or many.plan.is_flat or many.plan.survivors >= RANKED):
        plan = many.plan if k >= RANKED else index.explain(min(RANKED, len(index)), **asked, batch=batch).plan
        result.update(_ranking(index, queries, qrels, plan))  # type: ignore[typeddict-item]
    return result


def _predicted_us(index: FunnelIndex, explained: Explanation) -> float:
    cost = explained.p50_ms
    if index.searcher.calibration is not None:
        predicted = [line.predicted_ms for line in explained.stages]
        if not math.isnan(sum(predicted)):
            cost = index.searcher.planner.costs.predict(explained.plan, explained.batch, index.dim)
    return cost * 1e3 / explained.batch


def _us(call: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32], batch: int) -> float:
    """Median microseconds a query, in calls of `batch` queries."""
    repeated = np.resize(queries, (max(batch, len(queries)), queries.shape[1]))
    batches = [np.ascontiguousarray(repeated[i : i + batch]) for i in range(0, len(repeated) - batch + 1, batch)]
    times = times_ms(lambda i: call(batches[i % len(batches)]), SECONDS_PER_FIGURE)
    return float(np.median(times)) * 1e3 / batch


def _ranking(
    index: FunnelIndex, queries: BenchQueries, qrels: Mapping[str, Mapping[str, float]], plan: Plan
) -> dict[str, float]:
    if queries.ids is None:
        raise InputError("judgements need queries with ids; give a queries.jsonl")
    judged = [i for i, id_ in enumerate(queries.ids) if id_ in qrels]
    if not judged:
        raise InputError("no query has a judgement; do the queries and qrels belong together?")
    ids, scores = index.search_vectors(queries.vectors[judged], min(RANKED, len(index)), plan=plan)
    run = {
        queries.ids[i]: {str(id_): float(score) for id_, score in zip(*found, strict=True) if id_ != queries.ids[i]}
        for i, found in zip(judged, zip(ids, scores, strict=True), strict=True)
    }
    return ranking_metrics(run, {queries.ids[i]: qrels[queries.ids[i]] for i in judged})  # those asked, no others


def index_facts(index: FunnelIndex) -> dict[str, Any]:
    """What was searched."""
    manifest, settings, touched = index.manifest, index.manifest.settings, index.touched_bytes
    return {
        "rows": len(index),
        "dim": manifest.d,
        "coarse": f"{settings.coarse} over {manifest.coarse_width} dims",
        "adaptor": index.searcher.adaptor.kind,
        "ladder": list(manifest.ladder),
        "held_mb": index.held_bytes / 1e6,
        "touched_mb": None if touched is None else touched / 1e6,
        "encoder": settings.encoder or "none (vectors given)",
        "certificate": index.certification,
    }


def machine_facts(index: FunnelIndex) -> dict[str, Any]:
    """Where it was searched; the library fields hold versions."""
    store = index.searcher.cascade.store
    machine = fingerprint(store.device, store.placement)
    counts = {name: int(machine[name]) for name in ("cores", "threads")}
    return {**machine, **counts, "numpy": np.__version__, "python": platform.python_version()}
