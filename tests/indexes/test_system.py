from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from indexes import release_freed, system

ROOT = Path(system.__file__).parents[1]
# What mypy does not see in a module that is written for one system.
OF_ONE_SYSTEM = re.compile(r"import (fcntl|resource|msvcrt)\b|sys\.platform|/proc/|/sys/|ctypes\.(CDLL|windll)")
STATM = Path("/proc/self/statm")
BLOCK = 65_536  # below what glibc maps on its own: freed blocks of this size stay with the process
MEGABYTE = 1_000_000


def resident_mb() -> float:
    return int(STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim") or not STATM.exists(), reason="not glibc on Linux")
def test_freed_memory_goes_back_to_the_system() -> None:
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(2_000)]
    blocks = blocks[::2]  # the rest lies between the freed blocks, so that nothing goes back by itself
    before = resident_mb()
    release_freed()
    assert resident_mb() < before - 30
    assert all(block[-1] == 1 for block in blocks)
    release_freed()  # with nothing to give back


LIMITED = """
import re, resource, sys, threading
from pathlib import Path
import numpy as np
from indexes.system import heed_memory_limit

def data_mb():
    return int(re.search(r"^VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) / 1e3

assert not heed_memory_limit()
resource.setrlimit(getattr(resource, sys.argv[1]), (4_000_000_000, resource.RLIM_INFINITY))
assert heed_memory_limit()
before, block = data_mb(), 4_000_000
warm = np.ones(3 * block, dtype=np.uint8)
del warm  # without the setting, glibc keeps blocks below the largest that was freed
kept, freed = [], []
for _ in range(50):
    freed.append(np.ones(block, dtype=np.uint8))
    kept.append(np.ones(100_000, dtype=np.uint8))
del freed
print(data_mb() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt") or not STATM.exists(), reason="not glibc on Linux")
@pytest.mark.parametrize("limit", ["RLIMIT_DATA", "RLIMIT_AS"])
def test_under_a_limit_on_memory_what_is_freed_does_not_count(limit: str) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, limit], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 20


@pytest.mark.parametrize(
    ("line", "folder", "name"),
    [("0::/a/b", "", "memory.max"), ("4:cpu,memory:/a/b", "memory", "memory.limit_in_bytes")],
)
def test_the_smallest_limit_of_a_cgroup_counts(
    line: str, folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroups" / folder
    (root / "a" / "b").mkdir(parents=True)
    own.write_text(f"7:pids:/\n{line}\n")
    monkeypatch.setattr(system, "OWN_CGROUP", own)
    monkeypatch.setattr(system, "CGROUPS", tmp_path / "cgroups")
    before = system.machine_bytes()
    assert before > 100 * MEGABYTE
    (root / "a" / name).write_text("5000000\n")
    (root / "a" / "b" / name).write_text("max\n")
    assert system.machine_bytes() == 5_000_000
    (root / "a" / "b" / name).write_text("4000000\n")
    assert system.machine_bytes() == 4_000_000
    monkeypatch.setattr(system, "OWN_CGROUP", tmp_path / "none")
    assert system.machine_bytes() == before


def test_no_other_module_asks_which_system_it_is() -> None:
    sources = [path for name in ("funnel", "indexes") for path in (ROOT / name).rglob("*.py")]
    asking = {path for path in sources if OF_ONE_SYSTEM.search(path.read_text(encoding="utf-8"))}
    assert asking == {Path(system.__file__)}


def test_a_temporary_file_is_reached_by_its_path_and_leaves_nothing() -> None:
    with system.temporary_file() as (file, path):
        file.write(b"rows")
        file.flush()
        assert Path(path).read_bytes() == b"rows"
        held = os.readlink(path)
    assert not Path(held).exists()


def test_a_claimed_file_is_as_long_as_it_will_be(tmp_path: Path) -> None:
    for size in (0, 5_000):
        with open(tmp_path / "file", "w+b") as file:
            file.write(b"head")
            file.flush()
            system.claim(file.fileno(), 4, size)
            assert system.read_at(file.fileno(), 10_000, 2) == b"ad" + bytes(size)


def test_threads_for_the_disk_are_started_once() -> None:
    """One at a time is asked, so that an idle one always takes the next."""
    pool = system.disk_pool()
    assert system.disk_pool() is pool
    names = {pool.submit(lambda: threading.current_thread().name).result() for _ in range(20)}
    assert len(names) <= system.DISK_THREADS
