"""python -m benchmarks peers: `funnel compare` with the project's own targets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from benchmarks.common import RESULTS, Target, load_rows, report
from benchmarks.wide import caption
from funnel.peers.comparison import FLAT, Comparison, compare, peers_named
from funnel.peers.curve import time_at
from funnel.peers.libraries import PEERS
from funnel.peers.table import table

__all__ = ["peers"]

WHOLE = "symphonyqg"


@click.command()
@click.option("--vectors", type=click.Path(path_type=Path, exists=True), required=True, help="Corpus rows, .npy.")
@click.option("--queries", type=click.Path(path_type=Path, exists=True), required=True, help="Real queries, .npy.")
@click.option("--k", "ks", type=int, multiple=True, default=(10,), show_default=True, help="May be repeated.")
@click.option("--threads", default=2, show_default=True)
@click.option("--memory-share", type=float, help="Also a funnel that holds at most this share of the float32 rows.")
@click.option("--only", help="Peers by name, separated by commas. [default: all]")
@click.option("--lean", is_flag=True, help="One build of each peer, its first.")
@click.option("--minutes", default=1e4, help="No build begins later, and none goes on. [default: none]")
@click.option("--passes", default=5, show_default=True, help="In which the times that are shown are taken.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "peers", show_default=True)
def peers(
    vectors: Path,
    queries: Path,
    ks: tuple[int, ...],
    threads: int,
    memory_share: float | None,
    only: str | None,
    lean: bool,
    minutes: float,
    passes: int,
    out: Path,
) -> None:
    """`funnel compare`, judged by what is asked of the project.

    Example: python -m benchmarks peers --vectors corpus.npy --queries queries.npy --k 10 --k 100 --lean --minutes 20
    """
    rows = load_rows(vectors)
    click.echo(caption(vectors, rows))
    limits = () if memory_share is None else (memory_share * rows.nbytes / 1e6,)
    del rows
    wanted = list(PEERS) if only is None else peers_named(only.split(","))
    how = Comparison(wanted, ks, threads, None, limits, lean, minutes, passes)
    found = compare(vectors, queries, out, how)
    targets = []
    for one in found:
        click.echo(f"\n{table(one)}\n")
        targets += _targets(one)
    report(f"peers-{vectors.stem}", targets, {f"k={one['k']}": one for one in found}, out)


# By the full width: at least so many times as fast as these, in batch, at the recalls named. "others": the best peer
# but SymphonyQG over whole rows. At 384: 200,000 rows.
ASKED: dict[int, dict[str, tuple[float, tuple[float, ...]]]] = {
    384: {WHOLE: (0.7, (0.95,)), FLAT: (22, (0.95,)), "hnswlib": (2.3, (0.95,))},
    1536: {"hnswlib": (6, (0.95, 0.99)), "others": (2, (0.95, 0.99))},
}
HELD = {384: 0.56}  # at most so much of what SymphonyQG holds over whole rows


def _targets(facts: dict[str, Any]) -> list[Target]:
    """The project's own targets, at every recall asked for."""
    free, *small = facts["funnel"]
    targets: list[Target] = []

    def at_least(name: str, time: float, than: float, bound: float) -> None:
        if math.isinf(time):
            click.echo(f"no peer to compare with: {name}")
        else:
            targets.append(Target.at_least(f"k = {facts['k']}, {name}", time / than, bound))

    for point in free["points"]:
        for name, (bound, recalls) in ASKED.get(facts["dim"], {}).items():
            if point["asked"] in recalls:
                at = 0.0 if name == FLAT else point["recall"]
                said = f"{point['asked']:.2f}: times {name} in batch"
                at_least(said, _of(facts, name, at), point["us_batch"], bound)
        targets.append(Target.at_least(f"k = {facts['k']}, recall, unseen", point["recall"], point["asked"]))
    whole = [record["resident_bytes"] for record in facts["peers"] if record["peer"] == WHOLE]
    if whole and facts["dim"] in HELD:
        share = free["resident_bytes"] / min(whole)
        targets.append(Target.at_most(f"share of what {WHOLE} holds", share, HELD[facts["dim"]]))
    for funnel in small:
        most = funnel["memory_mb"] * 1e6
        share = funnel["resident_bytes"] / facts["raw_bytes"]
        targets.append(Target.at_most("share of the float32 rows held", share, most / facts["raw_bytes"]))
        for point in funnel["points"]:
            at, asked, batch = point["recall"], f"{point['asked']:.2f} in {most / 1e6:.0f} MB", point["us_batch"]
            at_least(f"{asked}: times the best peer that fits", _best(facts, at, "us_batch", most), batch, 2)
            at_least(f"{asked}: times hnswlib without a cap", _of(facts, "hnswlib", at), batch, 1.5)
    return targets


def _best(facts: dict[str, Any], at: float, clock: str, most_bytes: float = math.inf) -> float:
    """The least time of any peer at this recall that holds no more than so many bytes."""
    fitting = [record for record in facts["peers"] if record["resident_bytes"] <= most_bytes]
    return min((time_at(record["points"], at, clock) for record in fitting), default=math.inf)


def _of(facts: dict[str, Any], name: str, at: float) -> float:
    named = [one for one in facts["peers"] if one["peer"] == name or (name == "others" and one["peer"] != WHOLE)]
    return min((time_at(record["points"], at, "us_batch") for record in named), default=math.inf)
