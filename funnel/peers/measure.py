"""Measures one peer in a process of its own: build time, resident bytes, and recall against time for every knob.

Run as `python -m funnel.peers.measure JOB.json`; answers every line of JSON with one.
"""

from __future__ import annotations

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

from indexes import release_freed
from indexes.system import resident_bytes

__all__ = ["ANSWER", "file_bytes", "freed_resident_bytes", "one_pass_us", "recall", "serve"]

ANSWER = "answer: "  # begins the lines that are not a library's own
SINGLE, SCREENED_SINGLE = 200, 50  # single queries timed a pass
WARM = 64  # queries before a pass
ENOUGH = 0.9985  # knobs beyond this recall are not timed: no target lies there
TOLERANCE = 1e-6  # a row whose true score is this close to the k-th counts, as everywhere in the project


def recall(found: npt.NDArray[np.int64], rows: Any, queries: Any, truth: npt.NDArray[np.float32], k: int) -> float:
    """Mean tie-aware recall@k. truth: the k-th true score of each query [q]."""
    hits = 0
    for places, query, least in zip(found, queries, truth, strict=True):
        good = np.unique(places[places >= 0])
        hits += min(k, int((rows[good] @ query >= least - TOLERANCE).sum()))
    return hits / (k * len(queries))


def freed_resident_bytes() -> int:
    """Anonymous and shared memory of this process after giving back what was freed; mapped files apart."""
    gc.collect()
    release_freed()
    return resident_bytes("RssAnon", "RssShmem")


def file_bytes() -> int:
    """Pages of mapped files that lie in memory: of libraries, and of what was read of an index."""
    return resident_bytes("RssFile")


class MeasuredPeer:
    """One peer, built once and asked for what it does."""

    def __init__(self, job: dict[str, Any]) -> None:
        from funnel.peers.libraries import PEERS

        self.job, self.kind = job, PEERS[job["peer"]]
        self.rows = np.load(job["rows"], mmap_mode="r", allow_pickle=False)
        self.queries = np.load(job["queries"], allow_pickle=False)
        self.peer: Any = self.kind(self.rows.shape[1], job["threads"], job["ks"][0])

    def build(self) -> dict[str, Any]:
        """What it is, how long it takes to build, and what it holds."""
        before = freed_resident_bytes()
        given = np.array(self.rows)  # in memory, as a user hands it over
        started = time.perf_counter()
        self.peer.build(given, self.kind.builds[self.job["build"]])
        seconds = time.perf_counter() - started
        del given
        known = {"peer": self.job["peer"], "build": self.job["build"], "version": self.kind.version()}
        held, self.files = freed_resident_bytes() - before, file_bytes()
        return {**known, "build_seconds": seconds, "resident_bytes": held}

    def memory(self) -> dict[str, Any]:
        """What was read of mapped files since it was built."""
        return {"touched_bytes": max(0, file_bytes() - self.files)}

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
    """Microseconds a query, once: all in one call, and one query a call; after a few to warm."""
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
    serve(MeasuredPeer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    sys.stdout.flush()
    os._exit(0)  # some libraries do not end their threads
