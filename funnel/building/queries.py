"""The real queries of a build: those that certify, and those that train the adaptor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from reprlib import repr as shown

import numpy as np
import numpy.typing as npt

from funnel.adaptors import Judged, Qrels, rows_to_train_on
from funnel.building.intake import Intake
from funnel.data.queries import Queries, QueriesSource, folded, open_queries, query_hashes, read_qrels
from funnel.encoding.encoders import Encoder
from funnel.errors import EncoderError, InputError
from funnel.progress import Progress
from funnel.rows import unit_rows
from funnel.storage.ids import Ids

__all__ = [
    "EQUAL",
    "MOST_QUERIES",
    "SAME_COSINE",
    "CertifyingQueries",
    "QrelsSource",
    "encode_asked",
    "judged_rows",
    "open_asked",
]

# Real queries used at most: they certify recall .99 with room to spare, and their record stays near 100 MB.
MOST_QUERIES = 5_000
# Where an adaptor is trained so many certify, and those beyond teach it what is asked for: at most as many as training
# has anchors, and holds out.
FIRST_QUERIES, MOST_TRAINING = 2_000, 9_192
ENCODED_AT_A_TIME = 1_024  # enough to sort by length into full batches
COMPARED_AT_A_TIME = 1_000  # of queries with each other: 20 MB of cosines
# Two vectors of at least this cosine are one: float32 moves the cosine of a unit row with itself by some 1e-7, and what
# float16 takes from a row changes its direction by 1e-8.
SAME_COSINE = 1.0 - 1e-6
REPEATED, EQUAL = "repeats", "equal to rows of the corpus"
TRAINED = "that trained or chose the adaptor"

QrelsSource = str | Path | Qrels


@dataclass(frozen=True)
class CertifyingQueries:
    """Encoded queries.

    Attributes:
        certifying: float32 [q, d] unit rows in random order, distinct; None where there are none.
        texts: theirs, folded; None of vectors.
        left_out: why others do not certify -> how many.
        judged_ids, judged: ids and float32 [j, d] of the queries that qrels name; they train and never certify.
        training: float32 [t, d], queries without judgements that train and never certify; None where there are none.
        trained_hashes: what those that train are known by again, see `query_hashes`.
        qrels: the judgements; empty without any.
    """

    certifying: npt.NDArray[np.float32] | None = None
    texts: Sequence[str] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    judged_ids: Sequence[str] = ()
    judged: npt.NDArray[np.float32] | None = None
    training: npt.NDArray[np.float32] | None = None
    trained_hashes: frozenset[str] = frozenset()
    qrels: Qrels = field(default_factory=dict)

    def without(self, those: npt.NDArray[np.bool_], why: str) -> CertifyingQueries:
        """The same without some of the certifying queries: bool [q], True for those to leave out."""
        if self.certifying is None or not those.any():
            return self
        left_out = {**self.left_out, why: self.left_out.get(why, 0) + int(those.sum())}
        return replace(self._at(self.certifying, np.flatnonzero(~those)), left_out=left_out)

    def shuffled(self, generator: np.random.Generator) -> CertifyingQueries:
        """The same with the certifying queries in another order."""
        rows = self.certifying
        return self if rows is None else self._at(rows, generator.permutation(len(rows)))

    def _at(self, rows: npt.NDArray[np.float32], numbers: npt.NDArray[np.int64]) -> CertifyingQueries:
        texts = None if self.texts is None else [self.texts[i] for i in numbers]
        return replace(self, certifying=np.ascontiguousarray(rows[numbers]) if len(numbers) else None, texts=texts)

    def without_seen(self, seen: frozenset[str]) -> CertifyingQueries:
        """The same without those that an adaptor saw. seen: their hashes, see `query_hashes`."""
        if self.certifying is None or not seen:
            return self
        known = query_hashes(self.texts, self.certifying)
        return self.without(np.array([bool(mine & seen) for mine in known]), TRAINED)

    def without_texts(self, texts: frozenset[str]) -> CertifyingQueries:
        """The same without those whose text is one of these, folded: the texts of documents."""
        if self.texts is None or not texts:
            return self
        return self.without(np.array([bool(text) and text in texts for text in self.texts]), EQUAL)


def open_asked(queries: QueriesSource | None, qrels: QrelsSource | None = None) -> tuple[Queries | None, Qrels]:
    """Read both, before anything is encoded. Raises InputError for what cannot be read or does not go together."""
    opened = None if queries is None else open_queries(queries)
    if qrels is None:
        return opened, {}
    if isinstance(qrels, Mapping):
        _check_grades(qrels)
    if opened is None or opened.ids is None:
        raise InputError("qrels were given without queries that have ids; give the queries that they judge")
    return opened, qrels if isinstance(qrels, Mapping) else read_qrels(qrels, "train")


def _check_grades(qrels: Qrels) -> None:
    """InputError unless these are query id -> document id -> grade."""
    for query, judged in qrels.items():
        if not isinstance(judged, Mapping) or not all(
            isinstance(grade, Real) and math.isfinite(grade) for grade in judged.values()
        ):
            raise InputError(
                f"qrels holds {shown(judged)} for {shown(query)}; expected query id -> document id -> grade, a number"
            )


def encode_asked(
    queries: Queries | None,
    qrels: Qrels,
    encoder: Encoder | None,
    dim: int,
    seed: int,
    progress: bool = False,
    training: Queries | None = None,
    trains: bool = False,
) -> CertifyingQueries:
    """Encode the queries and part them into those that certify, each of these once, and those that train.

    training: queries that train and never certify. trains: whether there is an adaptor to train: then those beyond
    FIRST_QUERIES train it, unless `training` are given.

    Raises EncoderError where texts have no encoder, InputError for another width or rows that cannot be used.
    """
    generator = np.random.default_rng(seed)
    queries = Queries([], None) if queries is None else queries
    judged = [] if queries.ids is None else [i for i, name in enumerate(queries.ids) if name in qrels]
    others = np.setdiff1d(np.arange(len(queries)), judged)
    distinct = _distinct(queries, others)
    # Drawn once each is there once: of calls in random order the popular ones come first, and more of them would be
    # chosen. The bound takes the order for one that knows nothing of the queries.
    drawn = generator.permutation(distinct)
    certify = FIRST_QUERIES if trains and training is None else MOST_QUERIES
    taught = (queries, drawn[certify : certify + MOST_TRAINING if trains and training is None else 0])
    if training is not None:
        taught = (training, generator.permutation(_distinct(training, np.arange(len(training))))[:MOST_TRAINING])
    parts = [(queries, drawn[:certify]), (queries, np.array(judged, dtype=np.int64)), taught]
    rows = [_encoded(given, numbers, encoder, dim, progress) if len(numbers) else None for given, numbers in parts]
    texts = [None if one.texts is None else [folded(one.texts[i]) for i in numbers] for one, numbers in parts]
    seen = frozenset[str]().union(*(each for at in (1, 2) for each in query_hashes(texts[at], rows[at])))
    left_out = {REPEATED: len(others) - len(distinct)}
    if training is None and len(taught[1]):
        left_out[TRAINED] = len(taught[1])
    names = [queries.ids[i] for i in judged] if queries.ids is not None else []
    asked = CertifyingQueries(rows[0], texts[0], left_out, names, rows[1], rows[2], seen, qrels).without_seen(seen)
    for others_rows in rows[1:]:
        if others_rows is not None and asked.certifying is not None:
            asked = asked.without(_same(asked.certifying, others_rows), TRAINED)
    if asked.certifying is not None:
        asked = asked.without(_same(asked.certifying), REPEATED)
    return asked.shuffled(generator)


def _distinct(queries: Queries, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers of queries, each text once; where there are only vectors, each that has the very same numbers."""
    first: dict[str | bytes, int] = {}
    texts = None if queries.texts is None else [folded(text) for text in queries.texts]
    for number in numbers.tolist():
        vector = b"" if queries.vectors is None or texts is not None else queries.vectors[number].tobytes()
        # no text is not the same text
        first.setdefault(vector if texts is None else texts[number] or f"\0{number}", number)
    return np.array(list(first.values()), dtype=np.int64)


def _same(queries: npt.NDArray[np.float32], others: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.bool_]:
    """Which unit rows [q, d] are, up to rounding, one of the others; None: one that came before them. bool [q]."""
    parts = []
    for start in range(0, len(queries), COMPARED_AT_A_TIME):
        block = queries[start : start + COMPARED_AT_A_TIME]
        same = block @ (queries[: start + len(block)] if others is None else others).T >= SAME_COSINE
        parts.append((np.tril(same, start - 1) if others is None else same).any(axis=1))
    return np.concatenate(parts)


def judged_rows(
    intake: Intake, segment: Path, asked: CertifyingQueries, seed: int
) -> tuple[npt.NDArray[np.float32], Judged | None]:
    """What the adaptor is trained on: the sample of the corpus, or with judgements as many whole rows as fit.

    Raises InputError where more than 5 % of the judgements name a query or document that is not there.
    """
    if not asked.qrels:
        return intake.sample, None
    ids = [str(name) for name in Ids.open(segment).all()]
    numbers = rows_to_train_on(ids, [asked.qrels], seed)
    kept = np.zeros(len(ids), dtype=bool)
    kept[numbers] = True
    rows, done, seen = np.empty((len(numbers), intake.dim), dtype=np.float32), 0, 0
    for block in intake.rows():
        part = block[kept[seen : seen + len(block)]]
        rows[done : done + len(part)] = part
        done, seen = done + len(part), seen + len(block)
    vectors = np.empty((0, intake.dim), dtype=np.float32) if asked.judged is None else asked.judged
    return rows, Judged.read(asked.qrels, asked.judged_ids, vectors, [ids[i] for i in numbers])


def _encoded(
    queries: Queries, numbers: npt.NDArray[np.int64], encoder: Encoder | None, dim: int, progress: bool
) -> npt.NDArray[np.float32]:
    if queries.vectors is not None:
        vectors = queries.vectors[numbers]
    elif encoder is None:
        raise EncoderError("the queries are texts; give an encoder, or query vectors")
    else:
        texts = queries.texts or []
        parts = []
        with Progress(total=len(numbers), desc="encode queries", unit="queries", disable=not progress) as bar:
            for start in range(0, len(numbers), ENCODED_AT_A_TIME):
                part = numbers[start : start + ENCODED_AT_A_TIME]
                parts.append(encoder.encode_query([texts[i] for i in part], part))
                bar.update(len(part))
        vectors = np.concatenate(parts)
    if vectors.shape[1] != dim:
        raise InputError(f"the queries have {vectors.shape[1]} dims, the corpus {dim}; both need the same encoder")
    rows: npt.NDArray[np.float32] = unit_rows(vectors, 0, "queries")
    return rows
