"""What the GPU families say where there is no GPU; with a stand-in for it they run in test_conformance.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from indexes import MissingBackendError, _faiss, family, gpu
from indexes.base import Float32Array
from tests.indexes.gpus import in_host_memory

NAMES = ["faiss-gpu-flat", "faiss-gpu-ivf", "faiss-cagra"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_family_that_cannot_be_used_says_why(name: str) -> None:
    why = family(name).missing()
    assert why is not None
    assert "built without GPU support" in why
    with pytest.raises(MissingBackendError, match=rf"the coarse index '{name}' cannot be used: faiss .* without GPU"):
        family(name)(8)


def test_without_faiss_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(gpu, "load_faiss", _faiss.load_faiss.__wrapped__)
    assert "FAISS, which is not installed" in str(family("faiss-gpu-flat").missing())


def test_cagra_names_the_extra_with_cuvs(monkeypatch: pytest.MonkeyPatch) -> None:
    faiss = _faiss.load_faiss()
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    if not hasattr(faiss, "GpuIndexCagra"):
        assert "install the extra cuvs" in str(gpu.missing_gpu(cuvs=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_filter_is_never_handed_to_the_gpu(
    name: str, monkeypatch: pytest.MonkeyPatch, rows: Float32Array, queries: Float32Array
) -> None:
    in_host_memory(monkeypatch)
    index = family(name)(rows.shape[1])
    index.train(rows)
    index.add(rows)
    tensor, mask = torch.from_numpy(queries), torch.zeros(len(rows), dtype=torch.bool)
    mask[::5] = True
    scores, found = index.search_tensors(tensor, 30, index.efforts()[-1], mask)
    assert (found % 5 == 0)[found >= 0].all()
    assert torch.equal(found < 0, scores.isneginf())
    expected = index.search(queries, 30, index.efforts()[-1], mask.numpy())
    np.testing.assert_array_equal(found.numpy(), expected[1])


def test_few_rows_make_no_cagra_graph(monkeypatch: pytest.MonkeyPatch, rows: Float32Array) -> None:
    in_host_memory(monkeypatch)
    monkeypatch.setattr(gpu, "build_cagra", lambda rows, degree: pytest.fail(f"{len(rows)} rows, degree {degree}"))
    index = family("faiss-cagra")(rows.shape[1])
    index.add(rows[:64])
    assert index.search(rows[:3], 5, 32)[1][:, 0].tolist() == [0, 1, 2]
