"""CUDA graphs for small batches: a plan's launches recorded once and replayed, where that is measured to be quicker."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from funnel.ondevice import to_device, to_host
from indexes.forks import free_in_children

__all__ = ["LARGEST_REPLAYED", "Replays", "capture"]

LARGEST_REPLAYED = 32  # queries: larger batches keep the device busy for longer than their launches take
TRIED_AFTER = 16  # calls alike: plans that are only timed in passing are not recorded
MOST_TRIED = 16  # batch sizes, plans and ks; what comes after is launched
MOST_SEEN = 1_024  # that calls are counted of; then all are forgotten, as few come often
TIMED = 9  # calls of either kind, whose medians are compared
QUICKER = 0.9  # a graph is kept where it takes at most this share of the time: each holds the memory of its work

Work: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


def capture(work: Work, query: torch.Tensor) -> Work:
    """What `work` does for queries of this shape, as a graph. Raises RuntimeError where it cannot be recorded."""
    own, current = query.clone(), torch.cuda.current_stream(query.device)
    side = torch.cuda.Stream(query.device)  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):  # once beforehand, so that nothing is compiled or set up while it is recorded
        work(own)
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        answers = work(own)

    def replay(asked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own.copy_(asked, non_blocking=True)
        graph.replay()
        return answers

    return replay


class Replays:
    """Runs small batches on a device, launch by launch or as graphs, whichever was quicker when it was tried.

    record: what makes a graph of some work.
    """

    def __init__(self, record: Callable[[Work, torch.Tensor], Work] = capture) -> None:
        self._record = record
        self._seen: Counter[Hashable] = Counter()
        self._tried: dict[Hashable, Work | None] = {}
        self._one_at_a_time = free_in_children(Lock())

    def answer(
        self, key: Hashable, queries: npt.NDArray[np.float32], device: torch.device, work: Work
    ) -> list[npt.NDArray[Any]]:
        """What `work` gives for queries float32 [n, d], as arrays. key: equal for calls that do the same."""
        with self._one_at_a_time:  # a graph has one place for its queries and one for its answers
            replay = self._replay(key, queries, device, work)
            if replay is not None:
                return to_host(*replay(to_device(queries, device)))
        return to_host(*work(to_device(queries, device)))

    def _replay(self, key: Hashable, queries: npt.NDArray[np.float32], device: torch.device, work: Work) -> Work | None:
        if key in self._tried:
            return self._tried[key]
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] < TRIED_AFTER or len(self._tried) >= MOST_TRIED:
            return None
        self._tried[key] = replay = self._quicker(queries, device, work)
        return replay

    def _quicker(self, queries: npt.NDArray[np.float32], device: torch.device, work: Work) -> Work | None:
        query = to_device(queries, device)
        try:
            replay = self._record(work, query)
        except RuntimeError as error:
            warnings.warn(
                f"a search was not recorded as a CUDA graph and is launched as before: {str(error).splitlines()[0]}",
                stacklevel=4,
            )
            return None
        launched, replayed = _seconds(work, query), _seconds(replay, query)
        return replay if replayed <= QUICKER * launched else None


def _seconds(work: Work, query: torch.Tensor) -> float:
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        to_host(*work(query))
        times.append(time.perf_counter() - start)
    return float(np.median(times))
