"""A prefix of long embeddings against embeddings that are short by nature."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from funnel.checks import checked_flag, checked_seed, checked_whole
from funnel.errors import InputError
from funnel.matryoshka.nested import as_tensor, check_embeddings

Embeddings = torch.Tensor | NDArray[Any]

SAMPLE = 2_000  # rows; two million pairs settle a mean to three figures
# Below it a percentage says nothing: unrelated texts have cosines around 0, and a ratio to 0 has no bound.
LEAST_SIMILARITY = 0.1


@dataclass(frozen=True)
class TruncationComparison:
    """How alike two sets of embeddings of the same rows are: renormalised prefixes, and natively short ones.

    Similarities are cosines between two rows of one set, over all pairs of different rows; the natively short set is
    the reference.

    Attributes:
        width: m, of both.
        rows: rows compared; pairs: rows · (rows − 1) / 2.
        prefix_mean_cosine: mean similarity under the prefixes.
        short_mean_cosine: mean similarity under the natively short embeddings.
        correlation: Pearson's, between the two similarities of a pair: 1 where they differ by scale and offset alone;
            nan where one set holds all similarities equal.
        mean_absolute_error: mean |prefix − short| of a pair's similarities.
        mean_absolute_percentage_error: mean |prefix − short| / |short| in percent, over percentage_pairs; nan if none.
        percentage_pairs: pairs whose similarity is at least 0.1 from 0 under the short embeddings.
        row_cosine: mean cosine between a row's prefix and the same row's short embedding, or None where the two do not
            live in one space.
    """

    width: int
    rows: int
    pairs: int
    prefix_mean_cosine: float
    short_mean_cosine: float
    correlation: float
    mean_absolute_error: float
    mean_absolute_percentage_error: float
    percentage_pairs: int
    row_cosine: float | None


def compare_truncations(
    full: Embeddings,
    natively_short: Embeddings,
    *,
    same_space: bool = False,
    sample: int = SAMPLE,
    seed: int = 0,
) -> TruncationComparison:
    """Compare the renormalised prefix of long embeddings with natively shorter ones of the same rows.

    Two models agree on what they say of *pairs*; their axes have nothing to do with each other, so that the cosine
    between a row of one and the same row of the other means nothing. It is given for one space only: a model's own
    short output, an adaptor that keeps the axes, a quantised copy.

    Args:
        full: float [n, d].
        natively_short: float [n, m], m at most d, the same rows in the same order.
        same_space: whether coordinate i means the same in both.
        sample: so many random rows are compared where there are more.
        seed: of the sample.

    Raises:
        InputError: shapes that do not go together, fewer than two rows, values that are not finite, or a row whose
            prefix or short embedding is zero.
    """
    checked_flag("same_space", same_space)
    checked_whole("sample", sample, 2)
    checked_seed(seed)
    long, short = as_tensor("full", full), as_tensor("natively_short", natively_short)
    check_embeddings(long, 1)
    check_embeddings(short, 1)
    if long.ndim != 2 or short.ndim != 2 or not 2 <= len(long) == len(short) or short.shape[1] > long.shape[1]:
        raise InputError(
            f"embeddings of shape {tuple(long.shape)} and {tuple(short.shape)}; expected (n, d) and (n, m), m <= d, "
            "of at least 2 rows, as pairs are compared"
        )
    chosen = torch.randperm(len(long), generator=torch.Generator().manual_seed(seed))[:sample].to(long.device)
    prefixes = _unit_rows(long[chosen, : short.shape[1]], "prefix")
    shorts = _unit_rows(short.to(long.device)[chosen], "natively short embedding")
    row_cosine = float((prefixes * shorts).sum(dim=1).mean()) if same_space else None
    prefixed, natural = _similarities(prefixes), _similarities(shorts)
    errors = (prefixed - natural).abs()
    counted = natural.abs() >= LEAST_SIMILARITY
    return TruncationComparison(
        width=prefixes.shape[1],
        rows=len(prefixes),
        pairs=len(errors),
        prefix_mean_cosine=float(prefixed.mean()),
        short_mean_cosine=float(natural.mean()),
        correlation=_correlation(prefixed, natural),
        mean_absolute_error=float(errors.mean()),
        mean_absolute_percentage_error=100 * float((errors[counted] / natural[counted].abs()).mean()),
        percentage_pairs=int(counted.sum()),
        row_cosine=row_cosine,
    )


def _unit_rows(rows: torch.Tensor, name: str) -> torch.Tensor:
    zero = int((rows == 0).all(dim=1).sum())
    if zero:
        raise InputError(f"{zero:,} rows have a {name} that is zero, which has no direction; drop these rows")
    return torch.nn.functional.normalize(rows.double(), dim=1, eps=0)


def _similarities(rows: torch.Tensor) -> torch.Tensor:
    """The cosines of all pairs of different unit rows: [n, m] -> [n (n - 1) / 2]."""
    above = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
    return (rows @ rows.T)[above[0], above[1]]


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (a.norm() * b.norm()))
