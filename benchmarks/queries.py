"""Queries for the embeddings of vectors-384: held-out documents, and runs of words from their texts, which are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import data_folder, load_rows
from benchmarks.texts import lines_of
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder

__all__ = ["HELD_OUT", "WORDS", "AskedSet", "asked_sets", "queries", "word_runs"]

HELD_OUT, WORDS = "held-out documents", "runs of 2 to 5 words of held-out texts"
FEWEST, MOST = 2, 5  # words in a run
DOCUMENTS = "vectors-384"  # the folder whose queries are documents that were held out
TEXTS = Path("package-texts") / "queries.txt.gz"  # theirs, beside it, in the same order


@dataclass(frozen=True)
class AskedSet:
    """Queries of one kind: vectors float32 [n, d], unit rows, in random order."""

    name: str
    vectors: npt.NDArray[np.float32]


def word_runs(texts: list[str], seed: int = 0) -> list[str]:
    """A run of 2 to 5 words from each text that has so many, each run once, in the order of the texts."""
    generator = np.random.default_rng(seed)
    runs: dict[str, None] = {}
    for text in texts:
        words = text.split()
        if len(words) < FEWEST:
            continue
        length = int(generator.integers(FEWEST, min(MOST, len(words)) + 1))
        start = int(generator.integers(0, len(words) - length + 1))
        runs[" ".join(words[start : start + length])] = None
    return list(runs)


def asked_sets(folder: Path) -> list[AskedSet]:
    """What the folder's corpus is asked: its queries, and where their texts are at hand, runs of words from these."""
    given = load_rows(next(folder.glob("queries.*npy")))
    if folder.name != DOCUMENTS:
        return [AskedSet("queries", given)]
    documents = AskedSet(HELD_OUT, given)
    if not (folder.parent / TEXTS).is_file():
        click.echo(f"no {folder.parent / TEXTS}: without the second set of queries, {WORDS}")
        return [documents]
    return [documents, AskedSet(WORDS, _encoded(folder.parent / TEXTS))]


def _encoded(path: Path) -> npt.NDArray[np.float32]:
    runs = word_runs(list(lines_of(path)))
    drawn = np.random.default_rng(1).permutation(len(runs))
    return np.asarray(load_encoder(DEFAULT_ENCODER).encode_query([runs[i] for i in drawn]), dtype=np.float32)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
def queries(out: Path, data: Path | None) -> None:
    """Write the second set of queries for vectors-384, runs of words, to OUT, for `promise` and `peers`.

    Example: python -m benchmarks queries words.npy
    """
    vectors = _encoded(data_folder(data) / TEXTS)
    np.save(out, vectors)
    click.echo(f"{len(vectors):,} {WORDS} written to {out}")
