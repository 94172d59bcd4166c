"""What an adaptor is trained to lower: losses over a ladder of prefix widths.

Every cosine is taken between *renormalised* prefixes, since that is how prefixes are searched. Each loss is a weighted
sum over the widths of a mean over pairs or rows, so that its size depends neither on the batch nor on the number of
neighbours. `dims` are rising widths; `weights` is one number per width, 1 where it is not given.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from funnel.errors import InputError

# Temperature of neighbour distillation: the one the published figures of this library were measured with.
DISTILLATION_TEMPERATURE = 0.05
# A prefix shorter than 1e-12 has no direction: its cosines are 0 and give no gradient, where 1/norm would explode.
SHORTEST_SQUARED = 1e-24


def pairwise_similarity_loss(
    original: Tensor, adapted: Tensor, dims: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """How far cosines between adapted prefixes are from those between the original vectors.

    Σ over m of the mean over ordered pairs i ≠ j of |cos(cᵢ, cⱼ) − cos(ĉᵢ[:m], ĉⱼ[:m])|
    (Matryoshka-Adaptor, Yoon et al. 2024, the pairwise similarity loss of the unsupervised setting).

    Args:
        original: float [b, d], the vectors c.
        adapted: float [b, w], the same rows adapted; w may be less than d.
        dims: widths m, rising, up to w.
        weights: one per width.

    Returns:
        A scalar.

    Raises:
        InputError: weights that do not fit.
    """
    others = ~torch.eye(len(original), dtype=torch.bool, device=original.device)
    (target,) = prefix_cosines(original, original, (original.shape[1],))
    errors = ((target - found).abs()[others].mean() for found in prefix_cosines(adapted, adapted, dims))
    return _summed(errors, dims, weights)


def topk_similarity_loss(
    original: Tensor,
    original_neighbours: Tensor,
    adapted: Tensor,
    adapted_neighbours: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """How far cosines between an adapted prefix and its neighbours' are from the original ones.

    Σ over m of the mean over rows i and neighbours n of |cos(cᵢ, cₙ) − cos(ĉᵢ[:m], ĉₙ[:m])|
    (Matryoshka-Adaptor, Yoon et al. 2024, the top-k similarity loss of the unsupervised setting). The neighbours are
    the caller's: the k nearest rows of the corpus, not of the batch.

    Args:
        original: float [b, d], the vectors c.
        original_neighbours: float [b, k, d], the neighbours of each.
        adapted: float [b, w], the same rows adapted; w may be less than d.
        adapted_neighbours: float [b, k, w], the same neighbours adapted.
        dims: widths m, rising, up to w.
        weights: one per width.

    Returns:
        A scalar.

    Raises:
        InputError: weights that do not fit.
    """
    (target,) = prefix_cosines(original, original_neighbours, (original.shape[1],))
    errors = ((target - found).abs().mean() for found in prefix_cosines(adapted, adapted_neighbours, dims))
    return _summed(errors, dims, weights)


def reconstruction_loss(original: Tensor, adapted: Tensor) -> Tensor:
    """How far the adapted vectors are from the original ones: the mean of |c − ĉ| over all entries.

    The regulariser of Matryoshka-Adaptor (Yoon et al. 2024), there a sum of |c − ĉ|. For ĉ = c + f(c) it is the mean
    of |f(c)|, so that it keeps the change small.

    Args:
        original: float [b, d].
        adapted: float [b, d].

    Returns:
        A scalar.
    """
    return (original - adapted).abs().mean()


def ranking_loss(
    query: Tensor,
    documents: Tensor,
    relevance: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """How badly prefixes put relevant documents above less relevant ones.

    Σ over m of the mean over active pairs of (yᵢⱼ − yᵢₖ)·log(1 + exp((sᵢₖ[:m] − sᵢⱼ[:m]) / T)), where s is the cosine
    of the prefixes and a pair (j, k) of row i is active when yᵢⱼ > yᵢₖ (Matryoshka-Adaptor, Yoon et al. 2024, the
    ranking loss of the supervised setting, where T = 1).

    Args:
        query: float [b, w], adapted.
        documents: float [b, n, w], each query's own, or [n, w], shared by all; adapted.
        relevance: number [b, n], graded: the higher, the more relevant.
        dims: widths m, rising, up to w.
        weights: one per width.
        mask: bool [b, n]; True leaves a document out (padding, or not judged).
        temperature: T, above 0.

    Returns:
        A scalar; 0 where no pair is active.

    Raises:
        InputError: weights that do not fit.
    """
    kept = ~_left_out(mask, relevance)
    active = (relevance[:, :, None] > relevance[:, None, :]) & kept[:, :, None] & kept[:, None, :]
    rows, above, below = active.nonzero(as_tuple=True)
    grades = relevance.to(query.dtype)
    gaps = grades[rows, above] - grades[rows, below]

    def pair_mean(cosines: Tensor) -> Tensor:
        margins = (cosines[rows, below] - cosines[rows, above]) / temperature
        return (gaps * torch.nn.functional.softplus(margins)).sum() / max(1, len(rows))

    return _summed(map(pair_mean, prefix_cosines(query, documents, dims)), dims, weights)


def distillation_loss(
    teacher: Tensor,
    query: Tensor,
    candidates: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    temperature: float = DISTILLATION_TEMPERATURE,
    mask: Tensor | None = None,
) -> Tensor:
    """How far the ranking by prefixes is from the ranking by full vectors (neighbour distillation).

    Σ over m of the mean over rows of −Σⱼ pⱼ·log qⱼ, where p = softmax(teacher / T) and q is the softmax of the prefix
    cosines / T, both over the candidates: the listwise cross-entropy of Cao et al. 2007 (Learning to Rank: From
    Pairwise Approach to Listwise Approach, section 4), with the full-width cosines as judge. The least it can be is
    the entropy of p, at every width.

    Args:
        teacher: float [b, n], full-width cosines of each query with its n candidates; gets no gradient.
        query: float [b, w], adapted.
        candidates: float [b, n, w], each row's own, or [n, w], shared by all; adapted.
        dims: widths m, rising, up to w.
        weights: one per width.
        temperature: T, above 0.
        mask: bool [b, n]; True leaves a candidate out of both softmaxes (the query itself, a duplicate).

    Returns:
        A scalar.

    Raises:
        InputError: weights that do not fit.
    """
    left_out = _left_out(mask, teacher)
    target = (teacher.detach() / temperature).masked_fill(left_out, -math.inf).softmax(dim=1)
    return _cross_entropies(target, query, candidates, dims, weights, temperature, left_out)


def listwise_loss(
    grades: Tensor,
    query: Tensor,
    documents: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
    *,
    temperature: float = DISTILLATION_TEMPERATURE,
    mask: Tensor | None = None,
) -> Tensor:
    """How little of the softmax over documents falls on those judged relevant.

    Σ over m of the mean over queries of −Σⱼ pⱼ·log qⱼ, where p are the grades scaled to sum to 1 and q is the softmax
    of the prefix cosines / T (ListNet's top-one cross-entropy, Cao et al. 2007, section 4, with p in proportion to the
    grades; for one relevant document it is the usual contrastive loss).

    Args:
        grades: float [b, n], 0 and above; above 0 for relevant documents.
        query: float [b, w], adapted.
        documents: float [b, n, w], each query's own, or [n, w], shared by all; adapted.
        dims: widths m, rising, up to w.
        weights: one per width.
        temperature: T, above 0.
        mask: bool [b, n]; True leaves a document out.

    Returns:
        A scalar.

    Raises:
        InputError: a query without a relevant document, a grade below 0, or weights that do not fit.
    """
    left_out = _left_out(mask, grades)
    kept = grades.to(query.dtype).masked_fill(left_out, 0.0)
    totals = kept.sum(dim=1, keepdim=True)
    if bool((kept < 0).any()) or not bool((totals > 0).all()):
        raise InputError("every query needs a document graded above 0, and no grade may be below 0")
    return _cross_entropies(kept / totals, query, documents, dims, weights, temperature, left_out)


def prefix_cosines(queries: Tensor, candidates: Tensor, dims: Sequence[int]) -> Iterator[Tensor]:
    """Cosines of renormalised prefixes, width by width; each column is multiplied once for all widths.

    Args:
        queries: float [b, w].
        candidates: float [b, n, w], each query's own, or [n, w], shared by all.
        dims: rising widths, up to w.

    Yields:
        float [b, n] for each width; 0 where a prefix is all zeros.
    """
    query_parts, candidate_parts = _segments(queries, dims), _segments(candidates, dims)
    dots = accumulate(map(_dots, query_parts, candidate_parts))
    scales = zip(_scales(query_parts), _scales(candidate_parts), strict=True)
    for dot, (query_scale, candidate_scale) in zip(dots, scales, strict=True):
        yield dot * query_scale[:, None] * candidate_scale


def _segments(vectors: Tensor, widths: Sequence[int]) -> Sequence[Tensor]:
    """The columns that each width adds to the one before, as views."""
    bounds = (0, *widths, vectors.shape[-1])
    # One split instead of slices: its gradient is put together once, not summed over full-size buffers.
    return torch.split(vectors, [end - start for start, end in pairwise(bounds)], dim=-1)[: len(widths)]


def _dots(queries: Tensor, candidates: Tensor) -> Tensor:
    if candidates.ndim == 2:
        return queries @ candidates.T
    return torch.bmm(candidates, queries[:, :, None])[:, :, 0]


def _scales(parts: Sequence[Tensor]) -> Iterator[Tensor]:
    """1/norm of each prefix."""
    for squared in accumulate(torch.linalg.vector_norm(part, dim=-1).square() for part in parts):
        yield squared.clamp_min(SHORTEST_SQUARED).rsqrt().masked_fill(squared < SHORTEST_SQUARED, 0.0)


def _cross_entropies(
    target: Tensor,
    query: Tensor,
    candidates: Tensor,
    dims: Sequence[int],
    weights: Sequence[float] | None,
    temperature: float,
    left_out: Tensor,
) -> Tensor:
    """Between a target [b, n] and the softmax of every prefix's cosines / T."""

    # Not target · log_softmax: what is left out would give 0 · −∞.
    def cross_entropy(cosines: Tensor) -> Tensor:
        logits = cosines / temperature
        normaliser = logits.masked_fill(left_out, -math.inf).logsumexp(dim=1)
        return (normaliser - (target * logits).sum(dim=1)).mean()

    return _summed(map(cross_entropy, prefix_cosines(query, candidates, dims)), dims, weights)


def _left_out(mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.bool) if mask is None else mask


def _summed(losses: Iterable[Tensor], dims: Sequence[int], weights: Sequence[float] | None) -> Tensor:
    factors = [1.0] * len(dims) if weights is None else list(weights)
    if len(factors) != len(dims) or not all(math.isfinite(factor) and factor >= 0 for factor in factors):
        raise InputError(f"weights is {factors}; expected {len(dims)} finite numbers, none below 0, one per width")
    return torch.stack([factor * loss for factor, loss in zip(factors, losses, strict=True)]).sum()
