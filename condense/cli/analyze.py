"""`condense analyze MODEL`: measure, show, write."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from condense.cli.check import gate_options, plan_gate
from condense.cli.console import MANNER, command_line, say_first
from condense.cli.groups import Only, command
from condense.cli.measure import (
    Model,
    conditions_of,
    cut_windows,
    diagnosed,
    locate_model,
    show_and_write,
    show_dry_run,
    weighed,
)
from condense.cli.outputs import plan_outputs
from condense.records.options import (
    GATE,
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

DryRun = Flag("Say what would run, be downloaded, take time and memory; do nothing.", RUN)
WeightsOnly = Flag("Look at the embedding and unembedding matrices alone: no text, no forward pass.", RUN)
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
    weights_only: Annotated[bool, WeightsOnly] = False,
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
    line = command_line(no_text=files.no_text)
    if weights_only:
        diagnosis = weighed(located, line)
    else:
        windows = cut_windows(located, corpus, measure, no_text=files.no_text)
        if held:
            held.refuse_unlike(conditions_of(located, windows, measure))
        diagnosis = diagnosed(located, windows, measure, line, ranks=ranks)
    if ranks is None or ranks.is_first:
        show_and_write(diagnosis, outputs)
        if held:
            held.conclude(diagnosis, next(iter(outputs.json), Path("RUN.json")))


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
