"""Peak memory of a training step of each arm, in a process of its own.

`peak_bytes` starts one helper process that loads the libraries once; where the system can fork safely (Linux) it
forks for every arm, so that each starts from the same small size, elsewhere every arm gets a helper of its own.
In there the model is loaded, an optimizer made, and two whole steps are taken; the peak is the kernel's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from condense.records.options import ModelOptions
from condense.records.plans import ArmSpec, Plan
from condense.records.serial import decode, encode

STEPS = 2
_LIMIT = 1800


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
            [sys.executable, "-P", "-m", "condense.training.peak_memory"],  # -P: no code of the working directory
            input=json.dumps([encode(job) for job in jobs]),
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=_LIMIT * len(jobs),
            check=False,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return dict.fromkeys(names, f"the measuring process gave no answer ({type(error).__name__})")
    return {name: answer.get(name, "the measuring process gave no answer") for name in names}


# --- in the other process ------------------------------------------------------------------------------


def main() -> None:
    """Read jobs from standard input, print one JSON object: peak bytes or a reason for each arm."""
    from condense.models import checkpoint  # noqa: F401  loaded here once, before any fork

    jobs = [decode(Footprint, data) for data in json.load(sys.stdin)]
    # On Linux the peak of a process that was started by another is at least that one's own; that of a fork is not.
    measure = _measure_in_fork if sys.platform == "linux" else _measure
    sys.stdout.write(json.dumps({job.spec.name: measure(job) for job in jobs}) + "\n")


def _measure_in_fork(job: Footprint) -> int | str:
    """Measure in a fork, which gives its answer through a pipe; killed (out of memory, say) it gives none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.write(writing, json.dumps(_measure(job)).encode())
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


def _measure(job: Footprint) -> int | str:
    """Load, take whole optimizer steps as the arm does, and read the peak."""
    from condense.models.checkpoint import load
    from condense.training.interventions import adapted, forward_backward
    from condense.training.remedies import remedy_of

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


if __name__ == "__main__":
    main()
