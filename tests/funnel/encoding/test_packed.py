"""BERT without padding: the vectors of the model itself, text for text, and nothing it cannot run."""

from typing import Any

import numpy as np
import pytest
import torch

from funnel.encoding import packed
from funnel.encoding.encoders import ModelEncoder
from funnel.encoding.packed import BucketedModel, PackedModel

WORDS = ("the", "cat", "dog", "sat", "on", "mat", "unknown")


def _texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=length)) for length in generator.integers(0, 60, size=count)]


def _packed(model: Any, dtype: torch.dtype = torch.float32) -> PackedModel:
    found = PackedModel.of(model, dtype)
    assert found is not None
    return found


@pytest.mark.parametrize("task", ["query", "document"])
def test_float32_gives_the_vectors_of_the_model_itself(
    tiny_model: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "WINDOW_TEXTS", 100)
    monkeypatch.setattr(packed, "BATCH_TOKENS", 256)
    texts = _texts(250)
    done: list[int] = []
    vectors = _packed(tiny_model).encode(texts, f"{task} : ", task, done.append)
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
    vectors = _packed(tiny_model).encode(texts, None, "document", lambda _: None)
    np.testing.assert_allclose(vectors, tiny_model.encode(texts, prompt=""), atol=1e-5)


def test_bfloat16_keeps_the_cosine_that_is_promised(tiny_model: Any) -> None:
    texts = _texts(60)
    vectors = _packed(tiny_model, torch.bfloat16).encode(texts, None, "document", lambda _: None)
    exact = tiny_model.encode(texts, prompt="")
    cosines = (vectors * exact).sum(axis=1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() >= packed.AGREEMENT


def test_plain_operations_stand_in_for_packed_weights(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = _texts(40)
    fast = _packed(tiny_model, torch.bfloat16).encode(texts, None, "document", lambda _: None)
    monkeypatch.setattr(packed, "_has_packed_linear", lambda _dtype: False)
    plain = _packed(tiny_model, torch.bfloat16).encode(texts, None, "document", lambda _: None)
    np.testing.assert_allclose(fast, plain, atol=0.05)


def test_pooling_by_the_first_token_and_following_modules(tiny_model: Any) -> None:
    from sentence_transformers.models import Dense, Normalize  # type: ignore[import-not-found]

    tiny_model[1].pooling_mode = "cls"
    tiny_model.append(Dense(16, 6))
    tiny_model.append(Normalize())
    texts = _texts(40)
    vectors = _packed(tiny_model).encode(texts, None, "document", lambda _: None)
    np.testing.assert_allclose(vectors, tiny_model.encode(texts, prompt=""), atol=1e-5)
    assert vectors.shape == (40, 6)


def test_truncate_dim_is_kept(tiny_model: Any) -> None:
    tiny_model.truncate_dim = 4
    vectors = _packed(tiny_model).encode(["a cat", "the mat"], None, "document", lambda _: None)
    np.testing.assert_allclose(vectors, tiny_model.encode(["a cat", "the mat"], prompt=""), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "value"), [("hidden_act", "relu"), ("is_decoder", True), ("position_embedding_type", "relative_key")]
)
def test_other_berts_run_in_batches_of_fixed_shape(tiny_model: Any, change: str, value: object) -> None:
    setattr(packed._transformer(tiny_model[0]).config, change, value)
    assert PackedModel.of(tiny_model, torch.float32) is None
    assert isinstance(ModelEncoder(tiny_model, "tiny", exact=False, reopenable=False)._fast, BucketedModel)


@pytest.mark.parametrize("mode", ["max", ("mean", "cls")])
def test_other_poolings_are_left_to_the_model(tiny_model: Any, mode: object) -> None:
    tiny_model[1].pooling_mode = mode
    assert PackedModel.of(tiny_model, torch.float32) is None


def test_vectors_that_disagree_with_the_model_are_not_used(tiny_model: Any) -> None:
    hidden = packed._transformer(tiny_model[0]).encoder.layer[0]
    hidden.register_forward_hook(lambda _module, _inputs, output: torch.flip(output, (-1,)) if torch.is_tensor(output)
                                 else (torch.flip(output[0], (-1,)), *output[1:]))  # fmt: skip
    assert PackedModel.of(tiny_model, torch.float32) is None


def test_float16_is_not_run_on_the_cpu(tiny_model: Any) -> None:
    assert PackedModel.of(tiny_model, torch.float16) is None


def test_no_texts_are_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="no texts"):
        _packed(tiny_model).encode([], None, "document", lambda _: None)
