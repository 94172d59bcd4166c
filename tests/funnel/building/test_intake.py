"""The first pass over a corpus."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from funnel import FunnelIndex
from funnel.building import intake as module
from funnel.building.intake import take_in
from funnel.data.corpus import open_corpus
from funnel.encoding.encoders import load_encoder
from funnel.errors import EncoderError, InputError
from funnel.storage.ids import Ids
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents, hashed_words


def read_all(taken: module.Intake) -> np.ndarray:
    return np.concatenate(list(taken.rows()))


def test_vectors_come_again_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS_AT_A_TIME", 64 * 7)  # seven rows at a time
    rows = clustered_rows(50) * 4
    taken = take_in(open_corpus(rows), None, tmp_path, None, 0, False)
    assert (taken.count, taken.dim, taken.documents, taken.spool) == (50, 64, None, None)
    assert_allclose(read_all(taken), rows / 4, atol=1e-6)
    assert_array_equal(np.load(tmp_path / "ids.npy"), np.arange(50))


@pytest.mark.parametrize("as_generator", [False, True])
def test_documents_are_encoded_once_and_spooled(
    as_generator: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DOCUMENTS_AT_A_TIME", 9)
    calls: list[int] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        return hashed_words(texts)

    corpus = documents(40)
    source = (document for document in corpus) if as_generator else corpus
    taken = take_in(open_corpus(source), load_encoder(encode), tmp_path, tmp_path, 0, False)
    expected = hashed_words([f"{document['title']} {document['text']}" for document in corpus])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    for _ in range(2):
        assert_allclose(read_all(taken), expected, atol=1e-6)
    assert sum(calls) in (40, 41)  # one word more may be encoded, to learn the width
    assert Ids.open(tmp_path).all() == [document["_id"] for document in corpus]
    assert taken.spool is not None
    assert taken.spool.exists()
    taken.finish()
    assert not taken.spool.exists()


def test_the_sample_is_drawn_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row with the same chance, wherever it stands: 200 draws of 20 out of 100."""
    monkeypatch.setattr(module, "SAMPLE_BYTES", 4 * 2 * 20)
    monkeypatch.setattr(module, "CELLS_AT_A_TIME", 2 * 10)
    angles = np.linspace(0.1, 1.4, 100)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    counts = np.zeros(100)
    for seed in range(200):
        sample = take_in(open_corpus(rows), None, tmp_path, None, seed, False).sample
        assert sample.shape == (20, 2)
        drawn = np.abs(np.arctan2(sample[:, 1], sample[:, 0])[:, None] - angles).argmin(axis=1)
        assert len(set(drawn)) == 20
        counts[drawn] += 1
    tenths = counts.reshape(10, 10).sum(axis=1)
    assert np.abs(tenths - 400).max() < 5 * np.sqrt(400)


def test_the_sample_is_the_same_in_any_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_BYTES", 4 * 64 * 50)
    rows, samples = clustered_rows(400), []
    for batch in (1, 7, 50, 64, 400):
        monkeypatch.setattr(module, "CELLS_AT_A_TIME", 64 * batch)
        sample = take_in(open_corpus(rows), None, tmp_path, None, 5, False).sample
        samples.append(sample[np.lexsort(sample.T)])
    for sample in samples[1:]:
        assert_allclose(sample, samples[0], atol=1e-6)
    nearest = np.abs(samples[0][:, None] - rows).max(axis=2).min(axis=1)
    assert nearest.max() < 1e-6  # they are rows, and whole ones


def test_a_small_corpus_is_its_own_sample(tmp_path: Path) -> None:
    rows = clustered_rows(30)
    assert_allclose(take_in(open_corpus(rows), None, tmp_path, None, 0, False).sample, rows, atol=1e-6)


def test_reading_takes_the_memory_of_the_sample_and_a_few_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_bytes, batch_bytes = 2_000_000, 64_000
    monkeypatch.setattr(module, "SAMPLE_BYTES", sample_bytes)
    monkeypatch.setattr(module, "CELLS_AT_A_TIME", batch_bytes // 4)
    corpus = open_corpus(np.tile(clustered_rows(500), (80, 1)))  # five samples long
    tracemalloc.start()
    taken = take_in(corpus, None, tmp_path, None, 0, False)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ids = 8 * taken.count
    assert peak < sample_bytes + 8 * batch_bytes + 2 * ids
    assert taken.sample.nbytes > 0.99 * sample_bytes
    taken.drop_sample()
    assert taken.sample.shape == (0, 64)


def test_texts_without_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="holds texts without vectors"):
        take_in(open_corpus(documents(3)), None, tmp_path, tmp_path, 0, False)


def test_an_encoder_that_changes_its_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DOCUMENTS_AT_A_TIME", 5)
    widths = iter([64, 64, 32, 32])
    encoder = load_encoder(lambda texts: hashed_words(texts)[:, : next(widths)])
    with pytest.raises((InputError, EncoderError), match="32"):
        take_in(open_corpus(documents(12)), encoder, tmp_path, tmp_path, 0, False)


def test_an_encoder_error_names_the_number_of_the_document(tmp_path: Path) -> None:
    def encode(texts: list[str]) -> np.ndarray:
        return np.array([[0.0] if text == "w4600" else [1.0] for text in texts])

    corpus = open_corpus([{"_id": f"d{i}", "text": f"w{i}"} for i in range(4_700)])
    with pytest.raises(EncoderError, match="row 4600 "):
        take_in(corpus, load_encoder(encode), tmp_path, tmp_path, 0, False)
    few = [{"_id": f"a{i}", "text": f"a{i}"} for i in range(20)]
    index = FunnelIndex.build(few, tmp_path / "index", encoder=encode, progress=False)
    more = [f"w{i}" for i in range(4_601)]
    for call in (index.add, index.upsert):
        with pytest.raises(EncoderError, match="row 4600 "):
            call([{"_id": text, "text": text} for text in more], progress=False)
    with pytest.raises(EncoderError, match="row 4600 "):
        index.search(more)
    assert len(index) == 20
