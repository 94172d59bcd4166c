"""The comparison as a table and a plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.peers.frontier import best_points, time_at

__all__ = ["plot", "table"]


def table(facts: dict[str, Any]) -> str:
    """Markdown: for every recall the funnel measured, each peer's microseconds there, in batch and single."""
    free = facts["funnel"][0]
    heads = [f"{point['recall']:.4f}" for point in free["points"]]
    lines = [
        "| search | build | held | " + " | ".join(f"batch at {head}" for head in heads)
        + " | " + " | ".join(f"single at {head}" for head in heads) + " |",
        "|:--|--:|--:|" + "--:|" * (2 * len(heads)),
    ]  # fmt: skip
    for funnel in facts["funnel"]:
        own = [f"{point['us_batch']:.0f} µs" for point in funnel["points"]]
        own += [f"{point['us_single']:.0f} µs" for point in funnel["points"]]
        if funnel is not free:
            measured = ", ".join(f"{point['recall']:.4f}" for point in funnel["points"])
            own[0] += f" (recall {measured})"
        lines.append(_row(f"**{funnel['peer']}**: {funnel['coarse']}", funnel, own))
    for peer in facts["peers"]:
        cells = [
            _us(time_at(peer["points"], point["recall"], clock))
            for clock in ("us_batch", "us_single")
            for point in free["points"]
        ]
        name = peer["peer"] if peer["build"] == "default" else f"{peer['peer']}, {peer['build']}"
        lines.append(_row(f"{name} ({peer['version']})", peer, cells))
    lines += [f"| {name}: left out, {why} |" for name, why in facts["left_out"].items()]
    return "\n".join(lines)


def _row(name: str, record: dict[str, Any], cells: list[str]) -> str:
    held = f"{record['resident_bytes'] / 1e6:,.0f} MB"
    return f"| {name} | {record['build_seconds']:.0f} s | {held} | " + " | ".join(cells) + " |"


def _us(value: float) -> str:
    return "–" if math.isinf(value) else f"{value:,.0f} µs"


def plot(facts: dict[str, Any], path: Path) -> None:
    """Queries a second against recall, in batch and single, every peer's best curve."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 5.2), sharey=False)
    for panel, clock, title in zip(panels, ("us_batch", "us_single"), ("in batch", "one query at a time"), strict=True):
        colours = iter(matplotlib.color_sequences["tab20"])
        for peer in facts["peers"]:
            curve = [(recall, 1e6 / us) for recall, us in best_points(peer["swept"], clock) if recall >= 0.8]
            name = peer["peer"] if peer["build"] == "default" else f"{peer['peer']}, {peer['build']}"
            colour = next(colours)
            if curve:
                panel.plot(*zip(*curve, strict=True), marker=".", linewidth=1, color=colour, label=name)
        for funnel, style in zip(facts["funnel"], ("-", "--"), strict=False):
            curve = [(point["recall"], 1e6 / point[clock]) for point in funnel["points"]]
            panel.plot(*zip(*curve, strict=True), "k" + style, marker="o", linewidth=2.2, label=funnel["peer"])
        panel.set_yscale("log")
        panel.set_xlim(0.8, 1.003)
        panel.set_xlabel(f"recall@{facts['k']}")
        panel.set_ylabel("queries a second")
        panel.set_title(title)
        panel.grid(True, which="both", alpha=0.25)
    panels[1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
