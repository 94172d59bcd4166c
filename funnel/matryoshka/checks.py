"""What the parts of this package ask of weights, embeddings and labels."""

import math
from collections.abc import Callable, Mapping, Sequence
from reprlib import repr as shown
from typing import Any

import torch

from funnel.checks import checked_number
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
