"""Runs a check of a Triton kernel: compiled on a GPU, else by Triton's interpreter in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

__all__ = ["run_check"]

ROOT = Path(__file__).resolve().parents[1]
# numpy 2.4 makes no number of an array of one element any more, which the interpreter of Triton 3.6 does for loops.
INTERPRETER = """
import builtins, numpy
import triton.runtime.interpreter as interpreter

class Whole(type):
    def __instancecheck__(cls, value):
        return isinstance(value, builtins.int)

class Number(builtins.int, metaclass=Whole):
    def __new__(cls, value=0, *rest):
        return builtins.int(value.item() if isinstance(value, numpy.ndarray) else value, *rest)

interpreter.int = Number
"""


def run_check(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `device` set to the device that the kernel is run on."""
    on_gpu = torch.cuda.is_available()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    if not on_gpu:
        environment["TRITON_INTERPRET"] = "1"
    start = f"import torch\ndevice = torch.device({'cuda' if on_gpu else 'cpu'!r})\n"
    whole = start + ("" if on_gpu else INTERPRETER) + code
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, env=environment, check=False)
