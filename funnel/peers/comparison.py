"""The funnel beside other libraries on the same vectors and threads, each index in a process of its own."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from funnel.checks import checked_whole
from funnel.data.corpus import open_corpus
from funnel.data.queries import open_queries
from funnel.engine.timing import fingerprint
from funnel.errors import FunnelError, InputError, MissingPackageError
from funnel.peers.curve import around, time_at
from funnel.peers.libraries import ABSENT, PEERS
from funnel.peers.table import plot, table
from funnel.peers.worker import Worker
from funnel.plainjson import plain_json
from funnel.progress import Progress

__all__ = ["FLAT", "Comparison", "compare", "peers_named"]

ROWS_AT_A_TIME = 65_536  # read, and compared with all queries for the truth
FLAT = "faiss-flat"  # every ratio needs it, and what is slower ends a sweep
SLOWEST = 2  # a knob that takes so many times the time of flat search ends a sweep
PASSES = 5
MOST_UNSEEN = 2_000
CLOCKS = ("us_batch", "us_single")
RECORDS = "records"  # the folder of what was measured of each, by which a run goes on

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """How to compare.

    Attributes:
        peers: names of `PEERS`; those that are not installed are named in the result.
        ks: how many neighbours are asked for.
        threads: of every library.
        unseen: how many of the queries are measured on; the others certify, and train. None: half, at most 2,000.
        memory_mb: what further funnels may hold, each in megabytes.
        lean: one build of each peer, its first.
        minutes: no build begins later, and none goes on.
        passes: in which the times that are shown are taken.
        progress: say on stderr what is being built.
    """

    peers: Sequence[str] = tuple(PEERS)
    ks: Sequence[int] = (10,)
    threads: int = 2
    unseen: int | None = None
    memory_mb: Sequence[float] = ()
    lean: bool = False
    minutes: float = 10_000.0
    passes: int = PASSES
    progress: bool = True


def peers_named(names: Sequence[str]) -> list[str]:
    """The peers of names, or of the libraries that begin theirs: "faiss" is all of FAISS. InputError for another."""
    found: list[str] = []
    for name in names:
        mine = [name] if name in PEERS else [peer for peer in PEERS if peer.startswith(f"{name}-")]
        if not mine:
            raise InputError(f"no library is called {name!r} here; choose among {', '.join(PEERS)}")
        found += [peer for peer in mine if peer not in found]
    return found


def compare(vectors: str | Path, queries: str | Path, out: Path, how: Comparison) -> list[dict[str, Any]]:
    """Build the funnel and each peer, sweep their knobs, and take the times that are shown in turns.

    Rows of any numeric type are scaled to unit length. The funnel is asked for recall .9, .95 and .99; a peer is read
    off at the recall that the funnel measured, between two points of its own curve. Gives a record for each k and
    writes `comparison.json`, `comparison.md` and, where matplotlib is installed, `comparison-K.png` into `out`. What
    was measured of a peer stands in `out/records`, and is not measured again by a run of the same data.

    Raises InputError for vectors or queries that cannot be used.
    """
    for k in how.ks:
        checked_whole("k", k)
    corpus, asked = _rows(vectors), open_queries(queries).vectors
    if asked is None or asked.shape[1] != corpus.shape[1]:
        raise InputError(f"{queries} holds no vectors of {corpus.shape[1]} dims, as {vectors} does; give such as .npy")
    unseen = min(MOST_UNSEEN, len(asked) // 2) if how.unseen is None else how.unseen
    if not 0 < unseen < len(asked) or len(corpus) <= max(how.ks):
        raise InputError(
            f"{len(asked):,} queries and {len(corpus):,} rows are too few to measure on {unseen:,} queries at k = "
            f"{max(how.ks)} and certify on others; give more"
        )
    records = out / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        job = _prepared(Path(temporary), corpus, asked[:unseen], asked[unseen:], how)
        rows, dim = corpus.shape
        del corpus
        field = Field(Path(temporary), records, job, how)
        try:
            funnels = [field.funnel(limit) for limit in (None, *how.memory_mb)]
            for name in (FLAT, *(name for name in how.peers if name != FLAT)):
                field.peer(name)
            field.time_in_turns()
        finally:
            field.close()
    shared = {"vectors": str(vectors), "rows": rows, "dim": dim, "raw_bytes": 4 * rows * dim, "unseen": unseen}
    shared |= {"threads": how.threads, "machine": job["machine"]}
    shared["left_out"] = {**field.left_out, **(ABSENT if set(how.peers) == set(PEERS) else {})}
    found = [
        {**shared, "k": k, "funnel": _of_k(funnels, k), "peers": _of_k(field.results, k)} for k in map(int, how.ks)
    ]
    (out / "comparison.json").write_text(plain_json(found, indent=1) + "\n", encoding="utf-8")
    (out / "comparison.md").write_text("\n\n".join(map(table, found)) + "\n", encoding="utf-8")
    try:
        for one in found:
            plot(one, out / f"comparison-{one['k']}.png")
    except MissingPackageError as error:
        if how.progress:
            click.echo(f"no picture: {error}", err=True)
    return found


def _rows(path: str | Path) -> Float32:
    opened = open_corpus(str(path))
    if opened.kind != "vectors":
        raise InputError(f"{path} holds texts; a comparison is over vectors, such as a .npy file [n, d]")
    return np.concatenate(list(opened.vectors(ROWS_AT_A_TIME)))


class Field:
    """All that take part, built one after the other. left_out: those that could not, and why."""

    def __init__(self, folder: Path, records: Path, job: dict[str, Any], how: Comparison) -> None:
        self._folder, self._records, self._job, self._how = folder, records, job, how
        self._until = time.monotonic() + 60 * how.minutes
        self._workers: list[Worker] = []
        self.results: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    def funnel(self, memory_mb: float | None) -> dict[str, Any]:
        """Build and sweep the funnel; gives its record."""
        self._say("funnel" if memory_mb is None else f"funnel in {memory_mb:,.0f} MB")
        return self._built("funnel.peers.ours", {**self._job, "memory_mb": memory_mb}).record

    def peer(self, name: str) -> None:
        """Build and sweep a peer, with all its settings or the first; those that are best nowhere end."""
        try:
            PEERS[name].version()
        except ImportError as error:
            self.left_out[name] = f"not installed ({error})"
            return
        own = []
        for build in list(PEERS[name].builds)[: 1 if self._how.lean else None]:
            known = self._records / f"{name}-{build}.json".replace(" ", "-")
            record = _read(known, self._job["key"])
            if record is not None:
                self._say(f"{name}, {build}: measured before, in {known}")
            else:
                self._say(f"{name}, {build}")
                try:
                    worker = self._built("funnel.peers.measure", {**self._job, "peer": name, "build": build})
                except FunnelError as error:
                    self.left_out[f"{name}, {build}"] = str(error)
                    continue
                own.append(worker)
                record = worker.record | {"key": self._job["key"]}
                known.write_text(json.dumps(record), encoding="utf-8")
                record = worker.record
            self.results.append(record)
            if name == FLAT:  # a knob slower than flat search is of no use
                swept = next(iter(record["swept"].values()))
                self._job["slowest_us"] = SLOWEST * min(point["us_batch"] for point in swept)
        for worker in own:
            if not any(self._best(worker, own, *where) for where in itertools.product(self._job["ks"], CLOCKS)):
                self._workers.remove(worker)
                worker.close()

    def _best(self, worker: Worker, own: list[Worker], k: int, clock: str) -> bool:
        """Whether it takes the least of a peer's builds at a recall that the funnel measured."""
        for point in self._workers[0].record["swept"][str(k)]:
            times = [time_at(one.record["swept"][str(k)], point["recall"], clock) for one in own]
            if math.isfinite(min(times)) and own[times.index(min(times))] is worker:
                return True
        return False

    def _say(self, what: str) -> None:
        if self._how.progress:
            click.echo(f"{what} …", err=True)

    def _built(self, module: str, job: dict[str, Any]) -> Worker:
        minutes = (self._until - time.monotonic()) / 60
        if minutes <= 0:
            raise FunnelError("not begun: the time for builds was over")
        worker = Worker(module, job, self._folder)
        try:
            worker.record |= worker.ask("build", minutes)
            worker.record["swept"] = {str(k): worker.ask("sweep", k=k) for k in job["ks"]}
        except FunnelError:
            worker.close()
            raise
        self._workers.append(worker)
        return worker

    def time_in_turns(self) -> None:
        """The points that are read off, of every index that is left; medians take the place of the times swept."""
        funnel = self._workers[0].record["swept"]
        chosen: list[tuple[Worker, int, dict[str, Any]]] = []
        for worker, k in itertools.product(self._workers, self._job["ks"]):
            points = worker.record["swept"][str(k)]
            if "memory_mb" not in worker.record:
                read = [around(points, one["recall"], clock) for one in funnel[str(k)] for clock in CLOCKS]
                points = list({id(point): point for point in itertools.chain(*read)}.values())
            chosen += [(worker, k, point) for point in points]
        taken: list[list[dict[str, float]]] = [[] for _ in chosen]
        turns = list(zip(chosen, taken, strict=True))
        said = f"{len(chosen)} points in turns"
        for number in Progress(range(self._how.passes), desc=said, unit="passes", disable=not self._how.progress):
            for (worker, k, point), times in turns if number % 2 == 0 else turns[::-1]:
                times.append(worker.ask("time", k=k, knob=point["knob"]))
        for (_, _, point), times in turns:
            point |= {clock: float(np.median([one[clock] for one in times])) for clock in CLOCKS}
            point["passes"] = len(times)
        for worker in self._workers:
            worker.record |= worker.ask("memory")

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """A record that an earlier run of the same data left; None where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def _of_k(records: Sequence[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """Records with their points of one k: those timed in turns; all that were swept, where none was."""
    found = []
    for record in records:
        swept = record["swept"][str(k)]
        timed = [point for point in swept if "passes" in point]
        kept = {key: value for key, value in record.items() if key not in ("swept", "key")}
        found.append({**kept, "points": timed or swept, "swept": swept})
    return found


def _prepared(folder: Path, corpus: Float32, queries: Float32, known: Float32, how: Comparison) -> dict[str, Any]:
    """Rows, queries and for each k the k-th true score of each query, in files for the processes to come."""
    most = max(how.ks)
    best = np.full((len(queries), most), -np.inf, dtype=np.float32)
    for start in range(0, len(corpus), ROWS_AT_A_TIME):
        scores = np.concatenate([best, queries @ corpus[start : start + ROWS_AT_A_TIME].T], axis=1)
        best = -np.partition(-scores, most - 1, axis=1)[:, :most]
    best = -np.sort(-best, axis=1)
    paths = {name: str(folder / f"{name}.npy") for name in ("rows", "queries", "known", "truth-{k}")}
    machine = fingerprint(torch.device("cpu"))
    digest = hashlib.sha256(repr((list(how.ks), how.threads, machine)).encode())
    for name, array in (("rows", corpus), ("queries", queries), ("known", known)):
        np.save(paths[name], array)
        digest.update(np.ascontiguousarray(array).data)
    truth = paths.pop("truth-{k}")
    for k in how.ks:
        np.save(truth.format(k=k), best[:, k - 1])
    job = {"truth": truth, "ks": list(how.ks), "threads": how.threads, "slowest_us": 1e9}
    return {**paths, **job, "machine": machine, "key": digest.hexdigest()}
