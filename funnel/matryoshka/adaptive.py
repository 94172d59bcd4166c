"""Adaptive classification: each row is classified at the narrowest width that is sure of it."""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as shown
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.checks import checked_seed, checked_whole, checked_widths
from funnel.errors import InputError
from funnel.matryoshka.nested import MultiGranularityClassifier, as_tensor, check_labels, check_widths, checked_within

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Powers of the doubt that lead from hardly letting a row out to what loses nothing where it was learnt. Dividing the
# doubt instead kept as much, at .47 instead of .42 of the full width on verses, and .17 instead of .18 on digits.
BACK_OFF = tuple(np.geomspace(8, 1.05, 24).tolist())
# From where no error is worth its saving to where any is; twice as many shorten the mean width by at most 6 %.
PRICES = 24


@dataclass(frozen=True)
class Scored:
    """Rows scored at every width.

    Attributes:
        dims: the K widths, rising.
        confidence: float64 [K, n], the maximum softmax probability.
        right: bool [K, n], whether the class of that probability is the label.
    """

    dims: tuple[int, ...]
    confidence: Floats
    right: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.right.shape[1])

    def take(self, rows: NDArray[np.bool_] | Integers) -> "Scored":
        """Some of the rows, by number or by mask."""
        return Scored(self.dims, self.confidence[:, rows], self.right[:, rows])

    def right_at(self, chosen: Integers) -> NDArray[np.bool_]:
        """Whether each row is right at the width chosen for it, 0 to K-1: bool [n]."""
        return self.right[chosen, np.arange(len(self))]


def confidences(logits: Mapping[int, torch.Tensor], dims: tuple[int, ...]) -> tuple[Floats, Integers]:
    """The maximum softmax probability and its class at every width, from logits [n, classes]: [K, n] each.

    In float64, as float32 makes most confidences of a well-trained head the same 1.0.

    Raises InputError where a width is missing, shapes differ, or a value is not finite.
    """
    check_widths(logits, dims)
    shapes = {tuple(logits[width].shape) for width in dims}
    if len(shapes) > 1 or any(len(shape) != 2 or shape[1] < 2 for shape in shapes):
        raise InputError(f"logits of shapes {sorted(shapes)}; expected (n, classes), the same at every width")
    tops = []
    for width in dims:
        if not torch.isfinite(logits[width]).all():
            raise InputError(f"the logits of width {width} hold values that are not finite; repair or drop those rows")
        tops.append(torch.softmax(logits[width].detach().double().cpu(), dim=1).max(dim=1))
    return (
        torch.stack([top.values for top in tops]).numpy(),
        torch.stack([top.indices for top in tops]).numpy(),
    )


def exits(confidence: Floats, thresholds: Floats) -> Integers:
    """The first width whose confidence reaches its threshold, else the last: [K, n] and [K-1] -> [n]."""
    passed = np.vstack([confidence[:-1] >= thresholds[:, None], np.ones((1, confidence.shape[1]), dtype=bool)])
    chosen: Integers = passed.argmax(axis=0)
    return chosen


def cheapest_thresholds(scored: Scored, price: float) -> Floats:
    """Thresholds at which width + price × errors is small on these rows: float64 [K-1], ∞ where no row leaves.

    From the second widest to the narrowest, each threshold is set to the best there is for all rows, those of the wider
    ones being as they are. With two widths that is the optimum; more rounds, with the rows that then arrive at each
    width, shortened the mean width by 2 % on verses and by nothing on digits.
    """
    cost = np.array(scored.dims, dtype=np.float64)[:, None] + price * ~scored.right
    thresholds, ahead = np.full(len(cost) - 1, np.inf), cost[-1]
    for k in reversed(range(len(thresholds))):
        confidence = scored.confidence[k]
        order = np.argsort(-confidence, kind="stable")
        thresholds[k] = _best_threshold(confidence[order], (ahead - cost[k])[order])
        ahead = np.where(confidence >= thresholds[k], cost[k], ahead)
    return thresholds


def threshold_path(scored: Scored) -> list[Floats]:
    """Thresholds from safe to bold, always the same number of them.

    The first let no row out. Then come those that lose nothing on these rows, their doubt (1 − threshold) raised to a
    falling power: a learnt threshold lies just above the worst row that was seen, and worse rows are still to come.
    The last are the cheapest at a falling price of an error, down to where every row leaves at once.
    """
    dearest, least = max(len(scored), 1) * scored.dims[-1], min(np.diff(scored.dims))
    lossless, *bolder = [cheapest_thresholds(scored, price) for price in np.geomspace(dearest, least / 2, PRICES)]
    never, doubt = np.full(len(lossless), np.inf), 1 - np.minimum(lossless, 1)
    backed_off = [np.where(np.isinf(lossless), np.inf, 1 - doubt**power) for power in BACK_OFF]
    return [never, *backed_off, lossless, *bolder]


def _best_threshold(confidence: Floats, gain: Floats) -> float:
    """Where to let rows out, given falling confidences and what each row gains by leaving; ∞ for nowhere."""
    if not len(confidence):
        return np.inf
    total = np.cumsum(gain)
    # Rows of one confidence leave together.
    total[:-1][confidence[1:] == confidence[:-1]] = -np.inf
    last = int(total.argmax())
    if total[last] <= 0:
        return np.inf
    following = confidence[min(last + 1, len(confidence) - 1)]
    return float((confidence[last] + following) / 2)


FOLDS = 5  # as usual; ten take twice as long


@dataclass(frozen=True)
class Selection:
    """The thresholds taken, and rows that were judged by thresholds learnt without them.

    Attributes:
        thresholds: float64 [K-1].
        judged: the rows judged.
        exits: the width, 0 to K-1, at which each of them left.
    """

    thresholds: Floats
    judged: Scored
    exits: Integers


def cross_validated(scored: Scored, accuracy: float, margin: float, seed: int) -> Selection:
    """Walk the path from safe to bold while out-of-fold rows keep the accuracy.

    Thresholds are learnt on four fifths of the rows and judged on the other. A step is good if what it loses against
    the widest width, plus `margin` standard errors of that (paired: √(lost + gained) rows), leaves the accuracy asked.
    The walk stops at the first step that is not; of those before it the narrowest is learnt again on all rows.
    """
    fold = np.random.default_rng(seed).permutation(len(scored)) % FOLDS
    chosen: NDArray[np.int64] = np.stack([_out_of_fold(scored, fold, number) for number in range(FOLDS)]).sum(axis=0)
    allowed = int(scored.right[-1].sum()) - accuracy * len(scored)
    good = [_loss(scored, step, margin) <= allowed + 1e-9 for step in chosen]
    best = _narrowest(scored, chosen, good)
    return Selection(threshold_path(scored)[best], scored, chosen[best])


def certified(scored: Scored, accuracy: float, confidence: float, seed: int) -> Selection:
    """Learn a path on one half of the rows, and walk it on the other while a test shows the accuracy.

    Each step's hypothesis "the accuracy is below the one asked" is tested by the exact binomial tail at level
    1 − confidence, up to the first that is not rejected: fixed-sequence testing (Angelopoulos et al. 2021, Learn then
    Test, arXiv 2110.01052), valid for every step walked, as the order does not depend on the rows that test.

    Raises InputError where not even the widest width passes.
    """
    order = np.random.default_rng(seed).permutation(len(scored))
    path = threshold_path(scored.take(order[::2]))
    judged = scored.take(order[1::2])
    chosen = np.stack([exits(judged.confidence, thresholds) for thresholds in path])
    correct = [int(judged.right_at(step).sum()) for step in chosen]
    good = [tail_probability(count, len(judged), accuracy) <= 1 - confidence for count in correct]
    if not good[0]:
        higher = range(1, 10_000)  # accuracies in ten thousandths
        shown = bisect(higher, 1 - confidence, key=lambda at: tail_probability(correct[0], len(judged), at / 10_000))
        raise InputError(
            f"an accuracy of {accuracy:g} cannot be shown at confidence {confidence:g}: the widest width is right in "
            f"{correct[0]:,} of the {len(judged):,} rows that test, which shows {shown / 10_000:.4f}; ask for less, or "
            "give more validation rows"
        )
    best = _narrowest(judged, chosen, good)
    return Selection(path[best], judged, chosen[best])


def tail_probability(correct: int, rows: int, accuracy: float) -> float:
    """The probability of at least so many right rows at that accuracy: the p-value of "it is lower"."""
    if accuracy >= 1 or correct == 0:
        return 1.0
    counts, total = torch.arange(correct, rows + 1, dtype=torch.float64), torch.tensor(rows + 1.0, dtype=torch.float64)
    ways = torch.lgamma(total) - torch.lgamma(counts + 1) - torch.lgamma(total - counts)
    terms = ways + counts * math.log(accuracy) + (rows - counts) * math.log1p(-accuracy)
    return min(1.0, float(torch.logsumexp(terms, dim=0).exp()))


def _out_of_fold(scored: Scored, fold: Integers, number: int) -> Integers:
    """At every step of a path learnt without this fold, where its rows leave; 0 for all others: [steps, n]."""
    held = fold == number
    path = threshold_path(scored.take(~held))
    chosen = np.zeros((len(path), len(scored)), dtype=np.int64)
    chosen[:, held] = [exits(scored.confidence[:, held], thresholds) for thresholds in path]
    return chosen


def _loss(scored: Scored, chosen: Integers, margin: float) -> float:
    """Rows lost against the widest width, with the margin."""
    full, taken = scored.right[-1], scored.right_at(chosen)
    lost, gained = int((full & ~taken).sum()), int((taken & ~full).sum())
    return lost - gained + margin * math.sqrt(lost + gained)


def _narrowest(scored: Scored, chosen: Integers, good: list[bool]) -> int:
    """The step of the least mean width, of those before the first that is not good."""
    walked = [*good, False].index(False)
    return int(np.asarray(scored.dims)[chosen[:walked]].mean(axis=1).argmin())


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
    ) -> Self:
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
    checked_within(
        "margin", margin, f"a number of standard errors from 0, such as {MARGIN:g}", lambda x: 0 <= x < math.inf
    )
    if accuracy is not None:
        checked_within("accuracy", accuracy, "a number above 0 and at most 1, such as 0.95", lambda x: 0 < x <= 1)
    if confidence is None:
        return
    checked_within("confidence", confidence, "a number between 0 and 1, such as 0.95", lambda x: 0 < x < 1)
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
