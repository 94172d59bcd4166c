"""What calibration.json may hold: the one schema, checked once when it is read.

A new field is one line of `Record`, with a default, so that older calibrations open.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from funnel.errors import DamagedIndexError, StorageError, of_environment, reason
from funnel.planning.calibration import LARGEST_K
from funnel.planning.costs import BATCH_SIZES

__all__ = ["Record", "check_record", "read_json"]

LONGEST_SAID = 300  # characters of a message: values in it may be long

Name = Annotated[str, msgspec.Meta(max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Ms = Annotated[float, msgspec.Meta(ge=0, le=1e12)]
Weight = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]


class PlanRecord(msgspec.Struct):
    """Of `Plan.to_json`."""

    effort: Count
    shortlist: Count
    stages: list[tuple[Positive, Positive]]


class CostsRecord(msgspec.Struct):
    """Of `Costs.to_json`: every table has every batch size, and those of coarse search the same efforts."""

    machine: dict[Name, Name]
    sizes: Annotated[list[Positive], msgspec.Meta(min_length=1, max_length=64)]
    coarse: dict[int, dict[int, Ms]]
    rerank: dict[int, dict[int, list[Ms]]]
    flat: dict[int, Ms]
    base: dict[int, Ms]

    def __post_init__(self) -> None:
        for name in ("coarse", "rerank", "flat", "base"):
            if set(getattr(self, name)) != set(BATCH_SIZES):
                raise ValueError(f"{name} is not of the batch sizes {list(BATCH_SIZES)}")
        if len({tuple(sorted(table)) for table in self.coarse.values()}) != 1:
            raise ValueError("coarse has other efforts for another batch size")
        if any(len(ms) != len(self.sizes) for table in self.rerank.values() for ms in table.values()):
            raise ValueError(f"rerank has lists of another length than the {len(self.sizes)} sizes")
        if self.sizes != sorted(set(self.sizes)):
            raise ValueError(f"sizes is {self.sizes}, which does not rise")


class Record(msgspec.Struct):
    """calibration.json."""

    by_effort: bool
    dim: Positive
    date: Name
    n_queries: Count
    n_corpus_rows: Positive
    depth: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_K)]
    kind: str
    latencies: list[tuple[PlanRecord, Positive, Positive, Ms, Ms]]
    plans: dict[Annotated[int, msgspec.Meta(ge=1, le=LARGEST_K)], list[PlanRecord]]
    costs: CostsRecord
    left_out: dict[Name, Count] = {}
    corpus_like: bool | float = False  # once a share, of queries that equalled rows
    as_given: bool = False
    certificates: list[dict[str, Any]] = []
    format_version: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        known = next(iter(self.costs.coarse.values()))
        for plans in self.plans.values():
            for plan in plans:
                if plan.shortlist and plan.effort not in known:
                    raise ValueError(f"a plan has the effort {plan.effort}, whose costs are not on record")


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON object. Raises DamagedIndexError naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if of_environment(error):
            raise StorageError(f"{path} cannot be read now: {reason(error)}") from error
        raise DamagedIndexError(f"{path} cannot be read as JSON ({error}); build the index again") from error
    if not isinstance(found, dict):
        raise DamagedIndexError(f"{path} holds a {type(found).__name__}, expected an object; build the index again")
    return found


def check_record(found: dict[str, Any], path: Path) -> None:
    """Check every field of calibration.json as it stands there. Raises DamagedIndexError naming file and field."""
    try:
        msgspec.convert(found, Record, str_keys=True)
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        said = str(error)[:LONGEST_SAID] or type(error).__name__
        raise DamagedIndexError(f"{path}: not a calibration of this format: {said}; build the index again") from error
