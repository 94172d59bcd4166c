"""What `index.health()` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from funnel.monitoring.audit import AuditLine
from funnel.monitoring.punctuality import LatencyLine

__all__ = ["HOLDS", "UNWATCHED", "VOID", "Health"]

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
