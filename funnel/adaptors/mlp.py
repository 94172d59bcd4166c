"""Adaptors that add a learnt change to the vector, ĉ = c + f(c), with f a small perceptron or several in a row.

They start as the identity (or as a PCA rotation) and, unlike a rotation, may change the ranking at full width.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors.base import FloatArray, register
from funnel.adaptors.rotation import PCA
from funnel.adaptors.training import Student, TrainedAdaptor
from funnel.checks import checked_whole
from funnel.errors import InputError

# The hidden layer's width is dim // 2: of 25,000 short texts, started at PCA and distilled, 50 candidates held .883,
# .886 and .889 of the true 10 with a quarter, half and the whole of dim (mean over 32 to 128 dimensions).
HIDDEN_DIVISOR = 2
# Rows mapped at a time by `transform`: the layers within take some tens of MB, however many rows come.
BLOCK_ROWS = 8192


class ResidualAdaptor(TrainedAdaptor, Student):
    """Adds a learnt change to each vector: ĉ = c + f(c).

    f is given the vector at length √dim and its change is scaled back, ĉ = c + s·f(c/s) with s = ‖c‖/√dim: entries are
    of size 1 at every width, and vectors that differ in length alone come out differing in length alone. Zero stays
    zero.

    A kind says what its `defaults` are, what f is (`change`), and how it is `draw`n.

    Every kind has the setting `rotated`: 1 multiplies the vectors by a fixed orthogonal matrix before all else, the
    uncentred PCA of what it was started on; 0 takes them as they are, as published.
    """

    isometric: ClassVar[bool] = False

    rotation: torch.Tensor

    def __init__(self, dim: int, dims: Sequence[int] = (), **settings: int) -> None:
        """The identity, all that is learnt being zero.

        Args:
            dim: the width of the vectors.
            dims: the widths it will be trained for.
            settings: those that differ from the kind's `defaults`.

        Raises:
            InputError: a setting is not known or not of use.
        """
        super().__init__(dim, dims)
        self._settings = _checked_settings(settings, {**self.defaults(dim), "rotated": 0})
        if self._settings["rotated"]:
            self.register_buffer("rotation", torch.eye(dim))

    @classmethod
    @abstractmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """The settings of the kind at a width."""

    @abstractmethod
    def change(self, scaled: torch.Tensor) -> torch.Tensor:
        """f: float [..., dim], of length √dim -> [..., dim]."""

    @abstractmethod
    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights that cannot be trained from zero."""

    @classmethod
    def start(cls, vectors: torch.Tensor, dims: Sequence[int], seed: int, **settings: int) -> Self:
        """The adaptor before training: it changes nothing, or rotates only.

        Args:
            vectors: float32 [n, dim] on the CPU; only their PCA is looked at, where it is `rotated`.
            dims: the widths it will be trained for, rising.
            seed: of the first weights; torch's own generator is left alone.
            settings: those that differ from the kind's `defaults`.

        Raises:
            InputError: widths or settings that do not fit.
        """
        adaptor = cls(vectors.shape[1], dims, **settings)
        if adaptor.settings()["rotated"]:
            adaptor.rotation.copy_(PCA.fit(vectors.numpy()).matrix)
        adaptor.draw(torch.Generator().manual_seed(seed))
        return adaptor

    def map(self, vectors: torch.Tensor) -> torch.Tensor:
        """The sum c + f(c), not normalised."""
        start = self.unchanged(vectors)
        scale: torch.Tensor = torch.linalg.vector_norm(start, dim=-1, keepdim=True) / math.sqrt(self.dim)
        return start + scale * self.change(start / scale.clamp_min(torch.finfo(scale.dtype).tiny))

    def unchanged(self, vectors: torch.Tensor) -> torch.Tensor:
        """c, to which f(c) is added: the vectors [..., dim] as they are, or rotated."""
        return vectors @ self.rotation if self._settings["rotated"] else vectors

    def project(self, *blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map several blocks [..., dim]; differentiable."""
        return tuple(self.map(block) for block in blocks)

    def snapshot(self) -> Self:
        """A copy as it stands, apart from further training and not trainable itself."""
        return deepcopy(self).requires_grad_(False).eval()

    def transform(self, vectors: NDArray[Any]) -> FloatArray:
        """Map vectors [n, dim] to float32 [n, dim] by blocks of rows; the errors are those of `Adaptor.transform`."""
        if vectors.ndim != 2 or len(vectors) <= BLOCK_ROWS:
            return super().transform(vectors)
        adapted = np.empty(vectors.shape, dtype=np.float32)
        for start in range(0, len(vectors), BLOCK_ROWS):
            adapted[start : start + BLOCK_ROWS] = super().transform(vectors[start : start + BLOCK_ROWS])
        return adapted

    def settings(self) -> dict[str, int]:
        """All settings, the defaults among them."""
        return dict(self._settings)

    @classmethod
    def build(
        cls, dim: int, dims: Sequence[int], settings: Mapping[str, int], tensors: Mapping[str, FloatArray]
    ) -> Self:
        """The adaptor again, from what `settings` and `tensors` gave; not trainable until it is told to be."""
        if set(settings) != {*cls.defaults(dim), "rotated"}:
            raise InputError(f"the settings are {sorted(settings)}, expected {sorted({*cls.defaults(dim), 'rotated'})}")
        held = sum(tensor.size for tensor in tensors.values())
        if max(dim, *settings.values()) > held:
            raise InputError(f"dim={dim} and the settings {dict(settings)} ask for more than the {held} numbers given")
        with torch.device("meta"):  # shapes without memory, until it is known that the tensors have them
            adaptor = cls(dim, dims, **settings)
        copies = {name: torch.from_numpy(np.array(tensor, dtype=np.float32)) for name, tensor in tensors.items()}
        try:
            adaptor.load_state_dict(copies, assign=True)
        except RuntimeError as error:
            raise InputError(f"the tensors do not fit the settings: {' '.join(str(error).split())}") from error
        return adaptor.requires_grad_(False).eval()


class ZeroLinear(torch.nn.Linear):
    """A linear layer that starts at zero, so that making one draws nothing from torch's generator."""

    def reset_parameters(self) -> None:
        """Zero weights and biases."""
        for parameter in self.parameters():
            torch.nn.init.zeros_(parameter)


class Perceptron(torch.nn.Module):
    """up(LayerNorm(ReLU(down(x)))), float [..., dim] -> [..., dim], with one hidden layer."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = ZeroLinear(dim, hidden)
        self.norm = torch.nn.LayerNorm(hidden)
        self.up = ZeroLinear(hidden, dim)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """The change."""
        return self.up(self.norm(self.down(vectors).relu()))  # type: ignore[no-any-return]


@register
class MLP(ResidualAdaptor):
    """ĉ = c + f(c), f(c) = up(LayerNorm(ReLU(down(c)))) (Matryoshka-Adaptor, Yoon et al. 2024, arXiv 2407.20243).

    The paper gives the skip connection and calls f a shallow multi-layer perceptron; the order of the layers and their
    sizes are this library's. The up-projection starts at zero, so that training starts from the vectors as they are.

    Settings: `hidden`, the width of the hidden layer; `blocks`, how many perceptrons follow each other, each with a
    skip connection of its own; `rotated`.
    """

    kind: ClassVar[str] = "mlp"
    usual_blocks: ClassVar[int] = 1

    def __init__(self, dim: int, dims: Sequence[int] = (), **settings: int) -> None:
        super().__init__(dim, dims, **settings)
        hidden, blocks = self._settings["hidden"], self._settings["blocks"]
        self.blocks = torch.nn.ModuleList(Perceptron(dim, hidden) for _ in range(blocks))

    @classmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """A hidden layer of half the width."""
        return {"hidden": max(1, dim // HIDDEN_DIVISOR), "blocks": cls.usual_blocks}

    def change(self, scaled: torch.Tensor) -> torch.Tensor:
        """What the blocks add up to."""
        moved = scaled
        for block in self.blocks:
            moved = moved + block(moved)
        return moved - scaled

    def draw(self, generator: torch.Generator) -> None:
        """The down-projections; the up-projections stay zero, and the first step trains them."""
        for block in self.blocks:
            assert isinstance(block, Perceptron)
            draw_uniform(block.down.weight, self.dim, generator)


@register
class DeepMLP(MLP):
    """`MLP` with two perceptrons in a row unless `blocks` says otherwise: a deeper variant, not published."""

    kind: ClassVar[str] = "deep-mlp"
    usual_blocks: ClassVar[int] = 2


def draw_uniform(weight: torch.Tensor, inputs: int, generator: torch.Generator) -> None:
    """Fill with uniform numbers of variance 1/(3·inputs), torch's own start of a linear layer."""
    torch.nn.init.uniform_(weight, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator)


def _checked_settings(given: Mapping[str, int], defaults: Mapping[str, int]) -> dict[str, int]:
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise InputError(f"the setting {unknown[0]!r} is not known; choose among {', '.join(defaults)}")
    return {
        name: checked_whole(name, value, *((0, 1) if name == "rotated" else (1,)))
        for name, value in {**defaults, **given}.items()
    }


# Eight tokens of 48 entries at 384 dimensions; with these the layer has 62,000 parameters there, the MLP 148,000.
GROUPS, TOKEN_WIDTH, HEADS = 8, 64, 4


@register
class Attention(ResidualAdaptor):
    """ĉ = c + f(c), f self-attention over the entries of c, cut into groups (a variant, not published).

    Each group of entries has its own projection into a token and back, since entries of an embedding, unlike words, do
    not mean the same wherever they stand. Between them, one layer of multi-head attention (Vaswani et al. 2017, section
    3.2) after LayerNorm, with a skip connection and a ReLU. The projection back starts at zero.

    Settings: `group_size`, entries in a group, the last group padded with zeros; `width` of a token; `heads`, which
    divide it; `rotated`.
    """

    kind: ClassVar[str] = "attention"

    def __init__(self, dim: int, dims: Sequence[int] = (), **settings: int) -> None:
        super().__init__(dim, dims, **settings)
        group_size, width, heads = (self._settings[name] for name in ("group_size", "width", "heads"))
        if group_size > dim or width % heads:
            raise InputError(
                f"group_size={group_size}, width={width}, heads={heads} at dimension {dim}; "
                "expected groups no larger than the dimension, and heads that divide the width"
            )
        self.groups = math.ceil(dim / group_size)
        self.enter = torch.nn.Parameter(torch.zeros(self.groups, group_size, width))
        self.place = torch.nn.Parameter(torch.zeros(self.groups, width))
        self.norm = torch.nn.LayerNorm(width)
        self.query_key_value = ZeroLinear(width, 3 * width)
        self.leave = torch.nn.Parameter(torch.zeros(self.groups, width, group_size))

    @classmethod
    def defaults(cls, dim: int) -> dict[str, int]:
        """At most eight groups."""
        return {"group_size": math.ceil(dim / GROUPS), "width": TOKEN_WIDTH, "heads": HEADS}

    def change(self, scaled: torch.Tensor) -> torch.Tensor:
        """Entries to tokens, attention between the tokens, tokens to entries."""
        group_size = self._settings["group_size"]
        padded = torch.nn.functional.pad(scaled, (0, self.groups * group_size - self.dim))
        cut = padded.reshape(*scaled.shape[:-1], self.groups, group_size)
        tokens = torch.einsum("...ga,gab->...gb", cut, self.enter) + self.place  # each group by its own matrix
        mixed = (tokens + self._attention(self.norm(tokens))).relu()
        return torch.einsum("...ga,gab->...gb", mixed, self.leave).flatten(-2)[..., : self.dim]

    def _attention(self, tokens: torch.Tensor) -> torch.Tensor:
        # Written out: which of its kernels torch would choose depends on the machine and the shapes.
        by_head: torch.Tensor = self.query_key_value(tokens).reshape(*tokens.shape[:-1], 3, self._settings["heads"], -1)
        # [..., groups, 3, heads, width of a head] -> three of [..., heads, groups, width of a head]
        queries, keys, values = by_head.movedim(-2, -4).unbind(-2)
        weights = (queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])).softmax(dim=-1)
        return (weights @ values).transpose(-3, -2).flatten(-2)

    def draw(self, generator: torch.Generator) -> None:
        """Everything but the biases and the projection back; the first step trains that."""
        draw_uniform(self.enter, self._settings["group_size"], generator)
        draw_uniform(self.query_key_value.weight, self._settings["width"], generator)
