"""What a training step of each arm takes: time for all arms in turn in one pass, memory each in its own process.

In turn, because a machine's speed drifts; without optimizer steps, which are the same in arms of one size. Ratios on
a CPU are of processor time: wall time, under load, says what else the machine did (measured: the same arm 1.0 to 2.0
times the control).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from condense.records.base import Estimate
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan, Schedule
from condense.records.treatment import Overhead
from condense.records.trial import StepCost
from condense.training.interventions import Intervention, forward_backward
from condense.training.peak_memory import peak_bytes
from condense.training.remedies import remedy_of

ROUNDS = 3


@dataclass(frozen=True)
class Pass:
    """One arm's micro-batch: its model, its inputs and what the arm does."""

    model: Any
    batch: Mapping[str, Tensor]
    intervention: Intervention


@dataclass(frozen=True)
class Spent:
    """Seconds, seconds of work and peak bytes of each counted round of one arm.

    Work is the process's processor time on a CPU, the wall time on any other device. Peaks are 0 where the system
    does not say.
    """

    seconds: tuple[float, ...]
    work: tuple[float, ...]
    peaks: tuple[int, ...]


def overhead_of(spent: Mapping[str, Spent]) -> Overhead:
    """What an arm called `treated` costs against one called `control`, where both were timed in turn; else the control.

    Medians over rounds, the ratio round by round; peak memory is the largest of any round.
    """
    peaks = {name: max(one.peaks) for name, one in spent.items()}
    known = all(peaks.values())
    both = len(spent) == 2
    ratio = time_ratio(spent["treated"], spent["control"]) if both else Estimate(None)
    return Overhead(
        time_ratio=ratio.value,
        memory_ratio=peaks["treated"] / peaks["control"] if both and known else None,
        seconds_per_step={name: statistics.median(one.seconds) for name, one in spent.items()},
        peak_memory_bytes=peaks if known else {},
        rounds=len(spent["control"].seconds),
        reason=None if known else "peak memory is not known on this system",
        time_range=() if ratio.low is None or ratio.high is None else (ratio.low, ratio.high),
    )


def time_ratio(arm: Spent, control: Spent) -> Estimate:
    """Median over rounds of the arm's work over the control's in the same round, with the range over rounds."""
    ratios = [a / c for a, c in zip(arm.work, control.work, strict=True)]
    return Estimate(statistics.median(ratios), min(ratios), max(ratios))


def interleaved(
    passes: Mapping[str, Pass], rounds: int = ROUNDS, on_pass: Callable[[int, int], None] | None = None
) -> dict[str, Spent]:
    """Time every pass once per round, in turn; one more round before warms up and is not counted.

    Weights are kept, gradients cleared, modes restored. on_pass(done, total) is called after each pass.
    """
    rows: dict[str, list[tuple[float, float, int]]] = {name: [] for name in passes}
    training = [(one.model, one.model.training) for one in passes.values()]
    done, total = 0, len(passes) * (rounds + 1)
    try:
        for number in range(rounds + 1):
            for name, one in _turned(list(passes.items()), number):
                row = _once(one)
                done += 1
                if on_pass is not None:
                    on_pass(done, total)
                if number:
                    rows[name].append(row)
    finally:
        for model, was in training:
            model.zero_grad(set_to_none=True)
            model.train(was)
    columns = {name: list(zip(*rows[name], strict=True)) for name in passes}
    return {name: Spent(*(tuple(column) for column in columns[name])) for name in passes}


def _turned(items: Sequence[tuple[str, Pass]], number: int) -> list[tuple[str, Pass]]:
    """The arms beginning with another one each round, so that none always follows the same."""
    start = number % len(items)
    return [*items[start:], *items[:start]]


def _once(one: Pass) -> tuple[float, float, int]:
    """Seconds, seconds of work and peak bytes of a pass."""
    model = one.model
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in one.batch.items()}
    model.train()
    with _peak_memory(device) as peak:
        started, worked = time.perf_counter(), time.process_time()
        forward_backward(model, inputs, one.intervention)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent, work = time.perf_counter() - started, time.process_time() - worked
    model.zero_grad(set_to_none=True)
    return spent, work if device.type == "cpu" else spent, peak[0]


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Peak bytes while the body runs: of the allocator on a GPU, of the resident set elsewhere (sampled)."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = int(torch.cuda.max_memory_allocated(device))
        return
    done, process = threading.Event(), psutil.Process()

    def sample() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            done.wait(0.02)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


# --- all arms of a trial -------------------------------------------------------------------------------


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
