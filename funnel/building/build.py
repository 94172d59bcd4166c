"""The build, from a corpus to a committed generation."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as shown

import numpy as np
import numpy.typing as npt
import torch

from funnel.adaptors import Adaptor, AdaptorChoice, TrainingQueries, adaptor_kinds, choose_adaptor, make_adaptor
from funnel.budget import Budget
from funnel.building.candidates import choose_coarse
from funnel.building.intake import Intake, take_in
from funnel.building.queries import (
    EQUAL,
    SAME_COSINE,
    CertifyingQueries,
    QrelsSource,
    encode_asked,
    judged_rows,
    open_asked,
)
from funnel.building.segment import (
    checked_ladder,
    choose_ladder,
    enough_width,
    index_rows,
    order_rows,
    segment_entry,
    store_rows,
)
from funnel.checks import checked_name, checked_number, checked_path, checked_seed
from funnel.data.corpus import Corpus
from funnel.data.queries import QueriesSource
from funnel.encoding.encoders import Encoder
from funnel.engine.cascade import Space
from funnel.engine.measuring import CORPUS_ROWS, Certifying, Given, Near, calibrate
from funnel.engine.searcher import Searcher
from funnel.errors import EncoderError, InputError
from funnel.planning.calibration import SMALLEST_PLANNED, Calibration
from funnel.planning.planner import Planner
from funnel.planning.run import EXACT_ENOUGH, NEAR, StorageCost, given_scores, without_own
from funnel.progress import Progress
from funnel.storage import AdaptorNote, IndexFolder, Manifest, Settings, Transaction
from funnel.storage.settings import Candidate
from indexes import FamilyChoice, RunningTop, VectorStore, choose, family, release_freed
from indexes.selection import FLAT_ROWS

__all__ = ["BuildOptions", "build_index", "calibrate_searcher", "checked_memory", "written"]

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Rows compared at a time: 25 MB as float32. Smaller blocks spend their time on joining answers.
CELLS_AT_A_TIME = 6_291_456
# There is no third type between them. On 400 groups of 25 near-equal rows of 768 dims, a few of which are large, exact
# search over float16 keeps .50 of the true top 10; over float16 of columns scaled to one range .50, as its 11 bits are
# relative anyway; of rows less their mean .991; over float32 cut to 24 bits .915; over float16 and the rest as int8, 3
# bytes together, .998. None reaches what is called exact, and each would need kernels of its own.
NARROW, WIDE = "float16", "float32"
JUDGED_AT = 10  # the k at which float16 is judged
# Sums of two rows that float16 is judged on, beside the rows: queries from afar. To them, rows that lie close together
# differ by more than ties allow for: of 40 groups of copies 1e-4 apart, float16 keeps all that rows find, and
# .28 of what queries find. On other sets sums lie up to .0004 below rows, and real queries between the two.
BETWEEN = 500
SUMS_KEPT = 0.998
SMALLEST_SUM = 1e-3  # of two unit rows: below it they point away from each other, and rounding is all that is left


class RowsAsGiven:
    """Exact search for held-out rows and real queries, over rows that are shown batch by batch in input order.

    held_out: float32 [c, d], rows drawn evenly, as given; own: int64 [c], their input positions. real: float32 [q, d]
    unit rows, or None. Truth of an adaptor that changes the full width lies in its own space.
    """

    def __init__(self, intake: Intake, adaptor: Adaptor, real: Float32 | None, judge: bool, seed: int) -> None:
        drawn = np.random.default_rng(seed).permutation(len(intake.sample))[: min(CORPUS_ROWS, -(-intake.count // 2))]
        self.held_out, self.own = intake.sample[drawn], intake.sampled[drawn]
        self._adaptor, self._dim = adaptor, intake.dim
        self._depth = min(JUDGED_AT, intake.count - 1)
        judge = judge and self._depth > 0
        between = _sums(self.held_out[: BETWEEN + 1] if judge else self.held_out[:0])
        real = between[:0] if real is None else real
        self._starts = np.cumsum([len(self.held_out), len(between)])
        queries = np.concatenate([self.held_out, between, real])
        self._true = RunningTop(self._in_space(queries), min(NEAR + 1, intake.count))
        self._narrow: RunningTop | None = None
        if judge:
            self._narrow = RunningTop(self._in_space(queries[: self._starts[1]]), self._depth + 1)
        # Where truth lies in another space, whether a query is a row is still asked in the user's own.
        self._own_space = None if real is None or adaptor.isometric else RunningTop(real, 1)
        self._waiting: list[Float32] = []
        self._cells = self._done = 0

    def watch(self, rows: Float32) -> None:
        """Take in the next rows as given: float32 [c, d]."""
        self._waiting.append(rows)
        self._cells += rows.size
        if self._cells >= CELLS_AT_A_TIME:
            self._compare()

    def finish(self) -> None:
        """Compare with what is still waiting."""
        if self._waiting:
            self._compare()

    def near(self, positions: Int64) -> tuple[Near, Near | None]:
        """What the held-out rows and the real queries found: scores and stored rows. positions: input -> stored."""
        (count, start), rows = self._starts, positions[self._true.rows]
        real = (self._true.scores[start:], rows[start:]) if len(rows) > start else None
        return (self._true.scores[:count], rows[:count]), real

    def equal(self) -> npt.NDArray[np.bool_]:
        """Which of the real queries are, up to rounding, rows of the corpus: bool [q]."""
        best = self._true.scores[self._starts[1] :] if self._own_space is None else self._own_space.scores
        equal: npt.NDArray[np.bool_] = best[:, 0] >= SAME_COSINE
        return equal

    def narrowest(self) -> tuple[str, float]:
        """The type to store rows in, and the share of the true top 10 that exact search over float16 rows keeps.

        The top 10 of held-out rows; of sums of two of them where that is what tells against float16.
        """
        if self._narrow is None:
            return NARROW, 1.0
        count, stop = self._starts
        near = self._true.scores[:stop], self._true.rows[:stop]
        own = np.concatenate([self.own, np.full(stop - count, -1)])  # a sum is no row
        true = without_own(*near, own, self._depth)[0]
        scores, rows = without_own(self._narrow.scores, self._narrow.rows, own, self._depth)
        each = StorageCost(given_scores(near, rows, scores), true).kept(self._depth)
        kept, between = float(each[:count].mean()), float(each[count:].mean()) if stop > count else 1.0
        if between < SUMS_KEPT:
            return WIDE, min(kept, between)
        return (NARROW if kept >= EXACT_ENOUGH else WIDE), kept

    def _in_space(self, rows: Float32) -> Float32:
        """Rows where truth lies: the user's own space, unless the adaptor changes the full width."""
        return np.ascontiguousarray(rows if self._adaptor.isometric else self._adaptor.unit_transform(rows))

    def _compare(self) -> None:
        block = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting, self._cells = [], 0
        self._true.update(self._in_space(block), self._done)
        if self._own_space is not None:
            self._own_space.update(block, self._done)
        if self._narrow is not None:
            self._narrow.update(self._in_space(block).astype(np.float16).astype(np.float32), self._done)
        self._done += len(block)


def _sums(rows: Float32) -> Float32:
    """Of each row and the next, scaled to unit length: float32 [c - 1, d]; of opposite rows there is none."""
    sums = rows[:-1] + rows[1:]
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    between: Float32 = (sums / np.maximum(norms, np.finfo(np.float32).tiny))[norms[:, 0] > SMALLEST_SUM]
    return between


# The budgets whose latency is measured at build, so that the first explain need not.
MEASURED_RECALLS = (0.80, 0.90, 0.95, 0.99)
MEASURED_K = 10
MEGABYTE = 1_000_000
MOST_MEGABYTES = 1e12  # what a manifest may say, see Settings
AUTO = "auto"  # train, compare and choose the adaptor; measure, and choose what rows are stored in
ADAPTOR_SEED, TREE_SEED, CALIBRATION_SEED = 0, 1, 2  # added to the user's seed, so that no two draws are the same


@dataclass(frozen=True)
class BuildOptions:
    """How to build; see `FunnelIndex.build`."""

    adaptor: str | Path | Adaptor
    dims: Sequence[int] | None
    memory_mb: float | None
    coarse: str | None
    coarse_settings: dict[str, int] | None
    dtype: str
    seed: int
    device: torch.device
    progress: bool
    corpus_like_queries: bool = False
    overwrite: bool = False


def build_index(
    corpus: Corpus,
    path: str | os.PathLike[str],
    encoder: Encoder | None,
    queries: QueriesSource | None,
    qrels: QrelsSource | None,
    training_queries: QueriesSource | None,
    options: BuildOptions,
) -> Manifest:
    """Build an index and commit it as the next generation of the folder.

    Raises what `FunnelIndex.build` says. Until the commit, whatever the folder held before stays as it was.
    """
    _check(options, {"qrels": qrels, "training_queries": training_queries})
    dim = _width(corpus, encoder)
    if options.dims is not None:  # before hours of encoding rather than after
        checked_ladder(options.dims, dim)
    opened, judgements = open_asked(queries, qrels)
    teaching, trains = open_asked(training_queries)[0], options.adaptor == AUTO
    folder = IndexFolder(path)
    with folder.begin() as transaction:
        if transaction.previous is not None and not options.overwrite:
            raise InputError(
                f"{folder.path} holds an index already; name another folder, or give "
                "overwrite=True (--overwrite) to replace it"
            )
        segment = transaction.folder("segments")
        asked = encode_asked(
            opened, judgements, encoder, dim, options.seed, options.progress, training=teaching, trains=trains
        )
        texts = frozenset(asked.texts or ())
        documents = transaction.folder("documents") if corpus.kind == "documents" else None
        intake = take_in(corpus, encoder, segment, documents, options.seed, options.progress, texts)
        if options.progress and str(corpus.norms or ""):
            Progress.write(str(corpus.norms), file=sys.stderr)
        chosen = _adaptor(options, intake, segment, asked)
        adaptor = chosen.adaptor
        asked = asked.without_seen(adaptor.seen_queries)
        adaptor.seen_queries |= asked.trained_hashes
        if not options.corpus_like_queries:
            asked = asked.without_texts(intake.asked_for)
        release_freed()
        truth = RowsAsGiven(intake, adaptor, asked.certifying, options.dtype == AUTO, options.seed + CALIBRATION_SEED)
        seed = options.seed + TREE_SEED
        space = Space(adaptor, adaptor.isometric)
        positions = order_rows(intake, space.stored, space, segment, seed, options.progress, truth.watch)
        truth.finish()
        options, narrow_kept = _with_dtype(options, truth)
        store_rows(intake, space.stored, positions, segment, options.dtype, options.progress)
        intake.finish()
        store = VectorStore.open(segment / "vectors.npy", options.device)
        base, ladder = _ladder(store, space, options)
        choice, timed = _coarse(store, space, ladder, base, options)
        searcher = index_rows(store, ladder, choice, space, options.seed + TREE_SEED, options.progress)
        calibration = _calibrate(searcher, asked, truth, positions, options)
        kept = (None if calibration is None else _kept(calibration), narrow_kept)
        settings = _settings(choice, timed, searcher, intake, encoder, chosen, options, kept)
        return _commit(transaction, segment, intake, ladder, chosen, calibration, settings, options.progress)


def _with_dtype(options: BuildOptions, truth: RowsAsGiven) -> tuple[BuildOptions, float | None]:
    """The options with the type that rows are stored in, and what float16 keeps where the user left it open."""
    if options.dtype != AUTO:
        return options, None
    dtype, kept = truth.narrowest()
    if options.progress and len(truth.held_out) >= SMALLEST_PLANNED // 2:
        Progress.write(
            f"rows are stored as {dtype}: exact search over float16 keeps {kept:.4f} of the true top 10",
            file=sys.stderr,
        )
    return replace(options, dtype=dtype), kept


def _check(options: BuildOptions, training: Mapping[str, object]) -> None:
    checked_name("dtype", options.dtype, (AUTO, "float16", "float32"))
    if options.memory_mb is not None:
        checked_memory(options.memory_mb)
    checked_seed(options.seed)
    settings = options.coarse_settings
    if settings is not None and not isinstance(settings, Mapping):
        raise InputError(f"coarse_settings is {shown(settings)}; expected a dict of whole numbers, such as {{'m': 32}}")
    if options.coarse is not None:
        family(checked_name("coarse", options.coarse)).complete_settings(settings or {})
    elif settings:
        raise InputError(f"coarse_settings is {shown(settings)}, and of which index is not said; name it by coarse=")
    adaptor = options.adaptor
    if not isinstance(adaptor, Adaptor):
        checked_path("adaptor", adaptor)
    for name in (name for name, given in training.items() if given is not None and adaptor != AUTO):
        raise InputError(f"{name} train adaptor='auto', and adaptor is {str(adaptor)!r}; give one or the other")
    known = (AUTO, *adaptor_kinds())
    if not isinstance(adaptor, Adaptor) and adaptor not in known and not Path(adaptor).is_dir():
        raise InputError(f"adaptor is {str(adaptor)!r}; expected one of {', '.join(known)}, or a saved folder")


def checked_memory(memory_mb: float) -> float:
    """Megabytes as a float. InputError for what are none."""
    expected = f"megabytes above 0 and up to {MOST_MEGABYTES:g}; leave it out for no limit"
    number = checked_number("memory_mb", memory_mb, expected)
    if not 0.0 < number <= MOST_MEGABYTES:
        raise InputError(f"memory_mb is {memory_mb!r}; expected {expected}")
    return number


def _width(corpus: Corpus, encoder: Encoder | None) -> int:
    """The width d of the vectors to come. Raises EncoderError where the encoder is missing or of another width."""
    if corpus.dim is None:
        if encoder is None:
            raise EncoderError(f"{corpus.name} holds texts without vectors; give an encoder to build from them")
        return encoder.dim
    if encoder is not None and encoder.dim != corpus.dim:
        raise EncoderError(
            f"the encoder gives {encoder.dim} dims, the vectors of {corpus.name} have {corpus.dim}; "
            "give the encoder that made them, or none"
        )
    return corpus.dim


def _adaptor(options: BuildOptions, intake: Intake, segment: Path, given: CertifyingQueries) -> AdaptorChoice:
    """The adaptor that was asked for, or the best of those that were trained and compared."""
    asked, seed = options.adaptor, options.seed + ADAPTOR_SEED
    dims = None if options.dims is None else checked_ladder(options.dims, intake.dim)
    if asked == AUTO:
        sample, judged = judged_rows(intake, segment, given, seed)
        queries = TrainingQueries(judged, real=given.training)
        choice = choose_adaptor(sample, dims=dims, queries=queries, seed=seed, progress=options.progress)
        if options.progress and choice.figures:  # of those that were compared
            Progress.write(f"adaptor: {choice.why}", file=sys.stderr)
        return choice
    if isinstance(asked, Adaptor):
        choice = AdaptorChoice(asked, f"{asked.kind}: given")
    elif isinstance(asked, str) and asked in adaptor_kinds():
        made = make_adaptor(asked, intake.sample, dims=dims, seed=seed, progress=options.progress)
        choice = AdaptorChoice(made, f"{asked}: asked for")
    else:
        choice = AdaptorChoice(Adaptor.load(asked), f"loaded from {asked}")
    if choice.adaptor.dim != intake.dim:
        raise InputError(f"the adaptor is for {choice.adaptor.dim} dims, the corpus has {intake.dim}")
    return choice


def _ladder(store: VectorStore, space: Space, options: BuildOptions) -> tuple[int, tuple[int, ...]]:
    """The width that a coarse index is over at least, and the widths that are stored, the full one at their end."""
    if options.dims is None:
        return choose_ladder(store, space, options.progress)
    ladder = checked_ladder(options.dims, store.dim)
    if options.coarse is not None or store.n <= FLAT_ROWS or len(ladder) == 1:
        return ladder[0], ladder
    return min(enough_width(store, space, ladder[:-1], options.progress), ladder[-2]), ladder


def _coarse(
    store: VectorStore, space: Space, ladder: tuple[int, ...], base: int, options: BuildOptions
) -> tuple[FamilyChoice, list[Candidate]]:
    """The coarse index to build, and what was timed: the user's, with what suits that family, or the quickest."""
    if options.coarse is None:
        whole, seed = options.dims is None, options.seed + TREE_SEED
        return choose_coarse(store, space, ladder, base, options.memory_mb, whole, seed, options.progress)
    name, usual = options.coarse, (one for one in choose(store.n, base) if one.name == options.coarse)
    settings = options.coarse_settings or next((dict(choice.settings) for choice in usual), {})
    return FamilyChoice(name, settings, base, 0), []


def _calibrate(
    searcher: Searcher,
    asked: CertifyingQueries,
    truth: RowsAsGiven,
    positions: npt.NDArray[np.int64],
    options: BuildOptions,
) -> Calibration | None:
    if searcher.rows < SMALLEST_PLANNED:
        return None
    near, real_near = truth.near(positions)
    like = options.corpus_like_queries
    if real_near is not None and not like:
        equal = truth.equal()
        asked, real_near = asked.without(equal, EQUAL), (real_near[0][~equal], real_near[1][~equal])
    real = Certifying(None if asked.certifying is None else searcher.prepare(asked.certifying), asked.left_out, like)
    given = Given(searcher.prepare(truth.held_out), positions[truth.own], near, real_near)
    return calibrate_searcher(searcher, real, options.seed, options.progress, given)


def calibrate_searcher(
    searcher: Searcher,
    real: Certifying,
    seed: int,
    progress: bool,
    given: Given | None = None,
    storage: StorageCost | None = None,
) -> Calibration:
    """Give a searcher its calibration, the latencies of the usual budgets among it.

    given, storage: see `calibrate`.
    """
    searcher.calibration = calibrate(
        searcher.cascade,
        searcher.widths,
        real,
        searcher.whole_call,
        seed + CALIBRATION_SEED,
        progress,
        given,
        storage,
    )
    _measure_latencies(searcher.planner)
    searcher.calibration.latencies = searcher.planner.latencies.records()
    searcher.calibration.certificates = searcher.planner.promised()
    return searcher.calibration


def _measure_latencies(planner: Planner) -> None:
    """Measure the plans that the usual budgets are served by, one query at a time."""
    for recall in MEASURED_RECALLS:
        if planner.calibration.depth >= MEASURED_K:
            planner.latencies.of(planner.choose(Budget(recall), MEASURED_K, 1).plan, MEASURED_K, 1)


def _settings(
    choice: FamilyChoice,
    timed: list[Candidate],
    searcher: Searcher,
    intake: Intake,
    encoder: Encoder | None,
    chosen: AdaptorChoice,
    options: BuildOptions,
    kept: tuple[float | None, float | None],
) -> Settings:
    return Settings(
        adaptor=AdaptorNote(chosen.adaptor.kind, chosen.adaptor.isometric, chosen.why),
        own=chosen.adaptor.isometric,
        coarse=choice.name,
        coarse_settings=dict(choice.settings),
        coarse_width=choice.dim,
        coarse_asked=options.coarse is not None or options.dims is not None,
        documents=intake.documents is not None,
        dtype=options.dtype,
        kept=kept[0],
        float16_kept=kept[1],
        encoder=None if encoder is None else encoder.name,
        encoder_reopenable=encoder is not None and encoder.reopenable,
        exact_encoding=bool(getattr(encoder, "exact", False)),
        query_prompt=None if encoder is None else encoder.options.query_prompt,
        document_prompt=None if encoder is None else encoder.options.document_prompt,
        truncate_dim=None if encoder is None else encoder.options.truncate_dim,
        coarse_library=searcher.cascade.coarse.library(),
        memory_mb=options.memory_mb,
        seed=options.seed,
        candidates=timed,
    )


def _commit(
    transaction: Transaction,
    segment: Path,
    intake: Intake,
    ladder: tuple[int, ...],
    chosen: AdaptorChoice,
    calibration: Calibration | None,
    settings: Settings,
    progress: bool,
) -> Manifest:
    adaptor_folder = transaction.folder("adaptor")
    chosen.save(adaptor_folder)
    body: dict[str, object] = {
        "d": intake.dim,
        "ladder": list(ladder),
        "counts": {"rows": intake.count},
        "segments": [segment_entry(transaction, segment, intake.count, intake.documents)],
        "adaptor": transaction.identifier(adaptor_folder),
        "settings": settings,
        "calibration": written(transaction, calibration),
    }
    return transaction.commit(body, progress=progress)


def written(transaction: Transaction, calibration: Calibration | None) -> str | None:
    """Write a calibration; gives the identifier of the part, None where there is none."""
    if calibration is None:
        return None
    folder = transaction.folder("calibrations")
    calibration.save(folder)
    return transaction.identifier(folder)


def _kept(calibration: Calibration) -> float | None:
    """The share of the true top 10, by the rows as given, that exact search over the stored rows returns."""
    return None if calibration.storage is None else float(calibration.storage.kept(MEASURED_K).mean())
