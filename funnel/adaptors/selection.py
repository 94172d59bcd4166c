"""Choosing an adaptor: train the candidates, compare all on held-out queries width by width, keep the best."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from funnel.adaptors.base import Adaptor, Sample
from funnel.adaptors.recipes import JUDGED_MLP, Recipe, recipe_for
from funnel.adaptors.rotation import PCA, Identity, OrthogonalAdaptor, SecondMoment, blended
from funnel.adaptors.sampling import NO_QUERIES, HeldOut, TrainingQueries, TrainingSet, checked_rows, distinct_numbers
from funnel.adaptors.training import Trained, TrainingLog, fit_adaptor, training_widths, whole
from funnel.plainjson import plain_json

TRAINING_FILE = "training.json"
# Below so many different rows a twentieth of them, held out, tells no two adaptors apart.
LEAST_TO_TRAIN = 1_000
# A candidate may be this many standard errors (of the paired differences) below PCA or identity at one width, where
# its mean over the widths is above theirs: less is not told apart from being equal.
STANDARD_ERRORS = 2.0
# Plain prefixes are kept where at no width they lose more than this share: those of a model trained to be nested. A
# projection would cost a query more than it wins. Where they hold less than half, they are said to collapse.
NESTED, COLLAPSED = 0.005, 0.5
# Steps towards PCA of a rotation that is worse than it somewhere: on 1,400 abstracts half of the way gave up half of
# the gain at 32 dims, and all of the loss at 128.
TOWARDS_PCA = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class AdaptorChoice:
    """The adaptor kept, and why.

    Attributes:
        adaptor: the one kept.
        why: one sentence.
        figure: what the figures are: "shortlist recall" or "nDCG@10".
        figures: by kind, by width, the mean over the held-out queries.
        logs: the logs of those trained, by kind.
    """

    adaptor: Adaptor
    why: str
    figure: str = ""
    figures: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    logs: Mapping[str, TrainingLog] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the adaptor into the folder, and beside it training.json: why it was kept, and every log."""
        self.adaptor.save(folder)
        said = {
            "why": self.why,
            "figure": self.figure,
            "figures": self.figures,
            "logs": {kind: asdict(log) for kind, log in self.logs.items()},
        }
        (Path(folder) / TRAINING_FILE).write_text(plain_json(said, indent=1) + "\n", encoding="utf-8")


def choose_adaptor(
    sample: Sample,
    *,
    dims: Sequence[int] | None = None,
    queries: TrainingQueries = NO_QUERIES,
    recipes: Mapping[str, Recipe] | None = None,
    seed: int = 0,
    progress: bool = False,
    keep_on_interrupt: bool = False,
) -> AdaptorChoice:
    """Train `rotation` (and `mlp` where there are judgements), compare with identity and PCA, keep the best.

    The figure is that of `fit_adaptor`, over held-out queries that neither trained nor stopped a candidate. A trained
    adaptor is kept only where its mean over the widths is above those of PCA and identity, and at no width below
    either by more than two standard errors; identity wherever it loses at most .005 to the best at every width. A
    rotation that is worse, as it may be on small corpora, is first moved towards PCA, a quarter of the way at a time.

    Args:
        sample: float [n, d], or chunks of such rows; with judgements, all documents.
        dims: widths compared; default: half octaves up to half of d or 256.
        queries: judged ones, real ones and pieces of documents: what to train on, to stop and to choose by.
        recipes: by kind, in place of the default ones.
        seed: of everything random.
        progress: show bars on stderr.
        keep_on_interrupt: on Ctrl-C choose among the best states so far; what was not begun is not trained.

    Raises:
        InputError: rows or dims that cannot be used. Fewer than 1,000 different rows are no error: PCA is kept.
    """
    vectors = whole(sample)
    widths = training_widths(dims, vectors.shape[1])
    different = len(distinct_numbers(checked_rows(vectors)))
    if different < max(LEAST_TO_TRAIN, widths[0]):
        why = f"pca: {different:,} different vectors are too few to train and compare on"
        return AdaptorChoice(PCA.fit(vectors, dims=widths), why)
    recipes = {"rotation": recipe_for("rotation", queries.pieces), "mlp": JUDGED_MLP, **(recipes or {})}
    data = TrainingSet(vectors, recipes["rotation"], widths[0], queries, seed)
    trained: dict[str, Trained] = {}
    for kind in ("rotation",) if queries.judged is None else ("rotation", "mlp"):
        trained[kind] = fit_adaptor(
            kind, vectors, dims=widths, recipe=recipes[kind], data=data, seed=seed, progress=progress,
            keep_on_interrupt=keep_on_interrupt,
        )  # fmt: skip
        if trained[kind].log.interrupted:
            break
    candidates: dict[str, Adaptor] = {
        "identity": Identity(vectors.shape[1], widths),
        "pca": PCA.fit(data.rows.numpy(), dims=widths),
        **{kind: result.adaptor for kind, result in trained.items()},
    }
    compared = {kind: data.compared.per_query(adaptor.map, widths) for kind, adaptor in candidates.items()}
    moved = _towards_pca(candidates, compared, data.compared, data.rows)
    kept, why = _best(compared)
    figure = data.compared.figure
    return AdaptorChoice(
        candidates[kept],
        f"{kept}: {figure} on {len(data.compared):,} held-out queries, {why}{moved}{queries.note}",
        figure,
        {kind: {width: float(v.mean()) for width, v in found.items()} for kind, found in compared.items()},
        {kind: result.log for kind, result in trained.items()},
    )


def _towards_pca(
    candidates: dict[str, Adaptor],
    compared: dict[str, dict[int, torch.Tensor]],
    held_out: HeldOut,
    rows: torch.Tensor,
) -> str:
    """Put the first step towards PCA that is nowhere clearly worse in place of a rotation that is; said in words."""
    worse = _worse_at("rotation", compared)
    trained, pca = candidates["rotation"], candidates["pca"]
    assert isinstance(trained, OrthogonalAdaptor)
    assert isinstance(pca, OrthogonalAdaptor)
    if worse is None or worse[0] != "pca":
        return ""
    moment = SecondMoment(trained.dim)
    moment.update(rows.numpy())
    for share in TOWARDS_PCA:
        step = blended(trained, pca, share, moment)
        figures = held_out.per_query(step.map, trained.dims)
        if _worse_at("rotation", {**compared, "rotation": figures}) is None:
            candidates["rotation"], compared["rotation"] = step, figures
            return f"; rotation moved {share:.0%} of the way to pca: as trained, worse than it at {worse[1]} dims"
    return ""


def _best(compared: Mapping[str, Mapping[int, torch.Tensor]]) -> tuple[str, str]:
    """The kind to keep, and its figures in words."""
    means = {kind: sum(float(v.mean()) for v in found.values()) / len(found) for kind, found in compared.items()}
    falling = sorted(means, key=lambda kind: means[kind], reverse=True)
    words = ", ".join(f"{kind} {means[kind]:.4f}" for kind in falling)
    worse = {kind: _worse_at(kind, compared) for kind in falling}
    kept = next(kind for kind in falling if worse[kind] is None)  # the better of PCA and identity is never left out
    notes = (
        f"; {kind} left out: worse than {found[0]} at {found[1]} dims"
        for kind in falling[: falling.index(kept)]
        if (found := worse[kind])
    )
    said = f"mean over {len(compared[kept])} widths: {words}{''.join(notes)}"
    plain, best = ({width: float(v.mean()) for width, v in compared[kind].items()} for kind in ("identity", kept))
    if kept != "identity" and all(best[width] - plain[width] <= NESTED for width in best):
        return "identity", f"{said}; plain prefixes lose at most {NESTED} to {kept} at every width: they are nested"
    narrow = min(best)
    if plain[narrow] < COLLAPSED * best[narrow]:
        said += f"; plain prefixes collapse: {plain[narrow]:.3f} at {narrow} dims, {kept} {best[narrow]:.3f}"
    return kept, said


def _worse_at(kind: str, compared: Mapping[str, Mapping[int, torch.Tensor]]) -> tuple[str, int] | None:
    """A simpler kind, and a width where this one is clearly below it."""
    if kind in ("identity", "pca"):
        return None
    for simple in ("identity", "pca"):
        for width, values in compared[kind].items():
            difference = values - compared[simple][width]
            error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
            if float(difference.mean()) < -STANDARD_ERRORS * error - 1e-9:
                return simple, width
    return None
