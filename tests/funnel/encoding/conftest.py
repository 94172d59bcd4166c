"""A sentence-transformers model small enough to be made for each test run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from funnel.encoding.models import _quiet, load_model

WORDS = ("the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "query", "document", ":")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WIDTH = 16
MAX_TOKENS = 40


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT of random weights, 16 wide, with prompts and a limit of 40 tokens."""
    with _quiet():
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer  # type: ignore[import-not-found]
        from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(SPECIAL + WORDS))
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder / "bert")
    words = Transformer(str(folder / "bert"), max_seq_length=MAX_TOKENS)
    model = SentenceTransformer(
        modules=[words, Pooling(WIDTH)],
        prompts={"query": "query : ", "document": "document : "},
        device="cpu",
    )
    model.save(str(folder / "model"), create_model_card=False)
    return folder / "model"


@pytest.fixture
def tiny_model(tiny_folder: Path) -> Any:
    """A fresh copy of the small model, in float32 on the CPU."""
    return load_model(str(tiny_folder), "cpu")
