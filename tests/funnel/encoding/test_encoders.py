"""Encoders: what can be one, what they must give, and models left as they were."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funnel.encoding import encoders as encoding
from funnel.encoding.encoders import CallableEncoder, Encoder, ModelEncoder, load_encoder
from funnel.errors import EncoderError, InputError

WIDTH = 16  # of the small model


def _lengths(texts: list[str]) -> np.ndarray:
    return np.array([[len(text) + 1, 1.0] for text in texts])


def test_a_callable_is_an_encoder() -> None:
    encoder = load_encoder(_lengths)
    assert isinstance(encoder, CallableEncoder)
    assert isinstance(encoder, Encoder)
    assert encoder.name.startswith("callable:")
    assert encoder.name.endswith("test_encoders._lengths")
    assert not encoder.reopenable
    assert encoder.dim == 2
    vectors = encoder.encode(["ab", ""])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[3 / 10**0.5, 1 / 10**0.5], [0.5**0.5, 0.5**0.5]], rtol=1e-6)
    np.testing.assert_array_equal(encoder.encode_query(["ab", ""]), vectors)
    assert encoder.encode([]).shape == (0, 2)
    assert load_encoder(encoder) is encoder


@pytest.mark.usefixtures("bars_at_once")
def test_a_callable_gets_lists_of_bounded_length(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoding, "TEXTS_PER_CALL", 3)
    calls: list[list[str]] = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return _lengths(texts)

    texts = tuple("abcdefgh")
    assert load_encoder(encode).encode(texts, progress=True).shape == (8, 2)
    assert calls == [list("abc"), list("def"), list("gh")]
    assert "8/8" in capsys.readouterr().err


def test_tensors_and_lists_of_rows_are_taken() -> None:
    assert load_encoder(lambda texts: torch.ones(len(texts), 3, dtype=torch.bfloat16)).dim == 3
    assert load_encoder(lambda texts: [np.ones(4) for _ in texts]).dim == 4


def test_an_object_with_encode_is_an_encoder() -> None:
    class Brought:
        def encode(self, texts: list[str]) -> np.ndarray:
            return _lengths(texts)

        def encode_query(self, texts: list[str]) -> np.ndarray:
            return -_lengths(texts)

    encoder = load_encoder(Brought())
    assert encoder.name.startswith("object:")
    assert encoder.name.endswith("Brought")
    np.testing.assert_array_equal(encoder.encode(["a"]), -encoder.encode_query(["a"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((1, 3)), r"gave float64 of shape \[1, 3\] for 2 texts, expected numbers of shape \[2, d\]"),
        (np.ones(2), r"shape \[2\] for 2 texts"),
        (np.ones((2, 0)), r"shape \[2, 0\]"),
        ([[1.0], [1.0, 2.0]], "expected numbers of shape"),
        (None, "expected numbers of shape"),
        (np.array([["a"], ["b"]]), "expected float or integer rows"),
        (np.array([[1.0], [np.nan]]), r"row 1 \(NaN\)"),
        (np.array([[0.0], [1.0]]), r"row 0 \(all zero\)"),
    ],
)
def test_what_a_callable_gives_is_checked(values: object, message: str) -> None:
    encoder = load_encoder(lambda _texts: values)
    with pytest.raises(EncoderError, match=message):
        encoder.encode(["a", "b"])


def test_the_width_may_not_change() -> None:
    encoder = load_encoder(lambda texts: np.ones((len(texts), len(texts[0]))))
    assert encoder.encode(["abc"]).shape == (1, 3)
    with pytest.raises(EncoderError, match=r"shape \[1, 2\] for 1 texts, expected numbers of shape \[1, 3\]"):
        encoder.encode(["ab"])


@pytest.mark.parametrize("source", [5, None, np.ones(3)])
def test_other_values_are_no_encoder(source: object) -> None:
    with pytest.raises(EncoderError, match="an encoder cannot be a"):
        load_encoder(source)


def test_a_folder_is_a_model(tiny_folder: Path) -> None:
    encoder = load_encoder(tiny_folder, device="cpu")
    assert isinstance(encoder, ModelEncoder)
    assert isinstance(encoder, Encoder)
    assert encoder.name == str(tiny_folder)
    assert encoder.reopenable
    assert encoder.dim == WIDTH
    assert encoder.encode([]).shape == (0, WIDTH)
    lengths = np.linalg.norm(encoder.encode(["the cat", ""]), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


@pytest.mark.parametrize("exact", [True, False])
def test_prompts_are_those_of_the_model(tiny_folder: Path, tiny_model: Any, exact: bool) -> None:
    encoder = load_encoder(str(tiny_folder), exact=exact, device="cpu")
    texts = ["the cat sat", "a dog ran under the tree"]
    for vectors, prompt in ((encoder.encode(texts), "document"), (encoder.encode_query(texts), "query")):
        expected = tiny_model.encode(texts, prompt_name=prompt, normalize_embeddings=True)
        assert np.einsum("ij,ij->i", vectors, expected).min() >= (0.99999 if exact else 0.998)


def test_the_users_own_model_is_left_as_it_was(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.encoding.packed.fast_dtype", lambda _device: torch.bfloat16)
    before = tiny_model.encode(["the cat"])
    encoder = load_encoder(tiny_model)
    assert encoder.name.startswith("object:")
    assert not encoder.reopenable
    encoder.encode(["the cat"])
    assert tiny_model.dtype == torch.float32
    np.testing.assert_array_equal(tiny_model.encode(["the cat"]), before)
    assert encoder._model.dtype == torch.bfloat16  # type: ignore[attr-defined]


@pytest.mark.usefixtures("bars_at_once")
def test_models_that_pad_on_the_left_keep_their_precision(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoding, "PLAIN_TEXTS_PER_CALL", 2)
    tiny_model.tokenizer.padding_side = "left"
    texts = ["the cat", "a dog", "the mat"]  # of one length, as padding on the left moves positions
    vectors = load_encoder(tiny_model).encode(texts, progress=True)
    expected = tiny_model.encode_document(texts, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert "3/3" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device is 'cuda' and torch finds no CUDA"):
        load_encoder(tiny_folder, device="cuda")
    assert load_encoder(tiny_folder, device="auto").dim == WIDTH


def test_heavy_packages_are_imported_only_when_needed() -> None:
    code = (
        "import sys, funnel.encoding.encoders, funnel.data.corpus, funnel.data.queries, funnel.data.documents; "
        "sys.exit(' '.join({'sentence_transformers', 'transformers', 'pyarrow'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
