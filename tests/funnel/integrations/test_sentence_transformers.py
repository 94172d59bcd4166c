"""The adaptor as a module of a real sentence-transformers model: in this process, saved, and in a fresh one."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sentence_transformers import SentenceTransformer

from funnel import FunnelIndex
from funnel.adaptors import (
    PCA,
    RECIPES,
    TRAINED_KINDS,
    Adaptor,
    Identity,
    OrthogonalAdaptor,
    adaptor_kinds,
    fit_adaptor,
    make_adaptor,
)
from funnel.encoding.encoders import Encoder
from funnel.encoding.models import load_model
from funnel.errors import InputError
from funnel.integrations.sentence_transformers import adapted
from tests.funnel.clustered import clustered_rows
from tests.funnel.corpora import documents

PREFIX = 64
KINDS = adaptor_kinds()
DOCUMENTS = documents(12)
TEXTS = [f"{document['title']}: {document['text']}" for document in DOCUMENTS]

# What a user writes who has funnel installed and never imports it.
FRESH = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer

for folder, flags, texts in map(json.loads, sys.stdin):
    model = SentenceTransformer(folder, device="cpu", **flags)
    np.save(folder + ".npy", model.encode(texts))
    np.save(folder + ".prefix.npy", model.encode(texts, truncate_dim=64))
    print(folder, "funnel" in sys.modules)
"""


@pytest.fixture(scope="module")
def model(minilm: Encoder) -> SentenceTransformer:
    """MiniLM in float32; not to be changed."""
    return load_model(minilm.name, "cpu")


@pytest.fixture(scope="module")
def plain(model: SentenceTransformer) -> npt.NDArray[np.float32]:
    return model.encode(TEXTS)


@pytest.fixture(scope="module")
def adaptors(plain: npt.NDArray[np.float32]) -> dict[str, Adaptor]:
    """One of every kind; the trained ones after two steps."""
    sample = clustered_rows(600, plain.shape[1], seed=1)
    return {kind: quickly_fitted(kind, sample) for kind in KINDS}


def quickly_fitted(kind: str, sample: npt.NDArray[np.float32]) -> Adaptor:
    if kind not in TRAINED_KINDS:
        return make_adaptor(kind, sample)
    recipe = RECIPES[kind]
    short = replace(recipe, phases=tuple(replace(phase, steps=2) for phase in recipe.phases))
    return fit_adaptor(kind, sample, recipe=short).adaptor


def in_a_fresh_process(given: list[tuple[Path, dict[str, bool]]], elsewhere: Path) -> list[bool]:
    """Load each folder with its flags and encode, in this order; whether funnel was imported by then."""
    lines = [json.dumps([str(folder), flags, TEXTS]) for folder, flags in given]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FRESH]
    done = subprocess.run(
        command, input="\n".join(lines), text=True, cwd=elsewhere, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return [line.endswith(" True") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_adaptor_is_a_module_like_any_other(
    kind: Any, model: SentenceTransformer, plain: npt.NDArray[np.float32], adaptors: dict[str, Adaptor]
) -> None:
    adaptor = adaptors[kind]
    together = SentenceTransformer(modules=[*model, adaptor], device="cpu")
    expected = adaptor.transform(plain)
    np.testing.assert_allclose(together.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(together.encode(TEXTS, truncate_dim=PREFIX), expected[:, :PREFIX], atol=1e-5)
    assert together.get_embedding_dimension() == adaptor.dim


def test_prefixes_can_be_normalised_by_the_model(
    model: SentenceTransformer, plain: npt.NDArray[np.float32], adaptors: dict[str, Adaptor]
) -> None:
    prefixes = adapted(model, adaptors["pca"]).encode(TEXTS, truncate_dim=PREFIX, normalize_embeddings=True)
    expected = adaptors["pca"].transform(plain)[:, :PREFIX]
    np.testing.assert_allclose(prefixes, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)


def test_a_saved_model_needs_only_funnel_installed_and_a_portable_one_not_even_that(
    model: SentenceTransformer, plain: npt.NDArray[np.float32], adaptors: dict[str, Adaptor], tmp_path: Path
) -> None:
    """In a process in another folder that imports sentence-transformers alone."""
    rotations = [kind for kind in KINDS if isinstance(adaptors[kind], OrthogonalAdaptor | Identity)]
    assert {"identity", "pca", "rotation"} <= set(rotations)
    saved: list[tuple[str, Path, dict[str, bool]]] = [(kind, tmp_path / f"own-{kind}", {}) for kind in rotations]
    saved += [(kind, tmp_path / kind, {"trust_remote_code": True}) for kind in KINDS]
    for kind, folder, flags in saved:
        adapted(model, adaptors[kind], portable=not flags).save(str(folder))
    imported = in_a_fresh_process([(folder, flags) for _, folder, flags in saved], tmp_path)
    assert imported == [bool(flags) for _, _, flags in saved]
    for kind, folder, _ in saved:
        expected = adaptors[kind].transform(plain)
        np.testing.assert_allclose(np.load(f"{folder}.npy"), expected, atol=1e-5)
        np.testing.assert_allclose(np.load(f"{folder}.prefix.npy"), expected[:, :PREFIX], atol=1e-5)


def test_saving_twice_and_saving_what_was_loaded(
    model: SentenceTransformer, adaptors: dict[str, Adaptor], tmp_path: Path
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    together = adapted(model, adaptors["rotation"])
    together.save(first)
    together.save(first)
    loaded = SentenceTransformer(first, device="cpu", trust_remote_code=True, local_files_only=True)
    loaded.save(second)
    again = SentenceTransformer(second, device="cpu", trust_remote_code=True, local_files_only=True)
    np.testing.assert_array_equal(again.encode(TEXTS), together.encode(TEXTS))
    assert Adaptor.load(f"{second}/3_Rotation").checksum == adaptors["rotation"].checksum


class Doubled(Adaptor):
    """Not a rotation."""

    kind = "doubled"
    isometric = False

    @classmethod
    def fit(cls, sample: Any, *, dims: Any = None, seed: int = 0, progress: bool = False) -> Adaptor:
        raise NotImplementedError

    @classmethod
    def build(cls, dim: int, dims: Any, settings: Any, tensors: Any) -> Self:
        raise NotImplementedError

    def map(self, vectors: Any) -> torch.Tensor:
        result: torch.Tensor = 2 * vectors
        return result


def test_only_rotations_are_portable(model: SentenceTransformer) -> None:
    with pytest.raises(InputError, match=r"'doubled' is no rotation.*trust_remote_code=True"):
        adapted(model, Doubled(384), portable=True)


@pytest.mark.parametrize("portable", [False, True])
def test_the_adaptor_must_fit_the_model(portable: bool, model: SentenceTransformer) -> None:
    narrow = PCA(np.eye(8, dtype=np.float32))
    with pytest.raises(InputError, match="the adaptor is for 8 dims, the model gives 384"):
        adapted(model, narrow, portable=portable)


def test_the_model_given_stays_as_it_is_and_hands_on_its_settings(
    model: SentenceTransformer, plain: npt.NDArray[np.float32], adaptors: dict[str, Adaptor], tmp_path: Path
) -> None:
    given = copy.copy(model)
    given.prompts = {"query": "find: ", "document": ""}
    given.default_prompt_name = "query"
    given.similarity_fn_name = "dot"
    given.truncate_dim = PREFIX
    result = adapted(given, adaptors["pca"])
    result.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True, local_files_only=True)
    for one in (result, again):
        assert one.prompts == given.prompts
        assert one.default_prompt_name == "query"
        assert one.similarity_fn_name == "dot"
        assert one.truncate_dim == PREFIX
    assert given.truncate_dim == PREFIX
    assert len(given) == len(model) == len(result) - 1
    prompted = adaptors["pca"].transform(model.encode([f"find: {text}" for text in TEXTS]))[:, :PREFIX]
    np.testing.assert_allclose(again.encode(TEXTS), prompted, atol=1e-5)
    np.testing.assert_array_equal(model.encode(TEXTS), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_half_precision_leaves_the_adaptor_whole(
    kind: Any, dtype: Any, model: SentenceTransformer, adaptors: dict[str, Adaptor], tmp_path: Path
) -> None:
    half = copy.deepcopy(model).to(dtype)
    embeddings = half.encode(TEXTS, convert_to_tensor=True)
    adaptor = copy.deepcopy(adaptors[kind])
    together = adapted(half, adaptor).to(dtype)
    found = together.encode(TEXTS, convert_to_tensor=True)
    assert found.dtype == embeddings.dtype == dtype
    expected = torch.from_numpy(adaptor.transform(embeddings.float().numpy())).to(dtype)
    torch.testing.assert_close(found, expected)
    together.save(str(tmp_path))
    (folder,) = tmp_path.glob("3_*")
    assert Adaptor.load(folder).checksum == adaptors[kind].checksum


@pytest.mark.parametrize("kind", KINDS)
def test_the_adaptor_moves_and_keeps_its_type(kind: Any, adaptors: dict[str, Adaptor]) -> None:
    moved = copy.deepcopy(adaptors[kind]).to(device="meta", dtype=torch.float16)
    tensors = moved.state_dict().values()
    assert all(tensor.device.type == "meta" and tensor.dtype == torch.float32 for tensor in tensors)
    trainable = {name for name, _ in moved.named_parameters()}
    assert trainable == {name for name, _ in adaptors[kind].named_parameters()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
def test_the_adaptor_goes_to_the_device_with_its_model(
    kind: Any, model: SentenceTransformer, plain: npt.NDArray[np.float32], adaptors: dict[str, Adaptor]
) -> None:
    together = adapted(copy.deepcopy(model), copy.deepcopy(adaptors[kind])).to("cuda")
    assert together[-1].device.type == together.device.type == "cuda"  # type: ignore[comparison-overlap]
    expected = adaptors[kind].transform(plain)
    np.testing.assert_allclose(together.encode(TEXTS), expected, atol=1e-3)
    np.testing.assert_allclose(together.to("cpu").encode(TEXTS), expected, atol=1e-5)


def test_an_index_can_be_built_with_an_adapted_model(
    model: SentenceTransformer, adaptors: dict[str, Adaptor], tmp_path: Path
) -> None:
    together = adapted(model, adaptors["pca"])
    index = FunnelIndex.build(
        DOCUMENTS, tmp_path / "index", encoder=together, adaptor="identity", device="cpu", progress=False
    )
    title = DOCUMENTS[7]["title"]
    assert isinstance(title, str)
    hits = index.search(f"{title} {DOCUMENTS[7]['text']}", k=1)
    assert [hit.id for hit in hits] == ["d7"]
