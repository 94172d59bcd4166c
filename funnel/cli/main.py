"""The command line."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import click

from funnel.cli.options import (
    CACHE,
    PATH,
    QUIET,
    SEED,
    OpenIndex,
    encodes,
    fields,
    opens,
    plan_by_hand,
    prompts,
    widths,
)
from funnel.errors import FunnelError, InputError
from funnel.identifiers import SHOWN_CHARACTERS, id_lines, whole_number
from funnel.plainjson import plain_json
from indexes.errors import CoarseIndexError, MissingBackendError

if TYPE_CHECKING:
    from funnel.budget import Budget
    from funnel.building.training import JudgedBy
    from funnel.encoding.encoders import EncoderSource
    from funnel.index import FunnelIndex
    from funnel.results import Hits

EXPECTED = (FunnelError, CoarseIndexError, MissingBackendError, OSError)
INTERRUPTED, PIPE_CLOSED = 130, 141  # what a shell gives for SIGINT and SIGPIPE
UNEXPECTED = 1  # of an error that nobody foresaw
OF_THE_PATH = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
)
LONGEST_PATH = 200  # characters of a path in an error
TEXT_SHOWN = 160  # characters of a document's text in the list of hits


class _Commands(click.Group):
    """Commands whose errors are one line, unless --debug asks for the traceback; exit code 2 where expected."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            _refuse(_said(error))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted", err=True)
            sys.exit(INTERRUPTED)
        except (click.exceptions.NoArgsIsHelpError, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if getattr(error, "errno", None) == errno.EPIPE:  # whoever read the output has left, as head does
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(PIPE_CLOSED)
            if ctx.params.get("debug"):
                raise
            _refuse(_said(error), 2 if isinstance(error, (*EXPECTED, click.UsageError)) else UNEXPECTED)


def _refuse(said: str, code: int = 2) -> NoReturn:
    click.echo(f"Error: {' '.join(said.split())}", err=True)
    sys.exit(code)


def _said(error: Exception) -> str:
    """What was given, what was expected and what to do."""
    if isinstance(error, click.UsageError):
        said, of = error.format_message(), error.ctx
        return said if of is None or "Did you mean" in said else f"{said.rstrip('.')}; see {of.command_path} --help"
    if isinstance(error, OSError) and error.filename is not None:
        remedy = "give another path" if error.errno in OF_THE_PATH else "put that right, and try again"
        return f"cannot use {str(error.filename)[:LONGEST_PATH]}: {error.strerror}; {remedy}"
    if isinstance(error, EXPECTED):
        return str(error)
    return f"{type(error).__name__}: {error}; run it again as funnel --debug ... and report what that shows"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="funnel-retrieval")
def cli(debug: bool) -> None:
    """Nearest documents within a stated recall or latency.

    Example: funnel build docs.jsonl my-index --queries queries.jsonl && funnel search my-index "open a file"
    """


@cli.command()
@click.argument("corpus", type=PATH)
@click.argument("index", type=PATH)
@click.option("--queries", type=PATH, help="Real queries that certify recall: .jsonl, .csv, .parquet, .txt or .npy.")
@click.option("--qrels", type=PATH, help="Judgements (BEIR .tsv): the queries they name train, the others certify.")
@click.option(
    "--training-queries", type=PATH,
    help="Queries that train the adaptor and never certify. [default: those beyond the first 2,000 of --queries]",
)  # fmt: skip
@click.option("--encoder", help="A sentence-transformers model, by name or folder. [default: all-MiniLM-L6-v2]")
@click.option(
    "--adaptor", default="auto", show_default=True,
    help="auto: train and choose; or a kind such as pca, or the folder of a trained one.",
)  # fmt: skip
@click.option(
    "--dims", callback=widths, help="Widths to store, such as 64,128,256; the coarse index is over one of them."
)
@click.option("--memory-mb", type=float, help="Megabytes that it may hold in memory (mapped files apart).")
@click.option("--coarse", help="The coarse index by name; chosen by measurement otherwise.")
@click.option(
    "--corpus-like-queries", is_flag=True,
    help="Queries are documents: those that equal rows of the corpus certify as well.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(["auto", "float16", "float32"]), default="auto", show_default=True,
    help="Of the rows as stored; auto: float16 where exact search over it keeps .9995 of the true top 10.",
)  # fmt: skip
@prompts
@click.option("--exact-encoding", is_flag=True, help="Encode in float32 with the model's own encode.")
@fields
@SEED
@click.option("--overwrite", is_flag=True, help="Replace the index that the folder holds.")
@QUIET
def build(corpus: Path, index: Path, queries: Path | None, quiet: bool, **options: Any) -> None:
    """Build the folder INDEX from CORPUS: a BEIR folder, .jsonl, .csv, .parquet or .npy.

    Example: funnel build scifact my-index --queries scifact/queries.jsonl
    """
    from funnel.building.info import said_bytes
    from funnel.index import FunnelIndex

    built = FunnelIndex.build(corpus, index, queries=queries, progress=not quiet, **options)
    manifest = built.manifest
    click.echo(
        f"{index}: {len(built):,} rows of {manifest.d} dims, {manifest.settings.coarse} over "
        f"{manifest.coarse_width} dims, {said_bytes(built.held_bytes)} held; {built.certification}"
    )
    if quiet:  # else it was said on the way
        click.echo(f"adaptor: {built.manifest.settings.adaptor.why}")


@cli.command()
@click.argument("index", type=PATH)
@click.argument("words", nargs=-1, metavar="[TEXT]")
@click.option("-k", "--k", default=10, show_default=True, help="How many hits.")
@click.option("--recall", type=float, help="Share of the true top k to find. [default: 0.95]")
@click.option("--share", type=float, help="Share of queries that get --recall, rather than the mean of all.")
@click.option("--latency-ms", type=float, help="Milliseconds that 95 % of searches stay within.")
@plan_by_hand
@click.option("--deadline-ms", type=float, help="Begin no further stage after so long; the best so far is shown.")
@click.option(
    "--hybrid", type=float, help="Fuse with BM25 over titles and texts: the weight of that list, such as 0.5."
)
@click.option("--where", help="Only documents whose metadata meet this, such as \"year >= 2020 AND lang = 'en'\".")
@click.option("--vector", type=PATH, help="Search with the vectors of a .npy file instead of a text.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a query, a line each.")
@opens
def search(
    open_index: OpenIndex,
    index: Path,
    words: tuple[str, ...],
    k: int,
    vector: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Search INDEX for TEXT, or for every line of standard input.

    Example: funnel search my-index "read a csv file" -k 5 --recall 0.99
    """
    from funnel.budget import Budget

    text, plan, hybrid = " ".join(words) if words else None, asked["plan"], asked["hybrid"]
    if text is not None and not text.strip():  # words without quotes are one text
        raise InputError("the text is empty; give words to search for, or one query a line on standard input")
    if text is not None and vector is not None and hybrid is None:
        raise InputError(
            "a text beside --vector gives the words of a hybrid search; give --hybrid 0.5 too, or one of the two alone"
        )
    opened = open_index(index)
    vectors = None if vector is None else _read_vectors(vector)
    budget = Budget(asked["recall"], asked["latency_ms"], share=asked["share"]) if plan is None else None
    promise = None if budget is not None or as_json else f"plan by hand {plan} (not certified)"
    if budget is not None and not as_json and asked["where"] is None:
        promise = _promise(opened, k, budget, vectors, hybrid)
    answers: Iterable[tuple[str, Any]]
    if vectors is None:
        answers = ((line, opened.search(line, k, **asked)) for line in (_lines() if text is None else [text]))
    else:
        texts = None if hybrid is None else [text] if text is not None else list(_lines())
        found = opened.search(vectors, k, text=texts, **asked)
        answers = zip(texts or [f"{vector}:{row}" for row in range(len(vectors))], found, strict=True)
    for query, hits in answers:
        if promise is not None:  # once there are hits it holds for, so that an error stays one line
            click.echo(promise, err=True)
        promise = None
        _show(query, hits, as_json)


def _lines() -> Iterator[str]:
    """The queries on standard input, one a line. InputError where there are none."""
    if sys.stdin.isatty():
        click.echo("Queries from the keyboard, one a line; Ctrl-D ends:", err=True)
    asked = False
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InputError(f"line {number} of standard input is not UTF-8; expected a query a line") from None
        if line:
            asked = True
            yield line
    if not asked:
        raise InputError("standard input holds no query; give a text, or one query a line")


def _promise(index: FunnelIndex, k: int, budget: Budget, vectors: Any, hybrid: float | None) -> str:
    from funnel.budget import check_k
    from funnel.engine.hybrid import list_depth
    from funnel.request import Reading, Request
    from funnel.results import BM25_ALONE

    if hybrid == 1.0:
        return BM25_ALONE
    k, fused = check_k(k, len(index)), None
    if hybrid is not None:
        k, fused = list_depth(k, len(index)), k
    asked = Request(k, budget=budget, reading=Reading(encoded=vectors is None, fused=fused))
    choice = index.choose(asked, k, 1 if vectors is None else len(vectors))
    said = f"{choice.plan} ({choice.certificate})"
    return said if hybrid is None else f"dense list of {k}: {said}; fused with BM25 of weight {hybrid:g}"


def _read_vectors(path: Path) -> Any:
    import numpy as np

    try:
        with path.open("rb") as file:
            vectors = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy file of numbers, or is cut short; save it with numpy.save") from error
    if vectors.ndim not in (1, 2) or not vectors.size:
        raise InputError(f"{path} has shape {list(vectors.shape)}; expected one vector [d], or [n, d]")
    return np.atleast_2d(vectors)


def _show(query: str, hits: Hits, as_json: bool) -> None:
    if as_json:
        found = [
            {"id": hit.id, "score": hit.score, "title": hit.title, "text": hit.text, "metadata": hit.metadata}
            | ({} if hit.ranks is None else {"ranks": asdict(hit.ranks)})
            for hit in hits
        ]
        click.echo(plain_json({"query": query, "hits": found, "served": hits.served.to_json()}))
        return
    click.echo(f"\n{query}")
    served, how = hits.served, ""
    if served.skipped:
        how = "; ranked by a prefix" if served.lexical is not None else "; scores are cosines on a prefix"
    if not served.complete or served.allowed_rows is not None or served.stored_only:
        click.echo(f"({served}{how})", err=True)
    for rank, hit in enumerate(hits, 1):
        title = f"  {hit.title}" if hit.title else ""
        click.echo(f"{rank:>4}  {hit.score:.4f}  {hit.id}{title}")
        text = " ".join(hit.text.split())
        if text:
            click.echo(f"              {text[:TEXT_SHOWN]}{'…' if len(text) > TEXT_SHOWN else ''}")


@cli.command()
@click.argument("index", type=PATH)
@click.option("-k", "--k", default=10, show_default=True)
@click.option("--recall", type=float, help="One budget, stage by stage.")
@click.option("--share", type=float, help="Share of queries that get --recall, rather than the mean of all.")
@click.option("--latency-ms", type=float, help="One budget, stage by stage.")
@plan_by_hand
@click.option("--batch", default=1, show_default=True, help="Queries in one call.")
@click.option("--run", is_flag=True, help="Run the plan: measured time and recall of each stage.")
@click.option("--plot", type=PATH, help="Also draw every plan, recall against cost, as a PNG.")
@click.option("--json", "as_json", is_flag=True)
def explain(
    index: Path,
    k: int,
    batch: int,
    run: bool,
    plot: Path | None,
    as_json: bool,
    **budget: Any,
) -> None:
    """Show the plan that serves each budget, and what is promised of it.

    Example: funnel explain my-index --recall 0.99
    """
    from funnel.index import FunnelIndex
    from funnel.reports.plots import plot_frontier
    from funnel.reports.tables import budgets_table, explain_budgets

    if plot is not None and plot.suffix != ".png":
        raise InputError(f"--plot is {plot}; expected a path that ends in .png")
    opened = FunnelIndex.open(index)
    if all(value is None for value in budget.values()):
        explained = explain_budgets(opened, k, batch, run=run)
        text = budgets_table(opened, explained)
        if run:
            once = {line.plan: line for line in reversed(explained)}  # the steps of each plan, under its first budget
            text = "\n\n".join([text, *map(str, reversed(once.values()))])
    else:
        explained = [opened.explain(k, **budget, batch=batch, run=run)]
        text = str(explained[0])
    if plot is not None:
        plot_frontier(opened, plot, k, batch)
    click.echo(plain_json([line.to_json() for line in explained]) if as_json else text)


@cli.command()
@click.argument("index", type=PATH)
@click.option("--queries", type=PATH, help="Queries to measure on, other than those that calibrated.")
@click.option("--qrels", type=PATH, help="Judgements (BEIR .tsv): adds nDCG@10 and recall@100.")
@click.option("-k", "--k", default=10, show_default=True)
@click.option("--batch", default=256, show_default=True, help="Queries in a call for the figures in batch.")
@plan_by_hand
@click.option("--out", type=PATH, default=Path("funnel-bench"), show_default=True, help="Folder for the results.")
@opens
def bench(
    open_index: OpenIndex,
    index: Path,
    queries: Path | None,
    qrels: Path | None,
    k: int,
    batch: int,
    plan: str | None,
    out: Path,
) -> None:
    """Measure the funnel against flat search on your own queries; a table, results.json, a plot and a page.

    Example: funnel bench my-index --queries unseen.jsonl --qrels qrels/test.tsv --out report
    """
    from funnel.data.queries import read_qrels
    from funnel.reports.bench import bench as run_bench
    from funnel.reports.pages import bench_queries, write_results

    opened = open_index(index)
    measured_on = bench_queries(opened, queries)
    judgements = None if qrels is None else read_qrels(qrels)
    out.mkdir(parents=True, exist_ok=True)  # before minutes of measuring rather than after
    results = run_bench(opened, measured_on, index.name, judgements, k, batch=batch, plan=plan, progress=True)
    click.echo(write_results(results, out))


@cli.command()
@click.argument("vectors", type=PATH)
@click.option("--queries", type=PATH, required=True, help="Real query vectors; half, at most 2,000, are measured on.")
@click.option("--with", "names", help="Libraries, such as hnswlib,faiss,svs-lvq. [default: all that are installed]")
@click.option("-k", "--k", "ks", type=int, multiple=True, default=(10,), show_default=True, help="May be repeated.")
@click.option("--threads", default=2, show_default=True, help="Of every library.")
@click.option("--memory-mb", type=float, multiple=True, help="Also a funnel that holds so many megabytes at most.")
@click.option("--lean", is_flag=True, help="One build of each library, its first.")
@click.option("--minutes", default=1e4, help="No build begins later, and none goes on. [default: none]")
@click.option("--passes", default=5, show_default=True, help="In which the times that are shown are taken.")
@click.option("--out", type=PATH, default=Path("funnel-compare"), show_default=True, help="Folder for the results.")
@QUIET
def compare(vectors: Path, queries: Path, names: str | None, out: Path, quiet: bool, **options: Any) -> None:
    """The funnel beside other libraries on your own vectors: recall, times, memory, build; a table and a picture.

    Each library is installed by you; those that are not there are named. A run that was ended goes on from what the
    folder of results holds.

    Example: funnel compare corpus.npy --queries queries.npy --with hnswlib,faiss --lean
    """
    from funnel.peers.comparison import Comparison, compare, peers_named
    from funnel.peers.libraries import PEERS
    from funnel.peers.table import table

    wanted = list(PEERS) if names is None else peers_named([name.strip() for name in names.split(",")])
    how = Comparison(wanted, progress=not quiet, **options)
    for one in compare(vectors, queries, out, how):
        click.echo(f"{table(one)}\n")
    click.echo(f"written to {out}")


@cli.command()
@click.argument("index", type=PATH)
@click.option("--deep", is_flag=True, help="Also test that the parts agree with each other.")
def check(index: Path, deep: bool) -> None:
    """Check every file of INDEX against its checksum.

    Example: funnel check my-index --deep
    """
    from funnel.reports.check import deep_check
    from funnel.storage import check as check_files

    report = check_files(index, progress=True)
    for line in report.lines:
        click.echo(f"{line.status:<12} {line.file}{f': {line.detail}' if line.detail else ''}")
    if not report.ok:
        damaged = ", ".join(line.file for line in report.lines if line.status == "damaged")
        raise FunnelError(f"{index} is damaged: {damaged}")
    if deep:
        for statement in deep_check(index):
            click.echo(f"{'ok':<12} {statement}")
    click.echo(f"{index}: ok")


@cli.command()
@click.argument("index", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(index: Path, as_json: bool) -> None:
    """Show what INDEX is: rows, widths, adaptor, coarse index, calibration, sizes; nothing large is read.

    Example: funnel info my-index
    """
    from funnel.building.info import read_info

    found = read_info(index)
    click.echo(plain_json(found.to_json()) if as_json else str(found))


@cli.command()
@click.argument("index", type=PATH)
@click.argument("out", type=PATH)
@click.option("--adapted", is_flag=True, help="Adapted vectors, at full width, in place of your own.")
@click.option("--flat", is_flag=True, help="For .faiss: an exact IndexFlatIP, in place of the coarse index.")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@QUIET
def export(index: Path, out: Path, adapted: bool, flat: bool, overwrite: bool, quiet: bool) -> None:
    """Write INDEX to the file OUT, to be read without funnel: .npy, .parquet or .faiss.

    Example: funnel export my-index vectors.npy
    """
    from funnel.index import FunnelIndex

    opened = FunnelIndex.open(index)
    click.echo(opened.export(out, adapted=adapted, flat=flat, overwrite=overwrite, progress=not quiet))


@cli.command()
@click.option("--index", type=PATH, default=Path("demo-index"), show_default=True)
@click.option("--out", type=PATH, default=Path("demo-report"), show_default=True)
@click.option("--documents", type=int, default=None, help="How many docstrings to index. [default: 10000]")
def demo(index: Path, out: Path, documents: int | None) -> None:
    """Semantic search over the Python documentation on this machine, from docstrings to a benchmark.

    Example: funnel demo && funnel search demo-index "sort a list by several keys"
    """
    from funnel.cli.demo import run_demo

    run_demo(index, out, documents, click.echo)


@cli.command()
@click.argument("index", type=PATH)
@click.argument("corpus", type=PATH)
@click.option("--upsert", is_flag=True, help="Put documents whose ids are in the index in the place of those there.")
@click.option("--ids", type=PATH, help="Ids of the rows of a .npy file: a text file, one a line.")
@fields
@QUIET
@opens
def add(
    open_index: OpenIndex, index: Path, corpus: Path, upsert: bool, ids: Path | None, quiet: bool, **fields: Any
) -> None:
    """Add the documents of CORPUS to INDEX: a BEIR folder, .jsonl, .csv, .parquet or .npy.

    Example: funnel add my-index new.jsonl
    """
    opened = open_index(index)
    change = opened.upsert if upsert else opened.add
    given = None if ids is None else _ids(_ids_in(ids), opened)
    changes = change(str(corpus), ids=given, progress=not quiet, **fields)
    click.echo(f"{index}: {changes}; {len(opened):,} rows")


@cli.command()
@click.argument("index", type=PATH)
@click.argument("ids", nargs=-1)
@click.option("--from", "source", type=PATH, help="A text file of ids, one a line; - for standard input.")
@click.option("--strict", is_flag=True, help="Delete nothing where an id is unknown.")
def delete(index: Path, ids: tuple[str, ...], source: Path | None, strict: bool) -> None:
    """Delete documents from INDEX by their IDS.

    Example: funnel delete my-index doc-17 doc-18
    """
    from funnel.index import FunnelIndex

    wanted = [*ids, *([] if source is None else _ids_in(source))]
    if not wanted:
        raise click.UsageError("give at least one id, or --from FILE")
    opened = FunnelIndex.open(index)
    changes = opened.delete(_ids(wanted, opened), strict=strict)
    click.echo(f"{index}: {changes}; {len(opened):,} rows")


@cli.command()
@click.argument("index", type=PATH)
@click.option("--memory-mb", type=float, help="What the coarse index may hold from now on. [default: as at build]")
@QUIET
@opens
def compact(open_index: OpenIndex, index: Path, memory_mb: float | None, quiet: bool) -> None:
    """Merge what was added to INDEX, leave out what was deleted, and calibrate again; searches go on meanwhile.

    Example: funnel compact my-index
    """
    opened = open_index(index)
    done = opened.compact(memory_mb=memory_mb, progress=not quiet)
    said = f"generation {opened.manifest.generation}, {len(opened):,} rows in one segment" if done else "nothing to do"
    click.echo(f"{index}: {said}; {opened.certification}")


@cli.command()
@click.argument("index", type=PATH)
@QUIET
def upgrade(index: Path, quiet: bool) -> None:
    """Rewrite INDEX, of an older format, into the present one; nothing is encoded again, searches go on meanwhile.

    Example: funnel upgrade my-index
    """
    from funnel.index import FunnelIndex
    from funnel.storage import FORMAT_VERSION, IndexFolder

    done = FunnelIndex.upgrade(index, progress=not quiet)
    said = f"generation {IndexFolder(index).manifest().generation}" if done else "nothing to do"
    click.echo(f"{index}: format {FORMAT_VERSION}; {said}")


def _ids_in(path: Path) -> list[str]:
    """The ids in a text file: see `id_lines`."""
    try:
        raw = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a text file of ids, one a line") from None
    return list(id_lines(raw, str(path)))


def _ids(given: list[str], opened: FunnelIndex) -> list[str] | list[int]:
    """Ids as the index keeps them: text, or whole numbers."""
    if opened.searcher.ids.text:
        return given
    numbers = []
    for one in filter(str.strip, given):
        number = whole_number(one)
        if number is None:
            raise InputError(f"the ids of this index are whole numbers, and {one[:SHOWN_CHARACTERS]!r} is none")
        numbers.append(number)
    return numbers


@cli.command()
@click.argument("index", type=PATH)
@click.option(
    "--queries", type=PATH, help="Real queries: .jsonl, .csv, .parquet, .txt or .npy. [default: those on record]"
)
@click.option(
    "--corpus-like-queries/--no-corpus-like-queries", default=None,
    help="Whether queries are documents, so that those which equal rows certify. [default: as on record]",
)  # fmt: skip
@SEED
@QUIET
@opens
def tune(
    open_index: OpenIndex, index: Path, queries: Path | None, corpus_like_queries: bool | None, seed: int, quiet: bool
) -> None:
    """Calibrate INDEX again, in place, on this machine: when queries have changed, or there were none.

    Example: funnel tune my-index --queries queries-of-this-month.jsonl
    """
    from funnel.reports.tables import budgets_table, explain_budgets

    opened = open_index(index)
    opened.tune(queries, corpus_like_queries=corpus_like_queries, seed=seed, progress=not quiet)
    click.echo(f"{index}: generation {opened.manifest.generation}; {opened.certification}")
    click.echo(budgets_table(opened, explain_budgets(opened, k=min(10, len(opened)))))


@cli.command()
@click.argument("corpus", type=PATH)
@click.argument("out", type=PATH)
@click.option("--kind", default="auto", show_default=True, help="auto, rotation, mlp, deep-mlp or attention.")
@click.option("--dims", callback=widths, help="Widths to train for, such as 32,64,128.")
@click.option("--queries", type=PATH, help="Real queries, which prefixes learn to rank for; with --qrels as they say.")
@click.option("--qrels", type=PATH, help="Judgements of the queries (BEIR .tsv, or a folder): supervised training.")
@click.option("--dev-qrels", type=PATH, help="Judgements held out to stop and to choose by.  [default: qrels/dev.tsv]")
@encodes
@CACHE
@SEED
@QUIET
def train(
    corpus: Path,
    out: Path,
    kind: str,
    dims: list[int] | None,
    encoder: EncoderSource | None,
    cache: Path | None,
    seed: int,
    quiet: bool,
    **judged_by: Unpack[JudgedBy],
) -> None:
    """Train an adaptor on CORPUS (texts or vectors) and save it in the folder OUT, with its log and a plot.

    Example: funnel train scifact my-adaptor && funnel build scifact my-index --adaptor my-adaptor
    """
    from funnel.building.training import train_adaptor
    from funnel.reports.adaptors import show_training

    choice = train_adaptor(
        str(corpus),
        out,
        kind=kind,
        dims=dims,
        encoder=encoder,
        cache=cache,
        seed=seed,
        progress=not quiet,
        **judged_by,
    )
    click.echo(show_training(choice, out))


@cli.group()
def adaptor() -> None:
    """Reports on trained adaptors.

    Example: funnel adaptor report my-adaptor --data scifact
    """


@adaptor.command()
@click.argument("out", type=PATH, required=False)
@click.option("--data", type=PATH, multiple=True, help="A BEIR folder to measure on; several may be given.")
@click.option("--beir", multiple=True, metavar="NAME", help="A BEIR set by name, such as nfcorpus: downloaded once.")
@click.option("--train", "kind", metavar="KIND", help="In place of OUT: train on each set first (auto, rotation, mlp).")
@click.option("--train-qrels", is_flag=True, help="With --train: train on qrels/train.tsv as well, where there is one.")
@click.option("--dims", callback=widths, help="Widths to measure, such as 32,64,128. [default: the adaptor's]")
@click.option("--split", default="test", show_default=True, help="The judgements to measure by.")
@encodes
@CACHE
@click.option(
    "--report", "folder", type=PATH, default=Path("adaptor-report"), show_default=True, help="Results go here."
)
@SEED
@QUIET
def report(
    out: Path | None,
    data: tuple[Path, ...],
    beir: tuple[str, ...],
    kind: str | None,
    train_qrels: bool,
    folder: Path,
    seed: int,
    quiet: bool,
    **measured: Any,
) -> None:
    """Measure the adaptor in folder OUT on judged data sets, beside truncation, PCA and the full embedding.

    Example: funnel adaptor report my-adaptor --data scifact

    Example: funnel adaptor report --train rotation --data scifact --data vaswani
    """
    from funnel.adaptors import Adaptor
    from funnel.building.training import EmbeddingCache
    from funnel.data.beir_download import beir_folder
    from funnel.reports.adaptors import report_on_adaptor, report_on_training, write_report

    if (out is None) == (kind is None):
        raise click.UsageError("give either the folder OUT of an adaptor, or --train KIND to train one on each set")
    if train_qrels and kind is None:
        raise click.UsageError("--train-qrels goes with --train; the adaptor in OUT is trained already")
    if not data and not beir:
        raise click.UsageError("give at least one data set: --data FOLDER or --beir NAME")
    downloads = EmbeddingCache(measured["cache"]).folder.parent / "beir"
    folders = [*data, *(beir_folder(name, downloads) for name in beir)]
    measured["progress"] = not quiet
    if kind is not None:
        made = report_on_training(kind, folders, folder, with_qrels=train_qrels, seed=seed, **measured)
    else:
        made = report_on_adaptor(Adaptor.load(str(out)), folders, **measured)
    click.echo(write_report(made, folder))


def main() -> None:
    """The console script."""
    warnings.formatwarning = _warning_line
    cli()


def _warning_line(message: Warning | str, *_: object, **__: object) -> str:
    """One line, as errors are, and not where in the source it was raised."""
    return f"Warning: {' '.join(str(message).split())}\n"
