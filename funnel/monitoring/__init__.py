"""What live searches say of the promise: whether queries have changed, and what recall they truly get."""

from funnel.monitoring.audit import DEFAULT_AUDIT, AuditLine
from funnel.monitoring.drift import LiveRows
from funnel.monitoring.monitor import Health, Monitor

__all__ = ["DEFAULT_AUDIT", "AuditLine", "Health", "LiveRows", "Monitor"]
