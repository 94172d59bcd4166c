"""Have the queries changed since calibration? Statistics of live searches against those of the calibration queries.

What is compared, for every live query: the exact score of its best hit, that of its tenth where ten were asked for, and
the depth of its hits in the coarse shortlist, where there is one. A plan that misses neighbours lowers the scores (on
real embeddings a plan of recall .83 moves the tenth score's distribution by .07) and has a depth of its own, so the
searches of each plan and k are compared with what the same plan returned for the calibration queries.

Rows that are added and deleted change the scores of either. What is tested is therefore not a score but its place among
those of the calibration queries over the same rows: places go on through updates. Without any the test is exact. With
them it is not: the calibration queries that stand around a place change by chance. A window ends before that counts for
much (see FAR), and simulated streams keep well within the allowance.

Queries are compared in windows, each with the calibration sample afresh. So the test sees what a sample of that size
can tell, and nothing smaller, however long the traffic; and its memory is bounded.

A query that is asked again within a window is not counted again, in the calibration sample no more than in live
traffic: what is tested is which queries come, not how often each does. In traffic the popular ones come first all the
same: on real embeddings, calls drawn by Zipf's law raised no alarm in 360 streams where what is popular had nothing to
do with its scores, and soon in nearly all where it had. That is a change: the certificate, which is of distinct
queries, does not speak of most calls then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from threading import Lock
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from funnel.plan import Plan
from funnel.planning.calibration import Calibration
from funnel.planning.remembered import Remembered
from funnel.planning.run import TIE_TOLERANCE, Run
from indexes.forks import free_in_children

__all__ = [
    "ALARM",
    "RANKS",
    "WINDOW",
    "Drift",
    "Exchangeability",
    "LiveRows",
    "Reference",
    "returned",
]

Returned: TypeAlias = "Callable[[Plan, int], Float32 | None]"  # of the calibration queries, by plan and k
Floats = npt.NDArray[np.float64]

# Cosines are ranked in cells of this width: rounding (1e-7) must make no rank, and a hundredth of the usual spread
# of top scores (.02 to .15) is fine enough.
CELLS_PER_UNIT = 4_096
CELLS = 2 * CELLS_PER_UNIT + 1  # from -1 to 1
LARGEST_BLOCK = 256  # values ranked against each other at once: 65,536 comparisons take some 20 us
# Bets are the densities of Beta(a, b) for every a and b of these: ranks shifted up or down, drawn together or apart.
SHAPES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0)
FROM_THE_START = 0.5  # share of the wealth that bets from the first value on; the rest enters as values come
SMALLEST_RANK = 1e-12  # a rank of exactly 0 or 1 would make some bets infinite
EARLIER = np.tri(LARGEST_BLOCK, k=-1, dtype=bool)


def _bets() -> tuple[Floats, Floats, Floats]:
    """a, b and log B(a, b) of every bet."""
    a, b = (np.array(v) for v in zip(*((a, b) for a in SHAPES for b in SHAPES), strict=True))
    log_beta = np.array([math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y) for x, y in zip(a, b, strict=True)])
    return a, b, log_beta


A, B, LOG_BETA = _bets()


class Exchangeability:
    """The wealth of one gambler against "these values go on like the reference".

    reference: float [n], in [-1, 1], in any order. horizon: how many values are to come at most: wealth that enters
    late, for a change that comes late, is spread evenly over them. The bets on a change at each value are those of
    a mixture over its place: Vovk et al. 2021, section 4.
    """

    def __init__(self, reference: npt.NDArray[np.floating], horizon: int, generator: np.random.Generator) -> None:
        self._counts = np.bincount(cells_of(reference), minlength=CELLS)
        self._generator = generator
        self._entering = (1.0 - FROM_THE_START) / horizon
        self._known = len(reference)
        self._kept = 1.0 - FROM_THE_START  # wealth that has not entered yet
        self._logs = np.full(len(A), math.log(FROM_THE_START / len(A)))  # of what each bet has made
        self.count = 0

    @property
    def log_wealth(self) -> float:
        """The logarithm of the wealth now: 0 at the start; log w is reached by chance with probability 1 / w."""
        largest = max(float(self._logs.max()), -700.0)
        return float(np.logaddexp(largest + math.log(np.exp(self._logs - largest).sum()), _log(self._kept)))

    def update(self, values: npt.NDArray[np.floating]) -> None:
        """Bet on the next values, float [n], in the order they came."""
        for start in range(0, len(values), LARGEST_BLOCK):
            self._block(values[start : start + LARGEST_BLOCK])

    def _block(self, values: npt.NDArray[np.floating]) -> None:
        ranks = np.clip(self._ranks(cells_of(values)), SMALLEST_RANK, 1.0 - SMALLEST_RANK)
        growth = (A - 1.0) * np.log(ranks).sum() + (B - 1.0) * np.log1p(-ranks).sum() - len(ranks) * LOG_BETA
        self._logs += growth
        # What enters now was set aside for the values just seen, and bets from the next block on.
        enters = min(self._kept, self._entering * len(ranks))
        self._kept -= enters
        self._logs = np.logaddexp(self._logs, _log(enters / len(A)))
        self.count += len(ranks)

    def _ranks(self, cells: npt.NDArray[np.int16]) -> Floats:
        """The rank in [0, 1] of each value among the reference, all values before it and itself; these then join."""
        counts = self._counts
        earlier, others, known = EARLIER[: len(cells), : len(cells)], cells[:, None], counts[cells]
        lower = np.cumsum(counts)[cells] - known + ((cells < others) & earlier).sum(axis=1, dtype=np.int16)
        equal = known + ((cells == others) & earlier).sum(axis=1, dtype=np.int16) + 1
        size = self._known + np.arange(1, len(cells) + 1)
        np.add.at(counts, cells, 1)
        self._known += len(cells)
        ranks: Floats = (lower + self._generator.random(len(cells)) * equal) / size
        return ranks


def cells_of(values: npt.NDArray[np.floating]) -> npt.NDArray[np.int16]:
    """The number of each value's cell; -inf, where a search found nothing, lies in the first."""
    cells: npt.NDArray[np.int16] = np.rint((np.clip(values, -1.0, 1.0) + 1.0) * CELLS_PER_UNIT).astype(np.int16)
    return cells


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf


RANKS = (0, 9)  # the hits whose scores are compared: the best and the tenth

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


class LiveRows(NamedTuple):
    """How many rows a generation has, and how many of them were deleted."""

    total: int
    deleted: int

    def changed_since(self, before: LiveRows) -> int:
        """How many rows were added or deleted, at least."""
        return abs(self.total - before.total) + abs(self.deleted - before.deleted)


# Share of the calibration queries whose hits tie with other candidates, up to which their depth is compared: which of
# several copies of a row is returned is chance, and so is its place.
MOST_TIED = 0.01


class Reference:
    """What plans return for the calibration queries at one generation. Nothing is read before it is asked for."""

    def __init__(self, calibration: Calibration) -> None:
        self._calibration = calibration

    @cached_property
    def _added(self) -> Float32 | None:
        """The best scores among rows added since calibration, float32 [q, any]; None where there are none."""
        added, run = self._calibration.added, self._calibration.runs()[1]
        return None if added is None or run is None else added(np.ascontiguousarray(run.queries))

    def __call__(self, plan: Plan, k: int) -> Float32 | None:
        """See `returned`."""
        return returned(self._calibration, plan, k, RANKS, self._added)


def returned(
    calibration: Calibration, plan: Plan, k: int, ranks: Sequence[int], added: Float32 | None = None
) -> Float32 | None:
    """Of a search for k: exact scores of the hits at `ranks` (from 0), and their depth: float32 [q, len(ranks) + 1].

    q: the real queries. added: the best scores among rows added since, float32 [q, any], where they are known. NaN
    where the plan returns fewer hits, and for the depth (see funnel.engine.rerank) where it returns fewer than k or
    does not rerank, or where many hits tie with others. None where it cannot be followed on the record.
    """
    _, run = calibration.runs()
    if run is None:
        return None
    found = _followed(run, plan, k, ranks, added)
    # Where the coarse order is that of the hits they have no depth; where rows were deleted it is not on record.
    if found is not None and (not calibration.costs.reranked or run.live is not None):
        found[:, -1] = math.nan
    return found


def _followed(run: Run, plan: Plan, k: int, ranks: Sequence[int], added: Float32 | None) -> Float32 | None:
    result = np.full((len(run.queries), len(ranks) + 1), math.nan, dtype=np.float32)
    if plan.is_flat:
        result[:, :-1] = _at_ranks(run.truth, added, k, ranks)
        return result
    recorded = run.scores.get(plan.effort)
    if recorded is None or recorded.shape[1] < plan.shortlist:
        return None
    scores = torch.from_numpy(np.array(recorded[:, : plan.shortlist]))
    came = torch.arange(scores.shape[1]).expand(scores.shape[:2])  # places in the shortlist
    tied = np.zeros(len(result), dtype=np.bool_)
    for stage in plan.stages:
        if stage.width not in run.widths:
            return None
        at_width = scores[:, :, run.widths.index(stage.width)]
        best_there, places = torch.topk(at_width, stage.keep, dim=1)
        tied |= _tied(at_width, best_there)
        came, scores = came.gather(1, places), scores.gather(1, places[:, :, None].expand(-1, -1, scores.shape[2]))
    top, places = torch.topk(scores[:, :, -1], min(k, scores.shape[1]), dim=1)
    best = top.numpy()
    if best.shape[1] == k:  # answered exactly where there were too few candidates: see funnel.engine.exact.filled_up
        best = np.where(np.isneginf(best[:, -1:]), run.truth[:, :k], best)
    result[:, :-1] = _at_ranks(best, added, k, ranks)
    tied |= _tied(scores[:, :, -1], top)
    if top.shape[1] == k and tied.mean() <= MOST_TIED:
        result[:, -1] = np.where(
            top[:, -1].numpy() > -math.inf, came.gather(1, places).mean(dim=1, dtype=torch.float32), math.nan
        )
    return result


def _tied(scores: torch.Tensor, best: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Whether others score as the last of the best [q, k] of scores [q, s] does: bool [q]."""
    last = best[:, -1:]
    many = (scores >= last - TIE_TOLERANCE).sum(dim=1) > best.shape[1]
    tied: npt.NDArray[np.bool_] = (many & torch.isfinite(last[:, 0])).numpy()
    return tied


def _at_ranks(found: Float32, added: Float32 | None, k: int, ranks: Sequence[int]) -> Float32:
    """The scores at these ranks of the best k of those found and those added, each float32 [q, any]; NaN: too few."""
    if added is not None:
        found = np.concatenate([found, added], axis=1)
    best = -np.sort(-found, axis=1)[:, :k]
    best[np.isneginf(best)] = math.nan
    result = np.full((len(best), len(ranks)), math.nan, dtype=np.float32)
    for column, rank in enumerate(ranks):
        if rank < best.shape[1]:
            result[:, column] = best[:, rank]
    return result


STATISTICS = len(RANKS) + 1  # the last is the depth
# Of one call, evenly spaced: a test costs 1 us a query, which counts where a batch takes 20 of them, and a change of
# queries shows within 160.
MOST_COMPARED = 512

# What a plan returned for the calibration queries when asked for k: see `funnel.monitoring.drift`.


class Waiting:
    """Searches of one kind that wait together, in groups: each has the plan and the reference it is compared by."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._count = 0

    def add(self, scores: Float32, depths: Float32 | None, plan: Plan, reference: Returned) -> int:
        """Take in one call, float32 [n, k]; gives how many queries wait."""
        groups = self.groups
        if not groups or not groups[-1].takes(plan, reference):
            # Threads may still end searches of the generation before, whose group goes on.
            found = next((group for group in groups if group.takes(plan, reference)), None)
            groups.append(Group(plan, reference) if found is None else groups.pop(groups.index(found)))
        groups[-1].add(scores, depths)
        self._count += len(scores)
        return self._count


class Group:
    """Searches under one plan. Single queries are noted as numbers: half a microsecond each."""

    def __init__(self, plan: Plan, reference: Returned) -> None:
        self.plan, self.reference = plan, reference
        self._best: list[float] = []
        self._tenth: list[float] = []
        self._depths: list[float] = []
        self._parts: list[Float32] = []

    def takes(self, plan: Plan | None, reference: Returned | None) -> bool:
        """Whether searches under this plan, compared by this reference, belong here."""
        return reference is self.reference and (plan is self.plan or plan == self.plan)

    def add(self, scores: Float32, depths: Float32 | None) -> None:
        """Take in one call, float32 [n, k]. The scores are copied."""
        count, k = scores.shape
        if count > 1:
            step = -(-count // MOST_COMPARED)
            self._parts.append(_columns(scores[::step], None if depths is None else depths[::step]))
        else:
            self._best.append(scores.item(0))
            self._tenth.append(scores.item(RANKS[1]) if k > RANKS[1] else math.nan)
            self._depths.append(math.nan if depths is None or scores.item(k - 1) == -math.inf else depths.item(0))

    def columns(self) -> Float32:
        """Everything that waits: float32 [n, STATISTICS]."""
        single = np.full((len(self._best), STATISTICS), math.nan, dtype=np.float32)
        single[:, 0], single[:, 1], single[:, -1] = self._best, self._tenth, self._depths
        single[np.isneginf(single)] = math.nan
        return np.concatenate([single, *self._parts])


def _columns(scores: Float32, depths: Float32 | None) -> Float32:
    """What is compared of one call: float32 [n, STATISTICS]."""
    found = np.full((len(scores), STATISTICS), math.nan, dtype=np.float32)
    found[:, 0] = scores[:, 0]
    if scores.shape[1] > RANKS[1]:
        found[:, 1] = scores[:, RANKS[1]]
    found[np.isneginf(found)] = math.nan  # fewer rows than hits asked for
    if depths is not None:
        found[:, -1] = depths
        found[scores[:, -1] == -math.inf, -1] = math.nan  # places without a candidate are nowhere
    return found


ALARM = 0.01  # probability of ever raising an alarm, over an endless stream, while nothing has changed
# Queries in a window: as many as a calibration holds at most; with more the calibration sample would be what limits.
WINDOW = 5_000
BLOCK = 128  # live queries between two looks: one takes some 150 us, a little over 1 us a query; 64 take 2 us
MOST_WATCHED = 64  # plans, for one k each, that are watched, .7 MB each; budgets seldom ask for more than five
# A window ends where the distribution function of a reference differs from that at its beginning by more than this, as
# it does with a third more rows. Of 400 streams over rows that grow to six times as many, with 100 calibration queries,
# the smallest p-value was .11; with windows that do not end so, one was .006 and two were .011.
FAR = 0.1
# Queries that came between two writes of weight; fewer are let go, as a reference takes milliseconds to make.
FEWEST_TOGETHER = 8


class Drift:
    """Watches what live queries get. Safe in threads.

    reference: what a plan returned for the calibration queries when asked for k, float32 [n, STATISTICS]: scores at
    RANKS and depth, NaN where there is none; None where it is not on record: searches under such a plan are counted
    and not compared.

    Windows w = 1, 2, … of a plan share the probability of a false alarm as 1 / (w (w + 1)), which sums to 1; so do
    the plans (each for one k) in the order they come; the two or three statistics get an equal part. It is a union
    bound, as all of them meet the same calibration sample.
    """

    def __init__(self, reference: Returned, seed: int = 0) -> None:
        self._reference = reference
        self._generator = np.random.default_rng(seed)
        self._watched: dict[tuple[Plan, int], _Watched | None] = {}
        self._waiting: Remembered[tuple[Plan, int], Waiting] = Remembered(most=MOST_WATCHED)
        self._adding, self._testing = free_in_children(Lock()), free_in_children(Lock())
        self.changed = False  # an alarm stays
        self.seen = 0
        self.compared = 0
        self.p_value = 1.0

    def see(
        self, scores: Float32, plan: Plan, depths: Float32 | None = None, reference: Returned | None = None
    ) -> bool:
        """Note the exact scores of one call, float32 [n, k], falling; True where they raised the alarm.

        depths: as `Cascade.traced` gives them; None where they are not known. reference: that of the rows which were
        searched; None: the first. The scores are copied. Every BLOCK queries of a plan are tested together, on the
        thread that brought the last.
        """
        key = (plan, scores.shape[1])
        with self._adding:
            self.seen += len(scores)
            if self.changed:
                return False
            if key not in self._watched and len(self._watched) >= MOST_WATCHED:
                return False
            waiting = self._waiting.get(key)
            if waiting is None:
                waiting = self._waiting[key] = Waiting()
            if waiting.add(scores, depths, plan, self._reference if reference is None else reference) < BLOCK:
                return False
            del self._waiting[key]
        with self._testing:
            if not self.changed:
                self._test(waiting.groups, *key)
                return self.changed
            return False

    def _test(self, groups: Sequence[Group], kind: Plan, k: int) -> None:
        """Compare what waited together."""
        for group in groups:
            columns = group.columns()
            if len(groups) > 1 and len(columns) < FEWEST_TOGETHER:
                continue
            watched = self._watching(group, kind, k)
            if watched is None:
                return
            for start in range(0, len(columns), LARGEST_BLOCK):
                compared, p_value = watched.look(columns[start : start + LARGEST_BLOCK])
                self.compared += compared
                self.p_value = min(self.p_value, p_value)
                self.changed = self.p_value <= ALARM
                if self.changed:
                    return

    def _watching(self, group: Group, kind: Plan, k: int) -> _Watched | None:
        """The tests of this kind of plan, ready for a group; None where there is nothing to compare it with."""
        key = (kind, k)
        watched = self._watched.get(key)
        if watched is None and (key in self._watched or len(self._watched) >= MOST_WATCHED):
            return None
        if watched is not None and group.takes(watched.plan, watched.reference):
            return watched
        found = group.reference(group.plan, k)
        places = None if found is None else _Places(found, group.plan)
        if watched is None:
            number = len(self._watched) + 1
            watched = self._watched[key] = None if places is None else _Watched(places, number, self._generator)
        if watched is None or places is None:
            return None
        watched.go_on(group.plan, group.reference, places)
        return watched


class _Places:
    """Where live searches stand among the calibration queries. reference: what a plan returned for these."""

    def __init__(self, reference: Float32, plan: Plan) -> None:
        columns = np.ascontiguousarray(reference, dtype=np.float32)
        self._deepest = max(1, plan.shortlist)  # places are compared as shares of it
        once = columns[np.unique(_keys(columns), return_index=True)[1]]
        known = ~np.isnan(once)
        self.cells = {i: np.sort(self._cells(once[known[:, i]], i)) for i in range(STATISTICS) if known[:, i].any()}

    def _cells(self, columns: Float32, i: int) -> npt.NDArray[np.int16]:
        return cells_of(columns[:, i] / self._deepest if i == STATISTICS - 1 else columns[:, i])

    def apart(self, other: _Places) -> float:
        """The largest difference of the distribution functions of a statistic that both know."""
        most = 0.0
        for i in self.cells.keys() & other.cells.keys():
            one, two = (np.bincount(cells, minlength=CELLS) / len(cells) for cells in (self.cells[i], other.cells[i]))
            most = max(most, float(np.abs(np.cumsum(one - two)).max()))
        return most

    def of(self, columns: Float32, i: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
        """The places by one statistic, from -1, below all calibration queries, to 1; ties are parted at random."""
        known, asked = self.cells[i], self._cells(columns[~np.isnan(columns[:, i])], i)
        lower = np.searchsorted(known, asked)
        equal = np.searchsorted(known, asked, "right") - lower
        shares = (lower + generator.random(len(asked)) * (equal + 1)) / (len(known) + 1)
        places: npt.NDArray[np.float64] = 2.0 * shares - 1.0
        return places


class _Watched:
    """The tests of one kind of plan, in the window that is running. number: which kind of plan it is, from 1."""

    def __init__(self, places: _Places, number: int, generator: np.random.Generator) -> None:
        self.plan: Plan | None = None
        self.reference: Returned | None = None
        self._places = places
        self._counts = {i: len(cells) for i, cells in places.cells.items()}
        self._share = math.log(max(1, len(self._counts)) * number * (number + 1))
        self._generator = generator
        self._window = 0
        self._begin()

    def go_on(self, plan: Plan, reference: Returned, places: _Places) -> None:
        """From now on places are those among what this reference gave of this plan."""
        self.plan, self.reference, self._places = plan, reference, places
        if places.apart(self._first) > FAR:
            self._begin()

    def _begin(self) -> None:
        self._window += 1
        self._first = self._places
        self._asked: set[int] = set()
        evenly = {i: np.linspace(-1.0, 1.0, count + 2)[1:-1] for i, count in self._counts.items()}
        self._tests = {i: Exchangeability(places, WINDOW, self._generator) for i, places in evenly.items()}

    def look(self, columns: Float32) -> tuple[int, float]:
        """Compare float32 [n, STATISTICS]: how many were new, and the p-value of the strongest evidence now."""
        fresh = columns[self._fresh(columns)]
        least = self._share + math.log(self._window * (self._window + 1))
        p_value = 1.0
        for i, test in self._tests.items():
            if i in self._places.cells:
                test.update(self._places.of(fresh, i, self._generator))
            p_value = min(p_value, math.exp(min(0.0, least - test.log_wealth)))
        if len(self._asked) >= WINDOW:
            self._begin()
        return len(fresh), p_value

    def _fresh(self, columns: Float32) -> list[int]:
        """The places of those that were not asked in this window before."""
        places = []
        for place, key in enumerate(_keys(columns).tolist()):
            if key not in self._asked:
                self._asked.add(key)
                places.append(place)
        return places


def _keys(columns: Float32) -> npt.NDArray[np.int64]:
    """One number for each row: queries with the very same scores are one query asked again."""
    keys: npt.NDArray[np.int64] = np.ascontiguousarray(columns[:, : len(RANKS)]).view(np.int64).ravel()
    return keys
