"""Measures one peer in a process of its own: build time, resident bytes, and recall against time for every knob.

Run by the command as `python -m benchmarks.peers.measure JOB.json`; answers every line of JSON with one.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ANSWER", "freed_resident_bytes", "one_pass_us", "recall", "serve", "times_us"]

ANSWER = "answer: "  # begins the lines that are not a library's own
SINGLE, SCREENED_SINGLE = 200, 50  # single queries timed a pass
WARM = 64  # queries before a pass
SECONDS_A_POINT = 0.6
FEWEST_PASSES = 3
ENOUGH = 0.9985  # knobs beyond this recall are not timed: no target lies there
TOLERANCE = 1e-6  # a row whose true score is this close to the k-th counts, as everywhere in the project


def resident_bytes() -> int:
    """Anonymous and shared memory of this process; mapped files apart."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def recall(found: npt.NDArray[np.int64], rows: Any, queries: Any, truth: npt.NDArray[np.float32], k: int) -> float:
    """Mean tie-aware recall@k. truth: the k-th true score of each query [q]."""
    hits = 0
    for places, query, least in zip(found, queries, truth, strict=True):
        good = np.unique(places[places >= 0])
        hits += min(k, int((rows[good] @ query >= least - TOLERANCE).sum()))
    return hits / (k * len(queries))


def seconds(call: Callable[[int], object]) -> float:
    """Median seconds of call(0), call(1), …, after one to warm."""
    call(0)
    times: list[float] = []
    until = time.perf_counter() + SECONDS_A_POINT
    while len(times) < FEWEST_PASSES or time.perf_counter() < until:
        start = time.perf_counter()
        call(len(times))
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def times_us(search: Callable[[Any], object], queries: Any) -> dict[str, float]:
    """Microseconds a query: all of them in one call, and one query a call."""

    def singles(number: int) -> None:
        for i in range(SINGLE):
            at = (number * SINGLE + i) % len(queries)
            search(queries[at : at + 1])

    return {
        "us_batch": seconds(lambda _: search(queries)) / len(queries) * 1e6,
        "us_single": seconds(singles) / SINGLE * 1e6,
    }


def freed_resident_bytes() -> int:
    """`resident_bytes` after giving back what was freed."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


class Measured:
    """One peer, built once and asked for what it does."""

    def __init__(self, job: dict[str, Any]) -> None:
        from benchmarks.peers.libraries import PEERS

        self.job, self.kind = job, PEERS[job["peer"]]
        self.rows = np.load(job["rows"], mmap_mode="r", allow_pickle=False)
        self.queries = np.load(job["queries"], allow_pickle=False)
        self.peer: Any = self.kind(self.rows.shape[1], job["threads"], job["ks"][0])

    def build(self) -> dict[str, Any]:
        """What it is, how long it takes to build, and what it holds."""
        before = resident_bytes()
        given = np.array(self.rows)  # in memory, as a user hands it over
        started = time.perf_counter()
        self.peer.build(given, self.kind.builds[self.job["build"]])
        seconds = time.perf_counter() - started
        del given
        known = {"peer": self.job["peer"], "build": self.job["build"], "version": self.kind.version()}
        return {**known, "build_seconds": seconds, "resident_bytes": freed_resident_bytes() - before}

    def sweep(self, k: int) -> list[dict[str, Any]]:
        """Recall and one pass of the times at every knob that can matter."""
        self.peer.k = k
        points: list[dict[str, Any]] = []
        truth = np.load(self.job["truth"].format(k=k), allow_pickle=False)
        for knob in self.peer.knobs(len(self.rows)):
            if any(_settled(point, knob, self.job["slowest_us"]) for point in points):
                continue
            found = self.peer.search(self.queries, knob)
            point = {"knob": dict(knob), "recall": recall(found, self.rows, self.queries, truth, k)}
            points.append({**point, **self.time(k, knob, SCREENED_SINGLE)})
        return points

    def time(self, k: int, knob: dict[str, Any], single: int = SINGLE) -> dict[str, float]:
        """One pass of all queries in one call, and of some one by one."""
        self.peer.k = k
        return one_pass_us(lambda asked: self.peer.search(asked, knob), self.queries, single)


def one_pass_us(search: Callable[[Any], object], queries: Any, single: int = SINGLE) -> dict[str, float]:
    """As `times_us`, once, after a few queries to warm: for passes that are taken in turns."""
    search(queries[:WARM])
    started = time.perf_counter()
    search(queries)
    batch = (time.perf_counter() - started) / len(queries) * 1e6
    search(queries[:1])
    times = []
    for number in range(min(single, len(queries))):
        started = time.perf_counter()
        search(queries[number : number + 1])
        times.append(time.perf_counter() - started)
    return {"us_batch": batch, "us_single": float(np.median(times)) * 1e6}


def serve(measured: Any) -> None:
    """Do what comes in, a line of JSON each, until no more comes: {"do": "time", "k": 10, "knob": {…}}."""
    for line in sys.stdin:
        asked = json.loads(line)
        answer = getattr(measured, asked.pop("do"))(**asked)
        print(ANSWER + json.dumps(answer), flush=True)  # libraries print to the same place


def _settled(point: dict[str, Any], knob: Any, slowest_us: float) -> bool:
    """Whether a knob that is larger in everything than a measured one can no longer matter."""
    larger = all(knob[name] >= value for name, value in point["knob"].items() if name != "threshold")
    done = point["recall"] >= ENOUGH or point["us_batch"] > slowest_us
    return larger and done and "threshold" not in knob and bool(knob)


if __name__ == "__main__":
    serve(Measured(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    sys.stdout.flush()
    os._exit(0)  # some libraries do not end their threads
