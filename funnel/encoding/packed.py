"""BERT on the CPU without padding: texts laid end to end, so that the large products are of a few fixed shapes.

Only attention looks at texts one by one, and texts of equal length are taken together there: no mask, no padded
token. What is computed is what `transformers`' BertModel and sentence-transformers' pooling compute.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

__all__ = ["PackedBert", "PackedModel", "Tokenize", "fast_dtype"]

WINDOW_TEXTS = 4096  # sorted together: long enough that batches fill, short enough to hold
TOKENIZE_TEXTS = 256  # texts of like length in one tokeniser call
# Attention scores held at once: 0.8 MB in bfloat16, which stays in a core's cache (51 long abstracts a second; 35 to 41
# for whole batches, 48 for four times as many).
SCORES_AT_A_TIME = 400_000
BATCH_TOKENS = 2048  # measured (MiniLM, bfloat16, 2 cores)
# Tokens of a batch are rounded up to a multiple of the second, up to so many: few shapes, little waste.
STEPS = ((128, 8), (BATCH_TOKENS, 64))
LONG_STEP = 512
KINDS = ("weight", "bias")

Tokenize = Callable[[list[str], str | None], Mapping[str, Any]]
"""Texts and prompt to tensors input_ids, attention_mask and maybe token_type_ids, int64 [rows, tokens]."""
Group = tuple[torch.Tensor, torch.Tensor]
"""Texts of one length: token ids and types, int64 [rows, length]."""


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


class PackedModel:
    """A plain BERT and its tokeniser; on the CPU. May be called from several threads.

    tokenize: texts and prompt to padded token ids. cls: pool by the first token, not by the mean. prompts: its own, by
    name.
    """

    def __init__(self, bert: "PackedBert", tokenize: Tokenize, cls: bool, prompts: Mapping[str, str | None]) -> None:
        self.prompts = prompts
        self._bert = bert
        self._tokenize = tokenize
        self._cls = cls

    def get_embedding_dimension(self) -> int:
        """The width of the vectors."""
        return self._bert.width

    def encode(self, texts: Sequence[str], prompt: str | None, advance: Callable[[int], object]) -> NDArray[np.float32]:
        """Encode texts: float32 [n, d] as the model gives them, in the order of the texts.

        prompt: put before every text. advance: called with the number of texts done, batch by batch.
        """
        result = np.empty((len(texts), self._bert.width), dtype=np.float32)
        for start in range(0, len(texts), WINDOW_TEXTS):
            for numbers, groups in _batches(texts[start : start + WINDOW_TEXTS], prompt, self._tokenize):
                with torch.inference_mode():
                    result[start + numbers] = torch.cat([self._pooled(hidden) for hidden in self._bert(groups)]).numpy()
                advance(len(numbers))
        return result

    def _pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0].float() if self._cls else hidden.mean(dim=1, dtype=torch.float32)


class PackedBert:
    """The layers of a BertModel over packed rows of tokens.

    state: the weights, by the names of BertModel; copied in `dtype`, laid out for oneDNN. heads: of attention. eps: of
    the norms. Raises KeyError where a weight is missing.
    """

    def __init__(self, state: Mapping[str, torch.Tensor], heads: int, eps: float, dtype: torch.dtype) -> None:
        self._words, self._positions, self._types = (
            state[f"embeddings.{name}_embeddings.weight"].to(dtype) for name in ("word", "position", "token_type")
        )
        self._norm = _norm(state, "embeddings.LayerNorm", eps, dtype)
        count = len({name.split(".")[2] for name in state if name.startswith("encoder.layer.")})
        self._layers = [_Layer(state, f"encoder.layer.{number}", heads, eps, dtype) for number in range(count)]

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self._words.shape[1]

    def __call__(self, groups: list[Group]) -> list[torch.Tensor]:
        """The last hidden states of each group: [rows, length, hidden]."""
        parts = [
            (
                functional.embedding(ids, self._words)
                + functional.embedding(types, self._types)
                + self._positions[: ids.shape[1]]
            ).flatten(0, 1)
            for ids, types in groups
        ]
        used = sum(map(len, parts))
        step = next((step for up_to, step in STEPS if used <= up_to), LONG_STEP)
        hidden = self._norm(torch.cat([*parts, self._words.new_zeros(-(-used // step) * step - used, self.width)]))
        shapes = [ids.shape for ids, _ in groups]
        for layer in self._layers:
            hidden = layer(hidden, shapes)
        split = torch.split(hidden[:used], list(map(len, parts)))
        return [part.view(*shape, self.width) for part, shape in zip(split, shapes, strict=True)]


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
        self._attention_norm = _norm(state, f"{name}.attention.output.LayerNorm", eps, dtype)
        self._output_norm = _norm(state, f"{name}.output.LayerNorm", eps, dtype)

    def __call__(self, hidden: torch.Tensor, shapes: list[torch.Size]) -> torch.Tensor:
        qkv = self._qkv(hidden)
        context = torch.zeros_like(hidden)
        start = 0
        for rows, length in shapes:
            end = start + rows * length
            self._attend(qkv[start:end].view(rows, length, -1), context[start:end].view(rows, length, -1))
            start = end
        hidden = self._attention_norm(self._out.plus(context, hidden))
        return self._output_norm(self._down.plus(self._up.gelu(hidden), hidden))

    def _attend(self, qkv: torch.Tensor, out: torch.Tensor) -> None:
        """Softmax attention of a group. bmm is faster here than torch's fused kernel, which wants longer texts."""
        rows, length, heads = *out.shape[:2], self._heads
        projected, context = qkv.view(rows, length, 3, heads, -1), out.view(rows, length, heads, -1)
        at_a_time = max(1, SCORES_AT_A_TIME // (heads * length * length))
        for start in range(0, rows, at_a_time):
            part = projected[start : start + at_a_time]
            queries, keys, values = part.permute(2, 0, 3, 1, 4).reshape(3, len(part) * heads, length, -1)
            weights = torch.softmax(torch.bmm(queries, keys.transpose(1, 2)), dim=-1)
            found = torch.bmm(weights, values).view(len(part), heads, length, -1)
            context[start : start + at_a_time].copy_(found.transpose(1, 2))


def _norm(
    state: Mapping[str, torch.Tensor], name: str, eps: float, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    weight, bias = (state[f"{name}.{kind}"].to(dtype) for kind in KINDS)
    return partial(functional.layer_norm, normalized_shape=weight.shape, weight=weight, bias=bias, eps=eps)


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
    texts: Sequence[str], prompt: str | None, tokenize: Tokenize
) -> Iterator[tuple[NDArray[np.intp], list[Group]]]:
    """Numbers of texts, and their tokens in groups of one length, about BATCH_TOKENS in all."""
    order, lengths, ids, types = _tokenized(texts, prompt, tokenize)
    firsts = np.cumsum(lengths) - lengths
    for rows in _cut(np.argsort(lengths, kind="stable"), lengths):
        groups = []
        for part in np.split(rows, np.flatnonzero(np.diff(lengths[rows])) + 1):
            index = torch.from_numpy(firsts[part, None] + np.arange(lengths[part[0]]))
            groups.append((ids[index], types[index]))
        yield order[rows], groups


def _tokenized(
    texts: Sequence[str], prompt: str | None, tokenize: Tokenize
) -> tuple[NDArray[np.intp], NDArray[np.intp], torch.Tensor, torch.Tensor]:
    """Numbers of texts as tokenised (by characters, so that little is padded), tokens of each, all ids and types."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    lengths, ids, types = [], [], []
    for start in range(0, len(order), TOKENIZE_TEXTS):
        features = tokenize([texts[number] for number in order[start : start + TOKENIZE_TEXTS]], prompt)
        tokens = features["attention_mask"].bool()
        lengths.append(tokens.sum(dim=1).numpy())
        ids.append(features["input_ids"][tokens])
        types.append(features["token_type_ids"][tokens] if "token_type_ids" in features else torch.zeros_like(ids[-1]))
    return order, np.concatenate(lengths), torch.cat(ids), torch.cat(types)


def _cut(by_length: NDArray[np.intp], lengths: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Rows in order of length, cut where a batch is full; a text longer than a batch is a batch."""
    ends = np.cumsum(lengths[by_length])
    start = 0
    while start < len(by_length):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + BATCH_TOKENS, side="right")))
        yield by_length[start:stop]
        start = stop
