import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from funnel.adaptors import PCA, Adaptor, Identity, Rotation, choose_adaptor, fit_adaptor
from funnel.adaptors import selection as module
from funnel.adaptors.sampling import TrainingQueries, TrainingSet
from tests.funnel.adaptors.clusters import clustered
from tests.funnel.adaptors.test_rotation import SHORT
from tests.funnel.adaptors.test_training import interrupted_at, judged_rows

RECIPES = {"rotation": SHORT}


def test_a_rotation_that_is_better_is_kept_and_said_why(tmp_path: Path) -> None:
    choice = choose_adaptor(clustered(4_000), dims=(4, 8, 16), recipes=RECIPES)
    assert choice.adaptor.kind == "rotation"
    means = {kind: np.mean(list(found.values())) for kind, found in choice.figures.items()}
    assert means["rotation"] > means["pca"] > means["identity"]
    assert choice.why.startswith("rotation: shortlist recall on 200 held-out queries, mean over 3 widths: rotation 0.")
    choice.save(tmp_path)
    assert Adaptor.load(tmp_path).checksum == choice.adaptor.checksum
    said = json.loads((tmp_path / "training.json").read_text())
    assert said["why"] == choice.why
    assert list(said["logs"]) == ["rotation"]
    assert said["figures"]["pca"]["8"] == choice.figures["pca"][8]


def test_a_training_that_harms_is_not_kept() -> None:
    harmful = replace(SHORT, patience=100, phases=(replace(SHORT.phases[0], steps=20, learning_rate=3.0),))
    choice = choose_adaptor(clustered(4_000), dims=(4, 8, 16), recipes={"rotation": harmful})
    start, kept = choice.figures["pca"], choice.figures[choice.adaptor.kind]
    assert all(abs(kept[width] - start[width]) < 0.002 for width in start)


def test_a_rotation_worse_than_pca_somewhere_goes_part_of_the_way() -> None:
    """Narrow widths gain by what it learnt, and the widest loses."""
    rows = clustered(4_000)
    data = TrainingSet(rows, SHORT, 4)
    pca = PCA.fit(data.rows.numpy(), dims=(4, 8, 16))
    trained = fit_adaptor("rotation", rows, dims=(4, 8, 16), recipe=SHORT, data=data).adaptor
    assert isinstance(trained, Rotation)
    spoilt = trained.matrix.clone()
    spoilt[:, 8:16], spoilt[:, 24:32] = trained.matrix[:, 24:32], trained.matrix[:, 8:16]
    candidates = {"identity": Identity(32), "pca": pca, "rotation": Rotation(spoilt.numpy(), (4, 8, 16))}
    figures = {kind: data.compared.per_query(adaptor.map, (4, 8, 16)) for kind, adaptor in candidates.items()}
    assert module._worse_at("rotation", figures) == ("pca", 16)
    said = module._towards_pca(candidates, figures, data.compared, data.rows)
    assert "of the way to pca: as trained, worse than it at 16 dims" in said
    assert module._worse_at("rotation", figures) is None
    assert module._best(figures)[0] == "rotation"
    again = data.compared.per_query(candidates["rotation"].map, (4, 8, 16))
    assert all(torch.equal(again[width], figures["rotation"][width]) for width in again)


def compared(**figures: Any) -> dict[str, dict[int, torch.Tensor]]:
    return {kind: {w: torch.tensor(v) for w, v in by_width.items()} for kind, by_width in figures.items()}


def test_a_candidate_clearly_worse_at_one_width_is_left_out() -> None:
    even = [0.5] * 50
    kind, words = module._best(
        compared(
            identity={4: even, 8: even},
            pca={4: even, 8: [0.6] * 50},
            rotation={4: [0.9] * 50, 8: [0.55] * 50},
        )
    )
    assert kind == "pca"
    assert "rotation left out: worse than pca at 8 dims" in words


def test_a_difference_within_its_noise_is_no_reason() -> None:
    rng = np.random.default_rng(0)
    noise = (0.6 + 0.2 * rng.standard_normal(50)).tolist()
    lower = (np.array(noise) + 0.1 * rng.standard_normal(50) - 0.01).tolist()
    kind, _ = module._best(
        compared(
            identity={4: [0.1] * 50, 8: [0.1] * 50},
            pca={4: [0.5] * 50, 8: noise},
            rotation={4: [0.9] * 50, 8: lower},
        )
    )
    assert kind == "rotation"


def test_identity_is_kept_where_prefixes_are_nested_already() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((4_000, 16)) * np.linspace(1, 0.02, 16) ** 2
    still = replace(SHORT, phases=(replace(SHORT.phases[0], steps=1, learning_rate=1e-12),))
    choice = choose_adaptor(rows.astype(np.float32), dims=(4, 8), recipes={"rotation": still})
    assert abs(choice.figures["identity"][8] - choice.figures["pca"][8]) < 0.01


@pytest.mark.parametrize(("loses", "kept"), [(0.004, "identity"), (0.006, "rotation")])
def test_nested_prefixes_are_kept_plain(loses: float, kept: str) -> None:
    """A projection costs a query time: .005 of the neighbours at one width are what it has to win."""
    trained = {8: torch.full((100,), 0.9), 16: torch.full((100,), 0.95)}
    plain = {8: trained[8] - loses, 16: trained[16]}
    kind, words = module._best({"identity": plain, "pca": plain, "rotation": trained})
    assert kind == kept
    assert ("they are nested" in words) == (kept == "identity")


def test_prefixes_that_collapse_are_said_to() -> None:
    trained, plain = {8: torch.full((100,), 0.9)}, {8: torch.full((100,), 0.2)}
    kind, words = module._best({"identity": plain, "pca": plain, "rotation": trained})
    assert kind == "rotation"
    assert "plain prefixes collapse: 0.200 at 8 dims, rotation 0.900" in words


def test_too_few_rows_are_no_error() -> None:
    choice = choose_adaptor(clustered(900))
    assert choice.adaptor.kind == "pca"
    assert choice.why == "pca: 900 different vectors are too few to train and compare on"


def test_with_judgements_an_mlp_takes_part() -> None:
    rows, judged = judged_rows(1_200)
    quick = replace(SHORT, phases=(replace(SHORT.phases[0], steps=2),))
    choice = choose_adaptor(
        rows, dims=(4, 8), queries=TrainingQueries(judged), recipes={"rotation": quick, "mlp": quick}
    )
    assert set(choice.figures) == {"identity", "pca", "rotation", "mlp"}
    assert choice.figure == "nDCG@10"


def test_an_interrupt_begins_no_further_training(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, judged = judged_rows(1_200)
    interrupted_at(25, monkeypatch)
    slow = replace(SHORT, phases=(replace(SHORT.phases[0], steps=60),))
    choice = choose_adaptor(
        rows,
        dims=(4, 8),
        queries=TrainingQueries(judged),
        recipes={"rotation": slow, "mlp": slow},
        keep_on_interrupt=True,
    )
    assert set(choice.figures) == {"identity", "pca", "rotation"}
    assert choice.logs["rotation"].interrupted
    assert choice.logs["rotation"].best_step in (0, 20)
