"""Adaptive classification: each row is classified at the narrowest width that is sure of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.checks import checked_number, checked_seed, checked_whole
from funnel.errors import InputError
from funnel.matryoshka.checks import as_tensor, check_labels
from funnel.matryoshka.classifier import MultiGranularityClassifier
from funnel.matryoshka.selection import FOLDS, certified, cross_validated
from funnel.matryoshka.thresholds import Integers, Scored, confidences, exits
from funnel.widths import checked_widths

__all__ = ["AdaptiveClassifier", "AdaptivePrediction", "AdaptiveReport"]

Logits = Mapping[int, torch.Tensor | NDArray[Any]]
Labels = torch.Tensor | NDArray[Any] | Sequence[int]

# 30 splits of digits, 450 validation rows each: 0, 1 and 2 standard errors kept the accuracy of the full width to
# −.179, −.045 and +.015 points on unseen rows, at .148, .158 and .179 of its width.
MARGIN = 2.0


@dataclass(frozen=True)
class AdaptivePrediction:
    """Classes, and the widths that gave them.

    Attributes:
        classes: int64 [n].
        widths: int64 [n], one of dims for each row.
    """

    classes: torch.Tensor
    widths: torch.Tensor

    @property
    def mean_width(self) -> float:
        """The mean width used."""
        return float(self.widths.double().mean())


@dataclass(frozen=True)
class AdaptiveReport:
    """What early exit gives and what it takes, against the widest width for every row.

    Attributes:
        rows: how many rows it was measured on.
        accuracy: share of rows that are right.
        full_accuracy: the same at the widest width.
        mean_width: mean width at which a row leaves: how much of an embedding is read, and, with a shared head,
            multiplied.
        full_width: the widest width.
        mean_multiplied: mean sum of the widths up to that: what separate heads multiply.
        shares: by width, the share of rows that leave there.
    """

    rows: int
    accuracy: float
    full_accuracy: float
    mean_width: float
    full_width: int
    mean_multiplied: float
    shares: dict[int, float]


@dataclass(frozen=True)
class AdaptiveClassifier:
    """Thresholds on the maximum softmax probability, one for each width but the last.

    A row leaves at the narrowest width whose confidence reaches its threshold, else at the widest. Source: Kusupati et
    al. 2022 (arXiv 2205.13147), section 4.2.1, adaptive classification. What is saved is reading embeddings and
    multiplying by heads; the encoder runs once either way.

    Attributes:
        dims: the widths.
        thresholds: one for each width but the last; ∞ where no row leaves.
        target: the accuracy they were learnt for.
        confidence: of the guarantee, or None where there is none.
        estimate: accuracy and mean width of validation rows under thresholds learnt without them. With a guarantee they
            are the rows that tested; else it is slightly hopeful, as one step among many was taken for it.
    """

    dims: tuple[int, ...]
    thresholds: tuple[float, ...]
    target: float
    confidence: float | None
    estimate: AdaptiveReport

    @classmethod
    def fit(
        cls,
        logits: Logits,
        labels: Labels,
        *,
        accuracy: float | None = None,
        margin: float = MARGIN,
        confidence: float | None = None,
        seed: int = 0,
    ) -> AdaptiveClassifier:
        """Learn the thresholds that use the least width and keep the accuracy.

        Thresholds form a path from safe to bold (`threshold_path`); cross-validation says how far it may be walked.
        Nothing is promised by that beyond these rows; the margin makes it likely, and is 0 where no row changes. With
        `confidence` half of the rows learn and half test: then, with that probability over the draw of the validation
        rows, the accuracy on new rows of their kind is at least `accuracy`.

        Args:
            logits: by width, float [n, classes], of validation rows that the model was not trained on.
            labels: whole numbers [n] below classes.
            accuracy: the share of rows to get right; by default what the widest width gets right here.
            margin: standard errors of the accuracy lost that are kept in reserve. Not used with confidence.
            confidence: probability of the guarantee, such as 0.95; it takes an accuracy below what the widest width
                reaches.
            seed: of the split into folds or halves.

        Raises:
            InputError: no validation rows or fewer than 5, fewer than two widths, labels out of range, logits that are
                not finite, accuracy not in (0, 1] or above what the widest width reaches, a negative margin, or a
                confidence that is not between 0 and 1, comes without accuracy, or cannot be had.
        """
        _check_settings(accuracy, margin, confidence)
        checked_seed(seed)
        tensors = _tensors(logits)
        dims = checked_widths(sorted(tensors))
        if len(dims) < 2:
            raise InputError(f"logits of the widths {list(dims)}; early exit needs at least two")
        scored = _scored(logits, labels, dims)
        if len(scored) < FOLDS:
            raise InputError(f"{len(scored)} validation rows; expected at least {FOLDS}, several hundred to be of use")
        full = float(scored.right[-1].mean())
        target = full if accuracy is None else accuracy
        if confidence is not None:
            selection = certified(scored, target, confidence, seed)
        elif target > full:
            raise InputError(
                f"an accuracy of {target:g} cannot be reached: the widest width, {dims[-1]}, is right in {full:.4f} of "
                "the validation rows; ask for no more than that, or train longer"
            )
        else:
            selection = cross_validated(scored, target, margin, seed)
        report = _report(selection.judged, selection.exits)
        return cls(dims, tuple(selection.thresholds.tolist()), target, confidence, report)

    def predict(self, logits: Logits) -> AdaptivePrediction:
        """Classes and widths from the logits of all widths: by width, float [n, classes].

        Raises:
            InputError: a width is missing, shapes differ, or a value is not finite.
        """
        confidence, classes = confidences(_tensors(logits), self.dims)
        chosen = exits(confidence, np.array(self.thresholds))
        return AdaptivePrediction(
            torch.from_numpy(classes[chosen, np.arange(len(chosen))]), torch.tensor(self.dims)[torch.from_numpy(chosen)]
        )

    @torch.no_grad()
    def classify(self, classifier: MultiGranularityClassifier, embeddings: torch.Tensor) -> AdaptivePrediction:
        """The same from embeddings, float [n, d]: a wider head sees only the rows that narrower ones were unsure of.

        Raises:
            InputError: a classifier of other widths, embeddings of another shape or not finite.
        """
        if not isinstance(classifier, MultiGranularityClassifier):
            raise InputError(f"classifier is {shown(classifier)}; expected a MultiGranularityClassifier")
        if classifier.dims != self.dims:
            raise InputError(f"the classifier has the widths {list(classifier.dims)}; expected {list(self.dims)}")
        classifier.check(embeddings)
        classes = torch.empty(len(embeddings), dtype=torch.int64)
        widths = torch.full((len(embeddings),), self.dims[-1])
        rows, logits = torch.arange(len(embeddings)), None
        for width, threshold in zip(self.dims, (*self.thresholds, -np.inf), strict=True):
            logits = classifier.widened(embeddings[rows.to(embeddings.device)], width, logits)
            confidence, best = confidences({width: logits}, (width,))
            leaves = torch.from_numpy(confidence[0] >= threshold)
            classes[rows[leaves]], widths[rows[leaves]] = torch.from_numpy(best[0])[leaves], width
            rows, logits = rows[~leaves], logits[~leaves.to(logits.device)]
        return AdaptivePrediction(classes, widths)

    def evaluate(self, logits: Logits, labels: Labels) -> AdaptiveReport:
        """Accuracy and mean width on other rows; arguments as in fit.

        Raises:
            InputError: no rows, a width is missing, labels out of range, or logits that are not finite.
        """
        scored = _scored(logits, labels, self.dims)
        return _report(scored, exits(scored.confidence, np.array(self.thresholds)))


def _check_settings(accuracy: float | None, margin: float, confidence: float | None) -> None:
    share = "a number above 0 and at most 1, such as 0.95"
    if accuracy is not None and not 0 < checked_number("accuracy", accuracy, share) <= 1:
        raise InputError(f"accuracy is {accuracy}; expected {share}")
    checked_number("margin", margin, f"a number of standard errors from 0, such as {MARGIN:g}")
    if not (margin >= 0 and np.isfinite(margin)):
        raise InputError(f"margin is {margin}; expected a number of standard errors from 0, such as {MARGIN:g}")
    if confidence is None:
        return
    if not 0 < checked_number("confidence", confidence, "a number between 0 and 1, such as 0.95") < 1:
        raise InputError(f"confidence is {confidence}; expected a number between 0 and 1, such as 0.95")
    if accuracy is None:
        raise InputError(
            "confidence was given without accuracy: that of the widest width cannot be shown of itself; say an "
            "accuracy below it"
        )


def _tensors(logits: Logits) -> dict[int, torch.Tensor]:
    if not isinstance(logits, Mapping):
        raise InputError(f"logits is {shown(logits)}; expected an array [n, classes] by width")
    for width in logits:
        checked_whole("a width of logits", width)
    return {width: as_tensor(f"logits of width {width}", values) for width, values in logits.items()}


def _scored(logits: Logits, labels: Labels, dims: tuple[int, ...]) -> Scored:
    confidence, classes = confidences(_tensors(logits), dims)
    expected = as_tensor("labels", labels)
    rows, count = logits[dims[0]].shape
    if not rows:
        raise InputError("no rows were given; expected logits and labels of rows that the model was not trained on")
    check_labels(expected, rows, count)
    return Scored(dims, confidence, classes == expected.cpu().numpy())


def _report(scored: Scored, chosen: Integers) -> AdaptiveReport:
    widths = np.array(scored.dims)
    return AdaptiveReport(
        rows=len(scored),
        accuracy=float(scored.right_at(chosen).mean()),
        full_accuracy=float(scored.right[-1].mean()),
        mean_width=float(widths[chosen].mean()),
        full_width=scored.dims[-1],
        mean_multiplied=float(np.cumsum(widths)[chosen].mean()),
        shares={width: float((chosen == k).mean()) for k, width in enumerate(scored.dims)},
    )
