"""What unlabelled queries teach an adaptor: ranking kept by prefixes, shortlists, and certificates after it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.adaptors import precomputed, show
from benchmarks.common import Target, data_folder, load_rows, report
from benchmarks.queries import asked_sets
from benchmarks.trials import make_pool, run_trials
from funnel import FunnelIndex
from funnel.adaptors import Adaptor, Judged, TrainingQueries, fit_adaptor
from funnel.adaptors.sampling import Map, held_out_judged, held_out_rows
from funnel.building.training import EmbeddingCache, embed_corpus, embed_queries
from funnel.data.queries import read_qrels
from funnel.engine.measuring import record
from funnel.reports.tables import Column, text_table

__all__ = ["taught"]

PARTS = ("claims", "verses", "shortlists", "certificates")
SEEDS, WIDTHS, WIDTH = 5, (32, 64, 96, 128), 64
GAIN, VERSES_KEPT = 0.03, 0.85
RESAMPLED = 2_000
SHORTLISTS = ((32, 100), (64, 50), (96, 50), (128, 50))  # width, and length of the shortlist
UNSEEN, TEACHING, ROWS = 2_000, 2_000, 100_000
TRAININGS, DRAWS, FEW_ROWS, CERTIFYING, CERTAIN = 10, 20, 20_000, 1_000, 0.95

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part; may be given several times.")
@click.option("--wide", type=click.Path(exists=True, path_type=Path), help="Folder that `wide` wrote, for shortlists.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def taught(data: Path | None, only: tuple[str, ...], wide: Path | None, out: Path | None) -> None:
    """Rotations trained with and without queries that nobody judged, on queries that trained neither.

    claims: scifact and its 809 training claims, 5 seeds. verses: kjv-crossrefs and its training verses. shortlists:
    vectors-384 and wide sets. certificates: 10 trainings on 20,000 rows, 20 draws of certifying queries each.

    Example: python -m benchmarks taught --data ../shared/data --only claims
    """
    folder, targets, facts = data_folder(data), [], {}
    for part in only or PARTS:
        if part == "claims":
            found, facts[part] = on_claims(folder / "scifact")
        elif part == "verses":
            found, facts[part] = on_verses(folder / "kjv-crossrefs")
        elif part == "shortlists":
            found, facts[part] = on_shortlists(folder / "vectors-384", wide)
        else:
            found, facts[part] = on_certificates(folder / "vectors-384")
        targets += found
    report("taught", targets, facts, out)


Part = tuple[list[Target], dict[str, Any]]


def on_claims(folder: Path) -> Part:
    """Documents alone against documents and training claims, the same seeds; test queries told apart by answers."""
    documents, claims = precomputed(folder)
    train, test = read_qrels(folder, "train"), read_qrels(folder, "test")
    at = {name: number for number, name in enumerate(claims.ids)}
    real = claims.vectors[[at[name] for name in train]]
    answers = {document for judged in train.values() for document, grade in judged.items() if grade > 0}
    asked = [name for name, judged in test.items() if max(judged.values()) > 0]
    apart = np.array([answers.isdisjoint(d for d, grade in test[name].items() if grade > 0) for name in asked])
    judged = Judged.read(test, claims.ids, claims.vectors, documents.ids)
    rows = torch.from_numpy(np.ascontiguousarray(documents.vectors))
    figure, full = held_out_judged(judged, rows).per_query, documents.vectors.shape[1]
    whole = figure(lambda vectors: vectors, [full])[full].numpy().astype(np.float64)
    kept: dict[str, list[Float64]] = {"documents": [], "claims": []}
    for seed in range(SEEDS):
        for way, queries in (("documents", None), ("claims", real)):
            given = TrainingQueries(real=queries, pieces=documents.pieces)
            adaptor = fit_adaptor("rotation", documents.vectors, queries=given, seed=seed, progress=True).adaptor
            found = figure(adaptor.map, WIDTHS)
            kept[way].append(np.stack([found[width].numpy() for width in WIDTHS]))
    without, taught_ = (np.mean(kept[way], axis=0) for way in ("documents", "claims"))
    table, gains = [], {}
    for label, those in (("all", np.ones(len(apart), dtype=bool)), ("apart", apart), ("shared answers", ~apart)):
        for width, before, after in zip(WIDTHS, without, taught_, strict=True):
            base, gain = whole[those].mean(), _interval((after - before)[those] / whole[those].mean())
            gains[label, width] = gain
            table.append(
                {
                    "who": f"{label} ({those.sum()})", "width": width, "before": before[those].mean() / base,
                    "after": after[those].mean() / base, "gain": gain[0], "low": gain[1], "high": gain[2],
                }
            )  # fmt: skip
    columns = [Column("who", "test queries", left=True), Column("width", "dims", "d")]
    columns += [Column(name, name, ".3f") for name in ("before", "after", "gain", "low", "high")]
    click.echo(f"\n{folder.name}: share of nDCG@10 kept, mean of {SEEDS} seeds\n{text_table(table, columns)}\n")
    mean, low, _ = gains["all", WIDTH]
    name = f"{folder.name}, {WIDTH} dims: gain by unlabelled claims"
    return [Target.at_least(name, mean, GAIN), Target.at_least(f"{name}, lower end", low, 0)], {"table": table}


def _interval(gains: Float64) -> tuple[float, float, float]:
    """The mean, and the ends of its 95 % interval by bootstrap over queries."""
    drawn = np.random.default_rng(0).integers(len(gains), size=(RESAMPLED, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1), (0.025, 0.975))
    return float(gains.mean()), float(low), float(high)


def on_verses(folder: Path) -> Part:
    """Verses, taught by those of the training judgements without their answers."""
    cache = EmbeddingCache()
    documents, queries = embed_corpus(str(folder), None, cache, pieces_seed=0), embed_queries(str(folder), None, cache)
    train, test = read_qrels(folder, "train"), read_qrels(folder, "test")
    judged = Judged.read(test, queries.ids, queries.vectors, documents.ids)
    at = {name: number for number, name in enumerate(queries.ids)}
    ways = {"documents": None, "training verses": queries.vectors[[at[name] for name in train]]}
    figure, full = held_out_judged(judged, torch.from_numpy(documents.vectors)), documents.vectors.shape[1]
    whole, kept = figure.figures(lambda vectors: vectors, [full])[full], {}
    for way, real in ways.items():
        given = TrainingQueries(real=real, pieces=documents.pieces)
        adaptor = fit_adaptor("rotation", documents.vectors, queries=given, progress=True).adaptor
        kept[way] = {width: value / whole for width, value in figure.figures(adaptor.map, WIDTHS).items()}
    show(f"{folder.name}: share of nDCG@10 kept", kept)
    name = f"{folder.name}, {WIDTH} dims: share kept, taught by unlabelled verses"
    return [Target.at_least(name, kept["training verses"][WIDTH], VERSES_KEPT)], {"kept": kept}


def on_shortlists(folder: Path, wide: Path | None) -> Part:
    """True top 10 in a shortlist, of queries that trained nothing; no target: queries may be as the rows are."""
    sets = [(one.name, next(folder.glob("corpus.*npy")), one.vectors) for one in asked_sets(folder)]
    sets += [
        (path.stem, path, load_rows(path.with_name(path.name.replace("corpus", "queries"))))
        for path in (sorted(wide.glob("corpus-*.npy")) if wide else ())
    ]
    facts = {}
    for name, path, asked in sets:
        rows, unseen, real = load_rows(path)[:ROWS], asked[:UNSEEN], asked[UNSEEN : UNSEEN + TEACHING]
        ways = {"rows": None, f"{len(real):,} queries": real}
        made = {way: _trained(rows, given) for way, given in ways.items()}
        facts[name] = {way: _shares(rows, unseen, adaptor.map) for way, adaptor in made.items()}
        show(f"{name}: true top 10 in a shortlist", facts[name])
    return [], facts


def _trained(rows: Float32, real: Float32 | None) -> Adaptor:
    return fit_adaptor("rotation", rows, queries=TrainingQueries(real=real), progress=True).adaptor


def _shares(rows: Float32, unseen: Float32, project: Map) -> dict[str, float]:
    asked, given = torch.from_numpy(unseen), torch.from_numpy(rows)
    return {
        f"{width}, S={size}": held_out_rows(asked, given, size).figures(project, [width])[width]
        for width, size in SHORTLISTS
    }


def on_certificates(folder: Path) -> Part:
    """Whether budgets are kept where queries of the same kind trained the prefix: over those that trained nothing."""
    rows, asked = load_rows(next(folder.glob("corpus.*npy")))[:FEW_ROWS], asked_sets(folder)[-1]
    met: dict[float, list[float]] = {recall: [] for recall in (0.9, 0.95)}
    for training in range(TRAININGS):
        drawn = np.random.default_rng(training).permutation(len(asked.vectors))
        teaching, others = asked.vectors[drawn[:TEACHING]], asked.vectors[drawn[TEACHING:]]
        with tempfile.TemporaryDirectory() as temporary:
            path, seed = Path(temporary) / "index", training
            with FunnelIndex.build(
                rows, path, queries=others[:CERTIFYING], training_queries=teaching, seed=seed, progress=False
            ) as index:
                searcher, calibration = index.searcher, index.searcher.calibration
                assert calibration is not None
                efforts = calibration.runs()[0].efforts
                prepared = searcher.prepare(others)
                pool = record(searcher.cascade, prepared, None, searcher.widths, efforts, True, "the pool", path)
                plans = make_pool(calibration, pool, 10)
                for row in run_trials(plans, calibration, list(met), CERTIFYING, DRAWS, (1, 256), training):
                    met[row.recall].append(1.0 if row.fell_back == 1 else row.met)
                    click.echo(f"training {training}, recall {row.recall:g}: kept in {met[row.recall][-1]:.2f}")
    kept = {recall: float(np.mean(shares)) for recall, shares in met.items()}
    return [
        Target.at_least(f"recall {recall:g}: kept, of {TRAININGS * DRAWS} draws", share, CERTAIN)
        for recall, share in kept.items()
    ], {"kept": {str(recall): shares for recall, shares in met.items()}}
