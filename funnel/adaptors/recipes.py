"""How to train: losses and their weights, steps, sizes. What is not said by the user is measured and named here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from numpy.typing import NDArray

from funnel.errors import InputError

Schedule: TypeAlias = float | Mapping[int, float]
"""A weight: one number, or the number to change to from an epoch on, such as {0: 1.0, 5: 0.1}."""

LOSSES = ("pairwise", "topk", "reconstruction", "distillation", "ranking", "listwise")
JUDGED_LOSSES = ("ranking", "listwise")  # they need relevance judgements


def weight_at(schedule: Schedule, epoch: int) -> float:
    """The weight in an epoch (from 0); 0 before the first epoch that a schedule names."""
    if not isinstance(schedule, Mapping):
        return float(schedule)
    begun = [start for start in schedule if start <= epoch]
    return float(schedule[max(begun)]) if begun else 0.0


@dataclass(frozen=True)
class Phase:
    """Steps trained with one set of losses.

    Attributes:
        name: for the log.
        weights: of each loss, by its name; a loss that is not named is not computed.
        steps: at most so many; fewer where the held-out figure stops rising.
        learning_rate: Adam's at the first step; it falls to a tenth along half a cosine.
        judged: the phase needs relevance judgements, and is left out without them.
    """

    name: str
    weights: Mapping[str, Schedule]
    steps: int
    learning_rate: float
    judged: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(LOSSES))
        if unknown:
            raise InputError(f"the loss {unknown[0]!r} is not known; choose among {', '.join(LOSSES)}")
        if self.steps < 1 or not self.learning_rate > 0:
            raise InputError(f"steps={self.steps}, learning_rate={self.learning_rate}; both must be above 0")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training but the data and the seed.

    Attributes:
        phases: run one after the other, each from the best state of the one before.
        width_weights: of each width; None: all 1.
        batch: anchors in a step. Candidates are shared by all of them: one product serves 2,000 candidates each.
        near: true nearest neighbours of each anchor, precomputed, among the candidates.
        random: rows drawn anew in each step, the other candidates.
        anchors: rows that are anchors at all, drawn once: their neighbours are searched for exactly.
        queries: share of a step's anchors that are real queries, where there are any; 0: they are held out only.
        pieces: share of the others that are pieces of documents, texts like queries, where there are any.
        judged_batch: judged queries in a step of a phase with judgements.
        hard: documents from the top of its ranking that each judged query adds to a step.
        judged_random: random documents added to them.
        temperature: of the distillation's softmax.
        judged_temperature: scores are divided by it in the ranking and listwise losses.
        settings: of the adaptor's kind, in place of its defaults.
        evaluate_every: steps from one held-out figure to the next.
        patience: figures that do not make their state the one kept, after which a phase ends.
        tolerance: a later state is kept although its shortlist recall is so much below the best there was; an nDCG@10
            has to rise.
    """

    phases: Sequence[Phase]
    width_weights: Sequence[float] | None = None
    batch: int = 128
    near: int = 8
    random: int = 1_024
    anchors: int = 8_192
    queries: float = 0.0
    pieces: float = 0.0
    judged_batch: int = 96
    hard: int = 8
    judged_random: int = 512
    temperature: float = 0.05
    judged_temperature: float = 0.05
    evaluate_every: int = 50
    patience: int = 4
    tolerance: float = 0.0
    settings: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for temperature in (self.temperature, self.judged_temperature):
            if not 0 < temperature < math.inf:
                raise InputError(f"a temperature is {temperature}; expected a finite number above 0")


LEAST_QUERIES, LEAST_PIECES = 40, 1_000  # of the pieces 50 are held out, twice
# Neighbour distillation, weight 1 for every width. On held-out rows the figure is level after 200 steps; rankings of
# real queries, which lie further from the rows, gain another point or two up to 600, so that the last state within the
# noise of the figure is kept. With judgements their softmax is added; a little of the distillation keeps what the
# documents taught. At three times the rate 809 claims of scifact, not trained on, kept .3 to 1.4 points more, but
# 100,000 rows lost half a point of their neighbours at 64 and 96 dims. Real queries, where there are any, are a quarter
# of the anchors: 2,000 runs of words won 1.4 points of their neighbours at 64 dims and .8 at 96, and queries that are
# drawn as the rows are lose nothing, where as a half of the anchors they lose .3 points.
ROTATION = Recipe(
    phases=(
        Phase("unsupervised", {"distillation": 1.0}, steps=600, learning_rate=1e-3),
        Phase("supervised", {"listwise": 1.0, "distillation": 0.1}, steps=600, learning_rate=2e-3, judged=True),
    ),
    queries=0.25,
    tolerance=0.001,
)
# Pieces lie nearer to queries than documents do, and longer training on them pays. 809 claims of scifact, not trained
# on, kept .870 / .937 / .961 of nDCG@10 at 64 / 96 / 128 dims with documents alone, .888 / .944 / .972 with pieces as
# half of the anchors, and .895 / .952 / .969 after 1,200 steps at twice the rate. Queries teach more: 540 of those
# claims as half of the anchors kept .929 at 64 dims on the other 269, where pieces kept .886; as a quarter .919; with 8
# or 32 neighbours of each, at temperatures of .05 or .08, in batches of 128 or 256 .909 to .929, +- .016.
ON_PIECES = replace(
    ROTATION,
    phases=(replace(ROTATION.phases[0], steps=1_200, learning_rate=2e-3), *ROTATION.phases[1:]),
    queries=0.5,
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
