import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from funnel.adaptors import Judged, Phase, Recipe, TrainingQueries, fit_adaptor
from funnel.adaptors import sampling as module_of_figures
from funnel.adaptors import training as module
from funnel.errors import InputError
from tests.funnel.adaptors.clusters import clustered
from tests.funnel.adaptors.test_rotation import SHORT


def with_phase(**changes: Any) -> Recipe:
    return replace(SHORT, phases=(replace(SHORT.phases[0], **changes),))


def judged_rows(n: int = 400, queries: int = 60, dim: int = 16) -> tuple[npt.NDArray[np.float32], Judged]:
    """Queries answered by the rows nearest to them in dims that the embeddings hardly weigh."""
    rows = clustered(n, dim)
    asked = clustered(queries, dim, seed=1)
    nearest = np.argsort(-(asked[:, 8:] @ rows[:, 8:].T), axis=1)[:, :3]
    return rows, Judged(
        torch.from_numpy(asked), [torch.from_numpy(found) for found in nearest], [torch.ones(3)] * queries
    )


def interrupted_at(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C in that step, counted over all trainings."""
    real = module.losses_of

    calls = itertools.count(1)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == step:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "losses_of", interrupted)


def test_the_log_holds_every_loss_and_figure() -> None:
    recipe = with_phase(weights={"distillation": 1.0, "pairwise": {0: 0.5, 1: 0.0}}, steps=40)
    log = fit_adaptor("rotation", clustered(1_500), dims=(4, 8), recipe=recipe, seed=5).log
    assert [step["step"] for step in log.steps] == list(range(1, 41))
    assert all(math.isfinite(step["distillation"]) for step in log.steps)
    epochs = {step["step"]: step["epoch"] for step in log.steps}
    assert epochs[1] == 0  # 1,024 anchors, 64 a step
    assert epochs[16] == 0
    assert epochs[17] == 1
    assert all(("pairwise" in step) == (step["epoch"] == 0) for step in log.steps)
    assert [evaluation["step"] for evaluation in log.evaluations] == [0, 20, 40]
    assert set(log.evaluations[0]["figures"]) == {4, 8}
    assert (log.kind, log.dims, log.seed, log.figure) == ("rotation", [4, 8], 5, "shortlist recall")
    assert log.seconds > 0


@pytest.mark.usefixtures("bars_at_once")
def test_progress_shows_every_loss_and_the_held_out_figure(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = with_phase(weights={"distillation": 1.0, "pairwise": 0.5}, steps=20)
    log = fit_adaptor("rotation", clustered(300), dims=(4,), recipe=recipe, progress=True).log
    shown = capsys.readouterr().err
    assert "train rotation" in shown
    assert "20/20" in shown
    last = log.steps[-1]
    assert f"distillation={last['distillation']:.4f}, pairwise={last['pairwise']:.4f}" in shown
    assert "shortlist recall=" in shown


def test_the_best_state_is_given_back_not_the_last() -> None:
    recipe = with_phase(steps=40, learning_rate=3.0)  # far too large: the untrained state is the best
    trained = fit_adaptor("rotation", clustered(1_500), dims=(4, 8), recipe=recipe)
    assert trained.log.best_step == 0
    start = fit_adaptor("rotation", clustered(1_500), dims=(4, 8), recipe=with_phase(steps=1, learning_rate=1e-12))
    np.testing.assert_allclose(
        trained.adaptor.transform(clustered(50))[:, :8], start.adaptor.transform(clustered(50))[:, :8], atol=1e-5
    )


def test_it_stops_when_the_figure_stops_rising() -> None:
    log = fit_adaptor("rotation", clustered(1_500), dims=(4, 8), recipe=with_phase(steps=2_000, learning_rate=3.0)).log
    assert len(log.steps) == 40
    assert log.stopped == ["unsupervised: no rise in 2 figures, at step 40"]


@pytest.mark.parametrize(("tolerance", "kept"), [(0.0, 20), (0.05, 60)])
def test_a_later_state_within_the_tolerance_is_kept(
    monkeypatch: pytest.MonkeyPatch, tolerance: float, kept: int
) -> None:
    """Shortlist recalls .5, .7, .68, .66 and then .6: measured from the best, not from the one before."""
    figures = iter([0.5, 0.7, 0.68, 0.66, 0.6, 0.6])
    monkeypatch.setattr(module_of_figures.HeldOut, "figures", lambda *_: dict.fromkeys((4, 8), next(figures)))
    recipe = replace(with_phase(steps=200), tolerance=tolerance)
    log = fit_adaptor("rotation", clustered(300), dims=(4, 8), recipe=recipe).log
    assert log.best_step == kept
    assert log.stopped == [f"unsupervised: no rise in 2 figures, at step {kept + 40}"]


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.losses_of

    calls = itertools.count(1)

    def failing(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        return found if next(calls) < 30 else {name: loss * math.nan for name, loss in found.items()}

    monkeypatch.setattr(module, "losses_of", failing)
    trained = fit_adaptor("rotation", clustered(1_500), dims=(4, 8), recipe=SHORT)
    assert trained.log.stopped == ["unsupervised: diverged at step 30: a loss of nan; the best state is kept"]
    assert trained.log.best_step == 20
    assert np.isfinite(trained.adaptor.transform(clustered(50))).all()


@pytest.mark.parametrize("keep", [True, False])
def test_an_interrupt_leaves_the_best_state_or_is_passed_on(monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    interrupted_at(25, monkeypatch)
    train = partial(fit_adaptor, "rotation", clustered(1_500), dims=(4, 8), recipe=SHORT, keep_on_interrupt=keep)
    if not keep:
        with pytest.raises(KeyboardInterrupt):
            train()
        return
    log = train().log
    assert log.best_step == 20
    assert log.stopped == ["interrupted after step 25"]
    assert log.interrupted


def test_the_second_phase_trains_on_judgements() -> None:
    rows, judged = judged_rows()
    phases = (
        replace(SHORT.phases[0], steps=20),
        Phase("supervised", {"ranking": 1.0}, steps=60, learning_rate=1e-2, judged=True),
    )
    log = fit_adaptor(
        "rotation", rows, dims=(4, 8), queries=TrainingQueries(judged), recipe=replace(SHORT, phases=phases)
    ).log
    assert log.figure == "nDCG@10"
    assert {step["phase"] for step in log.steps} == {"unsupervised", "supervised"}
    assert log.judged > 30
    ranking = [step["ranking"] for step in log.steps if "ranking" in step]
    assert np.mean(ranking[-10:]) < np.mean(ranking[:10])
    figures = [evaluation["mean"] for evaluation in log.evaluations]
    assert max(figures) > figures[0]


def test_without_judgements_the_second_phase_is_left_out() -> None:
    phases = (replace(SHORT.phases[0], steps=2), Phase("supervised", {"ranking": 1.0}, 2, 1e-3, judged=True))
    log = fit_adaptor("rotation", clustered(300), dims=(4,), recipe=replace(SHORT, phases=phases)).log
    assert {step["phase"] for step in log.steps} == {"unsupervised"}


def test_a_kind_that_is_not_trained_is_named() -> None:
    with pytest.raises(InputError, match="'pca' is not trained; choose one of rotation, mlp"):
        fit_adaptor("pca", clustered(300))


@pytest.mark.parametrize("dims", [(8, 4), (4, 33), (0, 4)])
def test_dims_that_cannot_be_trained(dims: Any) -> None:
    with pytest.raises(InputError, match="expected rising widths from 1 to 32"):
        fit_adaptor("rotation", clustered(300), dims=dims)
