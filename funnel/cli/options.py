"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

if TYPE_CHECKING:
    from funnel.index import FunnelIndex

OpenIndex: TypeAlias = "Callable[[Path], FunnelIndex]"


class _Path(click.Path):
    """A path; an empty one is none, and not the working folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path is empty; give that of a file or folder", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)
CACHE = click.option(
    "--cache", type=PATH, help="Folder for embeddings. [default: $FUNNEL_CACHE or ~/.cache/funnel-retrieval]"
)
SEED = click.option("--seed", type=int, default=0, show_default=True)
QUIET = click.option("--quiet", is_flag=True, help="No progress bars.")
plan_by_hand = click.option(
    "--plan", help='A plan by hand, w:n for each step, rerank at w dims and keep n: "8:400 16:200 32:100".'
)


def opens(command: Callable[..., None]) -> Callable[..., None]:
    """For commands on an index that may encode texts: its options, and `open_index` as the first argument."""

    @click.option("--encoder", help="The model that the index was built with, by name or folder. [default: its name]")
    @click.option("--allow-download", is_flag=True, help="Fetch the model that the index names where it is not here.")
    @wraps(command)
    def with_options(*args: Any, encoder: str | None, allow_download: bool, **kwargs: Any) -> None:
        def open_index(path: Path) -> FunnelIndex:
            from funnel.index import FunnelIndex

            return FunnelIndex.open(path, encoder=encoder, allow_download=allow_download)

        command(open_index, *args, **kwargs)

    return with_options


def prompts(command: Callable[..., None]) -> Callable[..., None]:
    """For commands that encode a corpus: how texts are read, by the names of `FunnelIndex.build`."""
    said = "Put before every {}: a text, or the name of a prompt of the model. [default: the model's own]"
    return _with(
        command,
        click.option("--query-prompt", help=said.format("query")),
        click.option("--document-prompt", help=said.format("document")),
        click.option("--truncate-dim", type=int, help="How many dims of the model's vectors to keep. [default: all]"),
    )


def encodes(command: Callable[..., None]) -> Callable[..., None]:
    """For commands that encode texts and keep no index: `encoder`, the model by its name, or with prompts itself."""

    @click.option("--encoder", help="A sentence-transformers model, by name or folder. [default: all-MiniLM-L6-v2]")
    @prompts
    @wraps(command)
    def with_options(
        *args: Any,
        encoder: str | None,
        query_prompt: str | None,
        document_prompt: str | None,
        truncate_dim: int | None,
        **kwargs: Any,
    ) -> None:
        from funnel.encoding.encoders import AS_THE_MODEL_SAYS, DEFAULT_ENCODER, load_encoder
        from funnel.encoding.prompts import TextOptions

        texts = TextOptions(query_prompt, document_prompt, truncate_dim)
        used = encoder if texts == AS_THE_MODEL_SAYS else load_encoder(encoder or DEFAULT_ENCODER, options=texts)
        command(*args, encoder=used, **kwargs)

    return with_options


def fields(command: Callable[..., None]) -> Callable[..., None]:
    """For commands that read a corpus: the names of its fields, by the names of `FunnelIndex.build`."""
    return _with(
        command,
        click.option("--text", help="The field that holds the text, where it is not called text."),
        click.option("--title", help="The field that holds the title, where it is not called title."),
        click.option("--id", help="The field that holds the id, where it is not called _id or id."),
        click.option("--vector", help="The field that holds the vector, where it is not called vector."),
        click.option(
            "--metadata", multiple=True, callback=lambda _context, _option, names: names or None,
            help="A further field to keep; may be given again. [default: all]",
        ),
    )  # fmt: skip


def _with(command: Callable[..., None], *options: Callable[..., Any]) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)
    return command


def widths(_: click.Context, __: click.Parameter, value: str | None) -> list[int] | None:
    """The callback of --dims: "32,64,128" as a list."""
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of widths such as 32,64,128") from None
