"""A comparison as a Markdown table and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from funnel.peers.curve import best_points, time_at
from funnel.reports.plots import (
    BATCH_COLOUR,
    FAINT,
    FLAT_COLOUR,
    GREEN,
    ORANGE,
    PURPLE,
    SINGLE_COLOUR,
    SKY,
    TEXT,
    new_figure,
    save_figure,
)

__all__ = ["plot", "table"]

CLOCKS = (("us_batch", "in batch"), ("us_single", "one query"))
COLOURS = (BATCH_COLOUR, GREEN, PURPLE, ORANGE, SKY, FLAT_COLOUR)
LINES = ("-", "--", ":", "-.")  # each colour comes once with each
LEAST_DRAWN, TICKS = 0.8, (0.8, 0.85, 0.9, 0.95, 1.0)  # recalls


def table(one: dict[str, Any]) -> str:
    """The comparison of one k: microseconds of each at the recalls that the funnel measured, and what it takes."""
    free = one["funnel"][0]
    recalls = [point["recall"] for point in free["points"]]
    heads = [f"{said}, {recall:.4f}" for _, said in CLOCKS for recall in recalls]
    lines = [
        f"{one['rows']:,} x {one['dim']} of {one['vectors']}; k = {one['k']}, {one['threads']} threads, "
        f"{one['unseen']:,} queries that certified nothing; microseconds a query at the recall named, "
        "between two points of each library's own curve; held: anonymous memory, touched: pages of mapped files",
        "",
        f"| search | build | held | touched | {' | '.join(heads)} | certificate |",
        "|:--|--:|--:|--:|" + "--:|" * len(heads) + ":--|",
    ]
    for ours in one["funnel"]:
        cells = [f"{point[clock]:,.0f}" for clock, _ in CLOCKS for point in ours["points"]]
        if ours is not free:
            reached = ", ".join(f"{point['recall']:.4f}" for point in ours["points"])
            cells[0] += f" (recall {reached})"
        lines.append(_line(f"**{ours['peer']}** ({ours['coarse']})", ours, [*cells, _certified(ours)]))
    for peer in one["peers"]:
        cells = [_us(time_at(peer["points"], recall, clock)) for clock, _ in CLOCKS for recall in recalls]
        lines.append(_line(f"{_name(peer)} ({peer['version']})", peer, [*cells, "none"]))
    if any(_earlier(peer) for peer in one["peers"]):
        lines += ["", "\\* swept in an earlier run, and not timed in turns with the others"]
    lines += ["", *(f"- left out: {name}, {why}" for name, why in one["left_out"].items())]
    return "\n".join(lines).rstrip()


def _earlier(record: dict[str, Any]) -> bool:
    return "touched_bytes" not in record


def _name(record: dict[str, Any]) -> str:
    return record["peer"] if record["build"] == "default" else f"{record['peer']}, {record['build']}"


def _certified(record: dict[str, Any]) -> str:
    """Of each recall that was asked for, the bound that is certified."""
    said = (
        f"{point['asked']:g}: {'at least ' + format(point['lower_bound'], '.4f') if point['certified'] else 'none'}"
        for point in record["points"]
    )
    return "; ".join(said)


def _line(name: str, record: dict[str, Any], cells: list[str]) -> str:
    touched = "\\*" if _earlier(record) else f"{record['touched_bytes'] / 1e6:,.0f} MB"
    held = f"{record['resident_bytes'] / 1e6:,.0f} MB"
    return f"| {name} | {record['build_seconds']:.0f} s | {held} | {touched} | {' | '.join(cells)} |"


def _us(value: float) -> str:
    return "–" if math.isinf(value) else f"{value:,.0f}"


def plot(one: dict[str, Any], path: Path) -> None:
    """Queries a second against recall, in batch and alone, the best points of each. Raises MissingPackageError."""
    figure = new_figure((12.0, 5.6))
    title = f"{one['rows']:,} x {one['dim']} · k = {one['k']} · {one['threads']} threads · up and right is better"
    figure.suptitle(title, fontsize=11, x=0.05, ha="left", color=TEXT)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (clock, said) in zip(panels, CLOCKS, strict=True):
        styles = _styles()
        for peer in one["peers"]:
            colour, line = next(styles)
            curve = [(recall, 1e6 / us) for recall, us in best_points(peer["swept"], clock) if recall >= LEAST_DRAWN]
            if curve:
                panel.plot(*zip(*curve, strict=True), line, color=colour, marker=".", linewidth=1, label=_name(peer))
        for ours, line in zip(one["funnel"], LINES, strict=False):
            curve = [(point["recall"], 1e6 / point[clock]) for point in ours["points"]]
            points = zip(*curve, strict=True)
            panel.plot(*points, line, color=SINGLE_COLOUR, marker="o", linewidth=2.4, label=ours["peer"])
        panel.set_yscale("log")
        panel.set_xlim(LEAST_DRAWN, 1.003)
        panel.set_xticks(TICKS)
        panel.set_xlabel(f"recall@{one['k']}")
        panel.set_title(said, fontsize=10, loc="left", color=TEXT)
        panel.grid(True, which="major", color=FAINT, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("queries a second")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="center right", fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 0.82, 0.97))
    save_figure(figure, path)


def _styles() -> Iterator[tuple[str, str]]:
    while True:
        yield from ((colour, line) for line in LINES for colour in COLOURS)
