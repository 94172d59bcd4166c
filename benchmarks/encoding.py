"""Encoding on the CPU: texts a second against SentenceTransformer.encode in float32, on the same texts and cores."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.common import Target, data_folder, report
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder
from funnel.encoding.models import load_model
from funnel.encoding.packed import fast_dtype
from funnel.rows import unit_rows

__all__ = ["encoding"]

ROUNDS = 3  # both take turns; the median of the ratios counts
SHORT, LONG = "short texts", "long abstracts"
ASKED = {SHORT: 4.0, LONG: 2.5}
COSINE = 0.998


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Data sets. [default: $FUNNEL_DATA or ../shared/data]")
@click.option("--short", default=4096, show_default=True, help="Short texts in a round.")
@click.option("--long", "long_", default=256, show_default=True, help="Long abstracts in a round.")
@click.option("--threads", default=2, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def encoding(data: Path | None, short: int, long_: int, threads: int, out: Path | None) -> None:
    """Encode the same texts with all-MiniLM-L6-v2 in both ways, by turns.

    The short texts are package-texts, evenly spaced; the long ones titles and abstracts of scifact.

    Example: python -m benchmarks encoding --data ../shared/data
    """
    folder = data_folder(data)
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    if fast_dtype(device) != torch.bfloat16:
        click.echo("this processor has no bfloat16 instructions: the targets were set for one that has", err=True)
    model, encoder = load_model(DEFAULT_ENCODER, "cpu"), load_encoder(DEFAULT_ENCODER, device="cpu")

    def plain(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), show_progress_bar=False)

    targets, facts = [], {"dtype": str(fast_dtype(device)), "threads": threads, "torch": torch.__version__}
    for name, texts in ((SHORT, _short(folder, short)), (LONG, _long(folder, long_))):
        plain(texts[:64]), encoder.encode(texts[:64])  # both warm
        rounds = [(_timed(plain, texts), _timed(encoder.encode, texts)) for _ in range(ROUNDS)]
        cosine = float(np.einsum("ij,ij->i", unit_rows(rounds[0][0][1], 0, name), rounds[0][1][1]).min())
        seconds = np.array([[theirs[0], ours[0]] for theirs, ours in rounds])
        ratio = float(np.median(seconds[:, 0] / seconds[:, 1]))
        theirs, ours = (len(texts) / np.median(seconds, axis=0)).tolist()
        click.echo(f"{name} ({len(texts):,}): float32 {theirs:,.1f}/s, here {ours:,.1f}/s, lowest cosine {cosine:.5f}")
        targets.append(Target.at_least(f"{name}: times SentenceTransformer.encode", ratio, ASKED[name]))
        targets.append(Target.at_least(f"{name}: lowest cosine to float32", cosine, COSINE))
        facts[name] = {"texts": len(texts), "seconds": seconds.tolist(), "float32_per_s": theirs, "per_s": ours}
    report("encoding", targets, facts, out)


def _timed(encode: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> tuple[float, Any]:
    started = time.perf_counter()
    vectors = encode(texts)
    return time.perf_counter() - started, vectors


def _short(folder: Path, count: int) -> list[str]:
    with gzip.open(folder / "package-texts" / "corpus.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return [lines[at] for at in np.linspace(0, len(lines) - 1, count).astype(int)]


def _long(folder: Path, count: int) -> list[str]:
    with (folder / "scifact" / "corpus.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    chosen = [records[at] for at in np.linspace(0, len(records) - 1, count).astype(int)]
    return [f"{record['title']} {record['text']}" for record in chosen]
