"""What live searches say of the promise: whether queries have changed, and what recall they truly get."""

from funnel.monitoring.audit import DEFAULT_AUDIT, AuditLine
from funnel.monitoring.health import Health
from funnel.monitoring.monitor import Monitor
from funnel.monitoring.neighbours import Rows

__all__ = ["DEFAULT_AUDIT", "AuditLine", "Health", "Monitor", "Rows"]
