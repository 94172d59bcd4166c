"""A model read from its folder: the vectors of sentence-transformers, or nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from funnel.encoding import stored
from funnel.encoding.encoders import DEFAULT_ENCODER, ModelEncoder, load_encoder
from funnel.encoding.models import local_folder
from funnel.encoding.packed import PackedModel
from funnel.encoding.stored import read_stored
from funnel.rows import unit_rows

TEXTS = ["", " ", "A Café!", "日本語 テキスト", "\x00 🙂 don't", "x" * 300, "lime [SEP] ##tree", "how? " * 500]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the default model's small files, and of its weights."""
    found = local_folder(DEFAULT_ENCODER)
    if found is None:
        pytest.skip("all-MiniLM-L6-v2 is not on this machine")
    return Path(shutil.copytree(found, tmp_path / "model"))


@pytest.mark.parametrize("task", ["query", "document"])
def test_it_gives_the_vectors_of_sentence_transformers(folder: Path, task: str, monkeypatch: Any) -> None:
    import torch

    monkeypatch.setattr(stored, "fast_dtype", lambda _device: torch.float32)
    _change(folder, "config_sentence_transformers.json", prompts={"query": "search: ", "passage": "title: "})
    found = load_encoder(str(folder), device="cpu")
    assert isinstance(found, ModelEncoder)
    assert isinstance(found._model, PackedModel)
    assert found.dim == 384
    assert found.name == str(folder)
    assert found.reopenable
    exact = load_encoder(str(folder), exact=True, device="cpu")
    encode = "encode_query" if task == "query" else "encode"
    np.testing.assert_allclose(getattr(found, encode)(TEXTS), getattr(exact, encode)(TEXTS), atol=1e-5)


def test_half_precision_keeps_the_cosine_that_is_promised(folder: Path) -> None:
    found, exact = load_encoder(str(folder), device="cpu"), load_encoder(str(folder), exact=True, device="cpu")
    assert np.einsum("ij,ij->i", found.encode(TEXTS), unit_rows(exact.encode(TEXTS), 0, "exact")).min() >= 0.998
    assert found.encode_query([]).shape == (0, 384)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"model_type": "roberta"}),
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"auto_map": {"AutoModel": "own.Model"}}),
        ("sentence_bert_config.json", {"max_seq_length": None}),
        ("sentence_bert_config.json", {"max_seq_length": 1024}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("sentence_bert_config.json", {"something_new": 1}),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}),
        ("1_Pooling/config.json", {"include_prompt": False}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("tokenizer_config.json", {"padding_side": "left"}),
        ("tokenizer_config.json", {"tokenizer_class": "Own"}),
        ("config_sentence_transformers.json", {"truncate_dim": 8}),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}),
    ],
)
def test_folders_that_say_anything_else_are_left_alone(folder: Path, file: str, change: dict[str, Any]) -> None:
    assert read_stored(folder) is not None
    _change(folder, file, **change)
    assert read_stored(folder) is None


def test_missing_and_damaged_files_are_left_to_sentence_transformers(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not weights")
    assert read_stored(folder) is None
    (folder / "modules.json").write_text(json.dumps([]))
    assert read_stored(folder) is None


def _change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
