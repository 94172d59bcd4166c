"""Reports on adaptors: judged data sets ranked by prefixes, as a table, report.json, a plot and a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from funnel.adaptors import TRAINED_KINDS, Adaptor, default_widths
from funnel.building.training import AUTO, EmbeddingCache, train_adaptor
from funnel.data.corpus import open_corpus
from funnel.encoding.encoders import DEFAULT_ENCODER, EncoderSource, load_encoder
from funnel.errors import InputError, MissingPackageError
from funnel.plainjson import plain_json
from funnel.progress import Progress
from funnel.reports.curves import WAY_COLOURS, Curve, by_width, legend
from funnel.reports.judged import MEASURES, SHORTLIST_RECALL, JudgedSet, SetFigures, mean_shares, measure, ways_of
from funnel.reports.pages import figure, page, table
from funnel.reports.plots import FLAT_COLOUR, SINGLE_COLOUR, TEXT, heading, new_figure, save_figure
from funnel.reports.tables import Column, text_table
from funnel.widths import checked_widths

__all__ = ["AdaptorReport", "report_on_adaptor", "report_on_training", "shares_plot", "write_report"]

PLOT_INCHES = (11.0, 5.2)
TITLES = {"ndcg@10": "nDCG@10", "recall@100": "recall@100", SHORTLIST_RECALL: "shortlist recall"}
WAYS_NOTE = (
    "All documents are ranked by the cosine of the prefix. Shortlist recall: the share of the full embedding's top 10 "
    "among the best 50 by the prefix. PCA: fitted on the documents of each set."
)
PANELS = ("share of the full embedding's nDCG@10 kept", "share of the true top 10 in a shortlist of 50")


@dataclass(frozen=True)
class AdaptorReport:
    """Figures of one adaptor, or of one kind of it, on judged sets.

    Attributes:
        title, created: for the page.
        adaptor: its kind, or "auto" where kinds differ from set to set.
        split: the judgements.
        widths: those measured, rising; the last is the full one.
        sets: what was measured on each.
    """

    title: str
    created: str
    adaptor: str
    split: str
    widths: Sequence[int]
    sets: Sequence[SetFigures]

    @property
    def mean(self) -> dict[str, dict[int, float]]:
        """By way and width, the share of full nDCG@10 kept, averaged over the sets."""
        return mean_shares(self.sets)


def report_on_adaptor(
    adaptor: Adaptor,
    folders: Sequence[Path],
    *,
    dims: Sequence[int] | None = None,
    split: str = "test",
    encoder: EncoderSource | None = None,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> AdaptorReport:
    """Measure a trained adaptor beside truncation and PCA on BEIR folders.

    Args:
        adaptor: the one trained.
        folders: BEIR folders with judgements of the split.
        dims: widths; default: those it was trained for, else half octaves up to half of d.
        split: the judgements to measure by.
        encoder: of the texts; default all-MiniLM-L6-v2.
        cache: folder of embeddings; default $FUNNEL_CACHE, else ~/.cache/funnel-retrieval.
        progress: show bars on stderr.

    Raises:
        InputError: folders, judgements or widths that cannot be used.
        EncoderError: the encoder cannot be loaded, or gives another width than the adaptor takes.
        MissingPackageError: pytrec_eval is not installed.
    """
    widths = checked_widths(dims or adaptor.dims or default_widths(adaptor.dim), adaptor.dim)
    used, store = _encoder_for(folders, encoder), EmbeddingCache(cache)
    sets = []
    for name, folder in named(folders).items():
        judged = JudgedSet.read(folder, name, split, used, store, progress)
        sets.append(_measured(judged, adaptor, widths, {"kind": adaptor.kind}, progress))
    return _report(adaptor.kind, split, sets)


def report_on_training(
    kind: str,
    folders: Sequence[Path],
    out: Path,
    *,
    with_qrels: bool = False,
    dims: Sequence[int] | None = None,
    split: str = "test",
    encoder: EncoderSource | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> AdaptorReport:
    """Train an adaptor on the documents of each folder, and measure it there.

    Args:
        kind: "auto" or a kind that is trained.
        folders: BEIR folders with judgements of the split.
        out: each adaptor is saved in out/adaptors/NAME.
        with_qrels: train on qrels/train.tsv as well, where a folder has it.
        seed: of everything random.
        dims, split, encoder, cache, progress: as of `report_on_adaptor`.

    Raises as `report_on_adaptor` does, and InputError for a kind that is not trained.
    """
    if kind not in (AUTO, *TRAINED_KINDS):
        raise InputError(f"the kind {kind!r} is not trained; choose one of {', '.join((AUTO, *TRAINED_KINDS))}")
    used, store = _encoder_for(folders, encoder), EmbeddingCache(cache)
    sets = []
    for name, folder in named(folders).items():
        judged = JudgedSet.read(folder, name, split, used, store, progress)
        supervised = with_qrels and (folder / "qrels" / "train.tsv").is_file()
        choice = train_adaptor(
            str(folder), out / "adaptors" / name, kind=kind, dims=dims, queries=str(folder) if supervised else None,
            qrels=folder if supervised else None, encoder=used, cache=cache, seed=seed, progress=progress,
        )  # fmt: skip
        adaptor = choice.adaptor
        widths = checked_widths(dims or adaptor.dims or default_widths(adaptor.dim), adaptor.dim)
        trained_on = "documents and qrels/train.tsv" if supervised else "documents"
        facts = {"kind": adaptor.kind, "why": choice.why, "trained on": trained_on}
        sets.append(_measured(judged, adaptor, widths, facts, progress))
    kinds = {found.adaptor["kind"] for found in sets}
    return _report(kinds.pop() if len(kinds) == 1 else kind, split, sets)


def write_report(report: AdaptorReport, folder: Path) -> str:
    """Write report.json, report.png and report.html into the folder; returns the text for the terminal.

    Without matplotlib the plot is left out, and said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {**asdict(report), "mean": report.mean}
    (folder / "report.json").write_text(plain_json(kept, indent=1) + "\n", encoding="utf-8")
    plot, said = folder / "report.png", []
    try:
        shares_plot(report.title, report.sets, plot, {"adaptor": _way_name("adaptor", report)})
        caption = "thick: the mean over the sets, thin: each set" if len(report.sets) > 1 else report.sets[0].name
        figures = [figure(f"By width, {caption}", plot.read_bytes())]
    except MissingPackageError as error:
        figures, said = [], [str(error)]
    (folder / "report.html").write_text(_page(report, figures), encoding="utf-8")
    parts = [
        report.title,
        *(_set_text(found, report) for found in report.sets),
        text_table(_mean_rows(report), _columns(report, _mean_title(report))),
        WAYS_NOTE,
        f"written to {folder}/: report.json, report.html" + (", report.png" if figures else ""),
    ]
    return "\n\n".join(parts) + "".join(f"\n{line}" for line in said)


def shares_plot(
    title: str,
    sets: Sequence[SetFigures],
    path: str | os.PathLike[str],
    names: Mapping[str, str] | None = None,
) -> None:
    """Draw what each way keeps by width, thick for the mean over the sets and thin for each of them.

    Args:
        title: above the picture.
        sets: of equal ways and widths.
        path: of the PNG.
        names: of ways that are to be called otherwise.

    Raises MissingPackageError without matplotlib.
    """
    drawn = new_figure(PLOT_INCHES)
    recalls = [found.figures[SHORTLIST_RECALL] for found in sets]
    for place, panel, of_sets in zip((0.05, 0.545), PANELS, ([found.shares() for found in sets], recalls), strict=True):
        axes = drawn.add_axes((place, 0.115, 0.44, 0.68))
        by_width(axes, panel, _curves(of_sets, names or {}))
        legend(axes, "lower right")
    heading(drawn, 0.945, title, 15, TEXT, "bold")
    facts = " · ".join(f"{found.name} {found.full['ndcg@10']:.3f}" for found in sets)
    heading(drawn, 0.885, f"nDCG@10 of the full embedding: {facts}", 10.5, FLAT_COLOUR, "normal")
    save_figure(drawn, path)


def named(folders: Sequence[Path]) -> dict[str, Path]:
    """The folders by their own names, numbered where two are called alike.

    Raises InputError where there are none.
    """
    if not folders:
        raise InputError("no data sets were given; name at least one BEIR folder")
    names: dict[str, Path] = {}
    for folder in folders:
        own = folder.resolve().name
        number = 1 + sum(name == own or name.startswith(f"{own}-") for name in names)
        names[own if own not in names else f"{own}-{number}"] = folder
    return names


def _encoder_for(folders: Sequence[Path], encoder: EncoderSource | None) -> EncoderSource | None:
    """The encoder, loaded once; None where every corpus has vectors of its own."""
    if all(open_corpus(str(folder)).has_vectors for folder in folders):
        return encoder
    return load_encoder(DEFAULT_ENCODER if encoder is None else encoder)


def _measured(
    judged: JudgedSet, adaptor: Adaptor, widths: Sequence[int], facts: dict[str, str], progress: bool
) -> SetFigures:
    ways = ways_of(judged.documents.vectors, adaptor)
    total = len(ways) * len({*widths, judged.dim})
    with Progress(total=total, desc=f"measure {judged.name}", unit="rankings", disable=not progress) as bar:
        return measure(judged, ways, widths, facts, bar.update)


def _report(kind: str, split: str, sets: Sequence[SetFigures]) -> AdaptorReport:
    widths = {found.name: list(found.figures["ndcg@10"]["adaptor"]) for found in sets}
    first = next(iter(widths.values()))
    for name, other in widths.items():
        if other != first:
            raise InputError(
                f"the widths differ: {first} on {sets[0].name}, {other} on {name}; give --dims, and sets of one encoder"
            )
    title = f"Prefixes after {kind}: {', '.join(found.name for found in sets)}"
    return AdaptorReport(title, datetime.now(UTC).isoformat(timespec="seconds"), kind, split, first, sets)


def _way_name(way: str, report: AdaptorReport) -> str:
    return f"adaptor ({report.adaptor})" if way == "adaptor" else way


def _columns(report: AdaptorReport, title: str) -> list[Column]:
    return [
        Column("way", title, left=True),
        *(Column(str(width), str(width), ".4f") for width in report.widths[:-1]),
        Column(str(report.widths[-1]), f"{report.widths[-1]}, full", ".4f"),
    ]


def _rows(by_way: Mapping[str, Mapping[int, float]], report: AdaptorReport) -> list[dict[str, Any]]:
    return [
        {"way": _way_name(way, report), **{str(width): value for width, value in found.items()}}
        for way, found in by_way.items()
    ]


def _mean_title(report: AdaptorReport) -> str:
    return f"share kept, mean of {len(report.sets)} sets" if len(report.sets) > 1 else "share of full nDCG@10"


def _mean_rows(report: AdaptorReport) -> list[dict[str, Any]]:
    return _rows(report.mean, report)


def _set_head(found: SetFigures, report: AdaptorReport) -> str:
    said = f"{found.documents:,} documents, {found.queries:,} judged queries ({report.split})"
    return f"{said}; {found.adaptor['why']}" if "why" in found.adaptor else said


def _left_out(found: SetFigures) -> str:
    if not found.left_out:
        return ""
    return (
        f"left out: {found.left_out:,} documents that equal a query (cosine ≥ 0.9999) and are not judged for it, "
        "each out of the ranking of that query"
    )


def _set_text(found: SetFigures, report: AdaptorReport) -> str:
    tables = [text_table(_rows(found.figures[name], report), _columns(report, TITLES[name])) for name in MEASURES]
    head = f"{found.name}: {_set_head(found, report)}"
    return "\n\n".join(["\n".join(filter(None, [head, _left_out(found)])), *tables])


def _curves(of_sets: Sequence[Mapping[str, Mapping[int, float]]], names: Mapping[str, str]) -> list[Curve]:
    """For each way a thick curve of the means and thin ones of the sets, up to the last width but the full one."""
    curves = []
    for way, widths in of_sets[0].items():
        colour, shown = WAY_COLOURS.get(way, SINGLE_COLOUR), list(widths)[:-1] or list(widths)
        mean = {width: sum(found[way][width] for found in of_sets) / len(of_sets) for width in shown}
        curves.append(Curve(names.get(way, way), mean, colour))
        if len(of_sets) > 1:
            curves += [
                Curve(way, {width: found[way][width] for width in shown}, colour, faint=True) for found in of_sets
            ]
    return curves


def _page(report: AdaptorReport, figures: Sequence[str]) -> str:
    full = report.widths[-1]
    sections = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="faint">{escape(report.created)} · judgements: {escape(report.split)} · full width {full}</p>',
        *figures,
        "<h2>Share of the full embedding's nDCG@10</h2>",
        table(_mean_rows(report), _columns(report, _mean_title(report))),
    ]
    for found in report.sets:
        sections += [f"<h2>{escape(found.name)}</h2>", f"<p>{escape(_set_head(found, report))}</p>"]
        sections += [f'<p class="note">{escape(said)}</p>' for said in [_left_out(found)] if said]
        sections += [table(_rows(found.figures[name], report), _columns(report, TITLES[name])) for name in MEASURES]
    sections.append(f"<p class='faint'>{escape(WAYS_NOTE)}</p>")
    return page(report.title, sections)
