"""`--dry-run`: what would run, what it would fetch, how long and how large; and nothing of it is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from condense.cli.running import quieten_libraries, working
from condense.errors import UnavailableError, UsageError
from condense.files import expanded
from condense.report.escape import for_terminal
from condense.report.text import in_words

if TYPE_CHECKING:
    from condense.diagnosis.distributed import Ranks
    from condense.diagnosis.estimate import Load, Shape, Source

_LENGTH = 512


@dataclass(frozen=True)
class Trial:
    """The options of `analyze` that decide what it costs."""

    model: str
    revision: str | None
    token: str | None
    offline: bool
    allow_pickle: bool
    code: bool
    random_init: bool
    twin: bool
    dtype: str
    device: str
    batch: int | None
    texts: int
    length: int | None
    text: str | None


def tell(trial: Trial, outputs: list[Path], ranks: Ranks | None) -> None:
    """Print the plan of a run on stdout."""
    if trial.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    with working(f"looking at {trial.model}"):
        quieten_libraries()
        from condense.diagnosis import estimate

        source = estimate.find(
            trial.model, revision=trial.revision, token=trial.token, offline=trial.offline,
            allow_pickle=trial.allow_pickle, code=trial.code, random_init=trial.random_init,
        )  # fmt: skip
        _check_text(trial.text)
        device = _device(trial.device)
        load = _load(trial, source.shape, device, ranks.size if ranks else 1)
        base = estimate.resident_bytes() if device == "cpu" else 0.0
        memory = estimate.peak_bytes(source, load, libraries=base)
        seconds = estimate.seconds(source, load, estimate.matmul_rate(source.shape, load, device))
    if ranks is None or ranks.is_first:
        for name, value in _lines(trial, source, load, device, memory, seconds, outputs):
            typer.echo(f"{name:<12} {for_terminal(value)}")


def _check_text(text: str | None) -> None:
    if text is None or text == "-" or text.startswith("dataset "):
        return
    if not expanded(text).exists():
        raise UnavailableError(f"no such text: {text}", "give a file, a folder or - for standard input")


def _device(asked: str) -> str:
    import torch

    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _load(trial: Trial, shape: Shape, device: str, processes: int) -> Load:
    from condense.diagnosis.estimate import Load

    if trial.length and shape.positions and trial.length > shape.positions:
        raise UsageError(
            f"--max-length {trial.length} is beyond the model's {shape.positions} positions", "use a shorter one"
        )
    length = trial.length or min(_LENGTH, shape.positions or _LENGTH)
    batch = trial.batch or (1 if device == "cpu" else 8)
    return Load(trial.texts, length, batch, trial.dtype, twin=trial.twin, processes=processes)


def _lines(
    trial: Trial, source: Source, load: Load, device: str, memory: float, seconds: float, outputs: list[Path]
) -> list[tuple[str, str]]:
    shape = source.shape
    sizes = f"{shape.parameters / 1e6:,.1f} M parameters, {shape.blocks} blocks, width {shape.width}"
    text = trial.text or "the probe text that ships with condense"
    processes = f", {load.processes} processes" if load.processes > 1 else ""
    total = sum(size for _, size in source.downloads)
    names = ", ".join(f"{name} {_size(size)}" for name, size in source.downloads)
    first = [("first", "the .gguf is converted once, into the cache")] if source.convert else []
    twin = " and its random twin" if trial.twin else ""
    place = "resident memory" if device == "cpu" else f"memory of {device}"
    return [
        ("model", f"{trial.model}{twin}: {sizes}, {trial.dtype}"),
        *first,
        ("texts", f"{load.texts} × {load.length} tokens at most, of {text}"),
        ("where", f"{device}, {load.batch} at a time{processes}"),
        ("downloads", f"{_size(total)}: {names}" if source.downloads else "nothing"),
        ("time", f"about {in_words(seconds)}"),
        ("memory", f"about {_size(memory)} of {place} at the peak" + (" in each process" if processes else "")),
        ("writes", ", ".join(map(str, outputs)) or "nothing"),
    ]


def _size(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
