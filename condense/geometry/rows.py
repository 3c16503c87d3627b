"""Rows of states: which of them have a direction, how long they are, how much they vary.

Shared by all metrics: `each_cloud` applies a function of one cloud (n, d) to (..., n, d) in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from condense.metrics import SINK_FACTOR


def each_cloud(states: Tensor, quantity: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of one float64 cloud (n, d) to every cloud of (..., n, d).

    ValueError for states of another shape, of integers, or that are not finite.
    """
    clouds = checked_states(states)
    flat = clouds.reshape(-1, *clouds.shape[-2:])
    results = torch.stack([quantity(cloud) for cloud in flat])
    return results.reshape((*clouds.shape[:-2], *results.shape[1:]))


def checked_states(states: Tensor) -> Tensor:
    """The states in float64 on the CPU; ValueError if they cannot be measured."""
    if states.ndim < 2 or 0 in states.shape[-2:]:
        raise ValueError(f"states must be (..., n, d) with n, d ≥ 1, got {tuple(states.shape)}")
    if not states.is_floating_point():
        raise ValueError(f"states must be floating point, got {states.dtype}")
    if not bool(torch.isfinite(states).all()):
        raise ValueError(f"{int((~torch.isfinite(states)).sum())} values of the states are not finite")
    return states.detach().cpu().double()


def has_direction(x: Tensor) -> Tensor:
    """Which rows (n, d) have a direction: longer than 1e-6 times the root mean square of the lengths; (n,) bool."""
    norms: Tensor = (x / _scale(x)).norm(dim=-1)
    return norms.gt(1e-6 * norms.square().mean().sqrt())


def directions(x: Tensor) -> Tensor:
    """Unit rows; rows without a direction are left out. Scaled first, so that no square overflows."""
    scaled = x[has_direction(x)] / _scale(x)
    units: Tensor = scaled / scaled.norm(dim=-1, keepdim=True)
    return units


def _scale(x: Tensor) -> Tensor:
    largest = x.abs().max()
    return torch.where(largest > 0, largest, 1.0)


def quantile(values: Tensor, q: float) -> Tensor:
    """Exact quantile with linear interpolation; torch.quantile refuses more than 2^24 values."""
    ordered = values.sort().values
    rank = q * (len(ordered) - 1)
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low].lerp(ordered[high], rank - low)


def undefined() -> Tensor:
    """NaN as a float64 scalar."""
    return torch.full((), torch.nan, dtype=torch.float64)


def relative_variance(states: Tensor) -> Tensor:
    """Share of the states' energy that is not in their mean: 0 when all rows are equal.

    states (..., n, d) -> (...), range [0, 1]. 1 − n‖x̄‖²/‖X‖²_F on the raw rows.
    """
    return each_cloud(states, lambda x: ((x - x.mean(0)).square().sum() / x.square().sum()).clamp(max=1.0))


def total_variance(states: Tensor) -> Tensor:
    """Unbiased variance of the raw states, averaged over dimensions, in activation².

    states (..., n, d) -> (...), ≥ 0. tr Cov(X)/d. Grows with the residual norm: not comparable across depth.
    """
    return each_cloud(states, lambda x: (x - x.mean(0)).square().sum() / (len(x) - 1) / x.shape[1])


def median_norm(states: Tensor) -> Tensor:
    """Median length of the token states; an even count averages the middle two.

    states (..., n, d) -> (...), ≥ 0, in units of activation.
    """
    return each_cloud(states, lambda x: quantile(x.norm(dim=-1), 0.5))


def sink_ratio(states: Tensor, everything: Tensor | None = None) -> Tensor:
    """Longest state over the median one: above 20 a token is a sink, above 100 its activations are massive.

    states (..., n, d) the kept tokens; everything (..., m, d) all positions (default: states) -> (...), ≥ 0.
    max ‖x‖ / median ‖x‖. Sun et al. 2024, arXiv:2402.17762.
    """
    longest = each_cloud(states if everything is None else everything, lambda x: x.norm(dim=-1).max())
    return longest / median_norm(states)


def sinks(states: Tensor, keep: Tensor | None = None, factor: float = SINK_FACTOR) -> Tensor:
    """Which positions are sinks: longer than `factor` times the median length of the kept positions.

    states (n, d), keep (n,) bool, the positions that the median is taken over (default: all) -> (n,) bool, over all
    positions. Rows without a direction do not count in the median. The factor is a convention: on SmolLM2-135M the
    sinks reach 204 times the median from block 12 on, every token from position 8 on stays below 13 (docs/metrics.md).
    """
    x = checked_states(states)
    if x.ndim != 2:
        raise ValueError(f"states must be (n, d), got {tuple(states.shape)}")
    counted = has_direction(x) if keep is None else has_direction(x) & keep.cpu()
    return sink_positions(x.norm(dim=-1), counted, factor)


def sink_positions(lengths: Tensor, counted: Tensor, factor: float = SINK_FACTOR) -> Tensor:
    """The same from the lengths (n,) of all positions and those that the median is taken over, (n,) bool."""
    if not bool(counted.any()):
        return torch.zeros_like(counted)
    is_sink: Tensor = lengths > factor * quantile(lengths[counted], 0.5)
    return is_sink
