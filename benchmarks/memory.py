"""Peak memory of a build from a matrix of at least 6 GB on disk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.common import Target, data_folder, load_rows, report

__all__ = ["memory"]

DIM = 1_536
ALLOWED_MB = 500
BLOCK = 16_384
NOISE = 0.35  # length of the noise added to a real row of length 1: copies of one row stay neighbours, none is equal
SAMPLED_EVERY = 0.02  # seconds
RECORDS_EVERY = 25  # of those samples: reading every map takes milliseconds


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--gigabytes", default=6.2, show_default=True, help="Size of the float32 matrix.")
@click.option("--coarse", help="The coarse index by name; chosen by size otherwise.")
@click.option("--queries", default=0, show_default=True, help="So many queries, made as the rows are, to certify on.")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the matrix and the index.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def memory(
    data: Path | None, gigabytes: float, coarse: str | None, queries: int, scratch: Path | None, out: Path | None
) -> None:
    """Build from a matrix made of real embeddings, turned into 1,536 dims and shaken so that no row comes twice.

    Example: python -m benchmarks memory --data ../shared/data
    """
    folder = data_folder(data) / "vectors-384"
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        matrix = Path(temporary) / "matrix.npy"
        rows = int(gigabytes * 1e9 / (4 * DIM))
        _write_matrix(matrix, load_rows(next(folder.glob("corpus.*npy"))), rows)
        asked = Path(temporary) / "queries.npy"
        _write_matrix(asked, load_rows(next(folder.glob("queries.*npy"))), queries, seed=1)
        command = [sys.executable, "-m", "benchmarks.memory", str(matrix), str(Path(temporary) / "index"), coarse or ""]
        command += [str(asked)] if queries else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        facts = json.loads(done.stdout.splitlines()[-1])
    held = facts["imports_mb"] + facts["coarse_mb"]
    facts |= {"matrix_gb": rows * DIM * 4 / 1e9, "rows": rows, "dim": DIM, "queries": queries}
    click.echo(json.dumps(facts, indent=1))
    targets = [
        Target.at_most("peak over imports and the coarse index, MB", facts["peak_mb"] - held, ALLOWED_MB),
        Target.at_most(
            "the same with what is resident of calibration's records, MB",
            facts["peak_with_records_mb"] - held,
            ALLOWED_MB,
        ),
    ]
    report("memory", targets, facts, out)


def _write_matrix(path: Path, real: np.ndarray, rows: int, seed: int = 0) -> None:
    """Real rows through a random isometry (the same for every seed) into DIM dims, plus noise; block by block."""
    isometry = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, real.shape[1])))[0].T.astype(np.float32)
    random = np.random.default_rng((seed, 1))
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, DIM)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            chosen = real[random.integers(0, len(real), count)] @ isometry
            noise = random.standard_normal((count, DIM), dtype=np.float32) * (NOISE / DIM**0.5)
            (chosen + noise).astype(np.float32).tofile(file)


class _Peak:
    """Samples the memory of this process: anonymous and shared, that and calibration's records, and everything.

    The records of a build lie in mapped files without a name; the system can take their pages back.
    """

    def __init__(self) -> None:
        self.anonymous = self.with_records = self.everything = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        number = 0
        while not self._stop.wait(SAMPLED_EVERY):
            now = status_mb()
            anonymous = now["RssAnon"] + now["RssShmem"]
            records = nameless_mb() if number % RECORDS_EVERY == 0 else 0.0
            number += 1
            self.anonymous = max(self.anonymous, anonymous)
            self.with_records = max(self.with_records, anonymous + records)
            self.everything = max(self.everything, now["VmRSS"])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def status_mb() -> dict[str, float]:
    """The lines of /proc/self/status that give sizes, in megabytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}


def nameless_mb() -> float:
    """What is resident of mapped files that were deleted, in megabytes."""
    kilobytes, nameless = 0, False
    with open("/proc/self/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                nameless = line.rstrip().endswith("(deleted)")
            elif nameless and line.startswith("Rss:"):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024 / 1e6


def _build(matrix: str, index: str, coarse: str, queries: str | None = None) -> None:
    """The child: import, build, and say what it took."""
    from funnel import FunnelIndex
    from indexes import exact_search  # noqa: F401  (part of what imports take)

    __import__("faiss")
    before = status_mb()
    peak = _Peak()
    started = time.perf_counter()
    built = FunnelIndex.build(matrix, index, coarse=coarse or None, queries=queries)
    seconds = time.perf_counter() - started
    peak.stop()
    facts = {
        "imports_mb": before["RssAnon"] + before["RssShmem"],
        "imports_with_files_mb": before["VmRSS"],
        "peak_mb": peak.anonymous,
        "peak_with_records_mb": peak.with_records,
        "peak_with_mapped_files_mb": peak.everything,
        "coarse_mb": built.searcher.cascade.coarse.nbytes / 1e6,
        "coarse": built.manifest.settings.coarse,
        "build_seconds": seconds,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    _build(*sys.argv[1:5])
