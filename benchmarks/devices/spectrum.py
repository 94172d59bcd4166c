"""Rows made on a device as embeddings lie: a measured spectrum, and clusters within clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["MADE", "Made", "make_rows"]

# Eigenvalues of the second moment of all-MiniLM-L6-v2 (384 dims; 50,000 short texts of ../shared/data/vectors-384), by
# their rank: the first is the mean direction. Other widths stretch the ranks; the sum is then 1 again.
MEAN_SHARE = 0.123
RANKS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 383)
SHARES = (0.0287, 0.0261, 0.0177, 0.0141, 0.0086, 0.0058, 0.00375, 0.00277, 0.00212, 0.00128, 0.00064, 0.00019, 1e-5)
MEASURED_DIMS = 384
# Parts of a row's variance: its group, its topic within the group, itself. With these the shortlists that prefixes give
# are those of the real rows (50,000 rows, 400 queries, PCA; shortlist 32: .76, .92, .98 at 64, 96 and 128 dims, real
# .82, .93, .98), and so are the cosines of the first and the tenth neighbour (.67, .49; real .65, .53).
GROUP, TOPIC, OWN = 0.50, 0.57, 0.65
ROWS_PER_GROUP, ROWS_PER_TOPIC = 250, 5
ROWS_AT_A_TIME = 131_072

MADE = (
    "unit rows: the mean direction, plus sqrt(measured eigenvalues of MiniLM) times (.50 group + .57 topic + .65 own) "
    "of standard normals; 250 rows a group, 5 a topic; queries drawn in the same way; dims in order of eigenvalue"
)


@dataclass(frozen=True)
class Made:
    """rows: float16 [n, d] on the device. queries: float32 [q, d] in host memory, C-contiguous. Both of unit length."""

    rows: torch.Tensor
    queries: np.ndarray[tuple[int, int], np.dtype[np.float32]]


def spectrum(dim: int) -> torch.Tensor:
    """The standard deviation of every dim, without the mean direction: float32 [dim]."""
    at = np.arange(dim) * (MEASURED_DIMS / dim)
    shares = np.exp(np.interp(at, RANKS, np.log(SHARES)))
    shares *= (1 - MEAN_SHARE) / shares.sum()
    return torch.from_numpy(np.sqrt(shares).astype(np.float32))


def make_rows(n: int, dim: int, n_queries: int, device: torch.device, seed: int = 0) -> Made:
    """Rows [n, d] and some queries; see `MADE`."""
    generator = torch.Generator(device).manual_seed(seed)
    scale = spectrum(dim).to(device)
    groups, topics = max(1, n // ROWS_PER_GROUP), max(1, n // ROWS_PER_TOPIC)
    group_of = torch.randint(groups, (topics,), generator=generator, device=device)
    own_group = _normals(groups, dim, generator)
    own_topic = _normals(topics, dim, generator)
    rows = torch.empty((n, dim), dtype=torch.float16, device=device)

    def draw(count: int) -> torch.Tensor:
        topic = torch.randint(topics, (count,), generator=generator, device=device)
        made = OWN * torch.randn((count, dim), generator=generator, device=device)
        made += GROUP * own_group[group_of[topic]].float() + TOPIC * own_topic[topic].float()
        made *= scale
        made[:, 0] += MEAN_SHARE**0.5
        return torch.nn.functional.normalize(made, dim=1)

    for start in range(0, n, ROWS_AT_A_TIME):
        part = rows[start : start + ROWS_AT_A_TIME]
        part.copy_(draw(len(part)))
    return Made(rows, np.ascontiguousarray(draw(n_queries).cpu().numpy()))


def _normals(count: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    made = torch.empty((count, dim), dtype=torch.float16, device=generator.device)
    for start in range(0, count, ROWS_AT_A_TIME):
        part = made[start : start + ROWS_AT_A_TIME]
        part.copy_(torch.randn(part.shape, generator=generator, device=generator.device))
    return made
