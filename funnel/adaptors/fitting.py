"""From vectors to a trained adaptor: the recipe of each kind, and the call that trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors.base import Sample, adaptor_class, chunks_of, default_widths
from funnel.adaptors.recipes import Phase, Recipe
from funnel.adaptors.sampling import LEAST_PIECES, NO_QUERIES, TrainingQueries, TrainingSet
from funnel.adaptors.training import Student, Trained, train
from funnel.checks import checked_widths
from funnel.errors import InputError

__all__ = ["JUDGED_MLP", "RECIPES", "TRAINED_KINDS", "fit_adaptor", "recipe_for", "training_widths", "whole"]

# Neighbour distillation, weight 1 for every width. On held-out rows the figure is level after 200 steps; rankings of
# real queries, which lie further from the rows, gain another point or two up to 600, so that the last state within the
# noise of the figure is kept. With judgements their softmax is added; a little of the distillation keeps what the
# documents taught. At three times the rate 809 claims of scifact, not trained on, kept .3 to 1.4 points more, but
# 100,000 rows lost half a point of their neighbours at 64 and 96 dims.
ROTATION = Recipe(
    phases=(
        Phase("unsupervised", {"distillation": 1.0}, steps=600, learning_rate=1e-3),
        Phase("supervised", {"listwise": 1.0, "distillation": 0.1}, steps=600, learning_rate=2e-3, judged=True),
    ),
    tolerance=0.001,
)
# Pieces lie nearer to queries than documents do, and longer training on them pays. 809 claims of scifact, not trained
# on, kept .870 / .937 / .961 of nDCG@10 at 64 / 96 / 128 dims with documents alone, .888 / .944 / .972 with pieces as
# half of the anchors, and .895 / .952 / .969 after 1,200 steps at twice the rate.
ON_PIECES = replace(
    ROTATION,
    phases=(replace(ROTATION.phases[0], steps=1_200, learning_rate=2e-3), *ROTATION.phases[1:]),
    pieces=0.5,
)
# The published losses. The learning rate is three times that of the rotation, as it starts at no change at all, and
# the reconstruction, a mean over entries, has to be light for anything to be learnt.
PUBLISHED = Recipe(
    phases=(
        Phase("unsupervised", {"pairwise": 1.0, "topk": 1.0, "reconstruction": 0.1}, steps=600, learning_rate=3e-3),
        Phase(
            "supervised",
            {"ranking": 1.0, "pairwise": 1.0, "topk": 1.0, "reconstruction": 0.1},
            steps=400,
            learning_rate=1e-3,
            judged=True,
        ),
    )
)
# What "auto" trains with judgements: the losses of the rotation, started at PCA, which ranks better than the published.
JUDGED_MLP = replace(ROTATION, settings={"rotated": 1, "hidden": 768})
RECIPES = {"rotation": ROTATION, "mlp": PUBLISHED, "deep-mlp": PUBLISHED, "attention": PUBLISHED}
TRAINED_KINDS = tuple(RECIPES)


def recipe_for(kind: str, pieces: NDArray[Any] | None) -> Recipe:
    """The recipe of a kind: a rotation's where there are pieces enough to train on is another.

    Raises InputError for a kind that is not trained.
    """
    if kind not in RECIPES:
        raise InputError(f"the adaptor kind {kind!r} is not trained; choose one of {', '.join(TRAINED_KINDS)}")
    return ON_PIECES if kind == "rotation" and pieces is not None and len(pieces) >= LEAST_PIECES else RECIPES[kind]


def training_widths(dims: Sequence[int] | None, dim: int) -> tuple[int, ...]:
    """The widths to train: the user's below the full width, or the default ones.

    Raises InputError unless they rise from 1 to dim.
    """
    if dims is None:
        return default_widths(dim)
    return tuple(width for width in checked_widths(dims, dim) if width < dim) or default_widths(dim)


def fit_adaptor(
    kind: str,
    sample: Sample,
    *,
    dims: Sequence[int] | None = None,
    queries: TrainingQueries = NO_QUERIES,
    recipe: Recipe | None = None,
    data: TrainingSet | None = None,
    seed: int = 0,
    progress: bool = False,
    keep_on_interrupt: bool = False,
) -> Trained:
    """Train an adaptor of a kind on vectors, held in memory.

    Args:
        kind: "rotation", "mlp", "deep-mlp" or "attention".
        sample: float [n, d], or chunks of such rows; with judgements, all documents, in the order their numbers mean.
        dims: widths to train for; default: half octaves up to half of d or 256.
        queries: judged ones, real ones and pieces of documents: what to train on and to stop by.
        recipe: losses, weights and steps; default: the kind's own.
        data: the training set of the sample, where it was made before.
        seed: of everything random.
        progress: show a bar on stderr.
        keep_on_interrupt: on Ctrl-C give back the best state so far.

    Raises:
        InputError: the kind is not trained, or rows or dims that cannot be used.
    """
    recipe = recipe or recipe_for(kind, queries.pieces)
    vectors = whole(sample)
    widths = training_widths(dims, vectors.shape[1])
    data = data or TrainingSet(vectors, recipe, widths[0], queries, seed)
    student = _student(kind, data.rows, widths, seed, recipe.settings)
    return train(student, kind, data, recipe, widths, seed=seed, progress=progress, keep_on_interrupt=keep_on_interrupt)


def whole(sample: Sample) -> NDArray[Any]:
    """A sample in one array. Raises InputError for no rows, or rows of differing widths."""
    if isinstance(sample, np.ndarray):
        return next(chunks_of(sample))
    return np.concatenate(list(chunks_of(sample)))


def _student(kind: str, rows: torch.Tensor, widths: tuple[int, ...], seed: int, settings: Mapping[str, int]) -> Student:
    started: Student = adaptor_class(kind).start(rows, widths, seed, **settings)  # type: ignore[attr-defined]
    return started
