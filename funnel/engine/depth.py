"""How deep in the coarse shortlist the hits of a search stood: what the coarse search makes of a query, at no cost.

Each step of a plan keeps some of the places that it is given. What they are is known anyway; a single query hands
them on as they are, and they are put together when many are looked at.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Kept", "depths"]

Kept: TypeAlias = tuple[torch.Tensor, ...]
"""Of each step after the coarse search, the places it kept among those it was given: int64 [n, keep], the k hits last.

Or mean places, float32 [n, 1], by themselves; () where nothing was reranked, so that there is no depth.
"""


def depths(kept: Kept) -> npt.NDArray[np.float32]:
    """The mean place of each query's hits in the coarse shortlist, from 0: float32 [n]. kept: not empty."""
    places = kept[0]
    for step in kept[1:]:
        places = places.gather(1, step)
    mean: npt.NDArray[np.float32] = places.mean(dim=1, dtype=torch.float32).cpu().numpy()
    return mean
