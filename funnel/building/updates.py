"""What changes an index in place: add, upsert, delete, compact; and refresh, which follows others who do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy.typing as npt

from funnel.building.build import checked_memory
from funnel.building.compact import compact_index, needs_compaction
from funnel.building.update import Changes, add_rows, delete_ids
from funnel.checks import checked_flag, checked_seed
from funnel.data.corpus import Columns, CorpusSource
from funnel.encoding.query_encoder import QueryEncoder
from funnel.engine.generation import Opened, open_generation
from funnel.errors import FunnelError, InputError, StorageError
from funnel.search import State
from funnel.storage import IndexFolder, Transaction
from indexes.system import free_in_children

__all__ = ["Updates"]

Result = TypeVar("Result")


class Updates:
    """The state of an opened index, and the calls that replace it by that of a later generation. Safe in threads.

    Searches take the state once, when they begin. Changes in one process wait for each other; one in another process
    is refused meanwhile.
    """

    def __init__(self, path: Path, opened: Opened, encoder: QueryEncoder) -> None:
        self.path = path
        self._encoder = encoder
        self._state = State.of(opened, encoder)
        self._changing = free_in_children(Lock())
        self._moving = free_in_children(Lock())  # apart: a refresh waits for no encoder and no compaction

    def close(self) -> None:
        """Let go of all that is open: files, maps, locks, the encoder. Any later call raises InputError.

        Waits for a change that is under way; searches in other threads finish, and what they use goes with the last of
        them. Closing twice is fine, and so is not closing: all of it goes with the object too.
        """
        with self._changing, self._moving:
            if not self.closed:
                del self._state, self._encoder

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return "_state" not in self.__dict__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    if not TYPE_CHECKING:  # where a checker would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            """What is not there: the state of an index that was closed."""
            if name in ("_state", "_encoder"):
                raise InputError(
                    f"the index {self.path} was closed; open it again by FunnelIndex.open({str(self.path)!r})"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def add(
        self,
        documents: CorpusSource,
        *,
        ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | None = None,
        text: str | None = None,
        title: str | None = None,
        id: str | None = None,
        vector: str | None = None,
        metadata: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Changes:
        """Add documents: durable, and found by the next search, when it returns; a crash leaves all of them or none.

        documents: what `build` takes; texts without `vector` are encoded by the index's own encoder. ids: of bare
        vectors; default the numbers behind the largest id. text, title, id, vector, metadata: names of fields, as for
        `build`. Gives what was changed.

        Raises InputError for an id that is in the index or comes twice, another width, and rows that cannot be used;
        EncoderError, StorageError where another process writes, NoSpaceError.
        """
        checked_flag("progress", progress)
        columns = Columns(text, title, id, vector, metadata)
        return self._change(lambda t, o: add_rows(t, o, self._encoder, documents, ids, columns, False, progress))

    def upsert(
        self,
        documents: CorpusSource,
        *,
        ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | None = None,
        text: str | None = None,
        title: str | None = None,
        id: str | None = None,
        vector: str | None = None,
        metadata: Sequence[str] | None = None,
        progress: bool = False,
    ) -> Changes:
        """As `add`; documents whose ids are in the index take the place of those there, in one step."""
        checked_flag("progress", progress)
        columns = Columns(text, title, id, vector, metadata)
        return self._change(lambda t, o: add_rows(t, o, self._encoder, documents, ids, columns, True, progress))

    def delete(
        self, ids: Sequence[str] | Sequence[int] | npt.NDArray[Any] | str | int, *, strict: bool = False
    ) -> Changes:
        """Delete documents by their ids; gives how many were deleted and how many ids were unknown.

        Durable when it returns. The rows are found no more, and leave the disk with `compact`. Raises InputError, and
        deletes nothing, for an id of a wrong type, or where strict for one that is unknown; StorageError.
        """
        checked_flag("strict", strict)
        return self._change(lambda t, o: delete_ids(t, o, ids, strict))

    def compact(self, *, memory_mb: float | None = None, seed: int | None = None, progress: bool = False) -> bool:
        """Merge all segments and leave out deleted rows; whether there was anything to do.

        The new generation has a coarse index and a calibration of its own, on the queries on record. Searches go on
        meanwhile, in this process and in others; another writer is refused until it is done. memory_mb, seed: None:
        those of the build. Raises as `add` does, and InputError where memory_mb is too little for so many rows.
        """
        checked_flag("progress", progress)
        if memory_mb is not None:
            checked_memory(memory_mb)
        if seed is not None:
            checked_seed(seed)

        def change(transaction: Transaction, opened: Opened) -> bool:
            if not needs_compaction(opened):
                return False
            compact_index(transaction, opened, memory_mb, seed, progress)
            return True

        done = self._change(change)
        IndexFolder(self.path).tidy()
        return done

    def refresh(self) -> bool:
        """Move to the newest generation that was committed, by whatever process; whether there was one.

        Searches in other threads go on, each on the generation it began with. Raises as `open` does.
        """
        with self._moving:
            before = self._state
            store = before.opened.searcher.cascade.store
            opened = open_generation(IndexFolder(self.path), store.device, "full", before.opened, store.placement)
            if opened is before.opened:
                return False
            was, now = before.opened.manifest, opened.manifest
            anew = was.adaptor != now.adaptor
            if anew:  # built anew in the same folder: nothing that was known speaks of it
                self._encoder = self._encoder.then(now.settings, now.d)
            # Only tuning makes a new calibration over the same first segment: what was noted begins anew then.
            tuned = was.calibration != now.calibration and was.segments[0].id == now.segments[0].id
            self._state = State.of(opened, self._encoder) if anew or tuned else before.then(opened, self._encoder)
            return True

    def _change(self, change: Callable[[Transaction, Opened], Result]) -> Result:
        """Make a change to the live generation, and move to the one it gives."""
        with self._changing:
            if not IndexFolder(self.path).exists():  # before anything is made there
                raise StorageError(f"{self.path} holds no index any more; build it again")
            with IndexFolder(self.path).begin() as transaction:
                self.refresh()  # to what another process committed meanwhile
                result = change(transaction, self._state.opened)
            try:
                self.refresh()
            except (FunnelError, OSError) as error:
                raise StorageError(
                    f"the change to {self.path} is made and stays, but cannot be opened now: {error}; "
                    "call refresh() later, and do not repeat it"
                ) from error
            return result
