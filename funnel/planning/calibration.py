"""A calibration as one thing: its runs, costs and frontiers, kept on disk as calibration.json and calibration.npz."""

from __future__ import annotations

import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError, FormatVersionError, StorageError, of_environment, reason
from funnel.plan import Plan, Stage
from funnel.planning.costs import BATCH_SIZES, Costs
from funnel.planning.frontier import Frontier, build_frontier, frontier_of
from funnel.planning.run import LARGEST_K, MISSING, Run, hits
from funnel.planning.storage_cost import SHARE_OF_DELTA, StorageCost
from indexes.mapping import map_file, npy_header

__all__ = [
    "ALIGNED",
    "CACHED_KS",
    "FORMAT_VERSION",
    "REAL",
    "SMALLEST_PLANNED",
    "UNCERTIFIED",
    "Calibration",
    "check_record",
    "depth_of",
    "map_arrays",
    "read_json",
    "step_recalls",
    "truncations",
    "write_arrays",
]

Arrays = Mapping[str, npt.NDArray[Any]]

SUFFIX = ".npy"  # of every member, as np.savez names them
ALIGNED = np.lib.format.ARRAY_ALIGN  # arrays start at its multiples, as numpy pads its own header to them
LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member (APPNOTE 4.3.7): the lengths of its name and extra field
ZIP64_EXTRA = 20  # bytes that zipfile puts before the extra field of a member that may be large
EXTRA_FIELD = struct.Struct("<HH")  # identifier and length of an extra field (APPNOTE 4.5.1)
PADDING = 0xD935  # the identifier that Android's zipalign uses for padding; other readers skip it
# A compressed member may become so many times as large as the file, and a megabyte beside: no room for bombs.
LARGEST_EXPANSION, SMALL_MEMBER = 64, 1_000_000
# Out of zipfile, zlib and numpy's header parser, which evaluates the header as a Python literal; RecursionError and
# NotImplementedError are RuntimeErrors.
UNREADABLE = (
    *(ValueError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, RuntimeError, SyntaxError),
    *(tokenize.TokenError, MemoryError, OverflowError, TypeError, LookupError),
)


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write what `np.load` and `map_arrays` read: an uncompressed .npz whose arrays are aligned in the file.

    Raises ValueError for arrays of Python objects, OSError where there is no room.
    """
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(name + SUFFIX)
            before = file.tell() + LOCAL_HEADER.size + len(member.filename.encode()) + ZIP64_EXTRA + EXTRA_FIELD.size
            padding = -before % ALIGNED
            member.extra = EXTRA_FIELD.pack(PADDING, padding) + bytes(padding)
            with archive.open(member, "w", force_zip64=True) as opened:
                np.lib.format.write_array(opened, np.asanyarray(array), allow_pickle=False)


def map_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of an .npz file by name; the file is mapped, so that only what is looked at is read.

    What is written into an array does not reach the file. Members that are compressed or not aligned, as np.savez
    leaves them, are read into memory instead.

    Raises DamagedIndexError for a file that is not an .npz of plain arrays.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            _, whole = map_file(file)
            members = archive.infolist()
            return {member.filename.removesuffix(SUFFIX): _array(archive, member, whole) for member in members}
        except (*UNREADABLE, OSError) as error:  # OSError: a place in the file that cannot be gone to
            if of_environment(error):
                raise StorageError(f"{path} cannot be read now: {reason(error)}") from error
            raise DamagedIndexError(f"{path}: not a readable array file ({error})") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    with archive.open(member) as opened:
        shape, fortran, dtype = npy_header(opened)
        header = opened.tell()
    name, extra = LOCAL_HEADER.unpack_from(whole.data, member.header_offset)
    start = member.header_offset + LOCAL_HEADER.size + name + extra + header
    count = math.prod(shape)
    if any(side < 0 for side in shape) or member.file_size != header + count * dtype.itemsize:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, its header promises {dtype} {list(shape)}")
    if member.file_size > LARGEST_EXPANSION * len(whole) + SMALL_MEMBER:
        raise ValueError(f"{member.filename} would take {member.file_size} bytes, the file has {len(whole)}")
    if member.compress_type != zipfile.ZIP_STORED or fortran or start % dtype.alignment or not count:
        with archive.open(member) as opened:
            array: npt.NDArray[Any] = np.lib.format.read_array(opened, allow_pickle=False)
        return array
    return np.frombuffer(whole, dtype, count, start).reshape(shape)


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


CACHED_KS = (1, 10, 100)  # frontiers worked out at build; any other k up to 100 on first use
REAL = "real queries"
UNCERTIFIED = "uncertified: calibrated on corpus rows"
JSON_NAME, ARRAYS_NAME = "calibration.json", "calibration.npz"
# Of these two files. 1: scores and shortlists were kept for every effort apart. 2: candidates, each scored once, and
# places among them. Neither stood in the file before it was named there: SINCE_2 tells them apart.
FORMAT_VERSION = 2
SINCE_2 = "corpus/candidates"
FLOAT32 = np.dtype(np.float32)


@dataclass
class Calibration:
    """What was measured on sample queries, for any k up to 100.

    costs: as measured when the calibration was made; the frontiers rest on them. by_effort: see build_frontier.
    latencies: [plan json, k, batch, p50 ms, p95 ms] measured end to end on the same machine. n_queries: real queries
    that certify, all of them distinct. left_out: why others of them do not -> how many; corpus_like: whether the user
    said that queries are documents, so that those which equal rows do certify. certificates: what was promised
    for the usual budgets when the calibration was made, to be read; see `Planner.promised`. updates: what was added and
    deleted since, and how the record takes it into account. void: why nothing can be certified since; "" where it can.
    added: of queries, the best scores float32 [q, any] among rows added since; None where there are none.
    rows: how many are stored, where that is known: those on record are checked.
    storage: what storing the rows costs exact search; None where it was never measured, or is nothing. as_given:
    whether truth is exact search over the rows as given; where it is that over the rows as stored, that cost is taken
    off.
    """

    costs: Costs
    by_effort: bool
    dim: int
    date: str
    n_queries: int
    n_corpus_rows: int
    depth: int
    latencies: list[list[Any]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    corpus_like: bool = False
    certificates: list[dict[str, Any]] = field(default_factory=list)
    updates: str = ""
    void: str = ""
    added: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = field(default=None, repr=False)
    storage: StorageCost | None = field(default=None, repr=False)
    as_given: bool = False
    frontiers: dict[int, Frontier] = field(default_factory=dict)
    corpus: Run | None = None
    queries: Run | None = None
    folder: Path | None = None
    rows: int | None = None
    mapped: Arrays | None = field(default=None, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def certifies(self) -> bool:
        """Whether real queries were run, so that recall can be certified."""
        return self.n_queries > 0 and not self.void

    @property
    def kind(self) -> str:
        """Either "real queries", or why nothing is certified."""
        if self.void:
            return f"void: {self.void}"
        if self.certifies:
            return REAL
        return f"{UNCERTIFIED}{self.said_left_out}"

    @property
    def said_left_out(self) -> str:
        """Which of the queries given do not certify, and why, as the end of a sentence; "" where all do."""
        said = ", ".join(f"{count:,} {why}" for why, count in self.left_out.items() if count)
        return f" (left out: {said})" if said else ""

    def storage_loss(self, k: int, delta: float, whole: bool = False) -> tuple[float, float, float]:
        """What is taken off every recall for storage, the mean and its bound, and the delta left for the rest.

        Nothing, where truth is that of the rows as given. whole: see `StorageCost.loss`.
        """
        if self.as_given or self.storage is None:
            return 0.0, 0.0, delta
        mean, most = self.storage.loss(k, delta * SHARE_OF_DELTA, whole)
        return mean, most, delta * (1.0 - SHARE_OF_DELTA)

    def flat_recall(self, k: int) -> float:
        """Mean recall@k of flat search: 1 where it is exact, else what storage leaves of the rows as given."""
        return 1.0 if self.storage is None or self.storage.exact(k) else float(self.storage.kept(k).mean())

    def frontier(self, k: int) -> Frontier | None:
        """The tested plans for this k, from the record on first use; None where the record is not deep enough."""
        if k > self.depth:
            return None
        with self._lock:
            if k not in self.frontiers:
                corpus, queries = self.runs()
                if k in CACHED_KS or not self.frontiers:
                    made = build_frontier(k, corpus, queries, self.costs, self.by_effort, self.dim)
                else:  # the plans that were worth testing for other k, on the record for this one
                    plans = [plan for other in self.frontiers.values() for plan in other.plans]
                    made = frontier_of(k, plans, corpus, queries)
                self.frontiers[k] = made
            return self.frontiers[k]

    def runs(self) -> tuple[Run, Run | None]:
        """The recorded runs; where the calibration was loaded they stay in their file, mapped."""
        if self.corpus is None:
            if self.folder is None:
                raise DamagedIndexError("this calibration has no record of its runs; build the index again")
            arrays = self.mapped or map_arrays(self.folder / ARRAYS_NAME)
            corpus = self._run(arrays, "corpus", self.n_corpus_rows)
            self.queries = self._run(arrays, "queries", self.n_queries) if self.n_queries else None
            self.corpus = corpus
        return self.corpus, self.queries

    def _run(self, arrays: Arrays, name: str, count: int) -> Run:
        assert self.folder is not None
        try:
            efforts = [int(effort) for effort in arrays[f"{name}/efforts"]]
            run = Run(
                queries=arrays[f"{name}/queries"],
                own_rows=arrays[f"{name}/own_rows"],
                truth=arrays[f"{name}/truth"],
                widths=tuple(int(width) for width in arrays[f"{name}/widths"]),
                candidates=arrays[f"{name}/candidates"],
                candidate_scores=arrays[f"{name}/candidate_scores"],
                places={effort: arrays[f"{name}/places/{effort}"] for effort in efforts},
                near_rows=arrays.get(f"{name}/near_rows"),
                near_scores=arrays.get(f"{name}/near_scores"),
                given=arrays.get(f"{name}/given"),
            )
            _check_shapes(run)
            _check_values(run, self, count)
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise DamagedIndexError(
                f"{self.folder / ARRAYS_NAME}: the run of {name} cannot be read ({error})"
            ) from error
        return run

    def run(self) -> Run:
        """The run that estimates rest on: of real queries where there are any."""
        corpus, queries = self.runs()
        return queries or corpus

    def save(self, folder: Path) -> None:
        """Write calibration.json and calibration.npz into the folder."""
        corpus, queries = self.runs()
        arrays = {**_run_arrays("corpus", corpus), **({} if queries is None else _run_arrays("queries", queries))}
        if self.storage is not None:
            arrays |= {"storage/found": self.storage.found, "storage/truth": self.storage.truth}
        for k, frontier in self.frontiers.items():
            arrays[f"frontier/{k}/corpus"] = frontier.corpus_hits
            if frontier.query_hits is not None:
                arrays[f"frontier/{k}/queries"] = frontier.query_hits
        write_arrays(folder / ARRAYS_NAME, arrays)
        plans = {str(k): [plan.to_json() for plan in frontier.plans] for k, frontier in self.frontiers.items()}
        record = {
            "format_version": FORMAT_VERSION,
            "by_effort": self.by_effort,
            "dim": self.dim,
            "date": self.date,
            "n_queries": self.n_queries,
            "n_corpus_rows": self.n_corpus_rows,
            "depth": self.depth,
            "kind": self.kind,
            "latencies": self.latencies,
            "left_out": self.left_out,
            "corpus_like": self.corpus_like,
            "as_given": self.as_given,
            "certificates": self.certificates,
            "plans": plans,
            "costs": self.costs.to_json(),
        }
        (folder / JSON_NAME).write_text(json.dumps(record, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """The calibration in the folder; its runs stay on disk until a k needs them.

        Raises DamagedIndexError naming the file that cannot be understood, FormatVersionError for another format.
        """
        try:
            record = read_json(folder / JSON_NAME)
            arrays = map_arrays(folder / ARRAYS_NAME)
            _check_format(folder / JSON_NAME, record.get("format_version", 2 if SINCE_2 in arrays else 1))
            check_record(record, folder / JSON_NAME)
            certifies = record["n_queries"] > 0
            frontiers = {
                int(k): Frontier(
                    int(k),
                    tuple(Plan.from_json(plan) for plan in plans),
                    arrays[f"frontier/{k}/corpus"],
                    arrays[f"frontier/{k}/queries"] if certifies else None,
                )
                for k, plans in record["plans"].items()
            }
            for frontier in frontiers.values():
                _check_hits(frontier, record)
            return cls(
                costs=Costs.from_json(record["costs"]),
                by_effort=bool(record["by_effort"]),
                dim=int(record["dim"]),
                date=str(record["date"]),
                n_queries=int(record["n_queries"]),
                n_corpus_rows=int(record["n_corpus_rows"]),
                depth=int(record["depth"]),
                latencies=list(record["latencies"]),
                left_out={str(why): int(count) for why, count in record.get("left_out", {}).items()},
                corpus_like=record.get("corpus_like") is True,  # once a share, of queries that equalled rows
                as_given=bool(record.get("as_given", False)),
                storage=_storage(arrays),
                certificates=list(record.get("certificates", ())),
                frontiers=frontiers,
                folder=folder,
                mapped=arrays,  # kept: another process may tune the index, which removes this file
            )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise DamagedIndexError(f"{folder / JSON_NAME}: not a calibration of this format ({error!r})") from error


def _check_format(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"format_version is {version!r}")
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"{path} is of calibration format {version}, this funnel reads {FORMAT_VERSION}: upgrade funnel-retrieval, "
            "or build the index again"
        )
    if version < FORMAT_VERSION:
        raise FormatVersionError(
            f"{path} is of calibration format {version}, written by an older funnel, and this one reads "
            f"{FORMAT_VERSION}: build the index again"
        )


def _check_hits(frontier: Frontier, record: Mapping[str, Any]) -> None:
    """ValueError where what plans found is not of as many plans and queries as there are."""
    expected = [("corpus", frontier.corpus_hits, record["n_corpus_rows"])]
    if frontier.query_hits is not None:
        expected.append(("queries", frontier.query_hits, record["n_queries"]))
    for name, found, count in expected:
        if found.dtype != np.uint8 or found.shape != (len(frontier.plans), count):
            raise ValueError(
                f"frontier/{frontier.k}/{name} is {found.dtype} {list(found.shape)}, expected uint8 "
                f"[{len(frontier.plans)}, {count}]"
            )
        if found.max(initial=0) > frontier.k:
            raise ValueError(f"frontier/{frontier.k}/{name} has {found.max()} of {frontier.k} found")


def _storage(arrays: Arrays) -> StorageCost | None:
    """What storing the rows costs, where it is on record. ValueError for arrays that do not fit each other."""
    if "storage/found" not in arrays:
        return None
    found, truth = arrays["storage/found"], arrays["storage/truth"]
    if found.ndim != 2 or found.shape != truth.shape or not found.size or {found.dtype, truth.dtype} != {FLOAT32}:
        raise ValueError(f"storage/found is {found.dtype} {list(found.shape)}, storage/truth {list(truth.shape)}")
    return StorageCost(found, truth)


def _run_arrays(name: str, run: Run) -> dict[str, npt.NDArray[Any]]:
    near = {}
    if run.near_rows is not None and run.near_scores is not None:
        near = {f"{name}/near_rows": run.near_rows, f"{name}/near_scores": run.near_scores}
    if run.given is not None:
        near[f"{name}/given"] = run.given
    return {
        **near,
        f"{name}/queries": run.queries,
        f"{name}/own_rows": run.own_rows,
        f"{name}/truth": run.truth,
        f"{name}/widths": np.array(run.widths),
        f"{name}/efforts": np.array(run.efforts),
        f"{name}/candidates": run.candidates,
        f"{name}/candidate_scores": run.candidate_scores,
        **{f"{name}/places/{effort}": run.places[effort] for effort in run.efforts},
    }


def _check_shapes(run: Run) -> None:
    """ValueError where the arrays of a run do not fit each other."""
    count, found, widths = len(run.queries), run.candidates.shape[-1:], (len(run.widths),)
    expected: dict[str, tuple[npt.NDArray[Any], str, tuple[int, ...]]] = {
        "queries": (run.queries, "float32", (count, *run.queries.shape[1:2])),
        "own_rows": (run.own_rows, "int64", (count,)),
        "truth": (run.truth, "float32", (count, *run.truth.shape[1:2])),
        "candidates": (run.candidates, "int32", (count, *found)),
        "candidate_scores": (run.candidate_scores, "float32", (count, *found, *widths)),
        **{f"places/{at}": (table, "uint16", (count, *table.shape[1:2])) for at, table in run.places.items()},
    }
    if (run.near_rows is None) != (run.near_scores is None):
        raise ValueError("near_rows and near_scores are kept together, and one of them is missing")
    if run.near_rows is not None and run.near_scores is not None:
        near = (count, *run.near_rows.shape[1:2])
        expected |= {"near_rows": (run.near_rows, "int32", near), "near_scores": (run.near_scores, "float32", near)}
    if run.given is not None:
        expected["given"] = (run.given, "float32", (count, *found))
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape or (name != "own_rows" and array.ndim < 2):
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected {dtype} {list(shape)}")


def _check_values(run: Run, calibration: Calibration, count: int) -> None:
    """ValueError where a run is not that of its calibration, or names what is not there."""
    if run.queries.shape != (count, calibration.dim) or run.truth.shape[1] < calibration.depth:
        raise ValueError(
            f"queries is {list(run.queries.shape)} and truth {list(run.truth.shape)}; expected [{count}, "
            f"{calibration.dim}], and [{count}, {calibration.depth}] or more"
        )
    if not run.places or set(run.places) - set(calibration.costs.coarse[BATCH_SIZES[0]]):
        raise ValueError(f"the efforts are {list(run.efforts)[:5]}, whose costs are not on record")
    planned = {plan.effort for one in calibration.frontiers.values() for plan in one.plans}
    if planned - set(run.places) - {0}:
        raise ValueError(f"plans have the efforts {sorted(planned)[:5]}, the run {list(run.efforts)[:5]}")
    if not run.widths or run.widths[-1] != calibration.dim or any(a >= b for a, b in pairwise(run.widths)):
        raise ValueError(f"the widths are {list(run.widths)[:5]}, expected rising ones up to {calibration.dim}")
    for name, rows in (("candidates", run.candidates), ("own_rows", run.own_rows), ("near_rows", run.near_rows)):
        if calibration.rows is None or rows is None or not rows.size:
            continue
        if rows.min() < -1 or rows.max() >= calibration.rows:
            raise ValueError(f"{name} names rows {rows.min()} to {rows.max()} of {calibration.rows}")
    most = run.candidates.shape[1]
    for effort, places in run.places.items():
        wrong = places[(places >= most) & (places != MISSING)]
        if len(wrong):
            raise ValueError(f"places/{effort} names the candidate {wrong[0]} of {most}")


def depth_of(rows: int) -> int:
    """The largest k that a record over so many rows can answer for (a held-out row is not its own neighbour)."""
    return max(1, min(LARGEST_K, rows - 1))


def truncations(plan: Plan, k: int) -> tuple[Plan, ...]:
    """Plans whose survivors are what `plan` would return for k if it were stopped after each of its steps.

    The k best in coarse order, then the k best at each stage's width, then the plan itself.
    """
    if not plan.reranked:  # one step
        return (plan,)
    stages = plan.stages
    stopped = (Plan(plan.effort, plan.shortlist, (*stages[:i], Stage(stages[i].width, k))) for i in range(len(stages)))
    return (Plan(plan.effort, k), *stopped, plan)


def step_recalls(calibration: Calibration, plan: Plan, k: int) -> tuple[float, ...]:
    """Mean recall@k on the calibration queries if a plan that is not flat were stopped after each of its steps.

    NaN where the plan's effort, its shortlist, its widths or so large a k are not on record.
    """
    unknown = (math.nan,) * plan.steps
    if k > calibration.depth:
        return unknown
    run = calibration.run()
    if plan.effort not in run.places or run.largest(plan.effort) < plan.shortlist:
        return unknown
    if any(stage.width not in run.widths for stage in plan.stages):
        return unknown
    found = hits(run, truncations(plan, k), k)
    return tuple(float(value) / k for value in found.mean(axis=1))


# Below this many rows flat search takes microseconds and there is nothing to plan.
SMALLEST_PLANNED = 256
