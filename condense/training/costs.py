"""What a training step of each arm takes: time for all arms in turn in one pass, memory each in its own process.

Time is taken in turn, because a machine's speed drifts; without optimizer steps, which are the same in arms of one
size. Ratios on a CPU are of processor time: wall time, under load, says what else the machine did (measured: the same
arm 1.0 to 2.0 times the control).

Memory: one helper process loads the libraries once and, where the system can fork safely (Linux), forks for every arm,
so that each starts from the same small size; elsewhere every arm gets a helper of its own. In there the model is
loaded, an optimizer made, and two whole steps are taken; the peak is the kernel's own.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from condense.models.checkpoint import load
from condense.records.base import Estimate
from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan
from condense.records.serial import decode, encode
from condense.records.treatment import Overhead, Schedule
from condense.records.trial import StepCost
from condense.training.interventions import Intervention, adapted, forward_backward
from condense.training.pretraining import CoupledAdam
from condense.training.remedies import remedy_of

ROUNDS = 3
STEPS = 2
_LIMIT = 1800  # seconds for the memory of an arm


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
    both = spent.keys() == {"control", "treated"}
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


# --- memory, in processes of their own -----------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """One arm to be measured: the model and its options, the arm, the training plan, rows added to the vocabulary."""

    model: str
    options: ModelOptions
    spec: ArmSpec
    plan: Plan
    added: int
    batch: str


def peak_bytes(
    model: str, options: ModelOptions, plan: Plan, arms: Sequence[tuple[ArmSpec, int, Mapping[str, Tensor]]]
) -> dict[str, int | str]:
    """Peak bytes of each arm by name, or the reason why it is not known.

    arms: the arm, the tokens added to its vocabulary, its micro-batch.
    """
    with tempfile.TemporaryDirectory(prefix="condense-footprint-") as folder:
        jobs, without_token = [], replace(options, token=None)  # which goes by the environment
        for number, (spec, added, batch) in enumerate(arms):
            path = Path(folder) / f"{number}.pt"
            torch.save(dict(batch), path)
            jobs.append(Footprint(str(model), without_token, spec, plan, added, str(path)))
        together = sys.platform == "linux"
        peaks: dict[str, int | str] = {}
        for group in [jobs] if together else [[job] for job in jobs]:
            peaks |= _run_helper(group, options.token)
        return peaks


def _run_helper(jobs: Sequence[Footprint], token: str | None) -> dict[str, int | str]:
    names = [job.spec.name for job in jobs]
    environment = {**os.environ, **({"HF_TOKEN": token} if token else {})}
    environment["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)  # the same condense, wherever it is
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "condense.training.costs"], input=json.dumps([encode(job) for job in jobs]),
            env=environment, capture_output=True, encoding="utf-8", timeout=_LIMIT * len(jobs), check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return dict.fromkeys(names, f"the measuring process gave no answer ({type(error).__name__})")
    return {name: answer.get(name, "the measuring process gave no answer") for name in names}


# --- in the other process ------------------------------------------------------------------------------


def main() -> None:
    """Read jobs from standard input, print one JSON object: peak bytes or a reason for each arm.

    Every library is loaded by now, before any fork.
    """
    jobs = [decode(Footprint, data) for data in json.load(sys.stdin)]
    # On Linux the peak of a process that was started by another is at least that one's own; that of a fork is not.
    measure = _measure_in_fork if sys.platform == "linux" else _peak_of_job
    sys.stdout.write(json.dumps({job.spec.name: measure(job) for job in jobs}) + "\n")


def _measure_in_fork(job: Footprint) -> int | str:
    """Measure in a fork, which gives its answer through a pipe; killed (out of memory, say) it gives none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(_peak_of_job(job)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        return f"the measuring process was stopped (signal {os.WTERMSIG(status)})" if os.WIFSIGNALED(status) else "none"
    result: int | str = json.loads(answer)
    return result


def _peak_of_job(job: Footprint) -> int | str:
    """Load, take whole optimizer steps as the arm does, and read the peak."""
    try:
        model: Any = load(job.model, job.options).model
        if job.added:
            rows = model.get_input_embeddings().num_embeddings
            model.resize_token_embeddings(rows + job.added, mean_resizing=False)
        if job.plan.use_peft:
            model = adapted(model, job.plan)
        if job.plan.activation_checkpointing:
            model.gradient_checkpointing_enable()
        device = next(model.parameters()).device
        batch = {key: value.to(device) for key, value in torch.load(job.batch, weights_only=True).items()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0)
        model.train()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        acts = remedy_of(job.spec).acts(job.spec, job.plan)
        for callback in acts.callbacks():
            if isinstance(callback, CoupledAdam):
                callback.attach(model, optimizer)
        for _ in range(STEPS):
            forward_backward(model, batch, acts)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    except Exception as error:  # the reason is reported beside the arm
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _peak_resident()


def _peak_resident() -> int:
    """The largest resident size that this process has had, in bytes, as the system counts it."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


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


if __name__ == "__main__":
    main()
