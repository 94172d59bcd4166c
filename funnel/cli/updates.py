"""The commands that change an index in place: funnel add, delete, compact, tune, upgrade."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from funnel.cli.options import PATH, QUIET, SEED, OpenIndex, fields, opens
from funnel.errors import InputError
from funnel.identifiers import SHOWN_CHARACTERS, id_lines, whole_number

if TYPE_CHECKING:
    from funnel.index import FunnelIndex


@click.command()
@click.argument("index", type=PATH)
@click.argument("corpus", type=PATH)
@click.option("--upsert", is_flag=True, help="Put documents whose ids are in the index in the place of those there.")
@click.option("--ids", type=PATH, help="Ids of the rows of a .npy file: a text file, one a line.")
@fields
@QUIET
@opens
def add(
    open_index: OpenIndex, index: Path, corpus: Path, upsert: bool, ids: Path | None, quiet: bool, **fields: Any
) -> None:
    """Add the documents of CORPUS to INDEX: a BEIR folder, .jsonl, .csv, .parquet or .npy.

    Example: funnel add my-index new.jsonl
    """
    opened = open_index(index)
    change = opened.upsert if upsert else opened.add
    given = None if ids is None else _ids(_lines(ids), opened)
    changes = change(str(corpus), ids=given, progress=not quiet, **fields)
    click.echo(f"{index}: {changes}; {len(opened):,} rows")


@click.command()
@click.argument("index", type=PATH)
@click.argument("ids", nargs=-1)
@click.option("--from", "source", type=PATH, help="A text file of ids, one a line; - for standard input.")
@click.option("--strict", is_flag=True, help="Delete nothing where an id is unknown.")
def delete(index: Path, ids: tuple[str, ...], source: Path | None, strict: bool) -> None:
    """Delete documents from INDEX by their IDS.

    Example: funnel delete my-index doc-17 doc-18
    """
    from funnel.index import FunnelIndex

    wanted = [*ids, *([] if source is None else _lines(source))]
    if not wanted:
        raise click.UsageError("give at least one id, or --from FILE")
    opened = FunnelIndex.open(index)
    changes = opened.delete(_ids(wanted, opened), strict=strict)
    click.echo(f"{index}: {changes}; {len(opened):,} rows")


@click.command()
@click.argument("index", type=PATH)
@click.option("--memory-mb", type=float, help="What the coarse index may hold from now on. [default: as at build]")
@QUIET
@opens
def compact(open_index: OpenIndex, index: Path, memory_mb: float | None, quiet: bool) -> None:
    """Merge what was added to INDEX, leave out what was deleted, and calibrate again; searches go on meanwhile.

    Example: funnel compact my-index
    """
    opened = open_index(index)
    done = opened.compact(memory_mb=memory_mb, progress=not quiet)
    said = f"generation {opened.manifest.generation}, {len(opened):,} rows in one segment" if done else "nothing to do"
    click.echo(f"{index}: {said}; {opened.certification}")


@click.command()
@click.argument("index", type=PATH)
@QUIET
def upgrade(index: Path, quiet: bool) -> None:
    """Rewrite INDEX, of an older format, into the present one; nothing is encoded again, searches go on meanwhile.

    Example: funnel upgrade my-index
    """
    from funnel.index import FunnelIndex
    from funnel.storage import FORMAT_VERSION, IndexFolder

    done = FunnelIndex.upgrade(index, progress=not quiet)
    said = f"generation {IndexFolder(index).manifest().generation}" if done else "nothing to do"
    click.echo(f"{index}: format {FORMAT_VERSION}; {said}")


def _lines(path: Path) -> list[str]:
    """The ids in a text file: see `id_lines`."""
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a text file of ids, one a line") from None
    return list(id_lines(raw, str(path)))


def _ids(given: list[str], opened: FunnelIndex) -> list[str] | list[int]:
    """Ids as the index keeps them: text, or whole numbers."""
    if opened.searcher.ids.text:
        return given
    numbers = []
    for one in filter(str.strip, given):
        number = whole_number(one)
        if number is None:
            raise InputError(f"the ids of this index are whole numbers, and {one[:SHOWN_CHARACTERS]!r} is none")
        numbers.append(number)
    return numbers


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
    from funnel.reports.tables import budgets_table, explain_budgets

    opened = open_index(index)
    given = None if queries is None else str(queries)
    opened.tune(given, corpus_like_queries=corpus_like_queries, seed=seed, progress=not quiet)
    click.echo(f"{index}: generation {opened.manifest.generation}; {opened.certification}")
    click.echo(budgets_table(opened, explain_budgets(opened, k=min(10, len(opened)))))
