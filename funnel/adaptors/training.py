"""The training loop: steps, held-out figures, early stopping, the log."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from funnel.adaptors.base import Adaptor
from funnel.adaptors.losses import (
    distillation_loss,
    listwise_loss,
    pairwise_similarity_loss,
    ranking_loss,
    reconstruction_loss,
    topk_similarity_loss,
)
from funnel.adaptors.recipes import JUDGED_LOSSES, Phase, Recipe, weight_at
from funnel.adaptors.sampling import Batch, JudgedBatch, TrainingSet
from funnel.progress import Progress

__all__ = ["Student", "Trained", "TrainingLog", "train"]

# A rise of the held-out figure below this is noise of its thousand queries.
RISE = 1e-4
FINAL_RATE = 0.1  # the learning rate at the end of a phase, of that at its start


class Student(Protocol):
    """What is trained: parameters, a map for several blocks at once, and the adaptor it stands for."""

    def parameters(self) -> Iterable[torch.nn.Parameter]:
        """What the optimiser changes."""

    def project(self, *blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map blocks [..., d] -> [..., w], w at least the widest width trained for."""

    def unchanged(self, rows: torch.Tensor, /) -> torch.Tensor:
        """What rows [b, d] map to before anything is learnt: what `reconstruction` keeps them near to.

        Raises InputError where the kind has no such thing.
        """

    def snapshot(self) -> Adaptor:
        """The adaptor as it stands, apart from further training."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As torch modules do."""

    def state_dict(self) -> dict[str, Any]:
        """As torch modules do."""


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


def train(
    student: Student,
    kind: str,
    data: TrainingSet,
    recipe: Recipe,
    dims: Sequence[int],
    *,
    seed: int = 0,
    progress: bool = False,
    keep_on_interrupt: bool = False,
) -> Trained:
    """Train until the held-out figure stops rising, and give back the best state there was.

    That is the last of those that are no worse than the best by more than the recipe's tolerance.

    The figure is nDCG@10 of held-out judged queries where there are judgements, else the share of the true top 10 of
    held-out rows in a shortlist; averaged over the widths. The untrained state takes part. A loss that is not finite
    ends the training; so does an interrupt (Ctrl-C), which is passed on unless keep_on_interrupt.

    Args:
        student: the untrained state.
        kind: for the log and the bar.
        data: rows, anchors, held-out queries.
        recipe: losses, weights, steps.
        dims: widths that are trained, rising.
        seed: for the log; the data carry their own generator.
        progress: a bar with the losses and held-out figures on stderr.
        keep_on_interrupt: give back the best state so far on Ctrl-C.
    """
    run = _Run(student, kind, data, recipe, tuple(dims), seed, progress)
    try:
        for phase in recipe.phases:
            if phase.judged and data.judged is None:
                continue
            if not run.phase(phase):
                break
    except KeyboardInterrupt:
        if not keep_on_interrupt:
            raise
        run.log.stopped.append(f"interrupted after step {run.step}")
        run.log.interrupted = True
    finally:
        run.bar.close()
    run.log.seconds = time.perf_counter() - run.started
    run.restore()
    return Trained(student.snapshot(), run.log)


class _Run:
    """The state of one training."""

    def __init__(
        self,
        student: Student,
        kind: str,
        data: TrainingSet,
        recipe: Recipe,
        dims: tuple[int, ...],
        seed: int,
        progress: bool,
    ) -> None:
        self.student, self.data, self.recipe, self.dims = student, data, recipe, dims
        judged = 0 if data.judged is None else len(data.judged)
        figure = "shortlist recall" if data.held_out_judged is None else "nDCG@10"
        self.log = TrainingLog(kind, list(dims), seed, len(data.rows), judged, figure)
        self.started = time.perf_counter()
        self.step = 0
        total = sum(phase.steps for phase in recipe.phases if data.judged is not None or not phase.judged)
        self.bar = Progress(total=total, desc=f"train {kind}", unit="steps", disable=not progress)
        self._best_mean = -math.inf
        self._best: dict[str, Any] = {}

    def phase(self, phase: Phase) -> bool:
        """Run a phase; False where training cannot go on."""
        optimiser = torch.optim.Adam(self.student.parameters(), lr=phase.learning_rate)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimiser, phase.steps, eta_min=FINAL_RATE * phase.learning_rate
        )
        if not self._best:
            self._evaluate(phase.name)
        since_best = 0
        for number in range(1, phase.steps + 1):
            self.step += 1
            losses = self._losses(phase)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                self._stop(phase, f"diverged at step {self.step}: a loss of {loss.item()}; the best state is kept")
                self.restore()
                return False
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            scheduler.step()
            self._record(phase, losses)
            if number % self.recipe.evaluate_every == 0 or number == phase.steps:
                since_best = 0 if self._evaluate(phase.name) else since_best + 1
                if since_best >= self.recipe.patience:
                    self._stop(phase, f"no rise in {since_best} figures, at step {self.step}")
                    break
        else:
            self._stop(phase, f"all {phase.steps} steps done")
        self.restore()
        return True

    def restore(self) -> None:
        """Go back to the best state."""
        if self._best:
            self.student.load_state_dict(self._best)

    def _losses(self, phase: Phase) -> dict[str, torch.Tensor]:
        epoch = (self.step - 1) // self.data.steps_in_an_epoch
        weights = {name: weight_at(schedule, epoch) for name, schedule in phase.weights.items()}
        weights = {name: weight for name, weight in weights.items() if weight}
        batch = self.data.draw()
        judged = self.data.draw_judged() if set(JUDGED_LOSSES) & set(weights) else None
        found = losses_of(self.student, batch, judged, weights, self.dims, self.recipe)
        return {name: weights[name] * loss for name, loss in found.items()}

    def _record(self, phase: Phase, losses: Mapping[str, torch.Tensor]) -> None:
        values = {name: loss.item() for name, loss in losses.items()}
        epoch = (self.step - 1) // self.data.steps_in_an_epoch
        self.log.steps.append({"step": self.step, "phase": phase.name, "epoch": epoch, **values})
        self.bar.update()
        shown = {name: f"{value:.4f}" for name, value in values.items()}
        if self.log.evaluations:
            shown[self.log.figure] = f"{self.log.evaluations[-1]['mean']:.4f}"
        self.bar.set_postfix(shown, refresh=False)

    def _evaluate(self, phase: str) -> bool:
        """Take the held-out figure; True where its state is kept."""
        held_out = self.data.held_out_judged or self.data.held_out
        figures = held_out.figures(lambda rows: self.student.project(rows)[0], self.dims)
        mean = sum(figures.values()) / len(figures)
        seconds = time.perf_counter() - self.started
        self.log.evaluations.append(
            {"step": self.step, "phase": phase, "seconds": seconds, "figures": figures, "mean": mean}
        )
        if not self._best:
            bound = -math.inf
        elif self.data.held_out_judged is None and self.recipe.tolerance:
            bound = self._best_mean - self.recipe.tolerance
        else:
            bound = self._best_mean + RISE
        if not mean > bound:
            return False
        self._best_mean, self.log.best_step = max(mean, self._best_mean), self.step
        self._best = {name: value.detach().clone() for name, value in self.student.state_dict().items()}
        return True

    def _stop(self, phase: Phase, why: str) -> None:
        self.log.stopped.append(f"{phase.name}: {why}")


def losses_of(
    student: Student,
    batch: Batch,
    judged: JudgedBatch | None,
    names: Iterable[str],
    dims: Sequence[int],
    recipe: Recipe,
) -> dict[str, torch.Tensor]:
    """The losses named, unweighted, each summed over the widths; everything is mapped in one go."""
    blocks = [batch.anchors, batch.candidates]
    if judged is not None:
        blocks += [judged.queries, judged.documents]
    anchors, candidates, *answered = student.project(*blocks)
    weights = recipe.width_weights
    found = {}
    for name in names:
        if name == "distillation":
            teacher = batch.anchors @ batch.candidates.T
            found[name] = distillation_loss(
                teacher, anchors, [candidates], dims, weights, temperature=recipe.temperature, mask=batch.own
            )
        elif name == "pairwise":
            found[name] = pairwise_similarity_loss(batch.anchors, anchors, dims, weights)
        elif name == "topk":
            near, adapted = batch.candidates[batch.near], candidates[batch.near]
            found[name] = topk_similarity_loss(batch.anchors, near, anchors, adapted, dims, weights)
        elif name == "reconstruction":
            found[name] = reconstruction_loss(student.unchanged(batch.anchors), anchors)
        else:
            assert judged is not None, "drawn where a loss needs it"
            query, documents = answered
            temperature, mask = recipe.judged_temperature, judged.left_out
            if name == "ranking":
                found[name] = ranking_loss(
                    query, documents, judged.grades, dims, weights, mask=mask, temperature=temperature
                )
            else:
                found[name] = listwise_loss(
                    judged.grades, query, documents, dims, weights, mask=mask, temperature=temperature
                )
    return found
