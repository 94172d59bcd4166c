"""FunnelIndex: build, open, search, explain, add, delete, compact, tune, health."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from reprlib import repr as shown
from types import MappingProxyType
from typing import Any, Unpack, overload

import numpy as np
import numpy.typing as npt
from msgspec.structs import asdict

from funnel.adaptors import Adaptor
from funnel.budget import Budget, check_k
from funnel.building.build import BuildOptions, build_index
from funnel.building.compact import upgrade_index
from funnel.building.export import Exported, export_index
from funnel.building.info import Info, read_info
from funnel.building.intake import build_encoder
from funnel.building.queries import QrelsSource
from funnel.building.tune import tune_index
from funnel.building.updates import Updates
from funnel.checks import checked_flag, checked_flags, checked_name
from funnel.data.corpus import Columns, CorpusSource, open_corpus
from funnel.data.queries import QueriesSource
from funnel.encoding.encoders import Encoder, EncoderSource, check_source
from funnel.encoding.prompts import TextOptions
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.cascade import padded
from funnel.engine.explain import explain_budget, explain_filtered, explain_plan
from funnel.engine.generation import Opened, open_generation
from funnel.engine.hybrid import Hybrid, Lexical
from funnel.engine.searcher import Searcher, device_of
from funnel.engine.segments import Segment
from funnel.errors import InputError
from funnel.identifiers import unicode_text
from funnel.monitoring import DEFAULT_AUDIT, Health
from funnel.plan import Plan
from funnel.planning.planner import Choice
from funnel.request import (
    Reading,
    Request,
    SearchOptions,
    explicit_plan,
    paused,
    read_query,
    read_vectors,
    wanted_budget,
)
from funnel.results import Answers, Explanation, Hits
from funnel.search import State, answer, answer_fused
from funnel.storage import IndexFolder, Manifest
from indexes.system import touched_bytes

__all__ = ["FunnelIndex"]


class FunnelIndex(Updates):
    """An index over a corpus, searched under a budget. Made by `build` or `open`; safe to search in threads.

    `with FunnelIndex.open(path) as index:` closes it at the end of the block.
    """

    def __init__(
        self, path: Path, opened: Opened, encoder: Encoder | EncoderSource | None, allow_download: bool = False
    ) -> None:
        device = str(opened.searcher.cascade.store.device)
        settings, dim = opened.manifest.settings, opened.searcher.dim
        super().__init__(path, opened, QueryEncoder(encoder, settings, dim, device, path, allow_download))

    @classmethod
    def build(
        cls,
        corpus: CorpusSource,
        path: str | os.PathLike[str],
        *,
        encoder: EncoderSource | None = None,
        adaptor: str | Path | Adaptor = "auto",
        queries: QueriesSource | None = None,
        qrels: QrelsSource | None = None,
        training_queries: QueriesSource | None = None,
        dims: Sequence[int] | None = None,
        memory_mb: float | None = None,
        ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | None = None,
        seed: int = 0,
        progress: bool = True,
        coarse: str | None = None,
        coarse_settings: dict[str, int] | None = None,
        dtype: str = "auto",
        exact_encoding: bool = False,
        device: str = "auto",
        corpus_like_queries: bool = False,
        text: str | None = None,
        title: str | None = None,
        id: str | None = None,
        vector: str | None = None,
        metadata: Sequence[str] | None = None,
        overwrite: bool = False,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        truncate_dim: int | None = None,
    ) -> FunnelIndex:
        """Build an index, commit it to the folder `path` and open it.

        corpus: a BEIR folder; .jsonl, .jsonl.gz, .csv, .parquet or .npy; an iterable of texts or dicts; a frame of
        pandas or polars, a table of pyarrow; an array [n, d] or lists of numbers. text, title, id, vector, metadata:
        the names of its fields, where they have others; metadata: those to keep. Documents without ids are numbered.
        encoder: a sentence-transformers name or folder, or any callable from a list of texts to [n, d]; default
        all-MiniLM-L6-v2 where the corpus has texts and no vectors. queries: real queries that certify recall:
        texts, vectors [q, d], queries.jsonl or .npy; without them the index works uncertified. qrels: judgements (BEIR
        .tsv, or query id -> document id -> grade): the queries they name train the adaptor, and the others certify.
        training_queries: others without judgements that train the adaptor and never certify; without them those beyond
        the first 2,000 distinct `queries`, in random order, do so where adaptor is "auto".
        adaptor: "auto": train one, compare it with PCA and identity on held-out rows, keep the best; or a kind such
        as "pca", a saved adaptor's folder, or an Adaptor. dims: the widths to store; None: chosen by measurement.
        memory_mb: megabytes held while open at most (mapped files apart). ids: of bare vectors; default their row
        numbers. coarse, coarse_settings: name and settings of a coarse family, over the first of `dims` where these are
        given; None: candidates over prefixes, and whole rows where they fit, are timed on a sample. dtype: of
        the rows as stored: "float16", "float32", or "auto": float16 where exact search over it keeps .9995 of
        the true top 10, else float32. exact_encoding: encode in float32.
        corpus_like_queries: whether queries are documents; unless they are, those that equal rows of the corpus
        certify nothing. Queries certify once each, whatever their number. overwrite:
        replace the index that the folder holds, once the new one is complete; other files in it are never touched.
        query_prompt, document_prompt: what is put before every query and every document, here and whenever the index is
        used: a text, "" for nothing, or the name of a prompt of the model; None: the model's own for search.
        truncate_dim: how many dims of the encoder's vectors are kept, of a Matryoshka model; None: all.

        Raises InputError for a folder that holds an index (see overwrite), and for a corpus, queries or settings that
        cannot be used, EncoderError, StorageError, and
        NoSpaceError when the disk is full; what the folder held before then stays.
        """
        checked_flags(
            progress=progress,
            exact_encoding=exact_encoding,
            corpus_like_queries=corpus_like_queries,
            overwrite=overwrite,
        )
        folder = IndexFolder(path).path
        target = device_of(device)
        opened = open_corpus(corpus, ids, Columns(text, title, id, vector, metadata))
        texts = TextOptions(query_prompt, document_prompt, truncate_dim)
        chosen = build_encoder(opened, encoder, exact_encoding, device, texts)
        options = BuildOptions(
            *(adaptor, dims, memory_mb, coarse, coarse_settings, dtype, seed, target, progress),
            *(corpus_like_queries, overwrite),
        )
        build_index(opened, folder, chosen, queries, qrels, training_queries, options)
        return cls.open(folder, encoder=chosen, device=device)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: EncoderSource | None = None,
        device: str = "auto",
        verify: str = "full",
        placement: str = "auto",
        allow_download: bool = False,
    ) -> FunnelIndex:
        """Open the index in the folder `path`.

        encoder: needed for text queries where the index was built with a callable or a model's folder, whose name in
        an index is not trusted; else the model that it names is loaded on the first text: from this machine, and from
        the hub only with allow_download. device: "auto", "cpu" or "cuda". verify: "full" hashes every file first,
        "lazy" the large ones block by block on first touch. placement: on CUDA, where the vectors lie: "device",
        "int8" (codes there, the rows themselves in locked host memory) or "host"; "auto" takes the first that fits its
        free memory.

        Raises NotAnIndexError, FormatVersionError, DamagedIndexError naming the file, InputError.
        """
        checked_name("verify", verify, ("full", "lazy"))
        checked_name("placement", placement)
        checked_flag("allow_download", allow_download)
        check_source(encoder)
        folder = IndexFolder(path)
        made = cls(
            folder.path, open_generation(folder, device_of(device), verify, None, placement), encoder, allow_download
        )
        made._options = {
            "encoder": made._encoder.given_name,
            "device": device,
            "verify": verify,
            "placement": placement,
            "allow_download": allow_download,
        }
        return made

    @classmethod
    def upgrade(cls, path: str | os.PathLike[str], *, progress: bool = False) -> bool:
        """Rewrite the index in the folder `path` into the present format, as a new generation; whether it was older.

        As `compact` rewrites it: nothing is encoded again, rows that were deleted are left out, coarse index and
        calibration are made anew. Rows that are stored adapted, by an adaptor that keeps inner products, are turned
        back into the user's own space and written as float32. Columns that are damaged are written anew. Searches go on
        meanwhile. Raises as `open` does, where this folder cannot be opened, InputError where every row was deleted,
        StorageError where another process writes, NoSpaceError.
        """
        checked_flag("progress", progress)
        return upgrade_index(path, progress)

    _options: Mapping[str, Any] = MappingProxyType({})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as path and options, and opened again from them; an encoder given as a callable stays behind."""
        return partial(type(self).open, self.path, **self._options), ()

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too, and comes first
        self,
        query: str | Sequence[float] | np.ndarray[tuple[int], np.dtype[np.number[Any]]],
        k: int = 10,
        **options: Unpack[SearchOptions],
    ) -> Hits: ...

    @overload
    def search(
        self,
        query: Sequence[str] | Sequence[Sequence[float]] | np.ndarray[tuple[int, int], np.dtype[Any]],
        k: int = 10,
        **options: Unpack[SearchOptions],
    ) -> list[Hits]: ...

    @overload
    def search(self, query: npt.NDArray[Any], k: int = 10, **options: Unpack[SearchOptions]) -> Hits | list[Hits]: ...

    def search(
        self,
        query: str | Sequence[str] | npt.NDArray[Any] | Sequence[Sequence[float]] | Sequence[float],
        k: int = 10,
        *,
        recall: float | None = None,
        share: float | None = None,
        latency_ms: float | None = None,
        budget: Budget | None = None,
        plan: Plan | Explanation | str | None = None,
        audit: float | bool | None = None,
        deadline_ms: float | None = None,
        hybrid: float | bool | None = None,
        text: str | Sequence[str] | None = None,
        where: str | None = None,
        allowed_ids: Iterable[str] | Iterable[int] | None = None,
    ) -> Hits | list[Hits]:
        """The k nearest documents: a list of Hit for one query, a list of lists for several.

        query: a text or a vector [d]; or a list of texts, or vectors [n, d]. recall, latency_ms or both, or budget,
        or an explicit plan: one of `Plan`, its text such as "8:400 16:200 32:100" (see `Plan.parse`), or what explain
        gave; none of them: recall 0.95. With a share, at least that share of queries gets the recall,
        rather than the mean of all. Each list says in `served` how it was found. audit: see `audit`, for this call
        alone. deadline_ms: so long after the call began, encoding included, no further stage is begun, and the best so
        far is returned: `served.complete` is False then, and scores are cosines on the prefix of the last stage done.
        The coarse search is always finished. What is done once and remembered, such as planning, does not count.
        hybrid: fuse with BM25 over titles and texts by reciprocal ranks; the weight of that list from 0 to 1, or True
        for the default. The budget then speaks of the dense list, and `score` and `ranks` are as `Hit` says; with the
        weight 1 words alone are looked for, and no encoder is needed. text: beside vectors, the words of each.
        where: a condition over metadata, id and title, such as "year >= 2020 AND lang = 'en'". allowed_ids: the ids
        that may be returned. There are fewer hits than k where fewer rows are allowed. The recall is then that among
        the allowed rows, measured under the filter and not certified. A k above the rows gives all of them.

        The first call with a new latency_ms measures plans for some seconds. Raises BudgetError when no plan meets the
        budget, InputError, EncoderError.
        """
        state = self._state
        texts, vectors, single = read_query(query, state.opened.searcher.dim, text)
        allowed_ids = list(allowed_ids) if isinstance(allowed_ids, Iterator) else allowed_ids  # both lists read it
        fused = None
        if hybrid is not None or (texts is not None and vectors is not None):
            fused = Hybrid.read(hybrid, texts, vectors, state.lexical, k, state.opened.searcher.rows, plan)
        words_alone = fused is not None and fused.words_alone
        reading = Reading(texts or (), vectors is None and not words_alone, None if fused is None else fused.k)
        asked = Request(
            k if fused is None else fused.depth,
            *(recall, share, latency_ms, budget, plan, deadline_ms, where, allowed_ids, reading),
        )
        if vectors is None:
            vectors = self._encoded(texts or [], asked) if reading.encoded else np.empty((len(texts or []), self.dim))
        if fused is None:
            hits = state.hits(*answer(state, vectors, asked, audit))
        else:
            hits = answer_fused(state, vectors, asked, audit, fused)
        if asked.began:
            asked.took(len(hits), state.monitor.punctuality.note)
        return hits[0] if single else hits

    def _encoded(self, texts: Sequence[str], asked: Request) -> npt.NDArray[np.float32]:
        with paused(asked.deadline):
            self._encoder.load()
        return self.encode_queries(texts)

    def search_vectors(
        self,
        queries: npt.NDArray[Any],
        k: int = 10,
        *,
        recall: float | None = None,
        share: float | None = None,
        latency_ms: float | None = None,
        budget: Budget | None = None,
        plan: Plan | Explanation | str | None = None,
        audit: float | bool | None = None,
        deadline_ms: float | None = None,
        where: str | None = None,
        allowed_ids: Iterable[str] | Iterable[int] | None = None,
    ) -> Answers:
        """Ids [n_queries, k] and scores float32 [n_queries, k], best first; no documents are touched.

        queries: [n_queries, d]. ids are int64, or str in an object array; -1 or None, with a score of -inf, where a
        filter allows, or the index holds, fewer than k. Takes a deadline and filters, and raises, as `search` does.
        """
        asked = Request(k, recall, share, latency_ms, budget, plan, deadline_ms, where, allowed_ids)
        state = self._state
        scores, positions, served, _ = answer(state, read_vectors(queries), asked, audit)
        scores, positions = padded(scores, positions, k)
        answers = Answers(state.opened.searcher.ids.at(positions), scores, served)
        if asked.began:
            asked.took(len(scores), state.monitor.punctuality.note)
        return answers

    def explain(
        self,
        k: int = 10,
        *,
        recall: float | None = None,
        share: float | None = None,
        latency_ms: float | None = None,
        budget: Budget | None = None,
        plan: Plan | Explanation | str | None = None,
        batch: int = 1,
        run: bool = False,
        where: str | None = None,
        allowed_ids: Iterable[str] | Iterable[int] | None = None,
    ) -> Explanation:
        """The plan that serves a budget: stages, recall estimate and lower bound, p50 and p95 milliseconds.

        plan: one of your own instead, as in `search`. batch: queries in one call. run: run the plan on the calibration
        queries, and say what each stage took and what recall was after it. A latency is of the search alone, from
        vectors. where, allowed_ids: under this filter; its steps are not run one by one. Raises as `search` does.
        """
        checked_flag("run", run)
        state = self._state
        searcher = state.opened.searcher
        k = check_k(k, searcher.rows)
        if plan is not None:
            if where is not None or allowed_ids is not None:
                raise InputError("explain takes a plan or a filter, not both; leave one of them out")
            return explain_plan(searcher, explicit_plan(plan, recall, latency_ms, budget, share), k, batch, run)
        if where is not None or allowed_ids is not None:
            wanted = wanted_budget(recall, latency_ms, budget, share)
            explained = explain_filtered(searcher, state.filters, where, allowed_ids, wanted, k, batch, run)
        else:
            explained = explain_budget(searcher, wanted_budget(recall, latency_ms, budget, share), k, batch, run)
            explained = replace(explained, certificate=state.monitor.certificate(explained.certificate))
        return replace(explained, candidates=tuple(map(asdict, state.opened.manifest.settings.candidates)))

    def health(self) -> Health:
        """Whether certificates still speak of the queries that come: see `Health`. `tune` begins anew."""
        return self._state.monitor.health()

    def audit(self, sample: float | bool = DEFAULT_AUDIT, *, seed: int = 0) -> None:
        """Run flat search for this share of the queries to come, and keep their true recall in `health`.

        sample: a share in [0, 1]; each audited query takes the time of a flat search more. What was found so far is
        forgotten. Raises InputError for what is no share or seed.
        """
        self._state.monitor.audit(sample, seed)

    def tune(
        self,
        queries: QueriesSource | None = None,
        *,
        corpus_like_queries: bool | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        """Calibrate again, in place: on these queries or, without any, on those on record; costs are measured anew.

        queries: as for `build`. corpus_like_queries: as for `build`; None: as it was. Committed as the next generation,
        which shares every other file; a crash leaves the one before. Searches in other threads go on meanwhile. What
        `health` has noted begins anew.

        Raises InputError for queries that cannot be used or an index that is too small to be calibrated, EncoderError
        for texts without an encoder, StorageError where another process writes or has replaced this generation.
        """
        checked_flag("progress", progress)
        with self._changing:
            opened = tune_index(
                self.path, self._state.opened, self._encoder, queries, corpus_like_queries, seed, progress
            )
            self._state = State.of(opened, self._encoder)
            del opened
            IndexFolder(self.path).tidy()

    def export(self, path: str | os.PathLike[str], **options: bool) -> Exported:
        """Write every row to a .npy, .parquet or .faiss file that is read without funnel: see `export_index`."""
        return export_index(self.path, self._state.opened, path, **options)

    def info(self) -> Info:
        """Rows, widths, adaptor, coarse index, calibration, sizes of the live generation: see `Info`."""
        return read_info(self.path, self.held_bytes, self.touched_bytes)

    def ids(self) -> list[Any]:
        """Every id that was not deleted, in input order."""
        return self._state.ids()

    def encode_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Query texts as vectors [n, d], by the index's own encoder. Raises EncoderError."""
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(one, str) for one in texts):
            raise InputError(f"texts is {shown(texts)}; expected a list of texts, as [text] for one")
        return self._encoder.encode([unicode_text(text, f"query {number}") for number, text in enumerate(texts)])

    def warm_up(self) -> None:
        """Load the encoder now, so that the first text need not wait. Raises EncoderError where there is none."""
        self._encoder.load()

    def document_ids(self) -> Iterator[str | int]:
        """The ids in the document store, in input order; none where the index holds bare vectors."""
        documents = self._state.opened.documents
        return iter(()) if documents is None else documents.ids()

    def __len__(self) -> int:
        return self.searcher.rows

    def __repr__(self) -> str:
        if self.closed:
            return f"FunnelIndex({str(self.path)!r}, closed)"
        manifest = self.manifest
        return (
            f"FunnelIndex({str(self.path)!r}, {len(self):,} x {manifest.d}, {manifest.settings.coarse} over "
            f"{manifest.coarse_width} dims, {self.certification})"
        )

    @property
    def dim(self) -> int:
        """The full width d of the vectors."""
        return self.searcher.dim

    @property
    def manifest(self) -> Manifest:
        """The generation that is open."""
        return self._state.opened.manifest

    @property
    def certification(self) -> str:
        """What recall rests on: "certified on N real queries", or that it is uncertified and why."""
        calibration = self.searcher.calibration
        if calibration is None:
            return f"exact: {self.searcher.why_flat}"
        said = calibration.kind
        if calibration.certifies:
            said = f"certified on {calibration.n_queries:,} real queries{calibration.said_left_out}"
        adaptor = self.searcher.adaptor
        return said if adaptor.isometric else f"{said}; truth is exact search in the space adapted by {adaptor.kind}"

    @property
    def touched_bytes(self) -> int | None:
        """Bytes of its mapped files that are in memory, for this process; the system may drop them. None: not known."""
        return touched_bytes(self.path)

    @property
    def held_bytes(self) -> int:
        """Bytes held in memory while open, mapped files apart (see `touched_bytes`).

        They are the coarse index, norms, vectors on a device, and the rows on which exact search is judged.
        """
        cascade = self.searcher.cascade
        norms = sum(values.nbytes for values in list(cascade.inverse_norms.values()))
        sample = getattr(cascade.exact, "resident_bytes", 0)
        prefixes = 0 if cascade.adapted is None else cascade.adapted.resident_bytes
        others = 0 if self.searcher.others is None else self.searcher.others.nbytes
        return cascade.coarse.nbytes + norms + sample + cascade.store.resident_bytes + prefixes + others

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The parts in which rows lie, for checks: a fresh build has one."""
        return self._state.opened.segments

    @property
    def lexical(self) -> Lexical | None:
        """BM25 over its documents; None where it holds bare vectors."""
        return self._state.lexical

    @property
    def searcher(self) -> Searcher:
        """What answers vectors, for benchmarks and checks."""
        return self._state.opened.searcher

    def choose(self, asked: Request, k: int, n_queries: int) -> Choice:
        """The plan for such a call, and its certificate; a latency leaves room for encoder and documents."""
        return self._state.choose(asked, k, n_queries)
