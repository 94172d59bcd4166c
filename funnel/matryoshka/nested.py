"""Losses and linear heads at every nested width, and what is asked of their weights, embeddings and labels."""

import math
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as shown
from typing import Any

import torch

from funnel.checks import checked_flag, checked_number, checked_whole, checked_widths
from funnel.errors import InputError


def checked_weights(weights: Sequence[float] | None, dims: Sequence[int]) -> tuple[float, ...]:
    """One weight for each width; all 1 where none are given.

    Raises InputError for another number of weights, and for weights that are negative, not finite or all 0.
    """
    if weights is None:
        return (1.0,) * len(dims)
    if isinstance(weights, str | bytes) or not isinstance(weights, Sequence):
        raise InputError(f"weights is {shown(weights)}; expected a list of numbers, one for each width")
    given = tuple(checked_number("a weight", weight, "a finite number from 0") for weight in weights)
    fit = all(math.isfinite(weight) and weight >= 0 for weight in given) and any(given)
    if not fit or len(given) != len(dims):
        raise InputError(
            f"weights is {list(given)}; expected finite numbers from 0, at least one above it, one for each of the "
            f"widths {list(dims)}"
        )
    return given


def checked_within(name: str, value: object, expected: str, fits: Callable[[float], bool]) -> float:
    """The number as a float. Raises InputError, saying what was expected, where it is none or does not fit."""
    number = checked_number(name, value, expected)
    if not fits(number):
        raise InputError(f"{name} is {value}; expected {expected}")
    return number


def check_widths(logits: Mapping[int, object], dims: Sequence[int]) -> None:
    """Raise InputError unless there are logits of every width."""
    missing = [width for width in dims if width not in logits]
    if missing:
        raise InputError(f"no logits of width {missing}; expected {list(dims)}, there are {sorted(logits)}")


def as_tensor(name: str, values: Any) -> torch.Tensor:
    """The numbers as a tensor. Raises InputError for what is no array of numbers."""
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {shown(values)}; expected an array or tensor of numbers") from None


def check_embeddings(embeddings: torch.Tensor, least: int) -> None:
    """Raise InputError unless this is a finite floating-point tensor [..., d] with d at least `least`."""
    if not isinstance(embeddings, torch.Tensor):
        raise InputError(f"embeddings is {shown(embeddings)}; expected a tensor (n, d)")
    if embeddings.ndim < 2 or not embeddings.is_floating_point() or embeddings.shape[-1] < least:
        raise InputError(
            f"embeddings of shape {tuple(embeddings.shape)} of {embeddings.dtype}; expected (n, d) of a float type, "
            f"d at least {least}: give wider embeddings or narrower dims"
        )
    if not torch.isfinite(embeddings).all():
        rows = ~torch.isfinite(embeddings).flatten(0, -2).all(dim=1)
        first = int(torch.nonzero(rows)[0])
        raise InputError(
            f"{int(rows.sum()):,} of {len(rows):,} embeddings hold values that are not finite (first: row {first}); "
            "lower the learning rate, or repair or drop these rows"
        )


def check_labels(labels: torch.Tensor, rows: int, classes: int) -> None:
    """Raise InputError unless these are whole numbers [rows] from 0 to classes - 1."""
    if not isinstance(labels, torch.Tensor):
        raise InputError(f"labels is {shown(labels)}; expected a tensor of whole numbers of shape ({rows},)")
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.shape != (rows,):
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype}; expected whole numbers of shape ({rows},)"
            ", one for each row"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected whole numbers from 0 to "
            f"{classes - 1}, as there are {classes} classes"
        )


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
