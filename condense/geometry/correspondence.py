"""Two readings of the same tokens: states of two models, of the input and output of a block, two predictions.

Row i of both is the same token at the same position; all work in float64 on the CPU, but for the logits, which stay
where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from condense.geometry.rows import checked_states, has_direction


def corresponding_cosines(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of each row of x with the same row of y, (n, d) and (n, d) -> (n,), range [−1, 1].

    NaN where neither has a direction; 0 where one of the two has none.
    """
    first, second = _checked_pair(x, y)
    if first.shape != second.shape:
        raise ValueError(f"rows of {tuple(first.shape)} and {tuple(second.shape)} do not correspond")
    in_first, in_second = has_direction(first), has_direction(second)
    cosines = functional.cosine_similarity(
        first / _lengths_or_one(first), second / _lengths_or_one(second), dim=-1, eps=0.0
    )
    cosines = torch.where(in_first & in_second, cosines.clamp(-1, 1), 0.0)
    return torch.where(in_first | in_second, cosines, torch.nan)


def corresponding_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of corresponding rows: 1 where two models give the same directions. (n, d) twice -> ()."""
    return corresponding_cosines(x, y).nanmean()


def update_ratio(x: Tensor, y: Tensor) -> Tensor:
    """How much a block writes: the mean over tokens of ‖y − x‖/‖x‖, x what it receives, y what it returns.

    (n, d) twice -> (), ≥ 0; rows without a direction in x are left out, NaN without any. 0: the block changes nothing.
    Sun et al. 2025, arXiv:2502.05795, who relate it to depth.
    """
    first, second = _checked_pair(x, y)
    known = has_direction(first)
    ratios: Tensor = (second - first)[known].norm(dim=-1) / first[known].norm(dim=-1)
    return ratios.mean()


def update_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Mean cosine of what a block receives and what it returns for the same token: 1 where it changes no direction.

    (n, d) twice -> (), range [−1, 1]. Men et al. 2024, arXiv:2403.03853 (1 − it is their block influence).
    """
    return corresponding_cosine(x, y)


def block_updates(x: Tensor, y: Tensor) -> Tensor:
    """Update ratio and cosine of every token, from lengths in the states' own precision.

    x, y (n, d) what a block receives and returns -> (2, n) float64 on the CPU, NaN where x has no direction. Their
    means are `update_ratio` and `update_cosine` to 1e-6, in a twentieth of the time.
    """
    lengths = [torch.linalg.vector_norm(rows, dim=-1) for rows in _wide(x, y)]
    if not all(bool(torch.isfinite(length).all()) for length in lengths):  # squares of float32 overflow from 1e19 on
        lengths = [torch.linalg.vector_norm(rows, dim=-1) for rows in _wide(x.cpu().double(), y.cpu().double())]
    before, after, written = (length.cpu().double() for length in lengths)
    turned = (before.square() + after.square() - written.square()) / (2 * before * after)
    turned = torch.where(after > 1e-6 * before, turned.clamp(-1, 1), 0.0)
    known = before > 1e-6 * before.square().mean().sqrt()
    return torch.where(known, torch.stack([written / before, turned]), torch.nan)


def _wide(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both and their difference in float32 or wider."""
    kind = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(kind), y.to(kind)
    return first, second, second - first


def debiased_hsic(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """HSIC₁ of x with y, of x with itself, of y with itself, with linear kernels: rows (n, d), (n, e) -> three of ().

    HSIC₁(K, L) = [tr(K̃L̃) + ΣK̃ΣL̃/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1]/(n(n−3)), K̃ = xxᵀ and L̃ = yyᵀ without their
    diagonals. Unbiased, so that it can be averaged over texts; NaN for n < 4. The rows are scaled to a mean square
    length of 1, which no CKA depends on. Song et al. 2012, JMLR 13.
    """
    first, second = _checked_pair(x, y)
    n = len(first)
    if n < 4 or len(second) != n:
        nothing = first.new_full((), torch.nan)
        return nothing, nothing, nothing
    k, l = (_gram_without_diagonal(rows) for rows in (first, second))  # noqa: E741  as in the formula
    return _hsic(k, l, n), _hsic(k, k, n), _hsic(l, l, n)


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Debiased linear CKA of one text: HSIC₁(K, L)/√(HSIC₁(K, K)·HSIC₁(L, L)); rows (n, d), (n, e) -> (), −1..1.

    1: the same geometry up to rotation and scale; about 0 for unrelated states, whatever n and d are. Kornblith et al.
    2019, arXiv:1905.00414; debiased: Murphy et al. 2024, arXiv:2405.01012.
    """
    cross, first, second = debiased_hsic(x, y)
    return cross / (first * second).sqrt()


def divergences(logits: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """KL(P‖Q) in nats and whether both have the same most likely token, for each row of logits (n, V) -> (n,), (n,).

    Of other widths: P over the tokens that both have, the first min(V, V'), where the KL would be infinite else; Q over
    all of its own, so that what it gives to tokens that P lacks counts. As Σ p·log(p/q) − p + q, which is the same for
    what sums to 1 and does not carry the rounding of the two normalisers.
    """
    words = min(logits.shape[-1], others.shape[-1])
    p = functional.log_softmax(logits[..., :words].float(), dim=-1)
    q, beyond = functional.log_softmax(others.float(), dim=-1).tensor_split((words,), dim=-1)
    chance, other = p.exp(), q.exp()
    terms = torch.where(chance > 0, chance * (p - q), 0.0) + (other - chance)
    apart = terms.sum(-1) + beyond.exp().sum(-1)
    return apart.clamp_min(0.0), logits.argmax(-1) == others.argmax(-1)


def _checked_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    first, second = checked_states(x), checked_states(y)
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(f"rows of {tuple(x.shape)} and {tuple(y.shape)} do not correspond")
    return first, second


def _lengths_or_one(x: Tensor) -> Tensor:
    lengths = x.norm(dim=-1, keepdim=True)
    return torch.where(lengths > 0, lengths, 1.0)


def _gram_without_diagonal(x: Tensor) -> Tensor:
    """The Gram matrix without its diagonal, of rows scaled to a mean square length of 1."""
    largest = x.abs().max()
    scaled = x / torch.where(largest > 0, largest, 1.0)
    size = scaled.square().sum() / len(x)
    gram = scaled @ scaled.T / torch.where(size > 0, size, 1.0)
    return gram.fill_diagonal_(0.0)


def _hsic(k: Tensor, l: Tensor, n: int) -> Tensor:  # noqa: E741  as in the formula
    sums, others = k.sum(0), l.sum(0)
    ends = sums.sum() * others.sum() / ((n - 1) * (n - 2))
    return ((k * l).sum() + ends - 2 / (n - 2) * (sums * others).sum()) / (n * (n - 3))
