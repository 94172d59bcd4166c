"""How to train: losses and their weights, steps, sizes. What is not said by the user is measured and named here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from funnel.errors import InputError

__all__ = ["JUDGED_LOSSES", "LOSSES", "Phase", "Recipe", "Schedule", "weight_at"]

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
        pieces: share of a step's anchors that are pieces of documents, texts like queries, where there are any.
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
