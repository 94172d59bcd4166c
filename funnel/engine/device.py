"""To a device and back: queries go there once, and what was found comes back after one wait for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["to_device", "to_host"]


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; from locked memory, so that the call returns before the copy has begun."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: torch.Tensor) -> list[npt.NDArray[Any]]:
    """Tensors of one device as arrays. All are copied first, and then waited for once."""
    device = tensors[0].device
    if device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    locked = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(locked, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return [np.array(here.numpy()) for here in locked]  # copied: locked memory is used again, and there is little of it
