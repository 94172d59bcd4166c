"""python -m benchmarks peers: one run, same data, same threads, in batch and one query at a time."""

from __future__ import annotations

import itertools
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common import RESULTS, Target, load_rows, report
from benchmarks.peers.frontier import around, time_at
from benchmarks.peers.libraries import ABSENT, PEERS
from benchmarks.peers.show import plot, table
from benchmarks.peers.worker import Worker
from benchmarks.wide import caption

__all__ = ["peers"]

TRUTH_ROWS = 65_536  # rows that truth is computed over at a time
FLAT, WHOLE = "faiss-flat", "symphonyqg"
SLOWEST = 2  # a knob that takes so many times the time of flat search ends a sweep
PASSES = 5
CLOCKS = ("us_batch", "us_single")


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path, exists=True), required=True, help="Corpus rows, .npy.")
@click.option("--queries", type=click.Path(path_type=Path, exists=True), required=True, help="Real queries, .npy.")
@click.option("--k", "ks", type=int, multiple=True, default=(10,), show_default=True, help="May be repeated.")
@click.option("--threads", default=2, show_default=True)
@click.option("--unseen", default=2_000, show_default=True, help="First queries, measured on; the others certify.")
@click.option("--rows", type=int, help="Only the first so many rows.")
@click.option("--memory-share", type=float, help="Also a funnel that holds at most this share of the float32 rows.")
@click.option("--only", help="Peers by name, separated by commas. [default: all]")
@click.option("--lean", is_flag=True, help="One build of each peer, its first.")
@click.option("--minutes", default=1e4, help="No build begins later, and none goes on. [default: none]")
@click.option("--passes", default=PASSES, show_default=True, help="In which the times that are shown are taken.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "peers", show_default=True)
def peers(
    vectors: Path,
    queries: Path,
    ks: tuple[int, ...],
    threads: int,
    unseen: int,
    rows: int | None,
    memory_share: float | None,
    only: str | None,
    lean: bool,
    minutes: float,
    passes: int,
    out: Path,
) -> None:
    """The funnel, asked for recall as a user asks, against each peer swept over its own knobs.

    Rows of any numeric type are scaled to unit length. A peer is compared at the recall that the funnel measured,
    between two points of its own curve. Every index stays in a process of its own; the points that are read off are
    timed in turns. Of a peer's builds only the best at some recall are: the others were swept once.

    Example: python -m benchmarks peers --vectors corpus.npy --queries queries.npy --k 10 --k 100 --lean --minutes 20
    """
    wanted = list(PEERS) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        raise click.ClickException(f"no peer is called {unknown[0]!r}; choose among {', '.join(PEERS)}")
    wanted = [FLAT, *(name for name in wanted if name != FLAT)]  # every ratio needs it
    os.environ["OMP_NUM_THREADS"] = str(threads)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        corpus, asked = load_rows(vectors)[:rows], load_rows(queries)
        raw, title = corpus.nbytes, caption(vectors, corpus)
        click.echo(title)
        job = _prepare(Path(temporary), corpus, asked[:unseen], asked[unseen:], ks, threads)
        dim = corpus.shape[1]
        del corpus
        limits = [None] if memory_share is None else [None, memory_share * raw / 1e6]
        field = Field(Path(temporary), job, time.monotonic() + 60 * minutes)
        try:
            funnels = [field.funnel(limit) for limit in limits]
            for name in wanted:
                field.peer(name, 1 if lean else None)
            field.time_in_turns(passes)
        finally:
            field.close()
    shared = {"caption": title, "dim": dim, "raw_bytes": raw, "threads": threads, "machine": machine()}
    shared["left_out"] = {**field.left_out, **(ABSENT if only is None else {})}
    targets, facts = [], {}
    for k in ks:
        one = {**shared, "k": k, "funnel": [_of_k(each, k) for each in funnels]}
        one["peers"] = [_of_k(record, k) for record in field.results]
        click.echo(f"\n{title}; k = {k}, {threads} threads, microseconds a query\n{table(one)}")
        plot(one, out / ("peers.png" if len(ks) == 1 else f"peers-{k}.png"))
        targets += _targets(one)
        facts[f"k={k}"] = one
    report(f"peers-{vectors.stem}", targets, facts, out)


class Field:
    """All that take part, built one after the other. left_out: those that could not, and why."""

    def __init__(self, folder: Path, job: dict[str, Any], until: float) -> None:
        self._folder, self._job, self._until = folder, job, until
        self._workers: list[Worker] = []
        self.results: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}

    def funnel(self, memory_mb: float | None) -> dict[str, Any]:
        """Build and sweep the funnel; gives its record."""
        return self._built("benchmarks.peers.funnel", {**self._job, "memory_mb": memory_mb}).record

    def peer(self, name: str, most: int | None) -> None:
        """Build and sweep a peer, with at most so many settings; those that are best nowhere end."""
        try:
            PEERS[name].version()
        except ImportError as error:
            self._leave_out(name, str(error))
            return
        own = []
        for build in list(PEERS[name].builds)[:most]:
            click.echo(f"{name}, {build} …", err=True)
            try:
                worker = self._built("benchmarks.peers.measure", {**self._job, "peer": name, "build": build})
            except click.ClickException as error:
                self._leave_out(f"{name}, {build}", error.message)
                continue
            own.append(worker)
            self.results.append(worker.record)
            if name == FLAT:  # a knob slower than flat search is of no use
                swept = next(iter(worker.record["swept"].values()))
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

    def _leave_out(self, name: str, why: str) -> None:
        self.left_out[name] = why
        click.echo(f"left out: {name} ({why})", err=True)

    def _minutes(self) -> float:
        return (self._until - time.monotonic()) / 60

    def _built(self, module: str, job: dict[str, Any]) -> Worker:
        if self._minutes() <= 0:
            raise click.ClickException("not begun: the time for builds was over")
        worker = Worker(module, job, self._folder)
        try:
            worker.record |= worker.ask("build", self._minutes())
            worker.record["swept"] = {str(k): worker.ask("sweep", k=k) for k in job["ks"]}
        except click.ClickException:
            worker.close()
            raise
        self._workers.append(worker)
        return worker

    def time_in_turns(self, passes: int) -> None:
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
        for number in tqdm(range(passes), desc=f"{len(chosen)} points in turns", unit="pass"):
            turns = list(zip(chosen, taken, strict=True))
            for (worker, k, point), times in turns if number % 2 == 0 else turns[::-1]:
                times.append(worker.ask("time", k=k, knob=point["knob"]))
        for (_, _, point), times in zip(chosen, taken, strict=True):
            point |= {clock: float(np.median([one[clock] for one in times])) for clock in CLOCKS}
            point["passes"] = len(times)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.close()


def _of_k(record: dict[str, Any], k: int) -> dict[str, Any]:
    """A record with its points of one k: those timed in turns; all that were swept, where none was."""
    swept = record["swept"][str(k)]
    timed = [point for point in swept if "passes" in point]
    return {**{key: value for key, value in record.items() if key != "swept"}, "points": timed or swept, "swept": swept}


def machine() -> dict[str, str]:
    """Processor and versions."""
    import torch

    from funnel.engine.timing import fingerprint

    return fingerprint(torch.device("cpu"))


def _prepare(
    folder: Path,
    corpus: npt.NDArray[np.float32],
    queries: npt.NDArray[np.float32],
    known: npt.NDArray[np.float32],
    ks: tuple[int, ...],
    threads: int,
) -> dict[str, Any]:
    """Rows, queries and for each k the k-th true score of each query, in files for the processes to come."""
    best = np.full((len(queries), max(ks)), -np.inf, dtype=np.float32)
    for start in range(0, len(corpus), TRUTH_ROWS):
        scores = np.concatenate([best, queries @ corpus[start : start + TRUTH_ROWS].T], axis=1)
        best = -np.partition(-scores, max(ks) - 1, axis=1)[:, : max(ks)]
    best = -np.sort(-best, axis=1)
    paths = {name: str(folder / f"{name}.npy") for name in ("rows", "queries", "known", "truth-{k}")}
    np.save(paths["rows"], corpus)
    np.save(paths["queries"], queries)
    np.save(paths["known"], known)
    truth = paths.pop("truth-{k}")
    for k in ks:
        np.save(truth.format(k=k), best[:, k - 1])
    return {**paths, "truth": truth, "ks": list(ks), "threads": threads, "slowest_us": 1e9}


# By the full width: at least so many times as fast as these, in batch, at the recalls named. "others": the best peer
# but SymphonyQG over whole rows. At 384: 200,000 rows.
ASKED: dict[int, dict[str, tuple[float, tuple[float, ...]]]] = {
    384: {WHOLE: (0.7, (0.95,)), FLAT: (22, (0.95,)), "hnswlib": (2.3, (0.95,))},
    1536: {"hnswlib": (6, (0.95, 0.99)), "others": (2, (0.95, 0.99))},
}
HELD = {384: 0.56}  # at most so much of what SymphonyQG holds over whole rows


def _targets(facts: dict[str, Any]) -> list[Target]:
    """The project's own targets, at every recall asked for."""
    free, *small = facts["funnel"]
    targets: list[Target] = []

    def at_least(name: str, time: float, than: float, bound: float) -> None:
        if math.isinf(time):
            click.echo(f"no peer to compare with: {name}")
        else:
            targets.append(Target.at_least(f"k = {facts['k']}, {name}", time / than, bound))

    for point in free["points"]:
        for name, (bound, recalls) in ASKED.get(facts["dim"], {}).items():
            if point["asked"] in recalls:
                at = 0.0 if name == FLAT else point["recall"]
                said = f"{point['asked']:.2f}: times {name} in batch"
                at_least(said, _of(facts, name, at), point["us_batch"], bound)
        targets.append(Target.at_least(f"k = {facts['k']}, recall, unseen", point["recall"], point["asked"]))
    whole = [record["resident_bytes"] for record in facts["peers"] if record["peer"] == WHOLE]
    if whole and facts["dim"] in HELD:
        share = free["resident_bytes"] / min(whole)
        targets.append(Target.at_most(f"share of what {WHOLE} holds", share, HELD[facts["dim"]]))
    for funnel in small:
        most = funnel["memory_mb"] * 1e6
        share = funnel["resident_bytes"] / facts["raw_bytes"]
        targets.append(Target.at_most("share of the float32 rows held", share, most / facts["raw_bytes"]))
        for point in funnel["points"]:
            at, asked, batch = point["recall"], f"{point['asked']:.2f} in {most / 1e6:.0f} MB", point["us_batch"]
            at_least(f"{asked}: times the best peer that fits", _best(facts, at, "us_batch", most), batch, 2)
            at_least(f"{asked}: times hnswlib without a cap", _of(facts, "hnswlib", at), batch, 1.5)
    return targets


def _best(facts: dict[str, Any], at: float, clock: str, most_bytes: float = math.inf) -> float:
    """The least time of any peer at this recall that holds no more than so many bytes."""
    fitting = [record for record in facts["peers"] if record["resident_bytes"] <= most_bytes]
    return min((time_at(record["points"], at, clock) for record in fitting), default=math.inf)


def _of(facts: dict[str, Any], name: str, at: float) -> float:
    named = [one for one in facts["peers"] if one["peer"] == name or (name == "others" and one["peer"] != WHOLE)]
    return min((time_at(record["points"], at, "us_batch") for record in named), default=math.inf)
