"""Judged data sets small enough to be worked out, as BEIR folders whose lines hold vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.funnel.adaptors.clusters import clustered

__all__ = ["beir_set", "write_set"]


def write_set(
    folder: Path,
    documents: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    qrels: dict[str, dict[str, dict[str, int]]],
) -> Path:
    """A folder with documents d0, d1, …, queries q0, q1, … and judgements by split."""
    (folder / "qrels").mkdir(parents=True)
    for name, letter, rows in (("corpus", "d", documents), ("queries", "q", queries)):
        lines = [json.dumps({"_id": f"{letter}{i}", "vector": row.tolist()}) for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for split, judgements in qrels.items():
        lines = [f"{query}\t{document}\t{grade}" for query, of in judgements.items() for document, grade in of.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def beir_set(folder: Path, count: int = 200, dim: int = 16, asked: int = 60) -> Path:
    """Clustered documents; of each query the three nearest are relevant. Odd queries train, even ones test."""
    documents, queries = clustered(count, dim), clustered(asked, dim, seed=1)
    near = np.argsort(-queries @ documents.T, axis=1)[:, :3]
    judged = {f"q{i}": {f"d{row}": 3 - rank for rank, row in enumerate(rows)} for i, rows in enumerate(near)}
    split = {name: {f"q{i}": judged[f"q{i}"] for i in range(first, asked, 2)} for name, first in SPLITS}
    return write_set(folder, documents, queries, split)


SPLITS = (("test", 0), ("train", 1))
