"""Threads across queries: each worker runs FAISS and torch on one thread, so that no pool waits for another.

FAISS and torch each bring an OpenMP runtime whose idle threads spin: taking turns on the same cores they slow each
other down (batches of 32 took twice as long as with pieces of a batch spread over workers). Here a batch is cut
into pieces, and every piece goes through coarse search and reranks on one thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

from indexes import use_one_thread
from indexes.system import free_in_children

__all__ = ["Workers", "workers"]

Piece = TypeVar("Piece")
Result = TypeVar("Result")


class Workers:
    """A pool of single-threaded workers. The thread counts of the rest of the process stay as they are."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.process: int = os.getpid()
        before = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="funnel")
        together = Barrier(count)

        def prepare(_: int) -> None:
            torch.get_num_threads()  # a thread's first question sets its count to the last one that any thread set
            torch.set_num_threads(1)
            use_one_thread()
            together.wait()  # so that every worker comes here once

        list(self._pool.map(prepare, range(count)))
        # torch also remembers the last count that any thread set, for threads that start later.
        torch.set_num_threads(before)

    def run(self, function: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
        """Call the function for every piece: what it gives, in order; the first error is raised."""
        return list(self._pool.map(function, pieces))


_lock = free_in_children(Lock())
_workers: Workers | None = None


def workers() -> Workers:
    """The process's workers, as many as torch uses threads; made on first use, and again after a fork."""
    global _workers
    if _workers is None or _workers.process != os.getpid():
        with _lock:
            if _workers is None or _workers.process != os.getpid():
                _workers = Workers(torch.get_num_threads())
    return _workers
