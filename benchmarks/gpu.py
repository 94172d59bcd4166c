"""Search on a GPU: stages against what the card can do, flat against funnel, and whether the answers are right.

`python -m benchmarks.gpu` needs torch and numpy alone; FAISS's rows are left out, by name, where it searches no GPU.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.common import Target, report
from benchmarks.devices.rates import Rates, measure_rates, wall_seconds
from benchmarks.devices.searches import (
    K,
    Search,
    best_plans,
    coarse_index,
    faiss_flat,
    funnel,
    recall,
    search_by,
    torch_flat,
    widths,
)
from benchmarks.devices.spectrum import MADE, Made, make_rows
from benchmarks.devices.stages import block_rows, rerank_rows, stage_rows, waits
from funnel.engine.cascade import Float32, Int64
from funnel.plan import Plan
from indexes import VectorStore, exact_search, family
from indexes.selection import ON_GPU

ASKED = 0.95
MARGIN = 0.005  # two standard errors of a recall@10 of 1,024 queries, so that a plan keeps it on the others
BATCHES = (1, 32, 1_024)  # twice as many queries as the largest: half choose the plans, half measure them
SMALL_BATCHES = (1, 4, 64)
SETS = ((1_000_000, 384), (1_000_000, 1_024), (10_000_000, 384), (10_000_000, 1_024))
SMALL_SETS = ((3_000, 48), (6_000, 96))  # without a GPU: to see that it runs
CELLS = (67_108_864, 268_435_456)  # scores of torch's flat search held at a time: the quicker of both counts
EVERY_FAMILY = SETS[0]  # graphs and lists take minutes to build over more
RERANK_SHARE, TIMES_TORCH, TIMES_FAISS = 0.5, 3.6, 1.0
COMPARED = 64  # queries asked in small batches and in one
SECONDS, SMALL_SECONDS = 0.4, 0.01  # of each timing
NO_GPU = "on the CPU, to see that it runs: no figure of these is one of a GPU"


def measure_set(made: Made, rates: Rates, seconds: float, batches: tuple[int, ...], names: list[str]) -> dict[str, Any]:
    """Flat searches and the quickest funnel over one set of rows, at every batch size, and the funnel's stages."""
    store = VectorStore.held(made.rows)
    largest = batches[-1]
    measured = made.queries[largest:]
    true = exact_search(store, np.ascontiguousarray(made.queries), K)
    facts: dict[str, Any] = {"rows": store.n, "dim": store.dim, "searches": []}
    flats = {f"torch flat, {cells >> 20} M scores": torch_flat(made.rows, cells) for cells in CELLS}
    if family("faiss-gpu-flat").missing() is None and store.device.type == "cuda":
        flats["faiss gpu flat"] = faiss_flat(made.rows)
    for name, search in flats.items():
        facts["searches"] += _timed(name, "", search, measured, true[1][largest:], batches, store, seconds)
    for name in names:
        facts["searches"] += _funnels(name, made, store, true[1], batches, seconds, facts, rates)
    return facts


def _funnels(
    name: str, made: Made, store: VectorStore, true: Int64, batches: tuple[int, ...], seconds: float,
    facts: dict[str, Any], rates: Rates,
) -> list[dict[str, Any]]:  # fmt: skip
    """The quickest plan of a coarse family that reaches the recall, at every batch size, over every width tried."""
    largest = batches[-1]
    chosen_with, measured = np.ascontiguousarray(made.queries[:largest]), np.ascontiguousarray(made.queries[largest:])
    best: dict[int, tuple[float, int, Plan]] = {}
    for width in widths(store.dim):
        cascade = funnel(coarse_index(family(name), made.rows, width), store)
        for batch in batches:
            for took, plan in best_plans(cascade, chosen_with, true[:largest], ASKED + MARGIN, batch, seconds / 2):
                if batch not in best or took < best[batch][0]:
                    best[batch] = (took, width, plan)
        del cascade
    rows: list[dict[str, Any]] = []
    for width in sorted({width for _, width, _ in best.values()}):
        plans = {batch: plan for batch, (_, chosen, plan) in best.items() if chosen == width}
        rows += _served(name, width, plans, made.rows, store, (measured, true[largest:]), seconds, facts, rates)
    return sorted(rows, key=lambda row: int(row["batch"]))


def _served(
    name: str, width: int, plans: dict[int, Plan], rows: torch.Tensor, store: VectorStore,
    measured: tuple[Float32, Int64], seconds: float, facts: dict[str, Any], rates: Rates,
) -> list[dict[str, Any]]:  # fmt: skip
    """The plans chosen for one width, measured with the other queries; stages and the like go into facts."""
    cascade = funnel(coarse_index(family(name), rows, width), store)
    queries, true = measured
    served = []
    for batch, plan in plans.items():
        search, what = search_by(cascade, plan), f"{width} dims, {plan}"
        served += _timed(f"funnel, {name}", what, search, queries, true, (batch,), store, seconds)
        served[-1] |= {**_correct(search, queries, store), "agreement": _agreement(search, queries, batch)}
        if name != ON_GPU[0]:
            continue
        facts.setdefault("waits", {})[batch] = waits(cascade, plan, np.ascontiguousarray(queries[:batch]))
        if batch == len(queries):
            facts["stages"] = stage_rows(cascade, plan, queries, rates, seconds)
            facts["rerank"] = rerank_rows(cascade, queries, rates, seconds)
            facts["blocks"] = block_rows(cascade.coarse, plan.effort, queries, seconds)
    return served


def _agreement(search: Search, queries: Float32, batch: int) -> float:
    """The share of rows that small batches, which may be replayed graphs by now, have in common with all in one."""
    few = np.ascontiguousarray(queries[:COMPARED])
    parts = [search(np.ascontiguousarray(few[i : i + batch]))[1] for i in range(0, len(few), batch)]
    return recall(np.concatenate(parts), search(queries)[1][: len(few)])


def _timed(
    name: str, what: str, search: Search, queries: Float32, true: Int64, batches: tuple[int, ...], store: VectorStore,
    seconds: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a batch size: microseconds a query from host memory to host memory, and the recall of all queries."""
    found = recall(search(queries)[1], true)
    rows = []
    for batch in batches:
        parts = [np.ascontiguousarray(queries[i : i + batch]) for i in range(0, len(queries) - batch + 1, batch)]
        turn = [0]

        def call(parts: list[Float32] = parts, turn: list[int] = turn) -> object:
            turn[0] += 1
            return search(parts[turn[0] % len(parts)])

        took = wall_seconds(call, store.device, seconds) / batch
        rows.append({"search": name, "batch": batch, "recall": found, "microseconds": took * 1e6, "plan": what})
    return rows


def _correct(search: Search, queries: Float32, store: VectorStore) -> dict[str, float]:
    """How far the scores given are from float64 products of the rows given."""
    scores, rows = search(queries)
    stored = store.gather(torch.from_numpy(rows.ravel()).to(store.device), 0, store.dim).double().cpu().numpy()
    exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), stored.reshape(*rows.shape, store.dim))
    return {"largest_error": float(np.abs(exact - scores).max())}


def judge(sets: list[dict[str, Any]]) -> list[Target]:
    """The targets: the rerank's share of the copy bandwidth, and the largest batch over the largest sets."""
    targets = []
    for facts in (each for each in sets if each["rows"] == max(s["rows"] for s in sets)):
        label, rows = f"{facts['rows']:,} x {facts['dim']}", facts["searches"]
        at_largest = [row for row in rows if row["batch"] == max(r["batch"] for r in rows)]
        if "rerank" in facts:
            share = facts["rerank"]["share"]
            targets.append(Target.at_least(f"{label}: rerank, share of the copy bandwidth", share, RERANK_SHARE))
        funnels = [row for row in at_largest if row["search"].startswith("funnel")]
        ours = [row["microseconds"] for row in funnels if row["recall"] >= ASKED]
        for peer, bound in (("torch flat", TIMES_TORCH), ("faiss gpu flat", TIMES_FAISS)):
            theirs = [row["microseconds"] for row in at_largest if row["search"].startswith(peer)]
            if theirs:  # without a funnel that reaches the recall, the target is missed
                times = min(theirs) / min(ours) if ours else 0.0
                targets.append(Target.at_least(f"{label}: funnel at {ASKED}, times {peer}", times, bound))
    return targets


def show(facts: dict[str, Any]) -> None:
    """Print the tables of one set."""
    click.echo(f"\n{facts['rows']:,} x {facts['dim']}, k = {K}, made in {facts['seconds']:.0f} s with what follows\n")
    click.echo("| search | batch | recall@10 | us a query | plan |\n|:--|--:|--:|--:|:--|")
    for row in sorted(facts["searches"], key=lambda row: (row["batch"], row["microseconds"])):
        click.echo(
            f"| {row['search']} | {row['batch']:,} | {row['recall']:.4f} | {row['microseconds']:,.2f} | {row['plan']} |"
        )
    errors = [row["largest_error"] for row in facts["searches"] if "largest_error" in row]
    agreements = [row["agreement"] for row in facts["searches"] if "agreement" in row]
    if errors:
        click.echo(
            f"\nfunnels: scores off by {max(errors):.1e} at most; "
            f"small batches share {min(agreements):.4f} of their rows with all queries asked in one"
        )
    click.echo("\n| stage, largest batch | ms | bound at the measured rates, ms | share |\n|:--|--:|--:|--:|")
    for row in facts.get("stages", ()):
        click.echo(f"| {row['stage']} | {row['ms']:.3f} | {row['bound_ms']:.3f} | {row['share']:.2f} |")
    if "rerank" in facts:
        rerank = facts["rerank"]
        click.echo(
            f"\nrerank of random rows: {rerank['bytes_per_second'] / 1e9:,.0f} GB/s, {rerank['share']:.2f} of copying; "
            f"off by {rerank['largest_error']:.1e} at most; {rerank['ms']:.3f} ms, gathered and then multiplied "
            f"{rerank['gathered_ms']:.3f}"
        )
    for cells, ms in facts.get("blocks", {}).items():
        click.echo(f"products and bins block by block, {cells >> 20} M products at a time: {ms:.3f} ms")
    for batch, gain in facts.get("graph", {}).items():
        if gain is not None:
            click.echo(
                f"batch {batch}: {gain['launched_ms']:.3f} ms launched, {gain['replayed_ms']:.3f} as a CUDA graph"
            )
    click.echo(f"waits for the device besides the one for the answer, by batch: {facts.get('waits', {})}")


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else NO_GPU
    return {"device": name, "torch": torch.__version__, "cuda": str(torch.version.cuda), "rows": MADE}


@click.command()
@click.option("--device", default="cuda", show_default=True, help="cpu: a small run that shows that it works.")
@click.option("--only", multiple=True, metavar="ROWSxDIM", help="Sets to run, as 10000000x384; default all.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of gpu.json; default benchmarks/results.")
def gpu(device: str, only: tuple[str, ...], out: Path | None) -> None:
    """Stage times, flat against funnel and correctness on a GPU; under 8 minutes on one H100."""
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "torch finds no CUDA device here; --device cpu runs a small set, to see that it works"
        )
    on_gpu = target.type == "cuda"
    begun, seconds = time.perf_counter(), SECONDS if on_gpu else SMALL_SECONDS
    facts: dict[str, Any] = {**machine(target), "left_out": left_out(on_gpu)}
    click.echo("\n".join(f"{key}: {value}" for key, value in facts.items()))
    rates = measure_rates(target, seconds, 1 if on_gpu else 64)
    facts["rates"] = vars(rates)
    click.echo(
        f"copy {rates.copy / 1e9:,.0f} GB/s, products {rates.gemm / 1e12:,.1f} TFLOP/s, "
        f"to the host {rates.to_host / 1e9:,.1f} GB/s"
    )
    facts["sets"] = []
    for rows, dim in sets_of(only, on_gpu):
        started = time.perf_counter()
        names = [ON_GPU[0], *(set(usable()) - {ON_GPU[0], "faiss-gpu-flat"} if (rows, dim) == EVERY_FAMILY else ())]
        batches = BATCHES if on_gpu else SMALL_BATCHES
        made = make_rows(rows, dim, 2 * batches[-1], target)
        one = measure_set(made, rates, seconds, batches, names)
        one["seconds"] = time.perf_counter() - started
        facts["sets"].append(one)
        show(one)
        del made
        if on_gpu:
            torch.cuda.empty_cache()
    facts["seconds"] = time.perf_counter() - begun
    report("gpu", judge(facts["sets"]) if on_gpu else [], facts, out)
    click.echo(f"{facts['seconds']:.0f} s in all" + ("" if on_gpu else f"; {NO_GPU}"))


def usable() -> list[str]:
    """The families for a GPU that can be used here."""
    return [name for name in ON_GPU if family(name).missing() is None]


def left_out(on_gpu: bool) -> dict[str, str]:
    """The families that are not measured, and why."""
    reasons = {name: family(name).missing() or (None if on_gpu else NO_GPU) for name in ON_GPU[1:]}
    return {name: why for name, why in reasons.items() if why is not None}


def sets_of(only: tuple[str, ...], on_gpu: bool) -> list[tuple[int, int]]:
    """The sets asked for. Raises ClickException for one that is none."""
    every = SETS if on_gpu else SMALL_SETS
    named = {f"{rows}x{dim}": (rows, dim) for rows, dim in every}
    unknown = [name for name in only if name not in named]
    if unknown:
        raise click.ClickException(f"no set is called {unknown[0]!r}; choose among: {', '.join(named)}")
    return [named[name] for name in only] or list(every)


if __name__ == "__main__":
    gpu()
