"""Linear classification from every nested width."""

from collections.abc import Sequence

import torch

from funnel.checks import checked_flag, checked_whole, checked_widths
from funnel.errors import InputError
from funnel.matryoshka.checks import check_embeddings

LARGEST = 2**31 - 1  # classes


class MultiGranularityClassifier(torch.nn.Module):
    """Linear heads over nested prefixes, as they are (not renormalised): a head may use their length.

    Source: Kusupati et al. 2022 (arXiv 2205.13147), section 3: MRL with a head for each width, MRL-E with one head
    whose weight is sliced.

    Attributes:
        dims: the nested widths.
        classes: the number of classes.
        shared: True for one sliced head.
        heads: the linear layers; one where shared, else one for each width.
    """

    def __init__(self, dim: int, classes: int, dims: Sequence[int], *, shared: bool = False, bias: bool = True) -> None:
        """Make the heads.

        Args:
            dim: the width d of the embeddings.
            classes: how many classes, at least 2.
            dims: rising widths up to dim.
            shared: one head for all widths, read as weight[:, :m] with one bias (MRL-E): half of the parameters on
                widths that double, somewhat worse at the narrowest. By default each width has its own (MRL).
            bias: whether the heads have a bias.

        Raises:
            InputError: fewer than 2 classes, or dims that do not rise from 1 to dim.
        """
        super().__init__()
        self.classes = checked_whole("classes", classes, 2, LARGEST)
        self.dim = checked_whole("dim", dim)
        self.dims = checked_widths(dims, self.dim)
        self.shared = checked_flag("shared", shared)
        checked_flag("bias", bias)
        inputs = self.dims[-1:] if shared else self.dims
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, classes, bias=bias) for width in inputs)

    def forward(self, embeddings: torch.Tensor) -> dict[int, torch.Tensor]:
        """Logits by width.

        Args:
            embeddings: float [n, d].

        Returns:
            For each width, float [n, classes].

        Raises:
            InputError: embeddings of another shape, or not finite.
        """
        self.check(embeddings)
        logits: dict[int, torch.Tensor] = {}
        before = None
        for width in self.dims:
            before = logits[width] = self.widened(embeddings, width, before)
        return logits

    def logits(self, embeddings: torch.Tensor, width: int) -> torch.Tensor:
        """Logits of one of dims alone: float [n, d] -> [n, classes].

        Raises:
            InputError: the width is not one of dims, or the embeddings are of another shape or not finite.
        """
        if width not in self.dims:
            raise InputError(f"width is {width}; expected one of {list(self.dims)}, those that were trained")
        self.check(embeddings)
        return self.widened(embeddings, width)

    def check(self, embeddings: torch.Tensor) -> None:
        """Raise InputError unless these are finite embeddings [n, d]."""
        if isinstance(embeddings, torch.Tensor) and embeddings.shape[1:] != (self.dim,):
            raise InputError(f"embeddings of shape {tuple(embeddings.shape)}; expected (n, {self.dim})")
        check_embeddings(embeddings, self.dim)

    def widened(self, embeddings: torch.Tensor, width: int, before: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of one of dims, unchecked.

        A shared head carries on from `before`, the logits of the next narrower width.
        """
        place = self.dims.index(width)
        head = self.heads[0 if self.shared else place]
        assert isinstance(head, torch.nn.Linear)
        if before is None or not self.shared:
            return torch.nn.functional.linear(embeddings[:, :width], head.weight[:, :width], head.bias)
        narrow = self.dims[place - 1]
        # Carried on, all widths together cost one product at the widest.
        return before + embeddings[:, narrow:width] @ head.weight[:, narrow:width].T

    def extra_repr(self) -> str:
        """What torch shows between the brackets."""
        return f"dim={self.dim}, classes={self.classes}, dims={list(self.dims)}, shared={self.shared}"
