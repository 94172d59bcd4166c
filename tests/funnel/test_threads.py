"""The engine sets thread counts of its own workers, and leaves those of the process alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from threadpoolctl import threadpool_info

from funnel import FunnelIndex
from funnel.plan import Plan

Counts = tuple[Any, ...]


def counts() -> Counts:
    """What the calling thread would use: torch, FAISS, and every pool of BLAS and OpenMP that is loaded."""
    torch.ones(100_000).add_(1)  # torch sets a thread's count with the first operation that it may spread
    pools = {(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()}
    return torch.get_num_threads(), faiss.omp_get_max_threads(), pools


def in_a_thread(call: Callable[[], Any]) -> Any:
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(call()))
    thread.start()
    thread.join()
    return result[0]


def before_and_after(call: Callable[[], object]) -> tuple[Counts, Counts]:
    before = counts()
    call()
    return before, counts()


def searches(index: FunnelIndex, queries: np.ndarray) -> dict[str, Callable[[], object]]:
    return {
        "one query": lambda: index.search_vectors(queries[:1], recall=0.9),
        "a batch": lambda: index.search_vectors(queries, recall=0.9),
        "a plan": lambda: index.search_vectors(queries, plan=Plan(64, 64)),
        "flat search": lambda: index.search_vectors(queries, recall=1.0),
        "a deadline": lambda: index.search_vectors(queries, recall=0.9, deadline_ms=0.01),
        "a latency": lambda: index.search_vectors(queries, latency_ms=1000),
        "explained": lambda: index.explain(recall=0.9, batch=32, run=True),
    }


def test_searching_changes_no_count(graph: FunnelIndex, unseen: np.ndarray) -> None:
    threads = 3  # none of the defaults
    kept = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        fresh = in_a_thread(counts)
        for name, call in searches(graph, unseen).items():
            before, after = before_and_after(call)
            assert after == before, name
            before, after = in_a_thread(partial(before_and_after, call))
            assert after == before, f"{name}, in a client thread"
            assert in_a_thread(counts) == fresh, f"{name}, for a thread that starts later"
    finally:
        torch.set_num_threads(kept[0])
        faiss.omp_set_num_threads(kept[1])


def test_building_and_calibrating_changes_no_count(rows: np.ndarray, queries: np.ndarray, tmp_path: Path) -> None:
    fresh = in_a_thread(counts)
    before, after = before_and_after(
        lambda: FunnelIndex.build(rows[:600], tmp_path / "index", queries=queries[:100], adaptor="pca", progress=False)
    )
    assert after == before
    assert in_a_thread(counts) == fresh
