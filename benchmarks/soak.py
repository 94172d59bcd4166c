"""Nothing grows: 20,000 searches of every shape, 500 rounds of changes, 2,000 short threads with few files."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.common import Target, report
from funnel import FLAT, BudgetError, FunnelIndex, Plan
from funnel.data.pydocs import python_documents
from funnel.errors import DriftWarning
from funnel.progress import Progress
from indexes import release_freed

__all__ = ["soak"]

LOOKS = 100  # at the process, evenly spaced; the first fifth of them is what the others are held against
# What may come after the first fifth. Files: two idle connections for each of two segments. Maps: places where the
# allocator splits its heap. Memory is what is held (anonymous), as pages of mapped files are the system's to drop, and
# a calibration's records fill them as other k are asked for; what is left of a trimmed heap differs by some megabytes
# from look to look. Of the default 20,000 searches the first 3,500 fill what is remembered of budgets (1,024); shorter
# runs show that as growth.
ALLOWED = {"descriptors": 4, "threads": 0, "maps": 24, "held_mb": 12.0}
FILES = 256  # that may be open, the smallest limit that is common (macOS)
AT_ONCE = 40  # short threads at once
RECALLS = (0.9, 0.95, 0.99)
ADDED = 20  # documents a round, and as many deleted
SMALL = 300  # documents of the index that changes: enough to be calibrated, few enough to be compacted in a second
CERTIFYING = 100  # queries of the index that changes, on which every compaction is measured
WARMING = 4_000  # calls of the encoder before the first look
WAIT_S = 600.0  # for the threads, all together


@click.command()
@click.option("--rows", default=1_000, show_default=True, help="Documents that are searched.")
@click.option("--searches", default=20_000, show_default=True, help="Searches of mixed kinds.")
@click.option("--rounds", default=500, show_default=True, help="Rounds of add, delete, refresh and compact.")
@click.option("--threads", default=2_000, show_default=True, help="Short threads that each search once.")
@click.option("--seed", default=0, show_default=True, help="Of the searches and changes.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def soak(rows: int, searches: int, rounds: int, threads: int, seed: int, out: Path | None) -> None:
    """Search and change an index for long; exit with 1 where descriptors, threads, maps or memory grow.

    They grow where the most of the last four fifths is above the most of the first fifth, and by more than is allowed
    for the noise of the allocator. Read after collecting garbage and giving freed memory back.

    Example: python -m benchmarks soak --searches 2000 --rounds 50 --threads 200
    """
    warnings.simplefilter("ignore", DriftWarning)  # queries are vectors made up and texts of documents: they drift
    targets, facts = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "index"
        found = [_plain(document) for document in islice(python_documents(), rows + 2 * SMALL)]
        documents, others = found[:rows], found[rows:]
        queries = [str(other["text"]).split("\n")[0] for other in others]
        index = FunnelIndex.build(documents, path, queries=queries, adaptor="pca", seed=seed)
        phases: list[tuple[str, int, Callable[[], Iterator[None]]]] = [
            ("searches", searches, lambda: _searches(index, queries, searches, seed)),
            ("rounds", rounds, lambda: _rounds(Path(temporary) / "small", others, index, rounds, seed)),
        ]
        for name, count, steps in phases:
            looks = _watched(name, steps(), count)
            facts[name] = looks
            targets += _judged(name, looks)
        began = time.perf_counter()
        failed = _threads_in_a_process(path, threads)
        facts["threads"] = [{"seconds": time.perf_counter() - began, "failed": failed}]
        targets.append(Target.at_most(f"of {threads:,} threads under {FILES} open files, failed", failed, 0))
    report("soak", targets, {"phases": facts}, out)
    if not all(target.met for target in targets):
        raise SystemExit(1)


def _plain(document: Any) -> dict[str, Any]:
    return {"_id": document.id, "title": document.title, "text": document.content, **document.metadata}


def _watched(name: str, steps: Iterator[None], count: int) -> list[dict[str, float]]:
    """Take so many steps, and look at the process now and then; steps that are not reached fail."""
    looks = []
    for number in Progress(range(count), desc=name, unit="steps"):
        next(steps)
        if (number + 1) % max(1, count // LOOKS) == 0:
            looks.append(_look())
    return looks


def _look() -> dict[str, float]:
    gc.collect()
    release_freed()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(status["Threads"]),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "held_mb": int(status["RssAnon"].split()[0]) / 1024,
    }


def _judged(name: str, looks: list[dict[str, float]]) -> list[Target]:
    fifth = max(1, len(looks) // 5)
    result = []
    for figure, allowed in ALLOWED.items():
        before = max(look[figure] for look in looks[:fifth])
        after = max(look[figure] for look in looks[fifth:] or looks)
        click.echo(f"{name}: {figure} at most {before:,.6g} in the first fifth, {after:,.6g} after it")
        result.append(Target.at_most(f"{name}: {figure} more than in the first fifth", after - before, allowed))
    return result


def _searches(index: FunnelIndex, texts: list[str], count: int, seed: int) -> Iterator[None]:
    """Searches of mixed shape, k, filter, budget, deadline and fusion; each step is one."""
    rng = np.random.default_rng(seed)
    for _ in range(WARMING):  # the encoder keeps something for every number of tokens that it has met
        index.encode_queries([texts[at] for at in rng.choice(len(texts), int(rng.integers(1, 3)))])
    vectors = index.encode_queries(texts)
    kinds = ("package", "kind")
    wheres = [None] * 3 + [f"{name} = '{value}'" for name in kinds for value in ("class", "function", "json", "email")]
    ids = index.ids()
    for _ in range(count):
        options: dict[str, Any] = _budget(rng)
        batch = 1  # with a latency, as calls of each size are first timed for a minute
        if "latency_ms" not in options:
            batch = int(rng.choice([1, 1, 1, 1, 2, 8, 33]))
            options["k"] = int(rng.choice([1, 5, 10, int(rng.integers(1, 101))]))
            options["where"] = wheres[rng.integers(len(wheres))]
            if rng.random() < 0.1:
                options["allowed_ids"] = [str(ids[at]) for at in rng.choice(len(ids), 200)]
        if rng.random() < 0.2:
            options["deadline_ms"] = float(rng.uniform(0.01, 50)) + options.get("latency_ms", 0.0)
        if options.get("where") is not None and "recall" in options:
            options["recall"] = float(rng.choice(RECALLS))  # under a filter each new recall is planned for
        chosen = rng.integers(len(texts), size=batch)
        try:
            if rng.random() < 0.2 and batch <= 2:
                hybrid = bool(rng.integers(2)) and options.get("plan") is None
                asked = [texts[one] for one in chosen]
                index.search(asked[0] if batch == 1 else asked, hybrid=hybrid, **options)
            elif rng.random() < 0.5:
                noise = rng.normal(scale=0.02, size=(batch, index.dim)).astype(np.float32)
                index.search_vectors(vectors[chosen] + noise, **options)
            else:
                index.search(vectors[chosen], **options)
        except BudgetError:
            assert "latency_ms" in options, options
        yield


def _budget(rng: np.random.Generator) -> dict[str, Any]:
    """A budget, nearly always one that never came before."""
    kind = rng.choice(["recall", "share", "latency", "both", "plan", "none"], p=[0.5, 0.1, 0.05, 0.05, 0.1, 0.2])
    recall = float(rng.uniform(0.5, 1.0))
    if kind == "recall":
        return {"recall": recall}
    if kind == "share":
        return {"recall": round(recall, 1), "share": float(rng.uniform(0.5, 1.0))}
    if kind in ("latency", "both"):
        return {"latency_ms": float(rng.uniform(20, 500))} | ({"recall": recall} if kind == "both" else {})
    if kind == "plan":
        return {"plan": FLAT if rng.random() < 0.5 else Plan(int(rng.integers(128, 400)), 128)}
    return {}


def _rounds(path: Path, documents: list[dict[str, Any]], encoder: FunnelIndex, count: int, seed: int) -> Iterator[None]:
    """Two handles: one changes the index, the other follows and searches; each step is a round."""
    rng = np.random.default_rng(seed)
    vectors = encoder.encode_queries([str(document["text"]) for document in documents])
    known = [
        document | {"vector": vector} for document, vector in zip(documents, vectors.astype(np.float32), strict=True)
    ]
    inside, outside = known[:SMALL], known[SMALL:]
    writer = FunnelIndex.build(inside, path, queries=vectors[:CERTIFYING], adaptor="pca", seed=seed, progress=False)
    reader = FunnelIndex.open(path)
    for _ in range(count):
        rng.shuffle(inside)
        inside, gone = inside[ADDED:], inside[:ADDED]
        outside, came = outside[ADDED:] + gone, outside[:ADDED]
        inside += came
        writer.add(came)
        reader.refresh()
        _found(reader, vectors, rng)
        writer.delete([str(document["_id"]) for document in gone])
        reader.refresh()
        _found(reader, vectors, rng)
        writer.compact()
        reader.refresh()
        _found(reader, vectors, rng)
        assert len(reader) == len(writer) == len(inside)
        yield


def _found(index: FunnelIndex, vectors: np.ndarray, rng: np.random.Generator) -> None:
    for options in ({}, {"where": "kind = 'function'"}, {"recall": float(rng.uniform(0.5, 1.0))}):
        index.search(vectors[rng.integers(len(vectors), size=2)], **options)


def _threads_in_a_process(path: Path, count: int) -> int:
    """How many of so many short threads failed, in a process of its own with few open files; all where it ended ill."""
    context = multiprocessing.get_context("spawn")
    failed = context.Value("i", count)
    process = context.Process(target=_short_threads, args=(path, count, failed))
    process.start()
    process.join(WAIT_S)
    if process.is_alive():
        process.kill()
        return count
    return count if process.exitcode else int(failed.value)


def _short_threads(path: Path, count: int, failed: Any) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    index = FunnelIndex.open(path)
    options: tuple[dict[str, Any], ...] = ({}, {"hybrid": True}, {"where": "kind = 'class'"}, {"recall": 1.0})
    expected = [[hit.id for hit in index.search("open a file", **each)] for each in options]
    done: list[int] = []

    def ask(number: int) -> None:
        which = number % len(options)
        if [hit.id for hit in index.search("open a file", **options[which])] == expected[which]:
            done.append(number)

    for start in range(0, count, AT_ONCE):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(start, min(start + AT_ONCE, count))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    failed.value = count - len(done)
