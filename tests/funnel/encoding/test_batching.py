"""Batches of few shapes: the same vectors, in the order of the texts."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnel.encoding import packed as batching
from funnel.encoding.encoders import DEFAULT_ENCODER, Encoder, load_encoder
from funnel.encoding.packed import BucketedModel, batch_rows, bucket_length, fast_dtype
from funnel.rows import unit_rows

PROMISED_COSINE = 0.998  # what the README promises of half precision


@given(st.integers(1, 5000), st.none() | st.integers(1, 600))
def test_bucket_lengths_hold_the_text_and_stay_in_the_limit(tokens: int, limit: int | None) -> None:
    if limit is not None:
        tokens = min(tokens, limit)
    length = bucket_length(tokens, limit)
    assert tokens <= length < tokens + batching.LONG_STEP
    assert limit is None or length <= limit
    assert limit is not None or bucket_length(length, limit) == length


def test_there_are_few_bucket_lengths_below_256() -> None:
    assert len({bucket_length(tokens, 256) for tokens in range(1, 257)}) == 16


@given(st.integers(1, 10_000), st.integers(1, 100_000))
def test_full_batches_have_a_power_of_two_of_rows(length: int, batch_tokens: int) -> None:
    rows = batch_rows(length, batch_tokens)
    assert math.log2(rows).is_integer()
    assert rows == 1 or rows * length <= batch_tokens < 2 * rows * length + length


def _texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    words = ["the", "cat", "dog", "sat", "on", "mat", "unknown"]
    lengths = generator.integers(0, 60, size=count)
    return [" ".join(generator.choice(words, size=length)) for length in lengths]


@pytest.mark.parametrize("task", ["query", "document"])
def test_float32_gives_the_vectors_of_the_model_itself(
    tiny_model: Any, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "WINDOW_TEXTS", 100)
    monkeypatch.setattr(batching, "TOKENIZE_TEXTS", 30)
    texts = _texts(250)
    done: list[int] = []
    vectors = BucketedModel(tiny_model).encode(texts, f"{task} : ", task, done.append)
    encode = tiny_model.encode_query if task == "query" else tiny_model.encode_document
    np.testing.assert_allclose(vectors, encode(texts), atol=1e-5)
    assert sum(done) == 250


def test_shapes_are_few(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "CPU_BATCH_TOKENS", 256)
    shapes: Counter[tuple[int, ...]] = Counter()
    tiny_model.register_forward_pre_hook(lambda _, inputs: shapes.update([tuple(inputs[0]["input_ids"].shape)]))
    BucketedModel(tiny_model).encode(_texts(500), None, "document", lambda _: None)
    full = [shape for shape in shapes if shape[0] == batch_rows(shape[1], 256)]
    last = [shape for shape in shapes if shape not in full]
    assert {length for _, length in shapes} <= {8, 16, 24, 32, 40}
    assert len(last) <= 5
    assert all(math.log2(rows).is_integer() for rows, _ in last)
    assert sum(shapes[shape] for shape in full) > len(last)


def test_truncate_dim_is_kept(tiny_model: Any) -> None:
    tiny_model.truncate_dim = 4
    texts = _texts(5)
    vectors = BucketedModel(tiny_model).encode(texts, None, "document", lambda _: None)
    np.testing.assert_allclose(vectors, tiny_model.encode(texts), atol=1e-5)


def test_models_it_cannot_run_are_told_apart(tiny_model: Any) -> None:
    assert BucketedModel.supports(tiny_model)
    tiny_model.tokenizer.padding_side = "left"
    assert not BucketedModel.supports(tiny_model)


def test_no_texts_are_refused(tiny_model: Any) -> None:
    with pytest.raises(ValueError, match="no texts"):
        BucketedModel(tiny_model).encode([], None, "document", lambda _: None)


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
