"""The encoder of a build, and that of an opened index, which is loaded when the first text comes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from funnel.encoding.encoders import (
    AS_THE_MODEL_SAYS,
    Encoder,
    EncoderSource,
    Numbers,
    checked,
    kept,
    load_encoder,
)
from funnel.encoding.models import canonical_name, local_folder
from funnel.encoding.packed import PackedBert, PackedModel, fast_dtype
from funnel.encoding.prompts import TextOptions, TextSettings
from funnel.errors import EncoderError
from indexes.forks import free_in_children

__all__ = ["QueryEncoder", "stored_encoder"]

MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
NOT_PLAIN = ("is_decoder", "add_cross_attention", "quantization_config", "auto_map")
LIMIT_KEYS = {"max_seq_length", "do_lower_case"}
# Defaults of BertTokenizer: what its settings may leave out.
NORMALIZER = {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
SETTING_OF = {"lowercase": "do_lower_case", "handle_chinese_chars": "tokenize_chinese_chars"}
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, ImportError)


class StoredEncoder:
    """An encoder around a packed model that was read from its folder: see `Encoder`."""

    reopenable = True

    def __init__(self, name: str, model: PackedModel, dim: int, options: TextOptions) -> None:
        self.name = name
        self.options = options
        self._model = model
        self._dim = dim

    @property
    def dim(self) -> int:
        """The width d of the vectors."""
        return self.options.width(self._dim, self.name)

    def encode(self, texts: Sequence[str], progress: bool = False, numbers: Numbers = 0) -> NDArray[np.float32]:
        """Encode documents: see `Encoder.encode`."""
        del progress  # as it is for queries, there are few
        return self._run(texts, "document", self.options.document_prompt, numbers)

    def encode_query(self, texts: Sequence[str], numbers: Numbers = 0) -> NDArray[np.float32]:
        """Encode queries: see `Encoder.encode_query`."""
        return self._run(texts, "query", self.options.query_prompt, numbers)

    def _run(self, texts: Sequence[str], task: str, prompt: str | None, numbers: Numbers) -> NDArray[np.float32]:
        if not len(texts):
            return np.empty((0, self.dim), dtype=np.float32)
        values = self._model.encode(texts, prompt, task, lambda _: None)
        return kept(checked(values, len(texts), self._dim, self.name), self.options, self.name, numbers)


def stored_encoder(
    name: str, *, options: TextOptions = AS_THE_MODEL_SAYS, of_index: bool = False
) -> StoredEncoder | None:
    """The encoder of this name on the CPU, or None where its folder is not here or is not of the plain kind.

    options: see `load_encoder`. of_index: see `load_model`.
    """
    folder = local_folder(name, of_index=of_index)
    if folder is None:
        return None
    try:
        return _read(name if of_index else canonical_name(name), folder, options)
    except READ_ERRORS:  # sentence-transformers then says what is wrong
        return None


def _read(name: str, folder: Path, options: TextOptions) -> StoredEncoder | None:
    modules = _json(folder / "modules.json")
    if [module["type"].rsplit(".", 1)[-1] for module in modules] not in MODULES:
        return None
    words = folder / modules[0]["path"]
    config, settings = _json(words / "config.json"), _json(folder / "config_sentence_transformers.json")
    pooling, limits = _json(folder / modules[1]["path"] / "config.json"), _json(words / "sentence_bert_config.json")
    cls = _pools_by_first_token(pooling)
    limit = limits.get("max_seq_length")
    known = _is_plain(config) and set(limits) <= LIMIT_KEYS and not limits.get("do_lower_case")
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
    found = options.resolved(TextOptions.of_model(prompts), prompts, name)
    return StoredEncoder(name, PackedModel(bert, tokenize, cls), bert.width, found)


def _is_plain(config: Mapping[str, Any]) -> bool:
    return (
        config["model_type"] == "bert"
        and config["architectures"] == ["BertModel"]
        and config["hidden_act"] == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not any(config.get(name) for name in NOT_PLAIN)
    )


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


def _tokenizer(folder: Path, limit: int) -> _Tokenizer | None:
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
    return _Tokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), limit) if plain else None


class _Tokenizer:
    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer = tokenizer
        # As transformers does: the longest first, from the right; padded to the longest of the call.
        tokenizer.enable_truncation(limit)
        tokenizer.enable_padding()

    def __call__(self, texts: list[str], prompt: str | None, _task: str) -> dict[str, torch.Tensor]:
        found = self._tokenizer.encode_batch([f"{prompt or ''}{text}" for text in texts])
        kinds = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        return {name: torch.tensor([getattr(one, kind) for one in found]) for name, kind in kinds.items()}


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class QueryEncoder:
    """Encodes query texts for one index.

    An index names a model on the hub, and nothing else: a folder is read only where the caller gives it, and never one
    inside the index.

    given: the encoder the user gave, or None. settings: of the manifest; they name the encoder of the build. dim: the
    width of the index. device: where a model is loaded. path: of the index. allow_download: whether a model that the
    index names may be fetched.
    """

    def __init__(
        self,
        given: EncoderSource | Encoder | None,
        settings: TextSettings,
        dim: int,
        device: str,
        path: Path | None = None,
        allow_download: bool = False,
    ):
        # A relative folder is that of the working folder now.
        self._given = canonical_name(str(given)) if isinstance(given, str | Path) else given
        self._loaded: Encoder | None = None
        self._settings = settings
        self._options = TextOptions.of_manifest(settings)
        self._dim = dim
        self._device = device
        self._path = path
        self._allow_download = allow_download
        self._refused: str | None = None
        self._lock = free_in_children(Lock())

    @property
    def given_name(self) -> str | None:
        """The name or folder by which the caller's encoder is loaded; None where there is none."""
        if isinstance(self._given, Encoder):
            return self._given.name if self._given.reopenable else None
        return self._given if isinstance(self._given, str) else None

    def then(self, settings: TextSettings, dim: int) -> QueryEncoder:
        """That of an index that was built anew in the same folder."""
        made = QueryEncoder(self._given, settings, dim, self._device, self._path, self._allow_download)
        if self._given is not None and settings.encoder != self._settings.encoder:
            made._refused = (
                f"the index was built again, with the encoder {settings.encoder} instead of "
                f"{self._settings.encoder}; open it again, with encoder= where it cannot be loaded by name"
            )
        return made

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors [n, d]. Raises EncoderError."""
        return self.load().encode_query(texts)

    def load(self) -> Encoder:
        """The encoder itself, loaded once however many threads wait for it.

        Raises EncoderError where there is none, or it is of another width.
        """
        if self._refused is not None:
            raise EncoderError(self._refused)
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = self._made()
        return self._loaded

    def _made(self) -> Encoder:
        if self._given is None:
            loaded = self._named(self._name_of_index(), of_index=True)
        elif isinstance(self._given, str):
            self._refuse_inside(self._given)
            loaded = self._named(self._given, of_index=False)
        else:
            loaded = load_encoder(self._given, options=self._options)
        if loaded.dim != self._dim:
            raise EncoderError(f"the encoder gives {loaded.dim} dims, the index holds {self._dim}")
        return loaded

    def _name_of_index(self) -> str:
        name = self._settings.encoder
        if name is None:
            words = "; hybrid=1 looks for its words alone" if self._settings.documents else ""
            raise EncoderError(
                "this index was built from vectors, so it cannot read texts; search with a vector, or open it "
                f"with encoder={words}"
            )
        if not self._settings.encoder_reopenable:
            raise EncoderError(
                f"this index was built with {name}, which cannot be loaded by name; open it with encoder="
            )
        return name

    def _refuse_inside(self, name: str) -> None:
        if self._path is not None and Path(name).is_dir() and Path(name).is_relative_to(self._path.resolve()):
            raise EncoderError(f"the encoder {name} lies inside of the index {self._path}; give one from elsewhere")

    def _named(self, name: str, of_index: bool) -> Encoder:
        exact = self._settings.exact_encoding
        if not exact and self._device == "cpu":
            stored = stored_encoder(name, options=self._options, of_index=of_index)
            if stored is not None:
                return stored
        fetch = self._allow_download or not of_index
        return load_encoder(
            name, exact=exact, device=self._device, options=self._options, of_index=of_index, fetch=fetch
        )
