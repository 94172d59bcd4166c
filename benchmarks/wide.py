"""Wide embeddings with a real spectrum: 768, 1,536 and 2,304 dims, for `python -m benchmarks peers`.

An embedding of all-MiniLM-L6-v2 is the mean of its last layer's token states, scaled to unit length (384 dims). Here
the means of its last two layers (768 dims), four (1,536), or all six (2,304), each scaled to unit length, stand side by
side: what a real network says of real texts, with the fast-falling spectrum and the near-duplicates of such vectors.
"""

from __future__ import annotations

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

__all__ = ["wide"]

LAYERS = {768: 2, 1536: 4, 2304: 6}
TEXTS_AT_A_TIME = 256


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--rows", default=100_000, show_default=True, help="Texts of the corpus.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "wide", show_default=True)
def wide(data: Path | None, rows: int, out: Path) -> None:
    """Make corpus and query vectors of 768, 1,536 and 2,304 dims from package descriptions.

    Example: python -m benchmarks wide --data ../shared/data, then
    python -m benchmarks peers --vectors benchmarks/results/wide/corpus-768.npy --queries
    benchmarks/results/wide/queries-768.npy
    """
    folder = data_folder(data) / "package-texts"
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(DEFAULT_ENCODER, "cpu")
    for name, texts in (
        ("corpus", list(islice(lines_of(folder / "corpus.txt.gz"), rows))),
        ("queries", list(lines_of(folder / "queries.txt.gz"))),
    ):
        states = _states(model, texts, name)
        for width, layers in LAYERS.items():
            chosen = states[:, -layers:].reshape(len(texts), -1)
            np.save(out / f"{name}-{width}.npy", chosen / np.linalg.norm(chosen, axis=1, keepdims=True))
            click.echo(f"{out / f'{name}-{width}.npy'}: {len(texts):,} x {width}, {_spectrum(chosen)}")


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


def _spectrum(rows: npt.NDArray[np.float32]) -> str:
    """How soon the spectrum falls: the share of the energy in the first eighth and the first half of the axes."""
    sample = rows[:20_000]
    energy = np.linalg.eigvalsh(sample.T @ sample)[::-1].cumsum()
    shares = [energy[len(energy) // part - 1] / energy[-1] for part in (8, 2)]
    return f"{shares[0]:.1%} of the energy in an eighth of the axes, {shares[1]:.1%} in half"
