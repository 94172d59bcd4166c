from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from indexes import CoarseIndexError, VectorStore, exact_search
from indexes.base import Float32Array
from indexes.vectors import Codes, code_bytes, fitting
from tests.indexes.test_vectors import DEVICES, written


@pytest.fixture
def path(tmp_path: Path, rows: Float32Array) -> Path:
    return written(tmp_path / "vectors.npy", rows)


def test_what_fits_decides() -> None:
    raw, codes = 1_000_000 * 384 * 2, code_bytes(1_000_000, 384)
    assert fitting(1_000_000, 384, 2, 2 * raw) == "device"
    assert fitting(1_000_000, 384, 2, raw) == "int8"
    assert fitting(1_000_000, 384, 2, codes) == "host"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("placement", ["device", "int8", "host"])
def test_whole_rows_are_the_stored_ones_everywhere(path: Path, rows: Float32Array, placement: str, device: str) -> None:
    store = VectorStore.open(path, device, placement)
    assert (store.placement, store.device.type) == (placement, device)
    wanted = torch.tensor([5, 0, 1499, 5], device=device)
    found = store.gather(wanted, 0, store.dim)
    assert found.device == store.device
    np.testing.assert_array_equal(found.cpu().numpy(), rows.astype(np.float16)[[5, 0, 1499, 5]])
    np.testing.assert_array_equal(store.block(1498, 1502).cpu().numpy(), rows[1498:].astype(np.float16))
    assert store.block(0, 2).device == store.device
    held = store.nbytes + (code_bytes(*rows.shape) if placement == "int8" else 0)
    assert store.resident_bytes == held


def test_parts_of_rows_come_from_the_codes_within_half_a_step(path: Path, rows: Float32Array) -> None:
    store = VectorStore.open(path, "cpu", "int8")
    assert store.codes is not None
    assert store.codes.codes.dtype == torch.int8
    wanted = torch.arange(0, 1500, 7)
    stored = rows.astype(np.float16).astype(np.float32)[wanted]
    step = np.abs(stored).max(axis=1, keepdims=True) / 127
    for start, stop in ((0, 8), (8, 31)):
        off = np.abs(store.gather(wanted, start, stop).numpy() - stored[:, start:stop])
        assert (off <= step / 2 * 1.001).all()
        assert off.max() > 0


def test_a_row_of_zeros_has_codes_of_zero() -> None:
    codes = Codes(iter([(0, np.zeros((3, 4), np.float32))]), 3, 4, torch.device("cpu"))
    assert not codes.gather(torch.tensor([0, 2]), 0, 3).any()


@pytest.mark.parametrize("placement", ["device", "int8", "host"])
def test_flat_search_is_exact_wherever_the_rows_lie(
    path: Path, queries: Float32Array, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexes.exact.ROWS_AT_A_TIME_CUDA", 400)
    expected = exact_search(VectorStore.open(path), queries, 10)
    found = exact_search(VectorStore.open(path, "cpu", placement), queries, 10)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], expected[1])


def test_rows_in_memory_are_a_store_too(path: Path, rows: Float32Array, queries: Float32Array) -> None:
    store = VectorStore.held(torch.from_numpy(rows.astype(np.float16)))
    assert (store.n, store.dim, store.placement, store.resident_bytes) == (*rows.shape, "device", rows.size * 2)
    expected = exact_search(VectorStore.open(path), queries, 5)
    np.testing.assert_array_equal(exact_search(store, queries, 5)[1], expected[1])
    joined = np.concatenate([chunk for _, chunk in store.chunks(400)])
    np.testing.assert_array_equal(joined, rows.astype(np.float16))
    store.release()
    with pytest.raises(CoarseIndexError, match=r"torch.float64 tensor of shape \[2, 3\]; give a contiguous float16"):
        VectorStore.held(torch.zeros(2, 3, dtype=torch.float64))


def test_unknown_placements_are_refused(path: Path) -> None:
    with pytest.raises(CoarseIndexError, match="placement is 'gpu'; choose one of: auto, mapped, device, int8, host"):
        VectorStore.open(path, placement="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_map_is_for_the_cpu(path: Path) -> None:
    with pytest.raises(CoarseIndexError, match="placement 'mapped' is for the CPU"):
        VectorStore.open(path, "cuda", "mapped")
