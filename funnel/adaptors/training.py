"""From vectors to a trained adaptor: steps, held-out figures, early stopping, the log."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors.base import Adaptor, Sample, adaptor_class, chunks_of, default_widths
from funnel.adaptors.losses import (
    distillation_loss,
    listwise_loss,
    pairwise_similarity_loss,
    ranking_loss,
    reconstruction_loss,
    topk_similarity_loss,
)
from funnel.adaptors.recipes import JUDGED_LOSSES, Phase, Recipe, recipe_for, weight_at
from funnel.adaptors.sampling import NO_QUERIES, SHORTLIST_RECALL, Batch, JudgedBatch, TrainingQueries, TrainingSet
from funnel.checks import checked_widths
from funnel.progress import Progress

# A rise of the held-out figure below this is noise of its thousand queries.
RISE = 1e-4
FINAL_RATE = 0.1  # the learning rate at the end of a phase, of that at its start


class TrainedAdaptor(Adaptor):
    """An adaptor whose kind is fitted by `fit_adaptor`, with the recipe of the kind."""

    @classmethod
    def fit(
        cls, sample: Sample, *, dims: Sequence[int] | None = None, seed: int = 0, progress: bool = False
    ) -> Adaptor:
        """Train on a sample, which is held in memory; dims default to half octaves up to half the width or 256."""
        return fit_adaptor(cls.kind, sample, dims=dims, seed=seed, progress=progress).adaptor


class Student(torch.nn.Module, ABC):
    """What is trained: parameters, a map for several blocks at once, and the adaptor it stands for."""

    @abstractmethod
    def project(self, *blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map blocks [..., d] -> [..., w], w at least the widest width trained for."""

    @abstractmethod
    def unchanged(self, rows: torch.Tensor, /) -> torch.Tensor:
        """What rows [b, d] map to before anything is learnt: what `reconstruction` keeps them near to.

        Raises InputError where the kind has no such thing.
        """

    @abstractmethod
    def snapshot(self) -> Adaptor:
        """The adaptor as it stands, apart from further training."""


@dataclass
class TrainingLog:
    """What happened in one training.

    Attributes:
        kind, dims, seed: of the adaptor.
        rows, anchors, judged: how much it was trained on.
        figure: what the held-out figures are.
        steps: of each step: number, phase, epoch, and every loss, weighted and summed over the widths.
        evaluations: of each: step, phase, seconds since the start, figure by width, their mean.
        best_step: the step of the state that was kept.
        stopped: why each phase ended.
        interrupted: whether it was ended by Ctrl-C.
    """

    kind: str
    dims: list[int]
    seed: int
    rows: int
    judged: int
    figure: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int = 0
    stopped: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class Trained:
    """The best adaptor of a training, and its log."""

    adaptor: Adaptor
    log: TrainingLog


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
    """Train an adaptor of a kind on vectors, held in memory, until the held-out figure stops rising.

    Given back is the last of the states that are no worse than the best by more than the recipe's tolerance. The figure
    is nDCG@10 of held-out judged queries where there are judgements, else the share of the true top 10 of held-out rows
    in a shortlist; averaged over the widths. The untrained state takes part. A loss that is not finite ends the
    training; so does an interrupt (Ctrl-C), which is passed on unless keep_on_interrupt.

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
    student: Student = adaptor_class(kind).start(data.rows, widths, seed, **recipe.settings)  # type: ignore[attr-defined]
    log = TrainingLog(kind, list(widths), seed, len(data.rows), len(data.judged or ()), data.held_out.figure)
    run = _Run(student, data, recipe, log, progress)
    try:
        for phase in run.phases:
            if not run.phase(phase):
                break
    except KeyboardInterrupt:
        if not keep_on_interrupt:
            raise
        log.stopped.append(f"interrupted after step {run.step}")
        log.interrupted = True
    finally:
        run.bar.close()
    log.seconds = time.perf_counter() - run.started
    run.restore()
    return Trained(student.snapshot(), log)


def whole(sample: Sample) -> NDArray[Any]:
    """A sample in one array. Raises InputError for no rows, or rows of differing widths."""
    if isinstance(sample, np.ndarray):
        return next(chunks_of(sample))
    return np.concatenate(list(chunks_of(sample)))


class _Run:
    """The state of one training."""

    def __init__(self, student: Student, data: TrainingSet, recipe: Recipe, log: TrainingLog, progress: bool) -> None:
        self.student, self.data, self.recipe, self.log = student, data, recipe, log
        self.phases = [phase for phase in recipe.phases if data.judged is not None or not phase.judged]
        self.started = time.perf_counter()
        self.step = 0
        total = sum(phase.steps for phase in self.phases)
        self.bar = Progress(total=total, desc=f"train {log.kind}", unit="steps", disable=not progress)
        self._best_mean = -math.inf
        self._best: dict[str, Any] = {}

    def phase(self, phase: Phase) -> bool:
        """Run a phase; False where training cannot go on."""
        rate = phase.learning_rate
        optimiser = torch.optim.Adam(self.student.parameters(), rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, phase.steps, FINAL_RATE * rate)
        if not self._best:
            self._evaluate(phase.name)
        since_best = 0
        for number in range(1, phase.steps + 1):
            self.step += 1
            epoch = (self.step - 1) // self.data.steps_in_an_epoch
            losses = self._losses(phase, epoch)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                why = f"diverged at step {self.step}: a loss of {loss.item()}; the best state is kept"
                break
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            scheduler.step()
            self._record(phase, epoch, losses)
            if number % self.recipe.evaluate_every == 0 or number == phase.steps:
                since_best = 0 if self._evaluate(phase.name) else since_best + 1
                if since_best >= self.recipe.patience:
                    why = f"no rise in {since_best} figures, at step {self.step}"
                    break
        else:
            why = f"all {phase.steps} steps done"
        self.log.stopped.append(f"{phase.name}: {why}")
        self.restore()
        return bool(torch.isfinite(loss))

    def restore(self) -> None:
        """Go back to the best state."""
        if self._best:
            self.student.load_state_dict(self._best)

    def _losses(self, phase: Phase, epoch: int) -> dict[str, torch.Tensor]:
        weights = {name: weight for name, given in phase.weights.items() if (weight := weight_at(given, epoch))}
        batch = self.data.draw()
        judged = self.data.draw_judged() if set(JUDGED_LOSSES) & set(weights) else None
        found = losses_of(self.student, batch, judged, weights, self.log.dims, self.recipe)
        return {name: weights[name] * loss for name, loss in found.items()}

    def _record(self, phase: Phase, epoch: int, losses: Mapping[str, torch.Tensor]) -> None:
        values = {name: loss.item() for name, loss in losses.items()}
        self.log.steps.append({"step": self.step, "phase": phase.name, "epoch": epoch, **values})
        self.bar.update()
        shown = {name: f"{value:.4f}" for name, value in values.items()}
        if self.log.evaluations:
            shown[self.log.figure] = f"{self.log.evaluations[-1]['mean']:.4f}"
        self.bar.set_postfix(shown, refresh=False)

    def _evaluate(self, phase: str) -> bool:
        """Take the held-out figure; True where its state is kept."""
        held_out = self.data.held_out
        figures = held_out.figures(lambda rows: self.student.project(rows)[0], self.log.dims)
        mean, seconds = sum(figures.values()) / len(figures), time.perf_counter() - self.started
        self.log.evaluations.append(
            {"step": self.step, "phase": phase, "seconds": seconds, "figures": figures, "mean": mean}
        )
        tolerated = self.recipe.tolerance if held_out.figure == SHORTLIST_RECALL else 0.0
        if not mean > self._best_mean + (-tolerated or RISE):
            return False
        self._best_mean, self.log.best_step = max(mean, self._best_mean), self.step
        self._best = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        return True


def losses_of(
    student: Student,
    batch: Batch,
    judged: JudgedBatch | None,
    names: Iterable[str],
    dims: Sequence[int],
    recipe: Recipe,
) -> dict[str, torch.Tensor]:
    """The losses named, unweighted, each summed over the widths; everything is mapped in one go."""
    given = () if judged is None else (judged.queries, judged.documents)
    anchors, candidates, *answered = student.project(batch.anchors, batch.candidates, *given)
    weights = recipe.width_weights
    losses: dict[str, Callable[[], torch.Tensor]] = {
        "distillation": lambda: distillation_loss(
            batch.anchors @ batch.candidates.T, anchors, candidates, dims, weights,
            temperature=recipe.temperature, mask=batch.own,
        ),
        "pairwise": lambda: pairwise_similarity_loss(batch.anchors, anchors, dims, weights),
        "topk": lambda: topk_similarity_loss(
            batch.anchors, batch.candidates[batch.near], anchors, candidates[batch.near], dims, weights
        ),
        "reconstruction": lambda: reconstruction_loss(student.unchanged(batch.anchors), anchors),
    }  # fmt: skip
    if judged is not None:
        query, documents = answered
        grades, left_out, temperature = judged.grades, judged.left_out, recipe.judged_temperature
        losses["ranking"] = lambda: ranking_loss(
            query, documents, grades, dims, weights, mask=left_out, temperature=temperature
        )
        losses["listwise"] = lambda: listwise_loss(
            grades, query, documents, dims, weights, mask=left_out, temperature=temperature
        )
    return {name: losses[name]() for name in names}
