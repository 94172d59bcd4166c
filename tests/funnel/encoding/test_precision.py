"""Half precision: where it is native, and the cosines that are promised."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funnel.encoding.encoders import DEFAULT_ENCODER, Encoder, load_encoder
from funnel.encoding.packed import fast_dtype
from funnel.rows import unit_rows

PROMISED_COSINE = 0.998  # what the README promises of half precision


@pytest.mark.parametrize("task", ["query", "document"])
def test_a_model_in_hand_keeps_the_promise_by_its_own_encode(
    tiny_model: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("funnel.encoding.packed.fast_dtype", lambda _device: torch.bfloat16)
    monkeypatch.setattr("funnel.encoding.encoders.PLAIN_TEXTS_PER_CALL", 7)
    encoder = load_encoder(tiny_model)
    assert encoder._model.dtype == torch.bfloat16  # type: ignore[attr-defined]
    texts = [" ".join(["the", "cat", "sat"] * length) for length in range(1, 40)]
    vectors = encoder.encode_query(texts) if task == "query" else encoder.encode(texts)
    expected = tiny_model.encode(texts, prompt_name=task, normalize_embeddings=True)
    assert np.einsum("ij,ij->i", vectors, expected).min() >= PROMISED_COSINE


def test_half_precision_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert fast_dtype(cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert fast_dtype(cpu) == torch.float32
    assert fast_dtype(torch.device("cuda")) == torch.float16
    assert fast_dtype(torch.device("meta")) == torch.float32


def test_minilm_keeps_its_promise_on_real_texts(minilm: Encoder, data_dir: Path) -> None:
    lines = (data_dir / "scifact" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    abstracts = [f"{record['title']} {record['text']}" for record in map(json.loads, lines)]
    words = abstracts[0].split()
    mixed = [
        *abstracts,
        "",
        " ",
        "a",
        "long " * 3000,
        *words[:30],
        " ".join(words[:40]),
        "日本語 テキスト",
        "\x00 🙂",
    ]
    exact = load_encoder(DEFAULT_ENCODER, exact=True, device="cpu")
    expected = unit_rows(exact._model.encode(mixed, show_progress_bar=False), 0, "expected")  # type: ignore[attr-defined]
    cosines = np.einsum("ij,ij->i", minilm.encode(mixed), expected)
    assert cosines.min() >= PROMISED_COSINE
    np.testing.assert_allclose(exact.encode(mixed[-8:]), expected[-8:], atol=1e-5)
    queries = np.einsum("ij,ij->i", minilm.encode_query(mixed[-20:]), expected[-20:])
    assert queries.min() >= PROMISED_COSINE
