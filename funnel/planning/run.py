"""What was measured of every plan on sample queries: recorded once, evaluated for any k.

Each effort of the coarse index is run once at its own largest shortlist; smaller shortlists are prefixes of that
run. Every candidate's score is recorded at every rerank width, so the survivors of any stages follow from the
record without running them. Efforts find mostly the same candidates: each is scored once, and a shortlist is a list
of places among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from funnel.plan import Plan, Stage
from funnel.planning.bounds import betting_lower_bound

__all__ = [
    "EXACT_ENOUGH",
    "LARGEST_K",
    "MISSING",
    "NEAR",
    "SHARE_OF_DELTA",
    "TIE_TOLERANCE",
    "Float32",
    "Int64",
    "Places",
    "Run",
    "StorageCost",
    "given_scores",
    "hits",
    "without_own",
]

LARGEST_K = 100  # truth is recorded to this depth: any k up to it can be certified from the record
# True neighbours whose rows are kept: so many that half may be deleted before flat search is asked again.
NEAR = 2 * LARGEST_K
TIE_TOLERANCE = 1e-6  # a returned row whose true score is this close to the k-th counts: ties are not misses
# Queries that plans are followed for at once: the scores of 1,000 x 1,024 candidates at 8 widths are 33 MB.
QUERIES_AT_A_TIME = 1_000
MISSING = np.iinfo(np.uint16).max  # the place of a candidate that is not there

Float32: TypeAlias = npt.NDArray[np.float32]
Int64: TypeAlias = npt.NDArray[np.int64]
Places: TypeAlias = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Run:
    """One set of queries, run at every effort.

    queries: float32 [q, d], unit rows as stored. own_rows: int64 [q], the stored row that each query is (left out of
    truth and shortlists), or -1. truth: float32 [q, LARGEST_K], true scores, falling. widths: the rerank widths,
    the last is d. candidates: int32 [q, u], the stored rows that any effort found, -1 where there are fewer.
    candidate_scores: float32 [q, u, len(widths)], prefix cosine up to the query's norm, exact at d; -inf where none.
    places: effort -> uint16 [q, s], its shortlist in coarse order as places among the candidates, MISSING where none.
    near_rows, near_scores: int32 and float32 [q, NEAR] or less, the stored rows of the best true scores, falling; None
    in records that were made before they were kept. live: bool [n], the rows not deleted since; None: all.
    given: float32 [q, u], the candidates' true scores by the rows as they were given, before they were rounded to be
    stored: truth and near_scores are of these rows then. None: truth is exact search over the rows as stored.
    """

    queries: Float32
    own_rows: Int64
    truth: Float32
    widths: tuple[int, ...]
    candidates: npt.NDArray[np.int32]
    candidate_scores: Float32
    places: Mapping[int, Places]
    near_rows: npt.NDArray[np.int32] | None = None
    near_scores: Float32 | None = None
    live: npt.NDArray[np.bool_] | None = None
    given: Float32 | None = None

    @property
    def efforts(self) -> tuple[int, ...]:
        """The efforts on record, rising."""
        return tuple(sorted(self.places))

    def largest(self, effort: int) -> int:
        """The length of the shortlist at this effort."""
        return int(self.places[effort].shape[1])

    def follows(self, plan: Plan) -> bool:
        """Whether a plan that is not flat can be followed: its effort, its shortlist and its widths are on record."""
        known = plan.effort in self.places and self.largest(plan.effort) >= plan.shortlist
        return known and not plan.width and {stage.width for stage in plan.stages} <= set(self.widths)

    def shortlist(self, effort: int) -> npt.NDArray[np.int32]:
        """int32 [q, s], the stored rows of its shortlist in coarse order, -1 where none."""
        places = self.places[effort]
        rows = np.take_along_axis(self.candidates, np.where(places == MISSING, 0, places).astype(np.int64), axis=1)
        return np.where(places == MISSING, -1, rows)

    def scores_at(self, effort: int, queries: slice = slice(None), shortlist: int | None = None) -> Float32:
        """The scores of the first `shortlist` candidates at an effort, for some of the queries."""
        return self._gathered(self.candidate_scores[queries], effort, queries, shortlist)

    def given_at(self, effort: int, queries: slice, shortlist: int) -> Float32 | None:
        """Their true scores by the rows as given, float32 [q, shortlist]; None where those as stored are the truth."""
        if self.given is None:
            return None
        return self._gathered(self.given[queries][:, :, None], effort, queries, shortlist)[:, :, 0]

    def _gathered(self, scored: Float32, effort: int, queries: slice, shortlist: int | None) -> Float32:
        places = torch.from_numpy(self.places[effort][queries, :shortlist].astype(np.int64))
        if self.live is not None:  # what the cascade does to them: see `Cascade.live`
            scored = np.where(self.live[self.candidates[queries]][:, :, None], scored, np.float32(-np.inf))
        known = torch.from_numpy(scored)
        missing = places == MISSING
        at = places.masked_fill(missing, 0)[:, :, None].expand(-1, -1, scored.shape[2])
        return known.gather(1, at).masked_fill_(missing[:, :, None], -torch.inf).numpy()


def given_scores(near: tuple[Float32, npt.NDArray[Any]], rows: npt.NDArray[Any], stored: Float32) -> Float32:
    """The true scores of rows by the rows as given: float32 [q, u].

    near: each query's best by the rows as given, scores (falling) and rows [q, near]. rows: int [q, u], -1 where none;
    stored: their scores as stored. Those of rows among the nearest are known; another row's is at most that of the last
    of these, and taken to be its score as stored where that is less.
    """
    result = np.empty(rows.shape, dtype=np.float32)
    span = 1 + max(int(near[1].max(initial=0)), int(rows.max(initial=0)))  # keys of one query lie together
    for start in range(0, len(rows), QUERIES_AT_A_TIME):
        part = slice(start, start + QUERIES_AT_A_TIME)
        scores, found, wanted = near[0][part], near[1][part].astype(np.int64), rows[part]
        offsets = span * np.arange(len(found), dtype=np.int64)[:, None]
        order = np.argsort(found, axis=1)
        keys = (np.take_along_axis(found, order, axis=1) + offsets).ravel()
        values = np.take_along_axis(scores, order, axis=1).ravel()
        asked = wanted + offsets
        at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
        others = np.minimum(stored[part], scores[:, -1:])
        result[part] = np.where(wanted < 0, np.float32(-np.inf), np.where(keys[at] == asked, values[at], others))
    return result


def without_own(scores: Float32, rows: Int64, own: Int64, depth: int) -> tuple[Float32, Int64]:
    """True scores and their rows with each query's own row taken out: [q, depth] both."""
    if rows.shape[1] > depth:
        mine = rows == own[:, None]
        mine[~mine.any(axis=1), -1] = True  # where it is not among them, the last one goes
        scores, rows = (kept[~mine].reshape(len(kept), -1) for kept in (scores, rows))
    return np.ascontiguousarray(scores[:, :depth]), np.ascontiguousarray(rows[:, :depth])


def hits(run: Run, plans: Sequence[Plan], k: int) -> npt.NDArray[np.uint8]:
    """How many of the true top k each plan returns for each query: uint8 [len(plans), q], 0..k.

    Tie-aware: a survivor whose exact score is within 1e-6 of the k-th true score, or above it, counts.
    """
    result = np.zeros((len(plans), len(run.queries)), dtype=np.uint8)
    for start in range(0, len(run.queries), QUERIES_AT_A_TIME):
        _count(run, plans, k, slice(start, start + QUERIES_AT_A_TIME), result)
    return result


def _count(run: Run, plans: Sequence[Plan], k: int, queries: slice, result: npt.NDArray[np.uint8]) -> None:
    """Fill the columns of some queries in what `hits` returns."""
    threshold = torch.from_numpy(run.truth[queries, k - 1] - TIE_TOLERANCE)
    order = sorted(range(len(plans)), key=lambda i: (plans[i].effort, plans[i].shortlist, plans[i].stages))
    for effort, members_of_effort in groupby(order, key=lambda i: plans[i].effort):
        group = list(members_of_effort)
        longest = max(plans[i].shortlist for i in group)
        scores = torch.from_numpy(run.scores_at(effort, queries, longest))
        given = run.given_at(effort, queries, longest)
        true = (scores[:, :, -1] if given is None else torch.from_numpy(given)) >= threshold[:, None]
        mixed = None if given is None else _mixed(scores[:, :, -1], true)
        for size, members in groupby(group, key=lambda i: plans[i].shortlist):
            wanted: dict[tuple[Stage, ...], list[int]] = {}
            for i in members:
                wanted.setdefault(plans[i].stages, []).append(i)
            found = _survivors(scores[:, :size], true[:, :size], run.widths, k, mixed, tuple(wanted))
            for stages, counts in found:
                result[wanted[stages], queries] = counts.to(torch.uint8).numpy()


def _mixed(stored: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """The numbers of the queries of which some candidate that is not true scores, as stored, as much as one that is."""
    lowest = stored.masked_fill(~true, torch.inf).amin(dim=1)
    highest = stored.masked_fill(true, -torch.inf).amax(dim=1)
    return torch.nonzero(highest >= lowest)[:, 0]


def _returned(stored: torch.Tensor, true: torch.Tensor, k: int, mixed: torch.Tensor | None) -> torch.Tensor:
    """How many true ones are among the k best by their scores as stored, [q]: all of them, where none lies between."""
    counts = true.sum(dim=1).clamp(max=k)
    if mixed is not None and len(mixed):
        best = stored[mixed].topk(min(k, stored.shape[1]), dim=1).indices
        counts[mixed] = true[mixed].gather(1, best).sum(dim=1)
    return counts


def _survivors(
    scores: torch.Tensor,
    true: torch.Tensor,
    widths: tuple[int, ...],
    k: int,
    mixed: torch.Tensor | None,
    wanted: tuple[tuple[Stage, ...], ...],
    done: tuple[Stage, ...] = (),
) -> Iterator[tuple[tuple[Stage, ...], torch.Tensor]]:
    """For every wanted continuation of `done`: how many true neighbours are returned after it, [q].

    scores: [q, s, len(widths)] and true: bool [q, s] of the candidates that survived `done`. mixed: see `_mixed`.
    """
    depth = len(done)
    if done in wanted:
        yield done, _returned(scores[:, :, -1], true, k, mixed)
    deeper = sorted({stages[depth] for stages in wanted if len(stages) > depth and stages[:depth] == done})
    for width, steps in groupby(deeper, key=lambda stage: stage.width):
        # numpy's sort is 3 to 8 times as fast as torch's; what ties at the edge of a stage may go either way.
        order = torch.from_numpy(np.argsort(-scores[:, :, widths.index(width)].numpy(), axis=1))
        for step in steps:
            kept = order[:, : step.keep]
            reached = (*done, step)
            longer = tuple(stages for stages in wanted if stages[: depth + 1] == reached)
            if longer == (reached,):
                yield reached, _returned(scores[:, :, -1].gather(1, kept), true.gather(1, kept), k, mixed)
                continue
            inside = scores.gather(1, kept[:, :, None].expand(-1, -1, scores.shape[2]))
            yield from _survivors(inside, true.gather(1, kept), widths, k, mixed, longer, reached)


# Exact search over stored rows is called exact where it keeps this share of the true top k of the rows as given: of
# 1,000 queries it then misses 5 of 10,000 neighbours.
EXACT_ENOUGH = 0.9995
# Of delta, for the bound on what storage costs, where it is taken off another bound: the two hold together.
SHARE_OF_DELTA = 0.1


@dataclass(frozen=True)
class StorageCost:
    """Exact search over the rows as stored, judged by the rows as given.

    found: float32 [q, depth], true scores (by the rows as given) of the best stored rows, in their stored order.
    truth: float32 [q, depth], the best true scores, falling.
    """

    found: npt.NDArray[np.float32]
    truth: npt.NDArray[np.float32]

    @property
    def depth(self) -> int:
        """The largest k that was measured; it stands for every larger one."""
        return int(self.found.shape[1])

    def kept(self, k: int) -> npt.NDArray[np.float64]:
        """The share of each query's true top k that exact search over the stored rows returns: float64 [q]."""
        k = min(k, self.depth)
        true = self.found[:, :k] >= self.truth[:, k - 1 : k] - TIE_TOLERANCE
        kept: npt.NDArray[np.float64] = true.mean(axis=1, dtype=np.float64)
        return kept

    def exact(self, k: int) -> bool:
        """Whether that is called exact: see EXACT_ENOUGH."""
        return bool(self.kept(k).mean() >= EXACT_ENOUGH)

    def loss(self, k: int, delta: float, whole: bool = False) -> tuple[float, float]:
        """How much recall@k storage costs: the mean, and what it is at most with confidence 1 - delta.

        whole: of the share of queries that lose anything at all, in place of the mean recall.
        A plan that returns S of the stored top k returns at least S less what storage lost of the true top k.
        """
        kept = self.kept(k)
        if whole:
            kept = (kept >= 1.0).astype(np.float64)
        return float(1.0 - kept.mean()), 1.0 - betting_lower_bound(kept, delta)
