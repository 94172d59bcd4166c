"""Random changes and searches by two handles of one index, against a dictionary."""

import json
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from funnel import FLAT, FunnelIndex, InputError, Plan

DIM, STEPS, K = 16, 40, 5
SHORTLIST = 32  # of the shortest plan
FEW, MANY = 30, 400  # rows: those that flat search serves alone, and those that plans are made for
CLOSE = 2e-3  # of a cosine: rows are stored as float16
COARSE = (None, "hnsw-sq8", "ivf-sq8", "symqg")
KINDS = ("add", "upsert", "delete", "delete many", "compact", "tune", "reopen", "export")
WORDS = ("amber", "birch", "cedar", "delta", "ember", "flint", "grove")
FEWEST_FOUND = 0.5  # of the true hits by the shortest plan, over a whole sequence; half of these are chance at worst


def encode(texts: list[str]) -> np.ndarray:
    """A vector for each text, by its words: those that share some lie near to each other."""
    return np.stack([sum((_vector(word) for word in text.split()), np.zeros(DIM)) for text in texts]).astype(np.float32)


def _vector(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIM)


@dataclass
class Model:
    """What the index should hold, and how much of the true hits approximate plans found."""

    rng: np.random.Generator
    path: Path
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    made: int = 0
    found: int = 0
    asked: int = 0

    def fresh(self, count: int) -> list[str]:
        """Ids that never were."""
        self.made += count
        return [f"d{number}" for number in range(self.made - count, self.made)]

    def query(self) -> str:
        """A query of the kind that plans are calibrated on: another kind would void the certificates, and warn."""
        self.made += 1
        return " ".join([*self.rng.choice(WORDS, 3), f"q{self.made}"])

    def some(self, most: int) -> list[str]:
        """Ids that are there, at least one, and never all."""
        count = int(self.rng.integers(1, max(2, min(most, len(self.documents) - 1))))
        return [str(one) for one in self.rng.permutation(sorted(self.documents))[:count]]

    def take(self, ids: list[str]) -> list[dict[str, object]]:
        """Documents under these ids, now what the model holds of them; the text of each has a word of its own."""
        given = []
        for one in ids:
            self.made += 1
            words = [f"w{self.made}", *self.rng.choice(WORDS, 3)]
            text, n = " ".join(str(word) for word in words), int(self.rng.integers(5))
            self.documents[one] = {"text": text, "own": words[0], "n": n, "vector": encode([text])[0]}
            given.append({"_id": one, "text": text, "n": n})
        return given

    def inside(self, where: str | None, least: int) -> set[str]:
        """The ids that a condition allows."""
        return {one for one, document in self.documents.items() if where is None or document["n"] >= least}


def run(seed: int, limit: float) -> None:
    """One sequence; AssertionError where the index and the model differ. limit: on `time.monotonic`."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        model = Model(rng, Path(folder) / "index")
        count = MANY if seed % 2 else FEW
        queries = [model.query() for _ in range(200)]
        handles = [
            FunnelIndex.build(
                model.take(model.fresh(count)),
                model.path,
                encoder=encode,
                queries=queries if seed % 4 == 3 else None,
                adaptor="pca",
                dims=[DIM // 2],
                coarse=COARSE[seed // 2 % len(COARSE)],
                progress=False,
            )
        ]
        handles.append(FunnelIndex.open(model.path, encoder=encode))
        for step in range(STEPS):
            if time.monotonic() > limit:
                return
            one, kind = int(rng.integers(2)), str(rng.choice(KINDS))
            said = f"seed {seed}, step {step}, {kind}"
            changed = _change(handles[one], model, kind)
            if changed is not None:
                handles[one] = changed
            for number, handle in enumerate(handles):
                assert handle.refresh() is False or number != one, said  # who changes it has moved already
                for check in (_compare_exact, _compare_hybrid, _compare_plans):
                    try:
                        check(handle, model)
                    except AssertionError as error:
                        raise AssertionError(f"{said}: {check.__name__}: {error}") from error
        assert model.found >= FEWEST_FOUND * model.asked, f"seed {seed}: {model.found} of {model.asked} true hits"


def _change(handle: FunnelIndex, model: Model, kind: str) -> FunnelIndex | None:
    """Do it to both; gives a handle that takes the place of this one."""
    if kind == "add":
        handle.add(model.take(model.fresh(int(model.rng.integers(1, 5)))))
    elif kind == "upsert":
        handle.upsert(model.take([*model.some(5), *model.fresh(1)]))
    elif kind in ("delete", "delete many") and len(model.documents) > FEW // 3:
        known = model.some(len(model.documents) // 3 if kind == "delete many" else 5)
        assert handle.delete([*known, "nobody"]).unknown == 1
        for gone in known:
            del model.documents[gone]
    elif kind == "compact":
        handle.compact()
    elif kind == "tune":
        _tune(handle)
    elif kind == "reopen":
        return FunnelIndex.open(model.path, encoder=encode)
    elif kind == "export":
        handle.refresh()
        _compare_export(handle, model)
    return None


def _tune(handle: FunnelIndex) -> None:
    handle.refresh()
    try:
        handle.tune(progress=False)
    except InputError:
        if handle.searcher.calibration is not None:
            raise


def _compare_exact(handle: FunnelIndex, model: Model) -> None:
    assert len(handle) == len(model.documents)
    assert set(handle.ids()) == set(model.documents)
    for where, inside, query in _asked(model):
        found = handle.search(query, k=K, recall=1.0, where=where)
        _right(found, model, query, inside)
        best = _best(model, query, inside)
        assert np.allclose([hit.score for hit in found], best, atol=CLOSE), best


def _compare_plans(handle: FunnelIndex, model: Model) -> None:
    """Whatever the plan or the deadline: hits are allowed, their scores right and falling."""
    options: list[dict[str, Any]] = [
        {"recall": 0.8},
        {"plan": FLAT},
        {"deadline_ms": float(model.rng.uniform(0.01, 20))},
    ]
    calibration = handle.searcher.calibration
    if calibration is not None:
        coarse = handle.searcher.cascade.coarse
        effort = next(effort for effort in coarse.efforts() if coarse.largest_shortlist(effort) >= SHORTLIST)
        options.append({"plan": Plan(effort, SHORTLIST)})
    for where, inside, query in _asked(model):
        for option in options:
            found = handle.search(query, k=K, where=where, **option)
            if not found.served.complete:
                assert {hit.id for hit in found} <= inside, option
                continue
            _right(found, model, query, inside)
            assert len(found) == min(K, len(inside)), option
            best = _best(model, query, inside)
            model.asked += len(best)
            model.found += sum(hit.score >= best[-1] - CLOSE for hit in found) if best else 0


def _compare_hybrid(handle: FunnelIndex, model: Model) -> None:
    """Words that one document has alone find it, first of the words; cosines of fused hits are right."""
    one = model.some(1)[0]
    own = model.documents[one]["own"]
    assert [hit.id for hit in handle.search(own, k=K, hybrid=1.0)] == [one], own
    for where, inside, _ in _asked(model):
        text = f"{own} {model.rng.choice(WORDS)}"
        query = encode([text])[0]
        found = handle.search(text, k=K, hybrid=True, where=where)
        assert {hit.id for hit in found} <= inside
        assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
        for hit in found:
            assert hit.ranks is not None
            assert hit.text == model.documents[str(hit.id)]["text"]
            if hit.ranks.cosine is not None:
                assert abs(hit.ranks.cosine - _cosine(query, model.documents[str(hit.id)]["vector"])) < CLOSE
            if hit.ranks.lexical is not None:
                assert set(text.split()) & set(hit.text.split()), hit


def _compare_export(handle: FunnelIndex, model: Model) -> None:
    """Parquet, read by pyarrow and built from again; .npy, read by numpy."""
    made = model.path.parent / "out.parquet"
    handle.export(made, overwrite=True)
    rows = parquet.read_table(made).to_pylist()
    assert {row["id"]: row["text"] for row in rows} == {i: d["text"] for i, d in model.documents.items()}
    assert {row["id"]: json.loads(row["metadata"]) for row in rows} == {
        i: {"n": d["n"]} for i, d in model.documents.items()
    }
    for row in rows:
        assert _cosine(np.array(row["vector"]), model.documents[row["id"]]["vector"]) > 1.0 - CLOSE
    handle.export(model.path.parent / "out.npy", overwrite=True)
    ids = np.load(model.path.parent / "out.ids.npy").tolist()
    assert sorted(ids) == sorted(model.documents)
    for one, vector in zip(ids, np.load(model.path.parent / "out.npy"), strict=True):
        assert _cosine(vector, model.documents[one]["vector"]) > 1.0 - CLOSE
    again = FunnelIndex.build(
        made, model.path.parent / "again", encoder=encode, adaptor="identity", progress=False, overwrite=True
    )
    _compare_exact(again, model)


def _asked(model: Model) -> Iterator[tuple[str | None, set[str], np.ndarray]]:
    """Conditions, what each allows, and a query."""
    least = int(model.rng.integers(6))  # 5: nothing is allowed
    for where in (None, f"n >= {least}"):
        yield where, model.inside(where, least), encode([model.query()])[0]


def _right(found: Any, model: Model, query: np.ndarray, inside: set[str]) -> None:
    """Hits are allowed, come once each, with their own score and document, best first."""
    ids = [str(hit.id) for hit in found]
    assert set(ids) <= inside, ids
    assert len(set(ids)) == len(ids), ids
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True), scores
    assert np.allclose(scores, [_cosine(query, model.documents[one]["vector"]) for one in ids], atol=CLOSE), scores
    for hit in found:
        document = model.documents[str(hit.id)]
        assert (hit.text, hit.metadata) == (document["text"], {"n": document["n"]}), hit


def _best(model: Model, query: np.ndarray, inside: set[str]) -> list[float]:
    return sorted((_cosine(query, model.documents[one]["vector"]) for one in inside), reverse=True)[:K]


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
