"""`python -m tests.model SECONDS SEED`: one seed after the other until the time is over."""

import sys
import time

from tests.model.model import run

if __name__ == "__main__":
    limit, seed = time.monotonic() + float(sys.argv[1]), int(sys.argv[2])
    while time.monotonic() < limit:
        print(f"seed {seed}", flush=True)
        run(seed, limit)
        seed += 1
