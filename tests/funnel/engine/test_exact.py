from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from benchmarks.texts import wordllama_encoder
from funnel import FunnelIndex
from funnel.engine.cascade import Cascade, Float32
from funnel.engine.steps import pruning_of
from funnel.plan import FLAT
from indexes import VectorStore, exact_search, pruned
from tests.funnel.cascades import cascade_over

K, TIE = 10, 1e-6


@pytest.fixture(autouse=True)
def every_store_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VectorStore, "small", property(lambda _: False))


def pca(rows: Float32) -> np.ndarray:
    """Eigenvectors of the second moment, the largest first: [d, d]."""
    return np.linalg.eigh(rows.T.astype(np.float64) @ rows)[1][:, ::-1].astype(np.float32)


def assert_nothing_missed(cascade: Cascade, queries: Float32, batch: int) -> None:
    truth, _ = exact_search(cascade.store, queries, K)
    for start in range(0, len(queries), batch):
        asked = np.ascontiguousarray(queries[start : start + batch])
        scores, rows = cascade.run(asked, FLAT, K)
        full = cascade.store.matrix[rows.ravel()].float().numpy().reshape(*rows.shape, -1)
        own = np.einsum("qd,qkd->qk", asked, full)
        assert (own >= truth[start : start + batch, -1:] - TIE).all()
        np.testing.assert_allclose(scores, own, atol=2e-6)
        assert all(len(set(each)) == K for each in rows.tolist())


@pytest.mark.parametrize("coarse", ["hnsw-sq8", "ivf-sq8", "flat"])
def test_flat_is_pruned_and_exact_on_real_embeddings(
    data_dir: Path, tmp_path: Path, coarse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruned, "WORTH", np.inf)  # whatever the clock says
    folder = data_dir / "vectors-384"
    rows = np.load(next(folder.glob("corpus.*")), mmap_mode="r")[::16].astype(np.float32)
    queries = np.load(next(folder.glob("queries.*")))[:200].astype(np.float32)
    rows, queries = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, queries))
    rotation = pca(rows)
    cascade, _ = cascade_over(rows @ rotation, tmp_path, (128, 192, 256, 384), coarse, "float16")
    queries = np.ascontiguousarray(queries @ rotation)
    for batch, count in ((1, 20), (32, 64), (200, 200)):
        choice = pruning_of(cascade, queries, K, batch)
        assert choice is not None
        assert choice.share < 0.1
        assert_nothing_missed(cascade, queries[:count], batch)


def test_flat_is_exact_on_nested_embeddings_without_an_adaptor(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    encode = wordllama_encoder(tmp_path / "wordllama")
    texts = data_dir / "package-texts"
    with gzip.open(texts / "corpus.txt.gz", "rt", encoding="utf-8") as lines:
        rows = encode([next(lines).rstrip("\n") for _ in range(15_000)])
    with gzip.open(texts / "queries.txt.gz", "rt", encoding="utf-8") as lines:
        queries = encode([next(lines).rstrip("\n") for _ in range(100)])
    rows, queries = (each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), 1e-9) for each in (rows, queries))
    cascade, _ = cascade_over(rows, tmp_path / "cascade", (64, 128, 192, 256), "hnsw-sq8", "float16")
    for batch, count in ((1, 10), (100, 100)):
        assert_nothing_missed(cascade, np.ascontiguousarray(queries[:count]), batch)


def test_what_flat_is_measured_against_looks_at_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(2_000, 32)).astype(np.float32)
    cascade, _ = cascade_over(rows / np.linalg.norm(rows, axis=1, keepdims=True), tmp_path, (8, 16, 32))
    monkeypatch.setattr(type(cascade.exact), "__call__", lambda *_: pytest.fail("truth was pruned"))
    truth, _ = cascade.truth(rows[:5], 10)
    np.testing.assert_allclose(truth, exact_search(cascade.store, rows[:5], 10)[0])


def test_explain_says_how_exact_search_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    scale = (1.0 + np.arange(64)) ** -1.5
    rows = (generator.normal(size=(6_000, 64)) * scale).astype(np.float32)
    index = FunnelIndex.build(rows, tmp_path / "index", adaptor="identity", dims=[16, 32], progress=False)
    monkeypatch.setattr(pruned, "WORTH", 1e9)
    told = index.explain(K, recall=1.0, batch=32)
    assert "pruned at" in told.exact
    assert "pruned at" in str(told)
    assert told.stages[0].name == "pruned"
    assert told.stages[0].width in (16, 32)
    assert 0 < told.bytes_touched < 6_000 * 64 * 4
    monkeypatch.setattr(pruned, "WORTH", 0.0)
    index = FunnelIndex.open(tmp_path / "index")  # which measures again
    told = index.explain(K, recall=1.0, batch=32)
    assert told.exact == "every row at full width"
    assert told.stages[0].name == "flat"
    assert index.explain(K, recall=0.5).exact == "" or index.explain(K, recall=0.5).plan.is_flat
