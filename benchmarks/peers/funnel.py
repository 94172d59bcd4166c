"""Measures the funnel as a user runs it, in a process of its own: `python -m benchmarks.peers.funnel JOB.json`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.measure import freed_resident_bytes, recall, times_us
from funnel import FunnelIndex

RECALLS = (0.90, 0.95, 0.99)


def _measure(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Build with nothing but the vectors, real queries and the memory allowed; then ask for recall."""
    started = time.perf_counter()
    FunnelIndex.build(job["rows"], folder, queries=job["known"], memory_mb=job["memory_mb"])
    build_seconds = time.perf_counter() - started
    before = freed_resident_bytes()
    index = FunnelIndex.open(folder)
    resident = freed_resident_bytes() - before
    return {
        "peer": "funnel" if job["memory_mb"] is None else f"funnel, {job['memory_mb']:.0f} MB",
        "memory_mb": job["memory_mb"],
        "coarse": f"{index.manifest.settings.coarse} over {index.manifest.coarse_width} dims",
        "build_seconds": build_seconds,
        "resident_bytes": resident,
        "points": [_point(index, target, job) for target in RECALLS],
    }


def _point(index: FunnelIndex, target: float, job: dict[str, Any]) -> dict[str, Any]:
    rows, queries, k = (
        np.load(job["rows"], mmap_mode="r", allow_pickle=False),
        np.load(job["queries"], allow_pickle=False),
        job["k"],
    )
    found = np.asarray(index.search_vectors(queries, k, recall=target).ids)
    return {
        "asked": target,
        "recall": recall(found, rows, queries, np.load(job["truth"], allow_pickle=False), k),
        "plan_batch": str(index.explain(k, recall=target, batch=len(queries)).plan),
        "plan_single": str(index.explain(k, recall=target).plan),
        **times_us(lambda asked: index.search_vectors(asked, k, recall=target), queries),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        print(
            json.dumps(_measure(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(temporary) / "index"))
        )
