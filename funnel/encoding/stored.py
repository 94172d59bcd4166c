"""A plain BERT read from its folder, without transformers, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from funnel.encoding.packed import PackedBert, PackedModel, Tokenize, fast_dtype
from funnel.encoding.prompts import TextOptions

__all__ = ["read_stored"]

MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
NOT_PLAIN = ("is_decoder", "add_cross_attention", "quantization_config", "auto_map")
LIMIT_KEYS = {"max_seq_length", "do_lower_case"}
# Defaults of BertTokenizer: what its settings may leave out.
NORMALIZER = {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
SETTING_OF = {"lowercase": "do_lower_case", "handle_chinese_chars": "tokenize_chinese_chars"}
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ImportError)


def read_stored(folder: Path) -> PackedModel | None:
    """The model in a folder, for the CPU; None where it is not of the plain kind, or says what is not known here."""
    try:
        return _read(folder)
    except READ_ERRORS:  # sentence-transformers then says what is wrong
        return None


def _read(folder: Path) -> PackedModel | None:
    modules = _json(folder / "modules.json")
    if [module["type"].rsplit(".", 1)[-1] for module in modules] not in MODULES:
        return None
    words = folder / modules[0]["path"]
    config, settings = _json(words / "config.json"), _json(folder / "config_sentence_transformers.json")
    pooling, limits = _json(folder / modules[1]["path"] / "config.json"), _json(words / "sentence_bert_config.json")
    cls = _pools_by_first_token(pooling)
    limit = limits.get("max_seq_length")
    plain = (
        config["model_type"] == "bert"
        and config["architectures"] == ["BertModel"]
        and config["hidden_act"] == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not any(config.get(name) for name in NOT_PLAIN)
    )
    known = plain and set(limits) <= LIMIT_KEYS and not limits.get("do_lower_case")
    if not known or cls is None or not isinstance(limit, int) or limit > config["max_position_embeddings"]:
        return None
    if settings.get("truncate_dim") is not None or settings.get("model_type", "SentenceTransformer") != (
        "SentenceTransformer"
    ):
        return None
    tokenize = _tokenizer(words, limit)
    state = load_file(words / "model.safetensors")
    if tokenize is None or any(value.dtype != torch.float32 for value in state.values() if value.is_floating_point()):
        return None
    dtype = fast_dtype(torch.device("cpu"))
    bert = PackedBert(state, config["num_attention_heads"], config.get("layer_norm_eps", 1e-12), dtype)
    prompts = settings.get("prompts") or {}
    TextOptions.of_model(prompts)  # raises for what are no prompts
    return PackedModel(bert, tokenize, cls, prompts)


def _pools_by_first_token(pooling: Mapping[str, Any]) -> bool | None:
    """Whether pooling takes the first token (else the mean); None where it does neither, or leaves prompts out."""
    flags = {name for name, value in pooling.items() if name.startswith("pooling_mode_") and value}
    unknown = {name for name in pooling if not name.startswith("pooling_mode_")} - POOLING_KEYS
    mode = pooling.get("pooling_mode")
    chosen = flags or ({f"pooling_mode_{mode}"} if isinstance(mode, str) else set())
    if unknown or not pooling.get("include_prompt", True) or (flags and mode is not None):
        return None
    by_name = {"pooling_mode_cls_token": True, "pooling_mode_cls": True}
    by_name |= {"pooling_mode_mean_tokens": False, "pooling_mode_mean": False}
    return by_name.get(chosen.pop()) if len(chosen) == 1 else None


def _tokenizer(folder: Path, limit: int) -> Tokenize | None:
    """The tokeniser of tokenizer.json, where its settings beside it say the same."""
    from tokenizers import Tokenizer

    written, settings = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    normalizer = written["normalizer"]
    plain = (
        settings.get("tokenizer_class") in ("BertTokenizer", "BertTokenizerFast")
        and (normalizer["type"], written["pre_tokenizer"]["type"]) == ("BertNormalizer", "BertPreTokenizer")
        and written["model"]["type"] == "WordPiece"
        and settings.get("padding_side", "right") == settings.get("truncation_side", "right") == "right"
    )
    for name, default in NORMALIZER.items():
        plain &= normalizer[name] == settings.get(SETTING_OF.get(name, name), default)
    if not plain:
        return None
    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # As transformers does: the longest first, from the right; padded to the longest of the call.
    tokenizer.enable_truncation(limit)
    tokenizer.enable_padding()
    kinds = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

    def tokenize(texts: list[str], prompt: str | None) -> dict[str, torch.Tensor]:
        found = tokenizer.encode_batch([f"{prompt or ''}{text}" for text in texts])
        return {name: torch.tensor([getattr(one, kind) for one in found]) for name, kind in kinds.items()}

    return tokenize


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
