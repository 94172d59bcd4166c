"""What a training showed: a table for the terminal, and its curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funnel.adaptors import AdaptorChoice, TrainingLog
from funnel.errors import MissingPackageError
from funnel.reports.curves import LOSS_COLOURS, WAY_COLOURS, Curve, by_step, by_width, legend
from funnel.reports.plots import FLAT_COLOUR, TEXT, heading, new_figure, save_figure
from funnel.reports.tables import Column, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["show_training", "training_plot"]

PLOT = "training.png"
FIGURE_NOTES = {
    "shortlist recall": ["by dims: the share of the true top 10 among the best 50 by the prefix (1 % of few rows)"]
}
# Keys of a step's record that are not losses.
STEP_KEYS = ("step", "phase", "epoch")
WIDTH_IN_INCHES, ROW_IN_INCHES, HEAD_IN_INCHES = 12.0, 3.4, 1.2
Figures = Mapping[str, Mapping[int, float]]


def show_training(choice: AdaptorChoice, folder: Path) -> str:
    """Draw training.png into the folder of a saved adaptor.

    Returns:
        The text for the terminal: held-out figures by kind and width, why the adaptor was kept, how each training
        went, and the files in the folder. Without matplotlib, or with nothing trained, there is no picture, and the
        text says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    if any(log.evaluations for log in choice.logs.values()):
        try:
            training_plot(choice, folder / PLOT)
        except MissingPackageError as error:
            said = [str(error)]
    else:
        said = ["nothing was trained, so there are no curves to draw"]
    figures = _held_out(choice)
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    parts = [
        [choice.why],
        [_table(figures, choice), *FIGURE_NOTES.get(choice.figure, [])] if figures else [],
        [line for log in choice.logs.values() for line in _course(log)],
        [f"written to {folder}/: {files}", *said],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def training_plot(choice: AdaptorChoice, path: Path) -> None:
    """Write a PNG with two panels a trained kind, losses and held-out figure by step, and one of figures by width.

    Raises MissingPackageError without matplotlib.
    """
    logs = [log for log in choice.logs.values() if log.evaluations]
    figure = new_figure((WIDTH_IN_INCHES, ROW_IN_INCHES * len(logs) + HEAD_IN_INCHES))
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        len(logs), 3, left=0.05, right=0.985, top=1 - 1.1 / height, bottom=0.55 / height, wspace=0.18, hspace=0.42
    )
    for row, log in enumerate(logs):
        _losses(figure.add_subplot(grid[row, 0]), log)
        _progress(figure.add_subplot(grid[row, 1]), log)
    _widths(figure.add_subplot(grid[:, 2]), choice)
    heading(figure, 1 - 0.3 / height, f"Training: {choice.adaptor.kind} kept", 15, TEXT, "bold")
    heading(figure, 1 - 0.6 / height, choice.why, 10, FLAT_COLOUR, "normal")
    save_figure(figure, path)


def _losses(axes: Axes, log: TrainingLog) -> None:
    names = dict.fromkeys(name for step in log.steps for name in step if name not in STEP_KEYS)
    curves = [
        Curve(name, {step["step"]: step[name] for step in log.steps if name in step}, LOSS_COLOURS.get(name, TEXT))
        for name in names
    ]
    by_step(axes, f"{log.kind}: loss terms, weighted", curves, _phases(log), averaged=True)
    if curves:
        legend(axes)


def _progress(axes: Axes, log: TrainingLog) -> None:
    points = {evaluation["step"]: evaluation["mean"] for evaluation in log.evaluations}
    colour = WAY_COLOURS.get(log.kind, TEXT)
    title = f"{log.kind}: held-out {log.figure}, mean"
    curves = [Curve(f"dot: the state kept, step {log.best_step}", points, colour)]
    by_step(axes, title, curves, _phases(log), marked=log.best_step)
    legend(axes, "lower right")


def _phases(log: TrainingLog) -> dict[str, int]:
    """The first step of each phase."""
    begun: dict[str, int] = {}
    for step in log.steps:
        begun.setdefault(step["phase"], step["step"])
    return begun


def _widths(axes: Axes, choice: AdaptorChoice) -> None:
    figures = _held_out(choice)
    curves = [Curve(name, found, WAY_COLOURS.get(name, FLAT_COLOUR)) for name, found in figures.items()]
    by_width(axes, f"held-out {choice.figure} by width", curves)
    legend(axes, "lower right")


def _held_out(choice: AdaptorChoice) -> Figures:
    """By kind and width: what the choice was made by; for a kind that was asked for, its own first and best figure."""
    if choice.figures:
        return choice.figures
    found: dict[str, Mapping[int, float]] = {}
    for kind, log in choice.logs.items():
        if log.evaluations:
            found[f"{kind}, untrained"] = log.evaluations[0]["figures"]
            found[kind] = _best(log)["figures"]
    return found


def _best(log: TrainingLog) -> dict[str, Any]:
    """The evaluation of the state that was kept."""
    return next(evaluation for evaluation in log.evaluations if evaluation["step"] == log.best_step)


def _table(figures: Figures, choice: AdaptorChoice) -> str:
    widths = list(next(iter(figures.values())))
    rows: list[dict[str, Any]] = [
        {
            "kind": kind,
            **{str(width): value for width, value in found.items()},
            "mean": sum(found.values()) / len(found),
            "kept": "kept" if kind == choice.adaptor.kind else "",
        }
        for kind, found in figures.items()
    ]
    columns = [
        Column("kind", f"held-out {choice.figure}", left=True),
        *(Column(str(width), str(width), ".4f") for width in widths),
        Column("mean", "mean", ".4f"),
        Column("kept", "", left=True),
    ]
    return text_table(rows, columns)


def _course(log: TrainingLog) -> list[str]:
    judged = f" and {log.judged:,} judged queries" if log.judged else ""
    return [
        f"{log.kind}: {len(log.steps):,} steps on {log.rows:,} rows{judged} in {log.seconds:.1f} s, "
        f"state of step {log.best_step} kept",
        *(f"  {why}" for why in log.stopped),
    ]
