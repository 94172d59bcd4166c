"""What `prefixes` builds, and the plans that are swept over it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.turns import Truth, Way, measure
from funnel.adaptors import make_adaptor
from funnel.building.segment import write_prefixes
from funnel.engine.cascade import Cascade, Space, unit_prefixes
from funnel.engine.coarse import build_coarse
from funnel.engine.generation import make_cascade, rerank_widths
from funnel.engine.workers import workers
from funnel.peers.measure import freed_resident_bytes
from funnel.plan import Plan, Stage
from funnel.storage.layout import VECTORS
from indexes import VectorStore, hnsw_settings

__all__ = ["DIRECT", "WHOLE", "Built", "build", "by_hand", "swept"]

Float32 = npt.NDArray[np.float32]

SYMQG = {"degree": 32, "ef_construction": 200}
SAMPLED = 20_000  # rows that the adaptor is fitted on
ROWS_AT_A_TIME = 5_000
WHOLE, DIRECT = "whole rows", "whole rows, rabitqlib itself"
FAMILIES = {"symqg": "SymphonyQG", "hnsw-sq8": "FAISS alone (HNSW, SQ8)"}
RERANKS = (1, 2, 3, 5)  # after the coarse search, the one at full width among them
CHOICES, ENDS = 5, (1.5, 3)  # of the widths of stages; how many times k reach full width
STEP, MOST = 2**0.25, 2_048  # from one effort to the next; the largest
ENOUGH = 0.9985  # a sweep ends here: no recall that is asked lies above
LEAST, LEFT_OVER = 0.95, 0.996  # between these recalls of one rerank shorter lists and more reranks are swept
STORED_BYTES, NORM_BYTES = 2, 4  # of a cell as float16; of a row's norm at one width


@dataclass(frozen=True)
class Built:
    """Cascades by coarse family and width; `dim` stands for whole rows. folder: of the rows' files."""

    cascades: Mapping[tuple[str, int], Cascade]
    seconds: Mapping[tuple[str, int], float]
    folder: Path
    dim: int

    def held_mb(self, family: str, plan: Plan) -> float:
        """Anonymous megabytes that a plan needs: coarse index, and norms at the widths of its stages."""
        cascade = self.cascades[family, plan.width]
        return (cascade.coarse.nbytes + NORM_BYTES * cascade.store.n * len(plan.stages)) / 1e6


def build(
    rows: npt.NDArray[Any], widths: Sequence[int], stages: Sequence[int], faiss: Sequence[int], kind: str, folder: Path
) -> Built:
    """SymphonyQG over prefixes of the widths and over whole rows, FAISS's graph over those named for it.

    kind: of the adaptor, one that keeps inner products. stages: widths of reranks that are stored besides.
    """
    n, dim = rows.shape
    with VectorStore.create(folder / VECTORS, n, dim) as writer:
        for start in range(0, n, ROWS_AT_A_TIME):
            part = unit_prefixes(rows[start : start + ROWS_AT_A_TIME].astype(np.float32))
            writer.write(np.arange(start, start + len(part)), part)
    ladder = tuple(sorted({*widths, *stages, *faiss, dim}))
    store = VectorStore.open(folder / VECTORS)
    sample = unit_prefixes(rows[:: max(1, n // SAMPLED)].astype(np.float32))
    space = Space(make_adaptor(kind, sample, dims=ladder), True)
    adapted = write_prefixes(store, space, ladder, False)
    wanted = [("symqg", width) for width in (*widths, dim)] + [("hnsw-sq8", width) for width in faiss]
    cascades, seconds = {}, {}
    for family, width in wanted:
        before, started = freed_resident_bytes(), time.perf_counter()
        settings = SYMQG if family == "symqg" else hnsw_settings(n)
        coarse = build_coarse(store if width == dim else adapted, dim, width, family, settings, 0, False)
        coarse.search(np.zeros((1, width), dtype=np.float32), 1, 16)  # a graph is built when it is first searched
        seconds[family, width] = time.perf_counter() - started
        grown = (freed_resident_bytes() - before) / 1e6
        click.echo(
            f"{FAMILIES[family]} over {width:,} dims: {seconds[family, width]:.0f} s, {coarse.nbytes / 1e6:,.0f} MB; "
            f"anonymous memory grew by {grown:,.0f} MB",
            err=True,
        )
        steps = rerank_widths(ladder, family, width)
        cascades[family, width] = make_cascade(coarse, store, folder, ladder, steps, space, release=False)
    return Built(cascades, seconds, folder, dim)


def swept(built: Built, asked: Float32, truth: Truth) -> Iterator[Way]:
    """Every way that is compared, with its recall and one pass of its times."""
    k, dim = truth.k, built.dim
    for effort in _efforts(k):
        yield measure(_direct(built, effort, k), asked, truth)
    for family, width in built.cascades:
        for effort in _efforts(2 * k if family == "symqg" else k):
            longest = built.cascades[family, width].coarse.largest_shortlist(effort)
            plan = Plan(effort, longest, width=width)
            first = measure(_planned(built, family, plan, k), asked, truth)
            yield first
            if width < dim and first.recall >= LEAST:  # those that rerank less find no more
                for shorter in sorted({max(k, int(longest * share)) for share in (0.7, 0.5, 0.35, 0.25)} - {longest}):
                    yield measure(_planned(built, family, replace(plan, shortlist=shorter), k), asked, truth)
                for more in _with_stages(plan, built.cascades[family, width].ladder[:-1], k, family):
                    yield measure(_planned(built, family, more, k), asked, truth)
            if first.recall >= (ENOUGH if width == dim else LEFT_OVER):
                break


def by_hand(built: Built, texts: Sequence[str], asked: Float32, truth: Truth) -> Iterator[Way]:
    """Plans as they were given, such as "256:400@800 512:100", over SymphonyQG; without @, the least effort."""
    for text in texts:
        plan = Plan.parse(text)
        cascade = built.cascades.get(("symqg", plan.width))
        if cascade is None:
            raise click.ClickException(f"plan {text!r} begins at {plan.width} dims; --width names none so wide")
        plan.check(cascade.ladder)
        efforts = (effort for effort in _efforts(1) if cascade.coarse.largest_shortlist(effort) >= plan.shortlist)
        plan = replace(plan, effort=plan.effort or next(efforts, MOST))
        yield measure(replace(_planned(built, "symqg", plan, truth.k), kind=f"by hand: {text}"), asked, truth)


def _efforts(least: int) -> list[int]:
    count = int(np.log(MOST / max(16, least)) / np.log(STEP)) + 1
    return sorted({round(max(16, least) * STEP**number) for number in range(count)})


def _with_stages(plan: Plan, ladder: Sequence[int], k: int, family: str) -> Iterator[Plan]:
    """The plan with stages between, at some of the stored widths, spread evenly over all choices of them."""
    above = [width for width in ladder if width > plan.width and family == "symqg"]
    for reranks in RERANKS[1:]:
        between = reranks - 1
        chosen = list(itertools.combinations(above, between))
        for widths, end in itertools.product(chosen[:: -(-len(chosen) // CHOICES) or 1], ENDS):
            end = int(end * k)
            if end < plan.shortlist:
                keeps = np.geomspace(plan.shortlist, end, between + 1)[1:].astype(int)
                keeps = np.maximum(keeps, k)
                yield replace(plan, stages=tuple(itertools.starmap(Stage, zip(widths, keeps.tolist(), strict=True))))


def _direct(built: Built, effort: int, k: int) -> Way:
    """The very graph of `WHOLE`, asked through its own library, which spreads a batch over its own threads."""
    cascade, threads = built.cascades["symqg", built.dim], workers().count
    graph: Any = vars(cascade.coarse)["_graph"]

    def search(queries: Float32) -> npt.NDArray[np.integer[Any]]:
        found: npt.NDArray[np.integer[Any]]
        found = graph.search(queries, k, effort, num_threads=threads if len(queries) > 1 else 1)[0]
        return found.astype(np.int64)

    about = _about(built, "symqg", Plan(effort, k, width=built.dim))
    return Way(DIRECT, f"ef {effort}", search, cascade.coarse.nbytes / 1e6, about)


def _planned(built: Built, family: str, plan: Plan, k: int) -> Way:
    cascade = built.cascades[family, plan.width]
    reranks = len(plan.stages) + 1
    kind = f"{FAMILIES[family]} over a prefix, {reranks} rerank{'s' if reranks > 1 else ''}"
    if plan.width == built.dim:
        kind = WHOLE
    search: Callable[[Float32], npt.NDArray[np.int64]] = lambda queries: cascade.run(queries, run, k)[1]  # noqa: E731
    run = replace(plan, width=0)  # of the coarse index
    return Way(kind, str(plan), search, built.held_mb(family, plan), _about(built, family, plan))


def _about(built: Built, family: str, plan: Plan) -> dict[str, Any]:
    """Kilobytes a query: of the rows that reranks read; of the graph, where each effort reads about one row's links."""
    cascade = built.cascades[family, plan.width]
    steps = [] if plan.width == built.dim else [(stage.width, stage.keep) for stage in plan.stages]
    keeps = [plan.shortlist, *(keep for _, keep in steps)]
    widths = [width for width, _ in steps] + [built.dim]
    rows = 0 if plan.width == built.dim else sum(a * b for a, b in zip(keeps, widths, strict=True)) * STORED_BYTES
    graph = plan.effort * cascade.coarse.nbytes / cascade.store.n
    about = {"rows_kb": rows / 1e3, "graph_kb": graph / 1e3, "build_seconds": built.seconds[family, plan.width]}
    return {**about, "effort": plan.effort, "stages": len(plan.stages) + 1, "width": plan.width}
