"""The measured results of one benchmark, as they stand in `results.json` and as the reports read them.

Times are microseconds a query, sizes bytes a query unless the name says otherwise; `single` is one
query a call, `batch` many.
"""

from typing import NotRequired, TypedDict


class IndexFacts(TypedDict):
    """What was searched."""

    rows: int
    dim: int
    coarse: str
    adaptor: str
    ladder: list[int]
    resident_mb: float
    encoder: str
    # "certified on N real queries" or "uncertified: calibrated on corpus rows"
    certificate: str


class MachineFacts(TypedDict):
    """Where it was searched; the library fields hold versions."""

    processor: str
    cores: int
    threads: int
    device: str
    torch: str
    faiss: str
    numpy: str
    python: str


# In the functional form because "ndcg@10" is no Python name. Exact search at full width over the rows as stored: its
# recall is what that keeps of the true top k of the rows as given, as far as that was measured.
FlatResult = TypedDict(
    "FlatResult",
    {
        "us_single": float,
        "us_batch": float,
        "bytes": int,
        "recall": NotRequired[float],
        "ndcg@10": NotRequired[float],
        "recall@100": NotRequired[float],
    },
)

# One recall budget: what was promised, which plan was served, what it gave. `recall` is that of the queries measured
# on, `recall_error` its standard error; `predicted_recall` that of the calibration queries, and `recall_low` the lower
# confidence bound of the same, None where nothing is certified or search is exact, which `exact` says; `speedup_*` is
# flat's time over the funnel's.
FunnelResult = TypedDict(
    "FunnelResult",
    {
        "target": float,
        "plan": str,
        "recall": float,
        "recall_error": float,
        "recall_low": float | None,
        "predicted_recall": float,
        "certified": bool,
        "exact": NotRequired[bool],
        "us_single": float,
        "us_batch": float,
        "predicted_us_single": float,
        "predicted_us_batch": float,
        "speedup_single": float,
        "speedup_batch": float,
        "bytes": int,
        "ndcg@10": NotRequired[float],
        "recall@100": NotRequired[float],
    },
)


class Results(TypedDict):
    """Everything one benchmark found; `created` is a date and time in ISO 8601."""

    title: str
    created: str
    index: IndexFacts
    machine: MachineFacts
    k: int
    n_queries: int
    queries: NotRequired[str]  # what they are, after their number
    flat: FlatResult
    funnel: list[FunnelResult]
