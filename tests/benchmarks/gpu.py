"""What a dispersion loss and `analyze` cost on the device at hand: `python -m tests.benchmarks gpu [MODEL]`.

On CUDA time is taken by CUDA events and the forward runs under bfloat16 autocast; on a CPU it is processor time in
float32. Medians over rounds, the arms in turn.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch

from condense import load
from condense.cli.demo import demo_file
from condense.diagnosis import forward
from condense.diagnosis.run import analyze
from condense.dispersion.disperser import Disperser
from condense.dispersion.losses import LOSSES
from condense.models.checkpoint import Checkpoint
from condense.texts.windows import Windows
from tests.benchmarks.costs import long_texts

Rows = Iterator[tuple[str, str]]
STEPS = ((8, 1024), (32, 512))
READS = tuple((batch, length) for length in (512, 2048) for batch in (8, 32))
MAX_TOKENS = (0, 256)


def device_name(device: torch.device) -> str:
    """The device as a table should name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def seconds(device: torch.device, work: Callable[[], None]) -> float:
    """Device time of a piece of work: between two CUDA events, or this process's processor time."""
    if device.type != "cuda":
        begun = time.process_time()
        work()
        return time.process_time() - begun
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def peak(device: torch.device) -> int:
    """Peak bytes of the allocator since the last call; 0 where the device does not count them."""
    if device.type != "cuda":
        return 0
    found = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return int(found)


def in_turn(device: torch.device, arms: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, int]]:
    """Median seconds and largest peak of every arm, taken in turn; one more round before warms up."""
    spent: dict[str, list[float]] = {name: [] for name in arms}
    peaks = dict.fromkeys(arms, 0)
    for number in range(rounds + 1):
        for name, work in arms.items():
            peak(device)
            taken = seconds(device, work)
            if number:
                spent[name].append(taken)
                peaks[name] = max(peaks[name], peak(device))
    return {name: (statistics.median(spent[name]), peaks[name]) for name in arms}


def step(model: Any, ids: torch.Tensor, disperser: Disperser | None) -> None:
    """Forward and backward of cross-entropy, with a penalty or without; gradients are dropped."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        loss = model(input_ids=ids, labels=ids).loss
        if disperser is not None:
            loss = loss + disperser.penalty()
    loss.backward()
    model.zero_grad(set_to_none=True)


def steps(checkpoint: Checkpoint, shapes: Sequence[tuple[int, int]], rounds: int) -> Rows:
    """Time and peak memory of a step with each loss over those of a cross-entropy step."""
    model, device = checkpoint.model.train(), checkpoint.model.device
    vocabulary = int(model.config.vocab_size)
    for batch, length in shapes:
        ids = torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
        arms: dict[str, Callable[[], None]] = {"ce": lambda ids=ids: step(model, ids, None)}  # type: ignore[misc]
        for loss in LOSSES:
            for most in MAX_TOKENS:
                arms[f"{loss}, {f'max_tokens {most}' if most else 'whole'}"] = _treated(model, ids, loss, most)
        found = in_turn(device, arms, rounds)
        base, base_peak = found.pop("ce")
        yield f"CE step ({batch}, {length})", f"{1e3 * base:.1f} ms"
        for name, (taken, most) in found.items():
            memory = f", peak memory x {most / base_peak:.3f}" if base_peak else ""
            yield f"  {name}", f"x {taken / base:.3f}{memory}"
    model.eval()


def _treated(model: Any, ids: torch.Tensor, loss: str, max_tokens: int) -> Callable[[], None]:
    def work() -> None:
        with Disperser(model, loss=loss, max_tokens=max_tokens) as disperser:
            step(model, ids, disperser)

    return work


def reads(checkpoint: Checkpoint, shapes: Sequence[tuple[int, int]], rounds: int) -> Rows:
    """`analyze` per text over a bare forward, its parts, and how often the host waits for the device in a text."""
    model, device = checkpoint.model.eval(), checkpoint.model.device
    for batch, length in shapes:
        if checkpoint.positions and length > checkpoint.positions:
            continue
        windows = _windows(checkpoint, batch, length)
        ids = windows.ids.to(device)

        def bare(ids: torch.Tensor = ids) -> None:
            with (
                torch.inference_mode(),
                torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"),
            ):
                model(input_ids=ids)

        def whole(windows: Windows = windows, batch: int = batch) -> None:
            analyze(checkpoint, windows, batch_size=batch)

        found = in_turn(device, {"bare": bare, "analyze": whole}, rounds)
        ratio = found["analyze"][0] / found["bare"][0]
        yield (
            f"analyze, batch {batch}, {length} tokens",
            f"{1e3 * found['analyze'][0] / batch:.1f} ms a text, x {ratio:.2f}",
        )
        for part, taken in split(device, whole).items():
            yield (
                f"  {part}, nothing beside it",
                f"{1e3 * taken / batch:.1f} ms a text, x {taken / found['bare'][0]:.2f}",
            )
        yield "  host waits per text", _waits(device, whole, batch)


def split(device: torch.device, work: Callable[[], None]) -> dict[str, float]:
    """Seconds of all passes with their losses, of packing and copying, and of measuring on the host.

    One after another, as on a device also where there is none. Wall time on CUDA, else processor time.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    spent = dict.fromkeys(("forward", "transfer", "measuring"), 0.0)

    def timed(owner: Any, method: str, part: str) -> Any:
        original = getattr(owner, method)

        @functools.wraps(original)
        def inner(*args: Any) -> Any:
            begun = clock()
            made = original(*args)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            spent[part] += clock() - begun
            return made

        return mock.patch.object(owner, method, inner)

    with (
        mock.patch.object(forward, "_is_measured_at_once", lambda states: False),
        timed(forward._BatchReader, "launch", "forward"),
        timed(forward._Batch, "send", "transfer"),
        timed(forward._BatchReader, "finish", "measuring"),
    ):
        work()
    return {**spent, "forward": spent["forward"] - spent["transfer"]}


def _windows(checkpoint: Checkpoint, count: int, length: int) -> Windows:
    from condense import windows

    texts = [f"{text}\n\n{text}\n\n{text}" for text in long_texts(count)]
    return windows(checkpoint.tokenizer, texts, num_texts=count, max_length=length)


def _waits(device: torch.device, work: Callable[[], None], texts: int) -> str:
    """How often CUDA made the host wait from a launch to its readings, by torch's count of synchronising calls."""
    if device.type != "cuda":
        return "not counted on a CPU"

    def counted(method: str) -> Any:
        original = getattr(forward._BatchReader, method)

        def inner(*args: Any) -> Any:
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return original(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return mock.patch.object(forward._BatchReader, method, inner)

    with contextlib.ExitStack() as stack:
        told = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        for method in ("launch", "finish"):
            stack.enter_context(counted(method))
        work()
    found = sum("synchroniz" in str(each.message) for each in told)
    return f"{found / texts:.1f}, beside one for each copy's event"


def table(
    model: str | None = None,
    step_shapes: Sequence[tuple[int, int]] = STEPS,
    read_shapes: Sequence[tuple[int, int]] = READS,
    rounds: int = 5,
) -> Rows:
    """All rows; model: the demo model unless given."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = load(model or demo_file(), device=device)
    yield "device", device_name(checkpoint.model.device)
    yield from steps(checkpoint, step_shapes, rounds)
    yield from reads(checkpoint, read_shapes, rounds)
