"""A moment after which no further stage is begun."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from funnel.budget import check_ms

__all__ = ["Deadline"]


class Deadline:
    """`ms` milliseconds from now. Raises InputError for anything but milliseconds above 0."""

    __slots__ = ("_ends",)

    def __init__(self, ms: float) -> None:
        self._ends: float = time.perf_counter() + check_ms("deadline_ms", ms, 20) / 1e3

    def passed(self) -> bool:
        """Whether the moment has come."""
        return time.perf_counter() >= self._ends

    def left_ms(self) -> float:
        """Milliseconds up to the moment; negative after it."""
        return (self._ends - time.perf_counter()) * 1e3

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For work that is done once and remembered, such as planning: its time does not count."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._ends += time.perf_counter() - started
