"""All budgets of an index in one table."""

from __future__ import annotations

from collections.abc import Sequence

from funnel.explanation import Explanation
from funnel.index import FunnelIndex
from funnel.reports.tables import Column, text_table

__all__ = ["RECALLS", "budgets_table", "explain_budgets"]

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
            "certified": _certified(line),
            "plan": str(line.plan),
        }
        for line in explained
    ]
    first = explained[0]
    said = dict.fromkeys(line.certificate.note for line in explained)
    notes = [note for note in said if note not in ("", index.certification)]
    heading = f"{index.path}: k={first.k}, {_calls(first.batch)}; {index.certification}"
    return "\n".join([heading, "", text_table(rows, COLUMNS), "", *notes]).rstrip()


def _certified(line: Explanation) -> str:
    if line.is_exact:
        return "exact"
    return "yes" if line.certificate.certified else "no"


def _calls(batch: int) -> str:
    return "one query a call" if batch == 1 else f"{batch} queries a call"
