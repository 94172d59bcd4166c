"""A thirtieth of the memory: an index that holds 3.5 % of the rows' bytes at most, warm, cold and under a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, load_rows, report
from benchmarks.limited import MB, limited_group
from benchmarks.pages import forget
from benchmarks.wide import caption
from funnel import FLAT, FunnelIndex
from funnel.monitoring.audit import true_recalls
from funnel.peers.measure import one_pass_us
from indexes import FlatBaseline, VectorStore

__all__ = ["thirtieth"]

SHARE, RECALL, K = 0.035, 0.95, 10
UNSEEN, COLD, PASSES = 2_000, 300, 3
TIMES_FLAT = {384: 3.0, 1536: 5.0}  # in batch, warm
FILES = 0.5  # of the rows' file, that fits beside what is held under the hard limit

Float32 = npt.NDArray[np.float32]


@click.command()
@click.option(
    "--vectors", type=click.Path(exists=True, path_type=Path), required=True, help="Corpus rows, .npy of any type."
)
@click.option("--queries", type=click.Path(exists=True, path_type=Path), required=True, help=".npy of such rows.")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here, or use the one that is there.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def thirtieth(vectors: Path, queries: Path, index: Path | None, out: Path | None) -> None:
    """Build within 3.5 % of the rows as float32, and serve recall .95 of what is certified on other queries.

    Cold: pages of the index's files are let go before each query. The last row runs in a group of the kernel's memory
    controller that may hold what the index holds and half of the rows' file; it needs the right to make one.

    Example: python -m benchmarks thirtieth --vectors benchmarks/results/wide/corpus-1536.npy --queries
    benchmarks/results/wide/queries-1536.npy
    """
    rows, asked = load_rows(vectors), load_rows(queries)
    title, raw, dim = caption(vectors, rows), rows.nbytes, rows.shape[1]
    click.echo(title)
    with tempfile.TemporaryDirectory() as temporary:
        path, unseen = index or Path(temporary) / "index", asked[:UNSEEN]
        started = time.perf_counter()
        if not path.is_dir():
            FunnelIndex.build(rows, path, queries=asked[UNSEEN:], memory_mb=SHARE * raw / MB)
        built = time.perf_counter() - started
        facts: dict[str, Any] = {"caption": title, "raw_mb": raw / MB, "build_seconds": built}
        with FunnelIndex.open(path) as opened:
            facts |= _measured(opened, path, unseen)
            matrix = next(path.glob("segments/*/vectors.npy"))
            flat = FlatBaseline(VectorStore.open(matrix))
            facts["flat"] = _median(lambda some: flat.search(some, K), unseen)
        np.save(Path(temporary) / "unseen.npy", unseen)
        limit = facts["held_mb"] + FILES * matrix.stat().st_size / MB
        facts["limited"] = {"limit_mb": limit, **_under_limit(path, Path(temporary) / "unseen.npy", limit)}
    click.echo(json.dumps(facts, indent=1))
    targets = [
        Target.at_most("held, of the rows as float32", facts["held_mb"] * MB / raw, SHARE),
        Target.at_least("certified at .95, by a plan that is not flat", float(facts["certified"]), 1),
        Target.at_least("recall, unseen", facts["recall"], RECALL),
    ]
    if dim in TIMES_FLAT:
        gain = facts["flat"]["us_batch"] / facts["warm"]["us_batch"]
        targets.append(Target.at_least("times flat in batch, warm", gain, TIMES_FLAT[dim]))
    report(f"thirtieth-{vectors.stem}", targets, facts, out)


def _measured(opened: FunnelIndex, path: Path, unseen: Float32) -> dict[str, Any]:
    """Plan, certificate, recall, warm times, and single queries whose pages are on the disk."""
    explained = opened.explain(K, recall=RECALL, batch=len(unseen))
    found, true = (opened.search_vectors(unseen, K, **asked) for asked in ({"recall": RECALL}, {"plan": FLAT}))
    facts: dict[str, Any] = {
        "coarse": f"{opened.manifest.settings.coarse} over {opened.manifest.coarse_width}",
        "plan": str(explained.plan),
        "certified": explained.certificate.certified and not explained.plan.is_flat,
        "lower_bound": explained.certificate.lower_bound,
        "recall": float(true_recalls(np.asarray(found.scores), np.asarray(true.scores)).mean() / K),
        "warm": _median(lambda some: opened.search_vectors(some, K, recall=RECALL), unseen),
        "held_mb": (opened.info().held_bytes or 0) / MB,
    }
    times, reads = [], []
    for number in range(COLD):
        forget(path)
        before, started = _read_bytes(), time.perf_counter()
        opened.search_vectors(unseen[number : number + 1], K, recall=RECALL)
        times.append((time.perf_counter() - started) * 1e3)
        reads.append((_read_bytes() - before) / 1e3)
    p50, p95 = np.percentile(times, (50, 95))
    return {**facts, "cold": {"p50_ms": p50, "p95_ms": p95, "kb_read": float(np.mean(reads))}}


def _median(search: Any, unseen: Float32) -> dict[str, float]:
    passes = [one_pass_us(search, unseen) for _ in range(PASSES)]
    return {clock: float(np.median([one[clock] for one in passes])) for clock in passes[0]}


def _read_bytes() -> int:
    """What this process had read from disks so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def _under_limit(path: Path, unseen: Path, limit_mb: float) -> dict[str, Any]:
    with limited_group(int(limit_mb)) as group:
        command = [sys.executable, "-m", "benchmarks.thirtieth", str(path), str(unseen), group]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _child(path: str, unseen: str, group: str) -> None:
    """Import and warm the libraries, join the group, open the index and search."""
    asked: Float32 = np.load(unseen, allow_pickle=False)
    with FunnelIndex.open(path) as opened:  # libraries, threads and compiled loops are there before the limit
        for some in (asked[:1], asked[:256]):
            opened.search_vectors(some, K, recall=RECALL)
        forget(Path(path))
    (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    with FunnelIndex.open(path) as opened:
        times = []
        for query in asked[:COLD]:
            started = time.perf_counter()
            opened.search_vectors(query[None], K, recall=RECALL)
            times.append((time.perf_counter() - started) * 1e3)
        started = time.perf_counter()
        opened.search_vectors(asked, K, recall=RECALL)
        batch_us = (time.perf_counter() - started) / len(asked) * 1e6
    p50, p95 = np.percentile(times, (50, 95))
    print(json.dumps({"p50_ms": p50, "p95_ms": p95, "us_batch": batch_us}))


if __name__ == "__main__":
    _child(*sys.argv[1:4])
