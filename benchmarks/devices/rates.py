"""What the device can do at best, and how long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["Rates", "device_seconds", "measure_rates", "wall_seconds"]

COPY_BYTES = 4 << 30  # far more than any cache
GEMM_SIDE = 8_192
FEWEST, MOST = 5, 200


@dataclass(frozen=True)
class Rates:
    """What the device reaches.

    Attributes:
        copy: bytes a second, read and written both counted, of a large copy on the device.
        gemm: operations a second of a float16 product of random matrices.
        to_host: bytes a second from the device to locked memory.
    """

    copy: float
    gemm: float
    to_host: float


def wait(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def wall_seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median wall time of a call that ends with its answers in host memory; warmed twice."""
    call()
    call()
    wait(device)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < FEWEST or (time.perf_counter() < until and len(times) < MOST):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def device_seconds(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The median time that the device takes for a call, by its own clock (wall time on the CPU); warmed twice."""
    if device.type != "cuda":
        return wall_seconds(call, device, seconds)
    call()
    call()
    times: list[float] = []
    event: Any = torch.cuda.Event  # published without types
    until = time.perf_counter() + seconds
    while len(times) < FEWEST or (time.perf_counter() < until and len(times) < MOST):
        begun, ended = event(enable_timing=True), event(enable_timing=True)
        begun.record()
        call()
        ended.record()
        ended.synchronize()
        times.append(begun.elapsed_time(ended) / 1e3)
    return float(np.median(times))


def measure_rates(device: torch.device, seconds: float, shrink: int = 1) -> Rates:
    """The rates, each the median of copies and products; shrink: divides their sizes, for a machine without a GPU."""
    copy, to_host = _copies(device, seconds, COPY_BYTES // shrink)
    side = GEMM_SIDE // shrink
    kind = torch.float32 if device.type == "cpu" else torch.float16
    left, right = (torch.randn((side, side), device=device).to(kind) for _ in range(2))
    gemm = 2 * side**3 / device_seconds(lambda: left @ right, device, seconds)
    return Rates(copy, gemm, to_host)


def _copies(device: torch.device, seconds: float, size: int) -> tuple[float, float]:
    """Bytes a second on the device, read and written, and from it to locked memory; the copies take `size` bytes."""
    source = torch.empty(size // 2, dtype=torch.uint8, device=device).random_()
    copied = torch.empty_like(source)
    copy = size / device_seconds(lambda: copied.copy_(source), device, seconds)
    part = source[: len(source) // 8]
    host = torch.empty(len(part), dtype=torch.uint8, pin_memory=device.type == "cuda")
    return copy, len(part) / device_seconds(lambda: host.copy_(part, non_blocking=True), device, seconds)
