"""Encoding in batches of few, fixed shapes, which half-precision kernels need to be fast.

Texts are tokenised, sorted by length inside windows, put in buckets of rounded-up token lengths and run in
batches whose size depends on the bucket alone. On the CPU, bfloat16 costs up to four times as much when
shapes vary from batch to batch, because kernels are prepared for each shape.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from indexes.forks import free_in_children

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["BucketedModel", "Tokenizer", "batch_rows", "bucket_length", "chunks_of_like_length", "fast_dtype"]

WINDOW_TEXTS = 4096  # sorted together: long enough that batches fill, short enough to hold
TOKENIZE_TEXTS = 256  # texts of like length in one tokeniser call
# (up to this many tokens, lengths are rounded up to a multiple of): few kernels, little padding.
LENGTH_STEPS = ((64, 8), (128, 16), (256, 32))
LONG_STEP = 64
CPU_BATCH_TOKENS = 2048  # measured (MiniLM, bfloat16): as good as any from 1024 to 8192; 16384 costs a third more
CUDA_BATCH_TOKENS = 65536  # 512 texts of 128 tokens; not measured
FEATURE_NAMES = frozenset({"input_ids", "attention_mask", "token_type_ids"})

Features = dict[str, Any]
"""What a model's tokeniser gives and its modules take: tensors [rows, tokens], and settings."""


def fast_dtype(device: torch.device) -> torch.dtype:
    """float16 on CUDA, bfloat16 on a CPU with instructions for it, else float32."""
    if device.type == "cuda":
        return torch.float16
    if device.type == "cpu" and _cpu_has_bfloat16():
        return torch.bfloat16
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    # Emulated bfloat16 is slower than float32, so only native instructions count.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe is not None and probe())


def bucket_length(tokens: int, limit: int | None) -> int:
    """The padded length of a text of so many tokens; never above the model's limit."""
    step = next((step for up_to, step in LENGTH_STEPS if tokens <= up_to), LONG_STEP)
    rounded = -(-tokens // step) * step
    return max(tokens, rounded if limit is None else min(rounded, limit))


def batch_rows(length: int, batch_tokens: int) -> int:
    """Rows of a full batch at this length: a power of two near `batch_tokens` in all."""
    return int(2 ** np.floor(np.log2(max(1, batch_tokens // length))))


class Tokenizer:
    """A model's own tokeniser, prompts and `max_seq_length`; may be called from several threads."""

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model
        # A fast tokeniser keeps its padding settings inside, and fails when two threads borrow it.
        self._lock = free_in_children(threading.Lock())

    def __call__(self, texts: list[str], prompt: str | None, task: str) -> Features:
        """Texts as a model's modules take them, padded on the right to the longest."""
        with self._lock:
            return dict(self._model.preprocess(texts, prompt=prompt, task=task))


class BucketedModel:
    """Runs a sentence-transformers model over batches of fixed shape.

    The model's own tokeniser, modules, prompts and `max_seq_length` are used. It may be called from
    several threads.
    """

    def __init__(self, model: "SentenceTransformer") -> None:
        self._model = model.eval()
        self._tokenizer = model.tokenizer
        self._limit: int | None = model.max_seq_length
        self._device = torch.device(model.device)
        self._batch_tokens = CUDA_BATCH_TOKENS if self._device.type == "cuda" else CPU_BATCH_TOKENS
        self._tokenize = Tokenizer(model)

    @staticmethod
    def supports(model: "SentenceTransformer") -> bool:
        """Whether the model takes padded rows of token ids and gives one embedding a row."""
        tokenizer = getattr(model, "tokenizer", None)
        if getattr(tokenizer, "padding_side", None) != "right" or not hasattr(model, "preprocess"):
            return False
        if getattr(tokenizer, "pad_token_id", None) is None:
            return False
        features = model.preprocess(["a", "a longer text"])
        tensors = {name for name, value in features.items() if isinstance(value, torch.Tensor)}
        shapes = {tuple(features[name].shape) for name in tensors}
        return {"input_ids", "attention_mask"} <= tensors <= FEATURE_NAMES and len(shapes) == 1

    def encode(
        self, texts: Sequence[str], prompt: str | None, task: str, advance: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """Encode texts.

        Args:
            texts: At least one.
            prompt: Put before every text, or None.
            task: "query" or "document", for models that tell them apart.
            advance: Called with the number of texts done, batch by batch.

        Returns:
            float32 [n, d] as the model gives them, in the order of the texts.
        """
        result: NDArray[np.float32] | None = None
        for numbers, features in self._batches(texts, prompt, task):
            vectors = self._forward(features, task)[: len(numbers)]
            if result is None:
                result = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
            result[numbers] = vectors
            advance(len(numbers))
        if result is None:
            raise ValueError("no texts to encode")
        return result

    def _batches(
        self, texts: Sequence[str], prompt: str | None, task: str
    ) -> Iterator[tuple[NDArray[np.intp], Features]]:
        buckets: dict[int, _Bucket] = {}
        for numbers in chunks_of_like_length(texts):
            features = self._tokenize([texts[number] for number in numbers], prompt, task)
            tokens = features["attention_mask"].sum(dim=1).numpy()
            lengths = np.array([bucket_length(int(count), self._limit) for count in tokens])
            for length in np.unique(lengths).tolist():
                rows = np.flatnonzero(lengths == length)
                if length not in buckets:
                    buckets[length] = _Bucket(batch_rows(length, self._batch_tokens))
                buckets[length].add(numbers[rows], self._rows(features, rows, length))
                yield from buckets[length].full_batches()
        for length in sorted(buckets):
            yield from buckets[length].last_batch()

    def _rows(self, features: Features, rows: NDArray[np.intp], length: int) -> Features:
        """Some rows of tokenised texts, cut or padded to a length."""
        padding = {
            "input_ids": self._tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": getattr(self._tokenizer, "pad_token_type_id", 0),
        }
        picked = dict(features)
        for name, value in padding.items():
            if name in features:
                tensor = features[name][torch.from_numpy(rows), :length]
                missing = length - tensor.shape[1]
                picked[name] = torch.nn.functional.pad(tensor, (0, missing), value=value)
        return picked

    def _forward(self, features: Features, task: str) -> NDArray[np.float32]:
        with torch.inference_mode():
            moved = {
                name: value.to(self._device) if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            }
            vectors: NDArray[np.float32] = self._model(moved, task=task)["sentence_embedding"].float().cpu().numpy()
        return vectors if self._model.truncate_dim is None else vectors[:, : self._model.truncate_dim]


class _Bucket:
    """Tokenised texts of one padded length that wait for their batch to fill."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._numbers = np.empty(0, dtype=np.intp)
        self._features: Features = {}

    def add(self, numbers: NDArray[np.intp], features: Features) -> None:
        self._numbers = np.concatenate([self._numbers, numbers])
        waiting = self._features
        self._features = {
            name: torch.cat([waiting[name], value]) if name in waiting and isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }

    def full_batches(self) -> Iterator[tuple[NDArray[np.intp], Features]]:
        while len(self._numbers) >= self._rows:
            yield self._take(self._rows)

    def last_batch(self) -> Iterator[tuple[NDArray[np.intp], Features]]:
        """What is left, its first row repeated until the row count is a power of two: few shapes in all."""
        count = len(self._numbers)
        if count == 0:
            return
        numbers, features = self._take(count)
        missing = (1 << (count - 1).bit_length()) - count
        yield (
            numbers,
            {
                name: torch.cat([value, value[:1].expand(missing, -1)]) if isinstance(value, torch.Tensor) else value
                for name, value in features.items()
            },
        )

    def _take(self, count: int) -> tuple[NDArray[np.intp], Features]:
        numbers, self._numbers = self._numbers[:count], self._numbers[count:]
        taken, left = {}, {}
        for name, value in self._features.items():
            is_tensor = isinstance(value, torch.Tensor)
            taken[name], left[name] = (value[:count], value[count:]) if is_tensor else (value, value)
        self._features = left
        return numbers, taken


def chunks_of_like_length(texts: Sequence[str]) -> Iterator[NDArray[np.intp]]:
    """Numbers of texts, sorted by characters inside windows, in chunks for the tokeniser."""
    for start in range(0, len(texts), WINDOW_TEXTS):
        characters = np.array([len(text) for text in texts[start : start + WINDOW_TEXTS]])
        numbers = start + np.argsort(characters, kind="stable")
        for first in range(0, len(numbers), TOKENIZE_TEXTS):
            yield numbers[first : first + TOKENIZE_TEXTS]
