"""The commands that show what an index is and take it elsewhere: funnel info, funnel export."""

from pathlib import Path

import click

from funnel.cli.options import PATH, QUIET
from funnel.plainjson import plain_json


@click.command()
@click.argument("index", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(index: Path, as_json: bool) -> None:
    """Show what INDEX is: rows, widths, adaptor, coarse index, calibration, sizes; nothing large is read.

    Example: funnel info my-index
    """
    from funnel.building.info import read_info

    found = read_info(index)
    click.echo(plain_json(found.to_json()) if as_json else str(found))


@click.command()
@click.argument("index", type=PATH)
@click.argument("out", type=PATH)
@click.option("--adapted", is_flag=True, help="Adapted vectors, at full width, in place of your own.")
@click.option("--flat", is_flag=True, help="For .faiss: an exact IndexFlatIP, in place of the coarse index.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@QUIET
def export(index: Path, out: Path, adapted: bool, flat: bool, overwrite: bool, quiet: bool) -> None:
    """Write INDEX to the file OUT, to be read without funnel: .npy, .parquet or .faiss.

    Example: funnel export my-index vectors.npy
    """
    from funnel.index import FunnelIndex

    opened = FunnelIndex.open(index)
    click.echo(opened.export(out, adapted=adapted, flat=flat, overwrite=overwrite, progress=not quiet))
