"""python -m benchmarks prefixes: the funnel by itself, every plan swept, the best of each kind timed in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, load_rows, report
from benchmarks.pages import forget
from benchmarks.prefixes.searches import DIRECT, WHOLE, Built, build, by_hand, swept
from benchmarks.turns import BATCH, CLOCKS, LEVELS, PASSES, Truth, Way, cheapest, finalists, time_in_turns, timed_batch
from benchmarks.wide import caption
from funnel.engine.workers import workers
from funnel.reports.tables import Column, text_table
from indexes.system import touched_bytes

__all__ = ["prefixes"]

QUERIES = 2_048
# By the full width: times whole rows asked directly, in batch and single; the share of their memory.
ASKED = {768: (0.9, 1.0, 1 / 2), 1536: (1.5, 1.3, 1 / 4), 2304: (1.8, 1.5, 1 / 4)}
FLATTENED = {1536: 1.0}
ASKED_FAISS = {1536: 1.0}  # at .95
OURS = {"batch_us": (0.95, 0.95, 0.95), "single_us": (0.8, 0.8, 0.9)}  # of asking directly, at LEVELS, over 384 dims
COLUMNS = (
    Column("recall", "recall", ".4f"),
    Column("kind", "search", left=True),
    Column("plan", "plan in batch", left=True),
    Column("batch_us", "us", ",.1f"),
    Column("batch_times", "times", ".2f"),
    Column("single_plan", "plan of one query", left=True),
    Column("single_us", "us", ",.1f"),
    Column("single_times", "times", ".2f"),
    Column("cold_us", "cold us", ",.0f"),
    Column("held_mb", "MB held", ",.0f"),
    Column("touched_mb", "touched", ",.0f"),
    Column("rows_kb", "KB of rows a query", ",.0f"),
    Column("graph_kb", "of the graph", ",.0f"),
)


@click.command()
@click.option(
    "--vectors", type=click.Path(exists=True, path_type=Path), required=True, help="Corpus rows, .npy of any type."
)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help=".npy of such rows.")
@click.option("--width", "widths", type=int, multiple=True, required=True, help="Width of a prefix. May be repeated.")
@click.option("--stages", default="", help="Widths that reranks between may use, separated by commas.")
@click.option(
    "--faiss", "faiss", type=int, multiple=True, help="Also FAISS's graph over this width. [default: --width]"
)
@click.option("--plan", "plans", multiple=True, help="A plan by hand, such as '256:400@800 512:100'. May be repeated.")
@click.option("--k", "ks", type=int, multiple=True, default=(10,), show_default=True, help="May be repeated.")
@click.option("--rows", type=int, help="Only the first so many rows.")
@click.option("--adaptor", type=click.Choice(["pca", "rotation"]), default="pca", show_default=True)
@click.option("--passes", default=PASSES, show_default=True, help="In which the best plans are timed in turns.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def prefixes(
    vectors: Path,
    queries: Path,
    widths: tuple[int, ...],
    stages: str,
    faiss: tuple[int, ...],
    plans: tuple[str, ...],
    ks: tuple[int, ...],
    rows: int | None,
    adaptor: str,
    passes: int,
    out: Path | None,
) -> None:
    """Recall, time and memory of graphs over prefixes with one to five reranks, and over whole rows.

    Whole rows are searched by the engine, and by rabitqlib itself on the same graph; prefixes by SymphonyQG, and by
    FAISS alone. Efforts rise by a fifth, and every plan is run once; those that took the least at .95, .98 and .99 are
    timed in turns, in batches of 256 and one query alone: medians. Times: those of rabitqlib over whole rows, over
    these. Held: anonymous memory of the index. Touched: pages of files that were read by all queries. Cold: a query in
    the first batch after those were dropped.

    Example: python -m benchmarks wide --data ../shared/data --flatten 0.5, then
    python -m benchmarks prefixes --vectors benchmarks/results/wide/corpus-1536.npy --queries
    benchmarks/results/wide/queries-1536.npy --width 192 --width 256 --width 384 --stages 512,768,1024 --k 10 --k 100
    """
    given = np.load(vectors, mmap_mode="r", allow_pickle=False)[:rows]
    asked = np.ascontiguousarray(load_rows(queries)[:QUERIES])
    between = [int(width) for width in stages.split(",") if width.strip()]
    wrong = [width for width in (*widths, *between, *faiss) if not 0 < width < given.shape[1]]
    if wrong:
        raise click.ClickException(f"width {wrong[0]}; expected one from 1 to {given.shape[1] - 1}")
    title = caption(vectors, given)
    click.echo(title)
    facts: dict[str, Any] = {"caption": title, "threads": workers().count, "queries": len(asked), "adaptor": adaptor}
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        built = build(given, sorted(set(widths)), between, sorted(set(faiss or widths)), adaptor, Path(folder))
        for k in ks:
            truth = Truth(given, asked, k)
            ways = [*swept(built, asked, truth), *by_hand(built, plans, asked, truth)]
            best = finalists(ways)
            time_in_turns(best, asked, passes)
            for way in best:
                way.about |= _pages(way, asked, built.folder)
            table = _at_levels(best)
            click.echo(f"\n{title}; k = {k}\n{text_table(table, COLUMNS)}")
            targets += _targets(best, built, k, "-flat" in vectors.stem)
            facts[f"k={k}"] = {"at": table, "timed": _records(best), "swept": _records(ways)}
    report(f"prefixes-{vectors.stem}", targets, facts, out)


def _pages(way: Way, asked: npt.NDArray[np.float32], folder: Path) -> dict[str, float]:
    """What is touched of the files by all queries, and microseconds a query of the first batch without them."""
    forget(folder)
    cold = timed_batch(way, asked[:BATCH])
    forget(folder)
    timed_batch(way, asked)
    return {"cold_us": cold, "touched_mb": (touched_bytes(folder) or 0) / 1e6}


def _records(ways: Sequence[Way]) -> list[dict[str, Any]]:
    return [way.to_json() for way in ways]


def _at_levels(ways: Sequence[Way]) -> list[dict[str, Any]]:
    """At each recall, the fastest of each kind."""
    table = []
    for level in LEVELS:
        for kind in dict.fromkeys(way.kind for way in ways):
            batch, single = (cheapest([way for way in ways if way.kind == kind], level, clock) for clock in CLOCKS)
            if batch is None or single is None:
                continue
            row = {**batch.to_json(), "asked": level, "single_plan": single.label, "single_us": single.us("single_us")}
            for clock, way in zip(CLOCKS, (batch, single), strict=True):
                row[clock.replace("us", "times")] = _times(ways, way, level, clock)
            table.append(row)
    return table


def _of(ways: Sequence[Way], *kinds: str) -> list[Way]:
    return [way for way in ways if way.kind.startswith(kinds)]


def _times(ways: Sequence[Way], way: Way | None, level: float, clock: str) -> float:
    """How many times as fast as rabitqlib over whole rows."""
    direct = cheapest([one for one in ways if one.kind == DIRECT], level, clock)
    return float("nan") if direct is None or way is None else direct.us(clock) / way.us(clock)


def _targets(ways: Sequence[Way], built: Built, k: int, flattened: bool) -> list[Target]:
    targets, funnel = [], _of(ways, "SymphonyQG over a prefix")
    bounds = ASKED.get(built.dim)
    for level in (0.95, 0.99):
        at = f"k = {k}, recall {level}"
        batch, single = (cheapest(funnel, level, clock) for clock in CLOCKS)
        times = [_times(ways, way, level, clock) for way, clock in zip((batch, single), CLOCKS, strict=True)]
        if flattened and built.dim in FLATTENED:
            name = f"{at}, flattened: times whole rows in batch"
            targets.append(Target.at_least(name, times[0], FLATTENED[built.dim]))
        elif bounds and not flattened:
            targets.append(Target.at_least(f"{at}: times whole rows in batch", times[0], bounds[0]))
            targets.append(Target.at_least(f"{at}: times whole rows, single", times[1], bounds[1]))
            whole = built.cascades["symqg", built.dim].coarse.nbytes / 1e6
            share = float("nan") if batch is None else batch.held_mb / whole
            targets.append(Target.at_most(f"{at}: share of their memory held", share, bounds[2]))
    if built.dim in ASKED_FAISS and not flattened:
        best = cheapest(_of(ways, "FAISS"), 0.95, "batch_us")
        name = f"k = {k}, recall 0.95: FAISS alone, times whole rows in batch"
        targets.append(Target.at_least(name, _times(ways, best, 0.95, "batch_us"), ASKED_FAISS[built.dim]))
    if built.dim == 384:
        for clock, of in OURS.items():
            for level, bound in zip(LEVELS, of, strict=True):
                own = cheapest([way for way in ways if way.kind == WHOLE], level, clock)
                name = f"k = {k}, recall {level}: the engine of rabitqlib itself, {clock}"
                targets.append(Target.at_least(name, _times(ways, own, level, clock), bound))
    return targets
