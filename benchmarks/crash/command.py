"""`python -m benchmarks crash`: the campaign, and its table."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from benchmarks.common import Target, report
from benchmarks.crash.operations import OPERATIONS, STARTS, Operation
from benchmarks.crash.points import Deed
from benchmarks.crash.trials import Stop, Trial, measure, prepare, run_trial

__all__ = ["crash"]

KILLS = 200  # an operation at least: all its file operations, and random times
RANDOM_TIMES = 50  # of them at least
FILE_SIZES = 40  # edges of files that may not grow
DEEDS: tuple[Deed, ...] = ("kill", "ENOSPC", "EIO", "short")
WRITTEN_EVERY = 5  # in one trial of so many the next writer does something, and must end with nothing stray
# What a killed process leaves behind is the same in a file system in memory, and sooner there.
MEMORY = Path("/dev/shm")


@click.command()
@click.option("--sample", type=int, help="So many stops of each kind and operation instead of all.")
@click.option("--faults", type=int, help="So many ENOSPC, EIO and short writes of each operation instead of all.")
@click.option("--only", multiple=True, help="An operation by name; can be given several times.")
@click.option("--seed", default=0, show_default=True, help="Of random times and samples.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the indexes. [default: in memory]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def crash(
    sample: int | None, faults: int | None, only: tuple[str, ...], seed: int, scratch: Path | None, out: Path | None
) -> None:
    """Kill every operation at every file operation and at random times; let the disk fail at each; look what is left.

    Example: python -m benchmarks crash
    """
    chosen = [operation for operation in OPERATIONS if not only or operation.name in only]
    if not chosen:
        raise click.UsageError(f"--only knows {', '.join(operation.name for operation in OPERATIONS)}")
    _one_thread()
    trials: list[Trial] = []
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=scratch or (MEMORY if os.access(MEMORY, os.W_OK) else None)) as temporary:
        folder = Path(temporary)
        for start in {operation.start for operation in chosen}:
            prepare(STARTS[start], folder / start)
        for operation in chosen:
            before = folder / operation.start
            points, seconds, largest = measure(operation, before, folder)
            counts[operation.name] = points
            stops = list(_stops(points, seconds, largest, (sample, faults or sample), np.random.default_rng(seed)))
            for number, stop in enumerate(tqdm(stops, desc=operation.name, unit="trials", mininterval=5)):
                trial = run_trial(operation, before, folder, stop, number % WRITTEN_EVERY == 0)
                trials.append(trial)
                if trial.fault:
                    click.echo(f"{operation.name}, {stop}: {trial.fault}")
    _say(chosen, trials, counts, sample, out)


def _one_thread() -> None:
    """Before any parallel region: a process that had one cannot be forked and go on with OpenMP."""
    import torch

    from funnel.engine import timing
    from indexes._faiss import use_one_thread

    torch.set_num_threads(1)
    use_one_thread()
    # Latencies are measured for milliseconds instead of seconds: what is written is the same.
    timing.WINDOW_SECONDS, timing.MOST_SECONDS = 0.001, 0.01
    timing.MOST_TIMINGS = timing.FEWEST_TIMINGS


def _stops(
    points: int, seconds: float, largest: int, samples: tuple[int | None, int | None], random: np.random.Generator
) -> Iterator[Stop]:
    """Every point with every deed, random times, and edges of files; or samples of kills and of faults."""
    sample, faults = samples
    every = range(points)

    def drawn(values: Sequence[int], count: int | None) -> list[int]:
        if count is None or count >= len(values):
            return list(values)
        return sorted(random.choice(len(values), count, replace=False).tolist())

    for deed in DEEDS:
        yield from (Stop(deed, at=at) for at in drawn(every, sample if deed == "kill" else faults))
    times = sample or max(RANDOM_TIMES, KILLS - points)
    yield from (Stop("kill", seconds=float(at)) for at in random.uniform(0.0, seconds, times))
    edges = np.geomspace(100, largest, min(FILE_SIZES, faults or FILE_SIZES) + 1)
    yield from (Stop("short", file_bytes=int(edge)) for edge in edges[:-1])


def _say(
    chosen: Sequence[Operation], trials: Sequence[Trial], counts: dict[str, int], sample: int | None, out: Path | None
) -> None:
    heads = ("operation", "file operations", "kills there", "at random times", *DEEDS[1:], "broken or lost")
    click.echo(f"\n| {' | '.join(heads)} |\n|:--{'|--:' * (len(heads) - 1)}|")
    table = []
    for operation in chosen:
        own = [trial for trial in trials if trial.operation == operation.name]
        kills = [trial for trial in own if trial.stop.deed == "kill"]
        row: dict[str, object] = {
            "operation": operation.name,
            "file operations": counts[operation.name],
            "kills there": sum(trial.stop.at is not None for trial in kills),
            "at random times": sum(trial.stop.seconds is not None for trial in kills),
            **{deed: sum(trial.stop.deed == deed for trial in own) for deed in DEEDS[1:]},
            "broken or lost": sum(trial.fault is not None for trial in own),
        }
        table.append(row)
        click.echo(f"| {' | '.join(str(value) for value in row.values())} |")
    faults = [trial for trial in trials if trial.fault is not None]
    killed = [sum(t.stop.deed == "kill" for t in trials if t.operation == one.name) for one in chosen]
    targets = [
        Target.at_most("broken opens and lost or foreign rows after a kill", _of(faults, ("kill",)), 0),
        Target.at_most("the same after ENOSPC, EIO and short writes", _of(faults, DEEDS[1:]), 0),
    ]
    if sample is None:
        targets.append(Target.at_least("kills of an operation, at least", min(killed), KILLS))
    facts = {"table": table, "trials": len(trials), "faults": [asdict(trial) for trial in faults]}
    report("crash", targets, facts, out)
    if faults:
        raise SystemExit(1)


def _of(faults: Sequence[Trial], deeds: Sequence[Deed]) -> int:
    return sum(trial.stop.deed in deeds for trial in faults)
