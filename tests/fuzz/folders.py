"""`python -m tests.fuzz.folders TRIALS SEED`: altered folders, opened, searched, explained and added to by workers.

Only FunnelErrors may come out, below a gigabyte and 10 seconds of the processor each.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = Path("/dev/shm")  # files there cost no writes
LARGEST = 1 << 30  # bytes of address space that a trial may take beside what the worker has
LONGEST_S = 10.0  # of the processor
GIVEN_UP_S = 120.0  # by the clock: the machine may have other work
LONGEST_MESSAGE = 2_000
DIM, ROWS = 16, 300
THREADS = 1  # of torch
END_S = 10.0  # for a worker to end by itself


def make_folders(into: Path) -> list[Path]:
    """Valid folders of every kind of content, measured as the workers would: opening them measures nothing again."""
    import torch

    from funnel import FunnelIndex

    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)

    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, DIM)).astype(np.float32)
    queries = random.standard_normal((120, DIM)).astype(np.float32)
    words = ["red", "green", "blue", "lime", "tree", "house"]

    def documents(start: int, stop: int) -> list[dict[str, Any]]:
        return [
            {
                "_id": f"d{i}", "title": words[i % 6], "text": f"{words[i % 5]} {words[i % 4]} {i}",
                "vector": x[i], "year": i, "tags": ["a", words[i % 3]], "f": i / 7,
            }
            for i in range(start, stop)
        ]  # fmt: skip

    def build(name: str, corpus: Any, **options: Any) -> FunnelIndex:
        return FunnelIndex.build(corpus, into / name, progress=False, dims=(8, 16), **options)

    build("text", documents(0, 60), queries=queries[:60], adaptor="pca", coarse="hnsw-sq8")
    living = build("living", documents(0, 200), queries=queries, adaptor="identity", coarse="ivf-sq8")
    living.add(documents(200, 230))
    living.delete([f"d{i}" for i in range(0, 220, 7)])
    living.upsert(documents(50, 60))
    build("vectors", x, adaptor="mlp", coarse="hnsw-f16", memory_mb=50.0)
    build("named", x, ids=[f"v{i}" for i in range(ROWS)], queries=queries, adaptor="deep-mlp", coarse="ivf-pq")
    build("flat", x, adaptor="rotation", coarse="flat", dtype="float32").delete([1, 2, 3])
    torch.set_num_threads(before)
    return sorted(into.iterdir())


def use(root: Path, lazy: str) -> Iterator[Callable[[], Any]]:
    """What is done with a folder, call by call."""
    from funnel import FunnelIndex
    from funnel.building.info import read_info
    from funnel.reports.check import deep_check
    from funnel.storage import check

    query = np.linspace(-1, 1, DIM, dtype=np.float32)
    held: list[FunnelIndex] = []
    yield lambda: held.append(FunnelIndex.open(root, verify=lazy))
    yield lambda: str(read_info(root))
    yield lambda: str(check(root))
    if not held:
        return
    index = held[0]
    yield lambda: index.search(query, k=5)
    yield lambda: index.search(np.stack([query, -query, query + 1]), k=20, recall=0.9)
    yield lambda: index.search(query, k=3, where="year >= 10 AND title = 'red'")
    yield lambda: index.search(query, k=3, where="tags IS NOT NULL OR f < 9")
    yield lambda: index.search(query, k=3, allowed_ids=index.ids()[:7])
    yield lambda: index.search(query, k=3, hybrid=0.5, text="red tree")
    yield lambda: str(index.explain(10, recall=0.9))
    yield lambda: str(index.explain(5, recall=0.5, run=True).to_json())
    yield lambda: index.health()
    yield lambda: index.export(root.parent / "out.npy", overwrite=True, progress=False)
    row = {"_id": "added", "text": "red tree", "vector": query, "year": 3}
    documents = bool(index.manifest.settings.documents)
    ids = None if documents or not index.searcher.ids.text else ["added"]
    yield lambda: index.add([row] if documents else query[None], ids=ids)
    yield lambda: index.delete(index.ids()[:2])
    yield lambda: index.search(query, k=5)
    yield lambda: list(deep_check(root))


def work(connection: Connection, folders: list[Path], into: Path) -> None:
    """A worker: takes seeds, and answers each with what was done and what came out that should not."""
    import torch

    torch.set_num_threads(THREADS)
    warnings.simplefilter("ignore")
    connection.send(None)
    while (seed := connection.recv()) is not None:
        connection.send(one_trial(folders, into / "trial", seed))


def one_trial(folders: list[Path], into: Path, seed: int) -> tuple[str, Counter[str], str]:
    """Alter a folder and use it: what was altered, what came of each call, and the first fault, "" for none."""
    from funnel import FunnelError
    from tests.fuzz.altering import alter

    random = np.random.default_rng(seed)
    shutil.rmtree(into, ignore_errors=True)
    source = folders[int(random.integers(len(folders)))]
    shutil.copytree(source, into / source.name)
    said, results = source.name, Counter[str]()
    with suppress(RecursionError, ValueError):  # the second change may find a manifest that is no longer readable
        said += f": {alter(into / source.name, folders, random)}"
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + LARGEST, resource.RLIM_INFINITY))
    began = time.process_time()
    try:
        for call in use(into / source.name, "lazy" if random.random() < 0.3 else "full"):
            try:
                call()
                results["done"] += 1
            except FunnelError as error:
                results[type(error).__name__] += 1
                if "\n" in str(error) or len(str(error)) > LONGEST_MESSAGE:
                    return said, results, f"a message of {len(str(error))} characters: {str(error)[:300]!r}"
    except BaseException:
        return said, results, traceback.format_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    took = time.process_time() - began
    return said, results, f"it took {took:.1f} s" if took > LONGEST_S else ""


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


class Worker:
    """A spawned process that lives on from trial to trial, and begins again where one ends it."""

    def __init__(self, folders: list[Path], into: Path) -> None:
        self._folders, self._into = folders, into
        self._process: Any = None

    def __call__(self, seed: int) -> tuple[str, Counter[str], str]:
        """See `one_trial`."""
        if self._process is None:
            self._start()
        self._connection.send(seed)
        try:
            if self._connection.poll(GIVEN_UP_S):
                answer: tuple[str, Counter[str], str] = self._connection.recv()
                return answer
            fault = f"no answer within {GIVEN_UP_S:.0f} s"
        except EOFError:
            self._process.join()
            fault = f"the worker ended with {self._process.exitcode}"
        self.close()
        return "", Counter(), fault

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._into.mkdir(exist_ok=True)
        self._process = context.Process(target=work, args=(theirs, self._folders, self._into), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()

    def close(self) -> None:
        """End the process; killed only where it hangs, as its semaphores are then left to the system."""
        if self._process is not None:
            with suppress(OSError):  # it has ended
                self._connection.send(None)
            self._process.join(END_S)
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def run(trials: int, seed: int, workers: int = 1) -> tuple[Counter[str], list[str]]:
    """So many trials: how often what came out, and each fault with what caused it."""
    results: Counter[str] = Counter()
    faults = []
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as name:
        into = Path(name)
        (into / "valid").mkdir()
        folders = make_folders(into / "valid")
        own = [Worker(folders, into / str(number)) for number in range(workers)]

        def several(number: int) -> None:
            for one in range(seed + number, seed + trials, workers):
                said, counts, fault = own[number](one)
                results.update(counts)
                if fault:
                    faults.append(f"seed {one}: {said}\n{fault}")
                    print(faults[-1], file=sys.stderr, flush=True)

        try:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(several, range(workers)))
        finally:
            for worker in own:
                worker.close()
    return results, faults


if __name__ == "__main__":
    began = time.monotonic()
    counted, found = run(int(sys.argv[1]), int(sys.argv[2]), min(2, os.cpu_count() or 1))
    print(
        f"{sys.argv[1]} altered folders in {time.monotonic() - began:.0f} s, {len(found)} faults; "
        f"calls: {dict(counted)}"
    )
    sys.exit(bool(found))
