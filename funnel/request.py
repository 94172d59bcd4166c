"""What a call of search asks for: queries as the user gives them, and a budget or a plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from numbers import Real
from reprlib import repr as shown
from time import perf_counter
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from funnel.budget import Budget, check_ms
from funnel.errors import InputError
from funnel.plan import Plan
from funnel.planning.costs import batch_class
from funnel.results import Explanation
from funnel.rows import as_array

__all__ = [
    "Deadline",
    "Reading",
    "Request",
    "SearchOptions",
    "explicit_plan",
    "paused",
    "plan_of",
    "read_query",
    "read_vectors",
    "wanted_budget",
]


class SearchOptions(TypedDict, total=False):
    """What `FunnelIndex.search` takes by name, for its overloads; meanings and defaults are told there."""

    recall: float | None
    share: float | None
    latency_ms: float | None
    budget: Budget | None
    plan: Plan | Explanation | str | None
    audit: float | bool | None
    deadline_ms: float | None
    hybrid: float | bool | None
    text: str | Sequence[str] | None
    where: str | None
    allowed_ids: Iterable[str] | Iterable[int] | None


class Reading(NamedTuple):
    """What a call that gives documents does besides the search.

    texts: the queries, where they are texts. encoded: whether they are to be encoded. fused: of a hybrid search, whose
    k is the depth of its lists: how many hits are kept of them.
    """

    texts: Sequence[str] = ()
    encoded: bool = False
    fused: int | None = None


FLOATS = {float, type(None)}


class Request:
    """One call of search: k, and a budget or a plan, as the user wrote them; the clock of its deadline runs from here.

    where, allowed_ids: a filter, or None; `filtered`: whether there is one. reading: None where no documents are given.
    began: when, in seconds, where a latency is to be kept; 0 where none is, or where the call had to be planned first.
    Raises InputError for a deadline that is none, or that a latency budget may use up.
    """

    __slots__ = (
        *("allowed_ids", "began", "budget", "deadline", "filtered", "k", "latency_ms", "plan", "reading", "recall"),
        *("share", "where"),
    )

    def __init__(
        self,
        k: int,
        recall: float | None = None,
        share: float | None = None,
        latency_ms: float | None = None,
        budget: Budget | None = None,
        plan: Plan | Explanation | str | None = None,
        deadline_ms: float | None = None,
        where: str | None = None,
        allowed_ids: Any = None,
        reading: Reading | None = None,
    ) -> None:
        self.plan: Plan | None = None if plan is None else explicit_plan(plan, recall, latency_ms, budget, share)
        if plan is None and (budget is not None or not {type(recall), type(latency_ms), type(share)} <= FLOATS):
            wanted_budget(recall, latency_ms, budget, share)  # choices are remembered, and True is found under 1.0
        self.k: int = k
        self.recall: float | None = recall
        self.share: float | None = share
        self.latency_ms: float | None = latency_ms
        self.budget: Budget | None = budget
        self.reading: Reading | None = reading
        self.began: float = (
            0.0 if latency_ms is None and (budget is None or budget.latency_ms is None) else perf_counter()
        )
        self.where: str | None = where
        self.allowed_ids: Any = allowed_ids
        self.filtered: bool = where is not None or allowed_ids is not None
        self.deadline: Deadline | None = None if deadline_ms is None else Deadline(deadline_ms)
        if deadline_ms is not None:
            latency = latency_ms if budget is None else budget.latency_ms
            if isinstance(latency, Real) and deadline_ms < latency:
                raise InputError(
                    f"deadline_ms={deadline_ms:g} is shorter than the latency of {latency:g} ms that was asked for "
                    "and may be used; ask for a latency within the deadline, or give a longer deadline"
                )

    def took(self, n_queries: int, note: Callable[[float, int, float], None]) -> None:
        """Give note(latency_ms, batch, ms) how long the call took; a latency was to be kept."""
        latency = self.latency_ms if self.budget is None else self.budget.latency_ms
        assert latency is not None
        note(latency, batch_class(n_queries), (perf_counter() - self.began) * 1e3)

    @property
    def wanted(self) -> Budget:
        """The budget. InputError where it was given in both ways."""
        return wanted_budget(self.recall, self.latency_ms, self.budget, self.share)

    @property
    def name(self) -> tuple[str, float | None]:
        """What was asked, in words, and the mean recall that it promises; None where that is left open.

        Where a share of queries gets a recall, the mean is at least their product.
        """
        if self.plan is not None:
            return f"plan {self.plan}", None
        wanted = self.wanted
        return str(wanted), wanted.recall if wanted.recall is None else wanted.recall * (wanted.share or 1.0)


def read_query(
    query: Any, dim: int, text: str | Sequence[str] | None = None
) -> tuple[list[str] | None, npt.NDArray[Any] | None, bool]:
    """Texts, vectors [n, d], or with `text` both, and whether it was a single query. InputError for what is neither."""
    if type(query) is np.ndarray and query.dtype == np.float32 and 1 <= query.ndim <= 2 and text is None:
        return None, query if query.ndim == 2 else query[None, :], query.ndim == 1
    texts, vectors, single = _texts_or_vectors(query, dim)
    if text is None:
        return texts, vectors, single
    if vectors is None:
        raise InputError(f"text={shown(text)} gives the words beside a vector, and the query is a text; leave it out")
    several = isinstance(text, Sequence) or (isinstance(text, np.ndarray) and text.ndim > 0)
    words = list(text) if several and not isinstance(text, str) else [text]
    wrong = next((one for one in words if not isinstance(one, str)), None)
    if wrong is not None:
        raise InputError(f"text holds {shown(wrong)}; expected a text for each vector")
    if vectors.ndim == 2 and len(words) != len(vectors):
        raise InputError(f"text: {len(words)} given for {len(vectors)} vectors; give one for each")
    return [str(one) for one in words], vectors, single


def _texts_or_vectors(query: Any, dim: int) -> tuple[list[str] | None, npt.NDArray[Any] | None, bool]:
    if isinstance(query, str):
        return [query], None, True
    array = as_array(query)
    if array is not None and array.dtype.kind in "UO" and array.ndim < 2:
        query, array = array.tolist(), None  # texts
        if isinstance(query, str):
            return [query], None, True
    if array is None:
        items = list(query) if isinstance(query, Sequence) else None
        if items is None:
            raise InputError(f"query is a {type(query).__name__}; expected a text, a vector, or a list of either")
        if items and all(isinstance(item, str) for item in items):
            return items, None, False
        if not items:
            return None, np.empty((0, dim), dtype=np.float32), False
        array = _numbers(items)
    if array.ndim == 1:
        return None, array[None, :], True
    return None, array, False


def read_vectors(queries: Any) -> npt.NDArray[Any]:
    """Vectors only: an array, a tensor, or rows of numbers."""
    if type(queries) is np.ndarray and queries.dtype == np.float32:
        return queries
    rows = as_array(queries)
    return _numbers(queries) if rows is None else rows


def wanted_budget(
    recall: float | None, latency_ms: float | None, budget: Budget | None, share: float | None = None
) -> Budget:
    """The budget that was asked for, in one way or the other. InputError for both."""
    if budget is None:
        return Budget(recall, latency_ms, share=share)
    if not isinstance(budget, Budget):
        raise InputError(
            f"budget is {shown(budget)}; expected a Budget, such as Budget(recall=0.95), or give recall= or latency_ms="
        )
    if recall is not None or latency_ms is not None or share is not None:
        raise InputError("give either budget, or recall, share and latency_ms, not both")
    return budget


def explicit_plan(
    plan: Plan | Explanation | str,
    recall: float | None,
    latency_ms: float | None,
    budget: Budget | None,
    share: float | None = None,
) -> Plan:
    """The plan that was asked for. InputError where a budget came with it, or it is none."""
    if recall is not None or latency_ms is not None or budget is not None or share is not None:
        raise InputError("give either a plan or a budget, not both")
    return plan_of(plan)


def plan_of(plan: object) -> Plan:
    """A plan as the user gives it: itself, its text, or what explain gave. InputError where it is none of these."""
    chosen = Plan.parse(plan) if isinstance(plan, str) else plan.plan if isinstance(plan, Explanation) else plan
    if not isinstance(chosen, Plan):
        raise InputError(
            f"plan is a {type(plan).__name__}; expected a Plan, a text such as '8:400 16:200', or what explain gave"
        )
    chosen.check_types()
    return chosen


def _numbers(items: Any) -> npt.NDArray[Any]:
    """Rows of numbers in a type that holds them all: cut to float32 only once they are scaled to unit length."""
    try:
        arrays = [as_array(item) for item in items]
        array = np.asarray([item if found is None else found for item, found in zip(items, arrays, strict=True)])
        if array.dtype.kind not in "fiu":
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("queries must be texts only, or numbers in rows of one length") from error
    return array


class Deadline:
    """`ms` milliseconds from now. Raises InputError for anything but milliseconds above 0."""

    __slots__ = ("_ends",)

    def __init__(self, ms: float) -> None:
        self._ends: float = time.perf_counter() + check_ms("deadline_ms", ms, 20) / 1e3

    def passed(self) -> bool:
        """Whether the moment has come."""
        return time.perf_counter() >= self._ends

    def left_ms(self) -> float:
        """Milliseconds up to the moment; negative after it."""
        return (self._ends - time.perf_counter()) * 1e3

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For work that is done once and remembered, such as planning: its time does not count."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._ends += time.perf_counter() - started


def paused(deadline: Deadline | None) -> AbstractContextManager[None]:
    """As `Deadline.paused`, where there is one."""
    return nullcontext() if deadline is None else deadline.paused()
