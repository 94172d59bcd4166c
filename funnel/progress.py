"""Progress bars: one for every long pass, and none for a short one."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]

SHOWN_AFTER_S = 1.0  # a pass below a second is over before its bar is read
NO_REMAINING = "{desc}: {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}]"


class Progress(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar, which appears once a pass takes longer than a second.

    even: whether steps take about the same time; where not, no remaining time is shown.
    """

    __del__ = int  # runs no line of Python, as tqdm's own does: Ctrl-C would end there and be lost; `with` closes bars

    def __init__(self, *args: Any, even: bool = True, **options: Any) -> None:
        shown = {} if even else {"bar_format": NO_REMAINING}
        super().__init__(*args, **{"delay": SHOWN_AFTER_S, **shown, **options})
