"""Watches the searches of one opened index: drift of its queries, audit of its recall, and what follows from both."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel.checks import checked_seed
from funnel.errors import DriftWarning
from funnel.monitoring.audit import Audit, AuditLine, checked_share, true_recalls
from funnel.monitoring.drift import ALARM, Drift, LiveRows, Reference
from funnel.monitoring.punctuality import LatencyLine, Punctuality
from funnel.plan import Plan
from funnel.planning.calibration import Calibration
from funnel.planning.certificate import Certificate
from funnel.results import Served
from indexes.system import free_in_children

__all__ = ["Health", "Monitor"]

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
        record = {name: getattr(self, name) for name in self.__slots__ if name not in ("audits", "latencies")}
        lines = {"audits": [line.to_json() for line in self.audits]}
        return {**record, **lines, "latencies": [line.to_json() for line in self.latencies]}

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

Float32 = npt.NDArray[np.float32]
# Prepared queries and k -> the scores of their true top k, falling, and the rows.
Flat = Callable[[Float32, int], tuple[Float32, npt.NDArray[np.int64]]]


class _Promise:
    """Whether certificates are void: one for all generations of a calibration, as searches of several may be running.

    broken: why, and since when; None where they hold.
    """

    def __init__(self, broken: tuple[str, str] | None = None) -> None:
        self.broken = broken
        self._lock = free_in_children(Lock())

    def void(self, why: str) -> bool:
        """Break it; False where it was broken already."""
        with self._lock:
            if self.broken is not None:
                return False
            self.broken = (why, datetime.now(UTC).isoformat(timespec="seconds"))
            return True


class Monitor:
    """The state of the promise in this process; a new one after each tuning. Safe in threads.

    calibration: what certificates rest on; None where flat search serves everything, exactly. flat: runs flat search.
    rows: those that are searched: how many, and how many of them were deleted.
    """

    def __init__(self, calibration: Calibration | None, flat: Flat, rows: LiveRows = (0, 0)) -> None:
        self._calibration = calibration
        self._flat = flat
        self._audit = Audit(0.0)
        self.punctuality: Punctuality = Punctuality()
        self._promise = _Promise()
        stored = None if calibration is None else calibration.storage
        self._lost = None if stored is None else lru_cache(stored.loss)
        self._drift: Drift | None = None
        if calibration is not None and calibration.certifies:
            self._drift = Drift(Reference(calibration), rows=rows)

    def then(self, calibration: Calibration | None, flat: Flat, rows: LiveRows, same: bool) -> Monitor:
        """The monitor of the next generation. Audits and a void promise go on.

        same: whether it is the same calibration, of rows some of which were added or deleted: everything goes on then,
        the evidence of drift, which has one probability of a false alarm for all of them, and the latencies of calls.
        """
        made = Monitor(calibration, flat, rows)
        made._audit = self._audit
        if not same:
            made._promise = _Promise(self._promise.broken)
            return made
        made.punctuality, made._promise = self.punctuality, self._promise
        if calibration is not None and self._drift is not None and made._drift is not None:
            self._drift.follow(Reference(calibration), rows)
            made._drift = self._drift
        return made

    @property
    def void(self) -> bool:
        """Whether the certificates of this calibration are void."""
        return self._promise.broken is not None

    @property
    def audits(self) -> bool:
        """Whether a share of all searches is compared with flat search."""
        return self._audit.share > 0.0

    def audit(self, sample: object, seed: int = 0) -> None:
        """Compare this share of the searches to come with flat search; what was found so far is let go.

        Raises InputError for what is no share or seed.
        """
        self._audit = Audit(checked_share(sample, "sample"), checked_seed(seed))

    def see(self, scores: Float32, plan: Plan) -> None:
        """Note the scores of one call, float32 [n, k], n from 1, under a plan. May warn, once."""
        if self._drift is not None and self._drift.see(scores, plan):
            assert self._calibration is not None
            self._void(
                f"live queries are not like the {self._calibration.n_queries:,} real queries it was calibrated on "
                f"(p {self._drift.p_value:.2g} <= {ALARM:g} over all looks)"
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
        running = self._audit
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
        if line.broken and self._drift is not None:
            self._void(f"{line}: below what was promised")

    def certificate(self, certificate: Certificate) -> Certificate:
        """The certificate as it now stands: that of a plan that was calibrated says so where it is void."""
        if self._promise.broken is None or not certificate.certified or certificate.lower_bound >= 1.0:
            return certificate
        why, since = self._promise.broken
        return replace(certificate, certified=False, note=f"void since {since}: {why}; {REMEDY}")

    def served(self, served: Served) -> Served:
        """How a call was answered, marked where its recall rests on a calibration that is void."""
        marked = served.void or self._promise.broken is None or served.plan.is_flat
        return served if marked else replace(served, void=True)

    def health(self) -> Health:
        """Everything noted so far."""
        calibration, broken, drift = self._calibration, self._promise.broken, self._drift
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
            audits=self._audit.lines(self._lost),
            latencies=self.punctuality.lines(),
        )

    def _void(self, why: str) -> None:
        if self._promise.void(why):
            said = f"certified recall is void: {why}. The same plans are served on; {REMEDY}"
            warnings.warn(said, DriftWarning, CALLER)
