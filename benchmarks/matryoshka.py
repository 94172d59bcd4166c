"""Matryoshka training on real classes: accuracy by width, against short encoders, and early exit."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import click
import numpy as np
import torch

from benchmarks.common import Target, data_folder, report
from benchmarks.texts import wordllama_encoder
from funnel.matryoshka import (
    AdaptiveClassifier,
    AdaptiveReport,
    MultiGranularityClassifier,
    MultiGranularityCrossEntropy,
    compare_truncations,
)
from funnel.reports.tables import Column, text_table

__all__ = ["matryoshka"]

FIRST_SEED = 200  # how thresholds are learnt was settled on seeds from 0
HALF = 0.5  # of the full width
SAME = 0.1  # points: half a row of a digits test split
LESS = (0.0, 0.1, 1.0)  # points of accuracy given away; the first is judged

# The Protestant order of books, cut into law, history, wisdom, prophets, gospels with Acts, letters with Revelation.
FIRST_BOOKS = ("Gen", "Josh", "Job", "Isa", "Matt", "Rom")

COLUMNS = (
    Column("model", "model", left=True),
    Column("width", "mean width", ".1f"),
    Column("accuracy", "accuracy", ".4f"),
    Column("spread", "± seeds", ".4f"),
    Column("shared", "one head", ".4f", optional=True),
    Column("short", "short encoder", ".4f", optional=True),
    Column("correlation", "similarities' correlation", ".3f", optional=True),
    Column("lost", "points lost", "+.3f", optional=True),
)


@dataclass(frozen=True)
class Task:
    """Rows with classes, and how an encoder is trained on them."""

    name: str
    rows: torch.Tensor
    labels: torch.Tensor
    dims: tuple[int, ...]
    hidden: int
    dropout: float
    steps: int
    batch: int
    rate: float
    seeds: int
    compared: bool

    def split(self, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row numbers to train on (half), to learn thresholds on and to judge on (a quarter each)."""
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed))
        half, quarter = len(order) // 2, len(order) // 4
        return order[:half], order[half : half + quarter], order[half + quarter :]


@dataclass(frozen=True)
class Model:
    """A trained encoder and its heads."""

    encoder: torch.nn.Module
    classifier: MultiGranularityClassifier

    @torch.no_grad()
    def embed(self, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [n, d]."""
        embeddings: torch.Tensor = self.encoder(rows)
        return embeddings

    @torch.no_grad()
    def logits(self, rows: torch.Tensor) -> dict[int, torch.Tensor]:
        """Logits by width."""
        logits: dict[int, torch.Tensor] = self.classifier(self.embed(rows))
        return logits


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--seeds", type=int, help="Splits and trainings of each set. [default: 10 of digits, 5 of verses]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def matryoshka(data: Path | None, seeds: int | None, out: Path | None) -> None:
    """Train nested encoders on digits (images) and verses (texts), and let sure rows leave early.

    Example: python -m benchmarks matryoshka --data ../shared/data
    """
    targets: list[Target] = []
    facts: dict[str, Any] = {}
    tasks = [digits()]
    if find_spec("wordllama") is None:
        click.echo("verses left out: pip install wordllama for the encoder of their texts")
    else:
        tasks.append(verses(data_folder(data) / "kjv-crossrefs"))
    for task in tasks:
        runs = [run(task, FIRST_SEED + number) for number in range(seeds or task.seeds)]
        rows = table(task, runs)
        click.echo(f"\n{task.name}, {len(runs)} seeds, accuracy on unseen rows\n{text_table(rows, COLUMNS)}")
        adaptive = rows[len(task.dims)]
        targets += [
            Target.at_most(f"{task.name}: points of accuracy lost by early exit", adaptive["lost"], SAME),
            Target.at_most(f"{task.name}: mean width, of the full", adaptive["width"] / task.dims[-1], HALF),
        ]
        facts[task.name] = {"rows": rows, "runs": runs}
    report("matryoshka", targets, facts, out)


def digits() -> Task:
    """1,797 images of 8 × 8 pixels, ten classes, part of scikit-learn."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = torch.tensor(images / 16, dtype=torch.float32)
    return Task("digits", rows, torch.tensor(labels), (2, 4, 8, 16, 32, 64), 128, 0.0, 600, 128, 3e-3, 10, True)


def verses(folder: Path) -> Task:
    """31,102 verses, embedded by wordllama, and the six parts of the Bible they come from."""
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as temporary:
        rows = torch.from_numpy(wordllama_encoder(Path(temporary))([line["text"] for line in lines]))
    books = [line["_id"].split(".")[0] for line in lines]
    starts = [books.index(book) for book in FIRST_BOOKS]
    labels = torch.from_numpy(np.searchsorted(starts, np.arange(len(books)), side="right") - 1)
    unit = torch.nn.functional.normalize(rows, dim=1)
    return Task("verses", unit, labels, (4, 8, 16, 32, 64, 128), 512, 0.3, 1_200, 256, 2e-3, 5, False)


def run(task: Task, seed: int) -> dict[str, Any]:
    """One split: train, learn thresholds, judge."""
    trained, validation, test = task.split(seed)
    nested = train(task, trained, task.dims, seed)
    labels = task.labels
    known, logits = nested.logits(task.rows[validation]), nested.logits(task.rows[test])
    full = accuracies(known, labels[validation])[task.dims[-1]]
    found: dict[str, Any] = {"accuracy": accuracies(logits, labels[test]), "early": []}
    for less in LESS:
        adaptive = AdaptiveClassifier.fit(known, labels[validation], accuracy=full - less / 100)
        judged = asdict(adaptive.evaluate(logits, labels[test]))
        found["early"].append({"less": less, "thresholds": adaptive.thresholds, "judged": judged})
    if task.compared:
        shared = train(task, trained, task.dims, seed, shared=True)
        found["shared"] = accuracies(shared.logits(task.rows[test]), labels[test])
        found["short"], found["compared"] = {}, {}
        for width in task.dims[:-1]:
            short = train(task, trained, (width,), seed)
            found["short"] |= accuracies(short.logits(task.rows[test]), labels[test])
            rows = task.rows[test]
            found["compared"][width] = asdict(compare_truncations(nested.embed(rows), short.embed(rows)))
    return found


def train(task: Task, rows: torch.Tensor, dims: tuple[int, ...], seed: int, *, shared: bool = False) -> Model:
    """An encoder of one hidden layer with heads at every width; a single width is a natively short one."""
    torch.manual_seed(seed)
    classes = int(task.labels.max()) + 1
    encoder = torch.nn.Sequential(
        torch.nn.Linear(task.rows.shape[1], task.hidden),
        torch.nn.ReLU(),
        torch.nn.Dropout(task.dropout),
        torch.nn.Linear(task.hidden, dims[-1]),
    )
    classifier = MultiGranularityClassifier(dims[-1], classes, dims, shared=shared)
    loss_of = MultiGranularityCrossEntropy(dims)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *classifier.parameters()], lr=task.rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, task.steps)
    for _ in range(task.steps):
        batch = rows[torch.randint(len(rows), (task.batch,))]
        loss = loss_of(classifier(encoder(task.rows[batch])), task.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    return Model(encoder.eval(), classifier.eval())


def accuracies(logits: dict[int, torch.Tensor], labels: torch.Tensor) -> dict[int, float]:
    """Share of right rows by width."""
    return {width: float((values.argmax(dim=1) == labels).double().mean()) for width, values in logits.items()}


def table(task: Task, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each width, then one for early exit at each accuracy."""
    rows = []
    for width in task.dims:
        of_runs = [found["accuracy"][width] for found in runs]
        row = {"model": f"width {width}", "width": width, "accuracy": mean(of_runs), "spread": pstdev(of_runs)}
        for key in ("shared", "short"):
            if width in runs[0].get(key, {}):
                row[key] = mean([found[key][width] for found in runs])
        if width in runs[0].get("compared", {}):
            row["correlation"] = mean([found["compared"][width]["correlation"] for found in runs])
        rows.append(row)
    return [*rows, *(_early([found["early"][place] for found in runs]) for place in range(len(LESS)))]


def _early(of_place: list[dict[str, Any]]) -> dict[str, Any]:
    reports = [AdaptiveReport(**found["judged"]) for found in of_place]
    less = of_place[0]["less"]
    of_runs = [one.accuracy for one in reports]
    return {
        "model": f"early exit, {less:g} points less" if less else "early exit, same accuracy",
        "width": mean([one.mean_width for one in reports]),
        "accuracy": mean(of_runs),
        "spread": pstdev(of_runs),
        "lost": 100 * mean([one.full_accuracy - one.accuracy for one in reports]),
        "widest": max(one.mean_width for one in reports),
        "most_lost": 100 * max(one.full_accuracy - one.accuracy for one in reports),
    }
