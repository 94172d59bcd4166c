"""What `FunnelIndex.build` chooses, against every candidate built whole and swept."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, load_rows, report
from benchmarks.turns import CLOCKS, Truth, Way, cheapest, finalists, measure, time_in_turns
from benchmarks.wide import caption
from funnel import FunnelIndex
from funnel.plan import Plan
from funnel.reports.tables import Column, text_table
from indexes import families, family

__all__ = ["choice"]

LEVEL = 0.95
HELD_SHARE = 1.25  # of the rows as float32, that may be held where no memory is stated
SHARES = ((1, 12), (1, 8), (1, 6), (1, 4), (3, 8))  # of the full width, of which prefixes are tried
SCANS = ("flat", "hnsw-f16", "torch-bins")  # every row of a prefix, for small sets and GPUs; a graph twice as large
SHORTLISTS = (1.5, 2.5, 5, 10, 20, 40)  # times k
STEP = 1.15  # at least, from one effort to the next
ENOUGH = 0.98  # a sweep ends here, as .95 is what is judged
WITHIN, SAME, BUILDS = 1.15, 0.9, 10
PASSES = 7
COLUMNS = (
    Column("kind", "candidate", left=True),
    Column("recall", "recall", ".4f"),
    Column("batch_us", "us in batch", ",.1f"),
    Column("times", "times best", ".2f"),
    Column("single_us", "one query us", ",.0f"),
    Column("held_mb", "MB held", ",.0f"),
    Column("build_seconds", "build s", ",.0f"),
    Column("plan", "plan", left=True),
    Column("said", "", left=True),
)

Float32 = npt.NDArray[np.float32]


@click.command()
@click.option(
    "--vectors", type=click.Path(exists=True, path_type=Path), required=True, help="Corpus rows, .npy of any type."
)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help="Real queries, .npy.")
@click.option(
    "--width", "widths", type=int, multiple=True, help="Of a prefix. May be repeated. [default: five of them]"
)
@click.option("--family", "names", multiple=True, help="A coarse family. May be repeated. [default: all for a CPU]")
@click.option("--memory-mb", type=float, help="What the index may hold. [default: 1.25 of the rows as float32]")
@click.option("--builds", default=1, show_default=True, help="With other seeds: how often the same is chosen.")
@click.option("--unseen", default=2_000, show_default=True, help="First queries, measured on; the others certify.")
@click.option("--k", default=10, show_default=True)
@click.option("--rows", type=int, help="Only the first so many rows.")
@click.option("--passes", default=PASSES, show_default=True)
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the indexes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def choice(
    vectors: Path,
    queries: Path,
    widths: tuple[int, ...],
    names: tuple[str, ...],
    memory_mb: float | None,
    builds: int,
    unseen: int,
    k: int,
    rows: int | None,
    passes: int,
    scratch: Path | None,
    out: Path | None,
) -> None:
    """Each candidate's time at recall .95 on queries that no build saw, beside the one that is chosen by itself.

    Candidates have the adaptor that was chosen. Every plan is run once, and the best of each candidate are timed in
    turns. The chosen one is judged by the best that fits the memory.

    Example: python -m benchmarks choice --vectors benchmarks/results/wide/corpus-1536.npy --queries
    benchmarks/results/wide/queries-1536.npy --builds 10
    """
    given, asked = load_rows(vectors)[:rows], load_rows(queries)
    dim, allowed = given.shape[1], memory_mb or HELD_SHARE * given.nbytes / 1e6
    usual = sorted({max(32, dim * part // of // 32 * 32) for part, of in SHARES})
    title = caption(vectors, given)
    click.echo(title)
    with tempfile.TemporaryDirectory(dir=scratch) as temporary, ExitStack() as opened:
        folder, options = Path(temporary), {"queries": asked[unseen:], "memory_mb": memory_mb}
        chosen, seconds = _build(given, folder / "chosen", **options)
        name = _name(chosen)
        click.echo(f"chosen: {name}, in {seconds:.0f} s")
        made = {name: (opened.enter_context(chosen), seconds)}
        for one in names or [one for one in families() if one not in SCANS and family(one).missing() is None]:
            for width in (*(widths or usual), dim):
                if f"{one} over {width}" in made:
                    continue
                settings = {"coarse": one, "dims": (width,), "adaptor": chosen.searcher.adaptor}
                index, seconds = _build(given, folder / f"{one}-{width}", **settings)
                made[_name(index)] = opened.enter_context(index), seconds
                click.echo(f"built: {_name(index)}, in {seconds:.0f} s", err=True)
        truth, shown = Truth(given, asked[:unseen], k), np.ascontiguousarray(asked[:unseen])
        ways = [way for kind, (index, took) in made.items() for way in _swept(kind, index, took, shown, truth)]
        best = finalists(ways, (LEVEL,))
        time_in_turns(best, shown, passes)
        again = [name, *(_chosen_again(given, folder / f"seed-{seed}", seed, options) for seed in range(1, builds))]
    table = _table(made, best, name, allowed)
    click.echo(f"\n{title}; k = {k}, recall {LEVEL}, {allowed:,.0f} MB allowed\n{text_table(table, COLUMNS)}")
    facts = {"caption": title, "chosen": name, "allowed_mb": allowed, "candidates": table, "chosen_by_seed": again}
    report(f"choice-{vectors.stem}", _targets(table, again), facts, out)


def _build(given: Float32, path: Path, **options: Any) -> tuple[FunnelIndex, float]:
    started = time.perf_counter()
    index = FunnelIndex.build(given, path, progress=False, **options)
    return index, time.perf_counter() - started


def _chosen_again(given: Float32, path: Path, seed: int, options: dict[str, Any]) -> str:
    index, _ = _build(given, path, seed=seed, **options)
    with index:
        click.echo(f"seed {seed}: {_name(index)}", err=True)
        return _name(index)


def _name(index: FunnelIndex) -> str:
    coarse = index.info().coarse
    return f"{coarse['name']} over {coarse['dims']}"


def _swept(kind: str, index: FunnelIndex, seconds: float, asked: Float32, truth: Truth) -> Iterator[Way]:
    """Efforts and shortlists of one candidate, with recall and one pass of the times."""
    coarse, k = index.searcher.cascade.coarse, truth.k
    held, last = (index.info().held_bytes or 0) / 1e6, 0.0
    for effort in coarse.efforts():
        longest = coarse.largest_shortlist(effort)
        if longest < k or effort < STEP * last:
            continue
        last = effort
        lengths = sorted({*(int(times * k) for times in SHORTLISTS if times * k < longest), min(longest, 40 * k)})
        if index.searcher.cascade.alone:  # nothing is reranked
            lengths = lengths[-1:]
        for length in lengths:
            plan = Plan(effort, length)

            def search(queries: Float32, plan: Plan = plan) -> npt.NDArray[np.int64]:
                return np.asarray(index.search_vectors(queries, k, plan=plan).ids)

            way = measure(Way(kind, str(plan), search, held, {"build_seconds": seconds}), asked, truth)
            yield way
        if way.recall >= ENOUGH:
            break


def _table(made: dict[str, Any], best: list[Way], name: str, allowed: float) -> list[dict[str, Any]]:
    """A row for each candidate, the fastest first; those that do not reach the recall at the end."""
    table: list[dict[str, Any]] = []
    for kind, (_, seconds) in made.items():
        batch, single = (cheapest([way for way in best if way.kind == kind], LEVEL, clock) for clock in CLOCKS)
        row: dict[str, Any] = {"kind": kind, "build_seconds": seconds, "chosen": kind == name}
        if batch is not None and single is not None:
            row |= {**batch.to_json(), "single_us": single.us("single_us"), "fits": batch.held_mb <= allowed}
        table.append(row)
    fastest = min((row["batch_us"] for row in table if row.get("fits")), default=float("nan"))
    for row in table:
        row["times"] = row.get("batch_us", float("inf")) / fastest
        said = [] if "fits" in row else ["does not reach it"]
        said += ["over the memory"] if row.get("fits") is False else []
        row["said"] = ", ".join([*said, *(["chosen"] if row["chosen"] else [])])
    return sorted(table, key=lambda row: float(row["times"]))


def _targets(table: list[dict[str, Any]], again: list[str]) -> list[Target]:
    chosen = next(row for row in table if row["chosen"])
    targets = [Target.at_most("time of the chosen one over the best that fits", chosen["times"], WITHIN)]
    if len(again) >= BUILDS:
        share = Counter(again).most_common(1)[0][1] / len(again)
        targets.append(Target.at_least(f"share of {len(again)} builds that choose the same", share, SAME))
    return targets
