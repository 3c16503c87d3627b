"""Losses that push the token vectors of one sequence apart: pure functions ``(B, S, d), mask -> scalar``.

Common to all: states are ``(B, S, d)``; the mask is ``(B, S)``, true for tokens that count, and None counts
all. The loss is taken per sequence, then averaged over the sequences with two usable tokens or more; without
any it is 0, still connected to the graph. A token is usable if the mask keeps it and its norm exceeds 1e-6 of
the rms norm in its sequence; no epsilon enters the norm, since with one, shrinking the vectors would count as
spreading them. The arithmetic is float32 (float64 for float64 states), autocast off; a GPU multiplies matrices in
TF32, which moves a gradient by 5e-4 at most (docs/performance.md). NaN or infinity in a kept row gives NaN: to
refuse it, and say where it was, is the caller's work. Masked rows may hold anything.
``ValueError``: a shape or a constant out of range.

Each value is computed together with its exact gradient, and that gradient, one ``(B, S, d)`` tensor, is all
that waits for the backward pass, where autograd would keep several ``(B, S, S)`` ones. Hence first
derivatives only.

The variant that maximises the entropy of each token over its neighbours is left out: this entropy is largest
when all vectors coincide, so lowering that loss rewards collapse.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_NEGLIGIBLE = 1e-6  # a row this much shorter than the rest has no direction worth the name


def angular(states: Tensor, mask: Tensor | None = None, *, tau: float = 1.0, clamp: float = 0.1) -> Tensor:
    """How narrow the cone of token directions is: a soft mean over pairs of minus their angle.

    Blind in value once every cosine exceeds 1 - clamp: it then stands still at its largest, whatever the
    vectors do, so log the mean cosine beside it. The gradient lives on: the forward uses the clamped cosine,
    the backward the slope at the clamped cosine (straight-through).

    Shapes: states (B, S, d), mask (B, S) -> scalar.
    Constants: temperature tau > 0, in half turns, small values look at the closest pairs; clamp t in (0, 1)
    bounds the slope of arccos, infinite at cosine 1.
    Range, at the defaults: -0.144 if all directions agree, -0.5 if all are orthogonal, never below -0.856.
    Formula: log mean_{i!=j} exp(-D_ij / tau), D_ij = arccos(clip(c_ij, -(1-t), 1-t)) / pi.
    Source: Liu et al., 2026, arXiv 2602.00217 (its main loss).
    """
    _check_constants(clamp=clamp, tau=tau)

    def rule(cosines: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        distance, slope = _distance(cosines, clamp)
        values, weights = _log_mean_exp(distance / -tau, pairs)
        return values, weights * slope / -tau

    return _mean_over_sequences(states, mask, lambda rows: _over_cosines(rows, rule))


def orthogonal(states: Tensor, mask: Tensor | None = None, *, margin: float = 0.5, clamp: float = 0.1) -> Tensor:
    """How far token pairs stay below a right angle: the mean squared shortfall; obtuse pairs are left alone.

    The clamp is that of `angular`, and so is the blindness once every cosine exceeds 1 - clamp.

    Shapes: states (B, S, d), mask (B, S) -> scalar.
    Constants: margin > 0, in half turns, the angle from which a pair is no longer pushed; clamp t in (0, 1).
    Range: >= 0; at the defaults 0.127 if all directions agree.
    Formula: mean_{i!=j} max(0, margin - D_ij)^2, D_ij as in `angular`.
    Source: Liu et al., 2026, arXiv 2602.00217 ("orthogonalization").
    """
    _check_constants(clamp=clamp, margin=margin)

    def rule(cosines: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        distance, slope = _distance(cosines, clamp)
        short = (margin - distance).clamp(min=0)
        values, weights = _mean_over_pairs(short.square(), pairs)
        return values, weights * short * slope * -2

    return _mean_over_sequences(states, mask, lambda rows: _over_cosines(rows, rule))


def decorrelation(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """How strongly two tokens correlate over their features: the mean squared Pearson correlation.

    Token with token, not feature with feature. Opposite vectors count as much as equal ones. A row whose
    features are all equal has no correlation and is masked, here only.

    Shapes: states (B, S, d), mask (B, S) -> scalar.
    Range: [0, 1]; about 1 / d for random directions.
    Formula: mean_{i!=j} r_ij^2, r_ij the Pearson correlation of tokens i and j over the d features.
    Source: Liu et al., 2026, arXiv 2602.00217 ("decorrelation").
    """

    def rule(correlations: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        values, weights = _mean_over_pairs(correlations.square(), pairs)
        return values, weights * correlations * 2

    # Centring is a projection, and a gradient over centred rows already lies in its range: no step back.
    return _mean_over_sequences(states, mask, lambda rows: _over_cosines(rows, rule), centre=True)


def l2_repel(states: Tensor, mask: Tensor | None = None, *, tau: float = 1.0, norm_weight: float = 0.1) -> Tensor:
    """How close together the token vectors lie, norms included, plus a price on their size.

    Degenerate at large norms: once squared distances exceed a few d * tau the softmax over pairs rests on the
    closest few, and their tokens get all of the repulsion. (Without the division by d it would underflow to
    exactly 0 at the norms of real residual streams.) Vectors too large for their squares to be represented,
    beyond about 1e16 in float32, are evaluated as if scaled down to that size.

    Shapes: states (B, S, d), mask (B, S) -> scalar.
    Constants: temperature tau > 0, a mean squared coordinate difference; norm_weight, the price per mean
    squared coordinate, without which growing is the cheapest way down.
    Range: unbounded; 0 for vectors that coincide near the origin, less as they separate, more as they grow.
    Formula: log mean_{i!=j} exp(-|z_i - z_j|^2 / (d tau)) + norm_weight * mean z^2.
    Source: Liu et al., 2026, arXiv 2602.00217 ("l2-repel"); divided by d as in Wang and He, 2025,
    arXiv 2506.09027.
    """
    _check_constants(tau=tau)

    def formula(rows: "_Rows") -> tuple[Tensor, Tensor]:
        points, shrink = _bounded_points(rows, tau)
        dim, size = points.shape[-1], rows.kept.sum(1)[:, None, None].clamp(min=1)
        # Distances do not move with the origin; seen from the centroid they lose fewer digits in a cone.
        around = torch.where(rows.kept[..., None], points - points.sum(1, keepdim=True) / size, 0)
        square = around.square().sum(-1)
        distance = (square[:, :, None] + square[:, None, :] - 2 * around @ around.mT).clamp(min=0)
        values, weights = _log_mean_exp(distance / (-dim * tau), _pairs(rows.kept))
        pull = weights @ around - weights.sum(-1, keepdim=True) * around
        gradient = pull * (4 / (dim * tau)) + points * (2 * norm_weight / dim) / size
        price = norm_weight * (points.square().mean(-1, keepdim=True) / size).sum((1, 2))
        return values + price, gradient * shrink

    return _mean_over_sequences(states, mask, formula)


def mean_cosine(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """How far token directions agree: the mean cosine over pairs of different tokens.

    Needs no matrix of pairs: its cost is O(S d). On one cone of mean cosine .5 or more its gradient is at
    least .998 aligned with that of `angular`; on several cones less (.96 on two): the slopes differ by pair.

    Shapes: states (B, S, d), mask (B, S) -> scalar.
    Range: [-1 / (n-1), 1]; 1 if all directions agree, about 0 if they are random.
    Formula: mean_{i!=j} c_ij = (|sum_i u_i|^2 - n) / (n (n-1)), u_i the n usable unit vectors.
    Source: the CosReg of Gao et al., 2019, arXiv 1907.12009, taken from output embeddings to tokens.
    """

    def formula(rows: "_Rows") -> tuple[Tensor, Tensor]:
        unit, inverse = _directions(rows)
        total = unit.sum(1, keepdim=True)
        size = rows.kept.sum(1)[:, None, None].to(unit.dtype)
        count = (size * (size - 1)).clamp(min=1)
        value = (total.square().sum(-1, keepdim=True) - size) / count
        return value.flatten(), _through_norm(total * 2 / count, unit, inverse)

    return _mean_over_sequences(states, mask, formula)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "angular": angular,
    "orthogonal": orthogonal,
    "decorrelation": decorrelation,
    "l2_repel": l2_repel,
    "mean_cosine": mean_cosine,
}


class _Rows(NamedTuple):
    """Tokens as a direction times a size, so that the square of a huge or tiny one stays in range."""

    scaled: Tensor  # (B, S, d), largest absolute entry 1; 0 where not kept
    peak: Tensor  # (B, S, 1), what the row was divided by; 1 where not kept
    kept: Tensor  # (B, S), usable


_Formula = Callable[[_Rows], tuple[Tensor, Tensor]]  # -> values (B,), the gradient of each (B, S, d)
_PairRule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # cosines, pairs -> values, their slopes


class _KnownGradient(torch.autograd.Function):
    """A scalar whose gradient with respect to the states was computed along with it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = states.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (outer * gradient).to(ctx.dtype), None, None


def _mean_over_sequences(states: Tensor, mask: Tensor | None, formula: _Formula, centre: bool = False) -> Tensor:
    if states.ndim != 3 or not states.is_floating_point():
        raise ValueError(f"states must be floats (B, S, d), got {states.dtype} {tuple(states.shape)}")
    if mask is not None and mask.shape != states.shape[:2]:
        raise ValueError(f"mask must be {tuple(states.shape[:2])}, got {tuple(mask.shape)}")
    with torch.no_grad(), torch.autocast(states.device.type, enabled=False), _tf32(states.device):
        exact = states.detach().to(torch.promote_types(states.dtype, torch.float32))
        if exact.numel():
            rows = _usable_rows(exact, mask, smallest=torch.finfo(states.dtype).tiny)
            rows = _centred(rows) if centre else rows
            values, gradient = formula(rows)
            counted = rows.kept.sum(1) >= 2
            sequences = counted.sum().clamp(min=1)
            value = torch.where(counted, values, 0).sum() / sequences  # values without a pair mean nothing
            gradient = torch.where(counted[:, None, None], gradient, 0) / sequences
        else:
            value, gradient = exact.sum(), exact
    loss: Tensor = _KnownGradient.apply(states, value, gradient)  # type: ignore[no-untyped-call]
    return loss


@contextlib.contextmanager
def _tf32(device: torch.device) -> Iterator[None]:
    """Within, matrices of float32 on a GPU are multiplied in TF32 with float32 sums; what was set before comes back.

    Its gradients stay within 5e-4 of float64's; bfloat16's do not stay within 1e-3 at a mean cosine of 0 or .99.
    """
    if device.type != "cuda":
        yield
        return
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


def _usable_rows(exact: Tensor, mask: Tensor | None, smallest: float) -> _Rows:
    valid = exact.new_ones(exact.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    rows = torch.where(valid[..., None], exact, 0)
    peak = rows.abs().amax(-1, keepdim=True)
    rows = rows / torch.where(peak == 0, 1, peak)
    largest = peak.amax(1, keepdim=True)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    norm = norm * (peak / torch.where(largest == 0, 1, largest))
    rms = (norm.square().sum(1, keepdim=True) / valid.sum(1).clamp(min=1)[:, None, None]).sqrt()
    # Said in the negative so that NaN stays in and shows. Below the smallest normal number of the states'
    # type, 1/norm, and so the gradient, could exceed the largest.
    kept = valid[..., None] & ~(norm <= _NEGLIGIBLE * rms) & ~(peak < smallest)
    return _Rows(torch.where(kept, rows, 0), torch.where(kept, peak, 1), kept.squeeze(-1))


def _centred(rows: _Rows) -> _Rows:
    """Rows minus their mean over the features, without those this reduces to rounding error."""
    centred = rows.scaled - rows.scaled.mean(-1, keepdim=True)
    left, whole = (torch.linalg.vector_norm(x, dim=-1) for x in (centred, rows.scaled))
    kept = rows.kept & ~(left <= _NEGLIGIBLE * whole)
    return _Rows(torch.where(kept[..., None], centred, 0), rows.peak, kept)


def _directions(rows: _Rows) -> tuple[Tensor, Tensor]:
    """True unit vectors, 0 where not kept, and one over the norms of the states they came from."""
    norm = torch.linalg.vector_norm(rows.scaled, dim=-1, keepdim=True)
    inverse = torch.where(rows.kept[..., None], 1 / norm, 0)
    return rows.scaled * inverse, inverse / rows.peak


def _through_norm(gradient: Tensor, unit: Tensor, inverse: Tensor) -> Tensor:
    """From a gradient over unit vectors to one over the vectors they were made of."""
    return (gradient - (gradient * unit).sum(-1, keepdim=True) * unit) * inverse


def _over_cosines(rows: _Rows, rule: _PairRule) -> tuple[Tensor, Tensor]:
    unit, inverse = _directions(rows)
    values, slopes = rule(unit @ unit.mT, _pairs(rows.kept))
    return values, _through_norm(2 * slopes @ unit, unit, inverse)  # 2: both ends of a pair move


def _distance(cosines: Tensor, clamp: float) -> tuple[Tensor, Tensor]:
    """Angle in half turns of the clamped cosine, and its derivative there."""
    bounded = cosines.clamp(clamp - 1, 1 - clamp)
    return bounded.acos() / math.pi, (1 - bounded.square()).rsqrt() / -math.pi


def _pairs(kept: Tensor) -> Tensor:
    """Ordered pairs of different usable tokens, (B, S, S)."""
    same = torch.eye(kept.shape[1], dtype=torch.bool, device=kept.device)
    return kept[:, :, None] & kept[:, None, :] & ~same


def _mean_over_pairs(terms: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over pairs, (B,), and its derivative by each term, (B, S, S)."""
    weights = pairs / pairs.sum((1, 2), keepdim=True, dtype=terms.dtype).clamp(min=1)
    return (terms * weights).sum((1, 2)), weights


def _log_mean_exp(exponents: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mean over pairs of exp, (B,), and its derivative by each exponent, (B, S, S)."""
    exponents = exponents.masked_fill(~pairs, -math.inf)
    largest = exponents.amax((1, 2), keepdim=True)
    largest = torch.where(largest == -math.inf, 0, largest)
    terms = (exponents - largest).exp()
    # Not logsumexp minus the log of the count: that difference of large numbers costs a digit in float32.
    total, count = terms.sum((1, 2)), pairs.sum((1, 2), dtype=terms.dtype)
    return largest.flatten() + (total / count).log(), terms / total[:, None, None]


def _bounded_points(rows: _Rows, tau: float) -> tuple[Tensor, Tensor]:
    """The states themselves, shrunk if need be until every sum of squares is representable."""
    largest = torch.finfo(rows.scaled.dtype).max * min(tau, 1.0) / (8 * rows.scaled[0].numel())
    shrink = (math.sqrt(largest) / rows.peak.amax(1, keepdim=True)).clamp(max=1)
    return rows.scaled * (rows.peak * shrink), shrink


def _check_constants(clamp: float = 0.5, **positive: float) -> None:
    if not 0 < clamp < 1:
        raise ValueError(f"clamp must lie between 0 and 1, got {clamp}")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
