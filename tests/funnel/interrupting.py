"""In a process of its own: whole operations on an index, interrupted at a random moment as by Ctrl-C.

python interrupting.py FOLDER SEED TIMES: prints what was wrong, a line each, and how many were interrupted.
"""

from __future__ import annotations

import gc
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

from funnel import FunnelIndex
from funnel.storage import check
from tests.funnel.corpora import documents, hashed_words

ROWS = 60
NEW = [{"_id": "new", "text": "the parser of part 44, again", "year": 1944}]
unraisable: list[str] = []


def opened(folder: Path) -> FunnelIndex:
    return FunnelIndex.open(folder, encoder=hashed_words)


def built(folder: Path) -> FunnelIndex:
    return FunnelIndex.build(documents(ROWS), folder, encoder=hashed_words, progress=False)


def searched(index: FunnelIndex) -> None:
    index.search("the parser of part 44", 5)
    index.search("the parser of part 44", 5, hybrid=0.5)
    index.search("the parser of part 44", 5, where="year > 1910", recall=1.0)


def collected(folder: Path) -> None:
    index = opened(folder)
    searched(index)
    del index
    gc.collect()


OPERATIONS: dict[str, Callable[[Path, FunnelIndex], object]] = {
    "build": lambda folder, _: built(folder / "built"),
    "add": lambda _, index: index.add(NEW),
    "delete": lambda _, index: index.delete(["d7", "second"]),
    "compact": lambda _, index: index.compact(),
    "search": lambda _, index: searched(index),
    "refresh": lambda folder, index: (opened(folder / "index").delete("d9"), index.refresh()),
    "close": lambda folder, _: opened(folder / "index").close(),
    "collect": lambda folder, _: collected(folder / "index"),
}


class Interrupter:
    """Raises KeyboardInterrupt at most once after being set."""

    def __init__(self) -> None:
        self.raised = False
        signal.signal(signal.SIGALRM, self._strike)

    def _strike(self, _number: int, _frame: FrameType | None) -> None:
        self.raised = True
        raise KeyboardInterrupt

    def after(self, seconds: float) -> None:
        self.raised = False
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))

    def stop(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fresh(home: Path) -> FunnelIndex:
    folder = home / "tried"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / "fresh", folder / "index")
    return opened(folder / "index")


def ids(index: FunnelIndex) -> list[str]:
    return sorted(map(str, index.ids()))


def interrupted(interrupter: Interrupter, moment: float, label: str, operation: Callable[[], object]) -> bool:
    """Do it, with Ctrl-C after so many seconds; False, and a line, where another error comes out than that."""
    try:
        interrupter.after(moment)
        operation()
        interrupter.stop()
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        interrupter.stop()
        # NumPy goes on where Ctrl-C ends its look at what it is to write to, and says this instead.
        if not (interrupter.raised and "os.PathLike" in str(error)):
            print(f"{label}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            return False
    interrupter.stop()
    return True


def main(home: Path, seed: int, times: int) -> None:
    draw, interrupter = random.Random(seed), Interrupter()
    sys.unraisablehook = lambda raised: unraisable.append(f"{raised.exc_type.__name__} in {raised.object!r}")
    index = built(home / "fresh")
    index.add([{"_id": "second", "text": "a file of part 12", "year": 1999}])
    index.delete("d3")
    index.close()
    folder, took, states = home / "tried", {}, {}
    for name, operation in OPERATIONS.items():
        index = fresh(home)
        before = ids(index)
        began = time.perf_counter()
        operation(folder, index)
        took[name] = time.perf_counter() - began
        states[name] = [before, ids(opened(folder / "index"))]
    struck = wrong = 0
    while struck < times:
        name = draw.choice(list(OPERATIONS))
        index = fresh(home)
        moment = draw.random() * took[name]
        label = f"{name} after {1e3 * moment:.2f} of {1e3 * took[name]:.2f} ms"
        wrong += not interrupted(interrupter, moment, label, partial(OPERATIONS[name], folder, index))
        struck += interrupter.raised
        try:
            if not index.closed:
                searched(index)
                index.refresh()
            again = opened(folder / "index")
            if ids(again) not in states[name] or (not index.closed and ids(index) != ids(again)):
                raise AssertionError(f"{len(again)} rows, the handle {len(index)}")
            searched(again)
            report = check(folder / "index")
            assert report.ok, report
            again.delete("d11")
            again.add([{"_id": "later", "text": "a queue"}])
            strays = [line.file for line in check(folder / "index").lines if "unfinished" in line.detail]
            assert not strays, strays
            if name == "build":
                built(folder / "built") if not (folder / "built" / "CURRENT").exists() else opened(folder / "built")
        except BaseException as error:
            wrong += 1
            print(f"{label}: afterwards {type(error).__name__}: {str(error)[:300]}", flush=True)
            traceback.print_exception(error)
    for said in unraisable:
        wrong += 1
        print(f"not raised: {said}", flush=True)
    print(f"{struck} interrupted, {wrong} wrong", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
