"""Makes the golden folders of the present format: `python -m tests.golden.make`, before the format changes.

Three tiny indexes and, beside them, what they answer. `test_golden.py` opens those of every format.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from funnel import FunnelIndex
from funnel.storage import FORMAT_VERSION
from tests.funnel.corpora import documents, hashed_words

HERE = Path(__file__).parent
DIM, ROWS, K = 16, 48, 5
WHERE = (
    "year >= 1930",
    "odd = TRUE AND year < 1910",
    "lang IN ('de', 'fr') OR year IS NULL",
    "NOT title LIKE 'file%' AND number BETWEEN 3 AND 20",
    "tags IS NOT NULL",
)
QUERIES = np.random.default_rng(7).standard_normal((3, DIM)).astype(np.float32)
NEW_VECTORS = np.random.default_rng(8).standard_normal((6, DIM)).astype(np.float32)


def main() -> None:
    """Build each index into the folder of the present format, and write answers.json."""
    root = HERE / str(FORMAT_VERSION)
    shutil.rmtree(root, ignore_errors=True)
    made = {"documents": of_documents(root), "vectors": of_vectors(root), "updated": updated(root)}
    said = {name: {"now": answers(index)} for name, index in made.items()}
    for name, index in made.items():
        shutil.copytree(index.path, root / "changed" / name)
        said[name]["later"] = answers(changed(FunnelIndex.open(root / "changed" / name, encoder=encoder_of(name))))
    shutil.rmtree(root / "changed")
    for lock in root.glob("*/.funnel-lock"):
        lock.unlink()  # it names a process and a machine
    (root / "answers.json").write_text(json.dumps(said, indent=1) + "\n")


def encoder_of(name: str) -> Any:
    """What the index called `name` reads texts with."""
    return None if name == "vectors" else hashed_words


def texts(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Documents with metadata of every kind, some of it in a few alone."""
    made = documents(first + count)[first:]
    for number, one in enumerate(made, first):
        one |= {"number": str(number), "odd": number % 2 == 1, "lang": ("en", "de", "fr")[number % 3]}
        one |= {"tags": ["a", number]} if number % 4 == 0 else {"year": None} if number % 7 == 0 else {}
    return made


def of_documents(root: Path) -> FunnelIndex:
    """Texts, encoded by the tests' own encoder, of which 16 dims are kept; ids, titles, metadata."""
    return FunnelIndex.build(
        *(texts(ROWS), root / "documents"), encoder=hashed_words, truncate_dim=DIM, adaptor="pca", progress=False
    )


def of_vectors(root: Path) -> FunnelIndex:
    """Bare vectors, numbered."""
    rows = np.random.default_rng(3).standard_normal((ROWS, DIM)).astype(np.float32)
    return FunnelIndex.build(rows, root / "vectors", adaptor="identity", progress=False)


def updated(root: Path) -> FunnelIndex:
    """The first, with documents added, replaced and deleted."""
    shutil.copytree(root / "documents", root / "updated")
    index = FunnelIndex.open(root / "updated", encoder=hashed_words)
    index.add(texts(9, ROWS))
    index.upsert([{**one, "year": 1999} for one in texts(2, 10)])
    index.delete(["d3", "d44", f"d{ROWS + 1}"])
    return index


def changed(index: FunnelIndex) -> FunnelIndex:
    """The index with rows more and one fewer, compacted."""
    if index.manifest.settings.documents:
        index.add(texts(6, ROWS + 20))
        index.delete("d5")
    else:
        index.add(NEW_VECTORS)
        index.delete(5)
    index.compact()
    return index


def answers(index: FunnelIndex) -> dict[str, Any]:
    """Rows; the nearest of three vectors; of an index of documents also what filters, texts and words find."""
    said: dict[str, Any] = {"rows": len(index), **nearest(index.search_vectors(QUERIES, K))}
    if index.manifest.settings.documents:
        said["where"] = {where: nearest(index.search_vectors(QUERIES, K, where=where)) for where in WHERE}
        said["text"] = [hit.id for hit in index.search("it reads the parser", K)]
        said["words"] = [hit.id for hit in index.search("clock 25", K, hybrid=1)]
        said["first"] = {"text": index.search("it reads the parser", 1)[0].text}
    else:
        said["allowed"] = nearest(index.search_vectors(QUERIES, K, allowed_ids=range(0, ROWS, 3)))
    return said


def nearest(found: Any) -> dict[str, Any]:
    """Ids, and scores rounded, of answers."""
    scores: npt.NDArray[np.float64] = np.asarray(found.scores, dtype=np.float64)
    return {"ids": found.ids.tolist(), "scores": np.where(np.isfinite(scores), scores.round(4), -9.0).tolist()}


if __name__ == "__main__":
    main()
