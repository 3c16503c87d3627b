"""What the loss costs: forward and backward with and without it, in turn, on the same rows.

In turn, because a machine's speed drifts; without optimizer steps, because those are the same in both.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from condense.disperser import Disperser, DispersionConfig
from condense.outcomes import Overhead

ROUNDS = 3
_PAGE = 4096


def measure_overhead(model: Any, batch: dict[str, Tensor], config: DispersionConfig, rounds: int = ROUNDS) -> Overhead:
    """Seconds and peak memory of a micro-batch, control and treated in turn; medians and ratios.

    The model keeps its weights; its gradients are cleared. The first round warms up and is not counted.
    """
    device = next(model.parameters()).device
    inputs = {key: value.to(device) for key, value in batch.items()}
    seconds: dict[str, list[float]] = {"control": [], "treated": []}
    peaks: dict[str, list[int]] = {"control": [], "treated": []}
    was_training = model.training
    model.train()
    try:
        for round_number in range(rounds + 1):
            for name in ("control", "treated"):
                spent, peak = _once(model, inputs, config if name == "treated" else None, device)
                if round_number:
                    seconds[name].append(spent)
                    peaks[name].append(peak)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(t / c for t, c in zip(seconds["treated"], seconds["control"], strict=True))
    memory = {name: max(values) for name, values in peaks.items()}
    known = all(memory.values())
    return Overhead(
        time_ratio=ratio,
        memory_ratio=memory["treated"] / memory["control"] if known else None,
        seconds_per_step=times,
        peak_memory_bytes=memory if known else {},
        rounds=rounds,
        reason=None if known else "peak memory is not known on this system",
    )


def _once(
    model: Any, inputs: dict[str, Tensor], config: DispersionConfig | None, device: torch.device
) -> tuple[float, int]:
    with _peak_memory(device) as peak:
        started = time.perf_counter()
        if config is None:
            loss = model(**inputs).loss
        else:
            with Disperser(
                model, config.coefficient, loss=config.loss, layers=config.layers, paper_sites=config.paper_sites,
                max_tokens=config.max_tokens, seed=config.seed, constants=config.constants,
            ) as disperser:  # fmt: skip
                loss = model(**inputs).loss + disperser.penalty()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return spent, peak[0]


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Peak bytes while the body runs: of the allocator on a GPU, of the resident set elsewhere (sampled)."""
    peak = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = int(torch.cuda.max_memory_allocated(device))
        return
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], resident_bytes())
            done.wait(0.02)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def resident_bytes() -> int:
    """Resident memory of this process in bytes; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
