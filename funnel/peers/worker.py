"""A process that holds one built index, and is asked for its times in turn with others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from funnel.errors import FunnelError
from funnel.peers.measure import ANSWER

__all__ = ["Worker"]

LONGEST = 1_440.0  # minutes that anything takes


class Worker:
    """Runs a module of this package on a job until it is closed. job: what JSON can hold, threads among it."""

    def __init__(self, module: str, job: dict[str, Any], folder: Path) -> None:
        self._module, self._said = module, tempfile.TemporaryFile("w+")  # noqa: SIM115 (until it is closed)
        path = folder / f"job-{id(self)}.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", module, str(path)]
        pipe = subprocess.PIPE
        threads = {**os.environ, "OMP_NUM_THREADS": str(job["threads"])}
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._said, text=True, env=threads)
        self.record: dict[str, Any] = {}

    def ask(self, do: str, minutes: float = LONGEST, **arguments: Any) -> Any:
        """What it answers. FunnelError with its last line where it fails, or takes longer than so many minutes."""
        assert self._process.stdin
        assert self._process.stdout
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._process.kill()

        clock = threading.Timer(max(0.0, minutes) * 60, stop)
        clock.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(ANSWER):
                    return json.loads(line[len(ANSWER) :])
        except BrokenPipeError:
            pass
        finally:
            clock.cancel()
        ended = self._process.wait()
        if late.is_set():
            raise FunnelError(f"{self._module}: {do} took over {minutes:.1f} minutes")
        self._said.seek(0)
        said = self._said.read().strip().splitlines()
        raise FunnelError(f"{self._module}: {said[-1] if said else f'ended with {ended}'}")

    def close(self) -> None:
        """End it, which gives its memory back."""
        self._process.kill()
        self._process.communicate()
        self._said.close()
