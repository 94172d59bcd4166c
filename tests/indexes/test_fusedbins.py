"""The kernel of products and bins: compiled on a GPU, else interpreted, where there is Triton."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from indexes import TorchBinsIndex, torchbins
from indexes.base import Float32Array
from indexes.torchbins import rows_of_a_bin
from tests.interpreted import run_check

CHECK = """
from indexes.torchbins import fused_bins

best_of_bins, generator = fused_bins(), torch.Generator().manual_seed(0)
for n_queries, n, dim, size in ((3, 700, 96, 2), (70, 1000, 48, 3), (1, 130, 64, 1), (20, 3000, 128, 7)):
    queries = torch.randn(n_queries, dim, generator=generator).half().to(device)
    rows = torch.randn(n, dim, generator=generator).half().to(device)
    scores, places = best_of_bins(queries, rows, size)
    products = queries.float() @ rows.float().T
    groups = -(-n // (128 * size))
    filled = torch.full((n_queries, groups * 128 * size), -torch.inf, device=device)
    filled[:, :n] = products
    expected = filled.view(n_queries, groups, size, 128).amax(dim=2).view(n_queries, -1)
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    real = ~expected.isneginf()
    at = products.gather(1, places.clamp(max=n - 1).long())
    torch.testing.assert_close(at[real], scores[real], rtol=1e-3, atol=1e-3)
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton, which comes with CUDA, is not here")
def test_the_kernel_gives_the_best_of_every_bin() -> None:
    result = run_check(CHECK)
    assert result.stdout.strip() == "same", result.stderr


def test_without_triton_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "indexes._kernels", raising=False)
    assert torchbins.fused_bins.__wrapped__() is None


def plain(queries: torch.Tensor, rows: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel does, in torch."""
    groups = -(-len(rows) // (128 * size))
    products = torch.nn.functional.pad(queries @ rows.float().T, (0, groups * 128 * size - len(rows)), value=-torch.inf)
    best, tile = products.view(len(queries), groups, size, 128).max(dim=2)
    first = torch.arange(groups)[:, None] * 128 * size + torch.arange(128)
    return best.flatten(1), (first + tile * 128).flatten(1).int()


@pytest.mark.parametrize("bins", [256, 1_500])
def test_its_bins_serve_as_well_as_those_block_by_block(rows: Float32Array, queries: Float32Array, bins: int) -> None:
    index = TorchBinsIndex(rows.shape[1])
    index.add(rows)
    index.place(torch.device("cpu"))
    size = rows_of_a_bin(len(rows), bins)
    tensor = torch.from_numpy(queries)
    found = index._best_of_bins(plain, tensor, 100, size)
    block = index._blockwise(tensor, 100, size, None)
    true = torch.topk(tensor @ index._rows.float().T, 100, dim=1).indices
    shares = [np.mean([np.isin(t, f).mean() for t, f in zip(true, each[1], strict=True)]) for each in (found, block)]
    assert abs(shares[0] - shares[1]) < 0.03
    assert shares[0] > 0.8
    torch.testing.assert_close(found[0], (tensor @ index._rows.float().T).gather(1, found[1]))


def test_it_is_used_where_it_was_quicker(monkeypatch: pytest.MonkeyPatch, rows: Float32Array) -> None:
    index = TorchBinsIndex(rows.shape[1])
    index.add(rows)
    asked: list[bool] = []
    monkeypatch.setattr(torchbins, "fused_bins", lambda: plain)
    for answer in (True, False):
        monkeypatch.setattr(torchbins, "quicker", lambda _first, _second, answer=answer: asked.append(answer) or answer)  # type: ignore[func-returns-value]
        for count, size in ((1, 2), (1, 2), (30, 2), (31, 2), (30, 4)):
            fused = index._fused(torch.zeros(count, rows.shape[1]), 10, size + 10 * answer)
            assert fused is (plain if answer else None)
    assert asked == [True] * 3 + [False] * 3
    several = TorchBinsIndex(rows.shape[1], kept=2)
    assert several._fused(torch.zeros(1, rows.shape[1]), 10, 2) is None
