"""The demo: semantic search over the Python documentation that is on every machine with Python."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from funnel.checks import checked_whole
from funnel.data.documents import Document
from funnel.data.pydocs import python_documents
from funnel.encoding.encoders import DEFAULT_ENCODER
from funnel.index import FunnelIndex
from funnel.plan import Plan
from funnel.progress import Progress
from funnel.reports.bench import BenchQueries, bench, held_out_queries
from funnel.reports.pages import write_results
from funnel.reports.tables import budgets_table, explain_budgets
from funnel.results import Hit

DOCUMENTS = 16_000  # about 5 minutes on 2 cores, most of them encoding
QUERIES = (
    "read a csv file into rows",
    "run a function in another thread and get its result later",
    "measure how similar two strings are",
)
HITS = 4
FEWEST = 11  # for each to have 10 neighbours
# First sentences that are looked for: those that certify and train the adaptor, and others to measure with.
ASKED, MEASURED = 3_000, 500
SHORTEST_BODY = 40  # characters of what a docstring says after its first paragraph
NARROWEST, KEPT = 8, 400  # of the funnel by hand: dims and rows that it begins with


def parted(documents: list[Document]) -> tuple[list[Document], list[str]]:
    """Documents without their first sentences, and those: questions that nobody wrote for this index.

    A docstring of one paragraph stays whole, and gives no question.
    """
    bodies, firsts = [], []
    for document in documents:
        first, _, rest = document.text.partition("\n\n")
        if len(rest.strip()) < SHORTEST_BODY:
            bodies.append(document)
        else:
            bodies.append(replace(document, text=rest.strip()))
            firsts.append(" ".join(first.split()))
    return bodies, firsts


def run_demo(index_path: Path, report: Path, documents: int | None, say: Callable[[str], None]) -> FunnelIndex:
    """Read docstrings, build an index, search it, explain its budgets, and measure it against flat search.

    documents: how many docstrings at most. say: called with each piece of text to show. Raises InputError for none.
    """
    started = time.perf_counter()
    say("Reading the docstrings of the standard library and the installed packages (nothing is imported or run)")
    limit = DOCUMENTS if documents is None else documents
    checked_whole("documents", limit, FEWEST, such_as=DOCUMENTS)
    found = list(Progress(python_documents(limit), total=limit, desc="read docstrings", unit="docs"))
    corpus, firsts = parted(found)
    np.random.default_rng(0).shuffle(firsts)
    measured, asked = firsts[:MEASURED], firsts[MEASURED : MEASURED + ASKED]
    said = f"{len(asked):,} first sentences, which are left out of the documents" if asked else "none"
    say(f"{len(corpus):,} documents; queries: {said}; building {index_path}")
    index = FunnelIndex.build(
        corpus, index_path, encoder=DEFAULT_ENCODER, queries=asked or None, overwrite=True, seed=0
    )
    say(f"\n{index!r}")
    for query in QUERIES:
        say(f"\n{query}")
        for hit in index.search(query, HITS):
            assert isinstance(hit, Hit)
            first_line = hit.text.splitlines()[0] if hit.text else ""
            say(f"  {hit.score:.3f}  {hit.id}  {first_line[:90]}")
    say("\n" + budgets_table(index, explain_budgets(index, 10, recalls=(0.90, 0.95, 0.99))))
    stored = index.manifest.ladder
    halving = Plan.halving(NARROWEST, index.dim, min(KEPT, len(index))) if NARROWEST in stored[:-1] else None
    for plan in (None, halving) if halving else (None,):
        say(f"\n{index.explain(plan=plan, run=True)}")
    unseen = BenchQueries(index.encode_queries(measured)) if measured else held_out_queries(index)
    results = bench(index, unseen, "Python documentation", plan=halving, progress=True)
    say("\n" + write_results(results, report))
    say(f'\n{time.perf_counter() - started:.0f} s in all. Next: funnel search {index_path} "your question"')
    return index
