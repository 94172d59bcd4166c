"""What training draws from: distinct unit rows, anchors with their true neighbours, held-out rows, judged queries."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from funnel.adaptors.recipes import LEAST_PIECES, LEAST_QUERIES, Recipe
from funnel.errors import InputError

SCORES_AT_A_TIME = 6_291_456  # 25 MB as float32


def scaled(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors [..., m] scaled to unit length; zero vectors stay zero."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def nearest(
    queries: torch.Tensor, rows: torch.Tensor, k: int, own: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k rows of the largest dot product, best first.

    queries: [q, m]. rows: [n, m]. own: int64 [q], a row to leave out for each query. Returns scores [q, k] and row
    numbers int64 [q, k].
    """
    size = max(1, SCORES_AT_A_TIME // len(rows))
    scores = torch.empty((len(queries), k), dtype=queries.dtype, device=queries.device)
    found = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), size):
        part = slice(start, start + size)
        products = queries[part] @ rows.T
        if own is not None:
            products.scatter_(1, own[part, None], -torch.inf)
        torch.topk(products, k, dim=1, out=(scores[part], found[part]))
    return scores, found


Qrels: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> grade, above 0 for relevant."""

# Rows held in memory to train on: the held-out figure gains nothing from more (200 MB at 384 dims).
MOST_ROWS = 131_072
MOST_MISSING = 0.05  # share of judgements whose ids may be missing
NAMED = 5  # ids named in a message


@dataclass(frozen=True)
class Judged:
    """Queries with the documents that answer them.

    Attributes:
        queries: float32 [q, d], unit rows.
        documents: for each query, int64 numbers of the documents judged above 0.
        grades: for each query, their grades, float32.
        left_out: how many judgements named an id that is not there.
        missing: the first few of those ids.
    """

    queries: torch.Tensor
    documents: Sequence[torch.Tensor]
    grades: Sequence[torch.Tensor]
    left_out: int = 0
    missing: Sequence[str] = ()

    @classmethod
    def read(
        cls,
        qrels: Qrels,
        query_ids: Sequence[str],
        queries: NDArray[np.float32],
        document_ids: Sequence[str],
    ) -> Self:
        """Join judgements with vectors.

        qrels: query id -> document id -> grade, above 0 for relevant. queries: float [q, d], in the order of
        query_ids. document_ids: in the order of the training rows.

        Raises InputError where more than 5 % of the judgements name a query or document that is not there, or none is
        left.
        """
        query_at = {name: i for i, name in enumerate(query_ids)}
        document_at = {name: i for i, name in enumerate(document_ids)}
        missing = [
            document if query in query_at else query
            for query, judged in qrels.items()
            for document in judged
            if query not in query_at or document not in document_at
        ]
        total = sum(map(len, qrels.values()))
        if len(missing) > MOST_MISSING * total:
            raise InputError(
                f"{len(missing):,} of {total:,} judgements name ids that are not in the corpus or the queries "
                f"({', '.join(missing[:NAMED])}); at most {MOST_MISSING:.0%} may: give the corpus the qrels are for"
            )
        relevant = {
            query_at[query]: {
                document_at[name]: grade for name, grade in judged.items() if name in document_at and grade > 0
            }
            for query, judged in qrels.items()
            if query in query_at
        }
        kept = {row: judged for row, judged in relevant.items() if judged}
        if not kept:
            raise InputError("no query has a document judged above 0; give qrels that name this corpus and queries")
        vectors = scaled(torch.from_numpy(queries[list(kept)].astype(np.float32)))
        documents = [torch.tensor(list(judged)) for judged in kept.values()]
        grades = [torch.tensor(list(judged.values()), dtype=torch.float32) for judged in kept.values()]
        return cls(vectors, documents, grades, len(missing), missing[:NAMED])

    @property
    def note(self) -> str:
        """What was left out, in words that can follow a sentence; empty where nothing was."""
        if not self.left_out:
            return ""
        return (
            f"; judgements left out, as their ids are not in the corpus or the queries: {self.left_out:,} "
            f"({', '.join(self.missing)})"
        )

    def __len__(self) -> int:
        return len(self.queries)

    def part(self, numbers: torch.Tensor) -> "Judged":
        """Some of the queries, by number."""
        chosen = numbers.tolist()
        return Judged(self.queries[numbers], [self.documents[i] for i in chosen], [self.grades[i] for i in chosen])

    def split(self, share: float, generator: torch.Generator) -> "tuple[Judged, Judged]":
        """Two parts drawn at random, the second of the share given and of at least one query.

        Raises InputError where there are fewer than two queries.
        """
        if len(self) < 2:
            raise InputError(f"{len(self)} judged query; at least 2 are needed, one to train on and one to hold out")
        order = torch.randperm(len(self), generator=generator)
        held = max(1, round(share * len(self)))
        return self.part(order[held:]), self.part(order[:held])


def rows_to_train_on(ids: Sequence[str], qrels: Sequence[Qrels], seed: int, most: int = MOST_ROWS) -> NDArray[np.int64]:
    """Numbers of the rows that training holds in memory, rising: those judged, and others drawn evenly up to `most`."""
    if len(ids) <= most:
        return np.arange(len(ids))
    named = {document for part in qrels for judged in part.values() for document in judged}
    kept = np.array([name in named for name in ids])
    others = np.random.default_rng(seed).permutation(np.flatnonzero(~kept))
    kept[others[: max(0, most - int(kept.sum()))]] = True
    return np.flatnonzero(kept)


Map: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""[n, d] -> [n, w], w at least the widest width that is looked at."""

# True neighbours looked for, and the shortlist they are looked for in: on corpora below 5,000 rows a share of these, as
# a shortlist of a tenth of the corpus would tell nothing apart.
DEPTH, SHORTLIST, SHORTLIST_SHARE = 10, 50, 0.01
ROWS_AT_A_TIME = 8_192  # mapped at once
# A document that equals the query (a verse looked up in its own book) answers nothing: it is left out of rankings.
SAME = 0.9999


@dataclass(frozen=True)
class HeldOut:
    """Queries kept from training, by which prefixes are judged.

    Attributes:
        figure: what is told of each query: SHORTLIST_RECALL or NDCG.
        queries: float32 [h, d], unit rows.
        rows: float32 [n, d], unit rows: what they are compared with.
        depth: how many of the rows each width ranks.
        judge: the figure of each query, float32 [h], from its ranking int64 [h, depth], best first.
    """

    figure: str
    queries: torch.Tensor
    rows: torch.Tensor
    depth: int
    judge: Callable[[torch.Tensor], torch.Tensor]

    def __len__(self) -> int:
        return len(self.queries)

    def per_query(self, project: Map, widths: Sequence[int]) -> dict[int, torch.Tensor]:
        """For each width the figure of each query when the rows are ranked by that prefix, float32 [h]."""
        with torch.inference_mode():
            queries, rows = project(self.queries), _mapped(project, self.rows, max(widths))
            return {
                width: self.judge(nearest(scaled(queries[:, :width]), scaled(rows[:, :width]), self.depth)[1])
                for width in widths
            }

    def figures(self, project: Map, widths: Sequence[int]) -> dict[int, float]:
        """The means of `per_query`."""
        return {width: float(values.mean()) for width, values in self.per_query(project, widths).items()}


SHORTLIST_RECALL, NDCG = "shortlist recall", "nDCG@10"


def held_out_rows(queries: torch.Tensor, rows: torch.Tensor, shortlist: int | None = None) -> HeldOut:
    """By the share of a query's true neighbours, at full width, inside a shortlist: of 50, or 1 % of few rows."""
    truth = nearest(queries, rows, min(DEPTH, len(rows)))[1]
    depth = shortlist or min(SHORTLIST, max(DEPTH, round(SHORTLIST_SHARE * len(rows))))

    def judge(found: torch.Tensor) -> torch.Tensor:
        return (truth[:, :, None] == found[:, None, :]).any(2).float().mean(1)

    return HeldOut(SHORTLIST_RECALL, queries, rows, min(depth, len(rows)), judge)


def held_out_judged(judged: Judged, rows: torch.Tensor) -> HeldOut:
    """By the nDCG@10 of judged queries; rows are all documents."""
    own = own_rows(judged.queries, rows)
    return HeldOut(NDCG, judged.queries, rows, min(DEPTH + 1, len(rows)), lambda found: ndcg(found, own, judged))


def ndcg(found: torch.Tensor, own: torch.Tensor, judged: Judged, depth: int = DEPTH) -> torch.Tensor:
    """nDCG@depth of rankings, linear gain and log2 discount as trec_eval computes it: float32 [q].

    found: int64 [q, at least depth + 1], best first. own: int64 [q], a document left out of each ranking unless it is
    judged itself, or -1.
    """
    discounts = 1.0 / torch.log2(torch.arange(2, depth + 2, dtype=torch.float64))
    values = torch.zeros(len(found), dtype=torch.float32)
    for i, (documents, grades) in enumerate(zip(judged.documents, judged.grades, strict=True)):
        left_out = -1 if own[i] in documents else int(own[i])
        ranking = found[i][found[i] != left_out][:depth]
        gains = ((ranking[:, None] == documents[None, :]) * grades.double()[None, :]).sum(1)
        ideal = grades.double().sort(descending=True).values[:depth]
        best = float((ideal * discounts[: len(ideal)]).sum())
        values[i] = float((gains * discounts[: len(gains)]).sum()) / best if best > 0 else 0.0
    return values


def own_rows(queries: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """For each query the row that equals it, or -1."""
    scores, found = nearest(queries, rows, 1)
    return torch.where(scores[:, 0] >= SAME, found[:, 0], -1)


def _mapped(project: Map, rows: torch.Tensor, width: int) -> torch.Tensor:
    """The first dims of all rows, mapped block by block: [n, width]."""
    mapped = torch.empty((len(rows), width), dtype=rows.dtype, device=rows.device)
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        mapped[start : start + ROWS_AT_A_TIME] = project(rows[start : start + ROWS_AT_A_TIME])[:, :width]
    return mapped


# Rows held out, twice: the standard error of a share of .95 is about .004; and at most this share of a small corpus.
HELD_OUT, HELD_OUT_SHARE = 500, 0.05
QUERIES_SHARE, MANY_QUERIES = 0.1, 2_000  # of real queries; of fewer each teaches more than it tells held out
LEAST_ROWS = 40  # so that two of them are held out, twice
COMPARED_ROWS = 32_768  # rows they are compared with: a figure takes a second, and narrow widths rank alike on more
HELD_OUT_JUDGED, HELD_OUT_JUDGED_SHARE = 500, 0.15  # judged queries held out, at most
ANSWERS, HARD_NEGATIVES = 4, 32  # of each judged query in a step, as some have dozens; at the top of its ranking
ANCHORS_AT_A_TIME = 1_024  # copied to search for their neighbours


@dataclass(frozen=True)
class JudgedBatch:
    """queries [b, d]; documents [n, d], shared; grades [b, n], 0 where unjudged; left_out [b, n]: equals the query."""

    queries: torch.Tensor
    documents: torch.Tensor
    grades: torch.Tensor
    left_out: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Anchors, and candidates that all of them share: the true neighbours of each, and random rows.

    anchors: [b, d], rows first, then pieces and queries. candidates: [c, d], each row once. near: int64 [b, k], where
    among the candidates an anchor's own neighbours are. own: bool [b, c], that candidate is the anchor, or equals it.
    """

    anchors: torch.Tensor
    candidates: torch.Tensor
    near: torch.Tensor
    own: torch.Tensor


def checked_rows(sample: NDArray[Any]) -> torch.Tensor:
    """A sample as float32 [n, d], not copied where it is float32 already.

    Raises InputError for another shape, zero rows, and values that are not finite (row numbers named).
    """
    if sample.ndim != 2:
        raise InputError(f"the training vectors have shape {sample.shape}; expected (n, d)")
    rows = torch.from_numpy(np.ascontiguousarray(sample, dtype=np.float32))
    norms = rows.norm(dim=1)
    faulty = torch.nonzero(~(torch.isfinite(norms) & (norms > 0))).flatten().tolist()
    if faulty:
        named = ", ".join(str(row) for row in faulty[:NAMED])
        raise InputError(f"{len(faulty):,} training vectors are zero or not finite (row {named}); repair or drop them")
    return rows


def distinct_numbers(rows: torch.Tensor) -> torch.Tensor:
    """The number of the first of each set of equal rows, int64, rising."""
    first = {hash(row.tobytes()): number for number, row in reversed(list(enumerate(rows.numpy())))}
    return torch.tensor(sorted(first.values()), dtype=torch.int64)


def _scaled_in_place(rows: torch.Tensor) -> torch.Tensor:
    """As `scaled`, without a second copy of rows [n, d] that nobody else holds."""
    return rows.div_(rows.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(rows.dtype).tiny))


def _held_out_of(count: int, share: float = HELD_OUT_SHARE) -> int:
    """How many of so many rows are held out, twice."""
    return min(HELD_OUT, round(share * count))


def _drawn(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """So many numbers below a count at a time, in random order, each once before any comes again."""
    while size:
        yield from torch.split(torch.randperm(count, generator=generator)[: count - count % size], size)
    while True:
        yield torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class TrainingQueries:
    """What is known of the queries that an adaptor is trained for; each may be None.

    Attributes:
        judged: queries with relevant documents, for the supervised phase.
        dev: others of the same documents, held out to stop and to choose by their nDCG@10 in place of a share of
            `judged`.
        real: float [q, d], queries without judgements: most are anchors of a rotation, the others are held out in
            place of rows; fewer than 40 are not used.
        pieces: float [p, d], embedded titles and runs of words cut from the documents, which stand for queries where
            real ones are few: anchors as well, and held out where there are no real queries; fewer than 1,000 are not
            used.
    """

    judged: Judged | None = None
    dev: Judged | None = None
    real: NDArray[Any] | None = None
    pieces: NDArray[Any] | None = None

    @property
    def note(self) -> str:
        """What reading the judgements left out, in words."""
        return "".join(given.note for given in (self.judged, self.dev) if given is not None)


NO_QUERIES = TrainingQueries()


class TrainingSet:
    """Rows, anchors and held-out queries of one training.

    Attributes:
        rows: float32 [n, d], unit rows: those trained on, or, with judgements, all documents.
        judged: judged queries to train on, or None.
        held_out: queries kept from training, to stop by: judged ones where there are any. compared: others, to choose
            among adaptors by.
        batch: anchors in a step.
    """

    def __init__(
        self,
        sample: NDArray[Any],
        recipe: Recipe,
        least: int,
        queries: TrainingQueries = NO_QUERIES,
        seed: int = 0,
    ) -> None:
        """Draw everything that is drawn once.

        sample: float [n, d]; with judgements, all documents, in the order their numbers mean. least: the narrowest
        width.

        Raises InputError for rows that cannot be used, and where fewer than `least` of them differ.
        """
        self._generator = torch.Generator().manual_seed(seed)
        self._recipe = recipe
        rows = checked_rows(sample)
        distinct = distinct_numbers(rows)
        if len(distinct) < max(least, LEAST_ROWS):
            raise InputError(
                f"{len(distinct):,} different vectors among {len(rows):,} to train on; expected at least "
                f"{max(least, LEAST_ROWS):,} (the narrowest width is {least}): give more, or narrower dims"
            )
        shuffled = distinct[torch.randperm(len(distinct), generator=self._generator)]
        judged, dev = queries.judged, queries.dev
        self._cut = {
            "pieces": self._usable(queries.pieces, LEAST_PIECES if recipe.pieces else math.inf, rows.shape[1]),
            "queries": self._usable(queries.real, LEAST_QUERIES, rows.shape[1]),
        }
        held = self._held_out_cut()
        count = 0 if len(held) else _held_out_of(len(shuffled))
        self._trained = shuffled[2 * count :]
        held = held if len(held) else scaled(rows[shuffled[: 2 * count]])
        self.judged = judged
        if judged is None and dev is None:  # one copy of the rows, which all that follows looks into
            self.rows = _scaled_in_place(rows[self._trained])
            self._trained = torch.arange(len(self.rows))
            self.held_out, self.compared = (held_out_rows(held[i::2], self.rows[:COMPARED_ROWS]) for i in (0, 1))
        else:
            self.rows = scaled(rows)
            self.held_out, self.compared = (
                held_out_judged(part, self.rows) for part in self._judged_parts(judged, dev)
            )
        if self.judged is not None:
            self._hard = nearest(self.judged.queries, self.rows, min(HARD_NEGATIVES, len(self.rows)))[1]
            self._own = own_rows(self.judged.queries, self.rows)
        self._anchors, self._near = self._neighbours()
        self._cut = {name: cut[: recipe.anchors] for name, cut in self._cut.items()}
        near = min(recipe.near, len(self.rows))
        self._near_cut = {name: nearest(cut, self.rows, near)[1] for name, cut in self._cut.items()}
        left = self.batch = min(len(self._anchors), recipe.batch)
        sizes = {}
        for name, share in (("queries", recipe.queries), ("pieces", recipe.pieces)):
            there = len(self._cut[name])
            sizes[name] = there, min(there, round(share * left))
            left -= sizes[name][1]
        sizes["rows"] = len(self._anchors), left
        self.steps_in_an_epoch = -(
            -len(self._anchors) // max(1, left)
        )  # in which each row that is an anchor comes once
        judgements = len(self.judged or ())
        sizes["judged"] = judgements, min(judgements, recipe.judged_batch)
        self._next = {name: _drawn(*counts, self._generator) for name, counts in sizes.items()}

    def _usable(self, vectors: NDArray[Any] | None, least: float, dim: int) -> torch.Tensor:
        """Queries or pieces in random order, each vector once; none where they are fewer than `least`."""
        if vectors is None or len(vectors) < least:
            return torch.empty((0, dim))
        found = scaled(checked_rows(vectors))
        distinct = distinct_numbers(found)
        return found[distinct[torch.randperm(len(distinct), generator=self._generator)]]

    def _held_out_cut(self) -> torch.Tensor:
        """Queries to hold out, else pieces, which are anchors no more; none where both are too few."""
        teach = self._recipe.queries > 0
        parts = (("queries", MANY_QUERIES if teach else 1, QUERIES_SHARE), ("pieces", 1, HELD_OUT_SHARE))
        for name, least, share in parts:
            cut = self._cut[name]
            if len(cut) >= least:
                count = 2 * (HELD_OUT if name == "queries" and not teach else _held_out_of(len(cut), share))
                self._cut[name] = cut[count:]
                return cut[:count]
        return self._cut["pieces"][:0]

    def _judged_parts(self, judged: Judged | None, dev: Judged | None) -> tuple[Judged, Judged]:
        """Two parts to hold out: of dev where there is one, else of judged, of which the rest is trained on."""
        if dev is not None:
            drawn = torch.randperm(len(dev), generator=self._generator)[: 2 * HELD_OUT_JUDGED]
            return dev.part(drawn).split(0.5, self._generator)
        assert judged is not None, "either is given"
        share = min(HELD_OUT_JUDGED_SHARE, HELD_OUT_JUDGED / len(judged))
        rest, first = judged.split(share, self._generator)
        self.judged, second = rest.split(share, self._generator)
        return first, second

    def draw(self) -> Batch:
        """The next anchors, each once before any comes again, and random rows."""
        chosen = next(self._next["rows"])
        cut = [(name, next(self._next[name])) for name in self._cut]
        anchors, others = self._anchors[chosen], torch.cat([self._cut[name][numbers] for name, numbers in cut])
        near = torch.cat([self._near[chosen], *(self._near_cut[name][numbers] for name, numbers in cut)])
        drawn = torch.randint(len(self._trained), (self._recipe.random,), generator=self._generator)
        numbers = torch.from_numpy(np.union1d(near.numpy(), self._trained[drawn].numpy()))
        candidates = self.rows[numbers]
        own = torch.cat([anchors[:, None] == numbers[None, :], others @ candidates.T >= SAME])
        return Batch(torch.cat([self.rows[anchors], others]), candidates, torch.searchsorted(numbers, near), own)

    def draw_judged(self) -> JudgedBatch:
        """The next judged queries, each once before any comes again.

        Their documents are shared by all of the batch: for each query up to 4 of those judged above 0, hard negatives
        from the top of its ranking at full width, and random rows.
        """
        judged = self.judged
        assert judged is not None, "drawn in a phase that needs judgements"
        chosen = next(self._next["judged"])
        size, asked = len(chosen), judged.part(chosen)
        answers = [
            documents[torch.randperm(len(documents), generator=self._generator)[:ANSWERS]]
            for documents in asked.documents
        ]
        places = torch.randint(self._hard.shape[1], (size, self._recipe.hard), generator=self._generator)
        random = torch.randint(len(self.rows), (self._recipe.judged_random,), generator=self._generator)
        drawn = torch.cat([*answers, self._hard[chosen].gather(1, places).flatten(), random])
        documents = torch.from_numpy(np.unique(drawn.numpy()))
        grades = torch.zeros((size, len(documents)))
        for row, (relevant, values) in enumerate(zip(asked.documents, asked.grades, strict=True)):
            places = torch.searchsorted(documents, relevant).clamp(max=len(documents) - 1)
            there = documents[places] == relevant
            grades[row, places[there]] = values[there]
        own = documents[None, :] == self._own[chosen][:, None]
        return JudgedBatch(asked.queries, self.rows[documents], grades, own & (grades == 0))

    def _neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = torch.randperm(len(self._trained), generator=self._generator)[: self._recipe.anchors]
        anchors = self._trained[drawn]
        searched = self.rows if len(self._trained) == len(self.rows) else self.rows[self._trained]
        near = min(self._recipe.near, len(searched) - 1)
        parts = zip(torch.split(anchors, ANCHORS_AT_A_TIME), torch.split(drawn, ANCHORS_AT_A_TIME), strict=True)
        found = torch.cat([nearest(self.rows[part], searched, near, own=own)[1] for part, own in parts])
        return anchors, self._trained[found]
