"""Deadlines that do not depend on the clock."""

from __future__ import annotations

from funnel.request import Deadline

__all__ = ["Clock"]


class Clock(Deadline):
    """A deadline that passes after it was looked at some times."""

    def __init__(self, looks: int) -> None:
        super().__init__(1e6)
        self.looks = looks

    def passed(self) -> bool:
        self.looks -= 1
        return self.looks < 0
