"""BERT without padding: the vectors of the model itself, text for text, and nothing it cannot run."""

from typing import Any

import numpy as np
import pytest
import torch

from funnel.encoding import packed
from funnel.encoding.packed import PackedBert, PackedModel

WORDS = ("the", "cat", "dog", "sat", "on", "mat", "unknown")


def _texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=length)) for length in generator.integers(0, 60, size=count)]


def _packed(model: Any, dtype: torch.dtype = torch.float32) -> PackedModel:
    bert = getattr(model[0], "model", None) or model[0].auto_model
    layers = PackedBert(bert.state_dict(), bert.config.num_attention_heads, bert.config.layer_norm_eps, dtype)

    def tokenize(texts: list[str], prompt: str | None) -> Any:
        return model.preprocess(texts, prompt=prompt)

    return PackedModel(layers, tokenize, model[1].pooling_mode in ("cls", ("cls",)), model.prompts)


@pytest.mark.parametrize("task", ["query", "document"])
def test_float32_gives_the_vectors_of_the_model_itself(
    tiny_model: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "WINDOW_TEXTS", 100)
    monkeypatch.setattr(packed, "BATCH_TOKENS", 256)
    texts = _texts(250)
    done: list[int] = []
    vectors = _packed(tiny_model).encode(texts, f"{task} : ", done.append)
    encode = tiny_model.encode_query if task == "query" else tiny_model.encode_document
    np.testing.assert_allclose(vectors, encode(texts), atol=1e-5)
    assert sum(done) == 250
    assert len(done) > 10


@pytest.mark.parametrize("batch_tokens", [1, 39, 64, 100_000])
def test_the_size_of_a_batch_changes_nothing(
    tiny_model: Any, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BATCH_TOKENS", batch_tokens)
    texts = ["", *_texts(30), "cat " * 500]
    vectors = _packed(tiny_model).encode(texts, None, lambda _: None)
    np.testing.assert_allclose(vectors, tiny_model.encode(texts, prompt=""), atol=1e-5)


def test_bfloat16_keeps_the_cosine_that_is_promised(tiny_model: Any) -> None:
    texts = _texts(60)
    vectors = _packed(tiny_model, torch.bfloat16).encode(texts, None, lambda _: None)
    exact = tiny_model.encode(texts, prompt="")
    cosines = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() >= 0.998


def test_plain_operations_stand_in_for_packed_weights(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(40)
    fast = _packed(tiny_model, torch.bfloat16).encode(texts, None, lambda _: None)
    monkeypatch.setattr(packed, "_has_packed_linear", lambda _dtype: False)
    plain = _packed(tiny_model, torch.bfloat16).encode(texts, None, lambda _: None)
    np.testing.assert_allclose(fast, plain, atol=0.05)


def test_pooling_by_the_first_token(tiny_model: Any) -> None:
    tiny_model[1].pooling_mode = "cls"
    texts = _texts(40)
    vectors = _packed(tiny_model).encode(texts, None, lambda _: None)
    np.testing.assert_allclose(vectors, tiny_model.encode(texts, prompt=""), atol=1e-5)
