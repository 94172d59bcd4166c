"""What every benchmark shares: where the data is, where results go, how a target is judged."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

__all__ = ["RESULTS", "Target", "data_folder", "load_rows", "report"]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Target:
    """One figure, what was asked of it, and whether it was reached."""

    name: str
    value: float
    asked: str
    met: bool

    @classmethod
    def at_least(cls, name: str, value: float, bound: float) -> Target:
        """A figure that must not be below the bound."""
        return cls(name, value, f">= {bound:g}", value >= bound)

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> Target:
        """A figure that must not be above the bound."""
        return cls(name, value, f"<= {bound:g}", value <= bound)


def data_folder(given: Path | None) -> Path:
    """The folder of data sets: --data, or the variable FUNNEL_DATA, or ../shared/data."""
    folder = given or Path(os.environ.get("FUNNEL_DATA", "../shared/data"))
    if not folder.is_dir():
        raise click.ClickException(f"no data at {folder}; give --data FOLDER or set FUNNEL_DATA")
    return folder


def load_rows(path: Path) -> npt.NDArray[np.float32]:
    """Rows of a .npy file of any numeric type, scaled to unit length: float32 [n, d]."""
    rows = np.load(path, allow_pickle=False).astype(np.float32)
    scaled: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def report(name: str, targets: list[Target], facts: dict[str, Any], out: Path | None) -> None:
    """Print each target, write benchmarks/results/NAME.json, and say what was missed."""
    folder = out or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    record = {"targets": [asdict(target) for target in targets], **facts}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    click.echo()
    for target in targets:
        click.echo(f"{'met   ' if target.met else 'MISSED'}  {target.name}: {target.value:,.4g} (asked {target.asked})")
    click.echo(f"written to {folder / f'{name}.json'}")
