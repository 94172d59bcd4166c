"""The commands that train adaptors and report on them: funnel train, funnel adaptor report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from funnel.cli.options import CACHE, PATH, QUIET, SEED, encodes, widths

if TYPE_CHECKING:
    from funnel.building.training import JudgedBy
    from funnel.encoding.encoders import EncoderSource


@click.command()
@click.argument("corpus", type=PATH)
@click.argument("out", type=PATH)
@click.option("--kind", default="auto", show_default=True, help="auto, rotation, mlp, deep-mlp or attention.")
@click.option("--dims", callback=widths, help="Widths to train for, such as 32,64,128.")
@click.option("--queries", type=PATH, help="Real queries, held out to stop and to choose by; with --qrels trained on.")
@click.option("--qrels", type=PATH, help="Judgements of the queries (BEIR .tsv, or a folder): supervised training.")
@click.option("--dev-qrels", type=PATH, help="Judgements held out to stop and to choose by.  [default: qrels/dev.tsv]")
@encodes
@CACHE
@SEED
@QUIET
def train(
    corpus: Path,
    out: Path,
    kind: str,
    dims: list[int] | None,
    encoder: EncoderSource | None,
    cache: Path | None,
    seed: int,
    quiet: bool,
    **judged_by: Unpack[JudgedBy],
) -> None:
    """Train an adaptor on CORPUS (texts or vectors) and save it in the folder OUT, with its log and a plot.

    Example: funnel train scifact my-adaptor && funnel build scifact my-index --adaptor my-adaptor
    """
    from funnel.building.training import train_adaptor
    from funnel.reports.adaptors import show_training

    choice = train_adaptor(
        str(corpus),
        out,
        kind=kind,
        dims=dims,
        encoder=encoder,
        cache=cache,
        seed=seed,
        progress=not quiet,
        **judged_by,
    )
    click.echo(show_training(choice, out))


@click.group()
def adaptor() -> None:
    """Reports on trained adaptors.

    Example: funnel adaptor report my-adaptor --data scifact
    """


@adaptor.command()
@click.argument("out", type=PATH, required=False)
@click.option("--data", type=PATH, multiple=True, help="A BEIR folder to measure on; several may be given.")
@click.option("--beir", multiple=True, metavar="NAME", help="A BEIR set by name, such as nfcorpus: downloaded once.")
@click.option("--train", "kind", metavar="KIND", help="In place of OUT: train on each set first (auto, rotation, mlp).")
@click.option("--train-qrels", is_flag=True, help="With --train: train on qrels/train.tsv as well, where there is one.")
@click.option("--dims", callback=widths, help="Widths to measure, such as 32,64,128. [default: the adaptor's]")
@click.option("--split", default="test", show_default=True, help="The judgements to measure by.")
@encodes
@CACHE
@click.option(
    "--report", "folder", type=PATH, default=Path("adaptor-report"), show_default=True, help="Results go here."
)
@SEED
@QUIET
def report(
    out: Path | None,
    data: tuple[Path, ...],
    beir: tuple[str, ...],
    kind: str | None,
    train_qrels: bool,
    folder: Path,
    seed: int,
    quiet: bool,
    **measured: Any,
) -> None:
    """Measure the adaptor in folder OUT on judged data sets, beside truncation, PCA and the full embedding.

    Example: funnel adaptor report my-adaptor --data scifact

    Example: funnel adaptor report --train rotation --data scifact --data vaswani
    """
    from funnel.adaptors import Adaptor
    from funnel.building.training import EmbeddingCache
    from funnel.data.beir_download import beir_folder
    from funnel.reports.adaptors import report_on_adaptor, report_on_training, write_report

    if (out is None) == (kind is None):
        raise click.UsageError("give either the folder OUT of an adaptor, or --train KIND to train one on each set")
    if train_qrels and kind is None:
        raise click.UsageError("--train-qrels goes with --train; the adaptor in OUT is trained already")
    if not data and not beir:
        raise click.UsageError("give at least one data set: --data FOLDER or --beir NAME")
    downloads = EmbeddingCache(measured["cache"]).folder.parent / "beir"
    folders = [*data, *(beir_folder(name, downloads) for name in beir)]
    measured["progress"] = not quiet
    if kind is not None:
        made = report_on_training(kind, folders, folder, with_qrels=train_qrels, seed=seed, **measured)
    else:
        made = report_on_adaptor(Adaptor.load(str(out)), folders, **measured)
    click.echo(write_report(made, folder))
