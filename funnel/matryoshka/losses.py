"""One loss at every nested width: the objective of Matryoshka representation learning."""

from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as shown
from typing import Any

import torch

from funnel.checks import checked_flag, checked_whole, checked_widths
from funnel.errors import InputError
from funnel.matryoshka.checks import check_embeddings, check_labels, check_widths, checked_weights, checked_within


def prefix(embeddings: torch.Tensor, width: int, *, renormalise: bool = True) -> torch.Tensor:
    """The first `width` dimensions: [..., d] -> [..., width].

    Renormalised, every prefix has length 1; one that is zero (a ReLU can do that to narrow ones) stays zero and passes
    its gradient on as it is.
    """
    if not isinstance(embeddings, torch.Tensor) or not embeddings.ndim:
        raise InputError(f"embeddings is {shown(embeddings)}; expected a tensor [..., d]")
    cut = embeddings[..., : checked_whole("width", width)]
    if not checked_flag("renormalise", renormalise):
        return cut
    norms = torch.linalg.vector_norm(cut, dim=-1, keepdim=True)
    scaled: torch.Tensor = cut / norms.masked_fill(norms == 0, 1)
    return scaled


class MultiGranularityLoss(torch.nn.Module):
    """Any loss, taken of every nested prefix and summed: Σ_m c_m · L(x[:m], ...).

    Source: Kusupati et al. 2022 (arXiv 2205.13147), section 3, equation 1, for any L.

    Attributes:
        base: the loss L.
        dims: the nested widths. The full width is trained for only if it is among them.
        weights: c_m, one for each width.
        renormalise: whether prefixes are brought to length 1.
    """

    def __init__(
        self,
        base: Callable[..., torch.Tensor],
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        *,
        renormalise: bool = True,
    ) -> None:
        """Wrap a loss.

        Args:
            base: called as base(prefix, *targets), or base(prefix, prefix, ..., *targets) where forward is given
                several tensors; gives a scalar, or any shape that is the same at all widths. If it is a module, its
                parameters become parameters of this one; they must fit every width.
            dims: rising widths, such as (8, 16, 32, 64).
            weights: one for each width, not negative; all 1 by default, as in the paper.
            renormalise: True by default, because search ranks prefixes by cosine: a loss over dot products would else
                train lengths that the search never sees. Losses that take cosines themselves do not notice. Give False
                for losses over raw coordinates, such as those with a linear head.

        Raises:
            InputError: dims do not rise from 1, weights are of another number, negative, not finite or all 0.
        """
        super().__init__()
        if not callable(base):
            raise InputError(f"base is {base!r}; expected a loss that can be called with embeddings and targets")
        self.base = base
        self.dims = checked_widths(dims)
        self.weights = checked_weights(weights, self.dims)
        self.renormalise = checked_flag("renormalise", renormalise)

    def forward(self, embeddings: torch.Tensor | Sequence[torch.Tensor], *targets: Any, **options: Any) -> torch.Tensor:
        """The weighted sum over the widths.

        Args:
            embeddings: float [n, d], or several of them (queries and documents, say): each is cut.
            *targets: handed to the base loss as they are.
            **options: as targets.

        Raises:
            InputError: embeddings narrower than the widest of dims, or not finite.
        """
        return _weighted_sum(self.by_width(embeddings, *targets, **options), self.weights)

    def by_width(
        self, embeddings: torch.Tensor | Sequence[torch.Tensor], *targets: Any, **options: Any
    ) -> dict[int, torch.Tensor]:
        """The base loss of every width, without its weight; arguments and errors as in forward."""
        several = (embeddings,) if isinstance(embeddings, torch.Tensor) else embeddings
        if not isinstance(several, Sequence) or not several:
            raise InputError(f"embeddings is {shown(embeddings)}; expected a tensor [n, d] or several")
        for tensor in several:
            check_embeddings(tensor, self.dims[-1])
        return {
            width: self.base(
                *(prefix(tensor, width, renormalise=self.renormalise) for tensor in several), *targets, **options
            )
            for width in self.dims
        }

    def extra_repr(self) -> str:
        """What torch shows between the brackets."""
        return f"dims={list(self.dims)}, weights={list(self.weights)}, renormalise={self.renormalise}"


class MultiGranularityCrossEntropy(torch.nn.Module):
    """Cross-entropy of every width's logits, weighted and summed: what a MultiGranularityClassifier is trained with.

    Source: Kusupati et al. 2022 (arXiv 2205.13147), section 3, equation 1.

    Attributes:
        dims: the nested widths.
        weights: c_m, one for each width.
        label_smoothing: as in torch.nn.functional.cross_entropy.
    """

    def __init__(
        self, dims: Sequence[int], weights: Sequence[float] | None = None, *, label_smoothing: float = 0.0
    ) -> None:
        """Take the widths and their weights (all 1 by default, as in the paper).

        Raises:
            InputError: dims do not rise from 1, weights are of another number, negative, not finite or all 0, or
                label_smoothing is not from 0 to 1.
        """
        super().__init__()
        self.dims = checked_widths(dims)
        self.weights = checked_weights(weights, self.dims)
        self.label_smoothing = checked_within(
            "label_smoothing", label_smoothing, "a number from 0 to 1", lambda x: 0 <= x <= 1
        )

    def forward(self, logits: Mapping[int, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """The weighted sum over the widths.

        Args:
            logits: by width, float [n, classes]; a width beside dims is left out.
            labels: whole numbers [n] below classes.

        Raises:
            InputError: a width is missing, or a label is out of range.
        """
        return _weighted_sum(self.by_width(logits, labels), self.weights)

    def by_width(self, logits: Mapping[int, torch.Tensor], labels: torch.Tensor) -> dict[int, torch.Tensor]:
        """The mean cross-entropy of every width, without its weight; arguments and errors as in forward."""
        if not isinstance(logits, Mapping):
            raise InputError(f"logits is {shown(logits)}; expected a tensor [n, classes] by width")
        check_widths(logits, self.dims)
        rows, classes = logits[self.dims[0]].shape
        check_labels(labels, rows, classes)
        return {
            width: torch.nn.functional.cross_entropy(logits[width], labels.long(), label_smoothing=self.label_smoothing)
            for width in self.dims
        }

    def extra_repr(self) -> str:
        """What torch shows between the brackets."""
        return f"dims={list(self.dims)}, weights={list(self.weights)}"


def _weighted_sum(losses: Mapping[int, torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    return torch.stack([weight * loss for weight, loss in zip(weights, losses.values(), strict=True)]).sum(dim=0)
