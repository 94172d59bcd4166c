"""The fused kernel against plain products: on a GPU as compiled, else interpreted, where there is Triton."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from funnel.engine import rerank as fused
from tests.interpreted import run_check

CHECK = """
from funnel.engine.rerank import fused_dots

dots, generator = fused_dots(), torch.Generator().manual_seed(0)
queries = torch.randn(3, 150, generator=generator).to(device)
rows = torch.randint(0, 50, (3, 21), generator=generator).to(device)
partial = torch.randn(3, 21, generator=generator).to(device)
scales = torch.rand(50, generator=generator).to(device)
for kind in (torch.float16, torch.float32, torch.int8):
    matrix = (torch.randn(50, 150, generator=generator) * 20).to(kind).to(device)
    for start, stop in ((0, 150), (30, 77), (0, 8)):
        part = matrix[rows][..., start:stop].double()
        plain = torch.einsum("qd,qsd->qs", queries[:, start:stop].double(), part)
        found = dots(matrix, None, queries, rows, None, start, stop)
        torch.testing.assert_close(found.double(), plain, rtol=1e-5, atol=1e-3)
        found = dots(matrix, scales, queries, rows, partial, start, stop)
        torch.testing.assert_close(found.double(), plain * scales[rows] + partial, rtol=1e-5, atol=1e-3)
assert dots(matrix, None, queries[:0], rows[:0], None, 0, 8).shape == (0, 21)
print("same")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton, which torch's CUDA builds bring, is not here"
)
def test_the_kernel_gives_the_plain_products() -> None:
    result = run_check(CHECK)
    assert result.stdout.strip() == "same", result.stderr


def test_without_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "funnel.engine.kernels", raising=False)
    assert fused.fused_dots.__wrapped__() is None
