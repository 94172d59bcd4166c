"""`python -m benchmarks NAME`: every claim of the project with the command that makes it."""

from __future__ import annotations

import click

from benchmarks.adaptors import adaptors
from benchmarks.budget import budget
from benchmarks.choice import choice
from benchmarks.crash.command import crash
from benchmarks.damage import damage
from benchmarks.demo import demo
from benchmarks.drift import drift
from benchmarks.encoding import encoding
from benchmarks.exact import exact
from benchmarks.filters import filters
from benchmarks.gpu import gpu
from benchmarks.hybrid import hybrid
from benchmarks.latency import latency
from benchmarks.limited import limited
from benchmarks.matryoshka import matryoshka
from benchmarks.memory import memory
from benchmarks.peers import peers
from benchmarks.prefixes.command import prefixes
from benchmarks.promise import promise
from benchmarks.queries import queries
from benchmarks.rerank import rerank
from benchmarks.scale import scale
from benchmarks.scifact import scifact
from benchmarks.soak import soak
from benchmarks.tail import tail
from benchmarks.taught import taught
from benchmarks.texts import texts
from benchmarks.thirtieth import thirtieth
from benchmarks.updates import updates
from benchmarks.wide import wide


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def benchmarks() -> None:
    """Measure what the project claims. Results go to benchmarks/results/."""


for command in (
    adaptors,
    budget,
    choice,
    crash,
    damage,
    demo,
    drift,
    encoding,
    exact,
    filters,
    gpu,
    hybrid,
    latency,
    limited,
    matryoshka,
    memory,
    peers,
    prefixes,
    promise,
    queries,
    rerank,
    scale,
    scifact,
    soak,
    tail,
    taught,
    texts,
    thirtieth,
    updates,
    wide,
):
    benchmarks.add_command(command)

benchmarks()
