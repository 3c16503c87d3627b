"""`condense check RUN.json`: hold a saved run against a gate, without a model and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from condense.cli import options
from condense.cli.gating import asked, plan_gate, read_run
from condense.cli.running import reported

Run = Annotated[Path, typer.Argument(metavar="RUN.json", help="A run that condense saved.", show_default=False)]
Informational = Annotated[
    bool,
    typer.Option(
        "--informational", help="Tell everything, never fail.", show_default=False, rich_help_panel=options.GATE
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Fail unless everything passed: warnings, open results and what did not run count.",
        show_default=False, rich_help_panel=options.GATE,
    ),
]  # fmt: skip
Inconclusive = Annotated[
    Literal["warn", "fail"],
    typer.Option(
        "--inconclusive", help="What an interval that reaches over the bound counts as.", rich_help_panel=options.GATE
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Compare runs whose settings differ; write over files that condense did not write.",
        show_default=False, rich_help_panel=options.GATE,
    ),
]  # fmt: skip


def check(
    context: typer.Context,
    run: Run,
    baseline: options.Baseline = None,
    asserted: options.Asserted = None,
    informational: Informational = False,
    strict: Strict = False,
    inconclusive: Inconclusive = "warn",
    junit: options.JunitFile = None,
    md: options.MdFile = None,
    force: Force = False,
) -> None:
    """Hold a saved run against thresholds and a baseline: 0 if it passes, 1 if it fails."""
    with reported():
        gate = plan_gate(
            asked(
                context, baseline=baseline, asserted=asserted, informational=informational, strict=strict,
                inconclusive=inconclusive, junit=junit, md=md, force=force,
            )
        )  # fmt: skip
        gate.conclude(read_run(run), run)
