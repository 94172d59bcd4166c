"""Measures the funnel as a user runs it, in a process of its own: `python -m funnel.peers.ours JOB.json`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from funnel.index import FunnelIndex
from funnel.peers.measure import file_bytes, freed_resident_bytes, one_pass_us, recall, serve

RECALLS = (0.90, 0.95, 0.99)


class MeasuredFunnel:
    """The funnel, built with nothing but the vectors, real queries and the memory allowed; then asked for recall."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.temporary = job, tempfile.TemporaryDirectory()
        self.rows = np.load(job["rows"], mmap_mode="r", allow_pickle=False)
        self.queries = np.load(job["queries"], allow_pickle=False)

    def build(self) -> dict[str, Any]:
        """What was chosen, how long it took, and what it holds once it is opened."""
        folder, limit = Path(self.temporary.name) / "index", self.job["memory_mb"]
        started = time.perf_counter()
        FunnelIndex.build(self.job["rows"], folder, queries=self.job["known"], memory_mb=limit, progress=False)
        seconds = time.perf_counter() - started
        before, self.files = freed_resident_bytes(), file_bytes()
        self.index = FunnelIndex.open(folder)
        return {
            "peer": "funnel" if limit is None else f"funnel, {limit:.0f} MB",
            "memory_mb": limit,
            "coarse": f"{self.index.manifest.settings.coarse} over {self.index.manifest.coarse_width} dims",
            "build_seconds": seconds,
            "resident_bytes": freed_resident_bytes() - before,
        }

    def memory(self) -> dict[str, Any]:
        """What was read of mapped files since it was opened."""
        return {"touched_bytes": max(0, file_bytes() - self.files)}

    def sweep(self, k: int) -> list[dict[str, Any]]:
        """At each recall that is asked for: what was found, by which plan, and one pass of the times."""
        truth = np.load(self.job["truth"].format(k=k), allow_pickle=False)
        points = []
        for asked in RECALLS:
            found = np.asarray(self.index.search_vectors(self.queries, k, recall=asked).ids)
            knob = {"recall": asked}
            point = {"asked": asked, "knob": knob, "recall": recall(found, self.rows, self.queries, truth, k)}
            explained = self.index.explain(k, recall=asked, batch=len(self.queries))
            promise = explained.certificate.to_json()
            point |= {"certified": promise["certified"], "lower_bound": promise["lower_bound"]}
            plans = {"plan_batch": str(explained.plan), "plan_single": str(self.index.explain(k, recall=asked).plan)}
            points.append({**point, **plans, **self.time(k, knob)})
        return points

    def time(self, k: int, knob: dict[str, float]) -> dict[str, float]:
        """One pass."""
        return one_pass_us(lambda asked: self.index.search_vectors(asked, k, recall=knob["recall"]), self.queries)


if __name__ == "__main__":
    serve(MeasuredFunnel(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
