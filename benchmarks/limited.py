"""Build from, and search, a matrix five times as large as the memory that the process may take."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import Target, data_folder, load_rows, report

__all__ = ["MB", "limited", "limited_group"]

DIM = 1_536
BLOCK = 16_384
NOISE = 0.35  # length of the noise added to a real row of length 1: copies of one row stay neighbours, none is equal
QUERIES, UNSEEN = 300, 200
K = 10
MB = 1_000_000
CGROUP, DATA = "cgroup", "data"
# Where a group of the kernel's memory controller is made, and the file that limits it: version 2, version 1.
CONTROLLERS = (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"))


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--limit", default=1_000, show_default=True, help="Megabytes that may be taken beside the imports.")
@click.option("--times", default=5.0, show_default=True, help="Size of the float32 matrix, in limits.")
@click.option("--by", type=click.Choice((CGROUP, DATA)), default=CGROUP, show_default=True, help="What limits.")
@click.option("--coarse", default="ivf-sq8", show_default=True, help="The coarse index by name.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the matrix and the index.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def limited(
    data: Path | None, limit: int, times: float, by: str, coarse: str, scratch: Path | None, out: Path | None
) -> None:
    """Build and search under a hard limit that spares mapped files.

    cgroup: memory.max of a group of the child's own (needs the right to make one), which also counts cached pages of
    files until the system takes them back; what goes beyond is killed. data: RLIMIT_DATA, as `ulimit -d` sets it, which
    counts every private page that could be written, touched or not; what goes beyond is refused.

    The matrix is made of real embeddings, turned into 1,536 dims by a random isometry and shaken so that no row comes
    twice. The coarse index is held in memory, and is part of the limit.

    Example: python -m benchmarks limited --data ../shared/data
    """
    folder = data_folder(data) / "vectors-384"
    rows = int(times * limit * MB / (4 * DIM))
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        matrix, asked = Path(temporary) / "matrix.npy", Path(temporary) / "queries.npy"
        _write(matrix, load_rows(next(folder.glob("corpus.*npy"))), rows, 0)
        _write(asked, load_rows(next(folder.glob("queries.*npy"))), QUERIES + UNSEEN, 1)
        index = Path(temporary) / "index"
        facts: dict[str, Any] = {
            deed: _child(deed, matrix, asked, index, limit, by, coarse) for deed in ("build", "search", "read it whole")
        }
    facts |= {"limit_mb": limit, "by": by, "matrix_mb": rows * DIM * 4 / MB, "rows": rows, "dim": DIM}
    click.echo(json.dumps(facts, indent=1))
    done = {deed: "failed" not in fact for deed, fact in facts.items() if isinstance(fact, dict)}
    recall = facts["search"].get("recall", 0.0) if done["search"] else 0.0
    targets = [
        Target.at_least("the matrix over the limit, times", facts["matrix_mb"] / limit, times - 0.01),
        Target.at_least("built under the limit", float(done["build"]), 1),
        Target.at_least("recall@10 of a recall of 0.95, searched under the limit", recall, 0.94),
        # The limit is hard: the same process cannot hold the matrix.
        Target.at_most("holding the matrix in memory under the limit", float(done["read it whole"]), 0),
    ]
    report("limited", targets, facts, out)


def _write(path: Path, real: np.ndarray, rows: int, seed: int) -> None:
    """Real rows through one random isometry into DIM dims, plus noise; block by block."""
    isometry = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, real.shape[1])))[0].T.astype(np.float32)
    random = np.random.default_rng((seed, 1))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, DIM)})
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            chosen = real[random.integers(0, len(real), count)] @ isometry
            noise = random.standard_normal((count, DIM), dtype=np.float32) * (NOISE / DIM**0.5)
            (chosen + noise).astype(np.float32).tofile(file)


def _child(deed: str, matrix: Path, asked: Path, index: Path, limit: int, by: str, coarse: str) -> dict[str, object]:
    with limited_group(limit) if by == CGROUP else nullcontext("") as group:
        command = [deed, str(matrix), str(asked), str(index), str(limit), coarse, group]
        done = subprocess.run([sys.executable, "-m", "benchmarks.limited", *command], capture_output=True, text=True)
        peak: dict[str, object] = dict(_peak_mb(group)) if group else {}
    if done.returncode:
        killed = f"killed ({done.returncode})"
        return {"failed": (done.stderr.strip().splitlines() or [killed])[-1] if done.returncode > 0 else killed} | peak
    return dict(json.loads(done.stdout.splitlines()[-1])) | peak


@contextmanager
def limited_group(limit: int) -> Iterator[str]:
    """A group that may hold so many megabytes, without swap; nothing is in it yet."""
    for root, limits in CONTROLLERS:
        group = Path(root) / f"funnel-limited-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limits).exists():
                (group / limits).write_text(str(limit * MB))
                for swap, most in (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", limit * MB)):
                    if (group / swap).exists():
                        (group / swap).write_text(str(most))
                yield str(group)
                return
        finally:
            group.rmdir()
    raise click.ClickException("no group of the memory controller can be made here; use --by data, or run as root")


def _peak_mb(group: str) -> dict[str, float]:
    """The most that was charged to the group at a time, cached pages of files among it."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if (Path(group) / name).exists():
            return {"peak_mb": int((Path(group) / name).read_text()) / MB}
    return {}


def data_mb() -> float:
    """What counts under RLIMIT_DATA, in megabytes: VmData of /proc/self/status."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmData:\s+(\d+) kB", text, re.M)
    assert found is not None
    return int(found[1]) * 1024 / MB


def _run(deed: str, matrix: str, asked: str, index: str, limit: str, coarse: str, group: str) -> None:
    """The child: import, set the limit above that, and do it."""
    import torch

    from funnel import FLAT, FunnelIndex
    from indexes._faiss import load_faiss

    load_faiss()
    for ones in (np.ones((512, 512), np.float32), torch.ones(512, 512)):
        ones @ ones  # threads, their stacks and BLAS's buffers are there before the limit: they come with any call
    imports = data_mb()
    if group:  # what was touched before stays charged to the group it was touched in
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    else:
        allowed = int((imports + float(limit)) * MB)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    started = time.perf_counter()
    facts: dict[str, object] = {"imports_mb": imports}
    if deed == "read it whole":
        facts["sum"] = float(np.load(matrix, allow_pickle=False).sum())
    elif deed == "build":
        queries = np.load(asked, allow_pickle=False)[:QUERIES]
        built = FunnelIndex.build(matrix, index, queries=queries, coarse=coarse, adaptor="pca", progress=False)
        facts["coarse_mb"] = built.searcher.cascade.coarse.nbytes / MB
    else:
        opened = FunnelIndex.open(index)
        unseen = np.load(asked, allow_pickle=False)[QUERIES:]
        true = opened.search_vectors(unseen, K, plan=FLAT).scores[:, -1:]
        facts["recall"] = float((opened.search_vectors(unseen, K, recall=0.95).scores >= true - 1e-6).mean())
    facts |= {"seconds": time.perf_counter() - started, "data_at_the_end_mb": data_mb()}
    print(json.dumps(facts))


if __name__ == "__main__":
    _run(*sys.argv[1:8])
