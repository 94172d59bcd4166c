"""Reports on adaptors: judged data sets ranked by prefixes, as a table, report.json, a plot and a page."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors import PCA, TRAINED_KINDS, Adaptor, AdaptorChoice, Identity, TrainingLog, default_widths
from funnel.adaptors.sampling import SAME, nearest, scaled
from funnel.building.training import AUTO, Embedded, EmbeddingCache, embed_corpus, embed_queries, train_adaptor
from funnel.checks import checked_widths
from funnel.data.corpus import open_corpus
from funnel.data.queries import Queries, open_queries, read_qrels
from funnel.encoding.encoders import DEFAULT_ENCODER, EncoderSource, load_encoder
from funnel.errors import EncoderError, InputError, MissingPackageError
from funnel.plainjson import plain_json
from funnel.progress import Progress
from funnel.reports.bench import ranking_metrics, recall_at_k
from funnel.reports.pages import figure, page, table
from funnel.reports.plots import (
    FLAT_COLOUR,
    LOSS_COLOURS,
    SINGLE_COLOUR,
    TEXT,
    WAY_COLOURS,
    Curve,
    by_step,
    by_width,
    heading,
    new_figure,
    save_figure,
)
from funnel.reports.tables import Column, text_table

SHORTLIST_RECALL = "shortlist recall"
MEASURES = {"ndcg@10": "nDCG@10", "recall@100": "recall@100", SHORTLIST_RECALL: "shortlist recall"}
# The true neighbours looked for, the shortlist they are looked for in, and the depth of a ranking that is judged.
TOP, SHORTLIST, DEPTH = 10, 50, 100
ROWS_AT_A_TIME = 4_096  # of documents compared with all queries
NAMED = 5  # ids named in a message

Figures = dict[str, dict[str, dict[int, float]]]
"""By measure, by way, by width."""


@dataclass(frozen=True)
class JudgedSet:
    """A corpus and the queries that are judged on it, embedded.

    Attributes:
        documents, queries: ids and unit vectors; the queries are those with a relevant document.
        qrels: query id → document id → grade.
    """

    documents: Embedded
    queries: Embedded
    qrels: Mapping[str, Mapping[str, float]]

    def __post_init__(self) -> None:
        rows, asked = self.documents.vectors.shape[1], self.queries.vectors.shape[1]
        if rows != asked:
            raise EncoderError(
                f"{self.name}: the queries have {asked} dims, the documents {rows}; both need the same encoder"
            )

    @property
    def name(self) -> str:
        """The name of its corpus."""
        return self.documents.name

    @property
    def dim(self) -> int:
        """The full width."""
        return int(self.documents.vectors.shape[1])

    @classmethod
    def read(
        cls,
        folder: Path,
        name: str,
        split: str,
        encoder: EncoderSource | None,
        cache: EmbeddingCache,
        progress: bool = True,
    ) -> Self:
        """Read a BEIR folder and embed its documents, and those of its queries that the split judges.

        Raises:
            InputError: corpus, queries or judgements cannot be read, or a judged query is not among the queries.
            EncoderError: the encoder cannot be loaded.
        """
        every = read_qrels(folder, split)
        qrels = {query: judged for query, judged in every.items() if max(judged.values()) > 0}
        if not qrels:
            raise InputError(f"none of the {len(every):,} queries judged in {folder} ({split}) has a relevant document")
        asked = _judged_queries(open_queries(str(folder)), qrels)
        documents = embed_corpus(str(folder), encoder, cache, progress)
        queries = embed_queries(asked, encoder, cache, progress)
        return cls(Embedded(name, documents.ids, documents.vectors), queries, qrels)


@dataclass(frozen=True)
class SetFigures:
    """What was measured on one set.

    Attributes:
        name, documents, queries: of the set.
        left_out: how many documents were left out of the ranking of a query that they equal.
        figures: by measure, by way, by width; the last width is the full one.
        adaptor: kind of the adaptor, and what its training said, where it was trained here.
    """

    name: str
    documents: int
    queries: int
    left_out: int
    figures: Figures
    adaptor: dict[str, str] = field(default_factory=dict)

    @property
    def full(self) -> dict[str, float]:
        """Each measure for the full embedding, not adapted."""
        return {name: list(ways["truncation"].values())[-1] for name, ways in self.figures.items()}

    def shares(self) -> dict[str, dict[int, float]]:
        """By way and width, nDCG@10 as a share of that of the full embedding.

        Raises InputError where that is 0.
        """
        full = self.full["ndcg@10"]
        if full <= 0:
            raise InputError(
                f"{self.name}: the full embedding's nDCG@10 is 0, so there is no share of it; check that the "
                "judgements belong to this corpus"
            )
        return {
            way: {width: value / full for width, value in found.items()}
            for way, found in self.figures["ndcg@10"].items()
        }


def ways_of(documents: NDArray[np.float32], adaptor: Adaptor) -> dict[str, Adaptor]:
    """The ways to a prefix that a report compares: truncation, PCA of these documents, and the adaptor."""
    return {"truncation": Identity(documents.shape[1]), "pca": PCA.fit(documents), "adaptor": adaptor}


def measure(
    judged: JudgedSet,
    ways: Mapping[str, Adaptor],
    widths: Sequence[int],
    adaptor: Mapping[str, str] | None = None,
    progress: bool = False,
) -> SetFigures:
    """Rank all documents for every judged query by the cosine of each prefix.

    Shortlist recall is the share of the top 10 of the full embedding, not adapted, that is among the best 50 by the
    prefix; of documents that tie any will do. A document that equals the query (cosine ≥ 0.9999, not judged for it) is
    left out of its rankings.

    Args:
        judged: documents, queries, judgements.
        ways: adaptors by name; "truncation", the identity, is to be among them.
        widths: rising, up to the full width, which is measured as well.
        adaptor: facts to keep with the figures.
        progress: show a bar on stderr.

    Raises:
        InputError: widths beyond the full one.
        EncoderError: an adaptor of another width.
        MissingPackageError: pytrec_eval is not installed.
    """
    for way, found in ways.items():
        if found.dim != judged.dim:
            raise EncoderError(
                f"the {way} takes vectors of {found.dim} dims, and those of {judged.name} have {judged.dim}; "
                "use the encoder that it was trained with"
            )
    queries, rows = (scaled(torch.from_numpy(part.vectors)) for part in (judged.queries, judged.documents))
    ids = judged.documents.ids
    left_out = _equal_rows(judged, queries, rows)
    truth = _rankings(queries, rows, TOP, left_out)
    figures: Figures = {name: {way: {} for way in ways} for name in MEASURES}
    for way, found in Progress(ways.items(), desc=f"measure {judged.name}", unit="ways", disable=not progress):
        asked, given = (torch.from_numpy(found.transform(part.numpy())) for part in (queries, rows))
        for width in dict.fromkeys((*widths, judged.dim)):
            ranking = _rankings(scaled(asked[:, :width]), scaled(given[:, :width]), DEPTH, left_out)
            run = {
                query: {ids[row]: score for row, score in best}
                for query, best in zip(judged.queries.ids, ranking, strict=True)
            }
            for name, value in ranking_metrics(run, judged.qrels).items():
                figures[name][way][width] = value
            figures[SHORTLIST_RECALL][way][width] = _shortlist_recall(queries, rows, ranking, truth)
    sizes = len(ids), len(judged.queries.ids), sum(map(len, left_out))
    return SetFigures(judged.name, *sizes, figures, dict(adaptor or {}))


def mean_shares(sets: Sequence[SetFigures]) -> dict[str, dict[int, float]]:
    """By way and width, the share of the full embedding's nDCG@10, averaged over sets of equal ways and widths."""
    shares = [found.shares() for found in sets]
    return {
        way: {width: sum(share[way][width] for share in shares) / len(shares) for width in widths}
        for way, widths in shares[0].items()
    }


Ranking = list[list[tuple[int, float]]]
"""For each query the rows and their scores, best first."""


def _judged_queries(queries: Queries, qrels: Mapping[str, object]) -> Queries:
    """The queries that are judged, in the order of the judgements."""
    if queries.ids is None:
        raise InputError(f"{queries.name}: the queries have no ids, so no judgement can name them; give a BEIR folder")
    at = {str(name): number for number, name in enumerate(queries.ids)}
    missing = [name for name in qrels if name not in at]
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(qrels):,} judged queries are not in {queries.name} "
            f"({', '.join(missing[:NAMED])}); give the judgements that belong to these queries"
        )
    chosen = [at[name] for name in qrels]
    return Queries(
        texts=None if queries.texts is None else [queries.texts[i] for i in chosen],
        vectors=None if queries.vectors is None else queries.vectors[chosen],
        ids=list(qrels),
        name=queries.name,
    )


def _equal_rows(judged: JudgedSet, queries: torch.Tensor, rows: torch.Tensor) -> list[set[int]]:
    """For each query the rows that equal it and are not judged for it."""
    equal: list[set[int]] = [set() for _ in range(len(queries))]
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        found = torch.nonzero(queries @ rows[start : start + ROWS_AT_A_TIME].T >= SAME).tolist()
        for query, row in found:
            if judged.documents.ids[start + row] not in judged.qrels[judged.queries.ids[query]]:
                equal[query].add(start + row)
    return equal


def _rankings(queries: torch.Tensor, rows: torch.Tensor, depth: int, left_out: Sequence[set[int]]) -> Ranking:
    """The best rows for each query, `depth` of them where there are so many, without those left out."""
    reach = min(len(rows), depth + max(map(len, left_out), default=0))
    scores, found = nearest(queries, rows, reach)
    return [
        [(row, score) for row, score in zip(numbers, values, strict=True) if row not in skipped][:depth]
        for numbers, values, skipped in zip(found.tolist(), scores.tolist(), left_out, strict=True)
    ]


def _shortlist_recall(queries: torch.Tensor, rows: torch.Tensor, ranking: Ranking, truth: Ranking) -> float:
    """The share of the true best rows in the shortlist; a row that ties with the last of them counts as well."""
    depth = min(map(len, truth))
    if not depth:
        return 0.0
    reached = np.full((len(queries), SHORTLIST), -np.inf)
    for number, best in enumerate(ranking):
        chosen = [row for row, _ in best[:SHORTLIST]]
        reached[number, : len(chosen)] = (rows[chosen] @ queries[number]).numpy()
    true = np.array([[score for _, score in best[:depth]] for best in truth])
    return float(recall_at_k(reached, true, depth).mean())


PLOT = "training.png"
FIGURE_NOTES = {
    "shortlist recall": ["by dims: the share of the true top 10 among the best 50 by the prefix (1 % of few rows)"]
}
# Keys of a step's record that are not losses.
STEP_KEYS = ("step", "phase", "epoch")
WIDTH_IN_INCHES, ROW_IN_INCHES, HEAD_IN_INCHES = 12.0, 3.4, 1.2
ByWay = Mapping[str, Mapping[int, float]]
"""By way or kind, by width."""


def show_training(choice: AdaptorChoice, folder: Path) -> str:
    """Draw training.png into the folder of a saved adaptor.

    Returns:
        The text for the terminal: held-out figures by kind and width, why the adaptor was kept, how each training
        went, and the files in the folder. Without matplotlib, or with nothing trained, there is no picture, and the
        text says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    try:
        training_plot(choice, folder / PLOT)
    except (MissingPackageError, InputError) as error:
        said = [str(error)]
    figures = _held_out(choice)
    rows, columns = _table_of(figures, f"held-out {choice.figure}") if figures else ([], [])
    for row, found in zip(rows, figures.values(), strict=True):
        row |= {"mean": sum(found.values()) / len(found), "kept": "kept" * (row["way"] == choice.adaptor.kind)}
    columns += [Column("mean", "mean", ".4f"), Column("kept", "", left=True)]
    files = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file()))
    parts = [
        [choice.why],
        [text_table(rows, columns), *FIGURE_NOTES.get(choice.figure, [])] if rows else [],
        [line for log in choice.logs.values() for line in _course(log)],
        [f"written to {folder}/: {files}", *said],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def training_plot(choice: AdaptorChoice, path: Path) -> None:
    """Write a PNG with two panels a trained kind, losses and held-out figure by step, and one of figures by width.

    Raises MissingPackageError without matplotlib, InputError where nothing was trained.
    """
    logs = [log for log in choice.logs.values() if log.evaluations]
    if not logs:
        raise InputError("nothing was trained, so there are no curves to draw")
    figure = new_figure((WIDTH_IN_INCHES, ROW_IN_INCHES * len(logs) + HEAD_IN_INCHES))
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        len(logs), 3, left=0.05, right=0.985, top=1 - 1.1 / height, bottom=0.55 / height, wspace=0.18, hspace=0.42
    )
    for row, log in enumerate(logs):
        first = {step["phase"]: step["step"] for step in reversed(log.steps)}
        losses = [
            Curve(name, {step["step"]: step[name] for step in log.steps if name in step}, LOSS_COLOURS.get(name, TEXT))
            for name in dict.fromkeys(name for step in log.steps for name in step if name not in STEP_KEYS)
        ]
        points = {evaluation["step"]: evaluation["mean"] for evaluation in log.evaluations}
        kept = Curve(f"dot: the state kept, step {log.best_step}", points, WAY_COLOURS.get(log.kind, TEXT))
        by_step(figure.add_subplot(grid[row, 0]), f"{log.kind}: loss terms, weighted", losses, first)
        title = f"{log.kind}: held-out {log.figure}, mean"
        by_step(figure.add_subplot(grid[row, 1]), title, [kept], first, marked=log.best_step)
    curves = [Curve(name, found, WAY_COLOURS.get(name, FLAT_COLOUR)) for name, found in _held_out(choice).items()]
    by_width(figure.add_subplot(grid[:, 2]), f"held-out {choice.figure} by width", curves)
    heading(figure, 1 - 0.3 / height, f"Training: {choice.adaptor.kind} kept", 15, TEXT, "bold")
    heading(figure, 1 - 0.6 / height, choice.why, 10, FLAT_COLOUR, "normal")
    save_figure(figure, path)


def _held_out(choice: AdaptorChoice) -> ByWay:
    """By kind and width: what the choice was made by; for a kind that was asked for, its own first and best figure."""
    if choice.figures:
        return choice.figures
    found: dict[str, Mapping[int, float]] = {}
    for kind, log in choice.logs.items():
        if log.evaluations:
            found[f"{kind}, untrained"] = log.evaluations[0]["figures"]
            found[kind] = next(one["figures"] for one in log.evaluations if one["step"] == log.best_step)
    return found


def _course(log: TrainingLog) -> list[str]:
    judged = f" and {log.judged:,} judged queries" if log.judged else ""
    return [
        f"{log.kind}: {len(log.steps):,} steps on {log.rows:,} rows{judged} in {log.seconds:.1f} s, "
        f"state of step {log.best_step} kept",
        *(f"  {why}" for why in log.stopped),
    ]


PLOT_INCHES = (11.0, 5.2)
WAYS_NOTE = (
    "All documents are ranked by the cosine of the prefix. Shortlist recall: the share of the full embedding's top 10 "
    "among the best 50 by the prefix. PCA: fitted on the documents of each set. The last width is the full one."
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

    def given(*_: object) -> tuple[Adaptor, dict[str, str]]:
        return adaptor, {}

    return _report(adaptor.kind, folders, given, widths, split, _encoder_for(folders, encoder), cache, progress)


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
        dims: widths, as of `report_on_adaptor`.
        split: the judgements to measure by.
        encoder: of the texts, as of `report_on_adaptor`.
        cache: folder of embeddings.
        progress: show bars on stderr.

    Raises as `report_on_adaptor` does, and InputError for a kind that is not trained.
    """
    if kind not in (AUTO, *TRAINED_KINDS):
        raise InputError(f"the kind {kind!r} is not trained; choose one of {', '.join((AUTO, *TRAINED_KINDS))}")
    used = _encoder_for(folders, encoder)

    def trained(folder: Path, name: str) -> tuple[Adaptor, dict[str, str]]:
        supervised = with_qrels and (folder / "qrels" / "train.tsv").is_file()
        choice = train_adaptor(
            str(folder), out / "adaptors" / name, kind=kind, dims=dims, queries=str(folder) if supervised else None,
            qrels=folder if supervised else None, encoder=used, cache=cache, seed=seed, progress=progress,
        )  # fmt: skip
        trained_on = "documents and qrels/train.tsv" if supervised else "documents"
        return choice.adaptor, {"why": choice.why, "trained on": trained_on}

    return _report(kind, folders, trained, dims, split, used, cache, progress)


def _report(
    kind: str,
    folders: Sequence[Path],
    adapt: Callable[[Path, str], tuple[Adaptor, dict[str, str]]],
    dims: Sequence[int] | None,
    split: str,
    encoder: EncoderSource | None,
    cache: str | os.PathLike[str] | None,
    progress: bool,
) -> AdaptorReport:
    """Every folder, measured with the adaptor that `adapt` gives for it; also given is what to say of that."""
    sets = []
    for name, folder in named(folders).items():
        judged = JudgedSet.read(folder, name, split, encoder, EmbeddingCache(cache), progress)
        adaptor, facts = adapt(folder, name)
        widths = checked_widths(dims or adaptor.dims or default_widths(adaptor.dim), adaptor.dim)
        ways = ways_of(judged.documents.vectors, adaptor)
        sets.append(measure(judged, ways, widths, {"kind": adaptor.kind, **facts}, progress))
        found = [list(one.figures["ndcg@10"]["adaptor"]) for one in (sets[0], sets[-1])]
        if found[0] != found[1]:
            raise InputError(
                f"the widths differ: {found[0]} on {sets[0].name}, {found[1]} on {name}; give --dims, and sets of one "
                "encoder"
            )
    kinds = {one.adaptor["kind"] for one in sets}
    used = kinds.pop() if len(kinds) == 1 else kind
    title = f"Prefixes after {used}: {', '.join(one.name for one in sets)}"
    return AdaptorReport(title, datetime.now(UTC).isoformat(timespec="seconds"), used, split, found[0], sets)


def write_report(report: AdaptorReport, folder: Path) -> str:
    """Write report.json, report.png and report.html into the folder; returns the text for the terminal.

    Without matplotlib the plot is left out, and said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {**asdict(report), "mean": report.mean}
    (folder / "report.json").write_text(plain_json(kept, indent=1) + "\n", encoding="utf-8")
    named_ways = {"adaptor": f"adaptor ({report.adaptor})"}
    several = len(report.sets) > 1
    try:
        shares_plot(report.title, report.sets, folder / "report.png", named_ways)
        caption = "thick: the mean over the sets, thin: each set" if several else report.sets[0].name
        figures, said = [figure(f"By width, {caption}", (folder / "report.png").read_bytes())], []
    except MissingPackageError as error:
        figures, said = [], [str(error)]

    def tabled(by_way: ByWay, title: str) -> tuple[list[dict[str, Any]], list[Column]]:
        return _table_of({named_ways.get(way, way): found for way, found in by_way.items()}, title)

    mean = tabled(report.mean, f"share kept, mean of {len(report.sets)} sets" if several else "share of full nDCG@10")
    texts, sections = [], []
    for found in report.sets:
        head = _set_head(found, report)
        tables = [tabled(found.figures[name], shown) for name, shown in MEASURES.items()]
        texts += ["\n".join([f"{found.name}: {head[0]}", *head[1:]]), *(text_table(*one) for one in tables)]
        sections += [f"<h2>{escape(found.name)}</h2>", *(f"<p>{escape(line)}</p>" for line in head)]
        sections += [table(*one) for one in tables]
    page_head = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="faint">{escape(report.created)} · judgements: {escape(report.split)} · '
        f"full width {report.widths[-1]}</p>",
        *figures,
        "<h2>Share of the full embedding's nDCG@10</h2>",
        table(*mean),
    ]
    html = page(report.title, [*page_head, *sections, f"<p class='faint'>{escape(WAYS_NOTE)}</p>"])
    (folder / "report.html").write_text(html, encoding="utf-8")
    written = f"written to {folder}/: report.json, report.html" + (", report.png" if figures else "")
    return "\n\n".join([report.title, *texts, text_table(*mean), WAYS_NOTE, "\n".join([written, *said])])


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
        by_width(drawn.add_axes((place, 0.115, 0.44, 0.68)), panel, _curves(of_sets, names or {}))
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
        before = sum(name == own or name.startswith(f"{own}-") for name in names)
        names[f"{own}-{before + 1}" if own in names else own] = folder
    return names


def _encoder_for(folders: Sequence[Path], encoder: EncoderSource | None) -> EncoderSource | None:
    """The encoder, loaded once; None where every corpus has vectors of its own."""
    if all(open_corpus(str(folder)).has_vectors for folder in folders):
        return encoder
    return load_encoder(DEFAULT_ENCODER if encoder is None else encoder)


def _table_of(by_way: ByWay, title: str) -> tuple[list[dict[str, Any]], list[Column]]:
    """Rows and columns: the ways down, the widths across."""
    rows = [{"way": way, **{str(width): value for width, value in found.items()}} for way, found in by_way.items()]
    widths = [Column(str(width), str(width), ".4f") for width in next(iter(by_way.values()))]
    return rows, [Column("way", title, left=True), *widths]


def _set_head(found: SetFigures, report: AdaptorReport) -> list[str]:
    """What was measured, why this adaptor, and what was left out."""
    said = f"{found.documents:,} documents, {found.queries:,} judged queries ({report.split})"
    left_out = (
        f"left out: {found.left_out:,} documents that equal a query (cosine ≥ 0.9999) and are not judged for it, "
        "each out of the ranking of that query"
    )
    return ["; ".join(filter(None, [said, found.adaptor.get("why")])), *([left_out] if found.left_out else [])]


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
