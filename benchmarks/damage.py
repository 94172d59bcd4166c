"""Every file of an index damaged, a bit or an end at a time: is it found before it is used, and named?"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from benchmarks.common import Target, report
from benchmarks.crash.operations import GROWN, STARTS, vectors
from funnel import FLAT, FunnelIndex
from funnel.errors import DamagedIndexError
from funnel.storage import IndexFolder, check
from funnel.storage.layout import CURRENT, GENERATIONS, generation_name, is_cache

__all__ = ["damage"]

REOPENED_EVERY = 50  # of damaged caches: the index is opened as well, which makes them again
LAZY_EVERY = 10  # of damaged files that can be checked on first touch: it is searched before they were checked in full


@dataclass
class _Count:
    """Of one kind of file: how often it was damaged, and how often that was not found as it should be."""

    flips: int = 0
    truncations: int = 0
    missed: int = 0


@click.command()
@click.option("--count", default=1_000, show_default=True, help="Bit flips, and truncations, of each kind of file.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for results. [default: benchmarks/results]")
def damage(count: int, seed: int, out: Path | None) -> None:
    """Flip single bits of, and cut short, every kind of file of an index with documents, additions and deletions.

    Example: python -m benchmarks damage
    """
    random = np.random.default_rng(seed)
    table: dict[str, _Count] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "index"
        STARTS["grown"](folder)
        kinds = _kinds(folder)
        if _problem(folder, None) is not None:
            raise click.ClickException("the index is not sound to begin with")
        for kind, paths in kinds.items():
            counted = table[kind] = _Count()
            for number in tqdm(range(2 * count), desc=kind, unit="trials", mininterval=5):
                path = paths[int(random.integers(len(paths)))]
                flip = number < count
                counted.flips, counted.truncations = counted.flips + flip, counted.truncations + (not flip)
                good = path.read_bytes()
                path.write_bytes(_flipped(good, random) if flip else good[: int(random.integers(len(good)))])
                problem = _problem(folder, path.relative_to(folder).as_posix(), number)
                path.write_bytes(good)
                if problem is not None:
                    counted.missed += 1
                    click.echo(f"{kind}: {problem}")
        if _problem(folder, None) is not None:
            raise click.ClickException("the index was not restored")
    _say(table, out)


def _kinds(folder: Path) -> dict[str, list[Path]]:
    """The live generation's files by kind: their names, but manifests and tombstones, called by numbers, by folders."""
    manifest = IndexFolder(folder).manifest()
    kinds = {CURRENT: [folder / CURRENT], GENERATIONS: [folder / GENERATIONS / generation_name(manifest.generation)]}
    for relative in sorted(manifest.files):
        kind = "tombstones" if relative.startswith("tombstones/") else relative.rsplit("/", 1)[-1]
        kinds.setdefault(kind, []).append(folder / relative)
    return kinds


def _flipped(good: bytes, random: np.random.Generator) -> bytes:
    data = bytearray(good)
    data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
    return bytes(data)


def _problem(folder: Path, damaged: str | None, number: int = 0) -> str | None:
    """What is not as it should be, of an index one of whose files is damaged, or none."""
    lines = [line for line in check(folder).lines if line.status in ("damaged", "rebuildable")]
    if damaged is None:
        return str(lines) if lines else None
    # A CURRENT of the right form that names another manifest is one half of a pair that disagrees.
    if not any(damaged in line.file + line.detail for line in lines):
        return f"check does not name {damaged}: {lines}"
    if damaged != CURRENT and damaged.split("/")[0] != GENERATIONS and is_cache(damaged):
        return _cache_problem(folder, damaged, number)
    try:
        FunnelIndex.open(folder)
    except DamagedIndexError as error:
        if damaged not in str(error):
            return f"opening does not name {damaged}: {error}"
    else:
        return f"opened with a damaged {damaged}"
    return _lazy_problem(folder, damaged) if number % LAZY_EVERY == 0 else None


def _cache_problem(folder: Path, damaged: str, number: int) -> str | None:
    disk = IndexFolder(folder)
    if list(disk.verify(disk.manifest()).damaged_caches) != [damaged]:
        return f"{damaged} is not among the damaged caches"
    if number % REOPENED_EVERY:
        return None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        index = FunnelIndex.open(folder)
    if not any(damaged in str(warning.message) for warning in said):
        return f"{damaged} was made again without a word"
    return None if _answers(index) else f"an index whose {damaged} was made again answers wrongly"


def _lazy_problem(folder: Path, damaged: str) -> str | None:
    """Opened lazily, and every row searched: the damage must show before an answer does."""
    try:
        index = FunnelIndex.open(folder, verify="lazy")
        _answers(index)
    except DamagedIndexError as error:
        return None if damaged in str(error) else f"lazily, {damaged} is not named: {error}"
    return f"lazily, {damaged} was searched"


def _answers(index: FunnelIndex) -> bool:
    found = index.search_vectors(vectors(GROWN), 1, plan=FLAT)
    return [str(row[0]) for row in found.ids] == list(GROWN)


def _rows(table: dict[str, _Count]) -> Iterator[str]:
    yield "| file | bit flips | truncations | not found or not named |"
    yield "|:--|--:|--:|--:|"
    for kind, counted in table.items():
        yield f"| `{kind}` | {counted.flips:,} | {counted.truncations:,} | {counted.missed} |"


def _say(table: dict[str, _Count], out: Path | None) -> None:
    click.echo("\n" + "\n".join(_rows(table)))
    trials = sum(counted.flips + counted.truncations for counted in table.values())
    missed = sum(counted.missed for counted in table.values())
    targets = [Target.at_least("flips and truncations found and named, %", 100.0 * (1 - missed / trials), 100.0)]
    report("damage", targets, {"table": {kind: vars(counted) for kind, counted in table.items()}}, out)
    if missed:
        raise SystemExit(1)
