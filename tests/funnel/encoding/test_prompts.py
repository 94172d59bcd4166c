"""Prompts and widths: those of the model, of the user and of the manifest, against sentence-transformers itself."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.checks import LONGEST_PROMPT
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder
from funnel.encoding.models import load_model, local_folder
from funnel.encoding.prompts import TextOptions
from funnel.errors import InputError
from tests.funnel.storage.helpers import settings

PROMISED_COSINE = 0.998  # what the README promises of half precision
TEXTS = ["how do plants grow", "A Café!", "x" * 300]
SHIPPED: dict[str, tuple[dict[str, str], str, str]] = {  # prompts as models name them; for queries, for documents
    "arctic": ({"query": "query: ", "document": ""}, "query: ", ""),
    "e5": ({"query": "query: ", "passage": "passage: "}, "query: ", "passage: "),
    "nomic": ({"search_query": "search_query: ", "search_document": "document: "}, "search_query: ", "document: "),
    "e5-mistral": ({"sts_query": "Instruct: same\n", "web_search_query": "Instruct: find\n"}, "Instruct: find\n", ""),
    "jina": ({"retrieval.query": "the query: ", "retrieval.passage": "document: "}, "the query: ", "document: "),
    "none": ({}, "", ""),
}


@pytest.fixture(scope="module")
def minilm() -> Any:
    if local_folder(DEFAULT_ENCODER) is None:
        pytest.skip("all-MiniLM-L6-v2 is not on this machine")
    return load_model(DEFAULT_ENCODER, "cpu")


def saved(prompts: dict[str, str], folder: Path) -> str:
    """The default model in a folder, with these prompts in its config_sentence_transformers.json."""
    found = local_folder(DEFAULT_ENCODER)
    assert found is not None
    shutil.copytree(found, folder, copy_function=os.symlink)
    config = folder / "config_sentence_transformers.json"
    said = json.loads(config.read_text())
    config.unlink()
    config.write_text(json.dumps({**said, "prompts": prompts}))
    return str(folder)


def same(minilm: Any, vectors: np.ndarray, prompt: str, dim: int | None = None) -> bool:
    """Whether they are those of sentence-transformers with this prompt, and with no other."""
    expected = minilm.encode(TEXTS, prompt=prompt, truncate_dim=dim, normalize_embeddings=True)
    return bool(np.einsum("ij,ij->i", vectors, expected).min() >= PROMISED_COSINE)


@pytest.mark.parametrize("kind", SHIPPED)
def test_the_prompts_that_models_have_are_known(kind: str, minilm: Any, tmp_path: Path) -> None:
    prompts, query, document = SHIPPED[kind]
    folder = saved(prompts, tmp_path / "model")
    for encoder in (load_encoder(folder, device="cpu"), load_encoder(folder, exact=True, device="cpu")):
        assert (encoder.options.query_prompt, encoder.options.document_prompt) == (query, document)
        assert same(minilm, encoder.encode_query(TEXTS), query)
        assert same(minilm, encoder.encode(TEXTS), document)
        assert same(minilm, encoder.encode_query(TEXTS), "something else: ") is False


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (("sts", "search_query"), ("same: ", "search_query: ")),  # by name
        (("find this: ", "日本語"), ("find this: ", "日本語")),  # the text itself
        (("", None), ("", "document: ")),  # none, and the model's own
        ((None, ""), ("search_query: ", "")),
    ],
)
def test_a_prompt_is_a_name_or_a_text(given: Any, texts: tuple[str, str], minilm: Any, tmp_path: Path) -> None:
    prompts = {"sts": "same: ", "search_query": "search_query: ", "document": "document: "}
    folder, options = saved(prompts, tmp_path / "model"), TextOptions(*given)
    exact = load_encoder(folder, device="cpu", options=options, exact=True)
    for one in (load_encoder(folder, device="cpu", options=options), exact):
        assert (one.options.query_prompt, one.options.document_prompt) == texts
        assert same(minilm, one.encode_query(TEXTS), texts[0])
        assert same(minilm, one.encode(TEXTS), texts[1])


def test_a_name_that_the_model_does_not_have_is_refused(tiny_folder: Path, tiny_model: Any) -> None:
    said = r"query_prompt is 'qeury', which is no prompt of the encoder .* \(it has query, document\); .* 'qeury: '"
    for source in (tiny_folder, tiny_model):
        with pytest.raises(InputError, match=said):
            load_encoder(source, device="cpu", options=TextOptions("qeury"))


def test_texts_are_put_before_those_of_callables_and_objects_and_names_refused() -> None:
    seen: list[str] = []

    class Own:
        def encode_query(self, texts: list[str]) -> Any:
            seen.extend(texts)
            return np.ones((len(texts), 4))

        encode_document = encode_query

    for source in (Own().encode_query, Own()):
        encoder = load_encoder(source, options=TextOptions("query: ", "passage: ", 2))
        seen.clear()
        assert encoder.encode(["a"]).shape == encoder.encode_query(["b", "c"])[:1].shape == (1, 2)
        assert seen == ["passage: a", "query: b", "query: c"]
        assert encoder.dim == 2
        with pytest.raises(InputError, match=r"document_prompt is 'passage', which is no prompt of .* \(it has none\)"):
            load_encoder(source, options=TextOptions(document_prompt="passage"))


def test_the_users_encoder_stays_as_it_was() -> None:
    first = load_encoder(lambda texts: np.ones((len(texts), 4)), options=TextOptions("q: ", None, 3))
    second = load_encoder(first, options=TextOptions(document_prompt="d: "))
    assert first.options == TextOptions("q: ", "", 3, kept=True)
    assert second.options == TextOptions("q: ", "d: ", 3, kept=True)  # what is left open stays
    assert load_encoder(first) is first
    assert load_encoder(first, options=first.options) is first


def test_the_first_dims_are_kept(minilm: Any, tmp_path: Path) -> None:
    folder, options = saved({"query": "query: "}, tmp_path / "model"), TextOptions(truncate_dim=64)
    loaded = [load_encoder(folder, exact=exact, device="cpu", options=options) for exact in (False, True)]
    for encoder in (*loaded, load_encoder(minilm, options=TextOptions("query: ", None, 64))):
        vectors = encoder.encode_query(TEXTS)
        assert encoder.dim == 64
        assert vectors.shape == (3, 64)
        assert encoder.encode([]).shape == (0, 64)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
        assert same(minilm, vectors, "query: ", 64)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"truncate_dim": 0}, "truncate_dim is 0; expected a whole number from 1"),
        ({"truncate_dim": True}, "truncate_dim is True"),
        ({"truncate_dim": "64"}, "truncate_dim is '64'"),
        ({"query_prompt": 5}, "query_prompt is 5; expected a text, or the name of a prompt"),
        (
            {"document_prompt": "x" * (LONGEST_PROMPT + 1)},
            "document_prompt has 4,097 characters; expected at most",
        ),
    ],
)
def test_what_is_none(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        TextOptions(**options)


def test_more_dims_than_there_are(tiny_folder: Path) -> None:
    for source in (tiny_folder, lambda texts: np.ones((len(texts), 16))):
        with pytest.raises(InputError, match=r"truncate_dim is 17, and the encoder .* gives 16 dims"):
            _ = load_encoder(source, device="cpu", options=TextOptions(truncate_dim=17)).dim


def test_a_manifest_of_before_prompts_were_kept() -> None:
    """Its queries are encoded as its documents were: with the names alone that sentence-transformers looks for."""
    own = {"query": "query: ", "search_query": "s: ", "passage": "passage: "}
    before = TextOptions.of_manifest(settings(encoder="some/model")).resolved(
        TextOptions.of_model(own), own, "some/model"
    )
    assert (before.query_prompt, before.document_prompt) == ("query: ", "")
    assert TextOptions.of_manifest(settings()) == TextOptions()  # vectors: the model's own, as for a build


def test_what_a_manifest_keeps_is_a_text() -> None:
    kept = TextOptions.of_manifest(settings(encoder="some/model", query_prompt="query", document_prompt=""))
    own = {"query": "query: ", "document": "document: "}
    assert kept.resolved(TextOptions.of_model(own), own, "some/model").query_prompt == "query"
