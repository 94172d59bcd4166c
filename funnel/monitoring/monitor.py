"""Watches the searches of one opened index: drift of its queries, audit of its recall, and what follows from both.

And whether live calls keep the latency they asked for: plans were measured while the machine was as busy as then.
"""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.checks import checked_seed
from funnel.engine.timing import PERCENTILE
from funnel.errors import DriftWarning
from funnel.monitoring.audit import Audit, AuditLine, checked_share, true_recalls
from funnel.monitoring.drift import ALARM, Drift, LiveRows, Reference
from funnel.planning.calibration import Calibration
from funnel.planning.certificate import Certificate
from funnel.planning.remembered import Remembered
from funnel.planning.run import Float32
from funnel.results import Served
from indexes.system import free_in_children

__all__ = ["FEWEST", "MOST", "RECENT", "Health", "LatencyLine", "Monitor", "Punctuality"]

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


HOLDS, VOID, UNWATCHED = "holds", "void", "not watched"


@dataclass(frozen=True, slots=True)
class Health:
    """Whether certificates still speak of the queries that come.

    In this process, since it opened the index or calibrated it anew, by tuning or compacting; what was seen goes on as
    rows are added and deleted.

    state: "holds", "void", or "not watched" where there is no certificate to void. why: in words. since: when queries
    or an audit made it void, ISO 8601; None where changed rows did. queries: live queries seen. compared: those that
    were compared with the calibration queries, repeats left out. p_value: the probability of such evidence of a
    change, or more, had there been none, over all looks together; 0.01 voids. calibrated, calibration_queries: when,
    and on how many. audits: true recall by budget. latencies: what calls with a latency budget took.
    """

    state: str
    why: str
    since: str | None
    queries: int
    compared: int
    p_value: float
    calibrated: str
    calibration_queries: int
    audits: tuple[AuditLine, ...]
    latencies: tuple[LatencyLine, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the certificates, nor against a latency that was promised."""
        return self.state != VOID and all(line.held for line in self.latencies)

    def to_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        since = "" if self.since is None else f" since {self.since}"
        lines = [f"certificates: {self.state}{since}" + (f": {self.why}" if self.why else "")]
        if self.state == UNWATCHED:
            lines = [f"nothing is certified, so queries are not watched: {self.why}"]
        if self.state != UNWATCHED:
            lines.append(
                f"  {self.queries:,} live queries, {self.compared:,} of them compared with the "
                f"{self.calibration_queries:,} that calibrated on {self.calibrated}; p {self.p_value:.2g}"
            )
        lines += [f"  {line}" for line in (*self.audits, *self.latencies)]
        return "\n".join(lines)


REMEDY = "calibrate again on queries of today: funnel tune INDEX --queries P, or index.tune(queries=...)"

CALLER = 5  # frames from the warning to whoever called search

# Prepared queries and k -> the scores of their true top k, falling, and the rows.
Flat = Callable[[Float32, int], tuple[Float32, npt.NDArray[np.int64]]]


class Monitor:
    """The state of the promise in this process; a new one after each tuning. Safe in threads.

    calibration: what certificates rest on; None where flat search serves everything, exactly. flat: runs flat search.
    broken: once they are void, under "first" why, and since when: one for all generations of a calibration, as searches
    of several may be running. drift: is shown the scores of every search, and says when `drifted` is due.
    running: the audit of a share of all searches.
    rows: those that are searched: how many, and how many of them were deleted.
    """

    def __init__(self, calibration: Calibration | None, flat: Flat, rows: LiveRows = (0, 0)) -> None:
        self._calibration = calibration
        self._flat = flat
        self.running = Audit(0.0)
        self.punctuality: Punctuality = Punctuality()
        self.broken: dict[str, tuple[str, str]] = {}
        stored = None if calibration is None else calibration.storage
        self._lost = None if stored is None else lru_cache(stored.loss)
        watched = None if calibration is None or not calibration.certifies else Reference(calibration)
        self.drift: Drift | None = None if watched is None else Drift(watched, rows=rows)

    def then(self, calibration: Calibration | None, flat: Flat, rows: LiveRows, same: bool) -> Monitor:
        """The monitor of the next generation. Audits and a void promise go on.

        same: whether it is the same calibration, of rows some of which were added or deleted: everything goes on then,
        the evidence of drift, which has one probability of a false alarm for all of them, and the latencies of calls.
        """
        made = Monitor(calibration, flat, rows)
        made.running = self.running
        if not same:
            made.broken = dict(self.broken)
            return made
        made.punctuality, made.broken = self.punctuality, self.broken
        if calibration is not None and self.drift is not None and made.drift is not None:
            self.drift.follow(Reference(calibration), rows)
            made.drift = self.drift
        return made

    def audit(self, sample: object, seed: int = 0) -> None:
        """Compare this share of the searches to come with flat search; what was found so far is let go.

        Raises InputError for what is no share or seed.
        """
        self.running = Audit(checked_share(sample, "sample"), checked_seed(seed))

    def drifted(self) -> None:
        """Drift was seen: certificates are void from now on. Warns, once."""
        assert self._calibration is not None
        assert self.drift is not None
        self._void(
            f"live queries are not like the {self._calibration.n_queries:,} real queries it was calibrated on "
            f"(p {self.drift.p_value:.2g} <= {ALARM:g} over all looks)"
        )

    def check(
        self,
        prepared: Float32,
        scores: Float32,
        budget: Callable[[], tuple[str, float | None]],
        audit: object,
        filtered: Flat | None = None,
    ) -> None:
        """Audit one call, if its turn has come.

        prepared: queries [n, d], as stored. scores: what they got, [n, k]. budget: gives its name and the recall that
        is promised. audit: the share for this call alone; None: the share that is set. filtered: flat search over the
        rows that a filter allows; such calls are kept apart, as nothing is certified of them. Raises InputError for no
        share.
        """
        running = self.running
        share = running.share if audit is None else checked_share(audit, "audit")
        if share == 0.0:
            return
        drawn = running.draw(len(scores), share)
        if not len(drawn):
            return
        k = scores.shape[1]
        found = true_recalls(scores[drawn], (filtered or self._flat)(np.ascontiguousarray(prepared[drawn]), k)[0])
        name, promised = budget()
        if filtered is not None:
            name, promised = f"{name} under filters", None
        line = running.add(name, k, promised, found, self._lost)
        if line.broken and self.drift is not None:
            self._void(f"{line}: below what was promised")

    def certificate(self, certificate: Certificate) -> Certificate:
        """The certificate as it now stands: that of a plan that was calibrated says so where it is void."""
        if not self.broken or not certificate.certified or certificate.lower_bound >= 1.0:
            return certificate
        why, since = self.broken["first"]
        return replace(certificate, certified=False, note=f"void since {since}: {why}; {REMEDY}")

    def served(self, served: Served) -> Served:
        """How a call was answered, marked where its recall rests on a calibration that is void."""
        marked = served.void or not self.broken or served.plan.is_flat
        return served if marked else replace(served, void=True)

    def health(self) -> Health:
        """Everything noted so far."""
        calibration, broken, drift = self._calibration, self.broken.get("first"), self.drift
        if broken is not None:
            state, why = VOID, broken[0]
        elif calibration is None:
            state, why = UNWATCHED, "every search is exact"
        elif calibration.void and calibration.n_queries:
            state, why = VOID, calibration.void
        else:
            state, why = (UNWATCHED, calibration.kind) if drift is None else (HOLDS, "")
        return Health(
            state=state,
            why=why,
            since=None if broken is None else broken[1],
            queries=0 if drift is None else drift.seen,
            compared=0 if drift is None else drift.compared,
            p_value=1.0 if drift is None else drift.p_value,
            calibrated="" if calibration is None else calibration.date,
            calibration_queries=0 if calibration is None else calibration.n_queries,
            audits=self.running.lines(self._lost),
            latencies=self.punctuality.lines(),
        )

    def _void(self, why: str) -> None:
        first = (why, datetime.now(UTC).isoformat(timespec="seconds"))
        if self.broken.setdefault("first", first) is first:
            said = f"certified recall is void: {why}. The same plans are served on; {REMEDY}"
            warnings.warn(said, DriftWarning, CALLER)
