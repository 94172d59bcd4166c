"""Hybrid search: nDCG@10 of the dense ranking, of BM25 and of both fused, on the judged sets; the weight's choice."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from funnel import FunnelIndex
from funnel.adaptors import Qrels
from funnel.building.training import EmbeddingCache, embed_corpus, embed_queries
from funnel.data.corpus import open_corpus
from funnel.data.documents import Document
from funnel.data.queries import open_queries, read_qrels
from funnel.engine.hybrid import DEFAULT_WEIGHT, DEPTH, Lexical, Ranking, fuse
from funnel.reports.bench import ranking_metrics
from funnel.reports.tables import Column, text_table

__all__ = ["hybrid"]

SETS = ("scifact", "vaswani", "cranfield", "cacm", "kjv-crossrefs")
# Judgements that are no test, and so may choose.
CHOOSING = (("scifact", "train"), ("kjv-crossrefs", "dev"))
WEIGHTS = tuple(round(0.1 * step, 1) for step in range(11))
DEPTHS = (10, 20, 50, 100)
K, RECALL = 10, 0.99
TIMED = 300  # queries whose BM25 is timed one by one


@dataclass(frozen=True)
class Asked:
    """Judged queries of one split: texts, vectors [q, d] and judgements, in one order."""

    ids: Sequence[str]
    texts: Sequence[str]
    vectors: npt.NDArray[np.float32]
    qrels: Qrels


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--sets", default=",".join(SETS), show_default=True, help="Folders to measure.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def hybrid(data: Path | None, sets: str, out: Path | None) -> None:
    """Build each set, choose weight and depth on judgements that are no test, and judge by the test queries.

    Embeddings are read where they lie beside the texts, and made once where they do not. A verse that is the query
    itself is left out of its ranking.

    Example: python -m benchmarks hybrid --data ../shared/data
    """
    folder = data_folder(data)
    names = [name for name in sets.split(",") if (folder / name).is_dir()]
    chosen: dict[str, Any] = {}
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            documents, splits = _read(folder / name)
            known = {
                text: row for asked in splits.values() for text, row in zip(asked.texts, asked.vectors, strict=True)
            }
            index = FunnelIndex.build(
                documents, Path(temporary) / name, encoder=_Known(known), adaptor="pca", progress=False
            )
            for split, asked in splits.items():
                if (name, split) in CHOOSING:
                    chosen[f"{name} {split}"] = _sweep(index, asked)
            figures[name] = _judge(index, splits["test"])
            click.echo(f"{name}: {figures[name]}")
    _show(chosen, figures)
    means = {way: float(np.mean([figures[name][way] for name in names])) for way in ("dense", "bm25", "hybrid")}
    click.echo(f"mean: {means}")
    better = max(means["dense"], means["bm25"])
    targets = [Target.at_least(f"hybrid nDCG@10, mean of {len(names)}", means["hybrid"], better)]
    facts = {"weight": DEFAULT_WEIGHT, "depth": DEPTH, "chosen_on": chosen, "sets": figures, "means": means}
    report("hybrid", targets, facts, out)


class _Known:
    """The embeddings of the queries, looked up: they were made by the model that made those of the documents."""

    def __init__(self, known: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self._known = known
        self._dim = len(next(iter(known.values())))

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        # Texts that no query has are the engine's own, to find the width and the time of an encoder.
        other = np.eye(1, self._dim, dtype=np.float32)[0]
        return np.stack([self._known.get(text, other) for text in texts])


def _read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Asked]]:
    queries = open_queries(str(folder))
    assert queries.texts is not None
    assert queries.ids is not None
    texts = [document for batch in open_corpus(str(folder)).documents(4096) for document in batch]
    rows, every = _vectors(folder)
    at = {str(name): number for number, name in enumerate(queries.ids)}
    splits = {}
    for file in sorted((folder / "qrels").glob("*.tsv")):
        if file.stem != "test" and (folder.name, file.stem) not in CHOOSING:
            continue
        qrels = {name: grades for name, grades in read_qrels(file).items() if max(grades.values()) > 0}
        numbers = [at[name] for name in qrels]
        asked = [queries.texts[number] for number in numbers]
        vectors = every[numbers] if every is not None else embed_queries(asked, None, EmbeddingCache()).vectors
        splits[file.stem] = Asked(list(qrels), asked, vectors, qrels)
    return [_record(document, row) for document, row in zip(texts, rows, strict=True)], splits


def _vectors(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Embeddings of the documents, and of all queries where they lie beside the texts."""
    made = folder / "minilm-corpus.f16.npy"
    if made.is_file():
        return load_rows(made), load_rows(folder / "minilm-queries.f16.npy")
    return embed_corpus(str(folder), None, EmbeddingCache()).vectors, None


def _record(document: Document, row: npt.NDArray[np.float32]) -> dict[str, Any]:
    return {"_id": document.id, "title": document.title, "text": document.text, "vector": row}


def _own(query: str) -> str:
    """The id of the verse that a query is; no document of another set has such an id."""
    return query.removeprefix("q-")


def _judge(index: FunnelIndex, asked: Asked) -> dict[str, Any]:
    """nDCG@10 of each way by test queries, and the time of BM25."""
    found: dict[str, Any] = {"queries": len(asked.ids), "documents": len(index)}
    for way, weight in (("dense", 0.0), ("bm25", 1.0), ("hybrid", DEFAULT_WEIGHT)):
        hits = index.search(list(asked.texts), K + 1, recall=RECALL, hybrid=weight)
        run = {
            query: {str(hit.id): -float(rank) for rank, hit in enumerate(row) if hit.id != _own(query)}
            for query, row in zip(asked.ids, hits, strict=True)
        }
        found[way] = ranking_metrics(run, asked.qrels)["ndcg@10"]
    words, times = _lexical(index), []
    for text in asked.texts[:TIMED]:
        start = time.perf_counter()
        words.rank(text, DEPTH)
        times.append((time.perf_counter() - start) * 1e3)
    found["bm25_ms"] = {"p50": float(np.median(times)), "p95": float(np.percentile(times, 95))}
    return found


def _sweep(index: FunnelIndex, asked: Asked) -> dict[str, dict[str, float]]:
    """nDCG@10 by depth and weight."""
    deepest = max(DEPTHS) + 1  # the query's own verse is left out
    ids, scores = index.search_vectors(asked.vectors, deepest - 1, recall=RECALL)
    at = {id_: position for position, id_ in enumerate(index.ids())}
    positions = np.array([[at[id_] for id_ in row] for row in ids], dtype=np.int64)
    lexical = _lexical(index).rank_all(asked.texts, deepest)
    names = index.ids()
    lists = []
    for query, near, cosines, words in zip(asked.ids, positions, scores, lexical, strict=True):
        assert words is not None
        own = at.get(_own(query), -2)
        lists.append((_without((near, cosines), own), _without(words, own)))
    result: dict[str, dict[str, float]] = {}
    for depth in DEPTHS:
        result[str(depth)] = {}
        for weight in WEIGHTS:
            run = {}
            for query, (dense, words) in zip(asked.ids, lists, strict=True):
                best = fuse(_head(dense, depth), _head(words, depth), weight, K)
                run[query] = {names[position]: score for position, score, _ in best}
            result[str(depth)][f"{weight:.1f}"] = ranking_metrics(run, asked.qrels)["ndcg@10"]
    return result


def _lexical(index: FunnelIndex) -> Lexical:
    assert index.lexical is not None, "every set has documents"
    return index.lexical


def _without(ranking: Ranking, own: int) -> Ranking:
    kept = ranking[0] != own
    return ranking[0][kept], ranking[1][kept]


def _head(ranking: Ranking, depth: int) -> Ranking:
    return ranking[0][:depth], ranking[1][:depth]


def _show(chosen: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> None:
    weights = [Column(f"{weight:.1f}", f"{weight:.1f}", ".4f") for weight in WEIGHTS]
    for name, by_depth in chosen.items():
        click.echo(f"\n{name}: nDCG@10 by depth of the lists and weight of BM25")
        rows = [{"depth": depth, **by_weight} for depth, by_weight in by_depth.items()]
        click.echo(text_table(rows, [Column("depth", "depth"), *weights]))
    click.echo(f"\nnDCG@10 by test queries, weight {DEFAULT_WEIGHT:g}, lists of {DEPTH}")
    ways = [Column(way, way, ".4f") for way in ("dense", "bm25", "hybrid")]
    times = [Column("p50", "BM25 ms p50", ".1f"), Column("p95", "p95", ".1f")]
    rows = [{"set": name, **found, **found["bm25_ms"]} for name, found in figures.items()]
    click.echo(text_table(rows, [Column("set", "set", left=True), *ways, *times]))
