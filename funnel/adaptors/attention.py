"""An adaptor whose change is one layer of self-attention over groups of the vector's entries."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch

from funnel.adaptors.base import register
from funnel.adaptors.mlp import ResidualAdaptor, ZeroLinear, draw_uniform
from funnel.errors import InputError

__all__ = ["Attention"]

# Eight tokens of 48 entries at 384 dimensions; with these the layer has 62,000 parameters there, the MLP 148,000.
GROUPS = 8
TOKEN_WIDTH = 64
HEADS = 4


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
        tokens = _by_group(cut, self.enter) + self.place
        mixed = (tokens + self._attention(self.norm(tokens))).relu()
        return _by_group(mixed, self.leave).flatten(-2)[..., : self.dim]

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


def _by_group(groups: torch.Tensor, matrices: torch.Tensor) -> torch.Tensor:
    """Each group by its own matrix: [..., g, a] and [g, a, b] -> [..., g, b]."""
    return torch.einsum("...ga,gab->...gb", groups, matrices)
