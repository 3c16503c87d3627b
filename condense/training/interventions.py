"""What an arm adds to plain training, as one value: a dispersion loss, hooks on the model, callbacks, a regulariser.

The trainer, the timing of a step and the process that measures memory all read the same value, so that what is
timed is what is trained. An arm without any of it is the control.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from condense.dispersion.disperser import Disperser, DispersionConfig
from condense.records.plans import Plan

Hooks = Callable[[Any], AbstractContextManager[None]]


def _nothing(model: Any) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Regulariser:
    """A scalar of the model itself, added to the loss once per optimizer step at a coefficient."""

    coefficient: float
    value: Callable[[Any], Tensor]


@dataclass(frozen=True)
class Intervention:
    """What an arm does while it trains; the default does nothing but log the mean cosine (coefficient 0).

    `hooks(model)` is a context around training; `callbacks()` makes fresh callbacks for one run, and what they have
    in `details` afterwards is told of the run.
    """

    dispersion: DispersionConfig = field(default_factory=lambda: DispersionConfig(coefficient=0.0))
    hooks: Hooks = _nothing
    callbacks: Callable[[], tuple[Any, ...]] = tuple
    regulariser: Regulariser | None = None


def dispersion_config(plan: Plan, coefficient: float) -> DispersionConfig:
    """The loss of a plan at a coefficient; tau only where the loss has one."""
    constants = {"tau": plan.tau} if plan.loss in ("angular", "l2_repel") else None
    return DispersionConfig(
        coefficient=coefficient, loss=plan.loss, layers=plan.layers, paper_sites=plan.paper_sites,
        max_tokens=plan.max_tokens, seed=plan.seed, constants=constants,
    )  # fmt: skip


def forward_backward(model: Any, inputs: dict[str, Tensor], intervention: Intervention) -> None:
    """One pass forward and backward of a micro-batch as the arm trains it; gradients are left on the model."""
    config = intervention.dispersion
    with contextlib.ExitStack() as around:
        around.enter_context(intervention.hooks(model))
        disperser = None
        if config.coefficient:
            disperser = around.enter_context(Disperser(model, **vars(config)))
        loss = model(**inputs).loss
        if disperser is not None:
            loss = loss + disperser.penalty()
        if intervention.regulariser is not None:
            loss = loss + intervention.regulariser.coefficient * intervention.regulariser.value(model)
        loss.backward()
