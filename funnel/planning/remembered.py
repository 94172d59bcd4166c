"""What was worked out for what users asked: it is asked again and again, and may be any float."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["Remembered"]

MOST = 1_024  # some hundred kilobytes of choices; far more than the budgets that one service has

Key = TypeVar("Key")
Value = TypeVar("Value")


class Remembered(dict[Key, Value]):
    """A dictionary that forgets all where it is full, so that a new float in every call takes no more memory."""

    def __init__(self, known: dict[Key, Value] | None = None, most: int = MOST) -> None:
        super().__init__(known or {})
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        if len(self) >= self._most:
            self.clear()
        super().__setitem__(key, value)
