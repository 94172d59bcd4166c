"""Values that are no number, or an odd one, for everything that a search takes as a number."""

import decimal
from typing import Any

import numpy as np

# Neither a recall, nor a share, nor milliseconds, nor a count of rows.
NO_NUMBERS: list[Any] = [
    *("5", b"1", "", [0.5], {}, object(), 1j, True, False, np.True_, np.array([0.5]), np.array(0.5)),
    *(decimal.Decimal("0.5"), decimal.Decimal("NaN"), float("nan"), np.float64("nan"), float("inf"), float("-inf")),
    *(0, 0.0, -1, -0.5, np.float32(-1), -(2**63), 10**400, 10**5_000),
]
NO_SHARES: list[Any] = [*NO_NUMBERS, 1 + 1e-9, 2, 2**63]
NO_COUNTS: list[Any] = [*NO_NUMBERS, 0.001, 1.5, np.float32(2.0), 2**63, None]
SHARES: list[Any] = [1, 1.0, 1e-300, 0.5, np.float32(0.5), np.float64(1)]
MILLISECONDS: list[Any] = [0.001, 1e-300, 1, 2**63, np.float32(0.5), np.int64(3)]
