"""The real queries of a build: those that certify, and those with judgements, that train the adaptor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from funnel.adaptors import Judged, Qrels, rows_to_train_on
from funnel.building.intake import Intake
from funnel.data.encoding import Encoder
from funnel.data.queries import Queries, QueriesSource, open_queries, read_qrels
from funnel.data.rows import unit_rows
from funnel.errors import EncoderError, InputError
from funnel.ids import Ids

__all__ = ["MOST_QUERIES", "Asked", "QrelsSource", "encode_asked", "judged_rows", "open_asked"]

# Real queries used at most: they certify recall .99 with room to spare, and their record stays near 100 MB.
MOST_QUERIES = 5_000
ENCODED_AT_A_TIME = 1_024  # enough to sort by length into full batches

QrelsSource = str | Path | Qrels


@dataclass(frozen=True)
class Asked:
    """Encoded queries.

    Attributes:
        certifying: float32 [q, d] unit rows in random order; None where there are none.
        judged_ids, judged: ids and float32 [j, d] of the queries that qrels name; they train and never certify.
        qrels: the judgements; empty without any.
    """

    certifying: npt.NDArray[np.float32] | None = None
    judged_ids: Sequence[str] = ()
    judged: npt.NDArray[np.float32] | None = None
    qrels: Qrels = field(default_factory=dict)


def open_asked(queries: QueriesSource | None, qrels: QrelsSource | None) -> tuple[Queries | None, Qrels]:
    """Read both, before anything is encoded. Raises InputError for what cannot be read or does not go together."""
    opened = None if queries is None else open_queries(queries)
    if qrels is None:
        return opened, {}
    if opened is None or opened.ids is None:
        raise InputError("qrels were given without queries that have ids; give the queries that they judge")
    return opened, qrels if isinstance(qrels, Mapping) else read_qrels(qrels, "train")


def encode_asked(
    queries: Queries | None, qrels: Qrels, encoder: Encoder | None, dim: int, seed: int, progress: bool = False
) -> Asked:
    """Encode the queries and part them into those judged and those that certify.

    Raises EncoderError where texts have no encoder, InputError for another width or rows that cannot be used.
    """
    if queries is None:
        return Asked()
    judged = [] if queries.ids is None else [i for i, name in enumerate(queries.ids) if name in qrels]
    others = np.setdiff1d(np.arange(len(queries)), judged)
    chosen = np.random.default_rng(seed).permutation(others)[:MOST_QUERIES]
    names = [queries.ids[i] for i in judged] if queries.ids is not None else []
    return Asked(
        _encoded(queries, chosen, encoder, dim, progress) if len(chosen) else None,
        names,
        _encoded(queries, np.array(judged), encoder, dim, progress) if judged else None,
        qrels,
    )


def judged_rows(
    intake: Intake, segment: Path, asked: Asked, seed: int
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
        with tqdm(total=len(numbers), desc="encode queries", unit="queries", disable=not progress) as bar:
            for start in range(0, len(numbers), ENCODED_AT_A_TIME):
                part = numbers[start : start + ENCODED_AT_A_TIME]
                parts.append(encoder.encode_query([texts[i] for i in part], part))
                bar.update(len(part))
        vectors = np.concatenate(parts)
    if vectors.shape[1] != dim:
        raise InputError(f"the queries have {vectors.shape[1]} dims, the corpus {dim}; both need the same encoder")
    rows: npt.NDArray[np.float32] = unit_rows(vectors, 0, "queries")
    return rows
