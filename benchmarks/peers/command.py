"""python -m benchmarks peers: one run, same data, same threads, in batch and one query at a time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import RESULTS, Target, load_rows, report
from benchmarks.peers.frontier import time_at
from benchmarks.peers.libraries import PEERS
from benchmarks.peers.show import plot, table

__all__ = ["peers"]

TRUTH_ROWS = 65_536  # rows that truth is computed over at a time
FLAT = "faiss-flat"
SLOWEST = 2  # a knob that takes so many times the time of flat search ends a sweep
FLAT_AT = 0.95  # the recall at which speed over flat search is judged


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path, exists=True), required=True, help="Corpus rows, .npy.")
@click.option("--queries", type=click.Path(path_type=Path, exists=True), required=True, help="Real queries, .npy.")
@click.option("--k", default=10, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--unseen", default=2_000, show_default=True, help="First queries, measured on; the others certify.")
@click.option("--rows", type=int, help="Only the first so many rows.")
@click.option("--memory-share", type=float, help="Also a funnel that holds at most this share of the float32 rows.")
@click.option("--only", help="Peers by name, separated by commas. [default: all]")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "peers", show_default=True)
def peers(
    vectors: Path,
    queries: Path,
    k: int,
    threads: int,
    unseen: int,
    rows: int | None,
    memory_share: float | None,
    only: str | None,
    out: Path,
) -> None:
    """The funnel, asked for recall as a user asks, against each peer swept over its own knobs.

    Rows of any numeric type are scaled to unit length. A peer is compared at the recall that the funnel measured,
    between two points of the peer's own curve.

    Example: python -m benchmarks peers --vectors corpus.npy --queries queries.npy --memory-share 0.25
    """
    wanted = list(PEERS) if only is None else [name.strip() for name in only.split(",")]
    unknown = [name for name in wanted if name not in PEERS]
    if unknown:
        raise click.ClickException(f"no peer is called {unknown[0]!r}; choose among {', '.join(PEERS)}")
    wanted = [FLAT, *(name for name in wanted if name != FLAT)]  # every ratio needs it
    os.environ["OMP_NUM_THREADS"] = str(threads)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus, asked = load_rows(vectors)[:rows], load_rows(queries)
        raw = corpus.nbytes
        job = _prepare(folder, corpus, asked[:unseen], asked[unseen:], k, threads)
        del corpus
        limits = [None] if memory_share is None else [None, memory_share * raw / 1e6]
        funnels = [_measured("benchmarks.peers.funnel", {**job, "memory_mb": limit}, folder) for limit in limits]
        results, left_out = _run_peers(wanted, job, folder)
    facts = {"raw_bytes": raw, "k": k, "threads": threads, "left_out": left_out, "funnel": funnels, "peers": results}
    facts["machine"] = machine()
    click.echo(table(facts))
    plot(facts, out / "peers.png")
    report("peers", _targets(facts), facts, out)


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
    k: int,
    threads: int,
) -> dict[str, Any]:
    """Rows, queries and the k-th true score of each query, in files for the processes to come."""
    best = np.full((len(queries), k), -np.inf, dtype=np.float32)
    for start in range(0, len(corpus), TRUTH_ROWS):
        scores = np.concatenate([best, queries @ corpus[start : start + TRUTH_ROWS].T], axis=1)
        best = -np.partition(-scores, k - 1, axis=1)[:, :k]
    paths = {name: str(folder / f"{name}.npy") for name in ("rows", "queries", "known", "truth")}
    np.save(paths["rows"], corpus)
    np.save(paths["queries"], queries)
    np.save(paths["known"], known)
    np.save(paths["truth"], best.min(axis=1))
    return {**paths, "k": k, "threads": threads, "slowest_us": 1e9}


def _run_peers(names: list[str], job: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    results: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for name in names:
        try:
            PEERS[name].version()
        except ImportError as error:
            left_out[name] = str(error)
            click.echo(f"left out: {name} ({error})", err=True)
            continue
        for build in PEERS[name].builds:
            click.echo(f"{name}, {build} …", err=True)
            try:
                record = _measured("benchmarks.peers.measure", {**job, "peer": name, "build": build}, folder)
            except click.ClickException as error:
                left_out[f"{name}, {build}"] = error.message
                click.echo(f"left out: {name}, {build} ({error.message})", err=True)
                continue
            results.append(record)
            if name == FLAT:  # a knob slower than flat search is of no use
                job["slowest_us"] = SLOWEST * min(point["us_batch"] for point in record["points"])
    return results, left_out


def _measured(module: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a process of its own prints of this job. ClickException with its last line where it fails."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", module, str(path)], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise click.ClickException(f"{module}: {said[-1] if said else f'ended with {done.returncode}'}")
    record: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return record


def _targets(facts: dict[str, Any]) -> list[Target]:
    """The project's own targets, at every recall asked for."""
    free, *small = facts["funnel"]
    targets: list[Target] = []

    def at_least(name: str, time: float, than: float, bound: float) -> None:
        if math.isinf(time):
            click.echo(f"no peer to compare with: {name}")
        else:
            targets.append(Target.at_least(name, time / than, bound))

    for point in free["points"]:
        at, asked, batch = point["recall"], f"{point['asked']:.2f}", point["us_batch"]
        at_least(f"{asked}: times the best peer in batch", _best(facts, at, "us_batch"), batch, 1.0)
        at_least(f"{asked}: times the best peer, single", _best(facts, at, "us_single"), point["us_single"], 0.7)
        at_least(f"{asked}: times hnswlib in batch", _of(facts, "hnswlib", at), batch, 3)
        if point["asked"] == FLAT_AT:
            at_least(f"{asked}: times flat in batch", _of(facts, FLAT, 0.0), batch, 25)
    for funnel in small:
        most = funnel["memory_mb"] * 1e6
        share = funnel["resident_bytes"] / facts["raw_bytes"]
        targets.append(Target.at_most("share of the float32 rows held", share, most / facts["raw_bytes"]))
        for point in funnel["points"]:
            at, asked, batch = point["recall"], f"{point['asked']:.2f} in little memory", point["us_batch"]
            at_least(f"{asked}: times the best peer that fits", _best(facts, at, "us_batch", most), batch, 2)
            at_least(f"{asked}: times hnswlib without a cap", _of(facts, "hnswlib", at), batch, 1.5)
    return targets


def _best(facts: dict[str, Any], at: float, clock: str, most_bytes: float = math.inf) -> float:
    """The least time of any peer at this recall that holds no more than so many bytes."""
    fitting = [record for record in facts["peers"] if record["resident_bytes"] <= most_bytes]
    return min((time_at(record["points"], at, clock) for record in fitting), default=math.inf)


def _of(facts: dict[str, Any], name: str, at: float) -> float:
    named = [record for record in facts["peers"] if record["peer"] == name]
    return min((time_at(record["points"], at, "us_batch") for record in named), default=math.inf)
