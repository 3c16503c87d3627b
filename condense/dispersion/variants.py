"""Penalties on token states beside the published losses: ours, another paper's, and placebos of equal size.

Pure functions as in `losses`: states (B, S, d), mask (B, S) -> scalar, in float32 with autocast off. `step` seeds
what is drawn; `labels` (B, S) are next-token ids, -1 where there is none. A placebo has no reason to help: one that
does as well as the loss says that the loss helps for another reason than its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from condense.dispersion.losses import LOSSES, angular

SINK_FACTOR = 20.0
"""A token whose norm exceeds this many times the median norm of its sequence is a sink (docs/metrics.md)."""
PROJECTED_SHARE = 8
_PROJECTION_SEED = 20260202
_SHUFFLE_SEED = 1_000_003


def robust(states: Tensor, mask: Tensor | None = None, *, tau: float = 1.0, clamp: float = 0.1) -> Tensor:
    """`angular` that cannot be met by rescaling a few coordinates: on states without sinks, coordinates standardised.

    Tokens whose norm exceeds 20 times the median of their sequence are left out. Each coordinate is centred and divided
    by its standard deviation over the kept tokens of the batch; the statistics carry no gradient.

    Shapes: states (B, S, d), mask (B, S) -> scalar. Range: that of `angular`. Unchanged if coordinates are rescaled.
    Blind to a direction that all tokens share, which centring takes away: in long training from random weights the cone
    itself ended narrower than without it. Leaving the strongest coordinates out instead gained less (both:
    docs/study/results.md).
    Source: ours, after Timkey and van Schijndel, 2021, arXiv 2109.04404 (standardising against rogue dimensions).
    """
    kept, states = usual_tokens(states, mask), _exact(states)
    rows = states.detach()[kept]
    if len(rows) < 2:
        return angular(states, kept, tau=tau, clamp=clamp)
    deviation = rows.std(0)
    scale = torch.where(deviation > 0, 1 / deviation.clamp(min=torch.finfo(rows.dtype).tiny), 0)
    return angular((states - rows.mean(0)) * scale, kept, tau=tau, clamp=clamp)


def shuffled(states: Tensor, mask: Tensor | None = None, *, step: int = 0, tau: float = 1.0) -> Tensor:
    """Placebo: `angular` on the same states, the tokens drawn anew for each sequence from all sequences of the batch.

    As many tokens as before, but no longer of one text; the draw is seeded by `step`. With one sequence in the batch it
    is `angular` itself.

    Shapes: states (B, S, d), mask (B, S) -> scalar. Range: that of `angular`. Source: ours, a control.
    """
    kept = _all(states, mask)
    rows = states[kept]
    generator = torch.Generator().manual_seed((_SHUFFLE_SEED + step) % 2**63)
    order = torch.randperm(len(rows), generator=generator).to(states.device)
    return angular(torch.zeros_like(states).masked_scatter(kept[..., None], rows[order]), kept, tau=tau)


def projected(states: Tensor, mask: Tensor | None = None, *, tau: float = 1.0) -> Tensor:
    """Placebo: `angular` on a fixed random projection of the states to d/8 dimensions, never trained.

    Shapes: states (B, S, d), mask (B, S) -> scalar. Range: that of `angular`. Source: ours, a control.
    """
    width = states.shape[-1]
    generator = torch.Generator().manual_seed(_PROJECTION_SEED)
    matrix = torch.randn(width, max(2, width // PROJECTED_SHARE), generator=generator) / width**0.5
    with torch.autocast(states.device.type, enabled=False):
        exact = _exact(states)
        return angular(exact @ matrix.to(exact.device, exact.dtype), mask, tau=tau)


def norms(states: Tensor, mask: Tensor | None = None, *, tau: float = 1.0) -> Tensor:
    """Placebo: how far norms differ, with a gradient as large as that of `angular` on the same states.

    Shapes: states (B, S, d), mask (B, S) -> scalar. Range: >= 0.
    Formula: s * mean (|x| / stopgrad(mean |x|) - 1)^2, s the ratio of the two gradient norms, without a gradient.
    Source: ours, a control.
    """
    kept, states = _all(states, mask), _exact(states)
    value = _norm_spread(states, kept)
    with torch.enable_grad():
        copy = states.detach().clone().requires_grad_()
        (wanted,) = torch.autograd.grad(angular(copy, kept, tau=tau), copy)
        own = _norm_spread(copy, kept)
        (given,) = torch.autograd.grad(own, copy) if own.requires_grad else (torch.zeros_like(copy),)
    size = given.norm()
    ratio = torch.where(size > 0, wanted.norm() / size.clamp(min=torch.finfo(size.dtype).tiny), 0)
    scaled: Tensor = value * ratio.detach()
    return scaled


def _norm_spread(states: Tensor, kept: Tensor) -> Tensor:
    sizes = torch.linalg.vector_norm(states[kept].float(), dim=-1)
    if len(sizes) < 2:
        return states.sum() * 0
    spread: Tensor = (sizes / sizes.mean().detach() - 1).square().mean()
    return spread


def simreg(states: Tensor, mask: Tensor | None = None, *, labels: Tensor | None = None, tau: float = 0.1) -> Tensor:
    """Tokens of a sequence that share the next token pulled together, others pushed apart: structure, not spread.

    Per sequence, over anchors i that have another token p of the same next-token label: the mean over i of the mean
    over p of -log(exp(c_ip/tau) / sum_{a != i} exp(c_ia/tau)); then the mean over the sequences that have an anchor,
    0 if none has. Ours: on the tokens that the penalty draws, not on all of the sequence. `Disperser` reads the next
    tokens from the input, also where cross-entropy leaves them out (label -100, the prompt of a chat).

    Shapes: states (B, S, d), mask, labels (B, S) -> scalar. Range: >= 0. ValueError without labels.
    Source: after arXiv 2605.08809 (SimReg).
    """
    if labels is None:
        raise ValueError("simreg needs labels (B, S), the next token of each")
    kept = _all(states, mask)
    with torch.autocast(states.device.type, enabled=False):
        unit = functional.normalize(_exact(states), dim=-1)
        logits = unit @ unit.mT / tau
    same = torch.eye(states.shape[1], dtype=torch.bool, device=states.device)
    pairs = kept[:, :, None] & kept[:, None, :] & ~same
    together = pairs & (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]
    log_share = logits - logits.masked_fill(~pairs, -torch.inf).logsumexp(-1, keepdim=True)
    number = together.sum(-1)
    anchors = number > 0
    losses = -torch.where(together, log_share, 0).sum(-1) / number.clamp(min=1)
    per_sequence = torch.where(anchors, losses, 0).sum(-1) / anchors.sum(-1).clamp(min=1)
    some = anchors.any(-1)
    loss: Tensor = torch.where(some, per_sequence, 0).sum() / some.sum().clamp(min=1)
    connected: Tensor = loss + 0 * states.sum()
    return connected


def _exact(states: Tensor) -> Tensor:
    """The states in float32; float64 stays."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _all(states: Tensor, mask: Tensor | None) -> Tensor:
    return torch.ones(states.shape[:2], dtype=torch.bool, device=states.device) if mask is None else mask.bool()


def usual_tokens(states: Tensor, mask: Tensor | None) -> Tensor:
    """The mask (B, S) without tokens whose norm exceeds 20 times the median of the kept ones of their sequence."""
    kept, sizes = _all(states, mask), torch.linalg.vector_norm(states.detach().float(), dim=-1)
    median = sizes.masked_fill(~kept, torch.nan).nanmedian(1, keepdim=True).values
    usual: Tensor = kept & ~(sizes > SINK_FACTOR * median)
    return usual


PENALTIES: dict[str, Callable[..., Tensor]] = {
    **LOSSES,
    "robust": robust,
    "placebo-shuffled": shuffled,
    "placebo-projection": projected,
    "placebo-norm": norms,
    "simreg": simreg,
}
"""What `DispersionConfig.loss` may name: the published losses, ours, and those of other arms."""
