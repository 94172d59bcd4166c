"""Progress bars: one for every long pass, and none for a short one."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]

SHOWN_AFTER_S = 1.0  # a pass below a second is over before its bar is read


class Progress(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar, which appears once a pass takes longer than a second."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"delay": SHOWN_AFTER_S, **options})
