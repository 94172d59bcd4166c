import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from funnel import FunnelIndex
from funnel.adaptors import RECIPES, Adaptor, Rotation, recipes
from funnel.adaptors.sampling import TrainingSet
from funnel.building.training import EmbeddingCache, JudgedBy, embed_corpus, embed_queries, train_adaptor
from funnel.encoding.prompts import TextOptions
from funnel.errors import EncoderError, InputError
from tests.funnel.adaptors.clusters import clustered
from tests.funnel.adaptors.test_rotation import SHORT
from tests.funnel.adaptors.test_training import interrupted_at
from tests.funnel.corpora import hashed_words

TEXTS = [f"the {adjective} {noun}" for adjective in ("red", "old", "wet") for noun in ("cat", "boat", "tree", "sky")]


class Counting:
    """An encoder that can be loaded by name, and counts what it is asked for."""

    name, dim, reopenable = "counting", 4, True
    options = TextOptions("", "")

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        self.asked += len(texts)
        rows = np.array([[len(text), text.count("e"), text.count("t"), 1] for text in texts], dtype=np.float32)
        result: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return result

    encode_query = encode


def counting() -> Any:
    """It stands for an encoder that was loaded by name."""
    return Counting()


def test_texts_are_encoded_once(tmp_path: Path) -> None:
    encoder, cache = counting(), EmbeddingCache(tmp_path)
    first = cache.encode(TEXTS, encoder, False, False)
    np.testing.assert_array_equal(EmbeddingCache(tmp_path).encode(TEXTS, encoder, False, False), first)
    assert encoder.asked == len(TEXTS)
    cache.encode(TEXTS, encoder, True, False)  # as queries: an encoder may treat them otherwise
    cache.encode(TEXTS[:-1], encoder, False, False)
    cache.encode([*TEXTS[:-2], TEXTS[-2] + TEXTS[-1]], encoder, False, False)
    assert encoder.asked == 4 * len(TEXTS) - 2


def test_other_prompts_are_other_embeddings(tmp_path: Path) -> None:
    encoder, cache = counting(), EmbeddingCache(tmp_path)
    for options in (TextOptions("", ""), TextOptions("", "passage: "), TextOptions("query: ", "passage: ")):
        encoder.options = options
        cache.encode(TEXTS, encoder, False, False)
    assert encoder.asked == 2 * len(TEXTS)  # documents do not depend on what stands before queries


def test_other_weights_under_the_same_path_are_other_embeddings(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    encoder, cache = counting(), EmbeddingCache(tmp_path / "cache")
    encoder.name = str(model)
    for weights in (b"one", b"two"):
        (model / "model.safetensors").write_bytes(weights)
        cache.encode(TEXTS, encoder, False, False)
        cache.encode(TEXTS, encoder, False, False)
    assert encoder.asked == 2 * len(TEXTS)


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel.building.training.LARGEST_FOLDER", 400)
    cache = EmbeddingCache(tmp_path)
    for number in range(20):
        cache.encode([f"text {number}"], counting(), False, False)
        assert sum(one.stat().st_size for one in (tmp_path / "embeddings").iterdir()) <= 400


def test_a_flipped_bit_is_computed_again(tmp_path: Path) -> None:
    encoder, cache = counting(), EmbeddingCache(tmp_path)
    first = cache.encode(TEXTS, encoder, False, False)
    (path,) = (tmp_path / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    np.testing.assert_array_equal(cache.encode(TEXTS, encoder, False, False), first)
    assert encoder.asked == 2 * len(TEXTS)


def test_a_damaged_cache_is_computed_again(tmp_path: Path) -> None:
    encoder, cache = counting(), EmbeddingCache(tmp_path)
    first = cache.encode(TEXTS, encoder, False, False)
    (path,) = (tmp_path / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(cache.encode(TEXTS, encoder, False, False), first)
    assert encoder.asked == 2 * len(TEXTS)


def test_a_corpus_of_vectors_keeps_its_own(tmp_path: Path) -> None:
    rows = clustered(60, 8)
    np.save(tmp_path / "rows.npy", rows)
    found = embed_corpus(str(tmp_path / "rows.npy"), None, EmbeddingCache(tmp_path))
    np.testing.assert_allclose(found.vectors, rows, atol=1e-6)
    assert list(found.ids) == [str(i) for i in range(60)]
    lines = [{"_id": f"d{i}", "text": "", "vector": row.tolist()} for i, row in enumerate(rows)]
    found = embed_corpus(lines, None, EmbeddingCache(tmp_path))
    np.testing.assert_allclose(found.vectors, rows, atol=1e-6)
    assert found.ids[59] == "d59"
    asked = embed_queries(rows[:5], None, EmbeddingCache(tmp_path))
    np.testing.assert_allclose(asked.vectors, rows[:5], atol=1e-6)


class Recording:
    """Word counts, hashed; keeps the queries it was asked for."""

    dim = 16

    def __init__(self) -> None:
        self.queries: list[str] = []

    def encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        return hashed_words(texts)

    def encode_query(self, texts: list[str]) -> npt.NDArray[np.float32]:
        self.queries += texts
        return hashed_words(texts)


@pytest.mark.parametrize(("kind", "trained"), [("rotation", True), ("auto", True), ("mlp", False)])
def test_a_rotation_is_trained_on_pieces_of_the_texts_as_well(
    kind: str, trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(SHORT, phases=(replace(SHORT.phases[0], steps=3),))
    monkeypatch.setattr(recipes, "ON_PIECES", replace(short, pieces=0.5))
    monkeypatch.setitem(RECIPES, "mlp", replace(short, phases=(replace(short.phases[0], weights={"topk": 1.0}),)))
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{number}" for number in rng.integers(0, 500, 40)) for _ in range(1_100)]
    encoder: Any = Recording()
    corpus = [{"_id": str(i), "text": text} for i, text in enumerate(texts)]
    choice = train_adaptor(corpus, tmp_path, kind=kind, dims=[4], encoder=encoder, cache=tmp_path, progress=False)
    (log,) = choice.logs.values()
    if not trained:
        assert encoder.queries == []
        assert log.rows < 1_100
        return
    assert len(encoder.queries) == 2_200
    assert all(any(piece in text for text in texts) for piece in encoder.queries[::100])
    assert log.rows == 1_100  # none is held out: pieces are


def test_a_trained_adaptor_is_saved_and_an_index_built_with_it(tmp_path: Path) -> None:
    rows = clustered(1_500)
    choice = train_adaptor(
        rows, tmp_path / "adaptor", kind="rotation", dims=[4, 8], recipe=SHORT, queries=clustered(60, seed=1),
        progress=False,
    )  # fmt: skip
    assert isinstance(choice.adaptor, Rotation)
    assert json.loads((tmp_path / "adaptor" / "training.json").read_text())["logs"]["rotation"]["rows"] == 1_500
    index = FunnelIndex.build(rows, tmp_path / "index", adaptor=tmp_path / "adaptor", progress=False)
    assert index.searcher.adaptor.checksum == Adaptor.load(tmp_path / "adaptor").checksum
    assert index.manifest.settings.adaptor.why == f"loaded from {tmp_path / 'adaptor'}"
    ids, scores = index.search_vectors(rows[:20], 5, recall=1.0)
    np.testing.assert_allclose(scores, -np.sort(-(rows[:20] @ rows.T), axis=1)[:, :5], atol=5e-4)
    assert (ids[:, 0] == np.arange(20)).all()


def judged_corpus(folder: Path, missing: int = 0) -> tuple[list[dict[str, Any]], Path, Path]:
    rows = clustered(300, 16)
    corpus = [{"_id": f"d{i}", "text": "", "vector": row.tolist()} for i, row in enumerate(rows)]
    asked = clustered(60, 16, seed=1)
    queries = folder / "queries.jsonl"
    queries.write_text(
        "".join(json.dumps({"_id": f"q{i}", "vector": row.tolist()}) + "\n" for i, row in enumerate(asked))
    )
    best = (asked @ rows.T).argmax(1)
    qrels = folder / "train.tsv"
    lines = [f"q{i}\t{'x' if i < missing else ''}d{document}\t1\n" for i, document in enumerate(best)]
    qrels.write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return corpus, queries, qrels


def test_judgements_are_read_and_trained_on(tmp_path: Path) -> None:
    corpus, queries, qrels = judged_corpus(tmp_path, missing=2)
    recipe = replace(SHORT, phases=(replace(SHORT.phases[0], steps=5),))
    choice = train_adaptor(
        corpus, tmp_path / "out", kind="rotation", dims=[4], queries=str(queries), qrels=qrels, recipe=recipe,
        progress=False,
    )  # fmt: skip
    assert choice.logs["rotation"].figure == "nDCG@10"
    assert choice.logs["rotation"].judged > 30
    left_out = r"; judgements left out, as their ids are not in the corpus or the queries: 2 \(xd\d+, xd\d+\)"
    assert re.fullmatch(f"rotation: asked for{left_out}", choice.why)


@pytest.mark.parametrize("given", ["folder", "argument", "without training judgements"])
def test_dev_judgements_are_held_out(given: str, tmp_path: Path) -> None:
    corpus, queries, qrels = judged_corpus(tmp_path)
    header, *lines = qrels.read_text().splitlines()
    folder = tmp_path / "qrels"
    folder.mkdir()
    dev = {line.split("\t")[0] for line in lines[:10]}
    (folder / "train.tsv").write_text("\n".join([header, *lines]))  # those that dev judges as well train nothing
    (folder / "dev.tsv").write_text("\n".join([header, *lines[:10]]))
    judged_by: dict[str, JudgedBy] = {
        "folder": {"queries": queries, "qrels": tmp_path},
        "argument": {"queries": queries, "qrels": folder / "train.tsv", "dev_qrels": folder / "dev.tsv"},
        "without training judgements": {"queries": queries, "dev_qrels": folder},
    }
    recipe = replace(SHORT, phases=(replace(SHORT.phases[0], steps=5),))
    choice = train_adaptor(
        corpus,
        tmp_path / "out",
        kind="rotation",
        dims=[4],
        recipe=recipe,
        progress=False,
        **judged_by[given],
    )
    log = choice.logs["rotation"]
    assert log.figure == "nDCG@10"
    assert log.judged == (0 if given == "without training judgements" else len(lines) - len(dev))


def test_an_interrupted_training_saves_its_best_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted_at(25, monkeypatch)
    rows = clustered(1_500)
    train_adaptor(rows, tmp_path / "out", kind="rotation", dims=[4, 8], recipe=SHORT, progress=False)
    log = json.loads((tmp_path / "out" / "training.json").read_text())["logs"]["rotation"]
    assert log["stopped"] == ["interrupted after step 25"]
    assert log["best_step"] == 20
    adaptor = Adaptor.load(tmp_path / "out")
    held = TrainingSet(rows, SHORT, 4).held_out.figures(adaptor.map, [4, 8])
    assert held == pytest.approx({int(width): figure for width, figure in log["evaluations"][1]["figures"].items()})


def test_judgements_that_name_another_corpus_are_refused(tmp_path: Path) -> None:
    corpus, queries, qrels = judged_corpus(tmp_path, missing=10)
    with pytest.raises(InputError, match=r"10 of 60 judgements name ids .*\(xd\d+, .*at most 5%"):
        train_adaptor(corpus, tmp_path / "out", queries=str(queries), qrels=qrels, progress=False)
    assert not (tmp_path / "out").exists()


def test_judgements_need_their_queries(tmp_path: Path) -> None:
    corpus, _, qrels = judged_corpus(tmp_path)
    with pytest.raises(InputError, match="qrels were given without queries"):
        train_adaptor(corpus, tmp_path / "out", qrels=qrels, progress=False)


def test_queries_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="the queries have 8 dims, the corpus 16"):
        train_adaptor(clustered(100, 16), tmp_path / "out", queries=clustered(10, 8), progress=False)
