"""What is measured as one record, and tables of it: aligned text for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from funnel.index import FunnelIndex
from funnel.results import Explanation

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

BY_HAND = "plan by hand"

# One recall budget, or a plan by hand, whose `target` is None: what was promised, which plan was served, what it gave.
# `recall` is that of the queries measured on, `recall_error` its standard error; `predicted_recall` that of the
# calibration queries, and `recall_low` the lower confidence bound of the same, None where nothing is certified or
# search is exact, which `exact` says; `speedup_*` is flat's time over the funnel's.
FunnelResult = TypedDict(
    "FunnelResult",
    {
        "target": float | None,
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
    index: dict[str, Any]  # what was searched: see `index_facts` of funnel.reports.bench
    machine: dict[str, Any]  # where it was searched: see `machine_facts`
    k: int
    n_queries: int
    queries: NotRequired[str]  # what they are, after their number
    flat: FlatResult
    funnel: list[FunnelResult]


MISSING = "–"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """How one key of the rows is shown.

    Attributes:
        key: the key in a row; a row without it shows a dash.
        title: the heading.
        form: a format specification (".3f", ",d") or a function from value to text.
        left: aligned to the left; numbers stay at the right.
        optional: left out where no row has the key.
    """

    key: str
    title: str
    form: str | Callable[[Any], str] = ""
    left: bool = False
    optional: bool = False

    def cell(self, row: Row) -> str:
        """The text of this column in a row, on one line."""
        value = row.get(self.key)
        if value is None or value != value:  # NaN: there is none
            return MISSING
        text = self.form(value) if callable(self.form) else format(value, self.form)
        return " ".join(text.split())


def microseconds(value: float) -> str:
    """A time, without its unit: 5.4, 83, 1,637."""
    return f"{value:,.1f}" if round(value, 1) < 10 else f"{value:,.0f}"


def times(value: float) -> str:
    """A ratio: 0.8×, 9.4×, 21×."""
    return f"{microseconds(value)}×"


def recall_text(recall: float) -> str:
    """A recall asked for, with two figures unless it has more: 0.90, 0.995."""
    return f"{recall:.2f}" if round(recall, 2) == round(recall, 6) else f"{recall:g}"


def size(value: float) -> str:
    """Bytes in the largest unit that leaves a figure before the point: 512 B, 38.4 kB, 307 MB."""
    for unit in ("B", "kB", "MB"):
        if round(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or round(value, 1) >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} GB"


def asked_text(point: FunnelResult) -> str:
    """What was asked for, in words: "recall 0.95", "plan by hand"."""
    return BY_HAND if point["target"] is None else f"recall {recall_text(point['target'])}"


COMPARISON_COLUMNS = (
    Column("search", "search", left=True),
    Column("recall", "recall", ".4f"),
    Column("recall_error", "±", ".4f"),
    Column("predicted_recall", "predicted", ".4f"),
    Column("recall_low", "lower bound", ".4f"),
    Column("certified", "certified"),
    Column("speedup_batch", "speed batch", times),
    Column("speedup_single", "single", times),
    Column("us_batch", "µs batch", microseconds),
    Column("us_single", "µs single", microseconds),
    Column("bytes", "read", size),
    Column("ndcg@10", "nDCG@10", ".4f", optional=True),
    Column("recall@100", "recall@100", ".4f", optional=True),
    Column("plan", "plan", left=True),
)

COMPARISON_NOTE = (
    "recall: measured, ± its standard error; the lower one where batch and single have plans of their own. predicted, "
    "lower bound: of the calibration's queries. speed: times that of flat search. single: one query a call. read: "
    "bytes of vectors that flat search, or reranks in batch, read for a query."
)

PREDICTION_COLUMNS = (
    Column("search", "search", left=True),
    Column("predicted_recall", "recall predicted", ".4f"),
    Column("recall", "measured", ".4f"),
    Column("recall_error", "±", ".4f"),
    Column("predicted_us_batch", "µs batch predicted", microseconds),
    Column("us_batch", "measured", microseconds),
    Column("predicted_us_single", "µs single predicted", microseconds),
    Column("us_single", "measured", microseconds),
)


def comparison_rows(results: Results) -> list[dict[str, Any]]:
    """Flat search and then every budget, for COMPARISON_COLUMNS."""
    flat: dict[str, Any] = {
        "recall": 1.0,
        "speedup_batch": 1.0,
        "speedup_single": 1.0,
        **results["flat"],
        "search": "flat",
        "plan": "exact, full width",
    }
    return [flat, *budget_rows(results)]


def budget_rows(results: Results) -> list[dict[str, Any]]:
    """Every budget, for PREDICTION_COLUMNS and COMPARISON_COLUMNS."""
    return [
        {
            **point,
            "search": asked_text(point),
            "certified": _certified(point.get("exact", False), point["certified"]),
        }
        for point in results["funnel"]
    ]


def _certified(exact: bool, certified: bool) -> str:
    return "exact" if exact else "yes" if certified else "no"


def shown_columns(rows: Sequence[Row], columns: Sequence[Column]) -> list[Column]:
    """The columns without the optional ones that no row fills."""
    return [column for column in columns if not column.optional or any(row.get(column.key) is not None for row in rows)]


def text_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """Columns aligned with spaces under a rule, for a fixed-width font; no newline at the end."""
    shown = shown_columns(rows, columns)
    lines = [[column.title for column in shown], *([column.cell(row) for column in shown] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    forms = [f"{{:{'<' if column.left else '>'}{width}}}" for column, width in zip(shown, widths, strict=True)]
    lines.insert(1, ["─" * width for width in widths])
    return "\n".join("  ".join(forms).format(*line).rstrip() for line in lines)


RECALLS = (0.80, 0.90, 0.95, 0.99, 1.0)

COLUMNS = (
    Column("budget", "budget", left=True),
    Column("recall", "estimate", ".4f"),
    Column("bound", "lower bound", ".4f"),
    Column("p50", "p50 ms", ".3f"),
    Column("p95", "p95 ms", ".3f"),
    Column("certified", "certified", left=True),
    Column("plan", "plan", left=True),
)


def explain_budgets(
    index: FunnelIndex, k: int, batch: int = 1, recalls: Sequence[float] = RECALLS, run: bool = False
) -> list[Explanation]:
    """The explanation of every recall budget. run: see `FunnelIndex.explain`."""
    return [index.explain(k, recall=recall, batch=batch, run=run) for recall in recalls]


def budgets_table(index: FunnelIndex, explained: Sequence[Explanation]) -> str:
    """A table of explanations, and under it what they rest on."""
    rows = [
        {
            "budget": line.budget,
            "recall": line.recall,
            "bound": None if line.is_exact else line.recall_lower_bound,
            "p50": line.p50_ms,
            "p95": line.p95_ms,
            "certified": _certified(line.is_exact, line.certificate.certified),
            "plan": str(line.plan),
        }
        for line in explained
    ]
    first = explained[0]
    said = dict.fromkeys(line.certificate.note for line in explained)
    notes = [note for note in said if note not in ("", index.certification)]
    calls = "one query a call" if first.batch == 1 else f"{first.batch} queries a call"
    heading = f"{index.path}: k={first.k}, {calls}; {index.certification}"
    return "\n".join([heading, "", text_table(rows, COLUMNS), "", *notes]).rstrip()
