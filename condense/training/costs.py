"""What a training step of each arm takes: time for all arms in turn in one pass, memory each in its own process.

So that neither the order of the runs nor what else the machine did decides between arms.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan, Schedule
from condense.records.trial import StepCost
from condense.training.peak_memory import peak_bytes
from condense.training.remedies import remedy_of
from condense.training.step_time import ROUNDS, Pass, interleaved, time_ratio


@dataclass(frozen=True)
class Costed:
    """An arm to be timed: its model with a micro-batch of its own rows, and how much larger its vocabulary is."""

    spec: ArmSpec
    model: Any
    batch: Mapping[str, Tensor]
    added: int = 0


def step_costs(
    model: str,
    options: ModelOptions,
    plan: Plan,
    schedule: Schedule,
    arms: Sequence[Costed],
    on_pass: Callable[[int, int], None] | None = None,
) -> dict[str, StepCost]:
    """Seconds and peak memory of a step of each arm, and their ratios to the control, which has to be among them.

    Time: forward and backward of a micro-batch, median over rounds, times the micro-batches of a step; the
    optimizer's own step is left out. Memory: the peak of a process that takes two whole steps.
    """
    passes = {arm.spec.name: Pass(arm.model, arm.batch, remedy_of(arm.spec).acts(arm.spec, plan)) for arm in arms}
    spent = interleaved(passes, ROUNDS, on_pass)
    control = next(arm.spec.name for arm in arms if remedy_of(arm.spec).is_control)
    peaks = peak_bytes(model, options, plan, [(arm.spec, arm.added, arm.batch) for arm in arms])
    base = peaks[control]
    made = {}
    for arm in arms:
        name, peak = arm.spec.name, peaks[arm.spec.name]
        cost = StepCost(
            seconds=statistics.median(spent[name].seconds) * schedule.accumulation,
            time_ratio=time_ratio(spent[name], spent[control]),
            rounds=ROUNDS,
        )
        if isinstance(peak, str):
            made[name] = replace(cost, reason=peak)
        else:
            made[name] = replace(
                cost, peak_memory_bytes=peak, memory_ratio=peak / base if isinstance(base, int) else None
            )
    return made
