"""A calibration as one thing: its runs, costs and frontiers, kept on disk as calibration.json and calibration.npz."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from funnel.errors import DamagedIndexError, FormatVersionError, StorageError, of_environment, reason
from funnel.plan import Plan, Stage
from funnel.planning.costs import Costs, Ms, Positive
from funnel.planning.frontier import Frontier, build_frontier, frontier_of
from funnel.planning.run import LARGEST_K, MISSING, SHARE_OF_DELTA, Run, StorageCost, hits
from indexes.system import map_file, npy_header

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
# Out of zipfile and of looking into members; NotImplementedError is a RuntimeError, and OSError is raised for a place
# in the file that cannot be gone to.
UNREADABLE = (
    *(ValueError, EOFError, struct.error, zipfile.BadZipFile, RuntimeError),
    *(MemoryError, OverflowError, TypeError, LookupError, OSError),
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

    What is written into an array does not reach the file. Members that are not aligned, as np.savez leaves them, are
    read into memory instead.

    Raises DamagedIndexError for a file that is not an .npz of plain arrays, none of them compressed.
    """
    with path.open("rb") as file:
        try:
            archive = zipfile.ZipFile(file)
            _, whole = map_file(file)
            members = archive.infolist()
            return {member.filename.removesuffix(SUFFIX): _array(archive, member, whole) for member in members}
        except UNREADABLE as error:
            if of_environment(error):
                raise StorageError(f"{path} cannot be read now: {reason(error)}") from error
            raise DamagedIndexError(f"{path}: not a readable array file ({error})") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, whole: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    with archive.open(member) as opened:
        shape, fortran, dtype = npy_header(opened)
        header = opened.tell()
    name, extra = LOCAL_HEADER.unpack_from(whole.data, member.header_offset)
    start = member.header_offset + LOCAL_HEADER.size + name + extra + header
    count = math.prod(shape)
    if member.file_size != header + count * dtype.itemsize:
        raise ValueError(f"{member.filename} has {member.file_size} bytes, its header promises {dtype} {list(shape)}")
    array = np.frombuffer(whole, dtype, count, start) if count else np.empty(0, dtype)
    return (array.copy() if start % dtype.alignment else array).reshape(shape, order="F" if fortran else "C")


LONGEST_SAID = 300  # characters of a message: values in it may be long

Name = Annotated[str, msgspec.Meta(max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
K = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_K)]


class PlanRecord(msgspec.Struct):
    """Of `Plan.to_json`."""

    effort: Count
    shortlist: Count
    stages: list[tuple[Positive, Positive]]


@dataclass(kw_only=True)
class Measured:
    """What calibration.json keeps as it is; see `Calibration`."""

    costs: Costs
    by_effort: bool
    dim: Positive
    date: Name
    n_queries: Count
    n_corpus_rows: Positive
    depth: K
    latencies: list[Any] = field(default_factory=list)
    left_out: dict[Name, Count] = field(default_factory=dict)
    corpus_like: bool = False
    as_given: bool = False
    certificates: list[dict[str, Any]] = field(default_factory=list)


@dataclass(kw_only=True)
class Record(Measured):
    """calibration.json."""

    kind: str
    latencies: list[tuple[PlanRecord, Positive, Positive, Ms, Ms]]
    plans: dict[K, list[PlanRecord]]
    format_version: Annotated[int, msgspec.Meta(ge=1)] | None = None

    def __post_init__(self) -> None:
        self.costs.check()
        known = next(iter(self.costs.coarse.values()))
        for plan in (plan for plans in self.plans.values() for plan in plans):
            if plan.shortlist and plan.effort not in known:
                raise ValueError(f"a plan has the effort {plan.effort}, whose costs are not on record")


def read_json(path: Path) -> dict[str, Any]:
    """The fields of a JSON object. Raises DamagedIndexError naming the file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, ValueError, RecursionError) as error:
        if of_environment(error):
            raise StorageError(f"{path} cannot be read now: {reason(error)}") from error
        raise DamagedIndexError(f"{path} cannot be read as a JSON object ({error}); build the index again") from error


def check_record(found: dict[str, Any], path: Path) -> Record:
    """calibration.json as it stands there. Raises DamagedIndexError naming file and field."""
    like = found.get("corpus_like") is True  # once a share, of queries that equalled rows
    try:
        return msgspec.convert(found | {"corpus_like": like}, Record, str_keys=True)
    except (ValueError, RecursionError) as error:  # msgspec.ValidationError is a ValueError
        said = str(error)[:LONGEST_SAID] or type(error).__name__
        raise DamagedIndexError(f"{path}: not a calibration of this format: {said}; build the index again") from error


MOST_KS = 16  # other k whose frontiers are remembered
CACHED_KS = (1, 10, 100)  # frontiers worked out at build; any other k up to 100 on first use
REAL = "real queries"
UNCERTIFIED = "uncertified: calibrated on corpus rows"
JSON_NAME, ARRAYS_NAME = "calibration.json", "calibration.npz"
# Of these two files. 1: scores and shortlists were kept for every effort apart. 2: candidates, each scored once, and
# places among them. Neither stood in the file before it was named there: SINCE_2 tells them apart.
FORMAT_VERSION = 2
SINCE_2 = "corpus/candidates"


@dataclass(kw_only=True)
class Calibration(Measured):
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

    updates: str = ""
    void: str = ""
    added: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = field(default=None, repr=False)
    storage: StorageCost | None = field(default=None, repr=False)
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
                self.keep(k, made)
            return self.frontiers[k]

    def keep(self, k: int, made: Frontier) -> None:
        """Remember what was worked out for a k, and forget the oldest: each takes plans times queries bytes."""
        self.frontiers[k] = made
        others = [known for known in self.frontiers if known not in CACHED_KS]
        if len(others) > MOST_KS:
            del self.frontiers[others[0]]

    def runs(self) -> tuple[Run, Run | None]:
        """The recorded runs; where the calibration was loaded they stay in their file, mapped."""
        if self.corpus is None:
            if self.folder is None:
                raise DamagedIndexError("this calibration has no record of its runs; build the index again")
            arrays = self.mapped or map_arrays(self.folder / ARRAYS_NAME)
            try:
                corpus = self._run(arrays, "corpus", self.n_corpus_rows)
                self.queries = self._run(arrays, "queries", self.n_queries) if self.n_queries else None
            except (KeyError, ValueError, TypeError, OverflowError) as error:
                raise DamagedIndexError(f"{self.folder / ARRAYS_NAME}: a run cannot be read ({error})") from error
            self.corpus = corpus
        return self.corpus, self.queries

    def _run(self, arrays: Arrays, name: str, count: int) -> Run:
        """A run on record. KeyError for what is missing, ValueError for what does not fit."""

        def take(part: str, dtype: str, *shape: int | None) -> npt.NDArray[Any]:
            return _taken(arrays, f"{name}/{part}", dtype, count, *shape)

        widths = tuple(int(width) for width in _taken(arrays, f"{name}/widths", "int64", None))
        candidates = take("candidates", "int32", None)
        found, near = candidates.shape[1], f"{name}/near_rows" in arrays
        near_rows = take("near_rows", "int32", None) if near else None
        run = Run(
            queries=take("queries", "float32", self.dim),
            own_rows=take("own_rows", "int64"),
            truth=take("truth", "float32", None),
            widths=widths,
            candidates=candidates,
            candidate_scores=take("candidate_scores", "float32", found, len(widths)),
            places={
                int(effort): take(f"places/{effort}", "uint16", None)
                for effort in _taken(arrays, f"{name}/efforts", "int64", None)
            },
            near_rows=near_rows,
            near_scores=None if near_rows is None else take("near_scores", "float32", near_rows.shape[1]),
            given=take("given", "float32", found) if f"{name}/given" in arrays else None,
        )
        self._check(run, name)
        return run

    def _check(self, run: Run, name: str) -> None:
        """ValueError where a run is not that of this calibration, or names what is not there."""
        planned = {plan.effort for one in self.frontiers.values() for plan in one.plans} - {0}
        known, rows = set(run.places), np.inf if self.rows is None else self.rows
        named = [part for part in (run.candidates, run.own_rows, run.near_rows) if part is not None and part.size]
        found = (places[places != MISSING].max(initial=0) for places in run.places.values() if run.candidates.size)
        wrong = {
            f"truth is no deeper than {run.truth.shape[1]}": run.truth.shape[1] < self.depth,
            f"costs are not on record of all efforts {run.efforts[:5]}": not known <= set(self.costs.coarse[1]),
            f"plans have efforts {sorted(planned)[:5]} and the run {run.efforts[:5]}": not known or planned - known,
            f"the widths are {run.widths[:5]}": run.widths != (*sorted({*run.widths} - {self.dim}), self.dim),
            f"it names rows of more than {rows}": any(part.min() < -1 or part.max() >= rows for part in named),
            "it has places of more than its candidates": any(place >= run.candidates.shape[1] for place in found),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise ValueError(f"{name}: {what}")

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
        kept = {one.name: getattr(self, one.name) for one in fields(Measured)}
        record = {"format_version": FORMAT_VERSION, **kept, "kind": self.kind, "plans": plans}
        (folder / JSON_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        """The calibration in the folder; its runs stay on disk until a k needs them.

        Raises DamagedIndexError naming the file that cannot be understood, FormatVersionError for another format.
        """
        path = folder / JSON_NAME
        found, arrays = read_json(path), map_arrays(folder / ARRAYS_NAME)
        _check_format(path, found.get("format_version", 2 if SINCE_2 in arrays else 1))
        record = check_record(found, path)
        try:
            frontiers = {k: _frontier(k, plans, arrays, record) for k, plans in record.plans.items()}
            storage = _storage(arrays)
        except (ValueError, LookupError) as error:
            raise DamagedIndexError(f"{path}: not a calibration of this format ({error!r})") from error
        kept = {one.name: getattr(record, one.name) for one in fields(Measured)} | {"latencies": found["latencies"]}
        # The arrays are kept: another process may tune the index, which removes this file.
        return cls(**kept, storage=storage, frontiers=frontiers, folder=folder, mapped=arrays)


def _check_format(path: Path, version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DamagedIndexError(
            f"{path}: not a calibration of this format: format_version is {version!r}; build the index again"
        )
    if version != FORMAT_VERSION:
        by, do = ("a newer", "upgrade funnel-retrieval, or ") if version > FORMAT_VERSION else ("an older", "")
        raise FormatVersionError(
            f"{path} is of calibration format {version}, written by {by} funnel, and this one reads {FORMAT_VERSION}: "
            f"{do}build the index again"
        )


def _taken(arrays: Arrays, name: str, dtype: str, *shape: int | None) -> npt.NDArray[Any]:
    """An array of the record. KeyError where there is none, ValueError for another type or shape; None: any."""
    array = arrays[name]
    sides = zip(array.shape, shape, strict=False)
    if array.dtype != dtype or array.ndim != len(shape) or any(side not in (None, is_) for is_, side in sides):
        expected = f"{dtype} {['any' if side is None else side for side in shape]}"
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected {expected}")
    return array


def _frontier(k: int, plans: Sequence[PlanRecord], arrays: Arrays, record: Record) -> Frontier:
    counts = {"corpus": record.n_corpus_rows} | ({"queries": record.n_queries} if record.n_queries else {})
    found = {name: _taken(arrays, f"frontier/{k}/{name}", "uint8", len(plans), n) for name, n in counts.items()}
    most = max(int(hits.max(initial=0)) for hits in found.values())
    if most > k:
        raise ValueError(f"frontier/{k} has {most} of {k} found")
    made = tuple(Plan(one.effort, one.shortlist, tuple(Stage(*stage) for stage in one.stages)) for one in plans)
    return Frontier(k, made, found["corpus"], found.get("queries"))


def _storage(arrays: Arrays) -> StorageCost | None:
    """What storing the rows costs, where it is on record."""
    if "storage/found" not in arrays:
        return None
    found = _taken(arrays, "storage/found", "float32", None, None)
    if not found.size:
        raise ValueError("storage/found is empty")
    return StorageCost(found, _taken(arrays, "storage/truth", "float32", *found.shape))


def _run_arrays(name: str, run: Run) -> dict[str, npt.NDArray[Any]]:
    parts = {
        "queries": run.queries,
        "own_rows": run.own_rows,
        "truth": run.truth,
        "widths": np.array(run.widths),
        "efforts": np.array(run.efforts),
        "candidates": run.candidates,
        "candidate_scores": run.candidate_scores,
        "near_rows": run.near_rows,
        "near_scores": run.near_scores,
        "given": run.given,
        **{f"places/{effort}": run.places[effort] for effort in run.efforts},
    }
    return {f"{name}/{part}": array for part, array in parts.items() if array is not None}


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
    run = calibration.run()
    if k > calibration.depth or not run.follows(plan):
        return (math.nan,) * plan.steps
    found = hits(run, truncations(plan, k), k)
    return tuple(float(value) / k for value in found.mean(axis=1))


# Below this many rows flat search takes microseconds and there is nothing to plan.
SMALLEST_PLANNED = 256
