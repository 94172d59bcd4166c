"""Adaptors: neighbours kept by prefixes of 100,000 x 384 real embeddings, and ranking kept on judged sets."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import Target, data_folder, load_rows, report
from funnel.adaptors import (
    PCA,
    Adaptor,
    AdaptorChoice,
    Identity,
    Judged,
    Qrels,
    TrainingQueries,
    choose_adaptor,
    fit_adaptor,
)
from funnel.adaptors.sampling import held_out_rows
from funnel.building.training import Embedded, EmbeddingCache, embed_corpus, embed_pieces, embed_queries
from funnel.data.corpus import open_corpus
from funnel.data.queries import read_qrels
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder
from funnel.reports.adaptors import JudgedSet, SetFigures, mean_shares, measure, shares_plot
from funnel.reports.tables import Column, text_table

__all__ = ["adaptors", "precomputed", "show"]

ROWS, UNSEEN = 100_000, 2_000
# Width, shortlist, and the share of the true top 10 that the trained rotation is to hold in it.
SHORTLISTS = ((32, 100, 0.76), (64, 50, 0.885), (96, 50, 0.965))
TRAINING_SECONDS = 60
COSINE_CHANGE = 1e-5
SETS = ("scifact", "vaswani", "cranfield")
WIDTHS = (32, 48, 64, 96, 128, 192)
# Share of full-width nDCG@10 that the rotation is to keep, in the mean over the sets, by width.
KEPT = {128: 0.99, 96: 0.98, 64: 0.95}
WIDEST_FOR_MLP = 128  # the widest prefix at which the published mlp is to be better than truncation
VERSES, VERSES_WIDTH = "kjv-crossrefs", 64
ROWS_AT_A_TIME = 8_192
PARTS = ("vectors", "sets", "judged", "verses")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part; may be given several times.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw what is kept by width (part `sets`) as a PNG.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def adaptors(data: Path | None, only: tuple[str, ...], figure: Path | None, out: Path | None) -> None:
    """Train adaptors with the library's defaults and measure what their prefixes keep.

    vectors: shortlists on 100,000 x 384 embeddings. sets: three judged sets, trained on their documents. judged:
    scifact, trained on its judgements too. verses: kjv-crossrefs, the same.

    Example: python -m benchmarks adaptors --data ../shared/data --only sets --figure benchmarks/figures/adaptors.png
    """
    folder = data_folder(data)
    targets: list[Target] = []
    facts: dict[str, Any] = {}
    for part in only or PARTS:
        if part == "vectors":
            found, facts[part] = on_vectors(folder / "vectors-384")
        elif part == "sets":
            found, facts[part] = on_sets(folder, figure)
        elif part == "judged":
            found, facts[part] = on_scifact(folder / "scifact")
        else:
            found, facts[part] = on_verses(folder / VERSES)
        targets += found
    report("adaptors", targets, facts, out)


Part = tuple[list[Target], dict[str, Any]]


def on_vectors(folder: Path) -> Part:
    """The adaptor that is trained by default on 100,000 rows, beside PCA, on queries that no row equals."""
    rows = load_rows(next(folder.glob("corpus.*npy")))[:ROWS]
    queries = load_rows(next(folder.glob("queries.*npy")))[:UNSEEN]
    started = time.perf_counter()
    choice = choose_adaptor(rows, progress=True)
    seconds = time.perf_counter() - started
    click.echo(choice.why)
    ways = {"truncation": Identity(rows.shape[1]), "pca": PCA.fit(rows), "trained": choice.adaptor}
    shares = _shortlist_shares(rows, queries, ways)
    change = largest_cosine_change(choice.adaptor, rows, queries)
    show("true top 10 in a shortlist", shares)
    targets = [Target.at_most("training on 100,000 rows, seconds", seconds, TRAINING_SECONDS)]
    for width, shortlist, asked in SHORTLISTS:
        name = f"true top 10 in a shortlist of {shortlist} at {width} dims"
        targets.append(Target.at_least(name, shares["trained"][_shortlist(width, shortlist)], asked))
    targets.append(Target.at_most("largest change of a full-width cosine", change, COSINE_CHANGE))
    return targets, {"seconds": seconds, "why": choice.why, "shares": shares, "cosine_change": change}


def on_sets(folder: Path, figure: Path | None) -> Part:
    """Each kind trained on the documents alone, their vectors or texts, and judged by the test queries."""
    sets = []
    for name in SETS:
        judged = _judged_set(*precomputed(folder / name), read_qrels(folder / name, "test"))
        documents, cut = judged.documents.vectors, TrainingQueries(pieces=judged.documents.pieces)
        ways = {
            "truncation": Identity(judged.dim),
            "pca": PCA.fit(documents),
            "rotation, vectors alone": fit_adaptor("rotation", documents, progress=True).adaptor,
            "rotation": fit_adaptor("rotation", documents, queries=cut, progress=True).adaptor,
            "auto": choose_adaptor(documents, queries=cut, progress=True).adaptor,
            "mlp": fit_adaptor("mlp", documents, progress=True).adaptor,
        }
        sets.append(measure(judged, ways, WIDTHS))
        show(f"{name}, nDCG@10", sets[-1].figures["ndcg@10"])
    kept = mean_shares(sets)
    show("mean share kept", kept)
    if figure is not None:
        shares_plot("Adaptors trained on the documents alone", sets, figure)
    targets = [
        Target.at_least(f"rotation at {width} dims: share of full nDCG@10, mean of 3", kept["rotation"][width], asked)
        for width, asked in KEPT.items()
    ]
    over_pca = {width: kept["rotation"][width] - kept["pca"][width] for width in WIDTHS}
    targets.append(_least("rotation over PCA, mean share of 3", over_pca))
    for found in sets:
        own = found.figures["ndcg@10"]
        gain = {width: own["mlp"][width] - own["truncation"][width] for width in WIDTHS if width <= WIDEST_FOR_MLP}
        targets.append(_least(f"{found.name}: mlp over truncation, nDCG@10", gain))
    return targets, {"sets": [asdict(found) for found in sets], "mean_share": kept}


def on_scifact(folder: Path) -> Part:
    """Trained with the training claims, beside the same without."""
    documents, queries = precomputed(folder)
    judged = _judged_set(documents, queries, read_qrels(folder, "test"))
    figures, choices = _with_and_without(judged, queries, read_qrels(folder, "train"))
    own = figures.figures["ndcg@10"]
    gain = {width: own["judged"][width] - own["unsupervised"][width] for width in WIDTHS}
    targets = [
        Target.at_least("scifact: judged over unsupervised, nDCG@10, mean", float(np.mean(list(gain.values()))), 0),
        _least("scifact: judged over unsupervised, nDCG@10", gain),
    ]
    return targets, {"figures": asdict(figures), "why": {way: choice.why for way, choice in choices.items()}}


def on_verses(folder: Path) -> Part:
    """Trained with the training verses' references; the texts are encoded on first use, and kept in the cache."""
    cache = EmbeddingCache()
    documents = replace(embed_corpus(str(folder), None, cache), name=folder.name)
    queries = embed_queries(str(folder), None, cache)
    judged = _judged_set(documents, queries, read_qrels(folder, "test"))
    figures, choices = _with_and_without(judged, queries, read_qrels(folder, "train"), read_qrels(folder, "dev"))
    reached = figures.figures["ndcg@10"]["judged"][VERSES_WIDTH]
    name = f"{VERSES}: nDCG@10 at {VERSES_WIDTH} dims, of the full embedding's {figures.full['ndcg@10']:.4f}"
    facts = {"figures": asdict(figures), "why": {way: choice.why for way, choice in choices.items()}}
    return [Target.at_least(name, reached, figures.full["ndcg@10"])], facts


def largest_cosine_change(
    adaptor: Adaptor, rows: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], block: int = 8_192
) -> float:
    """The largest difference that adapting makes to a dot product of a query and a row, summed in float64."""
    asked, adapted = queries.astype(np.float64), adaptor.transform(queries).astype(np.float64)
    largest = 0.0
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        after = adapted @ adaptor.transform(part).astype(np.float64).T
        largest = max(largest, float(np.abs(asked @ part.astype(np.float64).T - after).max()))
    return largest


def _shortlist_shares(
    rows: npt.NDArray[np.float32], queries: npt.NDArray[np.float32], ways: Mapping[str, Adaptor]
) -> dict[str, dict[str, float]]:
    asked, given = torch.from_numpy(queries), torch.from_numpy(rows)
    shares: dict[str, dict[str, float]] = {way: {} for way in ways}
    for width, shortlist, _ in SHORTLISTS:
        held_out = held_out_rows(asked, given, shortlist)
        for way, adaptor in ways.items():
            shares[way][_shortlist(width, shortlist)] = held_out.figures(adaptor.map, [width])[width]
    return shares


def _shortlist(width: int, shortlist: int) -> str:
    return f"{width}, S={shortlist}"


def _with_and_without(
    judged: JudgedSet, queries: Embedded, qrels: Qrels, dev: Qrels | None = None
) -> tuple[SetFigures, dict[str, AdaptorChoice]]:
    """The adaptor chosen on the documents alone, and the one chosen with judgements to train on."""
    documents = judged.documents
    training = Judged.read(qrels, queries.ids, queries.vectors, documents.ids)
    held_out = None if dev is None else Judged.read(dev, queries.ids, queries.vectors, documents.ids)
    choices = {
        "unsupervised": choose_adaptor(
            documents.vectors, queries=TrainingQueries(pieces=documents.pieces), progress=True
        ),
        "judged": choose_adaptor(documents.vectors, queries=TrainingQueries(training, held_out), progress=True),
    }
    ways: dict[str, Adaptor] = {"truncation": Identity(judged.dim), "pca": PCA.fit(documents.vectors)}
    ways |= {way: choice.adaptor for way, choice in choices.items()}
    for way, choice in choices.items():
        click.echo(f"{way}: {choice.why}")
    figures = measure(judged, ways, WIDTHS)
    show(f"{documents.name}, nDCG@10", figures.figures["ndcg@10"])
    return figures, choices


def precomputed(folder: Path) -> tuple[Embedded, Embedded]:
    """Documents, with pieces of them, and all queries of a set whose embeddings lie beside it."""
    texts = [document for batch in open_corpus(str(folder)).documents(ROWS_AT_A_TIME) for document in batch]
    pieces = embed_pieces(texts, load_encoder(DEFAULT_ENCODER), EmbeddingCache())
    rows = load_rows(folder / "minilm-corpus.f16.npy")
    documents = Embedded(folder.name, [str(document.id) for document in texts], rows, pieces)
    return documents, Embedded("queries", _ids(folder / "queries.jsonl"), load_rows(folder / "minilm-queries.f16.npy"))


def _judged_set(documents: Embedded, queries: Embedded, qrels: Qrels) -> JudgedSet:
    kept = {query: judged for query, judged in qrels.items() if max(judged.values()) > 0}
    at = {name: number for number, name in enumerate(queries.ids)}
    asked = Embedded(queries.name, list(kept), queries.vectors[[at[query] for query in kept]])
    return JudgedSet(documents, asked, kept)


def _ids(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return [str(json.loads(line)["_id"]) for line in file]


def _least(name: str, by_width: Mapping[int, float]) -> Target:
    """The smallest of several differences, which must not be below 0."""
    width = min(by_width, key=lambda width: by_width[width])
    return Target.at_least(f"{name}, least (at {width} dims)", by_width[width], 0)


def show(title: str, by_way: Mapping[str, Mapping[Any, float]]) -> None:
    """Print a table, a row for each way."""
    keys: Sequence[Any] = list(next(iter(by_way.values())))
    columns = [Column("way", title, left=True), *(Column(str(key), str(key), ".4f") for key in keys)]
    rows = [{"way": way, **{str(key): value for key, value in found.items()}} for way, found in by_way.items()]
    click.echo(f"\n{text_table(rows, columns)}\n")
