from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from indexes import FlatIndex, HnswSq8Index, MissingBackendError
from indexes._faiss import BLAS_THRESHOLD_PER_THREAD, load_faiss
from indexes.base import Float32Array


@pytest.fixture
def fresh_import() -> Iterator[None]:
    load_faiss.cache_clear()
    yield
    load_faiss.cache_clear()


@pytest.mark.usefixtures("fresh_import")
def test_a_missing_faiss_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingBackendError, match=r"funnel-retrieval\[cpu\].*exclude each other"):
        FlatIndex(8)


@pytest.mark.usefixtures("fresh_import")
def test_the_blas_threshold_is_set_on_purpose() -> None:
    faiss = load_faiss()
    expected = BLAS_THRESHOLD_PER_THREAD * faiss.omp_get_max_threads()
    assert faiss.cvar.distance_compute_blas_threshold == expected


def test_search_parameters_are_made_once_for_each_effort(rows: Float32Array, monkeypatch: pytest.MonkeyPatch) -> None:
    index = HnswSq8Index(rows.shape[1])
    index.train(rows)
    index.add(rows[:100])
    index.search(rows[:1], 1, 16)
    monkeypatch.setattr(index, "_search_parameters", None)
    index.search(rows[:1], 1, 16)
