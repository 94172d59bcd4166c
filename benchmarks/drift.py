"""Drift of queries, audits and tuning on real embeddings: false alarms, delays, what watching costs."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks.common import Target, data_folder, load_rows, report
from benchmarks.texts import lines_of
from funnel import FunnelIndex, Plan
from funnel.encoding.encoders import DEFAULT_ENCODER, load_encoder
from funnel.errors import DriftWarning
from funnel.monitoring.audit import running_interval
from funnel.monitoring.drift import RANKS, Drift

__all__ = ["drift"]

INDEXED, CALIBRATION = 50_000, 2_000
# Beside the 6,000 queries: rows that are not indexed, and texts of package-texts that are not, encoded here.
HELD_OUT, TEXTS = 14_000, 6_000
SAME = 1.0 - 5e-4  # a text whose best hit is as close as this is indexed
BUDGETS = (0.80, 0.90, 0.95, 0.99, 1.0)
K = 10
STREAMS, STREAM = 1_000, 5_000
CALL_SIZES = (1, 4, 16, 64)  # queries in one call of live traffic, drawn at random
SAMPLES = (300, 1_000, 3_000)  # calibration queries, one size after the other
SWITCHES, BEFORE, AFTER = 20, 2_000, 2_000  # trials of each kind; queries before a switch at most, and after it
CAUGHT = 500
VERSES = 2_000
AUDITS, AUDITED, LOOK = 300, 1_000, 20
PARTS = ("alarms", "switch", "audit", "live", "cost")
WATCHING_US = 3  # of a single query in the mean: the whole of the engine's own Python is to take 30

Float32 = npt.NDArray[np.float32]


ByPlan = dict[Plan, Float32]  # scores [n, K], falling, that a plan returned


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Folder of data sets. [default: $FUNNEL_DATA]")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Only this part; may be given several times.")
@click.option("--index", type=click.Path(path_type=Path), help="Keep the index here, or use the one that is there.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def drift(data: Path | None, only: tuple[str, ...], index: Path | None, out: Path | None) -> None:
    """Watch live searches: alarms where nothing changed, and how soon a change is found.

    Example: python -m benchmarks drift --data ../shared/data
    """
    folder, parts = data_folder(data), only or PARTS
    corpus = load_rows(folder / "vectors-384" / "corpus.int8.npy")
    pool = np.concatenate([load_rows(folder / "vectors-384" / "queries.int8.npy"), corpus[-HELD_OUT:]])
    generator = np.random.default_rng(0)
    targets: list[Target] = []
    facts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        opened = _index(index or Path(temporary) / "index", corpus[:INDEXED], pool, generator)
        more = (
            np.concatenate([pool, _texts(folder, opened, facts)])
            if {"alarms", "switch", "audit"} & set(parts)
            else pool
        )
        found = _scores(opened, more) if {"alarms", "switch", "audit"} & set(parts) else {}
        if "alarms" in parts:
            _alarms(found, generator, targets, facts)
        if "switch" in parts:
            _switches(opened, found, _others(folder, corpus[:INDEXED], generator), generator, targets, facts)
        if "audit" in parts:
            _audits(found, generator, targets, facts)
        if "live" in parts:
            tuned = Path(shutil.copytree(opened.path, Path(temporary) / "tuned"))
            scifact = load_rows(folder / "scifact" / "minilm-queries.f16.npy")
            _live(FunnelIndex.open(tuned), pool, scifact, targets, facts)
        if "cost" in parts:
            _cost(opened, pool, targets, facts)
    report("drift", targets, facts, out)


def _index(path: Path, rows: Float32, pool: Float32, generator: np.random.Generator) -> FunnelIndex:
    """PCA: what is measured here are scores at full width, which no rotation changes."""
    known = pool[generator.choice(len(pool), CALIBRATION, replace=False)]
    if not path.exists():
        FunnelIndex.build(rows, path, queries=known, adaptor="pca")
    return FunnelIndex.open(path)


def _texts(folder: Path, index: FunnelIndex, facts: dict[str, Any]) -> Float32:
    """Texts of package-texts, drawn at random, without those that are indexed: unit rows."""
    texts = list(lines_of(folder / "package-texts" / "corpus.txt.gz"))
    drawn = np.random.default_rng(5).choice(len(texts), TEXTS, replace=False)
    started = time.perf_counter()
    rows = np.asarray(load_encoder(DEFAULT_ENCODER).encode_query([texts[i] for i in drawn]), dtype=np.float32)
    facts["texts encoded a second"] = TEXTS / (time.perf_counter() - started)
    new = index.searcher.cascade.exact(index.searcher.prepare(rows), 1)[0][:, 0] < SAME
    facts["texts of package-texts in the pool"] = int(new.sum())
    return rows[new]


def _scores(index: FunnelIndex, queries: Float32) -> ByPlan:
    """What the plan of each budget returns for the queries; flat search last."""
    return {plan: _run(index, queries, plan) for plan in (index.explain(K, recall=r, batch=32).plan for r in BUDGETS)}


def _run(index: FunnelIndex, queries: Float32, plan: Plan) -> Float32:
    """Past the monitor of the index itself."""
    return index.searcher.found(index.searcher.prepare(queries), plan, K).scores


def _others(folder: Path, indexed: Float32, generator: np.random.Generator) -> dict[str, Float32]:
    """Queries of other kinds, by the same encoder."""
    others = {
        f"{name} {kind}": load_rows(folder / name / f"minilm-{kind}.f16.npy")
        for name in ("scifact", "cranfield", "vaswani")
        for kind in ("queries", "corpus")
    }
    lines = (folder / "kjv-crossrefs" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:VERSES]
    others["kjv verses"] = load_encoder(DEFAULT_ENCODER).encode_query([json.loads(line)["text"] for line in lines])
    others["rows of the index"] = indexed[generator.choice(len(indexed), VERSES, replace=False)]
    return {name: rows[generator.permutation(len(rows))[:VERSES]] for name, rows in others.items()}


def _watching(found: ByPlan, sample: npt.NDArray[np.int64], seed: int) -> Drift:
    return Drift(lambda plan, _k: found[plan][sample][:, RANKS], seed)


def _feed(
    watch: Drift, found: ByPlan, sample: npt.NDArray[np.int64], generator: np.random.Generator, plans: list[Plan]
) -> int | None:
    """Live calls of changing size and plan; how many queries had come at the alarm."""
    start = 0
    while start < len(sample):
        size = int(generator.choice(CALL_SIZES))
        plan = plans[int(generator.integers(len(plans)))]
        part = sample[start : start + size]
        start += len(part)
        if watch.see(found[plan][part], plan):
            return start
    return None


def _alarms(found: ByPlan, generator: np.random.Generator, targets: list[Target], facts: dict[str, Any]) -> None:
    """Streams drawn with replacement from the pool that the calibration queries are drawn from."""
    plans, count = list(found), len(found[next(iter(found))])
    for name, asked in (("one budget", 1), ("five budgets in turn", len(plans))):
        alarms, least, started = 0, [], time.perf_counter()
        for trial in range(STREAMS):
            watch = _watching(found, generator.integers(count, size=SAMPLES[trial % len(SAMPLES)]), trial)
            first = trial % len(plans)
            chosen = (plans[first:] + plans[:first])[:asked]
            alarms += _feed(watch, found, generator.integers(count, size=STREAM), generator, chosen) is not None
            least.append(watch.p_value)
        targets.append(Target.at_most(f"{name}: false alarms in {STREAMS:,} streams, share", alarms / STREAMS, 0.01))
        facts[f"alarms, {name}"] = {
            "alarms": alarms,
            "smallest p": float(np.min(least)),
            "us a query": (time.perf_counter() - started) / STREAMS / STREAM * 1e6,
        }
        click.echo(f"{name}: {facts[f'alarms, {name}']}")


def _switches(
    index: FunnelIndex,
    found: ByPlan,
    others: dict[str, Float32],
    generator: np.random.Generator,
    targets: list[Target],
    facts: dict[str, Any],
) -> None:
    """A stream of the known kind, and then another: how many queries until the alarm, in the worst of the trials."""
    plans, count = list(found), len(found[next(iter(found))])
    delays: dict[str, Any] = {}
    for name, rows in others.items():
        other = {plan: _run(index, rows, plan) for plan in plans}
        for share in (1.0, 0.3):
            taken = [
                _delay(found, other, share, trial, generator, plans, count, len(rows)) for trial in range(SWITCHES)
            ]
            delays[f"{name}, {share:.0%} of traffic"] = {"median": float(np.median(taken)), "most": max(taken)}
            click.echo(f"{name}, {share:.0%}: {delays[f'{name}, {share:.0%} of traffic']}")
    facts["delays"] = delays
    whole = [delay["most"] for name, delay in delays.items() if "100%" in name]
    targets.append(Target.at_most("queries until a switch is found, most of all kinds and trials", max(whole), CAUGHT))


def _delay(
    found: ByPlan,
    other: ByPlan,
    share: float,
    trial: int,
    generator: np.random.Generator,
    plans: list[Plan],
    count: int,
    others: int,
) -> float:
    """One trial: `share` of the traffic after the switch is of the other kind; infinite where nothing is found."""
    watch = _watching(found, generator.integers(count, size=SAMPLES[trial % len(SAMPLES)]), trial)
    chosen = [plans[trial % len(plans)]]
    before = generator.integers(count, size=int(generator.integers(BEFORE)))
    if _feed(watch, found, before, generator, chosen) is not None:
        return float("inf")  # a false alarm is no catch
    mixed = {}
    foreign = generator.random(AFTER) < share
    known, new = generator.integers(count, size=AFTER), generator.integers(others, size=AFTER)
    for plan in chosen:
        mixed[plan] = np.where(foreign[:, None], other[plan][new], found[plan][known])
    at = _feed(watch, mixed, np.arange(AFTER), generator, chosen)
    return float("inf") if at is None else at


def _audits(found: ByPlan, generator: np.random.Generator, targets: list[Target], facts: dict[str, Any]) -> None:
    """Does the running interval ever leave out the pool's mean recall? Every LOOK audited queries it is looked at."""
    *plans, flat = found
    threshold = found[flat][:, K - 1 :] - 1e-6
    missed, widths = 0, []
    for trial in range(AUDITS):
        hits = (found[plans[trial % len(plans)]] >= threshold).sum(axis=1)
        drawn = hits[generator.integers(len(hits), size=AUDITED)]
        outside = False
        for end in range(LOOK, AUDITED + 1, LOOK):
            low, high = running_interval(np.bincount(drawn[:end], minlength=K + 1))
            outside |= not low <= hits.mean() / K <= high
        missed += outside
        widths.append(high - low)
    targets.append(Target.at_most("audit: intervals that ever leave out the true recall, share", missed / AUDITS, 0.05))
    facts["audit"] = {"missed": missed, "of": AUDITS, f"mean width after {AUDITED}": float(np.mean(widths))}
    click.echo(f"audit: {facts['audit']}")


def _live(index: FunnelIndex, pool: Float32, others: Float32, targets: list[Target], facts: dict[str, Any]) -> None:
    """Searches of the index itself, one query a call: no alarm, then one soon, and none once it was tuned."""
    calls = [partial(index.search_vectors, k=K, recall=recall) for recall in (0.9, 0.95)]
    known = pool[np.random.default_rng(1).permutation(len(pool))[:3_000]]
    index.audit(0.02)
    facts["live, known kind: alarm at"] = _until_warned(calls, known)
    at = _until_warned(calls, others)
    facts["live, scifact claims: alarm at"] = at
    facts["live, audits"] = [str(line) for line in index.health().audits]
    facts["live, health"] = str(index.health())
    click.echo(facts["live, health"])
    started = time.perf_counter()
    index.tune(others[: len(others) // 2], progress=False)
    facts["tune, seconds"] = time.perf_counter() - started
    again = _until_warned(calls, others[len(others) // 2 :])
    facts["live, tuned: alarm at"] = again
    targets += [
        Target.at_most("live: alarms before the switch", float(facts["live, known kind: alarm at"] is not None), 0),
        Target.at_most("live: queries until the switch is found", float("inf") if at is None else at, CAUGHT),
        Target.at_most("live: alarms on the new kind once it was tuned to", float(again is not None), 0),
    ]


def _cost(index: FunnelIndex, pool: Float32, targets: list[Target], facts: dict[str, Any]) -> None:
    """What noting a single query takes, and every 64th of them testing, beside the search itself."""
    plan = index.explain(K, recall=0.95).plan
    prepared = index.searcher.prepare(pool[:STREAM])
    single = [index.searcher.found(prepared[i : i + 1], plan, K) for i in range(len(prepared))]
    known = _run(index, pool[:STREAM], plan)[:, RANKS]
    watch = Drift(lambda _plan, _k: known)
    taken = np.array([_us(partial(watch.see, one.scores, plan)) for one in single])
    facts["watching, us a query"] = {
        "median": float(np.median(taken)),
        "mean": float(taken.mean()),
        "99th percentile": float(np.percentile(taken, 99)),
    }
    click.echo(f"watching, us a query: {facts['watching, us a query']}")
    targets.append(Target.at_most("watching single queries, us a query in the mean", float(taken.mean()), WATCHING_US))


def _until_warned(calls: Sequence[Callable[[Float32], object]], rows: Float32) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        for number in range(len(rows)):
            try:
                calls[number // 100 % len(calls)](rows[number : number + 1])
            except DriftWarning:
                return number + 1
    return None


def _us(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e6
