"""The demo: semantic search over the Python documentation that is on every machine with Python."""

import time
from collections.abc import Callable
from pathlib import Path

from funnel.checks import checked_whole
from funnel.data.pydocs import python_documents
from funnel.encoding.encoders import DEFAULT_ENCODER
from funnel.index import FunnelIndex
from funnel.progress import Progress
from funnel.reports.bench import bench, held_out_queries
from funnel.reports.pages import write_results
from funnel.reports.tables import budgets_table, explain_budgets
from funnel.results import Hit

DOCUMENTS = 10_000  # about 3 minutes on 2 cores, nearly all of them encoding
QUERIES = (
    "read a csv file into rows",
    "run a function in another thread and get its result later",
    "measure how similar two strings are",
)
HITS = 4
FEWEST = 11  # for each to have 10 neighbours


def run_demo(index_path: Path, report: Path, documents: int | None, say: Callable[[str], None]) -> FunnelIndex:
    """Read docstrings, build an index, search it, explain its budgets, and measure it against flat search.

    documents: how many docstrings at most. say: called with each piece of text to show. Raises InputError for none.
    """
    started = time.perf_counter()
    say("Reading the docstrings of the standard library and the installed packages (nothing is imported or run)")
    limit = DOCUMENTS if documents is None else documents
    checked_whole("documents", limit, FEWEST, such_as=DOCUMENTS)
    corpus = list(Progress(python_documents(limit), total=limit, desc="read docstrings", unit="docs"))
    say(f"{len(corpus):,} documents; building {index_path}")
    index = FunnelIndex.build(corpus, index_path, encoder=DEFAULT_ENCODER, overwrite=True)
    say(f"\n{index!r}")
    for query in QUERIES:
        say(f"\n{query}")
        for hit in index.search(query, HITS):
            assert isinstance(hit, Hit)
            first_line = hit.text.splitlines()[0] if hit.text else ""
            say(f"  {hit.score:.3f}  {hit.id}  {first_line[:90]}")
    say("\n" + budgets_table(index, explain_budgets(index, 10, recalls=(0.90, 0.95, 0.99))))
    results = bench(index, held_out_queries(index), "Python documentation", progress=True)
    say("\n" + write_results(results, report))
    say(f'\n{time.perf_counter() - started:.0f} s in all. Next: funnel search {index_path} "your question"')
    return index
