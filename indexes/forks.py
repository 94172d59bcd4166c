"""What a forked child must not inherit: locks that another thread held, and OpenMP pools whose threads are gone."""

import sys
from threading import Lock, RLock
from typing import Any, TypeVar

from indexes.system import Living, at_fork

AnyLock = TypeVar("AnyLock", bound=Any)

_locks = Living()


def free_in_children(lock: AnyLock) -> AnyLock:
    """The same `Lock` or `RLock`, which a forked child finds free, whoever held it in the parent."""
    _locks.add(lock)
    return lock


def _begin_child() -> None:
    """In the thread that forked, the only one of the child: OpenMP would wait for threads that are not there."""
    for lock in _locks.all():
        lock._at_fork_reinit()
    if "faiss" in sys.modules:
        sys.modules["faiss"].omp_set_num_threads(1)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


assert all(hasattr(lock, "_at_fork_reinit") for lock in (Lock(), RLock())), "CPython's own locks have it"
at_fork(after_in_child=_begin_child)
