"""`python -m tests.fuzz TARGET SECONDS`: one target under atheris, guided by coverage; without it by mutation alone."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

USAGE = "usage: python -m tests.fuzz TARGET SECONDS"
SEED = 1  # so that two runs of the same length try the same inputs


def main() -> None:
    """Fuzz the target until the time is over or an undocumented error comes out."""
    if len(sys.argv) != 3:
        sys.exit(USAGE)
    name, seconds = sys.argv[1], int(sys.argv[2])
    try:
        import atheris
    except ImportError:
        _by_mutation(name, seconds)
        return
    with atheris.instrument_imports(include=["funnel"]):
        target = _target(name)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seed_bytes()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [
            f"-max_total_time={seconds}",
            f"-seed={SEED}",
            "-max_len=65536",
            "-rss_limit_mb=4096",
            "-timeout=20",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], corpus, *options], target)
        atheris.Fuzz()  # ends the process


def _target(name: str) -> Any:
    from tests.fuzz.targets import TARGETS

    if name not in TARGETS:
        sys.exit(f"{USAGE}; targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def _by_mutation(name: str, seconds: int) -> None:
    from tests.fuzz.mutation import mutations

    target, end, done, taken = _target(name), time.monotonic() + seconds, 0, 0
    for seed in itertools.count():
        for data in mutations(target.seed_bytes(), 100, seed):
            try:
                taken += target(data)
            except BaseException:
                Path(f"crash-{name}").write_bytes(data)
                print(f"{name}: after {done} inputs; the input is in crash-{name}", file=sys.stderr)
                raise
            done += 1
        if time.monotonic() > end:
            break
    print(f"{name}: {done} mutated inputs, {taken} of them taken (atheris is not installed)")


if __name__ == "__main__":
    main()
