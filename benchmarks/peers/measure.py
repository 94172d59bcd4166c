"""Measures one peer in a process of its own: build time, resident bytes, and recall against time for every knob.

Run by the command as `python -m benchmarks.peers.measure JOB.json`; prints one line of JSON.
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

__all__ = ["freed_resident_bytes", "recall", "times_us"]

SINGLE = 200  # single queries timed a pass
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


def _measure(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.peers.libraries import PEERS

    rows = np.load(job["rows"], mmap_mode="r", allow_pickle=False)
    queries, truth = np.load(job["queries"], allow_pickle=False), np.load(job["truth"], allow_pickle=False)
    kind = PEERS[job["peer"]]
    peer = kind(rows.shape[1], job["threads"], job["k"])
    before = resident_bytes()
    given = np.array(rows)  # in memory, as a user hands it over
    started = time.perf_counter()
    peer.build(given, kind.builds[job["build"]])
    build_seconds = time.perf_counter() - started
    del given
    resident = freed_resident_bytes() - before
    points: list[dict[str, Any]] = []
    for knob in peer.knobs(len(rows)):
        if not any(_settled(point, knob, job["slowest_us"]) for point in points):
            points.append(_point(peer, knob, rows, queries, truth, job["k"]))
    return {
        "peer": job["peer"],
        "build": job["build"],
        "version": kind.version(),
        "build_seconds": build_seconds,
        "resident_bytes": resident,
        "points": points,
    }


def _settled(point: dict[str, Any], knob: Any, slowest_us: float) -> bool:
    """Whether a knob that is larger in everything than a measured one can no longer matter."""
    larger = all(knob[name] >= value for name, value in point["knob"].items() if name != "threshold")
    done = point["recall"] >= ENOUGH or point["us_batch"] > slowest_us
    return larger and done and "threshold" not in knob and bool(knob)


def _point(peer: Any, knob: Any, rows: Any, queries: Any, truth: Any, k: int) -> dict[str, Any]:
    return {
        "knob": dict(knob),
        "recall": recall(peer.search(queries, knob), rows, queries, truth, k),
        **times_us(lambda asked: peer.search(asked, knob), queries),
    }


if __name__ == "__main__":
    record = _measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(record))
    sys.stdout.flush()
    os._exit(0)  # some libraries do not end their threads
