"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["CACHE", "ENCODER", "PATH", "QUIET", "SEED", "widths"]

PATH = click.Path(path_type=Path)
ENCODER = click.option(
    "--encoder", help="A sentence-transformers model, by name or folder. [default: all-MiniLM-L6-v2]"
)
CACHE = click.option(
    "--cache", type=PATH, help="Folder for embeddings. [default: $FUNNEL_CACHE or ~/.cache/funnel-retrieval]"
)
SEED = click.option("--seed", type=int, default=0, show_default=True)
QUIET = click.option("--quiet", is_flag=True, help="No progress bars.")


def widths(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    """The callback of --dims: "32,64,128" as a list."""
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of widths such as 32,64,128") from None
