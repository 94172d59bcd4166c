"""Wide embeddings with a real spectrum: 768, 1,536 and 2,304 dims, for `prefixes`, `peers` and `choice`.

An embedding of all-MiniLM-L6-v2 is the mean of its last layer's token states, scaled to unit length (384 dims). Here
the means of its last two layers (768 dims), four (1,536), or all six (2,304), each scaled to unit length, stand side by
side: what a real network says of real texts, with the fast-falling spectrum and the near-duplicates of such vectors.
"""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks.common import RESULTS, data_folder
from benchmarks.texts import lines_of
from funnel.encoding.encoders import DEFAULT_ENCODER
from funnel.encoding.models import load_model

__all__ = ["caption", "wide"]

LAYERS = {768: 2, 1536: 4, 2304: 6}
TEXTS_AT_A_TIME = 256
ROWS_AT_A_TIME, SAMPLED = 10_000, 20_000
FILE = re.compile(r"corpus-(\d+)(?:-flat([\d.]+))?")


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--rows", default=100_000, show_default=True, help="Texts of the corpus.")
@click.option("--flatten", type=click.FloatRange(0, 1), help="Also: the same rows, their eigenvalues to this power.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "wide", show_default=True)
def wide(data: Path | None, rows: int, flatten: float | None, out: Path) -> None:
    """Make corpus and query vectors of 768, 1,536 and 2,304 dims from package descriptions.

    Files that are there with as many rows are not made again. With --flatten 0.5 there are corpus-768-flat0.5.npy and
    so on too, the control: turned into the axes of PCA, each scaled so that its eigenvalue becomes the square root.

    Example: python -m benchmarks wide --data ../shared/data --flatten 0.5, then
    python -m benchmarks peers --vectors benchmarks/results/wide/corpus-768.npy --queries
    benchmarks/results/wide/queries-768.npy
    """
    folder = data_folder(data) / "package-texts"
    out.mkdir(parents=True, exist_ok=True)
    for name, texts in (
        ("corpus", list(islice(lines_of(folder / "corpus.txt.gz"), rows))),
        ("queries", list(lines_of(folder / "queries.txt.gz"))),
    ):
        if all(_made(out / f"{name}-{width}.npy", len(texts), width) for width in LAYERS):
            continue
        states = _states(load_model(DEFAULT_ENCODER, "cpu"), texts, name)
        for width, layers in LAYERS.items():
            chosen = states[:, -layers:].reshape(len(texts), -1)
            np.save(out / f"{name}-{width}.npy", chosen / np.linalg.norm(chosen, axis=1, keepdims=True))
    for width in LAYERS:
        path = out / f"corpus-{width}.npy"
        click.echo(caption(path, np.load(path, mmap_mode="r", allow_pickle=False)))
        if flatten is not None:
            path = _flatten(out, width, flatten)
            click.echo(caption(path, np.load(path, mmap_mode="r", allow_pickle=False)))


def caption(path: Path, rows: npt.NDArray[Any]) -> str:
    """What the rows of a file are, for the head of a table: number, dims, where they come from and their spectrum."""
    known = FILE.fullmatch(path.stem)
    made = path.name
    if known and int(known[1]) in LAYERS:
        flat = f", eigenvalues to the power {known[2]}" if known[2] else ""
        made += f", {LAYERS[int(known[1])]} layers of MiniLM side by side{flat}"
    return f"{len(rows):,} x {rows.shape[1]:,} ({made}; {_spectrum(rows)})"


def _made(path: Path, rows: int, width: int) -> bool:
    return path.exists() and np.load(path, mmap_mode="r", allow_pickle=False).shape == (rows, width)


def _flatten(out: Path, width: int, power: float) -> Path:
    """Write corpus and queries with eigenvalues of the corpus to a power; gives the corpus's file."""
    corpus = np.load(out / f"corpus-{width}.npy", mmap_mode="r", allow_pickle=False)
    moment = np.zeros((width, width))
    for start in range(0, len(corpus), ROWS_AT_A_TIME):
        part = corpus[start : start + ROWS_AT_A_TIME]
        moment += part.T @ part
    values, axes = np.linalg.eigh(moment / len(corpus))
    scales = np.maximum(values, values[-1] * 1e-9) ** ((power - 1) / 2)  # of each axis, as its eigenvalue is a square
    turn = (axes * scales)[:, ::-1].astype(np.float32)
    for name in ("corpus", "queries"):
        rows = np.load(out / f"{name}-{width}.npy", mmap_mode="r", allow_pickle=False) @ turn
        np.save(out / f"{name}-{width}-flat{power:g}.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return out / f"corpus-{width}-flat{power:g}.npy"


def _states(model: Any, texts: list[str], name: str) -> npt.NDArray[np.float32]:
    """The unit means of each text's token states in all layers: float32 [n, 6, 384]."""
    transformer, tokenizer = model[0].auto_model, model.tokenizer
    order = np.argsort([len(text) for text in texts], kind="stable")
    result: npt.NDArray[np.float32] = np.empty((len(texts), max(LAYERS.values()), 384), dtype=np.float32)
    for start in tqdm(range(0, len(texts), TEXTS_AT_A_TIME), desc=name):
        at = order[start : start + TEXTS_AT_A_TIME]
        tokens = tokenizer(
            [texts[i] for i in at], padding=True, truncation=True, max_length=model.max_seq_length, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = transformer(**tokens, output_hidden_states=True).hidden_states[-result.shape[1] :]
            mask = tokens["attention_mask"][:, :, None].float()
            for layer, state in enumerate(hidden):
                mean = (state.float() * mask).sum(dim=1) / mask.sum(dim=1)
                result[at, layer] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return result


def _spectrum(rows: npt.NDArray[Any]) -> str:
    """How soon the spectrum falls: the share of the energy in the first eighth and the first half of the axes."""
    sample = np.asarray(rows[:: max(1, len(rows) // SAMPLED)], dtype=np.float32)
    energy = np.linalg.eigvalsh(sample.T @ sample)[::-1].cumsum()
    shares = [energy[len(energy) // part - 1] / energy[-1] for part in (8, 2)]
    return f"{shares[0]:.1%} of the energy in an eighth of the axes, {shares[1]:.1%} in half"
