"""Whether live calls keep the latency they asked for: plans were measured while the machine was as busy as then."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from funnel.engine.timing import PERCENTILE
from funnel.planning.remembered import Remembered
from indexes.system import free_in_children

__all__ = ["FEWEST", "RECENT", "LatencyLine", "Punctuality"]

RECENT = 512  # calls of one latency and batch size that are looked at: 25 of them may be late
MOST = 256  # latencies and batch sizes that are counted apart: 4 MB; of others those that came last
FEWEST = 100  # calls before anything is said of them: 5 may be late then


@dataclass(frozen=True, slots=True)
class LatencyLine:
    """How calls with one latency budget fared. Calls that first had to be planned are left out.

    latency_ms: what was asked for. batch: the batch size that such calls count as. calls: all of them; late: those that
    took longer. p95_ms: of the last RECENT calls, end to end. held: whether that is within the latency, or fewer than
    FEWEST calls have come.
    """

    latency_ms: float
    batch: int
    calls: int
    late: int
    p95_ms: float
    held: bool

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __str__(self) -> str:
        said = "held" if self.held else "not held: reopen the index, or tune it, to measure plans on this machine again"
        return (
            f"latency {self.latency_ms:g} ms at batch {self.batch}: 95th percentile {self.p95_ms:.3g} ms of the last "
            f"{min(self.calls, RECENT):,} calls, {self.late:,} of {self.calls:,} late; {said}"
        )


class Punctuality:
    """Counts live calls with a latency budget. Safe in threads; noting one takes under a microsecond.

    Calls count on as rows are added and deleted: the latency was asked for whatever the rows, plans for it are measured
    again then, and calls from before are soon no longer among the last RECENT.
    """

    def __init__(self) -> None:
        self._seen: Remembered[tuple[float, int], tuple[Counter[bool], deque[float]]] = Remembered(most=MOST)
        self._lock = free_in_children(Lock())

    def note(self, latency_ms: float, batch: int, ms: float) -> None:
        """A call of a batch size took so many milliseconds, and was to take latency_ms at most."""
        with self._lock:
            seen = self._seen.get((latency_ms, batch))
            if seen is None:
                seen = self._seen[latency_ms, batch] = (Counter(), deque(maxlen=RECENT))
            seen[0][ms > latency_ms] += 1
            seen[1].append(ms)

    def lines(self) -> tuple[LatencyLine, ...]:
        """What was seen so far, by latency and batch size."""
        with self._lock:
            seen = [(key, late.copy(), list(recent)) for key, (late, recent) in sorted(self._seen.items())]
        result = []
        for (latency_ms, batch), late, recent in seen:
            p95, calls = float(np.percentile(recent, PERCENTILE)), late.total()
            held = calls < FEWEST or p95 <= latency_ms
            result.append(LatencyLine(latency_ms, batch, calls, late[True], p95, held))
        return tuple(result)
