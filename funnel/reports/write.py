"""Results as files: results.json, a plot, a page; and the table for the terminal."""

from __future__ import annotations

from pathlib import Path

from funnel.data.queries import open_queries
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
from funnel.plainjson import plain_json
from funnel.reports.bench import BenchQueries, held_out_queries
from funnel.reports.pages import write_page
from funnel.reports.plots import frontier_plot
from funnel.reports.results import Results
from funnel.reports.tables import (
    COMPARISON_COLUMNS,
    COMPARISON_NOTE,
    PREDICTION_COLUMNS,
    budget_rows,
    comparison_rows,
    text_table,
)

__all__ = ["bench_queries", "write_results"]


def bench_queries(index: FunnelIndex, path: Path | None) -> BenchQueries:
    """The queries to measure on: the user's file (texts are encoded), or held-out rows."""
    if path is None:
        return held_out_queries(index)
    queries = open_queries(str(path))
    vectors = queries.vectors
    if vectors is None:
        if queries.texts is None:
            raise InputError(f"{path} holds neither texts nor vectors")
        vectors = index.encode_queries(queries.texts)
    return BenchQueries(vectors, None if queries.ids is None else [str(id_) for id_ in queries.ids])


def write_results(results: Results, folder: Path) -> str:
    """Write results.json, frontier.png and report.html into the folder; returns the table for the terminal.

    Without matplotlib the plot is left out, and said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(plain_json(results, indent=1), encoding="utf-8")
    plot, said = folder / "frontier.png", []
    try:
        frontier_plot(results, plot)
        figures: list[tuple[str, str | Path]] = [("Recall against speed", plot)]
    except MissingPackageError as error:
        figures, said = [], [str(error)]
    write_page(results, folder / "report.html", figures)
    index = results["index"]
    return "\n".join(
        [
            f"{results['title']}: {index['rows']:,} x {index['dim']}, k={results['k']}, {results['n_queries']:,} "
            f"{results.get('queries', 'queries')}; {index['certificate']}",
            "",
            text_table(comparison_rows(results), COMPARISON_COLUMNS),
            COMPARISON_NOTE,
            "",
            text_table(budget_rows(results), PREDICTION_COLUMNS),
            "",
            f"written to {folder}/: results.json, report.html" + (", frontier.png" if figures else ""),
            *said,
        ]
    )
