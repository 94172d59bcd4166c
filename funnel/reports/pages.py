"""One self-contained HTML page of results: inline style, figures as data, no other address named."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from funnel.data.queries import open_queries
from funnel.errors import InputError, MissingPackageError
from funnel.index import FunnelIndex
from funnel.plainjson import plain_json
from funnel.reports.bench import BenchQueries, held_out_queries
from funnel.reports.plots import frontier_plot
from funnel.reports.tables import (
    COMPARISON_COLUMNS,
    COMPARISON_NOTE,
    PREDICTION_COLUMNS,
    Column,
    Results,
    asked_text,
    budget_rows,
    comparison_rows,
    microseconds,
    shown_columns,
    text_table,
    times,
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_STYLE = """
:root { color: #222; background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
body { max-width: 1040px; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .5rem; }
p { margin: .4rem 0; }
.faint { color: #555; }
.note { border-left: 4px solid #d55e00; padding: .1rem 0 .1rem .8rem; }
.note.certified { border-color: #0072b2; }
figure { margin: 1.5rem 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; }
.wide + .wide { margin-top: 1.25rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem .3rem 0; text-align: right; white-space: nowrap; }
tr { border-bottom: 1px solid #e3e3e3; }
thead tr { border-bottom: 2px solid #444; }
.left { text-align: left; }
td.left:last-child { white-space: normal; min-width: 9rem; }
tbody th { font-weight: 400; color: #555; }
"""

_CAPTIONS = {
    "index": {
        "rows": "rows",
        "dim": "dimensions",
        "coarse": "coarse index",
        "adaptor": "adaptor",
        "ladder": "dims ladder",
        "held_mb": "held in memory, MB",
        "touched_mb": "pages of files touched, MB",
        "encoder": "encoder",
        "certificate": "certificate",
    },
    "machine": {
        "processor": "processor",
        "cores": "cores",
        "threads": "threads used",
        "device": "device",
        "torch": "torch",
        "faiss": "faiss",
        "numpy": "numpy",
        "python": "Python",
    },
}


def html_page(results: Results, figures: Sequence[tuple[str, bytes]] = ()) -> str:
    """The results as one HTML page that needs no other file; every text in it is escaped.

    Args:
        results: what was measured.
        figures: caption and PNG bytes of each figure.

    Raises:
        InputError: a figure is not a PNG.
    """
    sections = [
        _head(results),
        *(figure(caption, data) for caption, data in figures),
        "<h2>Against flat search</h2>",
        table(comparison_rows(results), COMPARISON_COLUMNS),
        f'<p class="faint">{escape(COMPARISON_NOTE)}</p>',
        "<h2>Predicted and measured</h2>",
        table(budget_rows(results), PREDICTION_COLUMNS),
        "<h2>The index</h2>",
        _facts(results["index"], _CAPTIONS["index"]),
        "<h2>The machine</h2>",
        _facts(results["machine"], _CAPTIONS["machine"]),
    ]
    return page(results["title"], sections)


def page(title: str, sections: Sequence[str]) -> str:
    """A whole page: the title, which is escaped, and sections that are HTML already."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            *sections,
            "</body>",
            "</html>",
            "",
        ]
    )


def _head(results: Results) -> str:
    flat, index = results["flat"], results["index"]
    certified = bool(results["funnel"]) and all(point["certified"] for point in results["funnel"])
    claims = "".join(
        f"<li>asked for {asked_text(point)}: measured {point['recall']:.4f}, "
        f"{times(point['speedup_batch'])} flat's speed in batch, "
        f"{times(point['speedup_single'])} one query a call</li>"
        for point in results["funnel"]
    )
    asked = escape(results.get("queries", "queries"))
    return (
        f"<h1>{escape(results['title'])}</h1>\n"
        f'<p class="faint">{escape(results["created"])} · recall@{results["k"]} on '
        f"{results['n_queries']:,} {asked} · flat search takes {microseconds(flat['us_batch'])} µs a query "
        f"in batch, {microseconds(flat['us_single'])} µs one query a call</p>\n"
        f"<ul>{claims}</ul>\n"
        f'<p class="note{" certified" if certified else ""}">{escape(index["certificate"])}</p>'
    )


def figure(caption: str, data: bytes) -> str:
    """A PNG within the page, its caption escaped. Raises InputError where the data are no PNG."""
    if not data.startswith(PNG_SIGNATURE):
        raise InputError(f"the figure {caption!r} is not a PNG; pass the bytes of a PNG file")
    text = escape(caption)
    source = base64.b64encode(data).decode("ascii")
    image = f'<img alt="{text}" src="data:image/png;base64,{source}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A table as HTML, every cell escaped."""
    shown = [(' class="left"' if column.left else "", column) for column in shown_columns(rows, columns)]
    head = "".join(f"<th{side}>{escape(column.title)}</th>" for side, column in shown)
    body = "\n".join(
        "<tr>" + "".join(f"<td{side}>{escape(column.cell(row))}</td>" for side, column in shown) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _facts(values: Mapping[str, Any], captions: Mapping[str, str]) -> str:
    rows = "\n".join(
        f'<tr><th class="left">{caption}</th><td class="left">{escape(_text(values[key]))}</td></tr>'
        for key, caption in captions.items()
    )
    return f'<div class="wide"><table><tbody>\n{rows}\n</tbody></table></div>'


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " → ".join(str(item) for item in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def bench_queries(index: FunnelIndex, path: Path | None) -> BenchQueries:
    """The queries to measure on: the user's file (texts are encoded), or held-out rows."""
    if path is None:
        return held_out_queries(index)
    queries = open_queries(str(path))
    vectors = queries.vectors
    if vectors is None:
        vectors = index.encode_queries(queries.texts or [])
    return BenchQueries(vectors, None if queries.ids is None else [str(id_) for id_ in queries.ids])


def write_results(results: Results, folder: Path) -> str:
    """Write results.json, frontier.png and report.html into the folder; returns the table for the terminal.

    Without matplotlib the plot is left out, and said so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(plain_json(results, indent=1), encoding="utf-8")
    plot, said = folder / "frontier.png", []
    try:
        frontier_plot(results, plot)
        figures = [("Recall against speed", plot.read_bytes())]
    except MissingPackageError as error:
        figures, said = [], [str(error)]
    (folder / "report.html").write_text(html_page(results, figures), encoding="utf-8")
    index = results["index"]
    return "\n".join(
        [
            f"{results['title']}: {index['rows']:,} x {index['dim']}, k={results['k']}, {results['n_queries']:,} "
            f"{results.get('queries', 'queries')}; {index['certificate']}",
            "",
            text_table(comparison_rows(results), COMPARISON_COLUMNS),
            COMPARISON_NOTE,
            "",
            text_table(budget_rows(results), PREDICTION_COLUMNS),
            "",
            f"written to {folder}/: results.json, report.html" + (", frontier.png" if figures else ""),
            *said,
        ]
    )
