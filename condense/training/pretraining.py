"""Remedies that change how a model is trained from the start: each can be read against its paper.

CoupledAdam          Stollenwerk and Stollenwerk, 2025, arXiv 2502.08441   a callback of `Trainer`
layernorm_scaling    Sun et al., 2025, arXiv 2502.05795                    around training
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from condense.errors import UnavailableError, UsageError
from condense.models.layers import find_stacks, unwrapped


class CoupledAdam(TrainerCallback):
    """Share Adam's second moment over the rows of the input and output embeddings.

    For these matrices the bias-corrected second moment is replaced by its mean over the rows (the vocabulary), so that
    rare and frequent words take steps of one size; everything else of the step is Adam's or AdamW's own. The optimizer
    keeps the moments of each row, whose mean is the same, so that checkpoints are ordinary ones. UsageError for another
    optimizer, for amsgrad, or where the embeddings are not trained.

    Source: after arXiv 2502.08441 (Coupled Adam).
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._before: dict[Tensor, Tensor] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the embeddings and the optimizer."""
        self.attach(kwargs["model"], getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"]))

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Take the embeddings' part of every step of an optimizer anew, from now on. UsageError as above."""
        refuse_other_optimizer(type(optimizer), any(group.get("amsgrad") for group in optimizer.param_groups))
        inner: Any = unwrapped(model)
        parts = (inner.get_input_embeddings(), inner.get_output_embeddings())
        weights = {part.weight for part in parts if isinstance(getattr(part, "weight", None), Tensor)}
        trained = {p for group in optimizer.param_groups for p in group["params"]}
        self._weights = [weight for weight in weights if weight in trained]
        if not self._weights:
            raise UsageError("coupled-adam acts on the embeddings, but they are not trained here (LoRA?)")
        self._handles = [
            optimizer.register_step_pre_hook(self._remember),
            optimizer.register_step_post_hook(self._couple),
        ]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimizer as it was."""
        while self._handles:
            self._handles.pop().remove()

    def _remember(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._before = {weight: weight.detach().clone() for weight in self._weights if weight.grad is not None}

    @torch.no_grad()
    def _couple(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight in self._before:
                    weight.copy_(coupled_step(self._before.pop(weight), optimizer.state[weight], group, optimizer))


def refuse_other_optimizer(kind: type, amsgrad: bool = False) -> None:
    """UsageError unless it is torch's Adam or AdamW, whose step `CoupledAdam` takes anew."""
    if amsgrad or not issubclass(kind, torch.optim.Adam | torch.optim.AdamW):
        raise UsageError(
            f"coupled-adam changes Adam's step, but the optimizer is {kind.__name__}",
            "use --optim adamw_torch, or leave coupled-adam out",
        )


def coupled_step(
    weight: Tensor, state: dict[str, Any], group: dict[str, Any], optimizer: torch.optim.Optimizer
) -> Tensor:
    """The weight (V, d) after a step of Adam whose second moment is the mean over the rows.

    state holds the moments after this step: step t, exp_avg m, exp_avg_sq v. Formula: w - lr * weight_decay * w (AdamW)
    - lr * (m / (1 - beta1^t)) / (sqrt(mean_rows(v) / (1 - beta2^t)) + eps).
    """
    step = float(state["step"])
    beta1, beta2 = group["betas"]
    mean = state["exp_avg_sq"].mean(0, keepdim=True) / (1 - beta2**step)
    update = state["exp_avg"] / (1 - beta1**step) / (mean.sqrt() + group["eps"])
    decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
    decay = group["lr"] * group["weight_decay"] if decoupled else 0.0
    coupled: Tensor = weight * (1 - decay) - group["lr"] * update
    return coupled


@contextmanager
def layernorm_scaling(model: nn.Module) -> Iterator[None]:
    """Multiply the output of each norm in block l by 1/sqrt(l), l = 1..L, within the context; weights are left alone.

    Norms of the width of the residual stream only: those of queries and keys normalise heads, not the stream.
    `fold_layernorm_scaling` puts the scale into the weights once training is over. UnavailableError where a norm's
    output does not scale with its weight (Gemma's 1 + weight).

    Source: after Sun et al., 2025, arXiv 2502.05795, for training from scratch.
    """
    norms = _scaled_norms(model)
    for norm, _ in norms:
        _refuse_other_norms(norm)
    hooks = [norm.register_forward_hook(_scaled(scale)) for norm, scale in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def fold_layernorm_scaling(model: nn.Module) -> None:
    """Multiply weight and bias of each norm in block l by 1/sqrt(l), in place: an ordinary model, the same outputs.

    Once, behind the training under `layernorm_scaling`; a second call would scale again.
    """
    for norm, scale in _scaled_norms(model):
        for parameter in norm.parameters(recurse=False):
            parameter.mul_(scale)


def _scaled_norms(model: nn.Module) -> list[tuple[nn.Module, float]]:
    """The norms of the stream, each with 1/sqrt(l) of its block. UnavailableError for a model without any."""
    norms = [
        (norm, 1 / math.sqrt(number))
        for stack in find_stacks(model)
        for number, block in enumerate(stack.modules, 1)
        for norm in _norms_of(block)
    ]
    if not norms:
        raise UnavailableError(
            f"layernorm-scaling: {type(unwrapped(model)).__name__} has no norms in its blocks to scale",
            "leave layernorm-scaling out for this architecture",
        )
    return norms


def _scaled(scale: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    return lambda module, args, output: output * scale


def _norms_of(block: nn.Module) -> list[nn.Module]:
    """The norms of a block that are as wide as its widest one: those of the stream."""
    named: list[Any] = [part for part in block.modules() if "norm" in type(part).__name__.lower()]
    norms = [part for part in named if isinstance(getattr(part, "weight", None), Tensor)]
    widest = max((part.weight.numel() for part in norms), default=0)
    return [part for part in norms if part.weight.numel() == widest]


@torch.no_grad()
def _refuse_other_norms(norm: Any) -> None:
    """UnavailableError unless half the weights give half the output."""
    rows = torch.linspace(-1, 2, 3 * norm.weight.numel(), device=norm.weight.device, dtype=norm.weight.dtype)
    rows = rows.view(3, -1).sin()
    whole = norm(rows)
    parameters = list(norm.parameters(recurse=False))
    kept = [parameter.clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.mul_(0.5)
        half = norm(rows)
    finally:
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    if not torch.allclose(half, whole / 2, rtol=1e-3, atol=1e-5):
        raise UnavailableError(
            f"layernorm-scaling cannot be folded into {type(norm).__name__}: its output does not scale with its weight",
            "leave layernorm-scaling out for this architecture",
        )
