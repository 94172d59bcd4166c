"""What was worked out for what users asked: it is asked again and again, and may be any float."""

from __future__ import annotations

from threading import Lock
from typing import TypeVar

from indexes.system import free_in_children

__all__ = ["Remembered"]

MOST = 1_024  # some hundred kilobytes of choices; far more than the budgets that one service has

Key = TypeVar("Key")
Value = TypeVar("Value")


class Remembered(dict[Key, Value]):
    """A dictionary that forgets what `get` gave longest ago, so that a new float in every call takes no more memory.

    Safe in threads, `get` and setting an item; `list(remembered.items())` too.
    """

    def __init__(self, known: dict[Key, Value] | None = None, most: int = MOST) -> None:
        super().__init__(known or {})
        self._most = most
        self._lock = free_in_children(Lock())

    def get(self, key: Key) -> Value | None:  # type: ignore[override]
        """The value, which is now the last to be forgotten; None where it is not known."""
        with self._lock:
            if key in self:
                super().__setitem__(key, self.pop(key))
            return super().get(key)

    def __setitem__(self, key: Key, value: Value) -> None:
        with self._lock:
            super().__setitem__(key, value)
            while len(self) > self._most:
                del self[next(iter(self))]
