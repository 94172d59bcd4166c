"""The command line: funnel tune."""

from __future__ import annotations

from pathlib import Path

import click

from funnel.cli.options import PATH, QUIET, SEED, OpenIndex, opens

__all__ = ["tune"]


@click.command()
@click.argument("index", type=PATH)
@click.option(
    "--queries", type=PATH, help="Real queries: .jsonl, .csv, .parquet, .txt or .npy. [default: those on record]"
)
@click.option(
    "--corpus-like-queries/--no-corpus-like-queries", default=None,
    help="Whether queries are documents, so that those which equal rows certify. [default: as on record]",
)  # fmt: skip
@SEED
@QUIET
@opens
def tune(
    open_index: OpenIndex, index: Path, queries: Path | None, corpus_like_queries: bool | None, seed: int, quiet: bool
) -> None:
    """Calibrate INDEX again, in place, on this machine: when queries have changed, or there were none.

    Example: funnel tune my-index --queries queries-of-this-month.jsonl
    """
    from funnel.reports.explained import budgets_table, explain_budgets

    opened = open_index(index)
    given = None if queries is None else str(queries)
    opened.tune(given, corpus_like_queries=corpus_like_queries, seed=seed, progress=not quiet)
    click.echo(f"{index}: generation {opened.manifest.generation}; {opened.certification}")
    click.echo(budgets_table(opened, explain_budgets(opened, k=min(10, len(opened)))))
