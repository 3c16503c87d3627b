"""`condense analyze MODEL`: measure, show, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from condense.cli.check import gate_options, plan_gate
from condense.cli.console import command_line
from condense.cli.groups import Only, command
from condense.cli.measure import (
    ExpectWorld,
    Model,
    alike_in_all,
    conditions_of,
    cut_windows,
    device_of_rank,
    diagnosed,
    locate_model,
    ranks_of_run,
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

DryRun = Flag("Say what would run, be downloaded, take time and memory; do nothing.", RUN)
WeightsOnly = Flag("Look at the embedding and unembedding matrices alone: no text, no forward pass.", RUN)
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
    ranks = ranks_of_run(expect_world, "measure")
    with alike_in_all():
        outputs = plan_outputs(files)
    if dry_run:
        show_dry_run(model, options, corpus, measure, outputs=outputs.paths(), ranks=ranks, no_text=files.no_text)
        return
    located = locate_model(model, replace(options, device=device_of_rank(options.device)))
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
