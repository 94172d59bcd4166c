"""BERT on the CPU without padding: texts laid end to end, so that the large products are of a few fixed shapes.

Only attention looks at texts one by one, and texts of equal length are taken together there: no mask, no padded
token. What is computed is what `transformers`' BertModel and sentence-transformers' pooling compute.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from indexes.forks import free_in_children

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


__all__ = ["BucketedModel", "PackedBert", "PackedModel", "batch_rows", "bucket_length", "fast_dtype"]

WINDOW_TEXTS = 4096  # sorted together: long enough that batches fill, short enough to hold
TOKENIZE_TEXTS = 256  # texts of like length in one tokeniser call
# (up to this many tokens, lengths are rounded up to a multiple of): few kernels, little padding.
LENGTH_STEPS = ((64, 8), (128, 16), (256, 32))
LONG_BATCH_STEP = 64
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
    step = next((step for up_to, step in LENGTH_STEPS if tokens <= up_to), LONG_BATCH_STEP)
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


# Attention scores held at once: 0.8 MB in bfloat16, which stays in a core's cache (51 long abstracts a second; 35 to 41
# for whole batches, 48 for four times as many).
SCORES_AT_A_TIME = 400_000
BATCH_TOKENS = 2048  # measured (MiniLM, bfloat16, 2 cores)
# Tokens of a batch are rounded up to a multiple of the second, up to so many: few shapes, little waste.
STEPS = ((128, 8), (BATCH_TOKENS, 64))
LONG_STEP = 512
KINDS = ("weight", "bias")

Tokenize = Callable[[list[str], str | None, str], Mapping[str, Any]]
"""Texts, prompt and task to tensors input_ids, attention_mask and maybe token_type_ids, int64 [rows, tokens]."""


class PackedModel:
    """A plain BERT and its tokeniser; on the CPU. May be called from several threads.

    tokenize: texts, prompt and task to padded token ids. cls: pool by the first token, not by the mean. prompts: its
    own, by name.
    """

    def __init__(self, bert: "PackedBert", tokenize: Tokenize, cls: bool, prompts: Mapping[str, str | None]) -> None:
        self.dim = bert.width
        self.prompts = prompts
        self._bert = bert
        self._tokenize = tokenize
        self._cls = cls

    def encode(
        self, texts: Sequence[str], prompt: str | None, task: str, advance: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """Encode texts: see `BucketedModel.encode`."""
        if not len(texts):
            raise ValueError("no texts to encode")
        result: NDArray[np.float32] | None = None
        for start in range(0, len(texts), WINDOW_TEXTS):
            window = texts[start : start + WINDOW_TEXTS]
            for numbers, groups in _batches(window, prompt, task, self._tokenize):
                vectors = self._forward(groups)
                if result is None:
                    result = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
                result[start + numbers] = vectors
                advance(len(numbers))
        assert result is not None
        return result

    def _forward(self, groups: "list[_Group]") -> NDArray[np.float32]:
        with torch.inference_mode():
            return torch.cat([self._pooled(hidden) for hidden in self._bert(groups)]).numpy()

    def _pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0].float() if self._cls else hidden.mean(dim=1, dtype=torch.float32)


class _Group:
    """Texts of one length: token ids and types, int64 [rows, length]."""

    __slots__ = ("ids", "length", "rows", "tokens", "types")

    def __init__(self, ids: torch.Tensor, types: torch.Tensor) -> None:
        self.ids, self.types = ids, types
        self.rows, self.length = ids.shape
        self.tokens = self.rows * self.length


class PackedBert:
    """The layers of a BertModel over packed rows of tokens.

    state: the weights, by the names of BertModel; copied in `dtype`, laid out for oneDNN. heads: of attention. eps: of
    the norms. Raises KeyError where a weight is missing.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], heads: int, eps: float, dtype: torch.dtype) -> None:
        self._words, self._positions, self._types = (
            state[f"embeddings.{name}_embeddings.weight"].to(dtype) for name in ("word", "position", "token_type")
        )
        self._norm = _Norm(state, "embeddings.LayerNorm", eps, dtype)
        count = len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")})
        self._layers = [_Layer(state, f"encoder.layer.{number}", heads, eps, dtype) for number in range(count)]

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self._words.shape[1]

    def __call__(self, groups: list[_Group]) -> list[torch.Tensor]:
        """The last hidden states of each group: [rows, length, hidden]."""
        used = sum(group.tokens for group in groups)
        parts = [self._embedded(group) for group in groups]
        width = self.width
        hidden = self._norm(torch.cat([*parts, self._words.new_zeros(_rounded(used) - used, width)]))
        for layer in self._layers:
            hidden = layer(hidden, groups)
        split = torch.split(hidden[:used], [group.tokens for group in groups])
        return [part.view(group.rows, group.length, width) for part, group in zip(split, groups, strict=True)]

    def _embedded(self, group: _Group) -> torch.Tensor:
        summed = functional.embedding(group.ids, self._words) + functional.embedding(group.types, self._types)
        return (summed + self._positions[: group.length]).view(group.tokens, -1)


class _Layer:
    """One layer: attention and feed-forward, each followed by the residual sum and a norm (post-norm)."""

    def __init__(
        self, state: Mapping[str, torch.Tensor], name: str, heads: int, eps: float, dtype: torch.dtype
    ) -> None:
        self._heads = heads
        own = f"{name}.attention.self"
        parts = {kind: [state[f"{own}.{part}.{kind}"] for part in ("query", "key", "value")] for kind in KINDS}
        # The scale of the scores goes into the weights of the queries: one pass less over the scores.
        scale = (parts["bias"][0].shape[0] // heads) ** -0.5
        weight, bias = (torch.cat([parts[kind][0] * scale, *parts[kind][1:]]) for kind in KINDS)
        self._qkv = _Linear(weight, bias, dtype)
        self._out, self._up, self._down = (
            _Linear(state[f"{name}.{part}.dense.weight"], state[f"{name}.{part}.dense.bias"], dtype)
            for part in ("attention.output", "intermediate", "output")
        )
        self._attention_norm = _Norm(state, f"{name}.attention.output.LayerNorm", eps, dtype)
        self._output_norm = _Norm(state, f"{name}.output.LayerNorm", eps, dtype)

    def __call__(self, hidden: torch.Tensor, groups: list[_Group]) -> torch.Tensor:
        qkv = self._qkv(hidden)
        context = torch.zeros_like(hidden)
        start = 0
        for group in groups:
            end = start + group.tokens
            self._attend(qkv[start:end], group, context[start:end])
            start = end
        hidden = self._attention_norm(self._out.plus(context, hidden))
        return self._output_norm(self._down.plus(self._up.gelu(hidden), hidden))

    def _attend(self, qkv: torch.Tensor, group: _Group, out: torch.Tensor) -> None:
        """Softmax attention of a group. bmm is faster here than torch's fused kernel, which wants longer texts."""
        rows, length, heads = group.rows, group.length, self._heads
        projected, context = qkv.view(rows, length, 3, heads, -1), out.view(rows, length, heads, -1)
        at_a_time = max(1, SCORES_AT_A_TIME // (heads * length * length))
        for start in range(0, rows, at_a_time):
            part = projected[start : start + at_a_time]
            queries, keys, values = part.permute(2, 0, 3, 1, 4).reshape(3, len(part) * heads, length, -1)
            weights = torch.softmax(torch.bmm(queries, keys.transpose(1, 2)), dim=-1)
            found = torch.bmm(weights, values).view(len(part), heads, length, -1)
            context[start : start + at_a_time].copy_(found.transpose(1, 2))


class _Norm:
    def __init__(self, state: Mapping[str, torch.Tensor], name: str, eps: float, dtype: torch.dtype) -> None:
        self._weight, self._bias = (state[f"{name}.{kind}"].to(dtype) for kind in KINDS)
        self._eps = eps

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(hidden, self._weight.shape, self._weight, self._bias, self._eps)


class _Linear:
    """x W' + b, alone, with GELU or with a sum after it; weights laid out once where torch offers it.

    The operations are those that torch's own compiler emits for linear layers on the CPU (inductor, mkldnn fusion).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.detach().to(dtype).contiguous(), bias.detach().to(dtype)
        self._packed = _has_packed_linear(dtype)
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, BATCH_TOKENS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(x, "none", "")

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU with the error function, not its approximation by tanh."""
        return self._run(x, "gelu", "none") if self._packed else functional.gelu(self._run(x, "none", ""))

    def plus(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        if self._packed:
            summed: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                x, residual, self._weight, self._bias, "add"
            )
            return summed
        return self._run(x, "none", "") + residual

    def _run(self, x: torch.Tensor, activation: str, algorithm: str) -> torch.Tensor:
        if not self._packed:
            return functional.linear(x, self._weight, self._bias)
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, activation, [], algorithm
        )
        return result


def _has_packed_linear(dtype: torch.dtype) -> bool:
    """Whether this torch runs its packed linear operations for the type; they are not of its public interface."""
    if not torch.backends.mkldnn.is_available() or dtype != torch.bfloat16:  # type: ignore[no-untyped-call]
        return False
    try:
        weight, x = torch.ones(8, 8, dtype=dtype), torch.ones(8, 8, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        torch.ops.mkldnn._linear_pointwise(x, packed, weight[0], "gelu", [], "none")
        torch.ops.mkldnn._linear_pointwise.binary(x, x, packed, weight[0], "add")
    except (AttributeError, RuntimeError):
        return False
    return True


def _batches(
    texts: Sequence[str], prompt: str | None, task: str, tokenize: Tokenize
) -> Iterator[tuple[NDArray[np.intp], list[_Group]]]:
    """Numbers of texts, and their tokens in groups of one length, about BATCH_TOKENS in all."""
    order, lengths, ids, types = _tokenized(texts, prompt, task, tokenize)
    firsts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    by_length = np.argsort(lengths, kind="stable")
    for rows in _cut(by_length, lengths):
        steps = np.flatnonzero(np.diff(lengths[rows])) + 1
        groups = []
        for start, end in pairwise([0, *steps.tolist(), len(rows)]):
            at = firsts[rows[start:end], None] + np.arange(lengths[rows[start]])
            index = torch.from_numpy(at)
            groups.append(_Group(ids[index], types[index]))
        yield order[rows], groups


def _tokenized(
    texts: Sequence[str], prompt: str | None, task: str, tokenize: Tokenize
) -> tuple[NDArray[np.intp], NDArray[np.intp], torch.Tensor, torch.Tensor]:
    """Numbers of texts as tokenised, tokens of each, and all ids and types end to end."""
    chunks = list(chunks_of_like_length(texts))
    lengths, ids, types = [], [], []
    for numbers in chunks:
        features = tokenize([texts[number] for number in numbers], prompt, task)
        tokens = features["attention_mask"].bool()
        lengths.append(tokens.sum(dim=1).numpy())
        ids.append(features["input_ids"][tokens])
        types.append(features["token_type_ids"][tokens] if "token_type_ids" in features else torch.zeros_like(ids[-1]))
    return np.concatenate(chunks), np.concatenate(lengths), torch.cat(ids), torch.cat(types)


def _cut(by_length: NDArray[np.intp], lengths: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Rows in order of length, cut where a batch is full; a text longer than a batch is a batch."""
    ends = np.cumsum(lengths[by_length])
    start = 0
    while start < len(by_length):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BATCH_TOKENS, side="right")))
        yield by_length[start:stop]
        start = stop


def _rounded(tokens: int) -> int:
    step = next((step for up_to, step in STEPS if tokens <= up_to), LONG_STEP)
    return -(-tokens // step) * step
