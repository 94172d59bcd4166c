"""Random changes and exact searches by two handles of one index, against a dictionary."""

import tempfile
import time
from pathlib import Path

import numpy as np

from funnel import FunnelIndex

DIM, STEPS, ROWS = 8, 40, 30
CLOSE = 2e-3  # of a cosine: rows are stored as float16


def run(seed: int, limit: float) -> None:
    """One sequence; AssertionError where the index and the model differ. limit: on `time.monotonic`."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        model = {}

        def documents(ids: list[str]) -> list[dict[str, object]]:
            made = [{"_id": one, "text": one, "n": int(rng.integers(5)), "vector": rng.normal(size=DIM)} for one in ids]
            model.update({document["_id"]: document for document in made})
            return made

        fresh = iter(f"d{number}" for number in range(100_000))
        handles = [FunnelIndex.build(documents([next(fresh) for _ in range(ROWS)]), path, progress=False)]
        handles.append(FunnelIndex.open(path))
        for step in range(STEPS):
            if time.monotonic() > limit:
                return
            one = int(rng.integers(2))
            kind = str(rng.choice(["add", "upsert", "delete", "compact", "reopen"]))
            known = [str(i) for i in rng.permutation(sorted(model))[: int(rng.integers(1, 5))]]
            if kind == "add":
                handles[one].add(documents([next(fresh) for _ in range(int(rng.integers(1, 5)))]))
            elif kind == "upsert":
                handles[one].upsert(documents([*known, next(fresh)]))
            elif kind == "delete" and len(model) > len(known):
                handles[one].delete(known)
                for gone in known:
                    del model[gone]
            elif kind == "compact":
                handles[one].compact()
            elif kind == "reopen":
                handles[one] = FunnelIndex.open(path)
            for handle in handles:
                handle.refresh()
                _compare(handle, model, rng, f"seed {seed}, step {step}, {kind}")


def _compare(handle: FunnelIndex, model: dict, rng: np.random.Generator, said: str) -> None:
    assert len(handle) == len(model), said
    query, least = rng.normal(size=DIM).astype(np.float32), int(rng.integers(5))
    for where, inside in ((None, set(model)), (f"n >= {least}", {i for i in model if model[i]["n"] >= least})):
        k = min(5, len(model))
        found = handle.search(query, k=k, recall=1.0, where=where)
        best = sorted((_cosine(query, model[i]["vector"]) for i in inside), reverse=True)[:k]
        assert {hit.id for hit in found} <= inside, said
        assert np.allclose([hit.score for hit in found], best, atol=CLOSE), said
        assert np.allclose([_cosine(query, model[hit.id]["vector"]) for hit in found], best, atol=CLOSE), said


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
